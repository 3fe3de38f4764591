//! A real kubelet that pulls: with our credential plugin, with the pull secrets of the webhook, and
//! with the chart as it is installed.
//! Each test has a machine of its own (`isolation`), with a control plane, containerd, a kubelet, a
//! registry and the fake AWS in it. `make kubelet-test` builds what that takes, and runs it as
//! root.
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

mod accounts;
mod chart;
mod isolation;
mod kinds;
mod lab;
mod missed;
mod node;
mod outage;
mod plugin;
mod records;
mod registry;
mod renewal;
mod teardown;
mod tenants;
mod texts;
mod webhook;
mod webhook_lab;
mod workloads;
