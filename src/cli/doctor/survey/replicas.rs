//! The survey of the replicas: their Pods, their metrics, their Lease and their Service.

use futures::{StreamExt as _, stream};
use serde_json::Value;

use super::{CONCURRENCY, reader::Reader};
use crate::cli::doctor::{
    exposition::Exposition,
    finding::{Reading, Right},
    installation::{Names, name, serving},
};

/// Returns the Pods of the Deployment, or those that run `serve` while that is unknown.
pub(super) fn replicas(mut pods: Vec<Value>, deployment: &Reading<Option<Value>>) -> Vec<Value> {
    let selector = deployment.value().and_then(Option::as_ref);
    let selector = selector.and_then(|it| it["spec"]["selector"]["matchLabels"].as_object());
    pods.retain(|pod| match selector {
        Some(labels) => labels
            .iter()
            .all(|(key, value)| pod["metadata"]["labels"].get(key) == Some(value)),
        None => serving(&pod["spec"]).is_some(),
    });
    pods
}

/// Reads the Lease.
pub(super) async fn lease(reader: &Reader, names: &Names) -> Reading<Option<Value>> {
    let (own, lease) = (&names.namespace, &names.lease);
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{own}/leases/{lease}");
    let resource = format!("leases.coordination.k8s.io/{lease}");
    reader
        .get(&path, Right::new("get", resource, Some(own)))
        .await
}

/// Reads the Service that a registration names.
pub(super) async fn service(
    reader: &Reader,
    registration: Option<&Value>,
) -> Reading<Option<Value>> {
    let service = registration.map(|it| &it["webhooks"][0]["clientConfig"]["service"]);
    let place = service.and_then(|it| Some((it["namespace"].as_str()?, it["name"].as_str()?)));
    let Some((namespace, name)) = place else {
        return Reading::Unread("the registration names no Service".to_owned());
    };
    let path = format!("/api/v1/namespaces/{namespace}/services/{name}");
    let right = Right::new("get", format!("services/{name}"), Some(namespace));
    reader.get(&path, right).await
}

/// Reads the metrics of each replica that runs, through the API server.
pub(super) async fn metrics(
    reader: &Reader,
    replicas: &Reading<Vec<Value>>,
    names: &Names,
) -> Reading<Vec<(String, Reading<Exposition>)>> {
    let Some(pods) = replicas.value() else {
        let unread = replicas.unread("the list of replicas");
        return unread.unwrap_or_else(|| Reading::Unread(String::new()));
    };
    let own = &names.namespace;
    let running = pods
        .iter()
        .filter(|pod| pod["status"]["phase"] == "Running");
    let scrapes = running.map(async |pod| {
        let pod_name = name(pod);
        let ports = serving(&pod["spec"]).map(|container| &container["ports"]);
        let ports = ports.and_then(Value::as_array).into_iter().flatten();
        let mut admin = ports.filter(|port| port["name"] == "admin");
        let port = admin.next().and_then(|port| port["containerPort"].as_u64());
        let port = port.unwrap_or(8080);
        let path = format!("/api/v1/namespaces/{own}/pods/{pod_name}:{port}/proxy/metrics");
        let right = Right::new("get", "pods/proxy", Some(own));
        let text = reader.text(&path, right).await;
        (
            pod_name.to_owned(),
            text.map(|text| Exposition::parse(&text)),
        )
    });
    let scrapes: Vec<_> = scrapes.collect();
    Reading::Read(stream::iter(scrapes).buffered(CONCURRENCY).collect().await)
}
