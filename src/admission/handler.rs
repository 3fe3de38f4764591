//! One admission from bytes to bytes: the one place where what decides meets what acts.

use std::{borrow::Cow, fmt::Write as _, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    admission::{
        decide::{Decision, Demand, Facts, Injection, Reason, decide, demand, warning_for},
        metrics::AdmissionMetrics,
        patch,
        pod::{Pod, ReferenceState},
        review::{Operation, Request, Response, ReviewError, warning},
    },
    cluster::{
        namespace::{Namespace, NamespaceSettings},
        namespaces::Namespaces,
    },
    identity::Refusal,
    process::{clock::Clock, current::Current},
    pull_secret::{
        SecretFacts,
        events::{Events, PullSecretEvent},
        provisioner::{Provisioned, Provisioner, PullSecretError, SecretSource, TokenSource},
        store::PullSecrets,
    },
    registry::Host,
    rules::{OnFailure, Rules},
    telemetry::{
        log::line,
        otel::{InPhase, Span, SpanParent, Trace},
        phases::Phase,
    },
};

/// The HTTP status of a refusal under `onFailure: deny`: try again later.
const REFUSED: u16 = 503;
/// The same where there are too many Pods at a time.
const TOO_MANY: u16 = 429;

/// What a log line takes of a name that came with a request, in bytes: no object's is longer, but a stranger's may be.
const MAX_LOGGED_BYTES: usize = 253;
/// What it takes of an error, in bytes.
const MAX_LOGGED_ERROR_BYTES: usize = 600;
/// The registries that it names; of the others it says how many there are.
const MAX_LOGGED_HOSTS: usize = 16;

/// Answers reviews.
pub struct Webhook {
    rules: Current<Rules>,
    namespaces: Namespaces,
    secrets: PullSecrets,
    provisioner: Provisioner,
    clock: Arc<dyn Clock>,
    metrics: Arc<AdmissionMetrics>,
    events: Option<Events>,
}

/// What became of a review, for the log and the metrics.
struct Outcome {
    response: Response,
    verdict: Verdict,
    reason: &'static str,
    hosts: Vec<Host>,
    tokens: TokenSource,
    secret: SecretSource,
    error: Option<PullSecretError>,
}

/// What was answered, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The Pod has the reference, and the pull secret what it needs.
    Inject,
    /// The Pod has the reference, and the pull secret not yet what it needs.
    InjectUnready,
    /// Nothing was changed.
    Skip,
    /// The Pod was refused.
    Refuse,
}

impl Verdict {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Inject, Self::InjectUnready, Self::Skip, Self::Refuse];

    /// As a metric's label and a log's field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inject => "inject",
            Self::InjectUnready => "inject_unready",
            Self::Skip => "skip",
            Self::Refuse => "deny",
        }
    }
}

impl Webhook {
    /// Makes one of its parts.
    #[must_use]
    pub fn new(
        rules: Current<Rules>,
        namespaces: Namespaces,
        secrets: PullSecrets,
        provisioner: Provisioner,
        clock: Arc<dyn Clock>,
        metrics: Arc<AdmissionMetrics>,
    ) -> Self {
        Self {
            rules,
            namespaces,
            secrets,
            provisioner,
            clock,
            metrics,
            events: None,
        }
    }

    /// The same, and what a namespace's people should know is told there by Events too.
    #[must_use]
    pub fn telling(self, events: Events) -> Self {
        Self {
            events: Some(events),
            ..self
        }
    }

    /// Answers a review before `deadline`. `started` is when its first byte was read; `trace` is its span.
    pub async fn review(
        &self,
        body: &[u8],
        started: Instant,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<Vec<u8>, ReviewError> {
        let request = self.parse(body, trace)?;
        let deciding = trace.place.enter(&self.metrics.phases, Phase::Decide);
        // The rules of this admission from here to its end.
        let rules = self.rules.get();
        let outcome = match demand(&request, &rules) {
            Ok(demand) => {
                let admission = Admission {
                    request: &request,
                    rules: &rules,
                    deadline,
                    place: &trace.place,
                };
                self.answer(admission, demand, deciding).await
            }
            Err(reason) => {
                drop(deciding);
                self.leave_alone(reason, &rules)
            }
        };
        self.report(&request, &outcome, started.elapsed(), &mut trace.span);
        Ok(outcome.response.to_json(&request))
    }

    /// Answers a review at once, because too many others are in hand: whoever needs nothing of us is let in as ever, the
    /// others without a pull secret, or not at all under `onFailure: deny`.
    pub fn reject_overloaded(
        &self,
        body: &[u8],
        started: Instant,
        trace: &mut Trace,
    ) -> Result<Vec<u8>, ReviewError> {
        let request = self.parse(body, trace)?;
        let rules = self.rules.get();
        let outcome = match demand(&request, &rules) {
            Err(reason) => self.leave_alone(reason, &rules),
            Ok(_) if refuses(&request, &rules) => {
                let message =
                    "ecr-injector: overloaded: too many Pods are being created; try again";
                Outcome {
                    response: Response {
                        refusal: Some((TOO_MANY, message.to_owned())),
                        ..Response::default()
                    },
                    verdict: Verdict::Refuse,
                    ..self.leave_alone(Reason::Overloaded, &rules)
                }
            }
            Ok(_) => self.leave_alone(Reason::Overloaded, &rules),
        };
        self.report(&request, &outcome, started.elapsed(), &mut trace.span);
        Ok(outcome.response.to_json(&request))
    }

    fn parse<'a>(&self, body: &'a [u8], trace: &Trace) -> Result<Request<'a>, ReviewError> {
        let _parsing = trace.place.enter(&self.metrics.phases, Phase::Parse);
        Request::parse(body)
    }

    async fn answer(
        &self,
        admission: Admission<'_>,
        demand: Demand,
        deciding: InPhase<'_>,
    ) -> Outcome {
        let Admission {
            request,
            rules,
            deadline,
            place,
        } = admission;
        let namespace = demand.namespace().clone();
        let opted_in = self.namespaces.opted_in(&namespace, deadline).await;
        let mut entry = self.secrets.get(&namespace);
        if let Some(settings) = &opted_in
            && entry.as_ref().is_some_and(|entry| entry.is_unread())
            && !request.dry_run
        {
            // Read before AWS is asked for what is there most likely: after a restart AWS may be away.
            let provisioner = &self.provisioner;
            provisioner.look_once(&namespace, settings, deadline).await;
            entry = self.secrets.get(&namespace);
        }
        let secret = entry
            .as_ref()
            .map_or(SecretFacts::Absent, |entry| entry.facts());
        let facts = Facts {
            opted_in: opted_in.as_ref(),
            secret,
        };
        let decision = decide(demand, rules, &facts, self.clock.now());
        drop(deciding);
        // A dry run has no side effect.
        if !request.dry_run {
            self.publish_event(&namespace, opted_in.as_ref(), &decision);
        }
        // A namespace without settings is left alone.
        let settings = opted_in.unwrap_or_default();
        match decision {
            Decision::Skip(reason) => self.leave_alone(reason, rules),
            Decision::Inject(injection) => {
                if injection.due {
                    self.metrics.due.inc();
                }
                if !request.dry_run && !injection.unnoted.is_empty() {
                    let limit = rules.registries_per_secret;
                    self.provisioner
                        .note_demand(&namespace, &settings, &injection.unnoted, limit);
                }
                let (reason, secret) = if request.dry_run {
                    ("dry_run", SecretSource::DryRun)
                } else {
                    ("cached", SecretSource::Known)
                };
                Outcome {
                    secret,
                    ..self.inject(injection, reason, rules)
                }
            }
            Decision::InjectAfterEnsuring(injection, missing) => {
                let Provisioned {
                    tokens,
                    secret,
                    result,
                } = self
                    .provisioner
                    .provision(
                        &namespace,
                        &settings,
                        missing.clone(),
                        rules,
                        deadline,
                        place,
                    )
                    .await;
                let outcome = match result {
                    Ok(()) => self.inject(injection, "provisioned", rules),
                    Err(PullSecretError::Foreign(why)) => {
                        self.leave_alone(Reason::Foreign(why), rules)
                    }
                    Err(error) => self.fail(request, injection, missing.len(), error, rules),
                };
                Outcome {
                    tokens,
                    secret,
                    ..outcome
                }
            }
        }
    }

    fn publish_event(
        &self,
        namespace: &Namespace,
        said: Option<&NamespaceSettings>,
        decision: &Decision,
    ) {
        let happening = match decision {
            Decision::Skip(Reason::Foreign(why)) => Some(PullSecretEvent::Foreign { why: *why }),
            Decision::Skip(Reason::NoIdentity(why)) => refused(said, *why),
            Decision::Inject(injection) | Decision::InjectAfterEnsuring(injection, _) => {
                injection.refusal.and_then(|why| refused(said, why))
            }
            Decision::Skip(_) => None,
        };
        if let (Some(events), Some(happening)) = (&self.events, happening) {
            events.publish(namespace, &happening);
        }
    }

    fn leave_alone(&self, reason: Reason, rules: &Rules) -> Outcome {
        if let Reason::NoIdentity(why) = reason {
            self.metrics.refused_identity(why.as_str());
        }
        let warnings = warning_for(reason, rules).into_iter().collect();
        let response = Response {
            warnings,
            ..Response::default()
        };
        Outcome {
            response,
            verdict: Verdict::Skip,
            reason: reason.as_str(),
            hosts: vec![],
            tokens: TokenSource::None,
            secret: match reason {
                Reason::Foreign(_) => SecretSource::Foreign,
                _ => SecretSource::None,
            },
            error: None,
        }
    }

    fn inject(&self, injection: Injection, reason: &'static str, rules: &Rules) -> Outcome {
        let Injection {
            reference,
            hosts,
            warnings,
            refusal,
            ..
        } = injection;
        if let Some(why) = refusal {
            self.metrics.refused_identity(why.as_str());
        }
        let patch = patch::append(&rules.secret_name, reference);
        let response = Response {
            patch,
            warnings,
            refusal: None,
        };
        Outcome {
            response,
            verdict: Verdict::Inject,
            reason,
            hosts: hosts.into_iter().collect(),
            tokens: TokenSource::None,
            secret: SecretSource::None,
            error: None,
        }
    }

    /// The pull secret does not have what the Pod needs.
    fn fail(
        &self,
        request: &Request<'_>,
        mut injection: Injection,
        missing: usize,
        error: PullSecretError,
        rules: &Rules,
    ) -> Outcome {
        let is_creation = request.operation == Operation::Create;
        let label = error.as_str();
        if refuses(request, rules) {
            let message = format!(
                "ecr-injector: pull secret {} is not ready: {}",
                rules.secret_name,
                error.public_text()
            );
            let hosts = injection.hosts.into_iter().collect();
            let response = Response {
                refusal: Some((REFUSED, message)),
                ..Response::default()
            };
            return Outcome {
                response,
                verdict: Verdict::Refuse,
                reason: label,
                hosts,
                tokens: TokenSource::None,
                secret: SecretSource::None,
                error: Some(error),
            };
        }
        let registries = if missing == 1 {
            "registry"
        } else {
            "registries"
        };
        injection.warnings.push(match &error {
            // Nothing that is tried again makes room.
            PullSecretError::Full { hosts, limit } => warning(&format!(
                "no room in the pull secret for {} of this Pod's ECR registries \
                 (limits.registriesPerSecret: {limit})",
                hosts.len()
            )),
            PullSecretError::Refused { .. } => warning(&format!(
                "the API server rejected Secret {} ({label}); see the Events of this namespace",
                rules.secret_name
            )),
            _ => warning(&format!(
                "no credential yet for {missing} ECR {registries} ({label}); image pulls may \
                 fail until then"
            )),
        });
        // A Pod that is stored has its list already; the decision says so by `Present`.
        debug_assert!(
            is_creation || injection.reference == ReferenceState::Present,
            "an UPDATE is never patched"
        );
        Outcome {
            error: Some(error),
            verdict: Verdict::InjectUnready,
            ..self.inject(injection, label, rules)
        }
    }

    fn report(&self, request: &Request<'_>, outcome: &Outcome, took: Duration, span: &mut Span) {
        self.metrics
            .admission(outcome.verdict.as_str(), outcome.reason, took);
        let is_written = match &outcome.error {
            None => tracing::enabled!(tracing::Level::INFO),
            Some(_) => tracing::enabled!(tracing::Level::WARN),
        };
        if is_written || span.is_recording() {
            let line = Line::of(request, outcome, took);
            if is_written {
                line.write();
            }
            line.mark(span);
        }
    }
}

/// One admission under way: what it goes by from beginning to end.
struct Admission<'a> {
    request: &'a Request<'a>,
    rules: &'a Arc<Rules>,
    deadline: Instant,
    place: &'a SpanParent,
}

/// Whether a Pod is refused whose pull secret isn't ready. An UPDATE never is: that would block a running Pod.
fn refuses(request: &Request<'_>, rules: &Rules) -> bool {
    rules.on_failure == OnFailure::Deny && request.operation == Operation::Create
}

/// What is told of one admission: nothing of the Pod's spec, no credential, and of each thing that came with the request
/// so much that a stranger who sends it fills no disk and begins no line of his own.
struct Line<'a> {
    uid: Cow<'a, str>,
    namespace: Cow<'a, str>,
    pod: Cow<'a, str>,
    owner_kind: Cow<'a, str>,
    owner: Cow<'a, str>,
    operation: &'static str,
    dry_run: bool,
    decision: &'static str,
    reason: &'static str,
    registries: String,
    token_source: &'static str,
    secret_outcome: &'static str,
    elapsed_ms: f64,
    error: Option<String>,
}

impl<'a> Line<'a> {
    fn of(request: &'a Request<'_>, outcome: &Outcome, took: Duration) -> Self {
        let name = |name: &'a str| line(name, MAX_LOGGED_BYTES);
        let pod = request.object.as_ref();
        let (owner_kind, owner) = pod.map_or(("", ""), Pod::owner);
        let micros = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        Self {
            uid: name(request.uid()),
            namespace: name(&request.namespace.0),
            pod: name(pod.map_or("", |pod| pod.name())),
            owner_kind: name(owner_kind),
            owner: name(owner),
            operation: request.operation.as_str(),
            dry_run: request.dry_run,
            decision: outcome.verdict.as_str(),
            reason: outcome.reason,
            registries: listed(&outcome.hosts),
            token_source: outcome.tokens.as_str(),
            secret_outcome: outcome.secret.as_str(),
            elapsed_ms: f64::from(micros) / 1000.0,
            error: outcome
                .error
                .as_ref()
                .map(|error| line(&error.to_string(), MAX_LOGGED_ERROR_BYTES).into_owned()),
        }
    }

    /// The same on a span.
    fn mark(self, span: &mut Span) {
        if !span.is_recording() {
            return;
        }
        for (key, value) in [
            ("uid", self.uid),
            ("namespace", self.namespace),
            ("pod", self.pod),
            ("owner_kind", self.owner_kind),
            ("owner", self.owner),
            ("operation", self.operation.into()),
            ("decision", self.decision.into()),
            ("reason", self.reason.into()),
            ("registries", self.registries.into()),
            ("token_source", self.token_source.into()),
            ("secret_outcome", self.secret_outcome.into()),
        ] {
            span.set(key, value.into_owned());
        }
        span.set("dry_run", self.dry_run);
        span.set("elapsed_ms", self.elapsed_ms);
        if let Some(error) = self.error {
            span.fail(error);
        }
    }

    /// The fields stand here once; the two lines differ in their level, their message and the error.
    fn write(&self) {
        macro_rules! write {
            ($level:ident, $($more:tt)+) => {
                tracing::$level!(
                    uid = &*self.uid,
                    namespace = &*self.namespace,
                    pod = &*self.pod,
                    owner_kind = &*self.owner_kind,
                    owner = &*self.owner,
                    operation = self.operation,
                    dry_run = self.dry_run,
                    decision = self.decision,
                    reason = self.reason,
                    registries = self.registries,
                    token_source = self.token_source,
                    secret_outcome = self.secret_outcome,
                    elapsed_ms = self.elapsed_ms,
                    $($more)+
                )
            };
        }
        match &self.error {
            None => write!(info, "admission"),
            Some(error) => write!(warn, error, "admission without a ready pull secret"),
        }
    }
}

/// Hosts, with commas. There are as many as the configuration lets one Pod have.
fn listed(hosts: &[Host]) -> String {
    let shown = &hosts[..hosts.len().min(MAX_LOGGED_HOSTS)];
    let length = shown.iter().map(|host| host.as_str().len() + 1).sum();
    let mut list = String::with_capacity(length);
    for host in shown {
        let comma = if list.is_empty() { "" } else { "," };
        list.push_str(comma);
        list.push_str(host.as_str());
    }
    let more = hosts.len() - shown.len();
    if more > 0 {
        // Writing to a String can't fail.
        let _ = std::write!(list, ",and {more} more");
    }
    list
}

/// Only a role that the namespace named itself is its people's to put right.
fn refused(said: Option<&NamespaceSettings>, why: Refusal) -> Option<PullSecretEvent> {
    let role = said?.role.as_deref()?.to_owned();
    let why = why.to_string();
    Some(PullSecretEvent::RoleRefused { role, why })
}
