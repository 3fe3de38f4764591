//! `deploy/` as an admin applies it: what the API server makes of it, and what it would send to the webhook. Nothing
//! serves here. Copies of the registration that refuse what they can't send show what would have been sent.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::support::installation::{NAME, OPT_IN, REGISTRATION};
use crate::support::{Authority, Caller, ControlPlane, Shared, eventually};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::Request;
use kube::client::Body;
use serde_json::{Value, json};

const REGISTRATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const CREATE: &str = "create.ecr-injector.dev";
const UPDATE: &str = "update.ecr-injector.dev";
const IMAGE: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com/x:1";
const SOON: Duration = Duration::from_secs(20);

#[tokio::test]
async fn applies_in_the_documented_order_twice_without_a_warning() {
    // Once.
    let (plane, _) = ready().await;
    apply(&plane).await;
}

#[tokio::test]
async fn has_pods_that_meet_the_restricted_standard() {
    let (_, admin) = ready().await;
    let path = format!("/apis/apps/v1/namespaces/{NAME}/deployments/{NAME}");
    let mut template = admin.get(&path).await.allowed()["spec"]["template"].take();
    template["metadata"]["name"] = json!("probe");
    let pods = format!("/api/v1/namespaces/{NAME}/pods?dryRun=All");
    admin.post(&pods, &template).await.allowed();
    // The namespace does enforce it.
    template["spec"]["securityContext"]["runAsNonRoot"] = json!(false);
    admin.post(&pods, &template).await.forbidden();
}

#[tokio::test]
async fn keeps_the_ca_bundle_when_the_registration_is_applied_again() {
    let (plane, admin) = ready().await;
    let path = format!("{REGISTRATIONS}/{REGISTRATION}");
    let mut filled = admin.get(&path).await.allowed();
    let authority = Authority::new("test-webhook");
    let ca_bundle = BASE64_STANDARD.encode(authority.pem());
    for webhook in filled["webhooks"].as_array_mut().unwrap() {
        webhook["clientConfig"]["caBundle"] = json!(ca_bundle);
    }
    admin.put(&path, &filled).await.allowed();
    apply(&plane).await;
    let kept = admin.get(&path).await.allowed();
    for webhook in kept["webhooks"].as_array().unwrap() {
        assert_eq!(webhook["clientConfig"]["caBundle"], ca_bundle);
    }
}

#[tokio::test]
async fn sends_our_calls_to_a_priority_level_where_pods_do_not_wait() {
    let (plane, admin) = ready().await;
    let us = plane.as_service_account(NAME, NAME).await;
    let schemas = "/apis/flowcontrol.apiserver.k8s.io/v1/flowschemas";
    let schema = admin.get(&format!("{schemas}/{NAME}")).await.allowed();
    assert_eq!(
        schema["spec"]["priorityLevelConfiguration"]["name"],
        "workload-high"
    );
    eventually("the API server uses the schema", SOON, async || {
        let request = Request::get("/api/v1/namespaces")
            .body(Body::empty())
            .unwrap();
        let response = us.send(request).await.unwrap();
        let used = response.headers().get("x-kubernetes-pf-flowschema-uid")?;
        (used.to_str().ok() == schema["metadata"]["uid"].as_str()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn is_sent_each_new_opted_in_pod_with_an_ecr_image() {
    let (_, admin) = ready().await;
    let probe = Probe::register(CREATE).await;
    let opted_in = probe.namespace(&[OPT_IN]).await;
    let pod = probe.pod("a", &json!({}));
    assert!(
        admin
            .post(&pods(&opted_in), &pod)
            .await
            .tried_to_call(CREATE)
    );
    for labels in [&[][..], &[(OPT_IN.0, "disabled")]] {
        let plain = probe.namespace(labels).await;
        admin.post(&pods(&plain), &pod).await.allowed();
    }
}

#[tokio::test]
async fn is_never_sent_pods_of_excluded_namespaces() {
    let (_, admin) = ready().await;
    let create = Probe::register(CREATE).await;
    let update = Probe::register(UPDATE).await;
    for namespace in ["kube-system", "kube-node-lease", NAME] {
        let path = format!("/api/v1/namespaces/{namespace}");
        let label = json!({"metadata": {"labels": {OPT_IN.0: OPT_IN.1}}});
        // The API server makes its own namespaces a moment after it is ready.
        eventually("the namespace is labelled", SOON, async || {
            admin.merge(&path, &label).await.0.ok()
        })
        .await;
        let account = json!({"metadata": {"name": "default"}});
        let accounts = format!("{path}/serviceaccounts");
        admin.post(&accounts, &account).await.allowed();
        admin
            .post(&pods(namespace), &create.pod("a", &json!({})))
            .await
            .allowed();
        admin
            .post(&pods(namespace), &update.pod("b", &json!({})))
            .await
            .allowed();
        admin
            .json_patch(&pod(namespace, "b"), &other_image("containers"))
            .await
            .allowed();
    }
}

#[tokio::test]
async fn is_sent_an_update_that_brings_an_image() {
    let (_, admin) = ready().await;
    let probe = Probe::register(UPDATE).await;
    let namespace = probe.namespace(&[OPT_IN]).await;
    let init = json!({"initContainers": [container("init", IMAGE)]});
    for (name, more) in [("with-init", init), ("without-init", json!({}))] {
        admin
            .post(&pods(&namespace), &probe.pod(name, &more))
            .await
            .allowed();
        let path = pod(&namespace, name);
        assert!(
            admin
                .json_patch(&path, &other_image("containers"))
                .await
                .tried_to_call(UPDATE)
        );
        let debug = json!([
            {"op": "add", "path": "/spec/ephemeralContainers", "value": [container("debug", IMAGE)]},
        ]);
        let path = format!("{path}/ephemeralcontainers");
        assert!(admin.json_patch(&path, &debug).await.tried_to_call(UPDATE));
    }
    let path = pod(&namespace, "with-init");
    assert!(
        admin
            .json_patch(&path, &other_image("initContainers"))
            .await
            .tried_to_call(UPDATE)
    );
}

#[tokio::test]
async fn is_sent_no_other_update() {
    let (_, admin) = ready().await;
    let probe = Probe::register(UPDATE).await;
    let namespace = probe.namespace(&[OPT_IN]).await;
    let init = json!({"initContainers": [container("init", IMAGE)]});
    let mut stuck = probe.pod("stuck", &init);
    stuck["metadata"]["finalizers"] = json!(["example.com/stuck"]);
    admin.post(&pods(&namespace), &stuck).await.allowed();
    let path = pod(&namespace, "stuck");

    let label = json!([{"op": "add", "path": "/metadata/labels/more", "value": "x"}]);
    admin.json_patch(&path, &label).await.allowed();
    let tolerations =
        json!([{"op": "add", "path": "/spec/tolerations/-", "value": {"operator": "Exists"}}]);
    admin.json_patch(&path, &tolerations).await.allowed();
    let running = json!([{"op": "add", "path": "/status/phase", "value": "Running"}]);
    admin
        .json_patch(&format!("{path}/status"), &running)
        .await
        .allowed();
    let same = json!([{"op": "add", "path": "/metadata/annotations", "value": {"more": "x"}}]);
    admin
        .json_patch(&format!("{path}/ephemeralcontainers"), &same)
        .await
        .allowed();

    // Lists that are absent are no change.
    let bare = probe.pod("bare", &json!({}));
    admin.post(&pods(&namespace), &bare).await.allowed();
    let path = pod(&namespace, "bare");
    admin.json_patch(&path, &label).await.allowed();

    // Once a Pod is being deleted nothing that happens to it is ours, least of all what lets it go.
    let path = pod(&namespace, "stuck");
    admin.delete(&path).await.allowed();
    admin
        .json_patch(&path, &other_image("containers"))
        .await
        .allowed();
    let finalizers = json!([{"op": "remove", "path": "/metadata/finalizers"}]);
    admin.json_patch(&path, &finalizers).await.allowed();
}

/// The control plane that the tests share, with `deploy/` in force, and the admin.
async fn ready() -> (Arc<ControlPlane>, Caller) {
    static PLANE: Shared<ControlPlane> = Shared::new();
    let start = async || {
        let plane = ControlPlane::start().await;
        apply(&plane).await;
        plane
    };
    let plane = PLANE.get_or_start(start).await;
    let admin = Caller(plane.admin().await);
    (plane, admin)
}

/// As the comment in `deploy/namespace.yaml` says.
async fn apply(plane: &ControlPlane) {
    let folder = deploy();
    let folder = folder.to_str().unwrap();
    let namespace = format!("{folder}/namespace.yaml");
    let strictly = ["apply", "--validate=strict", "--warnings-as-errors"];
    let files = ["-f", &namespace, "-f", folder];
    let output = plane.kubectl(&[&strictly[..], &files].concat()).await;
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
}

/// One webhook of the registration, registered for the Pods of one test alone, such that a Pod which it can't be sent is
/// refused. Nothing listens at the Service's address, so every call fails.
struct Probe {
    plane: Arc<ControlPlane>,
    name: String,
}

impl Probe {
    async fn register(webhook: &str) -> Self {
        let (plane, admin) = ready().await;
        let opted_in = plane.namespace("probe", &[OPT_IN]).await;
        let probe = Self {
            plane,
            name: opted_in.clone(),
        };

        let text = fs::read_to_string(deploy().join("registration.yaml")).unwrap();
        let mut registration: Value = serde_saphyr::from_str(&text).unwrap();
        registration["metadata"]["name"] = json!(probe.name);
        let webhooks = registration["webhooks"].as_array_mut().unwrap();
        webhooks.retain(|candidate| candidate["name"] == webhook);
        webhooks[0]["failurePolicy"] = json!("Fail");
        webhooks[0]["objectSelector"] = json!({"matchLabels": {"probe": probe.name}});
        admin.post(REGISTRATIONS, &registration).await.allowed();

        let dry_run = format!("{}?dryRun=All", pods(&opted_in));
        let name = "is-it-registered";
        let pod = probe.pod(name, &json!({}));
        if webhook == UPDATE {
            admin.post(&pods(&opted_in), &pod).await.allowed();
        }
        eventually("the API server knows the registration", SOON, async || {
            let outcome = if webhook == UPDATE {
                let path = format!("{}/{name}?dryRun=All", pods(&opted_in));
                admin.json_patch(&path, &other_image("containers")).await
            } else {
                admin.post(&dry_run, &pod).await
            };
            outcome.tried_to_call(webhook).then_some(())
        })
        .await;
        probe
    }

    async fn namespace(&self, labels: &[(&str, &str)]) -> String {
        self.plane.namespace("probed", labels).await
    }

    /// A Pod that the probe sees, good for a namespace that enforces the restricted standard.
    fn pod(&self, name: &str, more: &Value) -> Value {
        let mut pod = json!({
            "metadata": {"name": name, "labels": {"probe": self.name}},
            "spec": {
                "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
                "containers": [container("main", IMAGE)],
            },
        });
        json_patch::merge(&mut pod["spec"], more);
        pod
    }
}

fn container(name: &str, image: &str) -> Value {
    let security = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    json!({"name": name, "image": image, "securityContext": security})
}

fn other_image(list: &str) -> Value {
    let path = format!("/spec/{list}/0/image");
    json!([{"op": "replace", "path": path, "value": format!("{IMAGE}.1")}])
}

fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

fn pod(namespace: &str, name: &str) -> String {
    format!("{}/{name}", pods(namespace))
}

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy")
}
