//! Which namespaces have changed since the leader last looked: a set, so that a burst of changes costs one look each.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

use crate::cluster::namespace::Namespace;

/// The changed namespaces; clones share them. Nothing is kept while nobody listens.
#[derive(Debug, Clone, Default)]
pub struct Changes(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    listening: AtomicBool,
    changed: Mutex<HashSet<Namespace>>,
    news: Notify,
}

impl Changes {
    /// Something about a namespace or its pull secret has changed.
    pub fn notify(&self, namespace: &Namespace) {
        if self.are_heard() && self.changed().insert(namespace.clone()) {
            self.0.news.notify_one();
        }
    }

    /// From now on changes are kept; what was kept before is forgotten.
    pub fn listen(&self) {
        self.changed().clear();
        self.0.listening.store(true, Ordering::Release);
    }

    /// Whether anybody listens: whether this replica leads.
    #[must_use]
    pub fn are_heard(&self) -> bool {
        self.0.listening.load(Ordering::Acquire)
    }

    /// From now on changes are not kept.
    pub fn ignore(&self) {
        self.0.listening.store(false, Ordering::Release);
        *self.changed() = HashSet::new();
    }

    /// Waits for changes, and takes all that there are.
    pub async fn next(&self) -> HashSet<Namespace> {
        loop {
            let changed = std::mem::take(&mut *self.changed());
            if !changed.is_empty() {
                return changed;
            }
            self.0.news.notified().await;
        }
    }

    /// Takes one namespace out, if it has changed: whoever looks at it anyway need not be told.
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
