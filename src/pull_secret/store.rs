//! What we know of every pull secret: a metadata watch fills the store, our own writes do at once.
//!
//! It holds the state annotation and no credential. Metadata show neither type nor data, so what a watch brings is
//! unverified until somebody has looked at the whole Secret once; what we wrote ourselves needs no look.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock, RwLockWriteGuard},
};

use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{
    Api, Client,
    core::PartialObjectMeta,
    runtime::watcher::{self, Event},
};

use super::{Existing, Foreign, State, is_managed};
use crate::{
    admission::decide::SecretFacts, cluster::watch::watch, metrics::Metrics, namespace::Namespace,
    readiness::Condition,
};

/// What we know of one pull secret.
#[derive(Debug)]
pub struct Entry {
    version: u64,
    knowledge: Knowledge,
}

#[derive(Debug)]
enum Knowledge {
    /// Ours, read or written whole, and intact.
    Ours(State),
    /// Read whole or seen by its label: not ours.
    Foreign(Foreign),
    /// Ours by its label; not looked at yet, or not intact when looked at.
    Unverified,
}

impl Entry {
    /// The facts for a decision.
    #[must_use]
    pub fn facts(&self) -> SecretFacts<'_> {
        match &self.knowledge {
            Knowledge::Ours(state) => SecretFacts::Ours(state),
            Knowledge::Foreign(why) => SecretFacts::Foreign(*why),
            Knowledge::Unverified => SecretFacts::Unverified,
        }
    }

    /// The state, if it is ours and intact.
    #[must_use]
    pub fn state(&self) -> Option<&State> {
        match &self.knowledge {
            Knowledge::Ours(state) => Some(state),
            _ => None,
        }
    }
}

/// The pull secrets of the cluster; clones share them.
#[derive(Clone)]
pub struct PullSecrets(Arc<Inner>);

struct Inner {
    entries: RwLock<HashMap<Namespace, Arc<Entry>>>,
    metrics: Arc<Metrics>,
}

impl PullSecrets {
    /// An empty store.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            entries: RwLock::default(),
            metrics,
        }))
    }

    /// What is known of a namespace's pull secret; `None` if there is none as far as we know.
    #[must_use]
    pub fn get(&self, namespace: &Namespace) -> Option<Arc<Entry>> {
        self.0
            .entries
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(namespace)
            .cloned()
    }

    /// Takes a Secret that was read or written whole just now.
    pub fn saw(&self, namespace: &Namespace, secret: &Secret) {
        let knowledge = match Existing::read(secret) {
            Ok(existing) => existing
                .state
                .map_or(Knowledge::Unverified, Knowledge::Ours),
            Err(why) => Knowledge::Foreign(why),
        };
        let entry = Entry {
            version: version(&secret.metadata),
            knowledge,
        };
        let mut entries = self.entries();
        // A look at the version that is known already may tell more; one at an older version tells less.
        if entries
            .get(namespace)
            .is_none_or(|known| known.version <= entry.version)
        {
            entries.insert(namespace.clone(), Arc::new(entry));
        }
    }

    /// Takes the news that there is none.
    pub fn saw_none(&self, namespace: &Namespace) {
        self.entries().remove(namespace);
    }

    /// Keeps the store filled until the future is dropped.
    pub async fn run(&self, client: Client, secret_name: &str, synced: Condition) {
        let api: Api<PartialObjectMeta<Secret>> = Api::all(client);
        // The only list and watch that our role permits: of this one name.
        let config = watcher::Config::default().fields(&format!("metadata.name={secret_name}"));
        let mut list = List::default();
        watch("pull secrets", api, config, |event| {
            match event {
                Event::Init => {
                    list = List {
                        known: self.versions(),
                        listed: HashSet::new(),
                    }
                }
                Event::InitApply(object) => list.listed.extend(self.learn(&object.metadata)),
                Event::InitDone => {
                    self.forget_unlisted(&std::mem::take(&mut list));
                    synced.hold();
                }
                Event::Apply(object) => {
                    self.learn(&object.metadata);
                }
                Event::Delete(object) => self.forget(&object.metadata),
            }
            self.0
                .metrics
                .pull_secrets
                .set(i64::try_from(self.entries().len()).unwrap_or(i64::MAX));
        })
        .await;
    }

    fn learn(&self, metadata: &ObjectMeta) -> Option<Namespace> {
        let namespace = Namespace::parse(metadata.namespace.as_deref()?)?;
        let version = version(metadata);
        let mut entries = self.entries();
        if entries
            .get(&namespace)
            .is_none_or(|known| known.version < version)
        {
            let foreign = Knowledge::Foreign(Foreign::Label);
            let knowledge = if is_managed(metadata) {
                Knowledge::Unverified
            } else {
                foreign
            };
            entries.insert(namespace.clone(), Arc::new(Entry { version, knowledge }));
        }
        Some(namespace)
    }

    fn forget(&self, metadata: &ObjectMeta) {
        let Some(namespace) = metadata.namespace.as_deref() else {
            return;
        };
        let mut entries = self.entries();
        // A deletion carries the version at which it happened; an entry that is newer was made after it.
        if entries
            .get(namespace)
            .is_some_and(|known| known.version <= version(metadata))
        {
            entries.remove(namespace);
        }
    }

    /// After a list: what was known before it began, is not in it, and has not changed since, is gone.
    fn forget_unlisted(&self, list: &List) {
        self.entries().retain(|namespace, entry| {
            list.listed.contains(namespace)
                || list
                    .known
                    .get(namespace)
                    .is_none_or(|known| entry.version != *known)
        });
    }

    fn versions(&self) -> HashMap<Namespace, u64> {
        self.entries()
            .iter()
            .map(|(namespace, entry)| (namespace.clone(), entry.version))
            .collect()
    }

    fn entries(&self) -> RwLockWriteGuard<'_, HashMap<Namespace, Arc<Entry>>> {
        self.0
            .entries
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A list under way: what was known when it began, and what it has brought so far.
#[derive(Default)]
struct List {
    known: HashMap<Namespace, u64>,
    listed: HashSet<Namespace>,
}

/// Resource versions are numbers that grow (KEP-5504 makes it part of the API's contract).
fn version(metadata: &ObjectMeta) -> u64 {
    metadata
        .resource_version
        .as_deref()
        .and_then(|text| text.parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;

    use super::*;
    use crate::{
        identity::Identity,
        pull_secret::{MANAGED_BY, MANAGED_BY_LABEL, PullSecret, Want},
        registry::Host,
    };

    fn namespace() -> Namespace {
        Namespace::parse("team").expect("valid")
    }

    fn secret(version: u64) -> Secret {
        let host = Host::parse("123456789012.dkr.ecr.eu-west-1.amazonaws.com").expect("valid");
        let want = Want {
            identity: Identity::Ambient.hash(),
            token: None,
        };
        let merged = PullSecret::merge(
            None,
            &BTreeMap::from([(host, want)]),
            64,
            Timestamp::UNIX_EPOCH,
        );
        let mut secret = merged
            .expect("fits")
            .expect("a write")
            .to_object("s", &namespace(), None);
        secret.metadata.resource_version = Some(version.to_string());
        secret
    }

    fn metadata(version: u64) -> ObjectMeta {
        ObjectMeta {
            namespace: Some("team".into()),
            resource_version: Some(version.to_string()),
            labels: Some(BTreeMap::from([(
                MANAGED_BY_LABEL.into(),
                MANAGED_BY.into(),
            )])),
            ..ObjectMeta::default()
        }
    }

    fn store() -> PullSecrets {
        PullSecrets::new(Arc::default())
    }

    fn is_verified(store: &PullSecrets) -> Option<bool> {
        store
            .get(&namespace())
            .map(|entry| matches!(entry.facts(), SecretFacts::Ours(_)))
    }

    #[test]
    fn an_old_event_never_replaces_what_we_wrote_ourselves() {
        let store = store();
        store.saw(&namespace(), &secret(7));
        for old in [3, 7] {
            store.learn(&metadata(old));
            assert_eq!(is_verified(&store), Some(true), "version {old}");
        }
        store.learn(&metadata(8));
        assert_eq!(
            is_verified(&store),
            Some(false),
            "somebody else's write has to be looked at"
        );
        store.saw(&namespace(), &secret(8));
        assert_eq!(is_verified(&store), Some(true));
    }

    #[test]
    fn a_late_deletion_never_removes_what_was_created_since() {
        let store = store();
        store.saw(&namespace(), &secret(7));
        store.forget(&metadata(6));
        assert_eq!(is_verified(&store), Some(true));
        store.forget(&metadata(8));
        assert_eq!(is_verified(&store), None);
    }

    #[test]
    fn a_new_list_removes_what_is_gone_and_keeps_what_was_written_meanwhile() {
        let store = store();
        store.saw(&namespace(), &secret(7));
        let list = List {
            known: store.versions(),
            listed: HashSet::new(),
        };
        store.saw(&namespace(), &secret(9));
        store.forget_unlisted(&list);
        assert_eq!(
            is_verified(&store),
            Some(true),
            "written since the list began"
        );
        let list = List {
            known: store.versions(),
            listed: HashSet::new(),
        };
        store.forget_unlisted(&list);
        assert_eq!(is_verified(&store), None);
    }

    #[test]
    fn a_secret_without_our_label_is_foreign_at_first_sight() {
        let store = store();
        store.learn(&ObjectMeta {
            labels: None,
            ..metadata(3)
        });
        let entry = store.get(&namespace()).expect("known");
        assert!(matches!(
            entry.facts(),
            SecretFacts::Foreign(Foreign::Label)
        ));
    }
}
