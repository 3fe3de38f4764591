//! Watches that never end: events go to a sink, and after an error the watch begins again.
//!
//! Whatever fails, the sink gets what is new within a minute after it works again. kube's own
//! watcher has no timeout for a request that is never answered, a backoff of up to a minute, and
//! none at all after a watch that merely ended.

mod error;

use std::{
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::StreamExt as _;
use http::Request;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource,
    client::Body,
    runtime::watcher::{self, Event, InitialListStrategy, watcher},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep, sleep_until};

use crate::process::random::random;

/// The backoff after the first error, doubled up to [`WatchTimeouts::max_backoff`].
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// The jitter, which shortens a backoff, in thousandths: replicas don't reconnect in step.
const JITTER: u64 = 250;
/// The least time from the start of one watch to the start of the next.
const GAP: Duration = Duration::from_millis(500);
/// Objects in a page of a list. kube's 500 are some megabytes of JSON at a time, most of them
/// managed fields, and another page costs a millisecond.
const PAGE: u32 = 100;
/// By how much kube lets a watch exceed the `timeoutSeconds` that it asked for.
const KUBE_MARGIN: Duration = Duration::from_secs(5);

/// The timeouts and the longest backoff of a watch.
#[derive(Debug, Clone, Copy)]
pub struct WatchTimeouts {
    /// The `timeoutSeconds` of a watch. A watch that has not ended five seconds after them is dead
    /// and begins again.
    pub watch_seconds: u32,
    /// How long a connection may bring no byte of a response. Longer than a quiet watch lasts: its
    /// end is no error.
    pub read: Duration,
    /// The longest backoff after errors.
    pub max_backoff: Duration,
}

impl Default for WatchTimeouts {
    fn default() -> Self {
        Self {
            watch_seconds: 35,
            read: Duration::from_secs(42),
            max_backoff: Duration::from_secs(8),
        }
    }
}

impl WatchTimeouts {
    /// Returns the longest time until there is a new request after one that failed: the failed one
    /// times out, and then there are a backoff and the gap.
    #[must_use]
    pub fn longest(&self) -> Duration {
        let watch = Duration::from_secs(self.watch_seconds.into()) + KUBE_MARGIN;
        watch.max(self.read) + self.max_backoff + GAP
    }
}

/// How a watch gets the objects that exist, before it gets their changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lists {
    /// By a list, page by page, which every API server supports.
    #[default]
    Paged,
    /// By the watch itself, object by object (KEP-3157): the API server keeps no list in memory for
    /// it. If an API server rejects that, the watch lists pages from then on.
    Streamed,
}

impl Lists {
    /// Returns the configuration of kube's watcher, to which the caller adds its selectors.
    #[must_use]
    pub fn config(self) -> watcher::Config {
        let config = watcher::Config::default().page_size(PAGE);
        match self {
            Self::Paged => config,
            Self::Streamed => config.streaming_lists(),
        }
    }
}

/// Watches until the future is dropped; `name` is for the log.
pub async fn watch<K>(
    name: &'static str,
    api: Api<K>,
    config: watcher::Config,
    sink: impl FnMut(Event<K>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watch_with(WatchTimeouts::default(), name, api, config, sink).await;
}

/// Watches like [`watch`], with other timeouts. The client must have the same read timeout.
pub async fn watch_with<K>(
    timeouts: WatchTimeouts,
    name: &'static str,
    api: Api<K>,
    config: watcher::Config,
    mut sink: impl FnMut(Event<K>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut config = config.timeout(timeouts.watch_seconds);
    let mut backoff = WatchBackoff::new(timeouts);
    loop {
        let mut events = std::pin::pin!(watcher(api.clone(), config.clone()));
        while let Some(event) = events.next().await {
            let error = match event {
                Ok(event) => {
                    sink(event);
                    continue;
                }
                Err(error) => error,
            };
            if config.initial_list_strategy == InitialListStrategy::StreamingList
                && lacks_streaming_lists(&error)
            {
                let error = error::text(&error);
                tracing::info!(
                    watch = name,
                    error,
                    "API server does not support streaming lists; falling back to paginated lists"
                );
                config.initial_list_strategy = InitialListStrategy::ListWatch;
                break;
            }
            tracing::warn!(
                watch = name,
                error = error::text(&error),
                "watch failed; retrying"
            );
            sleep(backoff.next(Instant::now(), random())).await;
            if needs_relist(&error) {
                break;
            }
        }
    }
}

/// The state of the one object of a name, as a watch shows it.
#[derive(Debug)]
pub enum ObjectState<K> {
    /// The object exists.
    Present(K),
    /// There is no such object; its last version, if it was deleted while it was watched.
    Absent(Option<K>),
}

/// Watches the one object of a name until the future is dropped: all that a Role with that
/// `resourceName` permits.
pub async fn watch_one<K>(
    label: &'static str,
    api: Api<K>,
    name: &str,
    mut sink: impl FnMut(ObjectState<K>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut is_listed = false;
    watch(label, api, config, |event| match event {
        Event::Init => is_listed = false,
        Event::InitApply(object) => {
            is_listed = true;
            sink(ObjectState::Present(object));
        }
        Event::Apply(object) => sink(ObjectState::Present(object)),
        Event::InitDone if is_listed => {}
        Event::InitDone => sink(ObjectState::Absent(None)),
        Event::Delete(object) => sink(ObjectState::Absent(Some(object))),
    })
    .await;
}

/// Returns an object's version. Versions are numbers that grow (KEP-5504 makes that part of the
/// API's contract).
#[must_use]
pub fn version(metadata: &ObjectMeta) -> u64 {
    let version = metadata.resource_version.as_deref();
    version
        .and_then(|text| text.parse().ok())
        .unwrap_or_default()
}

/// Whether the watch can't continue from its version and has to list again. kube's watcher lists
/// again only after an event of 410, and would otherwise repeat the rejected request; a response of
/// 410 can also come from a proxy before the API server.
fn needs_relist(error: &watcher::Error) -> bool {
    status_code(error).is_some_and(|code| (400..500).contains(&code) && code != 429)
}

/// Whether the API server did not understand the request, as where the feature `WatchList` is off.
fn lacks_streaming_lists(error: &watcher::Error) -> bool {
    matches!(status_code(error), Some(400 | 422))
}

/// Returns the status code of a response to a watch, or of an error event in it.
fn status_code(error: &watcher::Error) -> Option<u16> {
    use kube::Error::Api;
    use watcher::Error::{WatchError, WatchFailed, WatchStartFailed};
    match error {
        WatchError(status) | WatchFailed(Api(status)) | WatchStartFailed(Api(status)) => {
            Some(status.code)
        }
        _ => None,
    }
}

/// The backoff of a watch. It grows while errors come in a row, and an event between two errors
/// does not reset it: a list may succeed each time and the watch after it never.
struct WatchBackoff {
    timeouts: WatchTimeouts,
    next: Duration,
    last_error: Option<Instant>,
}

impl WatchBackoff {
    fn new(timeouts: WatchTimeouts) -> Self {
        Self {
            timeouts,
            next: Duration::ZERO,
            last_error: None,
        }
    }

    fn next(&mut self, now: Instant, random: u64) -> Duration {
        let is_row = |last| now.duration_since(last) < self.timeouts.longest() * 2;
        if !self.last_error.is_some_and(is_row) {
            self.next = FIRST_BACKOFF;
        }
        self.last_error = Some(now);
        let backoff = self.next.min(self.timeouts.max_backoff);
        self.next = backoff * 2;
        let share = 1000 - random % (JITTER + 1);
        backoff * u32::try_from(share).unwrap_or(1000) / 1000
    }
}

/// Returns the client with its watches begun at least [`GAP`] apart. An API server that shuts down,
/// or a proxy that cuts off long responses, ends a watch as soon as it began, and kube's watcher
/// takes that for the end of a quiet watch.
pub(super) fn spaced(client: Client) -> Client {
    let namespace = client.default_namespace().to_owned();
    let next = Arc::new(Mutex::new(Instant::now()));
    let service = tower::service_fn(move |request: Request<Body>| {
        let client = client.clone();
        let begins = is_watch(&request).then(|| {
            let mut next = next.lock().unwrap_or_else(PoisonError::into_inner);
            let begins = (*next).max(Instant::now());
            *next = begins + GAP;
            begins
        });
        async move {
            if let Some(begins) = begins {
                sleep_until(begins).await;
            }
            client.send(request).await
        }
    });
    Client::new(service, namespace)
}

fn is_watch(request: &Request<Body>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    query.split('&').any(|pair| pair == "watch=true")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn backoff_doubles_to_a_limit_and_jitter_only_shortens_it() {
        let timeouts = WatchTimeouts::default();
        for (random, percent) in [(0, 100), (130, 87), (250, 75), (251, 100)] {
            let mut backoff = WatchBackoff::new(timeouts);
            for seconds in [1, 2, 4, 8, 8, 8] {
                let wait = backoff.next(Instant::now(), random);
                let whole = Duration::from_secs(seconds);
                assert!(wait <= whole, "{wait:?}");
                assert_eq!(wait.as_millis() / (10 * u128::from(seconds)), percent);
                tokio::time::advance(timeouts.longest()).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn error_after_a_long_success_has_the_first_backoff() {
        let timeouts = WatchTimeouts::default();
        let mut backoff = WatchBackoff::new(timeouts);
        for _ in 0..5 {
            backoff.next(Instant::now(), 0);
        }
        tokio::time::advance(timeouts.longest() * 2).await;
        assert_eq!(backoff.next(Instant::now(), 0), FIRST_BACKOFF);
    }
}
