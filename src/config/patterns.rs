//! The patterns of the JSON Schema, one for each kind of text in the file.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

/// A lower-case DNS name of any number of labels.
pub(super) const OBJECT_NAME: &str =
    r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$";
/// A lower-case DNS name of two or more labels, or of one with a port.
pub(super) const HOST: &str = concat!(
    r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?",
    r"((\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+(:[1-9][0-9]{0,4})?|:[1-9][0-9]{0,4})$"
);
pub(super) const LABEL_KEY: &str = r"^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$";
pub(super) const LABEL_VALUE: &str = r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$";
pub(super) const CLUSTER_NAME: &str = r"^[A-Za-z0-9_.-]{1,100}$";
pub(super) const REGION: &str = r"^[a-z]{2,4}(-[a-z]+){1,2}-[0-9]{1,2}$";
/// A duration has a digit; the parser checks the rest.
pub(super) const DURATION: &str = r"[0-9]";
pub(super) const SESSION_CAP: &str = r"^(auto|session|none)$|[0-9]";
pub(super) const FORGET_AFTER: &str = r"^never$|[0-9]";
pub(super) const ROLE_ARN: &str = r"^arn:";
pub(super) const PROFILE: &str = r"^[A-Za-z0-9_/.%@:+-]{1,128}$";
/// The URL of an endpoint: HTTPS, or HTTP on this machine; the parser checks the rest.
pub(super) const ENDPOINT: &str = r"^https?://[^/?#@]+/?$";
const ACCOUNT: &str = r"^[0-9]{12}$";
const NAMESPACE: &str = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";
/// A text with wildcards (`*`); characters that only other pattern languages have are rejected.
const PATTERN: &str = r"^[^?\[\]\\()|]+$";
const ROLE_PATTERN: &str = r"^arn:[^?\[\]\\()|]+$";

/// Defines a type for each list of texts that match a pattern, with its least length. A type, because a field with
/// `schemars(with = "Option<...>")` stays optional in the schema.
macro_rules! lists {
    ($($name:ident: $pattern:expr, $min:expr;)+) => {$(
        pub(super) struct $name;

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let mut schema =
                    json_schema!({"type": "array", "items": {"type": "string", "pattern": $pattern}});
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
    Accounts: ACCOUNT, 1;
    Regions: REGION, 1;
    Namespaces: NAMESPACE, 0;
    Hosts: HOST, 0;
    Patterns: PATTERN, 1;
    RolePatterns: ROLE_PATTERN, 0;
}
