//! The test bed: everything that a test, the demo or the bench needs around the webhook, and nothing of the webhook itself.
//!
//! | room | what it stands for |
//! |---|---|
//! | [`control_plane`] | etcd and kube-apiserver, and the accounts that call it |
//! | [`fake_aws`] | ECR and STS |
//! | [`webhook`] | processes of the binary under test |
//! | [`balancer`] | the Service in front of several of them (there is no kube-proxy) |
//! | [`installation`] | `deploy/`, as a cluster admin installs it |
//! | [`bed`] | all of these together, with one webhook in it |
//! | [`certificates`] | cert-manager |
//! | [`rewriter`] | another mutating webhook |
//! | [`pods`] | the Pods that users write |
//! | [`caller`] | anybody who calls the API server |
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
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    reason = "a test that can't go on panics, and its support is no public API"
)]

use std::time::{Duration, Instant};

pub mod balancer;
pub mod bed;
pub mod caller;
pub mod certificates;
pub mod child;
pub mod control_plane;
pub mod fake_aws;
pub mod installation;
pub mod own_runtime;
pub mod pods;
pub mod rewriter;
pub mod webhook;

pub use balancer::Balancer;
pub use bed::Bed;
pub use caller::Caller;
pub use certificates::{Authority, ServingCertificate};
pub use control_plane::{AuditLevel, ControlPlane};
pub use fake_aws::{Behaviour, FakeAws, Garbage};
pub use installation::Installation;
pub use rewriter::Rewriter;
pub use webhook::Webhook;

/// Makes ring the process's TLS provider. Development dependencies could unify a second one into the build, and then
/// rustls refuses to choose.
pub fn crypto() {
    // An error says that another test of this process was first.
    let _ = rustls::crypto::ring::default_provider().install_default();
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
