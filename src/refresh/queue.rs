//! Orders the namespaces by when there is something to do for them, and by whose turn it is. Pure:
//! the time is an argument.
//!
//! No urgency that a tenant can claim comes first for ever. Within a priority the namespace that
//! was served the longest ago comes first, and one of `TURNS_PER_ENDING` turns goes to the
//! credential that ends first, whatever its priority.

use std::collections::{BTreeSet, HashMap};

use jiff::Timestamp;

use super::plan::Priority;
use crate::cluster::namespace::Namespace;

/// One of so many turns goes to the credential that ends first.
const TURNS_PER_ENDING: u64 = 4;

/// The namespaces for which there is something to do, now or later.
#[derive(Debug, Default)]
pub struct WorkQueue {
    slots: HashMap<Namespace, Slot>,
    later: BTreeSet<(Timestamp, Namespace)>,
    /// The namespaces that are due, by priority and turn.
    ready: [BTreeSet<(Turn, Namespace)>; Priority::COUNT],
    /// The namespaces that are due and have a good credential, by when the credential ends.
    ending: BTreeSet<(Timestamp, Namespace)>,
    /// The last turn of each namespace.
    served: HashMap<Namespace, u64>,
    turns: u64,
}

/// When, and how urgently, a namespace is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// The urgency.
    pub priority: Priority,
    /// The time from which on the namespace is due.
    pub at: Timestamp,
    /// When the first good credential of the namespace ends. `None`: the namespace takes no turn
    /// that goes to the credential that ends first.
    pub ends: Option<Timestamp>,
}

/// The order within a priority: by the last turn, then by the end of the credential, then by when
/// the namespace was due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Turn {
    served: u64,
    ends: Timestamp,
    at: Timestamp,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    due: Due,
    /// The last turn at the time when the namespace was queued.
    served: u64,
    is_ready: bool,
}

impl Slot {
    /// Returns the turn of the slot. Not a field: there is a slot for every namespace.
    fn turn(&self) -> Turn {
        Turn {
            served: self.served,
            ends: self.due.ends.unwrap_or(self.due.at),
            at: self.due.at,
        }
    }
}

impl WorkQueue {
    /// Queues a namespace, instead of what was queued for it before.
    pub fn set(&mut self, namespace: &Namespace, due: Due) {
        if self
            .slots
            .get(namespace)
            .is_some_and(|slot| slot.due == due)
        {
            return;
        }
        self.remove(namespace);
        self.later.insert((due.at, namespace.clone()));
        let slot = Slot {
            due,
            served: self.served.get(namespace).copied().unwrap_or_default(),
            is_ready: false,
        };
        self.slots.insert(namespace.clone(), slot);
    }

    /// Takes a namespace out of the queue.
    pub fn remove(&mut self, namespace: &Namespace) {
        let Some(slot) = self.slots.remove(namespace) else {
            return;
        };
        if slot.is_ready {
            let ready = &mut self.ready[slot.due.priority as usize];
            ready.remove(&(slot.turn(), namespace.clone()));
            if let Some(ends) = slot.due.ends {
                self.ending.remove(&(ends, namespace.clone()));
            }
        } else {
            self.later.remove(&(slot.due.at, namespace.clone()));
        }
    }

    /// Forgets a namespace that no longer exists, with its last turn.
    pub fn forget(&mut self, namespace: &Namespace) {
        self.remove(namespace);
        self.served.remove(namespace);
    }

    /// Takes the namespace whose turn it is.
    pub fn pop(&mut self, now: Timestamp) -> Option<Namespace> {
        self.wake(now);
        let is_for_an_ending = (self.turns + 1).is_multiple_of(TURNS_PER_ENDING);
        let ending = self.ending.first().filter(|_| is_for_an_ending);
        let namespace = if let Some((_, namespace)) = ending {
            namespace.clone()
        } else {
            let mut ready = self.ready.iter();
            let (_, namespace) = ready.find_map(BTreeSet::first)?;
            namespace.clone()
        };
        self.remove(&namespace);
        Some(namespace)
    }

    /// Notes that a namespace took its turn.
    pub fn served(&mut self, namespace: &Namespace) {
        self.turns += 1;
        self.served.insert(namespace.clone(), self.turns);
    }

    fn wake(&mut self, now: Timestamp) {
        while self.later.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, namespace)) = self.later.pop_first() else {
                return;
            };
            if let Some(slot) = self.slots.get_mut(&namespace) {
                slot.is_ready = true;
                if let Some(ends) = slot.due.ends {
                    self.ending.insert((ends, namespace.clone()));
                }
                self.ready[slot.due.priority as usize].insert((slot.turn(), namespace));
            }
        }
    }

    /// Returns when the next namespace is due; `None` if none is queued.
    #[must_use]
    pub fn next_at(&self) -> Option<Timestamp> {
        let ready = self.ready.iter().find_map(BTreeSet::first);
        ready
            .map(|(turn, _)| turn.at)
            .or(self.later.first().map(|(at, _)| *at))
    }

    /// Returns how many namespaces are due at `now`, and since when the one that waits the longest
    /// is.
    pub fn backlog(&mut self, now: Timestamp) -> (usize, Option<Timestamp>) {
        self.wake(now);
        let ready = self.ready.iter().flatten();
        let due = self.ready.iter().map(BTreeSet::len).sum();
        (due, ready.map(|(turn, _)| turn.at).min())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn name(text: &str) -> Namespace {
        Namespace::parse(text).expect("valid")
    }

    fn seconds(seconds: i64) -> Timestamp {
        NOW + jiff::SignedDuration::from_secs(seconds)
    }

    fn set(queue: &mut WorkQueue, text: &str, priority: Priority, at: i64, ends: Option<i64>) {
        let due = Due {
            priority,
            at: seconds(at),
            ends: ends.map(seconds),
        };
        queue.set(&name(text), due);
    }

    fn drain(queue: &mut WorkQueue) -> Vec<String> {
        std::iter::from_fn(|| {
            let namespace = queue.pop(NOW)?;
            queue.served(&namespace);
            Some(namespace.to_string())
        })
        .collect()
    }

    #[test]
    fn queue_gives_by_priority_what_is_due() {
        let mut queue = WorkQueue::default();
        for (text, priority, at) in [
            ("due", Priority::Due, -3),
            ("pending", Priority::Pending, 0),
            ("changed", Priority::Changed, 0),
            ("later", Priority::Pending, 1),
            ("moved", Priority::Pending, -9),
            ("gone", Priority::Pending, -9),
        ] {
            set(&mut queue, text, priority, at, None);
        }
        assert_eq!(queue.backlog(NOW), (5, Some(seconds(-9))));
        set(&mut queue, "moved", Priority::Check, 0, None);
        queue.remove(&name("gone"));
        assert_eq!(drain(&mut queue), ["pending", "changed", "due", "moved"]);
        assert_eq!(queue.next_at(), Some(seconds(1)));
    }

    #[test]
    fn every_fourth_turn_goes_to_what_ends_first() {
        let mut queue = WorkQueue::default();
        for number in 0..6 {
            set(
                &mut queue,
                &format!("pending-{number}"),
                Priority::Pending,
                0,
                None,
            );
        }
        set(&mut queue, "ends-late", Priority::Due, -9, Some(200));
        set(&mut queue, "ends-soon", Priority::Check, -1, Some(100));
        let order = drain(&mut queue);
        assert_eq!(
            (order[3].as_str(), order[7].as_str()),
            ("ends-soon", "ends-late")
        );
    }

    #[test]
    fn within_a_priority_the_longest_unserved_comes_first() {
        let mut queue = WorkQueue::default();
        for text in ["a", "b", "c"] {
            set(&mut queue, text, Priority::Changed, 0, None);
        }
        assert_eq!(drain(&mut queue), ["a", "b", "c"]);
        set(&mut queue, "c", Priority::Changed, -9, None);
        set(&mut queue, "a", Priority::Changed, -1, None);
        set(&mut queue, "new", Priority::Changed, 0, None);
        assert_eq!(drain(&mut queue), ["new", "a", "c"]);
    }

    #[test]
    fn forgotten_namespace_has_its_turn_like_a_new_one() {
        let mut queue = WorkQueue::default();
        for text in ["a", "b"] {
            set(&mut queue, text, Priority::Changed, 0, None);
        }
        assert_eq!(drain(&mut queue), ["a", "b"]);
        set(&mut queue, "b", Priority::Changed, 0, None);
        queue.forget(&name("b"));
        assert_eq!(queue.next_at(), None);
        for text in ["a", "b"] {
            set(&mut queue, text, Priority::Changed, 0, None);
        }
        assert_eq!(drain(&mut queue), ["b", "a"]);
    }

    #[test]
    fn of_the_unserved_what_ends_first_comes_first() {
        let mut queue = WorkQueue::default();
        for (text, at, ends) in [("long", -20, 600), ("short", -5, 60), ("over", -1, -9)] {
            set(&mut queue, text, Priority::Due, at, Some(ends));
        }
        assert_eq!(drain(&mut queue), ["over", "short", "long"]);
    }

    #[test]
    fn one_hostile_namespace_never_takes_two_turns_in_a_row() {
        let mut queue = WorkQueue::default();
        for number in 0..20 {
            set(
                &mut queue,
                &format!("other-{number}"),
                Priority::Changed,
                0,
                None,
            );
        }
        let mut hostile = 0;
        for _ in 0..20 {
            set(&mut queue, "hostile", Priority::Changed, -100, None);
            let namespace = queue.pop(NOW).expect("some");
            queue.served(&namespace);
            hostile += usize::from(namespace.as_str() == "hostile");
        }
        assert_eq!(hostile, 1);
    }
}
