//! The JSON Schema of the file, for editors and for linters of manifests, generated from the types
//! that the parser reads.
//!
//! The schema rejects wrong shapes, and wrong values where a pattern can express them. The schema
//! accepts every file that the parser accepts.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

use super::file::File;

/// Returns the schema as JSON text.
#[must_use]
pub fn text() -> String {
    // Editors support draft 7 best, and show the description of a field only if it is inlined.
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<File>();
    let mut fields = Map::new();
    // The fields that describe the schema come first, for readers.
    for name in ["$schema", "title", "description"] {
        fields.extend(
            schema
                .get(name)
                .map(|value| (name.to_owned(), value.clone())),
        );
    }
    for (name, value) in schema.as_object().into_iter().flatten() {
        fields.entry(name.clone()).or_insert_with(|| value.clone());
    }
    // Doc comments are wrapped at 100 columns; descriptions are not.
    format!("{:#}\n", Value::Object(fields)).replace("\\n", " ")
}
