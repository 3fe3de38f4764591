//! The leader's loop: gives each namespace its turn, and requeues the namespace by the result.
//!
//! The path of one namespace follows this file from top to bottom: [`Controller::enqueue`] plans
//! what is to be done and queues the namespace for then, [`Controller::start`] gathers the tokens
//! and spawns the call, [`Controller::finish`] reports the result and requeues the namespace.
//!
//! One task owns all state. Calls run beside it, at most [`MAX_IN_FLIGHT`] at a time, each with a
//! deadline; a namespace has at most one. A write never waits for AWS: a namespace whose token is
//! missing is set aside until the token is there.

use std::{collections::HashSet, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures::FutureExt as _;
use jiff::{SignedDuration, Timestamp};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    backoffs::Backoffs,
    clock_skew::ClockSkew,
    context::RECONCILE_TIMEOUT,
    mint_queue::MintStatus,
    minter::{Minter, TokenEvent},
    plan::{Action, ActionKind, DesiredState, Plan, Priority},
    queue::Due,
    rate_limiter::RateLimitedQueue,
    reconciler::{Call, CallOutcome, Facts, GatheredTokens, Reconciler},
    reporter::Reporter,
};
use crate::{
    cluster::{changes::Changes, lease::Leadership, namespace::Namespace},
    process::current::Follower,
    pull_secret::{Observed, writer::PullSecretError},
    token::rules::Policy,
};

/// Calls to the API server in flight at the same time.
const MAX_IN_FLIGHT: usize = 16;
/// The longest sleep: after a suspend or a step of the clock it takes no longer to notice.
const MAX_SLEEP: Duration = Duration::from_secs(10);
/// Namespaces that are started before the loop handles what has come in meanwhile.
const MAX_STARTS: usize = 256;
/// How often the backlog is measured.
const BACKLOG_PERIOD: Duration = Duration::from_secs(1);

impl Reconciler {
    /// Keeps everything fresh until the term is over and the calls in flight then have ended. Both
    /// watches have to be synced: a namespace that isn't known yet seems to be opted out.
    pub async fn lead(&self, term: Leadership) {
        let changes = self.changes();
        changes.listen();
        let _guard = ListenGuard(changes);
        Controller::new(self.clone(), term).run().await;
    }
}

/// Stops listening to the changes when it is dropped.
struct ListenGuard<'a>(&'a Changes);

impl Drop for ListenGuard<'_> {
    fn drop(&mut self) {
        self.0.ignore();
    }
}

/// The state of one term.
struct Controller {
    reconciler: Reconciler,
    /// The configuration by which everything is planned until the next one comes.
    policy: Arc<Policy>,
    policies: Follower<Policy>,
    term: Leadership,
    reporter: Reporter,
    writes: RateLimitedQueue,
    reads: RateLimitedQueue,
    minter: Minter,
    backoffs: Backoffs,
    in_flight: HashSet<Namespace>,
    /// The namespaces that were charged for a read or a token: the write that follows is not
    /// charged again.
    charged: HashSet<Namespace>,
    opted_in: HashSet<Namespace>,
    calls: JoinSet<(Namespace, CallOutcome)>,
    clock_skew: ClockSkew,
    backlog_measured: Option<Instant>,
}

impl Controller {
    fn new(reconciler: Reconciler, term: Leadership) -> Self {
        let now = Instant::now();
        let context = reconciler.context();
        let (policies, policy) = (context.policy.follow(), context.policy.get());
        Self {
            reporter: Reporter::new(context.metrics.clone(), context.events.clone()),
            writes: RateLimitedQueue::new(policy.writes_per_second, now),
            reads: RateLimitedQueue::new(policy.writes_per_second, now),
            minter: Minter::new(context.tokens.clone()),
            backoffs: Backoffs::default(),
            in_flight: HashSet::new(),
            charged: HashSet::new(),
            opted_in: context.namespaces.names().into_iter().collect(),
            calls: JoinSet::new(),
            clock_skew: ClockSkew::new(now, context.clock.now()),
            backlog_measured: None,
            policy,
            policies,
            term,
            reconciler,
        }
    }

    fn now(&self) -> Timestamp {
        self.reconciler.context().clock.now()
    }

    /// Runs until the term is over; then waits for the calls in flight.
    async fn run(mut self) {
        self.enqueue_all();
        let changes = self.reconciler.changes().clone();
        while self.term.holds() {
            self.tick();
            self.start_due_work().await;
            let wake = self.next_wake();
            tokio::select! {
                // A call ends before the changes that it made are read.
                biased;
                () = self.term.lost() => break,
                Some(done) = self.calls.join_next() => self.finish_all(done.ok()),
                event = self.minter.next() => self.update_tokens(event).await,
                namespaces = changes.next() => {
                    for namespace in namespaces {
                        self.update_opt_in(&namespace);
                        self.enqueue(&namespace);
                    }
                }
                policy = self.policies.next() => self.reconfigure(policy),
                () = sleep_until(wake) => {}
            }
        }
        // The fence stops every further write, so only answers are waited for here.
        while let Some(done) = self.calls.join_next().await {
            self.finish_all(done.ok());
        }
        self.reporter.backlog(0, 0, Duration::ZERO);
    }

    /// Replaces the configuration. The term goes on: calls in flight end, and are planned by the
    /// new configuration then.
    fn reconfigure(&mut self, policy: Arc<Policy>) {
        tracing::info!("configuration changed; rescheduling all namespaces");
        let now = Instant::now();
        self.writes.set_rate(policy.writes_per_second, now);
        self.reads.set_rate(policy.writes_per_second, now);
        self.policy = policy;
        self.backoffs.clear();
        self.enqueue_all();
    }

    /// Updates whether a namespace is opted in, and reports a change of that.
    fn update_opt_in(&mut self, namespace: &Namespace) {
        let settings = self.reconciler.context().namespaces.settings(namespace);
        if settings.is_some() {
            if self.opted_in.insert(namespace.clone()) {
                self.reporter.opted_in(namespace);
            }
        } else if self.opted_in.remove(namespace) {
            let entry = self.reconciler.facts(namespace).entry;
            if entry.is_some_and(|entry| entry.is_there()) {
                self.reporter.opted_out(namespace);
            } else {
                self.reporter.forget(namespace);
            }
        }
    }

    fn enqueue_all(&mut self) {
        for namespace in self.reconciler.names() {
            self.enqueue(&namespace);
        }
        self.reporter.planned_all(self.opted_in.len());
    }

    /// Plans a namespace, and queues it for when there is something to do. A namespace whose call
    /// is in flight is planned when the call ends.
    fn enqueue(&mut self, namespace: &Namespace) {
        if self.in_flight.contains(namespace) {
            return;
        }
        let now = self.now();
        let facts = self.reconciler.facts(namespace);
        let plan = facts.plan(namespace, &self.policy, now);
        self.schedule(namespace, &facts, plan.as_ref(), now);
    }

    /// Queues a namespace for the time of its plan, or of the end of its backoff.
    fn schedule(
        &mut self,
        namespace: &Namespace,
        facts: &Facts,
        plan: Option<&Plan>,
        now: Timestamp,
    ) {
        let Some(plan) = plan else {
            return self.unschedule(namespace, facts);
        };
        if let Action::Write(desired) = &plan.action {
            self.reporter.suspended(namespace, &desired.suspended);
        }
        if plan.at > now {
            self.minter.queue.leave(namespace);
        }
        let mut due = Due {
            priority: plan.priority,
            at: plan.at,
            ends: plan.ends,
        };
        if let Some(until) = self.backoffs.until(namespace)
            && !self.charged.contains(namespace)
        {
            // Not before namespaces that have not failed, and without a reserved turn.
            due.priority = due.priority.max(Priority::Changed);
            due.ends = None;
            let left = until.saturating_duration_since(Instant::now());
            let left = SignedDuration::try_from(left).unwrap_or_default();
            due.at = due.at.max(now.saturating_add(left).unwrap_or(now));
        }
        let (queue, other) = match plan.action.kind() {
            ActionKind::Read => (&mut self.reads, &mut self.writes),
            ActionKind::Write | ActionKind::Delete => (&mut self.writes, &mut self.reads),
        };
        other.remove(namespace);
        queue.set(namespace, due);
    }

    /// Takes a namespace out of all queues: there is nothing to do until something changes.
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

    /// Starts what is due, as far as the number of calls in flight and the rate limits allow.
    async fn start_due_work(&mut self) {
        for _ in 0..MAX_STARTS {
            if self.in_flight.len() >= MAX_IN_FLIGHT || !self.term.holds() {
                return;
            }
            let (now, instant) = (self.now(), Instant::now());
            let write = self.writes.pop(now, instant);
            let Some(namespace) = write.or_else(|| self.reads.pop(now, instant)) else {
                return;
            };
            self.start(&namespace, now).await;
        }
    }

    /// Plans a namespace whose turn it is by the facts of now, gathers the tokens, and spawns the
    /// call.
    async fn start(&mut self, namespace: &Namespace, now: Timestamp) {
        let facts = self.reconciler.facts(namespace);
        let plan = facts.plan(namespace, &self.policy, now);
        let Some(plan) = plan.filter(|plan| plan.at <= now) else {
            return self.enqueue(namespace);
        };
        let (kind, is_by_time) = (plan.action.kind(), plan.is_by_time());
        let call = match plan.action {
            Action::Read => Call::Read,
            Action::Delete => Call::Delete,
            Action::Write(desired) => {
                let gathered = self
                    .reconciler
                    .gather_tokens(namespace, &facts, &desired, now)
                    .await;
                if self.has_to_wait(namespace, &gathered) {
                    return self.wait(namespace, &facts, &desired, gathered, now);
                }
                self.minter.queue.leave(namespace);
                let limit = self.policy.rules.registries_per_secret;
                Call::Write(desired, plan.priority, gathered.credentials, limit)
            }
        };
        let queue = match kind {
            ActionKind::Read => &mut self.reads,
            ActionKind::Write | ActionKind::Delete => &mut self.writes,
        };
        queue.served(namespace, Instant::now());
        if !self.charged.remove(namespace) && !is_by_time {
            self.charge(namespace, kind == ActionKind::Read);
        }
        self.spawn(namespace, facts, call);
    }

    /// Returns whether a namespace waits for missing tokens before it is written: a write that
    /// would improve nothing, or that a token on its way would soon repeat.
    fn has_to_wait(&mut self, namespace: &Namespace, gathered: &GatheredTokens) -> bool {
        let mut may_come = false;
        for key in &gathered.missing {
            match self.minter.queue.status(key) {
                MintStatus::Failing(error) => self.reporter.waits(namespace, error),
                MintStatus::Minting | MintStatus::Unknown => may_come = true,
            }
        }
        let is_complete = gathered.missing.is_empty();
        !gathered.is_urgent && (may_come || !(is_complete || gathered.improves))
    }

    /// Sets a namespace aside until its missing tokens are there or another host is due.
    fn wait(
        &mut self,
        namespace: &Namespace,
        facts: &Facts,
        desired: &DesiredState,
        gathered: GatheredTokens,
        now: Timestamp,
    ) {
        let missing = &gathered.missing;
        if !desired.is_by_time && !self.minter.queue.is_waiting(namespace, missing) {
            // In contention the write waits for the end of the pause, too.
            if self.charge(namespace, false) {
                self.charged.remove(namespace);
            } else {
                self.charged.insert(namespace.clone());
            }
        }
        if let Some(at) = desired.next_without(missing, namespace, facts.state(), now) {
            let due = Due {
                priority: Priority::Due,
                at,
                ends: None,
            };
            self.writes.set(namespace, due);
        }
        self.minter.queue.wait(namespace, missing, gathered.overdue);
        self.minter.start(Instant::now());
    }

    /// Charges a namespace for work that time alone does not explain. Returns whether that is
    /// contention.
    fn charge(&mut self, namespace: &Namespace, is_edited: bool) -> bool {
        let contention = self.backoffs.charge(namespace, Instant::now());
        if let Some(contention) = contention {
            self.reporter.contended(namespace, contention, is_edited);
        }
        contention.is_some()
    }

    fn spawn(&mut self, namespace: &Namespace, facts: Facts, call: Call) {
        let (reconciler, term) = (self.reconciler.clone(), self.term.clone());
        let deadline = Instant::now() + RECONCILE_TIMEOUT;
        self.in_flight.insert(namespace.clone());
        let namespace = namespace.clone();
        self.calls.spawn(async move {
            let call = reconciler.execute(&namespace, &facts, call, (&term, deadline));
            let outcome = AssertUnwindSafe(call).catch_unwind().await;
            (
                namespace,
                outcome.unwrap_or(CallOutcome::Failed(PullSecretError::Crashed)),
            )
        });
    }

    fn finish_all(&mut self, first: Option<(Namespace, CallOutcome)>) {
        let mut next = first;
        while let Some((namespace, outcome)) = next {
            self.finish(&namespace, &outcome);
            next = self.calls.try_join_next().and_then(Result::ok);
        }
    }

    /// Reports the outcome of a call, and requeues the namespace by what is known now.
    fn finish(&mut self, namespace: &Namespace, outcome: &CallOutcome) {
        self.in_flight.remove(namespace);
        let mut failures = 0;
        match outcome {
            CallOutcome::Read => {
                self.charged.insert(namespace.clone());
            }
            CallOutcome::Failed(PullSecretError::NotLeading)
            | CallOutcome::Wrote(..)
            | CallOutcome::Deleted(_) => {}
            CallOutcome::Failed(_) => failures = self.backoffs.failed(namespace, Instant::now()),
        }
        self.reporter.finished(namespace, outcome, failures);
        // The change that the call made needs no turn of its own: the namespace is planned here.
        if self.reconciler.changes().take(namespace) {
            self.update_opt_in(namespace);
        }
        let now = self.now();
        let facts = self.reconciler.facts(namespace);
        let plan = facts.plan(namespace, &self.policy, now);
        let due = plan.as_ref().filter(|plan| plan.at <= now);
        if let Some((kind, written)) = outcome.succeeded() {
            let left = due.map_or(0, |plan| plan.action.due_hosts());
            // A write of a part of what was due is no failure: the rest may have to wait.
            if !(1..written).contains(&left) {
                self.update_backoff(namespace, kind, due);
            }
        }
        if due.is_none_or(|plan| plan.action.kind() != ActionKind::Write) {
            self.charged.remove(namespace);
        }
        self.schedule(namespace, &facts, plan.as_ref(), now);
    }

    /// Ends the backoff of a namespace for which nothing is left to do. A call that succeeded and
    /// is due again at once counts as a failure: it would be repeated for ever.
    fn update_backoff(&mut self, namespace: &Namespace, kind: ActionKind, due: Option<&Plan>) {
        match due {
            Some(plan) if plan.action.kind() == kind => {
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

    /// Plans the namespaces for which a token was minted, adopted or refused.
    async fn update_tokens(&mut self, event: TokenEvent) {
        for outcome in self.minter.handle(event, self.now()).await {
            self.reporter.minted(&outcome);
            for namespace in outcome.namespaces {
                self.enqueue(&namespace);
            }
        }
        self.minter.start(Instant::now());
    }

    /// Does what time brings: detects a step of the clock, retries tokens, measures the backlog.
    fn tick(&mut self) {
        let (instant, now) = (Instant::now(), self.now());
        if let Some(skew) = self.clock_skew.check(instant, now) {
            tracing::info!(
                skew_seconds = skew.as_secs(),
                "the clock was set or the machine slept; rescheduling all namespaces"
            );
            self.minter.queue.clear_backoffs(instant);
            self.enqueue_all();
        }
        self.minter.start(instant);
        let measured = self.backlog_measured;
        if measured.is_some_and(|at| at.elapsed() < BACKLOG_PERIOD) {
            return;
        }
        self.backlog_measured = Some(instant);
        self.backoffs.prune(instant);
        let (due, since) = self.writes.backlog(now);
        let waiting = &self.minter.queue;
        let oldest = since.into_iter().chain(waiting.overdue_since(now)).min();
        let overdue = oldest.and_then(|since| Duration::try_from(now.duration_since(since)).ok());
        self.reporter
            .backlog(due, waiting.waiting_count(), overdue.unwrap_or_default());
    }

    fn next_wake(&self) -> Instant {
        let (now, instant) = (self.now(), Instant::now());
        let mut wake = instant + MAX_SLEEP;
        if self.in_flight.len() < MAX_IN_FLIGHT {
            for queue in [&self.writes, &self.reads] {
                let next = queue.next_turn((now, instant), MAX_SLEEP);
                wake = wake.min(next.unwrap_or(wake));
            }
        }
        let retry = self.minter.queue.next_retry();
        wake.min(retry.unwrap_or(wake))
    }
}
