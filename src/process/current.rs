//! A value that is replaced while others read it.
//!
//! A decision takes one snapshot of the value. Two snapshots could be of two values, and a decision
//! by parts of both follows neither.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

/// The current value; clones share it.
#[derive(Debug)]
pub struct Current<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    value: ArcSwap<T>,
    changes: watch::Sender<()>,
}

/// Waits for replacements of the value.
#[derive(Debug)]
pub struct Follower<T> {
    current: Current<T>,
    changes: watch::Receiver<()>,
}

impl<T> Clone for Current<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Current<T> {
    /// Starts with a value.
    #[must_use]
    pub fn new(value: impl Into<Arc<T>>) -> Self {
        Self(Arc::new(Inner {
            value: ArcSwap::new(value.into()),
            changes: watch::Sender::new(()),
        }))
    }

    /// Returns a snapshot, which later replacements don't change.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        self.0.value.load_full()
    }

    /// Replaces the value for all later snapshots.
    pub fn replace(&self, value: impl Into<Arc<T>>) {
        self.0.value.store(value.into());
        self.0.changes.send_replace(());
    }

    /// Returns a follower of the replacements that come after this call.
    #[must_use]
    pub fn follow(&self) -> Follower<T> {
        Follower {
            current: self.clone(),
            changes: self.0.changes.subscribe(),
        }
    }
}

impl<T> Follower<T> {
    /// Waits for a replacement and returns the value. Of several replacements only the last is
    /// returned. None is lost if the future is dropped.
    pub async fn next(&mut self) -> Arc<T> {
        // The sender lives as long as the value that is followed here.
        let _ = self.changes.changed().await;
        self.current.get()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn snapshot_is_unchanged_by_a_replacement() {
        let current = Current::new(1);
        let (before, shared) = (current.get(), current.clone());
        current.replace(2);
        assert_eq!((*before, *current.get(), *shared.get()), (1, 2, 2));
    }

    #[test]
    fn follower_returns_the_last_replacement_once() {
        let current = Current::new(1);
        let mut follower = current.follow();
        assert_eq!(follower.next().now_or_never(), None);
        current.replace(2);
        current.replace(3);
        assert_eq!(follower.next().now_or_never().as_deref(), Some(&3));
        assert_eq!(follower.next().now_or_never(), None);
    }
}
