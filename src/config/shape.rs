//! Checks the shape of a file, the names and types of its fields, and reports every error rather
//! than the first alone.

mod strict;

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use self::strict::{Strict, kind};
use super::{
    error::{FieldError, MAX_ERRORS, ROOT},
    file::File,
    value::ACCOUNT,
};
use crate::telemetry::printable::shortened;

/// The fields of older files that were removed, each with the reason.
const REMOVED_FIELDS: [(&str, &str); 1] = [(
    "optOutGrace",
    "removed, delete it: an opt-out needs no grace, since the tokens in a pull secret stay \
     valid for 8 hours or more after it (for less where refresh.sessionCap or a role's session \
     ends them sooner), and nothing is written after an opt-out",
)];

/// Deserializes a file, or returns an error for each field of a wrong name or type.
pub(super) fn to_file(mut value: Value) -> Result<File, Vec<FieldError>> {
    if !value.is_object() {
        let got = kind(&value);
        let message = format!("expected a map with apiVersion and kind, got {got}");
        return Err(vec![FieldError::new(ROOT, message)]);
    }
    let mut found: Vec<FieldError> = Vec::new();
    let mut removed = RemovedEntries::default();
    loop {
        // The parser stops at the first error, so the value is parsed again without the wrong
        // field.
        let error = match serde_path_to_error::deserialize::<_, File>(Strict(value.clone())) {
            Ok(file) if found.is_empty() => return Ok(file),
            Ok(_) => return Err(found),
            Err(error) => error,
        };
        let field = removed.original(error.path());
        // A list of which all entries were removed is not an empty one.
        if !removed.indexes.contains_key(&field) {
            let message = message(&field, error.inner());
            found.push(FieldError::new(field, message));
        }
        if found.len() >= MAX_ERRORS || !removed.remove(&mut value, error.path()) {
            return Err(found);
        }
    }
}

/// Returns the message for an error of the parser.
fn message(field: &str, error: &serde_json::Error) -> String {
    if let Some((_, reason)) = REMOVED_FIELDS.iter().find(|(name, _)| *name == field) {
        return format!("unknown field: {reason}");
    }
    let message = error.to_string();
    if let Some(rest) = message.strip_prefix("unknown field `")
        && let Some((name, known)) = rest.rsplit_once("`, ")
    {
        return format!("unknown field `{}`, {known}", shortened(name));
    }
    // An account without quotes is a number, which has lost its leading zeros.
    let is_account = field
        .rsplit_once('[')
        .is_some_and(|(list, _)| list.ends_with("accounts"));
    if is_account {
        return message.replace("a text in quotes", ACCOUNT);
    }
    message
}

/// The entries that were removed from lists, which changed the indexes of those behind them.
#[derive(Default)]
struct RemovedEntries {
    /// The original indexes of the entries that are left, by the original path of their list.
    indexes: BTreeMap<String, Vec<usize>>,
}

impl RemovedEntries {
    /// Returns a path as it is in the file.
    fn original(&self, path: &Path) -> String {
        let mut original = String::new();
        for segment in path {
            self.push_segment(&mut original, segment);
        }
        if original.is_empty() {
            original.push_str(ROOT);
        }
        original
    }

    /// Adds a segment to an original path, a list's index as it is in the file.
    fn push_segment(&self, original: &mut String, segment: &Segment) {
        match segment {
            Segment::Seq { index } => {
                let indexes = self.indexes.get(original);
                let index = indexes
                    .and_then(|indexes| indexes.get(*index))
                    .unwrap_or(index);
                let _ = write!(original, "[{index}]");
            }
            Segment::Map { key } | Segment::Enum { variant: key } => {
                if !original.is_empty() {
                    original.push('.');
                }
                *original += key;
            }
            Segment::Unknown => {}
        }
    }

    /// Removes the value at a path, and returns whether there was one.
    fn remove(&mut self, value: &mut Value, path: &Path) -> bool {
        let segments: Vec<&Segment> = path.iter().collect();
        let Some((last, parents)) = segments.split_last() else {
            return false;
        };
        let mut parent = value;
        let mut original = String::new();
        for segment in parents {
            let child = match segment {
                Segment::Seq { index } => parent.get_mut(*index),
                Segment::Map { key } => parent.get_mut(key.as_str()),
                Segment::Enum { .. } | Segment::Unknown => None,
            };
            let Some(child) = child else {
                return false;
            };
            self.push_segment(&mut original, segment);
            parent = child;
        }
        match (last, parent) {
            (Segment::Map { key }, Value::Object(fields)) => fields.shift_remove(key).is_some(),
            (Segment::Seq { index }, Value::Array(entries)) if *index < entries.len() => {
                let all = || (0..entries.len()).collect();
                self.indexes
                    .entry(original)
                    .or_insert_with(all)
                    .remove(*index);
                entries.remove(*index);
                true
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_path_in_the_file() {
        let text = r#"
secretNam: x
optIn: {lable: x, value: [1]}
allow: {accounts: [1, "123456789012", {}], regions: eu}
aliases:
  - host: a.example.com
  - {host: b.example.com, registry: r, port: 1}
  - {host: c.example.com, registry: 5}
limits: {registriesPerPod: many}
"#;
        let value = crate::config::load::parse_yaml(text).expect("YAML");
        let found = to_file(value).err().expect("refused");
        let fields: Vec<_> = found.iter().map(|error| error.field.as_str()).collect();
        let expected = [
            "secretNam",
            "optIn.lable",
            "optIn.value",
            "allow.accounts[0]",
            "allow.accounts[2]",
            "allow.regions",
            "aliases[0]",
            "aliases[1].port",
            "aliases[2].registry",
            "aliases[2]",
            "limits.registriesPerPod",
        ];
        assert_eq!(fields, expected, "{found:?}");
    }

    #[test]
    fn document_that_is_no_map_is_one_error() {
        for (text, got) in [
            ("[]", "a list"),
            ("5", "a number"),
            ("just words", "a text"),
        ] {
            let value = crate::config::load::parse_yaml(text).expect("YAML");
            let found = to_file(value).err().expect("refused");
            let error: Vec<_> = found.iter().map(ToString::to_string).collect();
            let expected = format!("expected a map with apiVersion and kind, got {got}");
            assert_eq!(error, [expected]);
        }
    }

    fn errors(text: &str) -> Vec<String> {
        let value = crate::config::load::parse_yaml(text).expect("YAML");
        let found = to_file(value).err().unwrap_or_default();
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn list_is_no_struct() {
        for (text, field) in [
            (r#"allow: [["123456789012"], ["eu-west-1"]]"#, "allow"),
            (r#"optIn: [x, "on", []]"#, "optIn"),
            ("limits: [1, 2]", "limits"),
            ("refresh: []", "refresh"),
            ("log: [info]", "log"),
            ("namespaceRoles: [[a]]", "namespaceRoles"),
            ("aliases: [[a, b]]", "aliases[0]"),
            ("identities: [[null, null, null]]", "identities[0]"),
            (
                "identities: [{assumeRole: [arn]}]",
                "identities[0].assumeRole",
            ),
            (
                "awsEndpoints: {eu-west-1: [a, b]}",
                "awsEndpoints.eu-west-1",
            ),
            ("awsEndpoints: [a]", "awsEndpoints"),
        ] {
            let expected = format!("{field}: expected a map, got a list");
            assert_eq!(errors(text)[0], expected, "{text}");
        }
    }

    #[test]
    fn wrong_type_is_named_in_the_words_of_the_file() {
        for (text, expected) in [
            (
                "allow: {accounts: [123456789012]}",
                "allow.accounts[0]: expected 12 digits in quotes, got a number",
            ),
            (
                "identities: [{accounts: [012345678901]}]",
                "identities[0].accounts[0]: expected 12 digits in quotes, got a number",
            ),
            (
                "optIn: {value: true}",
                "optIn.value: expected a text in quotes, got true",
            ),
            (
                "secretName: {a: b}",
                "secretName: expected a text, got a map",
            ),
            (
                "publicEcr: \"yes\"",
                "publicEcr: expected true or false, got a text",
            ),
            (
                "limits: {registriesPerPod: -1}",
                "limits.registriesPerPod: expected a whole number from 0 on, got -1",
            ),
            (
                "refresh: {writesPerSecond: 99999999999}",
                "refresh.writesPerSecond: expected at most 4294967295, got 99999999999",
            ),
            (
                "prewarm: example.com",
                "prewarm: expected a list, got a text",
            ),
            (
                "onFailure: explode",
                "onFailure: expected admit or deny, got \"explode\"",
            ),
            (
                "onFailure: [deny]",
                "onFailure: expected admit or deny, got a list",
            ),
        ] {
            assert_eq!(errors(text), [expected], "{text}");
        }
    }

    #[test]
    fn long_value_is_quoted_in_part() {
        // A key of more than 1024 characters is no YAML.
        let long = "s3cret ".repeat(140);
        for text in [
            format!("\"{long}\": 1"),
            format!("\"`, expected {long}\": 1"),
            format!("optIn: {{\"{long}\": {{\"{long}\": 1}}}}"),
            format!("onFailure: \"{long}\""),
            format!("limits: \"{long}\""),
            format!("\"{long}\""),
        ] {
            let errors = errors(&text);
            assert_eq!(errors.len(), 1, "{errors:?}");
            // Less than the names of all fields and twice the value's beginning.
            assert!(errors[0].len() < 900, "{errors:?}");
            assert!(errors[0].matches("s3cret").count() < 40, "{errors:?}");
        }
    }
}
