//! Watches before an API server that fails in every way that a watch can fail: over a real socket, and with short times.
//! That the real times add up to less than a minute is a test of its own.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support;
use crate::support::{Ends, Fault, WatchedApi};
use ecr_injector::cluster::Cluster;
use ecr_injector::cluster::watch::{Lists, WatchTimeouts, watch_with};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::ListParams;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::Event;
use kube::{Api, Config, ResourceExt as _};
use tokio::task::JoinHandle;

/// Short, and in the order of the real ones: a quiet watch ends before its silence is an error.
const SHORT: WatchTimeouts = WatchTimeouts {
    watch_seconds: 1,
    read: Duration::from_secs(2),
    max_backoff: Duration::from_millis(500),
};

/// The time limit of a request that is answered.
const ANSWER: Duration = Duration::from_secs(1);

type Object = PartialObjectMeta<Namespace>;

fn objects(api: &WatchedApi, timeouts: WatchTimeouts) -> Api<Object> {
    support::crypto();
    let config = Config::new(api.url().parse().unwrap());
    Api::all(Cluster::new(config, timeouts).unwrap().client)
}

/// The names that a watch has reported, as a store keeps them. The watch ends with the store.
struct Store {
    names: Arc<Mutex<BTreeSet<String>>>,
    watch: JoinHandle<()>,
}

impl Store {
    fn watching(api: &WatchedApi, timeouts: WatchTimeouts) -> Self {
        Self::told_by(Lists::Paged, api, timeouts)
    }

    fn told_by(lists: Lists, api: &WatchedApi, timeouts: WatchTimeouts) -> Self {
        let api = objects(api, timeouts);
        let names = Arc::new(Mutex::new(BTreeSet::new()));
        let store = names.clone();
        let mut listed = BTreeSet::new();
        let sink = move |event: Event<Object>| {
            let mut names = store.lock().unwrap();
            match event {
                Event::Init => listed.clear(),
                Event::InitApply(object) => drop(listed.insert(object.name_any())),
                Event::InitDone => *names = std::mem::take(&mut listed),
                Event::Apply(object) => drop(names.insert(object.name_any())),
                Event::Delete(object) => drop(names.remove(&object.name_any())),
            }
        };
        let config = lists.config();
        let watch = tokio::spawn(watch_with(timeouts, "names", api, config, sink));
        Self { names, watch }
    }

    /// Waits for a name, and returns how long that took.
    async fn sees(&self, name: &str, limit: Duration) -> Duration {
        let start = Instant::now();
        let seen = async || self.names.lock().unwrap().contains(name).then_some(());
        support::eventually(&format!("{name} is seen"), limit, seen).await;
        start.elapsed()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// A store that has seen the first object and watches.
async fn synced(timeouts: WatchTimeouts) -> (WatchedApi, Store) {
    let api = WatchedApi::start().await;
    api.create("first");
    let store = Store::watching(&api, timeouts);
    store.sees("first", ANSWER).await;
    api.is_watched(ANSWER).await;
    (api, store)
}

#[test]
fn real_times_add_up_to_less_than_a_minute() {
    let timeouts = WatchTimeouts::default();
    let least = Duration::from_secs(5);
    assert!(timeouts.longest() + least <= Duration::from_mins(1));
    // Else the quiet end of a watch would be an error.
    let quiet = Duration::from_secs(timeouts.watch_seconds.into()) + least;
    assert!(quiet < timeouts.read);
}

#[tokio::test]
async fn watch_brings_what_is_new_at_once() {
    let (api, store) = synced(SHORT).await;
    for name in ["second", "third"] {
        api.create(name);
        store.sees(name, ANSWER).await;
    }
    assert_eq!(api.lists(), 1);
}

#[tokio::test]
async fn quiet_watch_is_restarted_without_a_list_or_a_log_line() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(move || writer.clone());
    let _guard = crate::support::log::scoped(subscriber.finish());
    let (api, store) = synced(SHORT).await;
    tokio::time::sleep(Duration::from_millis(4500)).await;
    assert!((4..=6).contains(&api.watches()), "{}", api.watches());
    assert_eq!(api.lists(), 1);
    assert_eq!(log.text(), "");
    api.create("second");
    store.sees("second", ANSWER).await;
}

#[tokio::test]
async fn version_gone_by_an_event_is_listed_again() {
    let (api, store) = synced(SHORT).await;
    api.forget(Fault::GoneByEvent);
    api.create("second");
    store.sees("second", SHORT.longest() + ANSWER).await;
    assert_eq!(api.lists(), 2);
}

#[tokio::test]
async fn version_gone_by_the_status_is_listed_again() {
    let (api, store) = synced(SHORT).await;
    api.forget(Fault::GoneByStatus);
    api.create("second");
    store.sees("second", SHORT.longest() + ANSWER).await;
    assert_eq!(api.lists(), 2);
}

#[tokio::test]
async fn watch_that_always_lists_first_does_so_ever_more_rarely() {
    let timeouts = WatchTimeouts {
        max_backoff: Duration::from_secs(4),
        ..SHORT
    };
    let (api, _store) = synced(timeouts).await;
    api.forget(Fault::GoneByEvent);
    api.keep_forgetting();
    tokio::time::sleep(Duration::from_secs(6)).await;
    // After 0, 1, 3 and 7 seconds, less a quarter by chance.
    assert!((3..=5).contains(&api.lists()), "{}", api.lists());
}

async fn connections_are_cut_every_second(ends: Ends) {
    let (api, store) = synced(SHORT).await;
    api.cut_after(Duration::from_secs(1), ends);
    for name in ["second", "third", "fourth"] {
        tokio::time::sleep(Duration::from_millis(700)).await;
        api.create(name);
        store.sees(name, SHORT.longest() + ANSWER).await;
    }
    assert_eq!(api.lists(), 1);
}

#[tokio::test]
async fn watches_that_end_every_second_bring_what_is_new() {
    connections_are_cut_every_second(Ends::Cleanly).await;
}

#[tokio::test]
async fn watches_closed_every_second_bring_what_is_new() {
    connections_are_cut_every_second(Ends::MidChunk).await;
}

#[tokio::test]
async fn watches_reset_every_second_bring_what_is_new() {
    connections_are_cut_every_second(Ends::Reset).await;
}

#[tokio::test]
async fn watches_that_end_at_once_dont_storm_the_api_server() {
    let ended = async |ends| {
        let (api, store) = synced(SHORT).await;
        api.cut_after(Duration::ZERO, ends);
        // Past the watch that was running.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = api.watches();
        tokio::time::sleep(Duration::from_secs(2)).await;
        let watches = api.watches() - before;
        assert!((2..=5).contains(&watches), "{ends:?}: {watches} in 2 s");
        api.create("second");
        store.sees("second", ANSWER).await;
    };
    tokio::join!(ended(Ends::Cleanly), ended(Ends::MidChunk));
}

#[tokio::test]
async fn watch_that_begins_and_says_nothing_more_is_given_up() {
    // The connection's own silence would be an error only later.
    let timeouts = WatchTimeouts {
        read: Duration::from_secs(20),
        ..SHORT
    };
    let (api, store) = synced(timeouts).await;
    api.next_watch(Fault::Silent);
    api.meets_a_fault(Duration::from_secs(3)).await;
    api.create("second");
    let limit = Duration::from_secs(6) + ANSWER;
    let took = store.sees("second", limit).await;
    assert!(took > Duration::from_secs(4), "{took:?}");
    assert_eq!(api.lists(), 1);
}

#[tokio::test]
async fn watch_that_is_never_answered_is_given_up() {
    let (api, store) = synced(SHORT).await;
    api.next_watch(Fault::Unanswered);
    api.meets_a_fault(Duration::from_secs(3)).await;
    api.create("second");
    store.sees("second", SHORT.longest() + ANSWER).await;
    assert_eq!(api.lists(), 1);
}

#[tokio::test]
async fn list_that_is_never_answered_is_given_up() {
    let api = WatchedApi::start().await;
    api.create("first");
    api.next_list(Fault::Unanswered);
    let store = Store::watching(&api, SHORT);
    store.sees("first", SHORT.longest() + ANSWER).await;
    assert_eq!(api.lists(), 2);
}

#[tokio::test]
async fn list_that_stops_halfway_is_given_up() {
    let api = WatchedApi::start().await;
    api.create("first");
    api.next_list(Fault::Silent);
    let store = Store::watching(&api, SHORT);
    store.sees("first", SHORT.longest() + ANSWER).await;
    assert_eq!(api.lists(), 2);
}

#[tokio::test]
async fn streamed_lists_bring_old_and_new_without_a_list() {
    let api = WatchedApi::start().await;
    api.create("first");
    api.create("second");
    let store = Store::told_by(Lists::Streamed, &api, SHORT);
    store.sees("first", ANSWER).await;
    store.sees("second", ANSWER).await;
    api.create("third");
    store.sees("third", ANSWER).await;
    // The next watch goes on where this one ends.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    api.create("fourth");
    store.sees("fourth", ANSWER).await;
    assert_eq!((api.lists(), api.streamed()), (0, 1));
    // What was forgotten is streamed anew.
    api.forget(Fault::GoneByStatus);
    api.create("fifth");
    store.sees("fifth", SHORT.longest() + ANSWER).await;
    assert_eq!((api.lists(), api.streamed()), (0, 2));
}

#[tokio::test]
async fn api_server_without_streamed_lists_is_asked_for_pages_at_once() {
    let api = WatchedApi::start().await;
    api.create("first");
    api.stream_no_lists();
    let store = Store::told_by(Lists::Streamed, &api, SHORT);
    store.sees("first", ANSWER).await;
    api.forget(Fault::GoneByStatus);
    api.create("second");
    store.sees("second", SHORT.longest() + ANSWER).await;
    assert_eq!((api.lists(), api.streamed()), (2, 1));
}

#[tokio::test]
async fn time_that_a_connection_was_idle_is_no_silence() {
    let api = WatchedApi::start().await;
    let objects = objects(&api, SHORT);
    let list = async || objects.list(&ListParams::default()).await.unwrap();
    list().await;
    tokio::time::sleep(SHORT.read * 3 / 4).await;
    api.next_list(Fault::Late);
    list().await;
    assert_eq!(api.connections(), 1);
    tokio::time::sleep(SHORT.read * 5 / 4).await;
    list().await;
    assert_eq!(api.connections(), 2);
}

/// The captured log.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
