//! Logs: to standard output, as text for people or JSON for machines.

use std::io::{IsTerminal as _, stdout};

use tracing_subscriber::{
    EnvFilter, filter::ParseError, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

/// Below these levels the libraries write whole requests and replies, tokens included: they stay at them, whatever the
/// filter asks for.
const CAPS: [&str; 8] = [
    "aws_config=info",
    "aws_runtime=info",
    "aws_sdk_ecr=info",
    "aws_smithy_http_client=info",
    "aws_smithy_runtime=info",
    "aws_smithy_runtime_api=info",
    "hyper=info",
    "hyper_util=info",
];

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// A line for people; coloured on a terminal.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// Starts logging. `filter` is in the form of `RUST_LOG`.
pub fn start(format: Format, filter: &str) -> Result<(), ParseError> {
    let registry = tracing_subscriber::registry().with(capped(filter)?);
    // Where a subscriber is set already (a test's), its owner's choice stands.
    let _ = match format {
        Format::Text => registry
            .with(fmt::layer().with_ansi(stdout().is_terminal()))
            .try_init(),
        Format::Json => registry
            .with(fmt::layer().json().flatten_event(true))
            .try_init(),
    };
    Ok(())
}

fn capped(filter: &str) -> Result<EnvFilter, ParseError> {
    let mut filter: EnvFilter = filter.parse()?;
    for cap in CAPS {
        filter = filter.add_directive(cap.parse()?);
    }
    Ok(filter)
}
