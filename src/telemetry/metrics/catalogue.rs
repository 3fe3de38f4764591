//! The registry of all families, which also remembers what it was given: a family that has no series yet is in no scrape,
//! and `docs/operations.md` has to name it all the same.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::text::{encode_eof, encode_registry},
    metrics::MetricType,
    registry::{Metric, Registry, Unit},
};

/// One family of metrics, as a scrape shows it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Family {
    /// Its whole name, such as `ecr_injector_panics_total`.
    pub name: String,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: &'static str,
}

/// All families of the process.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    prefix: &'static str,
    ours: Registry,
    /// Those whose names are not ours to prefix.
    others: Registry,
    families: Vec<Family>,
}

impl Catalogue {
    /// An empty one, whose names start with `prefix`.
    pub(super) fn with_prefix(prefix: &'static str) -> Self {
        Self {
            prefix,
            ours: Registry::with_prefix(prefix),
            others: Registry::default(),
            families: Vec::new(),
        }
    }

    pub(super) fn register(&mut self, name: &str, help: &str, metric: impl Metric) {
        self.note(name, metric.metric_type());
        self.ours.register(name, help, metric);
    }

    pub(super) fn register_with_unit(
        &mut self,
        name: &str,
        help: &str,
        unit: Unit,
        metric: impl Metric,
    ) {
        self.note(&format!("{name}_{}", unit.as_str()), metric.metric_type());
        self.ours.register_with_unit(name, help, unit, metric);
    }

    /// Adds what measures at each scrape, and says itself which families it has.
    pub(super) fn register_collector(
        &mut self,
        collector: impl Collector,
        families: impl IntoIterator<Item = Family>,
    ) {
        self.families.extend(families);
        self.others.register_collector(Box::new(collector));
    }

    /// Every family, whether it has a series yet or not.
    pub(super) fn families(&self) -> &[Family] {
        &self.families
    }

    /// Everything that has a series, in the `OpenMetrics` text format.
    pub(super) fn encode(&self, text: &mut String) -> fmt::Result {
        encode_registry(text, &self.ours)?;
        encode_registry(text, &self.others)?;
        encode_eof(text)
    }

    fn note(&mut self, name: &str, kind: MetricType) {
        let (kind, suffix) = match kind {
            MetricType::Counter => ("counter", "_total"),
            MetricType::Gauge => ("gauge", ""),
            MetricType::Histogram => ("histogram", ""),
            MetricType::Info => ("info", "_info"),
            MetricType::Unknown => ("unknown", ""),
        };
        self.families.push(Family {
            name: format!("{}_{name}{suffix}", self.prefix),
            kind,
        });
    }
}
