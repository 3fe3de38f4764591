//! Pods that were stored without the reference to the pull secret and are restarted by `doctor`,
//! and Pods that get it from the policy instead of the webhook.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::isolation::isolated;
use crate::lab::{HOST, Lab, host, image_at, spec};
use crate::support::helm::{RELEASE, objects};
use crate::support::installation::{NAME, OPT_IN};
use crate::support::{Webhook, command, eventually, webhook};
use crate::webhook_lab::WebhookLab;
use crate::workloads::always_pulled;

/// How long a missed Pod may take after `doctor --stuck --restart`, on a machine where a Pod that
/// wasn't missed takes a tenth of it.
const RESTARTED: Duration = Duration::from_secs(15);
/// How long a Pod may take in policy mode, likewise.
const PREWARMED: Duration = Duration::from_secs(20);
const SOON: Duration = Duration::from_mins(1);

/// Panics if something took longer than it may. On a machine that is slower than expected it may
/// take ten times as long as an ordinary Pod.
#[track_caller]
fn in_time(took: Duration, limit: Duration, ordinary: Duration) {
    assert!(
        took <= limit.max(ordinary * 10),
        "{took:?}, where an ordinary Pod takes {ordinary:?}"
    );
}

/// Has `doctor` restart the stuck Pods of a namespace, and returns how long it takes until a
/// Deployment has them all ready.
async fn restart(lab: &Lab, namespace: &str, name: &str, count: usize) -> Duration {
    let asked = lab.registry.asked(name).len();
    // Nothing else helps: the kubelet tries again, and in vain.
    lab.wait_for_attempt(name, asked).await;
    assert!(lab.all_ready(namespace, name, count).await.is_none());
    let begun = Instant::now();
    let kubeconfig = lab.plane.kubeconfig_for_admin();
    let arguments = [
        "doctor",
        "--stuck",
        "--restart",
        "-n",
        namespace,
        "-o",
        "json",
    ];
    let doctor = command::spawn(&kubeconfig, Vec::new(), arguments);
    let ready = eventually("the restarted Pods are ready", SOON, async || {
        lab.all_ready(namespace, name, count).await
    });
    let took = async {
        ready.await;
        begun.elapsed()
    };
    let (took, ran) = tokio::join!(took, command::end(doctor));
    assert_eq!(ran.code, Some(0), "{}{}", ran.stdout, ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    let pods = report["pods"].as_array().unwrap().iter();
    let restarted = pods.filter(|pod| pod["outcome"] == "restarted").count();
    assert_eq!(restarted, count, "{report:#}");
    let seconds = took.as_secs_f64();
    lab.say(&format!(
        "{name} is ready {seconds:.2} s after doctor was called"
    ));
    took
}

#[test]
fn missed_pods_run_within_15s_of_a_restart_by_doctor() {
    isolated(async || {
        let mut bed = WebhookLab::start("").await;
        let ordinary = bed.opted_in("ordinary").await;
        let begun = Instant::now();
        bed.lab.runs(&ordinary, "ordinary", &json!({})).await;
        let ordinary = begun.elapsed();

        // Stored before the opt-in.
        let late = bed.lab.plane.namespace("late", &[]).await;
        let always = always_pulled("before-the-opt-in");
        bed.lab.deploy(&late, "before-the-opt-in", 2, &always).await;
        bed.lab.cannot_roll_out(&late, "before-the-opt-in", 2).await;
        bed.lab.label(&late, &json!({OPT_IN.0: OPT_IN.1})).await;
        let took = restart(&bed.lab, &late, "before-the-opt-in", 2).await;
        in_time(took, RESTARTED, ordinary);

        // Stored while the webhook was away.
        let shop = bed.opted_in("shop").await;
        bed.stop().await;
        let always = always_pulled("without-webhook");
        bed.lab.deploy(&shop, "without-webhook", 2, &always).await;
        bed.lab.cannot_roll_out(&shop, "without-webhook", 2).await;
        bed.start_again().await;
        let took = restart(&bed.lab, &shop, "without-webhook", 2).await;
        in_time(took, RESTARTED, ordinary);
    });
}

/// Starts what the chart installs in mode `policy`, with the leader as a process of this machine.
async fn policy_mode(lab: &Lab, config: &str) -> Webhook {
    let values = format!("{{mode: policy, config: {config}}}");
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAME}});
    let rendered = objects(RELEASE, NAME, &values);
    let rendered = rendered.iter().filter(|it| it["kind"] != "Deployment");
    let manifests: Vec<_> = [&namespace]
        .into_iter()
        .chain(rendered)
        .map(Value::to_string)
        .collect();
    lab.plane.apply(&manifests.join("\n---\n")).await;
    let options = webhook::Options {
        binary: None,
        config: config.to_owned(),
        listen: (lab.plane.private_address(), 8443).into(),
        admin_listen: (lab.plane.private_address(), 8080).into(),
        certificate: None,
        kubeconfig: lab.plane.kubeconfig_for_service_account(NAME, NAME).await,
        arguments: vec!["--no-admission".to_owned()],
        environment: lab.aws.environment(),
    };
    let leader = Webhook::start(options).await;
    let probe = lab.plane.namespace("probe", &[OPT_IN]).await;
    eventually("the policy is in force", SOON, async || {
        lab.is_referenced(&probe).await.then_some(())
    })
    .await;
    lab.say("the policy is in force");
    leader
}

/// A namespace that is opted in, and a Pod in it, as one manifest.
fn namespace_and_pod(namespace: &str, name: &str, image: &str) -> String {
    let container = json!({"name": "main", "image": image, "args": [name]});
    let objects = [
        json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": namespace, "labels": {OPT_IN.0: OPT_IN.1}}}),
        json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec(name, &json!({"containers": [container]}))}),
    ];
    objects.map(|object| object.to_string()).join("\n---\n")
}

/// M-15
#[test]
fn policy_mode_runs_the_first_pod_of_a_new_namespace_within_20s() {
    isolated(async || {
        let mut lab = Lab::start().await;
        lab.start_kubelet(None).await;
        let leader = policy_mode(&lab, &format!("{{prewarm: [{HOST}]}}")).await;
        let begun = Instant::now();
        let image = image_at(HOST, "new");
        lab.plane
            .apply(&namespace_and_pod("new", "new", &image))
            .await;
        lab.wait_until_recovered("new", "new").await;
        let took = begun.elapsed();
        lab.say(&format!(
            "new is ready {:.2} s after kubectl apply",
            took.as_secs_f64()
        ));
        let shop = lab.plane.namespace("shop", &[OPT_IN]).await;
        let begun = Instant::now();
        lab.runs(&shop, "ordinary", &json!({})).await;
        in_time(took, PREWARMED, begun.elapsed());

        // Without `prewarm` nobody provides the credential.
        let image = image_at(&host("us-east-1"), "cold");
        lab.plane
            .apply(&namespace_and_pod("cold", "cold", &image))
            .await;
        lab.wait_for_failed_pull("cold", "cold").await;
        let asked = lab.registry.asked("cold").len();
        lab.wait_for_attempt("cold", asked).await;
        let pod = lab.pod("cold", "cold").await;
        assert_eq!(
            pod["spec"]["imagePullSecrets"][0]["name"],
            "ecr-pull-secret"
        );
        assert!(crate::lab::is_ready(&pod).is_none());
        assert!(!leader.log().contains("panicked"));
    });
}
