//! Child processes that can't outlive the test process, however it ends.
//!
//! A `static` is never dropped, a test can abort and a person can press Ctrl-C, so `Drop` alone would leave API servers
//! behind. Each child therefore starts as a small shell that leaves a watcher and then becomes the program (`exec`, so the
//! process id and the exit status are the program's own). The watcher reads from a pipe that only the test process holds:
//! when that ends without a word, the watcher kills the program.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const BECOME_THE_PROGRAM: &str = r#"
exec 3<&0 </dev/null
{ trap '' INT TERM HUP; read -r released <&3 || kill -KILL $$; } >/dev/null 2>&1 &
exec "$@" 3<&-
"#;

/// Soon every watcher has killed its program, and nobody writes to the folder any more: the last attempt finds nothing.
const REMOVE_THE_FOLDER: &str = r#"
trap '' INT TERM HUP
read -r removed && exit
for attempt in 1 2 3; do
  sleep 0.3
  rm -rf "$1"
done
"#;

/// A running program whose output goes to a file.
pub struct GuardedChild {
    name: String,
    child: Child,
    watcher: Option<ChildStdin>,
    log: PathBuf,
}

impl GuardedChild {
    /// Starts `program`. Without `environment` it inherits ours; with it, it has exactly that.
    pub fn spawn<A: AsRef<OsStr>>(
        program: &Path,
        arguments: impl IntoIterator<Item = A>,
        environment: Option<&[(String, String)]>,
        log: PathBuf,
    ) -> Self {
        let name = program.file_name().unwrap().to_string_lossy().into_owned();
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut command = Command::new("sh");
        if let Some(environment) = environment {
            command.env_clear().envs(environment.iter().cloned());
        }
        let mut child = command
            .args(["-c", BECOME_THE_PROGRAM, "sh"])
            .arg(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("starting {name}: {error}"));
        let watcher = child.stdin.take();
        Self {
            name,
            child,
            watcher,
            log,
        }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The end of its output, for the message of a test that fails because of it.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        let tail = &lines[lines.len().saturating_sub(30)..];
        format!("--- the end of {}'s output\n{}", self.name, tail.join("\n"))
    }

    /// Panics with the program's last words if it has ended.
    pub fn assert_running(&mut self) {
        if let Some(status) = self.exited() {
            panic!("{} ended: {status}\n{}", self.name, self.log_tail());
        }
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().unwrap()?;
        self.release();
        Some(status)
    }

    /// Sends a signal by its name: `TERM`, `STOP`, `CONT`.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("sh")
            .args([
                "-c",
                r#"kill -"$1" "$2""#,
                "sh",
                signal,
                &self.id().to_string(),
            ])
            .status()
            .unwrap();
        assert!(sent.success(), "sending {signal} to {}", self.name);
    }

    /// Waits until it has ended, at most `limit`.
    pub async fn ended(&mut self, limit: Duration) -> ExitStatus {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "{} still runs after {limit:?}\n{}",
                self.name,
                self.log_tail()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        // An error says that it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.release();
    }

    /// Closes the watcher's pipe, as the end of the test process does.
    pub fn lose(&mut self) {
        self.watcher = None;
    }

    /// Informs the watcher that nothing is left to kill: by now the process id may be another
    /// program's.
    fn release(&mut self) {
        if let Some(mut watcher) = self.watcher.take() {
            let _ = watcher.write_all(b"released\n");
        }
    }
}

impl Drop for GuardedChild {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A temporary folder. It goes when this is dropped, or else after the test process, when the programs that write to it
/// have ended.
pub struct GuardedFolder {
    path: PathBuf,
    janitor: Child,
}

impl GuardedFolder {
    pub fn create() -> Self {
        let path = TempDir::with_prefix("ecr-injector-test-").unwrap().keep();
        let janitor = Command::new("sh")
            .args(["-c", REMOVE_THE_FOLDER, "sh"])
            .arg(&path)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { path, janitor }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for GuardedFolder {
    fn drop(&mut self) {
        // What can't be removed here, the janitor tries again.
        if std::fs::remove_dir_all(&self.path).is_ok()
            && let Some(mut janitor) = self.janitor.stdin.take()
        {
            let _ = janitor.write_all(b"removed\n");
        }
        let _ = self.janitor.wait();
    }
}

/// Copies a program, so that it can be run at once: a copy by this process may still be open for writing in a child that
/// another thread starts meanwhile, and then the kernel says "text file busy".
pub fn copy_program(from: impl AsRef<Path>, to: impl AsRef<Path>) {
    let copied = Command::new("cp")
        .args([from.as_ref(), to.as_ref()])
        .status();
    assert!(copied.unwrap().success());
}
