//! The limit of admissions that wait for calls to the API server or AWS.
//!
//! An admission that is answered from memory waits for nothing and needs no slot, so that what
//! waits, and a client that names many namespaces, can't keep a warm namespace from its answers.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::cluster::namespace::Namespace;

/// The most admissions that wait at the same time. Each holds its body, at most for the webhook's
/// timeout.
pub const MAX_WAITING: usize = 512;

/// The slots of waiting admissions; clones share them.
#[derive(Debug, Clone)]
pub(super) struct Slots {
    limit: usize,
    held: Arc<Mutex<Held>>,
}

#[derive(Debug, Default)]
struct Held {
    all: usize,
    by_namespace: HashMap<Namespace, usize>,
}

/// A slot, which is free again once dropped. It goes with the work, which may outlive the request
/// of a client that gives up.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Slots,
    namespace: Namespace,
}

impl Slots {
    /// Returns this many free slots.
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            held: Arc::default(),
        }
    }

    /// Takes a slot for an admission in a namespace; `None` if none is free for it. A namespace has
    /// at most as many slots as it leaves to all others: half of them while it is alone.
    pub(super) fn try_acquire(&self, namespace: &Namespace) -> Option<Slot> {
        let mut held = self.held();
        let own = held
            .by_namespace
            .get(namespace)
            .copied()
            .unwrap_or_default();
        if own >= self.limit - held.all {
            return None;
        }
        held.all += 1;
        held.by_namespace.insert(namespace.clone(), own + 1);
        Some(Slot {
            slots: self.clone(),
            namespace: namespace.clone(),
        })
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut held = self.slots.held();
        held.all -= 1;
        if let Some(own) = held.by_namespace.get_mut(&self.namespace) {
            *own -= 1;
            if *own == 0 {
                held.by_namespace.remove(&self.namespace);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(name: &str) -> Namespace {
        Namespace::parse(name).expect("a name")
    }

    fn take(slots: &Slots, name: &str) -> Vec<Slot> {
        std::iter::from_fn(|| slots.try_acquire(&namespace(name))).collect()
    }

    #[test]
    fn namespace_leaves_as_many_slots_as_it_takes() {
        let slots = Slots::new(512);
        let first = take(&slots, "one");
        assert_eq!(first.len(), 256);
        let second = take(&slots, "two");
        assert_eq!(second.len(), 128);
        assert_eq!(take(&slots, "three").len(), 64);
        drop(first);
        assert_eq!(take(&slots, "three").len(), 192);
    }

    #[test]
    fn no_more_slots_are_taken_than_there_are() {
        let slots = Slots::new(8);
        let names = (0..100).map(|number| format!("team-{number}"));
        let taken: Vec<_> = names
            .filter_map(|name| slots.try_acquire(&namespace(&name)))
            .collect();
        assert_eq!(taken.len(), 8);
    }

    #[test]
    fn dropped_slots_leave_nothing_behind() {
        let slots = Slots::new(8);
        drop((take(&slots, "one"), take(&slots, "two")));
        let held = slots.held();
        assert_eq!((held.all, held.by_namespace.len()), (0, 0));
    }
}
