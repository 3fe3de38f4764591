//! The wall clock, as something that is handed in: the one room that reads it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// Tells the time.
pub trait Clock: Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The machine's own clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "this is where the clock is read")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// One moment by both clocks: the monotonic one stops where a machine is suspended, the wall clock is set by people.
#[derive(Debug, Clone, Copy)]
pub struct ClockReading {
    /// By the clock that never runs ahead.
    pub monotonic: Instant,
    /// By the one that everybody shares.
    pub wall: Timestamp,
}

impl ClockReading {
    /// This one.
    #[must_use]
    pub fn now(clock: &dyn Clock) -> Self {
        Self {
            monotonic: Instant::now(),
            wall: clock.now(),
        }
    }

    /// How long ago it was by the clock that says longer: for what must not last too long. A wall clock that was set back
    /// says nothing.
    #[must_use]
    pub fn age(self, clock: &dyn Clock) -> Duration {
        let wall = clock.now().duration_since(self.wall);
        self.monotonic
            .elapsed()
            .max(Duration::try_from(wall).unwrap_or_default())
    }

    /// When it was by the clock that says it is less long ago: for what has to last a while.
    #[must_use]
    pub fn at_the_latest(self, now: Timestamp) -> Timestamp {
        let elapsed = SignedDuration::try_from(self.monotonic.elapsed()).unwrap_or_default();
        self.wall.max(now - elapsed)
    }
}

/// A clock for tests that goes with tokio's, and can be set.
#[cfg(test)]
pub(crate) mod settable {
    use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

    use jiff::{SignedDuration, Timestamp};
    use tokio::time::Instant;

    use crate::process::clock::Clock;

    /// It begins when it is made.
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
        /// Sets it so many seconds further, or back.
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
