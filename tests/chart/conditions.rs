//! The conditions by which the API server passes over Pods that aren't ours to change, as the chart renders them: tried on a
//! real one.

use std::sync::Arc;
use std::time::Duration;

use crate::support::helm::objects;
use crate::support::installation::OPT_IN;
use crate::support::{Caller, ControlPlane, Rewriter, Shared, eventually};
use serde_json::{Value, json};

const REGISTRATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
const CREATE: &str = "create.ecr-injector.dev";
const UPDATE: &str = "update.ecr-injector.dev";
const ECR: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com/x:1";
const SOON: Duration = Duration::from_secs(30);

#[tokio::test]
async fn api_server_skips_pods_without_an_ecr_image_and_no_other() {
    let probe = Probe::register("places", "").await;
    for host in [
        "123456789012.dkr.ecr.us-east-1.amazonaws.com",
        "123456789012.dkr.ecr.us-east-1.amazonaws.com:443",
        "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
        "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com",
        "123456789012.dkr-ecr.eu-west-1.on.aws",
        "123456789012.dkr-ecr-fips.us-west-2.on.aws",
        "123456789012.dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
        "123456789012.dkr.ecr.eusc-de-east-1.amazonaws.eu",
        "123456789012.dkr.ecr.us-iso-east-1.c2s.ic.gov",
    ] {
        assert!(
            ecr_injector::registry::Registry::parse(host).is_some(),
            "{host}"
        );
        assert!(
            probe.calls(&pod("form", &format!("{host}/x:1"))).await,
            "{host}"
        );
    }
    for image in [
        "nginx",
        "docker.io/library/nginx:1",
        "images.example.com/x",
        "public.ecr.aws/x/y",
        "ecr.example.com/dkr/ecr:1",
    ] {
        assert!(!probe.calls(&pod("none", image)).await, "{image}");
    }
    let with = |more: Value| {
        let mut pod = pod("place", "nginx");
        json_patch::merge(&mut pod["spec"], &more);
        pod
    };
    let image_volume = |reference: &str| json!({"volumes": [{"name": "model", "image": {"reference": reference}}]});
    let init = |image: &str| json!({"initContainers": [{"name": "init", "image": image}]});
    // Besides what else Pods have: what is absent, or has no image, is no error.
    let bare = json!({"automountServiceAccountToken": false});
    let others = json!({"volumes": [{"name": "cache", "emptyDir": {}}], "initContainers": [], "ephemeralContainers": null});
    // Far more than anybody has: an expression that cost too much would be an error.
    let many: Vec<Value> = (0..1_000)
        .map(|n| json!({"name": format!("c{n}"), "image": "registry.example.com/a/rather/long/name:1"}))
        .collect();
    for (what, pod, called) in [
        (
            "a thousand containers",
            with(json!({"containers": many})),
            false,
        ),
        ("init container", with(init(ECR)), true),
        ("image volume", with(image_volume(ECR)), true),
        ("other init container", with(init("busybox")), false),
        (
            "other image volume",
            with(image_volume("quay.io/x/y:1")),
            false,
        ),
        ("absent lists", with(bare), false),
        ("empty lists", with(others), false),
    ] {
        assert_eq!(probe.calls(&pod).await, called, "{what}");
    }
}

#[tokio::test]
async fn update_is_sent_for_a_new_ecr_image_and_for_no_other() {
    let probe = Probe::register("updates", "").await;
    let path = probe.stored("web").await;
    let debug = |image: &str| json!([{"op": "add", "path": "/spec/ephemeralContainers", "value": [{"name": "debug", "image": image}]}]);
    let image = |image: &str| json!([{"op": "replace", "path": "/spec/containers/0/image", "value": image}]);
    let admin = probe.admin().await;
    let ephemeral = format!("{path}/ephemeralcontainers");
    assert!(
        admin
            .json_patch(&path, &image(ECR))
            .await
            .tried_to_call(UPDATE)
    );
    assert!(
        admin
            .json_patch(&ephemeral, &debug(ECR))
            .await
            .tried_to_call(UPDATE)
    );
    admin.json_patch(&path, &image("nginx:2")).await.allowed();
    admin
        .json_patch(&ephemeral, &debug("busybox"))
        .await
        .allowed();
}

#[tokio::test]
async fn configured_aliases_and_ecr_public_are_in_the_conditions() {
    let alias =
        "{host: images.example.com, registry: 123456789012.dkr.ecr.eu-west-1.amazonaws.com}";
    let port =
        "{host: 'mirror.example.com:5000', registry: 123456789012.dkr.ecr.eu-west-1.amazonaws.com}";
    let values = format!("config: {{publicEcr: true, aliases: [{alias}, {port}]}}");
    let probe = Probe::register("aliases", &values).await;
    for (image, called) in [
        ("images.example.com/team/app:1", true),
        ("public.ecr.aws/x/y:1", true),
        ("ecr-public.aws.com/x/y:1", true),
        ("public.ecr.aws:443/x/y:1", true),
        ("ecr-public.aws.com:443/x/y:1", true),
        ("mirror.example.com:5000/team/app:1", true),
        ("mirror.example.com/team/app:1", false),
        (ECR, true),
        ("images.example.com.evil.example/x", false),
        ("evil.example/images.example.com/x", false),
        ("nginx", false),
    ] {
        assert_eq!(probe.calls(&pod("web", image)).await, called, "{image}");
    }
}

#[tokio::test]
async fn image_without_a_host_is_sent_where_docker_hub_is_an_alias() {
    let alias = "{host: docker.io, registry: 123456789012.dkr.ecr.eu-west-1.amazonaws.com}";
    let values = format!("config: {{aliases: [{alias}]}}");
    let probe = Probe::register("docker-hub", &values).await;
    for image in ["nginx", "team/app:1", "docker.io/team/app:1", ECR] {
        assert!(probe.calls(&pod("web", image)).await, "{image}");
    }
}

#[tokio::test]
async fn rewriter_after_us_is_followed_only_without_conditions() {
    let target = "123456789012.dkr.ecr.eu-central-1.amazonaws.com";
    let rewritten = pod("web", "mirror.example/team/app:1");
    for (rewriter, values, called) in [
        ("before-rewriter", "", true),
        ("zzz-rewriter", "", false),
        ("zzz-rewriter", "matchConditions: {enabled: false}", true),
    ] {
        let name = format!("{rewriter}-{}", values.len());
        let plane = plane().await;
        let _rewriter = Rewriter::register(&plane, &name, "mirror.example", target).await;
        let rewrites = ("rewrite", name.as_str());
        // A namespace without us shows when the rewriter is asked.
        let plain = plane.namespace("plain", &[rewrites]).await;
        let admin = Caller(plane.admin().await);
        eventually("the rewriter is asked", SOON, async || {
            let path = format!("{}?dryRun=All", pods(&plain));
            let stored = admin.post(&path, &rewritten).await.allowed();
            let image = stored["spec"]["containers"][0]["image"].as_str().unwrap();
            image.starts_with(target).then_some(())
        })
        .await;
        let mut probe = Probe::register(&name, values).await;
        probe.namespace = plane.namespace("rewritten", &[OPT_IN, rewrites]).await;
        assert_eq!(probe.calls(&rewritten).await, called, "{name}");
    }
}
/// The control plane that these tests share.
async fn plane() -> Arc<ControlPlane> {
    static PLANE: Shared<ControlPlane> = Shared::new();
    PLANE.get_or_start(ControlPlane::start).await
}

/// The registration that the chart renders, such that each Pod that it is about is refused: nobody serves.
struct Probe {
    plane: Arc<ControlPlane>,
    /// It is about no Pods but those with this label: other probes register as well.
    name: String,
    namespace: String,
}

impl Probe {
    async fn register(name: &str, values: &str) -> Self {
        let plane = plane().await;
        let namespace = plane.namespace("probe", &[OPT_IN]).await;
        let values = format!("fullnameOverride: {name}\n{values}");
        let objects = objects("probe", "default", &values);
        let registration = objects
            .iter()
            .find(|object| object["kind"] == "MutatingWebhookConfiguration");
        let mut registration = registration.unwrap().clone();
        for entry in registration["webhooks"].as_array_mut().unwrap() {
            entry["failurePolicy"] = json!("Fail");
            entry["objectSelector"] = json!({"matchLabels": {"probe": name}});
        }
        let name = name.to_owned();
        let probe = Self {
            plane,
            name,
            namespace,
        };
        let admin = probe.admin().await;
        admin.post(REGISTRATIONS, &registration).await.allowed();
        eventually("the API server knows the registration", SOON, async || {
            probe.calls(&pod("known", ECR)).await.then_some(())
        })
        .await;
        probe
    }

    /// Whether the API server would call us for this Pod. If not, it takes the Pod.
    async fn calls(&self, pod: &Value) -> bool {
        let mut pod = pod.clone();
        pod["metadata"]["labels"] = json!({"probe": self.name});
        let path = format!("{}?dryRun=All", pods(&self.namespace));
        let outcome = self.admin().await.post(&path, &pod).await;
        let called = outcome.tried_to_call(CREATE);
        if !called {
            outcome.allowed();
        }
        called
    }

    /// A Pod without an ECR image, and its path.
    async fn stored(&self, name: &str) -> String {
        let mut pod = pod(name, "nginx:1");
        pod["metadata"]["labels"] = json!({"probe": self.name});
        let path = pods(&self.namespace);
        self.admin().await.post(&path, &pod).await.allowed();
        format!("{path}/{name}")
    }

    async fn admin(&self) -> Caller {
        Caller(self.plane.admin().await)
    }
}
fn pod(name: &str, image: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"containers": [{"name": "main", "image": image}]}})
}
fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}
