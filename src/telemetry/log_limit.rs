//! Limits the lines of one kind: what a stranger on the network can cause must not fill the log.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// The most lines of one kind in a [`WINDOW`].
const MAX_LINES: u32 = 10;
const WINDOW: Duration = Duration::from_mins(1);

/// Counts the lines of each kind. The kinds are words of the code, so there are few.
#[derive(Debug)]
pub(crate) struct LogLimit(Mutex<BTreeMap<&'static str, Lines>>);

/// The lines of one kind since a moment.
#[derive(Debug)]
struct Lines {
    since: Instant,
    logged: u32,
    omitted: u64,
}

impl LogLimit {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Returns whether one more line of this kind may be logged: then how many were omitted before
    /// it.
    pub(crate) fn admit(&self, kind: &'static str) -> Option<u64> {
        let now = Instant::now();
        let mut kinds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let lines = kinds.entry(kind).or_insert(Lines {
            since: now,
            logged: 0,
            omitted: 0,
        });
        if now.duration_since(lines.since) >= WINDOW {
            (lines.since, lines.logged) = (now, 0);
        }
        if lines.logged == MAX_LINES {
            lines.omitted += 1;
            return None;
        }
        lines.logged += 1;
        Some(std::mem::take(&mut lines.omitted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn kind_has_ten_lines_a_minute_and_counts_the_others() {
        let limit = LogLimit::new();
        for minute in 0..3 {
            let omitted = if minute == 0 { 0 } else { 90 };
            assert_eq!(limit.admit("a"), Some(omitted));
            let admitted = (0..99).filter(|_| limit.admit("a").is_some());
            assert_eq!(admitted.count(), 9);
            tokio::time::advance(WINDOW).await;
        }
        assert_eq!(limit.admit("b"), Some(0), "each kind has its own");
    }
}
