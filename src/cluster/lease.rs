//! Who of the replicas does what only one may do: leader election by a Lease, with the rules of Kubernetes' own client.
//!
//! Whoever holds the Lease renews it every retry period. Others take it once they have seen it unchanged for as long as
//! it says, by their own monotonic clock: that one never runs ahead of the time, as a wall clock may when it is set, and
//! what the holder wrote about the time counts for nothing. The holder is stricter with itself. It counts from before a
//! renewal was sent, and by the monotonic and the wall clock, whichever says older (a suspended machine stops the first);
//! and its term is over at the renew deadline, well before others may begin: the rest of the lease's duration is for
//! requests of its work that are still under way.
//!
//! A request that was held up on its way can still arrive late. So what the leader writes has to be harmless then: every
//! write has a precondition, and asks [`Leadership::holds`] just before it is sent.

mod settings;
mod term;

use std::{sync::Arc, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use thiserror::Error;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use self::settings::JITTER_SHARE;
pub use self::{
    settings::{Settings, SettingsError},
    term::Leadership,
};
use crate::{
    cluster::{metrics::ClusterMetrics, random},
    process::clock::{Clock, ClockReading},
    telemetry::log_once::LogOnce,
};

/// The pause after the API server refused for want of rights: nothing but an admin changes that.
const REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// What a Lease that was let go of says of its duration; nobody waits for it, as it has no holder.
const RELEASED_SECONDS: i32 = 1;
/// What the API server says (422) of a write without a version where somebody made the Lease since it was read.
const NO_LONGER_ABSENT: &str = "must be specified for an update";

/// Takes part in the election of a leader.
pub struct Elector {
    leases: Api<Lease>,
    settings: Settings,
    identity: String,
    clock: Arc<dyn Clock>,
    metrics: Arc<ClusterMetrics>,
    seen: Option<Seen>,
    logged: LogOnce<(&'static str, String)>,
}

/// A version of the Lease, and when it was first seen.
struct Seen {
    resource_version: Option<String>,
    holder: String,
    since: Instant,
}

/// Why a call about the Lease came to nothing.
#[derive(Debug, Error)]
enum Failure {
    #[error("another client wrote it first")]
    Conflict,
    #[error("{0}")]
    Refused(String),
    #[error("no response within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Api(String),
}

impl Failure {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Refused(_) => "rejected",
            Self::Timeout(_) => "timeout",
            Self::Api(_) => "error",
        }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        let short = |text: &str| text.chars().take(300).collect::<String>();
        match error {
            // The guard's refusal has the code of an invalid object.
            kube::Error::Api(status)
                if status.is_forbidden() || status.message.contains("denied request: ") =>
            {
                Self::Refused(short(&status.message))
            }
            kube::Error::Api(status)
                if status.is_conflict() || status.message.contains(NO_LONGER_ABSENT) =>
            {
                Self::Conflict
            }
            other => Self::Api(short(&other.to_string())),
        }
    }
}

/// How a term ended.
enum End {
    /// We were asked to stop.
    Stopped,
    /// The work ended by itself, or panicked.
    WorkEnded { panicked: bool },
    /// No renewal came through in time.
    Expired,
    /// The Lease is somebody else's, or gone.
    Taken(String),
}

impl Elector {
    /// Takes part once it is [run](Self::run). Calls through the client have to be without a retry of its own.
    pub fn new(
        client: Client,
        settings: Settings,
        clock: Arc<dyn Clock>,
        metrics: Arc<ClusterMetrics>,
    ) -> Result<Self, SettingsError> {
        settings.check()?;
        Ok(Self {
            leases: Api::namespaced(client, settings.namespace.as_str()),
            identity: format!("{}_{:016x}", settings.identity, random()),
            settings,
            clock,
            metrics,
            seen: None,
            logged: LogOnce::default(),
        })
    }

    /// What the Lease says when we hold it.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Until `stop`: whenever we become the leader, runs `lead` in a task of its own, tells it when the term is over, and
    /// waits for its end before anything else. After a stop the Lease is let go of, so that another replica can begin at
    /// once; so it is when `lead` ends by itself, and then it is tried again after a lease's duration.
    ///
    /// Await it after `stop`. If it is dropped the work is aborted, and others wait until the Lease expires.
    pub async fn run<F>(
        mut self,
        stop: CancellationToken,
        mut lead: impl FnMut(Leadership) -> F + Send,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        while !stop.is_cancelled() {
            let acquired = self.acquire(&stop).await;
            if acquired.is_ok() {
                self.logged.clear();
            }
            let pause = match acquired {
                Ok(Some((lease, sent))) => self.lead(lease, sent, &stop, &mut lead).await,
                Ok(None) | Err(Failure::Conflict) => self.pause(),
                Err(failure) => {
                    self.complain("acquire", &failure);
                    match failure {
                        Failure::Refused(_) => REFUSED_PAUSE,
                        _ => self.pause(),
                    }
                }
            };
            stop.run_until_cancelled(sleep(pause)).await;
        }
    }

    /// One look at the Lease, and one try to take it if it is free.
    async fn acquire(
        &mut self,
        stop: &CancellationToken,
    ) -> Result<Option<(Lease, ClockReading)>, Failure> {
        // A stop may cut the reading short; a write that was cut short could leave us the holder unknowingly.
        let Some(found) = stop.run_until_cancelled(self.read()).await else {
            return Ok(None);
        };
        let found = found?;
        if let Some(lease) = &found
            && !self.is_free(lease)
        {
            return Ok(None);
        }
        let wanted = self.held(found);
        let sent = ClockReading::now(&*self.clock);
        let lease = self.write(&wanted).await?;
        Ok(Some((lease, sent)))
    }

    /// Whether nobody else holds it. The first sight of each version starts its time anew.
    fn is_free(&mut self, lease: &Lease) -> bool {
        let holder = holder(lease);
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let version = &lease.metadata.resource_version;
        let seen = match self.seen.take() {
            Some(seen) if seen.resource_version == *version => seen,
            before => {
                if before.is_none_or(|before| before.holder != holder) {
                    tracing::info!(lease = %self.settings.name, ?holder, "another replica leads");
                }
                Seen {
                    resource_version: version.clone(),
                    holder: holder.to_owned(),
                    since: Instant::now(),
                }
            }
        };
        // The holder's duration, which may not be ours while a rollout changes it.
        let lasts = spec(lease)
            .and_then(|spec| spec.lease_duration_seconds)
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.settings.duration, Duration::from_secs);
        let is_free = seen.since.elapsed() >= lasts;
        self.seen = Some(seen);
        is_free
    }

    /// One term, from taking the Lease to letting go of it; tells how long to pause before the next try.
    async fn lead<F>(
        &mut self,
        mut lease: Lease,
        sent: ClockReading,
        stop: &CancellationToken,
        lead: &mut (impl FnMut(Leadership) -> F + Send),
    ) -> Duration
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tracing::info!(lease = %self.settings.name, identity = %self.identity, "acquired leadership");
        self.seen = None;
        self.metrics.leader.set(1);
        self.metrics.lease_transition("leading");
        let leadership = Leadership::new(self.clock.clone(), sent, self.settings.renew_deadline);
        // Also where this very future is dropped.
        let _ended = leadership.ended_with_this();
        let mut work = AbortOnDropHandle::new(tokio::spawn(lead(leadership.clone())));
        let end = tokio::select! {
            // Work that ends because the term is over has not ended by itself.
            biased;
            () = leadership.expired() => End::Expired,
            holder = self.renew(&mut lease, &leadership) => End::Taken(holder),
            () = stop.cancelled() => End::Stopped,
            result = &mut work => End::WorkEnded { panicked: result.is_err() },
        };
        leadership.end();
        self.metrics.leader.set(0);
        self.log(&end);
        if !matches!(end, End::WorkEnded { .. }) {
            self.wait_for(&mut work).await;
        }
        match end {
            End::Stopped | End::WorkEnded { .. } => {
                self.metrics.lease_transition("released");
                self.release(lease).await;
            }
            End::Expired | End::Taken(_) => self.metrics.lease_transition("lost"),
        }
        match end {
            End::WorkEnded { .. } => self.settings.duration,
            _ => self.pause(),
        }
    }

    fn log(&self, end: &End) {
        let (lease, identity) = (&self.settings.name, &self.identity);
        match end {
            End::Stopped => {
                tracing::info!(%lease, %identity, "shutting down: giving up leadership");
            }
            End::WorkEnded { panicked } => {
                tracing::error!(%lease, %identity, panicked, "leader tasks ended unexpectedly; leaving leadership to another replica");
            }
            End::Expired => {
                tracing::warn!(%lease, %identity, "lost leadership: the Lease was not renewed in time");
            }
            End::Taken(holder) => {
                tracing::warn!(%lease, %identity, ?holder, "lost leadership: the Lease was taken by another replica or deleted");
            }
        }
    }

    /// Two of the same work at the same time would be worse than none.
    async fn wait_for(&self, work: &mut AbortOnDropHandle<()>) {
        let patience = self.settings.duration;
        if timeout(patience, &mut *work).await.is_err() {
            tracing::warn!(lease = %self.settings.name, elapsed_seconds = patience.as_secs(), "leader tasks are still running; waiting for them to end");
            // A panic is in the log already, and the work is over either way.
            let _ = work.await;
        }
    }

    /// Renews until the Lease is somebody else's, and tells whose.
    async fn renew(&mut self, lease: &mut Lease, leadership: &Leadership) -> String {
        let mut next = Instant::now() + self.pause();
        loop {
            sleep_until(next).await;
            next = Instant::now() + self.pause();
            let sent = ClockReading::now(&*self.clock);
            // A machine that slept is not to prolong what is over.
            if !leadership.holds() {
                continue;
            }
            let mut renewed = self.write(&self.held(Some(lease.clone()))).await;
            if matches!(renewed, Err(Failure::Conflict)) {
                // Somebody changed a label; or an earlier renewal of ours came through without an answer.
                renewed = match self.read().await {
                    Ok(Some(found)) if holder(&found) == self.identity => {
                        self.write(&self.held(Some(found))).await
                    }
                    Ok(found) => return found.as_ref().map(holder).unwrap_or_default().to_owned(),
                    Err(failure) => Err(failure),
                };
            }
            match renewed {
                Ok(renewed) => {
                    *lease = renewed;
                    self.logged.clear();
                    leadership.extend(sent);
                }
                Err(failure) => self.complain("renew", &failure),
            }
        }
    }

    /// Lets go of the Lease if it is still ours, so that nobody has to wait.
    async fn release(&mut self, lease: Lease) {
        let mut released = self.write(&self.released(lease)).await;
        if matches!(released, Err(Failure::Conflict)) {
            released = match self.read().await {
                Ok(Some(found)) if holder(&found) == self.identity => {
                    self.write(&self.released(found)).await
                }
                Ok(_) => return,
                Err(failure) => Err(failure),
            };
        }
        match released {
            Ok(_) => {
                tracing::info!(lease = %self.settings.name, identity = %self.identity, "released the Lease");
            }
            Err(failure) => {
                let patience = self.settings.duration;
                tracing::warn!(lease = %self.settings.name, error = %failure, lease_duration_seconds = patience.as_secs(), "releasing the Lease failed; other replicas wait for it to expire");
            }
        }
    }

    /// The Lease as it is when we hold it from now on, or still. What others put on it stays.
    fn held(&self, found: Option<Lease>) -> Lease {
        let now = MicroTime(self.clock.now());
        let mut lease = found.unwrap_or_else(|| self.absent());
        lease.metadata.managed_fields = None;
        let is_ours = holder(&lease) == self.identity;
        let spec = lease.spec.get_or_insert_default();
        if !is_ours {
            spec.acquire_time = Some(now.clone());
            let transitions = spec.lease_transitions;
            spec.lease_transitions = Some(transitions.map_or(0, |count| count.saturating_add(1)));
        }
        let seconds = self.settings.duration.as_millis().div_ceil(1000);
        spec.holder_identity = Some(self.identity.clone());
        spec.lease_duration_seconds = Some(i32::try_from(seconds).unwrap_or(i32::MAX));
        spec.renew_time = Some(now);
        lease
    }

    /// The Lease as it is when nobody holds it.
    fn released(&self, mut lease: Lease) -> Lease {
        let now = MicroTime(self.clock.now());
        lease.metadata.managed_fields = None;
        let spec = lease.spec.get_or_insert_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(RELEASED_SECONDS);
        spec.acquire_time = Some(now.clone());
        spec.renew_time = Some(now);
        lease
    }

    fn absent(&self) -> Lease {
        let label = ("app.kubernetes.io/name", "ecr-injector");
        Lease {
            metadata: ObjectMeta {
                name: Some(self.settings.name.clone()),
                namespace: Some(self.settings.namespace.to_string()),
                labels: Some([label].map(|(k, v)| (k.to_owned(), v.to_owned())).into()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec::default()),
        }
    }

    async fn read(&self) -> Result<Option<Lease>, Failure> {
        let name = &self.settings.name;
        self.call("get", self.leases.get_opt(name)).await
    }

    /// A PUT to its name, which creates it too (RBAC can narrow that by name). Its resourceVersion and uid are the
    /// precondition; an absent Lease has neither, and then one that exists is a conflict.
    async fn write(&self, lease: &Lease) -> Result<Lease, Failure> {
        let (name, params) = (&self.settings.name, PostParams::default());
        self.call("update", self.leases.replace(name, &params, lease))
            .await
    }

    async fn call<T>(
        &self,
        verb: &'static str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, Failure> {
        let patience = self.settings.retry_period;
        let result = match timeout(patience, call).await {
            Ok(result) => result.map_err(Failure::from),
            Err(_) => Err(Failure::Timeout(patience)),
        };
        let outcome = result.as_ref().map_or_else(Failure::as_str, |_| "ok");
        self.metrics.api_calls.count_call(verb, "leases", outcome);
        result
    }

    /// Says what is wrong once, and not every two seconds; again when it is something else, or came back.
    fn complain(&mut self, doing: &'static str, failure: &Failure) {
        let reason = match failure {
            Failure::Refused(message) => message.clone(),
            other => other.as_str().to_owned(),
        };
        if !self.logged.is_new((doing, reason)) {
            return;
        }
        let (lease, namespace) = (&self.settings.name, &self.settings.namespace);
        if let Failure::Refused(message) = failure {
            tracing::warn!(
                %lease, %namespace, error = message,
                "not allowed to use the Lease; this replica refreshes no pull secrets, \
                 admissions continue. Grant get, create and update on leases in \
                 coordination.k8s.io with this resourceName in this namespace \
                 (deploy/rbac.yaml), and allow it in the guard (deploy/guard.yaml)"
            );
        } else {
            tracing::warn!(%lease, %namespace, operation = doing, error = %failure, "Lease operation failed; retrying, admissions continue");
        }
    }

    /// The retry period, up to a fifth longer.
    fn pause(&self) -> Duration {
        let retry = self.settings.retry_period;
        let part = u32::try_from(random() % 1000).unwrap_or_default();
        retry + retry / JITTER_SHARE * part / 1000
    }
}

fn spec(lease: &Lease) -> Option<&LeaseSpec> {
    lease.spec.as_ref()
}

/// Who holds it; nobody is the empty string.
fn holder(lease: &Lease) -> &str {
    spec(lease)
        .and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
