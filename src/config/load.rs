//! Loads the configuration: reads the file, parses its YAML, checks its fields.

use std::path::Path;

use serde_json::{Map, Value};
use serde_saphyr::UserMessageFormatter;

use super::{error::ConfigError, file::File, resolved::Config, shape};
use crate::telemetry::printable::printable;

impl Config {
    /// Reads and checks the file, if there is a path; without one every field has its default.
    pub fn load_or_default(path: Option<&Path>) -> Result<Self, ConfigError> {
        path.map_or_else(|| Ok(Self::default()), Self::read)
    }

    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_text(path)?, &path.display().to_string())
    }

    /// Checks a file's text; `path` appears in the errors alone.
    pub fn parse(text: &str, path: &str) -> Result<Self, ConfigError> {
        let value = parse_yaml(text).map_err(|message| ConfigError::Yaml {
            path: path.to_owned(),
            message,
        })?;
        // An empty file is read as an object without a field.
        let value = if value.is_null() {
            Value::Object(Map::new())
        } else {
            value
        };
        let checked = shape::to_file(value).and_then(File::check);
        checked.map_err(|errors| ConfigError::Fields {
            path: path.to_owned(),
            errors,
        })
    }
}

#[cfg(test)]
impl Config {
    /// Checks a file with these fields, in block style or in braces, behind its apiVersion and kind.
    pub(crate) fn parse_fields(fields: &str, path: &str) -> Result<Self, ConfigError> {
        Self::parse(&with_header(fields), path)
    }
}

#[cfg(test)]
pub(super) fn with_header(fields: &str) -> String {
    let header = ["apiVersion: ecr-injector.dev/v1alpha1", "kind: Config"];
    match fields.trim_start().strip_prefix('{') {
        Some(rest) => format!("{{{}, {rest}", header.join(", ")),
        None => format!("{}\n{fields}", header.join("\n")),
    }
}

pub(super) fn read_text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.display().to_string(),
        source,
    })
}

/// Parses YAML into an unchecked value; a text of blank lines and comments is `null`.
pub(super) fn parse_yaml(text: &str) -> Result<Value, String> {
    let is_blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    if text.lines().all(is_blank) {
        return Ok(Value::Null);
    }
    let options = serde_saphyr::options! {
        // Comments that are kept are counted, and the parser gives up at the 33rd line in a row.
        emit_comments: false,
        with_snippet: false,
    };
    let value = serde_saphyr::from_str_with_options(text, options);
    value.map_err(|error| {
        let message = error.render_with_formatter(&UserMessageFormatter);
        printable(&message).into_owned()
    })
}
