//! The entry point of the small binary: runs the way in that is called, and exits with its code.

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    // Without unwinding nothing can catch a panic, so its line is written where it happens.
    ecr_injector::nodes::entry::run(env::args_os(), cfg!(panic = "abort"))
}
