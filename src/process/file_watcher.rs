//! Watches files by polling: reports when what they hold differs from what is in use.
//!
//! The files are read every few seconds and compared. A kubelet changes a mounted `ConfigMap` or
//! Secret by swapping a symlink, and a file system notification reaches only a watch on the right
//! folder.

use std::time::Duration;

use tokio::time::sleep;

/// How often the files of a configuration or a certificate are read.
pub const PERIOD: Duration = Duration::from_secs(5);

/// When a change counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settling {
    /// Once it was read: for a format in which half a file is invalid.
    Immediate,
    /// Once it was read twice in a row: whoever writes a file in place empties it first, and the
    /// first half of a file may be valid too.
    TwoReads,
}

/// The result of a poll.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FileChange<T> {
    /// The files hold what is in use.
    None,
    /// The files hold something new, which may still be half written.
    Unsettled,
    /// The files hold this instead of what is in use.
    Changed(T),
}

/// Compares the content of files with the content in use.
#[derive(Debug)]
pub(crate) struct FileWatcher<T> {
    in_use: T,
    /// The new content of the last poll, while it isn't settled.
    unsettled: Option<T>,
    settling: Settling,
    period: Duration,
}

impl<T: PartialEq> FileWatcher<T> {
    /// Watches from the content in use, polling once a period.
    pub(crate) fn new(in_use: T, settling: Settling, period: Duration) -> Self {
        Self {
            in_use,
            unsettled: None,
            settling,
            period,
        }
    }

    /// Waits for a period, reads the files and compares. A change is reported by each poll until it
    /// is [accepted](Self::accept).
    pub(crate) async fn poll<E>(
        &mut self,
        read: impl FnOnce() -> Result<T, E>,
    ) -> Result<FileChange<T>, E> {
        sleep(self.period).await;
        read().map(|content| self.compare(content))
    }

    fn compare(&mut self, content: T) -> FileChange<T> {
        if content == self.in_use {
            self.unsettled = None;
            return FileChange::None;
        }
        if self.settling == Settling::TwoReads && self.unsettled.as_ref() != Some(&content) {
            self.unsettled = Some(content);
            return FileChange::Unsettled;
        }
        self.unsettled = None;
        FileChange::Changed(content)
    }

    /// Takes a content as the one in use.
    pub(crate) fn accept(&mut self, content: T) {
        self.in_use = content;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watcher(settling: Settling) -> FileWatcher<&'static str> {
        FileWatcher::new("old", settling, PERIOD)
    }

    #[test]
    fn change_is_reported_until_it_is_accepted() {
        let mut watcher = watcher(Settling::Immediate);
        assert_eq!(watcher.compare("old"), FileChange::None);
        for _ in 0..2 {
            assert_eq!(watcher.compare("new"), FileChange::Changed("new"));
        }
        watcher.accept("new");
        assert_eq!(watcher.compare("new"), FileChange::None);
        assert_eq!(watcher.compare("old"), FileChange::Changed("old"));
    }

    #[test]
    fn change_that_settles_is_reported_at_its_second_read() {
        let mut watcher = watcher(Settling::TwoReads);
        for (content, change) in [
            ("n", FileChange::Unsettled),
            ("new", FileChange::Unsettled),
            ("old", FileChange::None),
            ("new", FileChange::Unsettled),
            ("new", FileChange::Changed("new")),
        ] {
            assert_eq!(watcher.compare(content), change, "{content}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn poll_waits_for_a_period_and_returns_the_read_error() {
        let mut watcher = watcher(Settling::Immediate);
        let start = tokio::time::Instant::now();
        assert_eq!(watcher.poll(|| Err("unreadable")).await, Err("unreadable"));
        assert_eq!(start.elapsed(), PERIOD);
    }
}
