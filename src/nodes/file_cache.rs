//! Tokens on disk, so that the runs of one node share them: a file for each key, and a lock beside
//! it so that of many runs one asks AWS.
//!
//! A folder that others could write to gives nothing and gets nothing. Nothing that is read can
//! lengthen a token's life: the dates are checked as those of a pull secret are.

use std::{
    env,
    ffi::OsStr,
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    process::random::random,
    token::{Lifetime, Token},
};

/// The version of the files' format.
const VERSION: u32 = 1;
/// The most bytes of a file; a token has about four thousand.
const MAX_BYTES: u64 = 16 << 10;
/// How far in the future a token may have been minted, for the clock may have been set.
const MAX_SKEW: SignedDuration = SignedDuration::from_mins(5);
/// When a temporary file was left by a run that was killed.
const MAX_TEMPORARY: SignedDuration = SignedDuration::from_hours(1);
/// When nobody needs a token's file any more: no token lives for longer than twelve hours.
const MAX_AGE: SignedDuration = SignedDuration::from_hours(13);
/// The bits of a mode by which others may write.
const OTHERS_WRITE: u32 = 0o022;

/// A folder of tokens that is ours alone.
#[derive(Debug)]
pub(super) struct FileCache {
    folder: PathBuf,
}

/// Why a folder isn't used.
#[derive(Debug, Error)]
pub(super) enum CacheError {
    #[error("it can't be made or read: {0}")]
    Io(#[from] io::Error),
    #[error("it is a link or no folder")]
    NoFolder,
    #[error("it is owned by uid {0}")]
    Owner(u32),
    #[error("others may write to it (mode {0:o})")]
    Writable(u32),
}

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
    cache: &'a FileCache,
    key: &'a str,
    name: String,
}

/// A lock, held until it is dropped.
pub(super) struct Lock {
    _file: Option<File>,
}

impl FileCache {
    /// Opens a folder, which is made if it isn't there.
    pub(super) fn open(folder: &Path) -> Result<Self, CacheError> {
        let found = match fs::symlink_metadata(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(folder)?;
                fs::symlink_metadata(folder)?
            }
            found => found?,
        };
        if !found.is_dir() {
            return Err(CacheError::NoFolder);
        }
        if found.uid() != rustix::process::geteuid().as_raw() {
            return Err(CacheError::Owner(found.uid()));
        }
        if found.mode() & OTHERS_WRITE != 0 {
            return Err(CacheError::Writable(found.mode() & 0o7777));
        }
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Returns the place of a key's token.
    pub(super) fn slot<'a>(&'a self, key: &'a str) -> Slot<'a> {
        let digest = Sha256::digest(key.as_bytes());
        let name = digest.iter().take(16).map(|byte| format!("{byte:02x}"));
        Slot {
            cache: self,
            key,
            name: name.collect(),
        }
    }

    /// Removes what runs that were killed left, and what has long expired.
    fn sweep(&self, now: Timestamp) {
        let Ok(entries) = fs::read_dir(&self.folder) else {
            return;
        };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let Some(limit) = limit(&name) else { continue };
            let modified = entry.metadata().and_then(|found| found.modified());
            let Ok(Ok(modified)) = modified.map(Timestamp::try_from) else {
                continue;
            };
            if now.duration_since(modified) > limit {
                // Another run may have been faster.
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Returns how old a file of this name may be; `None` if it is not one of ours.
fn limit(name: &OsStr) -> Option<SignedDuration> {
    let (stem, kind) = name.to_str()?.split_once('.')?;
    let is_ours = stem.len() == 32 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
    match kind {
        _ if !is_ours => None,
        "json" | "lock" => Some(MAX_AGE),
        kind if kind.starts_with("tmp-") => Some(MAX_TEMPORARY),
        _ => None,
    }
}

impl Slot<'_> {
    /// Returns the token, whatever is left of its life; `None` if there is no valid file.
    pub(super) fn read(&self, now: Timestamp) -> Option<Token> {
        let file = File::open(self.path("json")).ok()?;
        let mut text = Zeroizing::new(String::new());
        let mut limited = file.take(MAX_BYTES + 1);
        limited.read_to_string(&mut text).ok()?;
        let read: Read = serde_json::from_str(&text).ok()?;
        let is_of_key = read.version == VERSION && read.key == self.key;
        let is_of_future = read.minted_at.duration_since(now) > MAX_SKEW;
        let is_long = text.len() as u64 > MAX_BYTES;
        if !is_of_key || is_of_future || is_long {
            return None;
        }
        let lifetime = Lifetime {
            minted_at: read.minted_at,
            expires_at: read.expires_at,
        };
        Token::restore(read.auth.expose_secret(), lifetime)
    }

    /// Writes a token, and sweeps the folder.
    pub(super) fn write(&self, token: &Token, now: Timestamp) -> io::Result<()> {
        let lifetime = token.lifetime();
        let auth = token.auth();
        let text = Zeroizing::new(serde_json::to_string(&Written {
            version: VERSION,
            key: self.key,
            auth: auth.expose_secret(),
            minted_at: lifetime.minted_at,
            expires_at: lifetime.expires_at,
        })?);
        let temporary = self.path(&format!("tmp-{:016x}", random()));
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)?;
        let written = file.write_all(text.as_bytes());
        let written = written.and_then(|()| fs::rename(&temporary, self.path("json")));
        if written.is_err() {
            let _ = fs::remove_file(&temporary);
        }
        self.cache.sweep(now);
        written
    }

    /// Waits for the lock, at most this long; without it, the caller goes on alone. The kernel
    /// releases the lock of a run that dies.
    pub(super) fn lock(&self, limit: Duration) -> Lock {
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(false).mode(0o600);
        let Ok(file) = options.open(self.path("lock")) else {
            return Lock { _file: None };
        };
        match file.try_lock() {
            Ok(()) => return Lock { _file: Some(file) },
            Err(TryLockError::Error(_)) => return Lock { _file: None },
            Err(TryLockError::WouldBlock) if limit.is_zero() => return Lock { _file: None },
            Err(TryLockError::WouldBlock) => {}
        }
        let (sender, locked) = mpsc::channel();
        thread::spawn(move || {
            // Nobody is there any more if it took too long.
            let _ = sender.send(file.lock().is_ok().then_some(file));
        });
        Lock {
            _file: locked.recv_timeout(limit).ok().flatten(),
        }
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.cache.folder.join(format!("{}.{kind}", self.name))
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
