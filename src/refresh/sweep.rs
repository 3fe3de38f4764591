//! One sweep by hand: the leader's plans, each done once, without a loop and without a second try.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use futures::future::join_all;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{
    WORK_TIMEOUT,
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

/// Plans that are done for one namespace one after another: a read, a write, and what another writer makes of it.
const MAX_PASSES: usize = 6;

/// What one sweep does to the namespaces.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Also what isn't due yet is renewed.
    pub renews_all: bool,
    /// Hosts that the rules no longer allow are taken out, with credentials that are still good.
    pub prunes: bool,
    /// Tokens that couldn't be had: one try is enough for all namespaces.
    failed: Mutex<HashMap<TokenKey, MintError>>,
}

/// What one sweep did for a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SweepOutcome {
    /// Whether its pull secret was written or deleted.
    pub written: bool,
    /// What went wrong, if anything did.
    pub error: Option<String>,
    /// What is left to be done, now or later.
    pub plan: Option<Plan>,
}

impl Sweep {
    /// A sweep.
    #[must_use]
    pub fn new(renews_all: bool, prunes: bool) -> Self {
        Self {
            renews_all,
            prunes,
            ..Self::default()
        }
    }

    /// Turns a plan into this sweep's: all credentials instead of those that are due, and nothing that isn't allowed.
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
    /// Brings one namespace up to date, as far as that goes now. Once the term is over nothing more is begun.
    pub async fn bring_up_to_date(
        &self,
        namespace: &Namespace,
        sweep: &Sweep,
        term: &Leadership,
    ) -> SweepOutcome {
        let mut swept = SweepOutcome::default();
        let deadline = Instant::now() + WORK_TIMEOUT;
        for _ in 0..MAX_PASSES {
            let now = self.parts().clock.now();
            let facts = self.facts(namespace);
            let policy = self.parts().policy.get();
            let planned = Self::plan(namespace, &facts, &policy, now)
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
                Action::Look => self.look(namespace, &facts, deadline).await.map(|()| false),
                Action::Remove => {
                    let removed = self.remove(namespace, term, deadline).await;
                    removed.inspect(|is_gone| swept.written |= is_gone)
                }
                Action::Write(desired) => {
                    let (wanted, failed) = sweep.tokens(self, &desired, &facts, now).await;
                    if let Some(error) = &failed {
                        swept.error = Some(error.to_string());
                    }
                    if !is_worth_it(&desired, &wanted) {
                        return swept;
                    }
                    let written = self
                        .write(namespace, &facts, &desired, &wanted, limit, within)
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
                Ok(true) => return self.planned(namespace, swept),
                Err(error) => {
                    swept.error = Some(error.to_string());
                    return swept;
                }
            }
        }
        self.planned(namespace, swept)
    }

    /// Returns what a sweep would do for a namespace first, after reading what isn't known. Nothing is written.
    pub async fn preview(
        &self,
        namespace: &Namespace,
        sweep: &Sweep,
    ) -> Result<Option<Plan>, PullSecretError> {
        let deadline = Instant::now() + WORK_TIMEOUT;
        let is_unread = |facts: &Facts| {
            let entry = facts.entry.as_ref();
            facts.settings.is_some() && entry.is_some_and(|entry| entry.is_unread())
        };
        let facts = self.facts(namespace);
        let facts = if is_unread(&facts) {
            self.look(namespace, &facts, deadline).await?;
            self.facts(namespace)
        } else {
            facts
        };
        let now = self.parts().clock.now();
        let plan = Self::plan(namespace, &facts, &self.parts().policy.get(), now);
        Ok(plan.map(|plan| sweep.widen(plan, false, now)))
    }

    /// The same with what is left to be done by what is known now.
    fn planned(&self, namespace: &Namespace, swept: SweepOutcome) -> SweepOutcome {
        let (now, facts) = (self.parts().clock.now(), self.facts(namespace));
        let plan = Self::plan(namespace, &facts, &self.parts().policy.get(), now);
        SweepOutcome { plan, ..swept }
    }
}

impl Sweep {
    /// Returns the tokens for a write, and why the first that is missing is.
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
                Ok(reconciler.parts().tokens.usable(key).await)
            };
            (host, key, token)
        });
        let mut failed = None;
        let mut wanted = BTreeMap::new();
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
            wanted.insert(host.clone(), DesiredCredential { identity, token });
        }
        (wanted, failed)
    }

    async fn token(
        &self,
        reconciler: &Reconciler,
        key: &TokenKey,
        now: Timestamp,
    ) -> Result<Option<Arc<Token>>, MintError> {
        let tokens = &reconciler.parts().tokens;
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

/// Returns whether a write makes anything better: what somebody changed may still open registries, and nothing at all opens
/// none.
fn is_worth_it(desired: &DesiredState, wanted: &BTreeMap<Host, DesiredCredential>) -> bool {
    let has_any = wanted.values().any(|it| it.token.is_some());
    let due = || desired.due.iter().filter_map(|host| wanted.get(host));
    let has_news = due().any(|it| it.token.is_some());
    has_news || desired.must_write && (desired.repairs != Some(Damage::Changed) || has_any)
}
