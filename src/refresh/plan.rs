//! The leader's plan for one namespace: what is to be done for its pull secret, and when. Pure: the time is an argument.
//!
//! The plan follows from the namespace's settings, what is known of the pull secret, and the configuration, so a leader that
//! dies loses nothing. Only opted-in namespaces are ever written to.

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
    rules::{Policy, Revocation, Suspension},
    token::{Freshness, Lifetime, MAX_LIFE, MIN_LEFT, TokenKey},
};

/// A credential is due once this share of its life is gone, in millionths: when the token cache mints a new one.
const DUE_FROM: u64 = 250_000;
/// Whatever has used so much of its life is renewed together with what is due, in per cent: hosts whose tokens were minted
/// seconds apart would otherwise cost a write each.
pub const TOGETHER_FROM_PERCENT: i64 = 24;
/// Due times are spread over so many millionths after that, so that ten thousand writes don't fall into one moment.
const SPREAD: u64 = 50_000;
/// A public entry counts as expired once less than [`MIN_LEFT`] is left, so it is looked at so much after that moment.
const DROP_AFTER: SignedDuration = SignedDuration::from_secs(1);

/// How urgent work is: the lower sorts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A Pod waits for a credential that nobody could mint.
    Pending,
    /// Somebody changed something.
    Changed,
    /// A credential is to be renewed.
    Due,
    /// Something is to be read, and nothing says that it is wrong.
    Check,
}

impl Priority {
    /// How many there are.
    pub const COUNT: usize = 4;
}

/// What is to be done for a namespace, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How urgent it is.
    pub priority: Priority,
    /// Not before then.
    pub at: Timestamp,
    /// When the first of its good credentials ends; `None` if it has none that is proven.
    pub ends: Option<Timestamp>,
    /// What.
    pub action: Action,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Read the pull secret: less is known of it than is needed.
    Look,
    /// Bring the pull secret to this.
    Write(Box<DesiredState>),
    /// Delete the pull secret of a namespace that is opted in no more, after asking whether it is.
    Remove,
}

/// What a pull secret is to be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DesiredState {
    /// The hosts that are to have a credential, and the token of each.
    pub keys: BTreeMap<Host, TokenKey>,
    /// Those whose credentials are to be renewed by now.
    pub due: BTreeSet<Host>,
    /// The hosts that nobody has wanted for long and that have no credential left.
    pub forgotten: BTreeSet<Host>,
    /// The hosts that the rules no longer allow, and why.
    pub suspended: BTreeMap<Host, Suspension>,
    /// The hosts whose credential is to be taken out at once.
    pub revoked: BTreeSet<Host>,
    /// What the pull secret had before it was deleted or changed, and what it claims.
    pub remembered: Option<State>,
    /// Whether there is something to write even if no token is new.
    pub must_write: bool,
    /// What is repaired by it, if anything.
    pub repairs: Option<Damage>,
    /// Whether time alone made it due: nobody asked for it.
    pub is_by_time: bool,
}

/// Plans what is to be done for a namespace, given its settings (if it is opted in) and what is known of its pull secret.
/// `None`: nothing, until something changes.
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
        return plan_removal(observed?, policy, now);
    };
    if settings.is_terminating {
        return None;
    }
    let subject = Subject {
        namespace,
        settings,
        policy,
        now,
    };
    match observed {
        None => subject.creation(None),
        Some(Observed::Deleted(state)) => subject.creation(state.as_ref()),
        Some(Observed::Foreign(_)) => None,
        Some(Observed::Managed(state)) => Some(subject.renewal(state)),
        Some(Observed::Unverified {
            since: Unverified::Tampered,
            claims,
            before,
            is_proven,
        }) => Some(subject.repair(claims.as_ref(), *is_proven, before.as_deref())),
        Some(Observed::Unverified {
            since: Unverified::Listed,
            claims: Some(state),
            is_proven: true,
            before,
        }) if !is_reverted(state, before.as_deref()) => {
            // What can't wait for a read is done at once: a write reads the Secret anyway.
            let planned = subject.renewal(state);
            Some(if planned.at <= now {
                planned
            } else {
                subject.look(Priority::Check)
            })
        }
        Some(Observed::Unverified {
            since: Unverified::Listed,
            ..
        }) => Some(subject.look(Priority::Check)),
        Some(Observed::Unverified { .. }) => Some(subject.look(Priority::Changed)),
    }
}

/// Returns whether a newer state than this is known: the cluster was restored from a backup.
fn is_reverted(state: &State, before: Option<&State>) -> bool {
    before.is_some_and(|before| before.revision > state.revision)
}

/// Plans the deletion of a pull secret whose namespace is not opted in as far as is known. Its dates are anybody's: they
/// decide only when it is deleted, and none may be later than a token can live.
fn plan_removal(observed: &Observed, policy: &Policy, now: Timestamp) -> Option<Plan> {
    let claims = observed.claims().filter(|_| policy.removes)?;
    let latest = now.checked_add(MAX_LIFE).unwrap_or(now);
    // Dates that can't be true count as expired: they would put it off again whenever its time comes.
    let end = claims
        .hosts
        .iter()
        .filter_map(|(_, entry)| entry.credential)
        .filter(|credential| !credential.lifetime.is_over(now))
        .map(|credential| credential.lifetime.expires_at.min(latest))
        .max();
    Some(Plan {
        priority: Priority::Check,
        at: end.unwrap_or(now).max(now),
        ends: None,
        action: Action::Remove,
    })
}

/// What every plan of one namespace goes by.
struct Subject<'a> {
    namespace: &'a Namespace,
    settings: &'a NamespaceSettings,
    policy: &'a Policy,
    now: Timestamp,
}

impl Subject<'_> {
    fn look(&self, priority: Priority) -> Plan {
        Plan {
            priority,
            at: self.now,
            ends: None,
            action: Action::Look,
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

    /// Plans a pull secret that isn't there: with what it had, and with `prewarm`.
    fn creation(&self, had: Option<&State>) -> Option<Plan> {
        let mut desired = self.desired(had);
        if desired.keys.is_empty() {
            return None;
        }
        desired.due = desired.keys.keys().cloned().collect();
        desired.must_write = true;
        desired.is_by_time = false;
        if let Some(had) = had {
            desired.repairs = Some(Damage::Deleted);
            desired.remembered = Some(had.clone());
        }
        Some(self.changed(desired))
    }

    /// Plans the repair of a pull secret that somebody else wrote: what is known to be true stays wanted, and what it merely
    /// claims is a wish, within the rules and as many as there is room for.
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
            // Its data can be trusted where an older state of ours was put back, and then it says what it has.
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
                // Kept until it ends, and forgotten once nobody has wanted it for long.
                let unwanted = self.forgotten_at(host, entry.demand);
                let gone = unwanted.map(|at| end.map_or(at, |end| end.max(at)));
                at = at.min(gone.unwrap_or(Timestamp::MAX));
                let over = end.filter(|_| is_public(host)).map(dropped_at);
                at = at.min(over.unwrap_or(Timestamp::MAX));
                continue;
            };
            ends = ends.into_iter().chain(end).min();
            match entry.credential {
                Some(had) if had.identity == key.identity.hash() => {
                    at = at.min(due_by(&had.lifetime, share, self.now));
                }
                Some(_) => {
                    at = at.min(self.now);
                    priority = priority.min(Priority::Changed);
                }
                // The public gallery's images pull without.
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

    /// When a host is forgotten unless somebody wants it before; `None`: never.
    fn forgotten_at(&self, host: &Host, demand: Demand) -> Option<Timestamp> {
        let after = self.policy.forget_after?;
        let is_named = self.policy.prewarm.contains(host);
        (!is_named).then(|| demand.last.saturating_add(after).unwrap_or(Timestamp::MAX))
    }

    /// What a pull secret with this state is to be, and which of its credentials are due now.
    fn desired(&self, state: Option<&State>) -> DesiredState {
        let mut desired = DesiredState {
            is_by_time: true,
            ..DesiredState::default()
        };
        for (host, entry) in state.iter().flat_map(|state| state.hosts.iter()) {
            let forgotten_at = self.forgotten_at(host, entry.demand);
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
            let same = credential.filter(|had| had.identity == key.identity.hash());
            let is_due = same.is_none_or(|had| {
                had.lifetime.has_used(TOGETHER_FROM_PERCENT, self.now)
                    || had.lifetime.freshness(self.now) == Freshness::Expired
            });
            if is_due {
                desired.due.insert(host.clone());
                desired.is_by_time &= same.is_some();
            }
            // A new host is named even if no token can be had.
            desired.must_write |= entry.is_none();
        }
        // An expired public entry is taken out, allowed or not.
        let mut hosts = state.iter().flat_map(|state| state.hosts.iter());
        desired.must_write |= hosts.any(|(host, entry)| {
            is_public(host) && entry.credential.is_some() && entry.good(self.now).is_none()
        });
        desired.must_write |= !desired.forgotten.is_empty() || !desired.revoked.is_empty();
        desired
    }

    /// Adds the hosts that are to be there before any Pod asks, as far as there is room. What is there stays although the limit
    /// may have been higher once.
    fn prewarm(&self, state: Option<&State>, desired: &mut DesiredState) {
        let had = state.map_or(0, |state| state.hosts.len() - desired.forgotten.len());
        let mut room = self.policy.rules.registries_per_secret.saturating_sub(had);
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
    /// Returns when there is something to do though these tokens can't be had: another host is due, or a public entry has to be
    /// taken out.
    #[must_use]
    pub fn next_without(
        &self,
        lacking: &BTreeSet<TokenKey>,
        namespace: &Namespace,
        state: Option<&State>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let others = self.keys.iter().filter(|(_, key)| !lacking.contains(key));
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

/// Returns when the credential of a host was due, if it ever had one.
#[must_use]
pub fn due_since(entry: &HostState, namespace: &Namespace, now: Timestamp) -> Option<Timestamp> {
    let had = entry.credential?;
    Some(due_by(&had.lifetime, share(namespace), now).min(now))
}

/// Returns when a public entry that ends then is to be taken out.
fn dropped_at(expires_at: Timestamp) -> Timestamp {
    let at = expires_at.checked_sub(MIN_LEFT - DROP_AFTER);
    at.unwrap_or(expires_at)
}

/// At which share of a life a namespace's credentials are due, in millionths: the same namespace always at the same share,
/// other namespaces at others.
fn share(namespace: &Namespace) -> i64 {
    i64::try_from(DUE_FROM + spread(namespace.as_str(), SPREAD)).unwrap_or_default()
}

fn due_by(life: &Lifetime, share: i64, now: Timestamp) -> Timestamp {
    let seconds = life.expires_at.duration_since(life.minted_at).as_secs();
    // In millionths of a second: whole seconds would be steps, and ten thousand namespaces would come in waves.
    let due = life
        .minted_at
        .checked_add(SignedDuration::from_micros(seconds.saturating_mul(share)))
        .unwrap_or(now);
    // One that has expired was due long ago; dates that can't be true say nothing.
    if due > now && life.freshness(now) == Freshness::Expired {
        now
    } else {
        due
    }
}

#[cfg(test)]
mod tests;
