//! Writes pull secrets: read, merge, seal, apply.
//!
//! Within one process the writes to a namespace take turns; between processes a write's precondition decides. An admission
//! that loses reads and merges again. A leader that loses writes nothing: what it planned was planned for another version,
//! and the namespace is planned again.

pub mod api;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use thiserror::Error;
use tokio::time::{Instant, sleep, timeout_at};

pub use self::api::{CallError, SecretApi};
use super::{
    DesiredCredential, Existing, Foreign, PullSecret,
    merge::{Changes, MergeMode, Merged, merge, replaces_all},
    state::{State, Subject},
    store::{Entry, PullSecrets},
};
use crate::{
    cluster::namespace::{Namespace, NamespaceSettings},
    process::clock::Clock,
    registry::Host,
    token::{Freshness, cache::MintError},
};

/// Writes that an admission tries before it gives up; each loss means that another replica won.
const MAX_ATTEMPTS: u32 = 12;
/// The pause after a lost write, times the attempt.
const CONFLICT_PAUSE: Duration = Duration::from_millis(5);
/// The pause after the guard refused: another API server may not have seen the opt-in label yet.
const GUARD_PAUSE: Duration = Duration::from_millis(150);

/// Why a pull secret does not have what a Pod needs.
#[derive(Debug, Clone, Error)]
pub enum PullSecretError {
    /// No token. The Secret names the host as wanted.
    #[error("{host}: {error}")]
    Mint {
        /// For which host.
        host: Host,
        /// Why.
        error: MintError,
    },
    /// The Secret is somebody else's.
    #[error("the Secret was not created by ecr-injector: {0}")]
    Foreign(Foreign),
    /// It has no room for these hosts; the others have their credentials.
    #[error("the pull secret has no room for {}; limits.registriesPerSecret allows {limit} hosts", listed(.hosts))]
    Full {
        /// Those left out.
        hosts: Vec<Host>,
        /// How many may be.
        limit: usize,
    },
    /// The API server refused: rights, quota, a policy, a namespace that is going away.
    #[error("the API server refused to {verb} the pull secret: {message}")]
    Refused {
        /// What was tried.
        verb: &'static str,
        /// What the API server said.
        message: String,
    },
    /// The API server failed, or couldn't be reached.
    #[error("failed to {verb} the pull secret: {message}")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// What went wrong.
        message: String,
    },
    /// Every write lost against another.
    #[error("{MAX_ATTEMPTS} writes in a row conflicted with another client's")]
    Contended,
    /// We are not the leader any more, and what we know may be old.
    #[error("another replica leads now")]
    NotLeading,
    /// There is no key yet to seal the state with.
    #[error(
        "the state key is not known yet; the condition state-key on /readyz says what it waits for"
    )]
    NoKey,
    /// The request's deadline came first; the work goes on.
    #[error("not done before the request's deadline")]
    Deadline,
    /// The work died.
    #[error("preparing the pull secret failed inside ecr-injector")]
    Crashed,
}

fn listed(hosts: &[Host]) -> String {
    match hosts {
        [] => "more registries".to_owned(),
        [one] => one.to_string(),
        [first, rest @ ..] => format!("{first} and {} more", rest.len()),
    }
}

impl PullSecretError {
    /// Returns the error as a metric's label.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Mint { error, .. } => error.as_str(),
            Self::Foreign(_) => "foreign",
            Self::Full { .. } => "too_many_hosts",
            Self::Refused { .. } => "kube_api_rejected",
            Self::Api { .. } => "kube_api_error",
            Self::Contended => "conflict",
            Self::NotLeading => "not_leading",
            Self::NoKey => "no_state_key",
            Self::Deadline => "deadline",
            Self::Crashed => "internal_error",
        }
    }

    /// Returns the error as a text for tenants: nothing of what AWS said but its code.
    #[must_use]
    pub fn public_text(&self) -> String {
        match self {
            Self::Mint { host, error } => format!("{host}: {}", error.public_text()),
            other => other.to_string(),
        }
    }

    fn of_call(verb: &'static str, error: CallError) -> Self {
        match error {
            CallError::Conflict => Self::Contended,
            CallError::Guard(message) | CallError::Refused(message) => {
                Self::Refused { verb, message }
            }
            CallError::Failed(message) | CallError::Timeout(message) => Self::Api { verb, message },
        }
    }
}

/// Says whether a write may still leave. Asked right before each: what a leader planned is not to be done by a replica
/// that has lost the lease meanwhile.
pub trait Fence: Send + Sync {
    /// Whether it may.
    fn holds(&self) -> bool;
}

/// What came of an admission's write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// The Secret has what was wanted now, but for the hosts for which there is no room.
    Written(Vec<Host>),
    /// It had already, but for the hosts for which there is no room.
    Unchanged(Vec<Host>),
    /// Somebody else changed the data or the state, so nothing in it can be trusted. It claims to have these hosts.
    Tampered(Vec<Host>),
}

/// What came of a leader's write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WriteOutcome {
    /// The Secret is as planned, but for the hosts for which there is no room.
    Written(Vec<Host>),
    /// It was already.
    Unchanged,
    /// It is not the version that was planned for; the store knows more now.
    Moved,
}

/// What an admission adds.
#[derive(Clone, Copy)]
pub struct Addition<'a> {
    /// The hosts that the Pod wants.
    pub wanted: &'a BTreeMap<Host, DesiredCredential>,
    /// How many hosts there may be, by the rules that the admission was decided by.
    pub limit: usize,
    /// Whether what somebody else wrote may be replaced: whoever says so has looked at what it claims to have.
    pub replaces_tampered: bool,
}

/// What a leader planned for one version of a pull secret.
#[derive(Clone, Copy)]
pub struct Planned<'a> {
    /// What was known of it; `None`: that there is none.
    pub basis: Option<&'a Entry>,
    /// The hosts that are to be there, each with the token that there is for it.
    pub wanted: &'a BTreeMap<Host, DesiredCredential>,
    /// The hosts that are to be forgotten.
    pub forgotten: &'a BTreeSet<Host>,
    /// The hosts whose credential is to be taken out at once.
    pub revoked: &'a BTreeSet<Host>,
    /// The state before somebody else wrote or deleted it, where that is repaired.
    pub remembered: Option<&'a State>,
    /// How many hosts there may be.
    pub limit: usize,
    /// Whether it may leave.
    pub fence: &'a dyn Fence,
}

/// Writes pull secrets; clones share the turns.
#[derive(Clone)]
pub struct Writer(Arc<Inner>);

struct Inner {
    api: Arc<dyn SecretApi>,
    secret_name: String,
    secrets: PullSecrets,
    clock: Arc<dyn Clock>,
    turns: Mutex<HashMap<Namespace, Arc<tokio::sync::Mutex<()>>>>,
}

impl Writer {
    /// A writer of the Secrets of a name, to the store's knowledge.
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
            turns: Mutex::default(),
        }))
    }

    /// Adds to the pull secret what an admission wants.
    pub async fn add(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        addition: Addition<'_>,
        deadline: Instant,
    ) -> Result<Added, PullSecretError> {
        let turn = self.turn(namespace);
        let _turn = timeout_at(deadline, turn.0.lock())
            .await
            .map_err(|_| PullSecretError::Deadline)?;
        let nothing = BTreeSet::new();
        for attempt in 1..=MAX_ATTEMPTS {
            let known = self.known(namespace);
            let state = known.as_deref().and_then(Entry::state);
            if state.is_some_and(|state| self.is_satisfied(state, addition.wanted)) {
                return Ok(Added::Unchanged(vec![]));
            }
            let existing = match &known {
                // Nothing known on the first try: most likely nothing is there, and if it is, the write is a conflict.
                None if attempt == 1 => None,
                _ => self.read(namespace, settings, deadline).await?,
            };
            let is_untrusted = existing.as_ref().is_some_and(|it| it.state.is_none());
            if is_untrusted && !addition.replaces_tampered {
                let claimed = existing.map(|existing| existing.claimed);
                return Ok(Added::Tampered(claimed.unwrap_or_default()));
            }
            let lost = self.lost_state(namespace, existing.as_ref());
            let changes = Changes {
                mode: MergeMode::Add,
                wanted: addition.wanted,
                forgotten: &nothing,
                revoked: &nothing,
                remembered: lost.as_ref(),
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
                    return Err(PullSecretError::of_call("write", error));
                }
            }
            if Instant::now() >= deadline {
                return Err(PullSecretError::Deadline);
            }
        }
        Err(PullSecretError::Contended)
    }

    /// Brings the pull secret to what a leader planned, if it is still the version that was planned for.
    pub async fn reconcile(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        planned: Planned<'_>,
        deadline: Instant,
    ) -> Result<WriteOutcome, PullSecretError> {
        let turn = self.turn(namespace);
        let _turn = timeout_at(deadline, turn.0.lock())
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
                let is_that = existing
                    .as_ref()
                    .is_some_and(|it| it.resource_version == entry.version().to_string());
                if !is_that {
                    return Ok(WriteOutcome::Moved);
                }
                // Whether its data are what its state says was not known by its metadata.
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
                // The watch may be behind: a read tells now what there is.
                self.read(namespace, settings, deadline).await?;
                Ok(WriteOutcome::Moved)
            }
            Err(WriteError::Call(error)) => Err(PullSecretError::of_call("write", error)),
        }
    }

    /// Returns whether the pull secret, as far as is known, has a credential for each of these hosts that can be used.
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

    /// Returns whether the pull secret, as far as is known, names each of these hosts, with a credential or without: then the
    /// leader sees to it.
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

    /// Reads the whole Secret once; the store takes what is seen.
    pub async fn look(
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

    /// Reads the whole Secret if it is not known to be ours and nobody here has read it since. One read does for all that
    /// wait for it.
    pub async fn look_once(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        deadline: Instant,
    ) -> Result<(), PullSecretError> {
        let turn = self.turn(namespace);
        let _turn = timeout_at(deadline, turn.0.lock())
            .await
            .map_err(|_| PullSecretError::Deadline)?;
        let known = self.0.secrets.get(namespace);
        if known.is_some_and(|known| known.is_unread()) {
            self.look(namespace, settings, deadline).await?;
        }
        Ok(())
    }

    /// Deletes the pull secret of a namespace that is opted in no more, if it is ours and all its credentials have expired.
    /// Returns whether it is gone.
    pub async fn remove(
        &self,
        namespace: &Namespace,
        is_wanted: impl FnOnce(&Existing) -> bool + Send,
        fence: &dyn Fence,
        deadline: Instant,
    ) -> Result<bool, PullSecretError> {
        let get = self.0.api.get(namespace, deadline).await;
        let secret = get.map_err(|error| PullSecretError::of_call("read", error))?;
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
        delete.map_err(|error| PullSecretError::of_call("delete", error))?;
        self.0.secrets.forget_namespace(namespace);
        Ok(true)
    }

    fn known(&self, namespace: &Namespace) -> Option<Arc<Entry>> {
        let known = self.0.secrets.get(namespace);
        known.filter(|known| known.is_there())
    }

    /// What an admission takes over from before, where the Secret is gone, isn't trusted, or was put back to an older state.
    fn lost_state(&self, namespace: &Namespace, existing: Option<&Existing>) -> Option<State> {
        let state = existing.and_then(|existing| existing.state.as_ref());
        let known = self.0.secrets.get(namespace)?;
        let lost = known.observed().remembered()?;
        let is_newer = state.is_none_or(|state| state.revision < lost.revision);
        is_newer.then(|| lost.clone())
    }

    /// Whether what is wanted is there and its demand is noted: a usable credential, or where there is no token to give, at
    /// least the host.
    fn is_satisfied(&self, state: &State, wanted: &BTreeMap<Host, DesiredCredential>) -> bool {
        let now = self.0.clock.now();
        wanted.iter().all(|(host, desired)| {
            state.hosts.get(host).is_some_and(|had| {
                had.demand.is_noted(now)
                    && (had.good(now).is_some()
                        || desired.token.is_none()
                            && (had.credential.is_none() || !super::is_public(host)))
            })
        })
    }

    /// Reads the Secret for a merge.
    async fn read(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        deadline: Instant,
    ) -> Result<Option<Existing>, PullSecretError> {
        let asked = self.0.secrets.get(namespace).map(|entry| entry.version());
        let get = self.0.api.get(namespace, deadline).await;
        let secret = get.map_err(|error| PullSecretError::of_call("read", error))?;
        let Some(secret) = secret else {
            self.0.secrets.saw_none(namespace);
            return Ok(None);
        };
        self.0
            .secrets
            .read(namespace, &settings.uid, &secret, asked);
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
        self.0.secrets.wrote(namespace, &settings.uid, &written);
        Ok(())
    }

    fn turn(&self, namespace: &Namespace) -> Turn<'_> {
        let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = turns.entry(namespace.clone()).or_default().clone();
        Turn(lock, self, namespace.clone())
    }
}

/// Why a merged Secret is not stored.
enum WriteError {
    NoKey,
    Call(CallError),
}

/// One namespace's lock; the last who lets go of it takes it off the map.
struct Turn<'a>(Arc<tokio::sync::Mutex<()>>, &'a Writer, Namespace);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut turns = self
            .1
            .0
            .turns
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        // Ours and the map's.
        if Arc::strong_count(&self.0) <= 2 {
            turns.remove(&self.2);
        }
    }
}

#[cfg(test)]
mod tests;
