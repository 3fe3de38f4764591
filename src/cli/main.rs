//! The entry point: parses the command line, runs the command, and exits with its code.

use std::process::ExitCode;

use ecr_injector::cli::Cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    Cli::read().run()
}
