//! The registry of all families. The registry also remembers the name of every family: a family
//! without a series is in no scrape, and `docs/reference/metrics.md` has to name that family, too.

use std::{
    fmt,
    sync::{Mutex, MutexGuard, PoisonError},
};

use prometheus_client::{
    collector::Collector,
    encoding::text::{encode_eof, encode_registry},
    metrics::MetricType,
    registry::{self, Metric, Unit},
};

use super::family::Counters;

/// A family of metrics, as a scrape shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FamilyDescriptor {
    /// The whole name, such as `ecr_injector_panics_total`.
    pub name: String,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: &'static str,
}

/// All families of the process.
#[derive(Debug)]
pub struct Registry {
    prefix: &'static str,
    prefixed: registry::Registry,
    /// Families whose names have no prefix.
    others: registry::Registry,
    families: Vec<FamilyDescriptor>,
    measures: Measures,
}

/// Measures something, and sets its gauges.
pub type Measure = Box<dyn Fn() + Send + Sync>;

/// The measures that each scrape takes.
#[derive(Default)]
struct Measures(Mutex<Vec<Measure>>);

impl fmt::Debug for Measures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Measures")
    }
}

impl Registry {
    /// Returns an empty registry, whose names start with `prefix`.
    pub(super) fn with_prefix(prefix: &'static str) -> Self {
        Self {
            prefix,
            prefixed: registry::Registry::with_prefix(prefix),
            others: registry::Registry::default(),
            families: Vec::new(),
            measures: Measures::default(),
        }
    }

    /// Returns an empty registry that nobody scrapes, for a program that has no other.
    #[must_use]
    pub fn unscraped() -> Self {
        Self::with_prefix("ecr_injector")
    }

    /// Registers a metric and returns it; its clones share its values.
    pub fn register<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.add(name, help, metric.clone());
        metric
    }

    /// Registers a metric that never changes.
    pub(super) fn add(&mut self, name: &str, help: &str, metric: impl Metric) {
        self.describe(name, metric.metric_type());
        self.prefixed.register(name, help, metric);
    }

    /// Registers a metric whose name ends with its unit, and returns it.
    pub fn register_with_unit<M: Metric + Clone>(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        metric: M,
    ) -> M {
        self.describe(&format!("{name}_{}", unit.as_str()), metric.metric_type());
        self.prefixed
            .register_with_unit(name, help, unit, metric.clone());
        metric
    }

    /// Registers counters with one label. The `initial` values have their series from the start: an
    /// alert on an event that never happened needs a zero to start from.
    pub fn counters(
        &mut self,
        name: &str,
        help: &str,
        label: &'static str,
        initial: impl IntoIterator<Item = &'static str>,
    ) -> Counters {
        let counters = Counters::new(label);
        self.add(name, help, counters.family.clone());
        for value in initial {
            counters.add(value, 0);
        }
        counters
    }

    /// Registers a collector, which measures at each scrape, and the families that it has.
    pub(super) fn register_collector(
        &mut self,
        collector: impl Collector,
        families: impl IntoIterator<Item = FamilyDescriptor>,
    ) {
        self.families.extend(families);
        self.others.register_collector(Box::new(collector));
    }

    /// Calls `measure` each time that [`Self::to_text`] is called, one call at a time. The measure
    /// may not call `to_text` itself, and lives as long as the registry.
    pub fn before_each_scrape(&self, measure: Measure) {
        self.measures().push(measure);
    }

    /// Returns every family, whether it has a series yet or not.
    #[must_use]
    pub fn families(&self) -> &[FamilyDescriptor] {
        &self.families
    }

    /// Returns every family that has a series, in the `OpenMetrics` text format.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // The lock is held to the end, so that the text shows the measures of one scrape alone.
        let measures = self.measures();
        for measure in measures.iter() {
            measure();
        }
        // Writing to a String can't fail.
        let _ = self.encode(&mut text);
        text
    }

    fn encode(&self, text: &mut String) -> fmt::Result {
        encode_registry(text, &self.prefixed)?;
        encode_registry(text, &self.others)?;
        encode_eof(text)
    }

    fn measures(&self) -> MutexGuard<'_, Vec<Measure>> {
        self.measures
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&mut self, name: &str, kind: MetricType) {
        let (kind, suffix) = match kind {
            MetricType::Counter => ("counter", "_total"),
            MetricType::Gauge => ("gauge", ""),
            MetricType::Histogram => ("histogram", ""),
            MetricType::Info => ("info", "_info"),
            MetricType::Unknown => ("unknown", ""),
        };
        self.families.push(FamilyDescriptor {
            name: format!("{}_{name}{suffix}", self.prefix),
            kind,
        });
    }
}
