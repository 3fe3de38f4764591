//! The phases of an admission, and their durations: rooms above time and trace the same phases.

use prometheus_client::{
    metrics::{
        family::Family,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Unit,
};

use super::metrics::{Labels, Registry, Timed};

/// A part of an admission that is timed by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The review is parsed from its JSON.
    Parse,
    /// The cached state of the cluster is read, and the decision reached.
    Decide,
    /// Tokens are taken from the cache or minted by AWS.
    Token,
    /// The pull secret is written.
    Write,
}

impl Phase {
    /// Every value.
    pub const ALL: [Self; 4] = [Self::Parse, Self::Decide, Self::Token, Self::Write];

    /// Returns the value as a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Decide => "decide",
            Self::Token => "token",
            Self::Write => "write",
        }
    }
}

/// Durations of the phases of admissions; clones count in the same family.
#[derive(Debug, Clone)]
pub struct PhaseTimes([Histogram; Phase::ALL.len()]);

impl PhaseTimes {
    /// Registers the family.
    pub fn new(registry: &mut Registry) -> Self {
        let phases: Family<Labels<1>, _> = registry.register_with_unit(
            "admission_phase_duration",
            "Duration of one phase of an admission",
            Unit::Seconds,
            Family::new_with_constructor(phase_buckets as fn() -> _),
        );
        // Found once, so that an admission needs no lookup.
        Self(Phase::ALL.map(|phase| phases.get_or_create_owned(&[("phase", phase.as_str())])))
    }

    /// Times a phase of an admission from now on, until the returned guard is dropped.
    #[must_use]
    pub fn time(&self, phase: Phase) -> Timed<'_> {
        Timed::new(&self.0[phase as usize])
    }
}

/// Returns a histogram from 5 µs, a small review's parsing, to 5 s, past a slow write.
fn phase_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.000_005, 4.0, 11))
}
