//! Writes pull secrets: read, merge, apply.
//!
//! Within one process the writes to a namespace take turns; between processes a write's precondition decides, and the
//! loser reads and merges again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use thiserror::Error;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    Existing, FIELD_MANAGER, Foreign, PullSecret, Terms, TooManyHosts, Want, is_public,
    state::State,
    store::{Entry, PullSecrets},
};
use crate::{
    clock::Clock,
    cluster::object::WholeSecret,
    metrics::Metrics,
    namespace::Namespace,
    registry::Host,
    token::{Freshness, cache::MintError},
};

/// How long one call to the API server may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Writes tried before giving up; each loss means that another replica won.
const MAX_ATTEMPTS: u32 = 12;
/// The pause after a lost write, times the attempt.
const CONFLICT_PAUSE: Duration = Duration::from_millis(5);
/// The pause after the guard refused: another API server may not have seen the opt-in label yet.
const GUARD_PAUSE: Duration = Duration::from_millis(150);
/// Calls to the API server at the same time. Each is a connection of its own, and a burst of handshakes would only be slow.
const MAX_CALLS: usize = 32;

/// Why a pull secret does not have what a Pod needs.
#[derive(Debug, Clone, Error)]
pub enum EnsureError {
    /// No token. The Secret names the host as wanted.
    #[error("{host}: {error}")]
    Mint {
        /// For which host.
        host: Host,
        /// Why.
        error: MintError,
    },
    /// The Secret is somebody else's.
    #[error("the Secret isn't ours: {0}")]
    Foreign(Foreign),
    /// It is full.
    #[error("{0}")]
    TooManyHosts(TooManyHosts),
    /// The API server refused for good: rights, quota, a namespace that is going away.
    #[error("the API server refused to {verb} the pull secret: {message}")]
    Refused {
        /// What was tried.
        verb: &'static str,
        /// What the API server said.
        message: String,
    },
    /// The API server failed, or couldn't be reached.
    #[error("to {verb} the pull secret failed: {message}")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// What went wrong.
        message: String,
    },
    /// Every write lost against another.
    #[error("{MAX_ATTEMPTS} writes in a row lost against another writer")]
    Contended,
    /// We are not the leader any more, and what we know may be old.
    #[error("another replica leads now")]
    NotLeading,
    /// The request's deadline came first; the work goes on.
    #[error("not done within the request's deadline")]
    Deadline,
    /// The work died.
    #[error("ensuring the pull secret failed inside ecr-injector")]
    Crashed,
}

impl EnsureError {
    /// The error as a metric's label.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Mint { error, .. } => error.as_str(),
            Self::Foreign(_) => "foreign",
            Self::TooManyHosts(_) => "too_many_hosts",
            Self::Refused { .. } => "api_refused",
            Self::Api { .. } => "api_error",
            Self::Contended => "contended",
            Self::NotLeading => "not_leading",
            Self::Deadline => "deadline",
            Self::Crashed => "crashed",
        }
    }

    /// Whether trying again in a second may help.
    #[must_use]
    pub fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Mint { .. } | Self::Api { .. } | Self::Contended | Self::Deadline
        )
    }
}

/// Says whether a write may still leave. Asked right before each: what a leader planned is not to be done by a replica
/// that has lost the lease meanwhile.
pub trait Fence: Send + Sync {
    /// Whether it may.
    fn holds(&self) -> bool;
}

/// Admissions write without a lease.
#[derive(Debug, Clone, Copy)]
pub struct NoFence;

impl Fence for NoFence {
    fn holds(&self) -> bool {
        true
    }
}

/// How a write goes about it.
#[derive(Clone, Copy)]
pub struct Manner<'a> {
    /// What it may change.
    pub terms: Terms,
    /// How many hosts the pull secret may have, by the rules that the write follows from.
    pub most: usize,
    /// Whether what somebody else wrote may be replaced: whoever says so has looked at what it claims to have.
    pub replaces_tampered: bool,
    /// Whether it may leave.
    pub fence: &'a dyn Fence,
}

/// What came of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Written {
    /// The Secret has what was wanted now.
    Done,
    /// It had already.
    Unchanged,
    /// Somebody else changed the data or the state, so nothing in it can be trusted. It claims to have these hosts.
    Tampered(Vec<Host>),
}

/// Writes pull secrets; clones share the turns.
#[derive(Clone)]
pub struct Writer(Arc<Inner>);

struct Inner {
    client: Client,
    secret_name: String,
    secrets: PullSecrets,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    calls: Semaphore,
    turns: Mutex<HashMap<Namespace, Arc<tokio::sync::Mutex<()>>>>,
}

impl Writer {
    /// A writer of the Secrets of a name through a client, to the store's knowledge.
    #[must_use]
    pub fn new(
        client: Client,
        secret_name: String,
        secrets: PullSecrets,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self(Arc::new(Inner {
            client,
            secret_name,
            secrets,
            clock,
            metrics,
            calls: Semaphore::new(MAX_CALLS),
            turns: Mutex::default(),
        }))
    }

    /// Gives the pull secret what is wanted.
    pub async fn write(
        &self,
        namespace: &Namespace,
        wanted: &BTreeMap<Host, Want>,
        manner: Manner<'_>,
        deadline: Instant,
    ) -> Result<Written, EnsureError> {
        let turn = self.turn(namespace);
        let _turn = timeout_at(deadline, turn.0.lock())
            .await
            .map_err(|_| EnsureError::Deadline)?;
        let api = self.api(namespace);
        for attempt in 1..=MAX_ATTEMPTS {
            let known = self
                .0
                .secrets
                .get(namespace)
                .filter(|known| known.is_there());
            if manner.terms == Terms::Add
                && known
                    .as_ref()
                    .and_then(|known| known.state())
                    .is_some_and(|state| self.is_satisfied(state, wanted))
            {
                return Ok(Written::Unchanged);
            }
            let existing = match known.as_deref() {
                // Nothing known on the first try: most likely nothing is there, and if it is, the write is a conflict.
                None if attempt == 1 => None,
                Some(known) if attempt == 1 && replaces_all(known, wanted, manner.terms) => {
                    known.existing()
                }
                _ => self.read_ours(&api, namespace, deadline).await?,
            };
            if let Some(existing) = existing
                .as_ref()
                .filter(|existing| existing.state.is_none() && !manner.replaces_tampered)
            {
                return Ok(Written::Tampered(existing.claimed.clone()));
            }
            let merged = PullSecret::merge(
                existing.as_ref(),
                wanted,
                manner.terms,
                manner.most,
                self.0.clock.now(),
            )
            .map_err(EnsureError::TooManyHosts)?;
            let Some(merged) = merged else {
                return Ok(Written::Unchanged);
            };
            let object = merged.to_object(&self.0.secret_name, namespace, existing.as_ref());
            match self.apply(&api, &object, manner.fence, deadline).await {
                Ok(written) => {
                    self.0.secrets.saw(namespace, &written);
                    return Ok(Written::Done);
                }
                Err(Lost::Conflict) => sleep(CONFLICT_PAUSE * attempt).await,
                Err(Lost::Guard(message)) if attempt == MAX_ATTEMPTS => {
                    return Err(EnsureError::Refused {
                        verb: "write",
                        message,
                    });
                }
                Err(Lost::Guard(_)) => sleep(GUARD_PAUSE).await,
                Err(Lost::ForGood(error)) => return Err(error),
            }
            if Instant::now() >= deadline {
                return Err(EnsureError::Deadline);
            }
        }
        Err(EnsureError::Contended)
    }

    /// Whether the pull secret, as we know it, has a credential for each of these hosts that can be used.
    #[must_use]
    pub fn is_usable(&self, namespace: &Namespace, hosts: &[Host]) -> bool {
        let now = self.0.clock.now();
        let known = self.0.secrets.get(namespace);
        let state = known.as_ref().and_then(|known| known.state());
        state.is_some_and(|state| {
            let mut hosts = hosts.iter();
            hosts.all(|host| state.freshness(host, now) != Freshness::Expired)
        })
    }

    /// Looks at the whole Secret once; the store takes what is seen.
    pub async fn look(&self, namespace: &Namespace, deadline: Instant) -> Result<(), EnsureError> {
        let api = self.api(namespace);
        self.read(&api, namespace, deadline).await.map(|_| ())
    }

    /// Looks at the whole Secret if somebody else wrote it and nobody here has looked since. One look does for all that
    /// wait for it.
    pub async fn look_once(
        &self,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Result<(), EnsureError> {
        let turn = self.turn(namespace);
        let _turn = timeout_at(deadline, turn.0.lock())
            .await
            .map_err(|_| EnsureError::Deadline)?;
        let known = self.0.secrets.get(namespace);
        let is_news = known.is_some_and(|known| known.is_news());
        if is_news {
            self.look(namespace, deadline).await?;
        }
        Ok(())
    }

    /// Removes the pull secret, if it is still the one that we know and is ours.
    pub async fn remove(
        &self,
        namespace: &Namespace,
        fence: &dyn Fence,
        deadline: Instant,
    ) -> Result<(), EnsureError> {
        let api = self.api(namespace);
        let Some(secret) = self.read(&api, namespace, deadline).await? else {
            return Ok(());
        };
        let existing = Existing::read(&secret).map_err(EnsureError::Foreign)?;
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(existing.uid),
                resource_version: Some(existing.resource_version),
            }),
            ..DeleteParams::default()
        };
        if !fence.holds() {
            return Err(EnsureError::NotLeading);
        }
        let call = api.delete(&self.0.secret_name, &params);
        let (outcome, result) = match self.call(call, deadline).await {
            Some(Ok(_)) => ("ok", Ok(())),
            Some(Err(kube::Error::Api(status))) if status.is_not_found() => ("ok", Ok(())),
            Some(Err(error)) => {
                let lost = lost("delete", &error);
                (lost.as_str(), Err(lost.into_error("delete")))
            }
            None => ("timeout", Err(timed_out("delete"))),
        };
        self.0.metrics.api_call("delete", "secrets", outcome);
        if result.is_ok() {
            self.0.secrets.forget_namespace(namespace);
        }
        result
    }

    fn api(&self, namespace: &Namespace) -> Api<WholeSecret> {
        Api::namespaced(self.0.client.clone(), namespace.as_str())
    }

    /// Whether what is wanted is there: a usable credential, or where there is no token to give, at least the intent.
    fn is_satisfied(&self, state: &State, wanted: &BTreeMap<Host, Want>) -> bool {
        let now = self.0.clock.now();
        wanted.iter().all(|(host, want)| {
            state.freshness(host, now) != Freshness::Expired
                || (want.token.is_none()
                    && state
                        .hosts
                        .get(host)
                        .is_some_and(|had| had.lifetime.is_none() || !is_public(host)))
        })
    }

    /// Reads the Secret for a merge. What the store knows better, such as dates that were edited, is not trusted.
    async fn read_ours(
        &self,
        api: &Api<WholeSecret>,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Result<Option<Existing>, EnsureError> {
        let Some(secret) = self.read(api, namespace, deadline).await? else {
            return Ok(None);
        };
        let existing = Existing::read(&secret).map_err(EnsureError::Foreign)?;
        let known = self.0.secrets.get(namespace);
        Ok(Some(if known.is_some_and(|known| known.is_tampered()) {
            existing.distrusted()
        } else {
            existing
        }))
    }

    async fn read(
        &self,
        api: &Api<WholeSecret>,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Result<Option<Secret>, EnsureError> {
        let call = api.get_opt(&self.0.secret_name);
        let (outcome, result) = match self.call(call, deadline).await {
            Some(Ok(secret)) => ("ok", Ok(secret.map(|secret| secret.0))),
            Some(Err(error)) => ("error", Err(lost("read", &error))),
            None => ("timeout", Err(Lost::ForGood(timed_out("read")))),
        };
        self.0.metrics.api_call("get", "secrets", outcome);
        match result {
            Ok(Some(secret)) => {
                self.0.secrets.saw(namespace, &secret);
                Ok(Some(secret))
            }
            Ok(None) => {
                self.0.secrets.saw_none(namespace);
                Ok(None)
            }
            Err(lost) => Err(lost.into_error("read")),
        }
    }

    async fn apply(
        &self,
        api: &Api<WholeSecret>,
        secret: &Secret,
        fence: &dyn Fence,
        deadline: Instant,
    ) -> Result<Secret, Lost> {
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(secret);
        if !fence.holds() {
            return Err(Lost::ForGood(EnsureError::NotLeading));
        }
        let call = api.patch(&self.0.secret_name, &params, &patch);
        let (outcome, result) = match self.call(call, deadline).await {
            Some(Ok(WholeSecret(secret))) => ("ok", Ok(secret)),
            Some(Err(error)) => {
                let lost = lost("write", &error);
                (lost.as_str(), Err(lost))
            }
            None => ("timeout", Err(Lost::ForGood(timed_out("write")))),
        };
        self.0.metrics.api_call("apply", "secrets", outcome);
        result
    }

    /// One call to the API server, when its turn comes; `None` if there was no answer in its own or the request's time.
    async fn call<T>(
        &self,
        call: impl Future<Output = kube::Result<T>>,
        deadline: Instant,
    ) -> Option<kube::Result<T>> {
        let in_turn = async {
            // The semaphore is never closed.
            let _permit = self.0.calls.acquire().await;
            timeout(CALL_TIMEOUT, call).await.ok()
        };
        timeout_at(deadline, in_turn).await.ok().flatten()
    }

    fn turn(&self, namespace: &Namespace) -> Turn<'_> {
        let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = turns.entry(namespace.clone()).or_default().clone();
        Turn(lock, self, namespace.clone())
    }
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

/// Whether a write replaces all that there is, so that nothing of it has to be read: there is a token for each host, and
/// none of them would give a host less than it has.
fn replaces_all(known: &Entry, wanted: &BTreeMap<Host, Want>, terms: Terms) -> bool {
    let Some(state) = known.state().filter(|_| terms != Terms::Add) else {
        return false;
    };
    wanted.iter().all(|(host, want)| {
        let had = state.hosts.get(host);
        want.token.as_ref().is_some_and(|token| {
            had.is_none_or(|had| {
                had.identity != want.identity
                    || had
                        .lifetime
                        .is_none_or(|life| life.expires_at <= token.lifetime().expires_at)
            })
        })
    })
}

/// What a call to the API server came to, if not to success.
enum Lost {
    /// Another writer was first.
    Conflict,
    /// The guard refused.
    Guard(String),
    /// Trying the same again at once would not help.
    ForGood(EnsureError),
}

impl Lost {
    fn into_error(self, verb: &'static str) -> EnsureError {
        match self {
            Self::ForGood(error) => error,
            Self::Conflict => EnsureError::Contended,
            Self::Guard(message) => EnsureError::Refused { verb, message },
        }
    }

    fn as_str(&self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Guard(_) => "guard",
            Self::ForGood(_) => "error",
        }
    }
}

fn timed_out(verb: &'static str) -> EnsureError {
    EnsureError::Api {
        verb,
        message: format!(
            "no answer within {} s or the request's deadline",
            CALL_TIMEOUT.as_secs()
        ),
    }
}

fn lost(verb: &'static str, error: &kube::Error) -> Lost {
    let short = |text: &str| text.chars().take(300).collect::<String>();
    match error {
        kube::Error::Api(status) if status.is_conflict() => Lost::Conflict,
        kube::Error::Api(status) if status.code == 422 => Lost::Guard(short(&status.message)),
        kube::Error::Api(status) if matches!(status.code, 400..=428) => {
            Lost::ForGood(EnsureError::Refused {
                verb,
                message: short(&status.message),
            })
        }
        kube::Error::Api(status) => {
            let message = format!("{} {}", status.code, short(&status.message));
            Lost::ForGood(EnsureError::Api { verb, message })
        }
        other => Lost::ForGood(EnsureError::Api {
            verb,
            message: short(&other.to_string()),
        }),
    }
}
