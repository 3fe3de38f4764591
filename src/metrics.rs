//! What is counted and timed, for Prometheus. Every label is a closed set: no host, namespace or message is one.

use std::{sync::OnceLock, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::{Registry, Unit},
};

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    admissions: Family<AdmissionLabels, Histogram>,
    aws_calls: Family<AwsLabels, Counter>,
    credentials_source: Family<SourceLabels, Gauge>,
    source: OnceLock<&'static str>,
    refused_identities: Family<ReasonLabels, Counter>,
    api_calls: Family<ApiLabels, Counter>,
    refused_requests: Family<ReasonLabels, Counter>,
    connection_failures: Family<ReasonLabels, Counter>,
    /// Open connections to the admission listener.
    pub connections: Gauge,
    /// Requests whose handler panicked.
    pub panics: Counter,
    /// Admissions answered from a pull secret that the leader should refresh soon.
    pub due: Counter,
    /// Pull secrets found changed by somebody else, and put right.
    pub tampered: Counter,
    /// Opted-in namespaces that the watch knows.
    pub namespaces: Gauge,
    /// Pull secrets that the watch knows.
    pub pull_secrets: Gauge,
    /// 1 while this replica leads.
    pub leader: Gauge,
    lease_transitions: Family<TransitionLabels, Counter>,
    /// Events that were not written because too many waited.
    pub events_dropped: Counter,
    refreshes: Family<ReasonLabels, Counter>,
    refresh_failures: Family<ReasonLabels, Counter>,
    heals: Family<ReasonLabels, Counter>,
    /// Namespaces that are due now.
    pub queue_depth: Gauge,
    /// Namespaces that wait for a token.
    pub waiting: Gauge,
    /// By how much.
    pub oldest_overdue: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AdmissionLabels {
    decision: &'static str,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AwsLabels {
    operation: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    source: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ApiLabels {
    verb: &'static str,
    resource: &'static str,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TransitionLabels {
    to: &'static str,
}

/// From 50 µs, a warm answer, to 26 s, past every deadline.
fn admission_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 20))
}

impl Default for Metrics {
    #[allow(clippy::too_many_lines, reason = "a list of all metrics")]
    fn default() -> Self {
        let mut registry = Registry::with_prefix("ecr_injector");
        let metrics = Self {
            admissions: Family::new_with_constructor(admission_buckets),
            aws_calls: Family::default(),
            credentials_source: Family::default(),
            source: OnceLock::new(),
            refused_identities: Family::default(),
            api_calls: Family::default(),
            refused_requests: Family::default(),
            connection_failures: Family::default(),
            connections: Gauge::default(),
            panics: Counter::default(),
            due: Counter::default(),
            tampered: Counter::default(),
            namespaces: Gauge::default(),
            pull_secrets: Gauge::default(),
            leader: Gauge::default(),
            lease_transitions: Family::default(),
            events_dropped: Counter::default(),
            refreshes: Family::default(),
            refresh_failures: Family::default(),
            heals: Family::default(),
            queue_depth: Gauge::default(),
            waiting: Gauge::default(),
            oldest_overdue: Gauge::default(),
            registry: Registry::default(),
        };
        registry.register(
            "build",
            "The running version",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register_with_unit(
            "admission_duration",
            "Time from a review's first byte read to its answer",
            Unit::Seconds,
            metrics.admissions.clone(),
        );
        registry.register(
            "aws_calls",
            "Calls to ECR and STS by outcome",
            metrics.aws_calls.clone(),
        );
        registry.register(
            "credentials_source",
            "Where the ambient AWS credentials come from: 1 for the source that is in use",
            metrics.credentials_source.clone(),
        );
        registry.register(
            "refused_identities",
            "Admissions with a registry that no identity may mint for",
            metrics.refused_identities.clone(),
        );
        registry.register(
            "api_calls",
            "Calls to the API server other than watches",
            metrics.api_calls.clone(),
        );
        registry.register(
            "refused_requests",
            "HTTP requests not answered with a review",
            metrics.refused_requests.clone(),
        );
        registry.register(
            "connection_failures",
            "Connections ended by us or by TLS",
            metrics.connection_failures.clone(),
        );
        registry.register(
            "connections",
            "Open connections to the admission listener",
            metrics.connections.clone(),
        );
        registry.register(
            "panics",
            "Requests whose handler panicked",
            metrics.panics.clone(),
        );
        registry.register(
            "due_admissions",
            "Admissions that found a pull secret due for refresh",
            metrics.due.clone(),
        );
        registry.register(
            "tampered_secrets",
            "Pull secrets that somebody else had changed",
            metrics.tampered.clone(),
        );
        registry.register(
            "opted_in_namespaces",
            "Opted-in namespaces known to the watch",
            metrics.namespaces.clone(),
        );
        registry.register(
            "pull_secrets",
            "Pull secrets known to the watch",
            metrics.pull_secrets.clone(),
        );
        registry.register(
            "leader",
            "1 while this replica leads",
            metrics.leader.clone(),
        );
        registry.register(
            "lease_transitions",
            "Terms as the leader that began, and how they ended",
            metrics.lease_transitions.clone(),
        );
        registry.register(
            "events_dropped",
            "Kubernetes Events not written because too many waited",
            metrics.events_dropped.clone(),
        );
        Self {
            registry,
            ..metrics
        }
    }
}

impl Metrics {
    /// One admission: its decision, the reason within it, and how long it took.
    pub fn admission(&self, decision: &'static str, reason: &'static str, took: Duration) {
        self.admissions
            .get_or_create(&AdmissionLabels { decision, reason })
            .observe(took.as_secs_f64());
    }

    /// One call to ECR or STS.
    pub fn aws_call(&self, operation: &'static str, outcome: &'static str) {
        self.aws_calls
            .get_or_create(&AwsLabels { operation, outcome })
            .inc();
    }

    /// The source of the ambient credentials was found.
    pub fn credentials_from(&self, source: &'static str) {
        self.credentials_source
            .get_or_create(&SourceLabels { source })
            .set(1);
        // There is one for good; a second can't be set.
        let _ = self.source.set(source);
    }

    /// The source of the ambient credentials, or `none` while it is unknown.
    #[must_use]
    pub fn credentials_source(&self) -> &'static str {
        self.source.get().copied().unwrap_or("none")
    }

    /// One admission with a registry that no identity may mint for.
    pub fn refused_identity(&self, reason: &'static str) {
        self.refused_identities
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    /// One call to the API server.
    pub fn api_call(&self, verb: &'static str, resource: &'static str, outcome: &'static str) {
        self.api_calls
            .get_or_create(&ApiLabels {
                verb,
                resource,
                outcome,
            })
            .inc();
    }

    /// One HTTP request that was not answered with a review.
    pub fn refused_request(&self, reason: &'static str) {
        self.refused_requests
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    /// One connection that failed or was closed for taking too long.
    pub fn connection_failure(&self, reason: &'static str) {
        self.connection_failures
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    /// One term as the leader began, or ended.
    pub fn lease_transition(&self, to: &'static str) {
        self.lease_transitions
            .get_or_create(&TransitionLabels { to })
            .inc();
    }

    /// stub
    pub fn refreshed(&self, reason: &'static str) {
        self.refreshes.get_or_create(&ReasonLabels { reason }).inc();
    }
    /// stub
    pub fn refresh_failed(&self, reason: &'static str) {
        self.refresh_failures.get_or_create(&ReasonLabels { reason }).inc();
    }
    /// stub
    pub fn healed(&self, reason: &'static str) {
        self.heals.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// Everything, in the `OpenMetrics` text format.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_in_the_text() {
        let metrics = Metrics::default();
        metrics.admission("inject", "cached", Duration::from_millis(1));
        metrics.aws_call("get_authorization_token", "ok");
        metrics.api_call("apply", "secrets", "conflict");
        let text = metrics.to_text();
        for line in [
            r#"ecr_injector_admission_duration_seconds_count{decision="inject",reason="cached"} 1"#,
            r#"ecr_injector_aws_calls_total{operation="get_authorization_token",outcome="ok"} 1"#,
            r#"ecr_injector_api_calls_total{verb="apply",resource="secrets",outcome="conflict"} 1"#,
            "ecr_injector_connections 0",
        ] {
            assert!(text.contains(line), "{line} not in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
