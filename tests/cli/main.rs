//! Commands that need no API server, as a person runs them: the binary, its output and its exit code.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that can't go on panics, and reads the clock itself"
)]

#[path = "../support/mod.rs"]
mod support;

mod config_file;
mod config_schema;
mod errors;
mod frame;
mod iam;
mod identity_mint;
mod preview;
mod secret;
mod texts;
