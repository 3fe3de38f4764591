//! Tests of the core on a real API server, with the guard and the RBAC of `deploy/` in force: the proof of who wrote a
//! pull secret, mistakes in the configuration, wants that were refused, limits, hostile namespaces, and AWS's messages.

mod hostile;
mod limits;
mod messages;
mod mistakes;
mod proof;
mod wants;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use crate::support::bed::{Admitted, create, image, registry};
use crate::support::fake_aws::password_of;
use crate::support::installation::{OPT_IN, PULL_SECRET};
use crate::support::pods::pod;
use crate::support::{Bed, Shared, eventually};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::sleep;

const ACCOUNT: u64 = 123_456_789_012;
/// An account that team-b may not pull from.
const OTHER_ACCOUNT: u64 = 210_987_654_321;
const SOON: Duration = Duration::from_secs(10);
/// The longest that a want which was refused may wait once nothing is in its way.
const RETRIED: Duration = Duration::from_mins(1);

/// In namespaces whose names begin with `t-` the process itself mints, in the teams' their role; nobody mints elsewhere.
const CONFIG: &str = r#"
identities:
  - {namespaces: ["t-*", "registration-probe-*"], ambient: true}
  - {namespaces: ["team-a-*"], assumeRole: {roleArn: "arn:aws:iam::123456789012:role/team-a"}}
  - {namespaces: ["team-denied-*"], assumeRole: {roleArn: "arn:aws:iam::123456789012:role/team-denied"}}
  - namespaces: ["team-b-*"]
    accounts: ["123456789012"]
    assumeRole: {roleArn: "arn:aws:iam::123456789012:role/team-b"}
defaultIdentity: none
limits: {registriesPerPod: 6, registriesPerSecret: 8}
"#;

/// The bed of all tests that need none of their own: they keep apart by namespace and by region.
async fn bed() -> Arc<Bed> {
    static BED: Shared<Bed> = Shared::new();
    BED.get_or_start(async || Bed::start(CONFIG, "info").await)
        .await
}

/// Waits for its turn among the tests that load the machine or count on its speed.
async fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::const_new(());
    MACHINE.lock().await
}

// The format of the state's annotation: no other part of these tests knows it.

const STATE: &str = "ecr-injector.dev/state";
/// The field of a state's host that names who mints for it.
const IDENTITY: &str = "identity";
/// A hash that no identity has.
const NO_IDENTITY: &str = "0000000000000000";

fn state_of(secret: &Secret) -> Value {
    let text = &secret.metadata.annotations.as_ref().unwrap()[STATE];
    serde_json::from_str(text).unwrap()
}

/// Returns the identity that a state names for a host.
fn identity_in(secret: &Secret, host: &str) -> Value {
    state_of(secret)["hosts"][host][IDENTITY].clone()
}

/// Returns a state in which each host is minted for by this identity.
fn with_identity(mut state: Value, identity: &Value) -> Value {
    rewrite(&mut state, &|key, _| {
        (key == IDENTITY).then(|| identity.clone())
    });
    state
}

/// Returns a state as it was written for namespaces that had been opted out lately, from some day far ahead.
fn opted_out_far_ahead(mut state: Value) -> Value {
    state["optedOutAt"] = json!("2999-01-01T00:00:00Z");
    state["retired"] = json!(false);
    state
}

/// Returns a state that anybody can write, because nothing in it is secret: a host without a life, and a plain digest.
fn wish(host: &str, config: &str) -> Value {
    unsealed(&json!({host: {IDENTITY: NO_IDENTITY}}), config)
}

/// Returns a state that claims a credential of this identity which has its whole life before it.
fn fresh(host: &str, identity: &Value, config: &str) -> Value {
    let now = Timestamp::now();
    let expires_at = now + SignedDuration::from_hours(12);
    let entry = json!({IDENTITY: identity, "mintedAt": now, "expiresAt": expires_at});
    unsealed(&json!({host: entry}), config)
}

fn unsealed(hosts: &Value, config: &str) -> Value {
    let mut digest = String::new();
    for byte in Sha256::digest(config.as_bytes()) {
        write!(digest, "{byte:02x}").unwrap();
    }
    json!({"version": 1, "hosts": hosts, "digest": digest})
}

/// Replaces each value below `state` for which `new` has one.
fn rewrite(state: &mut Value, new: &impl Fn(&str, &Value) -> Option<Value>) {
    match state {
        Value::Object(fields) => {
            for (key, value) in fields {
                match new(key, value) {
                    Some(replaced) => *value = replaced,
                    None => rewrite(value, new),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| rewrite(item, new)),
        _ => {}
    }
}

/// Moves each date in a state so far into the future that every credential looks new.
fn dated_later(mut state: Value) -> Value {
    let by = SignedDuration::from_hours(12);
    rewrite(&mut state, &|_, value| {
        let date: Timestamp = value.as_str()?.parse().ok()?;
        Some(json!(Timestamp::now().max(date) + by))
    });
    state
}

/// Returns the object that claims to be a pull secret of ours with this state.
fn claiming(state: &Value, config: &str) -> Secret {
    serde_json::from_value(json!({
        "metadata": {
            "name": PULL_SECRET,
            "labels": {"app.kubernetes.io/managed-by": "ecr-injector"},
            "annotations": {STATE: state.to_string()},
        },
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": config},
    }))
    .unwrap()
}

/// Returns a docker config with a password that no AWS issued.
fn worthless(host: &str) -> String {
    let auth = BASE64_STANDARD.encode("AWS:worthless");
    json!({"auths": {host: {"auth": auth}}}).to_string()
}

/// Returns a copy of a Secret's labels, annotations and data, as anybody can make one who may read it.
fn copy_of(secret: &Secret) -> Secret {
    let mut copy = secret.clone();
    copy.metadata = kube::core::ObjectMeta {
        name: secret.metadata.name.clone(),
        labels: secret.metadata.labels.clone(),
        annotations: secret.metadata.annotations.clone(),
        ..Default::default()
    };
    copy
}

/// Returns the credentials in a pull secret, by host.
fn auths(secret: &Secret) -> BTreeMap<String, String> {
    let config = &secret.data.as_ref().unwrap()[".dockerconfigjson"].0;
    let config: Value = serde_json::from_slice(config).unwrap();
    let auths = config["auths"].as_object().unwrap().iter();
    auths
        .map(|(host, entry)| {
            let auth = entry["auth"].as_str().unwrap_or_default();
            (host.clone(), auth.to_owned())
        })
        .collect()
}

fn version(secret: &Secret) -> String {
    secret.metadata.resource_version.clone().unwrap()
}

fn role(name: &str) -> String {
    format!("arn:aws:iam::{ACCOUNT}:role/{name}")
}

impl Bed {
    /// Creates the first Pod of a namespace, whose image is in this region.
    async fn first_pod(&self, namespace: &str, region: &str) -> Admitted {
        let client = self.plane.pod_creator().await;
        let object = pod("web", &image(region));
        create(&client, namespace, &object, false).await.unwrap()
    }

    /// Creates an opted-in namespace with a Pod, and returns its name and its pull secret.
    async fn served(&self, prefix: &str, region: &str) -> (String, Secret) {
        let namespace = self.opted_in(prefix).await;
        let admitted = self.first_pod(&namespace, region).await;
        assert_eq!(admitted.warnings, [""; 0]);
        let secret = self.pull_secret(&namespace).await.unwrap();
        (namespace, secret)
    }

    /// Creates a namespace that has this Secret already when it is opted in.
    async fn opted_in_with(&self, prefix: &str, secret: &Secret) -> String {
        let namespace = self.plane.namespace(prefix, &[]).await;
        self.put_in_place(&namespace, secret).await;
        self.opt(&namespace, true).await;
        namespace
    }

    /// Waits until a pull secret has a credential for this host that this principal was given, and returns the Secret.
    async fn until_minted(
        &self,
        namespace: &str,
        host: &str,
        principal: &str,
        limit: Duration,
    ) -> Secret {
        let what = format!("{namespace} has a token of {principal} for {host}");
        eventually(&what, limit, async || {
            let secret = self.pull_secret(namespace).await?;
            let found = self.principal(&secret, host)?;
            found.contains(principal).then_some(secret)
        })
        .await
    }

    /// Returns the principal that AWS minted a pull secret's credential for this host for.
    fn principal(&self, secret: &Secret, host: &str) -> Option<String> {
        let password = password_of(auths(secret).get(host)?)?;
        self.aws.principal_of(&password)
    }

    /// Waits until the leader has done work that was there for it after this call began, and a while longer.
    async fn leader_works(&self) {
        let (namespace, secret) = self.served("t-other", "us-east-1").await;
        let secrets = self.secrets(&namespace).await;
        secrets
            .delete(PULL_SECRET, &DeleteParams::default())
            .await
            .unwrap();
        eventually("the leader makes it again", SOON, async || {
            let made = self.pull_secret(&namespace).await?;
            (made.metadata.uid != secret.metadata.uid).then_some(())
        })
        .await;
        sleep(Duration::from_secs(2)).await;
    }

    async fn is_untouched(&self, namespace: &str, known: &Secret, what: &str) {
        let now = self.pull_secret(namespace).await.unwrap();
        assert_eq!(
            (version(&now), state_text(&now)),
            (version(known), state_text(known)),
            "{what}: {namespace} was written to; it has {:?}",
            auths(&now).keys()
        );
    }

    async fn opt(&self, namespace: &str, is_in: bool) {
        let value = is_in.then_some(OPT_IN.1);
        let change = json!({"metadata": {"labels": {OPT_IN.0: value}}});
        self.change_namespace(namespace, &change).await;
    }

    async fn change_namespace(&self, namespace: &str, change: &Value) {
        let namespaces: Api<Namespace> = Api::all(self.plane.admin().await);
        let params = PatchParams::default();
        namespaces
            .patch(namespace, &params, &Patch::Merge(change))
            .await
            .unwrap();
    }

    async fn change_secret(&self, namespace: &str, change: &Value) -> Secret {
        let secrets = self.secrets(namespace).await;
        let params = PatchParams::default();
        secrets
            .patch(PULL_SECRET, &params, &Patch::Merge(change))
            .await
            .unwrap()
    }

    /// Deletes a pull secret, if there is one, and creates this in its place.
    async fn put_in_place(&self, namespace: &str, secret: &Secret) -> Secret {
        let secrets = self.secrets(namespace).await;
        let _ = secrets.delete(PULL_SECRET, &DeleteParams::default()).await;
        let created = secrets.create(&PostParams::default(), secret).await;
        match created {
            Ok(created) => created,
            // The leader repaired the deletion first, so its Secret is replaced as a whole.
            Err(kube::Error::Api(status)) if status.is_already_exists() => secrets
                .replace(PULL_SECRET, &PostParams::default(), secret)
                .await
                .unwrap(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn state_text(secret: &Secret) -> Option<&String> {
    secret.metadata.annotations.as_ref()?.get(STATE)
}
