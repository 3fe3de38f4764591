//! Parses, runs, and turns the outcome into an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use ecr_injector::cli::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Cli::parse().run()
}
