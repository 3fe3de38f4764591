//! The tokens on disk: the helper's own cache, and that of amazon-ecr-credential-helper beside it.

use std::{path::Path, thread::sleep, time::Duration};

use jiff::Timestamp;
use secrecy::SecretString;
use tokio::time::Instant;

use crate::{
    nodes::{
        docker_cache::{
            Cache, CacheKey, Entry, Use,
            ecr_login::{EcrLogin, Found, Keys},
        },
        files::{FilesError, Folder, Lock},
    },
    token::Token,
};

/// The names of the files.
const OWN: &str = "ecr-injector.json";
const LOCK: &str = "ecr-injector.lock";
const ECR_LOGIN: &str = "cache.json";
/// The most bytes of a file that are read.
const MAX_BYTES: u64 = 1 << 20;
/// How long to wait before the lock is tried again.
const PAUSE: Duration = Duration::from_millis(10);

/// The folder of both caches.
pub(super) struct Kept(Folder);

/// Where a token is kept.
pub(super) struct Place {
    pub(super) kept: Kept,
    pub(super) key: CacheKey,
    /// The keys of amazon-ecr-credential-helper's cache, if the access key is known.
    pub(super) keys: Option<Keys>,
}

/// Whose turn it is to mint.
pub(super) enum Turn {
    /// Nobody's: a fresh token is kept.
    Found(SecretString),
    /// This process's.
    Mint {
        /// The lock, or none if another process holds it for too long.
        held: Option<Lock>,
        /// The kept token for the case that AWS can't be asked.
        kept: Option<SecretString>,
    },
}

impl Kept {
    /// Opens the folder, which is made if there is none.
    pub(super) fn open(path: &Path) -> Result<Self, FilesError> {
        Folder::open(path).map(Self)
    }

    /// Opens the folder if it is there.
    pub(super) fn existing(path: &Path) -> Result<Option<Self>, FilesError> {
        Ok(Folder::existing(path)?.map(Self))
    }

    fn own(&self) -> Result<Cache, FilesError> {
        let bytes = self.0.read(OWN, MAX_BYTES)?;
        let cache = bytes.map(|bytes| Cache::parse(&bytes));
        Ok(cache.unwrap_or_default())
    }

    /// Returns the other helper's cache, or `None` if it has a format that isn't known: such a file
    /// stays as it is.
    fn ecr_login(&self) -> Result<Option<EcrLogin>, FilesError> {
        match self.0.read(ECR_LOGIN, MAX_BYTES)? {
            Some(bytes) => Ok(EcrLogin::parse(&bytes)),
            None => Ok(Some(EcrLogin::default())),
        }
    }

    /// Returns the hosts that have usable tokens. What can't be read has none.
    pub(super) fn hosts(&self, now: Timestamp) -> Vec<String> {
        let own = self.own().unwrap_or_default();
        let other = self.ecr_login().ok().flatten().unwrap_or_default();
        let own = own.hosts(now).map(str::to_owned);
        own.chain(other.hosts(now)).collect()
    }

    /// Removes the tokens of a host, also where they were written for the other helper. Another
    /// process that mints would write them again, so it is waited for; nothing is removed without
    /// the lock.
    pub(super) fn erase(
        &self,
        host: &str,
        limit: Duration,
        now: impl FnOnce() -> Timestamp,
    ) -> Result<(), FilesError> {
        let Some(_lock) = self.0.lock(LOCK, limit)? else {
            return Err(self.0.is_locked(LOCK));
        };
        let now = now();
        let mut own = self.own()?;
        let erased = own.erase(host);
        if erased.is_empty() {
            return Ok(());
        }
        self.0.replace(OWN, own.to_json().as_bytes(), now)?;
        let Some(mut other) = self.ecr_login()? else {
            return Ok(());
        };
        let erased = erased.iter().filter(|entry| other.erase(entry.auth()));
        if erased.count() > 0 {
            self.0.replace(ECR_LOGIN, other.to_json().as_bytes(), now)?;
        }
        Ok(())
    }
}

impl Place {
    /// Returns the token that is kept, the fresher one if both caches have one.
    fn find(&self, now: Timestamp) -> Result<Option<Found>, FilesError> {
        let own = self.kept.own()?;
        let own = own.get(&self.key).and_then(|entry| {
            let usable = Some(entry.usable(now)).filter(|usable| *usable != Use::None)?;
            let password = entry.password()?;
            Some(Found { password, usable })
        });
        let (Some(keys), None | Some(Use::Fallback)) =
            (&self.keys, own.as_ref().map(|found| found.usable))
        else {
            return Ok(own);
        };
        // A file of the other helper that can't be used costs its tokens alone.
        let other = self.kept.ecr_login().ok().flatten();
        let other = other.and_then(|cache| cache.get(keys, now));
        let is_fresh = other
            .as_ref()
            .is_some_and(|found| found.usable == Use::Fresh);
        Ok(if is_fresh { other } else { own.or(other) })
    }

    /// Returns a fresh token, at once or as soon as another process has minted, or the turn to mint
    /// with the lock, or without it at the end of the wait.
    pub(super) fn turn(
        &self,
        until: Instant,
        now: impl Fn() -> Timestamp,
    ) -> Result<Turn, FilesError> {
        let mut held = None;
        loop {
            let kept = match self.find(now())? {
                Some(found) if found.usable == Use::Fresh => {
                    return Ok(Turn::Found(found.password));
                }
                kept => kept.map(|found| found.password),
            };
            // Whoever had the lock before may have minted, so the files are read once more with it.
            if held.is_some() || Instant::now() >= until {
                return Ok(Turn::Mint { held, kept });
            }
            held = self.kept.0.try_lock(LOCK)?;
            if held.is_none() {
                #[expect(clippy::disallowed_methods, reason = "there is no runtime yet")]
                sleep(PAUSE);
            }
        }
    }

    /// Keeps a token in both caches.
    pub(super) fn keep(self, host: &str, token: &Token, now: Timestamp) -> Result<(), FilesError> {
        let Self { kept, key, keys } = self;
        let mut own = kept.own()?;
        own.put(Entry::new(key, token), now);
        kept.0.replace(OWN, own.to_json().as_bytes(), now)?;
        let (Some(keys), Some(mut other)) = (keys, kept.ecr_login()?) else {
            return Ok(());
        };
        if other.put(&keys, host, token) {
            kept.0.replace(ECR_LOGIN, other.to_json().as_bytes(), now)?;
        }
        Ok(())
    }
}
