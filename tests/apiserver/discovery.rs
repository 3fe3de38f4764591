//! Tests of the leader's discovery of Pending Pods on a real API server, with the rights of
//! `deploy/` and the one that `discover: pods` needs beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::support;
use crate::support::control_plane::may;
use crate::support::installation::{NAME, OPT_IN, PULL_SECRET, USER};
use crate::support::pods::pod_with;
use crate::support::{ControlPlane, Installation, eventually};
use ecr_injector::cli::metrics::Metrics;
use ecr_injector::cluster::changes::Changes;
use ecr_injector::cluster::lease::Leadership;
use ecr_injector::cluster::namespaces::Namespaces;
use ecr_injector::cluster::watch::Lists;
use ecr_injector::config::Config;
use ecr_injector::config::live::Live;
use ecr_injector::process::readiness::{self, Readiness};
use ecr_injector::refresh::discovery::{Cursor, Discoverer};
use ecr_injector::refresh::metrics::DiscoveryRun;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);

/// The right that the chart gives by `config.discover: pods`.
const LISTS_PODS: &str = "
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: ecr-injector-lists-pods}
rules:
  - apiGroups: [\"\"]
    resources: [pods]
    verbs: [list]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: ecr-injector-lists-pods}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: ecr-injector-lists-pods}
subjects: [{kind: ServiceAccount, name: ecr-injector, namespace: ecr-injector}]
";

fn host(region: &str) -> String {
    format!("123456789012.dkr.ecr.{region}.amazonaws.com")
}

fn image(region: &str) -> String {
    format!("{}/team/app:v1", host(region))
}

/// A Pod that was admitted with our reference.
fn admitted(name: &str, images: &[&str]) -> Pod {
    let container = |(at, image): (usize, &&str)| json!({"name": format!("c{at}"), "image": image});
    let containers: Vec<Value> = images.iter().enumerate().map(container).collect();
    let spec = json!({"containers": containers, "imagePullSecrets": [{"name": PULL_SECRET}]});
    pod_with(name, &spec)
}

async fn create(plane: &ControlPlane, namespace: &str, pod: &Pod) {
    let pods: Api<Pod> = Api::namespaced(plane.admin().await, namespace);
    pods.create(&PostParams::default(), pod).await.unwrap();
}

#[tokio::test]
async fn pending_pods_say_what_opted_in_namespaces_want() {
    support::crypto();
    let plane = ControlPlane::start().await;
    Installation::apply(&plane).await;
    let team = plane.namespace("team", &[OPT_IN]).await;
    let quiet = plane.namespace("quiet", &[OPT_IN]).await;
    let stranger = plane.namespace("stranger", &[]).await;
    Box::pin(make_pods(&plane, &team, &quiet, &stranger)).await;

    let client = plane.as_service_account(NAME, "ecr-injector").await;
    let metrics = Metrics::default();
    let config = "discover: pods\nallow: {regions: [eu-west-1, eu-west-2, eu-north-1, us-east-1]}";
    let live = Live::new(
        Config::parse(&crate::support::config_file(config), "config.yaml").unwrap(),
        None,
    );
    let namespaces = Namespaces::new(
        client.clone(),
        live.config().opt_in.clone(),
        Changes::default(),
        metrics.cluster.clone(),
    );
    let mut readiness = Readiness::default();
    let synced = readiness.condition("namespaces").waiting_for("a list");
    let (watched, condition) = (namespaces.clone(), synced.clone());
    let watch = tokio::spawn(async move { watched.run(Lists::Paged, condition).await });
    readiness::all_held(&[synced]).await;

    let found = Arc::<Mutex<BTreeMap<String, BTreeSet<String>>>>::default();
    let sink = found.clone();
    let discoverer = Discoverer::new(
        client.clone(),
        namespaces,
        live,
        metrics.refresh.clone(),
        Arc::new(move |namespace, hosts| {
            let hosts = hosts.iter().map(ToString::to_string).collect();
            let before = sink.lock().unwrap().insert(namespace.to_string(), hosts);
            assert_eq!(before, None, "{namespace} once a round");
        }),
    )
    .with_sizes(3, 100);
    let leadership = Leadership::unlimited();
    let mut cursor = Cursor::default();

    // The rights of deploy/ are not enough, and nothing else comes of it.
    let outcome = discoverer.round(&leadership, &mut cursor).await;
    assert_eq!(outcome, DiscoveryRun::Refused);
    assert!(found.lock().unwrap().is_empty());

    plane.apply(LISTS_PODS).await;
    eventually(&format!("RBAC lets {USER} list Pods"), SOON, async || {
        may(&client, "list", "pods").await.then_some(())
    })
    .await;
    let outcome = discoverer.round(&leadership, &mut cursor).await;
    assert_eq!(outcome, DiscoveryRun::Complete);
    let expected = ["eu-west-1", "eu-west-2", "eu-north-1", "us-east-1"].map(host);
    let expected = BTreeMap::from([(team.clone(), BTreeSet::from(expected))]);
    assert_eq!(std::mem::take(&mut *found.lock().unwrap()), expected);
    let text = metrics.registry.to_text();
    for line in [
        // Twelve Pods are Pending, in pages of three.
        r#"ecr_injector_kube_api_calls_total{verb="list",resource="pods",outcome="ok"} 4"#,
        r#"ecr_injector_kube_api_calls_total{verb="list",resource="pods",outcome="rejected"} 1"#,
        r#"ecr_injector_discovery_runs_total{outcome="ok"} 1"#,
        r#"ecr_injector_discovery_runs_total{outcome="forbidden"} 1"#,
        r#"ecr_injector_discovery_runs_total{outcome="truncated"} 0"#,
    ] {
        assert!(text.contains(line), "{line} not in:\n{text}");
    }

    // With fewer Pods to a round, two rounds find together what one found.
    let discoverer = discoverer.with_sizes(3, 7);
    let mut together = BTreeSet::new();
    for expected in [DiscoveryRun::Truncated, DiscoveryRun::Complete] {
        let outcome = discoverer.round(&leadership, &mut cursor).await;
        assert_eq!(outcome, expected);
        let found = std::mem::take(&mut *found.lock().unwrap());
        assert!(found.keys().all(|namespace| *namespace == team));
        together.extend(found.into_values().flatten());
    }
    assert_eq!(together, expected[&team]);
    watch.abort();
}

/// Twelve Pending Pods, of which six want something that they may have, and one that runs.
async fn make_pods(plane: &ControlPlane, team: &str, quiet: &str, stranger: &str) {
    for number in 0..3 {
        let pod = admitted(&format!("web-{number}"), &[&image("eu-west-1")]);
        create(plane, team, &pod).await;
    }
    let mut init = admitted("init", &["nginx"]);
    let spec = init.spec.as_mut().unwrap();
    let mut first = spec.containers[0].clone();
    "first".clone_into(&mut first.name);
    first.image = Some(image("eu-west-2"));
    spec.init_containers = Some(vec![first]);
    create(plane, team, &init).await;
    // An image that nobody can pull stands in nobody's way.
    let malformed = format!("{}/UPPER//x:", host("us-west-1"));
    let odd = admitted("odd", &[&malformed, &image("us-east-1")]);
    create(plane, team, &odd).await;
    // Nor does a date that no type of ours can hold.
    let mut hostile = serde_json::to_value(admitted("hostile", &[&image("eu-north-1")])).unwrap();
    hostile["metadata"]["managedFields"] = json!([{"manager": "x", "operation": "Update",
        "apiVersion": "v1", "time": "9999-12-31T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}}}]);
    let hostile = plane
        .kubectl_with_input(
            &["create", "--namespace", team, "-f", "-"],
            &hostile.to_string(),
        )
        .await;
    assert!(hostile.status.success(), "{hostile:?}");

    // None of these is to be served, or has been.
    let mut disabled = admitted("disabled", &[&image("ap-south-1")]);
    let annotation = (OPT_IN.0.to_owned(), "disabled".to_owned());
    disabled.metadata.annotations = Some(BTreeMap::from([annotation]));
    let container = json!({"containers": [{"name": "main", "image": image("ap-south-1")}]});
    let unadmitted = pod_with("unadmitted", &container);
    let disallowed = admitted("disallowed", &[&image("eu-south-1")]);
    for pod in [disabled, unadmitted, disallowed] {
        create(plane, team, &pod).await;
    }
    create(plane, quiet, &admitted("public", &["nginx"])).await;
    for name in ["web", "worker"] {
        let pod = admitted(name, &[&image("eu-west-1")]);
        create(plane, stranger, &pod).await;
    }
    let running = admitted("running", &[&image("eu-west-1")]);
    create(plane, quiet, &running).await;
    let pods: Api<Pod> = Api::namespaced(plane.admin().await, quiet);
    let status = Patch::Merge(json!({"status": {"phase": "Running"}}));
    pods.patch_status("running", &PatchParams::default(), &status)
        .await
        .unwrap();
}
