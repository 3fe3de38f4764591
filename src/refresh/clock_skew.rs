//! Finds out that the wall clock was set, or that the machine slept.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// The clocks differ by more than this only if the machine slept or its clock was set.
const MAX_SKEW: Duration = Duration::from_secs(30);

/// Compares the wall clock with the monotonic clock, from one reading to the next.
pub(super) struct ClockSkew {
    last: (Instant, Timestamp),
}

impl ClockSkew {
    pub(super) fn new(instant: Instant, now: Timestamp) -> Self {
        Self {
            last: (instant, now),
        }
    }

    /// Returns how far the clocks went apart since the last reading, if by more than [`MAX_SKEW`].
    pub(super) fn check(&mut self, instant: Instant, now: Timestamp) -> Option<SignedDuration> {
        let (last_instant, last) = std::mem::replace(&mut self.last, (instant, now));
        let by_clock = now.duration_since(last);
        let by_time = SignedDuration::try_from(instant.duration_since(last_instant));
        let skew = by_clock - by_time.unwrap_or(by_clock);
        (skew.unsigned_abs() > MAX_SKEW).then_some(skew)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skew_is_reported_once_and_from_30_s_on() {
        let (instant, now) = (Instant::now(), Timestamp::constant(1_800_000_000, 0));
        let seconds = SignedDuration::from_secs;
        let mut clock_skew = ClockSkew::new(instant, now);
        let (instant, now) = (instant + Duration::from_mins(5), now + seconds(330));
        assert_eq!(clock_skew.check(instant, now), None);
        let now = now + seconds(31);
        assert_eq!(clock_skew.check(instant, now), Some(seconds(31)));
        assert_eq!(clock_skew.check(instant, now), None);
        let now = now - seconds(31);
        assert_eq!(clock_skew.check(instant, now), Some(seconds(-31)));
    }
}
