//! Checks the shape of a file, the names and types of its fields, and reports every error rather
//! than the first alone.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use super::{error::FieldError, file::File};

/// A person reads no further than this.
const MAX_ERRORS: usize = 50;
/// The fields of older files that were removed, each with the reason.
const REMOVED_FIELDS: [(&str, &str); 1] = [(
    "optOutGrace",
    "removed, delete it: an opt-out needs no grace, since the tokens in a pull secret stay \
     valid for 8 hours or more after it (for less where refresh.sessionCap or a role's session \
     ends them sooner), and nothing is written after an opt-out",
)];

/// Deserializes a file, or returns an error for each field of a wrong name or type.
pub(super) fn to_file(mut value: Value) -> Result<File, Vec<FieldError>> {
    let mut found: Vec<FieldError> = Vec::new();
    let mut removed = RemovedEntries::default();
    loop {
        // The parser stops at the first error, so the value is parsed again without the wrong
        // field.
        let error = match serde_path_to_error::deserialize::<_, File>(value.clone()) {
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

/// Returns the parser's message, or the reason why the field was removed.
fn message(field: &str, error: &serde_json::Error) -> String {
    let removed = REMOVED_FIELDS.iter().find(|(name, _)| *name == field);
    removed.map_or_else(
        || error.to_string(),
        |(_, reason)| format!("unknown field: {reason}"),
    )
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
            original.push('.');
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
        for text in ["[]", "5", "just words"] {
            let value = crate::config::load::parse_yaml(text).expect("YAML");
            let found = to_file(value).err().expect("refused");
            assert_eq!(found.len(), 1, "{text}: {found:?}");
        }
    }
}
