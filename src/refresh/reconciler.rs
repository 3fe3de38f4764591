//! Does what is planned for one namespace, by one call to the API server.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    ReconcilerContext,
    plan::{DesiredState, Plan, plan},
};
use crate::{
    cluster::{
        changes::Changes,
        lease::Leadership,
        namespace::{Namespace, NamespaceSettings},
        namespaces::Look,
    },
    pull_secret::{
        DesiredCredential, Existing, Observed,
        state::State,
        store::Entry,
        writer::{Planned, PullSecretError, WriteOutcome},
    },
    registry::Host,
    rules::Policy,
};

/// Reconciles one namespace at a time; clones share the parts.
#[derive(Clone)]
pub struct Reconciler(Arc<ReconcilerContext>);

/// What is known of a namespace at one moment: a plan and its write go by the same.
pub(super) struct Facts {
    pub(super) settings: Option<NamespaceSettings>,
    pub(super) entry: Option<Arc<Entry>>,
}

impl Facts {
    /// Returns what is known of the pull secret.
    pub(super) fn observed(&self) -> Option<&Observed> {
        self.entry.as_deref().map(Entry::observed)
    }

    /// Returns the state that the pull secret has, as far as it is proven.
    pub(super) fn state(&self) -> Option<&State> {
        self.observed().and_then(Observed::proven)
    }
}

impl Reconciler {
    /// Makes one of its parts.
    #[must_use]
    pub fn new(parts: ReconcilerContext) -> Self {
        Self(Arc::new(parts))
    }

    pub(super) fn parts(&self) -> &ReconcilerContext {
        &self.0
    }

    pub(super) fn changes(&self) -> &Changes {
        &self.0.changes
    }

    /// Returns every namespace that is opted in or has a pull secret.
    #[must_use]
    pub fn names(&self) -> Vec<Namespace> {
        let mut names = self.0.namespaces.names();
        names.extend(self.0.secrets.names());
        names.sort_unstable();
        names.dedup();
        names
    }

    pub(super) fn facts(&self, namespace: &Namespace) -> Facts {
        Facts {
            settings: self.0.namespaces.settings(namespace),
            entry: self.0.secrets.get(namespace),
        }
    }

    pub(super) fn plan(
        namespace: &Namespace,
        facts: &Facts,
        policy: &Policy,
        now: Timestamp,
    ) -> Option<Plan> {
        let settings = facts.settings.as_ref();
        plan(namespace, settings, facts.observed(), policy, now)
    }

    /// Reads the whole pull secret.
    pub(super) async fn look(
        &self,
        namespace: &Namespace,
        facts: &Facts,
        deadline: Instant,
    ) -> Result<(), PullSecretError> {
        let Some(settings) = &facts.settings else {
            return Ok(());
        };
        self.0.writer.look(namespace, settings, deadline).await
    }

    /// Brings the pull secret to what is planned, with the tokens that there are.
    pub(super) async fn write(
        &self,
        namespace: &Namespace,
        facts: &Facts,
        desired: &DesiredState,
        wanted: &BTreeMap<Host, DesiredCredential>,
        limit: usize,
        (fence, deadline): (&Leadership, Instant),
    ) -> Result<WriteOutcome, PullSecretError> {
        let Some(settings) = &facts.settings else {
            return Ok(WriteOutcome::Unchanged);
        };
        let planned = Planned {
            basis: facts.entry.as_deref(),
            wanted,
            forgotten: &desired.forgotten,
            revoked: &desired.revoked,
            remembered: desired.remembered.as_ref(),
            limit,
            fence,
        };
        let writer = &self.0.writer;
        writer
            .reconcile(namespace, settings, planned, deadline)
            .await
    }

    /// Deletes the pull secret of a namespace that the API server says is opted in no more, once all its credentials have
    /// expired. Returns whether it is gone.
    pub(super) async fn remove(
        &self,
        namespace: &Namespace,
        fence: &Leadership,
        deadline: Instant,
    ) -> Result<bool, PullSecretError> {
        let asked = self.0.namespaces.ask(namespace, deadline).await;
        let asked = asked.map_err(|error| PullSecretError::Api {
            verb: "delete",
            message: format!("reading the namespace failed: {error}"),
        })?;
        match asked {
            // The watch will say so too.
            Look::OptedIn(_) => Ok(false),
            Look::Absent => {
                self.0.secrets.forget_namespace(namespace);
                Ok(true)
            }
            Look::OptedOut(_) => {
                let now = self.0.clock.now();
                let is_wanted = |existing: &Existing| {
                    let claims = existing.claims.as_ref();
                    claims.is_some_and(|state| !state.has_expired(now))
                };
                let writer = &self.0.writer;
                writer.remove(namespace, is_wanted, fence, deadline).await
            }
        }
    }
}
