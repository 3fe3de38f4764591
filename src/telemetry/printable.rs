//! Writes a text from outside, such as a manifest or an answer of the API server, on one line of a
//! terminal.

use std::{borrow::Cow, fmt::Write as _};

/// The most characters of a value in an error.
const MAX_QUOTE: usize = 80;
/// The most characters of an error's message, which may name every field of the configuration.
const MAX_MESSAGE: usize = 700;

/// Returns the text with each character escaped that could move the cursor, begin a line or reverse
/// the direction of writing: a terminal shows the text as it is, and no reader takes a part of it
/// for a line of its own.
#[must_use]
pub(crate) fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_printable) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_printable(c) {
            escaped.push(c);
        } else {
            escaped.extend(c.escape_debug());
        }
    }
    Cow::Owned(escaped)
}

/// Returns the text with all but its line breaks escaped, and its further lines indented, so that
/// none looks like a line of the program.
#[must_use]
pub(crate) fn printable_lines(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(printable).collect();
    lines.join("\n  ")
}

/// Returns a JSON text with the same characters escaped as JSON has it, so that its value stays.
#[must_use]
pub(crate) fn printable_json(json: &str) -> String {
    let mut escaped = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || is_printable(c) {
            escaped.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            // Writing to a String can't fail.
            let _ = write!(escaped, "\\u{unit:04x}");
        }
    }
    escaped
}

/// Returns whether a character is visible. `escape_debug` escapes every control and format
/// character, and every space but the common one.
fn is_printable(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\') || c.escape_debug().eq([c])
}

/// Returns the beginning of a value from outside, for an error.
#[must_use]
pub(crate) fn shortened(value: &str) -> Cow<'_, str> {
    cut(value, MAX_QUOTE)
}

/// Returns a text, or its beginning if it has more characters.
#[must_use]
pub(crate) fn cut(text: &str, max: usize) -> Cow<'_, str> {
    match text.char_indices().nth(max) {
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
        None => Cow::Borrowed(text),
    }
}

/// Returns a message with each text in quotes shortened, whoever wrote the message: what it quotes
/// may be a wrong file, with a secret in it.
#[must_use]
pub(crate) fn shorten_quotes(message: &str) -> String {
    let mut short = String::new();
    let mut rest = message;
    while let Some(start) = rest.find(['"', '`']) {
        let (before, quoted) = rest.split_at(start);
        let (quote, inner) = quoted.split_at(1);
        let Some(end) = closing(inner, quote.as_bytes()[0]) else {
            break;
        };
        short += before;
        short += quote;
        short += &shortened(&inner[..end]);
        short += quote;
        rest = &inner[end + 1..];
    }
    short += rest;
    cut(&short, MAX_MESSAGE).into_owned()
}

/// Returns the position of the quote that ends a text; a backslash escapes double quotes alone.
fn closing(inner: &str, quote: u8) -> Option<usize> {
    let mut is_escaped = false;
    inner.bytes().position(|byte| {
        let ends = byte == quote && !is_escaped;
        is_escaped = byte == b'\\' && quote == b'"' && !is_escaped;
        ends
    })
}

/// Returns a number with its noun: `1 namespace`, `2 namespaces`, `2 registries`.
#[must_use]
pub(crate) fn count(number: usize, noun: &str) -> String {
    match noun.strip_suffix('y') {
        _ if number == 1 => format!("1 {noun}"),
        Some(stem) => format!("{number} {stem}ies"),
        None => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invisible_characters_are_escaped_and_others_kept() {
        for text in ["", "web:1.4", "\"quoted\" 'text' C:\\x", "Größe 你好 …"] {
            assert_eq!(printable(text), text);
        }
        for (text, expected) in [
            ("a\x1b[31mb", "a\\u{1b}[31mb"),
            ("a\nPod b: inject", "a\\nPod b: inject"),
            ("a\r\tb\0", "a\\r\\tb\\0"),
            ("a\u{9b}31m", "a\\u{9b}31m"),
            ("a\u{202e}b\u{2066}", "a\\u{202e}b\\u{2066}"),
            ("a\u{200b}\u{feff}\u{2028}", "a\\u{200b}\\u{feff}\\u{2028}"),
            ("a\u{85}\u{a0}\u{e0041}", "a\\u{85}\\u{a0}\\u{e0041}"),
        ] {
            assert_eq!(printable(text), expected);
        }
    }

    #[test]
    fn json_keeps_its_value() {
        let value = serde_json::json!({"a\u{202e}": "x\u{9b}\u{e0041}\n", "b": "Größe"});
        let json = printable_json(&format!("{value:#}\n"));
        assert!(
            json.chars().all(|c| c == '\n' || is_printable(c)),
            "{json:?}"
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&json).expect("JSON"),
            value
        );
    }

    #[test]
    fn number_has_its_noun() {
        assert_eq!(count(1, "registry"), "1 registry");
        assert_eq!(count(0, "registry"), "0 registries");
        assert_eq!(count(2, "namespace"), "2 namespaces");
    }

    #[test]
    fn quoted_text_ends_at_a_quote_of_its_kind() {
        for (inner, quote, end) in [
            (r#"a"b"#, b'"', Some(1)),
            (r#"a\"b"c"#, b'"', Some(4)),
            (r#"a\\"b"#, b'"', Some(3)),
            ("a`b", b'"', None),
            (r"a\`b`", b'`', Some(2)),
            (r#"a"b`"#, b'`', Some(3)),
        ] {
            assert_eq!(closing(inner, quote), end, "{inner}");
        }
    }

    #[test]
    fn further_lines_are_indented() {
        assert_eq!(printable_lines("a\nb\r\n"), "a\n  b\\r\n  ");
    }

    #[test]
    fn quoted_text_is_shortened_and_the_rest_kept() {
        let long = "x".repeat(1000);
        let short = format!("{}…", "x".repeat(80));
        for (quoted, expected) in [
            (format!("got {long:?}: why"), format!("got {short:?}: why")),
            (
                format!("`{long}` and {long:?}"),
                format!("`{short}` and {short:?}"),
            ),
            (
                "\"a\\\"b\" `c`, `d".to_owned(),
                "\"a\\\"b\" `c`, `d".to_owned(),
            ),
        ] {
            assert_eq!(shorten_quotes(&quoted), expected);
        }
        let escaped = format!("{:?}", "\"".repeat(1000));
        assert!(shorten_quotes(&escaped).len() < 100);
        let endless = format!("\"{long}");
        assert!(shorten_quotes(&endless).chars().count() <= MAX_MESSAGE + 1);
    }
}
