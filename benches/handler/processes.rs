//! A server under measurement, and what the kernel knows of its process.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use crate::support::proc;

/// The core of the servers. One that has a core for itself, and more to do than it can, is compared
/// by its work alone: it never sleeps between two requests, and is not slowed down by its client.
const SERVERS_CORE: usize = 0;
/// The core of all else: the load, and those that read logs.
pub const CLIENTS_CORE: usize = 1;
const START_LIMIT: Duration = Duration::from_secs(20);

/// A running server; it is killed when dropped.
pub struct Server {
    pub name: &'static str,
    pub address: SocketAddr,
    /// Where it admits Pods.
    pub path: &'static str,
    /// From the start of the process to the first connection, at most 2 ms more than that.
    pub started: Duration,
    admin: Option<SocketAddr>,
    child: Child,
}

impl Server {
    /// Starts it and waits until it listens. Its standard output is a pipe that is read and forgotten, as a container
    /// runtime reads it.
    pub fn start(
        name: &'static str,
        program: &Path,
        arguments: &[String],
        environment: Vec<(String, String)>,
        address: SocketAddr,
    ) -> Self {
        let begin = Instant::now();
        // A child has the affinity of the thread that starts it.
        run_on(SERVERS_CORE);
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        run_on(CLIENTS_CORE);
        let mut child = child.unwrap();
        let mut log = child.stdout.take().unwrap();
        thread::spawn(move || {
            let mut buffer = vec![0; 64 * 1024];
            while log.read(&mut buffer).is_ok_and(|read| read > 0) {}
        });
        let mut server = Self {
            name,
            address,
            path: "/mutate",
            started: Duration::ZERO,
            admin: None,
            child,
        };
        wait(name, || TcpStream::connect(address).is_ok());
        server.started = begin.elapsed();
        server
    }

    pub fn with_path(mut self, path: &'static str) -> Self {
        self.path = path;
        self
    }

    /// Waits until it is ready, as its admin listener says.
    pub fn with_admin(mut self, admin: SocketAddr) -> Self {
        self.admin = Some(admin);
        wait(self.name, || {
            self.get("/readyz").split(' ').nth(1) == Some("200")
        });
        self
    }

    /// Returns the server's metrics, if the server has an admin listener.
    pub fn metrics(&self) -> Option<String> {
        self.admin?;
        let response = self.get("/metrics");
        let (_, body) = response.split_once("\r\n\r\n").unwrap();
        Some(body.to_owned())
    }

    /// User and system time of all its threads so far.
    pub fn cpu_time(&self) -> Duration {
        proc::cpu_time(self.child.id())
    }

    /// A line of `/proc/<pid>/status`.
    pub fn mebibytes(&self, field: &str) -> f64 {
        proc::mebibytes(self.child.id(), field)
    }

    fn get(&self, path: &str) -> String {
        let mut response = String::new();
        // Not there yet is no answer.
        if let Some(Ok(mut connection)) = self.admin.map(TcpStream::connect) {
            let request = format!("GET {path} HTTP/1.0\r\n\r\n");
            let _ = connection.write_all(request.as_bytes());
            let _ = connection.read_to_string(&mut response);
        }
        response
    }
}

/// Binds this thread, and the processes that it starts from now on, to a core.
pub fn run_on(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).expect("two cores are needed");
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error says that it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn wait(name: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + START_LIMIT;
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "{name} isn't up after {START_LIMIT:?}"
        );
        thread::sleep(Duration::from_millis(2));
    }
}
