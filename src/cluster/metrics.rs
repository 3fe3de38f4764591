//! The metrics of the watches, the leader election and the calls to the Kubernetes API server.

use prometheus_client::metrics::{counter::Counter, family::Family, gauge::Gauge};

use crate::telemetry::metrics::{Counters, Labels, Registry};

/// Metrics of the watches and the leader election.
#[derive(Debug)]
pub struct ClusterMetrics {
    /// Opted-in namespaces that the watch knows.
    pub namespaces: Gauge,
    /// ServiceAccounts whose Pods may not reference the pull secret.
    pub rejecting_accounts: Gauge,
    /// 1 while this replica is the leader.
    pub leader: Gauge,
    /// Events that were not published because the queue was full.
    pub events_dropped: Counter,
    lease_transitions: Counters,
    /// Calls to the Kubernetes API server.
    pub api_calls: ApiCalls,
}

impl ClusterMetrics {
    /// Registers the families.
    pub fn new(registry: &mut Registry, api_calls: ApiCalls) -> Self {
        Self {
            namespaces: registry.register(
                "opted_in_namespaces",
                "Opted-in namespaces known from the watch",
                Gauge::default(),
            ),
            rejecting_accounts: registry.register(
                "mountable_secrets_service_accounts",
                "ServiceAccounts that enforce mountable secrets and don't list the pull secret",
                Gauge::default(),
            ),
            leader: registry.register(
                "leader",
                "1 while this replica is the leader, 0 otherwise",
                Gauge::default(),
            ),
            events_dropped: registry.register(
                "events_dropped",
                "Kubernetes Events that were dropped because the queue was full",
                Counter::default(),
            ),
            lease_transitions: registry.counters(
                "lease_transitions",
                "Leadership terms that this replica acquired (leading), released or lost",
                "to",
                [],
            ),
            api_calls,
        }
    }

    /// Counts a term as the leader that began or ended.
    pub fn lease_transition(&self, to: &'static str) {
        self.lease_transitions.count(to);
    }
}

/// Counts calls to the Kubernetes API server; clones count in the same family.
#[derive(Debug, Clone)]
pub struct ApiCalls(Family<Labels<3>, Counter>);

impl ApiCalls {
    /// Registers the family.
    pub fn new(registry: &mut Registry) -> Self {
        Self(registry.register(
            "kube_api_calls",
            "Calls to the Kubernetes API server other than watches, by verb, resource and outcome",
            Family::default(),
        ))
    }

    /// Counts a call.
    pub fn count_call(&self, verb: &'static str, resource: &'static str, outcome: &'static str) {
        self.0
            .get_or_create(&[("verb", verb), ("resource", resource), ("outcome", outcome)])
            .inc();
    }
}
