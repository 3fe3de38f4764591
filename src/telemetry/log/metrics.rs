//! The metric of the log.

use std::sync::Arc;

use prometheus_client::metrics::counter::Counter;

use super::writer::LogWriter;
use crate::telemetry::metrics::Registry;

/// Metrics of the log.
#[derive(Debug)]
pub struct LogMetrics {
    dropped: Counter,
}

impl LogMetrics {
    /// Registers the family.
    pub fn new(registry: &mut Registry) -> Self {
        Self {
            dropped: registry.register(
                "log_lines_dropped",
                "Log lines that were dropped because nobody read the log fast enough",
                Counter::default(),
            ),
        }
    }

    /// Counts the lines that a writer dropped, at each scrape.
    pub fn count_drops_of(&self, registry: &Arc<Registry>, writer: LogWriter) {
        let dropped = self.dropped.clone();
        registry.before_each_scrape(Box::new(move || {
            dropped.inc_by(writer.dropped().saturating_sub(dropped.get()));
        }));
    }
}
