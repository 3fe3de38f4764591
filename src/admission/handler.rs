//! Handles admissions, from the bytes of a review to those of its answer. Here the pure decision
//! meets the clock, the cluster and AWS.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    access_log,
    decide::{Decision, Demand, Facts, Injection, SkipReason, decide, demand},
    metrics::AdmissionMetrics,
    outcome::Outcome,
    review::{Request, ReviewError},
};
use crate::{
    cluster::{
        event_recorder::EventRecorder,
        namespace::{Namespace, NamespaceSettings},
        namespaces::Namespaces,
    },
    identity::Refusal,
    process::{clock::Clock, current::Current},
    pull_secret::{
        SecretFacts,
        events::PullSecretEvent,
        provisioner::{Provisioned, Provisioner, PullSecretError, SecretSource},
        store::PullSecrets,
    },
    rules::Rules,
    telemetry::{
        otel::{InPhase, Span, SpanParent, Trace},
        phases::Phase,
    },
};

/// The mutating webhook: answers reviews.
pub struct Webhook {
    rules: Current<Rules>,
    namespaces: Namespaces,
    secrets: PullSecrets,
    provisioner: Provisioner,
    clock: Arc<dyn Clock>,
    metrics: Arc<AdmissionMetrics>,
    events: Option<EventRecorder>,
}

impl Webhook {
    /// Returns a webhook that publishes no Events.
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

    /// Publishes Events about pull secrets in their namespaces.
    #[must_use]
    pub fn with_events(self, events: EventRecorder) -> Self {
        Self {
            events: Some(events),
            ..self
        }
    }

    /// Answers a review before `deadline`. `started` is the time at which its first byte was read;
    /// `trace` holds its span.
    pub async fn review(
        &self,
        body: &[u8],
        started: Instant,
        deadline: Instant,
        trace: &mut Trace,
    ) -> Result<Vec<u8>, ReviewError> {
        let request = self.parse(body, trace)?;
        let deciding = trace.parent.enter(&self.metrics.phases, Phase::Decide);
        // The rules of this admission from here to its end.
        let rules = self.rules.get();
        let outcome = match demand(&request, &rules) {
            Ok(demand) => {
                let admission = Admission {
                    request: &request,
                    rules: &rules,
                    deadline,
                    place: &trace.parent,
                };
                self.answer(admission, demand, deciding).await
            }
            Err(reason) => {
                drop(deciding);
                Outcome::skip(reason, &rules)
            }
        };
        self.record(&request, &outcome, started.elapsed(), &mut trace.span);
        Ok(outcome.response.to_json(&request))
    }

    /// Answers a review at once because too many others are in flight: Pods that need no pull
    /// secret are admitted as usual, others without one, or denied under `onFailure: deny`.
    pub fn reject_overloaded(
        &self,
        body: &[u8],
        started: Instant,
        trace: &mut Trace,
    ) -> Result<Vec<u8>, ReviewError> {
        let request = self.parse(body, trace)?;
        let rules = self.rules.get();
        let outcome = match demand(&request, &rules) {
            Err(reason) => Outcome::skip(reason, &rules),
            Ok(_) => Outcome::overloaded(&request, &rules),
        };
        self.record(&request, &outcome, started.elapsed(), &mut trace.span);
        Ok(outcome.response.to_json(&request))
    }

    fn parse<'a>(&self, body: &'a [u8], trace: &Trace) -> Result<Request<'a>, ReviewError> {
        let _parsing = trace.parent.enter(&self.metrics.phases, Phase::Parse);
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
            // The Secret most likely has the credentials already; after a restart AWS may be
            // unavailable.
            let provisioner = &self.provisioner;
            provisioner
                .read_if_unread(&namespace, settings, deadline)
                .await;
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
        // A namespace without settings is skipped.
        let settings = opted_in.unwrap_or_default();
        match decision {
            Decision::Skip(reason) => Outcome::skip(reason, rules),
            Decision::Inject(injection) => {
                self.inject(request, &namespace, &settings, injection, rules)
            }
            Decision::InjectAfterEnsuring(injection, missing) => {
                let count = missing.len();
                let provisioned = self
                    .provisioner
                    .provision(&namespace, &settings, missing, rules, deadline, place)
                    .await;
                provisioned_outcome(request, injection, count, provisioned, rules)
            }
        }
    }

    /// Adds the reference to a Pod whose pull secret has every credential, and records its demand.
    fn inject(
        &self,
        request: &Request<'_>,
        namespace: &Namespace,
        settings: &NamespaceSettings,
        injection: Injection,
        rules: &Rules,
    ) -> Outcome {
        if injection.due {
            self.metrics.due.inc();
        }
        let (reason, secret) = if request.dry_run {
            ("dry_run", SecretSource::DryRun)
        } else {
            if !injection.unnoted.is_empty() {
                let limit = rules.registries_per_secret;
                self.provisioner
                    .record_demand(namespace, settings, &injection.unnoted, limit);
            }
            ("cached", SecretSource::Known)
        };
        Outcome {
            secret,
            ..Outcome::inject(injection, reason, rules)
        }
    }

    fn publish_event(
        &self,
        namespace: &Namespace,
        settings: Option<&NamespaceSettings>,
        decision: &Decision,
    ) {
        let event = match decision {
            Decision::Skip(SkipReason::Foreign(why)) => {
                Some(PullSecretEvent::Foreign { why: *why })
            }
            Decision::Skip(SkipReason::NoIdentity(refusal)) => role_refused(settings, *refusal),
            Decision::Inject(injection) | Decision::InjectAfterEnsuring(injection, _) => injection
                .refusal
                .and_then(|refusal| role_refused(settings, refusal)),
            Decision::Skip(_) => None,
        };
        if let (Some(events), Some(event)) = (&self.events, event) {
            events.publish(namespace, &event);
        }
    }

    fn record(&self, request: &Request<'_>, outcome: &Outcome, elapsed: Duration, span: &mut Span) {
        if let Some(refusal) = outcome.refusal {
            self.metrics.refused_identity(refusal.as_str());
        }
        self.metrics
            .admission(outcome.verdict.as_str(), outcome.reason, elapsed);
        access_log::record(request, outcome, elapsed, span);
    }
}

/// An admission in progress: the request, and the values that stay the same to its end.
struct Admission<'a> {
    request: &'a Request<'a>,
    rules: &'a Arc<Rules>,
    deadline: Instant,
    place: &'a SpanParent,
}

/// Returns the outcome of a Pod whose pull secret lacked credentials for `missing` registries.
fn provisioned_outcome(
    request: &Request<'_>,
    injection: Injection,
    missing: usize,
    provisioned: Provisioned,
    rules: &Rules,
) -> Outcome {
    let outcome = match provisioned.result {
        Ok(()) => Outcome::inject(injection, "provisioned", rules),
        Err(PullSecretError::Foreign(why)) => Outcome::skip(SkipReason::Foreign(why), rules),
        Err(error) => Outcome::not_ready(request, injection, missing, error, rules),
    };
    Outcome {
        tokens: provisioned.tokens,
        secret: provisioned.secret,
        ..outcome
    }
}

/// Returns the Event for a refused role, if the namespace's annotation has one: its owners can
/// change that role alone.
fn role_refused(settings: Option<&NamespaceSettings>, refusal: Refusal) -> Option<PullSecretEvent> {
    let role = settings?.role.as_deref()?.to_owned();
    let why = refusal.to_string();
    Some(PullSecretEvent::RoleRefused { role, why })
}
