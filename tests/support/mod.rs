//! The test bed: everything that a test, the demo or the bench needs around the webhook, and nothing of the webhook itself.
//!
//! | room | what it stands for |
//! |---|---|
//! | [`control_plane`] | etcd and kube-apiserver, and the accounts that call it |
//! | [`due`] | pull secrets as they are hours after they were written |
//! | [`fake_aws`] | ECR, ECR Public and STS, and where a process finds its credentials |
//! | [`connect_proxy`] | the HTTP proxy between a cluster and AWS |
//! | [`collector`] | a collector of traces |
//! | [`webhook`] | processes of the binary under test |
//! | [`command`] | its commands that do one thing and end |
//! | [`in_process`] | the webhook inside the test's own process, where time can be paused |
//! | [`fake_api`] | an API server in memory, for [`in_process`] |
//! | [`watched_api`] | an API server whose lists and watches fail, on a socket |
//! | [`tls`] | both ends of TLS, for [`in_process`] |
//! | [`sim`] | a cluster and an AWS of the imagination, for the refresher on a paused clock |
//! | [`wire`] | a client that may be slow, wrong or hostile |
//! | [`balancer`] | the Service in front of several of them (there is no kube-proxy) |
//! | [`installation`] | `deploy/`, as a cluster admin installs it |
//! | [`helm`] | Helm, and the chart |
//! | [`bed`] | all of these together, with one webhook in it |
//! | [`certificates`] | cert-manager |
//! | [`registry`] | the wire of a registry that real clients pull from |
//! | [`reviews`] | the reviews that an API server sends of ordinary Pods |
//! | [`rewriter`] | another mutating webhook |
//! | [`openmetrics`] | what a scrape shows |
//! | [`pods`] | the Pods that users write |
//! | [`proc`] | what the kernel knows of a process |
//! | [`caller`] | anybody who calls the API server |
//! | [`creators`] | people who create Pods all the time |
//! | [`log`] | a subscriber for one test |
//! | [`troubleshooting`] | the entries of the page that explains texts |
//! | [`shared`] | what the tests of a module share |
//! | [`child`], [`own_runtime`] | what lets the others outlive one test and never the test process |
#![allow(
    dead_code,
    unused_imports,
    reason = "each test binary uses its own part of the support module"
)]
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "a test that can't go on panics and reads the clock itself, and its support is no public API"
)]

use std::time::{Duration, Instant};

pub mod balancer;
pub mod bed;
pub mod caller;
pub mod certificates;
pub mod child;
pub mod collector;
pub mod command;
pub mod connect_proxy;
pub mod control_plane;
pub mod creators;
pub mod due;
pub mod exchange;
pub mod fake_api;
pub mod fake_aws;
pub mod helm;
pub mod in_process;
pub mod installation;
pub mod log;
pub mod openmetrics;
pub mod own_runtime;
pub mod pods;
pub mod proc;
pub mod registry;
pub mod reviews;
pub mod rewriter;
pub mod shared;
pub mod sim;
pub mod tls;
pub mod troubleshooting;
pub mod watched_api;
pub mod webhook;
pub mod wire;

pub use balancer::Balancer;
pub use bed::Bed;
pub use caller::Caller;
pub use certificates::{Authority, ServingCertificate};
pub use connect_proxy::ConnectProxy;
pub use control_plane::{AuditLevel, ControlPlane};
pub use fake_api::FakeApi;
pub use fake_aws::{Behaviour, FakeAws, Garbage};
pub use in_process::InProcess;
pub use installation::Installation;
pub use rewriter::Rewriter;
pub use shared::Shared;
pub use tls::{Tls, Trust};
pub use troubleshooting::shows;
pub use watched_api::{Ends, Fault, WatchedApi};
pub use webhook::Webhook;
pub use wire::Wire;

/// Makes ring the process's TLS provider. Development dependencies could unify a second one into the build, and then
/// rustls refuses to choose.
pub fn crypto() {
    // An error says that another test of this process was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Returns a configuration file with these fields, in block style or in braces.
pub fn config_file(fields: &str) -> String {
    let header = ["apiVersion: ecr-injector.dev/v1alpha1", "kind: Config"];
    match fields.trim_start().strip_prefix('{') {
        _ if fields.contains(header[0]) => fields.to_owned(),
        Some(rest) => format!("{{{}, {rest}", header.join(", ")),
        None => format!("{}\n{fields}", header.join("\n")),
    }
}

/// Asks again until there is an answer, and panics when there is none after `limit`.
pub async fn eventually<T>(
    what: &str,
    limit: Duration,
    mut probe: impl AsyncFnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(answer) = probe().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "not after {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
