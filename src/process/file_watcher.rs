//! Watches files by polling: reports when what they hold differs from what is in use.
//!
//! The files are read every few seconds and compared. A kubelet changes a mounted `ConfigMap` or
//! Secret by swapping a symlink, and a file system notification reaches only a watch on the right
//! folder.

use std::time::Duration;

use tokio::time::sleep;

use super::files::off_the_workers;

/// How often the file of a configuration is read.
pub const PERIOD: Duration = Duration::from_secs(5);
/// How often the files of certificates are read: a change, which takes two reads, is in use within
/// ten seconds.
pub const CERT_PERIOD: Duration = Duration::from_secs(4);

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

/// Compares the content of files with the content in use. A change counts once it was read twice in
/// a row: whoever writes a file in place empties it first, the first half of a file may be valid
/// too, and of two files one is written first.
#[derive(Debug)]
pub(crate) struct FileWatcher<T> {
    in_use: T,
    /// The content of the last poll; none if it couldn't be read.
    last: Option<T>,
    period: Duration,
}

impl<T: PartialEq> FileWatcher<T> {
    /// Watches from the content in use, polling once a period.
    pub(crate) fn new(in_use: T, period: Duration) -> Self {
        Self {
            in_use,
            last: None,
            period,
        }
    }

    /// Waits for a period, reads the files where a read may wait, and compares. A change is
    /// reported by each poll until it is [accepted](Self::accept).
    pub(crate) async fn poll<E>(
        &mut self,
        read: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<FileChange<T>, E>
    where
        T: Clone + Send + 'static,
        E: Send + 'static,
    {
        sleep(self.period).await;
        match off_the_workers(read).await {
            Ok(content) => Ok(self.compare(content)),
            Err(error) => {
                self.last = None;
                Err(error)
            }
        }
    }

    fn compare(&mut self, content: T) -> FileChange<T>
    where
        T: Clone,
    {
        let is_settled = self.last.as_ref() == Some(&content);
        let change = if content == self.in_use {
            FileChange::None
        } else if is_settled {
            FileChange::Changed(content.clone())
        } else {
            FileChange::Unsettled
        };
        self.last = Some(content);
        change
    }

    /// Takes a content as the one in use.
    pub(crate) fn accept(&mut self, content: T) {
        self.in_use = content;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watcher() -> FileWatcher<&'static str> {
        FileWatcher::new("old", PERIOD)
    }

    #[test]
    fn change_is_reported_from_its_second_read_until_it_is_accepted() {
        let mut watcher = watcher();
        for (content, change) in [
            ("old", FileChange::None),
            ("n", FileChange::Unsettled),
            ("new", FileChange::Unsettled),
            ("old", FileChange::None),
            ("new", FileChange::Unsettled),
            ("new", FileChange::Changed("new")),
            ("new", FileChange::Changed("new")),
        ] {
            assert_eq!(watcher.compare(content), change, "{content}");
        }
        watcher.accept("new");
        assert_eq!(watcher.compare("new"), FileChange::None);
        assert_eq!(watcher.compare("old"), FileChange::Unsettled);
        assert_eq!(watcher.compare("old"), FileChange::Changed("old"));
    }

    #[test]
    fn refused_change_that_comes_back_is_read_twice_again() {
        let mut watcher = watcher();
        for (content, change) in [
            ("bad", FileChange::Unsettled),
            ("bad", FileChange::Changed("bad")),
            ("half", FileChange::Unsettled),
            ("bad", FileChange::Unsettled),
            ("bad", FileChange::Changed("bad")),
            ("old", FileChange::None),
            ("bad", FileChange::Unsettled),
        ] {
            assert_eq!(watcher.compare(content), change, "{content}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn poll_waits_for_a_period_and_returns_the_read_error() {
        let mut watcher = watcher();
        let start = tokio::time::Instant::now();
        assert_eq!(watcher.poll(|| Err("unreadable")).await, Err("unreadable"));
        assert_eq!(start.elapsed(), PERIOD);
        for content in [Ok("new"), Err("unreadable"), Ok("new")] {
            let expected = content.map(|_| FileChange::Unsettled);
            assert_eq!(watcher.poll(move || content).await, expected);
        }
    }
}
