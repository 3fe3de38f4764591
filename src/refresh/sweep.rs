//! Sweeps the namespaces once and by hand: carries out the leader's plans without a loop and
//! without a retry.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use futures::future::join_all;
use jiff::Timestamp;
use tokio::{sync::Mutex as AsyncMutex, time::Instant};

use super::{
    context::RECONCILE_TIMEOUT,
    minter::is_new,
    plan::{Action, DesiredState, Plan},
    reconciler::{Facts, Reconciler},
};
use crate::{
    cluster::{lease::Leadership, namespace::Namespace},
    pull_secret::{
        Damage, DesiredCredential,
        writer::{PullSecretError, WriteOutcome},
    },
    registry::{Host, Service},
    token::{Token, TokenKey, cache::MintError},
};

/// The most plans that are carried out for one namespace: a read, a write, and repeats after other
/// writers' changes.
const MAX_PASSES: usize = 6;

/// The options of one sweep, and the tokens that failed in it.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Whether credentials that are not due yet are renewed too.
    pub renews_all: bool,
    /// Whether hosts that the rules no longer allow are removed, with credentials that are still
    /// good.
    pub prunes: bool,
    /// The tokens that could not be minted: one try is enough for all namespaces.
    failed: Mutex<HashMap<TokenKey, MintError>>,
    /// Locks of the tokens: one namespace at a time finds or mints each.
    turns: Mutex<HashMap<TokenKey, Arc<AsyncMutex<()>>>>,
}

/// The outcome of one sweep for a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SweepOutcome {
    /// Whether the pull secret was written or deleted.
    pub written: bool,
    /// The error, if there was one.
    pub error: Option<String>,
    /// The plan for what is left to be done, now or later.
    pub plan: Option<Plan>,
}

impl Sweep {
    /// Returns a sweep with these options.
    #[must_use]
    pub fn new(renews_all: bool, prunes: bool) -> Self {
        Self {
            renews_all,
            prunes,
            ..Self::default()
        }
    }

    /// Widens a plan by the options of the sweep: to all credentials, and to the removal of hosts
    /// that are not allowed.
    fn widen(&self, mut plan: Plan, is_renewed: bool, now: Timestamp) -> Plan {
        if let Action::Write(desired) = &mut plan.action {
            if self.renews_all && !is_renewed {
                desired.due = desired.keys.keys().cloned().collect();
                plan.at = now;
            }
            if self.prunes && !desired.suspended.is_empty() {
                desired.forgotten.extend(desired.suspended.keys().cloned());
                desired.revoked.extend(desired.suspended.keys().cloned());
                desired.must_write = true;
                plan.at = now;
            }
        }
        plan
    }
}

impl Reconciler {
    /// Reconciles one namespace, as far as that is possible now. No call is begun after the end of
    /// the term.
    pub async fn reconcile_once(
        &self,
        namespace: &Namespace,
        sweep: &Sweep,
        term: &Leadership,
    ) -> SweepOutcome {
        let mut swept = SweepOutcome::default();
        let deadline = Instant::now() + RECONCILE_TIMEOUT;
        for _ in 0..MAX_PASSES {
            let now = self.context().clock.now();
            let facts = self.facts(namespace);
            let policy = self.context().policy.get();
            let planned = facts
                .plan(namespace, &policy, now)
                .map(|plan| sweep.widen(plan, swept.written, now));
            swept.plan.clone_from(&planned);
            let Some(planned) = planned.filter(|plan| plan.at <= now) else {
                return swept;
            };
            if !term.holds() {
                return swept;
            }
            let limit = policy.rules.registries_per_secret;
            let within = (term, deadline);
            let done = match planned.action {
                Action::Read => self.read(namespace, &facts, deadline).await.map(|()| false),
                Action::Delete => {
                    let deleted = self.delete(namespace, term, deadline).await;
                    deleted.inspect(|is_gone| swept.written |= is_gone)
                }
                Action::Write(desired) => {
                    let (credentials, failed) = sweep.tokens(self, &desired, &facts, now).await;
                    if let Some(error) = &failed {
                        swept.error = Some(error.to_string());
                    }
                    if !improves(&desired, &credentials) {
                        return swept;
                    }
                    let written = self
                        .write(namespace, &facts, &desired, &credentials, limit, within)
                        .await;
                    written.map(|outcome| match outcome {
                        WriteOutcome::Written(_) => {
                            swept.written = true;
                            failed.is_some()
                        }
                        WriteOutcome::Unchanged => true,
                        WriteOutcome::Moved => false,
                    })
                }
            };
            match done {
                Ok(false) => {}
                Ok(true) => return self.with_plan(namespace, swept),
                Err(error) => {
                    swept.error = Some(error.to_string());
                    return swept;
                }
            }
        }
        self.with_plan(namespace, swept)
    }

    /// Returns the first plan of a sweep for a namespace, after a read of what isn't known. Nothing
    /// is written.
    pub async fn preview(
        &self,
        namespace: &Namespace,
        sweep: &Sweep,
    ) -> Result<Option<Plan>, PullSecretError> {
        let deadline = Instant::now() + RECONCILE_TIMEOUT;
        let is_unread = |facts: &Facts| {
            let entry = facts.entry.as_ref();
            facts.settings.is_some() && entry.is_some_and(|entry| entry.is_unread())
        };
        let facts = self.facts(namespace);
        let facts = if is_unread(&facts) {
            self.read(namespace, &facts, deadline).await?;
            self.facts(namespace)
        } else {
            facts
        };
        let now = self.context().clock.now();
        let plan = facts.plan(namespace, &self.context().policy.get(), now);
        Ok(plan.map(|plan| sweep.widen(plan, false, now)))
    }

    /// Adds the plan for what is left to be done by what is known now.
    fn with_plan(&self, namespace: &Namespace, swept: SweepOutcome) -> SweepOutcome {
        let (now, facts) = (self.context().clock.now(), self.facts(namespace));
        let plan = facts.plan(namespace, &self.context().policy.get(), now);
        SweepOutcome { plan, ..swept }
    }
}

impl Sweep {
    /// Returns the credentials for a write, and the error of the first that is missing.
    async fn tokens(
        &self,
        reconciler: &Reconciler,
        desired: &DesiredState,
        facts: &Facts,
        now: Timestamp,
    ) -> (BTreeMap<Host, DesiredCredential>, Option<MintError>) {
        let tokens = desired.keys.iter().map(|(host, key)| async move {
            let token = if desired.due.contains(host) {
                self.token(reconciler, key, now).await
            } else {
                Ok(reconciler.context().tokens.usable(key).await)
            };
            (host, key, token)
        });
        let mut failed = None;
        let mut credentials = BTreeMap::new();
        for (host, key, token) in join_all(tokens).await {
            let state = facts.state();
            let is_good =
                || state.is_some_and(|it| it.freshness(host, now) < crate::token::Freshness::Due);
            let token = token.unwrap_or_else(|error| {
                if key.endpoint.service == Service::Private && !is_good() {
                    failed.get_or_insert(error);
                }
                None
            });
            let identity = key.identity.hash();
            credentials.insert(host.clone(), DesiredCredential { identity, token });
        }
        (credentials, failed)
    }

    /// Returns a token that is new, in turn with the other namespaces that want it: whoever finds
    /// none while another's call ends would call again.
    async fn token(
        &self,
        reconciler: &Reconciler,
        key: &TokenKey,
        now: Timestamp,
    ) -> Result<Option<Arc<Token>>, MintError> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.entry(key.clone()).or_default().clone()
        };
        let _turn = turn.lock().await;
        let tokens = &reconciler.context().tokens;
        let usable = tokens.usable(key).await;
        if let Some(token) = usable.as_ref().filter(|token| is_new(token, now)) {
            return Ok(Some(token.clone()));
        }
        let failed = || self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = failed().get(key) {
            return usable.map(Some).ok_or_else(|| error.clone());
        }
        match tokens.renew(key).await {
            Ok(token) => Ok(Some(token)),
            Err(error) => {
                failed().insert(key.clone(), error.clone());
                usable.map(Some).ok_or(error)
            }
        }
    }
}

/// Returns whether a write improves the pull secret: what somebody changed may still open
/// registries, and a pull secret without any token opens none.
fn improves(desired: &DesiredState, credentials: &BTreeMap<Host, DesiredCredential>) -> bool {
    let has_any = credentials.values().any(|it| it.token.is_some());
    let due = || desired.due.iter().filter_map(|host| credentials.get(host));
    let has_new = due().any(|it| it.token.is_some());
    has_new || desired.must_write && (desired.repairs != Some(Damage::Changed) || has_any)
}
