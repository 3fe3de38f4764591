//! How fast requests may leave: one, then a pause.

use std::time::Duration;

use tokio::time::Instant;

/// Lets one request out at a time, with at least the same pause between any two: no burst, also after a quiet hour.
#[derive(Debug)]
pub(super) struct RateLimiter {
    gap: Duration,
    next: Instant,
}

impl RateLimiter {
    /// So many a second, the first at once.
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        Self {
            gap: gap(per_second),
            next: now,
        }
    }

    /// So many a second from now on.
    pub(super) fn change(&mut self, per_second: u32, now: Instant) {
        self.gap = gap(per_second);
        // Whoever waits by a slower pace waits no longer than by the new one.
        self.next = self.next.min(now + self.gap);
    }

    /// When the next one may leave.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// One leaves now.
    pub(super) fn take(&mut self, now: Instant) {
        self.next = now + self.gap;
    }
}

fn gap(per_second: u32) -> Duration {
    Duration::from_secs(1) / per_second.max(1)
}
