//! A file of manifests, as `ecr-injector preview` reads one: whether its objects survive being
//! written, and whether the patch of each Pod applies where the Pod is.

use ecr_injector::admission::manifest::{Content, custom, objects, text};
use ecr_injector::admission::patch::append_in;
use ecr_injector::admission::pod::{Pod, ReferenceState};
use json_patch::jsonptr::Pointer;
use serde_json::{Value, json};

use super::assert_is_one_line;

pub fn check(input: &[u8]) {
    let documents = match text::read(input) {
        Ok(documents) => documents,
        Err(error) => {
            let text = error.to_string();
            assert_is_one_line(&text);
            assert!(text.chars().count() <= 1_000, "{text}");
            return;
        }
    };
    for document in &documents {
        assert!(document.is_object());
        assert_is_written_and_read(document);
        for object in objects(document) {
            assert_eq!(object.path.resolve(document).ok(), Some(object.value));
            match &object.content {
                Content::Template(path) => assert_patch_applies(object.value, path),
                Content::Custom => {
                    let pods = custom::pods(object.value);
                    for pod in &pods {
                        assert!(pod.path.resolve(object.value).is_ok(), "{}", pod.path);
                    }
                    let _ = custom::unknown(object.value, &pods);
                }
                Content::NoPod | Content::Invalid(_) => {}
            }
        }
    }
}

/// An object that is written as YAML is read as the same object.
fn assert_is_written_and_read(document: &Value) {
    let written = text::to_yaml(document).expect("YAML");
    let again = text::read(written.as_bytes());
    let again = again.unwrap_or_else(|error| panic!("{error}\n{written}"));
    assert_eq!(again, std::slice::from_ref(document), "{written}");
}

fn assert_patch_applies(object: &Value, path: &Pointer) {
    let Ok(pod) = path.resolve(object) else {
        return;
    };
    let read = |value: &Value| {
        let text = value.to_string();
        let pod = serde_json::from_str::<Pod<'_>>(&text);
        pod.ok().map(|pod| pod.reference_state("ours"))
    };
    let Some(reference) = read(pod).filter(|_| pod["spec"].is_object()) else {
        return;
    };
    let addition = append_in(path, "ours", reference);
    assert_eq!(addition.0.is_empty(), reference == ReferenceState::Present);
    let mut after = object.clone();
    json_patch::patch(&mut after, &addition).expect("a patch that applies");
    let pod = path.resolve_mut(&mut after).unwrap();
    assert_eq!(read(pod), Some(ReferenceState::Present));
    if !addition.0.is_empty() {
        // Without the reference, all is as before.
        let list = pod["spec"]["imagePullSecrets"].as_array_mut().unwrap();
        assert_eq!(list.pop(), Some(json!({"name": "ours"})));
        if reference == ReferenceState::NoList {
            assert!(list.is_empty());
            let before = path.resolve(object).unwrap()["spec"].get("imagePullSecrets");
            let spec = pod["spec"].as_object_mut().unwrap();
            match before {
                Some(null) => spec.insert("imagePullSecrets".to_owned(), null.clone()),
                None => spec.shift_remove("imagePullSecrets"),
            };
        }
        assert_eq!(after, *object);
    }
}
