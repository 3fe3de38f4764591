//! The binary and its parts against a real API server, with the rights and the guard of `deploy/`.
//!
//! Tests of a module that can live side by side share a control plane (`support::Shared`) and keep apart by namespace and
//! by AWS region.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test that can't go on panics, reads the clock itself and shows its figures"
)]

#[path = "../support/mod.rs"]
mod support;

mod admission;
mod bundle;
mod by_hand;
mod certificates;
mod coming_from;
mod commands;
mod config;
mod deploy;
mod discovery;
mod doctor;
mod faults;
mod guard;
mod identities;
mod near_misses;
mod probe;
mod pull_secrets;
mod recipes;
mod refresher;
mod state_key;
mod stuck;
mod testbed;
mod traces;
mod troubleshooting;
