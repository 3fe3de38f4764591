//! A folder of this user alone, in which tokens are kept: read, replaced and locked.
//!
//! A folder or a file that others can write is not used: they could answer with a token of theirs.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    process,
    sync::mpsc,
    thread,
    time::Duration,
};

use jiff::Timestamp;
use thiserror::Error;
use zeroize::Zeroizing;

/// The mode of a folder that is made here, and of files.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;
/// The bits of a mode by which others may write.
const OTHERS_WRITE: u32 = 0o022;
/// The mark of a temporary file's name, between the name of the file and the process.
const TEMPORARY: &str = ".tmp-";
/// The age at which a temporary file is one of a process that was killed.
pub(super) const STALE: Duration = Duration::from_hours(1);

/// A folder of this user alone.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    owner: u32,
}

/// The lock of a folder, until it is dropped.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "closing it unlocks")] File);

/// Why a folder or a file isn't used.
#[derive(Debug, Error)]
pub enum FilesError {
    /// It can't be read or written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The folder or the file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// Another process has the lock.
    #[error("another process has locked {}: try again when it has ended", path.display())]
    Locked {
        /// The file of the lock.
        path: PathBuf,
    },
    /// It is something else than it has to be.
    #[error("{} {why}", path.display())]
    Unsafe {
        /// The folder or the file.
        path: PathBuf,
        /// The fault, and what to do about it.
        why: String,
    },
}

impl Folder {
    /// Opens a folder, which is made if there is none.
    pub fn open(path: &Path) -> Result<Self, FilesError> {
        let io = |error| io_error(path, error);
        let owner = rustix::process::geteuid().as_raw();
        let metadata = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut builder = DirBuilder::new();
                builder.recursive(true).mode(FOLDER_MODE);
                builder.create(path).map_err(io)?;
                fs::metadata(path).map_err(io)?
            }
            other => other.map_err(io)?,
        };
        if !metadata.is_dir() {
            return Err(unsafe_file(path, "is no folder"));
        }
        check_owner(path, &metadata, owner)?;
        let path = path.to_owned();
        Ok(Self { path, owner })
    }

    /// Opens a folder that must be none by a link: whoever made the link may lead it elsewhere.
    pub fn open_unlinked(path: &Path) -> Result<Self, FilesError> {
        let is_link = fs::symlink_metadata(path).is_ok_and(|named| named.is_symlink());
        if is_link {
            return Err(unsafe_file(path, "is a link"));
        }
        Self::open(path)
    }

    /// Opens a folder if it is there: nothing is made.
    pub fn existing(path: &Path) -> Result<Option<Self>, FilesError> {
        if fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(None);
        }
        Self::open(path).map(Some)
    }

    /// Reads a file, or returns `None` if there is none. A link is not followed.
    pub fn read(&self, name: &str, max: u64) -> Result<Option<Zeroizing<Vec<u8>>>, FilesError> {
        let path = self.path.join(name);
        let io = |error| io_error(&path, error);
        let named = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(io)?,
        };
        if !named.is_file() {
            return Err(unsafe_file(&path, "is no regular file"));
        }
        let file = File::open(&path).map_err(io)?;
        let opened = file.metadata().map_err(io)?;
        // Another file may have been put there meanwhile, by a rename such as our own.
        if !opened.is_file() {
            return Err(unsafe_file(&path, "is no regular file"));
        }
        check_owner(&path, &opened, self.owner)?;
        if opened.len() > max {
            let why = format!("has more than {max} bytes: remove it");
            return Err(unsafe_file(&path, why));
        }
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(max).read_to_end(&mut bytes).map_err(io)?;
        Ok(Some(bytes))
    }

    /// Replaces a file as a whole: whoever reads it sees the old one or the new one.
    pub fn replace(&self, name: &str, bytes: &[u8], now: Timestamp) -> Result<(), FilesError> {
        self.remove_stale(name, now);
        let path = self.path.join(name);
        let temporary = self
            .path
            .join(format!("{name}{TEMPORARY}{}", process::id()));
        // A process of this id that was killed may have left one.
        let _ = fs::remove_file(&temporary);
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(FILE_MODE)
                .open(&temporary)?;
            file.write_all(bytes)?;
            fs::rename(&temporary, &path)
        };
        write().map_err(|error| {
            let _ = fs::remove_file(&temporary);
            io_error(&path, error)
        })
    }

    /// Locks the folder, or returns `None` if another process has the lock.
    pub fn try_lock(&self, name: &str) -> Result<Option<Lock>, FilesError> {
        let file = self.open_lock(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(io_error(&self.path.join(name), error)),
        }
    }

    /// Locks the folder, or returns `None` if another process has the lock for `limit`. The kernel
    /// releases the lock of a process that dies.
    pub fn lock(&self, name: &str, limit: Duration) -> Result<Option<Lock>, FilesError> {
        let lock = self.try_lock(name)?;
        if lock.is_some() || limit.is_zero() {
            return Ok(lock);
        }
        let file = self.open_lock(name)?;
        let (sender, locked) = mpsc::channel();
        thread::spawn(move || {
            // Nobody waits any longer if it took too long.
            let _ = sender.send(file.lock().is_ok().then_some(Lock(file)));
        });
        Ok(locked.recv_timeout(limit).ok().flatten())
    }

    /// Returns the error of a lock that another process has had for too long.
    #[must_use]
    pub fn is_locked(&self, name: &str) -> FilesError {
        let path = self.path.join(name);
        FilesError::Locked { path }
    }

    fn open_lock(&self, name: &str) -> Result<File, FilesError> {
        let path = self.path.join(name);
        let io = |error| io_error(&path, error);
        match fs::symlink_metadata(&path) {
            Ok(named) if !named.is_file() => {
                return Err(unsafe_file(&path, "is no regular file"));
            }
            _ => {}
        }
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(&path)
            .map_err(io)?;
        check_owner(&path, &file.metadata().map_err(io)?, self.owner)?;
        Ok(file)
    }

    /// Removes the files that are older than `limit` says for their names; it says `None` for those
    /// of others. What can't be removed stays: another process may have been faster.
    pub fn remove_older(&self, now: Timestamp, limit: impl Fn(&str) -> Option<Duration>) {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        for entry in entries {
            let limit = entry.file_name().to_str().and_then(&limit);
            let modified = || Timestamp::try_from(entry.metadata().ok()?.modified().ok()?).ok();
            let is_older = |limit: Duration| {
                let age = modified().map(|at| Duration::try_from(now.duration_since(at)));
                age.is_some_and(|age| age.is_ok_and(|age| age > limit))
            };
            if limit.is_some_and(is_older) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Removes the temporary files of processes that were killed.
    fn remove_stale(&self, name: &str, now: Timestamp) {
        self.remove_older(now, |found| {
            is_temporary_of(found, |of| of == name).then_some(STALE)
        });
    }
}

/// Returns whether a file is a temporary one, of a file whose name fits.
pub(super) fn is_temporary_of(found: &str, fits: impl FnOnce(&str) -> bool) -> bool {
    found.split_once(TEMPORARY).is_some_and(|(of, _)| fits(of))
}

fn check_owner(path: &Path, metadata: &fs::Metadata, owner: u32) -> Result<(), FilesError> {
    if metadata.uid() != owner {
        let why = format!(
            "belongs to user {}, and this is user {owner}",
            metadata.uid()
        );
        return Err(unsafe_file(path, why));
    }
    if metadata.mode() & OTHERS_WRITE != 0 {
        return Err(unsafe_file(path, "can be written by others: chmod go-w"));
    }
    Ok(())
}

fn io_error(path: &Path, error: io::Error) -> FilesError {
    FilesError::Io {
        path: path.to_owned(),
        error,
    }
}

fn unsafe_file(path: &Path, why: impl Into<String>) -> FilesError {
    FilesError::Unsafe {
        path: path.to_owned(),
        why: why.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn folder() -> (tempfile::TempDir, Folder) {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = Folder::open(&parent.path().join("a/b")).expect("a folder");
        (parent, folder)
    }

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).expect("metadata").mode() & 0o777
    }

    #[test]
    fn files_are_of_this_user_alone() {
        let (_parent, folder) = folder();
        assert_eq!(mode(&folder.path), FOLDER_MODE);
        assert!(matches!(folder.read("x", 9), Ok(None)));
        for bytes in [b"one", b"two"] {
            folder.replace("x", bytes, NOW).expect("written");
            let read = folder.read("x", 9).expect("readable").expect("a file");
            assert_eq!(**read, *bytes);
        }
        assert_eq!(mode(&folder.path.join("x")), FILE_MODE);
        assert_eq!(fs::read_dir(&folder.path).expect("a folder").count(), 1);
    }

    #[test]
    fn what_others_can_write_is_not_used() {
        let (_parent, folder) = folder();
        folder.replace("x", b"one", NOW).expect("written");
        let path = folder.path.join("x");
        for mode in [0o620, 0o602, 0o666] {
            set_mode(&path, mode);
            let error = folder.read("x", 9).expect_err("unsafe").to_string();
            assert!(error.contains("chmod go-w"), "{error}");
        }
        set_mode(&folder.path, 0o777);
        assert!(Folder::open(&folder.path).is_err());
        let other = Folder {
            owner: folder.owner + 1,
            path: folder.path.clone(),
        };
        set_mode(&path, 0o600);
        let error = other.read("x", 9).expect_err("unsafe").to_string();
        assert!(error.contains("belongs to user"), "{error}");
    }

    #[test]
    fn links_and_large_files_are_not_read() {
        let (parent, folder) = folder();
        fs::write(parent.path().join("target"), "x").expect("written");
        symlink(parent.path().join("target"), folder.path.join("x")).expect("a link");
        assert!(folder.read("x", 9).is_err());
        assert!(folder.try_lock("x").is_err());
        folder.replace("x", b"1234567890", NOW).expect("written");
        assert!(folder.read("x", 9).is_err());
        assert!(folder.read("x", 10).is_ok());
        let target = fs::read_to_string(parent.path().join("target"));
        assert_eq!(target.expect("a file"), "x");
    }

    #[test]
    fn lock_is_had_by_one() {
        let (_parent, folder) = folder();
        let lock = folder.try_lock("lock").expect("a lock");
        assert!(lock.is_some());
        assert!(folder.try_lock("lock").expect("no error").is_none());
        drop(lock);
        assert!(folder.try_lock("lock").expect("no error").is_some());
    }

    #[test]
    fn lock_is_waited_for_until_the_limit() {
        let (_parent, folder) = folder();
        let lock = folder.try_lock("lock").expect("a lock");
        let limit = Duration::from_millis(20);
        assert!(folder.lock("lock", limit).expect("no error").is_none());
        let waiting = Folder::open(&folder.path).expect("a folder");
        let waiting = thread::spawn(move || waiting.lock("lock", Duration::from_mins(1)));
        drop(lock);
        let locked = waiting.join().expect("no panic");
        assert!(locked.expect("no error").is_some());
    }

    #[test]
    fn folder_by_a_link_is_one_only_where_links_are_followed() {
        let (parent, folder) = folder();
        let link = parent.path().join("link");
        symlink(&folder.path, &link).expect("a link");
        assert!(Folder::open(&link).is_ok());
        let error = Folder::open_unlinked(&link)
            .expect_err("a link")
            .to_string();
        assert!(error.ends_with("is a link"), "{error}");
        assert!(Folder::open_unlinked(&folder.path).is_ok());
    }

    #[test]
    fn only_stale_temporary_files_are_removed() {
        let (_parent, folder) = folder();
        for name in ["x.tmp-1", "y.tmp-1", "x"] {
            fs::write(folder.path.join(name), "").expect("written");
        }
        let modified = fs::metadata(folder.path.join("x.tmp-1")).and_then(|file| file.modified());
        let modified = Timestamp::try_from(modified.expect("a time")).expect("a time");
        let count = || fs::read_dir(&folder.path).expect("a folder").count();
        folder.remove_stale("x", modified);
        assert_eq!(count(), 3);
        folder.remove_stale("x", modified + STALE + Duration::from_secs(1));
        assert_eq!(count(), 2);
        assert!(!folder.path.join("x.tmp-1").exists());
    }

    #[test]
    fn folder_is_not_made_to_be_read() {
        let parent = tempfile::tempdir().expect("a folder");
        let path = parent.path().join("absent");
        assert!(matches!(Folder::existing(&path), Ok(None)));
        assert!(!path.exists());
        fs::write(&path, "").expect("written");
        assert!(Folder::existing(&path).is_err());
        assert!(Folder::open(&path.join("inside")).is_err());
    }
}
