//! Whether a file has the right shape: its fields and their types. All that is wrong is told, not the first alone.

use std::{collections::BTreeMap, fmt::Write as _};

use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use super::{FieldError, File, wrong};

/// Past this nobody reads on.
const MOST: usize = 50;
/// Fields that older files have, each with the reason why it is gone.
const GONE: [(&str, &str); 1] = [(
    "optOutGrace",
    "removed, delete it: an opt-out needs no grace, since the tokens in a pull secret stay \
     valid for 8 hours or more after it (for less where refresh.sessionCap or a role's session \
     ends them sooner), and nothing is written after an opt-out",
)];

/// The file that a value is, or all that keeps it from being one.
pub(super) fn file_of(mut value: Value) -> Result<File, Vec<FieldError>> {
    let mut found: Vec<FieldError> = Vec::new();
    let mut removed = Removed::default();
    loop {
        // The parser ends at the first mistake, so it is asked again without it.
        let error = match serde_path_to_error::deserialize::<_, File>(value.clone()) {
            Ok(file) if found.is_empty() => return Ok(file),
            Ok(_) => return Err(found),
            Err(error) => error,
        };
        let field = removed.original(error.path());
        let message = message(&field, error.inner());
        found.push(wrong(field, message));
        if found.len() >= MOST || !removed.remove(&mut value, error.path()) {
            return Err(found);
        }
    }
}

/// Returns the parser's own words, or what a person needs to know of a field that is gone.
fn message(field: &str, error: &serde_json::Error) -> String {
    let gone = GONE.iter().find(|(name, _)| *name == field);
    gone.map_or_else(
        || error.to_string(),
        |(_, why)| format!("unknown field: {why}"),
    )
}

/// What was taken out of lists: what stood behind it has another place now.
#[derive(Default)]
struct Removed {
    /// Of lists, by the path that they had in the file: the places that their entries had there.
    places: BTreeMap<String, Vec<usize>>,
}

impl Removed {
    /// A path as it was in the file.
    fn original(&self, path: &Path) -> String {
        let mut original = String::new();
        for segment in path {
            self.go(&mut original, segment);
        }
        if original.is_empty() {
            original.push('.');
        }
        original
    }

    fn go(&self, original: &mut String, segment: &Segment) {
        match segment {
            Segment::Seq { index } => {
                let places = self.places.get(original);
                let place = places
                    .and_then(|places| places.get(*index))
                    .unwrap_or(index);
                let _ = write!(original, "[{place}]");
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

    /// Takes out what is at a path; tells whether anything was.
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
            self.go(&mut original, segment);
            parent = child;
        }
        match (last, parent) {
            (Segment::Map { key }, Value::Object(fields)) => fields.shift_remove(key).is_some(),
            (Segment::Seq { index }, Value::Array(entries)) if *index < entries.len() => {
                let all = || (0..entries.len()).collect();
                self.places
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
    fn all_that_is_wrong_is_told_by_the_place_that_it_has_in_the_file() {
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
        let value = super::super::value_of(text).expect("YAML");
        let found = file_of(value).err().expect("refused");
        let fields: Vec<_> = found.iter().map(|wrong| wrong.field.as_str()).collect();
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
    fn a_document_that_is_no_map_is_one_mistake() {
        for text in ["[]", "5", "just words"] {
            let value = super::super::value_of(text).expect("YAML");
            let found = file_of(value).err().expect("refused");
            assert_eq!(found.len(), 1, "{text}: {found:?}");
        }
    }
}
