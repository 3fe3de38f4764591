//! The metric of the spans of traces.

use crate::telemetry::metrics::{Counters, Registry};

/// Metrics of the spans of traces.
#[derive(Debug)]
pub struct TraceMetrics {
    spans: Counters,
}

impl TraceMetrics {
    /// Registers the families.
    pub fn new(registry: &mut Registry) -> Self {
        Self {
            spans: registry.counters(
                "trace_spans",
                "Trace spans that were sent, failed to be sent or were dropped",
                "outcome",
                Spans::ALL.map(Spans::as_str),
            ),
        }
    }

    /// Counts spans by their outcome.
    pub fn spans(&self, outcome: Spans, count: usize) {
        self.spans.add(outcome.as_str(), count);
    }
}

/// The outcome of spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spans {
    /// The collector accepted them.
    Sent,
    /// The collector rejected them or could not be reached.
    Failed,
    /// The queue was full.
    Dropped,
}

impl Spans {
    /// Every value.
    pub const ALL: [Self; 3] = [Self::Sent, Self::Failed, Self::Dropped];

    /// Returns the value as a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}
