//! Reports results: to the log, to the metrics, and as Events in the namespaces.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use super::{
    backoffs::Contention,
    impact::is_widespread,
    metrics::RefreshMetrics,
    minter::MintOutcome,
    plan::{DesiredState, Priority},
    reconciler::CallOutcome,
};
use crate::{
    cluster::{event_recorder::EventRecorder, namespace::Namespace},
    pull_secret::{
        Foreign,
        events::PullSecretEvent,
        writer::{PullSecretError, WriteOutcome},
    },
    registry::Host,
    token::{TokenKey, cache::MintError, rules::Suspension},
};

/// Reports results.
pub(super) struct Reporter {
    metrics: Arc<RefreshMetrics>,
    events: Option<EventRecorder>,
    /// The namespaces with an Event about a failure, for which one about its end is due.
    failing: HashSet<Namespace>,
    /// The namespaces with suspended hosts, and how many.
    suspended: HashMap<Namespace, usize>,
}

impl Reporter {
    pub(super) fn new(metrics: Arc<RefreshMetrics>, events: Option<EventRecorder>) -> Self {
        Self {
            metrics,
            events,
            failing: HashSet::new(),
            suspended: HashMap::new(),
        }
    }

    fn publish(&self, namespace: &Namespace, event: &PullSecretEvent) {
        if let Some(events) = &self.events {
            events.publish(namespace, event);
        }
    }

    fn publish_failure(&mut self, namespace: &Namespace, event: &PullSecretEvent) {
        self.failing.insert(namespace.clone());
        self.publish(namespace, event);
    }

    /// Reports the outcome of a call. `failures`: the number of failed calls in a row.
    pub(super) fn finished(&mut self, namespace: &Namespace, outcome: &CallOutcome, failures: u32) {
        match outcome {
            CallOutcome::Wrote(desired, priority, WriteOutcome::Written(left_out)) => {
                self.wrote(namespace, desired, *priority);
                Self::left_out(namespace, left_out);
            }
            CallOutcome::Deleted(true) => self.deleted(namespace),
            CallOutcome::Failed(PullSecretError::NotLeading)
            | CallOutcome::Read
            | CallOutcome::Wrote(..)
            | CallOutcome::Deleted(false) => {}
            CallOutcome::Failed(error) => self.failed(namespace, error, failures),
        }
    }

    /// Reports that a pull secret was written.
    fn wrote(&self, namespace: &Namespace, desired: &DesiredState, priority: Priority) {
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

    /// Reports the hosts for which the pull secret had no room.
    fn left_out(namespace: &Namespace, hosts: &[Host]) {
        if !hosts.is_empty() {
            tracing::debug!(%namespace, registries = hosts.len(), "the pull secret has no room for more registries");
        }
    }

    /// Reports that a pull secret has its desired state, if a failure was reported before.
    pub(super) fn recovered(&mut self, namespace: &Namespace) {
        if self.failing.remove(namespace) {
            tracing::info!(%namespace, "refreshed the pull secret after failures");
            self.publish(namespace, &PullSecretEvent::Refreshed);
        }
    }

    /// Forgets a namespace that is gone or no longer opted in.
    pub(super) fn forget(&mut self, namespace: &Namespace) {
        self.failing.remove(namespace);
        self.suspended.remove(namespace);
    }

    /// Reports that a namespace was opted in.
    pub(super) fn opted_in(&self, namespace: &Namespace) {
        tracing::info!(%namespace, "namespace opted in");
        self.publish(namespace, &PullSecretEvent::OptedIn);
    }

    /// Reports that a namespace is no longer opted in.
    pub(super) fn opted_out(&mut self, namespace: &Namespace) {
        tracing::info!(%namespace, "namespace opted out: its pull secret is no longer refreshed");
        self.forget(namespace);
        self.publish(namespace, &PullSecretEvent::OptedOut);
    }

    /// Reports that a pull secret was deleted.
    fn deleted(&self, namespace: &Namespace) {
        self.metrics.refreshed("removed");
        tracing::info!(%namespace, "deleted the expired pull secret of an opted-out namespace");
    }

    /// Reports a Secret of the pull secret's name that ecr-injector did not create.
    pub(super) fn foreign(&self, namespace: &Namespace, why: Foreign) {
        self.publish(namespace, &PullSecretEvent::Foreign { why });
    }

    /// Reports the hosts of a namespace that the rules no longer allow, or that all are allowed
    /// again.
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

    /// Reports that all namespaces were planned. A configuration that suspends hosts in most
    /// namespaces is likely a mistake.
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

    /// Reports that somebody else makes work for a namespace again and again.
    pub(super) fn contended(
        &mut self,
        namespace: &Namespace,
        contention: Contention,
        is_edited: bool,
    ) {
        self.metrics.refresh_failed("contested");
        tracing::warn!(%namespace, changes = contention.times, backoff = ?contention.pause, "namespace changes repeatedly; backing off");
        if is_edited {
            self.publish_failure(namespace, &PullSecretEvent::Contended);
        }
    }

    /// Reports that a namespace waits for a token that AWS refuses.
    pub(super) fn waits(&mut self, namespace: &Namespace, error: &MintError) {
        if let MintError::Refused(_, reply) | MintError::Rejected(_, reply, ..) = error {
            let code = reply.clone();
            self.publish_failure(namespace, &PullSecretEvent::Refused { code });
        }
    }

    /// Reports the outcome for a token that namespaces waited for: that minting failed, or that it
    /// succeeded after failures.
    pub(super) fn minted(&self, outcome: &MintOutcome) {
        let (key, waiting) = (&outcome.key, outcome.namespaces.len());
        match &outcome.result {
            Ok(0) => {}
            Ok(failures) => {
                tracing::info!(identity = %key.identity, region = %key.region, failures, waiting, "minted a token after failures");
            }
            Err((error, pause)) => self.mint_failed(key, error, *pause),
        }
    }

    fn mint_failed(&self, key: &TokenKey, error: &MintError, pause: Duration) {
        self.metrics.refresh_failed(error.as_str());
        tracing::warn!(identity = %key.identity, region = %key.region, %error, backoff = ?pause, "minting a token failed; retrying");
    }

    /// Reports that a call to the API server failed, so many times in a row.
    fn failed(&mut self, namespace: &Namespace, error: &PullSecretError, times: u32) {
        self.metrics.refresh_failed(error.as_str());
        if times <= 1 {
            tracing::warn!(%namespace, %error, "refreshing the pull secret failed; retrying");
        } else {
            tracing::debug!(%namespace, %error, failures = times, "refreshing the pull secret failed again");
        }
        match error {
            PullSecretError::Foreign(why) => self.foreign(namespace, *why),
            PullSecretError::Refused { message, .. } => {
                if let Some(event) = PullSecretEvent::from_refusal(message) {
                    self.publish_failure(namespace, &event);
                }
            }
            _ => {}
        }
    }

    /// Reports how many namespaces are due, how many wait for tokens, and for how long the first is
    /// overdue.
    pub(super) fn backlog(&self, due: usize, waiting: usize, overdue: Duration) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.queue_depth.set(count(due));
        self.metrics.waiting.set(count(waiting));
        let seconds = i64::try_from(overdue.as_secs()).unwrap_or(i64::MAX);
        self.metrics.oldest_overdue.set(seconds);
    }
}
