//! The serving certificate while the process runs: a source publishes it, each handshake resolves
//! it.

use std::{fmt, sync::Arc};

use arc_swap::ArcSwapOption;
use futures::future::BoxFuture;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::serving_cert::ServingCert;
use crate::{
    process::readiness::Condition, telemetry::log_once::LogOnce, tls::metrics::TlsMetrics,
};

/// Provides the serving certificate.
pub trait CertSource: Send {
    /// Publishes a valid certificate and renews it, until the future is dropped.
    fn run(self: Box<Self>, publisher: CertPublisher) -> BoxFuture<'static, ()>;
}

/// Gives each handshake the current certificate; open connections keep theirs. Before the first
/// certificate is published, handshakes fail.
#[derive(Debug, Default)]
pub struct CertResolver(ArcSwapOption<CertifiedKey>);

impl CertResolver {
    /// Serves a certificate from the beginning.
    #[must_use]
    pub fn new(cert: ServingCert) -> Arc<Self> {
        Arc::new(Self(ArcSwapOption::new(Some(cert.certified))))
    }
}

impl ResolvesServerCert for CertResolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// Takes the certificates of a source, and logs and counts why one can't be served. The last valid
/// certificate stays in use until another is published.
pub struct CertPublisher {
    resolver: Arc<CertResolver>,
    service: String,
    condition: Condition,
    metrics: Arc<TlsMetrics>,
    rejection: LogOnce,
}

impl CertPublisher {
    /// Publishes to a resolver, for the Service of this DNS name. The condition holds once there is
    /// a certificate.
    #[must_use]
    pub fn new(
        resolver: Arc<CertResolver>,
        service: String,
        condition: Condition,
        metrics: Arc<TlsMetrics>,
    ) -> Self {
        Self {
            resolver,
            service,
            condition,
            metrics,
            rejection: LogOnce::default(),
        }
    }

    /// Serves a certificate from the next handshake on. `origin` is where the certificate came
    /// from, for the log.
    pub fn publish(&mut self, cert: ServingCert, origin: &str) {
        if !cert.covers(&self.service) {
            let (service, names) = (&self.service, cert.names.join(","));
            tracing::warn!(origin, %service, names, "serving certificate does not cover the Service name; the API server will reject it");
        }
        tracing::info!(origin, not_after = %cert.validity.not_after, "loaded the serving certificate");
        self.metrics.certificate_reload("ok");
        self.metrics
            .certificate_expiry("leaf", cert.validity.not_after);
        self.resolver.0.store(Some(cert.certified));
        self.condition.hold();
        self.rejection.clear();
    }

    /// Logs and counts why a certificate can't be served: once for each reason in a row.
    pub fn reject(&mut self, why: &dyn fmt::Display) {
        let why = why.to_string();
        if self.rejection.is_new(why.clone()) {
            tracing::warn!(error = %why, "rejected the serving certificate; the last valid one stays in use");
            self.metrics.certificate_reload("rejected");
        }
    }

    /// Notes that the source holds the certificate in use again.
    pub fn clear_rejection(&mut self) {
        self.rejection.clear();
    }
}

#[cfg(test)]
impl CertResolver {
    /// Returns the certificate that the next handshake gets.
    pub(super) fn current(&self) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}
