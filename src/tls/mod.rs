//! TLS for the admission listener: a certificate in, a server configuration out, and another certificate later.
//!
//! HTTP/1.1 is all that the API server speaks to webhooks, so it is all that is offered.

pub mod authority;
pub mod clients;
pub mod files;
pub mod metrics;
pub mod pair;
pub mod rotation;
pub mod secret;
pub mod self_managed;

use std::{fmt, io, sync::Arc};

use arc_swap::ArcSwapOption;
use futures::future::BoxFuture;
use jiff::Timestamp;
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{ClientHello, NoServerSessionStorage, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use thiserror::Error;

use self::metrics::TlsMetrics;
use self::{clients::Clients, pair::Pair};
use crate::process::readiness::Condition;

/// The one protocol that is offered.
const ALPN: &[u8] = b"http/1.1";

/// The oldest version of TLS that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum MinVersion {
    /// For API servers that can't do better: none that is still supported.
    #[value(name = "1.2")]
    Tls12,
    /// The default.
    #[default]
    #[value(name = "1.3")]
    Tls13,
}

impl fmt::Display for MinVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tls12 => "1.2",
            Self::Tls13 => "1.3",
        })
    }
}

/// Why a certificate can't be served.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("reading {what} from {path}: {cause}; check the path and its permissions")]
    File {
        /// The certificate or the key.
        what: &'static str,
        /// The file.
        path: String,
        /// What the system said.
        cause: io::Error,
    },
    /// A file isn't PEM.
    #[error("reading {what} from {path}: {cause}")]
    NotPem {
        /// The certificate or the key.
        what: &'static str,
        /// The file.
        path: String,
        /// What is wrong.
        cause: rustls::pki_types::pem::Error,
    },
    /// There is no certificate in the file.
    #[error("{0} holds no certificate: expected one or more PEM blocks, the server's own first")]
    NoCertificate(String),
    /// What stands first in it is none.
    #[error("{0}: its first certificate can't be read")]
    NotACertificate(String),
    /// It isn't good yet, or no more.
    #[error(
        "the certificate in {certificate} is good from {not_before} to {not_after}, and not now"
    )]
    NotGoodNow {
        /// The certificate's file.
        certificate: String,
        /// When it begins.
        not_before: Timestamp,
        /// When it ends.
        not_after: Timestamp,
    },
    /// They can't be used together.
    #[error("the certificate in {certificate} and the key in {key} can't be served: {cause}")]
    Pair {
        /// The certificate's file.
        certificate: String,
        /// The key's file.
        key: String,
        /// What is wrong.
        cause: rustls::Error,
    },
}

/// Installs the process's one crypto provider. Calling it again changes nothing.
pub fn install_crypto_provider() {
    let _ = ring::default_provider().install_default();
}

/// Where the serving certificate comes from.
pub trait Source: Send {
    /// Keeps what is served good, until the future is dropped.
    fn run(self: Box<Self>, served: CertPublisher) -> BoxFuture<'static, ()>;
}

/// The certificate that is served. Each handshake takes the one of its moment; connections that are open keep theirs.
/// Before there is one, handshakes fail.
#[derive(Debug, Default)]
pub struct CertResolver(ArcSwapOption<CertifiedKey>);

impl CertResolver {
    /// Serves this one from the beginning.
    #[must_use]
    pub fn of(pair: Pair) -> Arc<Self> {
        Arc::new(Self(ArcSwapOption::new(Some(pair.certified))))
    }
}

impl ResolvesServerCert for CertResolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// What a source has to do with what is served: it offers what is good, and says why something isn't. What was served
/// last stays until there is something better.
pub struct CertPublisher {
    serving: Arc<CertResolver>,
    service: String,
    condition: Condition,
    metrics: Arc<TlsMetrics>,
    complaint: Complaint,
}

/// What is wrong now, so that it is told once, however often it is tried.
#[derive(Debug, Default)]
pub(crate) struct Complaint(Option<String>);

impl Complaint {
    /// Whether this isn't what was wrong already.
    pub(crate) fn is_news(&mut self, why: &dyn fmt::Display) -> bool {
        let why = Some(why.to_string());
        let is_news = self.0 != why;
        self.0 = why;
        is_news
    }

    /// Nothing is wrong any more.
    pub(crate) fn settle(&mut self) {
        self.0 = None;
    }
}

impl CertPublisher {
    /// What is served as this Service, by its DNS name. The condition holds once there is a certificate.
    #[must_use]
    pub fn new(
        serving: Arc<CertResolver>,
        service: String,
        condition: Condition,
        metrics: Arc<TlsMetrics>,
    ) -> Self {
        Self {
            serving,
            service,
            condition,
            metrics,
            complaint: Complaint::default(),
        }
    }

    /// From the next handshake on this one is served. `origin` is where it came from, for people.
    pub fn offer(&mut self, pair: Pair, origin: &str) {
        if !pair.covers(&self.service) {
            let (service, names) = (&self.service, pair.names.join(","));
            tracing::warn!(origin, %service, names, "serving certificate does not cover the Service name; the API server will reject it");
        }
        tracing::info!(origin, not_after = %pair.life.not_after, "loaded the serving certificate");
        self.metrics.certificate_reload("ok");
        self.metrics.certificate_expiry("leaf", pair.life.not_after);
        self.serving.0.store(Some(pair.certified));
        self.condition.hold();
        self.complaint.settle();
    }

    /// There was something that can't be served. The same is told once.
    pub fn refuse(&mut self, why: &dyn fmt::Display) {
        if self.complaint.is_news(why) {
            tracing::warn!(error = %why, "rejected the serving certificate; the last valid one stays in use");
            self.metrics.certificate_reload("rejected");
        }
    }

    /// What was wrong is so no more.
    pub fn settled(&mut self) {
        self.complaint.settle();
    }
}

/// A configuration that serves what is [`CertResolver`], to these clients alone if there are any.
pub fn server_config(
    serving: Arc<CertResolver>,
    min: MinVersion,
    clients: Option<Arc<Clients>>,
) -> Result<ServerConfig, rustls::Error> {
    let versions = match min {
        MinVersion::Tls12 => &[&TLS13, &TLS12][..],
        MinVersion::Tls13 => &[&TLS13][..],
    };
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)?;
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(clients),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(serving);
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A session that is resumed is not asked for its certificate again, whoever is trusted by then. API servers keep their
    // connections, and resume nothing.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
