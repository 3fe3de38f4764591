//! The metadata of objects and templates: finds values that `kubectl` and the API server reject.
//!
//! YAML reads `no` and `n` as booleans and `2024` as a number, and the fields of metadata are texts.

use json_patch::jsonptr::PointerBuf;
use serde_json::Value;

use super::Content;

/// The fields that are texts.
const TEXTS: [&str; 5] = [
    "namespace",
    "name",
    "generateName",
    "resourceVersion",
    "uid",
];
/// The fields that are maps of texts.
const MAPS: [&str; 2] = ["labels", "annotations"];
/// The fields of a workload with metadata of their own.
const TEMPLATES: [&str; 2] = ["template", "jobTemplate"];
/// The most characters of a key in a reason.
const MAX_KEY: usize = 80;

/// Returns the first value of the wrong type in the metadata of an object or its templates, and what
/// to write instead.
pub(super) fn fault(object: &Value, content: &Content) -> Option<String> {
    check("", object).or_else(|| {
        let Content::Template(template) = content else {
            return None;
        };
        let mut path = PointerBuf::new();
        let mut name = String::new();
        template.tokens().find_map(|token| {
            path.push_back(token.clone());
            name = format!("{name}{}.", token.decoded());
            let is_template = TEMPLATES.contains(&&*token.decoded());
            let part = object.pointer(path.as_str()).filter(|_| is_template)?;
            check(&name, part)
        })
    })
}

/// Checks the metadata of an object or a template, whose path is `prefix`.
fn check(prefix: &str, object: &Value) -> Option<String> {
    let metadata = &object["metadata"];
    let path = format!("{prefix}metadata");
    if let Some(fault) = check_map(&path, metadata) {
        return Some(fault);
    }
    let texts = TEXTS.into_iter();
    let mut texts = texts.filter_map(|name| check_text(&format!("{path}.{name}"), &metadata[name]));
    texts.next().or_else(|| {
        MAPS.into_iter().find_map(|name| {
            let (path, map) = (format!("{path}.{name}"), &metadata[name]);
            check_map(&path, map).or_else(|| {
                let mut pairs = map.as_object().into_iter().flatten();
                pairs.find_map(|(key, value)| {
                    let key: String = key.chars().take(MAX_KEY).collect();
                    check_text(&format!("{path}.{key}"), value)
                })
            })
        })
    })
}

/// Returns the fault of a value that is neither a map nor null.
fn check_map(path: &str, value: &Value) -> Option<String> {
    let kind = match value {
        Value::Null | Value::Object(_) => return None,
        Value::Array(_) => "a list",
        Value::String(_) => "a text",
        Value::Bool(_) | Value::Number(_) => &value.to_string(),
    };
    Some(format!("{path}: {kind} is not a map"))
}

/// Returns the fault of a value that is neither a text nor null.
fn check_text(path: &str, value: &Value) -> Option<String> {
    let (kind, hint) = match value {
        Value::Null | Value::String(_) => return None,
        Value::Array(_) => ("a list", ""),
        Value::Object(_) => ("a map", ""),
        // YAML reads several words as each of the two.
        Value::Bool(_) => (
            &*value.to_string(),
            "; write it in quotes, such as \"n\", \"no\" or \"on\"",
        ),
        Value::Number(_) => (&*value.to_string(), "; write it in quotes"),
    };
    Some(format!("{path}: {kind} is not a text{hint}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::manifest::objects;

    #[track_caller]
    fn reason(object: &Value) -> String {
        match &objects(object)[0].content {
            Content::Invalid(reason) => reason.clone(),
            other => panic!("{object}: {other:?}"),
        }
    }

    #[test]
    fn metadata_that_is_no_text_is_invalid() {
        for (metadata, expected) in [
            (json!({"namespace": false}), "metadata.namespace: false is"),
            (json!({"namespace": 2024}), "metadata.namespace: 2024 is"),
            (json!({"name": 1}), "metadata.name: 1 is not a text"),
            (json!({"generateName": []}), "metadata.generateName: a list"),
            (json!({"labels": {"version": 1.0}}), "version: 1.0 is not"),
            (
                json!({"labels": ["a"]}),
                "metadata.labels: a list is not a map",
            ),
            (
                json!({"annotations": {"a": {}}}),
                "metadata.annotations.a: a map",
            ),
            (json!("web"), "metadata: a text is not a map"),
        ] {
            for (api_version, kind) in [
                ("v1", "Pod"),
                ("v1", "ConfigMap"),
                ("apps/v1", "Deployment"),
                ("example.com/v1", "Widget"),
            ] {
                let object = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata});
                let reason = reason(&object);
                assert!(reason.contains(expected), "{reason}");
            }
        }
    }

    #[test]
    fn metadata_of_every_template_is_checked() {
        let labels = json!({"labels": {"version": 1.0}});
        let job = json!({"metadata": labels, "spec": {}});
        let cron = |spec: Value| json!({"apiVersion": "batch/v1", "kind": "CronJob", "spec": spec});
        for (object, path) in [
            (
                json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"template": job}}),
                "spec.template.metadata.labels.version: 1.0 is not a text; write it in quotes",
            ),
            (
                cron(json!({"jobTemplate": job})),
                "spec.jobTemplate.metadata.labels.version",
            ),
            (
                cron(json!({"jobTemplate": {"spec": {"template": job}}})),
                "spec.jobTemplate.spec.template.metadata.labels.version",
            ),
            (
                json!({"apiVersion": "v1", "kind": "PodTemplate", "template": job}),
                "template.metadata.labels.version",
            ),
        ] {
            let reason = reason(&object);
            assert!(reason.starts_with(path), "{reason}");
        }
    }

    #[test]
    fn texts_and_nulls_are_valid() {
        let metadata = json!({"namespace": "no", "name": null, "labels": {"a": null, "b": "1"}, "annotations": null});
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata});
        let content = &objects(&object)[0].content;
        assert!(matches!(content, Content::Template(_)), "{content:?}");
    }
}
