//! The store of all pull secrets: a metadata watch fills it, and our own writes do at once.
//!
//! The store holds the state annotation and no credential. A state with a good seal that is newer
//! than the last one known was written by one of our replicas, and is believed. Whatever else a
//! watch brings is unverified until this replica has read the whole Secret once.

mod entry;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard},
    time::Duration,
};

use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, runtime::watcher::Event};
use tokio::time::Instant;

pub use self::entry::Entry;
use super::{Existing, Foreign, Observed, Unverified, seal::StateKeys, state::State, state_of};
use crate::{
    cluster::{
        changes::Changes,
        namespace::Namespace,
        object::Metadata,
        ownership::is_managed,
        watch::{Lists, version, watch},
    },
    process::{clock::Clock, readiness::Condition},
    pull_secret::metrics::PullSecretMetrics,
    registry::Host,
};

/// How long the state of a deleted Secret is remembered at the least: any leader has recreated the
/// Secret by then.
const REMEMBER_DELETED: Duration = Duration::from_mins(10);
/// The most hosts that states share. A cluster has some dozens; whoever may write pull secrets can
/// invent more.
const MAX_SHARED_HOSTS: usize = 4096;

/// The deletion of a pull secret.
struct Deletion {
    at: Instant,
    namespace: Namespace,
    /// The version of the entry that records the deletion.
    version: u64,
}

/// Returns the UID of a namespace that is known to be opted in.
pub type NamespaceUids = Arc<dyn Fn(&Namespace) -> Option<Arc<str>> + Send + Sync>;

/// The pull secrets of the cluster; clones share them.
#[derive(Clone)]
pub struct PullSecrets(Arc<Inner>);

struct Inner {
    entries: RwLock<HashMap<Namespace, Arc<Entry>>>,
    /// The oldest first.
    deletions: Mutex<VecDeque<Deletion>>,
    /// The hosts that the states name, each once: ten thousand namespaces name the same few.
    hosts: Mutex<HashSet<Host>>,
    keys: StateKeys,
    uids: NamespaceUids,
    clock: Arc<dyn Clock>,
    changes: Changes,
    metrics: Arc<PullSecretMetrics>,
}

impl PullSecrets {
    /// Creates an empty store, whose states are proven by these keys.
    #[must_use]
    pub fn new(
        keys: StateKeys,
        uids: NamespaceUids,
        clock: Arc<dyn Clock>,
        changes: Changes,
        metrics: Arc<PullSecretMetrics>,
    ) -> Self {
        Self(Arc::new(Inner {
            entries: RwLock::default(),
            deletions: Mutex::default(),
            hosts: Mutex::default(),
            keys,
            uids,
            clock,
            changes,
            metrics,
        }))
    }

    /// Returns the keys that prove and seal states.
    #[must_use]
    pub fn keys(&self) -> &StateKeys {
        &self.0.keys
    }

    /// Returns the entry of a namespace's pull secret; `None` if no such Secret is known.
    #[must_use]
    pub fn get(&self, namespace: &Namespace) -> Option<Arc<Entry>> {
        self.0
            .entries
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(namespace)
            .cloned()
    }

    /// Returns the namespaces that have an entry.
    #[must_use]
    pub fn names(&self) -> Vec<Namespace> {
        let entries = self.0.entries.read();
        entries
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .cloned()
            .collect()
    }

    /// Returns all entries. Under the lock only references are counted, because admissions wait for
    /// the lock.
    #[must_use]
    pub fn all(&self) -> Vec<(Namespace, Arc<Entry>)> {
        let entries = self.0.entries.read();
        entries
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(namespace, entry)| (namespace.clone(), entry.clone()))
            .collect()
    }

    /// Records a Secret that was read whole just now. `known` is the version that was known when
    /// the read began: the API server answers a read from what was stored last, so an older version
    /// means that the cluster was restored from a backup.
    pub fn record_read(
        &self,
        namespace: &Namespace,
        uid: &str,
        secret: &Secret,
        known: Option<u64>,
    ) {
        self.record_whole(namespace, uid, secret, known);
    }

    /// Records a Secret as the API server returned it from our write.
    pub fn record_write(&self, namespace: &Namespace, uid: &str, secret: &Secret) {
        self.record_whole(namespace, uid, secret, None);
    }

    fn record_whole(
        &self,
        namespace: &Namespace,
        uid: &str,
        secret: &Secret,
        expected: Option<u64>,
    ) {
        let version = version(&secret.metadata);
        let read = Existing::read(secret, |state| {
            self.0.keys.prove(namespace, uid, &secret.metadata, state)
        });
        let read = read.map(|existing| Existing {
            state: existing.state.map(|state| self.share_hosts(state)),
            claims: existing.claims.map(|state| self.share_hosts(state)),
            ..existing
        });
        let mut entries = self.entries();
        let known = entries.get(namespace);
        // A read of the known version may show more; one of an older version is outdated, unless
        // the Secret was at that version when the read began.
        let is_old = known.is_some_and(|known| known.version() > version);
        if is_old && known.map(|known| known.version()) != expected {
            return;
        }
        let before = known.and_then(|known| known.observed().remembered());
        let observed = match read {
            Err(why) => Observed::Foreign(why),
            Ok(Existing {
                state: Some(state), ..
            }) if !is_reverted(&state, before) => Observed::Managed(state),
            Ok(existing) => Observed::Unverified {
                is_proven: existing.state.is_some(),
                claims: existing
                    .claims
                    .or_else(|| State::from_wanted_hosts(&existing.claimed, self.0.clock.now())),
                before: before.cloned().map(Box::new),
                since: Unverified::Tampered,
            },
        };
        let entry = Entry::from_metadata(&secret.metadata, version, observed);
        self.insert(&mut entries, namespace, entry);
        drop(entries);
        self.0.changes.notify(namespace);
    }

    /// Records that there is no such Secret.
    pub fn record_absent(&self, namespace: &Namespace) {
        self.mark_deleted(namespace, u64::MAX);
    }

    /// Forgets a namespace that no longer exists.
    pub fn forget_namespace(&self, namespace: &Namespace) {
        let removed = self.entries().remove(namespace);
        if removed.is_some_and(|known| known.is_there()) {
            self.0.metrics.pull_secrets.dec();
        }
    }

    /// Keeps the store filled until the future is dropped, with the pull secrets of one namespace or
    /// of all.
    pub async fn run(
        &self,
        client: Client,
        (namespace, secret_name): (Option<&Namespace>, &str),
        lists: Lists,
        synced: Condition,
    ) {
        let api: Api<Metadata<Secret>> = match namespace {
            Some(namespace) => Api::namespaced(client, namespace.as_str()),
            None => Api::all(client),
        };
        // The only list and watch that our role permits: of this one name.
        let config = lists
            .config()
            .fields(&format!("metadata.name={secret_name}"));
        let mut list = List::default();
        watch("pull secrets", api, config, |event| match event {
            Event::Init => {
                list = self.begin_list();
                list.known
                    .retain(|it, _| namespace.is_none_or(|only| only == it));
            }
            Event::InitApply(object) => self.listed(&object.metadata, &mut list),
            Event::InitDone => {
                self.end_list(&std::mem::take(&mut list));
                synced.hold();
            }
            Event::Apply(object) => self.changed(&object.metadata),
            Event::Delete(object) => self.deleted(&object.metadata),
        })
        .await;
    }

    /// Begins to record a list of all pull secrets.
    #[must_use]
    pub fn begin_list(&self) -> List {
        let entries = self.entries();
        List {
            known: entries
                .iter()
                .map(|(namespace, entry)| (namespace.clone(), entry.version()))
                .collect(),
            listed: HashSet::new(),
        }
    }

    /// Records one object of a list. A version below the one that was known when the list began,
    /// and that nothing has changed since, means that the cluster was restored from a backup: the
    /// list shows the current version.
    pub fn listed(&self, metadata: &ObjectMeta, list: &mut List) {
        let Some(namespace) = namespace_of(metadata) else {
            return;
        };
        let expected = list.known.get(&namespace).copied();
        self.record_metadata(&namespace, metadata, Unverified::Listed, expected);
        list.listed.insert(namespace);
    }

    /// Ends a list: a Secret that was known before the list began, is not in it, and has not
    /// changed since, is gone.
    pub fn end_list(&self, list: &List) {
        let unlisted: Vec<Namespace> = self
            .entries()
            .iter()
            .filter(|(namespace, entry)| {
                !list.listed.contains(*namespace)
                    && list.known.get(*namespace) == Some(&entry.version())
            })
            .map(|(namespace, _)| namespace.clone())
            .collect();
        for namespace in unlisted {
            self.mark_deleted(&namespace, u64::MAX);
        }
    }

    /// Records that a Secret was created or changed.
    pub fn changed(&self, metadata: &ObjectMeta) {
        if let Some(namespace) = namespace_of(metadata) {
            self.record_metadata(&namespace, metadata, Unverified::Changed, None);
        }
    }

    /// Records that a Secret was deleted.
    pub fn deleted(&self, metadata: &ObjectMeta) {
        if let Some(namespace) = namespace_of(metadata) {
            // The event carries the version of the deletion; a newer entry was created after it.
            self.mark_deleted(&namespace, version(metadata));
        }
    }

    fn record_metadata(
        &self,
        namespace: &Namespace,
        metadata: &ObjectMeta,
        since: Unverified,
        expected: Option<u64>,
    ) {
        let version = version(metadata);
        let known = self.get(namespace);
        // Most often the watch event of our own write.
        if known.is_some_and(|known| known.version() == version && known.is_there()) {
            return;
        }
        let claims = state_of(metadata).map(|state| self.share_hosts(state));
        // Proven outside of the lock, because admissions wait for the lock.
        let is_proven = claims.as_ref().is_some_and(|state| {
            (self.0.uids)(namespace)
                .is_some_and(|uid| self.0.keys.prove(namespace, &uid, metadata, state))
        });
        let mut entries = self.entries();
        let known = entries.get(namespace);
        // A Secret of the version that a list lacked exists if an event reports it now: a watch may
        // begin with old events.
        let is_new = |known: &Arc<Entry>| {
            known.version() < version
                || (known.version() == version && !known.is_there())
                || (known.version() > version && Some(known.version()) == expected)
        };
        if !known.is_none_or(is_new) {
            return;
        }
        let known = known.map(|known| known.observed());
        let observed = match claims {
            _ if !is_managed(metadata) => Observed::Foreign(Foreign::Label),
            Some(state)
                if is_proven
                    && since == Unverified::Changed
                    && known.and_then(Observed::revision) < Some(state.revision) =>
            {
                Observed::Managed(state)
            }
            claims => Observed::Unverified {
                is_proven,
                before: known.and_then(Observed::remembered).cloned().map(Box::new),
                claims,
                since,
            },
        };
        let entry = Entry::from_metadata(metadata, version, observed);
        self.insert(&mut entries, namespace, entry);
        drop(entries);
        self.0.changes.notify(namespace);
    }

    /// Marks the Secret as deleted, at this version at the latest; its state is remembered, so that
    /// the Secret can be recreated.
    fn mark_deleted(&self, namespace: &Namespace, version: u64) {
        let mut entries = self.entries();
        let Some(known) = entries.get(namespace) else {
            return;
        };
        if known.version() > version || !known.is_there() {
            return;
        }
        // A response that was under way when the Secret was deleted is older than the deletion.
        let version = match version {
            u64::MAX => known.version(),
            deleted => deleted,
        };
        let state = known.observed().remembered().cloned();
        let deleted = Entry::new(version, "", Observed::Deleted(state));
        self.insert(&mut entries, namespace, deleted);
        let mut deletions = self
            .0
            .deletions
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while deletions
            .front()
            .is_some_and(|deletion| deletion.at.elapsed() > REMEMBER_DELETED)
        {
            let Some(oldest) = deletions.pop_front() else {
                break;
            };
            // The Secret may exist again, or be deleted again.
            let is_same =
                |known: &Arc<Entry>| !known.is_there() && known.version() == oldest.version;
            if entries.get(&oldest.namespace).is_some_and(is_same) {
                entries.remove(&oldest.namespace);
            }
        }
        deletions.push_back(Deletion {
            at: Instant::now(),
            namespace: namespace.clone(),
            version,
        });
        drop(deletions);
        drop(entries);
        self.0.changes.notify(namespace);
    }

    /// Returns the state with hosts that it shares with other states.
    fn share_hosts(&self, mut state: State) -> State {
        let hosts = self.0.hosts.lock();
        let mut hosts = hosts.unwrap_or_else(PoisonError::into_inner);
        state.hosts.share(|host| {
            if let Some(known) = hosts.get(host) {
                return known.clone();
            }
            if hosts.len() >= MAX_SHARED_HOSTS {
                hosts.clear();
            }
            hosts.insert(host.clone());
            host.clone()
        });
        state
    }

    fn insert(
        &self,
        entries: &mut HashMap<Namespace, Arc<Entry>>,
        namespace: &Namespace,
        entry: Entry,
    ) {
        let is_there = entry.is_there();
        let before = entries.insert(namespace.clone(), Arc::new(entry));
        match (before.is_some_and(|before| before.is_there()), is_there) {
            (false, true) => self.0.metrics.pull_secrets.inc(),
            (true, false) => self.0.metrics.pull_secrets.dec(),
            _ => 0,
        };
    }

    fn entries(&self) -> RwLockWriteGuard<'_, HashMap<Namespace, Arc<Entry>>> {
        self.0
            .entries
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A list in progress: the versions that were known when it began, and the namespaces so far.
#[derive(Debug, Default)]
pub struct List {
    known: HashMap<Namespace, u64>,
    listed: HashSet<Namespace>,
}

fn namespace_of(metadata: &ObjectMeta) -> Option<Namespace> {
    Namespace::parse(metadata.namespace.as_deref()?)
}

/// Returns whether another client replaced a newer state of ours by an older one.
fn is_reverted(state: &State, before: Option<&State>) -> bool {
    before.is_some_and(|before| before.revision > state.revision)
}

#[cfg(test)]
mod tests;
