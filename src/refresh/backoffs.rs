//! Backs off from namespaces: after failures, and after work that time alone does not explain.
//!
//! A client that may edit a pull secret, a label or a Pod can make work. So each write and each
//! read that time alone does not explain is charged to its namespace, whatever the reason, and from
//! the third within [`WINDOW`] on the namespace backs off for longer and longer.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::{cluster::namespace::Namespace, process::backoff::Backoff};

/// The time for which a charge counts: the longest pause fits in [`CONTENDED_FROM`] times, since
/// contention would otherwise seem to end during the pauses.
const WINDOW: Duration = Duration::from_mins(16);
/// So many charges within [`WINDOW`] are contention.
const CONTENDED_FROM: usize = 3;
/// The first pause in contention, as failures in a row: 16 s.
const CONTENDED_FAILURES: u32 = 5;
/// How often old charges are forgotten.
const PRUNE_EVERY: Duration = Duration::from_mins(1);

/// The namespaces that back off.
#[derive(Debug, Default)]
pub(super) struct Backoffs {
    failed: HashMap<Namespace, Failed>,
    /// The times of work that time alone does not explain.
    charges: HashMap<Namespace, VecDeque<Instant>>,
    pruned: Option<Instant>,
}

#[derive(Debug)]
struct Failed {
    backoff: Backoff,
    until: Instant,
}

/// The contention of a namespace that makes work again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Contention {
    /// The number of charges within [`WINDOW`].
    pub(super) times: usize,
    /// The length of the backoff.
    pub(super) pause: Duration,
}

impl Backoffs {
    /// Returns until when a namespace backs off, if it does.
    pub(super) fn until(&self, namespace: &Namespace) -> Option<Instant> {
        self.failed.get(namespace).map(|failed| failed.until)
    }

    /// Counts a failure, and returns how many there were in a row.
    pub(super) fn failed(&mut self, namespace: &Namespace, now: Instant) -> u32 {
        self.back_off(namespace, 1, now);
        self.failures(namespace)
    }

    /// Charges a namespace for work that time alone does not explain. A retry after a failure was
    /// charged before, and has a pause of its own.
    pub(super) fn charge(&mut self, namespace: &Namespace, now: Instant) -> Option<Contention> {
        let charges = self.charges.entry(namespace.clone()).or_default();
        if self.failed.contains_key(namespace) && !is_contended(charges) {
            return None;
        }
        charges.push_back(now);
        while charges
            .front()
            .is_some_and(|at| now.duration_since(*at) > WINDOW)
        {
            charges.pop_front();
        }
        let times = charges.len();
        if !is_contended(charges) {
            return None;
        }
        let pause = self.back_off(namespace, CONTENDED_FAILURES, now);
        Some(Contention { times, pause })
    }

    /// Notes that nothing is left to do for a namespace. Returns whether that ends the backoff: in
    /// contention, the backoff goes on.
    pub(super) fn succeeded(&mut self, namespace: &Namespace) -> bool {
        let is_over = !self.charges.get(namespace).is_some_and(is_contended);
        if is_over {
            self.failed.remove(namespace);
        }
        is_over
    }

    /// Forgets the failures of a namespace for which there is no longer anything to do.
    pub(super) fn forget(&mut self, namespace: &Namespace) {
        if !self.charges.get(namespace).is_some_and(is_contended) {
            self.failed.remove(namespace);
        }
    }

    /// Ends all backoffs but those of contention: what failed by the former configuration may
    /// succeed now.
    pub(super) fn clear(&mut self) {
        let charges = &self.charges;
        self.failed
            .retain(|namespace, _| charges.get(namespace).is_some_and(is_contended));
    }

    /// Forgets charges that no longer count.
    pub(super) fn prune(&mut self, now: Instant) {
        if self
            .pruned
            .is_some_and(|at| now.duration_since(at) < PRUNE_EVERY)
        {
            return;
        }
        self.pruned = Some(now);
        let is_recent = |at: &Instant| now.duration_since(*at) <= WINDOW;
        self.charges
            .retain(|_, charges| charges.back().is_some_and(is_recent));
    }

    fn failures(&self, namespace: &Namespace) -> u32 {
        let failed = self.failed.get(namespace);
        failed.map_or(0, |failed| failed.backoff.failures())
    }

    fn back_off(&mut self, namespace: &Namespace, at_least: u32, now: Instant) -> Duration {
        let failed = self.failed.entry(namespace.clone()).or_insert(Failed {
            backoff: Backoff::default(),
            until: now,
        });
        let pause = failed.backoff.at_least(at_least, namespace.as_str());
        failed.until = now + pause;
        pause
    }
}

fn is_contended(charges: &VecDeque<Instant>) -> bool {
    charges.len() >= CONTENDED_FROM
}

#[cfg(test)]
mod tests {
    use super::*;

    fn team() -> Namespace {
        Namespace::parse("team").expect("valid")
    }

    #[tokio::test(start_paused = true)]
    async fn third_charge_in_a_while_pauses_and_success_does_not_end_it() {
        let (mut backoffs, start) = (Backoffs::default(), Instant::now());
        let after = |minutes| start + Duration::from_mins(minutes);
        assert_eq!(backoffs.charge(&team(), start), None);
        assert_eq!(backoffs.charge(&team(), after(1)), None);
        assert!(backoffs.succeeded(&team()));
        let contention = backoffs.charge(&team(), after(2)).expect("contended");
        assert_eq!(contention.times, 3);
        assert!(
            contention.pause >= Duration::from_secs(12),
            "{contention:?}"
        );
        assert_eq!(backoffs.until(&team()), Some(after(2) + contention.pause));
        assert!(!backoffs.succeeded(&team()));
        backoffs.forget(&team());
        let next = backoffs.charge(&team(), after(3)).expect("contended");
        assert!(next.pause > contention.pause);
        backoffs.clear();
        assert!(backoffs.until(&team()).is_some(), "contention goes on");
        // Only the last of these charges still counts.
        assert_eq!(backoffs.charge(&team(), after(19)), None);
        backoffs.prune(after(36));
        assert!(backoffs.succeeded(&team()) && backoffs.until(&team()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_count_until_success_or_another_configuration() {
        let (mut backoffs, now) = (Backoffs::default(), Instant::now());
        let counts: Vec<u32> = (0..3).map(|_| backoffs.failed(&team(), now)).collect();
        assert_eq!(counts, [1, 2, 3]);
        assert!(backoffs.until(&team()).is_some_and(|until| until > now));
        assert!(backoffs.succeeded(&team()));
        assert_eq!(backoffs.failed(&team(), now), 1);
        backoffs.clear();
        assert_eq!(backoffs.until(&team()), None);
    }
}
