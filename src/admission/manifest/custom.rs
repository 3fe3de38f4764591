//! The Pods that the controller of a custom kind may make from an object.
//!
//! No schema of these kinds is known: a Pod's template or spec is recognized by its `containers`, and
//! any other image by the name of its field.

use std::collections::BTreeSet;

use json_patch::jsonptr::PointerBuf;
use serde_json::{Value, json};

/// The API groups whose objects name images and from which no Pods are made: policies, and watches
/// of registries.
const GROUPS_WITHOUT_PODS: [&str; 6] = [
    "constraints.gatekeeper.sh",
    "image.toolkit.fluxcd.io",
    "kyverno.io",
    "policies.kyverno.io",
    "policy.sigstore.dev",
    "templates.gatekeeper.sh",
];

/// The fields that no Pod is made from.
const OTHER_FIELDS: [&str; 2] = ["metadata", "status"];

/// A Pod that a controller may make.
#[derive(Debug, Clone, PartialEq)]
pub struct CustomPod {
    /// The place that it is made from, as a path in the object.
    pub path: PointerBuf,
    /// The Pod, as far as the object has it.
    pub pod: Value,
}

/// Returns the Pods that may be made from an object of a custom kind: one for each template, each
/// spec, and each other image.
#[must_use]
pub fn pods(object: &Value) -> Vec<CustomPod> {
    let group = object["apiVersion"].as_str().and_then(|version| {
        let (group, _) = version.split_once('/')?;
        Some(group)
    });
    let mut found = Found::default();
    if !group.is_some_and(|group| GROUPS_WITHOUT_PODS.contains(&group)) {
        found.search(object, &PointerBuf::new());
    }
    found.pods
}

#[derive(Default)]
struct Found {
    pods: Vec<CustomPod>,
    /// The images of `pods` that are in no template and no spec.
    images: BTreeSet<String>,
}

impl Found {
    fn search(&mut self, value: &Value, path: &PointerBuf) {
        match value {
            Value::Array(items) => {
                for (at, item) in items.iter().enumerate() {
                    let mut path = path.clone();
                    path.push_back(at);
                    self.search(item, &path);
                }
            }
            Value::Object(fields) => {
                // The object's own metadata is not that of its Pods.
                let is_template = !path.is_root() && value["spec"]["containers"].is_array();
                let is_spec = value["containers"].is_array();
                if is_template {
                    let part = |name: &str| Some((name.to_owned(), fields.get(name)?.clone()));
                    let pod = ["metadata", "spec"].into_iter().filter_map(part);
                    self.push(path.clone(), Value::Object(pod.collect()));
                } else if is_spec {
                    self.push(path.clone(), json!({ "spec": value }));
                }
                for (name, field) in fields {
                    let is_done = is_template && name == "spec" || is_spec && is_pod_field(name);
                    if is_done || OTHER_FIELDS.contains(&name.as_str()) {
                        continue;
                    }
                    let mut path = path.clone();
                    path.push_back(name.as_str());
                    if names_an_image(name) {
                        for image in images(field) {
                            self.push_image(&path, &image);
                        }
                    }
                    self.search(field, &path);
                }
            }
            _ => {}
        }
    }

    fn push(&mut self, path: PointerBuf, pod: Value) {
        self.pods.push(CustomPod { path, pod });
    }

    fn push_image(&mut self, path: &PointerBuf, image: &str) {
        if self.images.insert(image.to_owned()) {
            let pod = json!({"spec": {"containers": [{"name": "image", "image": image}]}});
            self.push(path.clone(), pod);
        }
    }
}

/// Returns whether a field of a Pod's spec has images of the Pod.
fn is_pod_field(name: &str) -> bool {
    [
        "containers",
        "initContainers",
        "ephemeralContainers",
        "volumes",
    ]
    .contains(&name)
}

/// Returns whether a field's name says that its value is an image or a list of these: `image`,
/// `driverImage`, `imageName`, `images`.
fn names_an_image(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let suffixes = ["name", "ref", "reference", "uri", "url", "s"];
    let stem = suffixes
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .unwrap_or(&name);
    stem.ends_with("image") || name.ends_with("image")
}

/// Returns the images in the value of such a field. Charts and operators often write an image in
/// parts.
fn images(value: &Value) -> Vec<String> {
    match value {
        Value::String(image) => vec![image.clone()],
        Value::Array(items) => items
            .iter()
            .filter_map(|item| item.as_str().map(str::to_owned))
            .collect(),
        Value::Object(fields) => {
            let text = |name: &str| fields.get(name)?.as_str();
            let whole = text("reference").or_else(|| text("ref"));
            let repository = text("repository").or_else(|| text("name"));
            match (whole, text("registry"), repository) {
                (Some(image), _, _) => vec![image.to_owned()],
                (None, Some(registry), Some(repository)) => {
                    vec![format!("{registry}/{repository}")]
                }
                (None, None, Some(repository)) => vec![repository.to_owned()],
                _ => Vec::new(),
            }
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(object: &Value) -> Vec<(String, Vec<String>)> {
        let pods = pods(object).into_iter().map(|made| {
            let containers = made.pod["spec"]["containers"].as_array().cloned();
            let images = containers.unwrap_or_default().into_iter();
            let images = images.filter_map(|c| Some(c["image"].as_str()?.to_owned()));
            (made.path.to_string(), images.collect())
        });
        pods.collect()
    }

    #[test]
    fn templates_specs_and_single_images_are_found() {
        let object = json!({"apiVersion": "example.com/v1", "kind": "X", "spec": {
            "image": "a/spark",
            "driver": {"image": "a/driver", "sidecars": [{"name": "s", "image": "a/sidecar"}]},
            "template": {"metadata": {"annotations": {"k": "v"}}, "spec": {"containers": [{"image": "a/web"}]}},
            "predictor": {"containers": [{"image": "a/predictor"}], "model": {"image": "a/model"}},
            "templates": [{"container": {"image": "a/step"}}, {"steps": [{"image": "a/spark"}]}],
            "imageName": "a/postgres",
            "proxy": {"image": {"registry": "r.example", "repository": "team/proxy", "tag": "1"}},
        }});
        let one = |path: &str, image: &str| (path.to_owned(), vec![image.to_owned()]);
        assert_eq!(
            found(&object),
            [
                one("/spec/image", "a/spark"),
                one("/spec/driver/image", "a/driver"),
                one("/spec/driver/sidecars/0/image", "a/sidecar"),
                one("/spec/template", "a/web"),
                one("/spec/predictor", "a/predictor"),
                one("/spec/predictor/model/image", "a/model"),
                one("/spec/templates/0/container/image", "a/step"),
                one("/spec/imageName", "a/postgres"),
                one("/spec/proxy/image", "r.example/team/proxy"),
            ]
        );
        let template = &pods(&object)[3].pod;
        assert_eq!(template["metadata"]["annotations"]["k"], "v");
    }

    #[test]
    fn text_and_status_and_metadata_are_no_images() {
        let object = json!({
            "apiVersion": "example.com/v1", "kind": "X",
            "metadata": {"annotations": {"image": "a/b"}},
            "spec": {
                "env": [{"name": "IMAGE", "value": "a/b"}], "args": ["--image=a/b"],
                "imagePullPolicy": "Always", "imagePullSecrets": [{"name": "a"}],
            },
            "status": {"image": "a/b"},
        });
        assert_eq!(found(&object), []);
        let policy = json!({"apiVersion": "kyverno.io/v1", "kind": "ClusterPolicy", "spec": {"image": "a/b"}});
        assert_eq!(found(&policy), []);
    }
}
