//! A test's own machine: the test starts itself again within namespaces of its own, where a kubelet
//! can do as it likes and nothing outlives the test.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use crate::support::child::{GuardedChild, GuardedFolder};
use crate::support::eventually;

/// Set for the test inside.
const INSIDE: &str = "ECR_INJECTOR_KUBELET_LAB";
const LIMIT: Duration = Duration::from_mins(9);
const END_LIMIT: Duration = Duration::from_secs(20);
/// Two machines at once would only be slower.
static ONE: Mutex<()> = Mutex::new(());
/// Settings of the kernel that a kubelet changes.
const SYSCTLS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];

/// Runs a test on a machine of its own, one such test at a time.
pub(crate) fn isolated(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    if is_inside() {
        return runtime.block_on(test());
    }
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let name = thread::current()
        .name()
        .expect("the test's name")
        .to_owned();
    runtime.block_on(start_again(&name));
}

pub(crate) fn is_inside() -> bool {
    env::var_os(INSIDE).is_some()
}

async fn start_again(name: &str) {
    let sysctls = sysctls();
    let arguments = ["--exact", name, "--nocapture", "--test-threads=1"];
    let machine = Machine::start(&env::current_exe().unwrap(), &arguments);
    let (status, log) = machine.end().await;
    println!("{log}");
    assert!(status.success(), "{name}: {status}");
    assert_eq!(sysctls, self::sysctls(), "the kernel's settings");
}

/// Namespaces with a command in them.
pub(crate) struct Machine {
    // In this order: the folder goes last.
    process: GuardedChild,
    folder: GuardedFolder,
}

/// A process of a machine, as the outside sees it.
#[derive(Debug)]
pub(crate) struct Inmate {
    path: PathBuf,
    pub(crate) command_line: String,
}

impl Inmate {
    pub(crate) fn runs(&self) -> bool {
        command_line(&self.path) == self.command_line
    }
}

impl Machine {
    pub(crate) fn start(program: &Path, arguments: &[&str]) -> Self {
        let folder = GuardedFolder::create();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kubelet/namespace.sh");
        let mut command = vec![folder.path().as_os_str(), program.as_os_str()];
        command.extend(arguments.iter().map(OsStr::new));
        let mut environment: Vec<_> = env::vars().collect();
        environment.push((INSIDE.to_owned(), file_name(folder.path())));
        let log = folder.path().join("log");
        let process = GuardedChild::spawn(&script, command, Some(&environment), log);
        Self { process, folder }
    }

    /// Waits for its end, and returns what it said.
    async fn end(mut self) -> (ExitStatus, String) {
        let status = self.process.ended(LIMIT).await;
        self.leaves_no_cgroup().await;
        (status, self.process.log())
    }

    /// Ends it the way in which it ends when the test process is killed.
    pub(crate) async fn lose(mut self) {
        self.process.lose();
        self.process.ended(END_LIMIT).await;
        self.leaves_no_cgroup().await;
    }

    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Returns the processes of the machine, containers included.
    pub(crate) fn processes(&self) -> Vec<Inmate> {
        let parents: Vec<_> = processes()
            .filter_map(|path| Some((parent(&path)?, path)))
            .collect();
        let mut inmates = Vec::new();
        let mut families = vec![self.process.id().to_string()];
        while let Some(family) = families.pop() {
            for (_, path) in parents.iter().filter(|(parent, _)| *parent == family) {
                families.push(file_name(path));
                inmates.push(Inmate {
                    path: path.clone(),
                    command_line: command_line(path),
                });
            }
        }
        inmates
    }

    async fn leaves_no_cgroup(&self) {
        let name = file_name(self.folder.path());
        eventually("the cgroups are gone", END_LIMIT, async || {
            let find = ["/sys/fs/cgroup", "-type", "d", "-name", &name];
            let found = Command::new("find").args(find).output().unwrap();
            found.stdout.is_empty().then_some(())
        })
        .await;
    }
}

/// Returns the folders of processes.
pub(crate) fn processes() -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries.map(|entry| entry.path()).filter(|path| {
        let name = file_name(path);
        name.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Returns the arguments of a process, with blanks between them; nothing if it has ended.
pub(crate) fn command_line(process: &Path) -> String {
    let bytes = fs::read(process.join("cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
    text.trim_end().to_owned()
}

fn parent(process: &Path) -> Option<String> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    Some(line.trim().to_owned())
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn sysctls() -> Vec<String> {
    let read = |name: &&str| fs::read_to_string(Path::new("/proc/sys").join(name)).unwrap();
    SYSCTLS.iter().map(read).collect()
}
