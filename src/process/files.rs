//! Reads files within a time: a volume that hangs (NFS, a FUSE driver, a stuck node) stops the
//! thread that reads from it, for ever and without an error.

use std::{
    collections::BTreeSet,
    env,
    fs::File,
    io::{self, ErrorKind, Read as _},
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        mpsc::{RecvTimeoutError, sync_channel},
    },
    thread,
    time::Duration,
};

use tokio::task::spawn_blocking;

/// How long a file may take to be read.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
/// The largest file: the bundle of a whole operating system has 300 KB.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

/// The files whose read hangs. They are not read again until it ends: each read would keep a
/// thread.
static HUNG: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// Reads a file of at most 4 MiB, within five seconds. The caller waits, so a task goes by
/// `off_the_workers`.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    read_within(path, TIMEOUT)
}

/// Returns the flag, or the variable in its place, that a file was named by: errors about the file
/// begin with it.
pub(crate) fn named_by(
    flag: &'static str,
    variable: &'static str,
    path: Option<&Path>,
) -> &'static str {
    let is_variable =
        path.is_some() && env::var_os(variable).as_deref() == path.map(Path::as_os_str);
    if is_variable { variable } else { flag }
}

/// Runs a function that reads files on a thread where it may wait.
pub(crate) async fn off_the_workers<T: Send + 'static>(
    read: impl FnOnce() -> T + Send + 'static,
) -> T {
    match spawn_blocking(read).await {
        Ok(read) => read,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // The runtime ends, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}

fn read_within(path: &Path, timeout: Duration) -> io::Result<Vec<u8>> {
    if hung().contains(path) {
        return Err(hangs());
    }
    let (sender, receiver) = sync_channel(1);
    let reader = path.to_owned();
    thread::Builder::new()
        .name("file".to_owned())
        .spawn(move || {
            // Nobody receives what comes too late.
            let _ = sender.send(read_all(&reader));
            hung().remove(&reader);
        })?;
    match receiver.recv_timeout(timeout) {
        Ok(read) => return read,
        Err(RecvTimeoutError::Timeout) => {}
        Err(RecvTimeoutError::Disconnected) => {
            return Err(io::Error::other("the thread that reads it ended"));
        }
    }
    let mut hung = hung();
    // It may have been read just now; otherwise the reader removes the path.
    receiver.try_recv().unwrap_or_else(|_| {
        hung.insert(path.to_owned());
        Err(hangs())
    })
}

fn read_all(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    let size = file.metadata()?.len().min(MAX_BYTES);
    // With its final capacity from the start: one that grows leaves copies of keys behind.
    let mut bytes = Vec::with_capacity(usize::try_from(size + 1).unwrap_or_default());
    let read = file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if read as u64 > MAX_BYTES {
        let text = format!("it has more than {} MiB", MAX_BYTES >> 20);
        return Err(io::Error::new(ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// Returns the error of a read that takes too long, which has one text so that it is logged once.
fn hangs() -> io::Error {
    let text = format!(
        "it could not be read within {} s; does its volume hang?",
        TIMEOUT.as_secs()
    );
    io::Error::new(ErrorKind::TimedOut, text)
}

fn hung() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    HUNG.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command, time::Instant};

    use super::*;

    #[test]
    fn hung_file_is_an_error_and_read_again_once_it_is_there() {
        let folder = tempfile::tempdir().expect("a folder");
        let pipe = folder.path().join("config.yaml");
        let made = Command::new("mkfifo").arg(&pipe).status();
        assert!(made.expect("the command mkfifo").success());
        let started = Instant::now();
        let soon = Duration::from_millis(50);
        let error = read_within(&pipe, soon).expect_err("nobody writes");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(started.elapsed() >= soon);
        // No thread more for each poll, and no wait: with the long timeout, too.
        let error = read(&pipe).expect_err("it still hangs");
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert!(started.elapsed() < TIMEOUT);
        // Ends the read that hangs.
        fs::write(&pipe, "late").expect("written");
        while hung().contains(&pipe) {
            thread::yield_now();
        }
        fs::remove_file(&pipe).expect("removed");
        fs::write(&pipe, "here").expect("written");
        assert_eq!(read(&pipe).expect("read"), b"here");
    }

    #[test]
    fn missing_and_endless_files_are_errors() {
        let missing = read(Path::new("/nowhere")).expect_err("missing");
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        let endless = read(Path::new("/dev/zero")).expect_err("endless");
        assert_eq!(endless.kind(), ErrorKind::FileTooLarge);
    }
}
