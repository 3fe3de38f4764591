//! The metrics of the leader's refreshes and discovery runs.

use prometheus_client::{metrics::gauge::Gauge, registry::Unit};

use crate::{
    admission::missed::MissedReason,
    cluster::metrics::ApiCalls,
    telemetry::metrics::{Counters, Registry},
};

/// Metrics of the leader's refreshes and discovery runs.
#[derive(Debug)]
pub struct RefreshMetrics {
    refreshes: Counters,
    refresh_failures: Counters,
    repairs: Counters,
    /// 1 while the configuration suspends registries in more than half of the namespaces.
    pub mass_suspension: Gauge,
    discovery_runs: Counters,
    missed_pods: Counters,
    /// Namespaces that are due now.
    pub queue_depth: Gauge,
    /// Namespaces that wait for a token that can't be minted at the moment.
    pub waiting: Gauge,
    /// Seconds since the longest overdue namespace became due.
    pub oldest_overdue: Gauge,
    /// Calls to the Kubernetes API server.
    pub api_calls: ApiCalls,
}

impl RefreshMetrics {
    /// Registers the families.
    pub fn new(registry: &mut Registry, api_calls: ApiCalls) -> Self {
        Self {
            refreshes: registry.counters(
                "refreshes",
                "Pull secrets that the leader wrote or deleted, by reason",
                "reason",
                [],
            ),
            refresh_failures: registry.counters(
                "refresh_failures",
                "Refreshes that failed and are retried, by reason",
                "reason",
                [],
            ),
            repairs: registry.counters(
                "repairs",
                "Pull secrets that the leader repaired, by cause",
                "cause",
                ["deleted", "changed"],
            ),
            mass_suspension: registry.register(
                "mass_suspension",
                "1 while the configuration suspends registries in more than half of the opted-in namespaces and in at least 10, 0 otherwise",
                Gauge::default(),
            ),
            discovery_runs: registry.counters(
                "discovery_runs",
                "Discovery runs in which the leader listed pending Pods, by outcome",
                "outcome",
                DiscoveryRun::ALL.map(DiscoveryRun::as_str),
            ),
            missed_pods: registry.counters(
                "missed_pods",
                "Pending Pods that lack the reference to the pull secret, each counted once, by reason",
                "reason",
                MissedReason::ALL.map(MissedReason::as_str),
            ),
            queue_depth: registry.register(
                "refresh_queue_depth",
                "Namespaces in the refresh queue that are due now",
                Gauge::default(),
            ),
            waiting: registry.register(
                "refresh_waiting_for_token",
                "Namespaces that wait for a token that can't be minted at the moment",
                Gauge::default(),
            ),
            oldest_overdue: registry.register_with_unit(
                "refresh_oldest_overdue",
                "Time since the longest overdue namespace became due",
                Unit::Seconds,
                Gauge::default(),
            ),
            api_calls,
        }
    }

    /// Counts a pull secret that the leader wrote or deleted.
    pub fn refreshed(&self, reason: &'static str) {
        self.refreshes.count(reason);
    }

    /// Counts a refresh that failed and is retried.
    pub fn refresh_failed(&self, reason: &'static str) {
        self.refresh_failures.count(reason);
    }

    /// Counts a pull secret that the leader repaired.
    pub fn repaired(&self, cause: &'static str) {
        self.repairs.count(cause);
    }

    /// Counts a Pending Pod that lacks the reference.
    pub fn missed_pod(&self, reason: MissedReason) {
        self.missed_pods.count(reason.as_str());
    }

    /// Counts a discovery run.
    pub fn discovery_run(&self, outcome: DiscoveryRun) {
        self.discovery_runs.count(outcome.as_str());
    }
}

/// The outcome of a discovery run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiscoveryRun {
    /// The run read the list to its end.
    Complete,
    /// The run stopped before the end of the list: there were more Pods than a run reads.
    Truncated,
    /// The API server denied the right to list Pods.
    Refused,
    /// A page of the list did not come in time.
    TimedOut,
    /// The run failed with any other error.
    Failed,
}

impl DiscoveryRun {
    /// Every value.
    pub const ALL: [Self; 5] = [
        Self::Complete,
        Self::Truncated,
        Self::Refused,
        Self::TimedOut,
        Self::Failed,
    ];

    /// Returns the outcome as a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "ok",
            Self::Truncated => "truncated",
            Self::Refused => "forbidden",
            Self::TimedOut => "timeout",
            Self::Failed => "error",
        }
    }
}
