//! Kinds of metrics that several rooms register.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    encoding::{EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::Counter, family::Family, histogram::Histogram},
};
use tokio::time::Instant;

/// The labels of a series, each with its value.
pub type Labels<const N: usize> = [(&'static str, &'static str); N];

/// Counters of one family with one label; clones count in the same family.
#[derive(Debug, Clone)]
pub struct Counters {
    pub(super) family: Family<Labels<1>, Counter>,
    label: &'static str,
}

impl Counters {
    pub(super) fn new(label: &'static str) -> Self {
        Self {
            family: Family::default(),
            label,
        }
    }

    /// Counts one event with this value of the label.
    pub fn count(&self, value: &'static str) {
        self.add(value, 1);
    }

    /// Counts several events with this value of the label.
    pub fn add(&self, value: &'static str, count: usize) {
        self.family
            .get_or_create(&[(self.label, value)])
            .inc_by(count as u64);
    }
}

/// A gauge that may have no value, and is then absent from the text: 0 would be a value like
/// others.
#[derive(Debug, Clone, Default)]
pub struct OptionalGauge(Arc<Mutex<Option<i64>>>);

impl OptionalGauge {
    /// Sets the value, or removes it.
    pub fn set(&self, value: Option<i64>) {
        *self.value() = value;
    }

    fn value(&self) -> MutexGuard<'_, Option<i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl EncodeMetric for OptionalGauge {
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

/// Times an operation until the guard is dropped, also by a caller that gives up.
#[derive(Debug)]
pub struct Timed<'a> {
    histogram: &'a Histogram,
    since: Instant,
}

impl<'a> Timed<'a> {
    /// Starts to time.
    #[must_use]
    pub fn new(histogram: &'a Histogram) -> Self {
        Self {
            histogram,
            since: Instant::now(),
        }
    }
}

impl Drop for Timed<'_> {
    fn drop(&mut self) {
        self.histogram.observe(self.since.elapsed().as_secs_f64());
    }
}
