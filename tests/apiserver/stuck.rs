//! `ecr-injector doctor --stuck` against a real API server: Pods whose status is written as a kubelet would write it, and
//! controllers that the tests play.

use std::time::Duration;

use serde_json::{Value, json};

use crate::doctor::{IMAGE, Patient, SOON};
use crate::support::command::Ran;
use crate::support::installation::{OPT_IN, PULL_SECRET};
use crate::support::{Caller, eventually};

/// The rights that `--restart` needs beside those of the page's role.
fn restarter(verbs: &str, resource: &str) -> String {
    let name = resource.replace('/', "-");
    format!(
        "{{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRole, metadata: {{name: restarter-{name}}}, \
         rules: [{{apiGroups: [\"\"], resources: [{resource}], verbs: [{verbs}]}}]}}\n---\n\
         {{apiVersion: rbac.authorization.k8s.io/v1, kind: ClusterRoleBinding, metadata: {{name: restarter-{name}}}, \
         roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: restarter-{name}}}, \
         subjects: [{{kind: ServiceAccount, namespace: default, name: doctor}}]}}"
    )
}

/// The reference to a controller.
fn owner(kind: &str) -> Value {
    json!([{"apiVersion": "apps/v1", "kind": kind, "name": "owner", "uid": format!("uid-of-{kind}"), "controller": true,
        "blockOwnerDeletion": true}])
}

fn pods(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/pods")
}

/// Creates a Pod of an owner, whose image the kubelet can't pull.
async fn create_stuck(
    admin: &Caller,
    namespace: &str,
    name: &str,
    owners: Value,
    phase: &str,
) -> Value {
    let annotations = if name == "static" {
        json!({"kubernetes.io/config.mirror": "x"})
    } else {
        json!({})
    };
    let node = (name == "static").then_some("node-1");
    let spec = json!({"containers": [{"name": "main", "image": IMAGE}], "nodeName": node});
    let pod = json!({"metadata": {"name": name, "labels": {"app": "web"}, "annotations": annotations,
        "ownerReferences": owners}, "spec": spec});
    let created = admin.post(&pods(namespace), &pod).await.allowed();
    wait_for_image(admin, namespace, name, phase).await;
    created
}

/// Writes the status of a Pod whose image can't be pulled, as a kubelet would.
async fn wait_for_image(admin: &Caller, namespace: &str, name: &str, phase: &str) {
    let waiting =
        json!({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}});
    let container = json!({"name": "main", "image": IMAGE, "imageID": "", "ready": false, "restartCount": 0,
        "state": waiting});
    let status = json!({"status": {"phase": phase, "containerStatuses": [container]}});
    let path = format!("{}/{name}/status", pods(namespace));
    admin.merge(&path, &status).await.allowed();
}

/// Creates a namespace with stuck Pods of these names and kinds of owners, and opts it in afterwards.
async fn missed(patient: &Patient, prefix: &str, all: &[(&str, Option<&str>)]) -> String {
    let namespace = patient.plane.namespace(prefix, &[]).await;
    let admin = patient.admin().await;
    for (name, kind) in all {
        let owners = kind.map_or(json!([]), owner);
        let created = create_stuck(&admin, &namespace, name, owners, "Pending").await;
        assert!(created["spec"]["imagePullSecrets"].is_null(), "{created:#}");
    }
    opt_in(&admin, &namespace).await;
    namespace
}

async fn opt_in(admin: &Caller, namespace: &str) {
    let labels = json!({"metadata": {"labels": {OPT_IN.0: OPT_IN.1}}});
    let path = format!("/api/v1/namespaces/{namespace}");
    admin.merge(&path, &labels).await.allowed();
}

/// The names of the Pods in a namespace that are not being deleted.
async fn names(admin: &Caller, namespace: &str) -> Vec<String> {
    let list = admin.get(&pods(namespace)).await.allowed();
    let items = list["items"].as_array().unwrap().iter();
    let items = items.filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    items
        .map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned())
        .collect()
}

fn row<'a>(object: &'a Value, namespace: &str, name: &str) -> &'a Value {
    let title = format!("{namespace}/{name}");
    let rows = object["pods"].as_array().unwrap();
    let row = rows.iter().find(|row| row["pod"] == title);
    row.unwrap_or_else(|| panic!("no {title}: {object:#}"))
}

async fn stuck(patient: &Patient, arguments: &[&str]) -> (i32, Value) {
    let arguments = [&["--stuck", "-o", "json"], arguments].concat();
    let Ran {
        code,
        stdout,
        stderr,
    } = patient.run(&arguments).await;
    let object =
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}{stderr}"));
    (code.unwrap(), object)
}

/// Plays a controller: creates a Pod for each that is gone, which gets stuck if `is_stuck`.
fn replace(admin: Caller, namespace: String, kind: &'static str, wanted: usize, is_stuck: bool) {
    tokio::spawn(async move {
        for number in 0.. {
            while names(&admin, &namespace).await.len() >= wanted {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            let name = format!("new-{number}");
            if is_stuck {
                create_stuck(&admin, &namespace, &name, owner(kind), "Pending").await;
            } else {
                let pod = json!({"metadata": {"name": name, "ownerReferences": owner(kind)},
                    "spec": {"containers": [{"name": "main", "image": IMAGE}]}});
                admin.post(&pods(&namespace), &pod).await.allowed();
            }
        }
    });
}

#[tokio::test]
#[allow(
    clippy::too_many_lines,
    reason = "one namespace, whose Pods are restarted with more rights each time"
)]
async fn stuck_pods_are_found_and_only_those_helped_restarted() {
    let patient = Patient::start().await;
    let admin = patient.admin().await;
    let all = [
        ("replica", Some("ReplicaSet")),
        ("set", Some("StatefulSet")),
        ("job", Some("Job")),
        ("bare", None),
        ("static", Some("Node")),
    ];
    let late = missed(&patient, "late", &all).await;
    let team = patient.team.clone();
    wait_for_image(&admin, &team, "first", "Pending").await;
    let plain = patient.plane.namespace("plain", &[]).await;
    create_stuck(&admin, &plain, "web", json!([]), "Pending").await;
    // Pending Pods don't count for a budget.
    let budget = json!({"metadata": {"name": "all"},
        "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "web"}}}});
    let budgets = format!("/apis/policy/v1/namespaces/{late}/poddisruptionbudgets");
    admin.post(&budgets, &budget).await.allowed();

    let (code, object) = patient.examine(&["--stuck"]).await;
    assert_eq!((code, &object["ok"]), (1, &json!(false)), "{object:#}");
    for (name, group) in [
        ("replica", "stuck-missed"),
        ("set", "stuck-missed"),
        ("job", "stuck-job"),
        ("bare", "stuck-bare"),
        ("static", "stuck-static"),
    ] {
        assert_eq!(row(&object, &late, name)["code"], group, "{object:#}");
    }
    assert_eq!(row(&object, &team, "first")["code"], "stuck-referenced");
    assert_eq!(object["pods"].as_array().unwrap().len(), 6, "{object:#}");
    assert_eq!(object["notOptedIn"], 1);

    // Nothing is changed by a dry run, nor without the rights.
    let (code, object) = stuck(&patient, &["--restart", "--dry-run"]).await;
    assert_eq!(code, 1, "{object:#}");
    assert_eq!(
        row(&object, &late, "replica")["outcome"],
        "would be restarted"
    );
    assert_eq!(row(&object, &late, "job")["outcome"], Value::Null);
    let (code, object) = stuck(&patient, &["-n", &late, "--restart"]).await;
    assert_eq!(code, 1, "{object:#}");
    let refused = row(&object, &late, "replica");
    assert_eq!(refused["outcome"], "not restarted", "{object:#}");
    let reason = refused["reason"].as_str().unwrap();
    assert!(
        reason.contains("pods/eviction") && reason.contains("cannot delete"),
        "{reason}"
    );
    assert_eq!(names(&admin, &late).await.len(), all.len());

    // Where eviction is not allowed, deleting is tried.
    let delete = restarter("delete", "pods");
    patient.plane.apply(&delete).await;
    let allowed = async || {
        let (code, object) = stuck(&patient, &["-n", &late, "--restart"]).await;
        let left = names(&admin, &late).await;
        (left == ["bare", "job", "static"]).then_some((code, object))
    };
    let (code, object) = eventually("both are deleted", SOON * 2, allowed).await;
    assert_eq!(code, 1, "others are left: {object:#}");

    // The Job's only on request, and then nothing that can be restarted is left.
    let (_, object) = stuck(&patient, &["-n", &late, "--restart"]).await;
    assert_eq!(
        row(&object, &late, "job")["outcome"],
        Value::Null,
        "{object:#}"
    );
    for name in ["bare", "static"] {
        let path = format!("{}/{name}", pods(&late));
        admin.delete(&path).await.allowed();
    }
    patient
        .plane
        .apply(&restarter("create", "pods/eviction"))
        .await;
    replace(patient.admin().await, late.clone(), "Job", 1, false);
    let (code, object) = stuck(&patient, &["-n", &late, "--restart", "--jobs"]).await;
    assert_eq!((code, &object["ok"]), (0, &json!(true)), "{object:#}");
    assert_eq!(row(&object, &late, "job")["outcome"], "restarted");
    assert_eq!(object["stuckAgain"], json!([]), "{object:#}");
    let new = admin.get(&format!("{}/new-0", pods(&late))).await.allowed();
    assert_eq!(new["spec"]["imagePullSecrets"][0]["name"], PULL_SECRET);
    let (code, object) = stuck(&patient, &["-n", &late]).await;
    assert_eq!((code, &object["pods"]), (0, &json!([])), "{object:#}");
}

#[tokio::test]
async fn pods_that_run_are_searched_on_request_and_keep_their_budget() {
    let patient = Patient::start().await;
    let admin = patient.admin().await;
    patient
        .plane
        .apply(&restarter("create", "pods/eviction"))
        .await;
    let namespace = patient.plane.namespace("runs", &[]).await;
    create_stuck(&admin, &namespace, "web", owner("ReplicaSet"), "Running").await;
    opt_in(&admin, &namespace).await;
    let budget = json!({"metadata": {"name": "all"},
        "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "web"}}}});
    let budgets = format!("/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets");
    admin.post(&budgets, &budget).await.allowed();
    let (code, object) = stuck(&patient, &[]).await;
    assert_eq!((code, &object["pods"]), (0, &json!([])), "{object:#}");
    for scope in [&["-A"][..], &["-n", &namespace]] {
        let arguments = [scope, &["--restart"]].concat();
        let (code, object) = stuck(&patient, &arguments).await;
        assert_eq!(code, 1, "{object:#}");
        let reason = &row(&object, &namespace, "web")["reason"];
        assert!(reason.as_str().unwrap().contains("429"), "{object:#}");
    }
    assert_eq!(names(&admin, &namespace).await, ["web"]);

    let Ran { code, .. } = patient.run(&["-n", "a", "-n", "b"]).await;
    assert_eq!(code, Some(2), "an installation has one namespace");
    for wrong in [
        &["--restart"][..],
        &["--stuck", "--jobs"],
        &["--stuck", "--pre"],
    ] {
        let Ran { code, .. } = patient.run(wrong).await;
        assert_eq!(code, Some(2), "{wrong:?}");
    }
}

#[tokio::test]
async fn nothing_is_restarted_while_the_webhook_is_away() {
    let mut patient = Patient::start().await;
    let admin = patient.admin().await;
    patient
        .plane
        .apply(&restarter("create", "pods/eviction"))
        .await;
    let all = [("a", Some("ReplicaSet")), ("b", Some("DaemonSet"))];
    let late = missed(&patient, "late", &all).await;
    patient.webhook.kill();
    for format in ["table", "short", "yaml", "json"] {
        let Ran { code, stdout, .. } = patient.run(&["--stuck", "--restart", "-o", format]).await;
        assert_eq!(code, Some(1), "{stdout}");
        assert!(stdout.contains("restarting would loop"), "{stdout}");
    }
    assert_eq!(names(&admin, &late).await, ["a", "b"]);
}

#[tokio::test]
async fn restarts_stop_when_three_new_pods_are_stuck_again() {
    let patient = Patient::start().await;
    let admin = patient.admin().await;
    patient
        .plane
        .apply(&restarter("create", "pods/eviction"))
        .await;
    let all: Vec<String> = (0..40).map(|number| format!("web-{number}")).collect();
    let all: Vec<(&str, Option<&str>)> = all
        .iter()
        .map(|name| (&**name, Some("ReplicaSet")))
        .collect();
    let late = missed(&patient, "late", &all).await;
    replace(patient.admin().await, late.clone(), "ReplicaSet", 40, true);
    let begun = std::time::Instant::now();
    let (code, object) = stuck(&patient, &["--restart"]).await;
    println!("stopped after {:?}", begun.elapsed());
    assert_eq!(code, 1, "{object:#}");
    let stopped = object["stopped"].as_str().unwrap();
    assert!(stopped.contains("stuck again"), "{object:#}");
    assert!(object["stuckAgain"].as_array().unwrap().len() >= 3);
    let left = names(&admin, &late).await;
    let left = left.iter().filter(|name| name.starts_with("web-")).count();
    // Five a second, until the first look.
    assert!((15..40).contains(&left), "{left} are left");
}
