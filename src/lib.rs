//! `ecr-injector`: a mutating admission webhook that makes private Amazon ECR images pull on any Kubernetes cluster.
//!
//! The modules are rooms, listed from what a person touches down to what everything rests on; imports point downwards.
//! What decides is pure, and the parts of a pure room that act (such as [`pull_secret::provisioner`]) stand higher than the
//! room itself; `tests/rooms.rs` holds every file to its place. `docs/contributing/architecture.md` walks through them in prose.

pub mod cli;

pub mod server;

pub mod refresh;

pub mod admission;

pub mod pull_secret;

pub mod config;

pub mod rules;

pub mod token;

pub mod aws;

pub mod identity;

pub mod tls;

pub mod cluster;

pub mod registry;

pub mod telemetry;

pub mod process;
