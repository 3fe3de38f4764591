//! The namespaces that changed since the leader last took them: a set, so that a burst of changes
//! costs one reconciliation each.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

use crate::cluster::namespace::Namespace;

/// The changed namespaces, shared by clones. Nothing is kept while there is no listener.
#[derive(Debug, Clone, Default)]
pub struct Changes(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    has_listener: AtomicBool,
    changed: Mutex<HashSet<Namespace>>,
    notify: Notify,
}

impl Changes {
    /// Adds a namespace that has changed, or whose pull secret has.
    pub fn notify(&self, namespace: &Namespace) {
        if self.has_listener() && self.changed().insert(namespace.clone()) {
            self.0.notify.notify_one();
        }
    }

    /// Keeps changes from now on, and forgets those from before.
    pub fn listen(&self) {
        self.changed().clear();
        self.0.has_listener.store(true, Ordering::Release);
    }

    /// Whether there is a listener, that is, whether this replica leads.
    #[must_use]
    pub fn has_listener(&self) -> bool {
        self.0.has_listener.load(Ordering::Acquire)
    }

    /// Keeps no changes from now on.
    pub fn ignore(&self) {
        self.0.has_listener.store(false, Ordering::Release);
        *self.changed() = HashSet::new();
    }

    /// Waits for changes, and takes all of them.
    pub async fn next(&self) -> HashSet<Namespace> {
        loop {
            let changed = std::mem::take(&mut *self.changed());
            if !changed.is_empty() {
                return changed;
            }
            self.0.notify.notified().await;
        }
    }

    /// Takes one namespace, if it has changed, for a caller that reconciles it anyway.
    #[must_use]
    pub fn take(&self, namespace: &Namespace) -> bool {
        self.changed().remove(namespace)
    }

    fn changed(&self) -> MutexGuard<'_, HashSet<Namespace>> {
        self.0
            .changed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
