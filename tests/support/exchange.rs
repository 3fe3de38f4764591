//! Reviews and answers on one connection in memory, both ends on one thread: so that instructions and allocations can be
//! counted, which are the same on a busy machine.

use std::io;

use ecr_injector::telemetry::log::{self, Format, writer::LogWriter};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::runtime::{Builder, Runtime};

use super::in_process::{InProcess, NAMESPACE};
use super::{reviews, wire};

/// A connection to a server of admissions.
pub struct Exchange {
    runtime: Runtime,
    _webhook: Option<InProcess>,
    stream: DuplexStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Exchange {
    /// With the webhook and its default log, whose pull secret is there.
    pub fn with_webhook(pod_bytes: usize) -> Self {
        let writer = LogWriter::start(io::sink()).unwrap();
        let _ = log::start(Format::Json, "info", writer);
        let runtime = runtime();
        let (webhook, stream) = runtime.block_on(async {
            let webhook = InProcess::new();
            let stream = webhook.connect(None);
            (webhook, stream)
        });
        let mut exchange = Self::new(runtime, Some(webhook), stream, pod_bytes);
        // With a warning as long as the pull secret isn't there, which takes its time on a busy machine.
        while exchange.patched_answer().contains(r#""warnings""#) {}
        exchange
    }

    /// With another server, which gets its end of the connection on the runtime of both.
    pub fn with_server(serve: impl FnOnce(DuplexStream), pod_bytes: usize) -> Self {
        let runtime = runtime();
        let (ours, stream) = tokio::io::duplex(64 * 1024);
        runtime.block_on(async { serve(ours) });
        Self::new(runtime, None, stream, pod_bytes)
    }

    fn new(
        runtime: Runtime,
        webhook: Option<InProcess>,
        stream: DuplexStream,
        pod_bytes: usize,
    ) -> Self {
        let body = reviews::of_a_pod(NAMESPACE, pod_bytes);
        Self {
            runtime,
            _webhook: webhook,
            stream,
            request: wire::post("/mutate?timeout=10s", body),
            buffer: vec![0; 64 * 1024],
        }
    }

    /// Sends the request and reads the answer, and allocates nothing.
    pub fn once(&mut self) -> &[u8] {
        let buffer = &mut self.buffer;
        let length = self.runtime.block_on(async {
            self.stream.write_all(&self.request).await.unwrap();
            let mut length = 0;
            while !buffer[..length].ends_with(b"}}") {
                length += self.stream.read(&mut buffer[length..]).await.unwrap();
            }
            length
        });
        &self.buffer[..length]
    }

    /// Sends the request, and returns the answer, which has to be a patch.
    pub fn patched_answer(&mut self) -> String {
        let answer = String::from_utf8_lossy(self.once()).into_owned();
        assert!(answer.contains(r#""patchType":"JSONPatch""#), "{answer}");
        answer
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs this program with these arguments and environment under valgrind, and returns the instructions that it took.
///
/// # Panics
///
/// Panics if the program fails, or there is no valgrind.
pub fn instructions_of_a_child(arguments: &[&str], environment: &[(&str, &str)]) -> f64 {
    let output = std::process::Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(std::env::current_exe().unwrap())
        .args(arguments)
        .envs(environment.iter().copied())
        .output()
        .expect("valgrind is needed: apt-get install valgrind");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let (_, after) = text.split_once("Collected : ").unwrap();
    after.split_whitespace().next().unwrap().parse().unwrap()
}
