//! Trims the environment variables for AWS before anything reads them.
//!
//! A process can't change its own environment while other threads may read it, so it starts itself
//! again, under the same process id.

use std::{env, os::unix::process::CommandExt as _, process::Command};

use tokio::{
    runtime,
    signal::unix::{SignalKind, signal},
};

use super::variables::{TRIMMED, to_trim};

/// Starts this program again with trimmed variables if there is something to be trimmed; else, and
/// if that fails, returns.
pub fn trim() {
    let changed = to_trim(env::vars_os());
    let (false, Ok(program)) = (changed.is_empty(), env::current_exe()) else {
        return;
    };
    let mut arguments = env::args_os();
    let mut command = Command::new(program);
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    command.args(arguments);
    let names: Vec<&str> = changed.iter().map(|(name, _)| &**name).collect();
    command.env(TRIMMED, names.join(","));
    for (name, value) in &changed {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    // If it returns, the values stay as they are: keys are trimmed where they are used, and the
    // errors of all else name the variable.
    let _ = command.exec();
    handle_closed_pipes();
}

/// Makes a write to a closed pipe an error again: before it starts a program the standard library
/// has SIGPIPE end the process, and leaves it so if that fails. A handler does the same as ignoring
/// the signal, and outlasts the runtime that it is set in.
fn handle_closed_pipes() {
    if let Ok(runtime) = runtime::Builder::new_current_thread().enable_io().build() {
        let _in_runtime = runtime.enter();
        let _ = signal(SignalKind::pipe());
    }
}
