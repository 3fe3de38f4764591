//! Identities: which AWS principal mints the token for a registry and a namespace.
//!
//! A token carries all that its principal may do, so the identity is part of every token's key and is recorded, as a
//! hash, beside every credential that we write.

use std::fmt::{self, Write as _};

use sha2::{Digest as _, Sha256};

use crate::{namespace::Namespace, registry::Registry};

/// An AWS principal that mints tokens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// Whatever the SDK's default credential chain finds in this process's surroundings.
    Ambient,
}

/// A short fingerprint of an [`Identity`], stable across versions: 16 hex digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityHash(String);

/// The identity that mints for a registry in a namespace. In this version the ambient one mints for all.
#[must_use]
pub fn identity_for(_registry: &Registry, _namespace: &Namespace) -> Identity {
    Identity::Ambient
}

impl Identity {
    /// Its fingerprint.
    #[must_use]
    pub fn hash(&self) -> IdentityHash {
        let canonical = match self {
            Self::Ambient => "ambient",
        };
        let digest = Sha256::digest(canonical.as_bytes());
        let mut hex = String::with_capacity(16);
        for byte in digest.iter().take(8) {
            // Writing to a String can't fail.
            let _ = write!(hex, "{byte:02x}");
        }
        IdentityHash(hex)
    }
}

impl IdentityHash {
    /// Takes 16 lower-case hex digits; anything else is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (text.len() == 16 && text.bytes().all(hex)).then(|| Self(text.to_owned()))
    }

    /// The hex digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ambient => f.write_str("ambient"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ambient_fingerprint_never_changes_because_secrets_carry_it() {
        assert_eq!(Identity::Ambient.hash().as_str(), "31d18c0defdc3e0e");
    }

    #[test]
    fn only_sixteen_hex_digits_are_a_fingerprint() {
        assert!(IdentityHash::parse("0123456789abcdef").is_some());
        for text in [
            "",
            "0123456789ABCDEF",
            "0123456789abcde",
            "0123456789abcdeg",
        ] {
            assert_eq!(IdentityHash::parse(text), None, "{text}");
        }
    }
}
