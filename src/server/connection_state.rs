//! The phase of a connection: which timeout holds, whether it may be closed for another one, and
//! whether a request of it was left without its response.

use std::{
    sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::Instant;

use crate::process::random::random;

/// The age after which a connection ends with its next response, within [`AGE_JITTER`]. API servers
/// keep a connection that is in use for ever, so without an end new replicas would get no requests.
const MAX_AGE: Duration = Duration::from_mins(30);
/// The share of the age by which it is shorter or longer, as a divisor: connections that began
/// together don't end together.
const AGE_JITTER: u32 = 10;

/// Waits for a request, none of which has been received.
const IDLE: u8 = 0;
/// Receives the head of a request.
const HEAD: u8 = 1;
/// Has received the head, and has no response yet.
const BUSY: u8 = 2;

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
    /// The number of the connection's last response among all responses; 0 before the first.
    last_response: AtomicU64,
    /// Whether the connection is to end with its next response.
    is_ending: AtomicBool,
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
            last_response: AtomicU64::new(0),
            is_ending: AtomicBool::new(false),
        }
    }
}

impl ConnectionState {
    /// Whether the head of a request is being received.
    pub(super) fn is_receiving_head(&self) -> bool {
        self.phase() == HEAD
    }

    /// Notes that bytes were received. Returns whether they begin a request.
    pub(super) fn received(&self) -> bool {
        let begins = self.phase() == IDLE;
        if begins {
            self.phase.store(HEAD, Ordering::Relaxed);
        }
        begins
    }

    /// Notes that the head of a request is complete.
    pub(super) fn requested(&self) {
        let since = u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.requested.store(since, Ordering::Relaxed);
        self.phase.store(BUSY, Ordering::Relaxed);
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

    /// Notes that everything there was to send is sent.
    pub(super) fn sent(&self) {
        if self.response.swap(SENT, Ordering::Relaxed) != SENT {
            let count = RESPONSES.fetch_add(1, Ordering::Relaxed) + 1;
            self.last_response.store(count, Ordering::Relaxed);
        }
    }

    /// Returns how long the connection has been idle, as an order among all connections: 0 if it
    /// was never used. None while a request is read, handled or answered.
    pub(super) fn idle_rank(&self) -> Option<u64> {
        let is_in_use = self.phase() == BUSY || self.response.load(Ordering::Relaxed) != SENT;
        (!is_in_use).then(|| self.last_response.load(Ordering::Relaxed))
    }

    /// Whether no request was received so far.
    pub(super) fn is_unused(&self) -> bool {
        self.idle_rank() == Some(0)
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
            self.phase() == BUSY || self.response.load(Ordering::Relaxed) == SENDING;
        let requested = Duration::from_millis(self.requested.load(Ordering::Relaxed));
        is_unanswered.then(|| self.opened.elapsed().saturating_sub(requested))
    }

    fn phase(&self) -> u8 {
        self.phase.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn request_is_unanswered_until_its_response_is_sent() {
        let state = ConnectionState::default();
        assert!(state.is_unused() && state.unanswered().is_none());
        assert!(state.received() && !state.received());
        assert!(state.is_receiving_head() && state.unanswered().is_none());
        state.requested();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(state.unanswered(), Some(Duration::from_secs(1)));
        assert_eq!(state.idle_rank(), None);
        state.responded(false);
        assert!(state.unanswered().is_some() && state.idle_rank().is_none());
        state.sent();
        assert!(state.unanswered().is_none() && state.idle_rank() > Some(0));
        state.sent();
        assert!(state.received(), "the next request begins");
    }

    #[tokio::test(start_paused = true)]
    async fn next_request_in_the_buffer_does_not_hide_an_unsent_response() {
        let state = ConnectionState::default();
        state.requested();
        state.responded(false);
        assert!(state.received());
        assert_eq!(state.idle_rank(), None, "its response is being sent");
        assert!(state.unanswered().is_some());
        state.requested();
        state.sent();
        assert_eq!(state.idle_rank(), None, "the next request is handled");
        state.responded(true);
        assert!(state.unanswered().is_none() && state.idle_rank().is_none());
    }
}
