//! Keeps every pull secret fresh for as long as Pods live: what the leader does, and what one sweep by hand does.
//!
//! The plan follows from what is known of the cluster and from the configuration alone, so a leader that dies loses nothing.
//! Nothing is polled: the watches tell what has changed, and between that and the next due time the leader sleeps.
//!
//! `plan` says what is to be done for one namespace, `queue` whose turn it is, `reconciler` does it by one call, `minter`
//! gets the tokens that are missing, and `controller` is the loop around them.

mod backoffs;
mod controller;
pub mod discovery;
pub mod impact;
pub mod metrics;
mod mint_queue;
mod minter;
pub mod plan;
pub mod queue;
mod rate_limiter;
mod reconciler;
mod reporter;
mod sweep;

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::time::Instant;

use self::controller::Controller;
use self::metrics::RefreshMetrics;
pub use self::{
    reconciler::Reconciler,
    sweep::{Sweep, SweepOutcome},
};
use crate::{
    cluster::{
        changes::Changes,
        lease::Leadership,
        namespace::{Namespace, NamespaceSettings},
        namespaces::{Look, Namespaces, ReadError},
    },
    process::{clock::Clock, current::Current},
    pull_secret::{
        events::Events,
        store::PullSecrets,
        writer::{Fence, Writer},
    },
    rules::Policy,
    token::cache::TokenCache,
};

/// How long the work for one namespace may take, all its calls together.
pub const WORK_TIMEOUT: Duration = Duration::from_secs(10);

/// What the refresh works with.
pub struct ReconcilerContext {
    /// The opted-in namespaces.
    pub namespaces: Arc<dyn NamespaceSource>,
    /// What is known of their pull secrets.
    pub secrets: PullSecrets,
    /// Who writes them.
    pub writer: Writer,
    /// Where tokens come from.
    pub tokens: TokenCache,
    /// What the configuration says.
    pub policy: Current<Policy>,
    /// Tells of what the watches see.
    pub changes: Changes,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: Arc<RefreshMetrics>,
    /// Tells the namespaces' people, if anything is to.
    pub events: Option<Events>,
}

/// The namespaces of a cluster, or of a stand-in for one.
pub trait NamespaceSource: Send + Sync + 'static {
    /// Returns the opted-in namespaces that are known.
    fn names(&self) -> Vec<Namespace>;

    /// Returns what an opted-in namespace says, as far as the watch knows.
    fn settings(&self, namespace: &Namespace) -> Option<NamespaceSettings>;

    /// Asks the API server what has become of a namespace.
    fn ask<'a>(
        &'a self,
        namespace: &'a Namespace,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Look, ReadError>>;
}

impl NamespaceSource for Namespaces {
    fn names(&self) -> Vec<Namespace> {
        Namespaces::names(self)
    }

    fn settings(&self, namespace: &Namespace) -> Option<NamespaceSettings> {
        self.peek(namespace)
    }

    fn ask<'a>(
        &'a self,
        namespace: &'a Namespace,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Look, ReadError>> {
        Box::pin(self.look(namespace, deadline))
    }
}

impl Fence for Leadership {
    fn holds(&self) -> bool {
        Leadership::holds(self)
    }
}

/// Whoever has this listens to the changes.
struct Listening<'a>(&'a Changes);

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.ignore();
    }
}

impl Reconciler {
    /// Keeps everything fresh until the term is over, and what was under way then has ended. Both watches have to have
    /// brought what there is: a namespace that isn't known yet looks opted out.
    pub async fn lead(&self, term: Leadership) {
        let changes = self.changes();
        changes.listen();
        let _listening = Listening(changes);
        Controller::new(self.clone(), term).run().await;
    }
}
