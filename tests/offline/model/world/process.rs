//! One process of the model: the real code, over an API server and an AWS that answer when the explorer says so.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use ecr_injector::{
    admission::handler::Webhook,
    cli::metrics::Metrics,
    cluster::{
        changes::Changes,
        lease::Leadership,
        namespace::{Namespace, NamespaceSettings},
        namespaces::{NamespaceState, Namespaces, ReadError},
    },
    config::live::Live,
    process::clock::Clock,
    pull_secret::{
        provisioner::{self, Provisioner},
        store::PullSecrets,
        writer::{CallError, SecretApi, Writer},
    },
    refresh::{NamespaceSource, Reconciler, ReconcilerContext},
    token::{
        Token, TokenKey,
        cache::{AwsReply, Mint, MintError, Operation, TokenCache},
    },
};
use futures::future::{BoxFuture, FutureExt as _};
use http_body_util::Full;
use hyper::body::Bytes;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use kube::{Client, client::Body};
use serde_json::json;
use tokio::{sync::oneshot, task::JoinHandle, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    super::server::{Request, SharedServer, content, digest, keys, lock, uid_of},
    World,
};

/// When every run begins.
const START: Timestamp = Timestamp::constant(1_800_000_000, 0);

/// A call that waits.
pub(super) struct Call {
    pub(super) process: usize,
    pub(super) number: u64,
    pub(super) namespace: Namespace,
    pub(super) request: Asked,
    pub(super) answer: Option<Answered>,
    pub(super) to: Option<Reply>,
    pub(super) is_checked: bool,
}

pub(super) enum Asked {
    Api(Request),
    Mint,
}

pub(super) type Answered = Result<Option<Secret>, CallError>;

pub(super) enum Reply {
    Api(oneshot::Sender<Answered>),
    Mint(oneshot::Sender<()>),
}

#[derive(Default)]
pub(super) struct Gate {
    pub(super) calls: Vec<Call>,
    pub(super) numbers: BTreeMap<usize, u64>,
}

impl Gate {
    pub(super) fn push(
        &mut self,
        process: usize,
        namespace: &Namespace,
        request: Asked,
        to: Reply,
    ) {
        let number = self.numbers.entry(process).or_default();
        *number += 1;
        self.calls.push(Call {
            process,
            number: *number,
            namespace: namespace.clone(),
            request,
            answer: None,
            to: Some(to),
            is_checked: false,
        });
    }
}

pub(super) type SharedGate = Arc<Mutex<Gate>>;

/// A clock that only events turn.
#[derive(Default)]
pub(super) struct ManualClock(pub(super) AtomicU64);

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        let seconds = i64::try_from(self.0.load(SeqCst)).unwrap();
        START + SignedDuration::from_secs(seconds)
    }
}

/// The API server as one process sees it.
pub(super) struct ProcessApi {
    process: usize,
    gate: SharedGate,
}

impl ProcessApi {
    fn call(&self, namespace: &Namespace, request: Request) -> BoxFuture<'static, Answered> {
        let (to, answer) = oneshot::channel();
        let mut gate = self.gate.lock().unwrap();
        gate.push(self.process, namespace, Asked::Api(request), Reply::Api(to));
        async move {
            answer
                .await
                .unwrap_or(Err(CallError::Failed("the run is over".to_owned())))
        }
        .boxed()
    }
}

impl SecretApi for ProcessApi {
    fn get<'a>(
        &'a self,
        namespace: &'a Namespace,
        _: Instant,
    ) -> BoxFuture<'a, Result<Option<Secret>, CallError>> {
        self.call(namespace, Request::Get)
    }

    fn apply<'a>(
        &'a self,
        namespace: &'a Namespace,
        secret: &'a Secret,
        _: Instant,
    ) -> BoxFuture<'a, Result<Secret, CallError>> {
        let answer = self.call(namespace, Request::Apply(Box::new(secret.clone())));
        async move {
            Ok(answer
                .await?
                .expect("an apply is answered by what is stored"))
        }
        .boxed()
    }

    fn delete<'a>(
        &'a self,
        namespace: &'a Namespace,
        uid: &'a str,
        version: &'a str,
        _: Instant,
    ) -> BoxFuture<'a, Result<(), CallError>> {
        let (uid, version) = (uid.to_owned(), version.to_owned());
        let answer = self.call(namespace, Request::Delete { uid, version });
        async move { answer.await.map(|_| ()) }.boxed()
    }
}

/// AWS as one process sees it.
pub(super) struct ProcessMint {
    process: usize,
    minted: AtomicU64,
    is_out: Arc<AtomicBool>,
    /// Where calls wait, if they do.
    gate: Option<SharedGate>,
    clock: Arc<ManualClock>,
}

impl Mint for ProcessMint {
    fn mint<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Token, MintError>> {
        async move {
            if let Some(gate) = &self.gate {
                let (to, turn) = oneshot::channel();
                let namespace = team();
                gate.lock()
                    .unwrap()
                    .push(self.process, &namespace, Asked::Mint, Reply::Mint(to));
                let _ = turn.await;
            }
            if self.is_out.load(SeqCst) {
                let reply = AwsReply::new("ServerException", "");
                return Err(MintError::Refused(
                    Operation::GetAuthorizationToken.into(),
                    reply,
                ));
            }
            let number = self.minted.fetch_add(1, SeqCst);
            let now = self.clock.now();
            let (process, identity) = (self.process, key.identity.hash());
            let text = format!("AWS:{identity} {} {process}.{number}", key.region);
            let text = STANDARD.encode(text);
            let expires_at = now + SignedDuration::from_hours(12);
            Ok(Token::decode(Some(&text), Some(expires_at), None, now).unwrap())
        }
        .boxed()
    }
}

/// A leader's knowledge of namespaces.
pub(super) struct KnownNamespaces {
    is_opted_in: Arc<AtomicBool>,
    server: SharedServer,
}

impl NamespaceSource for KnownNamespaces {
    fn names(&self) -> Vec<Namespace> {
        let is_in = self.is_opted_in.load(SeqCst);
        is_in.then(team).into_iter().collect()
    }

    fn settings(&self, namespace: &Namespace) -> Option<NamespaceSettings> {
        let is_in = *namespace == team() && self.is_opted_in.load(SeqCst);
        is_in.then(|| settings(namespace))
    }

    fn read<'a>(
        &'a self,
        namespace: &'a Namespace,
        _: Instant,
    ) -> BoxFuture<'a, Result<NamespaceState, ReadError>> {
        async move {
            let is_in = *namespace == team() && lock(&self.server).is_opted_in;
            Ok(if is_in {
                NamespaceState::OptedIn(settings(namespace))
            } else {
                NamespaceState::OptedOut(settings(namespace))
            })
        }
        .boxed()
    }
}

pub(super) fn settings(namespace: &Namespace) -> NamespaceSettings {
    NamespaceSettings {
        uid: uid_of(namespace).into(),
        ..NamespaceSettings::default()
    }
}

/// The namespace that a scenario is about.
pub fn team() -> Namespace {
    Namespace::parse("team").unwrap()
}

/// One that is never opted in.
pub fn stranger() -> Namespace {
    Namespace::parse("stranger").unwrap()
}

/// One process.
pub(super) struct Process {
    pub(super) store: PullSecrets,
    pub(super) live: Live,
    pub(super) changes: Changes,
    /// Where admissions come to it.
    pub(super) webhook: Option<Arc<Webhook>>,
    pub(super) leader: Option<JoinHandle<()>>,
    pub(super) stop: CancellationToken,
    /// The news that it has had.
    pub(super) cursor: usize,
    pub(super) config: usize,
    pub(super) is_opted_in: Arc<AtomicBool>,
    /// Whether it has known of an opt-out since it last had nothing to do.
    pub(super) is_out_for_good: bool,
    /// A digest of the process's input, in its order, which determines all that the process knows.
    pub(super) history: u64,
}

fn metrics() -> Metrics {
    static SHARED: OnceLock<Metrics> = OnceLock::new();
    SHARED.get_or_init(Metrics::default).clone()
}

impl World<'_> {
    /// Starts a process, which lists what there is.
    #[allow(clippy::too_many_lines, reason = "one process, put together")]
    pub(super) fn process(&self, index: usize) -> Process {
        let clock: Arc<dyn Clock> = self.clock.clone();
        let live = Live::new(self.scenario.configs[self.config].clone(), None);
        let changes = Changes::default();
        let is_opted_in = Arc::new(AtomicBool::new(lock(&self.server).is_opted_in));
        let knows = is_opted_in.clone();
        let store = PullSecrets::new(
            keys(),
            Arc::new(move |namespace: &Namespace| {
                let is_in = *namespace == team() && knows.load(SeqCst);
                is_in.then(|| uid_of(namespace).into())
            }),
            clock.clone(),
            changes.clone(),
            metrics().pull_secret,
        );
        let api = Arc::new(ProcessApi {
            process: index,
            gate: self.gate.clone(),
        });
        let name = live.config().rules.secret_name.clone();
        let writer = Writer::new(api, name, store.clone(), clock.clone());
        let tasks = TaskTracker::new();
        let mint = Arc::new(ProcessMint {
            process: index,
            minted: AtomicU64::new(self.restarts * 100),
            is_out: self.is_out.clone(),
            gate: self.scenario.mints_wait.then(|| self.gate.clone()),
            clock: self.clock.clone(),
        });
        let tokens = TokenCache::new(mint, clock.clone(), tasks.clone());
        let stop = CancellationToken::new();
        let webhook = (index < self.scenario.replicas).then(|| {
            let namespaces = Namespaces::new(
                client(&self.server),
                live.config().opt_in.clone(),
                changes.clone(),
                metrics().cluster,
            );
            let provisioner = Provisioner::new(provisioner::ProvisionerOptions {
                writer: writer.clone(),
                namespaces: namespaces.clone(),
                rules: live.rules.clone(),
                tokens: tokens.clone(),
                metrics: metrics().pull_secret,
                events: None,
                tasks,
                stop: stop.clone(),
            });
            Webhook::new(
                live.rules.clone(),
                namespaces,
                store.clone(),
                provisioner,
                clock.clone(),
                metrics().admission,
            )
        });
        let cursor = {
            let server = lock(&self.server);
            let mut list = store.begin_list();
            for secret in server.secrets.values() {
                store.listed(&secret.metadata, &mut list);
            }
            store.end_list(&list);
            server.log.len()
        };
        let leader = (index == self.scenario.leader).then(|| {
            let reconciler = Reconciler::new(ReconcilerContext {
                namespaces: Arc::new(KnownNamespaces {
                    is_opted_in: is_opted_in.clone(),
                    server: self.server.clone(),
                }),
                secrets: store.clone(),
                writer,
                tokens,
                policy: live.policy.clone(),
                changes: changes.clone(),
                clock,
                metrics: metrics().refresh,
                events: None,
            });
            tokio::spawn(async move { reconciler.lead(Leadership::unlimited()).await })
        });
        Process {
            store,
            live,
            changes,
            webhook: webhook.map(Arc::new),
            leader,
            stop,
            cursor,
            config: self.config,
            is_opted_in,
            is_out_for_good: false,
            history: self.restarts,
        }
    }
}

/// The API server for reads of namespaces.
fn client(server: &SharedServer) -> Client {
    let server = server.clone();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let path = request.uri().path();
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let is_in = name == team().as_str() && lock(&server).is_opted_in;
        async move {
            let labels = if is_in {
                json!({"ecr-injector.dev/inject": "enabled"})
            } else {
                json!({})
            };
            let uid = format!("uid-of-{name}");
            let object = json!({
                "apiVersion": "meta.k8s.io/v1",
                "kind": "PartialObjectMetadata",
                "metadata": {"name": name, "uid": uid, "labels": labels},
            });
            let body = Full::<Bytes>::from(object.to_string());
            Ok::<_, Infallible>(http::Response::new(body))
        }
    });
    Client::new(service, "default")
}

pub(super) fn key_of(answer: &Answered) -> u64 {
    match answer {
        Ok(Some(secret)) => digest(("some", content(secret))),
        Ok(None) => 1,
        Err(CallError::Conflict) => 2,
        Err(CallError::Guard(_)) => 3,
        Err(_) => 4,
    }
}
