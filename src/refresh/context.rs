//! The parts that a reconciler works with, and the source of its namespaces.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::{
    cluster::{
        changes::Changes,
        event_recorder::EventRecorder,
        lease::Leadership,
        namespace::{Namespace, NamespaceSettings},
        namespaces::{NamespaceState, Namespaces, ReadError},
    },
    process::{clock::Clock, current::Current},
    pull_secret::{
        store::PullSecrets,
        writer::{Fence, Writer},
    },
    token::{cache::TokenCache, rules::Policy},
};

/// The time in which one namespace is reconciled, all calls together.
pub const RECONCILE_TIMEOUT: Duration = Duration::from_secs(10);

/// The parts of a [`Reconciler`](super::Reconciler).
pub struct ReconcilerContext {
    /// The opted-in namespaces.
    pub namespaces: Arc<dyn NamespaceSource>,
    /// The pull secrets, as the watch saw them.
    pub secrets: PullSecrets,
    /// The writer of the pull secrets.
    pub writer: Writer,
    /// The cache that mints tokens.
    pub tokens: TokenCache,
    /// The configuration of the refresh.
    pub policy: Current<Policy>,
    /// The namespaces that the watches saw change.
    pub changes: Changes,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The metrics.
    pub metrics: Arc<super::metrics::RefreshMetrics>,
    /// The recorder of Events; `None`: no Events are published.
    pub events: Option<EventRecorder>,
}

/// The namespaces of a cluster, or of a test's stand-in for one.
pub trait NamespaceSource: Send + Sync + 'static {
    /// Returns the opted-in namespaces that are known.
    fn names(&self) -> Vec<Namespace>;

    /// Returns the settings of an opted-in namespace, as far as the watch knows.
    fn settings(&self, namespace: &Namespace) -> Option<NamespaceSettings>;

    /// Reads a namespace from the API server.
    fn read<'a>(
        &'a self,
        namespace: &'a Namespace,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<NamespaceState, ReadError>>;
}

impl NamespaceSource for Namespaces {
    fn names(&self) -> Vec<Namespace> {
        Namespaces::names(self)
    }

    fn settings(&self, namespace: &Namespace) -> Option<NamespaceSettings> {
        self.peek(namespace)
    }

    fn read<'a>(
        &'a self,
        namespace: &'a Namespace,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<NamespaceState, ReadError>> {
        Box::pin(self.read(namespace, deadline))
    }
}

impl Fence for Leadership {
    fn holds(&self) -> bool {
        Leadership::holds(self)
    }
}
