//! Tests that load or measure the machine, or a process of it, so that others beside them would falsify the figures.
//!
//! Each has the machine to itself ([`alone`]); those of `process` share it among themselves. The binary is one of its own
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

mod leader;
mod load;
mod memory;
mod process;
mod soak;

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

static MACHINE: RwLock<()> = RwLock::const_new(());

/// Waits until no other test of this binary runs.
async fn alone() -> RwLockWriteGuard<'static, ()> {
    MACHINE.write().await
}

/// Waits until no test of this binary runs that has to be alone.
async fn beside_others() -> RwLockReadGuard<'static, ()> {
    MACHINE.read().await
}

/// [`alone`], for a test without a runtime.
fn alone_in_a_thread() -> RwLockWriteGuard<'static, ()> {
    MACHINE.blocking_write()
}
