//! The metric of the ambient AWS credentials.

use std::sync::OnceLock;

use prometheus_client::metrics::{family::Family, gauge::Gauge};

use crate::telemetry::metrics::{Labels, Registry};

/// Metrics of the ambient AWS credentials.
#[derive(Debug)]
pub struct AwsMetrics {
    credentials_source: Family<Labels<1>, Gauge>,
    source: OnceLock<&'static str>,
}

impl AwsMetrics {
    /// Registers the families.
    pub fn new(registry: &mut Registry) -> Self {
        Self {
            credentials_source: registry.register(
                "credentials_source",
                "Source of the ambient AWS credentials: 1 for the source in use",
                Family::default(),
            ),
            source: OnceLock::new(),
        }
    }

    /// Sets the source of the ambient credentials.
    pub fn credentials_from(&self, source: &'static str) {
        self.credentials_source
            .get_or_create(&[("source", source)])
            .set(1);
        // The source never changes: a second one can't be set.
        let _ = self.source.set(source);
    }

    /// Returns the source of the ambient credentials, or `none` while it is unknown.
    #[must_use]
    pub fn credentials_source(&self) -> &'static str {
        self.source.get().copied().unwrap_or("none")
    }
}

impl Default for AwsMetrics {
    /// Returns metrics that no registry shows, for a command that is not scraped.
    fn default() -> Self {
        Self::new(&mut Registry::unscraped())
    }
}
