//! The serving certificate while the process runs: a source publishes it, each handshake resolves
//! it.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use futures::future::BoxFuture;
use jiff::Timestamp;
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::{error::TlsError, serving_cert::ServingCert};
use crate::{
    process::readiness::Condition,
    telemetry::{error_chain::error_chain, log_once::LogOnce},
    tls::metrics::TlsMetrics,
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
/// certificate stays in use until another is published, and a good one until a good one is: one
/// that is valid and covers the name of the Service.
pub struct CertPublisher {
    resolver: Arc<CertResolver>,
    service: String,
    condition: Condition,
    metrics: Arc<TlsMetrics>,
    rejection: LogOnce,
    /// The certificate in use.
    served: Option<ServingCert>,
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
            served: None,
        }
    }

    /// Serves a certificate from the next handshake on, unless it is worse than the one in use.
    /// `origin` is where the certificate came from, for the log. Returns whether it is served.
    pub fn publish(&mut self, cert: ServingCert, origin: &str, now: Timestamp) -> bool {
        let (service, names) = (&self.service, cert.shown_names());
        if !cert.covers(service) {
            let served = self.served.as_ref();
            let is_served_good = served
                .is_some_and(|served| served.covers(service) && served.validity.contains(now));
            if is_served_good {
                let error = TlsError::OtherName {
                    certificate: origin.to_owned(),
                    names,
                    service: service.clone(),
                };
                self.reject(&error_chain(&error), now);
                return false;
            }
            tracing::warn!(origin, %service, names, "serving certificate does not cover the Service name; the API server will reject it");
        }
        let validity = cert.validity;
        tracing::info!(origin, not_before = %validity.not_before, not_after = %validity.not_after, "loaded the serving certificate");
        self.metrics.certificate_reload("ok");
        self.metrics.certificate_expiry("leaf", validity.not_after);
        self.resolver.0.store(Some(cert.certified.clone()));
        self.served = Some(cert);
        self.condition.hold();
        self.rejection.clear();
        true
    }

    /// Logs and counts why a certificate can't be served: once for each reason in a row. `now` is
    /// the time by which it was judged.
    pub fn reject(&mut self, why: &str, now: Timestamp) {
        if !self.rejection.is_new(why) {
            return;
        }
        let served = self.served.as_ref();
        let names = served.map(ServingCert::shown_names);
        let not_after = served.map(|served| served.validity.not_after.to_string());
        tracing::warn!(error = %why, clock = %now, served_names = names, served_not_after = not_after, "rejected the serving certificate; the last valid one stays in use");
        self.metrics.certificate_reload("rejected");
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
