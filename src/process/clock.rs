//! The wall clock as an argument: the one file that reads it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

/// Provides the time.
pub trait Clock: Send + Sync + 'static {
    /// Returns the current time.
    fn now(&self) -> Timestamp;
}

/// Reads the machine's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is where the clock is read")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// A moment by both clocks: the monotonic clock stops while a machine is suspended, and the wall
/// clock can be set.
#[derive(Debug, Clone, Copy)]
pub struct ClockReading {
    /// The time by the clock that never runs ahead.
    pub monotonic: Instant,
    /// The time by the clock that all machines share.
    pub wall: Timestamp,
}

impl ClockReading {
    /// Reads both clocks.
    #[must_use]
    pub fn now(clock: &dyn Clock) -> Self {
        Self {
            monotonic: Instant::now(),
            wall: clock.now(),
        }
    }

    /// Returns the time since the reading by the clock that measures more of it: for what must not
    /// last too long. A wall clock that was set back is ignored.
    #[must_use]
    pub fn age(self, clock: &dyn Clock) -> Duration {
        let wall = clock.now().duration_since(self.wall);
        self.monotonic
            .elapsed()
            .max(Duration::try_from(wall).unwrap_or_default())
    }
}

/// A clock for tests that runs with tokio's and can be set.
#[cfg(test)]
pub(crate) mod settable {
    use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

    use jiff::{SignedDuration, Timestamp};
    use tokio::time::Instant;

    use crate::process::clock::Clock;

    /// Starts when it is created.
    pub(crate) struct SettableClock {
        start: Instant,
        set: AtomicI64,
    }

    impl Default for SettableClock {
        fn default() -> Self {
            Self {
                start: Instant::now(),
                set: AtomicI64::new(0),
            }
        }
    }

    impl SettableClock {
        /// Sets the clock forward by so many seconds, or back.
        pub(crate) fn jump(&self, seconds: i64) {
            self.set.fetch_add(seconds, SeqCst);
        }
    }

    impl Clock for SettableClock {
        fn now(&self) -> Timestamp {
            Timestamp::constant(1_800_000_000, 0)
                + SignedDuration::try_from(self.start.elapsed()).expect("a time")
                + SignedDuration::from_secs(self.set.load(SeqCst))
        }
    }
}
