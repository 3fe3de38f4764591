//! The part of the file that says who mints: `identities`, `namespaceRoles`, `defaultIdentity`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{FieldError, FieldErrors, accounts, regions, schema, seconds, wrong};
use crate::{
    identity::{
        AssumeRoleOptions, DEFAULT_SESSION_NAME, DefaultIdentity, Identities, NamespaceRoles,
        RoleArn, RoleTemplate, Rule,
        pattern::{NAMESPACE, Pattern, check_template},
    },
    registry::Region,
};

/// What stands for `clusterName`.
const CLUSTER: &str = "{cluster}";
/// How long AWS lets a session last, in seconds.
const DURATIONS: std::ops::RangeInclusive<u32> = 900..=43_200;
/// The most tags that a session can have.
const MAX_TAGS: usize = 50;

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FileRule {
    /// Accounts of the registries that the rule matches, each in quotes; empty: all.
    #[schemars(with = "Option<schema::Accounts>")]
    accounts: Option<Vec<String>>,
    /// Regions of the registries that the rule matches; empty: all.
    #[schemars(with = "Option<schema::Regions>")]
    regions: Option<Vec<String>>,
    /// Patterns of the namespaces that the rule matches, such as team-a-*; empty: all.
    #[schemars(with = "Option<schema::Patterns>")]
    namespaces: Option<Vec<String>>,
    /// IAM role to mint with.
    assume_role: Option<FileRole>,
    /// Mint with the AWS credentials of the process. Either this or assumeRole.
    ambient: Option<bool>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileRole {
    /// ARN of the role; may contain {namespace} and {cluster}.
    #[schemars(extend("pattern" = schema::ROLE_ARN))]
    role_arn: String,
    /// External id that the role's trust policy requires; may contain {namespace} and {cluster}.
    #[schemars(extend("minLength" = 2))]
    external_id: Option<String>,
    /// Session name, as in `CloudTrail`; may contain {namespace} and {cluster}.
    session_name: Option<String>,
    /// Session tags; their values may contain {namespace} and {cluster}.
    #[schemars(extend("maxProperties" = MAX_TAGS))]
    tags: Option<BTreeMap<String, String>>,
    /// Whether a session policy limits the session to pulling, whatever the role allows.
    #[schemars(extend("default" = false))]
    pull_only: Option<bool>,
    /// Duration of a session, 15m to 12h.
    #[schemars(extend("pattern" = schema::DURATION))]
    duration: Option<String>,
    /// Region of the STS endpoint; by default that of the registry.
    #[schemars(extend("pattern" = schema::REGION))]
    sts_region: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FileNamespaceRoles {
    /// Patterns of role ARNs, such as `arn:aws:iam::*:role/ecr-pull-{namespace}`.
    #[schemars(with = "schema::RolePatterns")]
    allow: Vec<String>,
    /// External id that the role's trust policy requires; may contain {namespace} and {cluster}.
    #[schemars(extend("minLength" = 2))]
    external_id: Option<String>,
    /// Session name, as in `CloudTrail`; may contain {namespace} and {cluster}.
    session_name: Option<String>,
    /// Session tags; their values may contain {namespace} and {cluster}.
    #[schemars(extend("maxProperties" = MAX_TAGS))]
    tags: Option<BTreeMap<String, String>>,
    /// Whether a session policy limits the session to pulling, whatever the role allows.
    #[schemars(extend("default" = false))]
    pull_only: Option<bool>,
    /// Duration of a session, 15m to 12h.
    #[schemars(extend("pattern" = schema::DURATION))]
    duration: Option<String>,
    /// Region of the STS endpoint; by default that of the registry.
    #[schemars(extend("pattern" = schema::REGION))]
    sts_region: Option<String>,
}

#[derive(Deserialize, JsonSchema, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum FileDefaultIdentity {
    /// The AWS credentials of the process.
    Ambient,
    /// No identity: nothing is minted.
    None,
}

/// How a role is assumed, as the file says it in two places.
#[derive(Default)]
struct FileAssumeRoleOptions {
    external_id: Option<String>,
    session_name: Option<String>,
    tags: Option<BTreeMap<String, String>>,
    pull_only: Option<bool>,
    duration: Option<String>,
    sts_region: Option<String>,
}

/// Checks all three.
pub(super) fn check(
    rules: Vec<FileRule>,
    namespace_roles: Option<FileNamespaceRoles>,
    default: Option<FileDefaultIdentity>,
    cluster: Option<&str>,
    wrongs: &mut FieldErrors,
) -> Identities {
    let rules = rules
        .into_iter()
        .enumerate()
        .filter_map(|(at, rule)| rule.check(&format!("identities[{at}]"), cluster, wrongs));
    Identities {
        rules: rules.collect(),
        namespace_roles: namespace_roles
            .map(|roles| roles.check(cluster, wrongs))
            .unwrap_or_default(),
        default: match default {
            None | Some(FileDefaultIdentity::Ambient) => DefaultIdentity::Ambient,
            Some(FileDefaultIdentity::None) => DefaultIdentity::None,
        },
    }
}

impl FileRule {
    fn check(self, field: &str, cluster: Option<&str>, wrongs: &mut FieldErrors) -> Option<Rule> {
        let mints = match (self.assume_role, self.ambient) {
            (Some(role), None | Some(false)) => role
                .check(&format!("{field}.assumeRole"), cluster, wrongs)
                .map(Some),
            (None, Some(true)) => Some(None),
            _ => {
                let message = "expected one of the two: assumeRole, or ambient: true";
                wrongs.take(Err(wrong(field, message)))
            }
        };
        let rule = Rule {
            accounts: accounts(field, self.accounts, wrongs),
            regions: regions(field, self.regions, wrongs),
            namespaces: patterns(
                &format!("{field}.namespaces"),
                &self.namespaces.unwrap_or_default(),
                wrongs,
            ),
            mints: mints?,
        };
        Some(rule)
    }
}

impl FileRole {
    fn check(
        self,
        field: &str,
        cluster: Option<&str>,
        wrongs: &mut FieldErrors,
    ) -> Option<RoleTemplate> {
        let arn = role_arn(&format!("{field}.roleArn"), &self.role_arn, cluster);
        let arn = wrongs.take(arn);
        let manner = FileAssumeRoleOptions {
            external_id: self.external_id,
            session_name: self.session_name,
            tags: self.tags,
            pull_only: self.pull_only,
            duration: self.duration,
            sts_region: self.sts_region,
        };
        let manner = manner.check(field, cluster, wrongs);
        Some(RoleTemplate::new(arn?, manner))
    }
}

fn role_arn(field: &str, text: &str, cluster: Option<&str>) -> Result<String, FieldError> {
    let arn = template(field, text, cluster)?;
    if RoleArn::parse(&arn.replace(NAMESPACE, "n")).is_none() {
        let message = format!(
            "expected arn:aws:iam::ACCOUNT:role/NAME (or another partition's), got {text:?}"
        );
        return Err(wrong(field, message));
    }
    Ok(arn)
}

impl FileNamespaceRoles {
    fn check(self, cluster: Option<&str>, wrongs: &mut FieldErrors) -> NamespaceRoles {
        let field = "namespaceRoles";
        let allow = patterns(&format!("{field}.allow"), &self.allow, wrongs);
        for (at, text) in self.allow.iter().enumerate() {
            if !text.starts_with("arn:") {
                let message = format!(
                    "expected a pattern of role ARNs such as arn:aws:iam::*:role/ecr-pull-*, got {text:?}"
                );
                wrongs
                    .0
                    .push(wrong(format!("{field}.allow[{at}]"), message));
            }
        }
        let manner = FileAssumeRoleOptions {
            external_id: self.external_id,
            session_name: self.session_name,
            tags: self.tags,
            pull_only: self.pull_only,
            duration: self.duration,
            sts_region: self.sts_region,
        };
        NamespaceRoles {
            allow,
            manner: manner.check(field, cluster, wrongs),
        }
    }
}

impl FileAssumeRoleOptions {
    fn check(
        self,
        field: &str,
        cluster: Option<&str>,
        wrongs: &mut FieldErrors,
    ) -> AssumeRoleOptions {
        let of = |name: &str| format!("{field}.{name}");
        let mut manner = AssumeRoleOptions::default();
        if let Some(text) = self.external_id {
            manner.external_id = wrongs.take(external_id(&of("externalId"), &text, cluster));
        }
        let session_name = self
            .session_name
            .or_else(|| cluster.map(|_| format!("{DEFAULT_SESSION_NAME}-{CLUSTER}")));
        if let Some(text) = session_name
            && let Some(name) = wrongs.take(template(&of("sessionName"), &text, cluster))
        {
            manner.session_name = name;
        }
        let tags = self.tags.unwrap_or_default();
        if tags.len() > MAX_TAGS {
            let message = format!("expected at most {MAX_TAGS}");
            wrongs.0.push(wrong(of("tags"), message));
        }
        for (key, value) in tags {
            let checked = tag(&of("tags"), &key, &value, cluster);
            manner
                .tags
                .extend(wrongs.take(checked).map(|value| (key, value)));
        }
        manner.pull_only = self.pull_only.unwrap_or_default();
        if let Some(text) = self.duration
            && let Some(duration) = wrongs.take(duration(&of("duration"), &text))
        {
            manner.duration_seconds = duration;
        }
        if let Some(text) = self.sts_region {
            let region = Region::parse(&text).ok_or_else(|| {
                let message = format!("expected a region such as eu-west-1, got {text:?}");
                wrong(of("stsRegion"), message)
            });
            manner.sts_region = wrongs.take(region);
        }
        manner
    }
}

fn external_id(field: &str, text: &str, cluster: Option<&str>) -> Result<String, FieldError> {
    let text = template(field, text, cluster)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "_+=,.@:/-{}".contains(c);
    if !(2..=1224).contains(&text.len()) || !text.chars().all(fits) {
        let message = "expected 2 to 1,224 letters, digits and any of _+=,.@:/-";
        return Err(wrong(field, message));
    }
    Ok(text)
}

fn tag(field: &str, key: &str, value: &str, cluster: Option<&str>) -> Result<String, FieldError> {
    let field = format!("{field}.{key}");
    if !(1..=128).contains(&key.chars().count()) || value.chars().count() > 256 {
        let message = "expected a key of 1 to 128 and a value of up to 256 characters";
        return Err(wrong(field, message));
    }
    template(&field, value, cluster)
}

fn duration(field: &str, text: &str) -> Result<u32, FieldError> {
    let duration = seconds(field, text)?;
    if !DURATIONS.contains(&duration) {
        let message = format!("expected 15m to 12h, got {text:?}");
        return Err(wrong(field, message));
    }
    Ok(duration)
}

/// Puts in the cluster's name, and checks that nothing else but the namespace's is asked for.
fn template(field: &str, text: &str, cluster: Option<&str>) -> Result<String, FieldError> {
    let text = match cluster {
        Some(name) => text.replace(CLUSTER, name),
        None if text.contains(CLUSTER) => {
            let message = format!("{CLUSTER} needs clusterName");
            return Err(wrong(field, message));
        }
        None => text.to_owned(),
    };
    check_template(&text).map_err(|error| wrong(field, error.to_string()))?;
    Ok(text)
}

fn patterns(field: &str, texts: &[String], wrongs: &mut FieldErrors) -> Vec<Pattern> {
    let parsed = texts.iter().enumerate().filter_map(|(at, text)| {
        let pattern = Pattern::parse(text);
        wrongs.take(pattern.map_err(|error| wrong(format!("{field}[{at}]"), error.to_string())))
    });
    parsed.collect()
}
