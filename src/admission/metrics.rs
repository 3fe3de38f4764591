//! The metrics of admissions.

use std::time::Duration;

use prometheus_client::{
    metrics::{
        counter::Counter,
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Unit,
};

use super::outcome::Verdict;
use crate::telemetry::{
    metrics::{Counters, Labels, Registry},
    phases::PhaseTimes,
};

/// Metrics of admissions.
#[derive(Debug)]
pub struct AdmissionMetrics {
    admissions: Counters,
    durations: Family<Labels<2>, Histogram>,
    refused_identities: Counters,
    /// Admissions answered from a pull secret that the leader should refresh soon.
    pub due: Counter,
    /// Durations of an admission's phases.
    pub phases: PhaseTimes,
}

impl AdmissionMetrics {
    /// Registers the families.
    pub fn new(registry: &mut Registry, phases: PhaseTimes) -> Self {
        Self {
            admissions: registry.counters(
                "admissions",
                "Admissions, by decision",
                "decision",
                Verdict::ALL.map(Verdict::as_str),
            ),
            durations: registry.register_with_unit(
                "admission_duration",
                "Time from reading the first byte of an AdmissionReview to its response",
                Unit::Seconds,
                Family::new_with_constructor(admission_buckets as fn() -> _),
            ),
            refused_identities: registry.counters(
                "rejected_identities",
                "Admissions with a registry for which no identity may mint a token, by reason",
                "reason",
                [],
            ),
            due: registry.register(
                "due_admissions",
                "Admissions that found a pull secret due for refresh",
                Counter::default(),
            ),
            phases,
        }
    }

    /// Counts an admission by its decision and the reason for the decision, and its duration.
    pub fn admission(&self, decision: &'static str, reason: &'static str, took: Duration) {
        self.admissions.count(decision);
        self.durations
            .get_or_create(&[("decision", decision), ("reason", reason)])
            .observe(took.as_secs_f64());
    }

    /// Counts an admission with a registry that no identity may mint for.
    pub fn refused_identity(&self, reason: &'static str) {
        self.refused_identities.count(reason);
    }
}

/// Returns a histogram from 50 µs, a warm answer, to 26 s, past every deadline.
fn admission_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.000_05, 2.0, 20))
}
