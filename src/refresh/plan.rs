//! Plans what is to be done for the pull secret of one namespace, and when. Pure: the time is an
//! argument.
//!
//! The plan follows from the namespace's settings, what is known of the pull secret, and the
//! configuration, so a leader that dies loses nothing. Only opted-in namespaces are written to.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use crate::{
    cluster::namespace::{Namespace, NamespaceSettings},
    process::backoff::spread,
    pull_secret::{
        Damage, Observed, Unverified, is_public,
        state::{Demand, HostState, State},
    },
    registry::Host,
    token::{
        Freshness, Lifetime, MAX_LIFE, MIN_LEFT, TokenKey,
        rules::{Policy, Revocation, Suspension},
    },
};

/// A credential is due once this share of its life is gone, in millionths: when the token cache
/// mints a new one.
const DUE_FROM: u64 = 250_000;
/// Credentials that have used so much of their life, in per cent, are renewed together with those
/// that are due: hosts whose tokens were minted seconds apart would otherwise cost a write each.
pub const TOGETHER_FROM_PERCENT: i64 = 24;
/// Due times are spread over so many millionths after that, so that ten thousand writes don't fall
/// into one moment.
const SPREAD: u64 = 50_000;
/// A public entry counts as expired once less than [`MIN_LEFT`] is left; it is planned so much
/// after that moment.
const DROP_AFTER: SignedDuration = SignedDuration::from_secs(1);

/// The urgency of a plan: the lower sorts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A Pod waits for a credential that could not be minted.
    Pending,
    /// Somebody changed something.
    Changed,
    /// A credential is to be renewed.
    Due,
    /// Something is to be read, without a sign that it is wrong.
    Check,
}

impl Priority {
    /// The number of priorities.
    pub const COUNT: usize = 4;
}

/// The plan for a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The urgency.
    pub priority: Priority,
    /// The time before which nothing is to be done.
    pub at: Timestamp,
    /// When the first good credential of the namespace ends; `None` if none is proven.
    pub ends: Option<Timestamp>,
    /// The action.
    pub action: Action,
}

/// An action on the pull secret of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Read the pull secret: less is known of it than a write needs.
    Read,
    /// Bring the pull secret to this state.
    Write(Box<DesiredState>),
    /// Delete the pull secret of a namespace that is no longer opted in, after asking the API
    /// server whether that is so.
    Delete,
}

/// The kind of an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActionKind {
    /// Of [`Action::Read`].
    Read,
    /// Of [`Action::Write`].
    Write,
    /// Of [`Action::Delete`].
    Delete,
}

/// The desired state of a pull secret.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DesiredState {
    /// The hosts that are to have a credential, and the token of each.
    pub keys: BTreeMap<Host, TokenKey>,
    /// The hosts whose credentials are due.
    pub due: BTreeSet<Host>,
    /// The hosts that no Pod has wanted for long and that have no credential left.
    pub forgotten: BTreeSet<Host>,
    /// The hosts that the rules no longer allow, and why.
    pub suspended: BTreeMap<Host, Suspension>,
    /// The hosts whose credential is to be taken out at once.
    pub revoked: BTreeSet<Host>,
    /// The state before the pull secret was deleted or changed, with what it claims.
    pub remembered: Option<State>,
    /// Whether there is something to write even if no token is new.
    pub must_write: bool,
    /// The damage that the write repairs, if any.
    pub repairs: Option<Damage>,
    /// Whether time alone made the write due, without a change or an admission.
    pub is_by_time: bool,
}

impl Plan {
    /// Returns whether time alone explains the plan.
    #[must_use]
    pub fn is_by_time(&self) -> bool {
        match &self.action {
            Action::Read => self.priority == Priority::Check,
            Action::Write(desired) => desired.is_by_time,
            Action::Delete => true,
        }
    }
}

impl Action {
    /// Returns the kind of the action.
    #[must_use]
    pub fn kind(&self) -> ActionKind {
        match self {
            Self::Read => ActionKind::Read,
            Self::Write(_) => ActionKind::Write,
            Self::Delete => ActionKind::Delete,
        }
    }

    /// Returns how many hosts a write renews of those that are due.
    #[must_use]
    pub fn due_hosts(&self) -> usize {
        match self {
            Self::Write(desired) => desired.due.len(),
            Self::Read | Self::Delete => 0,
        }
    }
}

/// Plans what is to be done for a namespace, given its settings (if it is opted in) and what is
/// known of its pull secret. `None`: nothing, until something changes.
#[must_use]
pub fn plan(
    namespace: &Namespace,
    settings: Option<&NamespaceSettings>,
    observed: Option<&Observed>,
    policy: &Policy,
    now: Timestamp,
) -> Option<Plan> {
    if policy.rules.excluded.contains(namespace) {
        return None;
    }
    let Some(settings) = settings else {
        return plan_deletion(observed?, policy, now);
    };
    if settings.is_terminating {
        return None;
    }
    let planner = Planner {
        namespace,
        settings,
        policy,
        now,
    };
    match observed {
        None => planner.creation(None),
        Some(Observed::Deleted(state)) => planner.creation(state.as_ref()),
        Some(Observed::Foreign(_)) => None,
        Some(Observed::Managed(state)) => Some(planner.renewal(state)),
        Some(Observed::Unverified {
            since: Unverified::Tampered,
            claims,
            before,
            is_proven,
        }) => Some(planner.repair(claims.as_ref(), *is_proven, before.as_deref())),
        Some(Observed::Unverified {
            since: Unverified::Listed,
            claims: Some(state),
            is_proven: true,
            before,
        }) if !is_reverted(state, before.as_deref()) => {
            // A renewal that is due doesn't wait for a read: a write reads the Secret anyway.
            let renewal = planner.renewal(state);
            Some(if renewal.at <= now {
                renewal
            } else {
                planner.read(Priority::Check)
            })
        }
        Some(Observed::Unverified {
            since: Unverified::Listed,
            ..
        }) => Some(planner.read(Priority::Check)),
        Some(Observed::Unverified { .. }) => Some(planner.read(Priority::Changed)),
    }
}

/// Returns whether a newer state than this is known: the cluster was restored from a backup.
fn is_reverted(state: &State, before: Option<&State>) -> bool {
    before.is_some_and(|before| before.revision > state.revision)
}

/// Plans the deletion of a pull secret whose namespace is not opted in as far as is known. Anybody
/// may have written its dates: they decide only when the pull secret is deleted, and none may be
/// later than a token can live.
fn plan_deletion(observed: &Observed, policy: &Policy, now: Timestamp) -> Option<Plan> {
    let claims = observed.claims().filter(|_| policy.removes)?;
    let latest = now.checked_add(MAX_LIFE).unwrap_or(now);
    // Dates that can't be true count as expired: they would postpone the deletion again and again.
    let end = claims
        .hosts
        .iter()
        .filter_map(|(_, entry)| entry.credential)
        .filter(|credential| !credential.lifetime.is_expired(now))
        .map(|credential| credential.lifetime.expires_at.min(latest))
        .max();
    Some(Plan {
        priority: Priority::Check,
        at: end.unwrap_or(now).max(now),
        ends: None,
        action: Action::Delete,
    })
}

/// The arguments of every plan of one namespace.
struct Planner<'a> {
    namespace: &'a Namespace,
    settings: &'a NamespaceSettings,
    policy: &'a Policy,
    now: Timestamp,
}

impl Planner<'_> {
    fn read(&self, priority: Priority) -> Plan {
        Plan {
            priority,
            at: self.now,
            ends: None,
            action: Action::Read,
        }
    }

    fn changed(&self, desired: DesiredState) -> Plan {
        Plan {
            priority: Priority::Changed,
            at: self.now,
            ends: None,
            action: Action::Write(Box::new(desired)),
        }
    }

    /// Plans the creation of a pull secret: with the hosts that it had, and those of `prewarm`.
    fn creation(&self, lost: Option<&State>) -> Option<Plan> {
        let mut desired = self.desired(lost);
        if desired.keys.is_empty() {
            return None;
        }
        desired.due = desired.keys.keys().cloned().collect();
        desired.must_write = true;
        desired.is_by_time = false;
        if let Some(lost) = lost {
            desired.repairs = Some(Damage::Deleted);
            desired.remembered = Some(lost.clone());
        }
        Some(self.changed(desired))
    }

    /// Plans the repair of a pull secret that somebody else wrote: hosts that are known to be true
    /// stay wanted, and hosts that the pull secret merely claims are requests, within the rules and
    /// the limit.
    fn repair(&self, claims: Option<&State>, is_proven: bool, before: Option<&State>) -> Plan {
        let mut known = before.cloned().unwrap_or_default();
        for (host, entry) in claims.iter().flat_map(|state| state.hosts.iter()) {
            let demand = match known.hosts.get(host) {
                Some(known) if is_proven => known.demand.union(entry.demand),
                Some(known) => known.demand,
                None if is_proven => entry.demand,
                None => {
                    let has_room = known.hosts.len() < self.policy.rules.registries_per_secret;
                    let is_allowed = || self.key(host).is_ok();
                    if !(has_room && is_allowed()) {
                        continue;
                    }
                    Demand::new(self.now)
                }
            };
            // A proven claim is an older state that somebody restored: its credentials are true.
            let credential = entry.credential.filter(|_| is_proven);
            known
                .hosts
                .insert(host.clone(), HostState { demand, credential });
        }
        let mut desired = self.desired(Some(&known));
        desired.due = desired.keys.keys().cloned().collect();
        desired.must_write = true;
        desired.is_by_time = false;
        desired.repairs = Some(Damage::Changed);
        desired.remembered = Some(known);
        self.changed(desired)
    }

    /// Plans the next renewal of a pull secret with this state.
    fn renewal(&self, state: &State) -> Plan {
        let desired = self.desired(Some(state));
        let share = share(self.namespace);
        let mut priority = Priority::Due;
        let (mut at, mut ends) = (Timestamp::MAX, None::<Timestamp>);
        for (host, entry) in state.hosts.iter() {
            let good = entry.good(self.now);
            let end = good.map(|good| good.lifetime.expires_at);
            let Some(key) = desired.keys.get(host) else {
                // Kept until it ends, and forgotten once no Pod has wanted the host for long.
                let unwanted = self.policy.forgotten_at(host, entry.demand.last);
                let gone = unwanted.map(|at| end.map_or(at, |end| end.max(at)));
                at = at.min(gone.unwrap_or(Timestamp::MAX));
                let over = end.filter(|_| is_public(host)).map(dropped_at);
                at = at.min(over.unwrap_or(Timestamp::MAX));
                continue;
            };
            ends = ends.into_iter().chain(end).min();
            match entry.credential {
                Some(existing) if existing.identity == key.identity.hash() => {
                    at = at.min(due_by(&existing.lifetime, share, self.now));
                }
                Some(_) => {
                    at = at.min(self.now);
                    priority = priority.min(Priority::Changed);
                }
                // Images of the public gallery pull without a credential.
                None if is_public(host) => at = at.min(self.now),
                None => {
                    at = at.min(self.now);
                    priority = Priority::Pending;
                }
            }
        }
        if desired.must_write {
            at = at.min(self.now);
        }
        Plan {
            priority,
            at,
            ends,
            action: Action::Write(Box::new(desired)),
        }
    }

    fn key(&self, host: &Host) -> Result<TokenKey, Suspension> {
        let rules = &self.policy.rules;
        let found = rules.key_or_reason(host.as_str(), self.namespace, self.settings);
        found.map(|(_, key)| key)
    }

    /// Returns the desired state of a pull secret with this state.
    fn desired(&self, state: Option<&State>) -> DesiredState {
        let mut desired = DesiredState {
            is_by_time: true,
            ..DesiredState::default()
        };
        for (host, entry) in state.iter().flat_map(|state| state.hosts.iter()) {
            let forgotten_at = self.policy.forgotten_at(host, entry.demand.last);
            if forgotten_at.is_some_and(|at| at <= self.now) {
                if entry.good(self.now).is_none() {
                    desired.forgotten.insert(host.clone());
                }
                continue;
            }
            match self.key(host) {
                Ok(key) => {
                    desired.keys.insert(host.clone(), key);
                }
                Err(why) => {
                    desired.suspended.insert(host.clone(), why);
                    let revokes = self.policy.revocation == Revocation::Immediately;
                    if revokes && entry.credential.is_some() {
                        desired.revoked.insert(host.clone());
                    }
                }
            }
        }
        self.prewarm(state, &mut desired);
        for (host, key) in &desired.keys {
            let entry = state.and_then(|state| state.hosts.get(host));
            let credential = entry.and_then(|entry| entry.credential);
            let same = credential.filter(|it| it.identity == key.identity.hash());
            let is_due = same.is_none_or(|existing| {
                existing.lifetime.has_used(TOGETHER_FROM_PERCENT, self.now)
                    || existing.lifetime.freshness(self.now) == Freshness::Expired
            });
            if is_due {
                desired.due.insert(host.clone());
                desired.is_by_time &= same.is_some();
            }
            // A new host is named even without a token.
            desired.must_write |= entry.is_none();
        }
        // An expired public entry is removed, allowed or not.
        let mut hosts = state.iter().flat_map(|state| state.hosts.iter());
        desired.must_write |= hosts.any(|(host, entry)| {
            is_public(host) && entry.credential.is_some() && entry.good(self.now).is_none()
        });
        desired.must_write |= !desired.forgotten.is_empty() || !desired.revoked.is_empty();
        desired
    }

    /// Adds the hosts of `prewarm`, as far as there is room. Hosts that are there stay although the
    /// limit may have been higher once.
    fn prewarm(&self, state: Option<&State>, desired: &mut DesiredState) {
        let kept = state.map_or(0, |state| state.hosts.len() - desired.forgotten.len());
        let mut room = self.policy.rules.registries_per_secret.saturating_sub(kept);
        for host in &self.policy.prewarm {
            let is_there = state.is_some_and(|state| state.hosts.contains_key(host));
            if is_there || room == 0 {
                continue;
            }
            if let Ok(key) = self.key(host) {
                desired.keys.insert(host.clone(), key);
                room -= 1;
            }
        }
    }
}

impl DesiredState {
    /// Returns when there is something to do without the missing tokens: another host is due, or a
    /// public entry has to be removed.
    #[must_use]
    pub fn next_without(
        &self,
        missing: &BTreeSet<TokenKey>,
        namespace: &Namespace,
        state: Option<&State>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let others = self.keys.iter().filter(|(_, key)| !missing.contains(key));
        let lifetime = |host: &Host| Some(state?.hosts.get(host)?.credential?.lifetime);
        let due = others
            .filter_map(|(host, _)| lifetime(host))
            .map(|life| due_by(&life, share(namespace), now));
        // An expired public entry breaks pulls that work without one.
        let public = state.into_iter().flat_map(|state| state.hosts.keys());
        let dropped = public
            .filter(|host| is_public(host))
            .filter_map(lifetime)
            .map(|life| dropped_at(life.expires_at));
        due.chain(dropped).filter(|at| *at > now).min()
    }
}

/// Returns when the credential of a host was due, if the host ever had one.
#[must_use]
pub fn due_since(entry: &HostState, namespace: &Namespace, now: Timestamp) -> Option<Timestamp> {
    let credential = entry.credential?;
    Some(due_by(&credential.lifetime, share(namespace), now).min(now))
}

/// Returns when a public entry that ends then is to be removed.
fn dropped_at(expires_at: Timestamp) -> Timestamp {
    let at = expires_at.checked_sub(MIN_LEFT - DROP_AFTER);
    at.unwrap_or(expires_at)
}

/// Returns the share of a life at which a namespace's credentials are due, in millionths. Every
/// namespace has a share of its own, which stays the same.
fn share(namespace: &Namespace) -> i64 {
    i64::try_from(DUE_FROM + spread(namespace.as_str(), SPREAD)).unwrap_or_default()
}

fn due_by(life: &Lifetime, share: i64, now: Timestamp) -> Timestamp {
    let seconds = life.expires_at.duration_since(life.minted_at).as_secs();
    // In microseconds: with whole seconds, ten thousand namespaces would come in waves.
    let due = life
        .minted_at
        .checked_add(SignedDuration::from_micros(seconds.saturating_mul(share)))
        .unwrap_or(now);
    // An expired credential is due now at the latest; dates that can't be true are ignored.
    if life.freshness(now) == Freshness::Expired {
        due.min(now)
    } else {
        due
    }
}

#[cfg(test)]
mod tests;
