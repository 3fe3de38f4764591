//! A serving certificate: a chain with its key, read from PEM and checked.

use std::sync::Arc;

use jiff::Timestamp;
use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use x509_parser::{extensions::GeneralName, prelude::FromDer as _};
use zeroize::Zeroizing;

use super::{error::TlsError, rotation::Validity};
use crate::telemetry::log::line;

/// The most names of a certificate in a message, and the longest that a name may be.
const MAX_SHOWN_NAMES: usize = 5;
const MAX_NAME_BYTES: usize = 253;

/// A certificate chain and its key that can be served.
#[derive(Debug, Clone)]
pub struct ServingCert {
    pub(super) certified: Arc<CertifiedKey>,
    /// When the certificate is valid.
    pub validity: Validity,
    /// The DNS names of the certificate.
    pub names: Vec<String>,
}

/// Where a certificate and its key came from, for the errors.
#[derive(Debug, Clone, Copy)]
pub struct PemNames<'a> {
    /// The certificate's file.
    pub certificate: &'a str,
    /// The key's file.
    pub key: &'a str,
}

/// A certificate chain and its key as they were read, both PEM. Has no `Debug`: the key must not be
/// printed.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct PemPair {
    pub(super) certificate: Vec<u8>,
    pub(super) key: Zeroizing<Vec<u8>>,
}

impl PemPair {
    pub(super) fn parse(
        &self,
        names: PemNames<'_>,
        now: Timestamp,
    ) -> Result<ServingCert, TlsError> {
        ServingCert::parse(&self.certificate, &self.key, names, now)
    }
}

impl ServingCert {
    /// Reads a chain (the server's own certificate first) and a key, both PEM, and checks that they
    /// belong together and that the certificate is valid at `now`.
    pub fn parse(
        certificate: &[u8],
        key: &[u8],
        names: PemNames<'_>,
        now: Timestamp,
    ) -> Result<Self, TlsError> {
        let not_pem = |what: &'static str, path: &str| {
            let path = path.to_owned();
            move |source| TlsError::NotPem { what, path, source }
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificate)
            .collect::<Result<_, _>>()
            .map_err(not_pem("the certificate", names.certificate))?;
        let Some(first) = chain.first() else {
            return Err(TlsError::NoCertificate(names.certificate.to_owned()));
        };
        let parsed = ParsedCert::parse(first)
            .ok_or_else(|| TlsError::NotACertificate(names.certificate.to_owned()))?;
        let private_key =
            PrivateKeyDer::from_pem_slice(key).map_err(not_pem("the key", names.key))?;
        let provider = Arc::new(ring::default_provider());
        let certified =
            CertifiedKey::from_der(chain, private_key, &provider).map_err(|source| {
                TlsError::Unusable {
                    certificate: names.certificate.to_owned(),
                    key: names.key.to_owned(),
                    source,
                }
            })?;
        let validity = parsed.validity;
        if !validity.contains(now) {
            return Err(TlsError::NotValidNow {
                certificate: names.certificate.to_owned(),
                not_before: validity.not_before,
                not_after: validity.not_after,
            });
        }
        Ok(Self {
            certified: Arc::new(certified),
            validity,
            names: parsed.names,
        })
    }

    /// Returns the server's own certificate.
    #[must_use]
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        self.certified.cert.first()
    }

    /// Returns the DNS names for a message.
    pub(super) fn shown_names(&self) -> String {
        let names = self.names.iter().take(MAX_SHOWN_NAMES);
        let names: Vec<_> = names.map(|name| line(name, MAX_NAME_BYTES)).collect();
        if names.is_empty() {
            "no DNS name".to_owned()
        } else {
            names.join(", ")
        }
    }

    /// Returns whether clients that ask for this DNS name accept the certificate.
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

/// The fields of a certificate that are used here.
pub(super) struct ParsedCert {
    pub(super) validity: Validity,
    pub(super) names: Vec<String>,
    pub(super) common_name: Option<String>,
    /// Whether the certificate may sign others.
    pub(super) is_authority: bool,
    /// The `SubjectPublicKeyInfo`, in DER.
    pub(super) public_key: Vec<u8>,
}

impl ParsedCert {
    pub(super) fn parse(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) =
            x509_parser::certificate::X509Certificate::from_der(certificate.as_ref()).ok()?;
        let validity = parsed.validity();
        let at = |time: &x509_parser::time::ASN1Time| Timestamp::from_second(time.timestamp()).ok();
        let names = parsed.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|names| &names.value.general_names);
        Some(Self {
            validity: Validity {
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
    use crate::telemetry::error_chain::error_chain;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);
    const NAMES: PemNames<'static> = PemNames {
        certificate: "tls.crt",
        key: "tls.key",
    };

    /// Returns a certificate for these names that is valid from one day before [`NOW`] to one day
    /// after, and its key.
    fn cert(names: &[&str]) -> (String, String) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = rcgen::CertificateParams::new(names).expect("names");
        params.not_before = rcgen::date_time_ymd(2027, 1, 14);
        params.not_after = rcgen::date_time_ymd(2027, 1, 16);
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("signed");
        (certificate.pem(), key.serialize_pem())
    }

    fn read(certificate: &str, key: &str, now: Timestamp) -> Result<ServingCert, TlsError> {
        ServingCert::parse(certificate.as_bytes(), key.as_bytes(), NAMES, now)
    }

    #[test]
    fn valid_cert_has_its_validity_and_names() {
        let (certificate, key) = cert(&["ecr-injector.ecr-injector.svc", "*.example.com"]);
        let cert = read(&certificate, &key, NOW).expect("good");
        assert!(cert.validity.contains(NOW));
        for (name, covered) in [
            ("ecr-injector.ecr-injector.svc", true),
            ("ECR-injector.ecr-injector.svc", true),
            ("other.ecr-injector.svc", false),
            ("a.example.com", true),
            ("a.b.example.com", false),
            ("example.com", false),
        ] {
            assert_eq!(cert.covers(name), covered, "{name}");
        }
    }

    #[test]
    fn key_of_another_certificate_is_rejected_with_both_names() {
        let error = read(&cert(&["a"]).0, &cert(&["a"]).1, NOW).expect_err("mismatched");
        let error = error.to_string();
        assert!(
            error.contains("tls.crt") && error.contains("tls.key"),
            "{error}"
        );
    }

    #[test]
    fn cert_that_is_not_valid_now_is_rejected_with_its_dates() {
        let (certificate, key) = cert(&["a"]);
        for (now, is_valid) in [
            (NOW - SignedDuration::from_hours(48), false),
            (NOW, true),
            (NOW + SignedDuration::from_hours(48), false),
        ] {
            let read = read(&certificate, &key, now);
            assert_eq!(read.is_ok(), is_valid, "{now}");
            if let Err(error) = read {
                assert!(error.to_string().contains("2027-01-16"), "{error}");
            }
        }
    }

    #[test]
    fn malformed_pem_is_rejected_by_name_and_never_shown() {
        let (certificate, key) = cert(&["a"]);
        let cut = &key[..key.len() / 2];
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for (certificate, key, expected) in [
            ("", key.as_str(), "tls.crt holds no certificate"),
            (garbage, key.as_str(), "tls.crt: its first certificate"),
            (certificate.as_str(), "", "reading the key from tls.key"),
            (certificate.as_str(), cut, "reading the key from tls.key"),
        ] {
            let error = read(certificate, key, NOW).expect_err("refused");
            let error = error_chain(&error);
            assert!(error.contains(expected), "{error}");
            let shown = cut.lines().nth(1).is_some_and(|line| error.contains(line));
            assert!(!shown, "an error shows the key: {error}");
        }
    }
}
