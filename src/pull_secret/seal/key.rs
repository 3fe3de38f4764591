//! The key that seals states.

use std::fmt;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

/// The length of a key in bytes: as long as the digest, as RFC 2104 recommends.
pub const KEY_BYTES: usize = 32;

/// The block of SHA-256 in bytes.
const BLOCK_BYTES: usize = 64;

/// A key of 256 random bits. It can't be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct StateKey(Zeroizing<[u8; KEY_BYTES]>);

impl StateKey {
    /// Creates a key of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Creates a key of exactly [`KEY_BYTES`] bytes, or returns `None`.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::new)
    }

    /// Returns the bytes, for the Secret that shares them.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// Returns the message authentication code of a message, unfinished.
    pub(super) fn mac(&self, message: &[u8]) -> Hmac<Sha256> {
        // HMAC pads a key to the hash's block by zeros; a key of that length can't be refused.
        let mut block = Zeroizing::new([0; BLOCK_BYTES]);
        block[..KEY_BYTES].copy_from_slice(&*self.0);
        let mut mac = Hmac::<Sha256>::new(&(*block).into());
        mac.update(message);
        mac
    }
}

impl fmt::Debug for StateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StateKey")
    }
}
