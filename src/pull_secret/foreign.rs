//! Entries of a docker config that ecr-injector never writes: somebody else needs them.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::registry::Host;

/// `AWS:` in base64; the next character depends on the token.
const USER: &str = "QVdTO";

/// The fields of a JSON object in their order, with those whose key is there twice: readers differ
/// in which of these they take, and Go's merges objects.
struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields<'de>, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// Returns whether a docker config has anything that ecr-injector never writes, such as another
/// registry's user or an ECR registry's under `https://`. Whatever is no docker config opens no
/// registry.
pub(super) fn has_others_entries(bytes: &[u8]) -> bool {
    let Ok(Fields(config)) = serde_json::from_slice(bytes) else {
        return false;
    };
    !config
        .iter()
        .all(|(name, value)| name == "auths" && are_ours(value))
}

fn are_ours(auths: &RawValue) -> bool {
    match serde_json::from_str::<Option<Fields<'_>>>(auths.get()) {
        Ok(Some(Fields(auths))) => auths.iter().all(|(host, entry)| is_ours(host, entry)),
        Ok(None) => true,
        Err(_) => false,
    }
}

fn is_ours(host: &str, entry: &RawValue) -> bool {
    let Ok(Fields(fields)) = serde_json::from_str(entry.get()) else {
        return false;
    };
    let [(name, auth)] = &fields[..] else {
        return false;
    };
    let auth = serde_json::from_str::<String>(auth.get());
    name == "auth" && Host::parse(host).is_some() && auth.is_ok_and(|auth| auth.starts_with(USER))
}
