//! The leader's work seen from a real API server, with no Pod that would ask for it: pull secrets are there before the
//! first Pod, come back when they are deleted, are repaired, and go out of use with their namespace.

use std::sync::Arc;
use std::time::Duration;

use crate::support;
use crate::support::bed::{create, hosts, image, registry};
use crate::support::due::{make_due, minted_ago_in, state_keys};
use crate::support::installation::{NAME, OPT_IN, PULL_SECRET, USER};
use crate::support::pods::{pod, pull_secrets};
use crate::support::{
    Bed, Behaviour, Caller, ControlPlane, FakeAws, Installation, Shared, Webhook, eventually,
};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::api::rbac::v1::{PolicyRule, Role};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::time::sleep;

const SOON: Duration = Duration::from_secs(8);
const WARM: &str = "eu-central-1";

async fn bed() -> Arc<Bed> {
    static BED: Shared<Bed> = Shared::new();
    BED.get_or_start(async || {
        let warm = registry(123_456_789_012, WARM);
        let config = format!("prewarm: [{warm}]\n");
        Bed::start(&config, "debug").await
    })
    .await
}

impl Bed {
    /// Waits until the pull secret has these hosts and no other.
    async fn until_has(&self, namespace: &str, regions: &[&str]) -> Secret {
        let mut wanted: Vec<String> = regions
            .iter()
            .map(|region| registry(123_456_789_012, region))
            .collect();
        wanted.sort();
        let what = format!("the pull secret of {namespace} has {regions:?}");
        eventually(&what, SOON, async || {
            let secret = self.pull_secret(namespace).await?;
            (hosts(&secret) == wanted).then_some(secret)
        })
        .await
    }

    async fn label(&self, namespace: &str, value: Option<&str>) {
        let namespaces: Api<Namespace> = Api::all(self.plane.admin().await);
        let change = json!({"metadata": {"labels": {OPT_IN.0: value}}});
        let params = PatchParams::default();
        namespaces
            .patch(namespace, &params, &Patch::Merge(change))
            .await
            .unwrap();
    }

    async fn change(&self, namespace: &str, change: Value) -> Secret {
        let secrets = self.secrets(namespace).await;
        let params = PatchParams::default();
        secrets
            .patch(PULL_SECRET, &params, &Patch::Merge(change))
            .await
            .unwrap()
    }
}

fn state(secret: &Secret) -> Value {
    let text = &secret.metadata.annotations.as_ref().unwrap()["ecr-injector.dev/state"];
    serde_json::from_str(text).unwrap()
}

#[tokio::test]
async fn opted_in_namespace_is_warm_before_its_first_pod() {
    let bed = bed().await;
    let namespace = bed.opted_in("warm").await;
    bed.until_has(&namespace, &[WARM]).await;
    let note = bed.note(&namespace, &["OptedIn"], SOON).await;
    let command = format!("kubectl rollout restart deployment -n {namespace}");
    assert!(note.contains(&command), "{note}");
}

#[tokio::test]
async fn deleted_secret_comes_back_with_the_hosts_it_had() {
    let bed = bed().await;
    let namespace = bed.opted_in("deleted").await;
    let client = bed.plane.pod_creator().await;
    let object = pod("web", &image("eu-west-2"));
    create(&client, &namespace, &object, false).await.unwrap();
    let before = bed.until_has(&namespace, &[WARM, "eu-west-2"]).await;
    let secrets = bed.secrets(&namespace).await;
    secrets
        .delete(PULL_SECRET, &DeleteParams::default())
        .await
        .unwrap();
    let after = bed.until_has(&namespace, &[WARM, "eu-west-2"]).await;
    assert_ne!(after.metadata.uid, before.metadata.uid);
    let note = bed.note(&namespace, &["PullSecretRepaired"], SOON).await;
    assert!(note.contains("deleted"), "{note}");
}

#[tokio::test]
async fn changed_secret_is_repaired_without_a_pod() {
    let bed = bed().await;
    let namespace = bed.opted_in("changed").await;
    let before = bed.until_has(&namespace, &[WARM]).await;
    let later = (jiff::Timestamp::now() + SignedDuration::from_mins(725)).to_string();
    let mut forged = state(&before);
    forged["hosts"][registry(123_456_789_012, WARM)]["expiresAt"] = json!(later);
    let docker = r#"{"auths":{"evil.example":{"auth":"eDp5"}}}"#;
    for change in [
        json!({"stringData": {".dockerconfigjson": docker}}),
        json!({"metadata": {"annotations": {"ecr-injector.dev/state": forged.to_string()}}}),
        json!({"metadata": {"annotations": {"ecr-injector.dev/state": null}}}),
    ] {
        let good = state(&bed.until_has(&namespace, &[WARM]).await);
        bed.change(&namespace, change.clone()).await;
        let what = format!("{change} is repaired");
        let after = eventually(&what, Duration::from_secs(20), async || {
            let secret = bed.pull_secret(&namespace).await?;
            let text = &secret.metadata.annotations.as_ref()?;
            text.get("ecr-injector.dev/state")?;
            let right = state(&secret)["hosts"] == good["hosts"]
                && hosts(&secret) == [registry(123_456_789_012, WARM)];
            right.then_some(secret)
        })
        .await;
        assert_eq!(after.metadata.uid, before.metadata.uid, "made again");
    }
    let note = bed.note(&namespace, &["PullSecretRepaired"], SOON).await;
    assert!(note.contains("changed"), "{note}");
}

#[tokio::test]
async fn old_secret_is_renewed_and_its_hosts_cost_one_write() {
    let bed = bed().await;
    let namespace = bed.plane.namespace("old", &[]).await;
    let regions = [WARM, "ap-south-1", "eu-north-1"];
    let old = regions.map(|region| registry(123_456_789_012, region));
    let admin = bed.plane.admin().await;
    let keys = state_keys(&admin).await;
    let five = SignedDuration::from_hours(5);
    let secret = minted_ago_in(&admin, &keys, &namespace, &old, five).await;
    let secrets = bed.secrets(&namespace).await;
    secrets
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();
    bed.label(&namespace, Some(OPT_IN.1)).await;
    eventually("it is renewed", SOON, async || {
        let secret = bed.pull_secret(&namespace).await.unwrap();
        (secret.data != minted_data(&secret, &old)).then_some(())
    })
    .await;
    sleep(Duration::from_secs(1)).await;
    let events = bed.plane.audit_events_of(USER);
    let writes: Vec<&Value> = events
        .iter()
        .filter(|event| event["objectRef"]["namespace"] == *namespace && event["verb"] == "patch")
        .collect();
    assert_eq!(writes.len(), 1, "{writes:?}");
    let agent = writes[0]["userAgent"].as_str().unwrap();
    assert!(agent.ends_with(" refresher"), "{agent}");
}

/// The data that it would have if nobody had renewed it: old tokens are marked.
fn minted_data(
    secret: &Secret,
    hosts: &[String],
) -> Option<std::collections::BTreeMap<String, k8s_openapi::ByteString>> {
    let config = &secret.data.as_ref().unwrap()[".dockerconfigjson"].0;
    let config: Value = serde_json::from_slice(config).unwrap();
    let is_old = hosts.iter().any(|host| {
        use base64::Engine as _;
        let auth = config["auths"][host]["auth"].as_str().unwrap_or_default();
        let text = base64::engine::general_purpose::STANDARD
            .decode(auth)
            .unwrap();
        text.starts_with(b"AWS:old-")
    });
    is_old.then(|| secret.data.clone().unwrap())
}

#[tokio::test]
async fn pending_host_is_completed_however_long_aws_was_away() {
    let bed = bed().await;
    let region = "me-south-1";
    bed.aws
        .tune_ecr_in(region, |knobs| knobs.behaviour = Behaviour::Throttle);
    let namespace = bed.opted_in("waiting").await;
    let client = bed.plane.pod_creator().await;
    let object = pod("web", &image(region));
    create(&client, &namespace, &object, false).await.unwrap();
    // Past the time that the replica which admitted the Pod goes on by itself.
    sleep(Duration::from_secs(12)).await;
    bed.aws
        .tune_ecr_in(region, |knobs| knobs.behaviour = Behaviour::Answer);
    let host = registry(123_456_789_012, region);
    eventually("it is completed", Duration::from_secs(30), async || {
        let secret = bed.pull_secret(&namespace).await.unwrap();
        hosts(&secret).contains(&host).then_some(())
    })
    .await;
}

#[tokio::test]
async fn foreign_secret_is_left_alone_and_reported() {
    let bed = bed().await;
    let namespace = bed.plane.namespace("foreign", &[]).await;
    let secrets = bed.secrets(&namespace).await;
    let theirs = json!({"metadata": {"name": PULL_SECRET}, "stringData": {"a": "b"}});
    let theirs: Secret = serde_json::from_value(theirs).unwrap();
    let made = secrets
        .create(&PostParams::default(), &theirs)
        .await
        .unwrap();
    bed.label(&namespace, Some(OPT_IN.1)).await;
    bed.note(&namespace, &["ForeignSecret"], SOON).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(secrets.get(PULL_SECRET).await.unwrap(), made);
}

#[tokio::test]
async fn opted_out_namespace_is_never_written_to() {
    let bed = bed().await;
    let namespace = bed.opted_in("out").await;
    bed.until_has(&namespace, &[WARM]).await;
    bed.label(&namespace, None).await;
    let note = bed.note(&namespace, &["OptedOut"], SOON).await;
    assert!(note.contains("no longer refreshes it"), "{note}");
    // What would be renewed, and what would be repaired.
    let admin = bed.plane.admin().await;
    let names = [namespace.clone()];
    make_due(&admin, &names, &[registry(123_456_789_012, WARM)]).await;
    let docker = r#"{"auths":{}}"#;
    let changed = json!({"stringData": {".dockerconfigjson": docker}});
    let changed = bed.change(&namespace, changed).await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(bed.pull_secret(&namespace).await, Some(changed));
    let secrets = bed.secrets(&namespace).await;
    let params = DeleteParams::default();
    secrets.delete(PULL_SECRET, &params).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(bed.pull_secret(&namespace).await, None);
    // Whoever comes back finds it as before.
    bed.label(&namespace, Some(OPT_IN.1)).await;
    bed.until_has(&namespace, &[WARM]).await;
}

#[tokio::test]
async fn opt_out_remove_deletes_what_has_expired() {
    support::crypto();
    let plane = ControlPlane::start().await;
    let aws = FakeAws::start();
    let installation = Installation::apply(&plane).await;
    let right = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "removes"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": [PULL_SECRET], "verbs": ["delete"]}],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "removes"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "removes"},
        "subjects": [{"kind": "ServiceAccount", "namespace": NAME, "name": NAME}],
    });
    plane.apply(&format!("{right}\n---\n{binding}")).await;
    let admin = plane.admin().await;
    let keys = state_keys(&admin).await;
    let warm = [registry(123_456_789_012, WARM)];
    let (good, over) = (
        plane.namespace("good", &[]).await,
        plane.namespace("over", &[]).await,
    );
    for (namespace, hours) in [(&good, 5), (&over, 13)] {
        let ago = SignedDuration::from_hours(hours);
        let secret = minted_ago_in(&admin, &keys, namespace, &warm, ago).await;
        let secrets: Api<Secret> = Api::namespaced(admin.clone(), namespace);
        let params = PostParams::default();
        secrets.create(&params, &secret).await.unwrap();
    }
    let mut options = installation.webhook(&plane, &aws).await;
    options.config = format!("prewarm: [{}]\noptOutRemove: true", warm[0]);
    let webhook = Webhook::start(options).await;
    installation.register(&plane).await;
    let left = plane.namespace("left", &[OPT_IN]).await;
    let held = async |namespace: &str| {
        let secrets: Api<Secret> = Api::namespaced(admin.clone(), namespace);
        secrets.get_opt(PULL_SECRET).await.unwrap()
    };
    eventually("it has a pull secret", SOON, async || held(&left).await).await;
    let namespaces: Api<Namespace> = Api::all(admin.clone());
    let change = json!({"metadata": {"labels": {OPT_IN.0: null}}});
    let params = PatchParams::default();
    namespaces
        .patch(&left, &params, &Patch::Merge(change))
        .await
        .unwrap();
    eventually("it is removed", SOON, async || {
        held(&over).await.is_none().then_some(())
    })
    .await;
    sleep(Duration::from_secs(3)).await;
    let removed = r#"ecr_injector_refreshes_total{reason="removed"}"#;
    assert!((webhook.metric(removed).await - 1.0).abs() < 0.5);
    for namespace in [&good, &left] {
        let is_there = held(namespace).await.is_some();
        assert!(is_there, "{namespace}: its credential is good");
    }
    let events = plane.audit_events_of(USER);
    let written = events.iter().find(|event| {
        let namespace = event["objectRef"]["namespace"].as_str();
        event["verb"] == "patch" && [Some(&*good), Some(&*over)].contains(&namespace)
    });
    assert_eq!(written, None);
}

#[tokio::test]
async fn deleted_namespace_is_not_written_to() {
    let bed = bed().await;
    let namespace = bed.opted_in("doomed").await;
    bed.until_has(&namespace, &[WARM]).await;
    let namespaces: Api<Namespace> = Api::all(bed.plane.admin().await);
    namespaces
        .delete(&namespace, &DeleteParams::default())
        .await
        .unwrap();
    let secrets = bed.secrets(&namespace).await;
    // As the namespace controller does.
    secrets
        .delete(PULL_SECRET, &DeleteParams::default())
        .await
        .unwrap();
    sleep(Duration::from_secs(3)).await;
    let events = bed.plane.audit_events_of(USER);
    let refused: Vec<&Value> = events
        .iter()
        .filter(|event| {
            event["objectRef"]["namespace"] == *namespace
                && event["responseStatus"]["code"] == 403
                && event["objectRef"]["resource"] == "secrets"
        })
        .collect();
    assert!(refused.is_empty(), "{refused:?}");
}

#[tokio::test]
async fn impossible_dates_block_nobody_and_leak_no_token() {
    support::crypto();
    let plane = ControlPlane::start().await;
    let aws = FakeAws::start();
    let installation = Installation::apply(&plane).await;
    let admin = Caller(plane.admin().await);
    let path = |namespace: &str| format!("/api/v1/namespaces/{namespace}/secrets/{PULL_SECRET}");
    // Anybody can who may write Secrets there: of what doesn't change with it the field's manager stays as it is written.
    let date = async |namespace: &str| {
        let label = json!({"metadata": {"labels": {"theirs": "x"}}});
        admin.merge(&path(namespace), &label).await.allowed();
        let fields = json!({"manager": "x", "operation": "Update", "apiVersion": "v1", "time": "9999-12-31T00:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": {"f:labels": {"f:theirs": {}}}}});
        let dated = json!({"metadata": {"annotations": {"more": "x"}, "managedFields": [fields]}});
        let stored = admin.merge(&path(namespace), &dated).await.allowed();
        assert!(stored.to_string().contains("9999-12-31"), "{stored}");
    };
    let elsewhere = plane.namespace("elsewhere", &[]).await;
    let theirs = json!({"metadata": {"name": PULL_SECRET}});
    let all = format!("/api/v1/namespaces/{elsewhere}/secrets");
    admin.post(&all, &theirs).await.allowed();
    date(&elsewhere).await;

    let webhook = Webhook::start(installation.webhook(&plane, &aws).await).await;
    installation.register(&plane).await;
    let namespace = plane.namespace("dated", &[OPT_IN]).await;
    let client = plane.pod_creator().await;
    let object = pod("web", &image("eu-west-1"));
    create(&client, &namespace, &object, false).await.unwrap();
    date(&namespace).await;
    let object = pod("second", &image("eu-west-2"));
    let admitted = create(&client, &namespace, &object, false).await.unwrap();
    assert_eq!(admitted.warnings, [""; 0]);
    assert_eq!(pull_secrets(&admitted.pod), [PULL_SECRET]);
    let log = webhook.log_with(r#""pod":"second""#).await;
    assert!(
        !log.contains("dockerconfigjson") && !log.contains("9999-12"),
        "{log}"
    );
}

#[tokio::test]
async fn streamed_lists_are_used_if_wanted_with_the_same_role() {
    support::crypto();
    let plane = ControlPlane::start().await;
    let aws = FakeAws::start();
    let installation = Installation::apply(&plane).await;
    let namespace = plane.namespace("streamed", &[OPT_IN]).await;
    let mut options = installation.webhook(&plane, &aws).await;
    options.config = format!("prewarm: [{}]", registry(123_456_789_012, WARM));
    options.arguments.push("--streaming-lists".to_owned());
    let webhook = Webhook::start(options).await;
    let secrets: Api<Secret> = Api::namespaced(plane.admin().await, &namespace);
    eventually("the leader knows the namespace", SOON, async || {
        secrets.get_opt(PULL_SECRET).await.unwrap()
    })
    .await;
    let log = webhook.log();
    // The audit log has a watch once it is over.
    drop(webhook);
    let asked = |verb: &str, what: &str| {
        let mut events = plane.audit_events_of(USER);
        events.retain(|event| {
            let uri = event["requestURI"].as_str().unwrap();
            let path = uri.split('?').next().unwrap();
            // The leader lists namespaces that nearly opted in, whatever the watches do.
            let agent = event["userAgent"].as_str();
            let is_leader = agent.is_some_and(|agent| agent.ends_with(" refresher"));
            ["/api/v1/namespaces", "/api/v1/secrets"].contains(&path)
                && !is_leader
                && event["verb"] == verb
                && uri.contains(what)
        });
        events.len()
    };
    eventually("two watches that began with all", SOON, async || {
        (asked("watch", "sendInitialEvents=true") == 2).then_some(())
    })
    .await;
    // The feature is on by default from 1.34 on.
    let lists = if ControlPlane::minor_version() >= 34 {
        0
    } else {
        2
    };
    assert_eq!(asked("list", ""), lists, "{log}");
}

#[tokio::test]
async fn missing_right_to_the_lease_is_logged_and_pods_are_admitted() {
    support::crypto();
    let plane = ControlPlane::start().await;
    let aws = FakeAws::start();
    let installation = Installation::apply(&plane).await;
    let roles: Api<Role> = Api::namespaced(plane.admin().await, NAME);
    let mut role = roles.get(NAME).await.unwrap();
    let is_lease = |rule: &PolicyRule| rule.resources == Some(vec!["leases".to_owned()]);
    role.rules.as_mut().unwrap().retain(|rule| !is_lease(rule));
    let params = PostParams::default();
    roles.replace(NAME, &params, &role).await.unwrap();
    let options = installation.webhook(&plane, &aws).await;
    let webhook = Webhook::start(options).await;
    installation.register(&plane).await;
    let namespace = plane.namespace("unled", &[OPT_IN]).await;
    let client = plane.pod_creator().await;
    let object = pod("web", &image("eu-west-1"));
    let admitted = create(&client, &namespace, &object, false).await.unwrap();
    assert_eq!(pull_secrets(&admitted.pod), [PULL_SECRET]);
    let said = "not allowed to use the Lease; this replica refreshes no pull secrets";
    webhook.log_with(said).await;
    assert!(webhook.metric("ecr_injector_leader").await < 0.5);
}
