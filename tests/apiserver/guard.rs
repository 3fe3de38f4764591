//! Tests of the rights of our own account on a real API server: `deploy/rbac.yaml` and
//! `deploy/guard.yaml`, each way. docs/explanation/security.md makes the promises; here they are
//! tried with a token of that account.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crate::support::control_plane::Options;
use crate::support::installation::{NAME as OURS, OPT_IN, PULL_SECRET};
use crate::support::{
    Authority, Caller, ControlPlane, FakeAws, Installation, Shared, Webhook, eventually,
};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ecr_injector::cli::metrics::Metrics;
use ecr_injector::cluster::event_recorder::{EventRecorder, EventRecorderOptions};
use ecr_injector::cluster::lease::{Elector, Settings};
use ecr_injector::cluster::namespace::Namespace;
use ecr_injector::process::clock::SystemClock;
use ecr_injector::process::supervisor::Supervisor;
use ecr_injector::pull_secret::events::{self, PullSecretEvent};
use ecr_injector::pull_secret::guard::{Verdict, test_guard};
use ecr_injector::pull_secret::{Damage, Foreign};
use serde_json::{Value, json};
use tokio::sync::{Mutex, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
const SOON: Duration = Duration::from_secs(20);

const BY_NAME: &str = "fieldSelector=metadata.name%3Decr-pull-secret";
const WATCH: &str = "watch=true&timeoutSeconds=1";

// What the guard says.
const THREE_SECRETS: &str = "writes no Secret but ecr-pull-secret of type kubernetes.io/dockerconfigjson, \
    and in its own namespace ecr-injector-ca of type kubernetes.io/tls \
    and ecr-injector-state-key of type ecr-injector.dev/state-key";
const OUR_LABEL: &str = "only Secrets with the label app.kubernetes.io/managed-by";
const OPTED_IN: &str = "only in a namespace with the label ecr-injector.dev/inject=enabled, \
    and never in a system namespace";
const ONLY_OURS: &str = "updates only a pull Secret that has its label already";
const ONE_KEY: &str = "adds no data to a pull Secret but .dockerconfigjson";
const NOTHING_ELSE: &str =
    "writes Secrets, its own Lease, new Events and the caBundle of its registration";
const ONE_AT_A_TIME: &str = "deletes no Secret but ecr-pull-secret, one at a time";
const DELETES_OURS: &str = "deletes only pull Secrets with the label app.kubernetes.io/managed-by";
const DELETES_LATE: &str = "deletes no pull Secret in a namespace with the label";
const ABOUT_SECRETS: &str = "writes Events about the Secret ecr-pull-secret only";
const OWN_NAME: &str = "writes Events in no other component's name";

// Allowed

#[tokio::test]
async fn creates_a_pull_secret_in_an_opted_in_namespace() {
    let (cluster, us, _) = ready().await;
    let path = path_in(&cluster.opted_in().await);
    let new = pull_secret_with(&json!({"metadata": {
        "resourceVersion": "1",
        "labels": {"app.kubernetes.io/name": "x"},
        "annotations": {"ecr-injector.dev/state": "{}"},
    }}));
    us.apply_dry_run(&path, &new).await.allowed();
    let created = us.apply(&path, &new).await.allowed();
    assert_eq!(created["data"], pull_secret()["data"]);
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
async fn opted_out_namespace_is_never_written_to_again() {
    let (cluster, us, admin) = ready().await;
    let namespace = cluster.opted_in().await;
    let path = path_in(&namespace);
    us.apply(&path, &pull_secret()).await.allowed();
    us.apply(&path, &refreshed()).await.allowed();
    let opt_out = json!({"metadata": {"labels": {OPT_IN.0: null}}});
    let namespace = format!("/api/v1/namespaces/{namespace}");
    admin.merge(&namespace, &opt_out).await.allowed();
    // The API server's own view of the namespace is a moment old.
    eventually("the opt-out is known", SOON, async || {
        us.apply(&path, &pull_secret()).await.0.err()
    })
    .await;
    us.apply(&path, &refreshed()).await.denied(OPTED_IN);
    us.apply_dry_run(&path, &refreshed()).await.denied(OPTED_IN);
    let marked = json!({"metadata": {"annotations": {"ecr-injector.dev/state": "{}"}}});
    us.merge(&path, &marked).await.denied(OPTED_IN);
    let opt_in = json!({"metadata": {"labels": {OPT_IN.0: OPT_IN.1}}});
    admin.merge(&namespace, &opt_in).await.allowed();
    eventually("the opt-in is known", SOON, async || {
        us.apply(&path, &refreshed()).await.0.ok()
    })
    .await;
}

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
async fn refuses_a_pull_secret_in_labelled_excluded_namespaces() {
    let (_, us, admin) = ready().await;
    for namespace in ["kube-system", "kube-node-lease", OURS] {
        let label = json!({"metadata": {"labels": {OPT_IN.0: OPT_IN.1}}});
        // The API server makes its own namespaces a moment after it is ready.
        eventually("the namespace is labelled", SOON, async || {
            let path = format!("/api/v1/namespaces/{namespace}");
            admin.merge(&path, &label).await.0.ok()
        })
        .await;
        let refusal = if namespace == OURS {
            THREE_SECRETS
        } else {
            OPTED_IN
        };
        let path = path_in(namespace);
        us.apply(&path, &pull_secret()).await.denied(refusal);
        // Nor where one with our label is there already.
        admin.apply(&path, &pull_secret()).await.allowed();
        us.apply(&path, &refreshed()).await.denied(refusal);
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
async fn refuses_to_update_a_labelled_secret_of_another_type() {
    let (cluster, us, admin) = ready().await;
    let path = path_in(&cluster.opted_in().await);
    let opaque = pull_secret_with(&json!({"type": "Opaque"}));
    admin.apply(&path, &opaque).await.allowed();
    let data = json!({"data": refreshed()["data"]});
    us.merge(&path, &data).await.denied(THREE_SECRETS);
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
    us.apply(&path, &token).await.denied(THREE_SECRETS);
    let dry_run = us.apply_dry_run(&path, &token).await;
    dry_run.denied(THREE_SECRETS);
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
        us.apply(&path, &secret).await.denied(THREE_SECRETS);
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
        // By which Argo CD may tell what belongs to an application, and is to be pruned.
        ("labels", "app.kubernetes.io/instance", "adds no label"),
        ("labels", "app.kubernetes.io/part-of", "adds no label"),
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
    us.apply(&path, &other).await.denied(THREE_SECRETS);
    us.post(&secrets, &other).await.denied(THREE_SECRETS);
    let generated = json!({"metadata": {"name": null, "generateName": PULL_SECRET}});
    let generated = pull_secret_with(&generated);
    us.post(&secrets, &generated).await.denied(THREE_SECRETS);
    // The guard has nothing against the verb.
    us.post(&secrets, &pull_secret()).await.allowed();
}

#[tokio::test]
async fn deletes_only_its_secret_and_only_after_an_opt_out() {
    let (cluster, us, admin) = ready().await;
    let namespace = cluster.opted_in().await;
    cluster.widen_our_role_in(&namespace).await;
    let path = path_in(&namespace);
    us.apply(&path, &pull_secret()).await.allowed();
    us.delete(&path).await.denied(DELETES_LATE);
    let dry_run = us.delete(&format!("{path}?dryRun=All")).await;
    dry_run.denied(DELETES_LATE);

    let opt_out = json!({"metadata": {"labels": {OPT_IN.0: null}}});
    let namespace_path = format!("/api/v1/namespaces/{namespace}");
    admin.merge(&namespace_path, &opt_out).await.allowed();
    // Never all at once, nor others.
    let secrets = secrets(&namespace);
    us.delete(&secrets).await.denied(ONE_AT_A_TIME);
    let by_name = format!("{secrets}?{BY_NAME}");
    us.delete(&by_name).await.denied(ONE_AT_A_TIME);
    let other = format!("{secrets}/other");
    let named = pull_secret_with(&json!({"metadata": {"name": "other"}}));
    admin.apply(&other, &named).await.allowed();
    us.delete(&other).await.denied(ONE_AT_A_TIME);
    // The API server's own view of the namespace is a moment old.
    eventually("ours may be deleted", SOON, async || {
        us.delete(&path).await.0.ok()
    })
    .await;

    // One that is not ours stays, whatever else about it is as ours.
    for foreign in [
        json!({"metadata": {"labels": {MANAGED_BY: "Helm"}}}),
        json!({"type": "Opaque"}),
    ] {
        admin
            .apply(&path, &pull_secret_with(&foreign))
            .await
            .allowed();
        us.delete(&path).await.denied(DELETES_OURS);
        admin.delete(&path).await.allowed();
    }
}

#[tokio::test]
async fn refuses_all_else_even_with_a_wider_role() {
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
        us.post(&path, &body).await.denied(NOTHING_ELSE);
    }
}

#[tokio::test]
async fn own_secrets_have_their_name_type_and_namespace() {
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

    let own = |name: &str, kind: &str, data: &Value| {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": kind,
            "metadata": {"name": name, "labels": {MANAGED_BY: OURS}},
            "data": data,
        })
    };
    let pair = json!({"tls.crt": "eA==", "tls.key": "eA=="});
    let ca = own("ecr-injector-ca", "kubernetes.io/tls", &pair);
    let key = own(
        "ecr-injector-state-key",
        "ecr-injector.dev/state-key",
        &json!({"current": "eA=="}),
    );
    let other = format!("{}/other", secrets(OURS));
    eventually("RBAC lets us write", SOON, async || {
        let refused = us.apply(&other, &ca).await.0.err()?;
        (refused.code != 403).then_some(())
    })
    .await;
    for (secret, others_type, change) in [
        (
            &ca,
            &key["type"],
            json!({"tls.crt": "eQ==", "next.crt": "eQ=="}),
        ),
        (
            &key,
            &ca["type"],
            json!({"current": "eQ==", "previous": "eA=="}),
        ),
    ] {
        let name = secret["metadata"]["name"].as_str().unwrap();
        let path = format!("{}/{name}", secrets(OURS));
        for wrong in ["Opaque", others_type.as_str().unwrap()] {
            let wrong = with(secret, &json!({"type": wrong, "data": pair}));
            us.apply(&path, &wrong).await.denied(THREE_SECRETS);
        }
        let renamed = with(secret, &json!({"metadata": {"name": "other"}}));
        us.apply(&other, &renamed).await.denied(THREE_SECRETS);
        let there = format!("{}/{name}", secrets(&elsewhere));
        us.apply(&there, secret).await.denied(THREE_SECRETS);
        let unlabelled = with(secret, &json!({"metadata": {"labels": null}}));
        us.apply(&path, &unlabelled).await.denied(OUR_LABEL);
        for (added, refusal) in [
            (
                json!({"finalizers": ["example.com/stuck"]}),
                "adds no finalizer",
            ),
            (json!({"ownerReferences": [owner()]}), "adds no owner"),
            (
                json!({"annotations": {"theirs": "x"}}),
                "adds no annotation",
            ),
            (json!({"labels": {"theirs": "x"}}), "adds no label"),
        ] {
            let added = with(secret, &json!({"metadata": added}));
            us.apply(&path, &added).await.denied(refusal);
        }
        us.apply(&path, secret).await.allowed();
        let changed = with(secret, &json!({"data": change}));
        us.apply(&path, &changed).await.allowed();
        admin.delete(&path).await.allowed();
    }
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table")]
async fn changes_nothing_of_its_registration_but_the_ca_bundles() {
    let (_, us, admin) = ready().await;
    let registrations = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    let manifests = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/registration.yaml");
    let text = fs::read_to_string(manifests).unwrap();
    let mut registration: Value = serde_saphyr::from_str(&text).unwrap();
    for entry in registration["webhooks"].as_array_mut().unwrap() {
        // It is about no Pod of another test.
        entry["objectSelector"] = json!({"matchLabels": {"no-such": "pod"}});
    }
    admin.post(registrations, &registration).await.allowed();
    let path = format!("{registrations}/zz-ecr-injector");
    let set = |path: &str, value: Value| json!([{"op": "add", "path": path, "value": value}]);
    let bundle = BASE64_STANDARD.encode(Authority::new("any").pem());
    let trust = set("/webhooks/0/clientConfig/caBundle", json!(bundle));
    eventually("RBAC and the guard let us", SOON, async || {
        us.json_patch(&path, &trust).await.0.ok()
    })
    .await;
    // Policies come into force one after the other, and all that follows would be stored.
    let probe = set("/metadata/labels/x", json!("x"));
    eventually("the guard looks at registrations", SOON, async || {
        let path = format!("{path}?dryRun=All");
        us.json_patch(&path, &probe).await.0.err()
    })
    .await;
    let entry = registration["webhooks"][0].clone();
    for (change, refusal) in [
        (
            set("/webhooks/0/name", json!("other.ecr-injector.dev")),
            "renames and moves no webhook",
        ),
        (
            set("/webhooks/0/clientConfig/service/name", json!("other")),
            "doesn't change its clientConfig but for the caBundle",
        ),
        (
            set("/webhooks/0/clientConfig/service/path", json!("/other")),
            "doesn't change its clientConfig but for the caBundle",
        ),
        (
            set(
                "/webhooks/0/clientConfig",
                json!({"url": "https://192.0.2.1/"}),
            ),
            "doesn't change its clientConfig but for the caBundle",
        ),
        (
            set(
                "/webhooks/-",
                with(&entry, &json!({"name": "more.ecr-injector.dev"})),
            ),
            "adds, renames",
        ),
        (
            json!([{"op": "remove", "path": "/webhooks/1"}]),
            "adds, renames",
        ),
        (
            set("/webhooks/0/namespaceSelector", json!({})),
            "the rules, selectors and matchConditions",
        ),
        (
            set("/webhooks/0/objectSelector", json!({})),
            "the rules, selectors and matchConditions",
        ),
        (
            set("/webhooks/0/rules/0/resources", json!(["*"])),
            "the rules, selectors and matchConditions",
        ),
        (
            json!([{"op": "remove", "path": "/webhooks/1/matchConditions"}]),
            "the rules, selectors and matchConditions",
        ),
        (
            set("/webhooks/0/failurePolicy", json!("Fail")),
            "the policies and timeouts",
        ),
        (
            set("/webhooks/0/timeoutSeconds", json!(30)),
            "the policies and timeouts",
        ),
        (
            set("/metadata/labels/x", json!("x")),
            "no label, annotation",
        ),
        (
            set("/metadata/annotations", json!({"x": "x"})),
            "no label, annotation",
        ),
        (
            set("/metadata/finalizers", json!(["example.com/x"])),
            "no label, annotation",
        ),
    ] {
        us.json_patch(&path, &change).await.denied(refusal);
    }
    us.delete(&path).await.forbidden();
    us.get(&path).await.forbidden();
    us.post(registrations, &registration).await.forbidden();
    admin.delete(&path).await.allowed();
}

/// The tests that write our one Lease take turns.
static LEASE: Mutex<()> = Mutex::const_new(());

#[tokio::test]
async fn leads_by_its_lease_and_hands_it_over_in_three_seconds() {
    let (_, us, admin) = ready().await;
    let _turn = LEASE.lock().await;
    let path = format!("{}/{OURS}", leases(OURS));
    // Another test's.
    let _ = admin.delete(&path).await;
    let (sender, mut leading) = watch::channel(0);
    let sender = Arc::new(sender);
    let replica = |number: u32| {
        let settings = Settings::new(Namespace::parse(OURS).unwrap(), OURS, "pod");
        let metrics = Metrics::default().cluster;
        let elector = Elector::new(us.0.clone(), settings, Arc::new(SystemClock), metrics);
        let (stop, sender) = (CancellationToken::new(), sender.clone());
        let run = elector.unwrap().run(stop.clone(), move |leadership| {
            let sender = sender.clone();
            async move {
                assert!(leadership.holds());
                sender.send_replace(number);
                leadership.lost().await;
            }
        });
        (stop, tokio::spawn(run))
    };
    let (stop_first, first) = replica(1);
    let limit = Duration::from_secs(3);
    let begun = timeout(limit, leading.wait_for(|number| *number == 1)).await;
    begun.unwrap().unwrap();
    let (stop_second, second) = replica(2);
    // Past some renewals; and a label that somebody adds is no reason to stop.
    let label = json!({"metadata": {"labels": {"theirs": "x"}}});
    admin.merge(&path, &label).await.allowed();
    sleep(Duration::from_secs(6)).await;
    assert_eq!(*leading.borrow(), 1);
    stop_first.cancel();
    let begun = timeout(limit, leading.wait_for(|number| *number == 2)).await;
    begun.unwrap().unwrap();
    first.await.unwrap();
    let lease = us.get(&path).await.allowed();
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
    assert_eq!(lease["metadata"]["labels"]["theirs"], "x");
    stop_second.cancel();
    second.await.unwrap();
    let lease = us.get(&path).await.allowed();
    assert_eq!(
        lease["spec"]["holderIdentity"].as_str().unwrap_or_default(),
        ""
    );
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "a table")]
async fn holds_its_one_lease_and_no_other_even_with_a_wider_role() {
    let (cluster, us, admin) = ready().await;
    let _turn = LEASE.lock().await;
    let (ours, here) = (leases(OURS), leases(&cluster.plain().await));
    let path = format!("{ours}/{OURS}");
    // Another test's.
    let _ = admin.delete(&path).await;
    let lease = |name: &str| json!({"metadata": {"name": name}, "spec": {"holderIdentity": "x"}});

    let made = us.put(&path, &lease(OURS)).await.allowed();
    // As one that was made by another since it was read as absent.
    let Err(late) = us.put(&path, &lease(OURS)).await.0 else {
        panic!("it was overwritten blindly");
    };
    let what = "must be specified for an update";
    assert!(late.code == 422 && late.message.contains(what), "{late:?}");
    let renewed = with(&made, &json!({"spec": {"holderIdentity": "y"}}));
    us.put(&path, &renewed).await.allowed();
    // The version of before.
    let lost = us.put(&path, &made).await.0.unwrap_err();
    assert_eq!(lost.code, 409, "{lost:?}");
    let held = us.get(&path).await.allowed();
    admin.delete(&path).await.allowed();
    // Deleted meanwhile: not made again.
    let lost = us.put(&path, &held).await.0.unwrap_err();
    assert_eq!(lost.code, 409, "{lost:?}");
    // With one of these the namespace could not be deleted, or the collector would delete the Lease.
    for (held_up, refusal) in [
        (
            json!({"finalizers": ["example.com/stuck"]}),
            "adds no finalizer",
        ),
        (json!({"ownerReferences": [owner()]}), "adds no owner"),
    ] {
        let held_up = json!({"metadata": held_up});
        us.put(&path, &with(&lease(OURS), &held_up))
            .await
            .denied(refusal);
    }
    us.put(&path, &lease(OURS)).await.allowed();
    let there = us.get(&path).await.allowed();
    let stuck = json!({"metadata": {"finalizers": ["example.com/stuck"]}});
    us.put(&path, &with(&there, &stuck))
        .await
        .denied("adds no finalizer");
    // What others put there is no reason to stop.
    admin.merge(&path, &stuck).await.allowed();
    let there = us.get(&path).await.allowed();
    let renewed = with(&there, &json!({"spec": {"holderIdentity": "z"}}));
    us.put(&path, &renewed).await.allowed();
    let free = json!({"metadata": {"finalizers": null}});
    admin.merge(&path, &free).await.allowed();

    for path in [format!("{ours}/other"), format!("{here}/{OURS}")] {
        us.put(&path, &lease(path.rsplit('/').next().unwrap()))
            .await
            .forbidden();
        us.get(&path).await.forbidden();
    }
    us.get(&ours).await.forbidden();
    us.get(&format!("{ours}?{WATCH}")).await.forbidden();
    us.post(&ours, &lease(OURS)).await.forbidden();
    us.merge(&path, &json!({"metadata": {"labels": {"x": "x"}}}))
        .await
        .forbidden();
    us.delete(&path).await.forbidden();

    let wide = json!({
        "metadata": {"name": "leases"},
        "rules": [{"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["*"]}],
    });
    for namespace in [OURS, here.split('/').nth(5).unwrap()] {
        let roles = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles");
        admin.post(&roles, &wide).await.allowed();
        cluster
            .bind("Role", "leases", namespace, (OURS, OURS))
            .await;
        let all = leases(namespace);
        eventually("RBAC lets us", SOON, async || us.get(&all).await.0.ok()).await;
    }
    for path in [format!("{ours}/other"), format!("{here}/{OURS}")] {
        let lease = lease(path.rsplit('/').next().unwrap());
        us.put(&path, &lease).await.denied(NOTHING_ELSE);
    }
    us.delete(&path).await.denied(NOTHING_ELSE);
    us.delete(&ours).await.denied(NOTHING_ELSE);
    let roles = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{OURS}");
    admin
        .delete(&format!("{roles}/rolebindings/leases"))
        .await
        .allowed();
}

#[tokio::test]
async fn publishes_events_that_the_api_server_accepts() {
    let (cluster, us, admin) = ready().await;
    // Also where nobody is opted in any more.
    let namespace = Namespace::parse(&cluster.plain().await).unwrap();
    let supervisor = Supervisor::default();
    let recorder = EventRecorder::new(EventRecorderOptions {
        client: us.0.clone(),
        regarding: events::regarding(PULL_SECRET),
        instance: "x".repeat(200),
        clock: Arc::new(SystemClock),
        metrics: Metrics::default().cluster,
        supervisor: supervisor.clone(),
    });
    let long = "word ".repeat(1000);
    let published = [
        PullSecretEvent::Refreshed,
        PullSecretEvent::Refused {
            code: long.as_str().into(),
        },
        PullSecretEvent::Foreign {
            why: Foreign::Label,
        },
        PullSecretEvent::Repaired {
            what: Damage::Deleted,
        },
        PullSecretEvent::Repaired {
            what: Damage::Changed,
        },
        PullSecretEvent::Contended,
        PullSecretEvent::Quota {
            message: long.clone(),
        },
        PullSecretEvent::Forbidden {
            message: long.clone(),
        },
        PullSecretEvent::RoleRefused {
            role: long.clone(),
            why: long.clone(),
        },
        PullSecretEvent::OptedIn,
        PullSecretEvent::OptedOut,
        PullSecretEvent::Suspended {
            host: long.clone(),
            more: 3,
            why: long,
        },
    ];
    for event in &published {
        recorder.publish(&namespace, event);
    }
    drop(recorder);
    supervisor.tasks().close();
    timeout(SOON, supervisor.tasks().wait()).await.unwrap();
    let list = admin.get(&events_in(namespace.as_str())).await.allowed();
    let written = list["items"].as_array().unwrap();
    assert_eq!(written.len(), published.len());
    for event in written {
        assert_eq!(event["reportingController"], OURS);
        assert_eq!(event["regarding"]["name"], PULL_SECRET);
    }
    // As people look for them.
    let core = format!(
        "/api/v1/namespaces/{namespace}/events?fieldSelector=involvedObject.kind%3DSecret,involvedObject.name%3D{PULL_SECRET}"
    );
    let found = admin.get(&core).await.allowed();
    assert_eq!(found["items"].as_array().unwrap().len(), published.len());
}

#[tokio::test]
async fn writes_no_event_about_others_or_in_their_name() {
    let (cluster, us, admin) = ready().await;
    let namespace = cluster.opted_in().await;
    let events = events_in(&namespace);
    let event = event(&namespace);
    us.post(&events, &event).await.allowed();
    for (change, refusal) in [
        (json!({"regarding": {"kind": "Pod"}}), ABOUT_SECRETS),
        (json!({"regarding": {"name": "other"}}), ABOUT_SECRETS),
        (json!({"regarding": {"kind": null}}), ABOUT_SECRETS),
        (
            json!({"related": {"kind": "Pod", "name": "x", "namespace": namespace}}),
            ABOUT_SECRETS,
        ),
        (json!({"reportingController": "kubelet"}), OWN_NAME),
        (
            json!({"metadata": {"finalizers": ["example.com/stuck"]}}),
            "adds no finalizer",
        ),
        (
            json!({"metadata": {"ownerReferences": [owner()]}}),
            "adds no owner",
        ),
    ] {
        us.post(&events, &with(&event, &change))
            .await
            .denied(refusal);
    }
    // What kubectl shows first is refused by the API server itself.
    let source = with(
        &event,
        &json!({"deprecatedSource": {"component": "kubelet"}}),
    );
    assert!(us.post(&events, &source).await.0.is_err());
    let named = with(&event, &json!({"metadata": {"name": "ours"}}));
    let path = format!("{events}/ours");
    admin.post(&events, &named).await.allowed();
    let core = format!("/api/v1/namespaces/{namespace}/events");
    us.get(&events).await.forbidden();
    us.get(&path).await.forbidden();
    us.put(&path, &named).await.forbidden();
    us.merge(&path, &json!({"note": "x"})).await.forbidden();
    us.delete(&path).await.forbidden();
    let older = json!({
        "metadata": {"name": "older"},
        "involvedObject": event["regarding"],
        "reason": "X",
        "message": "x",
        "type": "Normal",
        "source": {"component": "kubelet"},
        "reportingComponent": OURS,
        "reportingInstance": "pod",
    });
    us.post(&core, &older).await.forbidden();

    cluster.widen_our_role_in(&namespace).await;
    us.post(&core, &older).await.denied(NOTHING_ELSE);
    us.merge(&path, &json!({"note": "x"}))
        .await
        .denied(NOTHING_ELSE);
    us.delete(&path).await.denied(NOTHING_ELSE);
    us.delete(&events).await.denied(NOTHING_ELSE);
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
#[allow(clippy::too_many_lines, reason = "one scenario in its order")]
async fn is_found_in_force_at_the_start_and_missing_when_it_is() {
    let plane = ControlPlane::start().await;
    let installation = Installation::apply(&plane).await;
    let (us, admin) = (
        plane.as_service_account(OURS, OURS).await,
        Caller(plane.admin().await),
    );
    let log = tempfile::NamedTempFile::new().unwrap();
    let subscriber = tracing_subscriber::fmt().with_writer(Arc::new(log.reopen().unwrap()));
    let _guard = crate::support::log::scoped(subscriber.finish());
    let logged = |text: &str| {
        let log = std::fs::read_to_string(log.path()).unwrap();
        log.matches(text).count()
    };
    let tested = async |namespace: &str| {
        let metrics = Metrics::default().pull_secret;
        let namespace = Namespace::parse(namespace);
        let patience = Duration::ZERO;
        let client = us.clone();
        let verdict = test_guard(client, PULL_SECRET, namespace.as_ref(), patience, &metrics).await;
        (verdict, metrics.guard.get())
    };

    // Whatever is there already: nothing, ours, somebody else's.
    let empty = plane.namespace("plain", &[]).await;
    let opted_in = plane.namespace("opted-in", &[OPT_IN]).await;
    let foreign = plane.namespace("opted-in", &[OPT_IN]).await;
    let theirs =
        json!({"type": "Opaque", "immutable": true, "metadata": {"labels": {MANAGED_BY: "Helm"}}});
    for (namespace, secret) in [
        (&opted_in, pull_secret()),
        (&foreign, pull_secret_with(&theirs)),
    ] {
        admin.apply(&path_in(namespace), &secret).await.allowed();
    }
    for namespace in [OURS, "", &empty, &opted_in, &foreign] {
        assert_eq!(
            tested(namespace).await,
            (Verdict::Guarded, 1),
            "{namespace}"
        );
    }
    let aws = FakeAws::start();
    let webhook = Webhook::start(installation.webhook(&plane, &aws).await).await;
    eventually("a webhook tests it at its start", SOON, async || {
        (webhook.metric("ecr_injector_guard_enforced").await > 0.5).then_some(())
    })
    .await;
    assert_eq!(logged("WARN"), 0);

    let bindings = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
    let binding = format!("{bindings}/secrets.ecr-injector.dev");
    admin.delete(&binding).await.allowed();
    for namespace in [OURS, "", &empty, &opted_in, &foreign] {
        eventually("it is missing", SOON, async || {
            (tested(namespace).await == (Verdict::Unguarded, 0)).then_some(())
        })
        .await;
    }
    assert!(logged("guard is not enforced") >= 5);
    // It was tried, and nothing came of it.
    for namespace in [OURS, "default", &empty] {
        let absent = admin.get(&path_in(namespace)).await.0.unwrap_err();
        assert_eq!(absent.code, 404);
    }
    for namespace in [&opted_in, &foreign] {
        let there = admin.get(&path_in(namespace)).await.allowed();
        // The webhook leads, and has put its own state on the one that is ours.
        assert_eq!(there["metadata"]["annotations"]["guard-test"], Value::Null);
    }

    let bindings = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
    admin.delete(&format!("{bindings}/{OURS}")).await.allowed();
    let untested = Cell::new(0);
    eventually("it can't be tested", SOON, async || {
        let (verdict, gauge) = tested(OURS).await;
        let Verdict::Untested(reason) = verdict else {
            return None;
        };
        untested.set(untested.get() + 1);
        assert!(gauge == -1 && reason.contains("cannot "), "{reason}");
        // RBAC may hear of it between its two looks at one request: whether we may patch, and whether we may create.
        reason.contains("cannot patch").then_some(())
    })
    .await;
    assert_eq!(
        logged("testing whether the guard is enforced failed"),
        untested.get()
    );
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
    for policy in [
        "writes-nothing-else",
        "secrets",
        "removals",
        "events",
        "holds-up-nothing",
        "registration",
    ] {
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
    let events = json!({
        "verbs": ["create"],
        "apiGroups": ["events.k8s.io"],
        "resources": ["events"],
    });
    let registrations = json!({
        "verbs": ["list", "watch", "patch"],
        "apiGroups": ["admissionregistration.k8s.io"],
        "resources": ["mutatingwebhookconfigurations"],
        "resourceNames": ["zz-ecr-injector"],
    });
    let accounts = json!({
        "verbs": ["list", "watch"],
        "apiGroups": [""],
        "resources": ["serviceaccounts"],
    });
    let listed = [secrets, events, namespaces, registrations, accounts];
    let listed = listed.map(|rule| rule.to_string());
    let sorted: BTreeSet<String> = listed.into();
    assert_eq!(ours.into_iter().collect::<BTreeSet<_>>(), sorted);

    // In our own namespace three more. Other tests have made others there meanwhile.
    let lease = json!({
        "verbs": ["get", "create", "update"],
        "apiGroups": ["coordination.k8s.io"],
        "resources": ["leases"],
        "resourceNames": [OURS],
    });
    let authority = json!({
        "verbs": ["list", "watch", "create", "patch"],
        "apiGroups": [""],
        "resources": ["secrets"],
        "resourceNames": ["ecr-injector-ca"],
    });
    let key = with(
        &authority,
        &json!({"resourceNames": ["ecr-injector-state-key"]}),
    );
    let there = us.rights_in(OURS).await;
    for rule in [lease, authority, key] {
        assert!(there.contains(&rule.to_string()), "{there:?}");
    }
}

/// The control plane that the tests share, with `deploy/` in force; our own account; and the admin.
async fn ready() -> (Cluster, Caller, Caller) {
    static PLANE: Shared<ControlPlane> = Shared::new();
    let start = async || {
        let plane = ControlPlane::start().await;
        Installation::apply(&plane).await;
        plane
    };
    let plane = PLANE.get_or_start(start).await;
    let us = Caller(plane.as_service_account(OURS, OURS).await);
    let admin = Caller(plane.admin().await);
    (Cluster { plane }, us, admin)
}

struct Cluster {
    plane: Arc<ControlPlane>,
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

fn leases(namespace: &str) -> String {
    format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases")
}

fn events_in(namespace: &str) -> String {
    format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events")
}

/// An Event as the leader writes it.
fn event(namespace: &str) -> Value {
    json!({
        "metadata": {"generateName": "ecr-pull-secret-"},
        "regarding": {"apiVersion": "v1", "kind": "Secret", "namespace": namespace, "name": PULL_SECRET},
        "type": "Normal",
        "reason": "OptedIn",
        "action": "OptIn",
        "note": "x",
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": OURS,
        "reportingInstance": "pod",
    })
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
