//! `ecr-injector`: a mutating admission webhook that makes private Amazon ECR images pullable on
//! any Kubernetes cluster.
//!
//! The modules are rooms, listed from the command line down to what everything else imports;
//! imports point downwards. Files that decide are pure, and the files of a pure room that act (such
//! as [`pull_secret::provisioner`]) rank above the room itself; `tests/offline/rooms.rs` checks the
//! imports of each file. `docs/contributing/architecture.md` has the map.

pub mod cli;

pub mod nodes;

pub mod refresh;

pub mod admission;

pub mod pull_secret;

pub mod config;

pub mod token;

pub mod aws;

pub mod identity;

pub mod tls;

pub mod cluster;

pub mod registry;

pub mod server;

pub mod telemetry;

pub mod process;
