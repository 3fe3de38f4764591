//! Leader election among the replicas by a Lease, with the rules of Kubernetes' own client.
//!
//! The holder of the Lease renews it every retry period. Other replicas take the Lease once they
//! have seen it unchanged for its duration, by their own monotonic clock: that clock never runs
//! ahead of the time, as a wall clock may when it is set, and the times that the holder wrote count
//! for nothing. The holder is stricter with itself. It counts from before a renewal was sent, by
//! the monotonic and the wall clock, whichever shows more time (a suspended machine stops the
//! first); and its term is over at the renew deadline, well before others may begin: the rest of
//! the lease's duration is for requests of its work that are still in flight.
//!
//! A delayed request can still arrive late. So what the leader writes has to be harmless then:
//! every write has a precondition, and asks [`Leadership::holds`] just before it is sent.

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
    cluster::{
        call::{ApiCall, CallFailure, CallOutcome},
        metrics::ClusterMetrics,
    },
    process::{
        clock::{Clock, ClockReading},
        random::random,
    },
    telemetry::log_once::LogOnce,
};

/// The pause after the API server denied access: only an administrator changes that.
const FORBIDDEN_PAUSE: Duration = Duration::from_secs(30);
/// The duration of a released Lease; no replica waits for it, as the Lease has no holder.
const RELEASED_SECONDS: i32 = 1;
/// A part of the API server's message (422) about a write without a version where another replica
/// created the Lease since it was read.
const NO_LONGER_ABSENT: &str = "must be specified for an update";

/// Takes part in the election of a leader.
pub struct Elector {
    leases: Api<Lease>,
    settings: Settings,
    identity: String,
    clock: Arc<dyn Clock>,
    metrics: Arc<ClusterMetrics>,
    observed: Option<ObservedLease>,
    /// The operation and the error that were logged last, until an operation succeeds.
    logged: LogOnce<(&'static str, String)>,
}

/// A version of the Lease, and when this replica first read it.
struct ObservedLease {
    resource_version: Option<String>,
    holder: String,
    since: Instant,
}

/// Error of a call on the Lease.
#[derive(Debug, Error)]
enum LeaseError {
    #[error("another client wrote it first")]
    Conflict,
    #[error("{0}")]
    Forbidden(String),
    #[error("no response within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Api(String),
}

impl CallOutcome for LeaseError {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Forbidden(_) => "rejected",
            Self::Timeout(_) => "timeout",
            Self::Api(_) => "error",
        }
    }
}

impl From<kube::Error> for LeaseError {
    fn from(error: kube::Error) -> Self {
        let short = |text: &str| text.chars().take(300).collect::<String>();
        match error {
            // The guard's rejection has the code of an invalid object.
            kube::Error::Api(status)
                if status.is_forbidden() || status.message.contains("denied request: ") =>
            {
                Self::Forbidden(short(&status.message))
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
    /// The process stops.
    Stopped,
    /// The work ended by itself, or panicked.
    WorkEnded { panicked: bool },
    /// No renewal succeeded in time.
    Expired,
    /// Another replica holds the Lease, or the Lease was deleted.
    Taken(String),
}

impl Elector {
    /// Returns an elector that takes part once it is [run](Self::run). The client must not retry
    /// calls.
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
            observed: None,
            logged: LogOnce::default(),
        })
    }

    /// Returns the Lease's `holderIdentity` while this replica holds it.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Takes part in the election until `stop`. In each term, runs `lead` in a task of its own,
    /// signals the end of the term through its [`Leadership`], and waits for the task before
    /// anything else. Releases the Lease after a stop, so that another replica can begin at once,
    /// and when `lead` ends by itself; then this replica tries again after a lease's duration.
    ///
    /// Await the future after `stop`. If it is dropped, the work is aborted, and other replicas
    /// wait until the Lease expires.
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
                Ok(None) | Err(LeaseError::Conflict) => self.pause(),
                Err(error) => {
                    self.log_once("acquire", &error);
                    match error {
                        LeaseError::Forbidden(_) => FORBIDDEN_PAUSE,
                        _ => self.pause(),
                    }
                }
            };
            stop.run_until_cancelled(sleep(pause)).await;
        }
    }

    /// Reads the Lease, and tries once to take it if it is free.
    async fn acquire(
        &mut self,
        stop: &CancellationToken,
    ) -> Result<Option<(Lease, ClockReading)>, LeaseError> {
        // A stop may cancel the read, but not the write: after a cancelled write this replica could
        // be the holder without knowing.
        let Some(found) = stop.run_until_cancelled(self.read()).await else {
            return Ok(None);
        };
        let found = found?;
        if let Some(lease) = &found
            && !self.is_free(lease)
        {
            return Ok(None);
        }
        let desired = self.held(found);
        let sent = ClockReading::now(&*self.clock);
        let lease = self.write(&desired).await?;
        Ok(Some((lease, sent)))
    }

    /// Whether no other replica holds the Lease. The duration starts over with each new version.
    fn is_free(&mut self, lease: &Lease) -> bool {
        let holder = holder(lease);
        if holder.is_empty() || holder == self.identity {
            return true;
        }
        let version = &lease.metadata.resource_version;
        let observed = match self.observed.take() {
            Some(observed) if observed.resource_version == *version => observed,
            before => {
                if before.is_none_or(|before| before.holder != holder) {
                    tracing::info!(lease = %self.settings.name, ?holder, "another replica leads");
                }
                ObservedLease {
                    resource_version: version.clone(),
                    holder: holder.to_owned(),
                    since: Instant::now(),
                }
            }
        };
        // The holder's duration, which may differ from this replica's while a rollout changes it.
        let duration = spec(lease)
            .and_then(|spec| spec.lease_duration_seconds)
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.settings.duration, Duration::from_secs);
        let is_free = observed.since.elapsed() >= duration;
        self.observed = Some(observed);
        is_free
    }

    /// Runs one term, from acquiring the Lease to its end; returns the pause before the next try.
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
        self.observed = None;
        self.metrics.leader.set(1);
        self.metrics.lease_transition("leading");
        let leadership = Leadership::new(self.clock.clone(), sent, self.settings.renew_deadline);
        // Ends the term also if this future is dropped.
        let _end = leadership.end_on_drop();
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

    /// Waits for the work to end: two terms of work at the same time would be worse than none.
    async fn wait_for(&self, work: &mut AbortOnDropHandle<()>) {
        let limit = self.settings.duration;
        if timeout(limit, &mut *work).await.is_err() {
            tracing::warn!(lease = %self.settings.name, elapsed_seconds = limit.as_secs(), "leader tasks are still running; waiting for them to end");
            // A panic is in the log already, and the work is over either way.
            let _ = work.await;
        }
    }

    /// Renews the Lease until another replica holds it, and returns the new holder.
    async fn renew(&mut self, lease: &mut Lease, leadership: &Leadership) -> String {
        let mut next = Instant::now() + self.pause();
        loop {
            sleep_until(next).await;
            next = Instant::now() + self.pause();
            let sent = ClockReading::now(&*self.clock);
            // A machine that was suspended must not renew a term that is over.
            if !leadership.holds() {
                continue;
            }
            let mut renewed = self.write(&self.held(Some(lease.clone()))).await;
            if matches!(renewed, Err(LeaseError::Conflict)) {
                // Another client changed a label; or an earlier renewal arrived, but its response
                // did not.
                renewed = match self.read().await {
                    Ok(Some(found)) if holder(&found) == self.identity => {
                        self.write(&self.held(Some(found))).await
                    }
                    Ok(found) => return found.as_ref().map(holder).unwrap_or_default().to_owned(),
                    Err(error) => Err(error),
                };
            }
            match renewed {
                Ok(renewed) => {
                    *lease = renewed;
                    self.logged.clear();
                    leadership.extend(sent);
                }
                Err(error) => self.log_once("renew", &error),
            }
        }
    }

    /// Releases the Lease if this replica still holds it, so that no other has to wait.
    async fn release(&mut self, lease: Lease) {
        let mut released = self.write(&self.released(lease)).await;
        if matches!(released, Err(LeaseError::Conflict)) {
            released = match self.read().await {
                Ok(Some(found)) if holder(&found) == self.identity => {
                    self.write(&self.released(found)).await
                }
                Ok(_) => return,
                Err(error) => Err(error),
            };
        }
        match released {
            Ok(_) => {
                tracing::info!(lease = %self.settings.name, identity = %self.identity, "released the Lease");
            }
            Err(error) => {
                let duration = self.settings.duration;
                tracing::warn!(lease = %self.settings.name, %error, lease_duration_seconds = duration.as_secs(), "releasing the Lease failed; other replicas wait for it to expire");
            }
        }
    }

    /// Returns the Lease as held by this replica from now on. Labels and annotations stay.
    fn held(&self, found: Option<Lease>) -> Lease {
        let now = MicroTime(self.clock.now());
        let mut lease = found.unwrap_or_else(|| self.absent());
        lease.metadata.managed_fields = None;
        let is_held = holder(&lease) == self.identity;
        let spec = lease.spec.get_or_insert_default();
        if !is_held {
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

    /// Returns the Lease without a holder.
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

    async fn read(&self) -> Result<Option<Lease>, LeaseError> {
        let name = &self.settings.name;
        self.call("get", self.leases.get_opt(name)).await
    }

    /// Writes the Lease by a PUT to its name, which also creates it (RBAC can narrow that by name).
    /// The resourceVersion and uid are the precondition; an absent Lease has neither, and then one
    /// that exists is a conflict.
    async fn write(&self, lease: &Lease) -> Result<Lease, LeaseError> {
        let (name, params) = (&self.settings.name, PostParams::default());
        self.call("update", self.leases.replace(name, &params, lease))
            .await
    }

    async fn call<T>(
        &self,
        verb: &'static str,
        call: impl Future<Output = kube::Result<T>>,
    ) -> Result<T, LeaseError> {
        let limit = self.settings.retry_period;
        let counted = ApiCall::new(&self.metrics.api_calls, verb, "leases");
        let error = |failure| match failure {
            CallFailure::Timeout => LeaseError::Timeout(limit),
            CallFailure::Kube(error) => error.into(),
        };
        counted.send(Instant::now() + limit, call, error).await
    }

    /// Logs an error once, not every two seconds; again when it changes, or returns after a
    /// success.
    fn log_once(&mut self, operation: &'static str, error: &LeaseError) {
        let reason = match error {
            LeaseError::Forbidden(message) => message.clone(),
            other => other.as_str().to_owned(),
        };
        if !self.logged.is_new((operation, reason)) {
            return;
        }
        let (lease, namespace) = (&self.settings.name, &self.settings.namespace);
        if let LeaseError::Forbidden(message) = error {
            tracing::warn!(
                %lease, %namespace, error = message,
                "not allowed to use the Lease; this replica refreshes no pull secrets, \
                 admissions continue. Grant get, create and update on leases in \
                 coordination.k8s.io with this resourceName in this namespace \
                 (deploy/rbac.yaml), and allow it in the guard (deploy/guard.yaml)"
            );
        } else {
            tracing::warn!(%lease, %namespace, operation, %error, "Lease operation failed; retrying, admissions continue");
        }
    }

    /// Returns the retry period, up to a fifth longer.
    fn pause(&self) -> Duration {
        let retry = self.settings.retry_period;
        let part = u32::try_from(random() % 1000).unwrap_or_default();
        retry + retry / JITTER_SHARE * part / 1000
    }
}

fn spec(lease: &Lease) -> Option<&LeaseSpec> {
    lease.spec.as_ref()
}

/// Returns the holder; the empty string if there is none.
fn holder(lease: &Lease) -> &str {
    spec(lease)
        .and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
