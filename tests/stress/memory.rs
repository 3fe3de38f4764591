//! Tests of the memory that the stores keep for a namespace, to the byte: both watches' and the
//! leader's plan. `make scale` measures the whole process; here the allocator counts what is held,
//! and nothing else is in that count.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use crate::support;
use crate::support::bed::registry;
use crate::support::due::minted_ago;
use crate::support::installation::{OPT_IN, PULL_SECRET};
use crate::support::sim::Sim;
use ecr_injector::admission::review::Request;
use ecr_injector::cli::metrics::Metrics;
use ecr_injector::cluster::changes::Changes;
use ecr_injector::cluster::lease::Leadership;
use ecr_injector::cluster::namespace::Namespace;
use ecr_injector::cluster::namespaces::Namespaces;
use ecr_injector::cluster::watch::Lists;
use ecr_injector::config::Config;
use ecr_injector::config::live::Live;
use ecr_injector::process::clock::{Clock, SystemClock};
use ecr_injector::process::readiness::{self, Readiness};
use ecr_injector::pull_secret::seal::{StateKeys, key::StateKey};
use ecr_injector::pull_secret::state::Subject;
use ecr_injector::pull_secret::store::PullSecrets;
use ecr_injector::pull_secret::writer::Writer;
use ecr_injector::pull_secret::writer::api::KubeSecrets;
use ecr_injector::refresh::{Reconciler, ReconcilerContext};
use ecr_injector::token::cache::TokenCache;
use http::Response;
use http_body_util::Full;
use hyper::body::Bytes;
use jiff::SignedDuration;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::task::TaskTracker;

/// As many as are added between two measurements, so that what is there once isn't counted.
const MORE: usize = 5_000;

/// All that a leader holds.
struct Held {
    _namespaces: Namespaces,
    secrets: PullSecrets,
    metrics: Metrics,
    _tasks: [JoinHandle<()>; 2],
}

/// A leader in a cluster of so many opted-in namespaces, each with a pull secret for two registries, none of it due.
async fn leading(count: usize) -> Held {
    let names: Vec<String> = (0..count)
        .map(|number| format!("team-number-{number:05}"))
        .collect();
    let metrics = Metrics::default();
    let changes = Changes::default();
    let live = Live::new(Config::default(), None);
    let client = cluster_of(&names);
    let opt_in = live.config().opt_in.clone();
    let namespaces = Namespaces::new(
        client.clone(),
        opt_in,
        changes.clone(),
        metrics.cluster.clone(),
    );
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let keys = StateKeys::new(StateKey::new([7; 32]), None);
    let known = namespaces.clone();
    let secrets = PullSecrets::new(
        keys.clone(),
        Arc::new(move |namespace| known.uid(namespace)),
        clock.clone(),
        changes.clone(),
        metrics.pull_secret.clone(),
    );
    let hosts = ["eu-west-1", "us-east-1"].map(|region| registry(123_456_789_012, region));
    for (number, name) in names.iter().enumerate() {
        let subject = Subject {
            namespace: name,
            namespace_uid: &uid(number),
            secret_uid: &uid(count + number),
        };
        let mut secret = minted_ago(&keys, subject, &hosts, SignedDuration::from_hours(1));
        secret.metadata.uid = Some(uid(count + number));
        secret.metadata.resource_version = Some((1_000 + number).to_string());
        secrets.record_write(&Namespace::parse(name).unwrap(), &uid(number), &secret);
    }
    let synced = Readiness::default().condition("namespaces");
    let (watched, condition) = (namespaces.clone(), synced.clone());
    let watch = tokio::spawn(async move { watched.run(Lists::Paged, condition).await });
    readiness::all_held(&[synced]).await;
    let name = PULL_SECRET.to_owned();
    let api = KubeSecrets::new(client, name.clone(), metrics.pull_secret.clone());
    let mint = Sim::new("").aws;
    let reconciler = Reconciler::new(ReconcilerContext {
        namespaces: Arc::new(namespaces.clone()),
        secrets: secrets.clone(),
        writer: Writer::new(Arc::new(api), name, secrets.clone(), clock.clone()),
        tokens: TokenCache::new(mint, clock.clone(), TaskTracker::new()),
        policy: live.policy.clone(),
        changes,
        clock,
        metrics: metrics.refresh.clone(),
        events: None,
    });
    let lead = tokio::spawn(async move { reconciler.lead(Leadership::unlimited()).await });
    sleep(Duration::from_millis(10)).await;
    Held {
        _namespaces: namespaces,
        secrets,
        metrics,
        _tasks: [watch, lead],
    }
}

/// One of so many, as long as a UID is.
fn uid(number: usize) -> String {
    format!("6f1a3c52-9f0e-4e43-8a51-{number:012}")
}

/// An opted-in namespace, as a list has it.
fn listed(number: usize, name: &str) -> Value {
    let metadata = json!({"name": name, "uid": uid(number), "resourceVersion": "7", "labels": {OPT_IN.0: OPT_IN.1}});
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": metadata})
}

/// Lists these, and then has no news.
fn cluster_of(names: &[String]) -> Client {
    let items = names.iter().enumerate();
    let items: Vec<Value> = items.map(|(number, name)| listed(number, name)).collect();
    let list = json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
        "metadata": {"resourceVersion": "7"}, "items": items});
    // Without what a growing text has to spare: it would be taken for ours.
    let list = Bytes::from(list.to_string().into_boxed_str().into_boxed_bytes());
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let list = list.clone();
        async move {
            if request.uri().query().unwrap().contains("watch=true") {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Response::new(Full::from(list)))
        }
    });
    Client::new(service, "default")
}

#[test]
fn review_of_many_elements_takes_a_fraction_of_its_size() {
    let _alone = crate::alone_in_a_thread();
    // As large as a body may be.
    let size = 8 * 1024 * 1024;
    let (empty, kept) = (64 * 1024, 1024 * 1024);
    for (before, element, after, limit) in [
        (r#""metadata":{"ownerReferences":["#, "{}", "]}", empty),
        (r#""spec":{"containers":["#, "{}", "]}", empty),
        (r#""spec":{"volumes":["#, r#"{"image":{}}"#, "]}", empty),
        (
            r#""spec":{"imagePullSecrets":["#,
            r#"{"name":""}"#,
            "]}",
            empty,
        ),
        (r#""metadata":{"annotations":{"#, r#""a":"""#, "}}", empty),
        (r#""spec":{"containers":["#, r#"{"image":"a"}"#, "]}", kept),
        (
            r#""spec":{"initContainers":["#,
            r#"{"image":"\u0061"}"#,
            "]}",
            kept,
        ),
        (
            r#""spec":{"volumes":["#,
            r#"{"image":{"reference":"a"}}"#,
            "]}",
            kept,
        ),
        (
            r#""spec":{"imagePullSecrets":["#,
            r#"{"name":"a"}"#,
            "]}",
            kept,
        ),
    ] {
        let elements = vec![element; (size - 200) / (element.len() + 1)].join(",");
        let body = format!(
            r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{{"uid":"u","kind":{{"group":"","version":"v1","kind":"Pod"}},"resource":{{"group":"","version":"v1","resource":"pods"}},"operation":"CREATE","namespace":"team","object":{{{before}{elements}{after}}}}}}}"#
        );
        let counted = allocation_counter::measure(|| {
            let request = Request::parse(body.as_bytes());
            let is_read = request.unwrap().object.is_some();
            assert_eq!(is_read, limit == empty, "{before} {element}");
        });
        let most = counted.bytes_max;
        assert!(most < limit, "{before} {element}: {most} bytes");
    }
}

#[test]
fn namespace_takes_less_than_a_kilobyte() {
    let _alone = crate::alone_in_a_thread();
    support::crypto();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    let mut all = Vec::new();
    let mut bytes = |count: usize| {
        let counted = allocation_counter::measure(|| {
            let held = runtime.block_on(leading(count));
            let there = held.secrets.names().len();
            assert_eq!(there, count);
            let opted_in = held.metrics.cluster.namespaces.get();
            assert_eq!(usize::try_from(opted_in).unwrap(), count);
            all.push(held);
        });
        usize::try_from(counted.bytes_current).unwrap()
    };
    // The first takes along what is made once in a process.
    bytes(1);
    let few = bytes(MORE);
    let many = bytes(2 * MORE);
    // The list that the fake cluster answers from is none of ours.
    let list = listed(0, "team-number-00000").to_string();
    let each = (many - few) / MORE - (list.len() + 1);
    println!("{each} bytes a namespace");
    assert!(each <= 1024, "{each} bytes a namespace");
    // What is measured is there: the state alone has two hosts of 44 bytes, a seal, and two UIDs.
    assert!(each >= 256, "{each} bytes a namespace");
}
