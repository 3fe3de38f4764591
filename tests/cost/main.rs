//! What one warm admission costs, in numbers that are the same on a busy machine: allocations, and instructions as
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

/// So many admissions a child answers.
const ADMISSIONS: &str = "ECR_INJECTOR_TEST_ADMISSIONS";
const POD_BYTES: usize = 8 * 1024;

/// Instructions of an admission. Change it together with what changes it.
const INSTRUCTIONS: f64 = 0.0;
/// Allocations of an admission, and their bytes.
const ALLOCATIONS: (u64, u64) = (0, 0);
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
    let counted = admit(1);
    let (count, bytes) = ALLOCATIONS;
    println!(
        "{} allocations, {} bytes",
        counted.count_total, counted.bytes_total
    );
    near(counted.count_total as f64, count as f64, "allocations");
    near(counted.bytes_total as f64, bytes as f64, "bytes");
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

/// Answers reviews after a first one, which makes the pull secret. Returns the allocations of the last.
fn admit(count: usize) -> AllocationInfo {
    let writer = LogWriter::start(io::sink()).unwrap();
    let _ = log::start(Format::Json, "info", writer);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let webhook = runtime.block_on(async { InProcess::new() });
    let body = reviews::of_a_pod(NAMESPACE, POD_BYTES);
    let request = wire::post("/mutate?timeout=10s", &body);
    let mut stream = runtime.block_on(async { webhook.connect(None) });
    // The first ones have warnings or other headers; their answers are as long as all others.
    let mut buffer = vec![0; 64 * 1024];
    let length = runtime.block_on(async {
        let mut length = 0;
        for _ in 0..4 {
            stream.write_all(&request).await.unwrap();
            let s = std::time::Instant::now();
            length = stream.read(&mut buffer).await.unwrap();
            println!(
                "{:?} {}",
                s.elapsed(),
                String::from_utf8_lossy(&buffer[..length])
            );
        }
        length
    });
    let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
    assert!(answer.contains("\"patchType\":\"JSONPatch\""), "{answer}");
    let mut one = || {
        runtime.block_on(exchange(&mut stream, &request, &mut buffer[..length]));
    };
    for _ in 1..count {
        one();
    }
    let counted = allocation_counter::measure(one);
    assert_eq!(&buffer[..length], answer.as_bytes());
    counted
}

async fn exchange(stream: &mut DuplexStream, request: &[u8], answer: &mut [u8]) {
    stream.write_all(request).await.unwrap();
    stream.read_exact(answer).await.unwrap();
}
