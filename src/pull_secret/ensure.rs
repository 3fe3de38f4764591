//! Ensures that a namespace's pull secret has what a Pod needs: mint, then write.
//!
//! The work runs in tasks of its own, so that a request that gives up loses nothing that others wait for.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub use super::write::EnsureError;
use super::{
    Terms, Want, is_public,
    write::{Manner, NoFence, Writer, Written},
};
use crate::{
    admission::decide::Rules,
    metrics::{Metrics, Phase},
    namespace::{Namespace, store::Namespaces},
    registry::{Host, Service},
    token::{
        TokenKey,
        cache::{Origin, TokenCache},
    },
    traces::Place,
};

/// The part of the time that is kept for writing when minting takes long, as a divisor.
const WRITE_SHARE: u32 = 4;
/// How long a replica goes on after a failed admission: the kubelet asks again at 0 and at 13 s, so what is put right
/// by then costs the Pod nothing.
const COMPLETION_WINDOW: Duration = Duration::from_secs(10);
/// The pause between those tries.
const COMPLETION_PAUSE: Duration = Duration::from_millis(500);
/// Namespaces that are being completed at the same time.
const MAX_COMPLETIONS: usize = 1024;

/// Ensures pull secrets; clones share the work.
#[derive(Clone)]
pub struct Ensurer(Arc<Inner>);

struct Inner {
    parts: Parts,
    completing: Mutex<HashMap<Namespace, Pending>>,
}

/// What a namespace's failed admissions wanted, and the rules of the last of them.
#[derive(Clone)]
struct Pending {
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
    /// It was written, or stood already, as an intent: a host in it has no credential.
    Intent,
    /// It isn't ours.
    Foreign,
    /// It could not be read or written.
    Failed,
    /// The deadline came first; the work goes on.
    Pending,
}

impl TokenSource {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::None,
        Self::Memory,
        Self::Minted,
        Self::Failed,
        Self::Pending,
    ];

    /// As a log's field.
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
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::None,
        Self::Known,
        Self::DryRun,
        Self::Unchanged,
        Self::Written,
        Self::Intent,
        Self::Foreign,
        Self::Failed,
        Self::Pending,
    ];

    /// As a log's field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Known => "known",
            Self::DryRun => "dry_run",
            Self::Unchanged => "unchanged",
            Self::Written => "written",
            Self::Intent => "intent",
            Self::Foreign => "foreign",
            Self::Failed => "failed",
            Self::Pending => "pending",
        }
    }
}

/// What came of ensuring a pull secret.
#[derive(Debug, Clone)]
pub struct Ensured {
    /// Where its tokens came from.
    pub tokens: TokenSource,
    /// What became of the Secret.
    pub secret: SecretSource,
    /// Whether it has a usable credential for each host.
    pub result: Result<(), EnsureError>,
}

/// What came of minting.
struct Minted {
    wanted: BTreeMap<Host, Want>,
    source: TokenSource,
    /// The first that failed and matters.
    failed: Option<EnsureError>,
}

/// What the ensurer works with.
pub struct Parts {
    /// Who writes.
    pub writer: Writer,
    /// What namespaces say.
    pub namespaces: Namespaces,
    /// Where tokens come from.
    pub tokens: TokenCache,
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
        Self(Arc::new(Inner {
            parts,
            completing: Mutex::default(),
        }))
    }

    /// Ensures that the pull secret has a usable credential for each host. On an error that may pass, the Secret names
    /// the hosts as wanted if it could be written at all, and the work goes on for some seconds in the background. The rules
    /// are those that the admission was decided by.
    pub async fn ensure(
        &self,
        namespace: &Namespace,
        hosts: BTreeMap<Host, TokenKey>,
        rules: &Arc<Rules>,
        deadline: Instant,
        place: &Place,
    ) -> Ensured {
        let (this, name, place) = (self.clone(), namespace.clone(), place.clone());
        let pending = Pending {
            hosts,
            rules: rules.clone(),
        };
        let wanted = pending.clone();
        let task = self
            .0
            .parts
            .tasks
            .spawn(async move { this.attempt(&name, wanted, deadline, &place).await });
        let ensured = match timeout_at(deadline, task).await {
            Ok(Ok(ensured)) => ensured,
            Ok(Err(_)) => Ensured {
                tokens: TokenSource::Failed,
                secret: SecretSource::Failed,
                result: Err(EnsureError::Crashed),
            },
            Err(_) => Ensured {
                tokens: TokenSource::Pending,
                secret: SecretSource::Pending,
                result: Err(EnsureError::Deadline),
            },
        };
        if ensured.result.as_ref().is_err_and(EnsureError::is_passing) {
            self.complete_later(namespace, pending);
        }
        ensured
    }

    /// Looks at a pull secret that somebody else wrote and nobody here has looked at. A failure shows when it is ensured.
    pub async fn look_once(&self, namespace: &Namespace, deadline: Instant) {
        let looked = self.0.parts.writer.look_once(namespace, deadline).await;
        if let Err(error) = looked {
            tracing::debug!(%namespace, %error, "a pull secret could not be looked at");
        }
    }

    /// One try: mint what is missing, then write it, and the intents for what could not be minted.
    async fn attempt(
        &self,
        namespace: &Namespace,
        Pending { hosts, rules }: Pending,
        deadline: Instant,
        place: &Place,
    ) -> Ensured {
        let minting = place.enter(&self.0.parts.metrics, Phase::Token);
        let Minted {
            wanted,
            source: tokens,
            failed,
        } = self.mint(hosts, deadline).await;
        drop(minting);
        let _writing = place.enter(&self.0.parts.metrics, Phase::Write);
        // The public gallery's images pull without.
        let matters = |host: &&Host| !is_public(host);
        let names: Vec<Host> = wanted.keys().filter(matters).cloned().collect();
        let (secret, result) = match self.write(namespace, wanted, &rules, deadline).await {
            Err(error @ EnsureError::Foreign(_)) => (SecretSource::Foreign, Err(error)),
            Err(error) => (SecretSource::Failed, Err(error)),
            // Another replica, or the leader, may have had more luck meanwhile.
            Ok(written) => match (
                failed.filter(|_| !self.0.parts.writer.is_usable(namespace, &names)),
                written,
            ) {
                (Some(error), _) => (SecretSource::Intent, Err(error)),
                (None, Written::Done) => (SecretSource::Written, Ok(())),
                (None, _) => (SecretSource::Unchanged, Ok(())),
            },
        };
        Ensured {
            tokens,
            secret,
            result,
        }
    }

    async fn write(
        &self,
        namespace: &Namespace,
        mut wanted: BTreeMap<Host, Want>,
        rules: &Rules,
        deadline: Instant,
    ) -> Result<Written, EnsureError> {
        let mut manner = Manner {
            terms: Terms::Add,
            most: rules.registries_per_secret,
            replaces_tampered: false,
            fence: &NoFence,
        };
        let writer = &self.0.parts.writer;
        let written = writer.write(namespace, &wanted, manner, deadline).await?;
        let Written::Tampered(claimed) = written else {
            return Ok(written);
        };
        let brings_news = wanted.keys().any(|host| !claimed.contains(host));
        self.restore(namespace, &claimed, &mut wanted, rules, deadline)
            .await;
        let has_any = wanted.values().any(|want| want.token.is_some());
        if !has_any && !brings_news {
            // It may still open registries, and nothing at all opens none; it names already what is wanted.
            return Ok(Written::Tampered(claimed));
        }
        manner.replaces_tampered = true;
        writer.write(namespace, &wanted, manner, deadline).await
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
                failed.get_or_insert(EnsureError::Mint {
                    host: host.clone(),
                    error: error.clone(),
                });
            }
            source = source.max(match &token {
                Ok((_, Origin::Memory)) => TokenSource::Memory,
                Ok((_, Origin::Minted)) => TokenSource::Minted,
                Err(_) => TokenSource::Failed,
            });
            let want = Want {
                identity: key.identity.hash(),
                token: token.ok().map(|(token, _)| token),
            };
            wanted.insert(host, want);
        }
        Minted {
            wanted,
            source,
            failed,
        }
    }

    /// Somebody else changed the data or the state, so nothing in it can be trusted: every host that it claims to have
    /// and that we would mint for is minted anew.
    async fn restore(
        &self,
        namespace: &Namespace,
        claimed: &[Host],
        wanted: &mut BTreeMap<Host, Want>,
        rules: &Rules,
        deadline: Instant,
    ) {
        tracing::warn!(%namespace, "the pull secret was changed by somebody else and is put right");
        self.0.parts.metrics.tampered.inc();
        let Some(said) = self.0.parts.namespaces.opted_in(namespace, deadline).await else {
            return;
        };
        let claimed = claimed
            .iter()
            .filter(|host| !wanted.contains_key(*host))
            .filter_map(|host| rules.key_for(host.as_str(), namespace, &said))
            .take(rules.registries_per_secret.saturating_sub(wanted.len()))
            .collect();
        wanted.extend(self.mint(claimed, deadline).await.wanted);
    }

    /// Goes on trying for a few seconds, once per namespace, with all the hosts that failed there.
    fn complete_later(&self, namespace: &Namespace, wanted: Pending) {
        let mut completing = self
            .0
            .completing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(pending) = completing.get_mut(namespace) {
            pending.hosts.extend(wanted.hosts);
            pending.rules = wanted.rules;
            return;
        }
        if completing.len() >= MAX_COMPLETIONS || self.0.parts.stop.is_cancelled() {
            return;
        }
        completing.insert(namespace.clone(), wanted);
        let completion = Completion {
            ensurer: self.clone(),
            namespace: namespace.clone(),
        };
        let stop = self.0.parts.stop.clone();
        self.0.parts.tasks.spawn(async move {
            stop.run_until_cancelled(completion.run()).await;
        });
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
            let Some(pending) = self.pending() else {
                return;
            };
            let hosts = pending.hosts.clone();
            match self
                .ensurer
                .attempt(&self.namespace, pending, end, &Place::default())
                .await
                .result
            {
                Ok(()) if self.pending().is_none_or(|now| now.hosts == hosts) => {
                    tracing::info!(namespace = %self.namespace, "the pull secret was completed after a failed admission");
                    return;
                }
                Err(error) if !error.is_passing() => return,
                _ => {}
            }
        }
        tracing::warn!(namespace = %self.namespace, "the pull secret could not be completed; its next admission tries again");
    }

    fn pending(&self) -> Option<Pending> {
        let completing = self
            .ensurer
            .0
            .completing
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        completing.get(&self.namespace).cloned()
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
