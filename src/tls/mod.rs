//! TLS for the admission listener: the server configuration, the sources of its certificate and the
//! verification of client certificates.
//!
//! HTTP/1.1 is all that the API server speaks to webhooks, so it is all that is offered.

pub mod authority;
pub mod clients;
mod error;
pub mod files;
pub mod metrics;
mod publisher;
pub mod rotation;
pub mod secret;
pub mod self_managed;
pub mod serving_cert;

use std::{fmt, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::ring,
    server::NoServerSessionStorage,
    version::{TLS12, TLS13},
};

use self::clients::Clients;
pub use self::{
    error::TlsError,
    publisher::{CertPublisher, CertResolver, CertSource},
};

/// The one protocol that is offered.
const ALPN: &[u8] = b"http/1.1";

/// The oldest version of TLS that is accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum MinVersion {
    /// TLS 1.2, for API servers that can't do better: none that is still supported.
    #[value(name = "1.2")]
    Tls12,
    /// TLS 1.3, the default.
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

/// Installs the process's one crypto provider. Calling this again changes nothing.
pub fn install_crypto_provider() {
    let _ = ring::default_provider().install_default();
}

/// Returns a configuration that serves the certificate of a [`CertResolver`]. With `clients`, only
/// those clients are accepted.
pub fn server_config(
    resolver: Arc<CertResolver>,
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
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A resumed session isn't asked for its client certificate again, whichever clients are trusted
    // by then. API servers keep their connections and resume nothing.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}
