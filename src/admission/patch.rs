//! The decision as a JSON Patch: one `add`, which appends.
//!
//! Never `replace` and never `test`: a patch that fails to apply rejects the Pod, even where the
//! registration's failure policy is Ignore.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use json_patch::{
    AddOperation, Patch, PatchOperation,
    jsonptr::{Pointer, PointerBuf},
};
use serde_json::{Value, json};

use crate::admission::pod::ReferenceState;

/// The patches of all admissions, as a response has them: in base64, because an admission has no time
/// to spare. Clones share them.
#[derive(Debug, Clone)]
pub struct EncodedPatches {
    no_list: Arc<str>,
    missing: Arc<str>,
}

impl EncodedPatches {
    /// Encodes the patches that make Pods reference the pull secret `name`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let encoded = |reference| -> Arc<str> {
            // Strings alone: serialization can't fail.
            let json = serde_json::to_vec(&append(name, reference)).unwrap_or_default();
            BASE64_STANDARD.encode(json).into()
        };
        Self {
            no_list: encoded(ReferenceState::NoList),
            missing: encoded(ReferenceState::Missing),
        }
    }

    /// Returns the patch for a Pod, if the Pod needs one.
    #[must_use]
    pub fn get(&self, reference: ReferenceState) -> Option<Arc<str>> {
        match reference {
            ReferenceState::NoList => Some(self.no_list.clone()),
            ReferenceState::Missing => Some(self.missing.clone()),
            ReferenceState::Present => None,
        }
    }
}

/// Returns the patch that makes a Pod reference the pull secret `name`.
#[must_use]
pub fn append(name: &str, reference: ReferenceState) -> Patch {
    append_in(Pointer::root(), name, reference)
}

/// Returns the patch for a Pod or Pod template at `path` in an object.
#[must_use]
pub fn append_in(path: &Pointer, name: &str, reference: ReferenceState) -> Patch {
    let entry = json!({ "name": name });
    match reference {
        ReferenceState::Present => Patch::default(),
        ReferenceState::NoList => add(
            path,
            &["spec", "imagePullSecrets"],
            Value::Array(vec![entry]),
        ),
        ReferenceState::Missing => add(path, &["spec", "imagePullSecrets", "-"], entry),
    }
}

fn add(path: &Pointer, field: &[&str], value: Value) -> Patch {
    Patch(vec![PatchOperation::Add(AddOperation {
        path: path.concat(&PointerBuf::from_tokens(field.iter().copied())),
        value,
    })])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::admission::pod::Pod;

    fn object() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i32>().prop_map(Value::from),
            "[a-z/~\"\\\\é-]{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec(("[a-zA-Z~/.-]{1,8}", inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    fn pull_secrets() -> impl Strategy<Value = Option<Value>> {
        let name = prop_oneof![Just("ours".to_owned()), "[a-z]{1,6}"];
        let entry =
            prop_oneof![3 => name.prop_map(|name| json!({ "name": name })), 1 => Just(json!({}))];
        prop_oneof![
            Just(None),
            Just(Some(Value::Null)),
            prop::collection::vec(entry, 0..5).prop_map(|list| Some(Value::Array(list))),
        ]
    }

    fn reference(pod: &Value) -> ReferenceState {
        let text = pod.to_string();
        let view: Pod<'_> = serde_json::from_str(&text).expect("a Pod");
        view.reference_state("ours")
    }

    #[test]
    fn encoded_patches_are_those_that_append() {
        let patches = EncodedPatches::new("a\"b");
        for reference in [
            ReferenceState::NoList,
            ReferenceState::Missing,
            ReferenceState::Present,
        ] {
            let patch = append("a\"b", reference);
            let encoded = patches.get(reference);
            assert_eq!(encoded.is_none(), patch.0.is_empty());
            if let Some(encoded) = encoded {
                let json = BASE64_STANDARD.decode(&*encoded).expect("base64");
                assert_eq!(serde_json::from_slice::<Patch>(&json).expect("JSON"), patch);
            }
        }
    }

    proptest! {
        #[test]
        fn patch_appends_once_and_changes_nothing_else(
            mut spec in prop::collection::vec(("x[a-z~/.-]{1,8}", object()), 0..4),
            metadata in prop::collection::vec(("x[a-z~/.-]{1,8}", object()), 0..4),
            secrets in pull_secrets(),
        ) {
            if let Some(secrets) = &secrets {
                spec.push(("imagePullSecrets".to_owned(), secrets.clone()));
            }
            let spec: serde_json::Map<_, _> = spec.into_iter().collect();
            let before = json!({"metadata": Value::Object(metadata.into_iter().collect()), "spec": spec});

            let mut after = before.clone();
            json_patch::patch(&mut after, &append("ours", reference(&before)))?;

            let had: Vec<Value> = secrets.and_then(|s| s.as_array().cloned()).unwrap_or_default();
            let mut expected = had.clone();
            if !had.contains(&json!({"name": "ours"})) {
                expected.push(json!({"name": "ours"}));
            }
            prop_assert_eq!(&after["spec"]["imagePullSecrets"], &Value::Array(expected));
            prop_assert!(append("ours", reference(&after)).0.is_empty(), "a second pass changes something");

            let mut rest = [before, after];
            for pod in &mut rest {
                pod["spec"].as_object_mut().expect("an object").remove("imagePullSecrets");
            }
            prop_assert_eq!(&rest[0], &rest[1]);
        }
    }
}
