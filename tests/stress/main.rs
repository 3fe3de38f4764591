//! Tests that load or measure the machine, or a process of it, so that others beside them would falsify the figures.
//!
//! Each has the machine to itself ([`alone`]); those of `process` run two at a time. The binary is one of its own
//! because Cargo runs test binaries one after the other, and because `memory` has the allocator of its process count.
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

mod flood;
mod leader;
mod load;
mod memory;
mod process;
mod soak;

use tokio::sync::{Semaphore, SemaphorePermit};

/// How many tests of `process` run at a time.
const SIDE_BY_SIDE: u32 = 2;

static MACHINE: Semaphore = Semaphore::const_new(SIDE_BY_SIDE as usize);

/// Waits until no other test of this binary runs.
async fn alone() -> SemaphorePermit<'static> {
    MACHINE.acquire_many(SIDE_BY_SIDE).await.unwrap()
}

/// Waits until no test of this binary runs that has to be alone, and at most one other.
async fn beside_another() -> SemaphorePermit<'static> {
    MACHINE.acquire().await.unwrap()
}

/// [`alone`], for a test without a runtime.
fn alone_in_a_thread() -> SemaphorePermit<'static> {
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    runtime.unwrap().block_on(alone())
}
