//! Handles admissions, from the bytes of a review to those of its answer. Here the pure decision
//! meets the clock, the cluster and AWS.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    access_log,
    decide::{Decision, Demand, Facts, Injection, OptInFacts, SkipReason, decide, demand},
    metrics::AdmissionMetrics,
    outcome::Outcome,
    patch::EncodedPatches,
    pod::Pod,
    review::{Request, ReviewError},
    slots::Slots,
};
use crate::{
    cluster::{
        event_recorder::EventRecorder,
        namespace::{Namespace, NamespaceSettings},
        namespaces::Namespaces,
        service_accounts::ServiceAccounts,
    },
    identity::Refusal,
    process::{clock::Clock, current::Current},
    pull_secret::{
        SecretFacts,
        events::PullSecretEvent,
        provisioner::{Needs, Provisioned, Provisioner, PullSecretError, SecretSource},
        store::{Entry, PullSecrets},
    },
    telemetry::{
        error_chain::error_chain,
        otel::{InPhase, Span, SpanParent, Trace},
        phases::Phase,
    },
    token::rules::Rules,
};

pub use super::slots::MAX_WAITING;

/// The most admissions at the same time in namespaces that the watch doesn't have as opted in. A
/// client that reaches the port can name any namespace.
pub const MAX_UNKNOWN: usize = 256;

/// The mutating webhook: answers reviews.
pub struct Webhook {
    rules: Current<Rules>,
    namespaces: Namespaces,
    accounts: Option<ServiceAccounts>,
    secrets: PullSecrets,
    provisioner: Provisioner,
    clock: Arc<dyn Clock>,
    metrics: Arc<AdmissionMetrics>,
    events: Option<EventRecorder>,
    /// For the pull secret's name, which stays the same while the process runs.
    patches: EncodedPatches,
    /// The slots of admissions that wait in namespaces that are known.
    waiting: Slots,
    /// The slots of those that wait for the read of their namespace.
    unknown: Slots,
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
        let patches = EncodedPatches::new(&rules.get().secret_name);
        Self {
            rules,
            namespaces,
            accounts: None,
            secrets,
            provisioner,
            clock,
            metrics,
            events: None,
            patches,
            waiting: Slots::new(MAX_WAITING),
            unknown: Slots::new(MAX_UNKNOWN),
        }
    }

    /// Adds no reference to the Pods of ServiceAccounts that reject it.
    #[must_use]
    pub fn with_service_accounts(self, accounts: ServiceAccounts) -> Self {
        Self {
            accounts: Some(accounts),
            ..self
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
                Outcome::skip_request(reason, &request, &rules)
            }
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
        let opted_in = self.opted_in(&namespace, deadline).await;
        let mut entry = self.secrets.get(&namespace);
        // Held by an admission that waits for anything but its namespace.
        let mut slot = None;
        if let Ok(Some(settings)) = &opted_in
            && entry.as_ref().is_some_and(|entry| entry.is_unread())
        {
            slot = self.waiting.try_acquire(&namespace);
            if slot.is_some() {
                // The Secret most likely has the credentials already; after a restart AWS may be
                // unavailable. And it may be somebody else's.
                let provisioner = &self.provisioner;
                provisioner
                    .read_if_unread(&namespace, settings, deadline)
                    .await;
                entry = self.secrets.get(&namespace);
            }
        }
        let decision = decide(
            demand,
            rules,
            &self.facts(request, &namespace, &opted_in, entry.as_deref()),
            self.clock.now(),
        );
        drop(deciding);
        let settings = opted_in.as_ref().ok().and_then(Option::as_ref);
        // A dry run has no side effect.
        if !request.dry_run {
            self.publish_event(request, &namespace, settings, &decision);
        }
        // A namespace without settings is skipped, or nothing is known about it.
        let settings = settings.cloned().unwrap_or_default();
        match decision {
            Decision::Skip(reason) => Outcome::skip(reason, rules),
            Decision::Inject(injection) => {
                self.inject(request, &namespace, &settings, injection, rules)
            }
            Decision::InjectUnprovisioned(injection) => {
                let error = opted_in.err().unwrap_or(PullSecretError::Overloaded);
                self.inject_later(admission, &namespace, injection, error)
            }
            Decision::InjectAfterEnsuring(injection, missing) => {
                let Some(slot) = slot.or_else(|| self.waiting.try_acquire(&namespace)) else {
                    let error = PullSecretError::Overloaded;
                    return self.inject_later(admission, &namespace, injection, error);
                };
                let count = missing.len();
                let needs = Needs {
                    namespace: &namespace,
                    settings: &settings,
                    hosts: missing,
                    rules,
                };
                let provisioned = self
                    .provisioner
                    .provision(needs, deadline, place, slot)
                    .await;
                let patches = &self.patches;
                provisioned_outcome(request, injection, count, provisioned, rules, patches)
            }
        }
    }

    /// Returns the settings of an opted-in namespace, from memory or by a read.
    async fn opted_in(
        &self,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Result<Option<NamespaceSettings>, PullSecretError> {
        if let Some(known) = self.namespaces.recall(namespace).await {
            return Ok(known);
        }
        let slot = self.unknown.try_acquire(namespace);
        let _slot = slot.ok_or(PullSecretError::Overloaded)?;
        let read = self.namespaces.opted_in(namespace, deadline).await;
        read.map_err(|error| PullSecretError::Namespace {
            message: error_chain(&*error),
        })
    }

    fn facts<'a>(
        &self,
        request: &Request<'_>,
        namespace: &Namespace,
        opted_in: &'a Result<Option<NamespaceSettings>, PullSecretError>,
        entry: Option<&'a Entry>,
    ) -> Facts<'a> {
        let account = request.object.as_ref().map(Pod::service_account);
        Facts {
            opt_in: match opted_in {
                Ok(Some(settings)) => OptInFacts::OptedIn(settings),
                Ok(None) => OptInFacts::NotOptedIn,
                Err(_) => OptInFacts::Unknown,
            },
            secret: entry.map_or(SecretFacts::Absent, Entry::facts),
            account_rejects_reference: self
                .accounts
                .as_ref()
                .zip(account)
                .is_some_and(|(accounts, name)| accounts.rejects_reference(namespace, name)),
        }
    }

    /// Adds the reference to a Pod whose pull secret is not provisioned now, because of `error`, but
    /// in the background as soon as that is possible.
    fn inject_later(
        &self,
        admission: Admission<'_>,
        namespace: &Namespace,
        injection: Injection,
        error: PullSecretError,
    ) -> Outcome {
        let Admission { request, rules, .. } = admission;
        let hosts = injection.hosts.clone();
        let count = hosts.len();
        if !request.dry_run {
            self.provisioner.retain_demand(namespace, hosts);
        }
        Outcome::not_ready(request, injection, count, error, rules, &self.patches)
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
            ..Outcome::inject(injection, reason, &self.patches)
        }
    }

    fn publish_event(
        &self,
        request: &Request<'_>,
        namespace: &Namespace,
        settings: Option<&NamespaceSettings>,
        decision: &Decision,
    ) {
        let event = match decision {
            Decision::Skip(SkipReason::Foreign(why)) => {
                Some(PullSecretEvent::Foreign { why: *why })
            }
            Decision::Skip(SkipReason::NoIdentity(refusal)) => role_refused(settings, *refusal),
            Decision::Skip(SkipReason::MountableSecrets) => {
                let account = request.object.as_ref().map(Pod::service_account);
                account.map(|account| PullSecretEvent::MountableSecrets {
                    account: account.to_owned(),
                })
            }
            Decision::Inject(injection) | Decision::InjectAfterEnsuring(injection, _) => injection
                .refusal
                .and_then(|refusal| role_refused(settings, refusal)),
            Decision::Skip(_) | Decision::InjectUnprovisioned(_) => None,
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
#[derive(Clone, Copy)]
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
    patches: &EncodedPatches,
) -> Outcome {
    let outcome = match provisioned.result {
        Ok(()) => Outcome::inject(injection, "provisioned", patches),
        Err(PullSecretError::Foreign(why)) => Outcome::skip(SkipReason::Foreign(why), rules),
        Err(error) => Outcome::not_ready(request, injection, missing, error, rules, patches),
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
