//! What our own account may do, held against a real API server: `deploy/rbac.yaml` and `deploy/guard.yaml`, each
//! way. docs/security.md makes the promises; here they are tried with a token of that account.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that can't go on panics"
)]

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::control_plane::Options;
use support::installation::{NAME as OURS, OPT_IN, PULL_SECRET};
use support::{Caller, ControlPlane, Installation, eventually};
use tokio::sync::OnceCell;

const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const SOON: Duration = Duration::from_secs(20);

const BY_NAME: &str = "fieldSelector=metadata.name%3Decr-pull-secret";
const WATCH: &str = "watch=true&timeoutSeconds=1";

// What the guard says.
const ONE_NAME: &str = "writes no Secret but ecr-pull-secret, and ecr-injector-ca";
const ONE_TYPE: &str = "of type kubernetes.io/dockerconfigjson only";
const NOT_HERE: &str = "never writes a pull Secret in a system namespace or its own";
const OUR_LABEL: &str = "only pull Secrets with the label app.kubernetes.io/managed-by";
const OPTED_IN: &str = "only in a namespace with the label ecr-injector.dev/inject=enabled";
const ONLY_OURS: &str = "updates only one that has its label already";
const ONE_KEY: &str = "adds no data to a pull Secret but .dockerconfigjson";
const SECRETS_ONLY: &str = "creates and updates Secrets, and does nothing else";

// Allowed

#[tokio::test]
async fn creates_a_pull_secret_in_an_opted_in_namespace() {
    let (cluster, us, _) = ready().await;
    let path = path_in(&cluster.opted_in().await);
    let new = pull_secret_with(&json!({"metadata": {
        "resourceVersion": "1",
        "labels": {"app.kubernetes.io/part-of": "x"},
        "annotations": {"ecr-injector.dev/state": "{}"},
    }}));
    us.apply_dry_run(&path, &new).await.allowed();
    let created = us.apply(&path, &new).await.allowed();
    assert_eq!(created["data"], pull_secret()["data"]);
}

#[tokio::test]
async fn updates_its_secret_where_nobody_is_opted_in_any_more() {
    let (cluster, us, admin) = ready().await;
    let path = path_in(&cluster.plain().await);
    admin.apply(&path, &pull_secret()).await.allowed();
    let updated = us.apply(&path, &refreshed()).await.allowed();
    assert_eq!(updated["data"], refreshed()["data"]);
}

#[tokio::test]
async fn keeps_its_secret_fresh_whatever_others_put_on_it() {
    let (cluster, us, admin) = ready().await;
    let path = path_in(&cluster.opted_in().await);
    us.apply(&path, &pull_secret()).await.allowed();
    let theirs = json!({
        "data": {"theirs": "eA=="},
        "metadata": {
            "labels": {"theirs": "x"},
            "annotations": {"theirs": "x"},
            "finalizers": ["example.com/theirs"],
            "ownerReferences": [owner()],
        },
    });
    admin.merge(&path, &theirs).await.allowed();

    let updated = us.apply(&path, &refreshed()).await.allowed();
    assert_eq!(updated["data"]["theirs"], "eA==");
    let data = ".dockerconfigjson";
    assert_eq!(updated["data"][data], refreshed()["data"][data]);

    let removal = json!({
        "data": {"theirs": null},
        "metadata": {
            "labels": {"theirs": null},
            "annotations": null,
            "finalizers": null,
            "ownerReferences": null,
        },
    });
    let cleaned = us.merge(&path, &removal).await.allowed();
    assert_eq!(cleaned["data"], refreshed()["data"]);
    assert_eq!(cleaned["metadata"]["finalizers"], Value::Null);
}

// Refused because of where

#[tokio::test]
async fn refuses_a_pull_secret_where_nobody_opted_in() {
    let (cluster, us, _) = ready().await;
    for labels in [&[][..], &[(OPT_IN.0, "disabled")]] {
        let path = path_in(&cluster.plane.namespace("plain", labels).await);
        let secret = pull_secret();
        us.apply(&path, &secret).await.denied(OPTED_IN);
        let dry_run = us.apply_dry_run(&path, &secret).await;
        dry_run.denied(OPTED_IN);
    }
}

#[tokio::test]
async fn refuses_a_pull_secret_in_excluded_namespaces_even_when_they_are_labelled() {
    let (_, us, admin) = ready().await;
    for namespace in ["kube-system", "kube-node-lease", OURS] {
        let label = json!({"metadata": {"labels": {OPT_IN.0: OPT_IN.1}}});
        // The API server makes its own namespaces a moment after it is ready.
        eventually("the namespace is labelled", SOON, async || {
            let path = format!("/api/v1/namespaces/{namespace}");
            admin.merge(&path, &label).await.0.ok()
        })
        .await;
        let path = path_in(namespace);
        us.apply(&path, &pull_secret()).await.denied(NOT_HERE);
        // Nor where one with our label is there already.
        admin.apply(&path, &pull_secret()).await.allowed();
        us.apply(&path, &refreshed()).await.denied(NOT_HERE);
    }
}

#[tokio::test]
async fn refuses_to_take_over_a_foreign_secret() {
    let (cluster, us, admin) = ready().await;
    let path = path_in(&cluster.opted_in().await);
    let theirs = json!({"metadata": {"labels": {MANAGED_BY: "Helm"}}});
    let foreign = pull_secret_with(&theirs);
    admin.apply(&path, &foreign).await.allowed();
    us.apply(&path, &pull_secret()).await.denied(ONLY_OURS);
    let data = json!({"data": refreshed()["data"]});
    us.merge(&path, &data).await.denied(OUR_LABEL);
}

#[tokio::test]
async fn refuses_to_update_a_secret_of_another_type_that_has_our_label() {
    let (cluster, us, admin) = ready().await;
    let path = path_in(&cluster.opted_in().await);
    let opaque = pull_secret_with(&json!({"type": "Opaque"}));
    admin.apply(&path, &opaque).await.allowed();
    let data = json!({"data": refreshed()["data"]});
    us.merge(&path, &data).await.denied(ONE_TYPE);
}

// Refused because of what

#[tokio::test]
async fn refuses_a_service_account_token_secret() {
    let (cluster, us, admin) = ready().await;
    let path = path_in(&cluster.opted_in().await);
    let token = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/service-account-token",
        "metadata": {
            "name": PULL_SECRET,
            "labels": {MANAGED_BY: OURS},
            "annotations": {"kubernetes.io/service-account.name": "default"},
        },
    });
    us.apply(&path, &token).await.denied(ONE_TYPE);
    let dry_run = us.apply_dry_run(&path, &token).await;
    dry_run.denied(ONE_TYPE);
    // Nothing but the guard stands in its way.
    admin.apply(&path, &token).await.allowed();
}

#[tokio::test]
async fn refuses_a_secret_of_any_other_type() {
    let (cluster, us, _) = ready().await;
    let path = path_in(&cluster.opted_in().await);
    let tls = json!({".dockerconfigjson": null, "tls.crt": "", "tls.key": ""});
    let dockercfg = json!({".dockerconfigjson": null, ".dockercfg": "e30="});
    for other in [
        json!({"type": "Opaque"}),
        json!({"type": null}),
        json!({"type": "kubernetes.io/tls", "data": tls}),
        json!({"type": "kubernetes.io/dockercfg", "data": dockercfg}),
        json!({"type": "bootstrap.kubernetes.io/token"}),
        json!({"type": "example.com/any"}),
    ] {
        let secret = pull_secret_with(&other);
        us.apply(&path, &secret).await.denied(ONE_TYPE);
    }
}

#[tokio::test]
async fn refuses_a_pull_secret_without_its_label() {
    let (cluster, us, _) = ready().await;
    let path = path_in(&cluster.opted_in().await);
    for labels in [
        json!(null),
        json!({MANAGED_BY: null}),
        json!({MANAGED_BY: "Helm"}),
    ] {
        let secret = pull_secret_with(&json!({"metadata": {"labels": labels}}));
        us.apply(&path, &secret).await.denied(OUR_LABEL);
    }
}

#[tokio::test]
async fn refuses_to_take_its_label_off() {
    let (cluster, us, _) = ready().await;
    let path = path_in(&cluster.opted_in().await);
    us.apply(&path, &pull_secret()).await.allowed();
    let removal = json!({"metadata": {"labels": {MANAGED_BY: null}}});
    us.merge(&path, &removal).await.denied(OUR_LABEL);
    let without = pull_secret_with(&removal);
    us.apply(&path, &without).await.denied(OUR_LABEL);
}

#[tokio::test]
async fn refuses_data_beyond_the_docker_config() {
    let (cluster, us, admin) = ready().await;
    let path = path_in(&cluster.opted_in().await);
    for more in [
        json!({"data": {"more": "eA=="}}),
        json!({"stringData": {"more": "x"}}),
    ] {
        let secret = pull_secret_with(&more);
        us.apply(&path, &secret).await.denied(ONE_KEY);
    }
    us.apply(&path, &pull_secret()).await.allowed();
    let added = json!({"data": {"more": "eA=="}});
    us.merge(&path, &added).await.denied(ONE_KEY);
    admin.merge(&path, &added).await.allowed();
    let changed = json!({"data": {"more": "eQ=="}});
    us.merge(&path, &changed).await.denied(ONE_KEY);
}

#[tokio::test]
async fn refuses_an_immutable_secret() {
    let (cluster, us, _) = ready().await;
    let path = path_in(&cluster.opted_in().await);
    let immutable = pull_secret_with(&json!({"immutable": true}));
    let outcome = us.apply(&path, &immutable).await;
    outcome.denied("never makes a Secret immutable");
}

#[tokio::test]
async fn refuses_a_finalizer_or_an_owner() {
    let (cluster, us, admin) = ready().await;
    let finalizer = json!({"metadata": {"finalizers": ["example.com/stuck"]}});
    let owned = json!({"metadata": {"ownerReferences": [owner()]}});
    for (added, refusal) in [(finalizer, "adds no finalizer"), (owned, "adds no owner")] {
        let path = path_in(&cluster.opted_in().await);
        let new = pull_secret_with(&added);
        us.apply(&path, &new).await.denied(refusal);
        admin.apply(&path, &pull_secret()).await.allowed();
        us.merge(&path, &added).await.denied(refusal);
    }
}

#[tokio::test]
async fn refuses_labels_and_annotations_that_others_act_on() {
    let (cluster, us, admin) = ready().await;
    let replicated = "reflector.v1.k8s.emberstack.com/reflection-allowed";
    for (field, key, refusal) in [
        ("labels", "argocd.argoproj.io/secret-type", "adds no label"),
        ("annotations", replicated, "adds no annotation"),
        (
            "annotations",
            "kubernetes.io/service-account.name",
            "adds no annotation",
        ),
    ] {
        let path = path_in(&cluster.opted_in().await);
        let added = json!({"metadata": {field: {key: "true"}}});
        let new = pull_secret_with(&added);
        us.apply(&path, &new).await.denied(refusal);
        admin.apply(&path, &pull_secret()).await.allowed();
        us.merge(&path, &added).await.denied(refusal);
        admin.merge(&path, &added).await.allowed();
        let changed = json!({"metadata": {field: {key: "other"}}});
        us.merge(&path, &changed).await.denied(refusal);
    }
}

// The guard alone: as if someone had given our account a wider role

#[tokio::test]
async fn refuses_another_name_even_with_a_wider_role() {
    let (cluster, us, _) = ready().await;
    let namespace = cluster.opted_in().await;
    cluster.widen_our_role_in(&namespace).await;
    let secrets = secrets(&namespace);
    let other = pull_secret_with(&json!({"metadata": {"name": "other"}}));
    let path = format!("{secrets}/other");
    us.apply(&path, &other).await.denied(ONE_NAME);
    us.post(&secrets, &other).await.denied(ONE_NAME);
    let generated = json!({"metadata": {"name": null, "generateName": PULL_SECRET}});
    let generated = pull_secret_with(&generated);
    us.post(&secrets, &generated).await.denied(ONE_NAME);
    // The guard has nothing against the verb.
    us.post(&secrets, &pull_secret()).await.allowed();
}

#[tokio::test]
async fn refuses_deletion_even_with_a_wider_role() {
    let (cluster, us, _) = ready().await;
    let namespace = cluster.opted_in().await;
    cluster.widen_our_role_in(&namespace).await;
    let path = path_in(&namespace);
    us.apply(&path, &pull_secret()).await.allowed();
    us.delete(&secrets(&namespace)).await.denied(SECRETS_ONLY);
    us.delete(&path).await.denied(SECRETS_ONLY);
}

#[tokio::test]
async fn refuses_all_but_secrets_even_with_a_wider_role() {
    let (cluster, us, admin) = ready().await;
    let namespace = cluster.opted_in().await;
    cluster.widen_our_role_in(&namespace).await;
    let pod = json!({
        "metadata": {"name": "victim"},
        "spec": {"containers": [{"name": "x", "image": "x"}]},
    });
    let pods = format!("/api/v1/namespaces/{namespace}/pods");
    admin.post(&pods, &pod).await.allowed();

    let named = |name: &str| json!({"metadata": {"name": name}});
    let binding = json!({
        "metadata": {"name": "x"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
    });
    for (api, resource, body) in [
        ("api/v1", "configmaps", named("x")),
        ("api/v1", "serviceaccounts", named("x")),
        (
            "api/v1",
            "serviceaccounts/default/token",
            json!({"spec": {"audiences": []}}),
        ),
        (
            "api/v1",
            "pods",
            json!({"metadata": {"name": "x"}, "spec": pod["spec"]}),
        ),
        (
            "api/v1",
            "pods/victim/exec?command=id&stdout=true",
            json!({}),
        ),
        ("api/v1", "pods/victim/eviction", named("victim")),
        ("apis/coordination.k8s.io/v1", "leases", named("x")),
        ("apis/rbac.authorization.k8s.io/v1", "rolebindings", binding),
    ] {
        let path = format!("/{api}/namespaces/{namespace}/{resource}");
        us.post(&path, &body).await.denied(SECRETS_ONLY);
    }
}

#[tokio::test]
async fn keeps_a_place_for_its_own_ca() {
    let (cluster, us, admin) = ready().await;
    // Only to write: another test reads in this namespace.
    let writer = json!({
        "metadata": {"name": "writer"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["create", "patch"]}],
    });
    let roles = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{OURS}/roles");
    admin.post(&roles, &writer).await.allowed();
    cluster.bind("Role", "writer", OURS, (OURS, OURS)).await;
    let elsewhere = cluster.opted_in().await;
    cluster.widen_our_role_in(&elsewhere).await;

    let ca = json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/tls",
        "metadata": {"name": "ecr-injector-ca"},
        "data": {"tls.crt": "eA==", "tls.key": "eA=="},
    });
    let path = format!("{}/ecr-injector-ca", secrets(OURS));
    eventually("the CA may be made", SOON, async || {
        us.apply_dry_run(&path, &ca).await.0.ok()
    })
    .await;
    let opaque = with(&ca, &json!({"type": "Opaque"}));
    us.apply(&path, &opaque)
        .await
        .denied("its CA as kubernetes.io/tls");
    let other_name = format!("{}/other", secrets(OURS));
    let other = with(&ca, &json!({"metadata": {"name": "other"}}));
    us.apply(&other_name, &other).await.denied(ONE_NAME);
    let elsewhere = format!("{}/ecr-injector-ca", secrets(&elsewhere));
    us.apply(&elsewhere, &ca).await.denied(ONE_NAME);

    us.apply(&path, &ca).await.allowed();
    let change = json!({"data": {"tls.crt": "eQ==", "next.crt": "eQ=="}});
    us.apply(&path, &with(&ca, &change)).await.allowed();
}

#[tokio::test]
async fn judges_nobody_else() {
    let (cluster, ..) = ready().await;
    let namespace = cluster.opted_in().await;
    // Our name in another namespace is another account.
    let client = cluster.plane.as_service_account(&namespace, OURS).await;
    let somebody = Caller(client);
    let account = (namespace.as_str(), OURS);
    cluster
        .bind("ClusterRole", "cluster-admin", &namespace, account)
        .await;
    let path = path_in(&namespace);
    let opaque = pull_secret_with(&json!({"type": "Opaque", "metadata": {"labels": null}}));
    eventually("RBAC lets them write", SOON, async || {
        somebody.apply(&path, &opaque).await.0.ok()
    })
    .await;
    somebody.delete(&path).await.allowed();
}

#[tokio::test]
async fn has_expressions_that_the_api_server_finds_no_fault_with() {
    let controllers = Options {
        controllers: true,
        ..Options::default()
    };
    let plane = ControlPlane::start_with(controllers).await;
    Installation::apply(&plane).await;
    let admin = Caller(plane.admin().await);
    for policy in ["writes-nothing-but-secrets", "secrets"] {
        let policies = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
        let path = format!("{policies}/{policy}.ecr-injector.dev");
        let checked = eventually("the types are checked", SOON, async || {
            let status = admin.get(&path).await.allowed()["status"].take();
            status["typeChecking"].is_object().then_some(status)
        })
        .await;
        assert_eq!(checked["typeChecking"], json!({}), "{policy}");
    }
}

// RBAC

#[tokio::test]
async fn reads_the_pull_secret_of_any_namespace() {
    let (cluster, us, admin) = ready().await;
    for namespace in [cluster.opted_in().await, cluster.plain().await] {
        let path = path_in(&namespace);
        admin.apply(&path, &pull_secret()).await.allowed();
        us.get(&path).await.allowed();
    }
}

#[tokio::test]
async fn reads_no_other_secret() {
    let (cluster, us, admin) = ready().await;
    let opted_in = cluster.opted_in().await;
    for (namespace, name) in [
        (opted_in.as_str(), "other"),
        ("kube-system", "other"),
        (OURS, "ecr-injector-tls"),
    ] {
        let other = pull_secret_with(&json!({"metadata": {"name": name}}));
        let path = format!("{}/{name}", secrets(namespace));
        admin.apply(&path, &other).await.allowed();
        us.get(&path).await.forbidden();
    }
}

#[tokio::test]
async fn lists_and_watches_only_by_the_name_of_the_pull_secret() {
    let (cluster, us, admin) = ready().await;
    let namespace = cluster.opted_in().await;
    let path = path_in(&namespace);
    admin.apply(&path, &pull_secret()).await.allowed();
    let other = pull_secret_with(&json!({"metadata": {"name": "other"}}));
    let path = format!("{}/other", secrets(&namespace));
    admin.apply(&path, &other).await.allowed();

    for scope in [String::new(), format!("namespaces/{namespace}/")] {
        let secrets = format!("/api/v1/{scope}secrets");
        let list = us.get(&format!("{secrets}?{BY_NAME}")).await.allowed();
        let items = list["items"].as_array().unwrap();
        let is_pull_secret = |item: &Value| item["metadata"]["name"] == PULL_SECRET;
        assert!(!items.is_empty() && items.iter().all(is_pull_secret));
        let watch = us.get(&format!("{secrets}?{BY_NAME}&{WATCH}")).await;
        let events = watch.0.unwrap();
        assert!(events.contains(r#""type":"ADDED""#), "{events}");

        for selector in [
            "",
            "fieldSelector=metadata.name%3Dother",
            "fieldSelector=metadata.name!%3Dother",
            "labelSelector=app.kubernetes.io/managed-by%3Decr-injector",
        ] {
            us.get(&format!("{secrets}?{selector}")).await.forbidden();
            let watch = us.get(&format!("{secrets}?{selector}&{WATCH}")).await;
            watch.forbidden();
        }
    }
}

#[tokio::test]
async fn writes_by_server_side_apply_alone() {
    let (cluster, us, _) = ready().await;
    let namespace = cluster.opted_in().await;
    let (secrets, path) = (secrets(&namespace), path_in(&namespace));
    us.post(&secrets, &pull_secret()).await.forbidden();
    us.apply(&path, &pull_secret()).await.allowed();
    us.put(&path, &pull_secret()).await.forbidden();
    us.delete(&path).await.forbidden();
    us.delete(&format!("{secrets}?{BY_NAME}")).await.forbidden();
}

#[tokio::test]
async fn writes_no_secret_of_another_name() {
    let (cluster, us, admin) = ready().await;
    let namespace = cluster.opted_in().await;
    let path = format!("{}/other", secrets(&namespace));
    let other = pull_secret_with(&json!({"metadata": {"name": "other"}}));
    us.apply(&path, &other).await.forbidden();
    admin.apply(&path, &other).await.allowed();
    us.apply(&path, &other).await.forbidden();
}

#[tokio::test]
async fn reads_namespaces_and_changes_none() {
    let (cluster, us, _) = ready().await;
    let namespace = format!("/api/v1/namespaces/{}", cluster.plain().await);
    us.get(&namespace).await.allowed();
    let opted_in = "/api/v1/namespaces?labelSelector=ecr-injector.dev/inject%3Denabled";
    us.get(opted_in).await.allowed();
    let watch = us.get(&format!("{opted_in}&{WATCH}")).await;
    assert!(watch.0.is_ok());
    let label = json!({"metadata": {"labels": {OPT_IN.0: OPT_IN.1}}});
    us.merge(&namespace, &label).await.forbidden();
    us.delete(&namespace).await.forbidden();
}

#[tokio::test]
async fn has_the_rights_that_the_docs_list_and_no_other() {
    let (cluster, us, _) = ready().await;
    let namespace = cluster.plain().await;
    let anybody = cluster.plane.as_service_account(&namespace, "default");
    let common = Caller(anybody.await).rights_in(&namespace).await;
    let mut ours = us.rights_in(&namespace).await;
    ours.retain(|rule| !common.contains(rule));
    ours.sort();
    let secrets = json!({
        "verbs": ["get", "list", "watch", "create", "patch"],
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": [PULL_SECRET],
    });
    let namespaces = json!({
        "verbs": ["get", "list", "watch"],
        "apiGroups": [""],
        "resources": ["namespaces"],
    });
    assert_eq!(ours, [secrets.to_string(), namespaces.to_string()]);
}

/// The control plane that the tests share, with `deploy/` in force; our own account; and the admin.
async fn ready() -> (Cluster, Caller, Caller) {
    static INSTALLED: OnceCell<Installation> = OnceCell::const_new();
    let plane = ControlPlane::shared().await;
    INSTALLED.get_or_init(|| Installation::apply(plane)).await;
    let us = Caller(plane.as_service_account(OURS, OURS).await);
    (Cluster { plane }, us, Caller(plane.admin().await))
}

struct Cluster {
    plane: &'static ControlPlane,
}

impl Cluster {
    async fn opted_in(&self) -> String {
        self.plane.namespace("opted-in", &[OPT_IN]).await
    }

    async fn plain(&self) -> String {
        self.plane.namespace("plain", &[]).await
    }

    /// Makes our account the admin of this one namespace, so that the guard is all that stands in its way. The other
    /// tests have namespaces of their own and don't notice.
    async fn widen_our_role_in(&self, namespace: &str) {
        self.bind("ClusterRole", "cluster-admin", namespace, (OURS, OURS))
            .await;
        let us = Caller(self.plane.as_service_account(OURS, OURS).await);
        let configmaps = format!("/api/v1/namespaces/{namespace}/configmaps?dryRun=All");
        let configmap = json!({"metadata": {"name": "x"}});
        eventually("the guard refuses what RBAC lets pass", SOON, async || {
            let refused = us.post(&configmaps, &configmap).await.0.err()?;
            (refused.code == 422).then_some(())
        })
        .await;
    }

    /// Binds a role to an account (its namespace and name), in one namespace.
    async fn bind(&self, kind: &str, role: &str, namespace: &str, account: (&str, &str)) {
        let rbac = "rbac.authorization.k8s.io";
        let binding = json!({
            "metadata": {"name": role},
            "roleRef": {"apiGroup": rbac, "kind": kind, "name": role},
            "subjects": [{"kind": "ServiceAccount", "namespace": account.0, "name": account.1}],
        });
        let bindings = format!("/apis/{rbac}/v1/namespaces/{namespace}/rolebindings");
        let admin = Caller(self.plane.admin().await);
        admin.post(&bindings, &binding).await.allowed();
    }
}

fn secrets(namespace: &str) -> String {
    format!("/api/v1/namespaces/{namespace}/secrets")
}

/// The path of the pull Secret.
fn path_in(namespace: &str) -> String {
    format!("{}/{PULL_SECRET}", secrets(namespace))
}

/// A pull Secret as the webhook applies it.
fn pull_secret() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "kubernetes.io/dockerconfigjson",
        "metadata": {"name": PULL_SECRET, "labels": {MANAGED_BY: OURS}},
        // {}
        "data": {".dockerconfigjson": "e30="},
    })
}

fn pull_secret_with(change: &Value) -> Value {
    with(&pull_secret(), change)
}

/// The pull Secret with other credentials in it.
fn refreshed() -> Value {
    // {"auths":{}}
    pull_secret_with(&json!({"data": {".dockerconfigjson": "eyJhdXRocyI6e319"}}))
}

fn with(object: &Value, change: &Value) -> Value {
    let mut changed = object.clone();
    json_patch::merge(&mut changed, change);
    changed
}

fn owner() -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "gone"})
}
