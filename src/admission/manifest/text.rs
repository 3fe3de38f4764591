//! Manifests as text: reads YAML and JSON, and writes YAML, as `kubectl` does.
//!
//! Kubernetes reads YAML 1.1 (`yes` is a boolean, `0644` is 420), and so does this parser. A field
//! that is there twice is an error, although `kubectl` takes the last one. The writer quotes a text
//! wherever a parser could read it as another type. The order of fields stays; comments are lost.

mod json;
mod scalar;
mod yaml;

use serde::{Serialize, Serializer};
use serde_json::Value;
use serde_saphyr::DoubleQuoted;
use thiserror::Error;

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
        return yaml::read(&text);
    }
    // A JSON file may have several documents in a row, and JSON has escapes that YAML lacks. But
    // YAML may begin with a brace too, so the error of the parser that got further is returned.
    json::read(&text).or_else(|json| {
        yaml::read(&text).map_err(|yaml| {
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

/// Returns the message for a field that is there twice.
fn duplicate(name: &str) -> String {
    format!("duplicate mapping key `{name}`: leave one of the two")
}

fn without_position(message: &str, position: &str) -> String {
    message.strip_suffix(position).unwrap_or(message).to_owned()
}

fn position(error: &TextError) -> (usize, usize) {
    match error {
        TextError::Encoding { line } | TextError::NotAnObject { line, .. } => (*line, 0),
        TextError::Syntax { line, column, .. } => (*line, *column),
    }
}

#[cfg(test)]
mod tests;
