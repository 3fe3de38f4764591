//! A certificate chain with its key: read, checked, and what it says about itself.

use jiff::Timestamp;
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use std::sync::Arc;
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};
use zeroize::Zeroizing;

use super::{TlsError, rotation::Life};

/// A certificate that can be served.
#[derive(Debug, Clone)]
pub struct Pair {
    pub(super) certified: Arc<CertifiedKey>,
    /// When it is good.
    pub life: Life,
    /// The DNS names that it is for.
    pub names: Vec<String>,
}

/// Where a pair came from, for the errors.
#[derive(Debug, Clone, Copy)]
pub struct Named<'a> {
    /// The certificate's file.
    pub certificate: &'a str,
    /// The key's file.
    pub key: &'a str,
}

/// A pair as it was found, both parts PEM. Not to be printed.
#[derive(PartialEq, Eq)]
pub(super) struct Material {
    pub(super) certificate: Vec<u8>,
    pub(super) key: Zeroizing<Vec<u8>>,
}

impl Material {
    pub(super) fn pair(&self, named: Named<'_>, now: Timestamp) -> Result<Pair, TlsError> {
        Pair::read(&self.certificate, &self.key, named, now)
    }
}

impl Pair {
    /// Reads a chain (the server's own certificate first) and a key, both PEM, and checks that they belong together and
    /// are good at `now`.
    pub fn read(
        certificate: &[u8],
        key: &[u8],
        named: Named<'_>,
        now: Timestamp,
    ) -> Result<Self, TlsError> {
        let not_pem = |what: &'static str, path: &str| {
            let path = path.to_owned();
            move |cause| TlsError::NotPem { what, path, cause }
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .map_err(not_pem("the certificate", named.certificate))?;
        let Some(first) = chain.first() else {
            return Err(TlsError::NoCertificate(named.certificate.to_owned()));
        };
        let Read { life, names, .. } = Read::of(first)
            .ok_or_else(|| TlsError::NotACertificate(named.certificate.to_owned()))?;
        let private_key =
            PrivateKeyDer::from_pem_slice(key).map_err(not_pem("the key", named.key))?;
        let provider = Arc::new(ring::default_provider());
        let certified = CertifiedKey::from_der(chain, private_key, &provider).map_err(|cause| {
            TlsError::Pair {
                certificate: named.certificate.to_owned(),
                key: named.key.to_owned(),
                cause,
            }
        })?;
        if !life.contains(now) {
            return Err(TlsError::NotGoodNow {
                certificate: named.certificate.to_owned(),
                not_before: life.not_before,
                not_after: life.not_after,
            });
        }
        Ok(Self {
            certified: Arc::new(certified),
            life,
            names,
        })
    }

    /// The server's own certificate.
    #[must_use]
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.certified.cert.first()
    }

    /// Whether clients that ask for this name take it.
    #[must_use]
    pub fn covers(&self, name: &str) -> bool {
        self.names.iter().any(|own| {
            own.eq_ignore_ascii_case(name)
                || own.strip_prefix("*.").is_some_and(|parent| {
                    let rest = name.split_once('.').map_or("", |(_, rest)| rest);
                    rest.eq_ignore_ascii_case(parent)
                })
        })
    }
}

/// What a certificate says.
pub(super) struct Read {
    pub(super) life: Life,
    pub(super) names: Vec<String>,
    pub(super) common_name: Option<String>,
    /// Whether it may sign others.
    pub(super) is_authority: bool,
    /// The `SubjectPublicKeyInfo`, in DER.
    pub(super) public_key: Vec<u8>,
}

impl Read {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) =
            x509_parser::certificate::X509Certificate::from_der(certificate.as_ref()).ok()?;
        let validity = parsed.validity();
        let at = |time: &x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|names| &names.value.general_names);
        Some(Self {
            life: Life {
                not_before: at(&validity.not_before)?,
                not_after: at(&validity.not_after)?,
            },
            names: names
                .filter_map(|name| match name {
                    GeneralName::DNSName(name) => Some((*name).to_owned()),
                    _ => None,
                })
                .collect(),
            common_name: parsed
                .subject()
                .iter_common_name()
                .last()
                .and_then(|name| name.as_str().ok().map(str::to_owned)),
            is_authority: parsed.is_ca(),
            public_key: parsed.public_key().raw.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);
    const NAMED: Named<'static> = Named {
        certificate: "tls.crt",
        key: "tls.key",
    };

    /// A certificate for these names that is good from one day before [`NOW`] to one day after it, and its key.
    fn made(names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).expect("names");
        params.not_before = rcgen::date_time_ymd(2027, 1, 14);
        params.not_after = rcgen::date_time_ymd(2027, 1, 16);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }

    fn read(certificate: &str, key: &str, now: Timestamp) -> Result<Pair, TlsError> {
        Pair::read(certificate.as_bytes(), key.as_bytes(), NAMED, now)
    }

    #[test]
    fn a_good_pair_says_until_when_and_for_whom() {
        let (certificate, key) = made(&["ecr-injector.ecr-injector.svc", "*.example.com"]);
        let pair = read(&certificate, &key, NOW).expect("good");
        assert!(pair.life.contains(NOW));
        for (name, covered) in [
            ("ecr-injector.ecr-injector.svc", true),
            ("ECR-injector.ecr-injector.svc", true),
            ("other.ecr-injector.svc", false),
            ("a.example.com", true),
            ("a.b.example.com", false),
            ("example.com", false),
        ] {
            assert_eq!(pair.covers(name), covered, "{name}");
        }
    }

    #[test]
    fn a_key_of_another_certificate_is_refused_with_both_names() {
        let error = read(&made(&["a"]).0, &made(&["a"]).1, NOW).expect_err("mismatched");
        let error = error.to_string();
        assert!(
            error.contains("tls.crt") && error.contains("tls.key"),
            "{error}"
        );
    }

    #[test]
    fn a_pair_that_is_not_good_now_is_refused_with_its_dates() {
        let (certificate, key) = made(&["a"]);
        for (now, good) in [
            (NOW - SignedDuration::from_hours(48), false),
            (NOW, true),
            (NOW + SignedDuration::from_hours(48), false),
        ] {
            let read = read(&certificate, &key, now);
            assert_eq!(read.is_ok(), good, "{now}");
            if let Err(error) = read {
                assert!(error.to_string().contains("2027-01-16"), "{error}");
            }
        }
    }

    #[test]
    fn what_holds_no_pair_is_refused_by_name_and_never_shown() {
        let (certificate, key) = made(&["a"]);
        let cut = &key[..key.len() / 2];
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (certificate, key, expected) in [
            ("", key.as_str(), "tls.crt holds no certificate"),
            (garbage, key.as_str(), "tls.crt: its first certificate"),
            (certificate.as_str(), "", "reading the key from tls.key"),
            (certificate.as_str(), cut, "reading the key from tls.key"),
        ] {
            let error = read(certificate, key, NOW)
                .expect_err("refused")
                .to_string();
            assert!(error.contains(expected), "{error}");
            let shown = cut.lines().nth(1).is_some_and(|line| error.contains(line));
            assert!(!shown, "an error shows the key: {error}");
        }
    }
}
