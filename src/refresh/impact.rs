//! Finds the credentials of a cluster that a configuration would suspend. Pure.

use std::{collections::BTreeSet, fmt};

use crate::{
    cluster::namespace::{Namespace, NamespaceSettings},
    registry::Host,
    token::rules::{Rules, Suspension},
};

/// A change that affects fewer namespaces is an everyday one, whatever their share of the cluster.
const WIDESPREAD_FROM: usize = 10;

/// The hosts that a configuration would suspend.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Impact {
    /// The namespaces whose pull secrets name hosts.
    pub namespaces: usize,
    /// The hosts in all of them.
    pub hosts: usize,
    /// The suspended hosts, ordered by namespace.
    pub suspended: Vec<Suspended>,
}

/// A host of a pull secret that would not be renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspended {
    /// The namespace of the pull secret.
    pub namespace: Namespace,
    /// The host.
    pub host: Host,
    /// The reason.
    pub cause: Cause,
}

/// The reason why a host would not be renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The namespace is in `optIn.excludeNamespaces`.
    Excluded,
    /// The rules give the host no token.
    Rules(Suspension),
}

impl Cause {
    /// Returns the cause as a word for machines.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Excluded => "excluded_namespace",
            Self::Rules(why) => why.as_str(),
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Excluded => f.write_str("the namespace is in optIn.excludeNamespaces"),
            Self::Rules(why) => why.fmt(f),
        }
    }
}

impl Impact {
    /// Returns the hosts that the rules would suspend, given the opted-in namespaces, their
    /// settings and the hosts that their pull secrets name.
    #[must_use]
    pub fn new(rules: &Rules, pull_secrets: &[(Namespace, NamespaceSettings, Vec<Host>)]) -> Self {
        let mut impact = Self::default();
        for (namespace, settings, hosts) in pull_secrets {
            impact.namespaces += usize::from(!hosts.is_empty());
            impact.hosts += hosts.len();
            for host in hosts {
                let cause = if rules.excluded.contains(namespace) {
                    Some(Cause::Excluded)
                } else {
                    let key = rules.key_or_reason(host.as_str(), namespace, settings);
                    key.err().map(Cause::Rules)
                };
                impact.suspended.extend(cause.map(|cause| Suspended {
                    namespace: namespace.clone(),
                    host: host.clone(),
                    cause,
                }));
            }
        }
        impact
            .suspended
            .sort_by(|a, b| (&a.namespace, &a.host).cmp(&(&b.namespace, &b.host)));
        impact
    }

    /// Returns in how many namespaces a host would be suspended.
    #[must_use]
    pub fn affected_namespaces(&self) -> usize {
        let namespaces = self.suspended.iter().map(|it| &it.namespace);
        namespaces.collect::<BTreeSet<_>>().len()
    }

    /// Returns whether the configuration is likely a mistake: it would suspend hosts in more than
    /// half of the namespaces, and in ten at least.
    #[must_use]
    pub fn is_widespread(&self) -> bool {
        is_widespread(self.affected_namespaces(), self.namespaces)
    }
}

/// Returns whether a change to so many of all namespaces is likely a mistake.
#[must_use]
pub fn is_widespread(affected: usize, all: usize) -> bool {
    affected >= WIDESPREAD_FROM && affected > all / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::{Identities, Refusal},
        registry::{AccountId, Aliases},
        token::rules::{Allow, OnFailure},
    };

    fn rules(accounts: &[&str]) -> Rules {
        let accounts = accounts.iter().filter_map(|text| AccountId::parse(text));
        Rules {
            secret_name: "ecr-pull-secret".into(),
            excluded: Namespace::parse("system").into_iter().collect(),
            aliases: Aliases::default(),
            allow: Allow {
                accounts: accounts.collect(),
                ..Allow::default()
            },
            identities: Identities::default(),
            registries_per_pod: 16,
            registries_per_secret: 64,
            on_failure: OnFailure::Admit,
        }
    }

    fn pull_secret(namespace: &str, hosts: &[&str]) -> (Namespace, NamespaceSettings, Vec<Host>) {
        let hosts = hosts.iter().map(|host| Host::parse(host).expect("valid"));
        let name = Namespace::parse(namespace).expect("valid");
        (name, NamespaceSettings::default(), hosts.collect())
    }

    const OURS: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    const OTHER: &str = "210987654321.dkr.ecr.eu-west-1.amazonaws.com";

    #[test]
    fn each_host_that_gets_no_token_is_named_with_its_cause() {
        let mut refused = pull_secret("b-refused", &[OURS]);
        refused.1.role = Some("arn:aws:iam::123456789012:role/admin".into());
        let pull_secrets = [
            pull_secret("system", &[OURS]),
            pull_secret("good", &[OURS]),
            pull_secret("empty", &[]),
            refused,
            pull_secret("alias", &[OTHER, "images.example.com"]),
        ];
        let impact = Impact::new(&rules(&["123456789012"]), &pull_secrets);
        let found: Vec<_> = impact
            .suspended
            .iter()
            .map(|it| (it.namespace.as_str(), it.host.as_str(), it.cause))
            .collect();
        let expected = [
            ("alias", OTHER, Cause::Rules(Suspension::NotAllowed)),
            (
                "alias",
                "images.example.com",
                Cause::Rules(Suspension::NotEcr),
            ),
            (
                "b-refused",
                OURS,
                Cause::Rules(Suspension::NoIdentity(Refusal::NotAllowed)),
            ),
            ("system", OURS, Cause::Excluded),
        ];
        assert_eq!(found, expected);
        let words = impact.suspended.iter().map(|it| it.cause.as_str());
        assert_eq!(
            words.collect::<Vec<_>>(),
            [
                "registry_not_allowed",
                "not_ecr",
                "role_not_allowed",
                "excluded_namespace"
            ]
        );
        let texts: Vec<String> = impact
            .suspended
            .iter()
            .map(|it| it.cause.to_string())
            .collect();
        assert_eq!(texts[0], "the registry is not in the allow list");
        assert_eq!(texts[3], "the namespace is in optIn.excludeNamespaces");
        assert_eq!((impact.namespaces, impact.hosts), (4, 5));
        assert_eq!(impact.affected_namespaces(), 3);
        assert!(!impact.is_widespread());
    }

    #[test]
    fn impact_is_widespread_from_ten_namespaces_and_half_on() {
        for (affected, all, expected) in [
            (0, 0, false),
            (9, 9, false),
            (10, 10, true),
            (10, 19, true),
            (10, 20, false),
            (11, 20, true),
            (11, 21, true),
            (500, 1000, false),
            (501, 1000, true),
        ] {
            assert_eq!(is_widespread(affected, all), expected, "{affected}/{all}");
        }
        let namespaces: Vec<_> = (0..20).map(|number| format!("team-{number}")).collect();
        let wrong_digit = |bad: usize| {
            let each = namespaces.iter().enumerate();
            let pull_secrets: Vec<_> = each
                .map(|(at, name)| pull_secret(name, &[if at < bad { OTHER } else { OURS }]))
                .collect();
            Impact::new(&rules(&["123456789012"]), &pull_secrets).is_widespread()
        };
        assert!(!wrong_digit(10) && wrong_digit(11));
    }
}
