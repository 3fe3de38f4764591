//! What is known of every pull secret: a metadata watch fills the store, our own writes do at once.
//!
//! It holds the state annotation and no credential. A state with a good seal that is newer than the last one known was
//! written by one of our replicas, and is believed. Whatever else a watch brings is unverified until somebody has read the
//! whole Secret once.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard},
    time::Duration,
};

use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, runtime::watcher::Event};
use tokio::time::Instant;

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
    pull_secret::{SecretFacts, metrics::PullSecretMetrics},
    registry::Host,
};

/// How long what a deleted Secret had is remembered at the least: any leader has made it again by then.
const REMEMBER_LOST: Duration = Duration::from_mins(10);
/// The most hosts that states share. A cluster has some dozens; whoever may write pull secrets can invent more.
const MAX_SHARED_HOSTS: usize = 4096;

/// What is known of one pull secret, and of which version of it.
#[derive(Debug)]
pub struct Entry {
    version: u64,
    uid: Box<str>,
    observed: Observed,
}

impl Entry {
    /// What is known of one version of a pull secret.
    #[must_use]
    pub fn new(version: u64, uid: &str, observed: Observed) -> Self {
        Self {
            version,
            uid: uid.into(),
            observed,
        }
    }

    /// Returns the facts for a decision.
    #[must_use]
    pub fn facts(&self) -> SecretFacts<'_> {
        match &self.observed {
            Observed::Managed(state) => SecretFacts::Ours(state),
            Observed::Foreign(why) => SecretFacts::Foreign(*why),
            Observed::Unverified { .. } => SecretFacts::Unverified,
            Observed::Deleted(_) => SecretFacts::Absent,
        }
    }

    /// Returns all that is known.
    #[must_use]
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Returns the version of which it is known.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns the state, if it is ours and intact.
    #[must_use]
    pub fn state(&self) -> Option<&State> {
        match &self.observed {
            Observed::Managed(state) => Some(state),
            _ => None,
        }
    }

    /// Returns what a write can be merged with, if all that it would take from the Secret is known.
    #[must_use]
    pub fn existing(&self) -> Option<Existing> {
        Some(Existing::known(&self.uid, self.version, self.state()?))
    }

    /// Returns whether somebody else wrote it, or it was only listed, and nobody here has read it since.
    #[must_use]
    pub fn is_unread(&self) -> bool {
        matches!(
            self.observed,
            Observed::Unverified {
                since: Unverified::Listed | Unverified::Changed,
                ..
            }
        )
    }

    /// Returns whether there is such a Secret at all.
    #[must_use]
    pub fn is_there(&self) -> bool {
        !matches!(self.observed, Observed::Deleted(_))
    }
}

/// That a pull secret was deleted.
struct Loss {
    at: Instant,
    namespace: Namespace,
    /// That of the entry that says so.
    version: u64,
}

/// Returns the UID of a namespace that is known to be opted in.
pub type NamespaceUids = Arc<dyn Fn(&Namespace) -> Option<Arc<str>> + Send + Sync>;

/// The pull secrets of the cluster; clones share them.
#[derive(Clone)]
pub struct PullSecrets(Arc<Inner>);

struct Inner {
    entries: RwLock<HashMap<Namespace, Arc<Entry>>>,
    /// What was lost, the oldest first.
    lost: Mutex<VecDeque<Loss>>,
    /// Those that the states name, each once: ten thousand namespaces name the same few.
    hosts: Mutex<HashSet<Host>>,
    keys: StateKeys,
    uids: NamespaceUids,
    clock: Arc<dyn Clock>,
    changes: Changes,
    metrics: Arc<PullSecretMetrics>,
}

impl PullSecrets {
    /// An empty store, whose states are proven by these keys.
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
            lost: Mutex::default(),
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

    /// Returns what is known of a namespace's pull secret; `None` if there is none as far as is known.
    #[must_use]
    pub fn get(&self, namespace: &Namespace) -> Option<Arc<Entry>> {
        self.0
            .entries
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(namespace)
            .cloned()
    }

    /// Returns the namespaces of which something is known.
    #[must_use]
    pub fn names(&self) -> Vec<Namespace> {
        let entries = self.0.entries.read();
        entries
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .cloned()
            .collect()
    }

    /// Returns all that is known now. Under the lock nothing is done but count references: admissions wait for it.
    #[must_use]
    pub fn all(&self) -> Vec<(Namespace, Arc<Entry>)> {
        let entries = self.0.entries.read();
        entries
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(namespace, entry)| (namespace.clone(), entry.clone()))
            .collect()
    }

    /// Takes a Secret that was read whole just now. `known` is the version that was known when the read began: the API server
    /// answers a read from what was stored last, so an older one means that the cluster was restored from a backup.
    pub fn read(&self, namespace: &Namespace, uid: &str, secret: &Secret, known: Option<u64>) {
        self.take(namespace, uid, secret, known);
    }

    /// Takes a Secret as the API server answered our write.
    pub fn wrote(&self, namespace: &Namespace, uid: &str, secret: &Secret) {
        self.take(namespace, uid, secret, None);
    }

    fn take(&self, namespace: &Namespace, uid: &str, secret: &Secret, asked: Option<u64>) {
        let version = version(&secret.metadata);
        let read = Existing::read(secret, |state| {
            self.0.keys.prove(namespace, uid, &secret.metadata, state)
        });
        let read = read.map(|existing| Existing {
            state: existing.state.map(|state| self.shared(state)),
            claims: existing.claims.map(|state| self.shared(state)),
            ..existing
        });
        let mut entries = self.entries();
        let known = entries.get(namespace);
        // A read of the version that is known already may tell more; one of an older version tells less, unless that is what
        // there is now.
        let is_old = known.is_some_and(|known| known.version > version);
        if is_old && known.map(|known| known.version) != asked {
            return;
        }
        let before = known.and_then(|known| known.observed.remembered());
        let observed = match read {
            Err(why) => Observed::Foreign(why),
            Ok(Existing {
                state: Some(state), ..
            }) if !is_reverted(&state, before) => Observed::Managed(state),
            Ok(existing) => Observed::Unverified {
                is_proven: existing.state.is_some(),
                claims: existing
                    .claims
                    .or_else(|| State::of_wishes(&existing.claimed, self.0.clock.now())),
                before: before.cloned().map(Box::new),
                since: Unverified::Tampered,
            },
        };
        let entry = entry(&secret.metadata, version, observed);
        self.put(&mut entries, namespace, entry);
        drop(entries);
        self.0.changes.notify(namespace);
    }

    /// Takes the news that there is none.
    pub fn saw_none(&self, namespace: &Namespace) {
        self.lose(namespace, u64::MAX);
    }

    /// Forgets a namespace that is no more.
    pub fn forget_namespace(&self, namespace: &Namespace) {
        let removed = self.entries().remove(namespace);
        if removed.is_some_and(|known| known.is_there()) {
            self.0.metrics.pull_secrets.dec();
        }
    }

    /// Keeps the store filled until the future is dropped.
    pub async fn run(&self, client: Client, secret_name: &str, lists: Lists, synced: Condition) {
        let api: Api<Metadata<Secret>> = Api::all(client);
        // The only list and watch that our role permits: of this one name.
        let config = lists
            .config()
            .fields(&format!("metadata.name={secret_name}"));
        let mut list = List::default();
        watch("pull secrets", api, config, |event| match event {
            Event::Init => list = self.begin_list(),
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

    /// Begins to take a list of all that there is.
    #[must_use]
    pub fn begin_list(&self) -> List {
        let entries = self.entries();
        List {
            known: entries
                .iter()
                .map(|(namespace, entry)| (namespace.clone(), entry.version))
                .collect(),
            listed: HashSet::new(),
        }
    }

    /// Takes one object of a list. A version below the one that was known when the list began, and that nothing has changed
    /// since, means that the cluster was restored from a backup: what is listed is what there is.
    pub fn listed(&self, metadata: &ObjectMeta, list: &mut List) {
        let Some(namespace) = namespace_of(metadata) else {
            return;
        };
        let asked = list.known.get(&namespace).copied();
        self.learn(&namespace, metadata, Unverified::Listed, asked);
        list.listed.insert(namespace);
    }

    /// Ends a list: what was known before it began, is not in it, and has not changed since, is gone.
    pub fn end_list(&self, list: &List) {
        let unlisted: Vec<Namespace> = self
            .entries()
            .iter()
            .filter(|(namespace, entry)| {
                !list.listed.contains(*namespace)
                    && list.known.get(*namespace) == Some(&entry.version)
            })
            .map(|(namespace, _)| namespace.clone())
            .collect();
        for namespace in unlisted {
            self.lose(&namespace, u64::MAX);
        }
    }

    /// Takes the news that a Secret was created or changed.
    pub fn changed(&self, metadata: &ObjectMeta) {
        if let Some(namespace) = namespace_of(metadata) {
            self.learn(&namespace, metadata, Unverified::Changed, None);
        }
    }

    /// Takes the news that a Secret was deleted.
    pub fn deleted(&self, metadata: &ObjectMeta) {
        if let Some(namespace) = namespace_of(metadata) {
            // A deletion carries the version at which it happened; an entry that is newer was made after it.
            self.lose(&namespace, version(metadata));
        }
    }

    fn learn(
        &self,
        namespace: &Namespace,
        metadata: &ObjectMeta,
        since: Unverified,
        asked: Option<u64>,
    ) {
        let version = version(metadata);
        let known = self.get(namespace);
        // Most often the news of our own write.
        if known.is_some_and(|known| known.version == version && known.is_there()) {
            return;
        }
        let claims = state_of(metadata).map(|state| self.shared(state));
        // Proven outside of the lock: admissions wait for it.
        let is_proven = claims.as_ref().is_some_and(|state| {
            (self.0.uids)(namespace)
                .is_some_and(|uid| self.0.keys.prove(namespace, &uid, metadata, state))
        });
        let mut entries = self.entries();
        let known = entries.get(namespace);
        // One that was missing from what there is was missed there if it is told of now: a stream may begin with old news.
        let is_news = |known: &Arc<Entry>| {
            known.version < version
                || (known.version == version && !known.is_there())
                || (known.version > version && Some(known.version) == asked)
        };
        if !known.is_none_or(is_news) {
            return;
        }
        let known = known.map(|known| &known.observed);
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
        let entry = entry(metadata, version, observed);
        self.put(&mut entries, namespace, entry);
        drop(entries);
        self.0.changes.notify(namespace);
    }

    /// The Secret is gone, at this version at the latest; what it had is remembered, so that it can be made again.
    fn lose(&self, namespace: &Namespace, version: u64) {
        let mut entries = self.entries();
        let Some(known) = entries.get(namespace) else {
            return;
        };
        if known.version > version || !known.is_there() {
            return;
        }
        // An answer that was on its way when it was deleted is older than that.
        let version = match version {
            u64::MAX => known.version,
            deleted => deleted,
        };
        let gone = Entry {
            version,
            uid: Box::default(),
            observed: Observed::Deleted(known.observed.remembered().cloned()),
        };
        self.put(&mut entries, namespace, gone);
        let mut lost = self.0.lost.lock().unwrap_or_else(PoisonError::into_inner);
        while lost
            .front()
            .is_some_and(|loss| loss.at.elapsed() > REMEMBER_LOST)
        {
            let Some(long_ago) = lost.pop_front() else {
                break;
            };
            // It may be there again, or lost again.
            let is_that =
                |known: &Arc<Entry>| !known.is_there() && known.version == long_ago.version;
            if entries.get(&long_ago.namespace).is_some_and(is_that) {
                entries.remove(&long_ago.namespace);
            }
        }
        lost.push_back(Loss {
            at: Instant::now(),
            namespace: namespace.clone(),
            version,
        });
        drop(lost);
        drop(entries);
        self.0.changes.notify(namespace);
    }

    /// Returns the state with hosts that it shares with others.
    fn shared(&self, mut state: State) -> State {
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

    fn put(
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

/// A list under way: what was known when it began, and what it has brought so far.
#[derive(Debug, Default)]
pub struct List {
    known: HashMap<Namespace, u64>,
    listed: HashSet<Namespace>,
}

fn namespace_of(metadata: &ObjectMeta) -> Option<Namespace> {
    Namespace::parse(metadata.namespace.as_deref()?)
}

fn entry(metadata: &ObjectMeta, version: u64, observed: Observed) -> Entry {
    Entry {
        version,
        uid: metadata.uid.as_deref().unwrap_or_default().into(),
        observed,
    }
}

/// Returns whether somebody put an older state of ours in the place of a newer one.
fn is_reverted(state: &State, before: Option<&State>) -> bool {
    before.is_some_and(|before| before.revision > state.revision)
}

#[cfg(test)]
mod tests;
