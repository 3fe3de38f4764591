//! Tokens on disk, so that the runs of one node share them: a file for each key, and a lock beside
//! it so that of many runs one asks AWS.
//!
//! A folder that others could write to gives nothing and gets nothing. Nothing that is read can
//! lengthen a token's life: the dates are checked as those of a pull secret are.

use std::{env, path::Path, time::Duration};

use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::files::{FilesError, Folder, Lock, STALE, is_temporary_of};
use crate::token::{Lifetime, Token};

/// The version of the files' format.
const VERSION: u32 = 1;
/// The most bytes of a file; a token has about four thousand.
const MAX_BYTES: u64 = 16 << 10;
/// How far in the future a token may have been minted, for the clock may have been set.
const MAX_SKEW: SignedDuration = SignedDuration::from_mins(5);
/// When nobody needs a token's file any more: no token lives for longer than twelve hours.
const MAX_AGE: Duration = Duration::from_hours(13);

/// A folder of tokens that is ours alone.
#[derive(Debug)]
pub(super) struct FileCache(Folder);

/// A token on disk. The whole key is in it: a file that was copied answers for no other.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Read {
    version: u32,
    key: String,
    auth: SecretString,
    minted_at: Timestamp,
    expires_at: Timestamp,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Written<'a> {
    version: u32,
    key: &'a str,
    auth: &'a str,
    minted_at: Timestamp,
    expires_at: Timestamp,
}

/// The place of one token.
pub(super) struct Slot<'a> {
    folder: &'a Folder,
    key: &'a str,
    name: String,
}

impl FileCache {
    /// Opens a folder, which is made if it isn't there.
    pub(super) fn open(folder: &Path) -> Result<Self, FilesError> {
        Folder::open_unlinked(folder).map(Self)
    }

    /// Returns the place of a key's token.
    pub(super) fn slot<'a>(&'a self, key: &'a str) -> Slot<'a> {
        let digest = Sha256::digest(key.as_bytes());
        let name = digest.iter().take(16).map(|byte| format!("{byte:02x}"));
        Slot {
            folder: &self.0,
            key,
            name: name.collect(),
        }
    }
}

/// Returns how old a file of this name may be; `None` if it is not one of ours.
fn limit(name: &str) -> Option<Duration> {
    if is_temporary_of(name, is_ours) {
        return Some(STALE);
    }
    is_ours(name).then_some(MAX_AGE)
}

/// Returns whether a file is that of a token, or its lock.
fn is_ours(name: &str) -> bool {
    let is_digest = |stem: &str| stem.len() == 32 && stem.bytes().all(|b| b.is_ascii_hexdigit());
    name.split_once('.')
        .is_some_and(|(stem, kind)| is_digest(stem) && matches!(kind, "json" | "lock"))
}

impl Slot<'_> {
    /// Returns the token, whatever is left of its life; `None` if there is no valid file.
    pub(super) fn read(&self, now: Timestamp) -> Option<Token> {
        let text = self.folder.read(&self.file("json"), MAX_BYTES).ok()??;
        let read: Read = serde_json::from_slice(&text).ok()?;
        let is_of_key = read.version == VERSION && read.key == self.key;
        let is_of_future = read.minted_at.duration_since(now) > MAX_SKEW;
        if !is_of_key || is_of_future {
            return None;
        }
        let lifetime = Lifetime {
            minted_at: read.minted_at,
            expires_at: read.expires_at,
        };
        Token::restore(read.auth.expose_secret(), lifetime)
    }

    /// Writes a token, and removes what runs that were killed left, and what has long expired.
    pub(super) fn write(&self, token: &Token, now: Timestamp) -> Result<(), FilesError> {
        let lifetime = token.lifetime();
        let auth = token.auth();
        let written = Written {
            version: VERSION,
            key: self.key,
            auth: auth.expose_secret(),
            minted_at: lifetime.minted_at,
            expires_at: lifetime.expires_at,
        };
        // Strings and numbers: serialization can't fail.
        let text = Zeroizing::new(serde_json::to_vec(&written).unwrap_or_default());
        let written = self.folder.replace(&self.file("json"), &text, now);
        self.folder.remove_older(now, limit);
        written
    }

    /// Waits for the lock, at most this long; without it, the caller goes on alone.
    pub(super) fn lock(&self, limit: Duration) -> Option<Lock> {
        self.folder.lock(&self.file("lock"), limit).ok().flatten()
    }

    fn file(&self, kind: &str) -> String {
        format!("{}.{kind}", self.name)
    }
}

/// Returns a text that names an endpoint of the environment: tokens of one are none of another.
pub(super) fn endpoints_of_environment() -> String {
    let names = [
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_ECR",
        "AWS_ENDPOINT_URL_ECR_PUBLIC",
        "AWS_ENDPOINT_URL_STS",
        "AWS_IGNORE_CONFIGURED_ENDPOINT_URLS",
        "AWS_USE_FIPS_ENDPOINT",
        "AWS_USE_DUALSTACK_ENDPOINT",
        // A profile may name endpoints too.
        "AWS_CONFIG_FILE",
        "AWS_PROFILE",
    ];
    format!("{:?}", names.map(env::var_os))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_tokens_have_an_age_limit() {
        let name = "0123456789abcdef0123456789abcdef";
        for (file, expected) in [
            (format!("{name}.json"), Some(MAX_AGE)),
            (format!("{name}.lock"), Some(MAX_AGE)),
            (format!("{name}.json.tmp-12"), Some(STALE)),
            (format!("{name}.txt"), None),
            (format!("{name}.txt.tmp-12"), None),
            (name.to_owned(), None),
            ("0123.json".to_owned(), None),
            ("config.json".to_owned(), None),
            ("..json".to_owned(), None),
        ] {
            assert_eq!(limit(&file), expected, "{file}");
        }
    }
}
