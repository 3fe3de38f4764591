//! The asynchronous runtime of a command.

use anyhow::Context as _;
use tokio::runtime::Runtime;

/// Starts the threads.
pub(super) fn start() -> anyhow::Result<Runtime> {
    Runtime::new().context("starting threads")
}

/// Runs a future to its end, and does not wait for blocking calls whose result nobody needs any
/// more.
pub(super) fn run<T>(work: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = start()?;
    let result = runtime.block_on(work);
    runtime.shutdown_background();
    Ok(result)
}
