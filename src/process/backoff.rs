//! How long to wait after failures in a row. Pure: the caller knows the time.

use std::time::Duration;

/// The first pause after a failure; it doubles up to [`CEILING`].
const FLOOR: Duration = Duration::from_secs(1);
/// The longest pause after failures.
pub const CEILING: Duration = Duration::from_mins(5);

/// Counts failures in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// Counts one more failure and returns the pause after it. `jitter` spreads callers that failed
    /// at the same moment.
    pub fn next(&mut self, jitter: &str) -> Duration {
        self.at_least(1, jitter)
    }

    /// Counts one more failure, as if there had been `failures` of them, and returns the pause
    /// after it.
    pub fn at_least(&mut self, failures: u32, jitter: &str) -> Duration {
        self.failures = self.failures.saturating_add(1).max(failures);
        pause(self.failures, jitter)
    }

    /// Returns how many failures in a row there were.
    #[must_use]
    pub fn failures(self) -> u32 {
        self.failures
    }
}

/// Returns the pause after so many failures in a row: it doubles, with jitter that only shortens
/// it, by a quarter at most.
fn pause(failures: u32, jitter: &str) -> Duration {
    let whole = FLOOR
        .saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)))
        .min(CEILING);
    let salted = format!("{jitter}/{failures}");
    let percent = 75 + u32::try_from(spread(&salted, 26)).unwrap_or_default();
    whole * percent / 100
}

/// Returns a well-spread number below `range` that depends on a text alone (FNV-1a, with the last
/// step of `MurmurHash3`).
#[must_use]
pub fn spread(text: &str, range: u64) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // Texts that differ only in their last letters differ in few bits so far.
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (mixed ^ (mixed >> 33)) % range
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_five_minutes_and_jitter_shortens() {
        let mut backoff = Backoff::default();
        let pauses: Vec<Duration> = (0..40).map(|_| backoff.next("team")).collect();
        for (failures, whole) in [(1, 1), (2, 2), (5, 16), (9, 256), (10, 300), (40, 300)] {
            let (pause, whole) = (pauses[failures - 1], Duration::from_secs(whole));
            assert!(
                pause <= whole && pause >= whole * 3 / 4,
                "{failures}: {pause:?}"
            );
        }
        assert_eq!(backoff.failures(), 40);
    }

    #[test]
    fn contention_begins_with_a_longer_pause() {
        let mut backoff = Backoff::default();
        assert!(backoff.at_least(5, "team") >= Duration::from_secs(12));
        assert!(backoff.at_least(5, "team") >= Duration::from_secs(24));
    }
}
