//! The part of the file that says who mints: `identities`, `namespaceRoles`, `defaultIdentity`.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{Wrong, each, seconds};
use crate::{
    identity::{
        DEFAULT_SESSION_NAME, DefaultIdentity, Identities, Manner, NamespaceRoles, RoleArn,
        RoleTemplate, Rule,
        pattern::{NAMESPACE, Pattern, check_template},
    },
    registry::{AccountId, Region},
};

/// What stands for `clusterName`.
const CLUSTER: &str = "{cluster}";
/// How long AWS lets a session last, in seconds.
const DURATIONS: std::ops::RangeInclusive<u32> = 900..=43_200;
/// The most tags that a session can have.
const MAX_TAGS: usize = 50;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FileRule {
    accounts: Option<Vec<String>>,
    regions: Option<Vec<String>>,
    namespaces: Option<Vec<String>>,
    assume_role: Option<FileRole>,
    ambient: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileRole {
    role_arn: String,
    external_id: Option<String>,
    session_name: Option<String>,
    tags: Option<BTreeMap<String, String>>,
    pull_only: Option<bool>,
    duration: Option<String>,
    sts_region: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct FileNamespaceRoles {
    allow: Vec<String>,
    external_id: Option<String>,
    session_name: Option<String>,
    tags: Option<BTreeMap<String, String>>,
    pull_only: Option<bool>,
    duration: Option<String>,
    sts_region: Option<String>,
}

#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum FileDefaultIdentity {
    Ambient,
    None,
}

/// How a role is assumed, as the file says it in two places.
#[derive(Default)]
struct FileManner {
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
) -> Result<Identities, Wrong> {
    let rules = rules
        .into_iter()
        .enumerate()
        .map(|(at, rule)| rule.check(&format!("identities[{at}]"), cluster));
    Ok(Identities {
        rules: rules.collect::<Result<_, _>>()?,
        namespace_roles: namespace_roles
            .map(|roles| roles.check(cluster))
            .transpose()?
            .unwrap_or_default(),
        default: match default {
            None | Some(FileDefaultIdentity::Ambient) => DefaultIdentity::Ambient,
            Some(FileDefaultIdentity::None) => DefaultIdentity::None,
        },
    })
}

impl FileRule {
    fn check(self, field: &str, cluster: Option<&str>) -> Result<Rule, Wrong> {
        let mints = match (self.assume_role, self.ambient) {
            (Some(role), None | Some(false)) => {
                Some(role.check(&format!("{field}.assumeRole"), cluster)?)
            }
            (None, Some(true)) => None,
            _ => {
                let message = "expected one of the two: assumeRole, or ambient: true";
                return Err((field.to_owned(), message.to_owned()));
            }
        };
        Ok(Rule {
            accounts: each(
                &format!("{field}.accounts"),
                &self.accounts.unwrap_or_default(),
                "12 digits in quotes",
                AccountId::parse,
            )?,
            regions: each(
                &format!("{field}.regions"),
                &self.regions.unwrap_or_default(),
                "a region such as eu-west-1",
                Region::parse,
            )?,
            namespaces: patterns(
                &format!("{field}.namespaces"),
                &self.namespaces.unwrap_or_default(),
            )?,
            mints,
        })
    }
}

impl FileRole {
    fn check(self, field: &str, cluster: Option<&str>) -> Result<RoleTemplate, Wrong> {
        let arn = template(&format!("{field}.roleArn"), &self.role_arn, cluster)?;
        if RoleArn::parse(&arn.replace(NAMESPACE, "n")).is_none() {
            let message = format!(
                "expected arn:aws:iam::ACCOUNT:role/NAME (or another partition's), got {:?}",
                self.role_arn
            );
            return Err((format!("{field}.roleArn"), message));
        }
        let manner = FileManner {
            external_id: self.external_id,
            session_name: self.session_name,
            tags: self.tags,
            pull_only: self.pull_only,
            duration: self.duration,
            sts_region: self.sts_region,
        };
        Ok(RoleTemplate::new(arn, manner.check(field, cluster)?))
    }
}

impl FileNamespaceRoles {
    fn check(self, cluster: Option<&str>) -> Result<NamespaceRoles, Wrong> {
        let field = "namespaceRoles";
        let allow = patterns(&format!("{field}.allow"), &self.allow)?;
        if let Some(at) = self.allow.iter().position(|text| !text.starts_with("arn:")) {
            let message = format!(
                "expected a pattern of role ARNs such as arn:aws:iam::*:role/ecr-pull-*, got {:?}",
                self.allow[at]
            );
            return Err((format!("{field}.allow[{at}]"), message));
        }
        let manner = FileManner {
            external_id: self.external_id,
            session_name: self.session_name,
            tags: self.tags,
            pull_only: self.pull_only,
            duration: self.duration,
            sts_region: self.sts_region,
        };
        Ok(NamespaceRoles {
            allow,
            manner: manner.check(field, cluster)?,
        })
    }
}

impl FileManner {
    fn check(self, field: &str, cluster: Option<&str>) -> Result<Manner, Wrong> {
        let wrong = |name: &str, message: String| (format!("{field}.{name}"), message);
        let mut manner = Manner::default();
        if let Some(text) = self.external_id {
            let text = template(&format!("{field}.externalId"), &text, cluster)?;
            let fits = |c: char| c.is_ascii_alphanumeric() || "_+=,.@:/-{}".contains(c);
            if !(2..=1224).contains(&text.len()) || !text.chars().all(fits) {
                let message = "expected 2 to 1,224 letters, digits and any of _+=,.@:/-";
                return Err(wrong("externalId", message.to_owned()));
            }
            manner.external_id = Some(text);
        }
        let session_name = self
            .session_name
            .or_else(|| cluster.map(|_| format!("{DEFAULT_SESSION_NAME}-{CLUSTER}")));
        if let Some(text) = session_name {
            manner.session_name = template(&format!("{field}.sessionName"), &text, cluster)?;
        }
        let tags = self.tags.unwrap_or_default();
        if tags.len() > MAX_TAGS {
            return Err(wrong("tags", format!("expected at most {MAX_TAGS}")));
        }
        for (key, value) in tags {
            if !(1..=128).contains(&key.chars().count()) || value.chars().count() > 256 {
                let message = "expected a key of 1 to 128 and a value of up to 256 characters";
                return Err(wrong(&format!("tags.{key}"), message.to_owned()));
            }
            let value = template(&format!("{field}.tags.{key}"), &value, cluster)?;
            manner.tags.insert(key, value);
        }
        manner.pull_only = self.pull_only.unwrap_or_default();
        if let Some(text) = self.duration {
            let duration = seconds(&format!("{field}.duration"), &text)?;
            if !DURATIONS.contains(&duration) {
                let message = format!("expected 15m to 12h, got {text:?}");
                return Err(wrong("duration", message));
            }
            manner.duration_seconds = duration;
        }
        if let Some(text) = self.sts_region {
            let region = Region::parse(&text).ok_or_else(|| {
                wrong(
                    "stsRegion",
                    format!("expected a region such as eu-west-1, got {text:?}"),
                )
            })?;
            manner.sts_region = Some(region);
        }
        Ok(manner)
    }
}

/// Puts in the cluster's name, and checks that nothing else but the namespace's is asked for.
fn template(field: &str, text: &str, cluster: Option<&str>) -> Result<String, Wrong> {
    let text = match cluster {
        Some(name) => text.replace(CLUSTER, name),
        None if text.contains(CLUSTER) => {
            let message = format!("{CLUSTER} needs clusterName");
            return Err((field.to_owned(), message));
        }
        None => text.to_owned(),
    };
    check_template(&text).map_err(|error| (field.to_owned(), error.to_string()))?;
    Ok(text)
}

fn patterns(field: &str, texts: &[String]) -> Result<Vec<Pattern>, Wrong> {
    let parsed = texts.iter().enumerate().map(|(at, text)| {
        Pattern::parse(text).map_err(|error| (format!("{field}[{at}]"), error.to_string()))
    });
    parsed.collect()
}
