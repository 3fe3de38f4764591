//! The text of a configuration: whether what is taken is taken by the schema too, is the same as
//! JSON, and whether each error is one plain line.

use std::sync::LazyLock;

use ecr_injector::config::{Config, ConfigError, Found, schema};
use jsonschema::Validator;
use serde_json::Value;

use super::assert_is_one_line;
use super::json::Json;

/// The most characters of one error.
const MAX_ERROR: usize = 1_000;

static SCHEMA: LazyLock<Validator> = LazyLock::new(|| {
    let schema: Value = serde_json::from_str(&schema::text()).unwrap();
    jsonschema::validator_for(&schema).unwrap()
});

pub fn check(input: &[u8]) {
    let found = Found::read_from(input, "file");
    if let Err(error) = &found {
        assert_is_for_people(error);
    }
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let config = Config::parse(text, "file");
    match &config {
        Ok(_) => assert_schema_takes(text),
        Err(error) => assert_is_for_people(error),
    }
    // JSON is YAML: the file is the same in the plainest form of JSON.
    if let Some(json @ Json::Object(_)) = Json::parse_unambiguous(input)
        && !has_foreign_text(&json)
    {
        let value: Value = serde_json::from_slice(input).unwrap();
        let plain = Config::parse(&value.to_string(), "file");
        assert_eq!(shown(&config), shown(&plain), "{text}");
    }
}

/// The result of a file: all of the configuration, or all errors.
fn shown(config: &Result<Config, ConfigError>) -> String {
    match config {
        Ok(config) => format!("{config:?}"),
        // Where the text is at fault, its form is.
        Err(ConfigError::Yaml { .. }) => "not YAML".to_owned(),
        Err(error) => error.to_string(),
    }
}

/// Whether a text in JSON has escapes or characters that YAML reads otherwise.
fn has_foreign_text(json: &Json) -> bool {
    let is_foreign = |text: &str| !text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    match json {
        Json::Text(text) => is_foreign(text),
        Json::List(list) => list.iter().any(has_foreign_text),
        Json::Object(fields) => fields
            .iter()
            .any(|(key, value)| is_foreign(key) || has_foreign_text(value)),
        _ => false,
    }
}

fn assert_schema_takes(text: &str) {
    let options = serde_saphyr::options! {
        emit_comments: false,
        with_snippet: false,
    };
    let value: Value = serde_saphyr::from_str_with_options(text, options).expect("YAML");
    let errors: Vec<_> = SCHEMA.iter_errors(&value).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?}");
}

/// The log shows an error on one line, and a person reads it.
fn assert_is_for_people(error: &ConfigError) {
    match error {
        ConfigError::Fields { errors, .. } => {
            assert!(!errors.is_empty());
            for error in errors {
                let text = error.to_string();
                assert_is_one_line(&text);
                assert!(text.chars().count() <= MAX_ERROR, "{text}");
            }
        }
        other => {
            let text = other.to_string();
            assert_is_one_line(&text);
            assert!(text.chars().count() <= MAX_ERROR, "{text}");
        }
    }
}
