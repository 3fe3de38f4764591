//! `ecr-injector`: a mutating admission webhook that makes private Amazon ECR images pull on any Kubernetes cluster.
//!
//! The modules are rooms, listed from what a person touches down to what everything rests on; imports point downwards.
//! What decides is pure, and the parts of a pure room that act (such as [`pull_secret::provisioner`]) stand higher than the
//! room itself; `tests/rooms.rs` holds every file to its place. `docs/architecture.md` walks through them in prose.

pub mod cli;

pub mod server;
pub mod webhook;

pub mod discovery;
pub mod events;
pub mod leader;
pub mod probe;
pub mod refresh;

pub mod aws;
pub mod cluster;
pub mod config;
pub mod descriptors;
pub mod memory;
pub mod readiness;
pub mod shutdown;
pub mod telemetry;
pub mod tls;
pub mod traces;

pub mod admission;
pub mod manifest;
pub mod pull_secret;
pub mod token;

pub mod identity;
pub mod image;
pub mod namespace;
pub mod pod;
pub mod registry;

pub mod backoff;
pub mod clock;
pub mod current;
pub mod metrics;
