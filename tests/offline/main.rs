//! Tests that need no control plane and no process of the binary.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test that can't go on panics, reads the clock itself and shows its figures"
)]

#[path = "../support/mod.rs"]
mod support;

mod admission_golden;
mod commands;
mod doctor;
mod faults;
mod fuzzing;
mod identity_rules;
mod manifests;
mod model;
mod operations;
mod refresh;
mod release;
mod rooms;
mod rotation;
mod sabotage;
mod traces;
mod troubleshooting;
mod versions;
mod watch;
mod webhook_connection;
mod webhook_router;
mod webhook_tls;
