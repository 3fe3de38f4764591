//! One call to the API server, with a deadline and counted in the metric of calls.

use std::time::Duration;

use futures::FutureExt as _;
use tokio::time::{Instant, timeout, timeout_at};

use super::metrics::ApiCalls;

/// A call to the API server, as the metric of calls has it.
pub(crate) struct ApiCall<'a> {
    counter: &'a ApiCalls,
    verb: &'static str,
    resource: &'static str,
}

/// Why a call failed, before its caller gives the error a meaning.
#[derive(Debug)]
pub(crate) enum CallFailure {
    /// The API server did not respond in time.
    Timeout,
    /// The API server returned an error, or the connection failed.
    Kube(kube::Error),
}

/// An error of a call that has a label in the metric of calls.
pub(crate) trait CallOutcome {
    /// Returns the label.
    fn as_str(&self) -> &'static str;
}

impl From<kube::Error> for CallFailure {
    fn from(error: kube::Error) -> Self {
        Self::Kube(error)
    }
}

impl<'a> ApiCall<'a> {
    /// Returns a call that is not made yet.
    pub(crate) fn new(counter: &'a ApiCalls, verb: &'static str, resource: &'static str) -> Self {
        Self {
            counter,
            verb,
            resource,
        }
    }

    /// Makes the call until `deadline`, gives a failure its meaning by `error`, and counts the
    /// outcome. A combinator instead of an `async fn` has one copy of the call in its future.
    pub(crate) fn send<T, F: Into<CallFailure>, E: CallOutcome>(
        self,
        deadline: Instant,
        call: impl Future<Output = Result<T, F>>,
        error: impl FnOnce(CallFailure) -> E,
    ) -> impl Future<Output = Result<T, E>> {
        timeout_at(deadline, call).map(move |response| {
            let result = match response {
                Ok(result) => result.map_err(|failure| error(failure.into())),
                Err(_) => Err(error(CallFailure::Timeout)),
            };
            let outcome = result.as_ref().map_or_else(E::as_str, |_| "ok");
            self.counter.count_call(self.verb, self.resource, outcome);
            result
        })
    }
}

/// Bounds a part of a call: the request itself, without the wait for its turn.
pub(crate) fn within<T>(
    limit: Duration,
    call: impl Future<Output = kube::Result<T>>,
) -> impl Future<Output = Result<T, CallFailure>> {
    timeout(limit, call).map(|response| match response {
        Ok(result) => result.map_err(CallFailure::Kube),
        Err(_) => Err(CallFailure::Timeout),
    })
}
