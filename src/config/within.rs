//! The configuration within another file: the `ConfigMap` around it, or the values of the chart.

use std::{io::Read, path::Path};

use serde_json::{Map, Value, json};

use super::{
    error::{ConfigError, FieldError, ROOT},
    file::{API_VERSION, KIND},
    load::{CHART_VALUES, read_all, read_text, to_value},
    resolved::Config,
};

/// The key of the configuration in a `ConfigMap`, as the chart renders it.
const KEY: &str = "config.yaml";
/// The key of the configuration in the chart's values.
const VALUES: &str = "config";
/// The name of the chart, by which a chart around it sets its values.
const CHART: &str = "ecr-injector";

/// A checked configuration, and where in its file it was.
#[derive(Debug)]
pub struct Found {
    /// The configuration.
    pub config: Config,
    /// The text before a field's path, empty if the file is the configuration itself.
    pub prefix: String,
}

impl Found {
    /// Reads and checks the configuration in a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read_text(path)?, &path.display().to_string())
    }

    /// Reads and checks a configuration from elsewhere; `name` appears in the errors alone.
    pub fn read_from(source: impl Read, name: &str) -> Result<Self, ConfigError> {
        Self::parse(&read_all(source, name)?, name)
    }

    fn parse(text: &str, path: &str) -> Result<Self, ConfigError> {
        let value = to_value(text, path)?;
        let fields = |errors| ConfigError::Fields {
            path: path.to_owned(),
            errors,
        };
        if value["kind"] == "ConfigMap" {
            let (key, text) = of_config_map(&value).map_err(|error| fields(vec![error]))?;
            let config = Config::parse(text, &format!("{path}: data.{key}"))?;
            let prefix = format!("data.{key}: ");
            return Ok(Self { config, prefix });
        }
        let Some((prefix, values)) = values_of_chart(&value) else {
            let config = Config::check(value, path)?;
            let prefix = String::new();
            return Ok(Self { config, prefix });
        };
        let file = of_values(values, &prefix).map_err(|error| fields(vec![error]))?;
        let config = Config::check(file, path).map_err(|error| match error {
            ConfigError::Fields { path, errors } => {
                let errors = errors.into_iter().map(|error| within(&prefix, error));
                let errors = errors.collect();
                ConfigError::Fields { path, errors }
            }
            other => other,
        })?;
        let prefix = format!("{prefix}.");
        Ok(Self { config, prefix })
    }
}

/// Returns the key and the text of the configuration in a `ConfigMap`.
fn of_config_map(value: &Value) -> Result<(&str, &str), FieldError> {
    let data = value["data"].as_object();
    let mut texts = data.into_iter().flatten();
    let entry = data.and_then(|data| data.get_key_value(KEY));
    let entry = entry.or_else(|| texts.next().filter(|_| texts.next().is_none()));
    entry
        .and_then(|(key, text)| Some((key.as_str(), text.as_str()?)))
        .ok_or_else(|| {
            let message = format!("expected the configuration as the text of {KEY}");
            FieldError::new("data", message)
        })
}

/// Returns the path of the configuration in the chart's values, and these values.
fn values_of_chart(value: &Value) -> Option<(String, &Value)> {
    if !value["apiVersion"].is_null() || !value["kind"].is_null() {
        return None;
    }
    let has_values = |value: &Value| CHART_VALUES.iter().any(|name| value[*name].is_object());
    if value[CHART].is_object() {
        return Some((format!("{CHART}.{VALUES}"), &value[CHART]));
    }
    has_values(value).then(|| (VALUES.to_owned(), value))
}

/// Returns the file that the chart renders from its values.
fn of_values(values: &Value, field: &str) -> Result<Value, FieldError> {
    let fields = match &values[VALUES] {
        Value::Object(fields) => fields.clone(),
        Value::Null if values.get(VALUES).is_none() => Map::new(),
        _ => return Err(FieldError::new(field, "expected a map")),
    };
    let mut file = Map::new();
    file.insert("apiVersion".to_owned(), json!(API_VERSION));
    file.insert("kind".to_owned(), json!(KIND));
    file.extend(fields);
    Ok(Value::Object(file))
}

/// Returns an error with the path from the document's root.
fn within(prefix: &str, error: FieldError) -> FieldError {
    let FieldError { field, message } = error;
    let field = if field == ROOT {
        prefix.to_owned()
    } else {
        format!("{prefix}.{field}")
    };
    FieldError::new(field, message)
}
