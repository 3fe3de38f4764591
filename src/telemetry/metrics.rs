//! What is counted, timed and measured, for Prometheus. Every label is a closed set or, as identities are, cut to a number:
//! no host, namespace or message is one. What each means, and what to do about it, is in `docs/operations.md`.

mod catalogue;
mod labels;
mod process;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::{
        MetricType,
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
        info::Info,
    },
    registry::Unit,
};
use tokio::time::Instant;

use self::{
    catalogue::Catalogue,
    labels::{
        AdmissionLabels, ApiLabels, AwsLabels, CauseLabels, IdentityLabels, KindLabels,
        OutcomeLabels, PhaseLabels, ReasonLabels, SourceLabels, StateLabels, StepLabels,
        TransitionLabels,
    },
    process::Process,
};
pub use self::{
    catalogue::Family as Described,
    labels::{DiscoveryRun, Handshake, Phase, Reload, Shed, Spans},
};

/// All metrics of the process.
#[derive(Debug)]
pub struct Metrics {
    registry: Catalogue,
    measures: Measures,
    admissions: Family<AdmissionLabels, Histogram>,
    phases: [Histogram; Phase::ALL.len()],
    /// Requests to the admission listener that are being read or answered.
    pub in_flight: Gauge,
    shed: Family<KindLabels, Counter>,
    handshakes: Family<OutcomeLabels, Counter>,
    spans: Family<OutcomeLabels, Counter>,
    aws_calls: Family<AwsLabels, Counter>,
    credentials_source: Family<SourceLabels, Gauge>,
    source: OnceLock<&'static str>,
    refused_identities: Family<ReasonLabels, Counter>,
    api_calls: Family<ApiLabels, Counter>,
    refused_requests: Family<ReasonLabels, Counter>,
    connection_failures: Family<ReasonLabels, Counter>,
    /// Open connections to the admission listener.
    pub connections: Gauge,
    /// Requests whose handler panicked.
    pub panics: Counter,
    /// Admissions answered from a pull secret that the leader should refresh soon.
    pub due: Counter,
    /// Pull secrets found changed by another client, and repaired.
    pub tampered: Counter,
    /// Opted-in namespaces that the watch knows.
    pub namespaces: Gauge,
    /// Pull secrets that the watch knows.
    pub pull_secrets: Gauge,
    /// 1 while this replica leads.
    pub leader: Gauge,
    lease_transitions: Family<TransitionLabels, Counter>,
    certificate_reloads: Family<OutcomeLabels, Counter>,
    certificate_expiry: Family<KindLabels, Gauge>,
    authority_steps: Family<StepLabels, Counter>,
    registration_trust: Gauge,
    /// How many configurations have been in use, with the one that is.
    pub config_generation: Gauge,
    config_reloads: Family<OutcomeLabels, Counter>,
    config_last_applied: Gauge,
    /// 1 if the file can be used, 0 while it is rejected and an older one stays in use.
    pub config_reload_successful: Gauge,
    /// 1 while the file has another value than is in use for what can't change without a restart.
    pub config_restart_required: Gauge,
    /// Events that were not written because too many waited.
    pub events_dropped: Counter,
    earliest_expiry: Reading,
    identity_expiries: Family<IdentityLabels, Gauge>,
    by_state: Family<StateLabels, Gauge>,
    refreshes: Family<ReasonLabels, Counter>,
    refresh_failures: Family<ReasonLabels, Counter>,
    repairs: Family<CauseLabels, Counter>,
    /// Namespaces whose Pods want what could not be written yet.
    pub wants_pending: Gauge,
    /// Wants that were not kept because too many were.
    pub wants_dropped: Counter,
    /// 1 while the configuration suspends registries in more than half of the namespaces.
    pub mass_suspension: Gauge,
    discovery_runs: Family<OutcomeLabels, Counter>,
    /// Namespaces that are due now.
    pub queue_depth: Gauge,
    /// Namespaces that wait for a token that can't be had now.
    pub waiting: Gauge,
    /// For how many seconds the namespace that is due the longest has been due.
    pub oldest_overdue: Gauge,
    /// 1 if the guard refused what it must refuse, 0 if it let it pass, -1 while that isn't known.
    pub guard: Gauge,
}

/// A phase under way; it is counted when this is dropped, also by whoever gives up.
#[derive(Debug)]
pub struct Timed<'a> {
    histogram: &'a Histogram,
    since: Instant,
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.histogram.observe(self.since.elapsed().as_secs_f64());
    }
}

/// What is measured when somebody looks.
#[derive(Default)]
struct Measures(Mutex<Vec<Measure>>);

/// Measures something, and sets its gauges.
pub type Measure = Box<dyn Fn(&Metrics) + Send + Sync>;

/// A gauge that may have nothing to show, and is then absent from the text: 0 would be a value like others.
#[derive(Debug, Clone, Default)]
struct Reading(Arc<Mutex<Option<i64>>>);

impl fmt::Debug for Measures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Measures")
    }
}

impl Reading {
    fn value(&self) -> MutexGuard<'_, Option<i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EncodeMetric for Reading {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let value = *self.value();
        value.map_or(Ok(()), |value| encoder.encode_gauge(&value))
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }

    fn is_empty(&self) -> bool {
        self.value().is_none()
    }
}

/// From 50 µs, a warm answer, to 26 s, past every deadline.
fn admission_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 20))
}

/// From 5 µs, a small review's parsing, to 5 s, past a slow write.
fn phase_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.000_005, 4.0, 11))
}

impl Default for Metrics {
    #[allow(clippy::too_many_lines, reason = "a list of all metrics")]
    fn default() -> Self {
        let mut registry = Catalogue::with_prefix("ecr_injector");
        let phases = Family::<PhaseLabels, _>::new_with_constructor(phase_buckets as fn() -> _);
        let metrics = Self {
            admissions: Family::new_with_constructor(admission_buckets),
            // Found once, so that an admission looks none of them up.
            phases: Phase::ALL.map(|phase| {
                let phase = phase.as_str();
                phases.get_or_create_owned(&PhaseLabels { phase })
            }),
            in_flight: Gauge::default(),
            shed: Family::default(),
            handshakes: Family::default(),
            spans: Family::default(),
            aws_calls: Family::default(),
            credentials_source: Family::default(),
            source: OnceLock::new(),
            refused_identities: Family::default(),
            api_calls: Family::default(),
            refused_requests: Family::default(),
            connection_failures: Family::default(),
            connections: Gauge::default(),
            panics: Counter::default(),
            due: Counter::default(),
            tampered: Counter::default(),
            namespaces: Gauge::default(),
            pull_secrets: Gauge::default(),
            leader: Gauge::default(),
            lease_transitions: Family::default(),
            certificate_reloads: Family::default(),
            certificate_expiry: Family::default(),
            authority_steps: Family::default(),
            registration_trust: Gauge::default(),
            config_generation: Gauge::default(),
            config_reloads: Family::default(),
            config_last_applied: Gauge::default(),
            config_reload_successful: Gauge::default(),
            config_restart_required: Gauge::default(),
            events_dropped: Counter::default(),
            earliest_expiry: Reading::default(),
            identity_expiries: Family::default(),
            by_state: Family::default(),
            refreshes: Family::default(),
            refresh_failures: Family::default(),
            repairs: Family::default(),
            wants_pending: Gauge::default(),
            wants_dropped: Counter::default(),
            mass_suspension: Gauge::default(),
            discovery_runs: Family::default(),
            queue_depth: Gauge::default(),
            waiting: Gauge::default(),
            oldest_overdue: Gauge::default(),
            guard: Gauge::default(),
            measures: Measures::default(),
            registry: Catalogue::default(),
        };
        metrics.guard.set(-1);
        metrics.config_reload_successful.set(1);
        for outcome in [Reload::Applied, Reload::Refused] {
            drop(metrics.config_reloads.get_or_create(&outcome.labels()));
        }
        // There from the start: an alert on what has not happened yet needs a zero to start from.
        for kind in Shed::ALL {
            let kind = kind.as_str();
            drop(metrics.shed.get_or_create(&KindLabels { kind }));
        }
        for outcome in Handshake::ALL {
            let outcome = outcome.as_str();
            drop(metrics.handshakes.get_or_create(&OutcomeLabels { outcome }));
        }
        for outcome in Spans::ALL {
            let outcome = outcome.as_str();
            drop(metrics.spans.get_or_create(&OutcomeLabels { outcome }));
        }
        for outcome in DiscoveryRun::ALL {
            let outcome = outcome.as_str();
            drop(
                metrics
                    .discovery_runs
                    .get_or_create(&OutcomeLabels { outcome }),
            );
        }
        registry.register(
            "build",
            "Version of the running binary",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        registry.register_with_unit(
            "admission_duration",
            "Time from reading the first byte of an AdmissionReview to its response",
            Unit::Seconds,
            metrics.admissions.clone(),
        );
        registry.register_with_unit(
            "admission_phase_duration",
            "Duration of one phase of an admission",
            Unit::Seconds,
            phases,
        );
        registry.register(
            "requests_in_flight",
            "Requests to the admission listener that are in progress",
            metrics.in_flight.clone(),
        );
        registry.register(
            "shed",
            "Connections, request bodies and reviews that were shed because of overload",
            metrics.shed.clone(),
        );
        registry.register(
            "tls_handshakes",
            "TLS handshakes on the admission listener, by outcome",
            metrics.handshakes.clone(),
        );
        registry.register(
            "trace_spans",
            "Trace spans that were sent, failed to be sent or were dropped",
            metrics.spans.clone(),
        );
        registry.register(
            "aws_calls",
            "Calls to ECR and STS, by operation and outcome",
            metrics.aws_calls.clone(),
        );
        registry.register(
            "credentials_source",
            "Source of the ambient AWS credentials: 1 for the source in use",
            metrics.credentials_source.clone(),
        );
        registry.register(
            "rejected_identities",
            "Admissions with a registry for which no identity may mint a token, by reason",
            metrics.refused_identities.clone(),
        );
        registry.register(
            "kube_api_calls",
            "Calls to the Kubernetes API server other than watches, by verb, resource and outcome",
            metrics.api_calls.clone(),
        );
        registry.register(
            "rejected_requests",
            "HTTP requests that were not answered with an AdmissionReview, by reason",
            metrics.refused_requests.clone(),
        );
        registry.register(
            "connection_failures",
            "Connections that failed or were closed by the server, by reason",
            metrics.connection_failures.clone(),
        );
        registry.register(
            "connections",
            "Open connections to the admission listener",
            metrics.connections.clone(),
        );
        registry.register(
            "panics",
            "Requests whose handler panicked",
            metrics.panics.clone(),
        );
        registry.register(
            "due_admissions",
            "Admissions that found a pull secret due for refresh",
            metrics.due.clone(),
        );
        registry.register(
            "tampered_secrets",
            "Pull secrets that an admission found changed by another client and repaired",
            metrics.tampered.clone(),
        );
        registry.register(
            "opted_in_namespaces",
            "Opted-in namespaces known from the watch",
            metrics.namespaces.clone(),
        );
        registry.register(
            "pull_secrets",
            "Pull secrets known from the watch",
            metrics.pull_secrets.clone(),
        );
        registry.register(
            "leader",
            "1 while this replica is the leader, 0 otherwise",
            metrics.leader.clone(),
        );
        registry.register(
            "certificate_reloads",
            "Changed certificates that were loaded or rejected, by outcome",
            metrics.certificate_reloads.clone(),
        );
        registry.register(
            "certificate_expiration_timestamp_seconds",
            "Expiration time of the serving certificate (leaf) or of the self-managed CA (ca), in seconds since the Unix epoch",
            metrics.certificate_expiry.clone(),
        );
        registry.register(
            "ca_rotation_steps",
            "Steps of the self-managed CA's rotation that this replica performed",
            metrics.authority_steps.clone(),
        );
        registry.register(
            "ca_bundle_trusted",
            "1 while the caBundle of every webhook in the MutatingWebhookConfiguration trusts the self-managed CA that signs, 0 otherwise",
            metrics.registration_trust.clone(),
        );
        registry.register(
            "config_generation",
            "Configurations applied since the process started, including the current one",
            metrics.config_generation.clone(),
        );
        registry.register(
            "config_reloads",
            "Changes of the configuration file that were applied or rejected, by outcome",
            metrics.config_reloads.clone(),
        );
        registry.register(
            "config_last_reload_success_timestamp_seconds",
            "Time when the current configuration was applied, in seconds since the Unix epoch",
            metrics.config_last_applied.clone(),
        );
        registry.register(
            "config_last_reload_successful",
            "1 if the configuration file is valid and in use, 0 while it is rejected and the last valid one stays in use",
            metrics.config_reload_successful.clone(),
        );
        registry.register(
            "config_restart_required",
            "1 while the configuration file changes a field that takes effect only after a restart, 0 otherwise",
            metrics.config_restart_required.clone(),
        );
        registry.register(
            "lease_transitions",
            "Leadership terms that this replica acquired (leading), released or lost",
            metrics.lease_transitions.clone(),
        );
        registry.register(
            "events_dropped",
            "Kubernetes Events that were dropped because the queue was full",
            metrics.events_dropped.clone(),
        );
        registry.register_with_unit(
            "earliest_expiry",
            "Time until the first credential of an opted-in namespace expires, negative once it has expired",
            Unit::Seconds,
            metrics.earliest_expiry.clone(),
        );
        registry.register_with_unit(
            "identity_earliest_expiry",
            "Time until the first credential of one identity in one region expires, negative once it has expired",
            Unit::Seconds,
            metrics.identity_expiries.clone(),
        );
        registry.register(
            "pull_secrets_by_state",
            "Pull secrets known from the watch, by state",
            metrics.by_state.clone(),
        );
        registry.register(
            "refreshes",
            "Pull secrets that the leader wrote or deleted, by reason",
            metrics.refreshes.clone(),
        );
        registry.register(
            "refresh_failures",
            "Refreshes that failed and are retried, by reason",
            metrics.refresh_failures.clone(),
        );
        registry.register(
            "repairs",
            "Pull secrets that the leader repaired, by cause",
            metrics.repairs.clone(),
        );
        for cause in ["deleted", "changed"] {
            drop(metrics.repairs.get_or_create(&CauseLabels { cause }));
        }
        registry.register(
            "provisioning_pending_namespaces",
            "Namespaces whose pull secret lacks registries that admitted Pods need, and is retried by this replica",
            metrics.wants_pending.clone(),
        );
        registry.register(
            "provisioning_dropped",
            "Namespaces not retried by this replica because too many were pending",
            metrics.wants_dropped.clone(),
        );
        registry.register(
            "mass_suspension",
            "1 while the configuration suspends registries in more than half of the opted-in namespaces and in at least 10, 0 otherwise",
            metrics.mass_suspension.clone(),
        );
        registry.register(
            "discovery_runs",
            "Discovery runs in which the leader listed pending Pods, by outcome",
            metrics.discovery_runs.clone(),
        );
        registry.register(
            "refresh_queue_depth",
            "Namespaces in the refresh queue that are due now",
            metrics.queue_depth.clone(),
        );
        registry.register(
            "refresh_waiting_for_token",
            "Namespaces that wait for a token that can't be minted at the moment",
            metrics.waiting.clone(),
        );
        registry.register_with_unit(
            "refresh_oldest_overdue",
            "Time since the longest overdue namespace became due",
            Unit::Seconds,
            metrics.oldest_overdue.clone(),
        );
        registry.register(
            "guard_enforced",
            "1 if the guard rejected the test write at start, 0 if the API server accepted it, -1 while unknown",
            metrics.guard.clone(),
        );
        registry.register_collector(Process, Process::families());
        Self {
            registry,
            ..metrics
        }
    }
}

impl Metrics {
    /// One admission: its decision, the reason within it, and how long it took.
    pub fn admission(&self, decision: &'static str, reason: &'static str, took: Duration) {
        self.admissions
            .get_or_create(&AdmissionLabels { decision, reason })
            .observe(took.as_secs_f64());
    }

    /// Times a phase of an admission from now on, until what is returned is dropped.
    #[must_use]
    pub fn time(&self, phase: Phase) -> Timed<'_> {
        Timed {
            histogram: &self.phases[phase as usize],
            since: Instant::now(),
        }
    }

    /// Something was not served because there was too much at a time.
    pub fn shed(&self, kind: Shed) {
        let kind = kind.as_str();
        self.shed.get_or_create(&KindLabels { kind }).inc();
    }

    /// One TLS handshake on the admission listener.
    pub fn handshake(&self, outcome: Handshake) {
        let outcome = outcome.as_str();
        self.handshakes
            .get_or_create(&OutcomeLabels { outcome })
            .inc();
    }

    /// So many spans were sent, or were not.
    pub fn spans(&self, outcome: Spans, count: usize) {
        let outcome = outcome.as_str();
        self.spans
            .get_or_create(&OutcomeLabels { outcome })
            .inc_by(count as u64);
    }

    /// One call to ECR or STS.
    pub fn aws_call(&self, operation: &'static str, outcome: &'static str) {
        self.aws_calls
            .get_or_create(&AwsLabels { operation, outcome })
            .inc();
    }

    /// The source of the ambient credentials was found.
    pub fn credentials_from(&self, source: &'static str) {
        self.credentials_source
            .get_or_create(&SourceLabels { source })
            .set(1);
        // There is one for good; a second can't be set.
        let _ = self.source.set(source);
    }

    /// The source of the ambient credentials, or `none` while it is unknown.
    #[must_use]
    pub fn credentials_source(&self) -> &'static str {
        self.source.get().copied().unwrap_or("none")
    }

    /// One admission with a registry that no identity may mint for.
    pub fn refused_identity(&self, reason: &'static str) {
        self.refused_identities
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    /// One call to the API server.
    pub fn api_call(&self, verb: &'static str, resource: &'static str, outcome: &'static str) {
        self.api_calls
            .get_or_create(&ApiLabels {
                verb,
                resource,
                outcome,
            })
            .inc();
    }

    /// One change of the configuration's file.
    pub fn config_reload(&self, outcome: Reload) {
        self.config_reloads.get_or_create(&outcome.labels()).inc();
    }

    /// One more configuration is in use since `at`.
    pub fn config_applied(&self, at: Timestamp) {
        self.config_generation.inc();
        self.config_last_applied.set(at.as_second());
    }

    /// One HTTP request that was not answered with a review.
    pub fn refused_request(&self, reason: &'static str) {
        self.refused_requests
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    /// One connection that failed or was closed for taking too long.
    pub fn connection_failure(&self, reason: &'static str) {
        self.connection_failures
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    /// One changed certificate was taken, or refused.
    pub fn certificate_reload(&self, outcome: &'static str) {
        self.certificate_reloads
            .get_or_create(&OutcomeLabels { outcome })
            .inc();
    }

    /// When what is served, or what signed it, ends.
    pub fn certificate_expiry(&self, kind: &'static str, at: Timestamp) {
        self.certificate_expiry
            .get_or_create(&KindLabels { kind })
            .set(at.as_second());
    }

    /// The self-managed authority was written: made, or one step further.
    pub fn authority_step(&self, step: &'static str) {
        self.authority_steps
            .get_or_create(&StepLabels { step })
            .inc();
    }

    /// Sets whether the caBundle of the `MutatingWebhookConfiguration` trusts the authority that signs.
    pub fn ca_bundle_trusted(&self, trusts: bool) {
        self.registration_trust.set(i64::from(trusts));
    }

    /// One term as the leader began, or ended.
    pub fn lease_transition(&self, to: &'static str) {
        self.lease_transitions
            .get_or_create(&TransitionLabels { to })
            .inc();
    }

    /// One pull secret that the leader wrote.
    pub fn refreshed(&self, reason: &'static str) {
        self.refreshes.get_or_create(&ReasonLabels { reason }).inc();
    }

    /// One refresh that failed and is tried again.
    pub fn refresh_failed(&self, reason: &'static str) {
        self.refresh_failures
            .get_or_create(&ReasonLabels { reason })
            .inc();
    }

    /// Counts a pull secret that the leader repaired.
    pub fn repaired(&self, cause: &'static str) {
        self.repairs.get_or_create(&CauseLabels { cause }).inc();
    }

    /// One round of discovery ended.
    pub fn discovery_run(&self, outcome: DiscoveryRun) {
        let outcome = outcome.as_str();
        self.discovery_runs
            .get_or_create(&OutcomeLabels { outcome })
            .inc();
    }

    /// How many seconds are left of the credential that expires first, if there is any.
    pub fn expires_in(&self, seconds: Option<i64>) {
        *self.earliest_expiry.value() = seconds;
    }

    /// The same by identity and region: these and no others.
    pub fn identities_expire_in<'a>(
        &self,
        expiries: impl IntoIterator<Item = (String, &'a str, i64)>,
    ) {
        self.identity_expiries.clear();
        for (identity, region, seconds) in expiries {
            let region = region.to_owned();
            self.identity_expiries
                .get_or_create(&IdentityLabels { identity, region })
                .set(seconds);
        }
    }

    /// How many pull secrets are in a state.
    pub fn in_state(&self, state: &'static str, count: i64) {
        self.by_state
            .get_or_create(&StateLabels { state })
            .set(count);
    }

    /// Has something measured each time that [`Self::to_text`] is asked for, one at a time. It may not ask for the text
    /// itself, and lives as long as the metrics.
    pub fn before_each_scrape(&self, measure: Measure) {
        self.measures().push(measure);
    }

    fn measures(&self) -> MutexGuard<'_, Vec<Measure>> {
        self.measures
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Every family, also those that have no series yet and so are in no scrape.
    #[must_use]
    pub fn families(&self) -> &[Described] {
        self.registry.families()
    }

    /// Everything, in the `OpenMetrics` text format.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Held to the end: what one scrape measures is shown whole.
        let measures = self.measures();
        for measure in measures.iter() {
            measure(self);
        }
        // Writing to a String can't fail.
        let _ = self.registry.encode(&mut text);
        text
    }
}

#[cfg(test)]
mod tests;
