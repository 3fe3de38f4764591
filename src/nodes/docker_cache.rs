//! The docker helper's own cache as data: which tokens are kept, for whom, and how long they are
//! answered.

pub mod ecr_login;

use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    identity::Identity,
    token::{Lifetime, MAX_LIFE, Token, TokenKey},
};

/// The version of the file's format.
const VERSION: u8 = 1;
/// The most tokens that are kept.
const MAX_ENTRIES: usize = 256;
/// A new token is minted once this share of its lifetime is over, in per cent.
const FRESH_PERCENT: i64 = 50;
/// The least time left of a token that is answered because AWS can't be asked.
const MIN_FALLBACK: SignedDuration = SignedDuration::from_mins(1);
/// The most by which a token may be from the future: another machine may have written it.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(5);

/// The key of a token in the file: who mints, and where. A token holds for all of its region, and
/// is kept by host all the same, so that a host can be listed and erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheKey {
    text: String,
    host: String,
}

/// A kept token. `Debug` doesn't print it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    key: String,
    host: String,
    auth: SecretString,
    minted_at: Timestamp,
    expires_at: Timestamp,
}

/// How a kept token may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// It is answered.
    Fresh,
    /// It is answered if AWS can't be asked.
    Fallback,
    /// It is not answered.
    None,
}

/// The kept tokens.
#[derive(Debug, Clone, Default)]
pub struct Cache {
    entries: Vec<Entry>,
}

impl CacheKey {
    /// Returns the key of a host's token that the identity of `key` mints. `base` tells the
    /// credentials that sign the first call, and the endpoints of the environment.
    #[must_use]
    pub fn new(base: &str, key: &TokenKey, host: &str) -> Self {
        let identity = match &key.identity {
            Identity::Ambient => "ambient".to_owned(),
            Identity::Profile(profile) => format!("profile:{}", profile.name()),
            Identity::Role(role) => format!("role:{}:{}", role.arn, key.identity.hash()),
        };
        let (region, endpoint) = (&key.region, key.endpoint);
        Self {
            text: format!("{base}\n{identity}\n{region}\n{endpoint:?}"),
            host: host.to_owned(),
        }
    }
}

impl Entry {
    /// Returns the entry of a minted token.
    #[must_use]
    pub fn new(key: CacheKey, token: &Token) -> Self {
        let lifetime = token.lifetime();
        Self {
            key: key.text,
            host: key.host,
            auth: token.auth(),
            minted_at: lifetime.minted_at,
            expires_at: lifetime.expires_at,
        }
    }

    /// Returns how the token may be used at `now`.
    #[must_use]
    pub fn usable(&self, now: Timestamp) -> Use {
        usable(self.lifetime(), now)
    }

    fn lifetime(&self) -> Lifetime {
        Lifetime {
            minted_at: self.minted_at,
            expires_at: self.expires_at,
        }
    }

    /// Returns the password, or `None` if the text holds none.
    #[must_use]
    pub fn password(&self) -> Option<SecretString> {
        let token = Token::restore(self.auth.expose_secret(), self.lifetime())?;
        Some(token.password().clone())
    }

    /// Returns base64 of user and password.
    #[must_use]
    pub fn auth(&self) -> &SecretString {
        &self.auth
    }
}

/// Returns how a token of this lifetime may be used at `now`.
fn usable(lifetime: Lifetime, now: Timestamp) -> Use {
    let left = lifetime.expires_at.duration_since(now);
    let is_from_the_future = lifetime.minted_at.duration_since(now) > CLOCK_SKEW;
    let life = lifetime.expires_at.duration_since(lifetime.minted_at);
    let is_forged = is_from_the_future || life > MAX_LIFE + CLOCK_SKEW;
    if is_forged || lifetime.is_expired(now) || left < MIN_FALLBACK {
        Use::None
    } else if lifetime.has_used(FRESH_PERCENT, now) {
        Use::Fallback
    } else {
        Use::Fresh
    }
}

impl Cache {
    /// Parses a file. What isn't this format counts as empty: the file is ours, and is written
    /// again.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct File {
            version: u8,
            entries: Vec<Entry>,
        }
        match serde_json::from_slice(bytes) {
            Ok(File { version, entries }) if version == VERSION => Self { entries },
            _ => Self::default(),
        }
    }

    /// Returns the file.
    #[must_use]
    pub fn to_json(&self) -> Zeroizing<String> {
        #[derive(Serialize)]
        struct File<'a> {
            version: u8,
            entries: Vec<Written<'a>>,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Written<'a> {
            key: &'a str,
            host: &'a str,
            auth: &'a str,
            minted_at: Timestamp,
            expires_at: Timestamp,
        }
        let entries = self.entries.iter().map(|entry| Written {
            key: &entry.key,
            host: &entry.host,
            auth: entry.auth.expose_secret(),
            minted_at: entry.minted_at,
            expires_at: entry.expires_at,
        });
        let file = File {
            version: VERSION,
            entries: entries.collect(),
        };
        // Texts and times always serialize.
        Zeroizing::new(serde_json::to_string(&file).unwrap_or_default())
    }

    /// Returns the token of a key.
    #[must_use]
    pub fn get(&self, key: &CacheKey) -> Option<&Entry> {
        let mut entries = self.entries.iter();
        entries.find(|entry| entry.key == key.text && entry.host == key.host)
    }

    /// Keeps a token, and drops those that can't be used any longer, and the oldest if there are
    /// too many.
    pub fn put(&mut self, new: Entry, now: Timestamp) {
        self.entries.retain(|old| {
            let is_same = old.key == new.key && old.host == new.host;
            !is_same && old.usable(now) != Use::None
        });
        self.entries.push(new);
        self.entries.sort_by_key(|entry| entry.minted_at);
        let surplus = self.entries.len().saturating_sub(MAX_ENTRIES);
        self.entries.drain(..surplus);
    }

    /// Removes the tokens of a host, and returns them.
    pub fn erase(&mut self, host: &str) -> Vec<Entry> {
        let entries = std::mem::take(&mut self.entries);
        let (erased, kept) = entries.into_iter().partition(|entry| entry.host == host);
        self.entries = kept;
        erased
    }

    /// Returns the hosts whose tokens are usable at `now`, each once or more.
    pub fn hosts(&self, now: Timestamp) -> impl Iterator<Item = &str> {
        let usable = move |entry: &&Entry| entry.usable(now) != Use::None;
        let entries = self.entries.iter().filter(usable);
        entries.map(|entry| entry.host.as_str())
    }
}

#[cfg(test)]
mod tests;
