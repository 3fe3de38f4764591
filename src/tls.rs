//! TLS for the admission listener: a certificate in, a server configuration out, and another certificate later.
//!
//! HTTP/1.1 is all that the API server speaks to webhooks, so it is all that is offered.

pub mod files;
pub mod pair;

use std::{fmt, io, sync::Arc};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::{
    ServerConfig,
    crypto::ring,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use thiserror::Error;

use self::pair::Pair;

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

/// The certificate that is served. Each handshake takes the one of its moment; connections that are open keep theirs.
#[derive(Debug)]
pub struct Serving(ArcSwap<CertifiedKey>);

impl Serving {
    /// Serves this pair.
    #[must_use]
    pub fn new(pair: Pair) -> Arc<Self> {
        Arc::new(Self(ArcSwap::new(pair.certified)))
    }

    /// Serves this one from the next handshake on.
    pub fn replace(&self, pair: Pair) {
        self.0.store(pair.certified);
    }
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// A configuration that serves what is [`Serving`].
pub fn server_config(
    serving: Arc<Serving>,
    min: MinVersion,
) -> Result<ServerConfig, rustls::Error> {
    let versions = match min {
        MinVersion::Tls12 => &[&TLS13, &TLS12][..],
        MinVersion::Tls13 => &[&TLS13][..],
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(serving);
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}
