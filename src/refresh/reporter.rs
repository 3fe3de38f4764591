//! Reports what comes of the work: to the log, to the metrics, and to the namespaces' people.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use crate::{
    cluster::namespace::Namespace,
    pull_secret::{
        Foreign,
        events::{Events, PullSecretEvent},
        writer::PullSecretError,
    },
    refresh::{
        impact::is_widespread,
        metrics::RefreshMetrics,
        plan::{DesiredState, Priority},
    },
    registry::Host,
    rules::Suspension,
    token::{TokenKey, cache::MintError},
};

/// Reports what comes of the work.
pub(super) struct Reporter {
    metrics: Arc<RefreshMetrics>,
    events: Option<Events>,
    /// The namespaces whose people were told of a failure, and are to be told of its end.
    complained: HashSet<Namespace>,
    /// The namespaces with suspended hosts, and how many.
    suspended: HashMap<Namespace, usize>,
}

impl Reporter {
    pub(super) fn new(metrics: Arc<RefreshMetrics>, events: Option<Events>) -> Self {
        Self {
            metrics,
            events,
            complained: HashSet::new(),
            suspended: HashMap::new(),
        }
    }

    fn publish(&self, namespace: &Namespace, happening: &PullSecretEvent) {
        if let Some(events) = &self.events {
            events.publish(namespace, happening);
        }
    }

    fn complain(&mut self, namespace: &Namespace, happening: &PullSecretEvent) {
        self.complained.insert(namespace.clone());
        self.publish(namespace, happening);
    }

    /// A pull secret was written.
    pub(super) fn wrote(&self, namespace: &Namespace, desired: &DesiredState, priority: Priority) {
        let reason = match (desired.repairs, priority) {
            (Some(_), _) => "repaired",
            (None, Priority::Pending) => "pending",
            (None, Priority::Changed) => "new",
            (None, Priority::Due | Priority::Check) => "due",
        };
        self.metrics.refreshed(reason);
        let hosts = desired.due.len();
        tracing::debug!(%namespace, reason, registries = hosts, "wrote the pull secret");
        if let Some(what) = desired.repairs {
            self.metrics.repaired(what.as_str());
            tracing::warn!(%namespace, cause = what.as_str(), "repaired the pull secret");
            self.publish(namespace, &PullSecretEvent::Repaired { what });
        }
    }

    /// There was no room for some hosts.
    pub(super) fn left_out(namespace: &Namespace, hosts: &[Host]) {
        if !hosts.is_empty() {
            tracing::debug!(%namespace, registries = hosts.len(), "the pull secret has no room for more registries");
        }
    }

    /// A pull secret has all that it should have.
    pub(super) fn recovered(&mut self, namespace: &Namespace) {
        if self.complained.remove(namespace) {
            tracing::info!(%namespace, "refreshed the pull secret after failures");
            self.publish(namespace, &PullSecretEvent::Refreshed);
        }
    }

    /// A namespace is gone, or opted in no more: nobody waits to be told.
    pub(super) fn forget(&mut self, namespace: &Namespace) {
        self.complained.remove(namespace);
        self.suspended.remove(namespace);
    }

    /// A namespace was opted in.
    pub(super) fn opted_in(&self, namespace: &Namespace) {
        tracing::info!(%namespace, "namespace opted in");
        self.publish(namespace, &PullSecretEvent::OptedIn);
    }

    /// A namespace is opted in no more.
    pub(super) fn opted_out(&mut self, namespace: &Namespace) {
        tracing::info!(%namespace, "namespace opted out: its pull secret is no longer refreshed");
        self.forget(namespace);
        self.publish(namespace, &PullSecretEvent::OptedOut);
    }

    /// A pull secret was deleted.
    pub(super) fn removed(&self, namespace: &Namespace) {
        self.metrics.refreshed("removed");
        tracing::info!(%namespace, "deleted the expired pull secret of an opted-out namespace");
    }

    /// A Secret of the pull secret's name is not ours.
    pub(super) fn foreign(&self, namespace: &Namespace, why: Foreign) {
        self.publish(namespace, &PullSecretEvent::Foreign { why });
    }

    /// The rules allow these hosts of a namespace no more, or all of them again.
    pub(super) fn suspended(&mut self, namespace: &Namespace, hosts: &BTreeMap<Host, Suspension>) {
        let known = self.suspended.get(namespace).copied().unwrap_or_default();
        if known == hosts.len() {
            return;
        }
        let Some((host, why)) = hosts.first_key_value() else {
            self.suspended.remove(namespace);
            tracing::info!(%namespace, "all registries of the pull secret are allowed again");
            return;
        };
        self.suspended.insert(namespace.clone(), hosts.len());
        let (host, more) = (host.to_string(), hosts.len() - 1);
        tracing::warn!(%namespace, registry = host, more, reason = why.as_str(), "registries are suspended: their credentials are kept and not renewed");
        let why = why.to_string();
        self.publish(namespace, &PullSecretEvent::Suspended { host, more, why });
    }

    /// All was planned by another configuration: a mistake in it is most likely where it suspends what most namespaces use.
    pub(super) fn planned_all(&self, namespaces: usize) {
        let suspended = self.suspended.len();
        let is_mass = is_widespread(suspended, namespaces);
        self.metrics.mass_suspension.set(i64::from(is_mass));
        if is_mass {
            tracing::error!(
                suspended,
                namespaces,
                "the configuration suspends registries in more than half of the namespaces, \
                 which looks like a mistake; credentials are kept until they expire. \
                 `ecr-injector config check --cluster` lists what a file would suspend"
            );
        }
    }

    /// Somebody else makes work for a namespace again and again.
    pub(super) fn contended(
        &mut self,
        namespace: &Namespace,
        times: usize,
        pause: Duration,
        is_edited: bool,
    ) {
        self.metrics.refresh_failed("contested");
        tracing::warn!(%namespace, changes = times, backoff = ?pause, "namespace changes repeatedly; backing off");
        if is_edited {
            self.complain(namespace, &PullSecretEvent::Contended);
        }
    }

    /// A namespace waits for a token that can't be had.
    pub(super) fn waits(&mut self, namespace: &Namespace, error: &MintError) {
        if let MintError::Refused(_, reply) | MintError::SessionExpired(_, reply) = error {
            let code = reply.clone();
            self.complain(namespace, &PullSecretEvent::Refused { code });
        }
    }

    /// A token couldn't be minted.
    pub(super) fn no_token(&self, key: &TokenKey, error: &MintError, pause: Duration) {
        self.metrics.refresh_failed(error.as_str());
        tracing::warn!(identity = %key.identity, region = %key.region, %error, backoff = ?pause, "minting a token failed; retrying");
    }

    /// A token that couldn't be minted for a while was.
    pub(super) fn token_again(key: &TokenKey, failures: u32, waiting: usize) {
        tracing::info!(identity = %key.identity, region = %key.region, failures, waiting, "minted a token after failures");
    }

    /// A call to the API server for a namespace failed, so many times in a row.
    pub(super) fn failed(&mut self, namespace: &Namespace, error: &PullSecretError, times: u32) {
        self.metrics.refresh_failed(error.as_str());
        if times <= 1 {
            tracing::warn!(%namespace, %error, "refreshing the pull secret failed; retrying");
        } else {
            tracing::debug!(%namespace, %error, failures = times, "refreshing the pull secret failed again");
        }
        match error {
            PullSecretError::Foreign(why) => self.foreign(namespace, *why),
            PullSecretError::Refused { message, .. } => {
                if let Some(happening) = PullSecretEvent::of_refusal(message) {
                    self.complain(namespace, &happening);
                }
            }
            _ => {}
        }
    }

    /// How many are due, how many wait, and for how long.
    pub(super) fn backlog(&self, due: usize, waiting: usize, overdue: Duration) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.queue_depth.set(count(due));
        self.metrics.waiting.set(count(waiting));
        let seconds = i64::try_from(overdue.as_secs()).unwrap_or(i64::MAX);
        self.metrics.oldest_overdue.set(seconds);
    }
}
