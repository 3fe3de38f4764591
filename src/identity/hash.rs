//! The hashes of identities, which pull secrets carry.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// A short hash of an [`Identity`](super::Identity), stable across versions and written as 16 hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IdentityHash(u64);

/// The hash of the text `ambient`.
pub(super) const AMBIENT_HASH: IdentityHash = IdentityHash(0x31d1_8c0d_efdc_3e0e);

/// Returns the hash of a text.
pub(super) fn hash_of(canonical: &str) -> IdentityHash {
    let digest = Sha256::digest(canonical.as_bytes());
    let first = digest.iter().take(8);
    IdentityHash(first.fold(0, |hash, &byte| hash << 8 | u64::from(byte)))
}

impl IdentityHash {
    /// Parses 16 lower-case hex digits; any other text is `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let fits = text.len() == 16 && text.bytes().all(hex);
        let value = u64::from_str_radix(text, 16).ok();
        value.filter(|_| fits).map(Self)
    }
}

impl fmt::Display for IdentityHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
