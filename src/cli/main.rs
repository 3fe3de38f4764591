//! Reads the command line, runs, and turns the outcome into an exit code.

use std::process::ExitCode;

use ecr_injector::cli::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Cli::read().run()
}
