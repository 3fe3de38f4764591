//! One term's work: what is due is taken from the schedule and done, and what comes of it is planned anew.
//!
//! One task owns all of it. Calls run beside it, at most [`MAX_UNDER_WAY`] at a time, each with a deadline; a namespace has
//! at most one. A write never waits for AWS: a namespace whose token isn't there is set aside until it is.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Parts, Sweep, Swept, WORK_TIMEOUT,
    keys::{Keys, Retries, Standing},
    pace::Pace,
    schedule::{
        Action, Class, Plan, Policy, Schedule, TOGETHER_FROM_PERCENT, Target, leaving, plan,
    },
    telling::Telling,
    troubles::Troubles,
};
use crate::{
    current::Follower,
    leader::Leadership,
    namespace::{
        Namespace, OptedIn,
        store::{Look, ReadError},
    },
    pull_secret::{
        Damage, Knowledge, Terms, Unverified, Want,
        state::State,
        store::Entry,
        write::{EnsureError, Manner, Written},
    },
    registry::{Host, Service},
    token::{
        Freshness, MalformedReply, Token, TokenKey,
        cache::{Call, MintError},
    },
};

/// Calls to the API server under way at the same time.
const MAX_UNDER_WAY: usize = 16;
/// Tokens that are minted at the same time, half of what the cache mints at a time: a crowd of roles that nobody answers for
/// leaves room for the others, and for admissions.
const MAX_MINTS: usize = 16;
/// The longest sleep: after a suspend or a step of the clock it takes no longer to notice.
const MAX_SLEEP: Duration = Duration::from_secs(10);
/// The clocks differ by more than this only if the machine slept or its clock was set.
const CLOCK_STEP: Duration = Duration::from_secs(30);
/// How long the answer is good that a namespace is opted out.
const ANSWER_GOOD_FOR: Duration = Duration::from_mins(1);
/// Namespaces that are taken up before the loop looks at what has come in meanwhile.
const AT_ONCE: usize = 256;
/// How often the backlog is counted.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// What the work is for.
#[derive(Debug)]
pub(super) enum Scope {
    /// A leader's: all namespaces, until the term ends.
    Everything,
    /// One sweep.
    Once(Sweep),
}

/// Told how many are done, and of how many.
type Progress<'a> = &'a (dyn Fn(usize, usize) + Send + Sync);

/// One term's work.
pub(super) struct Work<'a> {
    parts: Arc<Parts>,
    /// The configuration by which everything is planned until the next one is taken up.
    policy: Arc<Policy>,
    policies: Follower<Policy>,
    term: Leadership,
    scope: Scope,
    progress: Option<Progress<'a>>,
    telling: Telling,
    writes: Schedule,
    reads: Schedule,
    write_pace: Pace,
    read_pace: Pace,
    keys: Keys,
    under_way: HashSet<Namespace>,
    troubles: Troubles,
    /// Since when an intent is known that is not completed yet.
    intents: HashMap<Namespace, Timestamp>,
    /// Namespaces that were found to be opted out, and when.
    answers: HashMap<Namespace, (OptedIn, Instant)>,
    opted_in: HashSet<Namespace>,
    /// A sweep's: what is still to be renewed although it isn't due.
    forced: HashSet<Namespace>,
    results: BTreeMap<Namespace, Swept>,
    tasks: JoinSet<(Namespace, Done)>,
    /// Told of each token that comes into the cache.
    landings: watch::Receiver<()>,
    mints: JoinSet<(TokenKey, Result<Arc<Token>, MintError>)>,
    clocks: (Instant, Timestamp),
    counted: Option<Instant>,
}

/// What came of a call.
enum Done {
    Wrote(Box<Target>, Class, Result<Written, EnsureError>),
    Looked(Result<(), EnsureError>),
    Asked(Result<Look, ReadError>),
    Removed(Result<(), EnsureError>),
    Crashed,
}

/// The kinds of work, to tell whether one led to the same again.
#[derive(PartialEq, Eq)]
enum Kind {
    Write,
    Look,
    Ask,
    Remove,
}

impl<'a> Work<'a> {
    pub(super) fn new(
        parts: Arc<Parts>,
        term: Leadership,
        scope: Scope,
        progress: Option<Progress<'a>>,
    ) -> Self {
        let now = Instant::now();
        let policies = parts.policy.follow();
        let policy = parts.policy.get();
        let mut work = Self {
            telling: Telling::new(parts.metrics.clone(), parts.events.clone()),
            writes: Schedule::default(),
            reads: Schedule::default(),
            write_pace: Pace::new(policy.writes_per_second, now),
            read_pace: Pace::new(policy.writes_per_second, now),
            keys: Keys::new(match scope {
                Scope::Everything => Retries::AfterAPause,
                Scope::Once(_) => Retries::Never,
            }),
            under_way: HashSet::new(),
            troubles: Troubles::default(),
            intents: HashMap::new(),
            answers: HashMap::new(),
            opted_in: HashSet::new(),
            forced: HashSet::new(),
            results: BTreeMap::new(),
            tasks: JoinSet::new(),
            landings: parts.tokens.landings(),
            mints: JoinSet::new(),
            clocks: (now, parts.clock.now()),
            counted: None,
            policy,
            policies,
            parts,
            term,
            scope,
            progress,
        };
        let names = work.names();
        let said = |name: &&Namespace| work.parts.store.said(name).is_some();
        work.opted_in = names.iter().filter(said).cloned().collect();
        if let Scope::Once(sweep) = &work.scope {
            work.results = names
                .iter()
                .map(|name| (name.clone(), swept(name)))
                .collect();
            if sweep.renews_all {
                work.forced = names.into_iter().collect();
            }
        }
        work
    }

    /// The namespaces that it is about.
    pub(super) fn names(&self) -> Vec<Namespace> {
        let mut names = self.parts.store.names();
        names.retain(|name| self.is_for(name));
        names
    }

    fn is_for(&self, namespace: &Namespace) -> bool {
        match &self.scope {
            Scope::Everything => true,
            Scope::Once(sweep) => sweep
                .namespaces
                .as_ref()
                .is_none_or(|names| names.contains(namespace)),
        }
    }

    /// Works until the term is over, or until a sweep has nothing left to do; then waits for what is under way.
    pub(super) async fn run(&mut self) {
        self.consider_all();
        while self.term.holds() {
            self.tick();
            self.take_up_what_is_due().await;
            if matches!(self.scope, Scope::Once(_)) && self.is_settled() {
                break;
            }
            let wake = self.next_wake();
            tokio::select! {
                // What is under way ends before the news of it is read, which are among the changes.
                biased;
                () = self.term.lost() => break,
                Some(done) = self.tasks.join_next() => self.finished_all(done.ok()),
                Some(Ok((key, minted))) = self.mints.join_next() => self.minted(&key, minted),
                changed = self.parts.changes.next() => {
                    for namespace in changed {
                        self.changed(&namespace);
                    }
                }
                policy = self.policies.next() => self.reconfigure(policy),
                Ok(()) = self.landings.changed() => self.look_for_luck().await,
                () = sleep_until(wake) => {}
            }
        }
        // The fence lets nothing more out, so this is the wait for answers.
        while let Some(done) = self.tasks.join_next().await {
            self.finished_all(done.ok());
        }
        self.telling.backlog(0, 0, Duration::ZERO);
    }

    /// What a sweep did.
    pub(super) fn into_results(self) -> Vec<Swept> {
        let now = self.parts.clock.now();
        let plans: Vec<bool> = self
            .results
            .keys()
            .map(|namespace| self.plan(namespace, now).is_none_or(|plan| plan.at > now))
            .collect();
        let results = self.results.into_values().zip(plans);
        results
            .map(|(swept, is_done)| Swept { is_done, ..swept })
            .collect()
    }

    fn consider_all(&mut self) {
        let mut names = self.names();
        // Intents that we know of by what another leader left: the newest versions are the most recent Pods'.
        let version = |name: &Namespace| self.parts.store.secret(name).map(|entry| entry.version());
        names.sort_by_cached_key(version);
        let now = self.parts.clock.now();
        for (place, namespace) in names.iter().rev().enumerate() {
            let planned = self.plan(namespace, now);
            if planned.as_ref().is_some_and(|it| it.class == Class::Intent) {
                let earlier = SignedDuration::from_nanos(i64::try_from(place).unwrap_or_default());
                let at = now.saturating_sub(earlier).unwrap_or(now);
                self.intents.entry(namespace.clone()).or_insert(at);
            }
            if !self.under_way.contains(namespace) {
                self.follow(namespace, planned, now);
            }
        }
    }

    /// From now on another configuration counts. The term goes on: what is under way ends, and is looked at by it then.
    fn reconfigure(&mut self, policy: Arc<Policy>) {
        tracing::info!("all is planned anew by the new configuration");
        let now = Instant::now();
        self.write_pace.change(policy.writes_per_second, now);
        self.read_pace.change(policy.writes_per_second, now);
        self.policy = policy;
        self.troubles.start_over();
        self.consider_all();
    }

    /// The watches saw something.
    fn changed(&mut self, namespace: &Namespace) {
        self.see_whether_opted_in(namespace);
        // What it asks for, it asks for now.
        self.intents.remove(namespace);
        self.consider(namespace);
    }

    fn see_whether_opted_in(&mut self, namespace: &Namespace) {
        let is_opted_in = self.parts.store.said(namespace).is_some();
        if !is_opted_in {
            self.opted_in.remove(namespace);
        } else if self.opted_in.insert(namespace.clone()) && matches!(self.scope, Scope::Everything)
        {
            self.answers.remove(namespace);
            self.telling.opted_in(namespace);
        }
    }

    /// What is to be done for a namespace.
    pub(super) fn plan(&self, namespace: &Namespace, now: Timestamp) -> Option<Plan> {
        let said = self.parts.store.said(namespace);
        let entry = self.parts.store.secret(namespace);
        let known = entry.as_deref().map(Entry::knowledge);
        let policy = &*self.policy;
        let mut planned = plan(namespace, said.as_ref(), known, policy, now)?;
        let is_forced = self.forced.contains(namespace);
        if is_forced && planned.action == Action::AskNamespace {
            planned.at = now;
        }
        if planned.action == Action::AskNamespace
            && planned.at <= now
            && let Some((said, at)) = self.answers.get(namespace)
            && at.elapsed() < ANSWER_GOOD_FOR
        {
            planned = leaving(namespace, said, known.and_then(claimed)?, policy, now)?;
        }
        if is_forced
            && let Action::Write(target) = &mut planned.action
            && !matches!(target.terms, Terms::Whole { retired: true, .. })
        {
            target.due = target.keys.keys().cloned().collect();
            planned.at = now;
        }
        Some(planned)
    }

    /// Plans a namespace anew. While something is under way for it, that waits.
    fn consider(&mut self, namespace: &Namespace) {
        if self.under_way.contains(namespace) || !self.is_for(namespace) {
            return;
        }
        let now = self.parts.clock.now();
        let planned = self.plan(namespace, now);
        self.follow(namespace, planned, now);
    }

    fn follow(&mut self, namespace: &Namespace, planned: Option<Plan>, now: Timestamp) {
        let Some(planned) = planned else {
            let entry = self.parts.store.secret(namespace);
            if let Some(Knowledge::Foreign(why)) = entry.as_deref().map(Entry::knowledge)
                && self.opted_in.contains(namespace)
            {
                self.telling.foreign(namespace, *why);
            }
            self.keys.leave(namespace);
            return self.unset(namespace);
        };
        if planned.at > now {
            self.keys.leave(namespace);
        }
        self.set(namespace, &planned, now);
    }

    fn set(&mut self, namespace: &Namespace, planned: &Plan, now: Timestamp) {
        let (mut class, mut at, ends) = (planned.class, planned.at, planned.ends);
        if planned.class == Class::Intent {
            at = *self.intents.entry(namespace.clone()).or_insert(at);
        } else {
            self.intents.remove(namespace);
        }
        if let Some(until) = self.troubles.until(namespace) {
            if matches!(self.scope, Scope::Once(_)) {
                // One sweep tries once.
                self.writes.remove(namespace);
                return self.reads.remove(namespace);
            }
            // Not before those that have not failed.
            class = class.max(Class::Changed);
            let left = until.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                let left = SignedDuration::try_from(left).unwrap_or_default();
                at = at.max(now.saturating_add(left).unwrap_or(now));
            }
        }
        let (one, other) = match planned.action {
            Action::Look | Action::AskNamespace => (&mut self.reads, &mut self.writes),
            Action::Write(_) | Action::Remove => (&mut self.writes, &mut self.reads),
        };
        other.remove(namespace);
        one.set(namespace, class, at, ends);
    }

    fn unset(&mut self, namespace: &Namespace) {
        self.writes.remove(namespace);
        self.reads.remove(namespace);
        self.troubles.forget(namespace);
        self.intents.remove(namespace);
        if !self.opted_in.contains(namespace) {
            self.telling.forget(namespace);
        }
    }

    /// Begins as much of what is due as may be under way, at its pace.
    async fn take_up_what_is_due(&mut self) {
        for _ in 0..AT_ONCE {
            if self.under_way.len() >= MAX_UNDER_WAY || !self.term.holds() {
                return;
            }
            let (now, instant) = (self.parts.clock.now(), Instant::now());
            if self.write_pace.next() <= instant
                && let Some(namespace) = self.writes.pop(now)
            {
                self.take_up_write(&namespace, now).await;
            } else if self.read_pace.next() <= instant
                && let Some(namespace) = self.reads.pop(now)
            {
                self.take_up_read(&namespace, now);
            } else {
                return;
            }
        }
    }

    fn take_up_read(&mut self, namespace: &Namespace, now: Timestamp) {
        let Some(planned) = self.plan(namespace, now) else {
            return;
        };
        let is_due = planned.at <= now;
        let (parts, name) = (self.parts.clone(), namespace.clone());
        let deadline = Instant::now() + WORK_TIMEOUT;
        let call: BoxFuture<'static, Done> = match planned.action {
            Action::Look if is_due => {
                async move { Done::Looked(parts.store.look(&name, deadline).await) }.boxed()
            }
            Action::AskNamespace if is_due => {
                async move { Done::Asked(parts.store.ask(&name, deadline).await) }.boxed()
            }
            _ => return self.set(namespace, &planned, now),
        };
        self.read_pace.take(Instant::now());
        self.spawn(namespace, call);
    }

    async fn take_up_write(&mut self, namespace: &Namespace, now: Timestamp) {
        let Some(planned) = self.plan(namespace, now) else {
            return;
        };
        if planned.at > now {
            return self.set(namespace, &planned, now);
        }
        let (parts, name, term) = (self.parts.clone(), namespace.clone(), self.term.clone());
        let deadline = Instant::now() + WORK_TIMEOUT;
        let call = match planned.action {
            Action::Remove => {
                async move { Done::Removed(parts.store.remove(&name, &term, deadline).await) }
                    .boxed()
            }
            Action::Write(target) => {
                let Some(wanted) = self.wanted(namespace, &target, planned.at, now).await else {
                    return;
                };
                let class = planned.class;
                let most = self.policy.rules.registries_per_secret;
                async move {
                    let manner = Manner {
                        terms: target.terms,
                        most,
                        replaces_tampered: target.heals == Some(Damage::Changed),
                        fence: &term,
                    };
                    let written = parts.store.write(&name, &wanted, manner, deadline).await;
                    Done::Wrote(Box::new(target), class, written)
                }
                .boxed()
            }
            Action::Look | Action::AskNamespace => {
                return self.set(namespace, &planned, now);
            }
        };
        self.write_pace.take(Instant::now());
        self.spawn(namespace, call);
    }

    fn spawn(&mut self, namespace: &Namespace, call: BoxFuture<'static, Done>) {
        self.under_way.insert(namespace.clone());
        let namespace = namespace.clone();
        self.tasks.spawn(async move {
            let done = AssertUnwindSafe(call).catch_unwind().await;
            (namespace, done.unwrap_or(Done::Crashed))
        });
    }

    /// What to write, with the tokens that there are. `None` if nothing would be better by it: then the namespace waits for
    /// the tokens that it lacks.
    async fn wanted(
        &mut self,
        namespace: &Namespace,
        target: &Target,
        due: Timestamp,
        now: Timestamp,
    ) -> Option<BTreeMap<Host, Want>> {
        let entry = self.parts.store.secret(namespace);
        let state = entry
            .as_deref()
            .and_then(|entry| claimed(entry.knowledge()));
        let mut wanted = BTreeMap::new();
        let mut lacking = BTreeSet::new();
        let mut improves = target.must_write;
        let mut is_urgent = false;
        let mut has_any = false;
        for (host, key) in &target.keys {
            let token = self.parts.tokens.usable(key).await;
            has_any |= token.is_some();
            if target.due.contains(host) {
                if !token.as_ref().is_some_and(|token| is_new(token, now)) {
                    lacking.insert(key.clone());
                }
                let had = state
                    .and_then(|state| state.hosts.get(host))
                    .filter(|had| had.identity == key.identity.hash())
                    .and_then(|had| had.lifetime)
                    .filter(|life| life.freshness(now) != Freshness::Expired);
                improves |= token.as_ref().is_some_and(|token| {
                    had.is_none_or(|had| had.expires_at < token.lifetime().expires_at)
                });
                // Better an older token at once than a new one later.
                is_urgent |= token.is_some() && had.is_none();
            }
            let identity = key.identity.hash();
            wanted.insert(host.clone(), Want { identity, token });
        }
        // What somebody changed may still open registries, and nothing at all opens none but the public ones.
        let may_open = lacking
            .iter()
            .any(|key| key.endpoint.service == Service::Private);
        improves &= target.heals != Some(Damage::Changed) || has_any || !may_open;
        for key in &lacking {
            self.want_token(key);
        }
        let instant = Instant::now();
        let mut waits = false;
        let mut failing = None;
        for key in &lacking {
            match self.keys.standing(key, instant) {
                Standing::Failing(error) => {
                    self.telling.waits(namespace, error);
                    failing = Some(error.to_string());
                }
                Standing::Minting | Standing::Free => waits = true,
            }
        }
        if failing.is_some() {
            self.result(namespace, |swept| swept.error = failing);
        }
        if is_urgent || (!waits && (lacking.is_empty() || improves)) {
            self.keys.leave(namespace);
            return Some(wanted);
        }
        if let Some(at) = self
            .policy
            .next_without(&lacking, namespace, target, state, now)
        {
            self.writes.set(namespace, Class::Due, at, at);
        }
        self.keys.wait(namespace, lacking, due);
        None
    }

    /// Has a token minted, unless it is being minted or can't be had.
    fn want_token(&mut self, key: &TokenKey) {
        if matches!(self.keys.standing(key, Instant::now()), Standing::Free) {
            self.keys.start(key);
            self.mint_some();
        }
    }

    /// Begins to mint what is to be minted, as much as may be at a time: admissions mint beside us.
    fn mint_some(&mut self) {
        while self.mints.len() < MAX_MINTS
            && let Some(key) = self.keys.take_first()
        {
            let tokens = self.parts.tokens.clone();
            self.mints.spawn(async move {
                let minted = tokens.renew(&key).await;
                (key, minted)
            });
        }
    }

    fn minted(&mut self, key: &TokenKey, minted: Result<Arc<Token>, MintError>) {
        self.keys.minted(key);
        let now = self.parts.clock.now();
        let useless = || {
            let call = Call::GetAuthorizationToken;
            MintError::Unusable(call, MalformedReply::Expired)
        };
        let minted = minted.and_then(|token| is_new(&token, now).then_some(()).ok_or_else(useless));
        match minted {
            Ok(()) => self.landed(key),
            Err(error) => {
                let (asking, pause) = self.keys.failed(key, error.clone(), Instant::now());
                self.telling.no_token(key, &error, pause);
                for namespace in asking {
                    self.result(&namespace, |swept| {
                        swept.error = Some(error.to_string());
                    });
                    self.consider(&namespace);
                }
            }
        }
        self.mint_some();
    }

    fn landed(&mut self, key: &TokenKey) {
        let (waiting, failures) = self.keys.landed(key);
        if failures > 0 {
            Telling::token_again(key, failures, waiting.len());
        }
        for namespace in waiting {
            self.consider(&namespace);
        }
    }

    fn finished_all(&mut self, first: Option<(Namespace, Done)>) {
        let mut next = first;
        while let Some((namespace, done)) = next {
            self.finished(&namespace, done);
            next = self.tasks.try_join_next().and_then(Result::ok);
        }
    }

    fn finished(&mut self, namespace: &Namespace, done: Done) {
        self.under_way.remove(namespace);
        let mut was_due = 0;
        let kind = match done {
            // It was read, and more is known of it now.
            Done::Wrote(_, _, Ok(Written::Tampered(_))) | Done::Looked(Ok(())) => Some(Kind::Look),
            Done::Wrote(target, class, Ok(written)) => {
                if written == Written::Done {
                    was_due = target.due.len();
                    self.wrote(namespace, &target, class);
                }
                self.forced.remove(namespace);
                Some(Kind::Write)
            }
            Done::Removed(Ok(())) => {
                self.telling.removed(namespace);
                self.result(namespace, |swept| swept.written = true);
                Some(Kind::Remove)
            }
            Done::Asked(Ok(answer)) => {
                match answer {
                    // The watch will say so too.
                    Look::OptedIn(_) => {}
                    Look::OptedOut(said) => {
                        let answer = (said, Instant::now());
                        self.answers.insert(namespace.clone(), answer);
                    }
                    Look::Absent => self.parts.store.forget(namespace),
                }
                Some(Kind::Ask)
            }
            Done::Wrote(_, _, Err(error))
            | Done::Looked(Err(error))
            | Done::Removed(Err(error)) => {
                self.failed(namespace, &error);
                None
            }
            Done::Asked(Err(error)) => {
                self.troubles.failed(namespace, Instant::now());
                self.telling.unread(namespace, &error);
                self.result(namespace, |swept| swept.error = Some(error.to_string()));
                None
            }
            Done::Crashed => {
                self.failed(namespace, &EnsureError::Crashed);
                None
            }
        };
        // Our own call's news among others: it is planned anew here, once.
        if self.parts.changes.take(namespace) {
            self.see_whether_opted_in(namespace);
        }
        let now = self.parts.clock.now();
        let planned = self.plan(namespace, now);
        let due = planned.as_ref().filter(|plan| plan.at <= now);
        let is_due = due.map_or(0, |plan| match &plan.action {
            Action::Write(target) => target.due.len(),
            _ => 0,
        });
        // Of what was due a part is done, and the rest may have to wait.
        let is_a_part = (1..was_due).contains(&is_due);
        if let Some(kind) = kind.filter(|_| !is_a_part) {
            self.went_well(namespace, &kind, due);
        }
        self.follow(namespace, planned, now);
        self.report_progress();
    }

    /// What went well and yet is to be done again at once would be done for ever.
    fn went_well(&mut self, namespace: &Namespace, kind: &Kind, due: Option<&Plan>) {
        match due {
            Some(planned) if kind_of(&planned.action) == *kind => {
                self.troubles.failed(namespace, Instant::now());
            }
            Some(_) => {}
            None => {
                if self.troubles.went_well(namespace) {
                    self.telling.is_well(namespace);
                }
                self.result(namespace, |swept| swept.error = None);
            }
        }
    }

    fn wrote(&mut self, namespace: &Namespace, target: &Target, class: Class) {
        let reason = match (target.heals, target.terms, class) {
            (Some(_), ..) => "healed",
            (None, Terms::Whole { retired: true, .. }, _) => "retired",
            (None, _, Class::Intent) => "intent",
            // One that is marked as opted out has nothing new.
            (
                None,
                Terms::Whole {
                    opted_out_at: None, ..
                },
                Class::Changed,
            ) => "new",
            (None, ..) => "due",
        };
        self.telling.wrote(namespace, target, reason);
        self.result(namespace, |swept| swept.written = true);
        match (target.terms, class) {
            (Terms::Whole { retired: true, .. }, _) => self.telling.retired(namespace),
            // The mark itself; what is renewed after it is merely due.
            (
                Terms::Whole {
                    opted_out_at: Some(_),
                    ..
                },
                Class::Changed,
            ) => {
                let grace = Duration::try_from(self.policy.grace).unwrap_or_default();
                self.telling.opted_out(namespace, grace);
            }
            _ => {}
        }
        if target.heals.is_some()
            && let Some(fight) = self.troubles.healed(namespace, Instant::now())
        {
            self.telling.fight(namespace, fight.times, fight.pause);
        }
    }

    fn failed(&mut self, namespace: &Namespace, error: &EnsureError) {
        if matches!(error, EnsureError::NotLeading) {
            return;
        }
        self.result(namespace, |swept| swept.error = Some(error.to_string()));
        let times = self.troubles.failed(namespace, Instant::now());
        self.telling.failed(namespace, error, times);
    }

    /// What time brings: tokens to be tried again, clocks that went apart, figures.
    fn tick(&mut self) {
        let (instant, now) = (Instant::now(), self.parts.clock.now());
        let by_clock = now.duration_since(self.clocks.1);
        let by_time = SignedDuration::try_from(instant.duration_since(self.clocks.0));
        let apart = by_clock - by_time.unwrap_or(by_clock);
        if apart.unsigned_abs() > CLOCK_STEP {
            tracing::info!(
                seconds = apart.as_secs(),
                "the clock was set or the machine slept; all is planned anew"
            );
            self.keys.hurry(instant);
            self.consider_all();
        }
        self.clocks = (instant, now);
        if self.counted.is_some_and(|at| at.elapsed() < COUNT_EVERY) {
            self.retry(instant);
            return;
        }
        self.counted = Some(instant);
        self.retry(instant);
        self.troubles.forget_peace(instant);
        self.answers
            .retain(|_, (_, at)| at.elapsed() < ANSWER_GOOD_FOR);
        let (due, since) = self.writes.backlog(now);
        let oldest = since.into_iter().chain(self.keys.oldest_due()).min();
        let overdue = oldest.map(|since| now.duration_since(since));
        let overdue = overdue.and_then(|overdue| Duration::try_from(overdue).ok());
        self.telling
            .backlog(due, self.keys.waiting(), overdue.unwrap_or_default());
    }

    /// A token has come into the cache: an admission may have had more luck than we.
    async fn look_for_luck(&mut self) {
        let now = self.parts.clock.now();
        for key in self.keys.wanting() {
            let token = self.parts.tokens.usable(&key).await;
            if token.is_some_and(|token| is_new(&token, now)) {
                self.landed(&key);
            }
        }
    }

    fn retry(&mut self, instant: Instant) {
        for key in self.keys.take_retries(instant) {
            self.want_token(&key);
        }
    }

    fn next_wake(&mut self) -> Instant {
        let (instant, now) = (Instant::now(), self.parts.clock.now());
        let mut wake = instant + MAX_SLEEP;
        if self.under_way.len() < MAX_UNDER_WAY {
            for (schedule, pace) in [
                (&self.writes, &self.write_pace),
                (&self.reads, &self.read_pace),
            ] {
                if let Some(at) = schedule.next_at() {
                    let left = Duration::try_from(at.duration_since(now)).unwrap_or_default();
                    wake = wake.min((instant + left.min(MAX_SLEEP)).max(pace.next()));
                }
            }
        }
        self.keys.next_retry().map_or(wake, |at| wake.min(at))
    }

    /// Whether nothing is under way and nothing is due that was not tried.
    fn is_settled(&self) -> bool {
        let now = self.parts.clock.now();
        let is_later = |schedule: &Schedule| schedule.next_at().is_none_or(|at| at > now);
        self.under_way.is_empty()
            && self.mints.is_empty()
            && is_later(&self.writes)
            && is_later(&self.reads)
    }

    fn result(&mut self, namespace: &Namespace, change: impl FnOnce(&mut Swept)) {
        if let Some(swept) = self.results.get_mut(namespace) {
            change(swept);
        }
    }

    fn report_progress(&mut self) {
        if let Some(progress) = self.progress {
            let now = self.parts.clock.now();
            let left = self.writes.due(now) + self.reads.due(now);
            let all = self.results.len();
            let left = left + self.under_way.len() + self.keys.waiting();
            progress(all.saturating_sub(left), all);
        }
    }
}

fn swept(namespace: &Namespace) -> Swept {
    Swept {
        namespace: namespace.clone(),
        written: false,
        error: None,
        is_done: false,
    }
}

/// Whether a token is so new that what is written with it isn't due at once.
fn is_new(token: &Token, now: Timestamp) -> bool {
    let life = token.lifetime();
    life.freshness(now) != Freshness::Expired && !life.has_used(TOGETHER_FROM_PERCENT, now)
}

/// What a pull secret has, as far as anything says so.
fn claimed(known: &Knowledge) -> Option<&State> {
    match known {
        Knowledge::Ours(state) => Some(state),
        Knowledge::Unverified {
            since: Unverified::Listed,
            claims,
            ..
        } => claims.as_ref(),
        _ => None,
    }
}

fn kind_of(action: &Action) -> Kind {
    match action {
        Action::Write(_) => Kind::Write,
        Action::Look => Kind::Look,
        Action::AskNamespace => Kind::Ask,
        Action::Remove => Kind::Remove,
    }
}
