//! Random numbers for jitter and for names that differ, not for secrets.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

/// Returns a number that differs between processes and calls, so that replicas don't act at the
/// same moment or under the same name. The standard library seeds its hash maps with such numbers.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
