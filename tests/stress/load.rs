//! Many Pods, several replicas: no registry is lost, no Pod is stored without our entry, AWS is asked once.
//!
//! The load is created by a `ServiceAccount`: an admin is exempt from priority and fairness, which hides what those do to
//! the webhook's own calls. And what counts is the Pods that were stored: the failure policy hides every error.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::support;
use crate::support::bed::{create, hosts, image, post_review, registry, review};
use crate::support::installation::{NAME, OPT_IN, PULL_SECRET, USER};
use crate::support::pods::{pod, pull_secrets};
use crate::support::{Balancer, ControlPlane, FakeAws, Installation, Webhook, eventually};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::flowcontrol::v1::FlowSchema;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams};
use tokio::time::Instant;

const ROUNDS: usize = 50;
const NAMESPACES: usize = 200;
const PODS_PER_NAMESPACE: usize = 5;
const AT_A_TIME: usize = 300;
/// Three quarters of the registration's timeout: what the webhook allows itself.
const DEADLINE: f64 = 3.75;

/// Two processes behind one Service.
struct Pair {
    plane: ControlPlane,
    aws: FakeAws,
    installation: Installation,
    replicas: Vec<Webhook>,
    _balancer: Balancer,
}

impl Pair {
    async fn start() -> Self {
        support::crypto();
        let plane = ControlPlane::start().await;
        let aws = FakeAws::start();
        let installation = Installation::apply(&plane).await;
        let mut replicas = Vec::new();
        for _ in 0..2 {
            let options = installation.replica(&plane, &aws).await;
            replicas.push(Webhook::start(options).await);
        }
        let addresses: Vec<_> = replicas.iter().map(Webhook::address).collect();
        let balancer = Balancer::start(installation.service_address(), &addresses);
        installation.register(&plane).await;
        aws.clear();
        Self {
            plane,
            aws,
            installation,
            replicas,
            _balancer: balancer,
        }
    }

    async fn metric(&self, series: &str) -> f64 {
        let mut sum = 0.0;
        for replica in &self.replicas {
            sum += replica.metric(series).await;
        }
        sum
    }
}

#[tokio::test]
async fn two_processes_that_race_on_two_registries_lose_none() {
    let _alone = crate::alone().await;
    let pair = Pair::start().await;
    let installation = &pair.installation;
    let regions = ["us-east-1", "eu-west-1"];
    for round in 0..ROUNDS {
        let namespace = pair.plane.namespace("race", &[OPT_IN]).await;
        let reviews = pair.replicas.iter().zip(regions).map(|(replica, region)| {
            let review = review(&namespace, &pod("web", &image(region)));
            async move { post_review(installation, replica.address(), &review).await }
        });
        for answer in futures::future::join_all(reviews).await {
            assert_eq!(
                answer["response"]["patchType"], "JSONPatch",
                "round {round}: {answer}"
            );
            assert!(
                answer["response"]["warnings"].is_null(),
                "round {round}: {answer}"
            );
        }
        let secrets: Api<Secret> = Api::namespaced(pair.plane.admin().await, &namespace);
        let mut expected = regions.map(|region| registry(123_456_789_012, region));
        expected.sort();
        assert_eq!(
            hosts(&secrets.get(PULL_SECRET).await.unwrap()),
            expected,
            "round {round}"
        );
    }
    let conflicts = pair
        .metric(r#"ecr_injector_kube_api_calls_total{outcome="conflict"}"#)
        .await;
    println!("{ROUNDS} rounds, {conflicts} lost writes that were merged");
    assert!(conflicts > 0.5, "there was no race at all");
}

/// The results of a load.
#[derive(Debug)]
#[expect(dead_code, reason = "most are only shown")]
struct Summary {
    stored_without_our_entry: usize,
    with_warnings: usize,
    turned_away: usize,
    took: Duration,
    slowest: Duration,
}

/// Creates Pods in cold namespaces, in an order that has every namespace cold at the same time.
async fn load(pair: &Pair, client: &Client, region: &str) -> Summary {
    let mut namespaces = Vec::new();
    for _ in 0..NAMESPACES {
        namespaces.push(pair.plane.namespace("load", &[OPT_IN]).await);
    }
    pair.aws
        .tune_ecr(|knobs| knobs.latency = Duration::from_millis(200));
    let (turned_away, with_warnings) =
        (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let started = Instant::now();
    let jobs: Vec<_> = (0..PODS_PER_NAMESPACE)
        .flat_map(|n| namespaces.iter().map(move |namespace| (n, namespace)))
        .map(|(n, namespace)| {
            let object = pod(&format!("web-{n}"), &image(region));
            let (turned_away, with_warnings) = (turned_away.clone(), with_warnings.clone());
            async move {
                let started = Instant::now();
                loop {
                    match create(client, namespace, &object, false).await {
                        Ok(admitted) => {
                            with_warnings.fetch_add(
                                usize::from(!admitted.warnings.is_empty()),
                                Ordering::Relaxed,
                            );
                            return started.elapsed();
                        }
                        // Priority and fairness ask the creator to come back, as they ask every client.
                        Err(status) if status.code == 429 => {
                            turned_away.fetch_add(1, Ordering::Relaxed);
                            tokio::time::sleep(Duration::from_millis(200)).await;
                        }
                        Err(status) => panic!("{namespace}: {status:?}"),
                    }
                }
            }
        })
        .collect();
    let times: Vec<Duration> = futures::stream::iter(jobs)
        .buffer_unordered(AT_A_TIME)
        .collect()
        .await;
    let took = started.elapsed();
    let pods: Api<Pod> = Api::all(pair.plane.admin().await);
    let stored = pods.list(&ListParams::default()).await.unwrap();
    let ours: Vec<_> = stored
        .iter()
        .filter(|pod| namespaces.contains(pod.metadata.namespace.as_ref().unwrap()))
        .collect();
    assert_eq!(ours.len(), NAMESPACES * PODS_PER_NAMESPACE);
    Summary {
        stored_without_our_entry: ours
            .iter()
            .filter(|pod| !pull_secrets(pod).contains(&PULL_SECRET))
            .count(),
        with_warnings: with_warnings.load(Ordering::Relaxed),
        turned_away: turned_away.load(Ordering::Relaxed),
        took,
        slowest: times.into_iter().max().unwrap(),
    }
}

async fn failed_open(pair: &Pair) -> f64 {
    let request = http::Request::get("/metrics").body(Vec::new()).unwrap();
    let metrics = pair
        .plane
        .admin()
        .await
        .request_text(request)
        .await
        .unwrap();
    support::webhook::sum(&metrics, "apiserver_admission_webhook_fail_open_count")
}

#[tokio::test]
async fn thousand_pods_in_two_hundred_cold_namespaces_are_all_served() {
    let _alone = crate::alone().await;
    let pair = Pair::start().await;
    let client = pair.plane.pod_creator().await;

    let before = failed_open(&pair).await;
    let figures = load(&pair, &client, "us-east-2").await;
    println!(
        "with the FlowSchema: {figures:?}, {} failed open",
        failed_open(&pair).await - before
    );
    assert_eq!(figures.stored_without_our_entry, 0);
    assert!(failed_open(&pair).await - before < 0.5);
    let calls = pair.aws.ecr_calls("us-east-2").len();
    assert!(
        calls <= pair.replicas.len(),
        "{calls} AWS calls by {} processes",
        pair.replicas.len()
    );
    let mut late = 0.0;
    for replica in &pair.replicas {
        let metrics = replica.metrics().await;
        late += later_than(&metrics, DEADLINE);
    }
    println!("answered later than {DEADLINE} s: {late}");
    assert!(late < 0.5, "{late} answers past the deadline");
    eventually(
        "every pull secret has its credential",
        Duration::from_secs(15),
        async || {
            let secrets: Api<Secret> = Api::all(pair.plane.admin().await);
            let of_the_name = ListParams::default().fields(&format!("metadata.name={PULL_SECRET}"));
            let complete = secrets.list(&of_the_name).await.unwrap();
            let complete = complete.iter().filter(|secret| !hosts(secret).is_empty());
            let loaded = complete.filter(|secret| {
                secret
                    .metadata
                    .namespace
                    .as_ref()
                    .unwrap()
                    .starts_with("load")
            });
            (loaded.count() == NAMESPACES).then_some(())
        },
    )
    .await;
    let creations = pair
        .plane
        .audit_events_of(USER)
        .iter()
        .filter(|event| event["verb"] == "patch" && event["responseStatus"]["code"] == 201)
        .filter(|event| {
            event["objectRef"]["namespace"]
                .as_str()
                .is_some_and(|name| name.starts_with("load"))
        })
        .count();
    assert_eq!(creations, NAMESPACES, "creations of pull secrets");

    // What our own place in priority and fairness is for. Reported, not held: how bad it gets is the machine's to say.
    let schemas: Api<FlowSchema> = Api::all(pair.plane.admin().await);
    schemas
        .delete(NAME, &DeleteParams::default())
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = failed_open(&pair).await;
    let figures = load(&pair, &client, "us-west-2").await;
    println!(
        "without the FlowSchema: {figures:?}, {} failed open",
        failed_open(&pair).await - before
    );
}

/// How many admissions took longer, by the histogram's first bound from `seconds` up.
fn later_than(metrics: &str, seconds: f64) -> f64 {
    let name = "ecr_injector_admission_duration_seconds";
    let bound = metrics
        .lines()
        .filter_map(|line| {
            line.strip_prefix(&format!("{name}_bucket{{le=\""))?
                .split('"')
                .next()?
                .parse::<f64>()
                .ok()
        })
        .filter(|bound| *bound >= seconds)
        .fold(f64::INFINITY, f64::min);
    let bound = if bound.is_finite() {
        bound.to_string()
    } else {
        "+Inf".to_owned()
    };
    let within = support::webhook::sum(metrics, &format!("{name}_bucket{{le=\"{bound}\"}}"));
    support::webhook::sum(metrics, &format!("{name}_count")) - within
}
