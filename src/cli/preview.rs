//! `ecr-injector preview`: what a manifest would look like once admitted. Offline.

use std::process::ExitCode;

use clap::Args;

/// Show objects as they would be admitted, without a cluster.
#[derive(Debug, Args)]
pub struct Flags {}

impl Flags {
    /// Runs.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        Ok(ExitCode::SUCCESS)
    }
}
