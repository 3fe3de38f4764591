//! The name of a Kubernetes namespace, checked before it becomes part of a URL, and its settings.

use std::{borrow::Borrow, fmt, sync::Arc};

/// The annotation of a namespace with the role that mints for it.
pub const ROLE_ANNOTATION: &str = "ecr-injector.dev/role-arn";

/// The label that opts a namespace in. The webhook configuration's selector and the guard have the
/// same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptIn {
    /// The label's key.
    pub label: String,
    /// The label's value.
    pub value: String,
}

/// The settings in an opted-in namespace's metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceSettings {
    /// The namespace's UID: a namespace that was deleted and created again is another.
    pub uid: Arc<str>,
    /// The text of [`ROLE_ANNOTATION`], unchecked.
    pub role: Option<Arc<str>>,
    /// Whether the namespace is being deleted: no object can be created there any more.
    pub is_terminating: bool,
}

/// A namespace's name: an RFC 1123 label of at most 63 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// Parses lower-case letters, digits and inner dashes; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        is_label(text).then(|| Self(text.into()))
    }

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a text is an RFC 1123 label.
#[must_use]
pub fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for Namespace {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_that_would_change_a_url_is_not_a_namespace() {
        for text in [
            "",
            "a/b",
            "a..b",
            "../x",
            "A",
            "a b",
            "-a",
            "a-",
            "ä",
            &"a".repeat(64),
        ] {
            assert_eq!(Namespace::parse(text), None, "{text}");
        }
        assert_eq!(
            Namespace::parse("team-a1").map(|n| n.to_string()),
            Some("team-a1".to_owned())
        );
    }

    #[test]
    fn namespace_is_found_by_its_text() {
        let name = Namespace::parse("team").expect("a name");
        assert_eq!(name.as_str(), "team");
        let names = std::collections::HashSet::from([name]);
        assert!(names.contains("team") && !names.contains("other"));
    }
}
