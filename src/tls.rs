//! TLS for the admission listener: certificate files in, a server configuration out.
//!
//! HTTP/1.1 is all that the API server speaks to webhooks, so it is all that is offered.

use std::{fmt, path::Path, sync::Arc};

use rustls::{
    ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use thiserror::Error;

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
    /// A file can't be read, or isn't PEM.
    #[error("reading {what} from {path}: {source}")]
    File {
        /// The certificate or the key.
        what: &'static str,
        /// The file.
        path: String,
        /// What is wrong.
        source: rustls::pki_types::pem::Error,
    },
    /// There is no certificate in the file.
    #[error("{0} holds no certificate: expected one or more PEM blocks, the server's own first")]
    NoCertificate(String),
    /// They can't be used together.
    #[error("the certificate in {certificate} and the key in {key} can't be served: {source}")]
    Pair {
        /// The certificate's file.
        certificate: String,
        /// The key's file.
        key: String,
        /// What is wrong.
        source: rustls::Error,
    },
}

/// Installs the process's one crypto provider. Calling it again changes nothing.
pub fn install_crypto_provider() {
    let _ = ring::default_provider().install_default();
}

/// Reads a certificate chain and its key, checks that they belong together, and makes a configuration of them.
pub fn server_config(
    certificate: &Path,
    key: &Path,
    min: MinVersion,
) -> Result<ServerConfig, TlsError> {
    let name = |path: &Path| path.display().to_string();
    let file = |what: &'static str, path: &Path| {
        let path = name(path);
        move |source| TlsError::File { what, path, source }
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(file("the certificate", certificate))?;
    if chain.is_empty() {
        return Err(TlsError::NoCertificate(name(certificate)));
    }
    let private_key = PrivateKeyDer::from_pem_file(key).map_err(file("the key", key))?;
    let pair = |source| TlsError::Pair {
        certificate: name(certificate),
        key: name(key),
        source,
    };
    let provider = Arc::new(ring::default_provider());
    let certified = CertifiedKey::from_der(chain, private_key, &provider).map_err(pair)?;
    let versions = match min {
        MinVersion::Tls12 => &[&TLS13, &TLS12][..],
        MinVersion::Tls13 => &[&TLS13][..],
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .map_err(pair)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(certificate: &str, key: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(folder.path().join("tls.crt"), certificate).expect("written");
        std::fs::write(folder.path().join("tls.key"), key).expect("written");
        folder
    }

    fn load(folder: &tempfile::TempDir) -> Result<ServerConfig, TlsError> {
        server_config(
            &folder.path().join("tls.crt"),
            &folder.path().join("tls.key"),
            MinVersion::Tls13,
        )
    }

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["ecr-injector.ecr-injector.svc".to_owned()])
            .expect("a pair");
        (made.cert.pem(), made.signing_key.serialize_pem())
    }

    #[test]
    fn a_pair_that_belongs_together_is_served_with_http_1_1_alone() {
        let (certificate, key) = pair();
        let config = load(&files(&certificate, &key)).expect("served");
        assert_eq!(config.alpn_protocols, [b"http/1.1".to_vec()]);
    }

    #[test]
    fn a_key_of_another_certificate_is_refused_with_both_names() {
        let error = load(&files(&pair().0, &pair().1))
            .expect_err("mismatched")
            .to_string();
        assert!(
            error.contains("tls.crt") && error.contains("tls.key"),
            "{error}"
        );
    }

    #[test]
    fn files_that_hold_no_pair_are_refused_by_name() {
        let (certificate, key) = pair();
        for (certificate, key, expected) in [
            ("", key.as_str(), "tls.crt holds no certificate"),
            (certificate.as_str(), "", "reading the key from "),
            (
                certificate.as_str(),
                "-----BEGIN PRIVATE KEY-----\nAAAA\n",
                "reading the key from ",
            ),
        ] {
            let error = load(&files(certificate, key))
                .expect_err("refused")
                .to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("AAAA"), "an error shows the key: {error}");
        }
        let error = load(&tempfile::tempdir().expect("a folder"))
            .expect_err("missing")
            .to_string();
        assert!(
            error.starts_with("reading the certificate from "),
            "{error}"
        );
    }
}
