//! For whom something failed, and whose pull secret somebody else keeps changing: how long each is left alone.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::schedule::backoff;
use crate::namespace::Namespace;

/// Repairs of one pull secret in this time, in which the longest pause fits [`FIGHT_FROM`] times: else they would look like
/// peace…
const FIGHT_WINDOW: Duration = Duration::from_mins(16);
/// …that make it a fight.
const FIGHT_FROM: usize = 3;
/// The first pause in a fight, as failures in a row: 16 s.
const FIGHT_BACKOFF: u32 = 5;

/// The namespaces that are left alone for a while.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    failed: HashMap<Namespace, Trouble>,
    /// When their pull secrets were put right.
    heals: HashMap<Namespace, VecDeque<Instant>>,
}

/// A namespace for which something failed.
#[derive(Debug)]
struct Trouble {
    failures: u32,
    until: Instant,
}

/// Somebody changes a pull secret again and again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fight {
    /// How often it was put right lately.
    pub(super) times: u32,
    /// How long it is left as it is when it is changed again.
    pub(super) pause: Duration,
}

impl Troubles {
    /// Until when a namespace is left alone, if something failed for it.
    pub(super) fn until(&self, namespace: &Namespace) -> Option<Instant> {
        self.failed.get(namespace).map(|trouble| trouble.until)
    }

    /// Something failed once more; tells how often in a row.
    pub(super) fn failed(&mut self, namespace: &Namespace, now: Instant) -> u32 {
        let failures = self.failures(namespace).saturating_add(1);
        self.leave_alone(namespace, failures, now);
        failures
    }

    /// A pull secret was put right. Whoever changes it again and again is not to be answered each time.
    pub(super) fn healed(&mut self, namespace: &Namespace, now: Instant) -> Option<Fight> {
        let heals = self.heals.entry(namespace.clone()).or_default();
        heals.push_back(now);
        while heals
            .front()
            .is_some_and(|at| now.duration_since(*at) > FIGHT_WINDOW)
        {
            heals.pop_front();
        }
        if !is_fight(heals) {
            return None;
        }
        let times = u32::try_from(heals.len()).unwrap_or(u32::MAX);
        let failures = self.failures(namespace).saturating_add(1);
        let pause = self.leave_alone(namespace, failures.max(FIGHT_BACKOFF), now);
        Some(Fight { times, pause })
    }

    /// Nothing is left to do for a namespace; tells whether that is the end of its trouble, which in a fight it isn't.
    pub(super) fn went_well(&mut self, namespace: &Namespace) -> bool {
        let is_over = !self.heals.get(namespace).is_some_and(is_fight);
        if is_over {
            self.failed.remove(namespace);
        }
        is_over
    }

    /// There is nothing to do for a namespace any more.
    pub(super) fn forget(&mut self, namespace: &Namespace) {
        self.failed.remove(namespace);
    }

    /// What failed by another configuration may go well now; a fight goes on by its own rules.
    pub(super) fn start_over(&mut self) {
        let heals = &self.heals;
        self.failed
            .retain(|namespace, _| heals.get(namespace).is_some_and(is_fight));
    }

    /// Forgets repairs that were long ago.
    pub(super) fn forget_peace(&mut self, now: Instant) {
        let is_recent = |at: &Instant| now.duration_since(*at) <= FIGHT_WINDOW;
        self.heals
            .retain(|_, heals| heals.back().is_some_and(is_recent));
    }

    fn failures(&self, namespace: &Namespace) -> u32 {
        self.failed
            .get(namespace)
            .map_or(0, |trouble| trouble.failures)
    }

    fn leave_alone(&mut self, namespace: &Namespace, failures: u32, now: Instant) -> Duration {
        let pause = backoff(failures, namespace.as_str());
        let until = now + pause;
        self.failed
            .insert(namespace.clone(), Trouble { failures, until });
        pause
    }
}

fn is_fight(heals: &VecDeque<Instant>) -> bool {
    heals.len() >= FIGHT_FROM
}

#[cfg(test)]
mod tests {
    use super::*;

    fn team() -> Namespace {
        Namespace::parse("team").expect("valid")
    }

    #[tokio::test(start_paused = true)]
    async fn the_third_repair_in_a_while_is_a_fight_which_success_does_not_end() {
        let (mut troubles, start) = (Troubles::default(), Instant::now());
        let after = |minutes| start + Duration::from_mins(minutes);
        assert_eq!(troubles.healed(&team(), start), None);
        assert_eq!(troubles.healed(&team(), after(1)), None);
        assert!(troubles.went_well(&team()));
        let fight = troubles.healed(&team(), after(2)).expect("a fight");
        assert_eq!(fight.times, 3);
        assert!(fight.pause >= Duration::from_secs(12), "{fight:?}");
        assert_eq!(troubles.until(&team()), Some(after(2) + fight.pause));
        assert!(!troubles.went_well(&team()));
        let next = troubles.healed(&team(), after(3)).expect("a fight");
        assert!(next.pause > fight.pause);
        troubles.start_over();
        assert!(troubles.until(&team()).is_some(), "a fight goes on");
        // Each but the last is too long ago.
        assert_eq!(troubles.healed(&team(), after(19)), None);
        troubles.forget_peace(after(36));
        assert!(troubles.went_well(&team()) && troubles.until(&team()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_are_counted_until_one_goes_well_or_the_configuration_changes() {
        let (mut troubles, now) = (Troubles::default(), Instant::now());
        assert_eq!(
            (1..=3).map(|_| troubles.failed(&team(), now)).max(),
            Some(3)
        );
        assert!(troubles.until(&team()).is_some_and(|until| until > now));
        assert!(troubles.went_well(&team()));
        assert_eq!(troubles.failed(&team(), now), 1);
        troubles.start_over();
        assert_eq!(troubles.until(&team()), None);
    }
}
