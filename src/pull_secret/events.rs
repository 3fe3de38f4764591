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
    pull_secret::{Damage, Foreign, metrics::PullSecretMetrics},
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
    metrics: Arc<PullSecretMetrics>,
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
    pub metrics: Arc<PullSecretMetrics>,
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
    metrics: Arc<PullSecretMetrics>,
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
        self.metrics
            .api_calls
            .count_call("create", "events", outcome);
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
mod tests;
