//! The command line: one file a subcommand, each from raw flags to one call.

mod certificates;
pub mod cleanup;
pub mod config;
mod context;
pub mod identity;
pub mod metrics;
mod one_shot;
pub mod preview;
pub mod probe;
mod progress;
pub mod refresh;
mod report;
pub mod serve;

use std::{
    env,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{
    Arg, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    builder::{PossibleValuesParser, Resettable, TypedValueParser},
};
use tokio::runtime::Runtime;

use crate::{
    aws::{AwsEnvironmentError, Trust, credentials::Source},
    cluster::namespace::Namespace,
    process::memory,
    telemetry::error_chain::error_chain,
};

/// Makes private Amazon ECR images pullable on any Kubernetes cluster.
#[derive(Debug, Parser)]
#[command(
    name = "ecr-injector",
    version,
    max_term_width = 100,
    arg_required_else_help = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<serve::ServeArgs>),
    Preview(preview::PreviewArgs),
    Probe(probe::ProbeArgs),
    Identity(identity::IdentityArgs),
    Refresh(refresh::RefreshArgs),
    Cleanup(cleanup::CleanupArgs),
    Config(config::ConfigArgs),
}

/// How AWS is reached, for the commands that ask it.
#[derive(Debug, Args)]
struct AwsArgs {
    /// CA bundle (PEM) to verify AWS endpoints with, instead of the system's
    #[arg(long, env = "AWS_CA_BUNDLE", value_name = "FILE")]
    aws_ca_bundle: Option<PathBuf>,
    /// The only source of ambient credentials to use; credentials of any other source are an error
    #[arg(
        long,
        env = "ECR_INJECTOR_EXPECT_CREDENTIALS",
        value_name = "SOURCE",
        value_parser = source_parser()
    )]
    expect_credentials: Option<Source>,
}

/// Takes the names that the log and the metric have for sources of credentials.
fn source_parser() -> impl TypedValueParser<Value = Source> {
    let names = Source::ALL.map(Source::as_str);
    PossibleValuesParser::new(names).try_map(|name| Source::parse(&name).ok_or("no such source"))
}

impl AwsArgs {
    fn trust(&self) -> Result<Trust, AwsEnvironmentError> {
        Trust::load(self.aws_ca_bundle.as_deref())
    }
}

fn namespace(text: &str) -> Result<Namespace, &'static str> {
    Namespace::parse(text).ok_or("expected lower-case letters, digits and inner dashes, at most 63")
}

/// A time that is not negative.
fn span(text: &str) -> Result<Duration, &'static str> {
    let parsed = text.parse::<jiff::SignedDuration>().ok();
    let span = parsed.and_then(|span| Duration::try_from(span).ok());
    span.ok_or("expected a duration such as 15s or 400ms")
}

/// `| head` has seen enough when it closes the pipe: no error.
fn write_out(output: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(output.as_bytes())
        .and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

fn runtime() -> anyhow::Result<Runtime> {
    Runtime::new().context("starting threads")
}

/// An empty variable is like none: a manifest that has a place for a value and no value leaves it so.
fn without_empty_variable(arg: Arg) -> Arg {
    let is_empty = arg
        .get_env()
        .and_then(env::var_os)
        .is_some_and(|value| value.is_empty());
    if is_empty {
        arg.env(Resettable::Reset)
    } else {
        arg
    }
}

impl Cli {
    /// Reads the command line, or ends the process as it asks (help) or with a complaint.
    #[must_use]
    pub fn read() -> Self {
        let mut command =
            Self::command().mut_subcommands(|command| command.mut_args(without_empty_variable));
        let read = Self::from_arg_matches(&command.get_matches_mut());
        read.unwrap_or_else(|error| error.format(&mut command).exit())
    }

    /// Runs the command. An error is written to standard error, with its causes.
    #[must_use]
    pub fn run(self) -> ExitCode {
        memory::disable_huge_pages();
        let result = match self.command {
            Command::Serve(flags) => flags.run(),
            Command::Preview(flags) => flags.run(),
            Command::Probe(flags) => flags.run(),
            Command::Identity(flags) => flags.run(),
            Command::Refresh(flags) => flags.run(),
            Command::Cleanup(flags) => flags.run(),
            Command::Config(flags) => flags.run(),
        };
        result.unwrap_or_else(|error| {
            // If nobody reads the error, there is nobody left to tell.
            let _ = writeln!(io::stderr(), "ecr-injector: {}", with_causes(&error));
            ExitCode::FAILURE
        })
    }
}

/// An error and its causes, each said once: some libraries say their cause in their own words, too.
fn with_causes(error: &anyhow::Error) -> String {
    error_chain(error.as_ref())
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn a_cause_that_was_said_already_is_not_said_again() {
        let error = anyhow!("no such file")
            .context("can't read it: no such file")
            .context("reading the configuration");
        assert_eq!(
            with_causes(&error),
            "reading the configuration: can't read it: no such file"
        );
    }
}
