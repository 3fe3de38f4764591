//! Real clients of registries with the docker credential helper: each finds the helper by its name,
//! asks it for credentials, and pulls with them from a registry that takes no others.
//! `make test-clients` installs the clients first; a client that isn't there fails its test.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that can't go on panics, and reads the clock itself"
)]

#[path = "../support/mod.rs"]
mod support;

mod bed;
mod neighbour;
mod pulls;
mod registry;
mod texts;
