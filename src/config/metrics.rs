//! The metrics of the configuration and its reloads.

use jiff::Timestamp;
use prometheus_client::metrics::gauge::Gauge;

use crate::telemetry::metrics::{Counters, Registry};

/// Metrics of the configuration and its reloads.
#[derive(Debug)]
pub struct ConfigMetrics {
    /// Configurations applied since the process started, including the current one.
    pub generation: Gauge,
    reloads: Counters,
    last_applied: Gauge,
    /// 1 if the file is valid and in use, 0 while it is rejected and an older one stays in use.
    pub reload_successful: Gauge,
    /// 1 while the file changes a field that takes effect only after a restart.
    pub restart_required: Gauge,
}

impl ConfigMetrics {
    /// Registers the families.
    pub fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            generation: registry.register(
                "config_generation",
                "Configurations applied since the process started, including the current one",
                Gauge::default(),
            ),
            reloads: registry.counters(
                "config_reloads",
                "Changes of the configuration file that were applied or rejected, by outcome",
                "outcome",
                Reload::ALL.map(Reload::as_str),
            ),
            last_applied: registry.register(
                "config_last_reload_success_timestamp_seconds",
                "Time when the current configuration was applied, in seconds since the Unix epoch",
                Gauge::default(),
            ),
            reload_successful: registry.register(
                "config_last_reload_successful",
                "1 if the configuration file is valid and in use, 0 while it is rejected and the last valid one stays in use",
                Gauge::default(),
            ),
            restart_required: registry.register(
                "config_restart_required",
                "1 while the configuration file changes a field that takes effect only after a restart, 0 otherwise",
                Gauge::default(),
            ),
        };
        metrics.reload_successful.set(1);
        metrics
    }

    /// Counts a change of the configuration file.
    pub fn reload(&self, outcome: Reload) {
        self.reloads.count(outcome.as_str());
    }

    /// Counts a configuration that is in use since `at`.
    pub fn applied(&self, at: Timestamp) {
        self.generation.inc();
        self.last_applied.set(at.as_second());
    }
}

/// The outcome of a change of the configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reload {
    /// The configuration is in use.
    Applied,
    /// The configuration is rejected as a whole.
    Refused,
}

impl Reload {
    /// Every value.
    pub const ALL: [Self; 2] = [Self::Applied, Self::Refused];

    /// Returns the value as a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Refused => "rejected",
        }
    }
}
