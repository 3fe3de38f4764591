//! One admission from bytes to bytes: the one place where what decides meets what acts.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    admission::{
        Operation, Request, Response, ReviewError,
        decide::{
            Decision, Demand, Facts, Injection, OnFailure, Reason, Rules, SecretFacts, decide,
            demand, warning_for,
        },
        patch, warning,
    },
    clock::Clock,
    current::Current,
    events::{Events, Happening},
    identity::Refusal,
    metrics::Metrics,
    namespace::{Namespace, OptedIn, store::Namespaces},
    pod::PullSecrets as Stands,
    pull_secret::{
        ensure::{EnsureError, Ensurer},
        store::PullSecrets,
    },
    registry::Host,
};

/// The HTTP status of a refusal under `onFailure: deny`: try again later.
const REFUSED: u16 = 503;
/// The same where there are too many Pods at a time.
const TOO_MANY: u16 = 429;

/// What a log line takes of a name that came with a request, in bytes: no object's is longer, but a stranger's may be.
const MAX_LOGGED_BYTES: usize = 253;

/// Answers reviews.
pub struct Webhook {
    rules: Current<Rules>,
    namespaces: Namespaces,
    secrets: PullSecrets,
    ensurer: Ensurer,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
    events: Option<Events>,
}

/// What became of a review, for the log and the metrics.
struct Outcome {
    response: Response,
    decision: &'static str,
    reason: &'static str,
    hosts: Vec<Host>,
    error: Option<EnsureError>,
}

impl Webhook {
    /// Makes one of its parts.
    #[must_use]
    pub fn new(
        rules: Current<Rules>,
        namespaces: Namespaces,
        secrets: PullSecrets,
        ensurer: Ensurer,
        clock: Arc<dyn Clock>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            rules,
            namespaces,
            secrets,
            ensurer,
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

    /// Answers a review before `deadline`. `started` is when its first byte was read.
    pub async fn review(
        &self,
        body: &[u8],
        started: Instant,
        deadline: Instant,
    ) -> Result<Vec<u8>, ReviewError> {
        let request = Request::parse(body)?;
        // The rules of this admission from here to its end.
        let rules = self.rules.get();
        let outcome = match demand(&request, &rules) {
            Ok(demand) => self.answer(&request, demand, &rules, deadline).await,
            Err(reason) => self.leave_alone(reason, &rules),
        };
        self.report(&request, &outcome, started.elapsed());
        Ok(outcome.response.to_json(&request))
    }

    /// Answers a review at once, because too many others are in hand: whoever needs nothing of us is let in as ever, the
    /// others without a pull secret, or not at all under `onFailure: deny`.
    pub fn turn_away(&self, body: &[u8], started: Instant) -> Result<Vec<u8>, ReviewError> {
        let request = Request::parse(body)?;
        let rules = self.rules.get();
        let outcome = match demand(&request, &rules) {
            Err(reason) => self.leave_alone(reason, &rules),
            Ok(_) if refuses(&request, &rules) => {
                let message = "ecr-injector: too many Pods are created at this moment; try again";
                Outcome {
                    response: Response {
                        refusal: Some((TOO_MANY, message.to_owned())),
                        ..Response::default()
                    },
                    decision: "refuse",
                    ..self.leave_alone(Reason::Overloaded, &rules)
                }
            }
            Ok(_) => self.leave_alone(Reason::Overloaded, &rules),
        };
        self.report(&request, &outcome, started.elapsed());
        Ok(outcome.response.to_json(&request))
    }

    async fn answer(
        &self,
        request: &Request<'_>,
        demand: Demand,
        rules: &Arc<Rules>,
        deadline: Instant,
    ) -> Outcome {
        let namespace = demand.namespace().clone();
        let opted_in = self.namespaces.opted_in(&namespace, deadline).await;
        let entry = self.secrets.get(&namespace);
        let secret = entry
            .as_ref()
            .map_or(SecretFacts::Absent, |entry| entry.facts());
        let facts = Facts {
            opted_in: opted_in.as_ref(),
            secret,
        };
        let decision = decide(demand, rules, &facts, self.clock.now());
        // A dry run has no side effect.
        if !request.dry_run {
            self.tell(&namespace, opted_in.as_ref(), &decision);
        }
        match decision {
            Decision::LeaveAlone(reason) => self.leave_alone(reason, rules),
            Decision::Inject(injection) => {
                if injection.due {
                    self.metrics.due.inc();
                }
                let reason = if request.dry_run { "dry_run" } else { "cached" };
                self.inject(injection, reason, rules)
            }
            Decision::InjectAfterEnsuring(injection, missing) => {
                match self
                    .ensurer
                    .ensure(&namespace, missing.clone(), rules, deadline)
                    .await
                {
                    Ok(()) => self.inject(injection, "ensured", rules),
                    Err(EnsureError::Foreign(why)) => self.leave_alone(Reason::Foreign(why), rules),
                    Err(error) => self.fail(request, injection, missing.len(), error, rules),
                }
            }
        }
    }

    fn tell(&self, namespace: &Namespace, said: Option<&OptedIn>, decision: &Decision) {
        let happening = match decision {
            Decision::LeaveAlone(Reason::Foreign(why)) => Some(Happening::Foreign { why: *why }),
            Decision::LeaveAlone(Reason::NoIdentity(why)) => refused(said, *why),
            Decision::Inject(injection) | Decision::InjectAfterEnsuring(injection, _) => {
                injection.refusal.and_then(|why| refused(said, why))
            }
            Decision::LeaveAlone(_) => None,
        };
        if let (Some(events), Some(happening)) = (&self.events, happening) {
            events.tell(namespace, &happening);
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
            decision: "leave_alone",
            reason: reason.as_str(),
            hosts: vec![],
            error: None,
        }
    }

    fn inject(&self, injection: Injection, reason: &'static str, rules: &Rules) -> Outcome {
        let Injection {
            stands,
            hosts,
            warnings,
            refusal,
            ..
        } = injection;
        if let Some(why) = refusal {
            self.metrics.refused_identity(why.as_str());
        }
        let patch = patch::append(&rules.secret_name, stands);
        let response = Response {
            patch,
            warnings,
            refusal: None,
        };
        Outcome {
            response,
            decision: "inject",
            reason,
            hosts: hosts.into_iter().collect(),
            error: None,
        }
    }

    /// The pull secret does not have what the Pod needs.
    fn fail(
        &self,
        request: &Request<'_>,
        mut injection: Injection,
        missing: usize,
        error: EnsureError,
        rules: &Rules,
    ) -> Outcome {
        let is_creation = request.operation == Operation::Create;
        let label = error.as_str();
        if refuses(request, rules) {
            let message = format!(
                "ecr-injector: pull secret {} is not ready: {error}",
                rules.secret_name
            );
            let hosts = injection.hosts.into_iter().collect();
            let response = Response {
                refusal: Some((REFUSED, message)),
                ..Response::default()
            };
            return Outcome {
                response,
                decision: "refuse",
                reason: label,
                hosts,
                error: Some(error),
            };
        }
        let registries = if missing == 1 {
            "registry"
        } else {
            "registries"
        };
        injection.warnings.push(warning(&format!(
            "no credential yet for {missing} ECR {registries} ({label}); pulls may be late"
        )));
        // A Pod that is stored has its list already; the decision says so by `Present`.
        debug_assert!(
            is_creation || injection.stands == Stands::Present,
            "an UPDATE is never patched"
        );
        Outcome {
            error: Some(error),
            decision: "inject_unready",
            ..self.inject(injection, label, rules)
        }
    }

    fn report(&self, request: &Request<'_>, outcome: &Outcome, took: Duration) {
        self.metrics
            .admission(outcome.decision, outcome.reason, took);
        let pod = request.object.as_ref();
        let (owner_kind, owner) = pod
            .and_then(|pod| pod.owner())
            .map(|(kind, name)| (logged(kind), logged(name)))
            .unwrap_or_default();
        let hosts = outcome
            .hosts
            .iter()
            .map(Host::as_str)
            .collect::<Vec<_>>()
            .join(",");
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let fields = (
            logged(request.uid()),
            logged(&request.namespace.0),
            logged(pod.map_or("", |pod| pod.name())),
        );
        match &outcome.error {
            None => tracing::info!(
                uid = fields.0,
                namespace = fields.1,
                pod = fields.2,
                owner_kind,
                owner,
                dry_run = request.dry_run,
                decision = outcome.decision,
                reason = outcome.reason,
                registries = hosts,
                took_us,
                "admission"
            ),
            Some(error) => tracing::warn!(
                uid = fields.0,
                namespace = fields.1,
                pod = fields.2,
                owner_kind,
                owner,
                decision = outcome.decision,
                reason = outcome.reason,
                registries = hosts,
                took_us,
                %error,
                "admission without a ready pull secret"
            ),
        }
    }
}

/// Whether a Pod is refused whose pull secret isn't ready. An UPDATE never is: that would block a running Pod.
fn refuses(request: &Request<'_>, rules: &Rules) -> bool {
    rules.on_failure == OnFailure::Deny && request.operation == Operation::Create
}

/// Only a role that the namespace named itself is its people's to put right.
fn refused(said: Option<&OptedIn>, why: Refusal) -> Option<Happening> {
    let role = said?.role.as_deref()?.to_owned();
    let why = why.to_string();
    Some(Happening::RoleRefused { role, why })
}

fn logged(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_LOGGED_BYTES)]
}
