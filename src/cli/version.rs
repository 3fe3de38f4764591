//! `ecr-injector version`: the version, and the commit that it was built from.

use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::json;

use super::stdout;

/// The version of the package.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit and its time, if the build was told them. Of the same commit a build makes the same
/// bytes, so the time is not that of the build.
const COMMIT: Option<&str> = option_env!("ECR_INJECTOR_COMMIT");
const DATE: Option<&str> = option_env!("ECR_INJECTOR_BUILD_DATE");

/// Print the version, the commit and its time.
#[derive(Debug, Args)]
pub struct VersionArgs {
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

/// The format of the version.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Output {
    /// Human-readable lines
    #[default]
    Text,
    /// A JSON object
    Json,
}

impl VersionArgs {
    /// Prints the version.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let told = |value: Option<&'static str>| value.filter(|text| !text.is_empty());
        let (commit, date) = (told(COMMIT), told(DATE));
        let text = match self.output {
            Output::Text => format!(
                "ecr-injector {VERSION}\ncommit       {}\ndate         {}\n",
                commit.unwrap_or("unknown"),
                date.unwrap_or("unknown")
            ),
            Output::Json => {
                let version = json!({"version": VERSION, "commit": commit, "date": date});
                format!("{version:#}\n")
            }
        };
        stdout::write(&text).context("writing to standard output")?;
        Ok(ExitCode::SUCCESS)
    }
}
