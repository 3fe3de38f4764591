//! `refresh.noticeMissed` with the RBAC and the guard that the chart renders for it: Pods that lack the pull secret get an
//! Event, once, and ecr-injector may write no other Event about a Pod.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams, PostParams};
use serde_json::{Value, json};

use crate::support::bed::image;
use crate::support::helm::{RELEASE, objects};
use crate::support::installation::{NAME, OPT_IN, REGISTRATION};
use crate::support::pods::{pod, pull_secrets};
use crate::support::{Bed, Caller, eventually};

const SOON: Duration = Duration::from_secs(30);
const REASON: &str = "EcrPullSecretNotInjected";
const VALUES: &str = "config: {refresh: {noticeMissed: true}}";

/// Applies the objects of a kind that the chart renders.
async fn install(bed: &Bed, kind: &str) {
    let rendered = objects(RELEASE, RELEASE, VALUES);
    let wanted = rendered.iter().filter(|object| object["kind"] == kind);
    let wanted: Vec<_> = wanted.map(Value::to_string).collect();
    assert!(!wanted.is_empty(), "{kind}");
    bed.plane.apply(&wanted.join("\n---\n")).await;
}

/// The Events about Pods of a namespace, each as the Pod's name and the note.
async fn events(bed: &Bed, namespace: &str) -> Vec<(String, String)> {
    let events: Api<Event> = Api::namespaced(bed.plane.admin().await, namespace);
    let all = events.list(&ListParams::default()).await.unwrap();
    let about_pods = all.into_iter().filter_map(|event| {
        let regarding = event.regarding?;
        (regarding.kind.as_deref() == Some("Pod")).then(|| {
            assert_eq!(event.reason.as_deref(), Some(REASON));
            assert!(regarding.uid.is_some());
            (regarding.name.unwrap(), event.note.unwrap())
        })
    });
    about_pods.collect()
}

/// An Event of ours about a Pod.
fn event(namespace: &str, reason: &str) -> Value {
    json!({"metadata": {"generateName": "test-"}, "type": "Warning", "reason": reason, "action": "X",
        "regarding": {"kind": "Pod", "namespace": namespace, "name": "x"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": NAME, "reportingInstance": "x"})
}

async fn wait(what: &str, until: impl AsyncFn() -> bool) {
    eventually(what, SOON, async || until().await.then_some(())).await;
}

#[tokio::test]
#[allow(
    clippy::too_many_lines,
    reason = "one leader, with more rights and then without its webhook"
)]
async fn pods_that_lack_the_pull_secret_get_one_event_each() {
    let bed = Bed::start("refresh: {noticeMissed: true}", "info").await;
    let us = Caller(bed.plane.as_service_account(NAME, NAME).await);
    let admin = Caller(bed.plane.admin().await);
    let create = async |namespace: &str, name: &str, image: &str| {
        let pods: Api<Pod> = Api::namespaced(bed.plane.admin().await, namespace);
        let created = pods.create(&PostParams::default(), &pod(name, image)).await;
        created.unwrap()
    };
    // Without the right nothing is noticed, and the log says what is missing.
    bed.webhook
        .log_with("not allowed to list pending Pods")
        .await;
    let late = bed.plane.namespace("late", &[]).await;
    create(&late, "early", &image("eu-west-1")).await;
    create(&late, "other", "nginx:1").await;
    // Dates have whole seconds.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let label = json!({"metadata": {"labels": {OPT_IN.0: OPT_IN.1}}});
    let path = format!("/api/v1/namespaces/{late}");
    admin.merge(&path, &label).await.allowed();
    let team = bed.opted_in("team").await;
    let fine = create(&team, "fine", &image("eu-west-1")).await;
    assert_eq!(pull_secrets(&fine).len(), 1);

    // The guard of the default allows no Event about a Pod; that of the value one reason alone.
    let events_of = format!("/apis/events.k8s.io/v1/namespaces/{team}/events");
    let about_pods = "ecr-injector writes Events about the Secret";
    us.post(&events_of, &event(&team, REASON))
        .await
        .denied(about_pods);
    install(&bed, "ValidatingAdmissionPolicy").await;
    let dry_run = format!("{events_of}?dryRun=All");
    wait("the guard allows it", async || {
        let answer = us.post(&dry_run, &event(&team, REASON)).await;
        answer.0.is_ok()
    })
    .await;
    us.post(&events_of, &event(&team, "Killing"))
        .await
        .denied(about_pods);

    install(&bed, "ClusterRole").await;
    wait("the early Pod has its Event", async || {
        !events(&bed, &late).await.is_empty()
    })
    .await;
    let noticed = events(&bed, &late).await;
    assert_eq!(noticed.len(), 1, "{noticed:?}");
    let (name, note) = &noticed[0];
    assert_eq!(name, "early");
    assert!(note.contains("before its namespace was opted in"), "{note}");
    assert!(note.contains("doctor --stuck"), "{note}");

    // The webhook is not called.
    let registrations = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    let path = format!("{registrations}/{REGISTRATION}");
    admin.delete(&path).await.allowed();
    let pods: Api<Pod> = Api::namespaced(bed.plane.admin().await, &team);
    let probe = pod("probe", &image("eu-west-1"));
    let params = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    wait("the webhook is not called", async || {
        let admitted = pods.create(&params, &probe).await.unwrap();
        pull_secrets(&admitted).is_empty()
    })
    .await;
    create(&team, "missed", &image("eu-west-1")).await;
    wait("the missed Pod has its Event", async || {
        !events(&bed, &team).await.is_empty()
    })
    .await;
    let (name, note) = events(&bed, &team).await.remove(0);
    assert_eq!(name, "missed");
    assert!(note.contains("did not answer in time"), "{note}");

    // Once each, and the metric as well.
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(events(&bed, &late).await.len(), 1);
    assert_eq!(events(&bed, &team).await.len(), 1);
    for (reason, expected) in [
        ("older_than_opt_in", 1.0),
        ("not_injected", 1.0),
        ("image_changed", 0.0),
    ] {
        let series = format!("ecr_injector_missed_pods_total{{reason=\"{reason}\"}}");
        let found: f64 = bed.webhook.metric(&series).await;
        assert!((found - expected).abs() < 0.1, "{reason}: {found}");
    }
}
