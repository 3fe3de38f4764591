//! The gauges of the pull secrets: measured at each scrape, on every replica, from its own
//! watches. So an alert also works when no replica leads, which is when the alert is needed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};

use super::metrics::PullSecretMetrics;
use super::{Observed, Unverified, is_public, state::State, store::PullSecrets};
use crate::{
    cluster::{
        namespace::{Namespace, NamespaceSettings},
        namespaces::Namespaces,
    },
    identity::IdentityHash,
    process::{clock::Clock, current::Current},
    registry::Host,
    telemetry::metrics::Registry,
    token::{
        Freshness,
        rules::{Policy, Rules},
    },
};

/// The most series by identity and region: those that expire first. Rules may give each namespace
/// an identity of its own, and whoever may edit a pull secret can invent some.
const MAX_IDENTITIES: usize = 100;
/// The least time between two measurements; scrapes in between show the last one. Anybody who
/// reaches the port may scrape, and measuring ten thousand pull secrets takes some milliseconds.
const MIN_INTERVAL: SignedDuration = SignedDuration::from_secs(1);
/// The region of a host that isn't an ECR registry, such as an alias that the configuration no
/// longer has.
const UNKNOWN_REGION: &str = "unknown";

/// The state of a pull secret. Of several hosts the worst counts, and of the first five the later
/// is the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PullSecretState {
    /// Each credential is fresh.
    Fresh,
    /// A credential should be renewed by now.
    Due,
    /// A host is no longer allowed: its credential is kept and not renewed.
    Suspended,
    /// A host has no credential yet.
    Pending,
    /// A credential has expired, or is too near to its expiry to be used.
    Expired,
    /// There is no host.
    Empty,
    /// The Secret isn't ours.
    Foreign,
    /// The Secret was not read yet, and its annotation can't be parsed.
    Unverified,
    /// The Secret was read, and another client had changed it.
    Tampered,
    /// The namespace is not opted in, so the Secret is not refreshed.
    OptedOut,
}

impl PullSecretState {
    /// Every value.
    pub const ALL: [Self; 10] = [
        Self::Fresh,
        Self::Due,
        Self::Suspended,
        Self::Pending,
        Self::Expired,
        Self::Empty,
        Self::Foreign,
        Self::Unverified,
        Self::Tampered,
        Self::OptedOut,
    ];

    /// Returns the value as a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Due => "due",
            Self::Suspended => "suspended",
            Self::Pending => "pending",
            Self::Expired => "expired",
            Self::Empty => "empty",
            Self::Foreign => "foreign",
            Self::Unverified => "unverified",
            Self::Tampered => "tampered",
            Self::OptedOut => "opted_out",
        }
    }

    /// Returns the state of a pull secret; `None` if the Secret does not exist.
    #[must_use]
    pub fn new(subject: &Subject<'_>, rules: &Rules, now: Timestamp) -> Option<Self> {
        Some(match subject.observed {
            Observed::Deleted(_) => return None,
            Observed::Foreign(_) => Self::Foreign,
            _ if subject.settings.is_none() => Self::OptedOut,
            Observed::Unverified {
                since: Unverified::Tampered,
                ..
            } => Self::Tampered,
            // An unread Secret is taken at its word: a replica that doesn't lead reads only those
            // that admissions need, and the leader reads all.
            observed => {
                let claims = observed.claims();
                claims.map_or(Self::Unverified, |state| subject.state(state, rules, now))
            }
        })
    }
}

/// A pull secret to measure.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its namespace.
    pub namespace: &'a Namespace,
    /// Its observed content.
    pub observed: &'a Observed,
    /// The settings of a namespace whose pull secret has to be fresh: opted in, not excluded, not
    /// being deleted.
    pub settings: Option<&'a NamespaceSettings>,
}

impl Subject<'_> {
    fn state(&self, state: &State, rules: &Rules, now: Timestamp) -> PullSecretState {
        let is_allowed = |host: &Host| {
            self.settings.is_some_and(|settings| {
                rules
                    .key_for(host.as_str(), self.namespace, settings)
                    .is_some()
            })
        };
        let hosts = state.hosts.iter();
        let states = hosts.map(|(host, entry)| match entry.credential {
            _ if !is_allowed(host) => PullSecretState::Suspended,
            Some(credential) => match credential.lifetime.freshness(now) {
                Freshness::Fresh => PullSecretState::Fresh,
                Freshness::Due => PullSecretState::Due,
                Freshness::Expired => PullSecretState::Expired,
            },
            // The images of a public host pull without a credential.
            None if is_public(host) => PullSecretState::Fresh,
            None => PullSecretState::Pending,
        });
        states.max().unwrap_or(PullSecretState::Empty)
    }
}

/// The states and expiry times of all pull secrets at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// The number of pull secrets in each state; together all that exist.
    pub by_state: BTreeMap<PullSecretState, i64>,
    /// The seconds until the first credential of an opted-in namespace expires; negative if one
    /// has.
    pub expires_in: Option<i64>,
    /// The seconds by identity and region, the least first.
    pub identities: Vec<(IdentityHash, String, i64)>,
}

/// Measures all pull secrets.
#[must_use]
pub fn measure<'a>(
    subjects: impl IntoIterator<Item = Subject<'a>>,
    policy: &Policy,
    now: Timestamp,
) -> Summary {
    let rules = &*policy.rules;
    let mut by_state = BTreeMap::new();
    // There are few hosts, so their regions are resolved in the end.
    let mut first: HashMap<(IdentityHash, &Host), Timestamp> = HashMap::new();
    for subject in subjects {
        let Some(state) = PullSecretState::new(&subject, rules, now) else {
            continue;
        };
        *by_state.entry(state).or_default() += 1;
        let counts = subject.settings.is_some() && state != PullSecretState::Tampered;
        let claims = subject.observed.claims().filter(|_| counts);
        for (host, entry) in claims.iter().flat_map(|state| state.hosts.iter()) {
            // Nobody has wanted it for so long that it expires by intent.
            let forgotten_at = policy.forgotten_at(host, entry.demand.last);
            if forgotten_at.is_some_and(|at| at <= now) {
                continue;
            }
            if let Some(credential) = entry.credential {
                let life = credential.lifetime;
                let first = first.entry((credential.identity, host));
                let soonest = first.or_insert(life.expires_at);
                *soonest = life.expires_at.min(*soonest);
            }
        }
    }
    let left = |expires_at: Timestamp| expires_at.as_second() - now.as_second();
    let expires_in = first.values().copied().min().map(left);
    let mut regions: BTreeMap<(IdentityHash, String), Timestamp> = BTreeMap::new();
    for ((identity, host), expires_at) in first {
        let registry = rules.aliases.resolve(host.as_str());
        let region = registry.map_or(UNKNOWN_REGION.to_owned(), |(_, registry)| {
            registry.region().to_string()
        });
        let soonest = regions.entry((identity, region)).or_insert(expires_at);
        *soonest = expires_at.min(*soonest);
    }
    let mut identities: Vec<_> = regions
        .into_iter()
        .map(|((identity, region), expires_at)| (identity, region, left(expires_at)))
        .collect();
    identities.sort_by_key(|(.., seconds)| *seconds);
    identities.truncate(MAX_IDENTITIES);
    Summary {
        by_state,
        expires_in,
        identities,
    }
}

/// Registers the measurement that runs before each scrape of the metrics.
pub fn measure_at_each_scrape(
    registry: &Registry,
    metrics: Arc<PullSecretMetrics>,
    secrets: PullSecrets,
    namespaces: Namespaces,
    policy: Current<Policy>,
    clock: Arc<dyn Clock>,
) {
    let measured = Mutex::new(None::<Timestamp>);
    registry.before_each_scrape(Box::new(move || {
        let now = clock.now();
        let mut measured = measured.lock().unwrap_or_else(PoisonError::into_inner);
        if measured.is_some_and(|at| now.duration_since(at).abs() < MIN_INTERVAL) {
            return;
        }
        *measured = Some(now);
        let (policy, all) = (policy.get(), secrets.all());
        let settings: Vec<_> = all
            .iter()
            .map(|(namespace, _)| {
                namespaces.peek(namespace).filter(|settings| {
                    !settings.is_terminating && !policy.rules.excluded.contains(namespace)
                })
            })
            .collect();
        let subjects = all.iter().zip(&settings);
        let subjects = subjects.map(|((namespace, entry), settings)| Subject {
            namespace,
            observed: entry.observed(),
            settings: settings.as_ref(),
        });
        measure(subjects, &policy, now).show(&metrics);
    }));
}

impl Summary {
    fn show(&self, metrics: &PullSecretMetrics) {
        for state in PullSecretState::ALL {
            let count = self.by_state.get(&state).copied().unwrap_or_default();
            metrics.in_state(state.as_str(), count);
        }
        metrics.expires_in(self.expires_in);
        let identities = self.identities.iter();
        metrics.identities_expire_in(
            identities.map(|(identity, region, seconds)| {
                (identity.to_string(), region.as_str(), *seconds)
            }),
        );
    }
}

#[cfg(test)]
mod tests;
