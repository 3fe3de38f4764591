//! Every kind of image that a Pod can name, each of a registry of its own.

use serde_json::{Value, json};

use crate::isolation::isolated;
use crate::lab::{Lab, host, image_at};
use crate::node::SANDBOX_HOST;
use crate::registry::OPEN;
use crate::support::bed::change;
use crate::support::fake_aws::USER;
use crate::webhook_lab::WebhookLab;

fn init() -> Value {
    let image = image_at(&host("eu-west-2"), "init");
    json!([{"name": "init", "image": image, "args": ["done"]}])
}

fn volume() -> Value {
    let reference = image_at(&host("eu-central-1"), "volume");
    json!([{"name": "volume", "image": {"reference": reference, "pullPolicy": "IfNotPresent"}}])
}

fn main_with(image: &str, name: &str) -> Value {
    json!([{"name": "main", "image": image, "args": [name],
        "volumeMounts": [{"name": "volume", "mountPath": "/volume"}]}])
}

/// Adds an ephemeral container to a running Pod, as `kubectl debug` does.
async fn debug(lab: &Lab, namespace: &str, pod: &str, repository: &str) {
    let image = image_at(&host("us-east-1"), repository);
    let container = json!({"name": "debug", "image": image, "args": [repository]});
    let added = json!({"spec": {"ephemeralContainers": [container]}});
    let added = change(&lab.admin, namespace, pod, "/ephemeralcontainers", &added).await;
    added.unwrap();
}

fn debug_runs(pod: &Value) -> Option<()> {
    let status = &pod["status"]["ephemeralContainerStatuses"][0];
    (!status["state"]["running"].is_null()).then_some(())
}

#[test]
fn init_and_ephemeral_images_are_pulled_too() {
    isolated(async || {
        let bed = WebhookLab::start("").await;
        let lab = &bed.lab;
        let shop = bed.opted_in("shop").await;
        lab.runs(&shop, "main", &json!({"initContainers": init()}))
            .await;
        debug(lab, &shop, "main", "debug").await;
        lab.wait(&shop, "main", "has its debug container", debug_runs)
            .await;
        lab.say("the ephemeral container runs");
        pulled(lab, &["init", "main", "debug"]);

        // Where nobody is opted in, neither can be pulled.
        let plain = lab.plane.namespace("plain", &[]).await;
        let open = image_at(SANDBOX_HOST, OPEN);
        let container = json!([{"name": "main", "image": open, "args": ["debugged"]}]);
        let with_init = json!({"initContainers": init(), "containers": container});
        lab.cannot_pull(&plain, "with-init", &with_init).await;
        lab.runs(&plain, "debugged", &json!({"containers": container}))
            .await;
        debug(lab, &plain, "debugged", "debug").await;
        lab.wait_for_failed_pull(&plain, "debugged").await;
    });
}

/// containerd 1 has no image volumes.
#[test]
fn image_volumes_are_pulled_too() {
    isolated(async || {
        let bed = WebhookLab::start("").await;
        let lab = &bed.lab;
        let shop = bed.opted_in("shop").await;
        let image = image_at(&host("eu-west-1"), "main");
        let spec = json!({"volumes": volume(), "containers": main_with(&image, "main")});
        lab.runs(&shop, "main", &spec).await;
        pulled(lab, &["volume", "main"]);

        // Where nobody is opted in, it can't be pulled for an image that anybody may pull.
        let plain = lab.plane.namespace("plain", &[]).await;
        let open = image_at(SANDBOX_HOST, OPEN);
        let spec = json!({"volumes": volume(), "containers": main_with(&open, "open")});
        lab.cannot_pull(&plain, "with-volume", &spec).await;
    });
}

/// Panics unless the registry gave these repositories to the user whom the webhook mints as.
#[track_caller]
fn pulled(lab: &Lab, repositories: &[&str]) {
    for repository in repositories {
        let principals = lab.registry.principals(repository);
        assert_eq!(principals, [USER.to_owned()].into(), "{repository}");
    }
}
