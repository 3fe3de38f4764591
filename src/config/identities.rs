//! The fields that choose the minting identity: `identities`, `namespaceRoles`, `defaultIdentity`.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use super::{
    error::{FieldError, FieldErrors},
    patterns,
    value::{accounts, listed, regions, seconds},
};
use crate::{
    identity::{
        AssumeRoleOptions, DEFAULT_SESSION_NAME, DefaultIdentity, Identities, NamespaceRoles,
        Profile, RoleArn, RoleTemplate, Rule,
        pattern::{NAMESPACE, Pattern, check_template},
    },
    registry::Region,
};

/// The placeholder of `clusterName`.
const CLUSTER: &str = "{cluster}";
/// The durations of a session that STS accepts, in seconds.
const DURATIONS: std::ops::RangeInclusive<u32> = 900..=43_200;
/// The maximum number of tags of a session.
const MAX_TAGS: usize = 50;

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("oneOf" = patterns::one_identity()))]
pub(super) struct FileRule {
    /// Accounts of the registries that the rule matches, each in quotes; by default all.
    #[serde(default, deserialize_with = "listed")]
    #[schemars(with = "patterns::Accounts", skip_serializing_if = "Option::is_none")]
    accounts: Option<Vec<String>>,
    /// Regions of the registries that the rule matches; by default all.
    #[serde(default, deserialize_with = "listed")]
    #[schemars(with = "patterns::Regions", skip_serializing_if = "Option::is_none")]
    regions: Option<Vec<String>>,
    /// Patterns of the namespaces that the rule matches, such as team-a-*; by default all.
    #[serde(default, deserialize_with = "listed")]
    #[schemars(with = "patterns::Patterns", skip_serializing_if = "Option::is_none")]
    namespaces: Option<Vec<String>>,
    /// IAM role to mint with.
    assume_role: Option<FileRole>,
    /// Mint with the AWS credentials of the process. One of this, assumeRole and profile.
    ambient: Option<bool>,
    /// Profile of the shared AWS config and credentials files to mint with, or to assume the role
    /// with.
    #[schemars(extend("pattern" = patterns::PROFILE))]
    profile: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileRole {
    /// ARN of the role; may contain {namespace} and {cluster}.
    #[schemars(extend("pattern" = patterns::ROLE_ARN))]
    role_arn: String,
    /// External id that the role's trust policy requires; may contain {namespace} and {cluster}.
    #[schemars(extend("minLength" = 2, "pattern" = patterns::EXTERNAL_ID))]
    external_id: Option<String>,
    /// Session name, as in `CloudTrail`; may contain {namespace} and {cluster}.
    #[schemars(extend("pattern" = patterns::TEMPLATE))]
    session_name: Option<String>,
    /// Session tags; their values may contain {namespace} and {cluster}.
    #[schemars(extend("maxProperties" = MAX_TAGS, "additionalProperties" = false, "patternProperties" = patterns::tags()))]
    tags: Option<BTreeMap<String, String>>,
    /// Whether a session policy limits the session to pulling, whatever the role allows.
    #[schemars(extend("default" = false))]
    pull_only: Option<bool>,
    /// Duration of a session, 15m to 12h.
    #[schemars(extend("pattern" = patterns::DURATION, "minLength" = patterns::MIN_DURATION))]
    duration: Option<String>,
    /// Region of the STS endpoint; by default that of the registry.
    #[schemars(extend("pattern" = patterns::REGION, "not" = patterns::no_region()))]
    sts_region: Option<String>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FileNamespaceRoles {
    /// Patterns of role ARNs, such as `arn:aws:iam::*:role/ecr-pull-{namespace}`.
    #[schemars(with = "patterns::RolePatterns")]
    allow: Vec<String>,
    /// External id that the role's trust policy requires; may contain {namespace} and {cluster}.
    #[schemars(extend("minLength" = 2, "pattern" = patterns::EXTERNAL_ID))]
    external_id: Option<String>,
    /// Session name, as in `CloudTrail`; may contain {namespace} and {cluster}.
    #[schemars(extend("pattern" = patterns::TEMPLATE))]
    session_name: Option<String>,
    /// Session tags; their values may contain {namespace} and {cluster}.
    #[schemars(extend("maxProperties" = MAX_TAGS, "additionalProperties" = false, "patternProperties" = patterns::tags()))]
    tags: Option<BTreeMap<String, String>>,
    /// Whether a session policy limits the session to pulling, whatever the role allows.
    #[schemars(extend("default" = false))]
    pull_only: Option<bool>,
    /// Duration of a session, 15m to 12h.
    #[schemars(extend("pattern" = patterns::DURATION, "minLength" = patterns::MIN_DURATION))]
    duration: Option<String>,
    /// Region of the STS endpoint; by default that of the registry.
    #[schemars(extend("pattern" = patterns::REGION, "not" = patterns::no_region()))]
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

/// The options of `AssumeRole`, which both a rule and `namespaceRoles` have.
#[derive(Default)]
struct FileAssumeRoleOptions {
    external_id: Option<String>,
    session_name: Option<String>,
    tags: Option<BTreeMap<String, String>>,
    pull_only: Option<bool>,
    duration: Option<String>,
    sts_region: Option<String>,
}

/// Checks all three fields.
pub(super) fn check(
    rules: Vec<FileRule>,
    namespace_roles: Option<FileNamespaceRoles>,
    default: Option<FileDefaultIdentity>,
    cluster: Option<&str>,
    errors: &mut FieldErrors,
) -> Identities {
    let rules = rules
        .into_iter()
        .enumerate()
        .filter_map(|(at, rule)| rule.check(&format!("identities[{at}]"), cluster, errors));
    Identities {
        rules: rules.collect(),
        namespace_roles: namespace_roles
            .map(|roles| roles.check(cluster, errors))
            .unwrap_or_default(),
        default: match default {
            None | Some(FileDefaultIdentity::Ambient) => DefaultIdentity::Ambient,
            Some(FileDefaultIdentity::None) => DefaultIdentity::None,
        },
    }
}

impl FileRule {
    fn check(self, field: &str, cluster: Option<&str>, errors: &mut FieldErrors) -> Option<Rule> {
        let profile = self.profile.map(|name| profile(field, &name));
        let names_profile = profile.is_some();
        let profile = profile.and_then(|checked| errors.record(checked));
        let is_ambient = self.ambient == Some(true);
        let assume_role = match self.assume_role {
            Some(role) if !is_ambient => role
                .check(
                    &format!("{field}.assumeRole"),
                    profile.clone(),
                    cluster,
                    errors,
                )
                .map(Some),
            None if is_ambient != names_profile => Some(None),
            _ => {
                let message =
                    "expected one of the two: assumeRole or profile (or both), or ambient: true";
                errors.record(Err(FieldError::new(field, message)))
            }
        };
        let rule = Rule {
            accounts: accounts(field, self.accounts, errors),
            regions: regions(field, self.regions, errors),
            namespaces: patterns(
                &format!("{field}.namespaces"),
                &self.namespaces.unwrap_or_default(),
                errors,
            ),
            assume_role: assume_role?,
            profile,
        };
        Some(rule)
    }
}

impl FileRole {
    fn check(
        self,
        field: &str,
        profile: Option<Profile>,
        cluster: Option<&str>,
        errors: &mut FieldErrors,
    ) -> Option<RoleTemplate> {
        let arn = role_arn(&format!("{field}.roleArn"), &self.role_arn, cluster);
        let arn = errors.record(arn);
        let options = FileAssumeRoleOptions {
            external_id: self.external_id,
            session_name: self.session_name,
            tags: self.tags,
            pull_only: self.pull_only,
            duration: self.duration,
            sts_region: self.sts_region,
        };
        let options = AssumeRoleOptions {
            profile,
            ..options.check(field, cluster, errors)
        };
        Some(RoleTemplate::new(arn?, options))
    }
}

fn profile(field: &str, name: &str) -> Result<Profile, FieldError> {
    Profile::parse(name).ok_or_else(|| {
        let message = format!(
            "expected the name of a profile: 1 to 128 letters, digits and any of _-/.%@:+, got {name:?}"
        );
        FieldError::new(format!("{field}.profile"), message)
    })
}

fn role_arn(field: &str, text: &str, cluster: Option<&str>) -> Result<String, FieldError> {
    let arn = template(field, text, cluster)?;
    // A placeholder stands for a part of the role's path or name, never for its account.
    let with_names = text.replace(CLUSTER, "c").replace(NAMESPACE, "n");
    let is_role = |text: &str| RoleArn::parse(text).is_some();
    if !is_role(&arn.replace(NAMESPACE, "n")) || !is_role(&with_names) {
        let message = format!(
            "expected arn:aws:iam::ACCOUNT:role/NAME (or another partition's), got {text:?}"
        );
        return Err(FieldError::new(field, message));
    }
    Ok(arn)
}

impl FileNamespaceRoles {
    fn check(self, cluster: Option<&str>, errors: &mut FieldErrors) -> NamespaceRoles {
        let field = "namespaceRoles";
        let allow = patterns(&format!("{field}.allow"), &self.allow, errors);
        for (at, text) in self.allow.iter().enumerate() {
            if !text.starts_with("arn:") {
                let message = format!(
                    "expected a pattern of role ARNs such as arn:aws:iam::*:role/ecr-pull-*, got {text:?}"
                );
                errors.push(format!("{field}.allow[{at}]"), message);
            }
        }
        let options = FileAssumeRoleOptions {
            external_id: self.external_id,
            session_name: self.session_name,
            tags: self.tags,
            pull_only: self.pull_only,
            duration: self.duration,
            sts_region: self.sts_region,
        };
        NamespaceRoles {
            allow,
            options: options.check(field, cluster, errors),
        }
    }
}

impl FileAssumeRoleOptions {
    fn check(
        self,
        field: &str,
        cluster: Option<&str>,
        errors: &mut FieldErrors,
    ) -> AssumeRoleOptions {
        let path = |name: &str| format!("{field}.{name}");
        let mut options = AssumeRoleOptions::default();
        if let Some(text) = self.external_id {
            options.external_id = errors.record(external_id(&path("externalId"), &text, cluster));
        }
        let session_name = self
            .session_name
            .or_else(|| cluster.map(|_| format!("{DEFAULT_SESSION_NAME}-{CLUSTER}")));
        if let Some(text) = session_name
            && let Some(name) = errors.record(template(&path("sessionName"), &text, cluster))
        {
            options.session_name = name;
        }
        let tags = self.tags.unwrap_or_default();
        if tags.len() > MAX_TAGS {
            let message = format!("expected at most {MAX_TAGS}");
            errors.push(path("tags"), message);
        }
        for (key, value) in tags {
            let checked = tag(&path("tags"), &key, &value, cluster);
            options
                .tags
                .extend(errors.record(checked).map(|value| (key, value)));
        }
        options.pull_only = self.pull_only.unwrap_or_default();
        if let Some(text) = self.duration
            && let Some(duration) = errors.record(duration(&path("duration"), &text))
        {
            options.duration_seconds = duration;
        }
        if let Some(text) = self.sts_region {
            let region = Region::parse(&text).ok_or_else(|| {
                let message = format!("expected a region such as eu-west-1, got {text:?}");
                FieldError::new(path("stsRegion"), message)
            });
            options.sts_region = errors.record(region);
        }
        options
    }
}

fn external_id(field: &str, text: &str, cluster: Option<&str>) -> Result<String, FieldError> {
    let text = template(field, text, cluster)?;
    let fits = |c: char| c.is_ascii_alphanumeric() || "_+=,.@:/-{}".contains(c);
    if !(2..=1224).contains(&text.len()) || !text.chars().all(fits) {
        let message = "expected 2 to 1,224 letters, digits and any of _+=,.@:/-";
        return Err(FieldError::new(field, message));
    }
    Ok(text)
}

fn tag(field: &str, key: &str, value: &str, cluster: Option<&str>) -> Result<String, FieldError> {
    let field = format!("{field}.{key}");
    if !(1..=128).contains(&key.chars().count()) || value.chars().count() > 256 {
        let message = "expected a key of 1 to 128 and a value of up to 256 characters";
        return Err(FieldError::new(field, message));
    }
    template(&field, value, cluster)
}

fn duration(field: &str, text: &str) -> Result<u32, FieldError> {
    let duration = seconds(field, text)?;
    if !DURATIONS.contains(&duration) {
        let message = format!("expected 15m to 12h, got {text:?}");
        return Err(FieldError::new(field, message));
    }
    Ok(duration)
}

/// Replaces `{cluster}` by the cluster's name, and checks that the only other placeholder is
/// `{namespace}`.
fn template(field: &str, text: &str, cluster: Option<&str>) -> Result<String, FieldError> {
    let text = match cluster {
        Some(name) => text.replace(CLUSTER, name),
        None if text.contains(CLUSTER) => {
            let message = format!("{CLUSTER} needs clusterName");
            return Err(FieldError::new(field, message));
        }
        None => text.to_owned(),
    };
    check_template(&text).map_err(|error| FieldError::new(field, error.to_string()))?;
    Ok(text)
}

fn patterns(field: &str, texts: &[String], errors: &mut FieldErrors) -> Vec<Pattern> {
    let parsed = texts.iter().enumerate().filter_map(|(at, text)| {
        let pattern = Pattern::parse(text);
        errors.record(
            pattern.map_err(|error| FieldError::new(format!("{field}[{at}]"), error.to_string())),
        )
    });
    parsed.collect()
}
