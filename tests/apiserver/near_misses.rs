//! Names that nearly match, against a real API server: hosts with ports, images that look like ECR, and labels that nearly
//! opt in or out.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::support;
use crate::support::bed::{Bed, create, hosts, registry};
use crate::support::installation::{OPT_IN, PULL_SECRET};
use crate::support::pods::{pod, pod_with, pull_secrets};
use crate::support::webhook::Webhook;
use crate::support::{ControlPlane, FakeAws, Installation};

const SOON: Duration = Duration::from_secs(20);

/// The notes of the Events `NotOptedIn` in a namespace.
async fn notes(plane: &ControlPlane, namespace: &str) -> Vec<String> {
    let events: Api<Event> = Api::namespaced(plane.admin().await, namespace);
    let published = events.list(&ListParams::default()).await.unwrap();
    let told = published
        .into_iter()
        .filter(|event| event.reason.as_deref() == Some("NotOptedIn"));
    told.filter_map(|event| event.note).collect()
}

#[tokio::test]
async fn namespace_that_looks_opted_in_gets_an_event_with_the_command() {
    support::crypto();
    let plane = ControlPlane::start().await;
    let aws = FakeAws::start();
    let installation = Installation::apply(&plane).await;
    let namespaces: Api<Namespace> = Api::all(plane.admin().await);
    let change = async |namespace: &str, metadata: Value| {
        let patch = Patch::Merge(json!({"metadata": metadata}));
        let params = PatchParams::default();
        namespaces.patch(namespace, &params, &patch).await.unwrap();
    };
    // The leader tells them in the order of their names: those without an Event come first.
    let plain = plane.namespace("a-plain", &[("team", "blue")]).await;
    let opted_in = plane.namespace("a-right", &[OPT_IN]).await;
    let opted_out = plane.namespace("a-out", &[(OPT_IN.0, "disabled")]).await;
    let others = plane
        .namespace("a-others", &[("istio-injection", "enabled")])
        .await;
    let annotated = plane.namespace("b-annotation", &[]).await;
    change(&annotated, json!({"annotations": {OPT_IN.0: OPT_IN.1}})).await;
    let misspelt = ("ecr-injector.dev/injection", "enabled");
    let misspelt = plane.namespace("c-key", &[misspelt]).await;
    change("kube-system", json!({"labels": {OPT_IN.0: OPT_IN.1}})).await;
    let valued = plane.namespace("z-value", &[(OPT_IN.0, "true")]).await;
    let options = installation.webhook(&plane, &aws).await;
    let _webhook = Webhook::start(options).await;

    let told = support::eventually("the last has its Event", SOON, async || {
        notes(&plane, &valued).await.pop()
    });
    let command = format!(
        "kubectl label namespace {valued} {}={} --overwrite",
        OPT_IN.0, OPT_IN.1
    );
    assert!(told.await.contains(&command));
    for (namespace, expected) in [
        (&*annotated, "only as a label"),
        (
            &*misspelt,
            r#""ecr-injector.dev/injection" doesn't opt this namespace in"#,
        ),
        ("kube-system", "optIn.excludeNamespaces"),
    ] {
        let told = notes(&plane, namespace).await;
        assert!(
            told.len() == 1 && told[0].contains(expected),
            "{namespace}: {told:?}"
        );
    }
    for namespace in [&plain, &opted_in, &opted_out, &others] {
        assert_eq!(
            notes(&plane, namespace).await,
            [] as [&str; 0],
            "{namespace}"
        );
    }
}

#[tokio::test]
async fn ports_are_keys_of_their_own_with_one_token_and_count_as_hosts() {
    let region = "eu-central-1";
    let bed = Bed::start("limits: {registriesPerPod: 3}", "info").await;
    let namespace = bed.opted_in("ports").await;
    let client = bed.plane.pod_creator().await;
    let host = registry(123_456_789_012, region);
    let images = [":443", "", ":4566", ":4567", ":4568"];
    let containers = images.iter().enumerate().map(|(at, port)| {
        json!({"name": format!("c{at}"), "image": format!("{host}{port}/team/app:v1")})
    });
    let containers: Vec<Value> = containers.collect();
    let object = pod_with("web", &json!({"containers": containers}));

    let admitted = create(&client, &namespace, &object, false).await.unwrap();

    assert_eq!(pull_secrets(&admitted.pod), [PULL_SECRET]);
    let limited =
        "ecr-injector: credentials for only 3 of 5 ECR registries (limits.registriesPerPod)";
    assert_eq!(admitted.warnings, [limited]);
    let secret = bed.pull_secret(&namespace).await.unwrap();
    let expected = ["", ":443", ":4566"].map(|port| format!("{host}{port}"));
    assert_eq!(hosts(&secret), expected);
    assert_eq!(bed.aws.ecr_calls(region).len(), 1);
}

#[tokio::test]
async fn creator_of_a_pod_is_told_what_nearly_matches() {
    let bed = Bed::start("", "info").await;
    let namespace = bed.opted_in("near").await;
    let client = bed.plane.pod_creator().await;
    let image = format!("{}/team/app:v1", registry(123_456_789_012, "eu-west-3"));
    let short = image.replacen('1', "", 1);
    let labelled = |name: &str, field: &str, value: &str| -> Pod {
        let object = pod(name, &image);
        let mut object = serde_json::to_value(object).unwrap();
        object["metadata"][field] = json!({OPT_IN.0: value});
        serde_json::from_value(object).unwrap()
    };
    let cases: [(Pod, &[&str]); 5] = [
        (pod("right", &image), &[]),
        (labelled("out", "annotations", "disabled"), &[]),
        (
            pod("account", &short),
            &[
                "ecr-injector: an image looks like ECR, but its account \"23456789012\" is not 12 digits",
            ],
        ),
        (
            labelled("value", "annotations", "Disabled"),
            &[
                "ecr-injector: annotation ecr-injector.dev/inject: \"Disabled\" has no effect; only disabled opts out",
            ],
        ),
        (
            labelled("label", "labels", "disabled"),
            &[
                "ecr-injector: label ecr-injector.dev/inject has no effect on a Pod; label the namespace, or annotate the Pod",
            ],
        ),
    ];
    for (object, expected) in cases {
        let admitted = create(&client, &namespace, &object, false).await.unwrap();
        assert_eq!(admitted.warnings, expected, "{:?}", object.metadata.name);
    }
}
