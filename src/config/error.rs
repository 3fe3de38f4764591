//! The errors of a configuration file, each with the path of its field.

use std::fmt;

use thiserror::Error;

use crate::telemetry::printable::{cut, printable, shorten_quotes};

/// The most bytes of a file: no `ConfigMap` holds more.
pub(super) const MAX_BYTES: u64 = 1 << 20;
/// The most errors of a file: a person reads no further.
pub(super) const MAX_ERRORS: usize = 50;
/// The field of an error in the whole document.
pub(super) const ROOT: &str = ".";
/// The most characters of a field's path in an error.
const MAX_FIELD: usize = 120;

/// The reason why a configuration was rejected.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("reading {path}: check the path and its permissions")]
    Read {
        /// The file.
        path: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The file is larger than any configuration.
    #[error(
        "{path} has more than {MIB} MiB, and no ConfigMap holds more: check that it is the \
         configuration file",
        MIB = MAX_BYTES >> 20
    )]
    TooLarge {
        /// The file.
        path: String,
    },
    /// The text is not YAML.
    #[error("{path} is not YAML: {message}")]
    Yaml {
        /// The file.
        path: String,
        /// The parser's message.
        message: String,
    },
    /// Fields have wrong names, types or values.
    #[error("{path}: {}", joined(.errors))]
    Fields {
        /// The file.
        path: String,
        /// An error for each field, in the order of the checks; never empty.
        errors: Vec<FieldError>,
    },
}

/// An error in one field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// The field, as a path from the document's root.
    pub field: String,
    /// The error, and the values that the field takes.
    pub message: String,
}

impl FieldError {
    pub(super) fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        // Both may have text of the file, which a log and a terminal show as it is.
        Self {
            field: printable(&cut(&field.into(), MAX_FIELD)).into_owned(),
            message: printable(&shorten_quotes(&message.into())).into_owned(),
        }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field != ROOT {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

fn joined(errors: &[FieldError]) -> String {
    let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
    lines.join("; ")
}

/// Collects the errors of a file, so that its author sees all of them at once.
#[derive(Debug, Default)]
pub(super) struct FieldErrors(Vec<FieldError>);

impl FieldErrors {
    /// Returns the value of a check, or records its error and returns `None`.
    pub(super) fn record<T>(&mut self, checked: Result<T, FieldError>) -> Option<T> {
        checked.map_err(|error| self.0.push(error)).ok()
    }

    /// Adds an error.
    pub(super) fn push(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError::new(field, message));
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the value if there is no error, else all errors.
    pub(super) fn into_result<T>(self, value: T) -> Result<T, Vec<FieldError>> {
        let mut errors = self.0;
        if errors.is_empty() {
            return Ok(value);
        }
        errors.truncate(MAX_ERRORS);
        Err(errors)
    }
}
