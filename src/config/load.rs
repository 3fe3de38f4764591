//! Loads the configuration: reads the file, parses its YAML, checks its fields.

use std::path::Path;

use super::{error::ConfigError, file::File, resolved::Config, shape};

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
        if value.is_null() {
            return Ok(Self::default());
        }
        let checked = shape::to_file(value).and_then(File::check);
        checked.map_err(|errors| ConfigError::Fields {
            path: path.to_owned(),
            errors,
        })
    }
}

pub(super) fn read_text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.display().to_string(),
        source,
    })
}

/// Parses YAML into an unchecked value; a text of blank lines and comments is `null`.
pub(super) fn parse_yaml(text: &str) -> Result<serde_json::Value, String> {
    let is_blank = |line: &str| line.trim().is_empty() || line.trim_start().starts_with('#');
    if text.lines().all(is_blank) {
        return Ok(serde_json::Value::Null);
    }
    // Comments that are kept are counted, and the parser gives up at the 33rd line in a row.
    let options = serde_saphyr::options! { emit_comments: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())
}
