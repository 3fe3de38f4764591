//! What happens to a namespace's pull secret, told to its people as Kubernetes Events.
//!
//! To tell is never to wait: what is told goes into a bounded queue, which one task empties at a pace of its own, and what
//! finds it full is counted and dropped. Nothing rests on an Event, so one that the API server refuses is no more than a
//! line in the log.
//!
//! `kube`'s recorder is not used: within some minutes it makes a second Event of the same reason a mere count of the
//! first, and its note is lost; here the notes are what matters (another code of AWS, another cause). And it needs the
//! right to patch.

use std::{
    collections::{HashSet, VecDeque},
    fmt::Write as _,
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
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    cluster::namespace::Namespace,
    process::clock::Clock,
    pull_secret::{Damage, Foreign},
    telemetry::metrics::Metrics,
    token::cache::AwsReply,
};

/// Who every Event says that it is from; the guard lets our account write no other.
pub const REPORTER: &str = "ecr-injector";
/// What may wait to be sent.
const QUEUE: usize = 1024;
/// How often the same may be told of one namespace.
const ONCE_IN: Duration = Duration::from_hours(1);
/// How many tellings are remembered for that; 24 bytes each.
const REMEMBERED: usize = 16_384;
/// Events that may be sent without a pause between them.
const BURST: u32 = 50;
/// The pause from there on: ten a second.
const PACE: Duration = Duration::from_millis(100);
/// How long one call to the API server may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// What an Event may hold, in bytes; the API server refuses more.
const MAX_NOTE: usize = 1024;
/// The part of it for what others said, in bytes.
const MAX_QUOTE: usize = 400;
/// A longer word is no word of a message: a token, if anything.
const MAX_WORD: usize = 160;
/// What a reporter's instance may be long, in bytes.
const MAX_INSTANCE: usize = 128;

/// What happened to a pull secret. Each is an Event of its own, with a closed text; what others said is quoted in part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullSecretEvent {
    /// It has what it should have again, after failures.
    Refreshed,
    /// AWS gives no token, by this code of its API.
    Refused {
        /// Such as `AccessDeniedException`. AWS's message, which names the account and the principal, is not told.
        code: AwsReply,
    },
    /// A Secret of its name is not ours and is left alone.
    Foreign {
        /// What shows that it isn't.
        why: Foreign,
    },
    /// It was repaired.
    Repaired {
        /// After what.
        what: Damage,
    },
    /// Another controller changes it again and again, so it is repaired less often.
    Contended,
    /// The configuration no longer allows registries that it has.
    Suspended {
        /// The first of them.
        host: String,
        /// How many more there are.
        more: usize,
        /// Why.
        why: String,
    },
    /// The namespace's quota has no room for it.
    Quota {
        /// What the API server said.
        message: String,
    },
    /// The API server refused to let us write it.
    Forbidden {
        /// What the API server said.
        message: String,
    },
    /// The role that the namespace asks for can't be used.
    RoleRefused {
        /// The annotation's value.
        role: String,
        /// Why not.
        why: String,
    },
    /// The namespace was opted in.
    OptedIn,
    /// The namespace is opted in no more.
    OptedOut,
}

/// How a happening looks as an Event.
struct Look {
    is_warning: bool,
    reason: &'static str,
    action: &'static str,
    /// What tells two of the same reason apart.
    detail: String,
    note: String,
}

impl PullSecretEvent {
    /// Returns what a namespace's people are told of a refusal by the API server; `None` where the namespace is going away, and
    /// what would be written with it.
    #[must_use]
    pub fn of_refusal(message: &str) -> Option<Self> {
        let text = message.to_owned();
        if message.contains("being terminated") {
            None
        } else if message.contains("exceeded quota") {
            Some(Self::Quota { message: text })
        } else {
            Some(Self::Forbidden { message: text })
        }
    }

    #[allow(
        clippy::too_many_lines,
        reason = "a table: each happening with its texts"
    )]
    fn look(&self, secret: &str, namespace: &Namespace) -> Look {
        let normal = |reason, action, note| (false, reason, action, String::new(), note);
        let warning = |reason, action, detail, note| (true, reason, action, detail, note);
        let (is_warning, reason, action, detail, note) = match self {
            Self::Refreshed => normal(
                "PullSecretRefreshed",
                "Refresh",
                format!("The pull secret {secret} has valid credentials for every registry again."),
            ),
            Self::Refused { code } => {
                let code = quote(code.code().unwrap_or("a code that can't be shown"));
                let note = format!(
                    "AWS refused to give an ECR token: {code}. The credentials in the pull \
                     secret {secret} stay valid until they expire; minting is retried."
                );
                warning("TokenRefused", "Mint", code, note)
            }
            Self::Foreign { why } => warning(
                "ForeignSecret",
                "Skip",
                why.to_string(),
                format!(
                    "ecr-injector did not create the Secret {secret} ({why}), so it leaves the \
                     Secret unchanged and admits Pods without it. Rename or delete the Secret \
                     to have a pull secret created."
                ),
            ),
            Self::Repaired { what } => {
                let note = match what {
                    Damage::Deleted => format!(
                        "The pull secret {secret} was deleted, and ecr-injector created it \
                         again. To do without it, remove the opt-in label from the namespace."
                    ),
                    Damage::Changed => format!(
                        "The pull secret {secret} was changed, and ecr-injector repaired it. \
                         For credentials of your own, use another Secret."
                    ),
                };
                (
                    false,
                    "PullSecretRepaired",
                    "Repair",
                    format!("{what:?}"),
                    note,
                )
            }
            Self::Contended => warning(
                "PullSecretContested",
                "Repair",
                String::new(),
                format!(
                    "Another client changes the pull secret {secret} repeatedly, so \
                     ecr-injector repairs it less and less often. To find the client: kubectl \
                     get secret {secret} -n {namespace} -o \
                     jsonpath='{{.metadata.managedFields[*].manager}}'"
                ),
            ),
            Self::Suspended { host, more, why } => {
                let others = match more {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                let (host, why) = (quote(host), quote(why));
                let note = format!(
                    "The configuration no longer allows the registry {host}{others} in the pull \
                     secret {secret}: {why}. The credential is kept until it expires, and \
                     renewed once the registry is allowed again."
                );
                warning("RegistrySuspended", "Suspend", host + &why, note)
            }
            Self::Quota { message } => warning(
                "QuotaExceeded",
                "Write",
                String::new(),
                format!(
                    "The quota of the namespace has no room for the pull secret {secret}: {}",
                    quote(message)
                ),
            ),
            Self::Forbidden { message } => warning(
                "WriteForbidden",
                "Write",
                String::new(),
                format!(
                    "The API server does not allow ecr-injector to write the pull secret \
                     {secret}: {}",
                    quote(message)
                ),
            ),
            Self::RoleRefused { role, why } => {
                let (role, why) = (quote(role), quote(why));
                let note =
                    format!("The role {role}, which this namespace requests, is not used: {why}");
                warning("RoleRefused", "AssumeRole", role + &why, note)
            }
            Self::OptedIn => normal(
                "OptedIn",
                "OptIn",
                format!(
                    "New Pods get the pull secret {secret} for their ECR images. Existing Pods \
                     are unchanged; to replace those of Deployments: kubectl rollout restart \
                     deployment -n {namespace}"
                ),
            ),
            Self::OptedOut => normal(
                "OptedOut",
                "OptOut",
                format!(
                    "New Pods no longer get the pull secret {secret}, and ecr-injector no \
                     longer refreshes it. Pods that reference it can pull until its credentials \
                     expire, in at least eight hours."
                ),
            ),
        };
        Look {
            is_warning,
            reason,
            action,
            detail,
            note: clip(&note, MAX_NOTE),
        }
    }
}

/// What others said, as far as it may stand in a note: one line, not long, and no word that could be a token.
fn quote(text: &str) -> String {
    let mut quoted = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        if word.is_empty() {
            continue;
        }
        let between = if quoted.is_empty() { "" } else { " " };
        let word = if word.len() > MAX_WORD { "…" } else { word };
        // Writing to a String can't fail.
        let _ = write!(quoted, "{between}{word}");
        if quoted.len() > MAX_QUOTE {
            break;
        }
    }
    clip(&quoted, MAX_QUOTE)
}

/// At most so many bytes of a text, with a mark where it was cut.
fn clip(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let mark = "…";
    let end = text.floor_char_boundary(limit - mark.len());
    text[..end].to_owned() + mark
}

/// Tells of happenings; clones share the queue. The task behind it ends when all of them are gone and what they told
/// has been sent, or at once when it is stopped.
#[derive(Clone)]
pub struct Events {
    queue: mpsc::Sender<LastPublished>,
    recent: Arc<Mutex<Recent>>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    secret_name: Arc<str>,
}

struct LastPublished {
    key: u64,
    namespace: Namespace,
    look: Look,
    at: MicroTime,
}

/// What the events work with.
pub struct EventRecorderOptions {
    /// The API server, without a retry of the client's own.
    pub client: Client,
    /// The pull secrets' name: what every Event is about.
    pub secret_name: String,
    /// Which of the replicas tells, for people: the Pod's name.
    pub instance: String,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Who waits for the task at shutdown.
    pub tasks: TaskTracker,
    /// Ends the task; what it has not sent by then is dropped.
    pub stop: CancellationToken,
}

impl Events {
    /// Makes one of its parts, and starts the task that sends.
    #[must_use]
    pub fn new(parts: EventRecorderOptions) -> Self {
        let (queue, told) = mpsc::channel(QUEUE);
        let recent = Arc::new(Mutex::new(Recent::default()));
        let secret_name: Arc<str> = parts.secret_name.into();
        let sender = Sender {
            client: parts.client,
            secret_name: secret_name.clone(),
            instance: clip(&parts.instance, MAX_INSTANCE),
            metrics: parts.metrics.clone(),
            recent: recent.clone(),
            complaint: None,
        };
        let stop = parts.stop;
        parts.tasks.spawn(async move {
            stop.run_until_cancelled(sender.run(told)).await;
        });
        Self {
            queue,
            recent,
            clock: parts.clock,
            metrics: parts.metrics,
            secret_name,
        }
    }

    /// Tells the people of a namespace, unless the same was told there within the hour. Never waits and never fails.
    pub fn publish(&self, namespace: &Namespace, happening: &PullSecretEvent) {
        let look = happening.look(&self.secret_name, namespace);
        let mut recent = lock(&self.recent);
        let key = recent
            .random
            .hash_one((namespace, look.reason, &look.detail));
        let now = Instant::now();
        if recent.knows(key, now) {
            return;
        }
        let told = LastPublished {
            key,
            namespace: namespace.clone(),
            look,
            at: MicroTime(self.clock.now()),
        };
        if self.queue.try_send(told).is_ok() {
            recent.remember(key, now);
        } else {
            self.metrics.events_dropped.inc();
        }
    }
}

/// What was told within the hour.
#[derive(Default)]
struct Recent {
    random: RandomState,
    keys: HashSet<u64>,
    /// The oldest first.
    order: VecDeque<(Instant, u64)>,
}

impl Recent {
    fn knows(&mut self, key: u64, now: Instant) -> bool {
        while let Some((at, oldest)) = self.order.front()
            && now.saturating_duration_since(*at) >= ONCE_IN
        {
            self.keys.remove(oldest);
            self.order.pop_front();
        }
        self.keys.contains(&key)
    }

    fn remember(&mut self, key: u64, now: Instant) {
        if self.order.len() >= REMEMBERED
            && let Some((_, oldest)) = self.order.pop_front()
        {
            self.keys.remove(&oldest);
        }
        self.order.push_back((now, key));
        self.keys.insert(key);
    }

    /// It did not get through: the next time is to be told again.
    fn forget(&mut self, key: u64) {
        if self.keys.remove(&key) {
            self.order.retain(|(_, other)| *other != key);
        }
    }
}

fn lock(recent: &Mutex<Recent>) -> MutexGuard<'_, Recent> {
    recent.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The one that sends.
struct Sender {
    client: Client,
    secret_name: Arc<str>,
    instance: String,
    metrics: Arc<Metrics>,
    recent: Arc<Mutex<Recent>>,
    complaint: Option<&'static str>,
}

impl Sender {
    async fn run(mut self, mut told: mpsc::Receiver<LastPublished>) {
        // When the next would be sent if all kept the pace; a burst may be ahead of it.
        let mut due = Instant::now();
        while let Some(told) = told.recv().await {
            let now = Instant::now();
            due = due.max(now);
            sleep_until(now + due.saturating_duration_since(now + PACE * (BURST - 1))).await;
            due += PACE;
            self.send(told).await;
        }
    }

    async fn send(&mut self, told: LastPublished) {
        let LastPublished { key, namespace, .. } = &told;
        let events: Api<Event> = Api::namespaced(self.client.clone(), namespace.as_str());
        let event = self.event(&told);
        let params = PostParams::default();
        let create = events.create(&params, &event);
        let (outcome, error) = match timeout(CALL_TIMEOUT, create).await {
            Ok(Ok(_)) => ("ok", None),
            Ok(Err(kube::Error::Api(status))) if is_going_away(&status) => ("gone", None),
            Ok(Err(kube::Error::Api(status))) if matches!(status.code, 400..=428) => {
                ("rejected", Some(status.message))
            }
            Ok(Err(error)) => ("error", Some(error.to_string())),
            Err(_) => (
                "timeout",
                Some(format!("no response within {CALL_TIMEOUT:?}")),
            ),
        };
        self.metrics.api_call("create", "events", outcome);
        if matches!(outcome, "error" | "timeout") {
            lock(&self.recent).forget(*key);
        }
        match error {
            None if outcome == "ok" => self.complaint = None,
            None => {}
            Some(_) if self.complaint == Some(outcome) => {}
            Some(message) => {
                self.complaint = Some(outcome);
                let (reason, error) = (told.look.reason, quote(&message));
                tracing::warn!(
                    %namespace, reason, error,
                    "creating an Event failed, and later ones may fail too; nothing else \
                     depends on Events. Grant create on events in events.k8s.io \
                     (deploy/rbac.yaml), and allow it in the guard (deploy/guard.yaml)"
                );
            }
        }
    }

    fn event(&self, told: &LastPublished) -> Event {
        let (look, namespace) = (&told.look, told.namespace.to_string());
        Event {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}-", self.secret_name)),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Secret".to_owned()),
                name: Some(self.secret_name.to_string()),
                namespace: Some(namespace),
                ..ObjectReference::default()
            }),
            type_: Some(if look.is_warning { "Warning" } else { "Normal" }.to_owned()),
            reason: Some(look.reason.to_owned()),
            action: Some(look.action.to_owned()),
            note: Some(look.note.clone()),
            event_time: Some(told.at.clone()),
            reporting_controller: Some(REPORTER.to_owned()),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        }
    }
}

/// Whether the namespace is gone or going: nobody is there to be told, and nothing is wrong.
fn is_going_away(status: &kube::core::Status) -> bool {
    status.code == 404 || status.message.contains("is being terminated")
}

#[cfg(test)]
mod tests {
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
    use crate::telemetry::log::captured::Log;

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
        metrics: Arc<Metrics>,
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
        let (metrics, tasks) = (Arc::<Metrics>::default(), TaskTracker::new());
        let stop = CancellationToken::new();
        let events = Events::new(EventRecorderOptions {
            client: Client::new(service, "default"),
            secret_name: "ecr-pull-secret".to_owned(),
            instance: "pod-1".to_owned(),
            clock: Arc::new(FixedClock),
            metrics: metrics.clone(),
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
            self.metrics.events_dropped.get()
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
}
