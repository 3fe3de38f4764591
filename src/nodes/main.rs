//! The entry point of the small binary: runs the way in that is called, and exits with its code.

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    ecr_injector::nodes::entry::run(env::args_os())
}
