//! The host name of a registry.

use std::{borrow::Borrow, fmt, sync::Arc};

/// A registry's host name as in image references: lower case, without port and scheme.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(pub(super) Arc<str>);

impl Host {
    /// Parses a lower-case DNS name of at least two labels and at most 253 bytes, or returns
    /// `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let label = |label: &str| {
            (1..=63).contains(&label.len())
                && label
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        (text.len() <= 253 && text.contains('.') && text.split('.').all(label))
            .then(|| Self(text.into()))
    }
}

as_text!(Host);

impl Borrow<str> for Host {
    fn borrow(&self) -> &str {
        &self.0
    }
}
