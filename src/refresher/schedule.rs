//! What is due when: the leader's plan for one namespace, and the queue of all of them. Pure: the time is an argument.
//!
//! The plan follows from the state on the pull secret alone, so a leader that dies loses nothing.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};

use crate::{
    admission::decide::Rules,
    namespace::{Namespace, OptedIn},
    pull_secret::{Damage, Knowledge, Terms, Unverified, is_public, state::State},
    registry::Host,
    token::{Freshness, Lifetime, MIN_LEFT, TokenKey},
};

/// A credential is due once this share of its life is gone, in millionths: when the token cache mints anew.
const DUE_FROM: u64 = 250_000;
/// What is so far is renewed together with what is due, in per cent: hosts whose tokens were minted seconds apart would
/// otherwise cost a write each.
pub const TOGETHER_FROM_PERCENT: i64 = 24;
/// Due times are spread over so many millionths after that, so that ten thousand writes don't fall into one moment.
const SPREAD: u64 = 50_000;
/// A public entry counts as expired once less than [`MIN_LEFT`] is left, so it is looked at so much after that moment.
const DROP_AFTER: SignedDuration = SignedDuration::from_secs(1);
/// The first pause after a failure; it doubles up to [`BACKOFF_CEILING`].
const BACKOFF_FLOOR: Duration = Duration::from_secs(1);
/// The longest pause after failures.
const BACKOFF_CEILING: Duration = Duration::from_mins(5);

/// What the configuration says about refreshing.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Which registries, and who mints.
    pub rules: Arc<Rules>,
    /// The hosts that each opted-in namespace's pull secret has before any Pod asks.
    pub prewarm: Vec<Host>,
    /// How long a pull secret is kept fresh after its namespace was opted out.
    pub grace: SignedDuration,
    /// What becomes of it then.
    pub after_grace: AfterGrace,
    /// How many pull secrets may be written a second; as many reads may leave beside them.
    pub writes_per_second: u32,
}

/// What becomes of a pull secret whose namespace has been opted out for the time of grace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AfterGrace {
    /// It stays, marked as retired: a missing Secret fails even images that are on the node.
    #[default]
    Retire,
    /// It is removed.
    Remove,
}

/// How urgent work is: the lower sorts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// A Pod waits for a credential that nobody could mint.
    Intent,
    /// Somebody changed something.
    Changed,
    /// A credential is to be renewed.
    Due,
    /// Something has to be looked at, and nothing says that it is wrong.
    Check,
}

/// What is to be done for a namespace, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How urgent it is.
    pub class: Class,
    /// Not before then.
    pub at: Timestamp,
    /// When the first of its credentials ends, or what takes the place of that: of what is equally urgent the soonest comes first.
    pub ends: Timestamp,
    /// What.
    pub action: Action,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Read the pull secret: we know less of it than we need.
    Look,
    /// Ask the API server whether the namespace is still there and opted in: as far as we know it isn't.
    AskNamespace,
    /// Bring the pull secret to this.
    Write(Target),
    /// Remove the pull secret.
    Remove,
}

/// What a pull secret is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// All hosts that it is to have, and the token of each.
    pub keys: BTreeMap<Host, TokenKey>,
    /// The hosts whose credentials are to be renewed by now.
    pub due: BTreeSet<Host>,
    /// On which terms it is written.
    pub terms: Terms,
    /// Whether there is something to write even if no token is new.
    pub must_write: bool,
    /// What is put right by it, if anything.
    pub heals: Option<Damage>,
}

/// What is to be done for a namespace, given what it says (if it is opted in) and what is known of its pull secret.
/// `None`: nothing, until something changes.
#[must_use]
pub fn plan(
    namespace: &Namespace,
    said: Option<&OptedIn>,
    known: Option<&Knowledge>,
    policy: &Policy,
    now: Timestamp,
) -> Option<Plan> {
    if policy.rules.excluded.contains(namespace) {
        return None;
    }
    let soon = |class, action| {
        Some(Plan {
            class,
            at: now,
            ends: now,
            action,
        })
    };
    let Some(said) = said else {
        return plan_opted_out(namespace, known?, policy, now);
    };
    if said.is_terminating {
        return None;
    }
    let staying = Terms::Whole {
        opted_out_at: None,
        retired: false,
    };
    match known {
        None => {
            let target = policy.target(namespace, said, None, staying, now);
            (!target.keys.is_empty()).then_some(())?;
            soon(Class::Changed, Action::Write(target))
        }
        Some(Knowledge::Gone(state)) => {
            let mut target = policy.target(namespace, said, state.as_ref(), staying, now);
            (!target.keys.is_empty()).then_some(())?;
            target.due = target.keys.keys().cloned().collect();
            target.must_write = true;
            target.heals = Some(Damage::Deleted);
            soon(Class::Changed, Action::Write(target))
        }
        Some(Knowledge::Foreign(_)) => None,
        Some(Knowledge::Unverified {
            since: Unverified::Tampered,
            claims,
            before,
        }) => {
            let most = policy.rules.registries_per_secret;
            let had = union(claims.as_ref(), before.as_deref(), most);
            let mut target = policy.target(namespace, said, Some(&had), staying, now);
            target.due = target.keys.keys().cloned().collect();
            target.must_write = true;
            target.heals = Some(Damage::Changed);
            soon(Class::Changed, Action::Write(target))
        }
        Some(Knowledge::Unverified {
            since: Unverified::Listed,
            claims: Some(state),
            ..
        }) => {
            // What can't wait for a look is done at once: a write reads the Secret anyway.
            let planned = policy.plan_state(namespace, said, state, staying, now);
            if planned.at <= now {
                return Some(planned);
            }
            soon(Class::Check, Action::Look)
        }
        // What another replica couldn't complete is an intent before we have looked at it.
        Some(Knowledge::Unverified { claims, .. }) => {
            let is_intent = |state: &State| {
                let mut hosts = state.hosts.iter();
                hosts.any(|(host, entry)| entry.lifetime.is_none() && !is_public(host))
            };
            let waits = claims.as_ref().is_some_and(is_intent);
            let class = if waits { Class::Intent } else { Class::Changed };
            soon(class, Action::Look)
        }
        Some(Knowledge::Ours(state)) => {
            Some(policy.plan_state(namespace, said, state, staying, now))
        }
    }
}

/// The plan for a pull secret whose namespace is not opted in as far as we know. Whatever is to be done, the API server is
/// asked first.
fn plan_opted_out(
    namespace: &Namespace,
    known: &Knowledge,
    policy: &Policy,
    now: Timestamp,
) -> Option<Plan> {
    let state = match known {
        Knowledge::Ours(state)
        | Knowledge::Unverified {
            since: Unverified::Listed,
            claims: Some(state),
            ..
        } => state,
        Knowledge::Unverified {
            since: Unverified::Changed,
            ..
        } => {
            return Some(Plan {
                class: Class::Check,
                at: now,
                ends: now,
                action: Action::Look,
            });
        }
        _ => return None,
    };
    if state.retired && policy.after_grace == AfterGrace::Retire {
        return None;
    }
    let at = match state.opted_out_at {
        None => now,
        Some(_) if state.retired => now,
        Some(since) => {
            let end = since.saturating_add(policy.grace).unwrap_or(Timestamp::MAX);
            let due = state.hosts.iter().map(|(_, entry)| {
                entry
                    .lifetime
                    .map_or(now, |life| due_at(&life, namespace, now))
            });
            due.fold(end, Timestamp::min)
        }
    };
    Some(Plan {
        class: Class::Due,
        at,
        ends: state.expires_at().unwrap_or(at),
        action: Action::AskNamespace,
    })
}

/// What is to be done for a pull secret whose namespace was found to be opted out, and says this.
#[must_use]
pub fn leaving(
    namespace: &Namespace,
    said: &OptedIn,
    state: &State,
    policy: &Policy,
    now: Timestamp,
) -> Option<Plan> {
    if said.is_terminating {
        return None;
    }
    let since = state.opted_out_at.unwrap_or(now);
    let is_over = state.retired || now.duration_since(since) >= policy.grace;
    if is_over && policy.after_grace == AfterGrace::Remove {
        return Some(Plan {
            class: Class::Due,
            at: now,
            ends: now,
            action: Action::Remove,
        });
    }
    let terms = Terms::Whole {
        opted_out_at: Some(since),
        retired: is_over,
    };
    let mut plan = policy.plan_state(namespace, said, state, terms, now);
    if let Action::Write(target) = &mut plan.action {
        target.must_write |= state.opted_out_at.is_none() || is_over != state.retired;
        if is_over {
            target.due.clear();
            // Nothing would take it out when it expires.
            target.keys.retain(|host, _| !is_public(host));
        }
        if target.must_write {
            plan.at = now;
        }
        if state.opted_out_at.is_none() {
            plan.class = Class::Changed;
        }
    }
    if !is_over {
        let end = since.saturating_add(policy.grace);
        plan.at = plan.at.min(end.unwrap_or(Timestamp::MAX));
    }
    Some(plan)
}

impl Policy {
    /// The plan for a pull secret with this state.
    fn plan_state(
        &self,
        namespace: &Namespace,
        said: &OptedIn,
        state: &State,
        terms: Terms,
        now: Timestamp,
    ) -> Plan {
        let target = self.target(namespace, said, Some(state), terms, now);
        let mut class = Class::Due;
        let (mut at, mut ends) = (Timestamp::MAX, Timestamp::MAX);
        let share = share(namespace);
        for (host, key) in &target.keys {
            let entry = state.hosts.get(host);
            let lifetime = entry
                .filter(|entry| entry.identity == key.identity.hash())
                .and_then(|entry| entry.lifetime);
            if let Some(life) = lifetime {
                at = at.min(due_by(&life, share, now));
                ends = ends.min(life.expires_at);
                continue;
            }
            (at, ends) = (at.min(now), ends.min(now));
            if entry.is_some_and(|entry| entry.lifetime.is_none()) && !is_public(host) {
                class = Class::Intent;
            }
        }
        if target.must_write {
            at = at.min(now);
        }
        if class == Class::Intent {
            at = now;
        }
        Plan {
            class,
            at,
            ends,
            action: Action::Write(target),
        }
    }

    /// When there is something to do for a namespace though these tokens can't be had: another host is due, an entry has to
    /// be taken out, or the time of grace is over.
    #[must_use]
    pub fn next_without(
        &self,
        lacking: &BTreeSet<TokenKey>,
        namespace: &Namespace,
        target: &Target,
        state: Option<&State>,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let others = target.keys.iter().filter(|(_, key)| !lacking.contains(key));
        let due = others
            .filter_map(|(host, _)| state?.hosts.get(host)?.lifetime)
            .map(|life| due_at(&life, namespace, now));
        let end = match target.terms {
            Terms::Whole {
                opted_out_at: Some(since),
                retired: false,
            } => since.checked_add(self.grace).ok(),
            _ => None,
        };
        let times = due.chain(end).chain(target.drop_at(state));
        times.filter(|at| *at > now).min()
    }

    /// What a pull secret with this state is to be, and which of its credentials are due now.
    fn target(
        &self,
        namespace: &Namespace,
        said: &OptedIn,
        state: Option<&State>,
        terms: Terms,
        now: Timestamp,
    ) -> Target {
        let had = state.iter().flat_map(|state| state.hosts.keys());
        let is_opted_in = matches!(
            terms,
            Terms::Whole {
                opted_out_at: None,
                ..
            }
        );
        let key_for = |host: &Host| self.rules.key_for(host.as_str(), namespace, said);
        let mut keys: BTreeMap<Host, TokenKey> = had.filter_map(key_for).collect();
        // What is there stays although the limit may have been higher once; what is to be there ahead has to find room.
        for host in self.prewarm.iter().filter(|_| is_opted_in) {
            if keys.len() < self.rules.registries_per_secret {
                keys.extend(key_for(host));
            }
        }
        let mut due = BTreeSet::new();
        let mut must_write = false;
        for (host, key) in &keys {
            let entry = state.and_then(|state| state.hosts.get(host));
            let lifetime = entry
                .filter(|entry| entry.identity == key.identity.hash())
                .and_then(|entry| entry.lifetime);
            if lifetime.is_none_or(|life| {
                life.has_used(TOGETHER_FROM_PERCENT, now)
                    || life.freshness(now) == Freshness::Expired
            }) {
                due.insert(host.clone());
            }
            // A new host is written as an intent even if no token can be had; an expired public one is taken out.
            must_write |= entry.is_none()
                || (is_public(host)
                    && entry
                        .and_then(|entry| entry.lifetime)
                        .is_some_and(|life| life.freshness(now) == Freshness::Expired));
        }
        // Of other identities, of registries that are allowed no more.
        must_write |= state.is_some_and(|state| {
            state.hosts.keys().any(|host| !keys.contains_key(host))
                || (is_opted_in && (state.opted_out_at.is_some() || state.retired))
        });
        Target {
            keys,
            due,
            terms,
            must_write,
            heals: None,
        }
    }
}

impl Target {
    /// When an entry that must not expire in place has to be taken out, if its host can't be renewed.
    fn drop_at(&self, state: Option<&State>) -> Option<Timestamp> {
        let lives = self.keys.keys().filter(|host| is_public(host));
        lives
            .filter_map(|host| state?.hosts.get(host)?.lifetime)
            .filter_map(|life| life.expires_at.checked_sub(MIN_LEFT - DROP_AFTER).ok())
            .min()
    }
}

/// When a credential is due: the same namespace always at the same share of a life, other namespaces at others.
fn due_at(life: &Lifetime, namespace: &Namespace, now: Timestamp) -> Timestamp {
    due_by(life, share(namespace), now)
}

/// At which share of a life a namespace's credentials are due, in millionths.
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

/// A number below `range` that follows from a text, and spreads well (FNV-1a, with the last step of `MurmurHash3`).
fn spread(text: &str, range: u64) -> u64 {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    // Texts that differ in their last letters alone differ in few bits so far.
    let mixed = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    (mixed ^ (mixed >> 33)) % range
}

/// Both states' hosts; where both have one, what it claims. Of those that are only claimed as many as there is room for: the
/// claim may be anybody's.
fn union(claims: Option<&State>, before: Option<&State>, most: usize) -> State {
    let mut hosts = before.map(|state| state.hosts.clone()).unwrap_or_default();
    for (host, entry) in claims.iter().flat_map(|state| state.hosts.iter()) {
        if hosts.get(host).is_some() || hosts.len() < most {
            hosts.insert(host.clone(), entry.clone());
        }
    }
    State {
        hosts,
        ..State::default()
    }
}

/// The pause after so many failures in a row: it doubles, with jitter that only shortens it.
#[must_use]
pub fn backoff(failures: u32, jitter: &str) -> Duration {
    let whole = BACKOFF_FLOOR
        .saturating_mul(2_u32.saturating_pow(failures.saturating_sub(1)))
        .min(BACKOFF_CEILING);
    let salted = format!("{jitter}/{failures}");
    let percent = 75 + u32::try_from(spread(&salted, 26)).unwrap_or_default();
    whole * percent / 100
}

/// Namespaces by when they are due; those that are due now by how urgent they are.
#[derive(Debug, Default)]
pub struct Schedule {
    later: BTreeSet<(Timestamp, Namespace)>,
    /// By class.
    ready: [BTreeSet<(Order, Namespace)>; 4],
    slots: HashMap<Namespace, Slot>,
}

/// Among the equally urgent: the newest intent first, for the kubelet asks again soon after a Pod is made; of the others
/// what ends first, and then what was due first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Order {
    Newest(Reverse<Timestamp>),
    Soonest { ends: Timestamp, at: Timestamp },
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    class: Class,
    at: Timestamp,
    ends: Timestamp,
    is_ready: bool,
}

impl Schedule {
    /// Plans a namespace, instead of what was planned for it before.
    pub fn set(&mut self, namespace: &Namespace, class: Class, at: Timestamp, ends: Timestamp) {
        if let Some(slot) = self.slots.get(namespace)
            && (slot.class, slot.at, slot.ends) == (class, at, ends)
        {
            return;
        }
        self.remove(namespace);
        self.later.insert((at, namespace.clone()));
        let slot = Slot {
            class,
            at,
            ends,
            is_ready: false,
        };
        self.slots.insert(namespace.clone(), slot);
    }

    /// Forgets a namespace.
    pub fn remove(&mut self, namespace: &Namespace) {
        if let Some(slot) = self.slots.remove(namespace) {
            if slot.is_ready {
                self.ready[slot.class as usize].remove(&(slot.order(), namespace.clone()));
            } else {
                self.later.remove(&(slot.at, namespace.clone()));
            }
        }
    }

    /// Takes the most urgent of those that are due.
    pub fn pop(&mut self, now: Timestamp) -> Option<Namespace> {
        self.wake(now);
        let mut ready = self.ready.iter_mut();
        let (_, namespace) = ready.find_map(BTreeSet::pop_first)?;
        self.slots.remove(&namespace);
        Some(namespace)
    }

    fn wake(&mut self, now: Timestamp) {
        while self.later.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, namespace)) = self.later.pop_first() else {
                return;
            };
            if let Some(slot) = self.slots.get_mut(&namespace) {
                slot.is_ready = true;
                self.ready[slot.class as usize].insert((slot.order(), namespace));
            }
        }
    }

    /// When the next one is due; `None` if none is planned.
    #[must_use]
    pub fn next_at(&self) -> Option<Timestamp> {
        let ready = self.ready.iter().find_map(BTreeSet::first);
        ready
            .map(|(order, _)| order.at())
            .or(self.later.first().map(|(at, _)| *at))
    }

    /// How many are due at `now`.
    pub fn due(&mut self, now: Timestamp) -> usize {
        self.wake(now);
        self.ready.iter().map(BTreeSet::len).sum()
    }

    /// How many are due at `now`, and since when the one that waits longest is.
    pub fn backlog(&mut self, now: Timestamp) -> (usize, Option<Timestamp>) {
        let due = self.due(now);
        let ready = self.ready.iter().flatten();
        (due, ready.map(|(order, _)| order.at()).min())
    }
}

impl Order {
    fn at(&self) -> Timestamp {
        match self {
            Self::Newest(Reverse(at)) | Self::Soonest { at, .. } => *at,
        }
    }
}

impl Slot {
    fn order(&self) -> Order {
        match self.class {
            Class::Intent => Order::Newest(Reverse(self.at)),
            _ => Order::Soonest {
                ends: self.ends,
                at: self.at,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        identity::{Identity, IdentityHash},
        pull_secret::{Foreign, state::HostState},
    };

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);
    const IRELAND: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

    fn hours(hours: i64) -> SignedDuration {
        SignedDuration::from_hours(hours)
    }

    fn policy(config: &str) -> Policy {
        Policy {
            rules: Arc::new(Config::parse(config, "config").expect("valid").rules),
            prewarm: vec![],
            grace: hours(24),
            after_grace: AfterGrace::Retire,
            writes_per_second: 20,
        }
    }

    fn namespace() -> Namespace {
        Namespace::parse("team").expect("valid")
    }

    fn host() -> Host {
        Host::parse(IRELAND).expect("valid")
    }

    /// One host with a credential of this age, or an intent.
    fn state(age: Option<SignedDuration>) -> State {
        living(age.map(|age| Lifetime {
            minted_at: NOW - age,
            expires_at: NOW - age + hours(12),
        }))
    }

    fn living(lifetime: Option<Lifetime>) -> State {
        let entry = HostState {
            identity: Identity::Ambient.hash(),
            lifetime,
        };
        State {
            hosts: std::iter::once((host(), entry)).collect(),
            ..State::default()
        }
    }

    fn planned(known: Option<&Knowledge>, policy: &Policy) -> Option<Plan> {
        plan(&namespace(), Some(&OptedIn::default()), known, policy, NOW)
    }

    fn target(plan: Plan) -> Target {
        match plan.action {
            Action::Write(target) => target,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_credential_is_due_between_a_quarter_and_three_tenths_of_its_life() {
        let fresh = Knowledge::Ours(state(Some(hours(1))));
        let plan = planned(Some(&fresh), &policy("")).expect("a plan");
        let after = plan.at.duration_since(NOW);
        assert!(
            after >= hours(2) && after < SignedDuration::from_mins(156),
            "{after}"
        );
        assert_eq!(plan.class, Class::Due);
        let old = Knowledge::Ours(state(Some(hours(4))));
        let plan = planned(Some(&old), &policy("")).expect("a plan");
        assert!(plan.at <= NOW);
        assert!(target(plan).due.contains(&host()));
    }

    #[test]
    fn due_times_of_many_namespaces_are_spread() {
        let life = Lifetime {
            minted_at: NOW,
            expires_at: NOW + hours(12),
        };
        let times: BTreeSet<Timestamp> = (0..1000)
            .filter_map(|n| Namespace::parse(&format!("team-{n}")))
            .map(|namespace| due_at(&life, &namespace, NOW))
            .collect();
        assert!(times.len() > 45, "{} different times", times.len());
    }

    #[test]
    fn an_intent_comes_first_and_at_once() {
        let plan = planned(Some(&Knowledge::Ours(state(None))), &policy("")).expect("a plan");
        assert_eq!((plan.class, plan.at), (Class::Intent, NOW));
    }

    #[test]
    fn what_another_replica_left_as_an_intent_is_looked_at_as_one() {
        for (age, class) in [(None, Class::Intent), (Some(hours(1)), Class::Changed)] {
            let news = Knowledge::Unverified {
                claims: Some(state(age)),
                before: None,
                since: Unverified::Changed,
            };
            let plan = planned(Some(&news), &policy("")).expect("a plan");
            assert_eq!((plan.class, plan.action), (class, Action::Look));
        }
    }

    #[test]
    fn an_expiry_that_can_not_be_true_is_due_at_once() {
        let forged = Knowledge::Ours(state(Some(-hours(2))));
        assert_eq!(planned(Some(&forged), &policy("")).expect("a plan").at, NOW);
    }

    #[test]
    fn another_identity_is_due_at_once_and_one_that_is_gone_loses_its_entry() {
        let mut old = state(Some(hours(1)));
        let entry = HostState {
            identity: IdentityHash::parse("0123456789abcdef").expect("a hash"),
            ..old.hosts.get(&host()).expect("there").clone()
        };
        old.hosts.insert(host(), entry);
        let known = Knowledge::Ours(old);
        let plan = planned(Some(&known), &policy("")).expect("a plan");
        assert_eq!(plan.at, NOW);
        assert!(target(plan).due.contains(&host()));
        let nobody = policy("defaultIdentity: none");
        let target = target(planned(Some(&known), &nobody).expect("a plan"));
        assert!(target.keys.is_empty() && target.must_write);
    }

    #[test]
    fn what_was_deleted_or_changed_is_put_right_with_the_hosts_it_had() {
        let had = state(Some(hours(1)));
        let gone = Knowledge::Gone(Some(had.clone()));
        let tampered = Knowledge::Unverified {
            claims: None,
            before: Some(Box::new(had)),
            since: Unverified::Tampered,
        };
        for (known, damage) in [(gone, Damage::Deleted), (tampered, Damage::Changed)] {
            let plan = planned(Some(&known), &policy("")).expect("a plan");
            assert_eq!((plan.class, plan.at), (Class::Changed, NOW));
            let target = target(plan);
            assert_eq!(target.heals, Some(damage));
            assert!(target.due.contains(&host()) && target.must_write);
        }
        assert_eq!(planned(Some(&Knowledge::Gone(None)), &policy("")), None);
    }

    #[test]
    fn foreign_excluded_and_dying_are_left_alone() {
        let policy = policy("optIn: {excludeNamespaces: [infra]}");
        let ours = Knowledge::Ours(state(None));
        assert_eq!(
            planned(Some(&Knowledge::Foreign(Foreign::Label)), &policy),
            None
        );
        let dying = OptedIn {
            is_terminating: true,
            ..OptedIn::default()
        };
        assert_eq!(
            plan(&namespace(), Some(&dying), Some(&ours), &policy, NOW),
            None
        );
        let infra = Namespace::parse("infra").expect("valid");
        let said = OptedIn::default();
        assert_eq!(plan(&infra, Some(&said), Some(&ours), &policy, NOW), None);
    }

    #[test]
    fn an_opted_in_namespace_is_prewarmed() {
        let policy = Policy {
            prewarm: vec![host()],
            ..policy("")
        };
        let target = target(planned(None, &policy).expect("a plan"));
        assert!(target.keys.contains_key(&host()) && target.must_write);
        assert_eq!(planned(None, &self::policy("")), None);
    }

    #[test]
    fn an_opt_out_is_marked_kept_fresh_for_the_grace_and_then_retired_or_removed() {
        let (policy, said) = (policy(""), OptedIn::default());
        let mut state = state(Some(hours(1)));
        let first = plan(
            &namespace(),
            None,
            Some(&Knowledge::Ours(state.clone())),
            &policy,
            NOW,
        );
        let first = first.expect("a plan");
        assert_eq!((first.at, first.action), (NOW, Action::AskNamespace));
        let leave = |state: &State, policy: &Policy| {
            leaving(&namespace(), &said, state, policy, NOW).expect("a plan")
        };
        let marked = target(leave(&state, &policy));
        let terms = |opted_out_at, retired| Terms::Whole {
            opted_out_at: Some(opted_out_at),
            retired,
        };
        assert_eq!((marked.terms, marked.must_write), (terms(NOW, false), true));
        state.opted_out_at = Some(NOW - hours(1));
        assert!(leave(&state, &policy).at > NOW, "kept fresh as before");
        state.opted_out_at = Some(NOW - hours(25));
        let retired = target(leave(&state, &policy));
        assert_eq!(retired.terms, terms(NOW - hours(25), true));
        assert!(retired.due.is_empty(), "nothing is minted for it any more");
        let removes = Policy {
            after_grace: AfterGrace::Remove,
            ..policy.clone()
        };
        assert_eq!(leave(&state, &removes).action, Action::Remove);
        state.retired = true;
        let done = plan(
            &namespace(),
            None,
            Some(&Knowledge::Ours(state)),
            &policy,
            NOW,
        );
        assert_eq!(done, None);
    }

    #[test]
    fn pauses_double_up_to_five_minutes_and_jitter_only_shortens_them() {
        for (failures, whole) in [(1, 1), (2, 2), (5, 16), (9, 256), (10, 300), (40, 300)] {
            let pause = backoff(failures, "team");
            let whole = Duration::from_secs(whole);
            assert!(
                pause <= whole && pause >= whole * 3 / 4,
                "{failures}: {pause:?}"
            );
        }
    }

    #[test]
    fn the_queue_gives_the_most_urgent_of_those_that_are_due() {
        let name = |text: &str| Namespace::parse(text).expect("valid");
        let mut schedule = Schedule::default();
        for (text, class, at) in [
            ("due-late", Class::Due, -1),
            ("due-early", Class::Due, -3),
            ("intent-old", Class::Intent, -2),
            ("intent-new", Class::Intent, 0),
            ("changed", Class::Changed, 0),
            ("later", Class::Intent, 1),
            ("moved", Class::Intent, -9),
            ("gone", Class::Intent, -9),
        ] {
            schedule.set(&name(text), class, NOW + hours(at), NOW);
        }
        assert_eq!(schedule.backlog(NOW), (7, Some(NOW - hours(9))));
        schedule.set(&name("moved"), Class::Check, NOW, NOW);
        schedule.remove(&name("gone"));
        let order: Vec<String> = std::iter::from_fn(|| schedule.pop(NOW))
            .map(|namespace| namespace.to_string())
            .collect();
        let expected = [
            "intent-new",
            "intent-old",
            "changed",
            "due-early",
            "due-late",
            "moved",
        ];
        assert_eq!(order, expected);
        assert_eq!(schedule.next_at(), Some(NOW + hours(1)));
    }

    #[test]
    fn of_what_is_due_the_soonest_to_end_comes_first_however_long_it_has_been_due() {
        let name = |text: &str| Namespace::parse(text).expect("valid");
        let life = |age: i64, whole: i64| Lifetime {
            minted_at: NOW - hours(age),
            expires_at: NOW - hours(age) + hours(whole),
        };
        let mut schedule = Schedule::default();
        for (text, life) in [
            ("long-life", life(6, 12)),
            ("short-life", life(3, 4)),
            ("expired", life(13, 12)),
            ("expired-long-ago", life(20, 12)),
        ] {
            let known = Knowledge::Ours(living(Some(life)));
            let planned = plan(
                &name(text),
                Some(&OptedIn::default()),
                Some(&known),
                &policy(""),
                NOW,
            );
            let planned = planned.expect("a plan");
            assert!(planned.at < NOW, "{text} was due at {}", planned.at);
            schedule.set(&name(text), planned.class, planned.at, planned.ends);
        }
        let (due, since) = schedule.backlog(NOW);
        assert_eq!(due, 4);
        assert!(since.expect("a time") < NOW - hours(16));
        let order: Vec<String> = std::iter::from_fn(|| schedule.pop(NOW))
            .map(|namespace| namespace.to_string())
            .collect();
        let expected = ["expired-long-ago", "expired", "short-life", "long-life"];
        assert_eq!(order, expected);
    }

    #[test]
    fn what_is_there_is_renewed_though_the_limit_is_lower_and_prewarming_finds_no_room() {
        let mut state = state(Some(hours(4)));
        let entry = state.hosts.get(&host()).expect("there").clone();
        let other = Host::parse("123456789012.dkr.ecr.us-east-1.amazonaws.com").expect("valid");
        state.hosts.insert(other.clone(), entry);
        let third = Host::parse("123456789012.dkr.ecr.us-west-2.amazonaws.com").expect("valid");
        let policy = Policy {
            prewarm: vec![third],
            ..policy("limits: {registriesPerPod: 1, registriesPerSecret: 1}")
        };
        let known = Knowledge::Ours(state.clone());
        let kept = target(planned(Some(&known), &policy).expect("a plan"));
        assert_eq!(kept.keys.len(), 2);
        assert!(!kept.must_write && kept.due.len() == 2);
        // Of claims that may be anybody's, as many as there is room for.
        let forged = Knowledge::Unverified {
            claims: Some(state),
            before: None,
            since: Unverified::Tampered,
        };
        let healed = target(planned(Some(&forged), &policy).expect("a plan"));
        assert_eq!(healed.keys.len(), 1);
    }
}
