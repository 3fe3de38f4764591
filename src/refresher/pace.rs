//! How fast requests may leave: one, then a pause.

use std::time::Duration;

use tokio::time::Instant;

/// Lets one request out at a time, with at least the same pause between any two: no burst, also after a quiet hour.
#[derive(Debug)]
pub(super) struct Pace {
    gap: Duration,
    next: Instant,
}

impl Pace {
    /// So many a second, the first at once.
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        Self {
            gap: Duration::from_secs(1) / per_second.max(1),
            next: now,
        }
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
