//! Pull secrets as they are hours after they were written: there is no other way to have one that is due now.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ecr_injector::cli::metrics::Metrics;
use ecr_injector::cluster::namespace::Namespace;
use ecr_injector::identity::Identity;
use ecr_injector::process::clock::SystemClock;
use ecr_injector::process::readiness::Readiness;
use ecr_injector::pull_secret::DesiredCredential;
use ecr_injector::pull_secret::merge::{Changes, MergeMode, merge};
use ecr_injector::pull_secret::seal::StateKeys;
use ecr_injector::pull_secret::state::Subject;
use ecr_injector::pull_secret::state_key::{DEFAULT_NAME, KeySecret};
use ecr_injector::registry::Host;
use ecr_injector::token::Token;
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Namespace as NamespaceObject, Secret};
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt as _};

use super::installation::{NAME, PULL_SECRET};

/// The keys of an installation, which are made if there are none yet.
pub async fn state_keys(admin: &Client) -> StateKeys {
    let keys = StateKeys::default();
    let secret = KeySecret::new(
        admin.clone(),
        Namespace::parse(NAME).unwrap(),
        DEFAULT_NAME.to_owned(),
        keys.clone(),
        Arc::new(SystemClock),
        Metrics::default().pull_secret,
    );
    let condition = Readiness::default().condition("state-key");
    let share = async { tokio::join!(secret.clone().watch(), secret.clone().provide(condition)) };
    let known = async {
        while keys.current().is_none() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        _ = share => panic!("the key is shared for ever"),
        () = known => {}
    }
    keys
}

/// The whole pull secret of a namespace with a token for each host that was minted so long ago, to live twelve hours; sealed
/// for an object in a namespace.
pub fn minted_ago(
    keys: &StateKeys,
    subject: Subject<'_>,
    hosts: &[String],
    ago: SignedDuration,
) -> Secret {
    let minted_at = Timestamp::now() - ago;
    let password = format!("old-{}-{minted_at}", subject.namespace);
    with_password(keys, subject, hosts, &password, ago)
}

/// Returns such a pull secret with this password.
fn with_password(
    keys: &StateKeys,
    subject: Subject<'_>,
    hosts: &[String],
    password: &str,
    ago: SignedDuration,
) -> Secret {
    let (now, namespace) = (Timestamp::now(), subject.namespace);
    let minted_at = now - ago;
    let text = STANDARD.encode(format!("AWS:{password}"));
    let expires_at = minted_at + SignedDuration::from_hours(12);
    let token = Token::decode(Some(&text), Some(expires_at), None, minted_at).unwrap();
    let token = Arc::new(token);
    let wanted: BTreeMap<Host, DesiredCredential> = hosts
        .iter()
        .map(|host| {
            let desired = DesiredCredential {
                identity: Identity::Ambient.hash(),
                token: Some(token.clone()),
            };
            (Host::parse(host).unwrap(), desired)
        })
        .collect();
    let changes = Changes {
        mode: MergeMode::Reconcile,
        wanted: &wanted,
        forgotten: &BTreeSet::default(),
        revoked: &BTreeSet::default(),
        remembered: None,
        limit: 64,
    };
    let merged = merge(None, changes, minted_at).secret.unwrap();
    let revision = now.as_millisecond().try_into().unwrap();
    let sealed = merged.sealed(revision, subject, |text| keys.seal(text.as_bytes()));
    let name = Namespace::parse(namespace).unwrap();
    let mut secret = sealed.unwrap().to_object(PULL_SECRET, &name, None);
    secret.metadata.resource_version = None;
    secret
}

/// Returns a pull secret as [`minted_ago`] does, for a namespace of a cluster and the pull secret
/// that the namespace has now, if any.
pub async fn minted_ago_in(
    admin: &Client,
    keys: &StateKeys,
    namespace: &str,
    hosts: &[String],
    ago: SignedDuration,
) -> Secret {
    let (namespace_uid, secret_uid) = uids(admin, namespace).await;
    let subject = Subject {
        namespace,
        namespace_uid: &namespace_uid,
        secret_uid: &secret_uid,
    };
    minted_ago(keys, subject, hosts, ago)
}

/// Returns the UIDs of a namespace and of its pull secret, which may be empty.
async fn uids(admin: &Client, namespace: &str) -> (String, String) {
    let namespaces: Api<NamespaceObject> = Api::all(admin.clone());
    let secrets: Api<Secret> = Api::namespaced(admin.clone(), namespace);
    let namespace_uid = namespaces.get(namespace).await.unwrap().uid().unwrap();
    let known = secrets.get_opt(PULL_SECRET).await.unwrap();
    let secret_uid = known.and_then(|secret| secret.uid()).unwrap_or_default();
    (namespace_uid, secret_uid)
}

/// Gives a namespace a pull secret with this password for a host, minted so long ago, whatever it
/// had.
pub async fn make_old(
    admin: &Client,
    namespace: &str,
    host: &str,
    password: &str,
    ago: SignedDuration,
) {
    let keys = &state_keys(admin).await;
    let (namespace_uid, secret_uid) = uids(admin, namespace).await;
    let subject = Subject {
        namespace,
        namespace_uid: &namespace_uid,
        secret_uid: &secret_uid,
    };
    let secret = with_password(keys, subject, &[host.to_owned()], password, ago);
    apply(admin, namespace, &secret).await;
}

/// Writes a pull secret as the webhook does.
async fn apply(admin: &Client, namespace: &str, secret: &Secret) {
    let secrets: Api<Secret> = Api::namespaced(admin.clone(), namespace);
    let params = PatchParams::apply("ecr-injector").force();
    secrets
        .patch(PULL_SECRET, &params, &Patch::Apply(secret))
        .await
        .unwrap();
}

/// Gives each namespace such a pull secret, whatever it had.
pub async fn make_due(admin: &Client, namespaces: &[String], hosts: &[String]) {
    let keys = &state_keys(admin).await;
    let four = SignedDuration::from_hours(4);
    futures::stream::iter(namespaces)
        .for_each_concurrent(16, |namespace| async move {
            let secret = minted_ago_in(admin, keys, namespace, hosts, four).await;
            apply(admin, namespace, &secret).await;
        })
        .await;
}
