//! Counts what one warm admission costs, in numbers that are the same on a busy machine: allocations, and instructions as
//! valgrind counts them (`make cost`).
//!
//! A child of this binary answers reviews of a Pod of 8 KB on one connection in memory, with the default log. The figures
//! are those of the profile of tests: they show that something became more, not how fast the webhook is, which
//! `make bench` measures.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test that can't go on panics, reads the clock itself and shows its figures"
)]

#[path = "../support/mod.rs"]
mod support;

use std::env;
use std::io;
use std::process::Command;

use allocation_counter::AllocationInfo;
use ecr_injector::telemetry::log::{self, Format, writer::LogWriter};
use support::in_process::{InProcess, NAMESPACE};
use support::{reviews, wire};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::runtime::{Builder, Runtime};

/// So many admissions a child answers.
const ADMISSIONS: &str = "ECR_INJECTOR_TEST_ADMISSIONS";
const POD_BYTES: usize = 8 * 1024;

/// Instructions of an admission. Change it together with what changes it.
const INSTRUCTIONS: f64 = 2_400_000.0;
/// Allocations of an admission, and their bytes.
const ALLOCATIONS: (f64, f64) = (43.1, 31_800.0);
/// So many admissions are counted together.
const MEASURED: u32 = 100;
/// How far a figure may be from the recorded one: the places of a hash table differ from process to process.
const TOLERANCE: f64 = 0.05;

#[test]
fn warm_admission_takes_no_more_instructions_than_recorded() {
    let few = instructions_of_a_child(100);
    let many = instructions_of_a_child(400);
    let each = (many - few) / 300.0;
    println!("{each:.0} instructions");
    near(each, INSTRUCTIONS, "instructions");
}

#[test]
fn warm_admission_allocates_no_more_than_recorded() {
    let counted = admit(100);
    let each = |total: u64| f64::from(u32::try_from(total).unwrap()) / f64::from(MEASURED);
    let (count, bytes) = (each(counted.count_total), each(counted.bytes_total));
    println!("{count} allocations, {bytes} bytes");
    near(count, ALLOCATIONS.0, "allocations");
    near(bytes, ALLOCATIONS.1, "bytes");
}

/// The child. On its own it answers one review.
#[test]
fn warm_admissions_of_a_child() {
    let count = env::var(ADMISSIONS).map_or(1, |text| text.parse().unwrap());
    admit(count);
}

fn near(figure: f64, recorded: f64, what: &str) {
    let ratio = figure / recorded;
    assert!(
        (1.0 - TOLERANCE..=1.0 + TOLERANCE).contains(&ratio),
        "{figure:.0} {what}, recorded are {recorded:.0}"
    );
}

fn instructions_of_a_child(admissions: usize) -> f64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe().unwrap())
        .args(["--exact", "warm_admissions_of_a_child"])
        .env(ADMISSIONS, admissions.to_string())
        .output()
        .expect("valgrind is needed: apt-get install valgrind");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let (_, after) = text.split_once("Collected : ").unwrap();
    after.split_whitespace().next().unwrap().parse().unwrap()
}

/// Answers reviews of a namespace whose pull secret is there, and [`MEASURED`] more, whose allocations it returns.
fn admit(count: usize) -> AllocationInfo {
    let writer = LogWriter::start(io::sink()).unwrap();
    let _ = log::start(Format::Json, "info", writer);
    let mut client = Client::connect();
    // With a warning as long as the pull secret isn't there, which takes its time on a busy machine.
    while client.patched_answer().contains(r#""warnings""#) {}
    for _ in 1..count {
        client.exchange();
    }
    let counted = allocation_counter::measure(|| {
        for _ in 0..MEASURED {
            client.exchange();
        }
    });
    client.patched_answer();
    counted
}

/// A connection to a webhook, both on this thread.
struct Client {
    runtime: Runtime,
    _webhook: InProcess,
    stream: DuplexStream,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

impl Client {
    fn connect() -> Self {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let (webhook, stream) = runtime.block_on(async {
            let webhook = InProcess::new();
            let stream = webhook.connect(None);
            (webhook, stream)
        });
        let body = reviews::of_a_pod(NAMESPACE, POD_BYTES);
        Self {
            runtime,
            _webhook: webhook,
            stream,
            request: wire::post("/mutate?timeout=10s", body),
            buffer: vec![0; 64 * 1024],
        }
    }

    /// Sends the request and reads the answer, and allocates nothing.
    fn exchange(&mut self) -> &[u8] {
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

    fn patched_answer(&mut self) -> String {
        let answer = String::from_utf8_lossy(self.exchange()).into_owned();
        assert!(answer.contains(r#""patchType":"JSONPatch""#), "{answer}");
        answer
    }
}
