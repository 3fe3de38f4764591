//! Pods as users write them, and what came of them.

use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};

/// A Pod with one container of this image.
pub fn pod(name: &str, image: &str) -> Pod {
    pod_with(
        name,
        &json!({"containers": [{"name": "main", "image": image}]}),
    )
}

/// A Pod with this `spec`.
pub fn pod_with(name: &str, spec: &Value) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": spec,
    }))
    .unwrap()
}

/// The names in `spec.imagePullSecrets`, in order.
pub fn pull_secrets(pod: &Pod) -> Vec<&str> {
    pod.spec
        .iter()
        .flat_map(|spec| spec.image_pull_secrets.iter().flatten())
        .map(|secret| secret.name.as_str())
        .collect()
}
