//! The texts of docs/how-to/troubleshooting.md that the kubelet and containerd write: in Events, and in the state of a
//! container.

use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, ListParams};
use serde_json::json;
use std::time::Duration;

use crate::isolation::isolated;
use crate::lab::{Lab, Plugin};
use crate::support::registry::{ABSENT, FORBIDDEN, UNTAGGED};
use crate::support::{eventually, shows};

const SOON: Duration = Duration::from_secs(30);

/// Waits for an Event of a Pod with this reason, and returns its reason and its message.
async fn event(lab: &Lab, namespace: &str, pod: &str, reason: &str) -> String {
    let events: Api<Event> = Api::namespaced(lab.plane.admin().await, namespace);
    let of_pod = ListParams::default().fields(&format!("involvedObject.name={pod}"));
    let what = format!("an Event {reason} of {pod}");
    eventually(&what, SOON, async || {
        let events = events.list(&of_pod).await.unwrap();
        let mut events = events.into_iter();
        let event = events.find(|event| event.reason.as_deref() == Some(reason))?;
        Some(format!("{reason}: {}", event.message.unwrap_or_default()))
    })
    .await
}

/// Waits until a container waits for this reason.
async fn waits_for(lab: &Lab, namespace: &str, pod: &str, reason: &str) -> String {
    lab.wait(namespace, pod, reason, |pod| {
        let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
        (waiting["reason"] == reason).then(|| waiting.to_string())
    })
    .await
}

#[test]
fn kubelet_and_containerd_write_the_texts_of_the_page() {
    isolated(async || {
        let mut lab = Lab::start().await;
        lab.start_kubelet(None).await;
        let shop = lab.plane.namespace("shop", &[]).await;
        let none = json!({});
        let said = lab.cannot_pull(&shop, "nobody", &none).await;
        shows(
            "`pull access denied, repository does not exist or may require authorization`",
            &said,
        );
        shows("`no basic auth credentials`", &said);
        let waiting = waits_for(&lab, &shop, "nobody", "ErrImagePull").await;
        shows("`ErrImagePull`", &waiting);
        let waiting = waits_for(&lab, &shop, "nobody", "ImagePullBackOff").await;
        shows(
            "`ImagePullBackOff`, and the Pod has no `imagePullSecrets`",
            &waiting,
        );

        let referring = json!({"imagePullSecrets": [{"name": "ecr-pull-secret"}]});
        lab.create(&shop, "without-a-secret", &referring).await;
        let event = event(
            &lab,
            &shop,
            "without-a-secret",
            "FailedToRetrieveImagePullSecret",
        )
        .await;
        shows("`FailedToRetrieveImagePullSecret`", &event);
        let waiting = waits_for(&lab, &shop, "without-a-secret", "ImagePullBackOff").await;
        shows(
            "`ImagePullBackOff`, and the Pod references `ecr-pull-secret`",
            &waiting,
        );

        lab.start_kubelet(Some(Plugin::default())).await;
        let said = lab.cannot_pull(&shop, FORBIDDEN, &none).await;
        shows(
            "`unexpected status from HEAD request to … 403 Forbidden`",
            &said,
        );
        for repository in [ABSENT, UNTAGGED] {
            let said = lab.cannot_pull(&shop, repository, &none).await;
            shows("`HOST/…: not found`", &said);
        }
    });
}
