//! Pull secrets as they are hours after they were written: there is no other way to have one that is due now.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ecr_injector::identity::Identity;
use ecr_injector::namespace::Namespace;
use ecr_injector::pull_secret::{PullSecret, Terms, Want};
use ecr_injector::registry::Host;
use ecr_injector::token::Token;
use futures::StreamExt as _;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};

use super::installation::PULL_SECRET;

/// The whole pull secret of a namespace with a token for each host that was minted so long ago, to live twelve hours.
pub fn minted_ago(namespace: &str, hosts: &[String], ago: SignedDuration) -> Secret {
    let minted_at = Timestamp::now() - ago;
    let text = STANDARD.encode(format!("AWS:old-{namespace}-{minted_at}"));
    let expires_at = minted_at + SignedDuration::from_hours(12);
    let token = Token::decode(Some(&text), Some(expires_at), None, minted_at).unwrap();
    let token = Arc::new(token);
    let wanted: BTreeMap<Host, Want> = hosts
        .iter()
        .map(|host| {
            let want = Want {
                identity: Identity::Ambient.hash(),
                token: Some(token.clone()),
            };
            (Host::parse(host).unwrap(), want)
        })
        .collect();
    let terms = Terms::Whole {
        opted_out_at: None,
        retired: false,
    };
    let merged = PullSecret::merge(None, &wanted, terms, 64, minted_at).unwrap();
    let name = Namespace::parse(namespace).unwrap();
    let mut secret = merged.unwrap().to_object(PULL_SECRET, &name, None);
    secret.metadata.resource_version = None;
    secret
}

/// Gives each namespace such a pull secret, whatever it had.
pub async fn make_due(admin: &Client, namespaces: &[String], hosts: &[String]) {
    futures::stream::iter(namespaces)
        .for_each_concurrent(16, |namespace| async move {
            let secret = minted_ago(namespace, hosts, SignedDuration::from_hours(4));
            let secrets: Api<Secret> = Api::namespaced(admin.clone(), namespace);
            let params = PatchParams::apply("ecr-injector").force();
            secrets
                .patch(PULL_SECRET, &params, &Patch::Apply(&secret))
                .await
                .unwrap();
        })
        .await;
}
