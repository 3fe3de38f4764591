//! What a writer of one object needs: a call with a deadline, why it came to nothing, and a pause that grows while
//! somebody else undoes what was written.

use std::time::Duration;

use kube::core::Status;
use thiserror::Error;
use tokio::time::{Instant, timeout};

/// How long one call that writes may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// How much of an API server's message is shown, in characters.
const MAX_MESSAGE_CHARS: usize = 300;

/// The pause after the first failure; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_mins(5);
/// A repair within this time after the last one, and the pause before it, is of the same damage by the same hand.
const ROW: Duration = Duration::from_mins(1);

/// Why something wasn't written.
#[derive(Debug, Error)]
pub(crate) enum WriteError {
    /// Somebody else wrote it first.
    #[error("another client wrote it first")]
    Conflict,
    /// The term is over.
    #[error("another replica leads now")]
    NotLeading,
    /// The API server doesn't answer.
    #[error("no response within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    /// The API server refuses, or can't be reached; its whole message.
    #[error("{}", short(.0))]
    Failed(String),
}

impl WriteError {
    /// Returns the word for the metric of calls.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::NotLeading => "not_leading",
            Self::Timeout => "timeout",
            Self::Failed(_) => "error",
        }
    }
}

/// Makes one call that writes, with its deadline. `lost` decides of a refusal whether somebody else was first.
pub(crate) async fn call<T>(
    call: impl Future<Output = kube::Result<T>>,
    lost: impl FnOnce(&Status) -> bool,
) -> Result<T, WriteError> {
    match timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(written)) => Ok(written),
        Ok(Err(kube::Error::Api(status))) if lost(&status) => Err(WriteError::Conflict),
        Ok(Err(kube::Error::Api(status))) => Err(WriteError::Failed(status.message.clone())),
        Ok(Err(error)) => Err(WriteError::Failed(error.to_string())),
        Err(_) => Err(WriteError::Timeout),
    }
}

fn short(text: &str) -> String {
    text.chars().take(MAX_MESSAGE_CHARS).collect()
}

/// When a write that failed, or was undone by others, may be tried again.
#[derive(Debug, Default)]
pub(crate) struct WriteBackoff {
    pause: Duration,
    last: Option<Instant>,
}

impl WriteBackoff {
    /// Returns the end of the pause, if anything was written or failed yet.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.last.map(|last| last + self.pause)
    }

    /// Returns whether the pause is over.
    pub(crate) fn is_over(&self) -> bool {
        self.until().is_none_or(|at| at <= Instant::now())
    }

    /// Notes a write. The first one has no pause after it: what is damaged once is repaired at once.
    pub(crate) fn wrote(&mut self) {
        let now = Instant::now();
        let is_row = self
            .last
            .is_some_and(|last| now.duration_since(last) < self.pause * 2 + ROW);
        self.pause = if is_row {
            (self.pause * 2).clamp(FIRST_PAUSE, MAX_PAUSE)
        } else {
            Duration::ZERO
        };
        self.last = Some(now);
    }

    /// Notes a failure.
    pub(crate) fn failed(&mut self) {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, MAX_PAUSE);
        self.last = Some(Instant::now());
    }
}
