//! The rules of admissions and refreshes, as the configuration states them.

use std::{collections::BTreeSet, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use thiserror::Error;

use crate::{
    cluster::namespace::{Namespace, NamespaceSettings},
    identity::{Identities, Refusal},
    registry::{AccountId, Aliases, Host, Region, Registry, Service},
    token::TokenKey,
};

/// The most hosts that a pull secret ever has, whatever the configuration: with tokens of 4 KB it
/// stays below the megabyte that a Secret may have. A pull secret that claims more was written by
/// somebody else.
pub const MAX_HOSTS: usize = 128;

/// The rules by which tokens are given to namespaces.
#[derive(Debug, Clone)]
pub struct Rules {
    /// The name of the pull secret in every namespace.
    pub secret_name: String,
    /// The namespaces that are skipped, whatever their labels.
    pub excluded: BTreeSet<Namespace>,
    /// The aliases of ECR registries.
    pub aliases: Aliases,
    /// The registries for which tokens are minted.
    pub allow: Allow,
    /// The identities that mint tokens.
    pub identities: Identities,
    /// The most registries of one Pod that get credentials.
    pub registries_per_pod: usize,
    /// The most registries in one pull secret.
    pub registries_per_secret: usize,
    /// The verdict on a Pod whose pull secret could not be made in time.
    pub on_failure: OnFailure,
}

/// The registries for which tokens are minted; an empty set allows all.
#[derive(Debug, Clone, Default)]
pub struct Allow {
    /// The accounts.
    pub accounts: BTreeSet<AccountId>,
    /// The regions.
    pub regions: BTreeSet<Region>,
}

/// The verdict on a Pod whose pull secret could not be made in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnFailure {
    /// The Pod is admitted with the reference and a warning; its pulls succeed once the Secret is
    /// there.
    #[default]
    Admit,
    /// The Pod is rejected; its controller tries again.
    Deny,
}

/// The reason why the rules give a host of a pull secret no token. The host's credential is kept
/// until it expires, and is not renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Suspension {
    /// The configuration's allow list has neither the registry's account nor its region.
    #[error("the registry is not in the allow list")]
    NotAllowed,
    /// No identity may mint for the registry in this namespace.
    #[error("no identity may mint: {0}")]
    NoIdentity(Refusal),
    /// The host is neither an ECR registry's nor an alias of one, or no longer one.
    #[error("the host is neither an ECR registry nor an alias")]
    NotEcr,
}

/// The handling of a credential that the rules no longer allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Revocation {
    /// The credential stays until it expires, and is not renewed.
    #[default]
    OnExpiry,
    /// The credential is removed from the pull secret at once.
    Immediately,
}

/// The policy of the refresh.
#[derive(Debug, Clone)]
pub struct Policy {
    /// The rules by which tokens are given.
    pub rules: Arc<Rules>,
    /// The hosts that each opted-in namespace's pull secret has before any Pod asks.
    pub prewarm: Vec<Host>,
    /// How long after its last admission a host is forgotten; `None`: never.
    pub forget_after: Option<SignedDuration>,
    /// The handling of credentials that the rules no longer allow.
    pub revocation: Revocation,
    /// Whether the pull secret of a namespace that was opted out is deleted once all its
    /// credentials have expired.
    pub removes: bool,
    /// How many pull secrets may be written a second; as many reads may be made beside the writes.
    pub writes_per_second: u32,
}

impl Policy {
    /// Returns when a host whose last admission was then is forgotten unless a Pod wants it before;
    /// `None`: never. From that time on its credential is not renewed.
    #[must_use]
    pub fn forgotten_at(&self, host: &Host, last: Timestamp) -> Option<Timestamp> {
        let after = self.forget_after?;
        let is_named = self.prewarm.contains(host);
        (!is_named).then(|| last.saturating_add(after).unwrap_or(Timestamp::MAX))
    }
}

impl Allow {
    /// Returns whether tokens may be minted for a registry. The public gallery has no account: it
    /// is permitted wherever the configuration serves it.
    #[must_use]
    pub fn permits(&self, registry: &Registry) -> bool {
        if registry.endpoint().service == Service::Public {
            return true;
        }
        let account = registry.account();
        (self.accounts.is_empty() || account.is_some_and(|it| self.accounts.contains(it)))
            && (self.regions.is_empty() || self.regions.contains(registry.region()))
    }
}

impl Suspension {
    /// Returns the reason as a metric's label and a log's field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotAllowed => "registry_not_allowed",
            Self::NoIdentity(why) => why.as_str(),
            Self::NotEcr => "not_ecr",
        }
    }
}

impl Rules {
    /// Returns the host to write and the key of its token, for a host in the pull secret of a
    /// namespace, or why the rules give the host no token.
    pub fn key_or_reason(
        &self,
        host: &str,
        namespace: &Namespace,
        settings: &NamespaceSettings,
    ) -> Result<(Host, TokenKey), Suspension> {
        let (host, registry) = self.aliases.resolve(host).ok_or(Suspension::NotEcr)?;
        if !self.allow.permits(&registry) {
            return Err(Suspension::NotAllowed);
        }
        let choice = self.identities.choose(&registry, namespace, settings);
        let identity = choice.identity.map_err(Suspension::NoIdentity)?;
        Ok((host, TokenKey::new(identity, &registry)))
    }

    /// Returns what [`Self::key_or_reason`] returns, for callers that need no reason.
    #[must_use]
    pub fn key_for(
        &self,
        host: &str,
        namespace: &Namespace,
        settings: &NamespaceSettings,
    ) -> Option<(Host, TokenKey)> {
        self.key_or_reason(host, namespace, settings).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);
    const IRELAND: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    const OREGON: &str = "210987654321.dkr.ecr.us-west-2.amazonaws.com";

    fn rules(config: &str) -> Rules {
        Config::parse_fields(config, "config").expect("valid").rules
    }

    fn host(text: &str) -> Host {
        Host::parse(text).expect("valid")
    }

    /// Checks why the rules give a host no token in a namespace with these settings; `None`: they
    /// give it one.
    fn assert_reason(
        rules: &Rules,
        settings: &NamespaceSettings,
        host: &str,
        expected: Option<Suspension>,
    ) {
        let namespace = Namespace::parse("team").expect("valid");
        let key = rules.key_or_reason(host, &namespace, settings);
        let same = rules.key_for(host, &namespace, settings);
        assert_eq!(same, key.clone().ok(), "{host}");
        assert_eq!(key.err(), expected, "{host}");
    }

    #[test]
    fn host_without_a_token_has_its_reason() {
        let settings = NamespaceSettings::default();
        let annotated = NamespaceSettings {
            role: Some("arn:aws:iam::123456789012:role/admin".into()),
            ..NamespaceSettings::default()
        };
        let all = rules("");
        assert_reason(&all, &settings, IRELAND, None);
        for host in ["docker.io", "images.example.com", "public.ecr.aws", ""] {
            assert_reason(&all, &settings, host, Some(Suspension::NotEcr));
        }
        let refused = Suspension::NoIdentity(Refusal::NotAllowed);
        assert_reason(&all, &annotated, IRELAND, Some(refused));
        assert!(refused.to_string().contains("namespaceRoles.allow"));
        // Reasons that follow from the configuration alone come first.
        let one = rules("allow: {accounts: ['210987654321']}");
        for settings in [&settings, &annotated] {
            assert_reason(&one, settings, IRELAND, Some(Suspension::NotAllowed));
        }
        assert_reason(&one, &settings, OREGON, None);
    }

    #[test]
    fn registry_is_allowed_by_its_account_and_its_region() {
        for (allow, permitted) in [
            ("", [true, true]),
            ("accounts: ['123456789012']", [true, false]),
            ("regions: [us-west-2]", [false, true]),
            (
                "accounts: ['123456789012'], regions: [eu-west-1]",
                [true, false],
            ),
            (
                "accounts: ['123456789012'], regions: [us-west-2]",
                [false, false],
            ),
        ] {
            let mut rules = rules("publicEcr: true");
            if !allow.is_empty() {
                rules.allow = self::rules(&format!("allow: {{{allow}}}")).allow;
            }
            let permits = |host: &str| {
                let (_, registry) = rules.aliases.resolve(host).expect("a registry");
                rules.allow.permits(&registry)
            };
            assert_eq!([IRELAND, OREGON].map(permits), permitted, "{allow}");
            assert!(permits("public.ecr.aws"), "it has no account: {allow}");
        }
    }

    #[test]
    fn host_is_forgotten_some_time_after_its_last_admission() {
        let policy = |forget_after| Policy {
            rules: Arc::new(rules("")),
            prewarm: vec![host(OREGON)],
            forget_after,
            revocation: Revocation::OnExpiry,
            removes: false,
            writes_per_second: 20,
        };
        let days = |days: i64| SignedDuration::from_hours(24 * days);
        let forgotten_at = |after, text| policy(after).forgotten_at(&host(text), NOW);
        let in_a_week = Some(NOW + days(7));
        assert_eq!(forgotten_at(Some(days(7)), IRELAND), in_a_week);
        assert_eq!(
            forgotten_at(Some(SignedDuration::MAX), IRELAND),
            Some(Timestamp::MAX)
        );
        assert_eq!(forgotten_at(Some(days(7)), OREGON), None, "it is prewarmed");
        assert_eq!(forgotten_at(None, IRELAND), None);
    }

    #[test]
    fn suspension_has_a_name_for_metrics_and_reports() {
        let refused = Suspension::NoIdentity(Refusal::NoDefault);
        for (suspension, label) in [
            (Suspension::NotAllowed, "registry_not_allowed"),
            (refused, "no_identity"),
            (Suspension::NotEcr, "not_ecr"),
        ] {
            assert_eq!(suspension.as_str(), label);
        }
    }
}
