//! The asynchronous runtime of a command.

use std::{num::NonZero, thread::available_parallelism};

use anyhow::Context as _;
use tokio::runtime::{Builder, Runtime};

/// The most threads that run tasks. Each has memory of its own, whatever the node has, and four
/// answer more admissions than an API server sends.
const MAX_THREADS: usize = 4;

/// Starts the threads.
pub(super) fn start() -> anyhow::Result<Runtime> {
    let threads = available_parallelism().map_or(1, NonZero::get);
    let runtime = Builder::new_multi_thread()
        .worker_threads(threads.min(MAX_THREADS))
        .enable_all()
        .build();
    runtime.context("starting threads")
}

/// Runs a future to its end, and does not wait for blocking calls whose result nobody needs any
/// more.
pub(super) fn run<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = start()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    Ok(result)
}
