//! Provisions the pull secret that an admission needs: mint, then write.
//!
//! The work runs in tasks of its own, so that a request that gives up loses nothing that others wait for. A want that could
//! not be written is kept, and written once it can be.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use tokio::{
    sync::Semaphore,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    DesiredCredential, is_public,
    writer::{Added, Addition, Writer},
};
pub use crate::pull_secret::writer::PullSecretError;
use crate::{
    cluster::{
        event_recorder::EventRecorder,
        namespace::{Namespace, NamespaceSettings},
        namespaces::Namespaces,
    },
    process::backoff::Backoff,
    pull_secret::{events::PullSecretEvent, metrics::PullSecretMetrics},
    registry::{Host, Service},
    rules::Rules,
    telemetry::{otel::SpanParent, phases::Phase},
    token::{
        TokenKey,
        cache::{Origin, TokenCache},
    },
};

/// The part of the time that is kept for writing when minting takes long, as a divisor.
const WRITE_SHARE: u32 = 4;
/// How long a replica tries often after a failed admission: the kubelet asks again at 0 and at 13 s, so what succeeds by then
/// costs the Pod nothing.
const FIRST_WINDOW: Duration = Duration::from_secs(10);
/// The pause between those tries.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// How long one try in the background may take.
const TRY_TIMEOUT: Duration = Duration::from_secs(10);
/// Namespaces whose wants are kept at the same time.
const MAX_PENDING: usize = 1024;
/// Tries in the background at the same time.
const MAX_TRIES: usize = 32;
/// Namespaces whose demand is noted at the same time.
const MAX_NOTES: usize = 64;

/// Provisions pull secrets; clones share the work.
#[derive(Clone)]
pub struct Provisioner(Arc<Inner>);

struct Inner {
    parts: ProvisionerOptions,
    pending: Mutex<HashMap<Namespace, RetainedDemand>>,
    tries: Semaphore,
    noting: Mutex<HashSet<Namespace>>,
}

/// What a namespace's Pods want, and the rules of the last admission that said so.
#[derive(Clone)]
struct RetainedDemand {
    hosts: BTreeMap<Host, TokenKey>,
    rules: Arc<Rules>,
}

/// Where the tokens that an admission needed came from. Of several the worst counts, and the later is the worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TokenSource {
    /// It needed none: the pull secret has them.
    None,
    /// All were in memory.
    Memory,
    /// At least one was asked of AWS.
    Minted,
    /// At least one could not be had.
    Failed,
    /// The deadline came first; the work goes on.
    Pending,
}

/// How an admission came by its pull secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecretSource {
    /// It needed none.
    None,
    /// What is known of it has all that is needed.
    Known,
    /// A dry run: it was left as it is.
    DryRun,
    /// Another writer was first.
    Unchanged,
    /// It was written.
    Written,
    /// It names what is wanted, and a host in it has no credential.
    Wanted,
    /// It isn't ours.
    Foreign,
    /// It could not be read or written.
    Failed,
    /// The deadline came first; the work goes on.
    Pending,
}

impl TokenSource {
    /// Every value.
    pub const ALL: [Self; 5] = [
        Self::None,
        Self::Memory,
        Self::Minted,
        Self::Failed,
        Self::Pending,
    ];

    /// Returns the value as a log's field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Memory => "memory",
            Self::Minted => "minted",
            Self::Failed => "failed",
            Self::Pending => "pending",
        }
    }
}

impl SecretSource {
    /// Every value.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::Known,
        Self::DryRun,
        Self::Unchanged,
        Self::Written,
        Self::Wanted,
        Self::Foreign,
        Self::Failed,
        Self::Pending,
    ];

    /// Returns the value as a log's field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Known => "known",
            Self::DryRun => "dry_run",
            Self::Unchanged => "unchanged",
            Self::Written => "written",
            Self::Wanted => "requested",
            Self::Foreign => "foreign",
            Self::Failed => "failed",
            Self::Pending => "pending",
        }
    }
}

/// What came of provisioning a pull secret.
#[derive(Debug, Clone)]
pub struct Provisioned {
    /// Where its tokens came from.
    pub tokens: TokenSource,
    /// What became of the Secret.
    pub secret: SecretSource,
    /// Whether it has a usable credential for each host.
    pub result: Result<(), PullSecretError>,
}

/// What came of minting.
struct Minted {
    wanted: BTreeMap<Host, DesiredCredential>,
    source: TokenSource,
    /// The first that failed and matters.
    failed: Option<PullSecretError>,
}

/// What the provisioner works with.
pub struct ProvisionerOptions {
    /// Who writes.
    pub writer: Writer,
    /// What namespaces say.
    pub namespaces: Namespaces,
    /// Where tokens come from.
    pub tokens: TokenCache,
    /// What is counted.
    pub metrics: Arc<PullSecretMetrics>,
    /// Tells the namespaces' people, if anything is to.
    pub events: Option<EventRecorder>,
    /// Who waits for the work at shutdown.
    pub tasks: TaskTracker,
    /// Ends the tries that nobody waits for.
    pub stop: CancellationToken,
}

impl Provisioner {
    /// Makes one of its parts.
    #[must_use]
    pub fn new(parts: ProvisionerOptions) -> Self {
        Self(Arc::new(Inner {
            parts,
            pending: Mutex::default(),
            tries: Semaphore::new(MAX_TRIES),
            noting: Mutex::default(),
        }))
    }

    /// Ensures that the pull secret has a usable credential for each host, by the rules that the admission was decided by. On
    /// an error the Secret names the hosts as wanted if it could be written at all, and the want is kept until it does.
    pub async fn provision(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        hosts: BTreeMap<Host, TokenKey>,
        rules: &Arc<Rules>,
        deadline: Instant,
        place: &SpanParent,
    ) -> Provisioned {
        let (this, name, place) = (self.clone(), namespace.clone(), place.clone());
        let want = RetainedDemand {
            hosts,
            rules: rules.clone(),
        };
        let (wanted, settings) = (want.clone(), settings.clone());
        let task = self.0.parts.tasks.spawn(async move {
            this.attempt(&name, &settings, &wanted, deadline, &place)
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
        if provisioned.result.as_ref().is_err_and(is_kept) {
            self.keep(namespace, want);
        }
        provisioned
    }

    /// Keeps what Pods want, and writes it as soon as that can be.
    pub fn want(&self, namespace: &Namespace, hosts: BTreeMap<Host, TokenKey>, rules: &Arc<Rules>) {
        let rules = rules.clone();
        if !self.0.parts.writer.names_all(namespace, hosts.keys()) {
            self.keep(namespace, RetainedDemand { hosts, rules });
        }
    }

    /// Notes in the background that an admission wanted these hosts, whose credentials are there.
    pub fn note_demand(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        hosts: &BTreeMap<Host, TokenKey>,
        limit: usize,
    ) {
        {
            let mut noting = lock(&self.0.noting);
            if noting.len() >= MAX_NOTES || !noting.insert(namespace.clone()) {
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
        self.0.parts.tasks.spawn(async move {
            let addition = Addition {
                wanted: &wanted,
                limit,
                replaces_tampered: false,
            };
            let deadline = Instant::now() + TRY_TIMEOUT;
            let writer = &this.0.parts.writer;
            if let Err(error) = writer.add(&name, &settings, addition, deadline).await {
                tracing::debug!(namespace = %name, %error, "recording the last demand failed; the next admission retries");
            }
            lock(&this.0.noting).remove(&name);
        });
    }

    /// Reads a pull secret that nobody here has read since it changed. A failure shows when it is provisioned.
    pub async fn look_once(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        deadline: Instant,
    ) {
        let writer = &self.0.parts.writer;
        let looked = writer.look_once(namespace, settings, deadline).await;
        if let Err(error) = looked {
            tracing::debug!(%namespace, %error, "reading the pull secret failed");
        }
    }

    /// One try: mint what is missing, then write it, and name what could not be minted.
    async fn attempt(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        RetainedDemand { hosts, rules }: &RetainedDemand,
        deadline: Instant,
        place: &SpanParent,
    ) -> Provisioned {
        let minting = place.enter(&self.0.parts.metrics.phases, Phase::Token);
        let Minted {
            wanted,
            source: tokens,
            failed,
        } = self.mint(hosts.clone(), deadline).await;
        drop(minting);
        let _writing = place.enter(&self.0.parts.metrics.phases, Phase::Write);
        // The public gallery's images pull without.
        let matters = |host: &&Host| !is_public(host);
        let names: Vec<Host> = wanted.keys().filter(matters).cloned().collect();
        let limit = rules.registries_per_secret;
        let written = self
            .write(namespace, settings, wanted, rules, deadline)
            .await;
        let (secret, left_out) = match written {
            Err(error @ PullSecretError::Foreign(_)) => {
                let (secret, result) = (SecretSource::Foreign, Err(error));
                return Provisioned {
                    tokens,
                    secret,
                    result,
                };
            }
            Err(error) => {
                let (secret, result) = (SecretSource::Failed, Err(error));
                return Provisioned {
                    tokens,
                    secret,
                    result,
                };
            }
            Ok(Added::Written(left_out)) => (SecretSource::Written, left_out),
            Ok(Added::Unchanged(left_out)) => (SecretSource::Unchanged, left_out),
            Ok(Added::Tampered(_)) => (SecretSource::Unchanged, vec![]),
        };
        // Another replica, or the leader, may have minted what failed here.
        let writer = &self.0.parts.writer;
        let fits = |host: &&Host| !left_out.contains(*host);
        let fitting: Vec<Host> = names.iter().filter(fits).cloned().collect();
        let failed = failed.filter(|_| !writer.is_usable(namespace, &fitting));
        let (secret, result) = match failed {
            Some(error) => (SecretSource::Wanted, Err(error)),
            None if left_out.is_empty() => (secret, Ok(())),
            None => {
                let hosts = left_out;
                (secret, Err(PullSecretError::Full { hosts, limit }))
            }
        };
        Provisioned {
            tokens,
            secret,
            result,
        }
    }

    async fn write(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        mut wanted: BTreeMap<Host, DesiredCredential>,
        rules: &Rules,
        deadline: Instant,
    ) -> Result<Added, PullSecretError> {
        let writer = &self.0.parts.writer;
        let limit = rules.registries_per_secret;
        let addition = Addition {
            wanted: &wanted,
            limit,
            replaces_tampered: false,
        };
        let added = writer.add(namespace, settings, addition, deadline).await?;
        let Added::Tampered(claimed) = added else {
            return Ok(added);
        };
        let brings_news = wanted.keys().any(|host| !claimed.contains(host));
        self.restore(namespace, settings, &claimed, &mut wanted, rules, deadline)
            .await;
        let has_any = wanted.values().any(|desired| desired.token.is_some());
        if !has_any && !brings_news {
            // It may still open registries, and nothing at all opens none; it names already what is wanted.
            return Ok(Added::Tampered(claimed));
        }
        let addition = Addition {
            wanted: &wanted,
            limit,
            replaces_tampered: true,
        };
        writer.add(namespace, settings, addition, deadline).await
    }

    /// A host of the public gallery that can't be minted for is no failure: its images pull without.
    async fn mint(&self, hosts: BTreeMap<Host, TokenKey>, deadline: Instant) -> Minted {
        let left = deadline.saturating_duration_since(Instant::now());
        let deadline = deadline - left / WRITE_SHARE;
        let mints = hosts.into_iter().map(|(host, key)| async move {
            let token = self.0.parts.tokens.get(&key, deadline).await;
            (host, key, token)
        });
        let mut failed = None;
        let mut wanted = BTreeMap::new();
        let mut source = TokenSource::None;
        for (host, key, token) in join_all(mints).await {
            if let Err(error) = &token
                && key.endpoint.service == Service::Private
            {
                failed.get_or_insert(PullSecretError::Mint {
                    host: host.clone(),
                    error: error.clone(),
                });
            }
            source = source.max(match &token {
                Ok((_, Origin::Memory)) => TokenSource::Memory,
                Ok((_, Origin::Minted)) => TokenSource::Minted,
                Err(_) => TokenSource::Failed,
            });
            let desired = DesiredCredential {
                identity: key.identity.hash(),
                token: token.ok().map(|(token, _)| token),
            };
            wanted.insert(host, desired);
        }
        Minted {
            wanted,
            source,
            failed,
        }
    }

    /// Somebody else changed the data or the state, so nothing in it can be trusted: every host that it claims to have and
    /// that the rules allow is a wish, and is minted for as one.
    async fn restore(
        &self,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        claimed: &[Host],
        wanted: &mut BTreeMap<Host, DesiredCredential>,
        rules: &Rules,
        deadline: Instant,
    ) {
        tracing::warn!(%namespace, "pull secret was changed by another client; repairing it");
        self.0.parts.metrics.tampered.inc();
        let claimed = claimed
            .iter()
            .filter(|host| !wanted.contains_key(*host))
            .filter_map(|host| rules.key_for(host.as_str(), namespace, settings))
            .take(rules.registries_per_secret.saturating_sub(wanted.len()))
            .collect();
        wanted.extend(self.mint(claimed, deadline).await.wanted);
    }

    /// Keeps a want, and tries in the background until the Secret names all of it.
    fn keep(&self, namespace: &Namespace, want: RetainedDemand) {
        let mut pending = lock(&self.0.pending);
        if let Some(known) = pending.get_mut(namespace) {
            known.hosts.extend(want.hosts);
            // Bounded by what a Secret can hold: the first that were wanted stay.
            while known.hosts.len() > want.rules.registries_per_secret {
                known.hosts.pop_last();
            }
            known.rules = want.rules;
            return;
        }
        if pending.len() >= MAX_PENDING || self.0.parts.stop.is_cancelled() {
            self.0.parts.metrics.wants_dropped.inc();
            return;
        }
        pending.insert(namespace.clone(), want);
        self.0.parts.metrics.wants_pending.inc();
        drop(pending);
        let pending = Pending {
            provisioner: self.clone(),
            namespace: namespace.clone(),
        };
        let stop = self.0.parts.stop.clone();
        self.0.parts.tasks.spawn(async move {
            stop.run_until_cancelled(pending.run()).await;
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns whether the want is kept: time, or somebody else, may help.
fn is_kept(error: &PullSecretError) -> bool {
    match error {
        PullSecretError::Foreign(_)
        | PullSecretError::Full { .. }
        | PullSecretError::NotLeading => false,
        PullSecretError::Mint { .. }
        | PullSecretError::Refused { .. }
        | PullSecretError::Api { .. }
        | PullSecretError::Contended
        | PullSecretError::NoKey
        | PullSecretError::Deadline
        | PullSecretError::Crashed => true,
    }
}

/// The tries that follow a failed admission.
struct Pending {
    provisioner: Provisioner,
    namespace: Namespace,
}

impl Pending {
    async fn run(&self) {
        let end_of_window = Instant::now() + FIRST_WINDOW;
        let mut backoff = Backoff::default();
        let mut is_told = false;
        loop {
            let is_early = Instant::now() < end_of_window;
            sleep(if is_early {
                FIRST_PAUSE
            } else {
                backoff.next(self.namespace.as_str())
            })
            .await;
            let Some(want) = self.wanted() else { return };
            let namespaces = &self.provisioner.0.parts.namespaces;
            let deadline = Instant::now() + TRY_TIMEOUT;
            let settings = namespaces.opted_in(&self.namespace, deadline).await;
            let Some(settings) = settings.filter(|settings| !settings.is_terminating) else {
                return self.finish("the namespace is no longer opted in");
            };
            // The semaphore is never closed.
            let _permit = self.provisioner.0.tries.acquire().await;
            let provisioned = self
                .provisioner
                .attempt(
                    &self.namespace,
                    &settings,
                    &want,
                    deadline,
                    &SpanParent::default(),
                )
                .await;
            let is_named = self
                .provisioner
                .0
                .parts
                .writer
                .names_all(&self.namespace, want.hosts.keys());
            match provisioned.result {
                Ok(()) if self.is_all(&want) => {
                    return self.finish("it has every registry that its Pods need");
                }
                Ok(()) => {}
                Err(error) if !is_kept(&error) => {
                    return self.finish("retrying can't fix the error");
                }
                // The leader mints for what the Secret names.
                Err(_) if is_named && !is_early && self.is_all(&want) => {
                    return self.finish(
                        "it names every registry that its Pods need; the leader mints for them",
                    );
                }
                Err(error) => self.report(&error, &mut is_told),
            }
        }
    }

    fn report(&self, error: &PullSecretError, is_told: &mut bool) {
        let (namespace, parts) = (&self.namespace, &self.provisioner.0.parts);
        if !std::mem::replace(is_told, true) {
            tracing::warn!(%namespace, %error, "pull secret lacks registries that its Pods need; retrying");
        }
        if let (PullSecretError::Refused { message, .. }, Some(events)) = (error, &parts.events)
            && let Some(event) = PullSecretEvent::from_refusal(message)
        {
            events.publish(namespace, &event);
        }
    }

    fn finish(&self, why: &'static str) {
        tracing::info!(namespace = %self.namespace, reason = why, "no longer retrying the pull secret");
    }

    fn wanted(&self) -> Option<RetainedDemand> {
        lock(&self.provisioner.0.pending)
            .get(&self.namespace)
            .cloned()
    }

    /// Returns whether nothing was wanted beside it meanwhile.
    fn is_all(&self, want: &RetainedDemand) -> bool {
        self.wanted().is_none_or(|now| now.hosts == want.hosts)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        lock(&self.provisioner.0.pending).remove(&self.namespace);
        self.provisioner.0.parts.metrics.wants_pending.dec();
    }
}
