//! The text of one Kubernetes Event: reason, action, note, and the key that deduplicates it.

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::ObjectReference;

use super::namespace::Namespace;

/// The longest note in bytes; the API server refuses a longer one.
const MAX_NOTE: usize = 1024;
/// The part of a note that may quote a foreign text, in bytes.
const MAX_QUOTE: usize = 400;
/// The longest word that is quoted, in bytes: a longer one is no word of a message, but perhaps a
/// token.
const MAX_WORD: usize = 160;

/// The type of an Event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// Nothing has to be done.
    Normal,
    /// Somebody may have to act.
    Warning,
}

impl EventType {
    /// Returns the value of an Event's `type`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// The content of an Event, without the namespace and the object that it regards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRecord {
    /// The type.
    pub event_type: EventType,
    /// The reason, a word in upper camel case.
    pub reason: &'static str,
    /// The action, a word in upper camel case.
    pub action: &'static str,
    /// The note, at most 1 KiB.
    pub note: String,
    /// Distinguishes Events of one reason: those with equal keys are duplicates.
    pub dedup_key: String,
}

impl EventRecord {
    /// Creates a Normal Event, which duplicates every other of its reason.
    #[must_use]
    pub fn normal(reason: &'static str, action: &'static str, note: &str) -> Self {
        Self {
            event_type: EventType::Normal,
            ..Self::warning(reason, action, String::new(), note)
        }
    }

    /// Creates a Warning.
    #[must_use]
    pub fn warning(
        reason: &'static str,
        action: &'static str,
        dedup_key: String,
        note: &str,
    ) -> Self {
        Self {
            event_type: EventType::Warning,
            reason,
            action,
            note: clip(note, MAX_NOTE),
            dedup_key,
        }
    }
}

/// Converts a domain's event to the text of a Kubernetes Event.
pub trait ToEventRecord {
    /// Returns the Event's text; `name` is the name of the object that the Event regards.
    fn to_record(&self, name: &str, namespace: &Namespace) -> EventRecord;

    /// Returns the object that this event regards, without its namespace, if that is another one
    /// than the recorder's.
    fn regarding(&self) -> Option<ObjectReference> {
        None
    }
}

/// Quotes a foreign text for a note: one line, not long, and no word that could be a token.
#[must_use]
pub fn quote(text: &str) -> String {
    let mut quoted = String::new();
    let words = text.split(|c: char| c.is_whitespace() || c.is_control());
    let mut words = words.filter(|word| !word.is_empty());
    // What is longer than the limit is cut.
    while quoted.len() <= MAX_QUOTE
        && let Some(word) = words.next()
    {
        let separator = if quoted.is_empty() { "" } else { " " };
        let word = if word.len() > MAX_WORD { "…" } else { word };
        // Writing to a String can't fail.
        let _ = write!(quoted, "{separator}{word}");
    }
    clip(&quoted, MAX_QUOTE)
}

/// Returns at most `limit` bytes of a text, with a mark where the text was cut.
#[must_use]
pub fn clip(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let mark = "…";
    let end = text.floor_char_boundary(limit - mark.len());
    text[..end].to_owned() + mark
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Plain;

    impl ToEventRecord for Plain {
        fn to_record(&self, name: &str, _: &Namespace) -> EventRecord {
            EventRecord::normal("Reason", "Action", name)
        }
    }

    #[test]
    fn normal_events_of_a_reason_are_duplicates_and_regard_one_object() {
        let namespace = Namespace::parse("team").expect("a name");
        let record = |name: &str| Plain.to_record(name, &namespace);
        assert_eq!(record("a").event_type.as_str(), "Normal");
        assert_eq!(record("a").dedup_key, record("b").dedup_key);
        assert_eq!(Plain.regarding(), None);
        let warning = EventRecord::warning("Reason", "Action", "key".to_owned(), "note");
        assert_eq!(
            (warning.event_type.as_str(), &*warning.dedup_key),
            ("Warning", "key")
        );
    }

    #[test]
    fn quoted_text_is_one_line_without_words_that_could_be_tokens() {
        let longest = "x".repeat(MAX_WORD);
        for (text, expected) in [
            ("", String::new()),
            (" a\n\tb\u{1b}c ", "a b c".to_owned()),
            (&longest, longest.clone()),
            (&format!("a {longest}x b"), "a … b".to_owned()),
        ] {
            assert_eq!(quote(text), expected, "{text}");
        }
    }

    #[test]
    fn quoted_text_that_goes_on_ends_with_a_mark() {
        // Four words of 99 bytes with their separators, then as many as fit.
        let whole = vec!["x".repeat(99); 4].join(" ") + "x";
        assert_eq!(whole.len(), MAX_QUOTE);
        assert_eq!(quote(&whole), whole);
        let cut = quote(&format!("{whole} y"));
        assert!(cut.ends_with('…') && cut.len() == MAX_QUOTE, "{cut}");
    }

    #[test]
    fn clipped_text_is_cut_between_characters() {
        assert_eq!(clip("äöü", 6), "äöü");
        assert_eq!(clip("äöüx", 6), "ä…");
        assert_eq!(clip("abcdefg", 6), "abc…");
    }
}
