//! Lists Pending Pods, and discovers the registries that they want without a recorded admission.
//!
//! The record of an admission can be lost: the API server took no write, the replica ended before
//! its retry, etcd was restored from a backup. If the configuration asks for it, the leader lists
//! the Pending Pods from time to time, and passes the hosts that they want to the sink, which
//! provides credentials.
//!
//! The same lists show the Pods that lack the reference, which `missed` notices if the configuration
//! asks for that.
//!
//! Anybody may write Pods, so a page is read as bytes with a limit, and each Pod in a page is
//! parsed separately: a Pod that can't be parsed is skipped, and only the fields that are used are
//! read.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use kube::{Client, api::ListParams, client::Body, core::Request};
use serde::Deserialize;
use serde_json::value::RawValue;
use thiserror::Error;
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    metrics::{DiscoveryRun, RefreshMetrics},
    missed::{MissedOfRound, MissedPods},
};
use crate::{
    admission::{
        decide::hosts_wanted_by,
        pod::{Pod, Text},
    },
    cluster::{lease::Leadership, namespace::Namespace, namespaces::Namespaces},
    config::{Discovery, live::Live},
    process::random::random,
    registry::Host,
    telemetry::{error_chain::error_chain, log_once::LogOnce},
    token::rules::Rules,
};

/// The least time from one round to the next, give or take [`JITTER`]. Without a webhook this is how
/// long a Pod waits for a new registry: the kubelet's second pull is some 13 s after the first.
const PERIOD: Duration = Duration::from_secs(10);
/// The longest time from one round to the next: the kubelet retries a pull after some minutes anyway.
const LONGEST_PERIOD: Duration = Duration::from_mins(1);
/// How many times longer than the round before it a period is, within these limits: a list of all
/// Pods is work for the API server of a large cluster.
const PERIOD_FACTOR: u32 = 20;
/// How much longer or shorter a period may be, in thousandths.
const JITTER: u64 = 100;
/// Pods in a page. With a field selector, the API server scans all Pods until a page is full, so
/// small pages cost more.
const PAGE: u32 = 500;
/// The most Pods that a round lists: twenty pages, which take some seconds. The next round
/// continues from there.
const MAX_PODS: usize = 10_000;
/// The largest page that is read. 500 usual Pods take some 5 MB; one may have a few megabytes. A
/// larger page is requested again in smaller ones.
const MAX_PAGE_BYTES: usize = 16 * 1024 * 1024;
/// The longest error that is read.
const MAX_ERROR_BYTES: usize = 64 * 1024;
/// How long a page may take, its body included.
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Receives the hosts that Pods of an opted-in namespace want.
pub type Sink = Arc<dyn Fn(&Namespace, BTreeSet<Host>) + Send + Sync>;

/// Lists Pending Pods for as long as this replica leads.
#[derive(Clone)]
pub struct Discoverer {
    client: Client,
    namespaces: Namespaces,
    live: Live,
    metrics: Arc<RefreshMetrics>,
    sink: Sink,
    missed: Option<MissedPods>,
    page_size: u32,
    max_pods: usize,
}

/// The position where the next round begins, if the last one did not list all Pods.
#[derive(Debug, Default)]
pub struct Cursor(Option<String>);

/// The reason why a round failed.
#[derive(Debug, Error)]
enum RoundError {
    #[error("{0}")]
    Forbidden(String),
    #[error("no response within {} s", PAGE_TIMEOUT.as_secs())]
    Timeout,
    /// The continue token is too old.
    #[error("the list can't be continued: {0}")]
    Expired(String),
    #[error("one Pod is larger than {MAX_PAGE_BYTES} bytes")]
    TooLarge,
    #[error("the API server answered {status}: {message}")]
    Status { status: StatusCode, message: String },
    #[error("the answer is not a list of Pods")]
    Malformed(#[source] serde_json::Error),
    #[error("the call to the API server failed")]
    Call(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl RoundError {
    fn outcome(&self) -> DiscoveryRun {
        match self {
            Self::Forbidden(_) => DiscoveryRun::Refused,
            Self::Timeout => DiscoveryRun::TimedOut,
            Self::Expired(_)
            | Self::TooLarge
            | Self::Status { .. }
            | Self::Malformed(_)
            | Self::Call(_) => DiscoveryRun::Failed,
        }
    }
}

/// A page of Pods, none of them parsed.
#[derive(Deserialize)]
struct Page<'a> {
    #[serde(default)]
    metadata: PageMetadata,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize, Default)]
struct PageMetadata {
    #[serde(rename = "continue", default)]
    continue_token: Option<String>,
}

#[derive(Deserialize)]
struct Location<'a> {
    #[serde(borrow)]
    metadata: LocationMetadata<'a>,
}

#[derive(Deserialize)]
struct LocationMetadata<'a> {
    #[serde(borrow)]
    namespace: Text<'a>,
}

/// The message of an error that the API server returned.
#[derive(Deserialize)]
struct Status {
    message: Option<String>,
}

impl fmt::Debug for Discoverer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Discoverer").finish_non_exhaustive()
    }
}

impl Discoverer {
    /// Returns a discoverer that lists through the client, which must not retry, and passes the
    /// hosts that it finds to the sink.
    #[must_use]
    pub fn new(
        client: Client,
        namespaces: Namespaces,
        live: Live,
        metrics: Arc<RefreshMetrics>,
        sink: Sink,
    ) -> Self {
        Self {
            client,
            namespaces,
            live,
            metrics,
            sink,
            missed: None,
            page_size: PAGE,
            max_pods: MAX_PODS,
        }
    }

    /// Has missed Pods noticed as well, if the configuration asks for that.
    #[must_use]
    pub fn with_missed(self, missed: MissedPods) -> Self {
        Self {
            missed: Some(missed),
            ..self
        }
    }

    /// Sets how many Pods a page has, and how many a round lists.
    #[must_use]
    pub fn with_sizes(self, page_size: u32, max_pods: usize) -> Self {
        Self {
            page_size,
            max_pods,
            ..self
        }
    }

    /// Runs a round at once and then one every ten seconds, or fewer where they take long, while the
    /// configuration asks for discovery and until the term is over.
    pub async fn lead(&self, term: Leadership) {
        // Subscribed before the configuration is read, so that no change is missed.
        let mut changes = self.live.follow();
        let mut cursor = Cursor::default();
        let mut logged = LogOnce::default();
        let mut next = Instant::now();
        if let Some(missed) = &self.missed {
            missed.clear();
        }
        while term.holds() {
            if !self.live.config().refresh.lists_pods() {
                (cursor, next) = (Cursor::default(), Instant::now());
                logged.clear();
                tokio::select! {
                    _ = changes.next() => continue,
                    () = term.lost() => return,
                }
            }
            tokio::select! {
                () = sleep_until(next) => {}
                _ = changes.next() => continue,
                () = term.lost() => return,
            }
            let begun = Instant::now();
            let round = async {
                let result = self.list(&term, &mut cursor).await;
                // A round that the end of the term cut short is no result.
                if term.holds() {
                    self.report(&result, &mut logged);
                }
            };
            tokio::select! {
                () = round => {}
                () = term.lost() => return,
            }
            next = Instant::now() + jittered(period_after(begun.elapsed()), random());
        }
    }

    /// Runs one round from the cursor on, and returns how the round ended.
    pub async fn round(&self, term: &Leadership, cursor: &mut Cursor) -> DiscoveryRun {
        let result = self.list(term, cursor).await;
        self.report(&result, &mut LogOnce::default())
    }

    /// Lists the Pods of one round, and passes the hosts to the sink, also if a later page failed.
    async fn list(
        &self,
        term: &Leadership,
        cursor: &mut Cursor,
    ) -> Result<DiscoveryRun, RoundError> {
        let (rules, config) = (self.live.rules.get(), self.live.config());
        let missed = self.missed.as_ref();
        let missed = missed.filter(|_| config.refresh.notice_missed);
        let mut wanted = Wanted {
            notices: missed,
            discovers: config.refresh.discovery == Discovery::Pods,
            ..Wanted::default()
        };
        let result = self.list_pages(term, cursor, &rules, &mut wanted).await;
        tracing::debug!(
            pods = wanted.pods,
            unreadable = wanted.unreadable,
            namespaces = wanted.hosts.len(),
            "listed pending Pods"
        );
        if wanted.unreadable > 0 {
            tracing::warn!(
                pods = wanted.unreadable,
                "pending Pods can't be read; their registries are not discovered"
            );
        }
        for (namespace, hosts) in wanted.hosts {
            if !term.holds() {
                break;
            }
            (self.sink)(&namespace, hosts);
        }
        if let Some(missed) = missed.filter(|_| term.holds()) {
            let is_complete = matches!(result, Ok(DiscoveryRun::Complete));
            let label = &config.opt_in.label;
            missed.notice(wanted.missed, label, is_complete).await;
        }
        result
    }

    async fn list_pages(
        &self,
        term: &Leadership,
        cursor: &mut Cursor,
        rules: &Rules,
        wanted: &mut Wanted<'_>,
    ) -> Result<DiscoveryRun, RoundError> {
        let mut page_size = self.page_size;
        while term.holds() {
            let room = self.max_pods.saturating_sub(wanted.pods);
            let Ok(room @ 1..) = u32::try_from(room) else {
                return Ok(DiscoveryRun::Truncated);
            };
            let limit = page_size.min(room);
            let page = timeout(PAGE_TIMEOUT, self.page(limit, cursor.0.as_deref())).await;
            let page = page.unwrap_or(Err(RoundError::Timeout));
            let outcome = match &page {
                Ok(_) => "ok",
                Err(RoundError::Timeout) => "timeout",
                Err(RoundError::Forbidden(_)) => "rejected",
                Err(RoundError::Expired(_)) => "gone",
                Err(_) => "error",
            };
            self.metrics.api_calls.count_call("list", "pods", outcome);
            let page = match page {
                Ok(page) => page,
                Err(RoundError::TooLarge) if limit > 1 => {
                    page_size = limit / 2;
                    continue;
                }
                // Begins again without a continue token.
                Err(RoundError::Expired(_)) if cursor.0.take().is_some() => continue,
                Err(error) => return Err(error),
            };
            let page: Page<'_> = serde_json::from_slice(&page).map_err(RoundError::Malformed)?;
            for item in page.items.into_iter().flatten() {
                wanted.add(item.get(), rules, &self.namespaces);
            }
            cursor.0 = page.metadata.continue_token.filter(|it| !it.is_empty());
            if cursor.0.is_none() {
                return Ok(DiscoveryRun::Complete);
            }
        }
        Ok(DiscoveryRun::Truncated)
    }

    async fn page(&self, limit: u32, continue_token: Option<&str>) -> Result<Bytes, RoundError> {
        let mut params = ListParams::default()
            .fields("status.phase=Pending")
            .limit(limit);
        if let Some(token) = continue_token {
            params = params.continue_token(token);
        }
        let request = Request::new("/api/v1/pods").list(&params);
        let request = request.map_err(|error| RoundError::Call(error.into()))?;
        let response = self.client.send(request.map(Body::from)).await;
        let (head, body) = response
            .map_err(|error| RoundError::Call(error.into()))?
            .into_parts();
        if head.status.is_success() {
            return read(body, MAX_PAGE_BYTES).await;
        }
        let body = read(body, MAX_ERROR_BYTES).await.unwrap_or_default();
        let status: Option<Status> = serde_json::from_slice(&body).ok();
        let message = status.and_then(|status| status.message).unwrap_or_default();
        let message: String = message.chars().take(300).collect();
        Err(match head.status {
            StatusCode::FORBIDDEN | StatusCode::UNAUTHORIZED => RoundError::Forbidden(message),
            StatusCode::GONE => RoundError::Expired(message),
            status => RoundError::Status { status, message },
        })
    }

    /// Counts a round, and logs a failure once: again if it is another one, or after a success.
    fn report(
        &self,
        result: &Result<DiscoveryRun, RoundError>,
        logged: &mut LogOnce<DiscoveryRun>,
    ) -> DiscoveryRun {
        let outcome = match result {
            Ok(outcome) => *outcome,
            Err(error) => error.outcome(),
        };
        self.metrics.discovery_run(outcome);
        match result {
            Ok(DiscoveryRun::Complete) => {
                logged.clear();
            }
            _ if !logged.is_new(outcome) => {}
            Ok(_) => tracing::warn!(
                pods = self.max_pods,
                "too many pending Pods for one discovery run; the next run continues from there"
            ),
            Err(RoundError::Forbidden(message)) => tracing::warn!(
                error = message,
                "not allowed to list pending Pods; grant list on pods in the ClusterRole (the \
                 chart does so with discover: pods and with refresh.noticeMissed; \
                 docs/reference/configuration.md), or switch both off"
            ),
            Err(error) => tracing::warn!(
                error = error_chain(error),
                "listing pending Pods failed; retrying"
            ),
        }
        outcome
    }
}

/// The hosts that the Pods of a round want, and how many Pods there were.
#[derive(Default)]
struct Wanted<'a> {
    hosts: BTreeMap<Namespace, BTreeSet<Host>>,
    /// Whether hosts are wanted.
    discovers: bool,
    missed: MissedOfRound,
    /// Finds missed Pods, if these are wanted.
    notices: Option<&'a MissedPods>,
    pods: usize,
    unreadable: usize,
}

impl Wanted<'_> {
    fn add(&mut self, json: &str, rules: &Rules, namespaces: &Namespaces) {
        self.pods += 1;
        let Ok(location) = serde_json::from_str::<Location<'_>>(json) else {
            self.unreadable += 1;
            return;
        };
        let namespace = Namespace::parse(&location.metadata.namespace.0);
        let Some((namespace, settings)) =
            namespace.and_then(|name| namespaces.peek(&name).map(|settings| (name, settings)))
        else {
            return;
        };
        // Nothing can be created in a namespace that is terminating.
        if settings.is_terminating {
            return;
        }
        let Ok(pod) = serde_json::from_str::<Pod<'_>>(json) else {
            self.unreadable += 1;
            return;
        };
        if self.discovers {
            let wanted = hosts_wanted_by(&pod, rules, &namespace, &settings);
            self.insert(&namespace, wanted, rules);
        }
        let place = (&namespace, &settings);
        if let Some(notices) = self.notices {
            notices.find(pod, json, rules, place, &mut self.missed);
        }
    }

    /// Adds as many hosts of a namespace as its pull secret can have.
    fn insert(&mut self, namespace: &Namespace, wanted: BTreeSet<Host>, rules: &Rules) {
        if wanted.is_empty() {
            return;
        }
        let hosts = self.hosts.entry(namespace.clone()).or_default();
        for host in wanted {
            if hosts.len() >= rules.registries_per_secret {
                break;
            }
            hosts.insert(host);
        }
    }
}

async fn read(body: Body, limit: usize) -> Result<Bytes, RoundError> {
    match Limited::new(body, limit).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(RoundError::TooLarge),
        Err(error) => Err(RoundError::Call(error)),
    }
}

/// Returns the time until the next round, after one that took so long.
fn period_after(round: Duration) -> Duration {
    (round * PERIOD_FACTOR).clamp(PERIOD, LONGEST_PERIOD)
}

/// Returns a period that is up to a tenth longer or shorter, so that rounds don't stay in step with
/// other tasks that run once a minute.
pub(super) fn jittered(period: Duration, random: u64) -> Duration {
    let share = 1000 - JITTER + random % (2 * JITTER + 1);
    period * u32::try_from(share).unwrap_or(1000) / 1000
}

#[cfg(test)]
mod tests;
