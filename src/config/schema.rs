//! The JSON Schema of the file, for editors and for who checks manifests: generated from what the parser itself reads.
//!
//! It refuses what has the wrong shape, and what a pattern can tell. Whatever the parser takes it takes too.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, generate::SchemaSettings, json_schema};
use serde_json::{Map, Value};

use super::File;

/// A lower-case DNS name of any number of labels.
pub(super) const OBJECT_NAME: &str =
    r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*$";
/// The same of two labels at least.
pub(super) const HOST: &str = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+$";
pub(super) const LABEL_KEY: &str = r"^([a-z0-9.-]+/)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$";
pub(super) const LABEL_VALUE: &str = r"^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$";
pub(super) const CLUSTER_NAME: &str = r"^[A-Za-z0-9_.-]{1,100}$";
pub(super) const REGION: &str = r"^[a-z]{2,4}(-[a-z]+){1,2}-[0-9]{1,2}$";
/// What isn't a number is no duration; the rest is the parser's.
pub(super) const DURATION: &str = r"[0-9]";
pub(super) const SESSION_CAP: &str = r"^(auto|none)$|[0-9]";
pub(super) const FORGET_AFTER: &str = r"^never$|[0-9]";
pub(super) const ROLE_ARN: &str = r"^arn:";
const ACCOUNT: &str = r"^[0-9]{12}$";
const NAMESPACE: &str = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$";
/// Whole texts with * in them; what only other pattern languages have is refused.
const PATTERN: &str = r"^[^?\[\]\\()|]+$";
const ROLE_PATTERN: &str = r"^arn:[^?\[\]\\()|]+$";

/// The schema, as JSON text.
#[must_use]
pub fn text() -> String {
    // Of the drafts the one that editors know best, and in one piece, so that they show what a field means.
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<File>();
    let mut fields = Map::new();
    // What it is comes first, for people.
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
    format!("{:#}\n", Value::Object(fields))
}

/// Lists of texts that a pattern has to match, each as a type: a field that is given one is still one that may be left out.
macro_rules! lists {
    ($($name:ident: $pattern:expr),+ $(,)?) => {$(
        pub(super) struct $name;

        impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }

            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({"type": "array", "items": {"type": "string", "pattern": $pattern}})
            }
        }
    )+};
}

lists! {
    Accounts: ACCOUNT,
    Regions: REGION,
    Namespaces: NAMESPACE,
    Hosts: HOST,
    Patterns: PATTERN,
    RolePatterns: ROLE_PATTERN,
}
