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

use allocation_counter::AllocationInfo;
use support::exchange::{self, Exchange};

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
    let count = admissions.to_string();
    exchange::instructions_of_a_child(
        &["--exact", "warm_admissions_of_a_child"],
        &[(ADMISSIONS, count.as_str())],
    )
}

/// Answers reviews of a namespace whose pull secret is there, and [`MEASURED`] more, whose allocations it returns.
fn admit(count: usize) -> AllocationInfo {
    let mut exchange = Exchange::with_webhook(POD_BYTES);
    for _ in 1..count {
        exchange.once();
    }
    let counted = allocation_counter::measure(|| {
        for _ in 0..MEASURED {
            exchange.once();
        }
    });
    exchange.patched_answer();
    counted
}
