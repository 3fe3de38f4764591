//! The host of a registry.

use std::{borrow::Borrow, fmt, sync::Arc};

/// A registry's host as in image references: a lower-case name, with a port if the reference has
/// one, without scheme. The kubelet's keyring compares names and ports as texts: a host without a
/// port and the same with `:443` are two.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Host(pub(super) Arc<str>);

impl Host {
    /// Parses a lower-case DNS name of at least two labels, or of one with a port, and at most 253
    /// bytes; or returns `None`. Without dot and port, image references take it for a path.
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
        let name = split_port(text)?;
        let is_domain = name.contains('.') || name.len() < text.len();
        (text.len() <= 253 && is_domain && name.split('.').all(label)).then(|| Self(text.into()))
    }
}

as_text!(Host);

impl Borrow<str> for Host {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Returns a host's text without its port, or `None` if the text after the colon is not a port.
pub(super) fn split_port(host: &str) -> Option<&str> {
    match host.split_once(':') {
        None => Some(host),
        Some((name, port)) => is_port(port).then_some(name),
    }
}

/// Returns whether a text is a port from 1 to 65535 without leading zeros: another spelling of the
/// same port would be another key of the docker config.
pub(super) fn is_port(text: &str) -> bool {
    let is_canonical = text.bytes().all(|b| b.is_ascii_digit()) && !text.starts_with('0');
    is_canonical && text.parse::<u16>().is_ok()
}
