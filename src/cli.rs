//! The command line: one file a subcommand, each from raw flags to one call.

pub mod preview;
pub mod serve;

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::{Parser, Subcommand};

/// Makes private Amazon ECR images pull on any Kubernetes cluster.
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
    Serve(serve::Flags),
    Preview(preview::Flags),
}

impl Cli {
    /// Runs the command. An error is written to standard error, with its causes.
    #[must_use]
    pub fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Serve(flags) => flags.run(),
            Command::Preview(flags) => flags.run(),
        };
        result.unwrap_or_else(|error| {
            // If nobody reads the error, there is nobody left to tell.
            let _ = writeln!(io::stderr(), "ecr-injector: {error:#}");
            ExitCode::FAILURE
        })
    }
}
