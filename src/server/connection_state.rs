//! The phase of a connection: which timeout holds, whether it may be closed for another one, and
//! whether a request of it was left without its response.

use std::{
    sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use super::body;
use crate::process::random::random;

/// The age after which a connection ends with its next response, within [`AGE_JITTER`]. API servers
/// keep a connection that is in use for ever, so without an end new replicas would get no requests.
const MAX_AGE: Duration = Duration::from_mins(30);
/// The share of the age by which it is shorter or longer, as a divisor: connections that began
/// together don't end together.
const AGE_JITTER: u32 = 10;

/// How long a connection is new: a client in the cluster sends its first request sooner.
const NEW: Duration = Duration::from_secs(1);

/// Waits for a request, none of which has been received.
const IDLE: u8 = 0;
/// Receives the head of a request.
const HEAD: u8 = 1;
/// Has received the head, and receives the body.
const BODY: u8 = 2;
/// Has received the request, and has no response yet.
const BUSY: u8 = 3;

/// Every response has been sent.
const SENT: u8 = 0;
/// The response that says why the request was rejected is being sent.
const SENDING_REJECTION: u8 = 1;
/// The response is being sent.
const SENDING: u8 = 2;

/// The number of responses of all connections.
static RESPONSES: AtomicU64 = AtomicU64::new(0);

/// The phase of a connection.
#[derive(Debug)]
pub(super) struct ConnectionState {
    opened: Instant,
    ends_at: Instant,
    phase: AtomicU8,
    response: AtomicU8,
    /// When the head of the last request was complete, in milliseconds since the connection opened.
    requested: AtomicU64,
    /// The bytes of its body that have come.
    body_bytes: AtomicU64,
    /// The number of the connection's last response among all responses; 0 before the first.
    last_response: AtomicU64,
    /// Whether the connection is to end with its next response.
    is_ending: AtomicBool,
    /// Whether the client has shown a certificate that is trusted.
    is_trusted: AtomicBool,
    /// Whether no request came within the idle timeout.
    was_idle: AtomicBool,
}

/// The use of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// It was opened just now, and waits for its handshake or its first request.
    New,
    /// It waits for a request, as an order among all connections: 0 if it was never used, else the
    /// later the higher.
    Waiting(u64),
    /// A request's body is so far behind the rate at which it has to come.
    Body(Duration),
    /// A request is handled or answered.
    Handled,
}

/// The timeout that holds while nothing comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// That of a request's first byte.
    Request,
    /// That of the rest of a head.
    Head,
    /// None of the connection's.
    None,
}

impl Default for ConnectionState {
    fn default() -> Self {
        let opened = Instant::now();
        let spread = MAX_AGE / AGE_JITTER;
        let part = u32::try_from(random() % 1000).unwrap_or_default();
        Self {
            opened,
            ends_at: opened + MAX_AGE - spread + 2 * spread * part / 1000,
            phase: AtomicU8::new(IDLE),
            response: AtomicU8::new(SENT),
            requested: AtomicU64::new(0),
            body_bytes: AtomicU64::new(0),
            last_response: AtomicU64::new(0),
            is_ending: AtomicBool::new(false),
            is_trusted: AtomicBool::new(false),
            was_idle: AtomicBool::new(false),
        }
    }
}

impl ConnectionState {
    /// Returns which timeout holds while nothing comes.
    pub(super) fn wait(&self) -> Wait {
        match self.phase() {
            HEAD => Wait::Head,
            IDLE if !self.is_sending() => Wait::Request,
            _ => Wait::None,
        }
    }

    /// Notes that bytes were received. Returns whether they begin a request.
    pub(super) fn received(&self) -> bool {
        let begins = self.phase() == IDLE;
        if begins {
            self.phase.store(HEAD, Ordering::Relaxed);
        }
        begins
    }

    /// Notes that the head of a request is complete, and whether a body follows.
    pub(super) fn requested(&self, has_body: bool) {
        let since = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.requested.store(since, Ordering::Relaxed);
        self.body_bytes.store(0, Ordering::Relaxed);
        let phase = if has_body { BODY } else { BUSY };
        self.phase.store(phase, Ordering::Relaxed);
    }

    /// Notes that so many more bytes of the body were received.
    pub(super) fn received_body(&self, bytes: usize) {
        self.body_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Notes that the body is complete.
    pub(super) fn completed_body(&self) {
        // A body may be dropped after its response.
        let _ = self
            .phase
            .compare_exchange(BODY, BUSY, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Notes that there is a response, which isn't sent yet.
    pub(super) fn responded(&self, is_rejection: bool) {
        let sending = if is_rejection {
            SENDING_REJECTION
        } else {
            SENDING
        };
        self.response.store(sending, Ordering::Relaxed);
        self.phase.store(IDLE, Ordering::Relaxed);
    }

    /// Notes that everything there was to send is sent. Returns whether that was a response.
    pub(super) fn sent(&self) -> bool {
        let is_response = self.response.swap(SENT, Ordering::Relaxed) != SENT;
        if is_response {
            let count = RESPONSES.fetch_add(1, Ordering::Relaxed) + 1;
            self.last_response.store(count, Ordering::Relaxed);
        }
        is_response
    }

    /// Returns what the connection is in use for.
    pub(super) fn in_use_for(&self, now: Instant) -> Use {
        match self.phase() {
            BODY => {
                let requested = Duration::from_millis(self.requested.load(Ordering::Relaxed));
                let elapsed = now.saturating_duration_since(self.opened + requested);
                Use::Body(body::lag(elapsed, self.body_bytes.load(Ordering::Relaxed)))
            }
            BUSY => Use::Handled,
            _ if self.is_sending() => Use::Handled,
            _ => match self.last_response.load(Ordering::Relaxed) {
                0 if now.saturating_duration_since(self.opened) < NEW => Use::New,
                response => Use::Waiting(response),
            },
        }
    }

    /// Whether no request was received so far.
    pub(super) fn is_unused(&self) -> bool {
        self.wait() != Wait::None && self.last_response.load(Ordering::Relaxed) == 0
    }

    /// Notes that the client has shown a certificate that is trusted.
    pub(super) fn trust(&self) {
        self.is_trusted.store(true, Ordering::Relaxed);
    }

    /// Whether the client has shown a certificate that is trusted.
    pub(super) fn is_trusted(&self) -> bool {
        self.is_trusted.load(Ordering::Relaxed)
    }

    /// Notes that no request came within the idle timeout.
    pub(super) fn idled(&self) {
        self.was_idle.store(true, Ordering::Relaxed);
    }

    /// Whether no request came within the idle timeout.
    pub(super) fn was_idle(&self) -> bool {
        self.was_idle.load(Ordering::Relaxed)
    }

    /// Ends the connection with its next response.
    pub(super) fn end(&self) {
        self.is_ending.store(true, Ordering::Relaxed);
    }

    /// Whether the connection is to end with its next response.
    pub(super) fn is_ending(&self) -> bool {
        self.is_ending.load(Ordering::Relaxed) || Instant::now() >= self.ends_at
    }

    /// Returns since when a request waits for its response, if one does. A rejected request has
    /// been counted as such.
    pub(super) fn unanswered(&self) -> Option<Duration> {
        let is_unanswered =
            matches!(self.phase(), BODY | BUSY) || self.response.load(Ordering::Relaxed) == SENDING;
        let requested = Duration::from_millis(self.requested.load(Ordering::Relaxed));
        is_unanswered.then(|| self.opened.elapsed().saturating_sub(requested))
    }

    /// Whether a response is being sent.
    fn is_sending(&self) -> bool {
        self.response.load(Ordering::Relaxed) != SENT
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_handled(state: &ConnectionState) -> bool {
        state.in_use_for(Instant::now()) == Use::Handled
    }

    #[tokio::test(start_paused = true)]
    async fn request_is_unanswered_until_its_response_is_sent() {
        let state = ConnectionState::default();
        assert!(state.is_unused() && state.unanswered().is_none());
        assert_eq!(state.wait(), Wait::Request);
        assert!(state.received() && !state.received());
        assert!(state.wait() == Wait::Head && state.unanswered().is_none());
        state.requested(true);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(state.unanswered(), Some(Duration::from_secs(1)));
        let lag = Use::Body(Duration::from_secs(1));
        assert_eq!(state.in_use_for(Instant::now()), lag);
        state.received_body(128 * 1024);
        let lag = Use::Body(Duration::from_millis(500));
        assert_eq!(state.in_use_for(Instant::now()), lag);
        state.completed_body();
        assert!(is_handled(&state) && state.wait() == Wait::None);
        state.responded(false);
        assert!(state.unanswered().is_some() && is_handled(&state));
        assert_eq!(state.wait(), Wait::None);
        assert!(state.sent() && !state.sent());
        let used = state.in_use_for(Instant::now());
        assert!(matches!(used, Use::Waiting(1..)), "{used:?}");
        assert!(state.unanswered().is_none() && state.wait() == Wait::Request);
        assert!(state.received(), "the next request begins");
    }

    #[tokio::test(start_paused = true)]
    async fn next_request_in_the_buffer_does_not_hide_an_unsent_response() {
        let state = ConnectionState::default();
        state.requested(false);
        state.responded(false);
        assert!(state.received());
        assert!(is_handled(&state), "its response is being sent");
        assert!(state.unanswered().is_some());
        state.requested(false);
        state.sent();
        assert!(is_handled(&state), "the next request is handled");
        state.responded(true);
        assert!(state.unanswered().is_none() && is_handled(&state));
    }
}
