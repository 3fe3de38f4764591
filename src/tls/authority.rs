//! The self-managed authority: what the CA Secret holds, and the certificates that are signed under it.
//!
//! All replicas share one Secret. It holds the authority that signs, the next one while there is a change, and the
//! certificates of those before. Each replica signs its own serving certificate and keeps that key in memory.

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
    TlsError,
    pair::{Named, Pair, Read},
    rotation::{Life, Lifetimes, Stage, Step},
};

/// The Secret's type, and the guard allows no other.
pub const SECRET_TYPE: &str = "kubernetes.io/tls";
/// What a person puts on the Secret, with any value, to have a new authority made. Another value asks again.
pub const ROTATE: &str = "ecr-injector.dev/rotate-ca";
/// The last value of [`ROTATE`] that was followed.
const ROTATED: &str = "ecr-injector.dev/rotated-ca";
/// Since when the authority signs.
const PROMOTED_AT: &str = "ecr-injector.dev/promoted-at";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
/// All that is to be trusted. cert-manager's cainjector looks for it under this key.
const BUNDLE: &str = "ca.crt";

/// Why what a CA Secret holds is no authority. Nothing of it is quoted.
#[derive(Debug, Error)]
pub enum AuthorityError {
    /// It has another type, which can't be changed.
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
    /// They don't belong together.
    #[error("{certificate} and {key} don't belong together")]
    Mismatch {
        /// The certificate's name in the Secret.
        certificate: &'static str,
        /// The key's.
        key: &'static str,
    },
    /// Making or signing failed.
    #[error("creating a certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// What was signed can't be served.
    #[error("a certificate that was signed can't be served: {0}")]
    Unusable(#[from] TlsError),
}

/// A certificate that clients are to trust.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Trusted {
    pem: String,
    life: Life,
}

/// An authority that can sign.
#[derive(Clone, PartialEq, Eq)]
struct Signer {
    trusted: Trusted,
    key: Zeroizing<String>,
}

/// What the CA Secret holds.
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
    /// A first one.
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

    /// Reads a Secret.
    pub fn of(secret: &Secret, lifetimes: Lifetimes) -> Result<Self, AuthorityError> {
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
            .map(|der| Trusted::of(&der.ok()?))
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

    /// What the Secret is to hold.
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

    /// How it is to be annotated.
    #[must_use]
    pub fn annotations(&self) -> BTreeMap<&'static str, String> {
        let promoted_at = self.promoted_at.map(|at| (PROMOTED_AT, at.to_string()));
        let rotated = self.rotated.clone().map(|value| (ROTATED, value));
        promoted_at.into_iter().chain(rotated).collect()
    }

    /// Whether that is what it holds. Keys beside ours are other people's: nothing reads them, and an apply can't take them
    /// away.
    #[must_use]
    pub fn is_in(&self, secret: &Secret) -> bool {
        const OURS: [&str; 5] = [CERTIFICATE, KEY, BUNDLE, NEXT_CERTIFICATE, NEXT_KEY];
        let data = self.data();
        let held = secret.data.as_ref();
        held.is_some_and(|held| {
            let has = |key: &str| held.get(key).is_some_and(|held| !held.0.is_empty());
            // Half of what comes next is nothing to whoever reads it, and may be somebody else's.
            let has_next = self.next.is_some() || (has(NEXT_CERTIFICATE) && has(NEXT_KEY));
            let ours = OURS
                .iter()
                .filter(|key| has_next || !key.starts_with("next."));
            ours.into_iter().all(|key| {
                let held = held.get(*key).map(|held| &held.0[..]);
                held == data.get(key).map(|value| value.as_bytes())
            })
        })
    }

    /// All certificates that clients are to trust, as PEM: the one that signs, the next one, those before.
    #[must_use]
    pub fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|next| &next.trusted);
        let trusted = [&self.active.trusted]
            .into_iter()
            .chain(next)
            .chain(&self.old);
        trusted.map(|trusted| trusted.pem.as_str()).collect()
    }

    /// Where a change of authorities stands.
    #[must_use]
    pub fn stage(&self) -> Stage {
        Stage {
            active: self.active.trusted.life,
            next: self.next.as_ref().map(|next| next.trusted.life),
            old: self.old.iter().map(|old| old.life).collect(),
            promoted_at: self.promoted_at,
            asked: self.rotate.is_some() && self.rotate != self.rotated,
            lifetimes: self.lifetimes,
        }
    }

    /// The authority after a step.
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
                after.old.retain(|old| old.life.contains(now));
                after.promoted_at = Some(now);
            }
            Step::Retire => after.old.clear(),
        }
        Ok(after)
    }

    /// The certificate of the one that signs, as PEM.
    #[must_use]
    pub fn signer(&self) -> &str {
        &self.active.trusted.pem
    }

    /// Until when the one that signs is good.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.active.trusted.life.not_after
    }

    /// Whether this pair was signed by the one that signs now.
    #[must_use]
    pub fn signed(&self, leaf: &Leaf) -> bool {
        leaf.issuer == self.active.trusted.pem
    }

    /// Signs a serving certificate for a DNS name, with a new key.
    pub fn sign(&self, name: &str, now: Timestamp) -> Result<Leaf, AuthorityError> {
        let life = Life::from(now, self.lifetimes.leaf);
        let authority = self.active.trusted.life;
        let life = Life {
            not_before: life.not_before.max(authority.not_before),
            not_after: life.not_after.min(authority.not_after),
        };
        let mut params = params("ecr-injector", life);
        params.subject_alt_names = CertificateParams::new([name.to_owned()])?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let issuer = Issuer::from_ca_cert_pem(&self.active.trusted.pem, self.active.key_pair()?)?;
        let certificate = params.signed_by(&key, &issuer)?;
        let key = Zeroizing::new(key.serialize_pem());
        let named = Named {
            certificate: "what was signed",
            key: "its key",
        };
        let pair = Pair::read(certificate.pem().as_bytes(), key.as_bytes(), named, now)?;
        Ok(Leaf {
            pair,
            issuer: self.active.trusted.pem.clone(),
        })
    }
}

/// A serving certificate, and under which authority it was signed.
#[derive(Debug)]
pub struct Leaf {
    /// What is served.
    pub pair: Pair,
    issuer: String,
}

impl Signer {
    fn new(now: Timestamp, lifetimes: Lifetimes) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let life = Life::from(now, lifetimes.authority);
        // Two authorities have two names, so that no client takes one for the other.
        let mut params = params(&format!("ecr-injector CA {}", now.as_second()), life);
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
        let read = Read::of(&der).ok_or(AuthorityError::NotACertificate(certificate_name))?;
        if !read.is_authority {
            return Err(AuthorityError::NotAnAuthority(certificate_name));
        }
        let signer = Self {
            trusted: Trusted::new(&der, &read),
            key: Zeroizing::new(key.to_owned()),
        };
        let key = signer
            .key_pair()
            .map_err(|_| AuthorityError::NotAKey(key_name))?;
        if key.subject_public_key_info() != read.public_key {
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
    fn of(der: &CertificateDer<'_>) -> Option<Self> {
        Some(Self::new(der, &Read::of(der)?))
    }

    /// In one form, whatever form it came in: what is published is compared.
    fn new(der: &CertificateDer<'_>, read: &Read) -> Self {
        Self {
            pem: pem(der),
            life: read.life,
        }
    }
}

fn pem(der: &CertificateDer<'_>) -> String {
    let config = EncodeConfig::new().set_line_ending(LineEnding::LF);
    pem::encode_config(&Pem::new("CERTIFICATE", der.to_vec()), config)
}

fn params(common_name: &str, life: Life) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    // The one way to a date that rcgen's interface offers without another crate.
    let at = |at: Timestamp| {
        let since = at.duration_since(Timestamp::UNIX_EPOCH);
        rcgen::date_time_ymd(1970, 1, 1)
            + std::time::Duration::try_from(SignedDuration::from_secs(since.as_secs()))
                .unwrap_or_default()
    };
    (params.not_before, params.not_after) = (at(life.not_before), at(life.not_after));
    params
}

#[cfg(test)]
mod tests;
