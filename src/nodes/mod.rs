//! The ways in for nodes and laptops, which need no cluster: programs that others start for one
//! answer. They share the parser of hosts, the tokens and the identities with the webhook.
//!
//! Each way in is a function from standard input and what surrounds the process to an [`Answer`].
//! The small binary `ecr-credentials` and the subcommands of `ecr-injector` call the same function.

pub mod answer;
pub mod docker;
pub mod docker_cache;
pub mod docker_config;
pub mod docker_helper;
pub mod entry;
mod file_cache;
pub mod files;
mod flags;
pub mod kubelet;
pub mod kubelet_config;
pub mod kubelet_plugin;

pub use self::answer::Answer;
