//! Client certificates (mTLS): which clients may call, for clusters whose API server presents one.
//!
//! The client CA certificates are read from a file, and again whenever the file changes. A
//! handshake without a valid client certificate fails, so a stranger gets no further.

use std::{
    fmt, io,
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
use tokio::sync::watch;

use super::{metrics::TlsMetrics, serving_cert::ParsedCert};
use crate::{
    process::{
        file_watcher::{FileChange, FileWatcher},
        files,
    },
    server::accept::ClientTrust,
    telemetry::{error_chain::error_chain, log_once::LogOnce},
};

/// Why a file of client CA certificates can't be used.
#[derive(Debug, Error)]
pub enum ClientsError {
    /// The file can't be read.
    #[error("reading the clients' authorities from {path}: check the path and its permissions")]
    File {
        /// The file.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// There is no certificate in the file.
    #[error("{path} holds no certificate authority in PEM")]
    None {
        /// The file.
        path: String,
    },
    /// A certificate of the file can't be used.
    #[error("the authorities in {path} can't be used")]
    Unusable {
        /// The file.
        path: String,
        /// The error of the PEM parser or the TLS library.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Accepts clients that have a certificate of one of the client CAs for one of the allowed names.
pub struct Clients {
    path: PathBuf,
    /// The allowed names; none allow any name.
    names: Vec<String>,
    /// The file's content when it was loaded.
    loaded: Vec<u8>,
    verifier: ArcSwap<Verifier>,
    changes: watch::Sender<()>,
}

struct Verifier(Arc<dyn ClientCertVerifier>);

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clients")
            .field("path", &self.path)
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl Clients {
    /// Reads the client CA certificates. With no names, any certificate of these CAs is accepted;
    /// else only one for one of the names, by its common name or a DNS name.
    pub fn load(path: PathBuf, names: Vec<String>) -> Result<Arc<Self>, ClientsError> {
        let loaded = read(&path)?;
        let verifier = ArcSwap::from_pointee(Verifier::new(&path, &loaded)?);
        Ok(Arc::new(Self {
            path,
            names,
            loaded,
            verifier,
            changes: watch::Sender::new(()),
        }))
    }

    /// Reads the file again each period, until the future is dropped. An invalid file is rejected
    /// with the reason, and the last valid one stays in use.
    pub async fn follow(self: Arc<Self>, period: Duration, metrics: Arc<TlsMetrics>) {
        let mut watcher = FileWatcher::new(self.loaded.clone(), period);
        let mut rejection = LogOnce::<String>::default();
        loop {
            match self.reload(&mut watcher).await {
                Ok(FileChange::Unsettled) => {}
                Ok(FileChange::None) => {
                    rejection.clear();
                }
                Ok(FileChange::Changed(())) => {
                    rejection.clear();
                    tracing::info!(file = %self.path.display(), "reloaded the client CA certificates");
                    metrics.certificate_reload("ok");
                }
                Err(error) => {
                    let error = error_chain(&error);
                    if rejection.is_new(error.clone()) {
                        tracing::warn!(%error, "rejected the changed client CA certificates; the last valid ones stay in use");
                        metrics.certificate_reload("rejected");
                    }
                }
            }
        }
    }

    /// Waits for a period and takes the client CA certificates, if they have changed.
    async fn reload(
        &self,
        watcher: &mut FileWatcher<Vec<u8>>,
    ) -> Result<FileChange<()>, ClientsError> {
        let path = self.path.clone();
        let bytes = match watcher.poll(move || read(&path)).await? {
            FileChange::Changed(bytes) => bytes,
            FileChange::None => return Ok(FileChange::None),
            FileChange::Unsettled => return Ok(FileChange::Unsettled),
        };
        let verifier = Verifier::new(&self.path, &bytes)?;
        self.verifier.store(Arc::new(verifier));
        self.changes.send_replace(());
        watcher.accept(bytes);
        Ok(FileChange::Changed(()))
    }

    fn allows(&self, certificate: &CertificateDer<'_>) -> bool {
        let is_allowed = |name: &String| self.names.contains(name);
        self.names.is_empty()
            || ParsedCert::parse(certificate).is_some_and(|cert| {
                cert.common_name.as_ref().is_some_and(is_allowed)
                    || cert.names.iter().any(is_allowed)
            })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ClientsError> {
    files::read(path).map_err(|source| ClientsError::File {
        path: path.display().to_string(),
        source,
    })
}

impl Verifier {
    fn new(path: &Path, bytes: &[u8]) -> Result<Self, ClientsError> {
        let path = || path.display().to_string();
        let unusable = |source: Box<dyn std::error::Error + Send + Sync>| ClientsError::Unusable {
            path: path(),
            source,
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bytes) {
            let certificate = certificate.map_err(|error| unusable(error.into()))?;
            let added = roots.add(certificate);
            added.map_err(|error| unusable(error.into()))?;
        }
        if roots.is_empty() {
            return Err(ClientsError::None { path: path() });
        }
        let provider = Arc::new(ring::default_provider());
        let builder = WebPkiClientVerifier::builder_with_provider(roots.into(), provider);
        let verifier = builder.build().map_err(|error| unusable(error.into()))?;
        Ok(Self(verifier))
    }
}

impl ClientTrust for Clients {
    fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    fn trusts(&self, chain: &[CertificateDer<'static>]) -> bool {
        let verified = chain.split_first().map(|(certificate, intermediates)| {
            self.verify_client_cert(certificate, intermediates, UnixTime::now())
        });
        verified.is_some_and(|verified| verified.is_ok())
    }
}

impl ClientCertVerifier for Clients {
    /// Returns no hint: a client that has one certificate presents it.
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
            .0
            .verify_client_cert(end_entity, intermediates, now)?;
        if self.allows(end_entity) {
            Ok(proof)
        } else {
            let rejection = rustls::CertificateError::ApplicationVerificationFailure;
            Err(Error::InvalidCertificate(rejection))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verifier = self.verifier.load();
        verifier.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verifier = self.verifier.load();
        verifier.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.load().0.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use tokio::time::sleep;

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

    fn is_accepted(clients: &Clients, certificate: &CertificateDer<'_>) -> bool {
        let now = UnixTime::since_unix_epoch(Duration::from_hours(500_000));
        clients.verify_client_cert(certificate, &[], now).is_ok()
    }

    #[test]
    fn client_needs_a_cert_of_the_ca_for_an_allowed_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let ((ours, pem), (theirs, _)) = (authority(), authority());
        let path = file(&folder, &pem);
        let any = Clients::load(path.clone(), Vec::new()).expect("valid");
        let named = Clients::load(path, vec!["kube-apiserver".to_owned()]).expect("valid");
        let allowed = client(&ours, "kube-apiserver");
        let other = client(&ours, "kube-apiserver.example.com");
        let stranger = client(&theirs, "kube-apiserver");
        assert!(is_accepted(&any, &allowed) && is_accepted(&any, &other));
        assert!(is_accepted(&named, &allowed));
        assert!(!is_accepted(&named, &other));
        assert!(!is_accepted(&any, &stranger) && !is_accepted(&named, &stranger));
    }

    #[tokio::test(start_paused = true)]
    async fn changed_file_is_used_once_it_is_valid() {
        let folder = tempfile::tempdir().expect("a folder");
        let ((first, first_pem), (second, second_pem)) = (authority(), authority());
        let path = file(&folder, &first_pem);
        let clients = Clients::load(path, Vec::new()).expect("valid");
        let period = Duration::from_secs(5);
        let metrics = Metrics::default();
        tokio::spawn(clients.clone().follow(period, metrics.tls.clone()));
        let two_periods_later = || sleep(2 * period + Duration::from_millis(10));
        let (by_first, by_second) = (client(&first, "a"), client(&second, "a"));
        for bad in [
            "",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            file(&folder, bad);
            two_periods_later().await;
            two_periods_later().await;
            assert!(is_accepted(&clients, &by_first), "{bad}");
        }
        let text = metrics.registry.to_text();
        let rejected = r#"ecr_injector_certificate_reloads_total{outcome="rejected"} 2"#;
        assert!(text.contains(rejected), "each is counted once: {text}");
        file(&folder, &format!("{first_pem}{second_pem}"));
        two_periods_later().await;
        assert!(is_accepted(&clients, &by_first) && is_accepted(&clients, &by_second));
        file(&folder, &second_pem);
        two_periods_later().await;
        assert!(!is_accepted(&clients, &by_first) && is_accepted(&clients, &by_second));
    }

    #[test]
    fn unusable_file_at_the_start_is_an_error_that_names_it() {
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
