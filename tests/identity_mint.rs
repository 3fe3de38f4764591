//! `ecr-injector identity --mint` as an admin runs it to see who mints and what comes of it: the real binary and the real
//! SDK, in an environment that holds nothing but what the test gives it, against a fake AWS that is reached by every road a
//! cluster has.
//!
//! The command takes the very road that `serve` takes, so what holds here holds for an admission.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test that can't go on panics, and reads the clock itself"
)]

#[path = "identity_mint/command.rs"]
mod command;
#[path = "identity_mint/hosts.rs"]
mod hosts;
#[path = "identity_mint/network.rs"]
mod network;
#[path = "identity_mint/output.rs"]
mod output;
#[path = "identity_mint/roles.rs"]
mod roles;
#[path = "identity_mint/sources.rs"]
mod sources;
mod support;
