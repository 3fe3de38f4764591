//! Manifests as text: reads YAML and JSON, and writes YAML, as `kubectl` does.
//!
//! Kubernetes reads YAML 1.1 (`yes` is a boolean, `0644` is 420), and so does this parser. The
//! writer quotes a text wherever a parser could read it as another type. The order of fields stays;
//! comments are lost.

use serde::{Serialize, Serializer};
use serde_json::{Map, Number, Value};
use serde_saphyr::{DoubleQuoted, Spanned, UserMessageFormatter};
use thiserror::Error;

/// The greatest integer up to which all integers are exact as floats.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// The reason why a text is not a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TextError {
    /// The text is neither UTF-8 nor UTF-16 with its byte order mark.
    #[error("line {line}: not UTF-8 text")]
    Encoding {
        /// The line, from 1.
        line: usize,
    },
    /// The text is neither YAML nor JSON.
    #[error("document {document}, line {line}, column {column}: {message}")]
    Syntax {
        /// The document in the file, from 1.
        document: usize,
        /// The line in the file, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
        /// The parser's message.
        message: String,
    },
    /// The document is not an object.
    #[error(
        "document {document}, line {line}: expected an object with apiVersion and kind, got {got}"
    )]
    NotAnObject {
        /// The document in the file, from 1.
        document: usize,
        /// The document's first line in the file, from 1.
        line: usize,
        /// The type of the document.
        got: &'static str,
    },
}

/// Reads every document of a file; empty ones are left out.
pub fn read(bytes: &[u8]) -> Result<Vec<Value>, TextError> {
    let text = decode(bytes)?;
    if !text.trim_start().starts_with('{') {
        return read_yaml(&text);
    }
    // A JSON file may have several documents in a row, and JSON has escapes that YAML lacks. But
    // YAML may begin with a brace too, so the error of the parser that got further is returned.
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
    // Folding would break long arguments of containers into lines that differ from the input.
    let options = serde_saphyr::ser_options! { folded_wrap_chars: usize::MAX };
    serde_saphyr::to_string_with_options(&YamlValue(value), options)
}

/// Serializes a value as YAML that `kubectl` reads back unchanged.
struct YamlValue<'a>(&'a Value);

impl Serialize for YamlValue<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            // kubectl's parser reads a tab at the start of a block as indentation, and rejects it.
            Value::String(text) if text.trim_start_matches([' ', '\n']).starts_with('\t') => {
                DoubleQuoted(text).serialize(serializer)
            }
            Value::Array(items) => serializer.collect_seq(items.iter().map(YamlValue)),
            Value::Object(fields) => {
                serializer.collect_map(fields.iter().map(|(name, value)| (name, YamlValue(value))))
            }
            scalar => scalar.serialize(serializer),
        }
    }
}

fn decode(bytes: &[u8]) -> Result<String, TextError> {
    // PowerShell writes UTF-16 by default.
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
    // The parser's default limits are for untrusted input; a dump of a whole cluster exceeds them.
    // Aliases stay limited, and the depth is that of JSON.
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

/// Returns the number, from 1, of the document that has a line: each `---` begins one, and so does
/// any text before the first.
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

/// Converts whole floats to integers: `1e3` and the like are floats in YAML, and Kubernetes
/// converts whole ones before it checks their type.
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
mod tests;
