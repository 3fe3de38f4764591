//! The text of a YAML parser's error, for the author of a file: the library's own texts are partly
//! for the programmer who calls it, with names of its types and settings.

use std::borrow::Cow;

use serde_saphyr::{Error, MessageFormatter, UserMessageFormatter};

/// The texts of errors in files. Those of the library stay where they are about YAML.
struct FileMessages;

impl MessageFormatter for FileMessages {
    fn format_message<'a>(&self, error: &'a Error) -> Cow<'a, str> {
        match error {
            Error::Budget { .. }
            | Error::AliasReplayCounterOverflow { .. }
            | Error::AliasReplayLimitExceeded { .. }
            | Error::AliasExpansionLimitExceeded { .. }
            | Error::AliasReplayStackDepthExceeded { .. } => Cow::Borrowed(
                "the file is larger, deeper or has more aliases than any such file needs",
            ),
            Error::MergeValueNotMapOrSeqOfMaps { .. } => {
                Cow::Borrowed("a merge key (<<) takes a map, or a list of maps")
            }
            Error::UnsupportedTag { tag, .. }
            | Error::TaggedStructFieldName { tag, .. }
            | Error::TaggedEnumMismatch { tagged: tag, .. } => {
                Cow::Owned(format!("the tag `{tag}` is not understood here: remove it"))
            }
            Error::TaggedScalarCannotDeserializeIntoString { .. }
            | Error::BytesNotSupportedMissingBinaryTag { .. }
            | Error::BinaryNotUtf8 { .. }
            | Error::InvalidBinaryBase64 { .. } => {
                Cow::Borrowed("the tag of this value is not understood here: remove it")
            }
            Error::SerdeInvalidType {
                unexpected,
                expected,
                ..
            }
            | Error::SerdeInvalidValue {
                unexpected,
                expected,
                ..
            } => Cow::Owned(format!(
                "expected {}, got {}",
                plain(expected),
                plain(unexpected)
            )),
            Error::Unexpected { expected, .. } => {
                Cow::Owned(format!("expected {}", plain(expected)))
            }
            Error::InvalidScalar { ty, .. } => Cow::Owned(format!("expected {}", scalar(ty))),
            Error::InvalidBooleanStrict { .. } => Cow::Borrowed("expected true or false"),
            Error::Message { msg, .. } => plain(msg),
            _ => UserMessageFormatter.format_message(error),
        }
    }
}

/// Returns the error's text with its place in the file.
pub(crate) fn text(error: &Error) -> String {
    error.render_with_formatter(&FileMessages)
}

/// Returns the words for a type of number or another single value.
fn scalar(name: &str) -> &'static str {
    match name.as_bytes() {
        [b'u', b'0'..=b'9', ..] | b"usize" => "a whole number from 0 on",
        [b'i', b'0'..=b'9', ..] | b"isize" => "a whole number",
        b"boolean" | b"bool" => "true or false",
        [b'f', ..] => "a number",
        _ => "another value",
    }
}

/// Replaces serde's words for types by those of a file.
fn plain(text: &str) -> Cow<'_, str> {
    let mut plain = Cow::Borrowed(text);
    for (word, by) in [
        ("unit value", "nothing"),
        ("a string key", "a text as the name of a field"),
        ("string scalar", "a text"),
        ("binary scalar", "a text"),
        ("string ", "the text "),
        ("a string", "a text"),
        ("sequence start", "a list"),
        ("mapping start", "a map"),
        ("sequence", "a list"),
        ("boolean ", ""),
        ("a boolean", "true or false"),
        ("integer ", "the number "),
        ("floating point ", "the number "),
    ] {
        if plain.contains(word) {
            plain = Cow::Owned(plain.replace(word, by));
        }
    }
    // "struct File": a map to the author of the file.
    match plain.split_once("struct ") {
        Some((before, after)) => {
            let rest = after.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_');
            Cow::Owned(format!("{before}a map{rest}"))
        }
        None if &*plain == "map" => Cow::Borrowed("a map"),
        None => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    enum Mode {
        On,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "only its errors are read")]
    struct File {
        number: Option<u8>,
        flag: Option<bool>,
        name: Option<String>,
        mode: Option<Mode>,
        any: Option<serde_json::Number>,
    }

    #[test]
    fn errors_are_about_the_file_and_not_about_the_program() {
        for (yaml, expected) in [
            ("number: -1", "expected a whole number from 0 on"),
            ("flag: 7", "expected true or false"),
            ("name: [a]", "expected a text"),
            ("7", "expected a map"),
            ("any: x", "expected a JSON number, got the text \"x\""),
            ("<<: 7", "a merge key (<<) takes a map, or a list of maps"),
            (
                "mode: !x On",
                "the tag `x` is not understood here: remove it",
            ),
            (
                "name: !!int 7",
                "the tag of this value is not understood here: remove it",
            ),
            ("name: 'x", "unclosed quote"),
        ] {
            let error = serde_saphyr::from_str::<File>(yaml).expect_err(yaml);
            let error = text(&error);
            let line = error.lines().next().unwrap_or_default();
            assert!(line.ends_with(expected), "{expected}: {line}");
        }
    }

    #[test]
    fn words_for_types_are_those_of_a_file() {
        for (text, expected) in [
            ("sequence start", "a list"),
            ("string scalar", "a text"),
            ("struct File", "a map"),
            ("map", "a map"),
            ("a string", "a text"),
            ("string \"x\"", "the text \"x\""),
            ("sequence", "a list"),
            ("unit value", "nothing"),
            ("integer `5`", "the number `5`"),
            ("boolean `true`", "`true`"),
            ("did not find expected key", "did not find expected key"),
        ] {
            assert_eq!(plain(text), expected);
        }
        for (name, expected) in [
            ("u64", "a whole number from 0 on"),
            ("i128", "a whole number"),
            ("floating point", "a number"),
            ("boolean", "true or false"),
            ("char", "another value"),
        ] {
            assert_eq!(scalar(name), expected);
        }
    }
}
