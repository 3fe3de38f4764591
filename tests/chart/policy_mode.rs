//! The chart's modes `policy` and `both` with our binary: the API server adds the reference, and the leader keeps the pull
//! secrets.

use std::time::{Duration, Instant};

use crate::support::bed::{hosts, image, registry};
use crate::support::helm::{RELEASE, objects};
use crate::support::installation::{NAME, OPT_IN, PULL_SECRET, USER};
use crate::support::pods::{pod, pull_secrets};
use crate::support::{Bed, Caller, ControlPlane, FakeAws, Webhook, command, eventually, webhook};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
/// How long the leader may take to discover a Pod and to write its pull secret.
const DISCOVERED: Duration = Duration::from_secs(15);
const REGISTRATIONS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

/// Applies what the chart renders, but for the Deployment.
async fn install(plane: &ControlPlane, values: &str, is_wanted: impl Fn(&str) -> bool) {
    let manifests: Vec<_> = objects(RELEASE, RELEASE, values)
        .iter()
        .filter(|object| is_wanted(object["kind"].as_str().unwrap()))
        .map(Value::to_string)
        .collect();
    plane.apply(&manifests.join("\n---\n")).await;
}

/// A process as the Deployment of mode `policy` runs it.
async fn leader(plane: &ControlPlane, aws: &FakeAws, config: &str) -> webhook::Options {
    webhook::Options {
        binary: None,
        config: config.to_owned(),
        listen: (plane.private_address(), 8443).into(),
        admin_listen: (plane.private_address(), 8080).into(),
        certificate: None,
        kubeconfig: plane.kubeconfig_for_service_account(NAME, NAME).await,
        arguments: vec!["--no-admission".to_owned()],
        environment: aws.environment(),
    }
}

async fn create(plane: &ControlPlane, namespace: &str, name: &str, image: &str) -> Pod {
    let pods: Api<Pod> = Api::namespaced(plane.admin().await, namespace);
    let created = pods.create(&PostParams::default(), &pod(name, image)).await;
    created.unwrap()
}

async fn pull_secret(plane: &ControlPlane, namespace: &str) -> Option<Secret> {
    let secrets: Api<Secret> = Api::namespaced(plane.admin().await, namespace);
    secrets.get_opt(PULL_SECRET).await.unwrap()
}

async fn wait_for_host(plane: &ControlPlane, namespace: &str, host: &str, limit: Duration) {
    let what = format!("{namespace} has a credential for {host}");
    eventually(&what, limit, async || {
        let secret = pull_secret(plane, namespace).await?;
        hosts(&secret).iter().any(|it| it == host).then_some(())
    })
    .await;
}

/// Waits until the policy is in force.
async fn wait_until_referenced(plane: &ControlPlane, namespace: &str) {
    let pods: Api<Pod> = Api::namespaced(plane.admin().await, namespace);
    let dry_run = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let probe = pod("probe", &image("us-east-1"));
    eventually("a Pod gets the reference", SOON, async || {
        let admitted = pods.create(&dry_run, &probe).await.unwrap();
        (pull_secrets(&admitted) == [PULL_SECRET]).then_some(())
    })
    .await;
}

async fn policy_mode(config: &str) -> (ControlPlane, FakeAws, Webhook) {
    crate::support::crypto();
    let (plane, aws) = (ControlPlane::start().await, FakeAws::start());
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAME}});
    plane.apply(&namespace.to_string()).await;
    let indented = config.replace('\n', "\n  ");
    let values = format!("mode: policy\nconfig:\n  {indented}");
    install(&plane, &values, |kind| kind != "Deployment").await;
    let options = leader(&plane, &aws, config).await;
    let options = options.with_variable("ECR_INJECTOR_LOG", "info");
    let leader = Webhook::start(options).await;
    (plane, aws, leader)
}

#[tokio::test]
async fn policy_mode_has_the_secret_soon_after_the_first_pod() {
    let prewarmed = registry(123_456_789_012, "us-east-1");
    let config = format!("discover: pods\nprewarm: [{prewarmed}]");
    let (plane, _aws, mut leader) = policy_mode(&config).await;
    // Ahead of any Pod.
    let team = plane.namespace("team", &[OPT_IN]).await;
    wait_for_host(&plane, &team, &prewarmed, SOON).await;
    wait_until_referenced(&plane, &team).await;
    // A registry that nobody named.
    let stored = create(&plane, &team, "web", &image("eu-west-1")).await;
    assert_eq!(pull_secrets(&stored), [PULL_SECRET]);
    let host = registry(123_456_789_012, "eu-west-1");
    wait_for_host(&plane, &team, &host, DISCOVERED).await;
    // Another namespace, whose Pod wants both.
    let other = plane.namespace("other", &[OPT_IN]).await;
    create(&plane, &other, "web", &image("eu-west-1")).await;
    wait_for_host(&plane, &other, &host, DISCOVERED).await;
    // The test of an installation, with one more registry, finds all of it as well.
    let image = image("eu-north-1");
    let arguments = [
        "probe", "-n", &other, "--image", &image, "--mint", "--wait", "30s",
    ];
    let ran = command::end(command::spawn(
        &plane.kubeconfig_for_admin(),
        Vec::new(),
        arguments,
    ))
    .await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("\nminted "), "{}", ran.stdout);
    let plain = plane.namespace("plain", &[]).await;
    let stored = create(&plane, &plain, "web", &image).await;
    assert_eq!(pull_secrets(&stored), [] as [&str; 0]);
    assert!(pull_secret(&plane, &plain).await.is_none());

    // It asked for nothing that belongs to the webhook.
    let events = plane.audit_events_of(USER);
    assert!(!events.is_empty());
    for event in &events {
        let object = &event["objectRef"];
        let resource = object["resource"].as_str().unwrap_or_default();
        let of_webhook = ["mutatingwebhookconfigurations", "serviceaccounts"];
        assert!(!of_webhook.contains(&resource), "{event}");
        assert!(object["name"] != "ecr-injector-ca", "{event}");
        let code = event["responseStatus"]["code"].as_u64().unwrap_or_default();
        assert!(code != 403, "{event}");
    }
    assert!(std::net::TcpStream::connect(leader.address()).is_err());
    assert_eq!(leader.readiness().await, Some(200));
    assert!(!leader.log().contains("no pull secret will be created"));
    assert!(leader.stop().await.success(), "{}", leader.log());
}

#[tokio::test]
async fn policy_mode_without_sources_of_registries_warns() {
    let (plane, aws, mut leader) = policy_mode("refresh: {}").await;
    let warning = "no admission reports the registries of Pods";
    assert_eq!(leader.log().matches(warning).count(), 1, "{}", leader.log());
    assert!(leader.stop().await.success());
    drop((plane, aws));
}

#[tokio::test]
async fn guard_of_policy_mode_leaves_no_write_to_registrations() {
    let (plane, _aws, _leader) = policy_mode("discover: pods").await;
    let registration = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "zz-ecr-injector"}, "webhooks": [],
    });
    let admin = Caller(plane.admin().await);
    admin.post(REGISTRATIONS, &registration).await.allowed();
    let path = format!("{REGISTRATIONS}/zz-ecr-injector");
    let change = json!({"metadata": {"labels": {"a": "b"}}});
    let ours = Caller(plane.as_service_account(NAME, NAME).await);
    ours.merge(&path, &change).await.forbidden();
    // Whatever RBAC allows.
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "mistake"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "namespace": NAME, "name": NAME}],
    });
    plane.apply(&binding.to_string()).await;
    eventually("RBAC knows it", SOON, async || {
        let outcome = ours.merge(&path, &change).await;
        matches!(&outcome.0, Err(status) if status.code == 422).then_some(())
    })
    .await;
    let writes_nothing_else = "writes Secrets, its own Lease and new Events, and does nothing else";
    ours.merge(&path, &change).await.denied(writes_nothing_else);
    ours.delete(&path).await.denied(writes_nothing_else);
    let other = json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
        "metadata": {"name": "other"}, "webhooks": []});
    ours.post(REGISTRATIONS, &other)
        .await
        .denied(writes_nothing_else);
    // Nor is there an authority any more.
    let ca = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ecr-injector-ca",
        "labels": {"app.kubernetes.io/managed-by": "ecr-injector"}}, "type": "kubernetes.io/tls",
        "data": {"tls.crt": "", "tls.key": ""}});
    let path = format!("/api/v1/namespaces/{NAME}/secrets/ecr-injector-ca");
    ours.apply_dry_run(&path, &ca)
        .await
        .denied("ecr-injector writes no Secret but ecr-pull-secret");
}

#[tokio::test]
async fn both_modes_add_one_reference_and_need_no_webhook_that_answers() {
    let mut bed = Bed::start("discover: pods", "info").await;
    let values = "mode: both\nconfig: {discover: pods}";
    let before = bed.opted_in("before").await;
    create(&bed.plane, &before, "web", &image("us-west-1")).await;
    assert_eq!(changes(&bed, &before).await, [true], "the webhook alone");
    let is_wanted =
        |kind: &str| kind.starts_with("MutatingAdmissionPolicy") || kind == "ClusterRole";
    install(&bed.plane, values, is_wanted).await;
    // The policy is in force where a Pod that the webhook is not asked about gets the reference.
    bed.webhook.stop().await;
    let down = bed.opted_in("down").await;
    wait_until_referenced(&bed.plane, &down).await;

    // Down: the reference is there, and the leader provides the Secret once there is one again.
    let stored = create(&bed.plane, &down, "web", &image("us-west-2")).await;
    assert_eq!(pull_secrets(&stored), [PULL_SECRET]);
    assert!(bed.pull_secret(&down).await.is_none());
    let options = bed.installation.webhook(&bed.plane, &bed.aws).await;
    let options = webhook::Options {
        config: "discover: pods".to_owned(),
        ..options
    };
    bed.webhook = Webhook::start(options.with_variable("ECR_INJECTOR_LOG", "info")).await;
    let begun = Instant::now();
    let host = registry(123_456_789_012, "us-west-2");
    wait_for_host(&bed.plane, &down, &host, DISCOVERED).await;
    println!("discovered after {:?}", begun.elapsed());

    // Up: the webhook finds the reference, changes nothing, and the Secret is there before the Pod is.
    let up = bed.opted_in("up").await;
    let stored = create(&bed.plane, &up, "web", &image("eu-west-2")).await;
    assert_eq!(pull_secrets(&stored), [PULL_SECRET]);
    let secret = bed.pull_secret(&up).await.unwrap();
    assert_eq!(hosts(&secret), [registry(123_456_789_012, "eu-west-2")]);
    assert_eq!(changes(&bed, &up).await, [false], "the policy was first");
    let log = bed.webhook.log();
    let line = log
        .lines()
        .find(|line| line.contains(&up) && line.contains("\"admission\""));
    assert!(
        line.unwrap().contains("\"decision\":\"inject\""),
        "{line:?}"
    );
}

/// Whether the webhook changed each Pod that was created in a namespace, by the audit log.
async fn changes(bed: &Bed, namespace: &str) -> Vec<bool> {
    eventually("the creation is in the audit log", SOON, async || {
        let events = bed.plane.audit_events();
        let created = events.iter().filter(|event| {
            let object = &event["objectRef"];
            event["verb"] == "create"
                && object["resource"] == "pods"
                && object["namespace"] == namespace
                && event["stage"] == "ResponseComplete"
        });
        let changes: Vec<bool> = created
            .filter_map(|event| {
                let annotations = event["annotations"].as_object()?;
                let of_webhook = annotations.iter().find(|(key, value)| {
                    key.starts_with("mutation.webhook.")
                        && value.to_string().contains("create.ecr-injector.dev")
                });
                Some(of_webhook?.1.as_str()?.contains("\"mutated\":true"))
            })
            .collect();
        (!changes.is_empty()).then_some(changes)
    })
    .await
}

#[tokio::test]
async fn doctor_checks_the_policy_where_it_is_needed() {
    let prewarmed = registry(123_456_789_012, "us-east-1");
    let (plane, _aws, _leader) = policy_mode(&format!("prewarm: [{prewarmed}]")).await;
    let values = format!("mode: policy\nconfig: {{prewarm: [{prewarmed}]}}");
    install(&plane, &values, |kind| kind == "Deployment").await;
    let team = plane.namespace("team", &[OPT_IN]).await;
    wait_for_host(&plane, &team, &prewarmed, SOON).await;
    wait_until_referenced(&plane, &team).await;
    let statuses = async || {
        let arguments = ["doctor", "--only", "policy", "-o", "json"];
        let kubeconfig = plane.kubeconfig_for_admin();
        let ran = command::end(command::spawn(&kubeconfig, Vec::new(), arguments)).await;
        let object: Value = serde_json::from_str(&ran.stdout).unwrap();
        let checks = object["checks"].as_array().unwrap().iter();
        let status = |check: &Value| check["status"].as_str().unwrap().to_owned();
        let statuses: Vec<String> = checks.map(status).collect();
        println!("{object:#}");
        (ran.code.unwrap(), statuses)
    };
    assert_eq!(statuses().await, (0, vec!["ok".to_owned(); 3]));

    let admin = Caller(plane.admin().await);
    let api = "/apis/admissionregistration.k8s.io/v1";
    let name = "pull-secret-reference.ecr-injector.dev";
    let policy = format!("{api}/mutatingadmissionpolicies/{name}");
    let expression = json!([{"op": "replace", "path": "/spec/variables/1/expression",
        "value": "variables.images.exists(i, i.startsWith(\"123456789012\"))"}]);
    admin.json_patch(&policy, &expression).await.allowed();
    let (code, found) = statuses().await;
    assert_eq!((code, &*found[2]), (1, "fail"), "of another version");
    let binding = format!("{api}/mutatingadmissionpolicybindings/{name}");
    admin.delete(&binding).await.allowed();
    let (code, found) = statuses().await;
    assert_eq!((code, &*found[1], &*found[2]), (1, "fail", "skipped"));
    admin.delete(&policy).await.allowed();
    let (code, found) = statuses().await;
    assert_eq!((code, &*found[0]), (1, "fail"));
}
