//! The self-managed certificate authority: the content of the CA Secret, and the certificates that
//! are signed under it.
//!
//! All replicas share one Secret. The Secret holds the authority that signs, the next one during a
//! rotation, and the certificates of those before. Each replica signs its own serving certificate
//! and keeps that key in memory.

use std::{collections::BTreeMap, fmt};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use pem::{EncodeConfig, LineEnding, Pem};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData as _,
};
use rustls::pki_types::{CertificateDer, pem::PemObject as _};
use thiserror::Error;
use zeroize::Zeroizing;

use super::{
    error::TlsError,
    rotation::{Lifetimes, Stage, Step, Validity},
    serving_cert::{ParsedCert, PemNames, ServingCert},
};

/// The Secret's type. The guard allows no other.
pub const SECRET_TYPE: &str = "kubernetes.io/tls";
/// The annotation that requests a new authority, with any value. Another value requests another
/// one.
pub const ROTATE: &str = "ecr-injector.dev/rotate-ca";
/// The annotation with the last value of [`ROTATE`] that was followed.
const ROTATED: &str = "ecr-injector.dev/rotated-ca";
/// The annotation with the time since when the authority signs.
const PROMOTED_AT: &str = "ecr-injector.dev/promoted-at";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
/// The key of the bundle of trusted certificates, where cert-manager's cainjector reads it.
const BUNDLE: &str = "ca.crt";

/// Why the content of a CA Secret is no authority. No text quotes that content.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// The Secret has another type, which can't be changed.
    #[error("its type is {0:?} instead of {SECRET_TYPE}; delete it to have it created again")]
    Type(String),
    /// A key is missing.
    #[error("it has no {0}")]
    Missing(&'static str),
    /// A certificate can't be read.
    #[error("{0}: not a certificate in PEM")]
    NotACertificate(&'static str),
    /// A certificate may not sign others.
    #[error("{0}: not a certificate of an authority")]
    NotAnAuthority(&'static str),
    /// A private key can't be read.
    #[error("{0}: not an ECDSA P-256 key in PEM")]
    NotAKey(&'static str),
    /// A certificate and a key don't belong together.
    #[error("{certificate} and {key} don't belong together")]
    Mismatch {
        /// The certificate's name in the Secret.
        certificate: &'static str,
        /// The key's name in the Secret.
        key: &'static str,
    },
    /// A certificate can't be created or signed.
    #[error("creating a certificate")]
    Create(#[from] rcgen::Error),
    /// A certificate was signed that can't be served.
    #[error("a certificate that was signed can't be served")]
    Unusable(#[from] TlsError),
}

/// A certificate that clients are to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Trusted {
    pem: String,
    validity: Validity,
}

/// An authority that can sign.
#[derive(Clone, PartialEq, Eq)]
struct Signer {
    trusted: Trusted,
    key: Zeroizing<String>,
}

/// The authorities of the CA Secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Authority {
    active: Signer,
    next: Option<Signer>,
    old: Vec<Trusted>,
    promoted_at: Option<Timestamp>,
    rotate: Option<String>,
    rotated: Option<String>,
    lifetimes: Lifetimes,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("stage", &self.stage())
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Creates a first authority.
    pub fn new(now: Timestamp, lifetimes: Lifetimes) -> Result<Self, AuthorityError> {
        Ok(Self {
            active: Signer::new(now, lifetimes)?,
            next: None,
            old: Vec::new(),
            promoted_at: None,
            rotate: None,
            rotated: None,
            lifetimes,
        })
    }

    /// Reads the authorities of a Secret.
    pub fn from_secret(secret: &Secret, lifetimes: Lifetimes) -> Result<Self, AuthorityError> {
        let kind = secret.type_.as_deref().unwrap_or_default();
        if kind != SECRET_TYPE {
            return Err(AuthorityError::Type(kind.chars().take(64).collect()));
        }
        let text = |key: &'static str| {
            let bytes = &secret.data.as_ref()?.get(key)?.0;
            let text = std::str::from_utf8(bytes).ok()?;
            (!text.trim().is_empty()).then(|| Zeroizing::new(text.to_owned()))
        };
        let required = |key| text(key).ok_or(AuthorityError::Missing(key));
        let active = Signer::read(
            (CERTIFICATE, &required(CERTIFICATE)?),
            (KEY, &required(KEY)?),
        )?;
        let next = match (text(NEXT_CERTIFICATE), text(NEXT_KEY)) {
            (Some(certificate), Some(key)) => {
                let signer = Signer::read((NEXT_CERTIFICATE, &certificate), (NEXT_KEY, &key))?;
                Some(signer)
            }
            _ => None,
        };
        let bundle = text(BUNDLE).unwrap_or_default();
        let mut old: Vec<Trusted> = CertificateDer::pem_slice_iter(bundle.as_bytes())
            .map(|der| Trusted::from_der(&der.ok()?))
            .collect::<Option<_>>()
            .ok_or(AuthorityError::NotACertificate(BUNDLE))?;
        old.retain(|old| {
            *old != active.trusted && next.as_ref().is_none_or(|next| *old != next.trusted)
        });
        let annotation = |key: &str| secret.metadata.annotations.as_ref()?.get(key).cloned();
        Ok(Self {
            active,
            next,
            old,
            promoted_at: annotation(PROMOTED_AT).and_then(|at| at.parse().ok()),
            rotate: annotation(ROTATE),
            rotated: annotation(ROTATED),
            lifetimes,
        })
    }

    /// Returns the data that the Secret is to hold.
    #[must_use]
    pub fn data(&self) -> BTreeMap<&'static str, Zeroizing<String>> {
        let mut data = BTreeMap::from([
            (CERTIFICATE, self.active.trusted.pem.clone().into()),
            (KEY, self.active.key.clone()),
            (BUNDLE, self.bundle().into()),
        ]);
        if let Some(next) = &self.next {
            data.insert(NEXT_CERTIFICATE, next.trusted.pem.clone().into());
            data.insert(NEXT_KEY, next.key.clone());
        }
        data
    }

    /// Returns the annotations that the Secret is to have.
    #[must_use]
    pub fn annotations(&self) -> BTreeMap<&'static str, String> {
        let promoted_at = self.promoted_at.map(|at| (PROMOTED_AT, at.to_string()));
        let rotated = self.rotated.clone().map(|value| (ROTATED, value));
        promoted_at.into_iter().chain(rotated).collect()
    }

    /// Returns whether the Secret holds exactly this data. Other keys belong to other people:
    /// nothing reads them, and an apply can't remove them.
    #[must_use]
    pub fn is_stored_in(&self, secret: &Secret) -> bool {
        const KEYS: [&str; 5] = [CERTIFICATE, KEY, BUNDLE, NEXT_CERTIFICATE, NEXT_KEY];
        let data = self.data();
        let held = secret.data.as_ref();
        held.is_some_and(|held| {
            let has = |key: &str| held.get(key).is_some_and(|held| !held.0.is_empty());
            // A next certificate without its key, or the reverse, is never read, and may be
            // somebody else's.
            let has_next = self.next.is_some() || (has(NEXT_CERTIFICATE) && has(NEXT_KEY));
            let keys = KEYS
                .iter()
                .filter(|key| has_next || !key.starts_with("next."));
            keys.into_iter().all(|key| {
                let held = held.get(*key).map(|held| &held.0[..]);
                held == data.get(key).map(|value| value.as_bytes())
            })
        })
    }

    /// Returns all certificates that clients are to trust, as PEM: the one that signs, the next
    /// one, those before.
    #[must_use]
    pub fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|next| &next.trusted);
        let trusted = [&self.active.trusted]
            .into_iter()
            .chain(next)
            .chain(&self.old);
        trusted.map(|trusted| trusted.pem.as_str()).collect()
    }

    /// Returns how far a rotation is.
    #[must_use]
    pub fn stage(&self) -> Stage {
        Stage {
            active: self.active.trusted.validity,
            next: self.next.as_ref().map(|next| next.trusted.validity),
            old: self.old.iter().map(|old| old.validity).collect(),
            promoted_at: self.promoted_at,
            is_requested: self.rotate.is_some() && self.rotate != self.rotated,
            lifetimes: self.lifetimes,
        }
    }

    /// Returns the authorities after a step.
    pub fn after(&self, step: Step, now: Timestamp) -> Result<Self, AuthorityError> {
        let mut after = self.clone();
        match step {
            Step::Prepare(_) => {
                after.next = Some(Signer::new(now, self.lifetimes)?);
                after.rotated.clone_from(&after.rotate);
            }
            Step::Promote | Step::Replace(_) => {
                let next = match after.next.take() {
                    Some(next) if step == Step::Promote => next,
                    _ => Signer::new(now, self.lifetimes)?,
                };
                let before = std::mem::replace(&mut after.active, next);
                after.old.insert(0, before.trusted);
                after.old.retain(|old| old.validity.contains(now));
                after.promoted_at = Some(now);
            }
            Step::Retire => after.old.clear(),
        }
        Ok(after)
    }

    /// Returns the certificate of the authority that signs, as PEM.
    #[must_use]
    pub fn signer(&self) -> &str {
        &self.active.trusted.pem
    }

    /// Returns the end of the validity of the authority that signs.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.active.trusted.validity.not_after
    }

    /// Returns whether the authority that signs now signed this certificate.
    #[must_use]
    pub fn signed(&self, leaf: &Leaf) -> bool {
        leaf.issuer == self.active.trusted.pem
    }

    /// Signs a serving certificate for a DNS name, with a new key.
    pub fn sign(&self, name: &str, now: Timestamp) -> Result<Leaf, AuthorityError> {
        let validity = Validity::starting_at(now, self.lifetimes.leaf);
        let authority = self.active.trusted.validity;
        let validity = Validity {
            not_before: validity.not_before.max(authority.not_before),
            not_after: validity.not_after.min(authority.not_after),
        };
        let mut params = params("ecr-injector", validity);
        params.subject_alt_names = CertificateParams::new([name.to_owned()])?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let issuer = Issuer::from_ca_cert_pem(&self.active.trusted.pem, self.active.key_pair()?)?;
        let certificate = params.signed_by(&key, &issuer)?;
        let key = Zeroizing::new(key.serialize_pem());
        let names = PemNames {
            certificate: "what was signed",
            key: "its key",
        };
        let cert = ServingCert::parse(certificate.pem().as_bytes(), key.as_bytes(), names, now)?;
        Ok(Leaf {
            cert,
            issuer: self.active.trusted.pem.clone(),
        })
    }
}

/// A serving certificate with the authority that signed it.
#[derive(Debug)]
pub struct Leaf {
    /// The certificate to serve.
    pub cert: ServingCert,
    issuer: String,
}

impl Signer {
    fn new(now: Timestamp, lifetimes: Lifetimes) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let validity = Validity::starting_at(now, lifetimes.authority);
        // Each authority has a name of its own, so that no client takes one for another.
        let mut params = params(&format!("ecr-injector CA {}", now.as_second()), validity);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        let pem = Zeroizing::new(key.serialize_pem());
        Self::read((CERTIFICATE, &certificate.pem()), (KEY, &pem))
    }

    fn read(
        (certificate_name, certificate): (&'static str, &str),
        (key_name, key): (&'static str, &str),
    ) -> Result<Self, AuthorityError> {
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|_| AuthorityError::NotACertificate(certificate_name))?;
        let parsed =
            ParsedCert::parse(&der).ok_or(AuthorityError::NotACertificate(certificate_name))?;
        if !parsed.is_authority {
            return Err(AuthorityError::NotAnAuthority(certificate_name));
        }
        let signer = Self {
            trusted: Trusted::new(&der, &parsed),
            key: Zeroizing::new(key.to_owned()),
        };
        let key = signer
            .key_pair()
            .map_err(|_| AuthorityError::NotAKey(key_name))?;
        if key.subject_public_key_info() != parsed.public_key {
            return Err(AuthorityError::Mismatch {
                certificate: certificate_name,
                key: key_name,
            });
        }
        Ok(signer)
    }

    fn key_pair(&self) -> Result<KeyPair, rcgen::Error> {
        KeyPair::from_pkcs8_pem_and_sign_algo(&self.key, &PKCS_ECDSA_P256_SHA256)
    }
}

impl Trusted {
    fn from_der(der: &CertificateDer<'_>) -> Option<Self> {
        Some(Self::new(der, &ParsedCert::parse(der)?))
    }

    /// Encodes the certificate in one form, whatever form it came in: published PEM is compared.
    fn new(der: &CertificateDer<'_>, parsed: &ParsedCert) -> Self {
        Self {
            pem: pem(der),
            validity: parsed.validity,
        }
    }
}

fn pem(der: &CertificateDer<'_>) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new("CERTIFICATE", der.to_vec()), config)
}

fn params(common_name: &str, validity: Validity) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    // rcgen's interface offers no other way to a date without another crate.
    let at = |at: Timestamp| {
        let since = at.duration_since(Timestamp::UNIX_EPOCH);
        rcgen::date_time_ymd(1970, 1, 1)
            + std::time::Duration::try_from(SignedDuration::from_secs(since.as_secs()))
                .unwrap_or_default()
    };
    (params.not_before, params.not_after) = (at(validity.not_before), at(validity.not_after));
    params
}

#[cfg(test)]
mod tests;
