//! Programs that others start for one answer, on nodes and laptops: the small binary as a child with an empty environment,
//! against the fake AWS through the real SDK.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that can't go on panics, and reads the clock itself"
)]

#[path = "../support/mod.rs"]
mod support;

mod docker;
mod kubelet_config;
mod plugin;
