//! Tests of admission as a cluster's users see it: Pods created through a real API server that
//! calls the real binary.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::support;
use crate::support::bed::{change, create, hosts, image, post_review, registry, review, spec};
use crate::support::installation::{OPT_IN, PULL_SECRET, USER};
use crate::support::pods::{pod, pod_with, pull_secrets};
use crate::support::rewriter::Change;
use crate::support::{Bed, Rewriter, Shared, eventually, shows};
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRole;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

async fn bed() -> Arc<Bed> {
    static BED: Shared<Bed> = Shared::new();
    BED.get_or_start(async || Bed::start("", "debug").await)
        .await
}

fn version(object: &impl kube::ResourceExt) -> u64 {
    object.resource_version().unwrap().parse().unwrap()
}

#[tokio::test]
async fn pod_is_patched_and_its_secret_is_there_before_it_is_stored() {
    let bed = bed().await;
    let namespace = bed.opted_in("main").await;
    let client = bed.plane.pod_creator().await;
    let admitted = create(&client, &namespace, &pod("web", &image("us-east-1")), false)
        .await
        .unwrap();
    assert_eq!(pull_secrets(&admitted.pod), [PULL_SECRET]);
    assert_eq!(admitted.warnings, [] as [&str; 0]);

    let secret = bed.pull_secret(&namespace).await.unwrap();
    assert_eq!(hosts(&secret), [registry(123_456_789_012, "us-east-1")]);
    assert_eq!(
        secret.type_.as_deref(),
        Some("kubernetes.io/dockerconfigjson")
    );
    assert!(
        version(&secret) < version(&admitted.pod),
        "the Secret was written after the Pod"
    );
    let annotations = secret.metadata.annotations.unwrap();
    let expires_at: jiff::Timestamp = annotations["ecr-injector.dev/expires-at"].parse().unwrap();
    let hours = expires_at.duration_since(jiff::Timestamp::now()).as_hours();
    assert!((11..=12).contains(&hours), "expires in {hours} h");
}

#[tokio::test]
async fn plain_and_excluded_namespaces_are_untouched() {
    let bed = bed().await;
    let client = bed.plane.pod_creator().await;
    let plain = bed.plane.namespace("plain", &[]).await;
    let namespaces: Api<Namespace> = Api::all(bed.plane.admin().await);
    let label = json!({"metadata": {"labels": {OPT_IN.0: OPT_IN.1}}});
    namespaces
        .patch("kube-system", &PatchParams::default(), &Patch::Merge(label))
        .await
        .unwrap();
    let accounts: Api<ServiceAccount> = Api::namespaced(bed.plane.admin().await, "kube-system");
    let default = serde_json::from_value(json!({"metadata": {"name": "default"}})).unwrap();
    let _ = accounts.create(&PostParams::default(), &default).await;

    for namespace in [plain.as_str(), "kube-system"] {
        let admitted = create(&client, namespace, &pod("web", &image("eu-north-1")), false)
            .await
            .unwrap();
        assert_eq!(pull_secrets(&admitted.pod), [] as [&str; 0], "{namespace}");
        assert!(bed.pull_secret(namespace).await.is_none(), "{namespace}");
    }
    assert_eq!(bed.aws.ecr_calls("eu-north-1").len(), 0);
}

#[tokio::test]
async fn review_for_an_unlabelled_namespace_has_no_effect() {
    let bed = bed().await;
    let plain = bed.plane.namespace("forged", &[]).await;
    let review = review(&plain, &pod("web", &image("eu-south-1")));
    let answer = post_review(&bed.installation, bed.webhook.address(), &review).await;
    assert_eq!(
        answer["response"],
        json!({"uid": "review", "allowed": true})
    );
    assert!(bed.pull_secret(&plain).await.is_none());
    assert_eq!(bed.aws.ecr_calls("eu-south-1").len(), 0);
}

#[tokio::test]
async fn pull_secrets_of_pod_and_service_account_are_kept_in_order() {
    let bed = bed().await;
    let namespace = bed.opted_in("kept").await;
    let client = bed.plane.pod_creator().await;
    let accounts: Api<ServiceAccount> = Api::namespaced(bed.plane.admin().await, &namespace);
    let account = json!({"metadata": {"name": "builder"}, "imagePullSecrets": [{"name": "one"}, {"name": "two"}]});
    accounts
        .create(
            &PostParams::default(),
            &serde_json::from_value(account).unwrap(),
        )
        .await
        .unwrap();

    let mut own = spec(&image("us-east-1"));
    own["imagePullSecrets"] = json!([{"name": "mine"}]);
    let admitted = create(&client, &namespace, &pod_with("own", &own), false)
        .await
        .unwrap();
    assert_eq!(pull_secrets(&admitted.pod), ["mine", PULL_SECRET]);

    let mut by_account = spec(&image("us-east-1"));
    by_account["serviceAccountName"] = json!("builder");
    let admitted = create(
        &client,
        &namespace,
        &pod_with("account", &by_account),
        false,
    )
    .await
    .unwrap();
    assert_eq!(pull_secrets(&admitted.pod), ["one", "two", PULL_SECRET]);

    let mut ours = spec(&image("us-east-1"));
    ours["imagePullSecrets"] = json!([{"name": PULL_SECRET}, {"name": "mine"}]);
    let admitted = create(&client, &namespace, &pod_with("ours", &ours), false)
        .await
        .unwrap();
    assert_eq!(pull_secrets(&admitted.pod), [PULL_SECRET, "mine"]);
}

#[tokio::test]
async fn images_of_init_containers_and_volumes_count() {
    let bed = bed().await;
    let namespace = bed.opted_in("places").await;
    let client = bed.plane.pod_creator().await;
    let mut init = spec("registry.example/main:1");
    init["initContainers"] = json!([{"name": "init", "image": image("us-west-1")}]);
    let admitted = create(&client, &namespace, &pod_with("init", &init), false)
        .await
        .unwrap();
    assert_eq!(pull_secrets(&admitted.pod), [PULL_SECRET]);

    let mut volume = spec("registry.example/main:1");
    volume["volumes"] = json!([{"name": "model", "image": {"reference": image("us-west-2")}}]);
    let admitted = create(&client, &namespace, &pod_with("volume", &volume), false)
        .await
        .unwrap();
    assert_eq!(pull_secrets(&admitted.pod), [PULL_SECRET]);
    let stored = json!(admitted.pod.spec.unwrap().volumes.unwrap());
    assert_eq!(stored[0]["image"]["reference"], image("us-west-2"));

    let both = [
        registry(123_456_789_012, "us-west-1"),
        registry(123_456_789_012, "us-west-2"),
    ];
    assert_eq!(hosts(&bed.pull_secret(&namespace).await.unwrap()), both);
}

#[tokio::test]
async fn ephemeral_container_is_covered_or_warned_about() {
    let bed = bed().await;
    let namespace = bed.opted_in("debug").await;
    let client = bed.plane.pod_creator().await;
    create(
        &client,
        &namespace,
        &pod("plain", "registry.example/main:1"),
        false,
    )
    .await
    .unwrap();
    create(
        &client,
        &namespace,
        &pod("ours", &image("ap-south-1")),
        false,
    )
    .await
    .unwrap();
    let debug = |region: &str| {
        let container =
            json!({"name": "debug", "image": image(region), "targetContainerName": "main"});
        json!({"spec": {"ephemeralContainers": [container]}})
    };

    let sub = "/ephemeralcontainers";
    let admitted = change(&client, &namespace, "ours", sub, &debug("ap-northeast-1"))
        .await
        .unwrap();
    assert_eq!(admitted.warnings, [] as [&str; 0]);
    let covered = hosts(&bed.pull_secret(&namespace).await.unwrap());
    assert!(
        covered.contains(&registry(123_456_789_012, "ap-northeast-1")),
        "{covered:?}"
    );

    let admitted = change(&client, &namespace, "plain", sub, &debug("ap-northeast-2"))
        .await
        .unwrap();
    assert_eq!(
        admitted.warnings,
        ["ecr-injector: this Pod does not reference pull secret ecr-pull-secret; recreate it"]
    );
    let covered = hosts(&bed.pull_secret(&namespace).await.unwrap());
    assert!(
        covered.contains(&registry(123_456_789_012, "ap-northeast-2")),
        "{covered:?}"
    );
}

#[tokio::test]
async fn changed_image_is_covered_and_other_updates_are_not_sent() {
    let bed = bed().await;
    let namespace = bed.opted_in("update").await;
    let client = bed.plane.admin().await;
    create(&client, &namespace, &pod("web", &image("eu-west-2")), false)
        .await
        .unwrap();
    let other = json!({"spec": {"containers": [{"name": "main", "image": image("eu-west-3")}]}});
    change(&client, &namespace, "web", "", &other)
        .await
        .unwrap();
    let covered = hosts(&bed.pull_secret(&namespace).await.unwrap());
    assert!(
        covered.contains(&registry(123_456_789_012, "eu-west-3")),
        "{covered:?}"
    );

    let asked = |bed: &Bed| {
        bed.webhook
            .log()
            .lines()
            .filter(|line| line.contains(&namespace) && line.contains(r#""uid""#))
            .count()
    };
    let sent = async |count: usize| {
        eventually(
            "a line for each admission",
            Duration::from_secs(20),
            async || (asked(&bed) >= count).then_some(()),
        )
        .await;
    };
    sent(2).await;
    let label = json!({"metadata": {"labels": {"a": "b"}}});
    change(&client, &namespace, "web", "", &label)
        .await
        .unwrap();
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    pods.delete("web", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    // Lines are written in order: with that of a later admission all before it are there.
    let later = pods.clone().into_client();
    create(
        &later,
        &namespace,
        &pod("later", &image("eu-west-2")),
        false,
    )
    .await
    .unwrap();
    sent(3).await;
    assert_eq!(asked(&bed), 3, "a label or a deletion was sent to us");
}

#[tokio::test]
async fn dry_run_shows_the_patch_and_leaves_no_secret_and_no_aws_call() {
    let bed = bed().await;
    let namespace = bed.opted_in("dry").await;
    let client = bed.plane.pod_creator().await;
    let admitted = create(
        &client,
        &namespace,
        &pod("web", &image("ca-central-1")),
        true,
    )
    .await
    .unwrap();
    assert_eq!(pull_secrets(&admitted.pod), [PULL_SECRET]);
    assert!(bed.pull_secret(&namespace).await.is_none());
    assert_eq!(bed.aws.ecr_calls("ca-central-1").len(), 0);
}

#[tokio::test]
async fn foreign_secret_is_untouched_and_the_pod_gets_a_warning() {
    let bed = bed().await;
    let client = bed.plane.pod_creator().await;
    let docker = json!({".dockerconfigjson": "{\"auths\":{}}"});
    let labels = json!({"app.kubernetes.io/managed-by": "ecr-injector"});
    let handed_over = |config: &serde_json::Value| {
        json!({"type": "kubernetes.io/dockerconfigjson", "metadata": {"labels": labels},
            "stringData": {".dockerconfigjson": config.to_string()}})
    };
    let login = json!({"username": "AWS", "password": "pw", "auth": "QVdTOnB3"});
    let registry_of_others = json!({"auths": {"ghcr.io": login}});
    let https = format!("https://{}", registry(123_456_789_012, "us-east-1"));
    let under_https = json!({"auths": {https: {"auth": "QVdTOnB3"}}});
    let cases = [
        (
            "unlabelled",
            json!({"type": "kubernetes.io/dockerconfigjson", "stringData": docker}),
            "it lacks the label app.kubernetes.io/managed-by=ecr-injector",
        ),
        (
            "opaque",
            json!({"type": "Opaque", "metadata": {"labels": labels}, "stringData": {"a": "b"}}),
            "its type is not kubernetes.io/dockerconfigjson",
        ),
        (
            "immutable",
            json!({"type": "kubernetes.io/dockerconfigjson", "metadata": {"labels": labels}, "stringData": docker,
                "immutable": true}),
            "it is immutable",
        ),
        (
            "registry",
            handed_over(&registry_of_others),
            "its docker config has entries that ecr-injector did not write",
        ),
        (
            "scheme",
            handed_over(&under_https),
            "its docker config has entries that ecr-injector did not write",
        ),
    ];
    for (case, mut secret, why) in cases {
        let namespace = bed.opted_in(case).await;
        secret["metadata"]["name"] = json!(PULL_SECRET);
        let secrets: Api<Secret> = Api::namespaced(bed.plane.admin().await, &namespace);
        let made = secrets
            .create(
                &PostParams::default(),
                &serde_json::from_value(secret).unwrap(),
            )
            .await
            .unwrap();
        // At once, when our watch may not have it yet, and again when it has.
        for name in ["first", "second"] {
            let admitted = create(&client, &namespace, &pod(name, &image("us-east-1")), false)
                .await
                .unwrap();
            assert_eq!(
                pull_secrets(&admitted.pod),
                [] as [&str; 0],
                "{case} {name}"
            );
            assert_eq!(
                admitted.warnings,
                [format!(
                    "ecr-injector: Secret ecr-pull-secret left unchanged: {why}"
                )],
                "{case}"
            );
        }
        assert_eq!(secrets.get(PULL_SECRET).await.unwrap(), made, "{case}");
    }
}

/// The warning for a Pod whose `ServiceAccount` enforces mountable secrets.
const ENFORCED: &str = "ecr-injector: ServiceAccount enforces mountable secrets: add ecr-pull-secret to its imagePullSecrets";

/// Creates a Pod of an account until the webhook knows the account as expected, and returns the
/// warnings.
async fn admitted_as(bed: &Bed, namespace: &str, account: &str, pulls: &[&str]) -> Vec<String> {
    let client = bed.plane.pod_creator().await;
    let mut with_account = spec(&image("us-east-1"));
    with_account["serviceAccountName"] = json!(account);
    let number = std::cell::Cell::new(0);
    let what = format!("a Pod of {account} with {pulls:?}");
    eventually(&what, Duration::from_secs(10), async || {
        number.set(number.get() + 1);
        let name = format!("{account}-{}-{}", pulls.len(), number.get());
        let admitted = create(&client, namespace, &pod_with(&name, &with_account), false).await;
        // Until the watch has the account, the API server may reject the Pod.
        let admitted = admitted.ok()?;
        (pull_secrets(&admitted.pod) == pulls).then_some(admitted.warnings)
    })
    .await
}

#[tokio::test]
async fn account_that_enforces_mountable_secrets_keeps_its_pods() {
    let bed = bed().await;
    let namespace = bed.opted_in("mountable").await;
    let accounts: Api<ServiceAccount> = Api::namespaced(bed.plane.admin().await, &namespace);
    let enforcing = |name: &str, value: &str| -> ServiceAccount {
        let annotations = json!({"kubernetes.io/enforce-mountable-secrets": value});
        serde_json::from_value(json!({"metadata": {"name": name, "annotations": annotations}}))
            .unwrap()
    };
    let post = PostParams::default();
    accounts
        .create(&post, &enforcing("app", "true"))
        .await
        .unwrap();
    accounts.create(&post, &enforcing("go", "T")).await.unwrap();
    accounts
        .create(&post, &enforcing("lax", "yes"))
        .await
        .unwrap();
    for account in ["app", "go"] {
        let warnings = admitted_as(&bed, &namespace, account, &[]).await;
        assert_eq!(warnings, [ENFORCED], "{account}");
    }
    let event = bed.note(
        &namespace,
        &["MountableSecretsEnforced"],
        Duration::from_secs(10),
    );
    let note = event.await;
    assert!(note.contains("kubectl patch serviceaccount"), "{note}");
    let warnings = admitted_as(&bed, &namespace, "lax", &[PULL_SECRET]).await;
    assert_eq!(warnings, [] as [&str; 0]);

    // The API server does reject such a reference.
    let client = bed.plane.pod_creator().await;
    let mut referring = spec(&image("us-east-1"));
    referring["serviceAccountName"] = json!("app");
    referring["imagePullSecrets"] = json!([{"name": PULL_SECRET}]);
    let rejected = create(&client, &namespace, &pod_with("by-hand", &referring), false).await;
    let message = rejected.unwrap_err().message;
    shows(
        "`is not allowed because service account … does not reference that imagePullSecret`",
        &message,
    );

    // What the warning says helps.
    let listed = json!({"imagePullSecrets": [{"name": PULL_SECRET}]});
    accounts
        .patch("app", &PatchParams::default(), &Patch::Merge(listed))
        .await
        .unwrap();
    let warnings = admitted_as(&bed, &namespace, "app", &[PULL_SECRET]).await;
    assert_eq!(warnings, [] as [&str; 0]);
    let mut with_a_list = referring.clone();
    with_a_list["imagePullSecrets"] = json!([]);
    let admitted = create(
        &client,
        &namespace,
        &pod_with("listed", &with_a_list),
        false,
    )
    .await;
    assert_eq!(pull_secrets(&admitted.unwrap().pod), [PULL_SECRET]);
}

#[tokio::test]
async fn namespace_that_cannot_be_read_is_unknown_and_not_written_to() {
    let bed = Bed::start("", "info").await;
    let plain = bed.plane.namespace("unread", &[]).await;
    let review = review(&plain, &pod("web", &image("us-east-1")));
    let posted = || post_review(&bed.installation, bed.webhook.address(), &review);
    // The control: a namespace that can be read is not opted in.
    let answer = posted().await;
    assert_eq!(answer["response"]["patch"], json!(null), "{answer}");

    let roles: Api<ClusterRole> = Api::all(bed.plane.admin().await);
    let mut role = roles.get("ecr-injector").await.unwrap();
    for rule in role.rules.iter_mut().flatten() {
        if rule.resources.iter().flatten().any(|it| it == "namespaces") {
            rule.verbs.retain(|verb| verb != "get");
        }
    }
    roles
        .replace("ecr-injector", &PostParams::default(), &role)
        .await
        .unwrap();
    let unknown = eventually(
        "an unknown namespace",
        Duration::from_secs(20),
        async || {
            let answer = posted().await;
            answer["response"]["patch"].is_string().then_some(answer)
        },
    );
    let answer = unknown.await;
    let warning = answer["response"]["warnings"][0].as_str().unwrap();
    assert!(warning.contains("namespace_unknown"), "{warning}");
    let series = "ecr_injector_admission_duration_seconds_count{decision=\"inject_unready\",reason=\"namespace_unknown\"}";
    assert!(bed.webhook.metric(series).await >= 1.0);
    bed.webhook.log_with("reading the namespace failed").await;
    assert!(bed.pull_secret(&plain).await.is_none());
    assert_eq!(bed.aws.ecr_calls("us-east-1").len(), 0);
}

#[tokio::test]
async fn tampered_secret_is_repaired_with_all_its_hosts() {
    let bed = bed().await;
    let namespace = bed.opted_in("tampered").await;
    let client = bed.plane.pod_creator().await;
    let mut two = spec(&image("sa-east-1"));
    two["initContainers"] = json!([{"name": "init", "image": image("us-east-2")}]);
    create(&client, &namespace, &pod_with("web", &two), false)
        .await
        .unwrap();
    let before = bed.pull_secret(&namespace).await.unwrap();

    let secrets: Api<Secret> = Api::namespaced(bed.plane.admin().await, &namespace);
    let forged = json!({"stringData": {".dockerconfigjson": "{\"auths\":{\"evil.example\":{\"auth\":\"eDp5\"}}}"}});
    let tampered = secrets
        .patch(PULL_SECRET, &PatchParams::default(), &Patch::Merge(forged))
        .await
        .unwrap();
    eventually(
        "the watch brought the change",
        Duration::from_secs(5),
        async || {
            let admitted = create(
                &client,
                &namespace,
                &pod("again", &image("sa-east-1")),
                true,
            )
            .await
            .unwrap();
            assert_eq!(pull_secrets(&admitted.pod), [PULL_SECRET]);
            let other = create(
                &client,
                &namespace,
                &pod(&unique("again"), &image("sa-east-1")),
                false,
            )
            .await
            .unwrap();
            assert_eq!(pull_secrets(&other.pod), [PULL_SECRET]);
            (hosts(&bed.pull_secret(&namespace).await.unwrap()) == hosts(&before)).then_some(())
        },
    )
    .await;
    let after = bed.pull_secret(&namespace).await.unwrap();
    assert_eq!(
        after.metadata.uid, tampered.metadata.uid,
        "deleted and made again"
    );
    assert_eq!(
        bed.aws.ecr_calls("us-east-2").len() + bed.aws.ecr_calls("sa-east-1").len(),
        2,
        "minted again"
    );
}

#[tokio::test]
async fn edited_dates_are_repaired_and_not_believed() {
    let bed = bed().await;
    let namespace = bed.opted_in("edited").await;
    let client = bed.plane.pod_creator().await;
    let object = pod("web", &image("eu-south-2"));
    create(&client, &namespace, &object, false).await.unwrap();
    let state_of = |secret: &Secret| -> serde_json::Value {
        let text = &secret.metadata.annotations.as_ref().unwrap()["ecr-injector.dev/state"];
        serde_json::from_str(text).unwrap()
    };
    let before = state_of(&bed.pull_secret(&namespace).await.unwrap());

    let mut forged = before.clone();
    for host in forged["hosts"].as_object_mut().unwrap().values_mut() {
        let later = jiff::Timestamp::now() + jiff::SignedDuration::from_mins(725);
        host["expiresAt"] = json!(later.to_string());
    }
    let secrets: Api<Secret> = Api::namespaced(bed.plane.admin().await, &namespace);
    let annotations = json!({"ecr-injector.dev/state": forged.to_string()});
    let patch = json!({"metadata": {"annotations": annotations}});
    secrets
        .patch(PULL_SECRET, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    eventually(
        "the dates are right again",
        Duration::from_secs(5),
        async || {
            let object = pod(&unique("again"), &image("eu-south-2"));
            create(&client, &namespace, &object, false).await.unwrap();
            let after = state_of(&bed.pull_secret(&namespace).await.unwrap());
            (after["hosts"] == before["hosts"]).then_some(())
        },
    )
    .await;
}

fn unique(prefix: &str) -> String {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("{prefix}-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

#[tokio::test]
async fn pod_that_opts_out_by_its_annotation_is_left_alone() {
    let bed = bed().await;
    let namespace = bed.opted_in("annotated").await;
    let client = bed.plane.pod_creator().await;
    let mut object = pod("web", &image("me-south-1"));
    object.metadata.annotations = Some(BTreeMap::from([(
        "ecr-injector.dev/inject".into(),
        "disabled".into(),
    )]));
    let admitted = create(&client, &namespace, &object, false).await.unwrap();
    assert_eq!(pull_secrets(&admitted.pod), [] as [&str; 0]);
    assert_eq!(bed.aws.ecr_calls("me-south-1").len(), 0);
}

#[tokio::test]
async fn namespace_is_served_from_the_moment_that_it_is_labelled() {
    let bed = bed().await;
    let client = bed.plane.pod_creator().await;
    let namespaces: Api<Namespace> = Api::all(bed.plane.admin().await);
    let namespace = bed.plane.namespace("late", &[]).await;
    let before = create(
        &client,
        &namespace,
        &pod("before", &image("us-east-1")),
        false,
    )
    .await
    .unwrap();
    assert_eq!(pull_secrets(&before.pod), [] as [&str; 0]);
    let label = json!({"metadata": {"labels": {OPT_IN.0: OPT_IN.1}}});
    namespaces
        .patch(&namespace, &PatchParams::default(), &Patch::Merge(label))
        .await
        .unwrap();
    // The API server itself learns of the label by a watch of its own; from its first call on we have to serve.
    eventually("served", Duration::from_secs(5), async || {
        let admitted = create(
            &client,
            &namespace,
            &pod(&unique("after"), &image("us-east-1")),
            false,
        )
        .await
        .unwrap();
        (pull_secrets(&admitted.pod) == [PULL_SECRET]).then_some(())
    })
    .await;
    let refusals = bed
        .webhook
        .metric(r#"ecr_injector_admission_duration_seconds_count{reason="kube_api_rejected"}"#)
        .await;
    assert!(refusals < 0.5, "the guard refused a write: {refusals}");
}

#[tokio::test]
async fn burst_in_a_cold_namespace_costs_one_aws_call_and_one_create() {
    let bed = bed().await;
    let namespace = bed.opted_in("burst").await;
    let client = bed.plane.pod_creator().await;
    bed.aws.tune_ecr_in("ap-southeast-1", |knobs| {
        knobs.latency = Duration::from_millis(300);
    });
    let pods = (0..200).map(|n| {
        let (client, namespace) = (client.clone(), namespace.clone());
        async move {
            let object = pod(&format!("web-{n}"), &image("ap-southeast-1"));
            let admitted = create(&client, &namespace, &object, false).await.unwrap();
            assert_eq!(
                pull_secrets(&admitted.pod),
                [PULL_SECRET],
                "{:?}",
                admitted.warnings
            );
        }
    });
    futures::future::join_all(pods).await;
    assert_eq!(bed.aws.ecr_calls("ap-southeast-1").len(), 1);
    let writes = writes_to(&bed, &namespace);
    assert_eq!(writes.len(), 1, "{writes:?}");
}

/// The codes of our writes in a namespace, by the audit log.
fn writes_to(bed: &Bed, namespace: &str) -> Vec<i64> {
    let events = bed.plane.audit_events_of(USER);
    let ours = events.iter().filter(|event| {
        event["stage"] == "ResponseComplete"
            && event["objectRef"]["namespace"] == namespace
            && event["verb"] == "patch"
    });
    ours.map(|event| event["responseStatus"]["code"].as_i64().unwrap())
        .collect()
}

#[tokio::test]
async fn warm_admission_makes_no_io() {
    let bed = Bed::start("", "info").await;
    let namespace = bed.opted_in("warm").await;
    let client = bed.plane.pod_creator().await;
    create(
        &client,
        &namespace,
        &pod("first", &image("us-east-1")),
        false,
    )
    .await
    .unwrap();
    let expiry = "ecr_injector_earliest_expiry_seconds";
    eventually("the watch sees it", Duration::from_secs(10), async || {
        (bed.webhook.metric(expiry).await > 0.0).then_some(())
    })
    .await;
    let calls = async || {
        let metrics = bed.webhook.metrics().await;
        let sum = |series| support::webhook::sum(&metrics, series);
        // A scrape measures what the store knows, with no call of its own.
        assert!(sum(r#"ecr_injector_pull_secrets_by_state{state="fresh"}"#) > 0.5);
        let (all, identity) = (
            sum(expiry),
            sum(r#"ecr_injector_identity_earliest_expiry_seconds{region="us-east-1"}"#),
        );
        assert!(all > 42_000.0 && all <= 43_200.0, "{metrics}");
        assert!((all - identity).abs() < 0.5, "{metrics}");
        // This replica leads, and renews its Lease whatever is admitted.
        let leases = sum(r#"ecr_injector_kube_api_calls_total{resource="leases"}"#);
        (
            sum("ecr_injector_kube_api_calls_total") - leases,
            sum("ecr_injector_aws_calls_total"),
            sum("ecr_injector_admission_duration_seconds_count"),
        )
    };
    let audited = || {
        bed.plane
            .audit_events_of(USER)
            .iter()
            .filter(|event| event["verb"] != "watch" && event["objectRef"]["resource"] != "leases")
            .count()
    };
    // Until all is done that follows the first admission, such as its Event.
    let mut before = (calls().await, audited());
    eventually(
        "a second without a call",
        Duration::from_secs(20),
        async || {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let last = std::mem::replace(&mut before, (calls().await, audited()));
            (last == before).then_some(())
        },
    )
    .await;
    for n in 0..50 {
        let admitted = create(
            &client,
            &namespace,
            &pod(&format!("web-{n}"), &image("us-east-1")),
            false,
        )
        .await
        .unwrap();
        assert_eq!(pull_secrets(&admitted.pod), [PULL_SECRET]);
    }
    let after = (calls().await, audited());
    assert_eq!(
        (after.0.0, after.0.1, after.1),
        (before.0.0, before.0.1, before.1),
        "calls to the API server, AWS, audit"
    );
    assert!(
        after.0.2 - before.0.2 > 49.5,
        "the admissions were not counted"
    );
}

#[tokio::test]
async fn image_rewriters_before_us_are_followed_whatever_their_name() {
    let bed = bed().await;
    let client = bed.plane.pod_creator().await;
    // Registrations run in the order of their names, and ours begins with zz for that. tests/chart/conditions.rs has those after us.
    for name in ["a-rewriter", "z-rewriter"] {
        let to = registry(123_456_789_012, "eu-central-2");
        let _rewriter = Rewriter::register(&bed.plane, name, "mirror.example", &to).await;
        let namespace = bed
            .plane
            .namespace(name, &[OPT_IN, ("rewrite", name)])
            .await;
        let admitted = eventually(
            "the rewriter is asked",
            Duration::from_secs(10),
            async || {
                let object = pod(&unique("web"), "mirror.example/team/app:v1");
                let admitted = create(&client, &namespace, &object, false).await.unwrap();
                let image = admitted.pod.spec.as_ref().unwrap().containers[0]
                    .image
                    .clone()
                    .unwrap();
                image.starts_with(&to).then_some(admitted)
            },
        )
        .await;
        assert_eq!(pull_secrets(&admitted.pod), [PULL_SECRET], "{name}");
        assert_eq!(
            hosts(&bed.pull_secret(&namespace).await.unwrap()),
            [to],
            "{name}"
        );
    }
}

#[tokio::test]
async fn reinvocation_adds_nothing_twice_and_changes_nothing() {
    let bed = bed().await;
    let client = bed.plane.pod_creator().await;
    // One before us adds our name by itself; one after us turns the list around, so that we are asked again.
    let add_ours = |mut names: Vec<String>| {
        names.retain(|name| name != PULL_SECRET);
        names.push(PULL_SECRET.to_owned());
        names
    };
    let turn_around = |names: Vec<String>| names.into_iter().rev().collect();
    let changes: [(&str, Change, [&str; 2]); 2] = [
        ("a-adds", add_ours, ["mine", PULL_SECRET]),
        ("zzz-turns", turn_around, [PULL_SECRET, "mine"]),
    ];
    for (name, change, expected) in changes {
        let _other = Rewriter::register_for_pull_secrets(&bed.plane, name, change).await;
        let namespace = bed
            .plane
            .namespace(name, &[OPT_IN, ("rewrite", name)])
            .await;
        let mut own = spec(&image("us-east-1"));
        own["imagePullSecrets"] = json!([{"name": "mine"}]);
        let limit = Duration::from_secs(10);
        eventually("the other webhook is asked", limit, async || {
            let object = pod_with(&unique("web"), &own);
            let admitted = create(&client, &namespace, &object, false).await.unwrap();
            (pull_secrets(&admitted.pod) == expected).then_some(())
        })
        .await;
    }
    // What the API server says of the second time: we were asked, and the Pod stayed as it was.
    let again = "mutation.webhook.admission.k8s.io/round_1_index_";
    let limit = Duration::from_secs(10);
    let said = eventually("the audit log has it", limit, async || {
        let events = bed.plane.audit_events();
        let annotations = events.iter().filter(|event| {
            event["objectRef"]["namespace"]
                .as_str()
                .is_some_and(|namespace| namespace.starts_with("zzz-turns"))
        });
        annotations
            .filter_map(|event| event["annotations"].as_object())
            .flatten()
            .filter(|(key, _)| key.starts_with(again))
            .map(|(_, said)| said.as_str().unwrap().to_owned())
            .find(|said| said.contains("zz-ecr-injector"))
    })
    .await;
    assert!(said.contains(r#""mutated":false"#), "{said}");
}
