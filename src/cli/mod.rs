//! The command line: one file for each subcommand, from its arguments to one call.

mod args;
mod certificates;
pub mod cleanup;
pub mod completion;
pub mod config;
mod connection;
mod context;
pub mod credential_provider;
pub mod docker_credential;
pub mod doctor;
pub mod iam;
pub mod identity;
pub mod metrics;
mod one_shot;
mod permissions;
pub mod preview;
pub mod probe;
mod progress;
pub mod refresh;
mod report;
mod runtime;
pub mod secret;
pub mod serve;
mod stdout;
pub mod version;

use std::{
    env,
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{
    Arg, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, builder::Resettable,
};

use crate::{
    aws::restart,
    process::memory,
    telemetry::{error_chain::error_chain, printable::printable_lines},
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
    Doctor(Box<doctor::DoctorArgs>),
    Identity(identity::IdentityArgs),
    Secret(secret::SecretArgs),
    Iam(iam::IamArgs),
    Refresh(refresh::RefreshArgs),
    Cleanup(cleanup::CleanupArgs),
    Config(config::ConfigArgs),
    CredentialProvider(credential_provider::CredentialProviderArgs),
    Version(version::VersionArgs),
    Completion(completion::CompletionArgs),
    #[command(hide = true)]
    Man(completion::ManArgs),
    DockerCredential(docker_credential::DockerCredentialArgs),
}

/// Ignores an argument's variable if it is empty, as a manifest may set it.
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

/// Ignores empty variables of a command and all of its subcommands.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    command
        .mut_args(without_empty_variable)
        .mut_subcommands(without_empty_variables)
}

impl Cli {
    /// Parses the command line, or exits with the help or the error. Before, variables for AWS are
    /// trimmed, for which the program may start again.
    #[must_use]
    pub fn read() -> Self {
        restart::trim();
        let mut command = without_empty_variables(Self::command());
        let read = Self::from_arg_matches(&command.get_matches_mut());
        read.unwrap_or_else(|error| error.format(&mut command).exit())
    }

    /// Runs the command, and writes an error to standard error, with its causes.
    #[must_use]
    pub fn run(self) -> ExitCode {
        memory::disable_huge_pages();
        let result = match self.command {
            Command::Serve(args) => args.run(),
            Command::Preview(args) => args.run(),
            Command::Probe(args) => args.run(),
            Command::Doctor(args) => args.run(),
            Command::Identity(args) => args.run(),
            Command::Secret(args) => args.run(),
            Command::Iam(args) => args.run(),
            Command::Refresh(args) => args.run(),
            Command::Cleanup(args) => args.run(),
            Command::Config(args) => args.run(),
            Command::CredentialProvider(args) => args.run(),
            Command::Version(args) => args.run(),
            Command::Completion(args) => args.run(Self::command()),
            Command::Man(args) => args.run(Self::command()),
            Command::DockerCredential(args) => args.run(),
        };
        result.unwrap_or_else(|error| {
            // There is nowhere left to report that this write failed.
            let text = printable_lines(&with_causes(&error));
            let _ = writeln!(io::stderr(), "ecr-injector: {text}");
            ExitCode::FAILURE
        })
    }
}

/// Returns an error and its causes, each once: some libraries' errors include the text of their
/// cause.
fn with_causes(error: &anyhow::Error) -> String {
    error_chain(error.as_ref())
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[test]
    fn cause_in_an_errors_own_text_is_not_repeated() {
        let error = anyhow!("no such file")
            .context("can't read it: no such file")
            .context("reading the configuration");
        assert_eq!(
            with_causes(&error),
            "reading the configuration: can't read it: no such file"
        );
    }
}
