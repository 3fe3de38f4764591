//! The chart: what Helm renders from it, and what a real API server makes of that. `make test-helm3` runs all of it with
//! Helm 3.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that can't go on panics"
)]

#[path = "../support/mod.rs"]
mod support;

mod agreement;
mod alerts;
mod conditions;
mod dashboard;
mod examples;
mod missed;
mod policy;
mod policy_mode;
mod release;
mod templates;
mod values;
