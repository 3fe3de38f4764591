//! Provisions the pull secret that an admission needs: mints, then writes.
//!
//! Each attempt runs in a task of its own, so that a request that gives up loses nothing that
//! others wait for. Demand that could not be written is retained, and written once that is
//! possible.

mod attempt;
mod outcome;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::attempt::Attempt;
pub use self::outcome::{Provisioned, SecretSource, TokenSource};
pub use super::error::PullSecretError;
use super::{
    DesiredCredential,
    events::PullSecretEvent,
    writer::{Addition, Writer},
};
use crate::{
    cluster::{
        event_recorder::EventRecorder,
        namespace::{Namespace, NamespaceSettings},
        namespaces::Namespaces,
    },
    process::{backoff::Backoff, current::Current},
    pull_secret::metrics::PullSecretMetrics,
    registry::Host,
    telemetry::otel::SpanParent,
    token::{TokenKey, cache::TokenCache, rules::Rules},
};

/// How long a replica retries often after a failed admission: the kubelet asks again at 0 and at
/// 13 s, so a success by then costs the Pod nothing.
const FAST_RETRY_WINDOW: Duration = Duration::from_secs(10);
/// The pause between those retries.
const FAST_RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How long one attempt in the background may take.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);
/// The most namespaces whose demand is retained at the same time.
const MAX_RETAINED: usize = 1024;
/// How many namespaces may be retained when one is added that the watch doesn't have as opted in: a
/// client that reaches the port can name any.
const MAX_RETAINED_UNKNOWN: usize = 256;
/// The most retries at the same time.
const MAX_RETRIES: usize = 32;
/// The most namespaces whose last demand is recorded at the same time.
const MAX_RECORDING: usize = 64;

/// Provisions pull secrets; clones share the work.
#[derive(Clone)]
pub struct Provisioner(Arc<Inner>);

struct Inner {
    options: ProvisionerOptions,
    retained: Mutex<HashMap<Namespace, RetainedDemand>>,
    retries: Semaphore,
    recording: Mutex<HashSet<Namespace>>,
}

/// The hosts that a namespace's Pods demand. The rules of each retry decide what they get.
type RetainedDemand = BTreeSet<Host>;

/// The pull secret that an admission needs.
pub struct Needs<'a> {
    /// The namespace.
    pub namespace: &'a Namespace,
    /// Its settings.
    pub settings: &'a NamespaceSettings,
    /// The hosts, each with the key of its token.
    pub hosts: BTreeMap<Host, TokenKey>,
    /// The rules that the admission was decided by.
    pub rules: &'a Arc<Rules>,
}

/// The dependencies of a [`Provisioner`].
pub struct ProvisionerOptions {
    /// Writes the pull secrets.
    pub writer: Writer,
    /// The settings of the opted-in namespaces.
    pub namespaces: Namespaces,
    /// The rules of now, by which retained demand is served.
    pub rules: Current<Rules>,
    /// The tokens.
    pub tokens: TokenCache,
    /// Counts the retained demand and the repairs.
    pub metrics: Arc<PullSecretMetrics>,
    /// Publishes Events in the namespaces; `None`: nothing is published.
    pub events: Option<EventRecorder>,
    /// Waits for the work at shutdown.
    pub tasks: TaskTracker,
    /// Ends the retries.
    pub stop: CancellationToken,
}

impl Provisioner {
    /// Creates a provisioner.
    #[must_use]
    pub fn new(options: ProvisionerOptions) -> Self {
        Self(Arc::new(Inner {
            options,
            retained: Mutex::default(),
            retries: Semaphore::new(MAX_RETRIES),
            recording: Mutex::default(),
        }))
    }

    /// Ensures that the pull secret has a usable credential for each host. On an error the Secret
    /// names the hosts if it could be written at all, and the demand is retained until the Secret
    /// does. `slot` is held until the work ends, also if the caller gives up.
    pub async fn provision(
        &self,
        needs: Needs<'_>,
        deadline: Instant,
        parent: &SpanParent,
        slot: impl Send + 'static,
    ) -> Provisioned {
        let Needs {
            namespace,
            settings,
            hosts,
            rules,
        } = needs;
        let demand: RetainedDemand = hosts.keys().cloned().collect();
        let (this, name, parent) = (self.clone(), namespace.clone(), parent.clone());
        let (rules, settings) = (rules.clone(), settings.clone());
        let task = self.0.options.tasks.spawn(async move {
            let _slot = slot;
            this.attempt(&name, &settings, &hosts, &rules, deadline, &parent)
                .await
        });
        let provisioned = match timeout_at(deadline, task).await {
            Ok(Ok(provisioned)) => provisioned,
            Ok(Err(_)) => Provisioned {
                tokens: TokenSource::Failed,
                secret: SecretSource::Failed,
                result: Err(PullSecretError::Crashed),
            },
            Err(_) => Provisioned {
                tokens: TokenSource::Pending,
                secret: SecretSource::Pending,
                result: Err(PullSecretError::Deadline),
            },
        };
        if provisioned.result.as_ref().is_err_and(is_retryable) {
            self.retain(namespace, demand);
        }
        provisioned
    }

    /// Retains the demand of Pods, and writes it as soon as that is possible.
    pub fn retain_demand(&self, namespace: &Namespace, hosts: BTreeSet<Host>) {
        if !self.0.options.writer.names_all(namespace, &hosts) {
            self.retain(namespace, hosts);
        }
    }

    /// Records in the background that an admission wanted these hosts, whose credentials exist.
    pub fn record_demand(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        hosts: &BTreeMap<Host, TokenKey>,
        limit: usize,
    ) {
        {
            let mut recording = lock(&self.0.recording);
            if recording.len() >= MAX_RECORDING || !recording.insert(namespace.clone()) {
                return;
            }
        }
        let wanted: BTreeMap<_, _> = hosts
            .iter()
            .map(|(host, key)| {
                let identity = key.identity.hash();
                let token = None;
                (host.clone(), DesiredCredential { identity, token })
            })
            .collect();
        let (this, name, settings) = (self.clone(), namespace.clone(), settings.clone());
        self.0.options.tasks.spawn(async move {
            let addition = Addition {
                wanted: &wanted,
                limit,
                replaces_tampered: false,
            };
            let deadline = Instant::now() + ATTEMPT_TIMEOUT;
            let writer = &this.0.options.writer;
            if let Err(error) = writer.add(&name, &settings, addition, deadline).await {
                tracing::debug!(namespace = %name, %error, "recording the last demand failed; the next admission retries");
            }
            lock(&this.0.recording).remove(&name);
        });
    }

    /// Reads a pull secret that this replica has not read since it changed. A failure shows when
    /// the Secret is provisioned.
    pub async fn read_if_unread(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        deadline: Instant,
    ) {
        let writer = &self.0.options.writer;
        let read = writer.read_if_unread(namespace, settings, deadline).await;
        if let Err(error) = read {
            tracing::debug!(%namespace, %error, "reading the pull secret failed");
        }
    }

    async fn attempt(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        hosts: &BTreeMap<Host, TokenKey>,
        rules: &Rules,
        deadline: Instant,
        parent: &SpanParent,
    ) -> Provisioned {
        let options = &self.0.options;
        let attempt = Attempt {
            writer: &options.writer,
            tokens: &options.tokens,
            metrics: &options.metrics,
            namespace,
            settings,
            rules,
            deadline,
        };
        attempt.run(hosts, parent).await
    }

    /// Retains demand, and retries in the background until the Secret names all of it.
    fn retain(&self, namespace: &Namespace, demand: RetainedDemand) {
        let options = &self.0.options;
        let limit = options.rules.get().registries_per_secret;
        let is_known = options.namespaces.peek(namespace).is_some();
        let mut retained = lock(&self.0.retained);
        if let Some(known) = retained.get_mut(namespace) {
            known.extend(demand);
            // Bounded by what a Secret can hold: the first in order stay.
            while known.len() > limit {
                known.pop_last();
            }
            return;
        }
        let room = if is_known {
            MAX_RETAINED
        } else {
            MAX_RETAINED_UNKNOWN
        };
        if retained.len() >= room || options.stop.is_cancelled() {
            options.metrics.wants_dropped.inc();
            return;
        }
        retained.insert(namespace.clone(), demand);
        options.metrics.wants_pending.inc();
        drop(retained);
        let retry = Retry {
            provisioner: self.clone(),
            namespace: namespace.clone(),
            has_ended: AtomicBool::new(false),
        };
        let stop = options.stop.clone();
        options.tasks.spawn(async move {
            stop.run_until_cancelled(retry.run()).await;
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether a later attempt may succeed, because of time or of another client.
fn is_retryable(error: &PullSecretError) -> bool {
    match error {
        PullSecretError::Foreign(_)
        | PullSecretError::Full { .. }
        | PullSecretError::NotLeading => false,
        PullSecretError::Mint { .. }
        | PullSecretError::Refused { .. }
        | PullSecretError::Api { .. }
        | PullSecretError::Contended
        | PullSecretError::NoKey
        | PullSecretError::Namespace { .. }
        | PullSecretError::Overloaded
        | PullSecretError::Deadline
        | PullSecretError::Crashed => true,
    }
}

/// The retries that follow a failed admission; the demand is retained until they end.
struct Retry {
    provisioner: Provisioner,
    namespace: Namespace,
    /// Whether the demand is no longer retained.
    has_ended: AtomicBool,
}

impl Retry {
    async fn run(&self) {
        let end_of_window = Instant::now() + FAST_RETRY_WINDOW;
        let mut backoff = Backoff::default();
        let mut is_logged = false;
        loop {
            let is_early = Instant::now() < end_of_window;
            sleep(if is_early {
                FAST_RETRY_PAUSE
            } else {
                backoff.next(self.namespace.as_str())
            })
            .await;
            // The semaphore is never closed.
            let _permit = self.provisioner.0.retries.acquire().await;
            let Some(demand) = self.demand() else { return };
            if self.round(&demand, is_early, &mut is_logged).await && self.finish(&demand) {
                return;
            }
        }
    }

    /// Tries once, and returns whether there is nothing more to try.
    async fn round(&self, demand: &RetainedDemand, is_early: bool, is_logged: &mut bool) -> bool {
        let options = &self.provisioner.0.options;
        let deadline = Instant::now() + ATTEMPT_TIMEOUT;
        let settings = match options.namespaces.opted_in(&self.namespace, deadline).await {
            Ok(settings) => settings,
            Err(error) => {
                let message = error.to_string();
                self.report(&PullSecretError::Namespace { message }, is_logged);
                return false;
            }
        };
        let rules = options.rules.get();
        let settings = settings.filter(|settings| {
            !settings.is_terminating && !rules.excluded.contains(&self.namespace)
        });
        let Some(settings) = settings else {
            // Anybody can name such a namespace.
            tracing::debug!(namespace = %self.namespace, "not retrying: the namespace is not opted in");
            return true;
        };
        let key = |host: &Host| rules.key_for(host.as_str(), &self.namespace, &settings);
        let hosts: BTreeMap<_, _> = demand.iter().filter_map(key).collect();
        if hosts.is_empty() {
            self.log_end("the rules give a token for none of the registries that its Pods need");
            return true;
        }
        let parent = SpanParent::default();
        let provisioned = self
            .provisioner
            .attempt(
                &self.namespace,
                &settings,
                &hosts,
                &rules,
                deadline,
                &parent,
            )
            .await;
        let is_named = options.writer.names_all(&self.namespace, hosts.keys());
        match provisioned.result {
            Ok(()) => self.log_end("it has every registry that its Pods need"),
            Err(error) if !is_retryable(&error) => self.log_end("retrying can't fix the error"),
            // The leader mints for the hosts that the Secret names.
            Err(_) if is_named && !is_early => {
                self.log_end(
                    "it names every registry that its Pods need; the leader mints for them",
                );
            }
            Err(error) => {
                self.report(&error, is_logged);
                return false;
            }
        }
        true
    }

    fn report(&self, error: &PullSecretError, is_logged: &mut bool) {
        let (namespace, options) = (&self.namespace, &self.provisioner.0.options);
        if !std::mem::replace(is_logged, true) {
            tracing::warn!(%namespace, %error, "pull secret lacks registries that its Pods need; retrying");
        }
        if let (PullSecretError::Refused { message, .. }, Some(events)) = (error, &options.events)
            && let Some(event) = PullSecretEvent::from_refusal(message)
        {
            events.publish(namespace, &event);
        }
    }

    fn log_end(&self, why: &'static str) {
        tracing::info!(namespace = %self.namespace, reason = why, "no longer retrying the pull secret");
    }

    fn demand(&self) -> Option<RetainedDemand> {
        lock(&self.provisioner.0.retained)
            .get(&self.namespace)
            .cloned()
    }

    /// Stops retaining the demand, unless other hosts were wanted meanwhile.
    fn finish(&self, demand: &RetainedDemand) -> bool {
        let mut retained = lock(&self.provisioner.0.retained);
        if retained
            .get(&self.namespace)
            .is_some_and(|now| now != demand)
        {
            return false;
        }
        retained.remove(&self.namespace);
        self.has_ended.store(true, Ordering::Relaxed);
        true
    }
}

impl Drop for Retry {
    fn drop(&mut self) {
        if !self.has_ended.load(Ordering::Relaxed) {
            lock(&self.provisioner.0.retained).remove(&self.namespace);
        }
        self.provisioner.0.options.metrics.wants_pending.dec();
    }
}
