//! The ServiceAccounts whose Pods may reference the Secrets of their own lists alone.
//!
//! The annotation `kubernetes.io/enforce-mountable-secrets` makes the API server reject a Pod that
//! references any other Secret, also where a webhook added the reference. Only such accounts are
//! kept, so the store is empty in most clusters.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use kube::{Api, Client, Resource as _, ResourceExt as _, runtime::watcher::Event};

use super::{metrics::ClusterMetrics, namespace::Namespace, object::PullingAccount};
use crate::{
    cluster::watch::{Lists, watch},
    process::readiness::Condition,
};

/// The annotation that limits the Secrets of an account's Pods.
pub const MOUNTABLE_SECRETS_ANNOTATION: &str = "kubernetes.io/enforce-mountable-secrets";

/// Accounts in a page, where the API server doesn't stream them one by one. Whoever may write
/// accounts can make each as large as etcd allows, 1.5 MiB.
const PAGE: u32 = 10;

/// The most accounts of a namespace that are kept. Pods of further ones get the reference, and the
/// API server rejects them: whoever made so many can mend that.
const MAX_PER_NAMESPACE: usize = 1_000;

/// The ServiceAccounts that reject a reference to the pull secret, shared by clones.
#[derive(Clone)]
pub struct ServiceAccounts(Arc<Inner>);

struct Inner {
    api: Api<PullingAccount>,
    secret_name: String,
    rejecting: RwLock<Rejecting>,
    metrics: Arc<ClusterMetrics>,
}

/// The names of the accounts that reject the reference, by namespace.
type Rejecting = HashMap<Namespace, HashSet<String>>;

impl ServiceAccounts {
    /// Returns an empty store of the accounts that reject a reference to the Secret of this name.
    #[must_use]
    pub fn new(client: Client, secret_name: String, metrics: Arc<ClusterMetrics>) -> Self {
        Self(Arc::new(Inner {
            api: Api::all(client),
            secret_name,
            rejecting: RwLock::default(),
            metrics,
        }))
    }

    /// Fills the store until the future is dropped; `synced` holds after the first list.
    pub async fn run(&self, synced: Condition) {
        let mut listed = Rejecting::new();
        watch(
            "serviceaccounts",
            self.0.api.clone(),
            Lists::Streamed.config().page_size(PAGE),
            |event| {
                match event {
                    Event::Init => return listed.clear(),
                    Event::InitApply(account) => return self.note(&mut listed, &account),
                    Event::InitDone => {
                        *self.rejecting_mut() = std::mem::take(&mut listed);
                        synced.hold();
                    }
                    Event::Apply(account) => self.note(&mut self.rejecting_mut(), &account),
                    Event::Delete(account) => remove(&mut self.rejecting_mut(), &account),
                }
                let count = self.rejecting().values().map(HashSet::len).sum::<usize>();
                self.0
                    .metrics
                    .rejecting_accounts
                    .set(i64::try_from(count).unwrap_or(i64::MAX));
            },
        )
        .await;
    }

    /// Returns whether the API server rejects a Pod of this account that references the pull
    /// secret.
    #[must_use]
    pub fn rejects_reference(&self, namespace: &Namespace, account: &str) -> bool {
        let rejecting = self.rejecting();
        let accounts = rejecting.get(namespace);
        accounts.is_some_and(|accounts| accounts.contains(account))
    }

    fn note(&self, rejecting: &mut Rejecting, account: &PullingAccount) {
        if !rejects(account, &self.0.secret_name) {
            return remove(rejecting, account);
        }
        if let Some(namespace) = namespace_of(account) {
            let accounts = rejecting.entry(namespace).or_default();
            if accounts.len() < MAX_PER_NAMESPACE {
                accounts.insert(account.name_any());
            }
        }
    }

    fn rejecting(&self) -> RwLockReadGuard<'_, Rejecting> {
        let rejecting = self.0.rejecting.read();
        rejecting.unwrap_or_else(PoisonError::into_inner)
    }

    fn rejecting_mut(&self) -> RwLockWriteGuard<'_, Rejecting> {
        let rejecting = self.0.rejecting.write();
        rejecting.unwrap_or_else(PoisonError::into_inner)
    }
}

fn remove(rejecting: &mut Rejecting, account: &PullingAccount) {
    let Some(namespace) = namespace_of(account) else {
        return;
    };
    if let Some(accounts) = rejecting.get_mut(&namespace) {
        accounts.remove(&account.name_any());
        if accounts.is_empty() {
            rejecting.remove(&namespace);
        }
    }
}

fn namespace_of(account: &PullingAccount) -> Option<Namespace> {
    Namespace::parse(account.meta().namespace.as_deref()?)
}

/// Whether an account enforces its list of Secrets, and the list lacks the pull secret. The API
/// server parses the annotation's value by Go's `strconv.ParseBool`, and takes any other value for
/// false.
fn rejects(account: &PullingAccount, secret_name: &str) -> bool {
    let value = account.annotations().get(MOUNTABLE_SECRETS_ANNOTATION);
    let enforces =
        value.is_some_and(|value| matches!(&**value, "1" | "t" | "T" | "true" | "TRUE" | "True"));
    enforces && !account.pull_secrets.iter().any(|name| name == secret_name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn account(value: &str, pull_secrets: &serde_json::Value) -> PullingAccount {
        serde_json::from_value(json!({
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": {
                "name": "app",
                "namespace": "team",
                "annotations": {MOUNTABLE_SECRETS_ANNOTATION: value},
                "managedFields": [{"time": "9999-12-31T00:00:00Z"}],
            },
            "secrets": [{"name": "ecr-pull-secret"}],
            "imagePullSecrets": pull_secrets,
        }))
        .expect("readable")
    }

    #[test]
    fn annotation_is_parsed_as_go_parses_a_bool() {
        for (value, expected) in [
            ("true", true),
            ("True", true),
            ("TRUE", true),
            ("t", true),
            ("T", true),
            ("1", true),
            ("tRUE", false),
            ("yes", false),
            (" true", false),
            ("false", false),
            ("0", false),
            ("", false),
        ] {
            let account = account(value, &json!(null));
            assert_eq!(rejects(&account, "ecr-pull-secret"), expected, "{value:?}");
        }
    }

    #[tokio::test]
    async fn accounts_of_a_namespace_are_kept_up_to_a_limit() {
        let service = tower::service_fn(|_: http::Request<kube::client::Body>| {
            std::future::pending::<Result<http::Response<kube::client::Body>, std::io::Error>>()
        });
        let client = Client::new(service, "default");
        let metrics = crate::cli::metrics::Metrics::default().cluster;
        let accounts = ServiceAccounts::new(client, "ecr-pull-secret".to_owned(), metrics);
        let mut rejecting = Rejecting::new();
        for number in 0..MAX_PER_NAMESPACE + 5 {
            let mut account = account("true", &json!(null));
            account.metadata.name = Some(format!("app-{number}"));
            accounts.note(&mut rejecting, &account);
        }
        let team = Namespace::parse("team").expect("a name");
        assert_eq!(rejecting[&team].len(), MAX_PER_NAMESPACE);
    }

    #[test]
    fn list_of_any_length_is_kept_in_part() {
        let many: Vec<_> = (0..100_000)
            .map(|number| json!({"name": format!("s-{number}")}))
            .collect();
        let account = account("true", &json!(many));
        assert_eq!(account.pull_secrets.len(), 256);
    }

    #[test]
    fn account_that_lists_the_pull_secret_rejects_nothing() {
        let others = json!([{"name": "other"}, {"name": ""}, {}]);
        assert!(rejects(&account("true", &others), "ecr-pull-secret"));
        let with_ours = json!([{"name": "other"}, {"name": "ecr-pull-secret"}]);
        assert!(!rejects(&account("true", &with_ours), "ecr-pull-secret"));
        assert!(rejects(&account("true", &with_ours), "another-name"));
    }
}
