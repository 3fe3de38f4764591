//! Publishes Kubernetes Events without blocking.
//!
//! [`EventRecorder::publish`] puts an Event into a bounded queue, which one task empties at a
//! limited rate; an Event that finds the queue full is counted and dropped. Nothing depends on an
//! Event, so one that the API server refuses is only a line in the log.
//!
//! `kube`'s recorder is not used: within some minutes it turns a second Event of the same reason
//! into a mere count of the first, and the second note is lost; here the notes are what matters
//! (another code of AWS, another cause). That recorder also needs the right to patch.

use std::{
    collections::{HashSet, VecDeque},
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
};
use kube::{Api, Client, api::PostParams};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};

use super::{
    event::{EventRecord, ToEventRecord, clip, quote},
    metrics::ClusterMetrics,
    namespace::Namespace,
};
use crate::process::{clock::Clock, supervisor::Supervisor};

/// The reporting controller of every Event; the guard lets our account write no other.
pub const REPORTER: &str = "ecr-injector";
/// The most Events that wait to be sent.
const QUEUE: usize = 1024;
/// How long an Event suppresses its duplicates.
const DEDUP_WINDOW: Duration = Duration::from_hours(1);
/// The most Events that are remembered for deduplication; 24 bytes each.
const MAX_REMEMBERED: usize = 16_384;
/// The most Events that are sent without a pause between them.
const BURST: u32 = 50;
/// The pause after a burst: ten a second.
const INTERVAL: Duration = Duration::from_millis(100);
/// How long one call to the API server may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// The longest reporting instance in bytes; the API server refuses a longer one.
const MAX_INSTANCE: usize = 128;
/// The most bytes of an object's name in that of an Event, which has 253 with its random part.
const MAX_NAME: usize = 240;

/// Publishes Events; clones share the queue. The task behind the recorder ends when all clones are
/// gone and the queue is empty, or at once when the task is stopped.
#[derive(Clone)]
pub struct EventRecorder {
    queue: mpsc::Sender<QueuedEvent>,
    recent: Arc<Mutex<Recent>>,
    clock: Arc<dyn Clock>,
    metrics: Arc<ClusterMetrics>,
    object_name: Arc<str>,
}

/// An Event that waits to be sent.
struct QueuedEvent {
    key: u64,
    namespace: Namespace,
    record: EventRecord,
    /// Another object than that of the recorder.
    regarding: Option<ObjectReference>,
    at: MicroTime,
}

/// The dependencies of an [`EventRecorder`].
pub struct EventRecorderOptions {
    /// The API server, without a retry of the client's own.
    pub client: Client,
    /// The object that every Event regards, without its namespace: each Event sets its own.
    pub regarding: ObjectReference,
    /// The name of this replica, for people: the Pod's name.
    pub instance: String,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// Counts the calls and the dropped Events.
    pub metrics: Arc<ClusterMetrics>,
    /// Runs the task until the stop; Events that were not sent by then are dropped.
    pub supervisor: Supervisor,
}

impl EventRecorder {
    /// Creates a recorder and starts the task that sends.
    #[must_use]
    pub fn new(options: EventRecorderOptions) -> Self {
        let (queue, queued) = mpsc::channel(QUEUE);
        let recent = Arc::new(Mutex::new(Recent::default()));
        let object_name = options.regarding.name.clone().unwrap_or_default().into();
        let sender = Sender {
            client: options.client,
            regarding: options.regarding,
            instance: clip(&options.instance, MAX_INSTANCE),
            metrics: options.metrics.clone(),
            recent: recent.clone(),
            logged_outcome: None,
        };
        // It may end by itself: then there is no recorder left.
        options
            .supervisor
            .spawn_once("event recorder", sender.run(queued));
        Self {
            queue,
            recent,
            clock: options.clock,
            metrics: options.metrics,
            object_name,
        }
    }

    /// Publishes an Event in a namespace, unless a duplicate was published there within the hour.
    /// Never waits and never fails.
    pub fn publish(&self, namespace: &Namespace, event: &impl ToEventRecord) {
        let record = event.to_record(&self.object_name, namespace);
        let mut recent = lock(&self.recent);
        let key = recent
            .random
            .hash_one((namespace, record.reason, &record.dedup_key));
        let now = Instant::now();
        if recent.contains(key, now) {
            return;
        }
        let event = QueuedEvent {
            key,
            namespace: namespace.clone(),
            record,
            regarding: event.regarding(),
            at: MicroTime(self.clock.now()),
        };
        if self.queue.try_send(event).is_ok() {
            recent.insert(key, now);
        } else {
            self.metrics.events_dropped.inc();
        }
    }
}

/// The Events that were published within [`DEDUP_WINDOW`].
#[derive(Default)]
struct Recent {
    random: RandomState,
    keys: HashSet<u64>,
    /// The oldest first.
    order: VecDeque<(Instant, u64)>,
}

impl Recent {
    fn contains(&mut self, key: u64, now: Instant) -> bool {
        while let Some((at, oldest)) = self.order.front()
            && now.saturating_duration_since(*at) >= DEDUP_WINDOW
        {
            self.keys.remove(oldest);
            self.order.pop_front();
        }
        self.keys.contains(&key)
    }

    fn insert(&mut self, key: u64, now: Instant) {
        if self.order.len() >= MAX_REMEMBERED
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
        self.order.push_back((now, key));
        self.keys.insert(key);
    }

    /// Forgets an Event that could not be sent, so that the next one is no duplicate.
    fn remove(&mut self, key: u64) {
        if self.keys.remove(&key) {
            self.order.retain(|(_, other)| *other != key);
        }
    }
}

fn lock(recent: &Mutex<Recent>) -> MutexGuard<'_, Recent> {
    recent.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The task that sends the queued Events.
struct Sender {
    client: Client,
    regarding: ObjectReference,
    instance: String,
    metrics: Arc<ClusterMetrics>,
    recent: Arc<Mutex<Recent>>,
    /// The outcome of the failed calls that was logged last; none since a call succeeded.
    logged_outcome: Option<&'static str>,
}

impl Sender {
    async fn run(mut self, mut queued: mpsc::Receiver<QueuedEvent>) {
        // When the next would be sent if all kept the interval; a burst may be ahead of it.
        let mut due = Instant::now();
        while let Some(event) = queued.recv().await {
            let now = Instant::now();
            due = due.max(now);
            sleep_until(now + due.saturating_duration_since(now + INTERVAL * (BURST - 1))).await;
            due += INTERVAL;
            self.send(event).await;
        }
    }

    async fn send(&mut self, queued: QueuedEvent) {
        let QueuedEvent { key, namespace, .. } = &queued;
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace.as_str());
        let event = self.event(&queued);
        let params = PostParams::default();
        let create = events.create(&params, &event);
        let (outcome, error) = match timeout(CALL_TIMEOUT, create).await {
            Ok(Ok(_)) => ("ok", None),
            Ok(Err(kube::Error::Api(status))) if is_namespace_gone(&status) => ("gone", None),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400..=428) => {
                ("rejected", Some(status.message))
            }
            Ok(Err(error)) => ("error", Some(error.to_string())),
            Err(_) => (
                "timeout",
                Some(format!("no response within {CALL_TIMEOUT:?}")),
            ),
        };
        self.metrics
            .api_calls
            .count_call("create", "events", outcome);
        if matches!(outcome, "error" | "timeout") {
            lock(&self.recent).remove(*key);
        }
        match error {
            None if outcome == "ok" => self.logged_outcome = None,
            None => {}
            Some(_) if self.logged_outcome == Some(outcome) => {}
            Some(message) => {
                self.logged_outcome = Some(outcome);
                let (reason, error) = (queued.record.reason, quote(&message));
                tracing::warn!(
                    %namespace, reason, error,
                    "creating an Event failed, and later ones may fail too; nothing else \
                     depends on Events. Grant create on events in events.k8s.io \
                     (deploy/rbac.yaml), and allow it in the guard (deploy/guard.yaml)"
                );
            }
        }
    }

    fn event(&self, queued: &QueuedEvent) -> Event {
        let (record, namespace) = (&queued.record, queued.namespace.to_string());
        let regarding = queued.regarding.as_ref().unwrap_or(&self.regarding);
        let name = regarding.name.as_deref().unwrap_or_default();
        Event {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", clip_name(name))),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            regarding: Some(ObjectReference {
                namespace: Some(namespace),
                ..regarding.clone()
            }),
            type_: Some(record.event_type.as_str().to_owned()),
            reason: Some(record.reason.to_owned()),
            action: Some(record.action.to_owned()),
            note: Some(record.note.clone()),
            event_time: Some(queued.at.clone()),
            reporting_controller: Some(REPORTER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        }
    }
}

/// Returns as much of an object's name as an Event's has room for before its random part.
fn clip_name(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_NAME)]
}

/// Returns whether the namespace is gone or being deleted: then nobody reads the Event, and nothing
/// has failed.
fn is_namespace_gone(status: &kube::core::Status) -> bool {
    status.code == 404 || status.message.contains("is being terminated")
}

#[cfg(test)]
mod tests;
