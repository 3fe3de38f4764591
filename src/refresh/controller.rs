//! The leader's loop: whose turn it is, what comes of it, and what has changed meanwhile.
//!
//! One task owns all of it. Calls run beside it, at most [`MAX_UNDER_WAY`] at a time, each with a deadline; a namespace has
//! at most one. A write never waits for AWS: a namespace whose token isn't there is set aside until it is.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use jiff::{SignedDuration, Timestamp};
use tokio::{
    sync::broadcast::{self, error::RecvError},
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    WORK_TIMEOUT,
    backoffs::Backoffs,
    mint_queue::{MintStatus, Overdue},
    minter::{Minted, Minter, is_new},
    plan::{Action, DesiredState, Plan, Priority, due_since},
    queue::{Due, WorkQueue},
    rate_limiter::RateLimiter,
    reconciler::{Facts, Reconciler},
    reporter::Reporter,
};
use crate::{
    cluster::{lease::Leadership, namespace::Namespace},
    process::current::Follower,
    pull_secret::{
        Damage, DesiredCredential, Observed,
        writer::{PullSecretError, WriteOutcome},
    },
    registry::{Host, Service},
    rules::Policy,
    token::{Token, TokenKey, cache::MintError},
};

/// Calls to the API server under way at the same time.
const MAX_UNDER_WAY: usize = 16;
/// The longest sleep: after a suspend or a step of the clock it takes no longer to notice.
const MAX_SLEEP: Duration = Duration::from_secs(10);
/// The clocks differ by more than this only if the machine slept or its clock was set.
const CLOCK_STEP: Duration = Duration::from_secs(30);
/// Namespaces that are started before the loop looks at what has come in meanwhile.
const AT_ONCE: usize = 256;
/// How often the backlog is counted.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// One term's work.
pub(super) struct Controller {
    reconciler: Reconciler,
    /// The configuration by which everything is planned until the next one comes.
    policy: Arc<Policy>,
    policies: Follower<Policy>,
    term: Leadership,
    reporter: Reporter,
    writes: WorkQueue,
    reads: WorkQueue,
    write_limit: RateLimiter,
    read_limit: RateLimiter,
    minter: Minter,
    backoffs: Backoffs,
    under_way: HashSet<Namespace>,
    /// The namespaces that were charged for a read or a token: what is written because of that is not charged again.
    charged: HashSet<Namespace>,
    opted_in: HashSet<Namespace>,
    tasks: JoinSet<(Namespace, Done)>,
    /// Tells of each token that comes into the cache.
    landings: broadcast::Receiver<TokenKey>,
    clocks: (Instant, Timestamp),
    counted: Option<Instant>,
}

/// What came of a call.
enum Done {
    Wrote(
        Box<DesiredState>,
        Priority,
        Result<WriteOutcome, PullSecretError>,
    ),
    Looked(Result<(), PullSecretError>),
    Removed(Result<bool, PullSecretError>),
    Crashed,
}

/// The kinds of work, to tell whether one led to the same again.
#[derive(PartialEq, Eq)]
enum Kind {
    Write,
    Look,
    Remove,
}

impl Controller {
    pub(super) fn new(reconciler: Reconciler, term: Leadership) -> Self {
        let now = Instant::now();
        let parts = reconciler.parts();
        let (policies, policy) = (parts.policy.follow(), parts.policy.get());
        Self {
            reporter: Reporter::new(parts.metrics.clone(), parts.events.clone()),
            writes: WorkQueue::default(),
            reads: WorkQueue::default(),
            write_limit: RateLimiter::new(policy.writes_per_second, now),
            read_limit: RateLimiter::new(policy.writes_per_second, now),
            minter: Minter::new(parts.tokens.clone()),
            backoffs: Backoffs::default(),
            under_way: HashSet::new(),
            charged: HashSet::new(),
            opted_in: parts.namespaces.names().into_iter().collect(),
            tasks: JoinSet::new(),
            landings: parts.tokens.landings(),
            clocks: (now, parts.clock.now()),
            counted: None,
            policy,
            policies,
            term,
            reconciler,
        }
    }

    fn now(&self) -> Timestamp {
        self.reconciler.parts().clock.now()
    }

    /// Works until the term is over; then waits for what is under way.
    pub(super) async fn run(mut self) {
        self.enqueue_all();
        let news = self.reconciler.changes().clone();
        while self.term.holds() {
            self.tick();
            self.start_due_work().await;
            let wake = self.next_wake();
            tokio::select! {
                // What is under way ends before the news of it is read, which are among the changes.
                biased;
                () = self.term.lost() => break,
                Some(done) = self.tasks.join_next() => self.finished_all(done.ok()),
                Some((key, minted)) = self.minter.next() => self.minted(&key, minted),
                changed = news.next() => {
                    for namespace in changed {
                        self.changed(&namespace);
                    }
                }
                policy = self.policies.next() => self.reconfigure(policy),
                landed = self.landings.recv() => self.landed_elsewhere(landed).await,
                () = sleep_until(wake) => {}
            }
        }
        // The fence lets nothing more out, so this is the wait for answers.
        while let Some(done) = self.tasks.join_next().await {
            self.finished_all(done.ok());
        }
        self.reporter.backlog(0, 0, Duration::ZERO);
    }

    fn enqueue_all(&mut self) {
        for namespace in self.reconciler.names() {
            self.enqueue(&namespace);
        }
        self.reporter.planned_all(self.opted_in.len());
    }

    /// From now on another configuration counts. The term goes on: what is under way ends, and is planned by it then.
    fn reconfigure(&mut self, policy: Arc<Policy>) {
        tracing::info!("configuration changed; rescheduling all namespaces");
        let now = Instant::now();
        self.write_limit.change(policy.writes_per_second, now);
        self.read_limit.change(policy.writes_per_second, now);
        self.policy = policy;
        self.backoffs.clear();
        self.enqueue_all();
    }

    /// The watches saw something.
    fn changed(&mut self, namespace: &Namespace) {
        self.see_whether_opted_in(namespace);
        self.enqueue(namespace);
    }

    fn see_whether_opted_in(&mut self, namespace: &Namespace) {
        let settings = self.reconciler.parts().namespaces.settings(namespace);
        if settings.is_some() {
            if self.opted_in.insert(namespace.clone()) {
                self.reporter.opted_in(namespace);
            }
        } else if self.opted_in.remove(namespace) {
            let is_there = self.reconciler.facts(namespace).entry;
            if is_there.is_some_and(|entry| entry.is_there()) {
                self.reporter.opted_out(namespace);
            } else {
                self.reporter.forget(namespace);
            }
        }
    }

    /// Plans a namespace, and queues it for when there is something to do. While a call is under way for it, that waits.
    fn enqueue(&mut self, namespace: &Namespace) {
        if self.under_way.contains(namespace) {
            return;
        }
        let now = self.now();
        let facts = self.reconciler.facts(namespace);
        let planned = Reconciler::plan(namespace, &facts, &self.policy, now);
        self.schedule(namespace, &facts, planned.as_ref(), now);
    }

    fn schedule(
        &mut self,
        namespace: &Namespace,
        facts: &Facts,
        planned: Option<&Plan>,
        now: Timestamp,
    ) {
        let Some(planned) = planned else {
            return self.unschedule(namespace, facts);
        };
        if let Action::Write(desired) = &planned.action {
            self.reporter.suspended(namespace, &desired.suspended);
        }
        if planned.at > now {
            self.minter.queue.leave(namespace);
        }
        let mut due = Due {
            priority: planned.priority,
            at: planned.at,
            ends: planned.ends,
        };
        if let Some(until) = self.backoffs.until(namespace)
            && !self.charged.contains(namespace)
        {
            // Not before those that have not failed, and no turn is kept for it.
            due.priority = due.priority.max(Priority::Changed);
            due.ends = None;
            let left = until.saturating_duration_since(Instant::now());
            let left = SignedDuration::try_from(left).unwrap_or_default();
            due.at = due.at.max(now.saturating_add(left).unwrap_or(now));
        }
        let (one, other) = match planned.action {
            Action::Look => (&mut self.reads, &mut self.writes),
            Action::Write(_) | Action::Remove => (&mut self.writes, &mut self.reads),
        };
        other.remove(namespace);
        one.set(namespace, due);
    }

    fn unschedule(&mut self, namespace: &Namespace, facts: &Facts) {
        if let Some(Observed::Foreign(why)) = facts.observed()
            && facts.settings.is_some()
        {
            self.reporter.foreign(namespace, *why);
        }
        self.backoffs.forget(namespace);
        self.minter.queue.leave(namespace);
        self.writes.remove(namespace);
        self.reads.remove(namespace);
        if facts.settings.is_none() {
            self.reporter.forget(namespace);
            self.minter.queue.forget(namespace);
            self.writes.forget(namespace);
            self.reads.forget(namespace);
        }
    }

    /// Starts as much of what is due as may be under way, at its pace.
    async fn start_due_work(&mut self) {
        for _ in 0..AT_ONCE {
            if self.under_way.len() >= MAX_UNDER_WAY || !self.term.holds() {
                return;
            }
            let (now, instant) = (self.now(), Instant::now());
            let write = (self.write_limit.next() <= instant)
                .then(|| self.writes.pop(now))
                .flatten();
            let popped = match write {
                Some(namespace) => Some(namespace),
                None if self.read_limit.next() <= instant => self.reads.pop(now),
                None => None,
            };
            let Some(namespace) = popped else { return };
            self.start(&namespace, now).await;
        }
    }

    /// Starts what is planned for a namespace, by what is known now.
    async fn start(&mut self, namespace: &Namespace, now: Timestamp) {
        let facts = self.reconciler.facts(namespace);
        let planned = Reconciler::plan(namespace, &facts, &self.policy, now);
        let Some(planned) = planned.filter(|planned| planned.at <= now) else {
            return self.enqueue(namespace);
        };
        let (reconciler, name) = (self.reconciler.clone(), namespace.clone());
        let (term, deadline) = (self.term.clone(), Instant::now() + WORK_TIMEOUT);
        let is_by_time = match &planned.action {
            Action::Write(desired) => desired.is_by_time,
            Action::Look => planned.priority == Priority::Check,
            Action::Remove => true,
        };
        let (call, is_write): (BoxFuture<'static, Done>, bool) = match planned.action {
            Action::Look => {
                let call =
                    async move { Done::Looked(reconciler.look(&name, &facts, deadline).await) };
                (call.boxed(), false)
            }
            Action::Remove => {
                let call =
                    async move { Done::Removed(reconciler.remove(&name, &term, deadline).await) };
                (call.boxed(), true)
            }
            Action::Write(desired) => {
                let wanted = self.gather(namespace, &facts, &desired, now).await;
                let Some(wanted) = wanted else { return };
                let (priority, limit) = (planned.priority, self.policy.rules.registries_per_secret);
                let call = async move {
                    let within = (&term, deadline);
                    let written = reconciler
                        .write(&name, &facts, &desired, &wanted, limit, within)
                        .await;
                    Done::Wrote(desired, priority, written)
                };
                (call.boxed(), true)
            }
        };
        let instant = Instant::now();
        if is_write {
            self.write_limit.take(instant);
            self.writes.served(namespace);
        } else {
            self.read_limit.take(instant);
            self.reads.served(namespace);
        }
        let is_charged = self.charged.remove(namespace);
        if !is_by_time
            && !is_charged
            && let Some(contention) = self.backoffs.charge(namespace, instant)
        {
            let is_edited = !is_write;
            let (times, pause) = (contention.times, contention.pause);
            self.reporter.contended(namespace, times, pause, is_edited);
        }
        self.under_way.insert(namespace.clone());
        let namespace = namespace.clone();
        self.tasks.spawn(async move {
            let done = AssertUnwindSafe(call).catch_unwind().await;
            (namespace, done.unwrap_or(Done::Crashed))
        });
    }

    /// Gathers the tokens for a write. `None` if nothing would be better by it: then the namespace waits for those that it
    /// lacks.
    async fn gather(
        &mut self,
        namespace: &Namespace,
        facts: &Facts,
        desired: &DesiredState,
        now: Timestamp,
    ) -> Option<BTreeMap<Host, DesiredCredential>> {
        let state = facts.state();
        let mut wanted = BTreeMap::new();
        let mut lacking = BTreeSet::new();
        let mut overdue = Overdue::default();
        let mut improves = desired.must_write;
        let mut is_urgent = false;
        let mut has_any = false;
        for (host, key) in &desired.keys {
            let token = self.minter.usable(key).await;
            has_any |= token.is_some();
            let identity = key.identity.hash();
            if desired.due.contains(host) {
                let entry = state.and_then(|state| state.hosts.get(host));
                if !token.as_ref().is_some_and(|token| is_new(token, now)) {
                    lacking.insert(key.clone());
                    let since = entry.and_then(|entry| due_since(entry, namespace, now));
                    overdue.renewal = overdue.renewal.into_iter().chain(since).min();
                    if since.is_none() {
                        overdue
                            .wishes
                            .push(entry.map_or(now, |entry| entry.demand.since));
                    }
                }
                let good = entry.and_then(|entry| entry.good(now));
                let same = good.filter(|had| had.identity == identity);
                improves |= token.as_ref().is_some_and(|token| {
                    same.is_none_or(|had| had.lifetime.expires_at < token.lifetime().expires_at)
                });
                // Better an older token at once than a new one later.
                is_urgent |= token.is_some() && good.is_none();
            }
            wanted.insert(host.clone(), DesiredCredential { identity, token });
        }
        // What somebody changed may still open registries, and nothing at all opens none but the public ones.
        let may_open = lacking
            .iter()
            .any(|key| key.endpoint.service == Service::Private);
        improves &= desired.repairs != Some(Damage::Changed) || has_any || !may_open;
        let waits = self.has_hope(namespace, &lacking);
        if is_urgent || (!waits && (lacking.is_empty() || improves)) {
            self.minter.queue.leave(namespace);
            return Some(wanted);
        }
        if !desired.is_by_time && !self.minter.queue.is_waiting(namespace, &lacking) {
            // In contention the write waits for the pause's end, too.
            if let Some(contention) = self.backoffs.charge(namespace, Instant::now()) {
                let (times, pause) = (contention.times, contention.pause);
                self.reporter.contended(namespace, times, pause, false);
                self.charged.remove(namespace);
            } else {
                self.charged.insert(namespace.clone());
            }
        }
        if let Some(at) = desired.next_without(&lacking, namespace, state, now) {
            let due = Due {
                priority: Priority::Due,
                at,
                ends: None,
            };
            self.writes.set(namespace, due);
        }
        self.minter.queue.wait(namespace, &lacking, overdue);
        self.minter.start(Instant::now());
        None
    }

    /// Whether one of these tokens isn't known to fail.
    fn has_hope(&mut self, namespace: &Namespace, lacking: &BTreeSet<TokenKey>) -> bool {
        let mut has_hope = false;
        for key in lacking {
            match self.minter.queue.status(key) {
                MintStatus::Failing(error) => self.reporter.waits(namespace, error),
                MintStatus::Minting | MintStatus::Unknown => has_hope = true,
            }
        }
        has_hope
    }

    fn minted(&mut self, key: &TokenKey, minted: Result<Arc<Token>, MintError>) {
        let now = self.now();
        match self.minter.minted(key, minted, now) {
            Minted::Landed(waiting, failures) => self.landed(key, waiting, failures),
            Minted::Failed(error, asking, pause) => {
                self.reporter.no_token(key, &error, pause);
                for namespace in asking {
                    self.enqueue(&namespace);
                }
            }
        }
        self.minter.start(Instant::now());
    }

    fn landed(&mut self, key: &TokenKey, waiting: HashSet<Namespace>, failures: u32) {
        if failures > 0 {
            Reporter::token_again(key, failures, waiting.len());
        }
        for namespace in waiting {
            self.enqueue(&namespace);
        }
    }

    /// A token has come into the cache: an admission may have got what we wait for.
    async fn landed_elsewhere(&mut self, landed: Result<TokenKey, RecvError>) {
        let now = self.now();
        let keys = match landed {
            Ok(key) => vec![key],
            // More came in than the channel holds: all that are waited for.
            Err(RecvError::Lagged(_)) => self.minter.queue.wanting(),
            Err(RecvError::Closed) => vec![],
        };
        for key in keys {
            if let Some((waiting, failures)) = self.minter.adopt(&key, now).await {
                self.landed(&key, waiting, failures);
            }
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
            Done::Looked(Ok(())) => {
                self.charged.insert(namespace.clone());
                Some(Kind::Look)
            }
            // Another writer was first, and its version is planned for now.
            Done::Wrote(_, _, Ok(WriteOutcome::Moved)) => None,
            Done::Wrote(desired, priority, Ok(outcome)) => {
                if let WriteOutcome::Written(left_out) = outcome {
                    was_due = desired.due.len();
                    self.reporter.wrote(namespace, &desired, priority);
                    Reporter::left_out(namespace, &left_out);
                }
                Some(Kind::Write)
            }
            Done::Removed(Ok(is_gone)) => {
                if is_gone {
                    self.reporter.removed(namespace);
                }
                Some(Kind::Remove)
            }
            Done::Wrote(_, _, Err(error))
            | Done::Looked(Err(error))
            | Done::Removed(Err(error)) => {
                self.failed(namespace, &error);
                None
            }
            Done::Crashed => {
                self.failed(namespace, &PullSecretError::Crashed);
                None
            }
        };
        // Our own call's news among others: it is planned for here, once.
        if self.reconciler.changes().take(namespace) {
            self.see_whether_opted_in(namespace);
        }
        let now = self.now();
        let facts = self.reconciler.facts(namespace);
        let planned = Reconciler::plan(namespace, &facts, &self.policy, now);
        let due = planned.as_ref().filter(|plan| plan.at <= now);
        let is_due = due.map_or(0, |plan| match &plan.action {
            Action::Write(desired) => desired.due.len(),
            _ => 0,
        });
        // Of what was due a part is done, and the rest may have to wait.
        let is_a_part = (1..was_due).contains(&is_due);
        if let Some(kind) = kind.filter(|_| !is_a_part) {
            self.succeeded(namespace, &kind, due);
        }
        let is_to_be_written = due.is_some_and(|plan| kind_of(&plan.action) == Kind::Write);
        if !is_to_be_written {
            self.charged.remove(namespace);
        }
        self.schedule(namespace, &facts, planned.as_ref(), now);
    }

    /// What succeeded and yet is to be done again at once would be done for ever.
    fn succeeded(&mut self, namespace: &Namespace, kind: &Kind, due: Option<&Plan>) {
        match due {
            Some(planned) if kind_of(&planned.action) == *kind => {
                self.backoffs.failed(namespace, Instant::now());
            }
            Some(_) => {}
            None => {
                if self.backoffs.succeeded(namespace) {
                    self.reporter.recovered(namespace);
                }
            }
        }
    }

    fn failed(&mut self, namespace: &Namespace, error: &PullSecretError) {
        if matches!(error, PullSecretError::NotLeading) {
            return;
        }
        let times = self.backoffs.failed(namespace, Instant::now());
        self.reporter.failed(namespace, error, times);
    }

    /// What time brings: tokens to be tried again, clocks that went apart, figures.
    fn tick(&mut self) {
        let (instant, now) = (Instant::now(), self.now());
        let by_clock = now.duration_since(self.clocks.1);
        let by_time = SignedDuration::try_from(instant.duration_since(self.clocks.0));
        let apart = by_clock - by_time.unwrap_or(by_clock);
        if apart.unsigned_abs() > CLOCK_STEP {
            tracing::info!(
                skew_seconds = apart.as_secs(),
                "the clock was set or the machine slept; rescheduling all namespaces"
            );
            self.minter.queue.clear_backoffs(instant);
            self.enqueue_all();
        }
        self.clocks = (instant, now);
        self.minter.start(instant);
        if self.counted.is_some_and(|at| at.elapsed() < COUNT_EVERY) {
            return;
        }
        self.counted = Some(instant);
        self.backoffs.prune(instant);
        let (due, since) = self.writes.backlog(now);
        let waiting = &self.minter.queue;
        let oldest = since.into_iter().chain(waiting.overdue_since(now)).min();
        let overdue = oldest.map(|since| now.duration_since(since));
        let overdue = overdue.and_then(|overdue| Duration::try_from(overdue).ok());
        let overdue = overdue.unwrap_or_default();
        self.reporter.backlog(due, waiting.waiting(), overdue);
    }

    fn next_wake(&mut self) -> Instant {
        let (instant, now) = (Instant::now(), self.now());
        let mut wake = instant + MAX_SLEEP;
        if self.under_way.len() < MAX_UNDER_WAY {
            for (queue, limit) in [
                (&self.writes, &self.write_limit),
                (&self.reads, &self.read_limit),
            ] {
                if let Some(at) = queue.next_at() {
                    let left = Duration::try_from(at.duration_since(now)).unwrap_or_default();
                    wake = wake.min((instant + left.min(MAX_SLEEP)).max(limit.next()));
                }
            }
        }
        self.minter
            .queue
            .next_retry()
            .map_or(wake, |at| wake.min(at))
    }
}

fn kind_of(action: &Action) -> Kind {
    match action {
        Action::Write(_) => Kind::Write,
        Action::Look => Kind::Look,
        Action::Remove => Kind::Remove,
    }
}
