//! What we know of every pull secret: a metadata watch fills the store, our own writes do at once.
//!
//! It holds the state annotation and no credential. Metadata show neither type nor data, so what a watch brings is
//! unverified until somebody has looked at the whole Secret once; what we wrote ourselves needs no look.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError, RwLock, RwLockWriteGuard},
    time::Duration,
};

use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, runtime::watcher::Event};
use tokio::time::Instant;

use super::{Existing, Foreign, Knowledge, Unverified, is_managed, state::State, state_of};
use crate::{
    admission::decide::SecretFacts,
    cluster::{
        object::Metadata,
        watch::{Lists, version, watch},
    },
    metrics::Metrics,
    namespace::{Namespace, changes::Changes},
    readiness::Condition,
};

/// How long what a deleted Secret had is remembered at the least: any leader has made it again by then.
const REMEMBER_LOST: Duration = Duration::from_mins(10);

/// What we know of one pull secret, and of which version of it.
#[derive(Debug)]
pub struct Entry {
    version: u64,
    uid: Box<str>,
    knowledge: Knowledge,
}

impl Entry {
    /// What is known of one version of a pull secret.
    #[must_use]
    pub fn new(version: u64, uid: &str, knowledge: Knowledge) -> Self {
        Self {
            version,
            uid: uid.into(),
            knowledge,
        }
    }

    /// The facts for a decision.
    #[must_use]
    pub fn facts(&self) -> SecretFacts<'_> {
        match &self.knowledge {
            Knowledge::Ours(state) => SecretFacts::Ours(state),
            Knowledge::Foreign(why) => SecretFacts::Foreign(*why),
            Knowledge::Unverified { .. } => SecretFacts::Unverified,
            Knowledge::Gone(_) => SecretFacts::Absent,
        }
    }

    /// All of it.
    #[must_use]
    pub fn knowledge(&self) -> &Knowledge {
        &self.knowledge
    }

    /// Of which version it is known.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The state, if it is ours and intact.
    #[must_use]
    pub fn state(&self) -> Option<&State> {
        match &self.knowledge {
            Knowledge::Ours(state) => Some(state),
            _ => None,
        }
    }

    /// What a write can be merged with, if all that it would take from the Secret is known.
    #[must_use]
    pub fn existing(&self) -> Option<Existing> {
        Some(Existing::known(&self.uid, self.version, self.state()?))
    }

    /// Whether we looked, and somebody else had changed it.
    #[must_use]
    pub fn is_tampered(&self) -> bool {
        matches!(
            self.knowledge,
            Knowledge::Unverified {
                since: Unverified::Tampered,
                ..
            }
        )
    }

    /// Whether somebody else wrote it, and nobody here has looked since.
    #[must_use]
    pub fn is_news(&self) -> bool {
        matches!(self.knowledge, Knowledge::Unverified { .. }) && !self.is_tampered()
    }

    /// Whether there is such a Secret at all.
    #[must_use]
    pub fn is_there(&self) -> bool {
        !matches!(self.knowledge, Knowledge::Gone(_))
    }
}

/// That a pull secret was deleted.
struct Loss {
    at: Instant,
    namespace: Namespace,
    /// That of the entry that says so.
    version: u64,
}

/// The pull secrets of the cluster; clones share them.
#[derive(Clone)]
pub struct PullSecrets(Arc<Inner>);

struct Inner {
    entries: RwLock<HashMap<Namespace, Arc<Entry>>>,
    /// What was lost, the oldest first.
    lost: Mutex<VecDeque<Loss>>,
    changes: Changes,
    metrics: Arc<Metrics>,
}

impl PullSecrets {
    /// An empty store.
    #[must_use]
    pub fn new(changes: Changes, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            entries: RwLock::default(),
            lost: Mutex::default(),
            changes,
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

    /// The namespaces of which something is known.
    #[must_use]
    pub fn names(&self) -> Vec<Namespace> {
        let entries = self.0.entries.read();
        entries
            .unwrap_or_else(PoisonError::into_inner)
            .keys()
            .cloned()
            .collect()
    }

    /// All that is known now. Under the lock nothing is done but count references: admissions wait for it.
    #[must_use]
    pub fn all(&self) -> Vec<(Namespace, Arc<Entry>)> {
        let entries = self.0.entries.read();
        entries
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(namespace, entry)| (namespace.clone(), entry.clone()))
            .collect()
    }

    /// Takes a Secret that was read or written whole just now.
    pub fn saw(&self, namespace: &Namespace, secret: &Secret) {
        let version = version(&secret.metadata);
        let mut entries = self.entries();
        let known = entries.get(namespace);
        // A look at the version that is known already may tell more; one at an older version tells less.
        if known.is_some_and(|known| known.version > version) {
            return;
        }
        let knowledge = match Existing::read(secret) {
            Err(why) => Knowledge::Foreign(why),
            Ok(existing) => {
                let before = known.and_then(|known| known.knowledge.before());
                match existing.state {
                    Some(state) if !before.is_some_and(|before| contradicts(&state, before)) => {
                        Knowledge::Ours(state)
                    }
                    _ => Knowledge::Unverified {
                        claims: state_of(&secret.metadata)
                            .or_else(|| State::of_intents(&existing.claimed)),
                        before: before.cloned().map(Box::new),
                        since: Unverified::Tampered,
                    },
                }
            }
        };
        let entry = entry(&secret.metadata, version, knowledge);
        self.put(&mut entries, namespace, entry);
        drop(entries);
        self.0.changes.tell(namespace);
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
            Event::Init => {
                list = List {
                    known: self.versions(),
                    listed: HashSet::new(),
                }
            }
            Event::InitApply(object) => {
                let since = Unverified::Listed;
                list.listed.extend(self.learn(&object.metadata, since));
            }
            Event::InitDone => {
                self.forget_unlisted(&std::mem::take(&mut list));
                synced.hold();
            }
            Event::Apply(object) => {
                // While another replica leads, most writes are its own: no news to whoever leads next.
                let since = if self.0.changes.are_heard() {
                    Unverified::Changed
                } else {
                    Unverified::Listed
                };
                self.learn(&object.metadata, since);
            }
            Event::Delete(object) => self.forget(&object.metadata),
        })
        .await;
    }

    fn learn(&self, metadata: &ObjectMeta, since: Unverified) -> Option<Namespace> {
        let namespace = Namespace::parse(metadata.namespace.as_deref()?)?;
        let version = version(metadata);
        let mut entries = self.entries();
        let known = entries.get(&namespace);
        // One that was missing from what there is was missed there if it is told of now: a stream may begin with old news.
        let is_news = |known: &Arc<Entry>| {
            known.version < version || (known.version == version && !known.is_there())
        };
        if known.is_none_or(is_news) {
            let knowledge = if is_managed(metadata) {
                let claims = state_of(metadata);
                let known = known.map(|known| known.knowledge());
                // One that says nothing any more is not to be forgotten for that.
                let before = match claims {
                    Some(_) => known.and_then(Knowledge::before),
                    None => known.and_then(Knowledge::remembered),
                };
                Knowledge::Unverified {
                    before: before.cloned().map(Box::new),
                    claims,
                    since,
                }
            } else {
                Knowledge::Foreign(Foreign::Label)
            };
            let entry = entry(metadata, version, knowledge);
            self.put(&mut entries, &namespace, entry);
            drop(entries);
            self.0.changes.tell(&namespace);
        }
        Some(namespace)
    }

    fn forget(&self, metadata: &ObjectMeta) {
        if let Some(namespace) = metadata.namespace.as_deref().and_then(Namespace::parse) {
            // A deletion carries the version at which it happened; an entry that is newer was made after it.
            self.lose(&namespace, version(metadata));
        }
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
            knowledge: Knowledge::Gone(known.knowledge.remembered().cloned()),
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
        self.0.changes.tell(namespace);
    }

    /// After a list: what was known before it began, is not in it, and has not changed since, is gone.
    fn forget_unlisted(&self, list: &List) {
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

fn entry(metadata: &ObjectMeta, version: u64, knowledge: Knowledge) -> Entry {
    Entry {
        version,
        uid: metadata.uid.as_deref().unwrap_or_default().into(),
        knowledge,
    }
}

/// Whether a state says other things of the same data than one that we know to be true: somebody edited it.
fn contradicts(state: &State, before: &State) -> bool {
    state.digest == before.digest
        && before.hosts.iter().any(|(host, entry)| {
            let now = state.hosts.get(host);
            entry.lifetime.is_some() && now.is_some_and(|now| now != entry)
        })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::{
        identity::Identity,
        pull_secret::{MANAGED_BY, MANAGED_BY_LABEL, PullSecret, Terms, Want},
        registry::Host,
        token::Lifetime,
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
            Terms::Add,
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
        PullSecrets::new(Changes::default(), Arc::default())
    }

    fn is_verified(store: &PullSecrets) -> Option<bool> {
        store
            .get(&namespace())
            .filter(|entry| entry.is_there())
            .map(|entry| matches!(entry.facts(), SecretFacts::Ours(_)))
    }

    #[test]
    fn an_old_event_never_replaces_what_we_wrote_ourselves() {
        let store = store();
        store.saw(&namespace(), &secret(7));
        for old in [3, 7] {
            store.learn(&metadata(old), Unverified::Changed);
            assert_eq!(is_verified(&store), Some(true), "version {old}");
        }
        store.learn(&metadata(8), Unverified::Changed);
        assert_eq!(
            is_verified(&store),
            Some(false),
            "somebody else's write has to be looked at"
        );
        store.saw(&namespace(), &secret(8));
        assert_eq!(is_verified(&store), Some(true));
    }

    fn remembered(store: &PullSecrets) -> Option<usize> {
        let entry = store.get(&namespace())?;
        let Knowledge::Gone(state) = entry.knowledge() else {
            return None;
        };
        state.as_ref().map(|state| state.hosts.iter().count())
    }

    #[test]
    fn what_was_only_listed_is_remembered_when_it_is_deleted() {
        let store = store();
        let listed = |version: u64| secret(version).metadata;
        for since in [Unverified::Listed, Unverified::Changed] {
            store.learn(&listed(7), since);
            store.forget(&metadata(8));
            assert_eq!(remembered(&store), Some(1), "{since:?}");
            store.forget_namespace(&namespace());
        }
        // Its annotation is taken away, and then it is deleted.
        store.learn(&listed(7), Unverified::Listed);
        store.learn(&metadata(8), Unverified::Changed);
        store.forget(&metadata(9));
        assert_eq!(remembered(&store), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_loss_is_remembered_though_the_first_is_long_ago() {
        let store = store();
        store.saw(&namespace(), &secret(7));
        store.forget(&metadata(8));
        store.saw(&namespace(), &secret(9));
        tokio::time::advance(REMEMBER_LOST + Duration::from_secs(1)).await;
        store.forget(&metadata(10));
        assert_eq!(remembered(&store), Some(1));
        // Once it is long ago itself, another loss ends it.
        tokio::time::advance(REMEMBER_LOST + Duration::from_secs(1)).await;
        let other = Namespace::parse("other").expect("valid");
        store.saw(&other, &secret(11));
        store.saw_none(&other);
        assert!(store.get(&namespace()).is_none() && store.get(&other).is_some());
    }

    #[test]
    fn an_answer_from_before_the_deletion_brings_nothing_back() {
        let store = store();
        store.saw(&namespace(), &secret(7));
        store.forget(&metadata(8));
        store.saw(&namespace(), &secret(7));
        assert_eq!(is_verified(&store), None);
        store.saw(&namespace(), &secret(9));
        assert_eq!(is_verified(&store), Some(true));
    }

    #[test]
    fn one_that_old_news_left_out_is_there_again_when_it_is_told_of() {
        let store = store();
        store.saw(&namespace(), &secret(100));
        // A stream that begins with the state of version 90 doesn't have it.
        store.lose(&namespace(), u64::MAX);
        assert_eq!(is_verified(&store), None);
        store.learn(&secret(100).metadata, Unverified::Changed);
        assert_eq!(is_verified(&store), Some(false));
        // But one whose deletion was told of is not brought back by what was before.
        store.forget(&metadata(101));
        store.learn(&secret(100).metadata, Unverified::Changed);
        assert_eq!(is_verified(&store), None);
    }

    #[test]
    fn a_secret_whose_state_can_t_be_read_is_known_by_the_hosts_in_its_data() {
        let store = store();
        let mut bare = secret(7);
        let config = r#"{"auths": {"123456789012.dkr.ecr.eu-west-1.amazonaws.com": {}, "https://x/v1/": {}}}"#;
        bare.data = Some(BTreeMap::from([(
            ".dockerconfigjson".to_owned(),
            k8s_openapi::ByteString(config.into()),
        )]));
        bare.metadata.annotations = None;
        store.saw(&namespace(), &bare);
        let entry = store.get(&namespace()).expect("known");
        let claims = entry.knowledge().claims().expect("hosts");
        assert_eq!(claims.hosts.iter().count(), 1);
        assert!(entry.is_tampered());
    }

    #[test]
    fn edited_dates_over_the_same_data_are_seen_and_a_deleted_secret_is_not_counted() {
        let store = store();
        let counted = || store.0.metrics.pull_secrets.get();
        let mut good = secret(7);
        let state = |secret: &Secret| state_of(&secret.metadata).expect("a state");
        let mut dated = state(&good);
        let (host, entry) = dated.hosts.iter().next().expect("a host");
        let (host, mut entry) = (host.clone(), entry.clone());
        let set = |secret: &mut Secret, state: &State| {
            let annotations = secret.metadata.annotations.as_mut().expect("annotations");
            annotations.insert(crate::pull_secret::STATE_ANNOTATION.into(), state.to_text());
        };
        let life = |hours| Lifetime {
            minted_at: Timestamp::UNIX_EPOCH,
            expires_at: Timestamp::UNIX_EPOCH + SignedDuration::from_hours(hours),
        };
        entry.lifetime = Some(life(1));
        dated.hosts.insert(host.clone(), entry.clone());
        set(&mut good, &dated);
        store.saw(&namespace(), &good);
        assert_eq!((is_verified(&store), counted()), (Some(true), 1));
        let mut forged = good.clone();
        forged.metadata.resource_version = Some("8".into());
        entry.lifetime = Some(life(12));
        dated.hosts.insert(host, entry);
        set(&mut forged, &dated);
        store.saw(&namespace(), &forged);
        assert!(store.get(&namespace()).expect("known").is_tampered());
        good.metadata.resource_version = Some("9".into());
        store.saw(&namespace(), &good);
        assert_eq!((is_verified(&store), counted()), (Some(true), 1));
        store.forget(&metadata(10));
        assert_eq!((is_verified(&store), counted()), (None, 0));
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
        let unlabelled = ObjectMeta {
            labels: None,
            ..metadata(3)
        };
        store.learn(&unlabelled, Unverified::Listed);
        let entry = store.get(&namespace()).expect("known");
        assert!(matches!(
            entry.facts(),
            SecretFacts::Foreign(Foreign::Label)
        ));
    }
}
