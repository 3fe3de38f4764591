//! Writes of one object: the call, its errors, and a backoff that grows while another client undoes
//! what was written.

use std::time::Duration;

use kube::core::Status;
use thiserror::Error;
use tokio::time::Instant;

use super::call::{ApiCall, CallFailure, CallOutcome};

/// How long one write may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// The most that is shown of an API server's message, in characters.
const MAX_MESSAGE_CHARS: usize = 300;

/// The backoff after the first failure, doubled up to [`MAX_BACKOFF`].
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_mins(5);
/// A write within this time after the last one, and the backoff before it, repairs the same change
/// by the same client.
const CONTENTION_WINDOW: Duration = Duration::from_mins(1);

/// Why an object was not written.
#[derive(Debug, Error)]
pub(crate) enum WriteError {
    /// Another client wrote the object first.
    #[error("another client wrote it first")]
    Conflict,
    /// This replica's term as the leader is over.
    #[error("another replica leads now")]
    NotLeading,
    /// The API server did not respond.
    #[error("no response within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    /// The API server rejected the write, or can't be reached; its whole message.
    #[error("{}", short(.0))]
    Failed(String),
}

impl WriteError {
    /// Gives a failure its meaning; `is_conflict` decides whether a rejected write lost to another.
    fn new(failure: CallFailure, is_conflict: impl FnOnce(&Status) -> bool) -> Self {
        match failure {
            CallFailure::Timeout => Self::Timeout,
            CallFailure::Kube(kube::Error::Api(status)) if is_conflict(&status) => Self::Conflict,
            CallFailure::Kube(kube::Error::Api(status)) => Self::Failed(status.message.clone()),
            CallFailure::Kube(error) => Self::Failed(error.to_string()),
        }
    }
}

impl CallOutcome for WriteError {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::NotLeading => "not_leading",
            Self::Timeout => "timeout",
            Self::Failed(_) => "error",
        }
    }
}

/// Makes one write, with its deadline; `is_conflict` decides whether a rejected write lost to
/// another.
pub(crate) async fn write<T>(
    call: ApiCall<'_>,
    write: impl Future<Output = kube::Result<T>>,
    is_conflict: impl FnOnce(&Status) -> bool,
) -> Result<T, WriteError> {
    let deadline = Instant::now() + CALL_TIMEOUT;
    let error = |failure| WriteError::new(failure, is_conflict);
    call.send(deadline, write, error).await
}

fn short(text: &str) -> String {
    text.chars().take(MAX_MESSAGE_CHARS).collect()
}

/// The backoff of a write that failed, or that another client undid.
#[derive(Debug, Default)]
pub(crate) struct WriteBackoff {
    wait: Duration,
    last: Option<Instant>,
}

impl WriteBackoff {
    /// Returns the end of the backoff, if a write was made or failed yet.
    pub(crate) fn until(&self) -> Option<Instant> {
        self.last.map(|last| last + self.wait)
    }

    /// Whether the backoff is over.
    pub(crate) fn is_over(&self) -> bool {
        self.until().is_none_or(|at| at <= Instant::now())
    }

    /// Records a write. The first one has no backoff after it: a single change is repaired at once.
    pub(crate) fn wrote(&mut self) {
        let now = Instant::now();
        let is_contended = self
            .last
            .is_some_and(|last| now.duration_since(last) < self.wait * 2 + CONTENTION_WINDOW);
        self.wait = if is_contended {
            (self.wait * 2).clamp(FIRST_BACKOFF, MAX_BACKOFF)
        } else {
            Duration::ZERO
        };
        self.last = Some(now);
    }

    /// Records a write that failed.
    pub(crate) fn failed(&mut self) {
        self.wait = (self.wait * 2).clamp(FIRST_BACKOFF, MAX_BACKOFF);
        self.last = Some(Instant::now());
    }
}
