//! Keeps a watch running: events go to a sink, errors are waited out.
//!
//! Whatever goes wrong, the sink hears of what is new within a minute after it went right again. kube's own watcher has
//! no limit to a request that is never answered, pauses for up to a minute, and none at all after a watch that merely ended.

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

use super::random;

/// The pause after the first error; it doubles up to [`Patience::pause`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// How much of a pause chance may take off, in thousandths: replicas don't come back in step.
const JITTER: u64 = 250;
/// The least time from the beginning of one watch to that of the next.
const GAP: Duration = Duration::from_millis(500);
/// Objects to a page of a list. kube's 500 of them are some megabytes of JSON at a time, most of it managed fields, and a
/// page more or less costs a millisecond.
const PAGE: u32 = 100;
/// By how much kube lets a watch outlast the end that it asked for.
const KUBE_MARGIN: Duration = Duration::from_secs(5);

/// How long what may take.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// When the API server is asked to end a watch, in seconds. One that is heard of neither then nor in the five seconds
    /// after is dead, and begun anew.
    pub watch_seconds: u32,
    /// How long a connection may bring no byte while there is an answer to come. More than a quiet watch takes: its end
    /// is no error.
    pub silence: Duration,
    /// The longest pause after errors.
    pub pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            watch_seconds: 35,
            silence: Duration::from_secs(42),
            pause: Duration::from_secs(8),
        }
    }
}

impl Patience {
    /// How long it takes at most until there is a new request after one that failed: that one is silent, and then there
    /// are pauses.
    #[must_use]
    pub fn longest(&self) -> Duration {
        let watch = Duration::from_secs(self.watch_seconds.into()) + KUBE_MARGIN;
        watch.max(self.silence) + self.pause + GAP
    }
}

/// How a watch is told what there is, before it is told what changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lists {
    /// By a list, page by page: every API server does that.
    #[default]
    Paged,
    /// By the watch itself, object by object (KEP-3157): the API server keeps no list in memory for it. One that refuses is
    /// asked for pages from then on.
    Streamed,
}

impl Lists {
    /// What kube's watcher has to be told for it. The selectors are the caller's.
    #[must_use]
    pub fn config(self) -> watcher::Config {
        let config = watcher::Config::default();
        match self {
            Self::Paged => config,
            Self::Streamed => config.streaming_lists(),
        }
    }
}

/// Watches until the future is dropped. `name` is for the log.
pub async fn watch<K>(
    name: &'static str,
    api: Api<K>,
    config: watcher::Config,
    sink: impl FnMut(Event<K>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watch_with(Patience::default(), name, api, config, sink).await;
}

/// [`watch`] with times of one's own. The client's has to be the same silence.
pub async fn watch_with<K>(
    patience: Patience,
    name: &'static str,
    api: Api<K>,
    config: watcher::Config,
    mut sink: impl FnMut(Event<K>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut config = config.timeout(patience.watch_seconds).page_size(PAGE);
    let mut pauses = Pauses::new(patience);
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
                && streams_no_lists(&error)
            {
                tracing::warn!(watch = name, %error, "API server does not support streaming lists; falling back to paginated lists");
                config.initial_list_strategy = InitialListStrategy::ListWatch;
                break;
            }
            tracing::warn!(watch = name, %error, "watch failed; retrying");
            sleep(pauses.next(Instant::now(), random())).await;
            if is_refusal(&error) {
                break;
            }
        }
    }
}

/// What is heard of the one object of a name.
#[derive(Debug)]
pub enum News<K> {
    /// It is this.
    Is(K),
    /// There is none; what it was last, if it was deleted while it was watched.
    Gone(Option<K>),
}

/// Watches the one object of a name until the future is dropped: all that a role permits which is narrowed to that name.
pub async fn watch_one<K>(
    what: &'static str,
    api: Api<K>,
    name: &str,
    mut sink: impl FnMut(News<K>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut is_listed = false;
    watch(what, api, config, |event| match event {
        Event::Init => is_listed = false,
        Event::InitApply(object) => {
            is_listed = true;
            sink(News::Is(object));
        }
        Event::Apply(object) => sink(News::Is(object)),
        Event::InitDone if is_listed => {}
        Event::InitDone => sink(News::Gone(None)),
        Event::Delete(object) => sink(News::Gone(Some(object))),
    })
    .await;
}

/// An object's version. They are numbers that grow (KEP-5504 makes it part of the API's contract).
#[must_use]
pub fn version(metadata: &ObjectMeta) -> u64 {
    let version = metadata.resource_version.as_deref();
    version
        .and_then(|text| text.parse().ok())
        .unwrap_or_default()
}

/// Whether there is no going on from where the watch stood, so that it begins with a list. kube's watcher does so only
/// for an event of 410 and would ask for the same again and again; an answer of 410 can come from what is between us and
/// the API server, too.
fn is_refusal(error: &watcher::Error) -> bool {
    answered(error).is_some_and(|code| (400..500).contains(&code) && code != 429)
}

/// Whether it is the request that isn't understood: the answer where the feature `WatchList` is off.
fn streams_no_lists(error: &watcher::Error) -> bool {
    matches!(answered(error), Some(400 | 422))
}

/// The status that a watch was answered with, by the response or by an event in it.
fn answered(error: &watcher::Error) -> Option<u16> {
    use kube::Error::Api;
    use watcher::Error::{WatchError, WatchFailed, WatchStartFailed};
    match error {
        WatchError(status) | WatchFailed(Api(status)) | WatchStartFailed(Api(status)) => {
            Some(status.code)
        }
        _ => None,
    }
}

/// How long to wait after errors. The pause grows while they come in a row; an event between them is no sign that all is
/// well, for a list may succeed each time and the watch after it never.
struct Pauses {
    patience: Patience,
    next: Duration,
    last_error: Option<Instant>,
}

impl Pauses {
    fn new(patience: Patience) -> Self {
        Self {
            patience,
            next: Duration::ZERO,
            last_error: None,
        }
    }

    fn next(&mut self, now: Instant, random: u64) -> Duration {
        let is_row = |last| now.duration_since(last) < self.patience.longest() * 2;
        if !self.last_error.is_some_and(is_row) {
            self.next = FIRST_PAUSE;
        }
        self.last_error = Some(now);
        let pause = self.next.min(self.patience.pause);
        self.next = pause * 2;
        let share = 1000 - random % (JITTER + 1);
        pause * u32::try_from(share).unwrap_or(1000) / 1000
    }
}

/// The same client, but its watches begin at least [`GAP`] apart. An API server that shuts down, or a proxy that lets no
/// answer last, ends a watch as soon as it began, and kube's watcher takes that for the end of a quiet one.
pub(super) fn paced(client: Client) -> Client {
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
    async fn pauses_double_up_to_the_longest_and_chance_only_shortens_them() {
        let patience = Patience::default();
        for (random, percent) in [(0, 100), (130, 87), (250, 75), (251, 100)] {
            let mut pauses = Pauses::new(patience);
            for seconds in [1, 2, 4, 8, 8, 8] {
                let pause = pauses.next(Instant::now(), random);
                let whole = Duration::from_secs(seconds);
                assert!(pause <= whole, "{pause:?}");
                assert_eq!(pause.as_millis() / (10 * u128::from(seconds)), percent);
                tokio::time::advance(patience.longest()).await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_error_after_a_good_while_is_a_first_one() {
        let patience = Patience::default();
        let mut pauses = Pauses::new(patience);
        for _ in 0..5 {
            pauses.next(Instant::now(), 0);
        }
        tokio::time::advance(patience.longest() * 2).await;
        assert_eq!(pauses.next(Instant::now(), 0), FIRST_PAUSE);
    }
}
