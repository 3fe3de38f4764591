//! What the pull secrets are worth: measured at each scrape, on every replica, from what its own watches know. So an alert
//! works also when nobody leads, which is when it is needed.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use jiff::{SignedDuration, Timestamp};

use super::{
    Observed, Unverified, is_public, metrics::PullSecretMetrics, state::State, store::PullSecrets,
};
use crate::{
    cluster::{
        namespace::{Namespace, NamespaceSettings},
        namespaces::Namespaces,
    },
    identity::IdentityHash,
    process::{clock::Clock, current::Current},
    registry::Host,
    rules::Rules,
    telemetry::metrics::Registry,
    token::Freshness,
};

/// The most series by identity and region: those that expire first. Rules may give each namespace an identity of its own,
/// and whoever may edit a pull secret can invent some.
const MAX_IDENTITIES: usize = 100;
/// Scrapes that follow each other faster show the same. Anybody who reaches the port may scrape, and with ten thousand
/// pull secrets to measure takes some milliseconds.
const PAUSE: SignedDuration = SignedDuration::from_secs(1);
/// The region of a host that isn't an ECR registry, such as an alias that the configuration has no more.
const UNKNOWN_REGION: &str = "unknown";

/// What a pull secret is worth. Of several hosts the worst counts, and of the first five the later is the worse.
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
    /// A credential is expired, or too near to it to be used.
    Expired,
    /// It has no host.
    Empty,
    /// It isn't ours.
    Foreign,
    /// Nobody read it yet, and its state can't be read.
    Unverified,
    /// It was read, and somebody else had changed it.
    Tampered,
    /// Its namespace is not opted in: it is not refreshed.
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

    /// Returns what a pull secret is worth; `None` if there is none.
    #[must_use]
    pub fn of(subject: &Subject<'_>, rules: &Rules, now: Timestamp) -> Option<Self> {
        Some(match subject.observed {
            Observed::Deleted(_) => return None,
            Observed::Foreign(_) => Self::Foreign,
            _ if subject.settings.is_none() => Self::OptedOut,
            Observed::Unverified {
                since: Unverified::Tampered,
                ..
            } => Self::Tampered,
            // At its word where nobody read it yet: a replica that doesn't lead reads none but those that admissions need, and
            // the leader all.
            observed => {
                let claims = observed.claims();
                claims.map_or(Self::Unverified, |state| subject.worth(state, rules, now))
            }
        })
    }
}

/// One pull secret to measure.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Where it is.
    pub namespace: &'a Namespace,
    /// What is known of it.
    pub observed: &'a Observed,
    /// The settings of a namespace whose pull secret has to be good: opted in, not excluded, not being deleted.
    pub settings: Option<&'a NamespaceSettings>,
}

impl Subject<'_> {
    fn worth(&self, state: &State, rules: &Rules, now: Timestamp) -> PullSecretState {
        let is_allowed = |host: &Host| {
            self.settings.is_some_and(|settings| {
                rules
                    .key_for(host.as_str(), self.namespace, settings)
                    .is_some()
            })
        };
        let hosts = state.hosts.iter();
        let worths = hosts.map(|(host, entry)| match entry.credential {
            _ if !is_allowed(host) => PullSecretState::Suspended,
            Some(credential) => match credential.lifetime.freshness(now) {
                Freshness::Fresh => PullSecretState::Fresh,
                Freshness::Due => PullSecretState::Due,
                Freshness::Expired => PullSecretState::Expired,
            },
            // Its images pull without one.
            None if is_public(host) => PullSecretState::Fresh,
            None => PullSecretState::Pending,
        });
        worths.max().unwrap_or(PullSecretState::Empty)
    }
}

/// What all pull secrets are worth at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// How many are worth what; together all that are there.
    pub by_worth: BTreeMap<PullSecretState, i64>,
    /// The seconds until the first credential expires of opted-in namespaces; negative if it has.
    pub expires_in: Option<i64>,
    /// The same by identity and region, the first before the others.
    pub identities: Vec<(IdentityHash, String, i64)>,
}

/// Measures all pull secrets.
#[must_use]
pub fn measure<'a>(
    subjects: impl IntoIterator<Item = Subject<'a>>,
    rules: &Rules,
    now: Timestamp,
) -> Summary {
    let mut by_worth = BTreeMap::new();
    // There are few hosts, so their regions are looked for in the end.
    let mut first: HashMap<(IdentityHash, &Host), Timestamp> = HashMap::new();
    for subject in subjects {
        let Some(worth) = PullSecretState::of(&subject, rules, now) else {
            continue;
        };
        *by_worth.entry(worth).or_default() += 1;
        let counts = subject.settings.is_some() && worth != PullSecretState::Tampered;
        let state = subject.observed.claims().filter(|_| counts);
        for (host, entry) in state.iter().flat_map(|state| state.hosts.iter()) {
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
        by_worth,
        expires_in,
        identities,
    }
}

/// Has every scrape of the metrics measure what is known then.
pub fn measure_at_each_scrape(
    registry: &Registry,
    metrics: Arc<PullSecretMetrics>,
    secrets: PullSecrets,
    namespaces: Namespaces,
    rules: Current<Rules>,
    clock: Arc<dyn Clock>,
) {
    let measured = Mutex::new(None::<Timestamp>);
    registry.before_each_scrape(Box::new(move || {
        let now = clock.now();
        let mut measured = measured.lock().unwrap_or_else(PoisonError::into_inner);
        if measured.is_some_and(|at| now.duration_since(at).abs() < PAUSE) {
            return;
        }
        *measured = Some(now);
        let (rules, all) = (rules.get(), secrets.all());
        let settings: Vec<_> = all
            .iter()
            .map(|(namespace, _)| {
                namespaces.peek(namespace).filter(|settings| {
                    !settings.is_terminating && !rules.excluded.contains(namespace)
                })
            })
            .collect();
        let subjects = all.iter().zip(&settings);
        let subjects = subjects.map(|((namespace, entry), settings)| Subject {
            namespace,
            observed: entry.observed(),
            settings: settings.as_ref(),
        });
        measure(subjects, &rules, now).show(&metrics);
    }));
}

impl Summary {
    fn show(&self, metrics: &PullSecretMetrics) {
        for worth in PullSecretState::ALL {
            let count = self.by_worth.get(&worth).copied().unwrap_or_default();
            metrics.in_state(worth.as_str(), count);
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
