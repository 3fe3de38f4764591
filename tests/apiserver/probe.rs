//! `ecr-injector probe`, as a person runs it: the binary itself, by an account that may create Pods in one namespace, against
//! a webhook that runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::support::bed::{Bed, image};
use crate::support::command::{self, Ran, end, interrupt};
use crate::support::installation::PULL_SECRET;
use crate::support::{Behaviour, Caller, Shared, eventually};
use serde_json::{Value, json};
use tokio::process::Child;

const SOON: Duration = Duration::from_secs(20);

async fn bed() -> Arc<Bed> {
    static BED: Shared<Bed> = Shared::new();
    BED.get_or_start(async || Bed::start("", "warn").await)
        .await
}

/// Somebody who may do this in a namespace: their kubeconfig.
async fn account(bed: &Bed, namespace: &str, pods: &[&str], secrets: &[&str]) -> PathBuf {
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
        "metadata": {"name": "prober", "namespace": namespace},
        "rules": [
            {"apiGroups": [""], "resources": ["pods"], "verbs": pods},
            {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [PULL_SECRET], "verbs": secrets},
        ],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "prober", "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "prober"},
        "subjects": [{"kind": "ServiceAccount", "namespace": namespace, "name": "prober"}],
    });
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "prober", "namespace": namespace},
    });
    let manifests = [account, role, binding].map(|manifest| manifest.to_string());
    bed.plane.apply(&manifests.join("\n---\n")).await;
    bed.plane
        .kubeconfig_for_service_account(namespace, "prober")
        .await
}

/// It needs nothing but a kubeconfig.
async fn probe(kubeconfig: &Path, arguments: &[&str]) -> Ran {
    end(spawn(kubeconfig, arguments)).await
}

fn spawn(kubeconfig: &Path, arguments: &[&str]) -> Child {
    let arguments = [&["probe"], arguments].concat();
    command::spawn(kubeconfig, Vec::new(), arguments)
}

async fn pods(bed: &Bed, namespace: &str) -> Vec<Value> {
    let admin = Caller(bed.plane.admin().await);
    let path = format!("/api/v1/namespaces/{namespace}/pods");
    let pods = admin.get(&path).await.allowed();
    pods["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn dry_run_shows_that_pods_are_changed_and_leaves_nothing() {
    let bed = bed().await;
    let namespace = bed.opted_in("dry").await;
    let kubeconfig = account(&bed, &namespace, &["create"], &["watch"]).await;
    let image = image("us-east-1");
    let arguments = ["--namespace", &namespace, "--image", &image];
    let Ran {
        code,
        stdout,
        stderr,
    } = probe(&kubeconfig, &arguments).await;
    assert_eq!(code, Some(0), "{stderr}");
    let line =
        format!("admitted  a Pod with {image} in {namespace} gets {PULL_SECRET} (dry run)\n");
    assert_eq!(stdout, line);
    assert!(pods(&bed, &namespace).await.is_empty());
    assert!(bed.pull_secret(&namespace).await.is_none());
}

#[tokio::test]
async fn pod_in_earnest_shows_that_its_registry_opens_and_is_removed() {
    let bed = bed().await;
    let namespace = bed.opted_in("mint").await;
    let kubeconfig = account(&bed, &namespace, &["create", "delete"], &["get"]).await;
    let image = image("us-east-2");
    let arguments = ["-n", &namespace, "--image", &image, "--mint"];
    let Ran {
        code,
        stdout,
        stderr,
    } = probe(&kubeconfig, &arguments).await;
    assert_eq!(code, Some(0), "{stderr}");
    let minted = stdout.lines().nth(1).unwrap_or_default();
    let expected = format!(
        "minted    {namespace}/{PULL_SECRET} has a credential for 123456789012.dkr.ecr.us-east-2.amazonaws.com until 2"
    );
    assert!(minted.starts_with(&expected), "{stdout}");
    assert!(minted.contains("Z, for 11h 5"), "{stdout}");
    assert!(pods(&bed, &namespace).await.is_empty());
    assert!(bed.pull_secret(&namespace).await.is_some());
}

#[tokio::test]
async fn failure_is_retried_for_the_given_time_and_then_named() {
    let bed = bed().await;
    let namespace = bed.plane.namespace("plain", &[]).await;
    let kubeconfig = account(&bed, &namespace, &["create"], &["watch"]).await;
    let image = image("us-east-1");
    let arguments = ["-n", &namespace, "--image", &image, "--wait", "2500ms"];
    let begun = Instant::now();
    let Ran {
        code,
        stdout,
        stderr,
    } = probe(&kubeconfig, &arguments).await;
    assert!(begun.elapsed() > Duration::from_secs(1), "{stderr}");
    assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
    // Said once, and at the end.
    let why = "the Pod was admitted without ecr-pull-secret in its imagePullSecrets";
    assert_eq!(stderr.matches(why).count(), 2, "{stderr}");
    assert!(
        stderr
            .lines()
            .last()
            .unwrap()
            .starts_with("ecr-injector: does not work after 2"),
        "{stderr}"
    );

    // The label comes: it goes on at once.
    let arguments = ["-n", &namespace, "--image", &image];
    let child = spawn(&kubeconfig, &arguments);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let labelled = json!({"metadata": {"labels": {"ecr-injector.dev/inject": "enabled"}}});
    let admin = Caller(bed.plane.admin().await);
    let path = format!("/api/v1/namespaces/{namespace}");
    admin.merge(&path, &labelled).await.allowed();
    let Ran { code, stderr, .. } = end(child).await;
    assert_eq!(code, Some(0), "{stderr}");
}

#[tokio::test]
async fn aws_error_is_reported_and_the_pod_is_removed() {
    let bed = bed().await;
    bed.aws
        .tune_ecr_in("eu-west-1", |knobs| knobs.behaviour = Behaviour::Refuse);
    let namespace = bed.opted_in("refused").await;
    let kubeconfig = account(&bed, &namespace, &["create", "delete"], &["get"]).await;
    let image = image("eu-west-1");
    let arguments = [
        "-n", &namespace, "--image", &image, "--mint", "--wait", "2s",
    ];
    let Ran {
        code,
        stdout,
        stderr,
    } = probe(&kubeconfig, &arguments).await;
    assert_eq!(code, Some(1), "{stderr}");
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    let last = stderr.lines().last().unwrap();
    let expected =
        "has no valid credential for 123456789012.dkr.ecr.eu-west-1.amazonaws.com (ecr-injector: ";
    assert!(last.contains(expected), "{stderr}");
    assert!(pods(&bed, &namespace).await.is_empty());
}

#[tokio::test]
async fn interrupted_probe_removes_its_pod() {
    let bed = bed().await;
    // Each review takes its whole time.
    bed.aws
        .tune_ecr_in("eu-west-2", |knobs| knobs.behaviour = Behaviour::Hang);
    let namespace = bed.opted_in("interrupted").await;
    let kubeconfig = account(&bed, &namespace, &["create", "delete"], &["get"]).await;
    let image = image("eu-west-2");
    let child = spawn(
        &kubeconfig,
        &["-n", &namespace, "--image", &image, "--mint"],
    );
    eventually("AWS is asked", SOON, async || {
        (!bed.aws.ecr_calls("eu-west-2").is_empty()).then_some(())
    })
    .await;
    interrupt(&child).await;
    let Ran { code, stderr, .. } = end(child).await;
    assert_eq!(code, Some(130), "{stderr}");
    assert!(pods(&bed, &namespace).await.is_empty());
}

#[tokio::test]
async fn missing_right_is_named_in_the_words_of_the_api_server() {
    let bed = bed().await;
    let namespace = bed.opted_in("rights").await;
    let kubeconfig = account(&bed, &namespace, &["list"], &["get"]).await;
    let image = image("us-east-1");
    let arguments = ["-n", &namespace, "--image", &image, "--wait", "0s"];
    let Ran { code, stderr, .. } = probe(&kubeconfig, &arguments).await;
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("cannot create resource \"pods\""),
        "{stderr}"
    );
}

#[tokio::test]
async fn pod_that_could_not_be_removed_is_not_stored() {
    let bed = bed().await;
    let namespace = bed.opted_in("stays").await;
    let kubeconfig = account(&bed, &namespace, &["create"], &["get"]).await;
    let image = image("us-east-1");
    let arguments = [
        "-n", &namespace, "--image", &image, "--mint", "--wait", "0s",
    ];
    let Ran { code, stderr, .. } = probe(&kubeconfig, &arguments).await;
    assert_eq!(code, Some(1));
    assert!(
        stderr.contains("cannot delete resource \"pods\""),
        "{stderr}"
    );
    assert!(pods(&bed, &namespace).await.is_empty());
    assert!(bed.pull_secret(&namespace).await.is_none());
}

#[tokio::test]
async fn probe_that_can_never_work_is_not_tried() {
    let kubeconfig = PathBuf::from("/there/is/none");
    for (arguments, complaint) in [
        (
            ["-n", "team", "--image", "nginx:1"],
            "docker.io is neither an ECR registry",
        ),
        (
            ["-n", "team", "--image", "UPPER"],
            "is not a valid image reference",
        ),
        (
            ["-n", "kube-system", "--image", &image("us-east-1")],
            "is excluded",
        ),
        (
            ["-n", "team", "--image", &image("us-east-1")],
            "no cluster found",
        ),
    ] {
        let Ran {
            code,
            stdout,
            stderr,
        } = probe(&kubeconfig, &arguments).await;
        assert_eq!((code, stdout.as_str()), (Some(1), ""), "{stderr}");
        assert!(stderr.contains(complaint), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
    }
    let Ran { code, stderr, .. } = probe(&kubeconfig, &["-n", "team"]).await;
    assert_eq!(code, Some(2), "{stderr}");
}
