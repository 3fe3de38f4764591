//! `make scale`: what a cluster with many opted-in namespaces costs the leader: the first list, memory, an idle minute, and
//! a sweep of all pull secrets while Pods are created.
//!
//! Everything is real but AWS: kube-apiserver, etcd, namespaces and Secrets. The namespaces add up from step to step, so
//! that growth shows. `SCALE=100,1000` chooses other steps.
#![allow(
    unreachable_pub,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "what it prints is what it is for, and a bench that can't go on panics"
)]

#[path = "../../tests/support/mod.rs"]
mod support;

use std::time::Duration;

use futures::StreamExt as _;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, PostParams};
use support::bed::{create, image, registry};
use support::due::{minted_ago_in, state_keys};
use support::installation::OPT_IN;
use support::pods::pod;
use support::proc;
use support::webhook::Options;
use support::{ControlPlane, FakeAws, Installation, Webhook};
use tokio::time::{Instant, sleep};

const STEPS: &str = "100,1000,10000";
const REGION: &str = "eu-west-1";
/// How many things the bench itself does at a time.
const AT_A_TIME: usize = 16;
const IDLE: Duration = Duration::from_mins(1);
/// Pods that are created for one figure of latency, one after the other.
const PODS: usize = 200;
const PLAIN: &str = "refresh: {writesPerSecond: 100, sessionCap: none}\n";
/// Under this everything belongs to another identity, and so everything is due.
const CHANGED: &str = r#"
identities:
  - assumeRole: {roleArn: "arn:aws:iam::123456789012:role/ecr-pull-ROUND"}
"#;

fn main() {
    // `cargo test --all-targets` runs benches too, and without this flag.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("to measure: make scale");
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(measure());
}

/// One line of the table.
struct Row {
    namespaces: usize,
    sync: Duration,
    peak: f64,
    after: f64,
    idle_cpu: f64,
    idle_calls: f64,
    sweep: Duration,
    per_second: f64,
    sweep_cpu: f64,
    before: (f64, f64),
    during: (f64, f64),
}

async fn measure() {
    support::crypto();
    let steps = std::env::var("SCALE").unwrap_or_else(|_| STEPS.to_owned());
    let steps: Vec<usize> = steps.split(',').map(|step| step.parse().unwrap()).collect();
    let plane = ControlPlane::start().await;
    let aws = FakeAws::start();
    let installation = Installation::apply(&plane).await;
    let mut options = installation.webhook(&plane, &aws).await;
    options = options.with_variable("ECR_INJECTOR_SHUTDOWN_DELAY", "0");
    let mut first = Webhook::start(options.clone()).await;
    installation.register(&plane).await;
    first.stop().await;

    let mut namespaces = Vec::new();
    let mut rows = Vec::new();
    for (round, step) in steps.into_iter().enumerate() {
        let begun = Instant::now();
        add(&plane, &mut namespaces, step).await;
        println!("{step} namespaces after {:.0?}", begun.elapsed());
        let row = measure_one(&plane, &options, &namespaces, round).await;
        println!("measured after {:.0?}", begun.elapsed());
        rows.push(row);
    }
    print(&rows);
}

/// Adds namespaces with a fresh pull secret each.
async fn add(plane: &ControlPlane, namespaces: &mut Vec<String>, until: usize) {
    let admin = plane.admin().await;
    let keys = &state_keys(&admin).await;
    let missing = until - namespaces.len();
    let made = futures::stream::iter(0..missing).map(|_| {
        let admin = admin.clone();
        async move {
            let namespace = plane.namespace("team", &[OPT_IN]).await;
            let hosts = [registry(123_456_789_012, REGION)];
            let lately = SignedDuration::from_mins(10);
            let secret = minted_ago_in(&admin, keys, &namespace, &hosts, lately).await;
            let secrets: Api<Secret> = Api::namespaced(admin, &namespace);
            secrets
                .create(&PostParams::default(), &secret)
                .await
                .unwrap();
            namespace
        }
    });
    let made: Vec<String> = made.buffer_unordered(AT_A_TIME).collect().await;
    namespaces.extend(made);
}

async fn measure_one(
    plane: &ControlPlane,
    options: &Options,
    namespaces: &[String],
    round: usize,
) -> Row {
    let creator = plane.pod_creator().await;
    let mut options = options.clone();
    PLAIN.clone_into(&mut options.config);
    let begun = Instant::now();
    let mut webhook = Webhook::start(options.clone()).await;
    let sync = begun.elapsed();
    // Every Secret that was there is looked at once.
    until_quiet(&webhook, namespaces.len()).await;
    let peak = mebibytes(&webhook, "VmHWM");
    let before = latency(&creator, namespaces).await;
    let (cpu, calls) = (cpu(&webhook), calls(&webhook).await);
    sleep(IDLE).await;
    let idle_cpu = self::cpu(&webhook) - cpu;
    let idle_calls = self::calls(&webhook).await - calls;
    let after = mebibytes(&webhook, "VmRSS");
    webhook.stop().await;

    let config = format!("{PLAIN}{CHANGED}").replace("ROUND", &round.to_string());
    options.config = config;
    let webhook = Webhook::start(options).await;
    let leading = async || webhook.metric("ecr_injector_leader").await > 0.5;
    while !leading().await {
        sleep(Duration::from_millis(10)).await;
    }
    let (begun, cpu) = (Instant::now(), self::cpu(&webhook));
    let refreshed = async || webhook.metric("ecr_injector_refreshes_total").await;
    let sweep = async {
        while refreshed().await < count(namespaces.len()) {
            sleep(Duration::from_millis(100)).await;
        }
        begun.elapsed()
    };
    let (sweep, during) = tokio::join!(sweep, latency(&creator, namespaces));
    let sweep_cpu = self::cpu(&webhook) - cpu;
    Row {
        namespaces: namespaces.len(),
        sync,
        peak,
        after,
        idle_cpu,
        idle_calls,
        sweep,
        per_second: count(namespaces.len()) / sweep.as_secs_f64(),
        sweep_cpu,
        before,
        during,
    }
}

#[allow(clippy::cast_precision_loss, reason = "a count of some thousands")]
fn count(number: usize) -> f64 {
    number as f64
}

/// Waits until the leader has looked at all pull secrets and makes no more calls.
async fn until_quiet(webhook: &Webhook, namespaces: usize) {
    let looked = r#"ecr_injector_kube_api_calls_total{verb="get",resource="secrets"}"#;
    while webhook.metric(looked).await < count(namespaces) {
        sleep(Duration::from_millis(500)).await;
    }
    sleep(Duration::from_secs(2)).await;
}

/// Calls to the API server but those for the Lease.
async fn calls(webhook: &Webhook) -> f64 {
    let all = webhook.metric("ecr_injector_kube_api_calls_total").await;
    all - webhook
        .metric(r#"ecr_injector_kube_api_calls_total{resource="leases"}"#)
        .await
}

/// Creates Pods as dry runs, one after the other in many namespaces; the median and the 99th percentile in milliseconds,
/// the API server's own work included.
async fn latency(creator: &Client, namespaces: &[String]) -> (f64, f64) {
    let mut took = Vec::new();
    for number in 0..PODS {
        let namespace = &namespaces[number * 37 % namespaces.len()];
        let begun = Instant::now();
        let object = pod(&format!("web-{number}"), &image(REGION));
        create(creator, namespace, &object, true).await.unwrap();
        took.push(begun.elapsed().as_secs_f64() * 1000.0);
        sleep(Duration::from_millis(5)).await;
    }
    took.sort_by(f64::total_cmp);
    (took[PODS / 2], took[PODS * 99 / 100])
}

/// Seconds of CPU so far.
fn cpu(webhook: &Webhook) -> f64 {
    proc::cpu_time(webhook.pid()).as_secs_f64()
}

/// A line of `/proc/<pid>/status`.
fn mebibytes(webhook: &Webhook, line: &str) -> f64 {
    proc::mebibytes(webhook.pid(), line)
}

fn print(rows: &[Row]) {
    println!(
        "\n| namespaces | first list | peak memory | after | idle minute: CPU, calls | sweep | writes/s | its CPU | admission before, p50/p99 | during |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for row in rows {
        println!(
            "| {} | {:.2} s | {:.1} MiB | {:.1} MiB | {:.2} s, {:.0} | {:.1} s | {:.0} | {:.1} s | {:.1}/{:.1} ms | {:.1}/{:.1} ms |",
            row.namespaces,
            row.sync.as_secs_f64(),
            row.peak,
            row.after,
            row.idle_cpu,
            row.idle_calls,
            row.sweep.as_secs_f64(),
            row.per_second,
            row.sweep_cpu,
            row.before.0,
            row.before.1,
            row.during.0,
            row.during.1,
        );
    }
    if let [first, .., last] = rows {
        let bytes = (last.after - first.after) * 1024.0 * 1024.0;
        let more = count(last.namespaces - first.namespaces);
        println!("\nmemory per namespace: {:.0} bytes", bytes / more);
    }
}
