//! The metrics of the whole process: each room's own, in one registry.

use std::sync::Arc;

use crate::{
    admission::metrics::AdmissionMetrics,
    aws::metrics::AwsMetrics,
    cluster::metrics::{ApiCalls, ClusterMetrics},
    config::metrics::ConfigMetrics,
    pull_secret::metrics::PullSecretMetrics,
    refresh::metrics::RefreshMetrics,
    server::metrics::ServerMetrics,
    telemetry::{
        log::metrics::LogMetrics, metrics::Registry, otel::metrics::TraceMetrics,
        phases::PhaseTimes,
    },
    tls::metrics::TlsMetrics,
    token::metrics::TokenMetrics,
};

/// The metrics of every room, and the registry that shows them; clones share all of them.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "each field is named after its room")]
pub struct Metrics {
    pub registry: Arc<Registry>,
    pub admission: Arc<AdmissionMetrics>,
    pub aws: Arc<AwsMetrics>,
    pub cluster: Arc<ClusterMetrics>,
    pub config: Arc<ConfigMetrics>,
    pub log: Arc<LogMetrics>,
    pub pull_secret: Arc<PullSecretMetrics>,
    pub refresh: Arc<RefreshMetrics>,
    pub server: Arc<ServerMetrics>,
    pub tls: Arc<TlsMetrics>,
    pub token: Arc<TokenMetrics>,
    pub traces: Arc<TraceMetrics>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let r = &mut registry;
        let (phases, api_calls) = (PhaseTimes::new(r), ApiCalls::new(r));
        Self {
            admission: Arc::new(AdmissionMetrics::new(r, phases.clone())),
            aws: Arc::new(AwsMetrics::new(r)),
            cluster: Arc::new(ClusterMetrics::new(r, api_calls.clone())),
            config: Arc::new(ConfigMetrics::new(r)),
            log: Arc::new(LogMetrics::new(r)),
            pull_secret: Arc::new(PullSecretMetrics::new(r, phases, api_calls.clone())),
            refresh: Arc::new(RefreshMetrics::new(r, api_calls.clone())),
            server: Arc::new(ServerMetrics::new(r)),
            tls: Arc::new(TlsMetrics::new(r, api_calls)),
            token: Arc::new(TokenMetrics::new(r)),
            traces: Arc::new(TraceMetrics::new(r)),
            registry: Arc::new(registry),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, time::Duration};

    use super::*;

    #[test]
    fn counted_calls_are_in_the_text() {
        let metrics = Metrics::default();
        metrics
            .admission
            .admission("inject", "cached", Duration::from_millis(1));
        metrics.token.aws_call("get_authorization_token", "ok");
        metrics
            .pull_secret
            .api_calls
            .count_call("apply", "secrets", "conflict");
        let text = metrics.registry.to_text();
        for line in [
            r#"ecr_injector_admission_duration_seconds_count{decision="inject",reason="cached"} 1"#,
            r#"ecr_injector_aws_calls_total{operation="get_authorization_token",outcome="ok"} 1"#,
            r#"ecr_injector_kube_api_calls_total{verb="apply",resource="secrets",outcome="conflict"} 1"#,
            "ecr_injector_connections 0",
        ] {
            assert!(text.contains(line), "{line} not in:\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn leaders_metrics_are_in_the_text() {
        let metrics = Metrics::default();
        metrics.refresh.refreshed("due");
        metrics.refresh.refresh_failed("throttled");
        metrics.refresh.repaired("deleted");
        metrics.refresh.queue_depth.set(3);
        metrics.refresh.waiting.set(2);
        metrics.refresh.oldest_overdue.set(60);
        let text = metrics.registry.to_text();
        for line in [
            r#"ecr_injector_refreshes_total{reason="due"} 1"#,
            r#"ecr_injector_refresh_failures_total{reason="throttled"} 1"#,
            r#"ecr_injector_repairs_total{cause="deleted"} 1"#,
            "ecr_injector_refresh_queue_depth 3",
            "ecr_injector_refresh_waiting_for_token 2",
            "ecr_injector_refresh_oldest_overdue_seconds 60",
            "ecr_injector_guard_enforced -1",
        ] {
            assert!(text.contains(line), "{line} not in:\n{text}");
        }
    }

    #[test]
    fn no_family_is_registered_twice() {
        let metrics = Metrics::default();
        let mut names = BTreeSet::new();
        for family in metrics.registry.families() {
            assert!(names.insert(&family.name), "{} twice", family.name);
        }
    }
}
