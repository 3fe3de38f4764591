//! Logs, metrics and traces.

pub(crate) mod error_chain;
pub mod log;
pub(crate) mod log_limit;
pub(crate) mod log_once;
pub mod metrics;
pub mod otel;
pub mod phases;
pub(crate) mod printable;
pub(crate) mod yaml_error;
