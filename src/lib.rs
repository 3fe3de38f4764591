//! x
pub mod admission;
pub mod clock;
pub mod cluster;
pub mod config;
pub mod identity;
pub mod image;
pub mod metrics;
pub mod namespace;
pub mod pod;
pub mod pull_secret;
pub mod readiness;
pub mod registry;
pub mod token;
pub mod webhook;
