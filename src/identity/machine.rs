//! The choice of the minting identity on a machine, where no namespace asks: by the rules that hold
//! for all namespaces, or by the role that a Pod's ServiceAccount names.

use std::{collections::BTreeMap, sync::Arc};

use thiserror::Error;

use super::{
    AssumeRoleOptions, DEFAULT_SESSION_NAME, DefaultIdentity, Identities, Identity, Refusal, Role,
    RoleArn, pattern::NAMESPACE,
};
use crate::{
    cluster::namespace::ROLE_ANNOTATION,
    registry::{Partition, Registry},
};

/// The annotations of a ServiceAccount that may name its role: our own, that of the provider of
/// cloud-provider-aws, and that of a Pod's own role, which often may not pull.
pub const ROLE_ANNOTATIONS: [&str; 3] = [
    ROLE_ANNOTATION,
    "eks.amazonaws.com/ecr-role-arn",
    "eks.amazonaws.com/role-arn",
];
/// The start of the subject of a ServiceAccount's token.
const SUBJECT_PREFIX: &str = "system:serviceaccount:";

/// The identity that mints on a machine, and the rules that were left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineChoice {
    /// The identity, or why there is none.
    pub identity: Result<Identity, MachineRefusal>,
    /// The rules that would match in some namespaces, and never match on a machine, by their
    /// indexes from 0.
    pub skipped: Vec<usize>,
}

/// Why no identity mints on a machine.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MachineRefusal {
    /// The rule of this index, from 0, has a role whose texts contain the namespace.
    #[error(
        "identities[{0}] has {NAMESPACE} in its role, and there is no namespace here: name the role in a rule for this \
         machine"
    )]
    NeedsNamespace(usize),
    /// The rule's own reason.
    #[error(transparent)]
    Rule(#[from] Refusal),
}

/// Why the role of a ServiceAccount can't be assumed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RoleRefusal {
    /// The text is not the ARN of a role.
    #[error("{0} is not the ARN of a role (arn:aws:iam::ACCOUNT:role/NAME)")]
    NotAnArn(String),
    /// The role is in another partition than the registry.
    #[error(
        "{from} names a role in partition {role}, and the registry is in {registry}: a role's tokens are valid in its own \
         partition alone",
        role = .role.as_str(), registry = .registry.as_str()
    )]
    OtherPartition {
        /// Where the role is named.
        from: String,
        /// The role's partition.
        role: Partition,
        /// The registry's partition.
        registry: Partition,
    },
}

/// A role that was named for a ServiceAccount, unchecked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedRole<'a> {
    /// The annotation or the variable.
    pub from: &'a str,
    /// Its text.
    pub text: &'a str,
}

impl Identities {
    /// Chooses the identity that mints for a registry where there is no namespace.
    #[must_use]
    pub fn for_machine(&self, registry: &Registry) -> MachineChoice {
        let rules = self.rules.iter().enumerate();
        let mut rules = rules.filter(|(_, rule)| rule.is_for(registry));
        let mut skipped = Vec::new();
        let first = rules.find(|(at, rule)| {
            if !rule.namespaces.is_empty() {
                skipped.push(*at);
            }
            rule.namespaces.is_empty()
        });
        let identity = match first {
            Some((at, rule)) => match (&rule.assume_role, &rule.profile) {
                (Some(template), _) => match template.without_placeholder.clone() {
                    Some(made) => made.map(Identity::Role).map_err(Into::into),
                    None => Err(MachineRefusal::NeedsNamespace(at)),
                },
                (None, Some(profile)) => Ok(Identity::Profile(profile.clone())),
                (None, None) => Ok(Identity::Ambient),
            },
            None if self.default == DefaultIdentity::None => Err(Refusal::NoDefault.into()),
            None => Ok(Identity::Ambient),
        };
        let partition = registry.partition();
        let identity = identity.and_then(|identity| Ok(identity.of_partition(partition)?));
        MachineChoice { identity, skipped }
    }
}

/// Returns the role that a ServiceAccount names: by the first of these annotations that it has, or
/// else by `default`, a variable and its text. An annotation without a text names a role too, and
/// a wrong one: whoever wrote it meant no other.
#[must_use]
pub fn named_role<'a>(
    annotations: &'a BTreeMap<String, String>,
    keys: &'a [String],
    default: Option<NamedRole<'a>>,
) -> Option<NamedRole<'a>> {
    let annotation = keys.iter().find_map(|from| {
        let text = annotations.get(from)?;
        Some(NamedRole { from, text })
    });
    annotation.or(default)
}

/// Returns the role that a ServiceAccount with a token of this subject assumes for a registry. Its
/// session has the name of the ServiceAccount.
pub fn service_account_role(
    named: NamedRole<'_>,
    options: &AssumeRoleOptions,
    subject: Option<&str>,
    registry: &Registry,
) -> Result<Arc<Role>, RoleRefusal> {
    let from = || format!("the role of {}", named.from);
    let arn = RoleArn::parse(named.text)
        .ok_or_else(|| RoleRefusal::NotAnArn(format!("{:?}, {}", cut(named.text), from())))?;
    if arn.partition() != registry.partition() {
        return Err(RoleRefusal::OtherPartition {
            from: named.from.to_owned(),
            role: arn.partition(),
            registry: registry.partition(),
        });
    }
    let account = subject.and_then(|subject| subject.strip_prefix(SUBJECT_PREFIX));
    let account = account.and_then(|account| account.split_once(':'));
    let options = AssumeRoleOptions {
        session_name: match account {
            Some((namespace, name)) => format!("{namespace}.{name}"),
            None => DEFAULT_SESSION_NAME.to_owned(),
        },
        // The ServiceAccount's own token is all that is needed.
        profile: None,
        sts_region: options
            .sts_region
            .clone()
            .or_else(|| Some(registry.region().clone())),
        ..options.clone()
    };
    let namespace = account.map_or("", |(namespace, _)| namespace);
    Ok(options.role(arn, namespace))
}

/// Returns the beginning of a text from outside.
fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn registry(host: &str) -> Registry {
        format!("210987654321.dkr.ecr.{host}").parse().expect("one")
    }

    fn identities(rules: &str) -> Identities {
        let config = Config::parse_fields(rules, "test").expect("a configuration");
        config.rules.identities
    }

    #[test]
    fn rules_with_namespaces_never_match_on_a_machine() {
        let identities = identities(
            "identities:\n\
             - {namespaces: [team-a], assumeRole: {roleArn: \"arn:aws:iam::210987654321:role/a\"}}\n\
             - {regions: [us-east-1], assumeRole: {roleArn: \"arn:aws:iam::210987654321:role/us\"}}\n\
             - {regions: [eu-west-1], assumeRole: {roleArn: \"arn:aws:iam::210987654321:role/{namespace}\"}}\n\
             - {regions: [cn-north-1], assumeRole: {roleArn: \"arn:aws:iam::210987654321:role/us\"}}\n",
        );
        let choose = |host| {
            let choice = identities.for_machine(&registry(host));
            assert_eq!(choice.skipped, [0], "{host}");
            choice.identity.map(|identity| identity.to_string())
        };
        let role = "arn:aws:iam::210987654321:role/us".to_owned();
        assert_eq!(choose("us-east-1.amazonaws.com"), Ok(role));
        let ambient = "ambient".to_owned();
        assert_eq!(choose("eu-north-1.amazonaws.com"), Ok(ambient));
        let refusal = choose("eu-west-1.amazonaws.com");
        assert_eq!(refusal, Err(MachineRefusal::NeedsNamespace(2)));
        let refusal = choose("cn-north-1.amazonaws.com.cn");
        assert!(matches!(
            refusal,
            Err(MachineRefusal::Rule(Refusal::OtherPartition { .. }))
        ));
    }

    #[test]
    fn no_default_identity_mints_nothing_on_a_machine() {
        let identities = identities("defaultIdentity: none\n");
        let choice = identities.for_machine(&registry("eu-west-1.amazonaws.com"));
        assert_eq!(choice.identity, Err(Refusal::NoDefault.into()));
    }

    #[test]
    fn first_annotation_of_the_list_names_the_role() {
        let keys = ["a", "b"].map(str::to_owned);
        let annotations = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
            let pairs = pairs.iter();
            pairs
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        let default = Some(NamedRole {
            from: "AWS_ECR_ROLE_ARN",
            text: "default",
        });
        for (pairs, expected) in [
            (&[("b", "of-b"), ("a", "of-a")][..], "of-a"),
            (&[("b", "of-b"), ("c", "of-c")], "of-b"),
            (&[("a", ""), ("b", "of-b")], ""),
            (&[("c", "of-c")], "default"),
        ] {
            let annotations = annotations(pairs);
            let named = named_role(&annotations, &keys, default).expect("one");
            assert_eq!(named.text, expected, "{pairs:?}");
        }
        assert_eq!(named_role(&annotations(&[]), &keys, None), None);
    }

    #[test]
    fn session_is_named_for_the_service_account() {
        let registry = registry("eu-west-1.amazonaws.com");
        let named = NamedRole {
            from: "a",
            text: "arn:aws:iam::210987654321:role/pull",
        };
        let options = AssumeRoleOptions::default();
        let name = |subject| {
            let role = service_account_role(named, &options, subject, &registry).expect("a role");
            role.options.session_name.clone()
        };
        assert_eq!(name(Some("system:serviceaccount:shop:robot")), "shop.robot");
        for unknown in [None, Some("somebody"), Some("system:serviceaccount:shop")] {
            assert_eq!(name(unknown), "ecr-injector");
        }
        let long = format!("system:serviceaccount:shop:{}", "r".repeat(80));
        assert_eq!(name(Some(&long)).len(), 64);
        assert_eq!(name(Some("system:serviceaccount:s/p:r o")), "s-p.r-o");
    }

    #[test]
    fn role_that_is_none_or_elsewhere_is_refused() {
        let options = AssumeRoleOptions::default();
        let registry = registry("eu-west-1.amazonaws.com");
        for (text, expected) in [
            (
                "not-an-arn",
                "\"not-an-arn\", the role of a is not the ARN of a role",
            ),
            ("", "\"\", the role of a is not"),
            ("arn:aws-cn:iam::210987654321:role/pull", "partition aws-cn"),
        ] {
            let named = NamedRole { from: "a", text };
            let refused = service_account_role(named, &options, None, &registry);
            let error = refused.expect_err("no role").to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
