//! A value that is replaced while others read it.
//!
//! Whoever decides by it takes one snapshot for one decision. Two could be of two values, and a decision by halves of both
//! is by neither.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

/// The value of the moment; clones share it.
#[derive(Debug)]
pub struct Current<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    value: ArcSwap<T>,
    news: watch::Sender<()>,
}

/// Tells of each replacement.
#[derive(Debug)]
pub struct Follower<T> {
    current: Current<T>,
    news: watch::Receiver<()>,
}

impl<T> Clone for Current<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Current<T> {
    /// Begins with a value.
    #[must_use]
    pub fn new(value: impl Into<Arc<T>>) -> Self {
        Self(Arc::new(Inner {
            value: ArcSwap::new(value.into()),
            news: watch::Sender::new(()),
        }))
    }

    /// A snapshot, which stays as it is whatever becomes of the value.
    #[must_use]
    pub fn get(&self) -> Arc<T> {
        self.0.value.load_full()
    }

    /// From now on snapshots are of this one.
    pub fn replace(&self, value: impl Into<Arc<T>>) {
        self.0.value.store(value.into());
        self.0.news.send_replace(());
    }

    /// Hears of the replacements from now on. What it is told first is what comes after this call.
    #[must_use]
    pub fn follow(&self) -> Follower<T> {
        Follower {
            current: self.clone(),
            news: self.0.news.subscribe(),
        }
    }
}

impl<T> Follower<T> {
    /// Waits for a replacement. Of several the last one is told, once. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Arc<T> {
        // The sender lives as long as the value that is followed here.
        let _ = self.news.changed().await;
        self.current.get()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn a_snapshot_stays_as_it_is_when_the_value_is_replaced() {
        let current = Current::new(1);
        let (before, shared) = (current.get(), current.clone());
        current.replace(2);
        assert_eq!((*before, *current.get(), *shared.get()), (1, 2, 2));
    }

    #[test]
    fn each_replacement_is_told_once_and_of_several_the_last() {
        let current = Current::new(1);
        let mut follower = current.follow();
        assert_eq!(follower.next().now_or_never(), None);
        current.replace(2);
        current.replace(3);
        assert_eq!(follower.next().now_or_never().as_deref(), Some(&3));
        assert_eq!(follower.next().now_or_never(), None);
    }
}
