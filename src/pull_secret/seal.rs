//! The proof that a state is ours: a message authentication code (HMAC-SHA-256) under a key that only this installation
//! holds.
//!
//! Whoever may write Secrets in a namespace can write any label, type, digest or date there. Without the key nobody can
//! write a code that fits, so a state with a good code was written by one of our replicas, for this very Secret.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use zeroize::Zeroizing;

use super::state::Seal;

/// The length of a key in bytes: as long as the digest, as RFC 2104 recommends.
pub const KEY_BYTES: usize = 32;

/// The block of SHA-256 in bytes.
const BLOCK_BYTES: usize = 64;

/// A key of 256 random bits. It can't be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct StateKey(Zeroizing<[u8; KEY_BYTES]>);

/// The keys of the moment; clones share them. Without any, nothing can be sealed and nothing is proven.
#[derive(Clone, Default)]
pub struct StateKeys(Arc<RwLock<Keys>>);

#[derive(Default)]
struct Keys {
    /// Seals, and proves.
    current: Option<StateKey>,
    /// Proves what was sealed before a rotation.
    previous: Option<StateKey>,
}

impl StateKey {
    /// A key of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A key of exactly [`KEY_BYTES`] bytes, or `None`.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self::new)
    }

    /// The bytes, for the Secret that shares them.
    #[must_use]
    pub fn expose(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    fn mac(&self, message: &[u8]) -> Hmac<Sha256> {
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

impl StateKeys {
    /// Keys that are known from the start.
    #[must_use]
    pub fn of(current: StateKey, previous: Option<StateKey>) -> Self {
        let keys = Self::default();
        keys.replace(current, previous);
        keys
    }

    /// Replaces the keys.
    pub fn replace(&self, current: StateKey, previous: Option<StateKey>) {
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *keys = Keys {
            current: Some(current),
            previous,
        };
    }

    /// Returns the key that seals, if there is one yet.
    #[must_use]
    pub fn current(&self) -> Option<StateKey> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        keys.current.clone()
    }

    /// Seals a message with the current key; `None` while there is no key.
    #[must_use]
    pub fn seal(&self, message: &[u8]) -> Option<Seal> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mac = keys.current.as_ref()?.mac(message);
        Some(Seal::new(mac.finalize().into_bytes().into()))
    }

    /// Returns whether a seal was made for this message by the current key or the one before. The comparison takes the
    /// same time wherever the two differ.
    #[must_use]
    pub fn verify(&self, message: &[u8], seal: &Seal) -> bool {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut keys = keys.current.iter().chain(&keys.previous);
        keys.any(|key| key.mac(message).verify_slice(seal.as_bytes()).is_ok())
    }
}

impl fmt::Debug for StateKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StateKeys")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> StateKey {
        StateKey::new([byte; KEY_BYTES])
    }

    #[test]
    fn seal_is_hmac_sha_256() {
        // RFC 4231, test case 2, with its short key padded by zeros, which HMAC does itself.
        let mut bytes = [0; KEY_BYTES];
        bytes[..4].copy_from_slice(b"Jefe");
        let keys = StateKeys::of(StateKey::new(bytes), None);
        let seal = keys.seal(b"what do ya want for nothing?").expect("a key");
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(seal.to_string(), expected);
        assert_eq!(Seal::parse(expected), Some(seal));
    }

    #[test]
    fn seal_proves_only_its_own_message_and_key() {
        let keys = StateKeys::of(key(1), None);
        let seal = keys.seal(b"a").expect("a key");
        assert!(keys.verify(b"a", &seal));
        assert!(!keys.verify(b"b", &seal));
        assert!(!keys.verify(b"a", &Seal::default()));
        assert!(!StateKeys::of(key(2), None).verify(b"a", &seal));
    }

    #[test]
    fn previous_key_proves_and_does_not_seal() {
        let keys = StateKeys::of(key(1), None);
        let old = keys.seal(b"a").expect("a key");
        keys.replace(key(2), Some(key(1)));
        assert!(keys.verify(b"a", &old));
        assert_ne!(keys.seal(b"a"), Some(old));
        keys.replace(key(3), Some(key(2)));
        assert!(!keys.verify(b"a", &old));
    }

    #[test]
    fn without_a_key_nothing_is_sealed_or_proven() {
        let keys = StateKeys::default();
        assert_eq!(keys.seal(b"a"), None);
        assert!(!keys.verify(b"a", &Seal::default()));
    }

    #[test]
    fn keys_are_never_printed() {
        let keys = StateKeys::of(key(0xab), None);
        let text = format!("{keys:?} {:?}", key(0xab));
        assert!(!text.contains("171") && !text.contains("ab, "), "{text}");
    }
}
