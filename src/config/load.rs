//! Loads the configuration: reads the file, parses its YAML, checks its fields.

use std::{
    io::{self, ErrorKind, Read},
    path::Path,
};

use serde_json::{Map, Value};
use tracing_subscriber::EnvFilter;

use super::{
    error::{ConfigError, FieldError, MAX_BYTES},
    file::{API_VERSION, KIND, ParseFilter},
    resolved::Config,
    shape,
};
use crate::{
    process::files,
    telemetry::{
        printable::{printable, shorten_quotes},
        yaml_error,
    },
};

/// Values of the chart by which a file of values is recognized; no field has such a name.
pub(super) const CHART_VALUES: [&str; 5] = ["config", "webhook", "certificates", "aws", "image"];

impl Config {
    /// Reads and checks the file, if there is a path; without one every field has its default.
    pub fn load_or_default(path: Option<&Path>) -> Result<Self, ConfigError> {
        path.map_or_else(|| Ok(Self::default()), Self::read)
    }

    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_text(path)?, &path.display().to_string())
    }

    /// Reads and checks a file for a program that has no use for the log filter, so that the parser
    /// of filters is no part of the program. Without a path every field has its default.
    pub fn read_without_log_filter(path: Option<&Path>) -> Result<Self, ConfigError> {
        let Some(path) = path else {
            return Ok(Self::default());
        };
        let name = path.display().to_string();
        Self::check_with(to_value(&read_text(path)?, &name)?, &name, |_| Ok(()))
    }

    /// Reads and checks a configuration from elsewhere; `name` appears in the errors alone.
    pub fn read_from(source: impl Read, name: &str) -> Result<Self, ConfigError> {
        Self::parse(&read_all(source, name)?, name)
    }

    /// Checks a file's text; `path` appears in the errors alone.
    pub fn parse(text: &str, path: &str) -> Result<Self, ConfigError> {
        Self::check(to_value(text, path)?, path)
    }

    /// Checks a file's content; `path` appears in the errors alone.
    pub(super) fn check(value: Value, path: &str) -> Result<Self, ConfigError> {
        Self::check_with(value, path, |filter| {
            let parsed = EnvFilter::builder().parse(filter);
            parsed.map(drop).map_err(|error| error.to_string())
        })
    }

    fn check_with(
        value: Value,
        path: &str,
        parse_filter: ParseFilter,
    ) -> Result<Self, ConfigError> {
        // An empty file is read as an object without a field.
        let value = if value.is_null() {
            Value::Object(Map::new())
        } else {
            value
        };
        let checked = match other_file(&value) {
            Some(error) => Err(vec![error]),
            None => shape::to_file(value).and_then(|file| file.check(parse_filter)),
        };
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
    let name = path.display().to_string();
    match files::read(path) {
        Ok(bytes) => read_all(&*bytes, &name),
        Err(error) if error.kind() == ErrorKind::FileTooLarge => {
            Err(ConfigError::TooLarge { path: name })
        }
        Err(source) => Err(ConfigError::Read { path: name, source }),
    }
}

/// Reads a text to its end, or to the most that a configuration may have.
pub(super) fn read_all(source: impl Read, name: &str) -> Result<String, ConfigError> {
    let mut bytes = Vec::new();
    let read = source.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    let path = name.to_owned();
    match read {
        Ok(size) if size as u64 > MAX_BYTES => Err(ConfigError::TooLarge { path }),
        Ok(_) => String::from_utf8(bytes).map_err(|error| ConfigError::Read {
            path,
            source: io::Error::new(io::ErrorKind::InvalidData, error.utf8_error()),
        }),
        Err(source) => Err(ConfigError::Read { path, source }),
    }
}

/// Returns the error of a file that is another one than the configuration, such as the `ConfigMap`
/// around it: its fields would be so many errors that none says so.
fn other_file(value: &Value) -> Option<FieldError> {
    match (value["apiVersion"].as_str(), value["kind"].as_str()) {
        (Some(API_VERSION), _) | (_, Some(KIND)) => None,
        (Some(version), Some(kind)) => {
            let hint = if kind == "ConfigMap" {
                ": this is a ConfigMap, and only ecr-injector config check reads it: give its data, \
                 which kubectl get configmap NAME -o jsonpath='{.data.config\\.yaml}' prints"
            } else {
                ""
            };
            let message =
                format!("expected {KIND} of {API_VERSION}, got {kind:?} of {version:?}{hint}");
            Some(FieldError::new("kind", message))
        }
        (None, None) => {
            let name = CHART_VALUES.iter().find(|name| value[**name].is_object())?;
            let message = "this is a value of the Helm chart, and only ecr-injector config check reads \
                           these: give the data of the ConfigMap that helm template renders from them";
            Some(FieldError::new(*name, message))
        }
        _ => None,
    }
}

/// Parses a file's text into an unchecked value.
pub(super) fn to_value(text: &str, path: &str) -> Result<Value, ConfigError> {
    parse_yaml(text).map_err(|message| ConfigError::Yaml {
        path: path.to_owned(),
        message,
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
    value.map_err(|error| printable(&shorten_quotes(&yaml_error::text(&error))).into_owned())
}
