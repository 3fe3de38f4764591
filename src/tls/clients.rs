//! Who may call, by certificate: for clusters whose API server presents one.
//!
//! The authorities are read from a file, and again whenever it changes. A handshake without a good certificate fails, so
//! that a stranger gets no further than that.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::ring,
    pki_types::{CertificateDer, UnixTime, pem::PemObject as _},
    server::{
        WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use thiserror::Error;
use tokio::time::sleep;

use super::{Complaint, metrics::TlsMetrics, pair::Read};

/// Why a file of authorities can't be used.
#[derive(Debug, Error)]
pub enum ClientsError {
    /// It can't be read.
    #[error(
        "reading the clients' authorities from {path}: {cause}; check the path and its permissions"
    )]
    File {
        /// The file.
        path: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// There is none in it.
    #[error("{path} holds no certificate authority in PEM")]
    None {
        /// The file.
        path: String,
    },
    /// One of them can't be used.
    #[error("the authorities in {path} can't be used: {message}")]
    Unusable {
        /// The file.
        path: String,
        /// What is wrong.
        message: String,
    },
}

/// Which clients are let in: who has a certificate of one of these authorities, for one of these names.
pub struct Clients {
    path: PathBuf,
    /// Empty: any name.
    names: Vec<String>,
    verifier: ArcSwap<Verifier>,
}

struct Verifier {
    /// The file that it was made of.
    bytes: Vec<u8>,
    webpki: Arc<dyn ClientCertVerifier>,
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients")
            .field("path", &self.path)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Clients {
    /// Reads the file. With no names, any certificate of these authorities will do; else it has to be for one of them, by
    /// its common name or a DNS name.
    pub fn load(path: PathBuf, names: Vec<String>) -> Result<Arc<Self>, ClientsError> {
        let bytes = read(&path)?;
        let verifier = ArcSwap::from_pointee(Verifier::new(&path, bytes)?);
        Ok(Arc::new(Self {
            path,
            names,
            verifier,
        }))
    }

    /// Reads the file again each period, until the future is dropped. One that can't be used is refused with the reason,
    /// and the last good one stays.
    pub async fn follow(self: Arc<Self>, period: Duration, metrics: Arc<TlsMetrics>) {
        let mut complaint = Complaint::default();
        loop {
            sleep(period).await;
            match self.look() {
                Ok(false) => complaint.settle(),
                Ok(true) => {
                    complaint.settle();
                    tracing::info!(file = %self.path.display(), "reloaded the client CA certificates");
                    metrics.certificate_reload("ok");
                }
                Err(error) if complaint.is_news(&error) => {
                    tracing::warn!(%error, "rejected the changed client CA certificates; the last valid ones stay in use");
                    metrics.certificate_reload("rejected");
                }
                Err(_) => {}
            }
        }
    }

    fn look(&self) -> Result<bool, ClientsError> {
        let bytes = read(&self.path)?;
        if self.verifier.load().bytes == bytes {
            return Ok(false);
        }
        let verifier = Verifier::new(&self.path, bytes)?;
        self.verifier.store(Arc::new(verifier));
        Ok(true)
    }

    fn is_known(&self, certificate: &CertificateDer<'_>) -> bool {
        let is_allowed = |name: &String| self.names.contains(name);
        self.names.is_empty()
            || Read::of(certificate).is_some_and(|read| {
                read.common_name.as_ref().is_some_and(is_allowed)
                    || read.names.iter().any(is_allowed)
            })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ClientsError> {
    std::fs::read(path).map_err(|cause| ClientsError::File {
        path: path.display().to_string(),
        cause,
    })
}

impl Verifier {
    fn new(path: &Path, bytes: Vec<u8>) -> Result<Self, ClientsError> {
        let path = || path.display().to_string();
        let unusable = |message: String| ClientsError::Unusable {
            path: path(),
            message,
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&bytes) {
            let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
            let added = roots.add(certificate);
            added.map_err(|error| unusable(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(ClientsError::None { path: path() });
        }
        let provider = Arc::new(ring::default_provider());
        let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
        let webpki = builder
            .build()
            .map_err(|error| unusable(error.to_string()))?;
        Ok(Self { bytes, webpki })
    }
}

impl ClientCertVerifier for Clients {
    /// The hint may be empty: a client that has one certificate presents it.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verifier = self.verifier.load();
        let proof = verifier
            .webpki
            .verify_client_cert(end_entity, intermediates, now)?;
        if self.is_known(end_entity) {
            Ok(proof)
        } else {
            let refusal = rustls::CertificateError::ApplicationVerificationFailure;
            Err(Error::InvalidCertificate(refusal))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verifier = self.verifier.load();
        verifier.webpki.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verifier = self.verifier.load();
        verifier.webpki.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.load().webpki.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::cli::metrics::Metrics;

    fn authority() -> (rcgen::Issuer<'static, rcgen::KeyPair>, String) {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("signed").pem();
        (rcgen::Issuer::new(params, key), pem)
    }

    fn client(issuer: &rcgen::Issuer<'_, rcgen::KeyPair>, name: &str) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::default();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        let key = rcgen::KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, issuer).expect("signed");
        signed.der().clone()
    }

    fn file(folder: &TempDir, text: &str) -> PathBuf {
        let path = folder.path().join("clients.pem");
        std::fs::write(&path, text).expect("written");
        path
    }

    fn is_let_in(clients: &Clients, certificate: &CertificateDer<'_>) -> bool {
        let now = UnixTime::since_unix_epoch(Duration::from_hours(500_000));
        clients.verify_client_cert(certificate, &[], now).is_ok()
    }

    #[test]
    fn lets_in_who_has_a_certificate_of_the_authority_for_an_allowed_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let ((ours, pem), (theirs, _)) = (authority(), authority());
        let path = file(&folder, &pem);
        let any = Clients::load(path.clone(), Vec::new()).expect("good");
        let named = Clients::load(path, vec!["kube-apiserver".to_owned()]).expect("good");
        let right = client(&ours, "kube-apiserver");
        let wrong = client(&ours, "kube-apiserver.example.com");
        let stranger = client(&theirs, "kube-apiserver");
        assert!(is_let_in(&any, &right) && is_let_in(&any, &wrong));
        assert!(is_let_in(&named, &right));
        assert!(!is_let_in(&named, &wrong));
        assert!(!is_let_in(&any, &stranger) && !is_let_in(&named, &stranger));
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_file_counts_once_it_is_good() {
        let folder = tempfile::tempdir().expect("a folder");
        let ((first, first_pem), (second, second_pem)) = (authority(), authority());
        let path = file(&folder, &first_pem);
        let clients = Clients::load(path, Vec::new()).expect("good");
        let period = Duration::from_secs(5);
        let metrics = Metrics::default();
        tokio::spawn(clients.clone().follow(period, metrics.tls.clone()));
        let a_period_later = || sleep(period + Duration::from_millis(10));
        let (by_first, by_second) = (client(&first, "a"), client(&second, "a"));
        for bad in [
            "",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            file(&folder, bad);
            a_period_later().await;
            a_period_later().await;
            assert!(is_let_in(&clients, &by_first), "{bad}");
        }
        let text = metrics.registry.to_text();
        let refused = r#"ecr_injector_certificate_reloads_total{outcome="rejected"} 2"#;
        assert!(text.contains(refused), "each is told once: {text}");
        file(&folder, &format!("{first_pem}{second_pem}"));
        a_period_later().await;
        assert!(is_let_in(&clients, &by_first) && is_let_in(&clients, &by_second));
        file(&folder, &second_pem);
        a_period_later().await;
        assert!(!is_let_in(&clients, &by_first) && is_let_in(&clients, &by_second));
    }

    #[test]
    fn what_cant_be_used_at_the_start_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let missing = Clients::load(folder.path().join("missing"), Vec::new());
        assert!(
            missing
                .expect_err("refused")
                .to_string()
                .contains("missing")
        );
        let empty = Clients::load(file(&folder, "x"), Vec::new());
        let error = empty.expect_err("refused").to_string();
        assert!(error.contains("clients.pem holds no"), "{error}");
    }
}
