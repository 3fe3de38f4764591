//! What the refresher works on: the namespaces, their pull secrets, and the few things that can be done to them.

use std::{collections::BTreeMap, sync::Arc};

use futures::future::BoxFuture;
use tokio::time::Instant;

use crate::{
    namespace::{
        Namespace, OptedIn,
        store::{Look, Namespaces, ReadError},
    },
    pull_secret::{
        Want,
        store::{Entry, PullSecrets},
        write::{EnsureError, Fence, Manner, Writer, Written},
    },
    registry::Host,
};

/// A cluster, or a stand-in for one.
pub trait Store: Send + Sync + 'static {
    /// Every namespace that is opted in or has a pull secret.
    fn names(&self) -> Vec<Namespace>;

    /// What an opted-in namespace says, as far as the watch knows.
    fn said(&self, namespace: &Namespace) -> Option<OptedIn>;

    /// What is known of a pull secret.
    fn secret(&self, namespace: &Namespace) -> Option<Arc<Entry>>;

    /// Forgets a namespace that is no more.
    fn forget(&self, namespace: &Namespace);

    /// Asks the API server what has become of a namespace.
    fn ask<'a>(
        &'a self,
        namespace: &'a Namespace,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Look, ReadError>>;

    /// Looks at a whole pull secret once.
    fn look<'a>(
        &'a self,
        namespace: &'a Namespace,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), EnsureError>>;

    /// Gives a pull secret what is wanted.
    fn write<'a>(
        &'a self,
        namespace: &'a Namespace,
        wanted: &'a BTreeMap<Host, Want>,
        manner: Manner<'a>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Written, EnsureError>>;

    /// Removes a pull secret.
    fn remove<'a>(
        &'a self,
        namespace: &'a Namespace,
        fence: &'a dyn Fence,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), EnsureError>>;
}

/// The cluster, through its watches and a writer.
pub struct Live {
    /// The namespaces.
    pub namespaces: Namespaces,
    /// Their pull secrets.
    pub secrets: PullSecrets,
    /// Who writes them.
    pub writer: Writer,
}

impl Store for Live {
    fn names(&self) -> Vec<Namespace> {
        let mut names = self.namespaces.names();
        names.extend(self.secrets.names());
        names.sort_unstable();
        names.dedup();
        names
    }

    fn said(&self, namespace: &Namespace) -> Option<OptedIn> {
        self.namespaces.peek(namespace)
    }

    fn secret(&self, namespace: &Namespace) -> Option<Arc<Entry>> {
        self.secrets.get(namespace)
    }

    fn forget(&self, namespace: &Namespace) {
        self.secrets.forget_namespace(namespace);
    }

    fn ask<'a>(
        &'a self,
        namespace: &'a Namespace,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Look, ReadError>> {
        Box::pin(self.namespaces.look(namespace, deadline))
    }

    fn look<'a>(
        &'a self,
        namespace: &'a Namespace,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), EnsureError>> {
        Box::pin(self.writer.look(namespace, deadline))
    }

    fn write<'a>(
        &'a self,
        namespace: &'a Namespace,
        wanted: &'a BTreeMap<Host, Want>,
        manner: Manner<'a>,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Written, EnsureError>> {
        Box::pin(self.writer.write(namespace, wanted, manner, deadline))
    }

    fn remove<'a>(
        &'a self,
        namespace: &'a Namespace,
        fence: &'a dyn Fence,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), EnsureError>> {
        Box::pin(self.writer.remove(namespace, fence, deadline))
    }
}
