//! Manifests as text: YAML and JSON in, YAML out, both as `kubectl` understands them.
//!
//! Kubernetes reads YAML 1.1 (`yes` is a boolean, `0644` is 420), so what is read here is read that way, and what is
//! written has quotes wherever any reader could take a text for something else. Order stays, comments do not.

use serde::{Serialize, Serializer};
use serde_json::{Map, Number, Value};
use serde_saphyr::{DoubleQuoted, Spanned, UserMessageFormatter};
use thiserror::Error;

/// Integers up to this are exact as floats.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// Why a text is not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TextError {
    /// Neither UTF-8 nor UTF-16 with its byte order mark.
    #[error("line {line}: not UTF-8 text")]
    Encoding {
        /// The line, from 1.
        line: usize,
    },
    /// Not YAML, or not JSON.
    #[error("document {document}, line {line}, column {column}: {message}")]
    Syntax {
        /// The document in the file, from 1.
        document: usize,
        /// The line in the file, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// A document that can't be an object.
    #[error(
        "document {document}, line {line}: expected an object with apiVersion and kind, got {got}"
    )]
    NotAnObject {
        /// The document in the file, from 1.
        document: usize,
        /// Its first line in the file, from 1.
        line: usize,
        /// What it is.
        got: &'static str,
    },
}

/// Reads every document of a file; empty ones are left out.
pub fn read(bytes: &[u8]) -> Result<Vec<Value>, TextError> {
    let text = decode(bytes)?;
    if !text.trim_start().starts_with('{') {
        return read_yaml(&text);
    }
    // JSON documents may stand one after the other, and its strings have escapes that YAML lacks. But YAML may begin
    // with a brace too, so the error that got further is the one to tell.
    read_json(&text).or_else(|json| {
        read_yaml(&text).map_err(|yaml| {
            if position(&yaml) < position(&json) {
                json
            } else {
                yaml
            }
        })
    })
}

/// Writes an object as a YAML document.
pub fn to_yaml(value: &Value) -> Result<String, serde_saphyr::SerializeError> {
    // Folding would turn every long argument of a container into lines that differ from what was written.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    serde_saphyr::to_string_with_options(&Written(value), options)
}

/// A value on its way out.
struct Written<'a>(&'a Value);

impl Serialize for Written<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            // kubectl's reader takes a tab at the start of a block for indentation, and refuses it.
            Value::String(text) if text.trim_start_matches([' ', '\n']).starts_with('\t') => {
                DoubleQuoted(text).serialize(serializer)
            }
            Value::Array(items) => serializer.collect_seq(items.iter().map(Written)),
            Value::Object(fields) => {
                serializer.collect_map(fields.iter().map(|(name, value)| (name, Written(value))))
            }
            scalar => scalar.serialize(serializer),
        }
    }
}

fn decode(bytes: &[u8]) -> Result<String, TextError> {
    // What PowerShell writes by default.
    let utf16 = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes.as_chunks();
        let units: Vec<u16> = pairs.iter().copied().map(unit).collect();
        String::from_utf16(&units)
            .ok()
            .filter(|_| rest.is_empty())
            .ok_or(TextError::Encoding { line: 1 })
    };
    match bytes {
        [0xff, 0xfe, rest @ ..] => utf16(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => utf16(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] | rest => match std::str::from_utf8(rest) {
            Ok(text) => Ok(text.to_owned()),
            Err(error) => {
                let before = &rest[..error.valid_up_to()];
                let line = before.split(|byte| *byte == b'\n').count();
                Err(TextError::Encoding { line })
            }
        },
    }
}

fn read_json(text: &str) -> Result<Vec<Value>, TextError> {
    let mut documents = Vec::new();
    for document in serde_json::Deserializer::from_str(text).into_iter::<Map<String, Value>>() {
        let document = document.map_err(|error| TextError::Syntax {
            document: documents.len() + 1,
            line: error.line(),
            column: error.column(),
            message: without_position(
                &error.to_string(),
                &format!(" at line {} column {}", error.line(), error.column()),
            ),
        })?;
        documents.push(Value::Object(document));
    }
    Ok(documents)
}

fn read_yaml(text: &str) -> Result<Vec<Value>, TextError> {
    // The parser's own limits are for strangers' input; a dump of a whole cluster exceeds them. Aliases stay limited,
    // and depth is what it is in JSON.
    let budget = serde_saphyr::budget! {
        max_events: usize::MAX,
        max_nodes: usize::MAX,
        max_documents: usize::MAX,
        max_total_scalar_bytes: usize::MAX,
        max_depth: 128,
    };
    let options = serde_saphyr::options! {
        budget: budget,
        legacy_octal_numbers: true,
        emit_comments: false,
        with_snippet: false,
    };
    let documents = serde_saphyr::from_multiple_with_options::<Spanned<Value>>(text, options)
        .map_err(|error| yaml_error(text, &error))?;
    documents
        .into_iter()
        .map(
            |Spanned {
                 mut value,
                 referenced,
                 ..
             }| {
                let got = match &value {
                    Value::Object(_) => {
                        shorten_numbers(&mut value);
                        return Ok(value);
                    }
                    Value::Array(_) => "a list",
                    _ => "a single value",
                };
                let line = usize::try_from(referenced.line()).unwrap_or(usize::MAX);
                Err(TextError::NotAnObject {
                    document: document_at(text, line),
                    line,
                    got,
                })
            },
        )
        .collect()
}

fn yaml_error(text: &str, error: &serde_saphyr::Error) -> TextError {
    let message = error.render_with_formatter(&UserMessageFormatter);
    let (line, column) = error
        .location()
        .map_or((1, 1), |at| (at.line(), at.column()));
    let message = without_position(&message, &format!(" at line {line}, column {column}"));
    let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    TextError::Syntax {
        document: document_at(text, number(line)),
        line: number(line),
        column: number(column),
        message,
    }
}

fn without_position(message: &str, position: &str) -> String {
    message.strip_suffix(position).unwrap_or(message).to_owned()
}

/// The number, from 1, of the document that has a line: each `---` begins one, and so does what stands before the first.
fn document_at(text: &str, line: usize) -> usize {
    let mut documents = 0;
    for line in text.lines().take(line) {
        let is_marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t']));
        let begins_bare =
            documents == 0 && !line.trim().is_empty() && !line.starts_with(['#', '%']);
        if is_marker || begins_bare {
            documents += 1;
        }
    }
    documents.max(1)
}

/// `1e3` and the like are floats in YAML; Kubernetes writes whole ones as integers before it looks at their type.
fn shorten_numbers(value: &mut Value) {
    match value {
        Value::Number(number) if number.is_f64() => {
            let whole = number
                .as_f64()
                .filter(|float| float.fract() == 0.0 && float.abs() <= MAX_EXACT);
            #[allow(
                clippy::cast_possible_truncation,
                reason = "whole and within ±2^53, so exact"
            )]
            if let Some(float) = whole {
                *number = Number::from(float as i64);
            }
        }
        Value::Array(items) => items.iter_mut().for_each(shorten_numbers),
        Value::Object(fields) => fields.values_mut().for_each(shorten_numbers),
        _ => {}
    }
}

fn position(error: &TextError) -> (usize, usize) {
    match error {
        TextError::Encoding { line } | TextError::NotAnObject { line, .. } => (*line, 0),
        TextError::Syntax { line, column, .. } => (*line, *column),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn one(text: &str) -> Value {
        let documents = read(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert_eq!(documents.len(), 1, "{text}");
        documents[0].clone()
    }

    fn error(text: &str) -> String {
        read(text.as_bytes()).expect_err("refused").to_string()
    }

    #[test]
    fn reads_scalars_as_kubectl_does() {
        // The right side is what sigs.k8s.io/yaml makes of the left one.
        for (text, expected) in [
            ("yes", json!(true)),
            ("on", json!(true)),
            ("y", json!(true)),
            ("N", json!(false)),
            ("\"yes\"", json!("yes")),
            ("0644", json!(420)),
            ("-017", json!(-15)),
            ("0o644", json!(420)),
            ("08", json!(8)),
            ("\"0123\"", json!("0123")),
            ("1e3", json!(1000)),
            ("'1e3'", json!("1e3")),
            ("1.10", json!(1.1)),
            ("0x1F", json!(31)),
            ("1_000", json!(1000)),
            (
                "12345678901234567890",
                json!(12_345_678_901_234_567_890_u64),
            ),
            ("-9223372036854775808", json!(i64::MIN)),
            ("2001-01-01", json!("2001-01-01")),
            ("1:30", json!("1:30")),
            ("~", json!(null)),
            ("", json!(null)),
            ("!!str 123", json!("123")),
            ("100m", json!("100m")),
        ] {
            assert_eq!(one(&format!("a: {text}\n")), json!({ "a": expected }));
        }
        assert_eq!(
            one("a: &x {k: 1}\nb: *x\nc: {<<: *x, z: 2}"),
            json!({"a": {"k": 1}, "b": {"k": 1}, "c": {"z": 2, "k": 1}})
        );
    }

    #[test]
    fn documents_are_kept_apart_and_empty_ones_left_out() {
        let count = |text: &str| read(text.as_bytes()).map(|documents| documents.len());
        assert_eq!(count(""), Ok(0));
        assert_eq!(count("---"), Ok(0));
        assert_eq!(count("# nothing\n"), Ok(0));
        assert_eq!(count("---\n---\n# c\n---\na: 1\n---\n"), Ok(1));
        assert_eq!(count("--- {a: 1}\n--- # c\nb: 2\n...\n"), Ok(2));
        assert_eq!(count("{\"a\": 1}\n{\"b\": 2}{}"), Ok(3));
        assert_eq!(count("{a: 1}\n---\nb: 2"), Ok(2));
        assert_eq!(count("a: |\n  ---\n  x\n"), Ok(1));
    }

    #[test]
    fn what_editors_on_windows_write_is_read() {
        let expected = json!({"a": "x\ny\n"});
        assert_eq!(one("\u{feff}a: |\r\n  x\r\n  y\r\n"), expected);
        let utf16 = |unit: fn(u16) -> [u8; 2]| -> Vec<u8> {
            "\u{feff}a: |\r\n  x\r\n  y\r\n"
                .encode_utf16()
                .flat_map(unit)
                .collect()
        };
        assert_eq!(read(&utf16(u16::to_le_bytes)), Ok(vec![expected.clone()]));
        assert_eq!(read(&utf16(u16::to_be_bytes)), Ok(vec![expected]));
        assert_eq!(
            read(b"a: 1\nb: \xc3(\n"),
            Err(TextError::Encoding { line: 2 })
        );
    }

    #[test]
    fn an_error_tells_document_and_position() {
        for (text, expected) in [
            (
                "a: 1\n---\nb: [1, 2\nc: 3\n",
                "document 2, line 4, column 2: illegal placement of ':' indicator",
            ),
            (
                "# why\n---\na:\n\tb: 1\n",
                "document 1, line 4, column 2: tabs disallowed",
            ),
            (
                "---\n---\n---\na: 1\na: 2\n",
                "document 3, line 5, column 1: duplicate mapping key `a`",
            ),
            (
                "a: .nan",
                "document 1, line 1, column 4: value `.nan` is not a finite number",
            ),
            (
                "{\"a\": 1}\n{\"b\": 2 \"c\"}",
                "document 2, line 2, column 9: expected `,` or `}`",
            ),
            (
                "a: 1\n---\n- b\n",
                "document 2, line 3: expected an object with apiVersion and kind, got a list",
            ),
            ("a: 1\n--- b\n", "document 2, line 2: expected an object"),
        ] {
            let got = error(text);
            assert!(got.starts_with(expected), "{text:?}: {got}");
            assert!(!got.contains(" at line"), "{got}");
        }
    }

    #[test]
    fn long_comments_deep_nesting_and_many_documents_are_no_error() {
        let comment = "  # why\n".repeat(100);
        assert_eq!(
            one(&format!("a:\n{comment}  b: 1\n")),
            json!({"a": {"b": 1}})
        );
        // A test's thread has a quarter of the main thread's stack.
        let deep = std::thread::Builder::new().stack_size(8 << 20).spawn(|| {
            let text: String = (0..120).map(|at| " ".repeat(at) + "a:\n").collect();
            one(&text);
            let text: String = (0..10_000).map(|at| " ".repeat(at) + "a:\n").collect();
            assert!(error(&text).starts_with("document 1, line 129, column "));
        });
        assert!(deep.expect("a thread").join().is_ok());
        assert_eq!(
            read("a: 1\n---\n".repeat(3000).as_bytes()).map(|d| d.len()),
            Ok(3000)
        );
    }

    #[test]
    fn an_alias_bomb_is_an_error() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for at in 1..12 {
            let before = format!("*a{}, ", at - 1).repeat(10);
            let line = format!("a{at}: &a{at} [{before}]\n");
            text.push_str(&line);
        }
        assert!(error(&text).starts_with("document 1, line "));
    }

    #[test]
    fn a_text_is_quoted_where_a_reader_could_take_it_for_something_else() {
        for text in [
            "yes",
            "No",
            "on",
            "y",
            "true",
            "null",
            "~",
            "",
            "0123",
            "1e3",
            "1_000",
            "0x1f",
            "1:30",
            "2001-01-01",
            "-",
            "- a",
            "a: b",
            "a #b",
            "#a",
            "*a",
            "&a",
            "!a",
            "@a",
            "%a",
            "`a",
            "=",
            "<<",
            " a",
            "a ",
            "---",
            ".5",
            "+1",
            "a:",
            "{a}",
            "[a]",
            "'",
            "\"",
        ] {
            for value in [
                json!({ "a": text }),
                json!({ text: "a" }),
                json!({"a": [text]}),
            ] {
                let yaml = to_yaml(&value).expect("YAML");
                assert!(yaml.contains(['"', '\'']), "{yaml}");
                assert_eq!(one(&yaml), value, "{yaml}");
            }
        }
    }

    #[test]
    fn a_text_that_begins_with_a_tab_is_no_block() {
        let value = json!({"a": "\tall: x\n", "b": "x\n\ty\n"});
        assert_eq!(
            to_yaml(&value).expect("YAML"),
            "a: \"\\tall: x\\n\"\nb: |\n  x\n  \ty\n"
        );
    }

    #[test]
    fn a_long_line_stays_one_line() {
        let value = json!({"args": ["word ".repeat(100).trim()]});
        assert_eq!(to_yaml(&value).expect("YAML").lines().count(), 2);
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let text = prop_oneof![
            "\\PC{0,12}",
            "[ -~]{0,12}",
            "[a \n\t:#-]{0,12}",
            "[0-9eExob_.:+-]{1,6}",
        ];
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<u64>().prop_map(Value::from),
            text.clone().prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 5, move |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
                prop::collection::vec((text.clone(), inner), 0..5)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back_the_same(value in any_value(), other in any_value()) {
            let documents = vec![json!({ "a": value }), json!({ "b": other })];
            let mut text = String::new();
            for document in &documents {
                text += "---\n";
                text += &to_yaml(document).expect("YAML");
            }
            prop_assert_eq!(read(text.as_bytes()), Ok(documents), "{}", text);
        }
    }
}
