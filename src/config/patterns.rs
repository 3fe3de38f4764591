//! The patterns of the JSON Schema, one for each kind of text in the file. Each accepts what the
//! parser accepts and nothing else, in the syntax that Go, Rust and JavaScript share: no
//! look-around, no repetition of more than 1000.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// A label of a DNS name.
macro_rules! label {
    () => {
        "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
    };
}

/// A port from 1 to 65535 without leading zeros.
macro_rules! port {
    () => {
        "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
    };
}

/// The rest of a region's name after the first part.
macro_rules! area {
    () => {
        "[a-z]{1,16}-[0-9]{1,2}"
    };
}

/// A directive of a log filter.
macro_rules! directive {
    () => {
        "[A-Za-z0-9_:-]+(=(off|error|warn|info|debug|trace|OFF|ERROR|WARN|INFO|DEBUG|TRACE|[0-5]))?"
    };
}

/// A lower-case DNS name of any number of labels.
pub(super) const OBJECT_NAME: &str = concat!("^", label!(), r"(\.", label!(), ")*$");
/// A lower-case DNS name of two or more labels, or of one with a port.
pub(super) const HOST: &str = concat!(
    "^",
    label!(),
    r"((\.",
    label!(),
    ")+(:",
    port!(),
    ")?|:",
    port!(),
    ")$"
);
/// The most characters of a host.
pub(super) const MAX_HOST: usize = 253;
pub(super) const LABEL_KEY: &str = concat!(
    "^(",
    label!(),
    r"(\.",
    label!(),
    ")*/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
);
/// The prefix of a label's key has at most 253 characters.
pub(super) const LABEL_PREFIX: &str = "^([^/]*|[^/]{1,253}/[^/]*)$";
pub(super) const LABEL_VALUE: &str = r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$";
pub(super) const CLUSTER_NAME: &str = r"^[A-Za-z0-9_.-]{1,100}$";
pub(super) const REGION: &str = concat!(
    "^((us-(gov|isob?|isof)|eu-isoe|eusc-de)-|[a-z]{2}-)",
    area!(),
    "$"
);
/// Names that would have the form of a commercial region, but for the prefix of a partition.
pub(super) const NO_REGION: &str = "^(us-(gov|isob?|isof)|eu-isoe)-[0-9]{1,2}$";
/// Those names within a host.
const NO_REGISTRY: &str = r"\.(us-(gov|isob?|isof)|eu-isoe)-[0-9]{1,2}\.";
const PUBLIC: &str = r"^(public\.ecr\.aws|ecr-public\.aws\.com)(:[0-9]+)?$";
/// A duration such as 90m or 1h30m; its bounds are the parser's.
pub(super) const DURATION: &str = "^([0-9]{1,9}h)?([0-9]{1,9}m)?([0-9]{1,9}s)?$";
pub(super) const SESSION_CAP: &str =
    "^(auto|session|none|([0-9]{1,9}h)?([0-9]{1,9}m)?([0-9]{1,9}s)?)$";
pub(super) const FORGET_AFTER: &str =
    "^(never|([0-9]{1,9}d)?([0-9]{1,9}h)?([0-9]{1,9}m)?([0-9]{1,9}s)?)$";
/// A duration has a digit and a unit.
pub(super) const MIN_DURATION: usize = 2;
pub(super) const ROLE_ARN: &str = concat!(
    "^arn:aws(-cn|-us-gov|-eusc|-iso(-[bef])?)?:iam::[0-9]{12}:role",
    r"(/([A-Za-z0-9_+=,.@-]|\{namespace\}|\{cluster\})+)+$"
);
/// A text in which the only placeholders are those of the namespace and the cluster.
pub(super) const TEMPLATE: &str = r"^([^{}]|\{namespace\}|\{cluster\})*$";
pub(super) const EXTERNAL_ID: &str = r"^([A-Za-z0-9_+=,.@:/-]|\{namespace\}|\{cluster\})*$";
pub(super) const PROFILE: &str = r"^[A-Za-z0-9_/.%@:+-]{1,128}$";
/// Comma-separated levels and targets, each target with or without a level.
pub(super) const LOG_FILTER: &str = concat!("^", directive!(), "(,", directive!(), ")*$");
const ACCOUNT: &str = r"^[0-9]{12}$";
const NAMESPACE: &str = concat!("^", label!(), "$");
/// A text with wildcards (`*`) and `{namespace}`; characters that only other pattern languages have
/// are rejected.
const PATTERN: &str = r"^([^?\[\]\\()|{}]|\{namespace\})+$";
const ROLE_PATTERN: &str = r"^arn:([^?\[\]\\()|{}]|\{namespace\})*$";

/// The host of a private registry, with or without a port.
pub(super) const REGISTRY: &str = concat!(
    r"^[0-9]{12}\.(dkr\.ecr(-fips)?\.(",
    "(([abd-z][a-z]|c[a-mo-z])|us-gov)-",
    area!(),
    r"\.amazonaws\.com|cn-",
    area!(),
    r"\.amazonaws\.com\.cn|eusc-de-",
    area!(),
    r"\.amazonaws\.eu|us-iso-",
    area!(),
    r"\.c2s\.ic\.gov|us-isob-",
    area!(),
    r"\.sc2s\.sgov\.gov|eu-isoe-",
    area!(),
    r"\.cloud\.adc-e\.uk|us-isof-",
    area!(),
    r"\.csp\.hci\.ic\.gov)|dkr-ecr(-fips)?\.((([abd-z][a-z]|c[a-mo-z])|us-gov)-",
    area!(),
    r"\.on\.aws|cn-",
    area!(),
    r"\.on\.amazonwebservices\.com\.cn))(:",
    port!(),
    ")?$"
);

/// Returns the schema that rejects names of no region; beside [`REGION`].
pub(super) fn no_region() -> Value {
    matching(NO_REGION)
}

/// Returns the schema that rejects hosts of no registry; beside [`REGISTRY`].
pub(super) fn no_registry() -> Value {
    matching(NO_REGISTRY)
}

/// Returns the schema that rejects the hosts of ECR as aliases; beside [`HOST`].
pub(super) fn no_ecr_host() -> Value {
    let private = json!({"type": "string", "pattern": REGISTRY, "not": no_registry()});
    json!({"anyOf": [private, matching(PUBLIC)]})
}

/// Returns the schema of texts that match a pattern. Without the type, null would match as well.
fn matching(pattern: &str) -> Value {
    json!({"type": "string", "pattern": pattern})
}

/// Returns the choices of a rule's identity: a role with or without a profile, a profile, or the
/// ambient identity.
pub(super) fn one_identity() -> Value {
    let not_ambient = json!({"enum": [false, null]});
    let none = json!({"type": "null"});
    json!([
        {
            "title": "assumeRole",
            "required": ["assumeRole"],
            "properties": {"assumeRole": {"type": "object"}, "ambient": &not_ambient},
        },
        {
            "title": "profile",
            "required": ["profile"],
            "properties": {
                "profile": {"type": "string"}, "assumeRole": &none, "ambient": &not_ambient,
            },
        },
        {
            "title": "ambient",
            "required": ["ambient"],
            "properties": {"ambient": {"const": true}, "assumeRole": &none, "profile": &none},
        },
    ])
}

/// Returns the schema of a region that has no endpoint.
pub(super) fn no_endpoint() -> Value {
    json!({"properties": {"ecr": {"type": "null"}, "sts": {"type": "null"}}})
}

/// Returns the schema of session tags by their keys.
pub(super) fn tags() -> Value {
    json!({r"^[\s\S]{1,128}$": {"type": "string", "maxLength": 256, "pattern": TEMPLATE}})
}

/// Returns the pattern of the URL of an endpoint: HTTPS, or HTTP on this machine.
pub(super) fn endpoint() -> String {
    let port = concat!("(:0*", port!(), ")?/?");
    let name = concat!(
        r"([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*",
        "[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
    );
    let (ipv4, ipv6) = (IPV4, ipv6());
    format!(r"^(https://({name}|{ipv4}|\[{ipv6}\])|http://(localhost|127\.0\.0\.1|\[::1\])){port}$")
}

const IPV4: &str = r"((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";

/// Returns what the pattern of an endpoint can't express: the length of a name, and that a name
/// which ends with a number is an IPv4 address.
pub(super) fn endpoint_host() -> Value {
    let ends_with_number = r"^https?://([^/:\[]*\.)?[0-9]+(:[0-9]+)?/?$";
    let is_ipv4 = format!("^https?://{IPV4}(:[0-9]+)?/?$");
    json!([
        {"not": matching(r"^https?://[^/:\[]{254}")},
        {"anyOf": [{"not": matching(ends_with_number)}, {"pattern": is_ipv4}]},
    ])
}

/// Returns the pattern of an IPv6 address, without brackets.
fn ipv6() -> String {
    let group = "[0-9A-Fa-f]{1,4}";
    // N groups, the two colons, and up to 7 - N more.
    let shortened = (1..=6).map(|before| {
        let after = 7 - before;
        format!("({group}:){{1,{before}}}(:{group}){{1,{after}}}")
    });
    let mut forms = vec![
        format!("({group}:){{7}}{group}"),
        format!("({group}:){{1,7}}:"),
    ];
    forms.extend(shortened);
    forms.push(format!(":((:{group}){{1,7}}|:)"));
    format!("({})", forms.join("|"))
}

/// Defines a type for each list of texts, with the schema of a text, its least length. A type,
/// because a field with `schemars(with = "Option<...>")` stays optional in the schema.
macro_rules! lists {
    ($($name:ident: $item:expr, $min:expr;)+) => {$(
        pub(super) struct $name;

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let mut schema = json_schema!({"type": "array", "items": $item});
                if $min > 0 {
                    schema.insert("minItems".to_owned(), $min.into());
                }
                schema
            }
        }
    )+};
}

// A list of which none means "all" has at least one entry.
lists! {
    Accounts: matching(ACCOUNT), 1;
    Regions: json!({"type": "string", "pattern": REGION, "not": no_region()}), 1;
    Namespaces: matching(NAMESPACE), 0;
    Hosts: json!({"type": "string", "pattern": HOST, "maxLength": MAX_HOST}), 0;
    Patterns: matching(PATTERN), 1;
    RolePatterns: matching(ROLE_PATTERN), 0;
}
