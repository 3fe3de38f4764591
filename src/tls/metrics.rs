//! The metrics of certificates and of the self-managed CA.

use jiff::Timestamp;
use prometheus_client::metrics::{family::Family, gauge::Gauge};

use crate::{
    cluster::metrics::ApiCalls,
    telemetry::metrics::{Counters, Labels, OptionalGauge, Registry},
};

/// Metrics of certificates and of the self-managed CA.
#[derive(Debug)]
pub struct TlsMetrics {
    certificate_reloads: Counters,
    certificate_expiry: Family<Labels<1>, Gauge>,
    authority_steps: Counters,
    ca_bundle_trusted: OptionalGauge,
    /// Calls to the Kubernetes API server.
    pub api_calls: ApiCalls,
}

impl TlsMetrics {
    /// Registers the families.
    pub fn new(registry: &mut Registry, api_calls: ApiCalls) -> Self {
        Self {
            certificate_reloads: registry.counters(
                "certificate_reloads",
                "Changed certificates that were loaded or rejected, by outcome",
                "outcome",
                [],
            ),
            certificate_expiry: registry.register(
                "certificate_expiration_timestamp_seconds",
                "Expiration time of the serving certificate (leaf) or of the self-managed CA (ca), in seconds since the Unix epoch",
                Family::default(),
            ),
            authority_steps: registry.counters(
                "ca_rotation_steps",
                "Steps of the self-managed CA's rotation that this replica performed",
                "step",
                [],
            ),
            ca_bundle_trusted: registry.register(
                "ca_bundle_trusted",
                "1 while the caBundle of every webhook in the MutatingWebhookConfiguration trusts the self-managed CA that signs, 0 otherwise; absent with other certificates",
                OptionalGauge::default(),
            ),
            api_calls,
        }
    }

    /// Counts a changed certificate that was loaded or rejected.
    pub fn certificate_reload(&self, outcome: &'static str) {
        self.certificate_reloads.count(outcome);
    }

    /// Sets the expiration time of the serving certificate (`leaf`) or of the CA (`ca`).
    pub fn certificate_expiry(&self, kind: &'static str, at: Timestamp) {
        self.certificate_expiry
            .get_or_create(&[("kind", kind)])
            .set(at.as_second());
    }

    /// Counts a step of the self-managed CA's rotation, its creation included.
    pub fn authority_step(&self, step: &'static str) {
        self.authority_steps.count(step);
    }

    /// Sets whether the caBundle of the `MutatingWebhookConfiguration` trusts the CA that signs.
    pub fn ca_bundle_trusted(&self, trusts: bool) {
        self.ca_bundle_trusted.set(Some(i64::from(trusts)));
    }
}
