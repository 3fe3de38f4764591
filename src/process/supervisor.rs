//! Supervises the background tasks. One that must run until the process stops and ends before, by a
//! panic or by itself, leaves a process that looks healthy and no longer does a part of its work:
//! so it is logged, and the process ends.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt as _;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Spawns background tasks, and notes the first that failed; clones share it.
#[derive(Debug, Clone)]
pub struct Supervisor(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tasks: TaskTracker,
    stop: CancellationToken,
    failed: watch::Sender<Option<&'static str>>,
}

impl Default for Supervisor {
    fn default() -> Self {
        Self::new(TaskTracker::new(), CancellationToken::new())
    }
}

impl Supervisor {
    /// Spawns on this tracker; from `stop` on every task may end.
    #[must_use]
    pub fn new(tasks: TaskTracker, stop: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            tasks,
            stop,
            failed: watch::Sender::new(None),
        }))
    }

    /// Returns the tracker of all background tasks, for those that last no longer than the work
    /// they do and whose result is awaited.
    #[must_use]
    pub fn tasks(&self) -> &TaskTracker {
        &self.0.tasks
    }

    /// Returns the token that ends the background tasks.
    #[must_use]
    pub fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }

    /// Spawns a task that must run until the process stops, and is cancelled then.
    pub fn spawn(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let this = self.clone();
        self.0.tasks.spawn(async move {
            let stop = this.0.stop.clone();
            let supervised = this.supervise(name, || stop.is_cancelled(), work);
            stop.run_until_cancelled(supervised).await;
        });
    }

    /// Spawns a task that does something once. Its end is no failure, but a panic is.
    pub fn spawn_once(&self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        let this = self.clone();
        self.0.tasks.spawn(async move {
            let stop = this.0.stop.clone();
            let supervised = this.supervise(name, || true, work);
            stop.run_until_cancelled(supervised).await;
        });
    }

    /// Runs work in the task of the caller. An end while it isn't `over` is a failure, and a panic
    /// before the stop always is.
    pub async fn supervise(
        &self,
        name: &'static str,
        is_over: impl Fn() -> bool,
        work: impl Future<Output = ()>,
    ) {
        // Nothing of the work is used after a panic.
        let panicked = AssertUnwindSafe(work).catch_unwind().await.is_err();
        if (panicked || !is_over()) && !self.0.stop.is_cancelled() {
            self.fail(name, panicked);
        }
    }

    /// Waits for the first task that failed, and returns its name.
    pub async fn failed(&self) -> &'static str {
        let mut failed = self.0.failed.subscribe();
        // An error would mean that the sender is gone, and `self` has it.
        let name = failed.wait_for(Option::is_some).await;
        name.ok().and_then(|name| *name).unwrap_or_default()
    }

    fn fail(&self, task: &'static str, panicked: bool) {
        tracing::error!(
            task,
            panicked,
            "a background task ended unexpectedly; ending the process, to be restarted"
        );
        self.0.failed.send_if_modified(|failed| {
            let is_first = failed.is_none();
            failed.get_or_insert(task);
            is_first
        });
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures::FutureExt as _;

    use super::*;
    use crate::telemetry::log::captured::Log;

    fn failed(supervisor: &Supervisor) -> Option<&'static str> {
        supervisor.failed().now_or_never()
    }

    /// Waits for the end of all tasks.
    async fn end(supervisor: &Supervisor) {
        supervisor.tasks().close();
        supervisor.tasks().wait().await;
    }

    #[tokio::test]
    async fn task_that_ends_or_panics_before_the_stop_is_a_failure() {
        let log = Log::default();
        let _guard = log.start();
        for panics in [false, true] {
            let supervisor = Supervisor::default();
            supervisor.spawn("lasting", pending());
            supervisor.spawn("short", async move { assert!(!panics, "a fault") });
            assert_eq!(supervisor.failed().await, "short");
            let line = format!("task=\"short\" panicked={panics}");
            assert_eq!(log.count(&line), 1, "{panics}");
            supervisor.stop().cancel();
            end(&supervisor).await;
        }
    }

    #[tokio::test]
    async fn task_that_does_something_once_may_end_but_not_panic() {
        let supervisor = Supervisor::default();
        supervisor.spawn_once("once", async {});
        end(&supervisor).await;
        assert_eq!(failed(&supervisor), None);
        supervisor.spawn_once("once", async { panic!("a fault") });
        assert_eq!(supervisor.failed().await, "once");
    }

    #[tokio::test]
    async fn stop_cancels_tasks_and_is_no_failure() {
        let supervisor = Supervisor::default();
        supervisor.spawn("lasting", pending());
        let stop = supervisor.stop().clone();
        supervisor.spawn("ends with the stop", async move { stop.cancelled().await });
        supervisor.stop().cancel();
        end(&supervisor).await;
        assert_eq!(failed(&supervisor), None);
    }

    #[tokio::test]
    async fn work_of_a_caller_may_end_once_it_is_over() {
        let supervisor = Supervisor::default();
        supervisor.supervise("work", || true, async {}).await;
        assert_eq!(failed(&supervisor), None);
        supervisor.supervise("work", || false, async {}).await;
        supervisor.supervise("later", || false, async {}).await;
        assert_eq!(failed(&supervisor), Some("work"), "the first counts");
    }
}
