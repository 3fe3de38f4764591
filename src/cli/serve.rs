//! `ecr-injector serve`: the webhook.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::Args;
use tokio::{
    net::TcpListener,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::AwsFlags;
use crate::{
    aws::Surroundings,
    clock::{Clock, SystemClock},
    cluster::Cluster,
    config::Config,
    events::{self, Events},
    metrics::Metrics,
    namespace::{changes::Changes, store::Namespaces},
    pull_secret::{
        ensure::{Ensurer, Parts},
        gauges, guard,
        store::PullSecrets,
        write::Writer,
    },
    readiness::Readiness,
    server::{
        Admission,
        accept::{Connection, Listener, MAX_CONNECTIONS},
        admin,
    },
    shutdown::Signals,
    telemetry,
    tls::{self, MinVersion},
    token::{cache::TokenCache, ecr::Ecr},
    webhook::Webhook,
};

/// How long requests under way may take to end, and background work after them.
const GRACE: Duration = Duration::from_secs(10);

/// Serve the webhook: answer the API server's reviews and keep pull secrets in the namespaces that opted in.
///
/// AWS credentials, region and endpoints come from the surroundings by the SDK's own rules (`AWS_*` variables, profiles,
/// IRSA, EKS Pod Identity, instance roles).
#[derive(Debug, Args)]
pub struct Flags {
    /// The configuration file (YAML); without it every value has its default
    #[arg(long, env = "ECR_INJECTOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where to serve reviews over HTTPS
    #[arg(
        long,
        env = "ECR_INJECTOR_LISTEN",
        value_name = "ADDR",
        default_value = "[::]:8443"
    )]
    listen: SocketAddr,
    /// Where to serve /livez, /readyz and /metrics over HTTP
    #[arg(
        long,
        env = "ECR_INJECTOR_ADMIN_LISTEN",
        value_name = "ADDR",
        default_value = "[::]:8080"
    )]
    admin_listen: SocketAddr,
    /// The serving certificate with its chain (PEM)
    #[arg(long, env = "ECR_INJECTOR_TLS_CERT", value_name = "FILE")]
    tls_cert: PathBuf,
    /// The serving certificate's private key (PEM)
    #[arg(long, env = "ECR_INJECTOR_TLS_KEY", value_name = "FILE")]
    tls_key: PathBuf,
    /// The oldest TLS version to accept
    #[arg(
        long,
        env = "ECR_INJECTOR_TLS_MIN_VERSION",
        value_name = "VERSION",
        default_value_t
    )]
    tls_min_version: MinVersion,
    /// The kubeconfig to reach the API server with; by default the Pod's service account, else the usual KUBECONFIG rules
    #[arg(long, env = "ECR_INJECTOR_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// How to write logs
    #[arg(long, env = "ECR_INJECTOR_LOG_FORMAT", value_enum, default_value_t)]
    log_format: telemetry::Format,
    /// What to log, in the form of RUST_LOG
    #[arg(
        long,
        env = "ECR_INJECTOR_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    log: String,
    /// How long to go on serving after SIGTERM, in seconds: the API server's connections take a while to go elsewhere
    #[arg(
        long,
        env = "ECR_INJECTOR_SHUTDOWN_DELAY",
        value_name = "SECONDS",
        default_value_t = 5
    )]
    shutdown_delay: u64,
    #[command(flatten)]
    aws: AwsFlags,
}

impl Flags {
    /// Serves until a signal.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        telemetry::start(self.log_format, &self.log)
            .with_context(|| format!("--log {:?}", self.log))?;
        tls::install_crypto_provider();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .context("starting threads")?;
        runtime.block_on(self.serve())
    }

    #[allow(
        clippy::too_many_lines,
        reason = "the one place where the parts are put together, in the order in which they start and end"
    )]
    async fn serve(self) -> anyhow::Result<ExitCode> {
        let config = Config::of(self.config.as_deref())?;
        let trust = self.aws.trust()?;
        let tls = tls::server_config(&self.tls_cert, &self.tls_key, self.tls_min_version)?;
        let mut signals = Signals::listen().context("listening for signals")?;
        let socket = bind(self.listen, "--listen").await?;
        let admin_socket = bind(self.admin_listen, "--admin-listen").await?;
        let cluster = Cluster::connect(self.kubeconfig.as_deref()).await?;
        let config = config.excluding(cluster.own_namespace.clone());

        let (metrics, tasks, stop) = (
            Arc::new(Metrics::default()),
            TaskTracker::new(),
            CancellationToken::new(),
        );
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let surroundings = Surroundings::read(&trust, metrics.clone()).await;
        let ecr = Ecr::new(
            surroundings.clone(),
            config.session_cap,
            clock.clone(),
            metrics.clone(),
        );
        let tokens = TokenCache::new(Arc::new(ecr), clock.clone(), tasks.clone());
        let changes = Changes::default();
        let namespaces = Namespaces::new(
            cluster.client.clone(),
            config.opt_in,
            changes.clone(),
            metrics.clone(),
        );
        let secrets = PullSecrets::new(changes, metrics.clone());
        let rules = Arc::new(config.rules);
        gauges::measure_at_each_scrape(
            &metrics,
            secrets.clone(),
            namespaces.clone(),
            rules.clone(),
            clock.clone(),
        );
        let ensurer = Ensurer::new(Parts {
            writer: Writer::new(
                cluster.client.clone(),
                rules.clone(),
                secrets.clone(),
                clock.clone(),
                metrics.clone(),
            ),
            rules: rules.clone(),
            namespaces: namespaces.clone(),
            tokens,
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        });

        let mut readiness = Readiness::default();
        let namespaces_synced = readiness.condition("namespaces-synced");
        let secrets_synced = readiness.condition("pull-secrets-synced");
        let serving = readiness.condition("serving");
        spawn_until(&tasks, &stop, async move {
            surroundings.look_for_credentials().await;
        });
        let synced = [namespaces_synced.clone(), secrets_synced.clone()];
        let watched = namespaces.clone();
        spawn_until(&tasks, &stop, async move {
            watched.run(namespaces_synced).await;
        });
        let client = cluster.client.clone();
        let (watched, name) = (secrets.clone(), rules.secret_name.clone());
        spawn_until(&tasks, &stop, async move {
            watched.run(client, &name, secrets_synced).await;
        });
        let (client, own, name) = (
            cluster.client.clone(),
            cluster.own_namespace,
            rules.secret_name.clone(),
        );
        let counted = metrics.clone();
        spawn_until(&tasks, &stop, async move {
            for condition in synced {
                condition.held().await;
            }
            guard::test_guard(client, &name, own.as_ref(), guard::PATIENCE, &counted).await;
        });

        let events = Events::new(events::Parts {
            client: cluster.client,
            secret_name: rules.secret_name.clone(),
            instance: std::env::var("HOSTNAME").unwrap_or_else(|_| events::REPORTER.to_owned()),
            clock: clock.clone(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            stop: stop.clone(),
        });
        let webhook = Webhook::new(rules, namespaces, secrets, ensurer, clock, metrics.clone())
            .telling(events);
        let draining = CancellationToken::new();
        let admission = Listener {
            socket,
            limit: MAX_CONNECTIONS,
            connection: Connection {
                tls: Some(TlsAcceptor::from(Arc::new(tls))),
                router: Admission::new(webhook, metrics.clone()).router(),
                metrics: metrics.clone(),
                draining: draining.clone(),
            },
        };
        let admin = Listener {
            socket: admin_socket,
            limit: MAX_CONNECTIONS,
            connection: Connection {
                tls: None,
                router: admin::router(readiness, metrics.clone()),
                metrics: Arc::new(Metrics::default()),
                draining: CancellationToken::new(),
            },
        };
        let (stop_serving, stop_admin) = (CancellationToken::new(), CancellationToken::new());
        let serve = tokio::spawn(admission.run(stop_serving.clone(), tasks.clone(), GRACE));
        let serve_admin = tokio::spawn(admin.run(stop_admin.clone(), tasks.clone(), GRACE));
        serving.hold();
        tracing::info!(listen = %self.listen, admin = %self.admin_listen, version = env!("CARGO_PKG_VERSION"), "serving");

        signals.next().await;
        tracing::info!(
            delay_seconds = self.shutdown_delay,
            "asked to end; serving on while traffic goes elsewhere"
        );
        serving.fail();
        draining.cancel();
        let ending = async {
            sleep(Duration::from_secs(self.shutdown_delay)).await;
            stop_serving.cancel();
            // A listener's own panic is in the log already.
            let _ = serve.await;
            stop.cancel();
            stop_admin.cancel();
            let _ = serve_admin.await;
            tasks.close();
            timeout(GRACE, tasks.wait()).await
        };
        tokio::select! {
            ended = ending => {
                if ended.is_err() {
                    tracing::warn!("background work was still under way at the end");
                }
                tracing::info!("ended");
                Ok(ExitCode::SUCCESS)
            }
            code = signals.next() => Ok(code),
        }
    }
}

async fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{flag} {address}: can't listen there"))
}

fn spawn_until(
    tasks: &TaskTracker,
    stop: &CancellationToken,
    work: impl Future<Output = ()> + Send + 'static,
) {
    let stop = stop.clone();
    tasks.spawn(async move {
        stop.run_until_cancelled(work).await;
    });
}
