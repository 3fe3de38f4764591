//! The entry point of the small binary: runs the way in that is called, and exits with its code.

use std::{env, process::ExitCode};

/// Keeps what it gets from the kernel: that of musl asks for pages, and gives them back, hundreds of
/// times in a run.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    // Without unwinding nothing can catch a panic, so its line is written where it happens.
    ecr_injector::nodes::entry::run(env::args_os(), cfg!(panic = "abort"))
}
