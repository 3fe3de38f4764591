//! A term as the leader, whose work asks whether it still lasts.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::sleep_until;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::process::clock::{Clock, ClockReading};

/// A term as the leader, and the fence of its work. Clones share the term, and a term that is over
/// never comes back.
#[derive(Clone)]
pub struct Leadership(Arc<Term>);

struct Term {
    ended: CancellationToken,
    /// The last renewal of the Lease; `None` if a person started the work and no Lease is held.
    renewal: Option<Renewal>,
}

struct Renewal {
    clock: Arc<dyn Clock>,
    deadline: Duration,
    sent: Mutex<ClockReading>,
}

impl Leadership {
    /// Returns a term without a Lease, which only [`Self::end`] ends: for a person who starts one
    /// sweep.
    #[must_use]
    pub fn unlimited() -> Self {
        Self(Arc::new(Term {
            ended: CancellationToken::new(),
            renewal: None,
        }))
    }

    /// Returns a term that lasts for `deadline` from `sent`, a reading before the Lease was
    /// written.
    pub(super) fn new(clock: Arc<dyn Clock>, sent: ClockReading, deadline: Duration) -> Self {
        Self(Arc::new(Term {
            ended: CancellationToken::new(),
            renewal: Some(Renewal {
                clock,
                deadline,
                sent: Mutex::new(sent),
            }),
        }))
    }

    /// Whether the term still lasts. Call this immediately before each request that only the leader
    /// may send; a call reads two clocks. Once the result is `false`, it stays `false`.
    #[must_use]
    pub fn holds(&self) -> bool {
        if self.0.ended.is_cancelled() {
            return false;
        }
        let Some(renewal) = &self.0.renewal else {
            return true;
        };
        let holds = renewal.sent().age(&*renewal.clock) < renewal.deadline;
        if !holds {
            self.end();
        }
        holds
    }

    /// Waits for the end of the term. The work has to end then, and the next term waits for the
    /// work.
    pub async fn lost(&self) {
        self.0.ended.cancelled().await;
    }

    /// Ends the term, for all clones.
    pub fn end(&self) {
        self.0.ended.cancel();
    }

    /// Returns a guard that ends the term when it is dropped.
    pub(super) fn end_on_drop(&self) -> DropGuard {
        self.0.ended.clone().drop_guard()
    }

    /// Extends the term from a later renewal, unless the term is over.
    pub(super) fn extend(&self, sent: ClockReading) -> bool {
        if !self.holds() {
            return false;
        }
        if let Some(renewal) = &self.0.renewal {
            *renewal.sent() = sent;
        }
        true
    }

    /// Waits until the deadline passes without a renewal.
    pub(super) async fn expired(&self) {
        while self.holds() {
            let Some(renewal) = &self.0.renewal else {
                return self.lost().await;
            };
            let deadline = renewal.sent().monotonic + renewal.deadline;
            tokio::select! {
                () = sleep_until(deadline) => {}
                () = self.lost() => {}
            }
        }
    }
}

impl Renewal {
    fn sent(&self) -> MutexGuard<'_, ClockReading> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Leadership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leadership")
            .field("ended", &self.0.ended.is_cancelled())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use tokio::time::{Instant, advance};

    use super::*;
    use crate::process::clock::settable::SettableClock;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[tokio::test(start_paused = true)]
    async fn term_counts_from_before_its_renewal_was_sent() {
        let clock = Arc::new(SettableClock::default());
        let sent = ClockReading::now(&*clock);
        let leadership = Leadership::new(clock.clone(), sent, DEADLINE);
        advance(seconds(9)).await;
        assert!(leadership.holds());
        let next = ClockReading::now(&*clock);
        advance(Duration::from_millis(900)).await;
        assert!(leadership.extend(next));
        advance(seconds(9)).await;
        assert!(leadership.holds());
        advance(Duration::from_millis(100)).await;
        assert!(!leadership.holds());
        assert!(
            !leadership.extend(ClockReading::now(&*clock)),
            "it came back"
        );
        assert!(!leadership.holds());
    }

    #[tokio::test(start_paused = true)]
    async fn sweep_by_hand_needs_no_lease() {
        let leadership = Leadership::unlimited();
        advance(seconds(100_000)).await;
        assert!(
            leadership.holds()
                && leadership.extend(ClockReading {
                    monotonic: Instant::now(),
                    wall: Timestamp::UNIX_EPOCH,
                })
        );
        leadership.clone().end();
        assert!(!leadership.holds());
        leadership.lost().await;
    }
}
