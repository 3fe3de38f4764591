//! A cluster and an AWS of the imagination, where a week takes seconds: the refresher's store and mint, on tokio's paused
//! clock.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ecr_injector::aws::origin::Origin;
use ecr_injector::cli::metrics::Metrics;
use ecr_injector::cluster::changes::Changes;
use ecr_injector::cluster::lease::Leadership;
use ecr_injector::cluster::namespace::{Namespace, NamespaceSettings};
use ecr_injector::cluster::namespaces::{NamespaceState, ReadError};
use ecr_injector::config::Config;
use ecr_injector::config::live::Live;
use ecr_injector::process::clock::Clock;
use ecr_injector::pull_secret::seal::{StateKeys, key::StateKey};
use ecr_injector::pull_secret::state::{Credential, DataDigest, Demand, HostState, State, Subject};
use ecr_injector::pull_secret::store::PullSecrets;
use ecr_injector::pull_secret::writer::{CallError, SecretApi, Writer};
use ecr_injector::refresh::{NamespaceSource, Reconciler, ReconcilerContext, Sweep, SweepOutcome};
use ecr_injector::registry::Host;
use ecr_injector::token::cache::{AwsReply, Call, Mint, MintError, Operation, TokenCache};
use ecr_injector::token::{Freshness, Lifetime, MIN_LEFT, Token, TokenKey};
use ecr_injector::{
    cluster::ownership::{MANAGED_BY, MANAGED_BY_LABEL},
    pull_secret::{DATA_KEY, Observed, STATE_ANNOTATION, TYPE, state_of},
};
use futures::future::{BoxFuture, FutureExt as _};
use futures::stream::{self, StreamExt as _};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::json;
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

/// A failure of AWS, for the calls that are made in a certain time.
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
    repeats: AtomicBool,
    session: Mutex<Option<EndOfSession>>,
}

/// Returns the end of the session that mints at a time.
type EndOfSession = Box<dyn Fn(Timestamp) -> Timestamp + Send>;

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

    /// From now on every token has the same password, as some emulators' have.
    pub fn repeat_passwords(&self) {
        self.repeats.store(true, Ordering::Relaxed);
    }

    /// From now on tokens end with the session that mints them, as with `sessionCap: session`.
    pub fn end_tokens_with(&self, session: impl Fn(Timestamp) -> Timestamp + Send + 'static) {
        *self.session.lock().unwrap() = Some(Box::new(session));
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
                let call: Call = Operation::GetAuthorizationToken.into();
                return Err(match fault {
                    Fault::Throttled => MintError::Throttled(call, "ThrottlingException".into()),
                    Fault::Refused => {
                        MintError::Refused(call, AwsReply::new("AccessDeniedException", ""))
                    }
                    Fault::Silent => {
                        sleep(Duration::from_secs(9)).await;
                        MintError::Timeout(call)
                    }
                });
            }
            let now = self.clock.now();
            let cap = self.session.lock().unwrap().as_ref().map(|end| end(now));
            if let Some(end) = cap.filter(|end| end.duration_since(now) < MIN_LEFT) {
                *self.failed.lock().unwrap().entry(key.clone()).or_default() += 1;
                let call = Operation::GetAuthorizationToken.into();
                let origin = Origin::Source("instance_metadata");
                return Err(MintError::SessionTooShort(call, origin, end));
            }
            *self.minted.lock().unwrap().entry(key.clone()).or_default() += 1;
            let password = if self.repeats.load(Ordering::Relaxed) {
                "the-same".to_owned()
            } else {
                now.to_string()
            };
            let text = STANDARD.encode(format!("AWS:{password}"));
            let token = Token::decode(
                Some(&text),
                Some(now + SignedDuration::from_hours(12)),
                cap,
                now,
            );
            Ok(token.unwrap())
        }
        .boxed()
    }
}

/// An obstacle to the writes to a namespace.
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
    /// How many hosts the Secret has by it.
    pub hosts: usize,
}

/// The cluster: its namespaces and Secrets, and what one replica knows of them. The replica's store and writer are the real
/// ones; the API server beneath is this.
pub struct SimCluster {
    this: Weak<SimCluster>,
    pub clock: Arc<SimClock>,
    pub changes: Changes,
    pub keys: StateKeys,
    metrics: Metrics,
    known: Mutex<Option<PullSecrets>>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    settings: HashMap<Namespace, NamespaceSettings>,
    /// Those that exist and are not opted in.
    out: HashSet<Namespace>,
    secrets: HashMap<Namespace, Secret>,
    version: u64,
    obstacles: HashMap<Namespace, Obstacle>,
    writes: Vec<Write>,
    tried: u64,
    reads: u64,
    reading: u64,
    asks: u64,
    /// The least that any credential that was replaced had left.
    least_left: Option<SignedDuration>,
}

fn uid_of(namespace: &Namespace) -> String {
    format!("uid-of-{namespace}")
}

fn settings(namespace: &Namespace) -> NamespaceSettings {
    NamespaceSettings {
        uid: uid_of(namespace).into(),
        ..NamespaceSettings::default()
    }
}

impl SimCluster {
    fn new(clock: Arc<SimClock>, changes: Changes, metrics: Metrics) -> Arc<Self> {
        let cluster = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            clock,
            changes,
            keys: StateKeys::new(StateKey::new([7; 32]), None),
            metrics,
            known: Mutex::default(),
            inner: Mutex::default(),
        });
        cluster.know_by_the_list_alone();
        cluster
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Returns this replica's store of pull secrets.
    pub fn known(&self) -> PullSecrets {
        self.known.lock().unwrap().clone().unwrap()
    }

    /// A store of its own, as each replica has one: it knows what a list brings now.
    pub fn store(&self) -> PullSecrets {
        let this = self.this.clone();
        let uids = move |namespace: &Namespace| {
            let this = this.upgrade()?;
            let inner = this.inner();
            inner.settings.get(namespace).map(|it| it.uid.clone())
        };
        let store = PullSecrets::new(
            self.keys.clone(),
            Arc::new(uids),
            self.clock.clone(),
            self.changes.clone(),
            self.metrics.pull_secret.clone(),
        );
        self.list_to(&store);
        store
    }

    /// Lists all that there is to a store.
    pub fn list_to(&self, store: &PullSecrets) {
        let mut list = store.begin_list();
        let secrets: Vec<ObjectMeta> = {
            let inner = self.inner();
            let secrets = inner.secrets.values();
            secrets.map(|secret| secret.metadata.clone()).collect()
        };
        for metadata in &secrets {
            store.listed(metadata, &mut list);
        }
        store.end_list(&list);
    }

    /// A writer of a replica that knows this much.
    pub fn writer(&self, store: &PullSecrets) -> Writer {
        Writer::new(
            self.this.upgrade().unwrap(),
            "ecr-pull-secret".to_owned(),
            store.clone(),
            self.clock.clone(),
        )
    }

    /// Gives the replica a store that has only listed the pull secrets.
    pub fn know_by_the_list_alone(&self) {
        let store = self.store();
        *self.known.lock().unwrap() = Some(store);
    }

    /// Opts a namespace in.
    pub fn opt_in(&self, namespace: &Namespace) {
        let mut inner = self.inner();
        inner.out.remove(namespace);
        inner
            .settings
            .insert(namespace.clone(), settings(namespace));
        drop(inner);
        self.changes.notify(namespace);
    }

    /// Takes the label off.
    pub fn opt_out(&self, namespace: &Namespace) {
        let mut inner = self.inner();
        inner.settings.remove(namespace);
        inner.out.insert(namespace.clone());
        drop(inner);
        self.changes.notify(namespace);
    }

    /// Sets the role that a namespace names.
    pub fn name_role(&self, namespace: &Namespace, role: &str) {
        let mut inner = self.inner();
        let settings = inner.settings.get_mut(namespace).unwrap();
        settings.role = Some(role.into());
        drop(inner);
        self.changes.notify(namespace);
    }

    /// Deletes a namespace with all that is in it.
    pub fn delete_namespace(&self, namespace: &Namespace) {
        let mut inner = self.inner();
        inner.settings.remove(namespace);
        inner.out.remove(namespace);
        drop(inner);
        self.delete(namespace);
        self.changes.notify(namespace);
    }

    /// Somebody changes a pull secret, or makes one.
    pub fn edit(&self, namespace: &Namespace, edit: impl FnOnce(&mut Secret)) {
        let mut inner = self.inner();
        inner.version += 1;
        let version = inner.version;
        let secret = inner.secrets.entry(namespace.clone());
        let secret = secret.or_insert_with(|| blank(namespace, version, self.clock.now()));
        edit(secret);
        secret.metadata.resource_version = Some(version.to_string());
        let metadata = secret.metadata.clone();
        drop(inner);
        self.known().changed(&metadata);
    }

    /// Somebody puts an older copy of a pull secret in its place.
    pub fn put_back(&self, namespace: &Namespace, copy: &Secret) {
        self.edit(namespace, |secret| {
            let annotations = &mut secret.metadata.annotations;
            annotations.clone_from(&copy.metadata.annotations);
            secret.data.clone_from(&copy.data);
        });
    }

    /// The pull secret as it is stored.
    pub fn secret(&self, namespace: &Namespace) -> Option<Secret> {
        self.inner().secrets.get(namespace).cloned()
    }

    /// Somebody makes a pull secret that names these hosts, with nothing in it and no proof of anything.
    pub fn forge(&self, namespace: &Namespace, hosts: &[String]) {
        let hosts: Vec<Host> = hosts.iter().map(|it| Host::parse(it).unwrap()).collect();
        let data = br#"{"auths":{}}"#.to_vec();
        let state = State {
            digest: DataDigest::new(&data),
            ..State::from_wanted_hosts(&hosts, self.clock.now()).unwrap()
        };
        self.edit(namespace, |secret| hold(secret, &state, data));
    }

    /// Somebody deletes a pull secret.
    pub fn delete(&self, namespace: &Namespace) {
        let mut inner = self.inner();
        inner.version += 1;
        let version = inner.version;
        let Some(mut secret) = inner.secrets.remove(namespace) else {
            return;
        };
        drop(inner);
        secret.metadata.resource_version = Some(version.to_string());
        self.known().deleted(&secret.metadata);
    }

    pub fn obstruct(&self, namespace: &Namespace, obstacle: Option<Obstacle>) {
        let mut inner = self.inner();
        inner.obstacles.remove(namespace);
        if let Some(obstacle) = obstacle {
            inner.obstacles.insert(namespace.clone(), obstacle);
        }
    }

    /// The state that a stored pull secret has, if that is proven and its data fit.
    pub fn state(&self, namespace: &Namespace) -> Option<State> {
        let inner = self.inner();
        let secret = inner.secrets.get(namespace)?;
        let state = state_of(&secret.metadata)?;
        let data = &secret.data.as_ref()?.get(DATA_KEY)?.0;
        let uid = uid_of(namespace);
        let is_proven = self.keys.prove(namespace, &uid, &secret.metadata, &state);
        (is_proven && state.digest == DataDigest::new(data)).then_some(state)
    }

    /// The hosts that a pull secret names.
    pub fn hosts(&self, namespace: &Namespace) -> Vec<String> {
        let state = self.state(namespace).expect("a proven state");
        state.hosts.keys().map(ToString::to_string).collect()
    }

    /// The writes since the last time that this was asked.
    pub fn take_writes(&self) -> Vec<Write> {
        std::mem::take(&mut self.inner().writes)
    }

    /// Writes that were sent, reads, and questions for namespaces.
    pub fn calls(&self) -> (u64, u64, u64) {
        let inner = self.inner();
        (inner.tried, inner.reads, inner.asks)
    }

    /// Whether somebody reads a pull secret, most likely to write it.
    pub fn is_reading(&self) -> bool {
        self.inner().reading > 0
    }

    /// The least that any credential has, or had when it was replaced.
    pub fn least_left(&self) -> SignedDuration {
        let now = self.clock.now();
        let inner = self.inner();
        let states = inner
            .secrets
            .values()
            .filter_map(|it| state_of(&it.metadata));
        let left = states
            .filter_map(|state| state.expires_at())
            .map(|at| at.duration_since(now));
        left.chain(inner.least_left).min().unwrap()
    }

    /// The namespace begins to go away; it and its Secret are there for a while yet.
    pub fn terminate(&self, namespace: &Namespace) {
        let terminating = NamespaceSettings {
            is_terminating: true,
            ..settings(namespace)
        };
        self.inner().settings.insert(namespace.clone(), terminating);
        self.changes.notify(namespace);
    }

    /// Returns what the replica has observed of a pull secret.
    pub fn observed(&self, namespace: &Namespace) -> Option<Observed> {
        let entry = self.known().get(namespace)?;
        Some(entry.observed().clone())
    }

    /// How much is left of what a pull secret has for a host; `None` if it has nothing.
    pub fn left(&self, namespace: &Namespace, host: &str) -> Option<SignedDuration> {
        let host = Host::parse(host).unwrap();
        let had = self.state(namespace)?.hosts.get(&host)?.credential?;
        Some(had.lifetime.expires_at.duration_since(self.clock.now()))
    }

    /// Those that have no usable credential for some host.
    pub fn unusable(&self) -> Vec<Namespace> {
        let now = self.clock.now();
        let names: Vec<Namespace> = self.inner().secrets.keys().cloned().collect();
        let lacks = |name: &Namespace| {
            let state = self.state(name);
            state.is_none_or(|state| {
                let mut hosts = state.hosts.keys();
                hosts.any(|host| state.freshness(host, now) == Freshness::Expired)
            })
        };
        names.into_iter().filter(lacks).collect()
    }

    /// The other controller's turn: it changes the data.
    pub fn rival(&self, namespace: &Namespace) {
        self.edit(namespace, |secret| {
            let data = secret.data.get_or_insert_default();
            data.insert(
                DATA_KEY.to_owned(),
                ByteString(br#"{"auths":{"a.example":{"auth":"eA=="}}}"#.to_vec()),
            );
        });
    }

    fn answer_apply(&self, namespace: &Namespace, secret: &Secret) -> Result<Secret, CallError> {
        let now = self.clock.now();
        let mut inner = self.inner();
        let asked = &secret.metadata;
        let stored = inner.secrets.get(namespace);
        let fits = match stored {
            None => asked.resource_version.as_deref() == Some("1") && asked.uid.is_none(),
            Some(stored) => {
                asked.resource_version == stored.metadata.resource_version
                    && asked.uid == stored.metadata.uid
            }
        };
        if !fits {
            return Err(CallError::Conflict);
        }
        let (had, has) = (
            stored.and_then(|it| state_of(&it.metadata)),
            state_of(asked).unwrap(),
        );
        for (host, entry) in had.iter().flat_map(|state| state.hosts.iter()) {
            let after = has.hosts.get(host).and_then(|entry| entry.credential);
            if let (Some(before), Some(after)) = (entry.credential, after)
                && before != after
            {
                let left = before.lifetime.expires_at.duration_since(now);
                inner.least_left = inner.least_left.into_iter().chain([left]).min();
            }
        }
        inner.version += 1;
        let version = inner.version;
        let mut written = inner
            .secrets
            .remove(namespace)
            .unwrap_or_else(|| blank(namespace, version, now));
        written.metadata.resource_version = Some(version.to_string());
        written.metadata.annotations.clone_from(&asked.annotations);
        written.metadata.labels.clone_from(&asked.labels);
        written.type_.clone_from(&secret.type_);
        written.data.clone_from(&secret.data);
        inner.secrets.insert(namespace.clone(), written.clone());
        inner.writes.push(Write {
            at: Instant::now(),
            namespace: namespace.clone(),
            hosts: has.hosts.len(),
        });
        Ok(written)
    }
}

/// A Secret that is being created, with nothing in it.
fn blank(namespace: &Namespace, version: u64, now: Timestamp) -> Secret {
    Secret {
        metadata: ObjectMeta {
            name: Some("ecr-pull-secret".to_owned()),
            namespace: Some(namespace.to_string()),
            uid: Some(format!("secret-{version}")),
            creation_timestamp: Some(Time(now)),
            ..ObjectMeta::default()
        },
        ..Secret::default()
    }
}

/// Has a Secret hold a state and data, as ours by its label.
fn hold(secret: &mut Secret, state: &State, data: Vec<u8>) {
    secret.type_ = Some(TYPE.to_owned());
    let labels = [(MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned())];
    secret.metadata.labels = Some(labels.into());
    let annotations = [(STATE_ANNOTATION.to_owned(), state.to_text())];
    secret.metadata.annotations = Some(annotations.into());
    secret.data = Some([(DATA_KEY.to_owned(), ByteString(data))].into());
}

impl NamespaceSource for SimCluster {
    fn names(&self) -> Vec<Namespace> {
        self.inner().settings.keys().cloned().collect()
    }

    fn settings(&self, namespace: &Namespace) -> Option<NamespaceSettings> {
        self.inner().settings.get(namespace).cloned()
    }

    fn read<'a>(
        &'a self,
        namespace: &'a Namespace,
        _: Instant,
    ) -> BoxFuture<'a, Result<NamespaceState, ReadError>> {
        async move {
            sleep(Duration::from_millis(5)).await;
            let mut inner = self.inner();
            inner.asks += 1;
            Ok(if let Some(settings) = inner.settings.get(namespace) {
                NamespaceState::OptedIn(settings.clone())
            } else if inner.out.contains(namespace) {
                NamespaceState::OptedOut(NamespaceSettings::default())
            } else {
                NamespaceState::Absent
            })
        }
        .boxed()
    }
}

impl SecretApi for SimCluster {
    fn get<'a>(
        &'a self,
        namespace: &'a Namespace,
        _: Instant,
    ) -> BoxFuture<'a, Result<Option<Secret>, CallError>> {
        async move {
            self.inner().reads += 1;
            self.inner().reading += 1;
            sleep(Duration::from_millis(5)).await;
            let mut inner = self.inner();
            inner.reading -= 1;
            Ok(inner.secrets.get(namespace).cloned())
        }
        .boxed()
    }

    fn apply<'a>(
        &'a self,
        namespace: &'a Namespace,
        secret: &'a Secret,
        _: Instant,
    ) -> BoxFuture<'a, Result<Secret, CallError>> {
        async move {
            self.inner().tried += 1;
            let obstacle = self.inner().obstacles.get(namespace).cloned();
            match obstacle {
                None => {}
                Some(Obstacle::Quota) => {
                    return Err(CallError::Refused("exceeded quota: secrets=1".to_owned()));
                }
                Some(Obstacle::Forbidden) => {
                    return Err(CallError::Refused("forbidden".to_owned()));
                }
                Some(Obstacle::Silent) => {
                    sleep(Duration::from_secs(3)).await;
                    return Err(CallError::Timeout("no answer".to_owned()));
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
            let written = self.answer_apply(namespace, secret)?;
            self.known().changed(&written.metadata);
            Ok(written)
        }
        .boxed()
    }

    fn delete<'a>(
        &'a self,
        namespace: &'a Namespace,
        _: &'a str,
        _: &'a str,
        _: Instant,
    ) -> BoxFuture<'a, Result<(), CallError>> {
        async move {
            sleep(Duration::from_millis(8)).await;
            SimCluster::delete(self, namespace);
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
    pub metrics: Metrics,
    pub tokens: TokenCache,
    pub live: Live,
}

impl Sim {
    /// An empty cluster under a configuration.
    pub fn new(config: &str) -> Self {
        let config = Config::parse(&crate::support::config_file(config), "config").unwrap();
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
            repeats: AtomicBool::new(false),
            session: Mutex::default(),
        });
        let metrics = Metrics::default();
        let cluster = SimCluster::new(clock.clone(), Changes::default(), metrics.clone());
        let tokens = TokenCache::new(aws.clone(), clock.clone(), TaskTracker::new());
        Self {
            clock,
            aws,
            cluster,
            metrics,
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
    pub fn removing(self) -> Self {
        self.changed(|config| config.refresh.removes = true)
    }

    fn changed(self, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::clone(&self.live.config());
        change(&mut config);
        assert!(self.live.replace(config).is_empty(), "all live");
        self
    }

    /// Creates the pull secret that an admission without a token leaves: one that names these
    /// hosts.
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

    /// A pull secret of ours that was written just now, with credentials of any dates.
    pub fn give_until(&self, namespace: &Namespace, hosts: &[&str], lifetime: Option<Lifetime>) {
        let rules = self.live.rules.get();
        let entries = hosts.iter().map(|host| {
            let key = rules.key_for(host, namespace, &settings(namespace));
            let (host, key) = key.unwrap();
            let credential = lifetime.map(|lifetime| Credential {
                identity: key.identity.hash(),
                lifetime,
            });
            let demand = Demand::new(self.clock.now());
            (host, HostState { demand, credential })
        });
        let auths: BTreeMap<_, _> = hosts
            .iter()
            .filter(|_| lifetime.is_some())
            .map(|host| (*host, json!({"auth": STANDARD.encode("AWS:given")})))
            .collect();
        let data = json!({ "auths": auths }).to_string().into_bytes();
        let mut state = State {
            hosts: entries.collect(),
            digest: DataDigest::new(&data),
            revision: self.clock.now().as_millisecond().try_into().unwrap(),
            ..State::default()
        };
        let (keys, uid) = (&self.cluster.keys, uid_of(namespace));
        self.cluster.edit(namespace, |secret| {
            let subject = Subject {
                namespace: namespace.as_str(),
                namespace_uid: &uid,
                secret_uid: secret.metadata.uid.as_deref().unwrap(),
            };
            state.seal = keys.seal(state.sealed_text(subject).as_bytes()).unwrap();
            hold(secret, &state, data);
        });
        let secret = self.cluster.secret(namespace).unwrap();
        self.cluster
            .known()
            .record_read(namespace, &uid, &secret, None);
    }

    pub fn reconciler(&self) -> Reconciler {
        let secrets = self.cluster.known();
        Reconciler::new(ReconcilerContext {
            namespaces: self.cluster.clone(),
            writer: self.cluster.writer(&secrets),
            secrets,
            tokens: self.tokens.clone(),
            policy: self.live.policy.clone(),
            changes: self.cluster.changes.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.refresh.clone(),
            events: None,
        })
    }

    /// One sweep by hand over all namespaces, sixteen at a time.
    pub async fn sweep(&self, sweep: &Sweep, term: &Leadership) -> Vec<(Namespace, SweepOutcome)> {
        let reconciler = self.reconciler();
        let one = async |name: Namespace| {
            let swept = reconciler.reconcile_once(&name, sweep, term).await;
            (name, swept)
        };
        let names = stream::iter(reconciler.names());
        names.map(one).buffer_unordered(16).collect().await
    }

    /// A leader begins its term.
    pub fn lead(&self) -> Leader {
        let (reconciler, term) = (self.reconciler(), Leadership::unlimited());
        let lent = term.clone();
        let work = tokio::spawn(async move { reconciler.lead(lent).await });
        Leader { term, work }
    }

    /// From now on it has another configuration, also for a leader who leads already.
    pub fn configure(&self, config: &str) {
        let config = Config::parse(&crate::support::config_file(config), "config").unwrap();
        assert!(self.live.replace(config).is_empty(), "all live");
    }

    /// The key of the token that a namespace takes for a host.
    pub fn key(&self, namespace: &Namespace, host: &str) -> TokenKey {
        let rules = self.live.rules.get();
        let key = rules.key_for(host, namespace, &settings(namespace));
        key.unwrap().1
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

    /// Returns the simulation as a restart leaves it: a new process has no tokens.
    #[must_use]
    pub fn restarted(mut self) -> Self {
        self.tokens = TokenCache::new(self.aws.clone(), self.clock.clone(), TaskTracker::new());
        self
    }

    /// Returns the value of a metric that is a whole number.
    pub fn count(&self, series: &str) -> usize {
        format!("{:.0}", self.metric(series)).parse().unwrap()
    }

    /// Returns the value of a metric.
    pub fn metric(&self, series: &str) -> f64 {
        super::webhook::sum(&self.metrics.registry.to_text(), series)
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

/// A second, less what one write may come later than another that left with it: by a read before it, and by the timers'
/// milliseconds.
pub const A_SECOND: Duration = Duration::from_millis(990);

/// The most writes in any one second.
pub fn most_in_a_second(writes: &[Write]) -> usize {
    let mut window = VecDeque::new();
    let mut most = 0;
    for write in writes {
        window.push_back(write.at);
        while write.at.duration_since(window[0]) >= A_SECOND {
            window.pop_front();
        }
        most = most.max(window.len());
    }
    most
}

pub fn namespace(name: &str) -> Namespace {
    Namespace::parse(name).unwrap()
}
