//! The webhook inside the test's own process, over a [`FakeApi`] and a mint that the test controls: for tests that need its
//! router, a stream that is no socket, or paused time.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ecr_injector::admission::handler::Webhook;
use ecr_injector::cli::metrics::Metrics;
use ecr_injector::cluster::changes::Changes;
use ecr_injector::cluster::namespaces::Namespaces;
use ecr_injector::config::Config;
use ecr_injector::config::live::Live;
use ecr_injector::process::clock::Clock;
use ecr_injector::pull_secret::provisioner::{Provisioner, ProvisionerOptions};
use ecr_injector::pull_secret::seal::{StateKeys, key::StateKey};
use ecr_injector::pull_secret::store::PullSecrets;
use ecr_injector::pull_secret::writer::Writer;
use ecr_injector::pull_secret::writer::api::KubeSecrets;
use ecr_injector::server::Admission;
use ecr_injector::server::accept::{Connection, Listener, MAX_CONNECTIONS};
use ecr_injector::telemetry::otel::Traces;
use ecr_injector::token::cache::{Mint, MintError, Operation, TokenCache};
use ecr_injector::token::{Token, TokenKey};
use futures::future::BoxFuture;
use jiff::{SignedDuration, Timestamp};
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::fake_api::FakeApi;
use super::webhook::sum;

/// The namespace that is opted in.
pub const NAMESPACE: &str = "team";

/// How long a stopped listener waits for the requests under way.
const GRACE: Duration = Duration::from_secs(10);

/// A webhook and what stands around it.
pub struct InProcess {
    pub api: FakeApi,
    pub mint: Arc<FakeMint>,
    pub clock: Arc<FixedClock>,
    /// Its configuration, which may be replaced.
    pub live: Live,
    pub router: Router,
    pub metrics: Metrics,
    /// Asks clients to reconnect, once this token is cancelled.
    pub draining: CancellationToken,
}

/// A clock that always shows the same time, until a test makes the clock panic.
#[derive(Default)]
pub struct FixedClock(AtomicBool);

/// Mints tokens, or hangs.
#[derive(Default)]
pub struct FakeMint {
    hangs: AtomicBool,
    calls: AtomicUsize,
}

/// A listener on a loopback port.
pub struct Listening {
    pub address: SocketAddr,
    stop: CancellationToken,
    running: JoinHandle<()>,
}

impl InProcess {
    pub fn new() -> Self {
        Self::over(FakeApi::opted_in(&[NAMESPACE]))
    }

    /// One more replica over the same API server.
    pub fn over(api: FakeApi) -> Self {
        Self::configured(api, Config::default())
    }

    /// One whose admissions are traced.
    pub fn traced(traces: Traces, metrics: Metrics) -> Self {
        let api = FakeApi::opted_in(&[NAMESPACE]);
        Self::made_of(api, Config::default(), traces, metrics)
    }

    /// One whose configuration has this text.
    pub fn with_config(text: &str) -> Self {
        let api = FakeApi::opted_in(&[NAMESPACE]);
        Self::configured(
            api,
            Config::parse(&crate::support::config_file(text), "config").unwrap(),
        )
    }

    fn configured(api: FakeApi, config: Config) -> Self {
        Self::made_of(api, config, Traces::default(), Metrics::default())
    }

    fn made_of(api: FakeApi, config: Config, traces: Traces, metrics: Metrics) -> Self {
        let mint = Arc::new(FakeMint::default());
        let clock = Arc::new(FixedClock::default());
        let live = Live::new(config, None);
        let admission = admission(&api, &live, &mint, &clock, &metrics);
        let router = admission.with_traces(traces).router();
        Self {
            api,
            mint,
            clock,
            live,
            router,
            metrics,
            draining: CancellationToken::new(),
        }
    }

    /// How it serves a connection.
    pub fn connection(&self, tls: Option<TlsAcceptor>) -> Connection {
        Connection {
            tls,
            trust: None,
            router: self.router.clone(),
            metrics: self.metrics.server.clone(),
            draining: self.draining.clone(),
        }
    }

    /// The client's end of a new connection.
    pub fn connect(&self, tls: Option<TlsAcceptor>) -> DuplexStream {
        self.connect_until(tls, &CancellationToken::new())
    }

    /// The client's end of a new connection that ends after `stop`.
    pub fn connect_until(
        &self,
        tls: Option<TlsAcceptor>,
        stop: &CancellationToken,
    ) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let (connection, stop) = (self.connection(tls), stop.clone());
        tokio::spawn(async move { connection.serve(theirs, stop).await });
        ours
    }

    /// Serves on a free loopback port.
    pub async fn listen(&self, tls: Option<TlsAcceptor>) -> Listening {
        self.listen_for(MAX_CONNECTIONS, tls).await
    }

    /// Serves so many connections at a time on a free loopback port.
    pub async fn listen_for(&self, limit: usize, tls: Option<TlsAcceptor>) -> Listening {
        self.listen_as(limit, self.connection(tls)).await
    }

    /// Serves connections with these settings on a free loopback port.
    pub async fn listen_as(&self, limit: usize, connection: Connection) -> Listening {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let listener = Listener {
            socket,
            limit,
            connection,
        };
        let stop = CancellationToken::new();
        let running = tokio::spawn(listener.run(stop.clone(), TaskTracker::new(), GRACE));
        Listening {
            address,
            stop,
            running,
        }
    }

    /// The sum of all series that match, as [`sum`] reads them.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "counters and gauges are small whole numbers"
    )]
    pub fn metric(&self, series: &str) -> u64 {
        sum(&self.metrics.registry.to_text(), series) as u64
    }
}

impl Listening {
    /// Stops it and waits for its end.
    pub async fn stop(self) {
        self.stop.cancel();
        self.running.await.unwrap();
    }
}

fn admission(
    api: &FakeApi,
    live: &Live,
    mint: &Arc<FakeMint>,
    clock: &Arc<FixedClock>,
    metrics: &Metrics,
) -> Admission<Webhook> {
    // Only the decision's clock panics: the rest is to go on.
    let steady: Arc<dyn Clock> = Arc::new(FixedClock::default());
    let tasks = TaskTracker::new();
    let changes = Changes::default();
    let running = live.config();
    let namespaces = Namespaces::new(
        api.client(),
        running.opt_in.clone(),
        changes.clone(),
        metrics.cluster.clone(),
    );
    let known = namespaces.clone();
    let secrets = PullSecrets::new(
        StateKeys::new(StateKey::new([7; 32]), None),
        Arc::new(move |namespace| known.uid(namespace)),
        steady.clone(),
        changes,
        metrics.pull_secret.clone(),
    );
    let name = running.rules.secret_name.clone();
    let secret_api = KubeSecrets::new(api.client(), name.clone(), metrics.pull_secret.clone());
    let provisioner = Provisioner::new(ProvisionerOptions {
        writer: Writer::new(Arc::new(secret_api), name, secrets.clone(), steady.clone()),
        namespaces: namespaces.clone(),
        rules: live.rules.clone(),
        tokens: TokenCache::new(mint.clone(), steady, tasks.clone()),
        metrics: metrics.pull_secret.clone(),
        events: None,
        tasks,
        stop: CancellationToken::new(),
    });
    let webhook = Webhook::new(
        live.rules.clone(),
        namespaces,
        secrets,
        provisioner,
        clock.clone(),
        metrics.admission.clone(),
    );
    Admission::new(webhook, metrics.server.clone())
}

impl FixedClock {
    /// Whether it panics from now on.
    pub fn set_panics(&self, panics: bool) {
        self.0.store(panics, Ordering::SeqCst);
    }
}

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        assert!(
            !self.0.load(Ordering::SeqCst),
            "the clock was told to panic"
        );
        Timestamp::constant(1_800_000_000, 0)
    }
}

impl FakeMint {
    /// Whether calls from now on are never answered.
    pub fn set_hangs(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::SeqCst);
    }

    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

impl Mint for FakeMint {
    fn mint<'a>(&'a self, _: &'a TokenKey) -> BoxFuture<'a, Result<Token, MintError>> {
        Box::pin(async {
            let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
            if self.hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let now = FixedClock::default().now();
            let text = BASE64_STANDARD.encode(format!("AWS:token-{call}"));
            let expires_at = Some(now + SignedDuration::from_hours(12));
            Token::decode(Some(&text), expires_at, None, now).map_err(|wrong| {
                MintError::Unusable(Operation::GetAuthorizationToken.into(), wrong)
            })
        })
    }
}
