//! The metrics of calls to ECR and STS.

use prometheus_client::metrics::{counter::Counter, family::Family};

use crate::telemetry::metrics::{Labels, Registry};

/// Metrics of calls to ECR and STS.
#[derive(Debug)]
pub struct TokenMetrics {
    aws_calls: Family<Labels<2>, Counter>,
}

impl TokenMetrics {
    /// Registers the families.
    pub fn new(registry: &mut Registry) -> Self {
        Self {
            aws_calls: registry.register(
                "aws_calls",
                "Calls to ECR and STS, by operation and outcome",
                Family::default(),
            ),
        }
    }

    /// Counts a call to ECR or STS.
    pub fn aws_call(&self, operation: &'static str, outcome: &'static str) {
        self.aws_calls
            .get_or_create(&[("operation", operation), ("outcome", outcome)])
            .inc();
    }
}

impl Default for TokenMetrics {
    /// Returns metrics that no registry shows, for a command that is not scraped.
    fn default() -> Self {
        Self::new(&mut Registry::default())
    }
}
