//! Unit tests of `events`.

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

/// Answers that it never answers.
const HANGS: u16 = 0;

struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        Timestamp::constant(1_800_000_000, 0)
    }
}

/// An API server that keeps what it is told and answers by this status.
struct Bed {
    events: Events,
    written: Arc<Mutex<Vec<(Instant, Value)>>>,
    status: Arc<AtomicU16>,
    metrics: Metrics,
    tasks: TaskTracker,
    stop: CancellationToken,
}

fn bed() -> Bed {
    let written = Arc::new(Mutex::new(Vec::new()));
    let status = Arc::new(AtomicU16::new(201));
    let (kept, answer) = (written.clone(), status.clone());
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
    let (metrics, tasks) = (Metrics::default(), TaskTracker::new());
    let stop = CancellationToken::new();
    let events = Events::new(EventRecorderOptions {
        client: Client::new(service, "default"),
        secret_name: "ecr-pull-secret".to_owned(),
        instance: "pod-1".to_owned(),
        clock: Arc::new(FixedClock),
        metrics: metrics.pull_secret.clone(),
        tasks: tasks.clone(),
        stop: stop.clone(),
    });
    Bed {
        events,
        written,
        status,
        metrics,
        tasks,
        stop,
    }
}

impl Bed {
    fn count(&self) -> usize {
        self.written.lock().expect("a lock").len()
    }

    fn reasons(&self) -> Vec<String> {
        let written = self.written.lock().expect("a lock");
        let reasons = written.iter().map(|(_, event)| event["reason"].as_str());
        reasons
            .map(|reason| reason.expect("a reason").to_owned())
            .collect()
    }

    fn dropped(&self) -> u64 {
        self.metrics.pull_secret.events_dropped.get()
    }

    fn answers(&self, code: u16) {
        self.status.store(code, SeqCst);
    }
}

fn namespace(name: &str) -> Namespace {
    Namespace::parse(name).expect("a name")
}

fn numbered(number: usize) -> Namespace {
    namespace(&format!("team-{number}"))
}

fn refused(code: &str) -> PullSecretEvent {
    PullSecretEvent::Refused { code: code.into() }
}

/// One of each, with the longest and worst that others may say.
fn all(said: &str) -> Vec<PullSecretEvent> {
    let said = said.to_owned();
    vec![
        PullSecretEvent::Refreshed,
        PullSecretEvent::Refused {
            code: AwsReply::new(said.clone(), said.clone()),
        },
        PullSecretEvent::Foreign { why: Foreign::Type },
        PullSecretEvent::Repaired {
            what: Damage::Deleted,
        },
        PullSecretEvent::Repaired {
            what: Damage::Changed,
        },
        PullSecretEvent::Contended,
        PullSecretEvent::Quota {
            message: said.clone(),
        },
        PullSecretEvent::Forbidden {
            message: said.clone(),
        },
        PullSecretEvent::RoleRefused {
            role: said.clone(),
            why: said.clone(),
        },
        PullSecretEvent::Suspended {
            host: said.clone(),
            more: 3,
            why: said,
        },
        PullSecretEvent::OptedIn,
        PullSecretEvent::OptedOut,
    ]
}

#[tokio::test(start_paused = true)]
async fn an_event_is_about_the_pull_secret_and_from_us() {
    let bed = bed();
    bed.events
        .publish(&namespace("team-a"), &PullSecretEvent::OptedIn);
    sleep(Duration::from_secs(1)).await;
    let event = bed.written.lock().expect("a lock")[0].1.clone();
    let note = event["note"].as_str().expect("a note");
    assert!(
        note.contains("Existing Pods are unchanged")
            && note.ends_with("kubectl rollout restart deployment -n team-a"),
        "{note}"
    );
    assert_eq!(
        event,
        json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"generateName": "ecr-pull-secret-", "namespace": "team-a"},
            "regarding": {
                "apiVersion": "v1", "kind": "Secret", "name": "ecr-pull-secret", "namespace": "team-a",
            },
            "type": "Normal",
            "reason": "OptedIn",
            "action": "OptIn",
            "note": note,
            "eventTime": "2027-01-15T08:00:00.000000Z",
            "reportingController": "ecr-injector",
            "reportingInstance": "pod-1",
        })
    );
}

#[tokio::test(start_paused = true)]
async fn to_tell_never_waits_and_what_finds_the_queue_full_is_counted() {
    let bed = bed();
    bed.answers(HANGS);
    // One is under way, the others wait.
    bed.events
        .publish(&namespace("first"), &PullSecretEvent::OptedIn);
    sleep(Duration::from_millis(1)).await;
    let before = Instant::now();
    for number in 0..QUEUE + 10 {
        bed.events
            .publish(&numbered(number), &PullSecretEvent::OptedIn);
    }
    assert_eq!(Instant::now(), before);
    assert_eq!(bed.dropped(), 10);
    assert!(
        bed.metrics
            .registry
            .to_text()
            .contains("ecr_injector_events_dropped_total 10")
    );
    // What was dropped is told when it happens again.
    bed.answers(201);
    sleep(Duration::from_mins(30)).await;
    let sent = bed.count();
    assert_eq!(sent, QUEUE + 1);
    bed.events
        .publish(&numbered(QUEUE + 5), &PullSecretEvent::OptedIn);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bed.count(), sent + 1);
}

#[tokio::test(start_paused = true)]
async fn the_same_is_told_once_an_hour() {
    let bed = bed();
    let (here, there) = (namespace("here"), namespace("there"));
    for _ in 0..3 {
        bed.events.publish(&here, &refused("A"));
        bed.events.publish(&here, &refused("B"));
        bed.events.publish(&there, &refused("A"));
        bed.events.publish(&here, &PullSecretEvent::Contended);
        // A number in the message makes it no other matter.
        for used in 1..3 {
            let message = format!("used: secrets={used}");
            bed.events
                .publish(&here, &PullSecretEvent::Quota { message });
        }
        sleep(Duration::from_secs(1100)).await;
    }
    assert_eq!(bed.count(), 5, "{:?}", bed.reasons());
    sleep(Duration::from_secs(400)).await;
    bed.events.publish(&here, &refused("A"));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bed.count(), 6);
}

#[tokio::test(start_paused = true)]
async fn what_did_not_get_through_is_told_the_next_time() {
    let bed = bed();
    let here = namespace("here");
    for (code, told) in [(HANGS, 1), (503, 2), (429, 3), (201, 4), (201, 4)] {
        bed.answers(code);
        bed.events.publish(&here, &PullSecretEvent::Contended);
        sleep(Duration::from_secs(5)).await;
        assert_eq!(bed.count(), told, "{code}");
    }
}

#[test]
fn what_is_remembered_is_bounded_and_forgotten_in_time() {
    let (mut recent, now) = (Recent::default(), Instant::now());
    for key in 0..2 * REMEMBERED as u64 {
        recent.remember(key, now);
    }
    assert_eq!(
        (recent.keys.len(), recent.order.len()),
        (REMEMBERED, REMEMBERED)
    );
    assert!(!recent.knows(0, now) && recent.knows(REMEMBERED as u64, now));
    recent.forget(REMEMBERED as u64);
    assert!(!recent.knows(REMEMBERED as u64, now));
    assert!(!recent.knows(REMEMBERED as u64 + 1, now + ONCE_IN));
    assert!(recent.keys.is_empty() && recent.order.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_burst_is_followed_by_ten_a_second() {
    let bed = bed();
    let start = Instant::now();
    for number in 0..300 {
        bed.events
            .publish(&numbered(number), &PullSecretEvent::OptedIn);
    }
    sleep(Duration::from_millis(1)).await;
    assert_eq!(bed.count(), BURST as usize);
    sleep(Duration::from_mins(1)).await;
    assert_eq!(bed.count(), 300);
    let last = bed.written.lock().expect("a lock")[299].0;
    let took = last - start;
    assert!(took >= PACE * 250 && took < PACE * 260, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_missing_right_is_told_to_the_log_once_and_costs_nothing_else() {
    let log = Log::default();
    let _guard = log.start();
    let bed = bed();
    bed.answers(403);
    for round in 0..3 {
        for number in 0..100 {
            bed.events
                .publish(&numbered(number), &PullSecretEvent::OptedIn);
        }
        sleep(Duration::from_mins(1)).await;
        assert_eq!(bed.count(), 100, "in round {round}");
    }
    assert_eq!(log.count("cannot create events"), 1);
    assert_eq!(bed.dropped(), 0);
    // The next outage is told again.
    for (code, namespace) in [(201, "x"), (403, "y")] {
        bed.answers(code);
        bed.events
            .publish(&self::namespace(namespace), &PullSecretEvent::OptedIn);
        sleep(Duration::from_mins(1)).await;
    }
    assert_eq!(log.count("cannot create events"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_gone_is_no_matter() {
    let log = Log::default();
    let _guard = log.start();
    let bed = bed();
    bed.answers(404);
    bed.events
        .publish(&namespace("gone"), &PullSecretEvent::OptedOut);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bed.count(), 1);
    assert_eq!(log.count("creating an Event failed"), 0);
}

#[tokio::test(start_paused = true)]
async fn the_last_to_go_waits_until_all_is_sent_and_a_stop_waits_for_nothing() {
    let Bed {
        events,
        written,
        tasks,
        ..
    } = bed();
    for number in 0..100 {
        events.publish(&numbered(number), &PullSecretEvent::OptedIn);
    }
    drop(events);
    tasks.close();
    tasks.wait().await;
    assert_eq!(written.lock().expect("a lock").len(), 100);

    let bed = bed();
    bed.answers(HANGS);
    bed.events
        .publish(&namespace("here"), &PullSecretEvent::OptedIn);
    sleep(Duration::from_millis(1)).await;
    let before = Instant::now();
    bed.stop.cancel();
    bed.tasks.close();
    bed.tasks.wait().await;
    assert_eq!(Instant::now(), before);
    // Later ones are dropped, and that is all.
    bed.events
        .publish(&namespace("here"), &PullSecretEvent::OptedOut);
    assert_eq!(bed.dropped(), 1);
}

#[test]
fn every_note_fits_and_is_one_line_whatever_others_said() {
    let long_name = "a".repeat(63);
    for said in [
        "x".repeat(100_000),
        "word ".repeat(100_000),
        "ä€𝄞 ".repeat(100_000),
        "line\nline\r\n\u{1b}[31m".to_owned(),
        String::new(),
    ] {
        for happening in all(&said) {
            let look = happening.look(&"s".repeat(1000), &namespace(&long_name));
            assert!(look.note.len() <= 1024, "{}", look.note);
            assert!(!look.note.contains(char::is_control), "{:?}", look.note);
            let is_name = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric());
            assert!(is_name(look.reason) && is_name(look.action));
            assert!(look.detail.len() <= 1024);
        }
    }
}

#[test]
fn each_happening_has_a_reason_or_a_detail_of_its_own() {
    let looks = all("x").into_iter().map(|happening| {
        let look = happening.look("ecr-pull-secret", &namespace("here"));
        (look.reason, look.detail)
    });
    assert_eq!(looks.collect::<HashSet<_>>().len(), all("x").len());
}

#[test]
fn refused_token_event_names_no_account_or_principal() {
    let message = "User: arn:aws:sts::123456789012:assumed-role/ecr-injector/i-0abc is not authorized to perform: \
                       ecr:GetAuthorizationToken on resource: *";
    let refused = PullSecretEvent::Refused {
        code: AwsReply::new("AccessDeniedException", message),
    };
    let look = refused.look("ecr-pull-secret", &namespace("here"));
    for text in [&look.note, &look.detail] {
        assert!(text.contains("AccessDeniedException"), "{text}");
        for private in ["arn:", "123456789012", "i-0abc"] {
            assert!(!text.contains(private), "{text}");
        }
    }
}

#[test]
fn no_note_repeats_what_could_be_a_token() {
    let token = "QVdTOmV5SndZWGxzYjJGa0lqb2lR".repeat(60);
    for said in [
        token.clone(),
        format!("failed with {token} in it"),
        format!("{{\"authorizationToken\":\"{token}\"}}"),
    ] {
        for happening in all(&said) {
            let look = happening.look("ecr-pull-secret", &namespace("here"));
            assert!(!look.note.contains(&token[..40]), "{}", look.note);
            assert!(!look.detail.contains(&token[..40]), "{}", look.detail);
        }
    }
}
