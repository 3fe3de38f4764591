//! The API server's clock, by which self-managed certificates are dated and renewed.
//!
//! The API server is who accepts or rejects them. By the clock of a replica that is wrong by days,
//! a good authority looks expired or not valid yet, and what that replica would sign in its place
//! nobody would accept. Each answer of the API server has a date, so the clock is read with a call,
//! and continues by the monotonic clock, until that call is old or the clocks disagree.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http::{Request, header::DATE};
use jiff::{SignedDuration, Timestamp, fmt::rfc2822};
use kube::{Client, client::Body};
use thiserror::Error;
use tokio::time::Instant;

use crate::{
    cluster::call::{ApiCall, CallFailure, CallOutcome},
    process::clock::{Clock, ClockReading},
    telemetry::log_once::LogOnce,
    tls::metrics::TlsMetrics,
};

/// A path that any client may read, at no cost for the API server.
const PATH: &str = "/version";
/// How long the call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the monotonic clock may stand in: it drifts by seconds in a day.
const MAX_AGE: Duration = Duration::from_hours(1);
/// The pause after a call that failed.
const RETRY: Duration = Duration::from_secs(10);
/// How far the wall clock may go from the monotonic clock: further, it was set, or the machine was
/// suspended.
const MAX_JUMP: Duration = Duration::from_secs(30);
/// From which difference on a clock is wrong, for the log.
const WRONG_BY: SignedDuration = SignedDuration::from_mins(1);

/// Why the API server's time is unknown.
#[derive(Debug, Clone, Error)]
pub(super) enum ClockError {
    #[error("reading the API server's time (GET {PATH}): no response within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    #[error("reading the API server's time (GET {PATH}): {0}")]
    Failed(String),
}

impl CallOutcome for ClockError {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Failed(_) => "error",
        }
    }
}

impl From<CallFailure> for ClockError {
    fn from(failure: CallFailure) -> Self {
        match failure {
            CallFailure::Timeout => Self::Timeout,
            CallFailure::Kube(error) => Self::Failed(error.to_string()),
        }
    }
}

/// Reads the API server's clock.
pub(super) struct ServerClock {
    client: Client,
    local: Arc<dyn Clock>,
    metrics: Arc<TlsMetrics>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    last: Option<Measured>,
    failure: Option<(Instant, ClockError)>,
    difference: LogOnce<Difference>,
}

/// A time of the API server.
#[derive(Debug, Clone, Copy)]
struct Measured {
    time: Timestamp,
    at: ClockReading,
}

/// A fault of the clocks that was logged.
#[derive(Debug, PartialEq, Eq)]
enum Difference {
    NoDate,
    Wrong,
}

impl ServerClock {
    pub(super) fn new(client: Client, local: Arc<dyn Clock>, metrics: Arc<TlsMetrics>) -> Self {
        Self {
            client,
            local,
            metrics,
            known: Mutex::default(),
        }
    }

    /// Returns the time by this replica's own clock.
    pub(super) fn local(&self) -> Timestamp {
        self.local.now()
    }

    /// Returns the API server's time; calls the API server if the last call is too old. The local
    /// time is returned for an API server whose answers have no date.
    pub(super) async fn now(&self) -> Result<Timestamp, ClockError> {
        let last = {
            let known = self.known();
            let last = known.last.filter(|last| !last.is_overtaken(&*self.local));
            if let Some(last) = last.filter(|last| last.at.monotonic.elapsed() < MAX_AGE) {
                return Ok(last.now());
            }
            let failure = known.failure.as_ref();
            if let Some((_, error)) = failure.filter(|(at, _)| at.elapsed() < RETRY) {
                return last.map(Measured::now).ok_or_else(|| error.clone());
            }
            last
        };
        match self.read().await {
            Ok(time) => Ok(self.observe(time)),
            Err(error) => {
                self.known().failure = Some((Instant::now(), error.clone()));
                last.map(Measured::now).ok_or(error)
            }
        }
    }

    /// Reads the date of an answer, whatever the answer is.
    async fn read(&self) -> Result<Option<Timestamp>, ClockError> {
        let call = async {
            let request = Request::get(PATH).body(Body::empty());
            let request = request.map_err(kube::Error::HttpError)?;
            let response = self.client.send(request).await?;
            let date = response
                .headers()
                .get(DATE)
                .and_then(|date| date.to_str().ok());
            Ok::<_, kube::Error>(date.and_then(|date| rfc2822::parse(date).ok()))
        };
        let deadline = Instant::now() + CALL_TIMEOUT;
        let counted = ApiCall::new(&self.metrics.api_calls, "get", "version");
        let date = counted.send(deadline, call, ClockError::from).await?;
        Ok(date.map(|date| date.timestamp()))
    }

    /// Notes the API server's time, and logs once if the local clock is wrong.
    fn observe(&self, time: Option<Timestamp>) -> Timestamp {
        let at = ClockReading::now(&*self.local);
        let mut known = self.known();
        known.failure = None;
        let Some(time) = time else {
            if known.difference.is_new(Difference::NoDate) {
                tracing::warn!(
                    "answers of the API server have no date; certificates follow the clock of this \
                     replica"
                );
            }
            known.last = Some(Measured { time: at.wall, at });
            return at.wall;
        };
        let difference = at.wall.duration_since(time);
        if difference.abs() < WRONG_BY {
            known.difference.clear();
        } else if known.difference.is_new(Difference::Wrong) {
            let ahead_seconds = difference.as_secs();
            tracing::warn!(
                ahead_seconds,
                "clock differs from that of the API server; certificates follow the latter"
            );
        }
        known.last = Some(Measured { time, at });
        time
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Measured {
    fn now(self) -> Timestamp {
        let elapsed = SignedDuration::try_from(self.at.monotonic.elapsed()).unwrap_or_default();
        self.time + elapsed
    }

    /// Whether the clocks disagree on how long ago the call was: then neither is believed.
    fn is_overtaken(self, local: &dyn Clock) -> bool {
        let by_wall = local.now().duration_since(self.at.wall);
        let elapsed = SignedDuration::try_from(self.at.monotonic.elapsed()).unwrap_or_default();
        (by_wall - elapsed).unsigned_abs() > MAX_JUMP
    }
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use http::Response;
    use tokio::time::{advance, sleep};

    use super::*;
    use crate::{
        cli::metrics::Metrics, process::clock::settable::SettableClock,
        telemetry::log::captured::Log,
    };

    /// The date of each answer: a day after the start of the local clock.
    const DATE_OF_ANSWERS: &str = "Sat, 16 Jan 2027 08:00:00 GMT";
    const TIME_OF_ANSWERS: Timestamp = Timestamp::constant(1_800_000_000 + 24 * 60 * 60, 0);

    /// The answer of an API server.
    #[derive(Clone, Copy, PartialEq)]
    enum Answer {
        Date(&'static str),
        None,
        Never,
    }

    struct Fixture {
        clock: ServerClock,
        local: Arc<SettableClock>,
        answer: Arc<Mutex<Answer>>,
        calls: Arc<AtomicUsize>,
    }

    impl Fixture {
        fn new(answer: Answer) -> Self {
            let (answer, calls) = (Arc::new(Mutex::new(answer)), Arc::new(AtomicUsize::new(0)));
            let (given, counted) = (answer.clone(), calls.clone());
            let service = tower::service_fn(move |_: Request<Body>| {
                counted.fetch_add(1, SeqCst);
                let answer = *given.lock().expect("a lock");
                async move {
                    // What the answer is does not matter.
                    let response = Response::builder().status(403);
                    let response = match answer {
                        Answer::Date(date) => response.header(DATE, date),
                        Answer::None => response,
                        Answer::Never => std::future::pending().await,
                    };
                    Ok::<_, Infallible>(response.body(Body::empty()).expect("a response"))
                }
            });
            let local = Arc::new(SettableClock::default());
            let client = Client::new(service, "default");
            let metrics = Metrics::default().tls.clone();
            Self {
                clock: ServerClock::new(client, local.clone(), metrics),
                local,
                answer,
                calls,
            }
        }

        fn calls(&self) -> usize {
            self.calls.load(SeqCst)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_is_that_of_the_api_server_and_costs_a_call_an_hour() {
        let log = Log::default();
        let _guard = log.start();
        let fixture = Fixture::new(Answer::Date(DATE_OF_ANSWERS));
        for minutes in 0..59 {
            let expected = TIME_OF_ANSWERS + SignedDuration::from_mins(minutes);
            assert_eq!(fixture.clock.now().await.expect("known"), expected);
            advance(Duration::from_mins(1)).await;
        }
        assert_eq!(fixture.calls(), 1);
        advance(Duration::from_mins(1)).await;
        fixture.clock.now().await.expect("known");
        assert_eq!(fixture.calls(), 2);
        assert_eq!(log.count("clock differs"), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn clock_that_was_set_is_no_longer_believed() {
        let fixture = Fixture::new(Answer::Date(DATE_OF_ANSWERS));
        fixture.clock.now().await.expect("known");
        for (calls, jump) in [(2, 3600), (3, -7200), (3, 10)] {
            fixture.local.jump(jump);
            assert_eq!(fixture.clock.now().await.expect("known"), TIME_OF_ANSWERS);
            assert_eq!(fixture.calls(), calls, "{jump} s");
        }
        *fixture.answer.lock().expect("a lock") = Answer::Never;
        fixture.local.jump(3600);
        assert!(matches!(
            fixture.clock.now().await,
            Err(ClockError::Timeout)
        ));
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_time_is_an_error_and_asked_for_again_later() {
        let fixture = Fixture::new(Answer::Never);
        for _ in 0..3 {
            let started = Instant::now();
            assert!(matches!(
                fixture.clock.now().await,
                Err(ClockError::Timeout)
            ));
            assert!(started.elapsed() <= CALL_TIMEOUT);
        }
        assert_eq!(fixture.calls(), 1);
        *fixture.answer.lock().expect("a lock") = Answer::Date(DATE_OF_ANSWERS);
        sleep(RETRY).await;
        assert_eq!(fixture.clock.now().await.expect("known"), TIME_OF_ANSWERS);
        // What is known is not lost by a call that fails.
        *fixture.answer.lock().expect("a lock") = Answer::Never;
        sleep(MAX_AGE).await;
        let time = fixture.clock.now().await.expect("known");
        let hour = SignedDuration::from_hours(1);
        assert_eq!(time, TIME_OF_ANSWERS + hour + SignedDuration::from_secs(3));
        assert_eq!(fixture.calls(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn answers_without_a_date_leave_the_local_clock() {
        let log = Log::default();
        let _guard = log.start();
        for answer in [Answer::None, Answer::Date("soon")] {
            let fixture = Fixture::new(answer);
            assert_eq!(
                fixture.clock.now().await.expect("known"),
                fixture.local.now()
            );
        }
        assert_eq!(log.count("have no date"), 2);
    }
}
