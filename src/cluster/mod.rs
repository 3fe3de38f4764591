//! The API server: its clients, and calls, watches and leader election through them.

pub(crate) mod call;
pub mod changes;
mod client;
pub mod event;
pub mod event_recorder;
pub mod lease;
pub mod metrics;
pub mod namespace;
pub mod namespaces;
pub mod near_miss;
pub mod object;
pub mod ownership;
pub mod rights;
pub mod service_accounts;
pub(crate) mod unreachable;
pub mod watch;
pub(crate) mod write;

pub use self::client::{Cluster, ClusterError, ClusterSource};
