//! A certificate in two files, mounted by cert-manager or by anyone: read at the start, and again whenever they change.
//!
//! They are read every few seconds and compared: a kubelet changes a mounted Secret by swapping a symlink, and a notice of
//! the file system tells of that only to who watches the right folder.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::time::sleep;

use super::{
    CertPublisher, Source, TlsError,
    pair::{Material, Named, Pair},
};
use crate::process::clock::Clock;

/// How often the files are compared with what is served.
pub const PERIOD: Duration = Duration::from_secs(5);

/// A certificate's files.
#[derive(Debug, Clone)]
pub struct Files {
    /// The serving certificate with its chain (PEM).
    pub certificate: PathBuf,
    /// Its private key (PEM).
    pub key: PathBuf,
}

/// Files that are watched, from what they held last.
pub struct FileSource {
    files: Files,
    last: Material,
    /// What they held at first.
    first: Option<Pair>,
    clock: Arc<dyn Clock>,
    period: Duration,
}

impl Files {
    /// What they hold now.
    pub fn pair(&self, clock: &dyn Clock) -> Result<Pair, TlsError> {
        self.check(&self.read()?, clock)
    }

    /// Reads both. They are read again each period.
    pub fn load(self, clock: Arc<dyn Clock>, period: Duration) -> Result<FileSource, TlsError> {
        let last = self.read()?;
        let first = Some(self.check(&last, &*clock)?);
        Ok(FileSource {
            files: self,
            last,
            first,
            clock,
            period,
        })
    }

    fn read(&self) -> Result<Material, TlsError> {
        let read = |what: &'static str, path: &Path| {
            std::fs::read(path).map_err(|cause| TlsError::File {
                what,
                path: path.display().to_string(),
                cause,
            })
        };
        Ok(Material {
            certificate: read("the certificate", &self.certificate)?,
            key: read("the key", &self.key)?.into(),
        })
    }

    fn check(&self, found: &Material, clock: &dyn Clock) -> Result<Pair, TlsError> {
        let (certificate, key) = (
            self.certificate.display().to_string(),
            self.key.display().to_string(),
        );
        let named = Named {
            certificate: &certificate,
            key: &key,
        };
        found.pair(named, clock.now())
    }
}

impl Source for FileSource {
    fn run(mut self: Box<Self>, mut served: CertPublisher) -> BoxFuture<'static, ()> {
        async move {
            let certificate = self.files.certificate.display().to_string();
            if let Some(first) = self.first.take() {
                served.offer(first, &certificate);
            }
            loop {
                sleep(self.period).await;
                match self.look() {
                    Ok(None) => served.settled(),
                    Ok(Some(pair)) => served.offer(pair, &certificate),
                    // A half-written pair is whole at the next look, most likely.
                    Err(error) => served.refuse(&error),
                }
            }
        }
        .boxed()
    }
}

impl FileSource {
    /// What the files hold, if that has changed.
    fn look(&mut self) -> Result<Option<Pair>, TlsError> {
        let found = self.files.read()?;
        if self.last == found {
            return Ok(None);
        }
        // A half of a pair may be followed by the other: it is looked at again until it is good.
        let pair = self.files.check(&found, &*self.clock)?;
        self.last = found;
        Ok(Some(pair))
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    use tempfile::TempDir;

    use super::*;
    use crate::{
        cli::metrics::Metrics,
        process::{clock::SystemClock, readiness::Readiness},
        tls::CertResolver,
    };

    fn pair() -> (String, String) {
        let made = rcgen::generate_simple_self_signed(["ecr-injector.ecr-injector.svc".to_owned()])
            .expect("a pair");
        (made.cert.pem(), made.signing_key.serialize_pem())
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
        let served = serving.0.load().as_ref().map(|key| key.cert[0].clone());
        served.expect("one is served")
            == CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate")
    }

    /// Serves what the files hold, from the next moment on.
    fn serve(folder: &TempDir) -> (Arc<CertResolver>, Metrics) {
        let watched = files(folder).load(Arc::new(SystemClock), PERIOD);
        let (serving, metrics) = (Arc::new(CertResolver::default()), Metrics::default());
        let condition = Readiness::default().condition("certificate");
        let service = "ecr-injector.ecr-injector.svc".to_owned();
        let served = CertPublisher::new(serving.clone(), service, condition, metrics.tls.clone());
        tokio::spawn(Box::new(watched.expect("good")).run(served));
        (serving, metrics)
    }

    /// Lets the follower look once more.
    async fn a_period_later() {
        sleep(PERIOD + Duration::from_millis(10)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_changed_pair_is_served_once_it_is_good_and_until_then_the_last_one_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let (first, second) = (pair(), pair());
        write(&folder, &first.0, &first.1);
        let (serving, metrics) = serve(&folder);
        a_period_later().await;

        let out_of_date = expired();
        for (what, certificate, key) in [
            ("half of a pair", &second.0, &first.1),
            ("an empty file", &String::new(), &second.1),
            ("an expired one", &out_of_date.0, &out_of_date.1),
        ] {
            write(&folder, certificate, key);
            a_period_later().await;
            assert!(serves(&serving, &first.0), "{what}");
        }
        std::fs::remove_file(folder.path().join("tls.key")).expect("removed");
        a_period_later().await;
        a_period_later().await;
        assert!(serves(&serving, &first.0), "a missing file");
        let text = metrics.registry.to_text();
        let refused = r#"ecr_injector_certificate_reloads_total{outcome="rejected"} 4"#;
        assert!(text.contains(refused), "each is told once: {text}");

        write(&folder, &second.0, &second.1);
        a_period_later().await;
        assert!(serves(&serving, &second.0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_swapped_symlink_is_noticed() {
        let folder = tempfile::tempdir().expect("a folder");
        let (first, second) = (pair(), pair());
        // As the kubelet mounts a Secret: links to a folder that is itself a link.
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
        a_period_later().await;
        assert!(serves(&serving, &second.0));
    }

    #[test]
    fn what_cant_be_served_at_the_start_is_an_error_that_names_the_file() {
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
