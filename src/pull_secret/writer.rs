//! Writes pull secrets: read, merge, seal, apply.
//!
//! Within one process the writes to a namespace are serialized by a lock; between processes a
//! write's precondition decides. An admission that loses reads and merges again. A leader that
//! loses writes nothing: its plan was made for another version, and the namespace is planned again.

pub mod api;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout_at};

pub use self::api::{CallError, SecretApi};
pub use super::error::PullSecretError;
use super::{
    DesiredCredential, Existing, PullSecret,
    error::MAX_ATTEMPTS,
    merge::{Changes, MergeMode, Merged, merge, replaces_all},
    state::{State, Subject},
    store::{Entry, PullSecrets},
};
use crate::{
    cluster::namespace::{Namespace, NamespaceSettings},
    process::clock::Clock,
    registry::Host,
    token::Freshness,
};

/// The pause after a write that conflicted, times the attempt.
const CONFLICT_PAUSE: Duration = Duration::from_millis(5);
/// The pause after the guard refused: another API server may not have seen the opt-in label yet.
const GUARD_PAUSE: Duration = Duration::from_millis(150);

/// Decides whether a write may still be sent. Asked right before each: a plan of the leader must
/// not be carried out by a replica that has lost the lease meanwhile.
pub trait Fence: Send + Sync {
    /// Returns whether the write may be sent.
    fn holds(&self) -> bool;
}

/// The outcome of an admission's write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// The Secret now has all that was wanted, but for the hosts for which there is no room.
    Written(Vec<Host>),
    /// The Secret already had all that was wanted, but for the hosts for which there is no room.
    Unchanged(Vec<Host>),
    /// Another client changed the data or the state, so nothing in the Secret can be trusted. The
    /// Secret claims to have these hosts.
    Tampered(Vec<Host>),
}

/// The outcome of a leader's write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The Secret is as planned, but for the hosts for which there is no room.
    Written(Vec<Host>),
    /// The Secret already was as planned.
    Unchanged,
    /// The Secret is not the version that was planned for; the store knows more now.
    Moved,
}

/// The addition of an admission.
#[derive(Clone, Copy)]
pub struct Addition<'a> {
    /// The hosts that the Pod wants.
    pub wanted: &'a BTreeMap<Host, DesiredCredential>,
    /// The most hosts, by the rules that the admission was decided by.
    pub limit: usize,
    /// Whether the content of another client may be replaced: only if the hosts that it claims to
    /// have were considered.
    pub replaces_tampered: bool,
}

/// The plan of the leader for one version of a pull secret.
#[derive(Clone, Copy)]
pub struct Planned<'a> {
    /// The version that the plan is for; `None`: there is no Secret.
    pub basis: Option<&'a Entry>,
    /// The hosts to have, each with its token if there is one.
    pub wanted: &'a BTreeMap<Host, DesiredCredential>,
    /// The hosts to forget.
    pub forgotten: &'a BTreeSet<Host>,
    /// The hosts whose credential is removed at once.
    pub revoked: &'a BTreeSet<Host>,
    /// The state before another client wrote or deleted the Secret, where that is repaired.
    pub remembered: Option<&'a State>,
    /// The most hosts.
    pub limit: usize,
    /// Decides whether the write may be sent.
    pub fence: &'a dyn Fence,
}

/// Writes pull secrets; clones share the locks.
#[derive(Clone)]
pub struct Writer(Arc<Inner>);

struct Inner {
    api: Arc<dyn SecretApi>,
    secret_name: String,
    secrets: PullSecrets,
    clock: Arc<dyn Clock>,
    locks: Mutex<HashMap<Namespace, Arc<tokio::sync::Mutex<()>>>>,
}

impl Writer {
    /// Creates a writer of the Secrets of this name, which keeps the store up to date.
    #[must_use]
    pub fn new(
        api: Arc<dyn SecretApi>,
        secret_name: String,
        secrets: PullSecrets,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self(Arc::new(Inner {
            api,
            secret_name,
            secrets,
            clock,
            locks: Mutex::default(),
        }))
    }

    /// Adds the hosts of an admission to the pull secret.
    pub async fn add(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        addition: Addition<'_>,
        deadline: Instant,
    ) -> Result<Added, PullSecretError> {
        let lock = self.lock(namespace);
        let _guard = timeout_at(deadline, lock.0.lock())
            .await
            .map_err(|_| PullSecretError::Deadline)?;
        let no_hosts = BTreeSet::new();
        for attempt in 1..=MAX_ATTEMPTS {
            let known = self.known(namespace);
            let state = known.as_deref().and_then(Entry::state);
            if state.is_some_and(|state| self.is_satisfied(state, addition.wanted)) {
                return Ok(Added::Unchanged(vec![]));
            }
            let existing = match &known {
                // Nothing known on the first try: most likely there is no Secret, and if there is
                // one, the write is a conflict.
                None if attempt == 1 => None,
                _ => self.read(namespace, settings, deadline).await?,
            };
            let is_untrusted = existing.as_ref().is_some_and(|it| it.state.is_none());
            if is_untrusted && !addition.replaces_tampered {
                let claimed = existing.map(|existing| existing.claimed);
                return Ok(Added::Tampered(claimed.unwrap_or_default()));
            }
            let previous = self.state_to_restore(namespace, existing.as_ref());
            let changes = Changes {
                mode: MergeMode::Add,
                wanted: addition.wanted,
                forgotten: &no_hosts,
                revoked: &no_hosts,
                remembered: previous.as_ref(),
                limit: addition.limit,
            };
            let Merged { secret, left_out } = merge(existing.as_ref(), changes, self.0.clock.now());
            let Some(secret) = secret else {
                return Ok(Added::Unchanged(left_out));
            };
            let written = self
                .apply(namespace, settings, secret, existing.as_ref(), deadline)
                .await;
            match written {
                Ok(()) => return Ok(Added::Written(left_out)),
                Err(WriteError::NoKey) => return Err(PullSecretError::NoKey),
                Err(WriteError::Call(CallError::Conflict)) => {
                    sleep(CONFLICT_PAUSE * attempt).await;
                }
                Err(WriteError::Call(CallError::Guard(_))) if attempt < MAX_ATTEMPTS => {
                    sleep(GUARD_PAUSE).await;
                }
                Err(WriteError::Call(error)) => {
                    return Err(error.while_trying("write"));
                }
            }
            if Instant::now() >= deadline {
                return Err(PullSecretError::Deadline);
            }
        }
        Err(PullSecretError::Contended)
    }

    /// Brings the pull secret to the state that the leader planned, if the Secret is still the
    /// version of the plan.
    pub async fn reconcile(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        planned: Planned<'_>,
        deadline: Instant,
    ) -> Result<WriteOutcome, PullSecretError> {
        let lock = self.lock(namespace);
        let _guard = timeout_at(deadline, lock.0.lock())
            .await
            .map_err(|_| PullSecretError::Deadline)?;
        let now = self.0.clock.now();
        let basis = planned.basis.filter(|entry| entry.is_there());
        if self.known(namespace).map(|entry| entry.version()) != basis.map(Entry::version) {
            return Ok(WriteOutcome::Moved);
        }
        let known = basis.filter(|entry| {
            entry
                .state()
                .is_some_and(|state| replaces_all(state, planned.wanted, now))
        });
        let existing = match (basis, known.and_then(Entry::existing)) {
            (None, _) => None,
            (Some(_), Some(existing)) => Some(existing),
            (Some(entry), None) => {
                let existing = self.read(namespace, settings, deadline).await?;
                let is_planned_version = existing
                    .as_ref()
                    .is_some_and(|it| it.resource_version == entry.version().to_string());
                if !is_planned_version {
                    return Ok(WriteOutcome::Moved);
                }
                // The metadata did not show whether the data match the state.
                let is_worse = entry.observed().proven().is_some()
                    && existing.as_ref().is_some_and(|it| it.state.is_none());
                if is_worse && planned.remembered.is_none() {
                    return Ok(WriteOutcome::Moved);
                }
                existing
            }
        };
        let changes = Changes {
            mode: MergeMode::Reconcile,
            wanted: planned.wanted,
            forgotten: planned.forgotten,
            revoked: planned.revoked,
            remembered: planned.remembered,
            limit: planned.limit,
        };
        let Merged { secret, left_out } = merge(existing.as_ref(), changes, now);
        let Some(secret) = secret else {
            return Ok(WriteOutcome::Unchanged);
        };
        if !planned.fence.holds() {
            return Err(PullSecretError::NotLeading);
        }
        let written = self
            .apply(namespace, settings, secret, existing.as_ref(), deadline)
            .await;
        match written {
            Ok(()) => Ok(WriteOutcome::Written(left_out)),
            Err(WriteError::NoKey) => Err(PullSecretError::NoKey),
            Err(WriteError::Call(CallError::Conflict)) => {
                // The watch may be behind: a read shows the current version.
                self.read(namespace, settings, deadline).await?;
                Ok(WriteOutcome::Moved)
            }
            Err(WriteError::Call(error)) => Err(error.while_trying("write")),
        }
    }

    /// Returns whether the pull secret, as far as is known, has a usable credential for each of
    /// these hosts.
    #[must_use]
    pub fn is_usable(&self, namespace: &Namespace, hosts: &[Host]) -> bool {
        let now = self.0.clock.now();
        let known = self.0.secrets.get(namespace);
        let state = known.as_deref().and_then(Entry::state);
        state.is_some_and(|state| {
            let mut hosts = hosts.iter();
            hosts.all(|host| state.freshness(host, now) != Freshness::Expired)
        })
    }

    /// Returns whether the pull secret, as far as is known, names each of these hosts, with a
    /// credential or without: then the leader mints for them.
    #[must_use]
    pub fn names_all<'a>(
        &self,
        namespace: &Namespace,
        hosts: impl IntoIterator<Item = &'a Host>,
    ) -> bool {
        let known = self.0.secrets.get(namespace);
        let state = known.as_deref().and_then(Entry::state);
        state.is_some_and(|state| {
            let mut hosts = hosts.into_iter();
            hosts.all(|host| state.hosts.contains_key(host))
        })
    }

    /// Reads the whole Secret into the store.
    pub async fn observe(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        deadline: Instant,
    ) -> Result<(), PullSecretError> {
        match self.read(namespace, settings, deadline).await {
            Ok(_) | Err(PullSecretError::Foreign(_)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads the whole Secret if it is not known to be ours and this replica has not read it since.
    /// One read serves all that wait for it.
    pub async fn read_if_unread(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        deadline: Instant,
    ) -> Result<(), PullSecretError> {
        let lock = self.lock(namespace);
        let _guard = timeout_at(deadline, lock.0.lock())
            .await
            .map_err(|_| PullSecretError::Deadline)?;
        let known = self.0.secrets.get(namespace);
        if known.is_some_and(|known| known.is_unread()) {
            self.observe(namespace, settings, deadline).await?;
        }
        Ok(())
    }

    /// Deletes the pull secret of a namespace that is no longer opted in, if the Secret is ours and
    /// all its credentials have expired. Returns whether the Secret is gone.
    pub async fn remove(
        &self,
        namespace: &Namespace,
        is_wanted: impl FnOnce(&Existing) -> bool + Send,
        fence: &dyn Fence,
        deadline: Instant,
    ) -> Result<bool, PullSecretError> {
        let get = self.0.api.get(namespace, deadline).await;
        let secret = get.map_err(|error| error.while_trying("read"))?;
        let Some(secret) = secret else {
            self.0.secrets.forget_namespace(namespace);
            return Ok(true);
        };
        let existing = Existing::read(&secret, |_| false).map_err(PullSecretError::Foreign)?;
        if is_wanted(&existing) {
            return Ok(false);
        }
        if !fence.holds() {
            return Err(PullSecretError::NotLeading);
        }
        let (uid, version) = (&existing.uid, &existing.resource_version);
        let delete = self.0.api.delete(namespace, uid, version, deadline).await;
        delete.map_err(|error| error.while_trying("delete"))?;
        self.0.secrets.forget_namespace(namespace);
        Ok(true)
    }

    fn known(&self, namespace: &Namespace) -> Option<Arc<Entry>> {
        let known = self.0.secrets.get(namespace);
        known.filter(|known| known.is_there())
    }

    /// Returns the state that an admission restores where the Secret is gone, isn't trusted, or was
    /// replaced by an older one.
    fn state_to_restore(
        &self,
        namespace: &Namespace,
        existing: Option<&Existing>,
    ) -> Option<State> {
        let state = existing.and_then(|existing| existing.state.as_ref());
        let known = self.0.secrets.get(namespace)?;
        let remembered = known.observed().remembered()?;
        let is_newer = state.is_none_or(|state| state.revision < remembered.revision);
        is_newer.then(|| remembered.clone())
    }

    /// Returns whether each host is there with a recent record of its demand and a usable
    /// credential, or, where there is no token to give, at least the host.
    fn is_satisfied(&self, state: &State, wanted: &BTreeMap<Host, DesiredCredential>) -> bool {
        let now = self.0.clock.now();
        wanted.iter().all(|(host, desired)| {
            state.hosts.get(host).is_some_and(|had| {
                had.demand.is_recent(now)
                    && (had.good(now).is_some()
                        || desired.token.is_none()
                            && (had.credential.is_none() || !super::is_public(host)))
            })
        })
    }

    /// Reads the Secret for a merge, and updates the store.
    async fn read(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        deadline: Instant,
    ) -> Result<Option<Existing>, PullSecretError> {
        let known = self.0.secrets.get(namespace).map(|entry| entry.version());
        let get = self.0.api.get(namespace, deadline).await;
        let secret = get.map_err(|error| error.while_trying("read"))?;
        let Some(secret) = secret else {
            self.0.secrets.record_absent(namespace);
            return Ok(None);
        };
        self.0
            .secrets
            .record_read(namespace, &settings.uid, &secret, known);
        let keys = self.0.secrets.keys();
        let existing = Existing::read(&secret, |state| {
            keys.prove(namespace, &settings.uid, &secret.metadata, state)
        });
        existing.map(Some).map_err(PullSecretError::Foreign)
    }

    async fn apply(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        secret: PullSecret,
        existing: Option<&Existing>,
        deadline: Instant,
    ) -> Result<(), WriteError> {
        let known = self.0.secrets.get(namespace);
        let known = known
            .as_deref()
            .and_then(|entry| entry.observed().revision());
        let state = existing.and_then(|existing| existing.state.as_ref());
        let last = known.into_iter().chain(state.map(|state| state.revision));
        let millis = u64::try_from(self.0.clock.now().as_millisecond()).unwrap_or_default();
        let revision = last
            .map(|last| last.saturating_add(1))
            .fold(millis, u64::max);
        let subject = Subject {
            namespace: namespace.as_str(),
            namespace_uid: &settings.uid,
            secret_uid: existing.map_or("", |existing| &existing.uid),
        };
        let keys = self.0.secrets.keys();
        let sealed = secret.sealed(revision, subject, |text| keys.seal(text.as_bytes()));
        let object =
            sealed
                .ok_or(WriteError::NoKey)?
                .to_object(&self.0.secret_name, namespace, existing);
        let written = self.0.api.apply(namespace, &object, deadline).await;
        let written = written.map_err(WriteError::Call)?;
        self.0
            .secrets
            .record_write(namespace, &settings.uid, &written);
        Ok(())
    }

    fn lock(&self, namespace: &Namespace) -> NamespaceLock<'_> {
        let mut locks = self.0.locks.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = locks.entry(namespace.clone()).or_default().clone();
        NamespaceLock(lock, self, namespace.clone())
    }
}

/// The reason why a merged Secret is not stored.
enum WriteError {
    NoKey,
    Call(CallError),
}

/// A namespace's lock; the last that is dropped removes the lock from the map.
struct NamespaceLock<'a>(Arc<tokio::sync::Mutex<()>>, &'a Writer, Namespace);

impl Drop for NamespaceLock<'_> {
    fn drop(&mut self) {
        let mut locks = self
            .1
            .0
            .locks
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // This reference and the map's.
        if Arc::strong_count(&self.0) <= 2 {
            locks.remove(&self.2);
        }
    }
}

#[cfg(test)]
mod tests;
