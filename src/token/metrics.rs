//! The metrics of calls to ECR and STS.

use prometheus_client::metrics::{counter::Counter, family::Family};

use super::error::MintError;
use crate::telemetry::metrics::{Labels, Registry};

/// Operations of ECR and STS, as the metric's label.
const OPERATIONS: [&str; 3] = [
    "get_authorization_token",
    "get_public_authorization_token",
    "assume_role",
];

/// Metrics of calls to ECR and STS.
#[derive(Debug)]
pub struct TokenMetrics {
    aws_calls: Family<Labels<2>, Counter>,
}

impl TokenMetrics {
    /// Registers the families.
    pub fn new(registry: &mut Registry) -> Self {
        let aws_calls: Family<Labels<2>, Counter> = registry.register(
            "aws_calls",
            "Calls to ECR and STS, by operation and outcome",
            Family::default(),
        );
        // An alert on the first error needs a zero to start from.
        for operation in OPERATIONS {
            for outcome in ["ok"].into_iter().chain(MintError::REASONS) {
                aws_calls
                    .get_or_create(&[("operation", operation), ("outcome", outcome)])
                    .inc_by(0);
            }
        }
        Self { aws_calls }
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
        Self::new(&mut Registry::unscraped())
    }
}
