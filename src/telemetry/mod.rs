//! How the process can be observed: its log, its metrics and its traces.

pub mod log;
pub mod metrics;
pub mod otel;
pub mod phases;
