//! Limits how fast requests leave: one, then a pause.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::queue::{Due, WorkQueue};
use crate::cluster::namespace::Namespace;

/// Lets one request out at a time, with at least the same pause between any two: no burst, also
/// after a quiet hour.
#[derive(Debug)]
struct RateLimiter {
    gap: Duration,
    next: Instant,
}

impl RateLimiter {
    /// Lets so many out a second, the first at once.
    fn new(per_second: u32, now: Instant) -> Self {
        Self {
            gap: gap(per_second),
            next: now,
        }
    }

    /// Lets so many out a second from now on.
    fn set_rate(&mut self, per_second: u32, now: Instant) {
        self.gap = gap(per_second);
        // A request that waits at a lower rate waits no longer than at the new one.
        self.next = self.next.min(now + self.gap);
    }
}

fn gap(per_second: u32) -> Duration {
    Duration::from_secs(1) / per_second.max(1)
}

/// A queue of namespaces whose turns are limited to a rate.
#[derive(Debug)]
pub(super) struct RateLimitedQueue {
    queue: WorkQueue,
    limiter: RateLimiter,
}

impl RateLimitedQueue {
    /// Returns an empty queue that gives so many turns a second.
    pub(super) fn new(per_second: u32, now: Instant) -> Self {
        Self {
            queue: WorkQueue::default(),
            limiter: RateLimiter::new(per_second, now),
        }
    }

    /// Gives so many turns a second from now on.
    pub(super) fn set_rate(&mut self, per_second: u32, now: Instant) {
        self.limiter.set_rate(per_second, now);
    }

    /// Queues a namespace, instead of what was queued for it before.
    pub(super) fn set(&mut self, namespace: &Namespace, due: Due) {
        self.queue.set(namespace, due);
    }

    /// Takes a namespace out of the queue.
    pub(super) fn remove(&mut self, namespace: &Namespace) {
        self.queue.remove(namespace);
    }

    /// Forgets a namespace that no longer exists, with its last turn.
    pub(super) fn forget(&mut self, namespace: &Namespace) {
        self.queue.forget(namespace);
    }

    /// Takes the namespace whose turn it is, if the rate allows one.
    pub(super) fn pop(&mut self, now: Timestamp, instant: Instant) -> Option<Namespace> {
        let is_allowed = self.limiter.next <= instant;
        is_allowed.then(|| self.queue.pop(now)).flatten()
    }

    /// Notes that a namespace took its turn.
    pub(super) fn served(&mut self, namespace: &Namespace, instant: Instant) {
        self.limiter.next = instant + self.limiter.gap;
        self.queue.served(namespace);
    }

    /// Returns when the next turn is, at most `max_sleep` from now but for the rate; `None` if no
    /// namespace is queued.
    pub(super) fn next_turn(
        &self,
        (now, instant): (Timestamp, Instant),
        max_sleep: Duration,
    ) -> Option<Instant> {
        let left = self.queue.next_at()?.duration_since(now);
        let left = Duration::try_from(left).unwrap_or_default();
        Some((instant + left.min(max_sleep)).max(self.limiter.next))
    }

    /// Returns how many namespaces are due at `now`, and since when the one that waits the longest
    /// is.
    pub(super) fn backlog(&mut self, now: Timestamp) -> (usize, Option<Timestamp>) {
        self.queue.backlog(now)
    }
}
