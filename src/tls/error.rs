//! Why a certificate can't be served.

use std::io;

use jiff::Timestamp;
use rustls::pki_types::pem;
use thiserror::Error;

/// Why a certificate can't be served. The text names the file or Secret key, and never its content.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("reading {what} from {path}: check the path and its permissions")]
    File {
        /// Which part: the certificate or the key.
        what: &'static str,
        /// The file.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// A file isn't PEM.
    #[error("reading {what} from {path}: expected PEM")]
    NotPem {
        /// Which part: the certificate or the key.
        what: &'static str,
        /// The file.
        path: String,
        /// The parser's error.
        source: pem::Error,
    },
    /// There is no certificate in the file.
    #[error("{0} holds no certificate: expected one or more PEM blocks, the server's own first")]
    NoCertificate(String),
    /// The first PEM block of the file isn't a certificate.
    #[error("{0}: its first certificate can't be read")]
    NotACertificate(String),
    /// The certificate isn't valid yet, or has expired.
    #[error(
        "the certificate in {certificate} is good from {not_before} to {not_after}, and not now"
    )]
    NotValidNow {
        /// The certificate's file.
        certificate: String,
        /// The start of its validity.
        not_before: Timestamp,
        /// The end of its validity.
        not_after: Timestamp,
    },
    /// The certificate isn't for the Service, and the one in use is.
    #[error(
        "the certificate of {certificate} is for {names}, and not for {service} as the one in use \
         is; issue it for {service}, or set --service-name"
    )]
    OtherName {
        /// Where the certificate came from.
        certificate: String,
        /// The names that the certificate is for.
        names: String,
        /// The DNS name of the Service.
        service: String,
    },
    /// The certificate and the key can't be used together.
    #[error("the certificate in {certificate} and the key in {key} can't be served")]
    Unusable {
        /// The certificate's file.
        certificate: String,
        /// The key's file.
        key: String,
        /// The error of the TLS library.
        source: rustls::Error,
    },
}

impl TlsError {
    /// Returns the file that can't be read, or that isn't PEM.
    #[must_use]
    pub fn path(&self) -> Option<&str> {
        match self {
            Self::File { path, .. } | Self::NotPem { path, .. } => Some(path),
            _ => None,
        }
    }
}
