//! Unit tests of `event_recorder`.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicU16, Ordering::SeqCst},
};

use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use jiff::Timestamp;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::*;
use crate::{cli::metrics::Metrics, telemetry::log::captured::Log};

/// The status of a call that is never answered.
const HANGS: u16 = 0;

struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        Timestamp::constant(1_800_000_000, 0)
    }
}

/// A recorder, and an API server that keeps the Events and answers by this status.
struct Fixture {
    recorder: EventRecorder,
    created: Arc<Mutex<Vec<(Instant, Value)>>>,
    status: Arc<AtomicU16>,
    metrics: Metrics,
    supervisor: Supervisor,
}

fn fixture() -> Fixture {
    let created = Arc::new(Mutex::new(Vec::new()));
    let status = Arc::new(AtomicU16::new(201));
    let (kept, answer) = (created.clone(), status.clone());
    let service = tower::service_fn(move |request: Request<Body>| {
        let (kept, answer) = (kept.clone(), answer.clone());
        async move {
            let (head, body) = request.into_parts();
            assert_eq!(head.method, Method::POST);
            let body = body.collect().await.expect("a body").to_bytes();
            let event: Value = serde_json::from_slice(&body).expect("JSON");
            let namespace = event["metadata"]["namespace"]
                .as_str()
                .expect("a namespace");
            assert_eq!(
                head.uri.path(),
                format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events")
            );
            kept.lock()
                .expect("a lock")
                .push((Instant::now(), event.clone()));
            let code = answer.load(SeqCst);
            if code == HANGS {
                std::future::pending::<()>().await;
            }
            let answer = if code < 300 {
                event
            } else {
                json!({"apiVersion": "v1", "kind": "Status", "status": "Failure",
                        "message": "User \"us\" cannot create events", "reason": "Any", "code": code})
            };
            let body = Full::<Bytes>::from(answer.to_string());
            Ok::<_, Infallible>(Response::builder().status(code).body(body).expect("one"))
        }
    });
    let (metrics, supervisor) = (Metrics::default(), Supervisor::default());
    let recorder = EventRecorder::new(EventRecorderOptions {
        client: Client::new(service, "default"),
        regarding: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("ConfigMap".to_owned()),
            name: Some("settings".to_owned()),
            ..ObjectReference::default()
        },
        instance: "pod-1".to_owned(),
        clock: Arc::new(FixedClock),
        metrics: metrics.cluster.clone(),
        supervisor: supervisor.clone(),
    });
    Fixture {
        recorder,
        created,
        status,
        metrics,
        supervisor,
    }
}

impl Fixture {
    fn count(&self) -> usize {
        self.created.lock().expect("a lock").len()
    }

    fn reasons(&self) -> Vec<String> {
        let created = self.created.lock().expect("a lock");
        let reasons = created.iter().map(|(_, event)| event["reason"].as_str());
        reasons
            .map(|reason| reason.expect("a reason").to_owned())
            .collect()
    }

    fn dropped(&self) -> u64 {
        self.metrics.cluster.events_dropped.get()
    }

    fn respond_with(&self, code: u16) {
        self.status.store(code, SeqCst);
    }
}

fn namespace(name: &str) -> Namespace {
    Namespace::parse(name).expect("a name")
}

fn numbered(number: usize) -> Namespace {
    namespace(&format!("team-{number}"))
}

/// An Event of one reason, with this deduplication key.
struct Change(&'static str);

impl ToEventRecord for Change {
    fn to_record(&self, name: &str, namespace: &Namespace) -> EventRecord {
        let note = format!("{name} in {namespace} changed");
        EventRecord::warning("Changed", "Change", self.0.to_owned(), &note)
    }
}

#[tokio::test(start_paused = true)]
async fn event_regards_the_object_and_names_its_reporter() {
    let fixture = fixture();
    fixture.recorder.publish(&namespace("team-a"), &Change("a"));
    sleep(Duration::from_secs(1)).await;
    let event = fixture.created.lock().expect("a lock")[0].1.clone();
    assert_eq!(
        event,
        json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"generateName": "settings-", "namespace": "team-a"},
            "regarding": {
                "apiVersion": "v1", "kind": "ConfigMap", "name": "settings", "namespace": "team-a",
            },
            "type": "Warning",
            "reason": "Changed",
            "action": "Change",
            "note": "settings in team-a changed",
            "eventTime": "2027-01-15T08:00:00.000000Z",
            "reportingController": "ecr-injector",
            "reportingInstance": "pod-1",
        })
    );
}

#[tokio::test(start_paused = true)]
async fn publish_never_waits_and_counts_what_a_full_queue_drops() {
    let fixture = fixture();
    fixture.respond_with(HANGS);
    // One is being sent, the others wait.
    fixture.recorder.publish(&namespace("first"), &Change("a"));
    sleep(Duration::from_millis(1)).await;
    let before = Instant::now();
    for number in 0..QUEUE + 10 {
        fixture.recorder.publish(&numbered(number), &Change("a"));
    }
    assert_eq!(Instant::now(), before);
    assert_eq!(fixture.dropped(), 10);
    assert!(
        fixture
            .metrics
            .registry
            .to_text()
            .contains("ecr_injector_events_dropped_total 10")
    );
    // A dropped event is published when it happens again.
    fixture.respond_with(201);
    sleep(Duration::from_mins(30)).await;
    let sent = fixture.count();
    assert_eq!(sent, QUEUE + 1);
    fixture.recorder.publish(&numbered(QUEUE + 5), &Change("a"));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fixture.count(), sent + 1);
}

#[tokio::test(start_paused = true)]
async fn duplicate_events_are_published_once_an_hour() {
    let fixture = fixture();
    let (here, there) = (namespace("here"), namespace("there"));
    for _ in 0..3 {
        fixture.recorder.publish(&here, &Change("a"));
        fixture.recorder.publish(&here, &Change("b"));
        fixture.recorder.publish(&there, &Change("a"));
        fixture.recorder.publish(&here, &Change("c"));
        fixture.recorder.publish(&here, &Change(""));
        fixture.recorder.publish(&here, &Change(""));
        sleep(Duration::from_secs(1100)).await;
    }
    assert_eq!(fixture.count(), 5, "{:?}", fixture.reasons());
    sleep(Duration::from_secs(400)).await;
    fixture.recorder.publish(&here, &Change("a"));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fixture.count(), 6);
}

#[tokio::test(start_paused = true)]
async fn event_that_failed_is_published_the_next_time() {
    let fixture = fixture();
    let here = namespace("here");
    for (code, told) in [(HANGS, 1), (503, 2), (429, 3), (201, 4), (201, 4)] {
        fixture.respond_with(code);
        fixture.recorder.publish(&here, &Change("c"));
        sleep(Duration::from_secs(5)).await;
        assert_eq!(fixture.count(), told, "{code}");
    }
}

#[test]
fn remembered_events_are_bounded_and_expire() {
    let (mut recent, now) = (Recent::default(), Instant::now());
    for key in 0..2 * MAX_REMEMBERED as u64 {
        recent.insert(key, now);
    }
    assert_eq!(
        (recent.keys.len(), recent.order.len()),
        (MAX_REMEMBERED, MAX_REMEMBERED)
    );
    assert!(!recent.contains(0, now) && recent.contains(MAX_REMEMBERED as u64, now));
    recent.remove(MAX_REMEMBERED as u64);
    assert!(!recent.contains(MAX_REMEMBERED as u64, now));
    assert!(!recent.contains(MAX_REMEMBERED as u64 + 1, now + DEDUP_WINDOW));
    assert!(recent.keys.is_empty() && recent.order.is_empty());
}

#[tokio::test(start_paused = true)]
async fn burst_is_followed_by_ten_events_a_second() {
    let fixture = fixture();
    let start = Instant::now();
    for number in 0..300 {
        fixture.recorder.publish(&numbered(number), &Change("a"));
    }
    sleep(Duration::from_millis(1)).await;
    assert_eq!(fixture.count(), BURST as usize);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(fixture.count(), 300);
    let last = fixture.created.lock().expect("a lock")[299].0;
    let took = last - start;
    assert!(took >= INTERVAL * 250 && took < INTERVAL * 260, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn missing_right_is_logged_once_and_costs_nothing_else() {
    let log = Log::default();
    let _guard = log.start();
    let fixture = fixture();
    fixture.respond_with(403);
    for round in 0..3 {
        for number in 0..100 {
            fixture.recorder.publish(&numbered(number), &Change("a"));
        }
        sleep(Duration::from_mins(1)).await;
        assert_eq!(fixture.count(), 100, "in round {round}");
    }
    assert_eq!(log.count("cannot create events"), 1);
    assert_eq!(fixture.dropped(), 0);
    // The next outage is logged again.
    for (code, namespace) in [(201, "x"), (403, "y")] {
        fixture.respond_with(code);
        fixture
            .recorder
            .publish(&self::namespace(namespace), &Change("a"));
        sleep(Duration::from_mins(1)).await;
    }
    assert_eq!(log.count("cannot create events"), 2);
}

#[tokio::test(start_paused = true)]
async fn event_of_a_deleted_namespace_is_no_failure() {
    let log = Log::default();
    let _guard = log.start();
    let fixture = fixture();
    fixture.respond_with(404);
    fixture.recorder.publish(&namespace("gone"), &Change("b"));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fixture.count(), 1);
    assert_eq!(log.count("creating an Event failed"), 0);
}

#[tokio::test(start_paused = true)]
async fn task_ends_when_the_queue_is_sent_or_at_once_when_stopped() {
    let Fixture {
        recorder,
        created,
        supervisor,
        ..
    } = fixture();
    for number in 0..100 {
        recorder.publish(&numbered(number), &Change("a"));
    }
    drop(recorder);
    supervisor.tasks().close();
    supervisor.tasks().wait().await;
    assert_eq!(created.lock().expect("a lock").len(), 100);

    let fixture = fixture();
    fixture.respond_with(HANGS);
    fixture.recorder.publish(&namespace("here"), &Change("a"));
    sleep(Duration::from_millis(1)).await;
    let before = Instant::now();
    fixture.supervisor.stop().cancel();
    fixture.supervisor.tasks().close();
    fixture.supervisor.tasks().wait().await;
    assert_eq!(Instant::now(), before);
    // Later ones are dropped, and that is all.
    fixture.recorder.publish(&namespace("here"), &Change("b"));
    assert_eq!(fixture.dropped(), 1);
}
