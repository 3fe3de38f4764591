//! A certificate in two files, mounted by cert-manager or by anyone: read at the start, and again whenever they change.
//!
//! They are read every few seconds and compared: a kubelet changes a mounted Secret by swapping a symlink, and a notice of
//! the file system tells of that only to who watches the right folder.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::time::sleep;

use super::{
    Serving, TlsError,
    pair::{Named, Pair},
};
use crate::{clock::Clock, metrics::Metrics};

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

/// What the files held. Not to be printed.
#[derive(PartialEq, Eq)]
struct Bytes {
    certificate: Vec<u8>,
    key: zeroize::Zeroizing<Vec<u8>>,
}

/// Files that are watched, from what they held last.
pub struct Watched {
    files: Files,
    last: Option<Bytes>,
    complaint: Option<String>,
}

impl Files {
    /// Reads both, and what is to be served at first.
    pub fn load(self, clock: &dyn Clock) -> Result<(Pair, Watched), TlsError> {
        let bytes = self.read()?;
        let pair = self.check(&bytes, clock)?;
        let watched = Watched {
            files: self,
            last: Some(bytes),
            complaint: None,
        };
        Ok((pair, watched))
    }

    fn read(&self) -> Result<Bytes, TlsError> {
        let read = |what: &'static str, path: &Path| {
            std::fs::read(path).map_err(|cause| TlsError::File {
                what,
                path: path.display().to_string(),
                cause,
            })
        };
        Ok(Bytes {
            certificate: read("the certificate", &self.certificate)?,
            key: read("the key", &self.key)?.into(),
        })
    }

    fn check(&self, bytes: &Bytes, clock: &dyn Clock) -> Result<Pair, TlsError> {
        let (certificate, key) = (
            self.certificate.display().to_string(),
            self.key.display().to_string(),
        );
        let named = Named {
            certificate: &certificate,
            key: &key,
        };
        Pair::read(&bytes.certificate, &bytes.key, named, clock.now())
    }
}

impl Watched {
    /// Serves what the files hold whenever that changes and is good, until the future is dropped. What isn't good is
    /// refused with the reason, and the last good pair stays.
    pub async fn follow(
        mut self,
        serving: Arc<Serving>,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
        period: Duration,
    ) {
        loop {
            sleep(period).await;
            self.look(&serving, &*clock, &metrics);
        }
    }

    fn look(&mut self, serving: &Serving, clock: &dyn Clock, metrics: &Metrics) {
        let looked = self.files.read().and_then(|bytes| {
            if self.last.as_ref() == Some(&bytes) {
                return Ok(None);
            }
            // A half of a pair may be followed by the other: it is looked at again until it is good.
            let pair = self.files.check(&bytes, clock)?;
            self.last = Some(bytes);
            Ok(Some(pair))
        });
        match looked {
            Ok(None) => self.complaint = None,
            Ok(Some(pair)) => {
                self.complaint = None;
                let certificate = self.files.certificate.display();
                tracing::info!(%certificate, not_after = %pair.not_after, "a new certificate is served");
                metrics.certificate_reload("ok");
                metrics.certificate_expiry("leaf", pair.not_after);
                serving.replace(pair);
            }
            Err(error) => {
                let complaint = error.to_string();
                // A half-written pair is whole at the next look, most likely.
                if self.complaint.as_ref() != Some(&complaint) {
                    tracing::warn!(%error, "a changed certificate is not served; the last good one stays");
                    metrics.certificate_reload("refused");
                    self.complaint = Some(complaint);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    use tempfile::TempDir;

    use super::*;
    use crate::clock::SystemClock;

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

    fn serves(serving: &Serving, certificate: &str) -> bool {
        let served = serving.0.load().cert[0].clone();
        served == CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate")
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
        let (loaded, watched) = files(&folder).load(&SystemClock).expect("good");
        let (serving, metrics) = (Serving::new(loaded), Arc::new(Metrics::default()));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        tokio::spawn(watched.follow(serving.clone(), clock, metrics.clone(), PERIOD));
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
        let text = metrics.to_text();
        let refused = r#"ecr_injector_certificate_reloads_total{outcome="refused"} 4"#;
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
        let (loaded, watched) = files(&folder).load(&SystemClock).expect("good");
        let serving = Serving::new(loaded);
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        tokio::spawn(watched.follow(serving.clone(), clock, Arc::default(), PERIOD));
        std::os::unix::fs::symlink("..2", of("..tmp")).expect("linked");
        std::fs::rename(of("..tmp"), of("..data")).expect("swapped");
        a_period_later().await;
        assert!(serves(&serving, &second.0));
    }

    #[test]
    fn what_cant_be_served_at_the_start_is_an_error_that_names_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let error = |folder: &TempDir| {
            let loaded = files(folder).load(&SystemClock);
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
