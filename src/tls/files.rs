//! A certificate in two files, mounted by cert-manager or by anyone: read at the start, and again
//! whenever the files change.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};

use super::{
    error::TlsError,
    publisher::{CertPublisher, CertSource},
    serving_cert::{PemNames, PemPair, ServingCert},
};
use crate::{
    process::{
        clock::Clock,
        file_watcher::{FileChange, FileWatcher},
        files,
    },
    telemetry::error_chain::error_chain,
};

/// The files of a certificate.
#[derive(Debug, Clone)]
pub struct Files {
    /// The serving certificate with its chain (PEM).
    pub certificate: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
}

/// Serves the certificate of two files, and follows the files.
pub struct FileSource {
    files: Files,
    /// The certificate that was read first.
    first: Option<ServingCert>,
    watcher: FileWatcher<PemPair>,
    clock: Arc<dyn Clock>,
}

impl Files {
    /// Reads the certificate of the files once.
    pub fn cert(&self, clock: &dyn Clock) -> Result<ServingCert, TlsError> {
        self.parse(&self.read()?, clock)
    }

    /// Reads the certificate of the files, which are then read again each period.
    pub fn load(self, clock: Arc<dyn Clock>, period: Duration) -> Result<FileSource, TlsError> {
        let found = self.read()?;
        let first = Some(self.parse(&found, &*clock)?);
        Ok(FileSource {
            files: self,
            first,
            watcher: FileWatcher::new(found, period),
            clock,
        })
    }

    fn read(&self) -> Result<PemPair, TlsError> {
        let read = |what: &'static str, path: &Path| {
            files::read(path).map_err(|source| TlsError::File {
                what,
                path: path.display().to_string(),
                source,
            })
        };
        Ok(PemPair {
            certificate: read("the certificate", &self.certificate)?,
            key: read("the key", &self.key)?.into(),
        })
    }

    fn parse(&self, found: &PemPair, clock: &dyn Clock) -> Result<ServingCert, TlsError> {
        let (certificate, key) = (
            self.certificate.display().to_string(),
            self.key.display().to_string(),
        );
        let names = PemNames {
            certificate: &certificate,
            key: &key,
        };
        found.parse(names, clock.now())
    }
}

impl CertSource for FileSource {
    fn run(mut self: Box<Self>, mut publisher: CertPublisher) -> BoxFuture<'static, ()> {
        async move {
            if let Some(first) = self.first.take() {
                publisher.publish(first, &self.origin(), self.clock.now());
            }
            loop {
                self.follow(&mut publisher).await;
            }
        }
        .boxed()
    }
}

impl FileSource {
    /// Waits for a period and publishes the certificate of the files, if it has changed. One that
    /// can't be served is tried again at each poll: it may not be valid yet, or better than the one
    /// in use once that has expired.
    async fn follow(&mut self, publisher: &mut CertPublisher) {
        let files = self.files.clone();
        let change = self.watcher.poll(move || files.read()).await;
        let now = self.clock.now();
        let found = match change {
            Ok(FileChange::Changed(found)) => found,
            Ok(FileChange::Unsettled) => return,
            Ok(FileChange::None) => return publisher.clear_rejection(),
            Err(error) => return publisher.reject(&error_chain(&error), now),
        };
        match self.files.parse(&found, &*self.clock) {
            Ok(cert) => {
                if publisher.publish(cert, &self.origin(), now) {
                    self.watcher.accept(found);
                }
            }
            Err(error) => publisher.reject(&error_chain(&error), now),
        }
    }

    fn origin(&self) -> String {
        self.files.certificate.display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    use tempfile::TempDir;
    use tokio::time::sleep;

    use super::*;
    use crate::{
        cli::metrics::Metrics,
        process::{clock::SystemClock, file_watcher::PERIOD, readiness::Readiness},
        tls::CertResolver,
    };

    fn cert() -> (String, String) {
        cert_for("ecr-injector.ecr-injector.svc")
    }

    fn cert_for(name: &str) -> (String, String) {
        let signed = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        (signed.cert.pem(), signed.signing_key.serialize_pem())
    }

    fn expired() -> (String, String) {
        let mut params = rcgen::CertificateParams::new(vec!["a".to_owned()]).expect("names");
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }

    fn write(folder: &TempDir, certificate: &str, key: &str) {
        std::fs::write(folder.path().join("tls.crt"), certificate).expect("written");
        std::fs::write(folder.path().join("tls.key"), key).expect("written");
    }

    fn files(folder: &TempDir) -> Files {
        Files {
            certificate: folder.path().join("tls.crt"),
            key: folder.path().join("tls.key"),
        }
    }

    fn serves(serving: &CertResolver, certificate: &str) -> bool {
        let served = serving.current().map(|key| key.cert[0].clone());
        served.expect("one is served")
            == CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate")
    }

    /// Serves the certificate of the files, in a task of its own.
    fn serve(folder: &TempDir) -> (Arc<CertResolver>, Metrics) {
        let source = files(folder).load(Arc::new(SystemClock), PERIOD);
        let (serving, metrics) = (Arc::new(CertResolver::default()), Metrics::default());
        let condition = Readiness::default().condition("certificate");
        let service = "ecr-injector.ecr-injector.svc".to_owned();
        let publisher =
            CertPublisher::new(serving.clone(), service, condition, metrics.tls.clone());
        tokio::spawn(Box::new(source.expect("valid")).run(publisher));
        (serving, metrics)
    }

    /// Waits until the files were read once more.
    async fn a_period_later() {
        sleep(PERIOD + Duration::from_millis(10)).await;
    }

    /// Waits until the files were read twice, after which a change counts.
    async fn two_periods_later() {
        a_period_later().await;
        a_period_later().await;
    }

    #[tokio::test(start_paused = true)]
    async fn changed_files_are_served_once_they_are_valid() {
        let folder = tempfile::tempdir().expect("a folder");
        let (first, second) = (cert(), cert());
        write(&folder, &first.0, &first.1);
        let (serving, metrics) = serve(&folder);
        a_period_later().await;

        let out_of_date = expired();
        for (what, certificate, key) in [
            ("a certificate without its key", &second.0, &first.1),
            ("an empty file", &String::new(), &second.1),
            ("an expired one", &out_of_date.0, &out_of_date.1),
        ] {
            write(&folder, certificate, key);
            two_periods_later().await;
            assert!(serves(&serving, &first.0), "{what}");
        }
        std::fs::remove_file(folder.path().join("tls.key")).expect("removed");
        two_periods_later().await;
        assert!(serves(&serving, &first.0), "a missing file");
        let text = metrics.registry.to_text();
        let rejected = r#"ecr_injector_certificate_reloads_total{outcome="rejected"} 4"#;
        assert!(text.contains(rejected), "each is counted once: {text}");

        write(&folder, &second.0, &second.1);
        two_periods_later().await;
        assert!(serves(&serving, &second.0));
    }

    #[tokio::test(start_paused = true)]
    async fn cert_for_another_name_does_not_replace_a_good_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let (first, other) = (cert(), cert_for("other.ecr-injector.svc"));
        write(&folder, &first.0, &first.1);
        let (serving, metrics) = serve(&folder);
        a_period_later().await;
        write(&folder, &other.0, &other.1);
        for _ in 0..5 {
            a_period_later().await;
        }
        assert!(serves(&serving, &first.0));
        let text = metrics.registry.to_text();
        let rejected = r#"ecr_injector_certificate_reloads_total{outcome="rejected"} 1"#;
        assert!(text.contains(rejected), "it is counted once: {text}");

        let second = cert();
        write(&folder, &second.0, &second.1);
        for _ in 0..3 {
            a_period_later().await;
        }
        assert!(serves(&serving, &second.0));
    }

    #[tokio::test(start_paused = true)]
    async fn swapped_symlink_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (first, second) = (cert(), cert());
        // The kubelet mounts a Secret so: links to a folder that is itself a link.
        let of = |name: &str| folder.path().join(name);
        for (name, (certificate, key)) in [("..1", &first), ("..2", &second)] {
            std::fs::create_dir(of(name)).expect("made");
            std::fs::write(of(name).join("tls.crt"), certificate).expect("written");
            std::fs::write(of(name).join("tls.key"), key).expect("written");
        }
        std::os::unix::fs::symlink("..1", of("..data")).expect("linked");
        for name in ["tls.crt", "tls.key"] {
            let target = Path::new("..data").join(name);
            std::os::unix::fs::symlink(target, of(name)).expect("linked");
        }
        let (serving, _) = serve(&folder);
        a_period_later().await;
        std::os::unix::fs::symlink("..2", of("..tmp")).expect("linked");
        std::fs::rename(of("..tmp"), of("..data")).expect("swapped");
        two_periods_later().await;
        assert!(serves(&serving, &second.0));
    }

    #[tokio::test(start_paused = true)]
    async fn files_that_change_at_each_read_are_not_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        let (first, second, other) = (cert(), cert(), cert_for("other.ecr-injector.svc"));
        write(&folder, &first.0, &first.1);
        let (serving, _) = serve(&folder);
        a_period_later().await;
        // One that is refused first, too.
        write(&folder, &other.0, &other.1);
        two_periods_later().await;
        for (certificate, key) in [&second, &other, &second, &first, &second] {
            write(&folder, certificate, key);
            a_period_later().await;
            assert!(serves(&serving, &first.0));
        }
        a_period_later().await;
        assert!(serves(&serving, &second.0));
    }

    #[test]
    fn unusable_files_at_the_start_are_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = |folder: &TempDir| {
            let loaded = files(folder).load(Arc::new(SystemClock), PERIOD);
            loaded.err().expect("refused").to_string()
        };
        let missing = error(&folder);
        assert!(missing.contains("tls.crt"), "{missing}");
        let (certificate, key) = expired();
        write(&folder, &certificate, &key);
        let late = error(&folder);
        assert!(
            late.contains("tls.crt") && late.contains("2020-01-01"),
            "{late}"
        );
    }
}
