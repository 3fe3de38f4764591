//! Ensures that a namespace's pull secret has what a Pod needs: mint, read, merge, write.
//!
//! The work runs in tasks of its own, so that a request that gives up loses nothing that others wait for. Within one
//! process the writes to a namespace take turns; between processes a write's precondition decides, and the loser reads
//! and merges again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use thiserror::Error;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Existing, FIELD_MANAGER, Foreign, PullSecret, TooManyHosts, Want, is_public, store::PullSecrets,
};
use crate::{
    admission::decide::Rules,
    clock::Clock,
    metrics::Metrics,
    namespace::{Namespace, store::Namespaces},
    registry::{Host, Service},
    token::{
        Freshness, TokenKey,
        cache::{MintError, TokenCache},
    },
};

/// How long one call to the API server may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Writes tried before giving up; each loss means that another replica won.
const MAX_ATTEMPTS: u32 = 12;
/// The pause after a lost write, times the attempt.
const CONFLICT_PAUSE: Duration = Duration::from_millis(5);
/// The pause after the guard refused: another API server may not have seen the opt-in label yet.
const GUARD_PAUSE: Duration = Duration::from_millis(150);
/// The part of the time that is kept for writing when minting takes long, as a divisor.
const WRITE_SHARE: u32 = 4;
/// How long a replica goes on after a failed admission: the kubelet asks again at 0 and at 13 s, so what is put right
/// by then costs the Pod nothing.
const COMPLETION_WINDOW: Duration = Duration::from_secs(10);
/// The pause between those tries.
const COMPLETION_PAUSE: Duration = Duration::from_millis(500);
/// Calls to the API server at the same time. Each is a connection of its own, and a burst of handshakes would only be slow.
const MAX_CALLS: usize = 32;
/// Namespaces that are being completed at the same time.
const MAX_COMPLETIONS: usize = 1024;

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
            Self::Deadline => "deadline",
            Self::Crashed => "crashed",
        }
    }

    /// Whether trying again in a second may help.
    fn is_passing(&self) -> bool {
        matches!(
            self,
            Self::Mint { .. } | Self::Api { .. } | Self::Contended | Self::Deadline
        )
    }
}

/// Ensures pull secrets; clones share the work.
#[derive(Clone)]
pub struct Ensurer(Arc<Inner>);

struct Inner {
    client: Client,
    rules: Arc<Rules>,
    namespaces: Namespaces,
    secrets: PullSecrets,
    tokens: TokenCache,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    tasks: TaskTracker,
    stop: CancellationToken,
    calls: Semaphore,
    turns: Mutex<HashMap<Namespace, Arc<tokio::sync::Mutex<()>>>>,
    completing: Mutex<HashMap<Namespace, BTreeMap<Host, TokenKey>>>,
}

/// What the ensurer works with.
pub struct Parts {
    /// The API server.
    pub client: Client,
    /// What the configuration says.
    pub rules: Arc<Rules>,
    /// What namespaces say.
    pub namespaces: Namespaces,
    /// What is known of every pull secret.
    pub secrets: PullSecrets,
    /// Where tokens come from.
    pub tokens: TokenCache,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who waits for the work at shutdown.
    pub tasks: TaskTracker,
    /// Ends the tries that nobody waits for.
    pub stop: CancellationToken,
}

impl Ensurer {
    /// Makes one of its parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let Parts {
            client,
            rules,
            namespaces,
            secrets,
            tokens,
            clock,
            metrics,
            tasks,
            stop,
        } = parts;
        Self(Arc::new(Inner {
            client,
            rules,
            namespaces,
            secrets,
            tokens,
            clock,
            metrics,
            tasks,
            stop,
            calls: Semaphore::new(MAX_CALLS),
            turns: Mutex::default(),
            completing: Mutex::default(),
        }))
    }

    /// Ensures that the pull secret has a usable credential for each host. On an error that may pass, the Secret names
    /// the hosts as wanted if it could be written at all, and the work goes on for some seconds in the background.
    pub async fn ensure(
        &self,
        namespace: &Namespace,
        hosts: BTreeMap<Host, TokenKey>,
        deadline: Instant,
    ) -> Result<(), EnsureError> {
        let this = self.clone();
        let (name, wanted) = (namespace.clone(), hosts.clone());
        let task = self
            .0
            .tasks
            .spawn(async move { this.attempt(&name, wanted, deadline).await });
        let result = match timeout_at(deadline, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(EnsureError::Crashed),
            Err(_) => Err(EnsureError::Deadline),
        };
        if result.as_ref().is_err_and(EnsureError::is_passing) {
            self.complete_later(namespace, hosts);
        }
        result
    }

    /// One try: mint what is missing, then write it, and the intents for what could not be minted.
    async fn attempt(
        &self,
        namespace: &Namespace,
        hosts: BTreeMap<Host, TokenKey>,
        deadline: Instant,
    ) -> Result<(), EnsureError> {
        let (wanted, failed) = self.mint(hosts, deadline).await;
        self.write(namespace, wanted, deadline).await?;
        failed.map_or(Ok(()), Err)
    }

    /// A host of the public gallery that can't be minted for is no failure: its images pull without.
    async fn mint(
        &self,
        hosts: BTreeMap<Host, TokenKey>,
        deadline: Instant,
    ) -> (BTreeMap<Host, Want>, Option<EnsureError>) {
        let left = deadline.saturating_duration_since(Instant::now());
        let deadline = deadline - left / WRITE_SHARE;
        let mints = hosts.into_iter().map(|(host, key)| async move {
            let token = self.0.tokens.get(&key, deadline).await;
            (host, key, token)
        });
        let mut failed = None;
        let mut wanted = BTreeMap::new();
        for (host, key, token) in join_all(mints).await {
            if let Err(error) = &token
                && key.endpoint.service == Service::Private
            {
                failed.get_or_insert(EnsureError::Mint {
                    host: host.clone(),
                    error: error.clone(),
                });
            }
            let want = Want {
                identity: key.identity.hash(),
                token: token.ok(),
            };
            wanted.insert(host, want);
        }
        (wanted, failed)
    }

    async fn write(
        &self,
        namespace: &Namespace,
        mut wanted: BTreeMap<Host, Want>,
        deadline: Instant,
    ) -> Result<(), EnsureError> {
        let turn = self.turn(namespace);
        let _turn = timeout_at(deadline, turn.0.lock())
            .await
            .map_err(|_| EnsureError::Deadline)?;
        let api: Api<Secret> = Api::namespaced(self.0.client.clone(), namespace.as_str());
        for attempt in 1..=MAX_ATTEMPTS {
            let known = self.0.secrets.get(namespace);
            if known
                .as_ref()
                .and_then(|entry| entry.state())
                .is_some_and(|state| self.is_satisfied(state, &wanted))
            {
                return Ok(());
            }
            // Nothing known on the first try: most likely nothing is there, and if it is, the write is a conflict.
            let secret = if known.is_none() && attempt == 1 {
                None
            } else {
                self.read(&api, namespace, deadline).await?
            };
            let existing = secret
                .as_ref()
                .map(Existing::read)
                .transpose()
                .map_err(EnsureError::Foreign)?;
            if let Some(existing) = existing
                .as_ref()
                .filter(|existing| existing.state.is_none())
            {
                self.restore(namespace, existing, &mut wanted, deadline)
                    .await;
            }
            let merged = PullSecret::merge(
                existing.as_ref(),
                &wanted,
                self.0.rules.registries_per_secret,
                self.0.clock.now(),
            )
            .map_err(EnsureError::TooManyHosts)?;
            let Some(merged) = merged else { return Ok(()) };
            let object = merged.to_object(&self.0.rules.secret_name, namespace, existing.as_ref());
            match self.apply(&api, &object, deadline).await {
                Ok(written) => {
                    self.0.secrets.saw(namespace, &written);
                    return Ok(());
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

    /// Whether what is wanted is there: a usable credential, or where there is no token to give, at least the intent.
    fn is_satisfied(&self, state: &super::State, wanted: &BTreeMap<Host, Want>) -> bool {
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

    async fn read(
        &self,
        api: &Api<Secret>,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Result<Option<Secret>, EnsureError> {
        let call = api.get_opt(&self.0.rules.secret_name);
        let (outcome, result) = match self.call(call, deadline).await {
            Some(Ok(secret)) => ("ok", Ok(secret)),
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
            Err(Lost::ForGood(error)) => Err(error),
            Err(Lost::Conflict) => Err(EnsureError::Contended),
            Err(Lost::Guard(message)) => Err(EnsureError::Refused {
                verb: "read",
                message,
            }),
        }
    }

    async fn apply(
        &self,
        api: &Api<Secret>,
        secret: &Secret,
        deadline: Instant,
    ) -> Result<Secret, Lost> {
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(secret);
        let call = api.patch(&self.0.rules.secret_name, &params, &patch);
        let (outcome, result) = match self.call(call, deadline).await {
            Some(Ok(secret)) => ("ok", Ok(secret)),
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

    /// Somebody else changed the data or the state, so nothing in it can be trusted: every host that it claims to have
    /// and that we would mint for is minted anew.
    async fn restore(
        &self,
        namespace: &Namespace,
        existing: &Existing,
        wanted: &mut BTreeMap<Host, Want>,
        deadline: Instant,
    ) {
        tracing::warn!(%namespace, "the pull secret was changed by somebody else and is put right");
        self.0.metrics.tampered.inc();
        let Some(said) = self.0.namespaces.opted_in(namespace, deadline).await else {
            return;
        };
        let rules = &self.0.rules;
        let claimed = existing
            .claimed
            .iter()
            .filter(|host| !wanted.contains_key(*host))
            .filter_map(|host| rules.key_for(host.as_str(), namespace, &said))
            .take(rules.registries_per_secret.saturating_sub(wanted.len()))
            .collect();
        let (claimed, _) = self.mint(claimed, deadline).await;
        wanted.extend(claimed);
    }

    /// Goes on trying for a few seconds, once per namespace, with all the hosts that failed there.
    fn complete_later(&self, namespace: &Namespace, hosts: BTreeMap<Host, TokenKey>) {
        let mut completing = self
            .0
            .completing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(pending) = completing.get_mut(namespace) {
            pending.extend(hosts);
            return;
        }
        if completing.len() >= MAX_COMPLETIONS || self.0.stop.is_cancelled() {
            return;
        }
        completing.insert(namespace.clone(), hosts);
        let completion = Completion {
            ensurer: self.clone(),
            namespace: namespace.clone(),
        };
        let stop = self.0.stop.clone();
        self.0.tasks.spawn(async move {
            stop.run_until_cancelled(completion.run()).await;
        });
    }

    fn turn(&self, namespace: &Namespace) -> Turn<'_> {
        let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = turns.entry(namespace.clone()).or_default().clone();
        Turn(lock, self, namespace.clone())
    }
}

/// One namespace's lock; the last who lets go of it takes it off the map.
struct Turn<'a>(Arc<tokio::sync::Mutex<()>>, &'a Ensurer, Namespace);

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

/// The tries that follow a failed admission.
struct Completion {
    ensurer: Ensurer,
    namespace: Namespace,
}

impl Completion {
    async fn run(&self) {
        let end = Instant::now() + COMPLETION_WINDOW;
        while Instant::now() < end {
            sleep(COMPLETION_PAUSE).await;
            let hosts = self.hosts();
            match self
                .ensurer
                .attempt(&self.namespace, hosts.clone(), end)
                .await
            {
                Ok(()) if self.hosts() == hosts => {
                    tracing::info!(namespace = %self.namespace, "the pull secret was completed after a failed admission");
                    return;
                }
                Err(error) if !error.is_passing() => return,
                _ => {}
            }
        }
        tracing::warn!(namespace = %self.namespace, "the pull secret could not be completed; its next admission tries again");
    }

    fn hosts(&self) -> BTreeMap<Host, TokenKey> {
        let completing = self
            .ensurer
            .0
            .completing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        completing.get(&self.namespace).cloned().unwrap_or_default()
    }
}

impl Drop for Completion {
    fn drop(&mut self) {
        let mut completing = self
            .ensurer
            .0
            .completing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        completing.remove(&self.namespace);
    }
}

/// What a call to the API server came to, if not to success.
enum Lost {
    /// Another writer was first.
    Conflict,
    /// The guard refused.
    Guard(String),
    /// Trying the same again would not help.
    ForGood(EnsureError),
}

impl Lost {
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
