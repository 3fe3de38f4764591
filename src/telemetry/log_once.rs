//! Logs a failure once until it changes or ends, however often the operation is retried.

/// Remembers the failure that was logged last.
#[derive(Debug)]
pub(crate) struct LogOnce<K = String>(Option<K>);

impl<K> Default for LogOnce<K> {
    fn default() -> Self {
        Self(None)
    }
}

impl<K: PartialEq> LogOnce<K> {
    /// Remembers a failure and returns whether it differs from the last one, so is to be logged.
    pub(crate) fn is_new(&mut self, failure: impl Into<K>) -> bool {
        let failure = Some(failure.into());
        let is_new = self.0 != failure;
        self.0 = failure;
        is_new
    }

    /// Forgets the failure, so that the same one is logged if it comes back. Returns whether there
    /// was one.
    pub(crate) fn clear(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_is_new_once_until_it_changes_or_ends() {
        let mut failures = LogOnce::<&str>::default();
        assert!(!failures.clear());
        for (failure, is_new) in [("a", true), ("a", false), ("b", true), ("a", true)] {
            assert_eq!(failures.is_new(failure), is_new, "{failure}");
        }
        assert!(failures.clear());
        assert!(failures.is_new("a"), "the failure came back");
    }
}
