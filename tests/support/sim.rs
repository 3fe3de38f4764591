//! A cluster and an AWS of the imagination, where a week takes seconds: the refresher's store and mint, on tokio's paused
//! clock.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ecr_injector::clock::Clock;
use ecr_injector::config::Config;
use ecr_injector::config::live::Live;
use ecr_injector::leader::Leadership;
use ecr_injector::metrics::Metrics;
use ecr_injector::namespace::changes::Changes;
use ecr_injector::namespace::store::{Look, ReadError};
use ecr_injector::namespace::{Namespace, OptedIn};
use ecr_injector::pull_secret::state::{HostState, State};
use ecr_injector::pull_secret::store::Entry;
use ecr_injector::pull_secret::write::{EnsureError, Fence, Manner, Written};
use ecr_injector::pull_secret::{Knowledge, Terms, Unverified, Want, is_public};
use ecr_injector::refresher::schedule::Policy;
use ecr_injector::refresher::store::Store;
use ecr_injector::refresher::{Parts, Refresher};
use ecr_injector::registry::Host;
use ecr_injector::token::cache::{Call, Mint, MintError, TokenCache};
use ecr_injector::token::{Freshness, Lifetime, Token, TokenKey};
use futures::future::{BoxFuture, FutureExt as _};
use jiff::{SignedDuration, Timestamp};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::task::TaskTracker;

/// When every simulation begins.
pub const START: Timestamp = Timestamp::constant(1_800_000_000, 0);

/// A clock that goes with tokio's, and can be set.
pub struct SimClock {
    origin: Instant,
    offset: Mutex<SignedDuration>,
    reads: AtomicU64,
}

impl SimClock {
    /// Sets it so much further.
    pub fn jump(&self, by: SignedDuration) {
        *self.offset.lock().unwrap() += by;
    }

    /// How often it was read: whatever runs reads it at each turn.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let passed = SignedDuration::try_from(self.origin.elapsed()).unwrap();
        START + passed + *self.offset.lock().unwrap()
    }
}

/// What AWS does with a call that is made in a certain time.
#[derive(Debug, Clone)]
pub enum Fault {
    /// It says so at once.
    Throttled,
    Refused,
    /// Nobody answers for nine seconds.
    Silent,
}

/// AWS: tokens of twelve hours, and outages.
pub struct SimAws {
    clock: Arc<SimClock>,
    /// In these hours since the start, calls for regions or identities whose text contains this fail.
    pub outages: Mutex<Vec<(Range<f64>, String, Fault)>>,
    pub minted: Mutex<HashMap<TokenKey, u32>>,
    pub failed: Mutex<HashMap<TokenKey, u32>>,
}

impl SimAws {
    fn fault(&self, key: &TokenKey) -> Option<Fault> {
        let hour = hours_since_start(&*self.clock);
        let who = format!("{} {}", key.identity, key.region);
        let outages = self.outages.lock().unwrap();
        let outage = outages
            .iter()
            .find(|(when, whom, _)| when.contains(&hour) && who.contains(whom));
        outage.map(|(_, _, fault)| fault.clone())
    }

    /// From this hour to that, for whoever's identity or region contains a text.
    pub fn fail(&self, when: Range<f64>, whom: &str, fault: Fault) {
        let outage = (when, whom.to_owned(), fault);
        self.outages.lock().unwrap().push(outage);
    }

    pub fn total(&self) -> (u32, u32) {
        let sum = |counts: &Mutex<HashMap<TokenKey, u32>>| counts.lock().unwrap().values().sum();
        (sum(&self.minted), sum(&self.failed))
    }
}

pub fn hours_since_start(clock: &dyn Clock) -> f64 {
    clock.now().duration_since(START).as_secs_f64() / 3600.0
}

impl Mint for SimAws {
    fn mint<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Token, MintError>> {
        async move {
            sleep(Duration::from_millis(150)).await;
            if let Some(fault) = self.fault(key) {
                *self.failed.lock().unwrap().entry(key.clone()).or_default() += 1;
                let call = Call::GetAuthorizationToken;
                return Err(match fault {
                    Fault::Throttled => MintError::Throttled(call, "ThrottlingException".into()),
                    Fault::Refused => MintError::Refused(call, "AccessDeniedException".into()),
                    Fault::Silent => {
                        sleep(Duration::from_secs(9)).await;
                        MintError::Timeout(call)
                    }
                });
            }
            *self.minted.lock().unwrap().entry(key.clone()).or_default() += 1;
            let now = self.clock.now();
            let text = STANDARD.encode(format!("AWS:{now}"));
            let token = Token::decode(
                Some(&text),
                Some(now + SignedDuration::from_hours(12)),
                None,
                now,
            );
            Ok(token.unwrap())
        }
        .boxed()
    }
}

/// What the API server does with the writes to a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    Quota,
    Forbidden,
    /// It doesn't answer in three seconds.
    Silent,
    /// Another controller changes every Secret again, so much later.
    Rival(Duration),
}

/// A write that came through.
#[derive(Debug, Clone)]
pub struct Write {
    pub at: Instant,
    pub namespace: Namespace,
    pub hosts: usize,
}

/// The cluster.
pub struct SimCluster {
    this: std::sync::Weak<SimCluster>,
    pub clock: Arc<SimClock>,
    pub changes: Changes,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    said: HashMap<Namespace, OptedIn>,
    /// Those that exist and are not opted in.
    out: HashSet<Namespace>,
    secrets: HashMap<Namespace, Arc<Entry>>,
    version: u64,
    obstacles: HashMap<Namespace, Obstacle>,
    writes: Vec<Write>,
    begun: u64,
    tried: u64,
    looks: u64,
    asks: u64,
    /// The least that any credential that was replaced had left.
    least_left: Option<SignedDuration>,
}

impl SimCluster {
    fn new(clock: Arc<SimClock>, changes: Changes) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            this: this.clone(),
            clock,
            changes,
            inner: Mutex::default(),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Opts a namespace in.
    pub fn opt_in(&self, namespace: &Namespace) {
        let mut inner = self.inner();
        inner.out.remove(namespace);
        inner.said.insert(namespace.clone(), OptedIn::default());
        drop(inner);
        self.changes.tell(namespace);
    }

    /// Takes the label off.
    pub fn opt_out(&self, namespace: &Namespace) {
        let mut inner = self.inner();
        inner.said.remove(namespace);
        inner.out.insert(namespace.clone());
        drop(inner);
        self.changes.tell(namespace);
    }

    /// Deletes a namespace with all that is in it.
    pub fn delete_namespace(&self, namespace: &Namespace) {
        let mut inner = self.inner();
        inner.said.remove(namespace);
        inner.out.remove(namespace);
        drop(inner);
        self.changes.tell(namespace);
    }

    /// What somebody else makes known of a pull secret.
    pub fn set(&self, namespace: &Namespace, knowledge: Knowledge) {
        let mut inner = self.inner();
        inner.version += 1;
        let entry = Entry::new(inner.version, "uid", knowledge);
        inner.secrets.insert(namespace.clone(), Arc::new(entry));
        drop(inner);
        self.changes.tell(namespace);
    }

    /// Somebody deletes a pull secret.
    pub fn delete(&self, namespace: &Namespace) {
        let known = self.knowledge(namespace);
        let state = known.and_then(|known| known.remembered().cloned());
        self.set(namespace, Knowledge::Gone(state));
    }

    pub fn obstruct(&self, namespace: &Namespace, obstacle: Option<Obstacle>) {
        let mut inner = self.inner();
        inner.obstacles.remove(namespace);
        if let Some(obstacle) = obstacle {
            inner.obstacles.insert(namespace.clone(), obstacle);
        }
    }

    pub fn state(&self, namespace: &Namespace) -> Option<State> {
        let secret = self.inner().secrets.get(namespace).cloned();
        secret.and_then(|entry| entry.state().cloned())
    }

    /// The writes since the last time that this was asked.
    pub fn take_writes(&self) -> Vec<Write> {
        std::mem::take(&mut self.inner().writes)
    }

    /// Writes that were sent, looks, and questions for namespaces.
    pub fn calls(&self) -> (u64, u64, u64) {
        let inner = self.inner();
        (inner.tried, inner.looks, inner.asks)
    }

    /// Whether somebody is about to send a write.
    pub fn is_about_to_write(&self) -> bool {
        let inner = self.inner();
        inner.begun > inner.tried
    }

    /// The least that any credential has, or had when it was replaced.
    pub fn least_left(&self) -> SignedDuration {
        let now = self.clock.now();
        let inner = self.inner();
        let there = inner.secrets.values().filter_map(|entry| entry.state());
        let left = there
            .filter_map(State::expires_at)
            .map(|at| at.duration_since(now));
        left.chain(inner.least_left).min().unwrap()
    }

    fn apply(
        &self,
        namespace: &Namespace,
        wanted: &BTreeMap<Host, Want>,
        manner: &Manner<'_>,
    ) -> Written {
        let now = self.clock.now();
        let mut inner = self.inner();
        let had = inner.secrets.get(namespace).cloned();
        let had = had
            .as_deref()
            .and_then(|entry| entry.state())
            .cloned()
            .unwrap_or_default();
        let Terms::Whole {
            opted_out_at,
            retired,
        } = manner.terms
        else {
            panic!("an admission's terms");
        };
        let hosts = wanted.iter().map(|(host, want)| {
            let before = had.hosts.get(host);
            let after = merged(host, before, want, now);
            if let (Some(before), Some(after)) =
                (before.and_then(|had| had.lifetime), after.lifetime)
                && before != after
            {
                let left = before.expires_at.duration_since(now);
                inner.least_left = inner.least_left.into_iter().chain([left]).min();
            }
            (host.clone(), after)
        });
        let mut state = State {
            hosts: hosts.collect(),
            ..State::default()
        };
        state.opted_out_at = opted_out_at;
        state.retired = retired;
        let known = inner.secrets.get(namespace);
        if known.is_some_and(|entry| entry.state() == Some(&state)) {
            return Written::Unchanged;
        }
        inner.version += 1;
        let entry = Entry::new(inner.version, "uid", Knowledge::Ours(state));
        inner.secrets.insert(namespace.clone(), Arc::new(entry));
        inner.writes.push(Write {
            at: Instant::now(),
            namespace: namespace.clone(),
            hosts: wanted.len(),
        });
        drop(inner);
        self.changes.tell(namespace);
        Written::Done
    }

    /// The namespace begins to go away; it and its Secret are there for a while yet.
    pub fn terminate(&self, namespace: &Namespace) {
        let said = OptedIn {
            is_terminating: true,
            ..OptedIn::default()
        };
        self.inner().said.insert(namespace.clone(), said);
        self.changes.tell(namespace);
    }

    /// What a replica knows that has only listed the pull secrets, or has seen another one write them.
    pub fn know_by_the_list_alone(&self) {
        let mut inner = self.inner();
        for entry in inner.secrets.values_mut() {
            let state = entry.state().cloned();
            let listed = Knowledge::Unverified {
                claims: state.clone(),
                before: None,
                since: Unverified::Listed,
            };
            *entry = Arc::new(Entry::new(entry.version(), "uid", listed));
        }
    }

    /// What is known of a pull secret.
    pub fn knowledge(&self, namespace: &Namespace) -> Option<Knowledge> {
        let inner = self.inner();
        let entry = inner.secrets.get(namespace);
        entry.map(|entry| entry.knowledge().clone())
    }

    /// How much is left of what a pull secret has for a host; `None` if it is an intent or not there.
    pub fn left(&self, namespace: &Namespace, host: &str) -> Option<SignedDuration> {
        let host = Host::parse(host).unwrap();
        let life = self.state(namespace)?.hosts.get(&host)?.lifetime?;
        Some(life.expires_at.duration_since(self.clock.now()))
    }

    /// Those that have no usable credential for some host.
    pub fn unusable(&self) -> Vec<Namespace> {
        let now = self.clock.now();
        let inner = self.inner();
        let lacks = |entry: &Entry| {
            let state = entry.state();
            state.is_none_or(|state| {
                state
                    .hosts
                    .keys()
                    .any(|host| state.freshness(host, now) == Freshness::Expired)
            })
        };
        let found = inner.secrets.iter().filter(|(_, entry)| lacks(entry));
        found.map(|(name, _)| name.clone()).collect()
    }

    /// The other controller's turn.
    pub fn rival(&self, namespace: &Namespace) {
        let state = self.state(namespace);
        self.set(
            namespace,
            Knowledge::Unverified {
                claims: state.clone(),
                before: state.map(Box::new),
                since: Unverified::Tampered,
            },
        );
    }
}

/// What a host has after a write, by the rules of the real merge.
fn merged(host: &Host, had: Option<&HostState>, want: &Want, now: Timestamp) -> HostState {
    let is_good = |life: &Lifetime| life.freshness(now) != Freshness::Expired;
    let (identity, offered) = (
        want.identity,
        want.token.as_ref().map(|token| token.lifetime()),
    );
    let Some(offered) = offered else {
        let mut stays = had.cloned().unwrap_or(HostState {
            identity,
            lifetime: None,
        });
        if is_public(host) {
            stays.lifetime = stays.lifetime.filter(is_good);
        }
        return stays;
    };
    let same = had.filter(|had| had.identity == identity);
    let before = same.and_then(|had| had.lifetime).filter(is_good);
    let later = |life: &Lifetime| life.expires_at;
    let lifetime = before.into_iter().chain([offered]).max_by_key(later);
    HostState { identity, lifetime }
}

impl Store for SimCluster {
    fn names(&self) -> Vec<Namespace> {
        let inner = self.inner();
        let names: HashSet<_> = inner.said.keys().chain(inner.secrets.keys()).collect();
        names.into_iter().cloned().collect()
    }

    fn said(&self, namespace: &Namespace) -> Option<OptedIn> {
        self.inner().said.get(namespace).cloned()
    }

    fn secret(&self, namespace: &Namespace) -> Option<Arc<Entry>> {
        self.inner().secrets.get(namespace).cloned()
    }

    fn forget(&self, namespace: &Namespace) {
        self.inner().secrets.remove(namespace);
    }

    fn ask<'a>(
        &'a self,
        namespace: &'a Namespace,
        _: Instant,
    ) -> BoxFuture<'a, Result<Look, ReadError>> {
        async move {
            sleep(Duration::from_millis(5)).await;
            let mut inner = self.inner();
            inner.asks += 1;
            Ok(if let Some(said) = inner.said.get(namespace) {
                Look::OptedIn(said.clone())
            } else if inner.out.contains(namespace) {
                Look::OptedOut(OptedIn::default())
            } else {
                Look::Absent
            })
        }
        .boxed()
    }

    fn look<'a>(
        &'a self,
        namespace: &'a Namespace,
        _: Instant,
    ) -> BoxFuture<'a, Result<(), EnsureError>> {
        async move {
            sleep(Duration::from_millis(5)).await;
            let mut inner = self.inner();
            inner.looks += 1;
            let Some(entry) = inner.secrets.get(namespace).cloned() else {
                return Ok(());
            };
            if let Knowledge::Unverified {
                claims: Some(state),
                ..
            } = entry.knowledge()
            {
                inner.version += 1;
                let entry = Entry::new(inner.version, "uid", Knowledge::Ours(state.clone()));
                inner.secrets.insert(namespace.clone(), Arc::new(entry));
            }
            Ok(())
        }
        .boxed()
    }

    fn write<'a>(
        &'a self,
        namespace: &'a Namespace,
        wanted: &'a BTreeMap<Host, Want>,
        manner: Manner<'a>,
        _: Instant,
    ) -> BoxFuture<'a, Result<Written, EnsureError>> {
        async move {
            self.inner().begun += 1;
            // It is read first.
            sleep(Duration::from_millis(5)).await;
            if !manner.fence.holds() {
                return Err(EnsureError::NotLeading);
            }
            self.inner().tried += 1;
            let obstacle = self.inner().obstacles.get(namespace).cloned();
            let refused = |message: &str| EnsureError::Refused {
                verb: "write",
                message: message.to_owned(),
            };
            match obstacle {
                None => {}
                Some(Obstacle::Quota) => return Err(refused("exceeded quota: secrets=1")),
                Some(Obstacle::Forbidden) => return Err(refused("forbidden")),
                Some(Obstacle::Silent) => {
                    sleep(Duration::from_secs(3)).await;
                    let (verb, message) = ("write", "no answer".to_owned());
                    return Err(EnsureError::Api { verb, message });
                }
                Some(Obstacle::Rival(later)) => {
                    let (rival, namespace) = (self.this.clone(), namespace.clone());
                    tokio::spawn(async move {
                        sleep(later).await;
                        if let Some(cluster) = rival.upgrade() {
                            cluster.rival(&namespace);
                        }
                    });
                }
            }
            sleep(Duration::from_millis(8)).await;
            Ok(self.apply(namespace, wanted, &manner))
        }
        .boxed()
    }

    fn remove<'a>(
        &'a self,
        namespace: &'a Namespace,
        fence: &'a dyn Fence,
        _: Instant,
    ) -> BoxFuture<'a, Result<(), EnsureError>> {
        async move {
            if !fence.holds() {
                return Err(EnsureError::NotLeading);
            }
            sleep(Duration::from_millis(8)).await;
            self.forget(namespace);
            Ok(())
        }
        .boxed()
    }
}

/// All of it, with a leader that can be started and stopped.
pub struct Sim {
    pub clock: Arc<SimClock>,
    pub aws: Arc<SimAws>,
    pub cluster: Arc<SimCluster>,
    pub metrics: Arc<Metrics>,
    pub tokens: TokenCache,
    pub live: Live,
}

impl Sim {
    /// An empty cluster under a configuration.
    pub fn new(config: &str) -> Self {
        let config = Config::parse(config, "config").unwrap();
        let clock = Arc::new(SimClock {
            origin: Instant::now(),
            offset: Mutex::default(),
            reads: AtomicU64::new(0),
        });
        let aws = Arc::new(SimAws {
            clock: clock.clone(),
            outages: Mutex::default(),
            minted: Mutex::default(),
            failed: Mutex::default(),
        });
        let cluster = SimCluster::new(clock.clone(), Changes::default());
        let tokens = TokenCache::new(aws.clone(), clock.clone(), TaskTracker::new());
        Self {
            clock,
            aws,
            cluster,
            metrics: Arc::new(Metrics::default()),
            tokens,
            live: Live::new(config, None),
        }
    }

    #[must_use]
    pub fn prewarming(self, hosts: &[&str]) -> Self {
        let hosts = hosts.iter().map(|host| Host::parse(host).unwrap());
        self.changed(|config| config.refresh.prewarm = hosts.collect())
    }

    #[must_use]
    pub fn gracing(self, hours: i64) -> Self {
        let grace = SignedDuration::from_hours(hours);
        let policy = Policy::clone(&self.live.policy.get());
        self.live.policy.replace(Policy { grace, ..policy });
        self
    }

    #[must_use]
    pub fn removing(self) -> Self {
        self.changed(|config| config.refresh.removes = true)
    }

    fn changed(self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::clone(&self.live.config());
        change(&mut config);
        assert!(self.live.replace(config).is_empty(), "all live");
        self
    }

    /// What an admission leaves that found no token: a pull secret that names these hosts.
    pub fn intend(&self, namespace: &Namespace, hosts: &[&str]) {
        self.give(namespace, hosts, None);
    }

    /// A pull secret with credentials of this age for these hosts, or with none.
    pub fn give(&self, namespace: &Namespace, hosts: &[&str], age: Option<SignedDuration>) {
        let lifetime = age.map(|age| Lifetime {
            minted_at: self.clock.now() - age,
            expires_at: self.clock.now() - age + SignedDuration::from_hours(12),
        });
        self.give_until(namespace, hosts, lifetime);
    }

    /// The same with any dates.
    pub fn give_until(&self, namespace: &Namespace, hosts: &[&str], lifetime: Option<Lifetime>) {
        let said = OptedIn::default();
        let hosts = hosts.iter().map(|host| {
            let (host, key) = self
                .live
                .rules
                .get()
                .key_for(host, namespace, &said)
                .unwrap();
            let identity = key.identity.hash();
            (host, HostState { identity, lifetime })
        });
        let state = State {
            hosts: hosts.collect(),
            ..State::default()
        };
        self.cluster.set(namespace, Knowledge::Ours(state));
    }

    pub fn refresher(&self) -> Refresher {
        Refresher::new(Parts {
            store: self.cluster.clone(),
            tokens: self.tokens.clone(),
            policy: self.live.policy.clone(),
            changes: self.cluster.changes.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            events: None,
        })
    }

    /// A leader begins its term.
    pub fn lead(&self) -> Leader {
        let (refresher, term) = (self.refresher(), Leadership::unlimited());
        let lent = term.clone();
        let work = tokio::spawn(async move { refresher.lead(lent).await });
        Leader { term, work }
    }

    /// From now on it has another configuration, also for a leader who leads already.
    pub fn configure(&self, config: &str) {
        let config = Config::parse(config, "config").unwrap();
        assert!(self.live.replace(config).is_empty(), "all live");
    }

    /// The key of the token that a namespace takes for a host.
    pub fn key(&self, namespace: &Namespace, host: &str) -> TokenKey {
        let said = OptedIn::default();
        self.live
            .rules
            .get()
            .key_for(host, namespace, &said)
            .unwrap()
            .1
    }

    /// So many opted-in namespaces whose pull secrets have credentials of this age for these hosts, or none.
    pub fn teams(
        &self,
        name: &str,
        count: usize,
        hosts: &[&str],
        age: Option<SignedDuration>,
    ) -> Vec<Namespace> {
        let names = (0..count).map(|number| namespace(&format!("{name}-{number}")));
        let names: Vec<Namespace> = names.collect();
        for name in &names {
            self.cluster.opt_in(name);
            self.give(name, hosts, age);
        }
        names
    }

    /// The same whatever restarts: the tokens of a new process are none.
    #[must_use]
    pub fn restarted(mut self) -> Self {
        self.tokens = TokenCache::new(self.aws.clone(), self.clock.clone(), TaskTracker::new());
        self
    }

    /// What a metric counts, where it is a whole number.
    pub fn count(&self, series: &str) -> usize {
        format!("{:.0}", self.metric(series)).parse().unwrap()
    }

    /// What a metric says.
    pub fn metric(&self, series: &str) -> f64 {
        super::webhook::sum(&self.metrics.to_text(), series)
    }

    /// Waits so many seconds.
    pub async fn after(&self, seconds: f64) {
        sleep(Duration::from_secs_f64(seconds)).await;
    }

    /// Waits until so many hours after the start.
    pub async fn until(&self, hours: f64) {
        let at = self.clock.origin + Duration::from_secs_f64(hours * 3600.0);
        sleep_until(at).await;
    }
}

pub struct Leader {
    pub term: Leadership,
    pub work: tokio::task::JoinHandle<()>,
}

impl Leader {
    /// Ends the term, and waits for the work's end.
    pub async fn stop(self) {
        self.term.end();
        self.work.await.unwrap();
    }
}

/// The most writes in any one second.
pub fn most_in_a_second(writes: &[Write]) -> usize {
    let mut window = VecDeque::new();
    let mut most = 0;
    for write in writes {
        window.push_back(write.at);
        while write.at.duration_since(window[0]) >= Duration::from_secs(1) {
            window.pop_front();
        }
        most = most.max(window.len());
    }
    most
}

pub fn namespace(name: &str) -> Namespace {
    Namespace::parse(name).unwrap()
}
