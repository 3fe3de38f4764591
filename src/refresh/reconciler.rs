//! Reconciles one namespace: reads the facts, gathers the tokens, and makes the planned call.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    context::ReconcilerContext,
    mint_queue::Overdue,
    minter::is_new,
    plan::{ActionKind, DesiredState, Plan, Priority, due_since, plan},
};
use crate::{
    cluster::{
        changes::Changes,
        lease::Leadership,
        namespace::{Namespace, NamespaceSettings},
        namespaces::NamespaceState,
    },
    pull_secret::{
        Damage, DesiredCredential, Existing, Observed,
        state::State,
        store::Entry,
        writer::{Planned, PullSecretError, WriteOutcome},
    },
    registry::{Host, Service},
    token::{TokenKey, rules::Policy},
};

/// Reconciles one namespace at a time; clones share the context.
#[derive(Clone)]
pub struct Reconciler(Arc<ReconcilerContext>);

/// A namespace and its pull secret, as known at one moment: a plan and its call use the same facts.
pub(super) struct Facts {
    pub(super) settings: Option<NamespaceSettings>,
    pub(super) entry: Option<Arc<Entry>>,
}

/// The tokens for one write, as far as they are in memory.
pub(super) struct GatheredTokens {
    /// The credential of each host.
    pub(super) credentials: BTreeMap<Host, DesiredCredential>,
    /// The tokens that are due and not in memory.
    pub(super) missing: BTreeSet<TokenKey>,
    /// Since when the credentials of the missing tokens are overdue.
    pub(super) overdue: Overdue,
    /// Whether a write without the missing tokens makes the pull secret better.
    pub(super) improves: bool,
    /// Whether a host that has no good credential gets one: an older token now is better than a new
    /// one later.
    pub(super) is_urgent: bool,
}

/// A planned call to the API server.
pub(super) enum Call {
    /// Read the whole pull secret.
    Read,
    /// Write the pull secret: the desired state, its priority, the credentials, and the most hosts
    /// that it may have.
    Write(
        Box<DesiredState>,
        Priority,
        BTreeMap<Host, DesiredCredential>,
        usize,
    ),
    /// Delete the pull secret.
    Delete,
}

/// The outcome of a call.
pub(super) enum CallOutcome {
    Read,
    Wrote(Box<DesiredState>, Priority, WriteOutcome),
    /// With whether the pull secret is gone.
    Deleted(bool),
    Failed(PullSecretError),
}

impl CallOutcome {
    /// Returns the kind of a call that succeeded, and how many hosts it wrote of those that were
    /// due.
    pub(super) fn succeeded(&self) -> Option<(ActionKind, usize)> {
        match self {
            Self::Read => Some((ActionKind::Read, 0)),
            Self::Deleted(_) => Some((ActionKind::Delete, 0)),
            Self::Wrote(desired, _, WriteOutcome::Written(_)) => {
                Some((ActionKind::Write, desired.due.len()))
            }
            Self::Wrote(_, _, WriteOutcome::Unchanged) => Some((ActionKind::Write, 0)),
            // Another writer was first: the namespace is planned by that writer's version.
            Self::Wrote(_, _, WriteOutcome::Moved) | Self::Failed(_) => None,
        }
    }
}

impl Facts {
    /// Returns what is known of the pull secret.
    pub(super) fn observed(&self) -> Option<&Observed> {
        self.entry.as_deref().map(Entry::observed)
    }

    /// Returns the state of the pull secret, as far as it is proven.
    pub(super) fn state(&self) -> Option<&State> {
        self.observed().and_then(Observed::proven)
    }

    /// Plans what is to be done by these facts.
    pub(super) fn plan(
        &self,
        namespace: &Namespace,
        policy: &Policy,
        now: Timestamp,
    ) -> Option<Plan> {
        let settings = self.settings.as_ref();
        plan(namespace, settings, self.observed(), policy, now)
    }
}

impl Reconciler {
    /// Returns a reconciler that works with this context.
    #[must_use]
    pub fn new(context: ReconcilerContext) -> Self {
        Self(Arc::new(context))
    }

    pub(super) fn context(&self) -> &ReconcilerContext {
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

    /// Gathers the tokens for a write that are in memory. Mints none.
    pub(super) async fn gather_tokens(
        &self,
        namespace: &Namespace,
        facts: &Facts,
        desired: &DesiredState,
        now: Timestamp,
    ) -> GatheredTokens {
        let state = facts.state();
        let mut gathered = GatheredTokens {
            credentials: BTreeMap::new(),
            missing: BTreeSet::new(),
            overdue: Overdue::default(),
            improves: desired.must_write,
            is_urgent: false,
        };
        for (host, key) in &desired.keys {
            let token = self.0.tokens.usable(key).await;
            let identity = key.identity.hash();
            if desired.due.contains(host) {
                let entry = state.and_then(|state| state.hosts.get(host));
                if !token.as_ref().is_some_and(|token| is_new(token, now)) {
                    gathered.missing.insert(key.clone());
                    match entry.and_then(|entry| due_since(entry, namespace, now)) {
                        Some(since) => gathered.overdue.add_renewal(since),
                        None => gathered
                            .overdue
                            .add_first(entry.map_or(now, |entry| entry.demand.since)),
                    }
                }
                let good = entry.and_then(|entry| entry.good(now));
                let same = good.filter(|existing| existing.identity == identity);
                gathered.improves |= token.as_ref().is_some_and(|token| {
                    let expires_at = token.lifetime().expires_at;
                    same.is_none_or(|existing| existing.lifetime.expires_at < expires_at)
                });
                gathered.is_urgent |= token.is_some() && good.is_none();
            }
            let credential = DesiredCredential { identity, token };
            gathered.credentials.insert(host.clone(), credential);
        }
        // What somebody changed may still open registries, and a pull secret without any token
        // opens none but the public ones.
        let has_any = gathered.credentials.values().any(|it| it.token.is_some());
        let mut missing = gathered.missing.iter();
        let may_open = missing.any(|key| key.endpoint.service == Service::Private);
        gathered.improves &= desired.repairs != Some(Damage::Changed) || has_any || !may_open;
        gathered
    }

    /// Makes a planned call.
    pub(super) async fn execute(
        &self,
        namespace: &Namespace,
        facts: &Facts,
        call: Call,
        (fence, deadline): (&Leadership, Instant),
    ) -> CallOutcome {
        let outcome = match call {
            Call::Read => {
                let read = self.read(namespace, facts, deadline).await;
                read.map(|()| CallOutcome::Read)
            }
            Call::Delete => {
                let deleted = self.delete(namespace, fence, deadline).await;
                deleted.map(CallOutcome::Deleted)
            }
            Call::Write(desired, priority, credentials, limit) => {
                let within = (fence, deadline);
                let written = self
                    .write(namespace, facts, &desired, &credentials, limit, within)
                    .await;
                written.map(|outcome| CallOutcome::Wrote(desired, priority, outcome))
            }
        };
        outcome.unwrap_or_else(CallOutcome::Failed)
    }

    /// Reads the whole pull secret.
    pub(super) async fn read(
        &self,
        namespace: &Namespace,
        facts: &Facts,
        deadline: Instant,
    ) -> Result<(), PullSecretError> {
        let Some(settings) = &facts.settings else {
            return Ok(());
        };
        self.0.writer.observe(namespace, settings, deadline).await
    }

    /// Brings the pull secret to the desired state, with the credentials that there are.
    pub(super) async fn write(
        &self,
        namespace: &Namespace,
        facts: &Facts,
        desired: &DesiredState,
        credentials: &BTreeMap<Host, DesiredCredential>,
        limit: usize,
        (fence, deadline): (&Leadership, Instant),
    ) -> Result<WriteOutcome, PullSecretError> {
        let Some(settings) = &facts.settings else {
            return Ok(WriteOutcome::Unchanged);
        };
        let planned = Planned {
            basis: facts.entry.as_deref(),
            wanted: credentials,
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

    /// Deletes the pull secret of a namespace that is no longer opted in according to the API
    /// server, once all its credentials have expired. Returns whether the pull secret is gone.
    pub(super) async fn delete(
        &self,
        namespace: &Namespace,
        fence: &Leadership,
        deadline: Instant,
    ) -> Result<bool, PullSecretError> {
        let read = self.0.namespaces.read(namespace, deadline).await;
        let read = read.map_err(|error| PullSecretError::Api {
            verb: "delete",
            message: format!("reading the namespace failed: {error}"),
        })?;
        match read {
            // The watch will report that too.
            NamespaceState::OptedIn(_) => Ok(false),
            NamespaceState::Absent => {
                self.0.secrets.forget_namespace(namespace);
                Ok(true)
            }
            NamespaceState::OptedOut(_) => {
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
