//! The Pods that the controller of a custom kind may make from an object.
//!
//! No schema of these kinds is known: a Pod's template or spec is recognized by its `containers`, and
//! any other image by the name of its field.

use std::collections::BTreeSet;

use json_patch::jsonptr::PointerBuf;
use serde_json::{Value, json};

use crate::registry::Quoted;

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

/// The field that names another object whose template Pods are made from.
const WORKLOAD_REF: &str = "workloadRef";
/// The part that the hosts of most private registries have.
const ECR_PART: &str = ".dkr.ecr";

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
    let mut found = Found::default();
    if may_make_pods(object) {
        found.search(object, &PointerBuf::new());
    }
    found.pods
}

/// Returns why more images than those of `pods` may be those of the object's Pods, or others.
#[must_use]
pub fn unknown(object: &Value, pods: &[CustomPod]) -> Option<String> {
    if !may_make_pods(object) {
        return None;
    }
    let images: Vec<&str> = pods.iter().flat_map(|made| pod_images(&made.pod)).collect();
    if let Some(image) = images.iter().find(|image| has_parameter(image)) {
        let image = Quoted::new(image);
        return Some(format!(
            "the image {image} has a parameter, which its controller replaces"
        ));
    }
    let is_reference = |name: &str, value: &Value| name == WORKLOAD_REF && value.is_object();
    if let Some(path) = find(object, &PointerBuf::new(), &is_reference) {
        return Some(format!(
            "its Pods are made from the template of another object ({path}): preview that one"
        ));
    }
    let names_ecr =
        |_: &str, value: &Value| value.as_str().is_some_and(|text| text.contains(ECR_PART));
    let path = find(object, &PointerBuf::new(), &names_ecr).filter(|_| images.is_empty())?;
    Some(format!(
        "{path} names an ECR registry, and none of its fields is known to be an image"
    ))
}

/// Returns whether an image has a parameter that a controller replaces: `$(params.image)`,
/// `{{inputs.parameters.image}}`, `${IMAGE}`.
#[must_use]
pub fn has_parameter(image: &str) -> bool {
    ["$(", "${", "{{"].iter().any(|start| image.contains(start))
}

fn may_make_pods(object: &Value) -> bool {
    let version = object["apiVersion"].as_str();
    let group = version.and_then(|version| version.split_once('/'));
    !group.is_some_and(|(group, _)| GROUPS_WITHOUT_PODS.contains(&group))
}

/// Returns the images of a Pod.
fn pod_images(pod: &Value) -> Vec<&str> {
    let spec = &pod["spec"];
    let elements = |name: &str| spec[name].as_array().into_iter().flatten();
    let containers = ["containers", "initContainers", "ephemeralContainers"];
    let containers = containers.into_iter().flat_map(elements);
    let images = containers.filter_map(|container| container["image"].as_str());
    let volumes = elements("volumes");
    let volumes = volumes.filter_map(|volume| volume["image"]["reference"].as_str());
    images.chain(volumes).collect()
}

/// Returns the path of the first field that is wanted, by its name and its value, in what Pods may
/// be made from.
fn find(
    value: &Value,
    path: &PointerBuf,
    is_wanted: &impl Fn(&str, &Value) -> bool,
) -> Option<String> {
    let child = |name: String, value| {
        let mut path = path.clone();
        path.push_back(name.as_str());
        if is_wanted(&name, value) {
            let names: Vec<_> = path
                .tokens()
                .map(|token| token.decoded().into_owned())
                .collect();
            return Some(names.join("."));
        }
        find(value, &path, is_wanted)
    };
    match value {
        Value::Array(items) => {
            let mut items = items.iter().enumerate();
            items.find_map(|(at, item)| child(at.to_string(), item))
        }
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, _)| !path.is_root() || !OTHER_FIELDS.contains(&name.as_str()))
            .find_map(|(name, value)| child(name.clone(), value)),
        _ => None,
    }
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
