//! `ecr-injector serve`: the webhook.

mod admission;
mod leader;
mod listen;

use std::{
    fs::File, io::stdout, net::SocketAddr, os::fd::AsFd as _, process::ExitCode, sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, builder::FalseyValueParser};
use tokio::{
    net::TcpListener,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::{
    leader::{LeaderTasks, LeaseArgs},
    listen::MAX_ADMIN_CONNECTIONS,
};
use super::{
    args::{parse_listen, parse_seconds},
    certificates::CertificateArgs,
    context::{Context, ContextArgs, instance},
    runtime,
};
use crate::{
    config::{Config, Discovery},
    process::{
        readiness::{self, Condition, Readiness},
        signals::Signals,
        supervisor::Supervisor,
    },
    pull_secret::{gauges, guard},
    server::{
        Admission,
        accept::{Connection, Listener},
        admin,
    },
    telemetry::{
        error_chain::error_chain,
        log::{self, writer::LogWriter},
        otel::{Exporter, Traces},
    },
    tls,
};

/// The default name of the Service.
const SERVICE: &str = "ecr-injector";
/// How long requests in flight may take to end.
const GRACE: Duration = Duration::from_secs(10);
/// How long requests of the admin listener may take to end; no client depends on them by then.
const ADMIN_GRACE: Duration = Duration::from_secs(1);
/// How long the shutdown may take after the last review was accepted: requests, the Lease,
/// background tasks. With the delay before and the traces after, the shutdown has to fit the Pod's
/// grace period.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);
/// The exit code after a background task ended unexpectedly.
const TASK_FAILED: u8 = 3;
/// How long the last traces may take to be sent.
const LAST_TRACES: Duration = Duration::from_secs(3);

/// Serve the webhook: answer admission reviews and keep pull secrets in opted-in namespaces.
///
/// AWS credentials, region and endpoints come from the environment by the rules of the AWS SDK
/// (`AWS_*` variables, profiles, IRSA, EKS Pod Identity, instance roles).
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    context: ContextArgs,
    /// Address to serve admission reviews on (HTTPS)
    #[arg(
        long,
        env = "ECR_INJECTOR_LISTEN",
        value_name = "ADDR",
        value_parser = parse_listen,
        default_value = "[::]:8443"
    )]
    listen: SocketAddr,
    /// Answer no admission reviews: only take part in the election, whose winner keeps the pull
    /// secrets, and serve /livez, /readyz and /metrics
    #[arg(
        long,
        env = "ECR_INJECTOR_NO_ADMISSION",
        value_parser = FalseyValueParser::new(),
        conflicts_with_all = ["listen", "service_name", "CertificateArgs"]
    )]
    no_admission: bool,
    /// Address to serve /livez, /readyz and /metrics on (HTTP)
    #[arg(
        long,
        env = "ECR_INJECTOR_ADMIN_LISTEN",
        value_name = "ADDR",
        value_parser = parse_listen,
        default_value = "[::]:8080"
    )]
    admin_listen: SocketAddr,
    /// DNS name by which the API server calls the webhook; by default ecr-injector.NAMESPACE.svc
    #[arg(long, env = "ECR_INJECTOR_SERVICE_NAME", value_name = "NAME")]
    service_name: Option<String>,
    #[command(flatten)]
    certificates: CertificateArgs,
    /// Format of the log
    #[arg(long, env = "ECR_INJECTOR_LOG_FORMAT", value_enum, default_value_t)]
    log_format: log::Format,
    /// Log filter in the form of RUST_LOG, such as `info,ecr_injector::refresh=debug`
    #[arg(
        long,
        env = "ECR_INJECTOR_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    log: String,
    /// URL of the collector to send traces to over OTLP (HTTP, protobuf), without /v1/traces; by
    /// default none are sent
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,
    /// How long to keep serving after SIGTERM, in seconds or as 5s, while the API server's
    /// connections move to other replicas
    #[arg(
        long,
        env = "ECR_INJECTOR_SHUTDOWN_DELAY",
        value_name = "DURATION",
        value_parser = parse_seconds,
        default_value = "5"
    )]
    shutdown_delay: Duration,
    #[command(flatten)]
    lease: LeaseArgs,
}

/// How long the last lines of the log may take to be written: whoever reads them may be gone.
const LAST_LINES: Duration = Duration::from_secs(1);

/// The sockets of both listeners.
struct Sockets {
    /// The admission listener's, and its most connections.
    admission: Option<(TcpListener, usize)>,
    admin: TcpListener,
}

/// The running process.
struct Running {
    /// The parts, which the background tasks share.
    context: Context,
    /// The condition of readiness, which fails at the start of the shutdown.
    serving: Condition,
    /// Makes clients of the admission listener connect to other replicas.
    draining: CancellationToken,
    admission: Option<Server>,
    /// The election, which releases the Lease when it ends.
    election: JoinHandle<()>,
    admin: Server,
    exporter: Exporter,
}

/// A listener that accepts connections in a task of its own.
struct Server {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl ServeArgs {
    /// Serves until a signal.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let stdout = stdout().as_fd().try_clone_to_owned();
        let stdout = stdout.context("opening the standard output")?;
        // Not `Stdout`, which writes each line for itself.
        let writer = LogWriter::start(File::from(stdout)).context("starting the log's thread")?;
        let filter = log::start(self.log_format, &self.log, writer.clone())
            .with_context(|| format!("--log {:?}", self.log))?;
        log::log_panics();
        tls::install_crypto_provider();
        let log = (filter, writer.clone());
        let result = runtime::run(self.serve(log)).flatten();
        writer.flush_within(LAST_LINES);
        result
    }

    async fn serve(self, log: (log::Filter, LogWriter)) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::listen().context("listening for signals")?;
        let sockets = Sockets {
            admission: self.bind_admission()?,
            admin: listen::bind(self.admin_listen, "--admin-listen")?,
        };
        let running = self.start(log, sockets).await?;
        let listen = (!self.no_admission).then(|| self.listen.to_string());
        tracing::info!(listen, admin = %self.admin_listen, version = env!("CARGO_PKG_VERSION"), "serving");

        let (code, is_asked) = tokio::select! {
            _ = signals.next() => (ExitCode::SUCCESS, true),
            code = running.failed() => (code, false),
        };
        tracing::info!(
            delay_seconds = self.shutdown_delay.as_secs(),
            "shutting down: draining connections"
        );
        running.drain();
        let delay = self.shutdown_delay;
        // The second signal forces the end.
        let forced = async {
            if !is_asked {
                signals.next().await;
            }
            signals.next().await
        };
        tokio::select! {
            () = running.shut_down(delay) => Ok(code),
            code = forced => Ok(code),
        }
    }

    /// Binds the admission listener, if there is one.
    fn bind_admission(&self) -> anyhow::Result<Option<(TcpListener, usize)>> {
        if self.no_admission {
            return Ok(None);
        }
        let limit = listen::max_connections();
        Ok(Some((listen::bind(self.listen, "--listen")?, limit)))
    }

    /// Creates the parts and starts them.
    async fn start(
        &self,
        log: (log::Filter, LogWriter),
        sockets: Sockets,
    ) -> anyhow::Result<Running> {
        let context = Context::new(&self.context).await?;
        self.start_in(context, log, sockets)
    }

    /// Starts the parts that are created, in the order in which they depend on each other.
    fn start_in(
        &self,
        mut context: Context,
        (filter, writer): (log::Filter, LogWriter),
        sockets: Sockets,
    ) -> anyhow::Result<Running> {
        let home = self
            .lease
            .namespace(context.cluster.own_namespace.clone())?;
        let certificates = self.serving_certificates(&context, &home)?;
        let settings = self.lease.settings(home)?;
        let metrics = context.metrics.clone();

        follow_log_filter(&context, filter, self.log.clone());
        metrics.log.count_drops_of(&metrics.registry, writer);
        context.follow_file();
        let traces = Traces::start(
            self.otlp_endpoint.as_deref(),
            &instance(),
            metrics.traces.clone(),
        );
        let (traces, exporter) = traces.context("traces")?;
        let mut readiness = Readiness::default();
        let keyed = context.share_state_key(&mut readiness);
        let synced = context.watch(&mut readiness, Some(keyed));
        let authority = certificates.as_ref().and_then(|it| it.1.authority.clone());
        let tls = certificates.map(|it| self.serve_tls(&context, &mut readiness, it));
        let tls = tls.transpose()?;
        let serving = readiness.condition("serving").waiting_for("its sockets");
        start_measurements(&context, synced.clone());
        let events = context.events();
        let provisioner = admission::provisioner(&context, events.clone());
        let has_admission = tls.is_some();
        let accounts = has_admission.then(|| context.watch_service_accounts(&mut readiness));
        let accounts = accounts.flatten();
        let sources = (&provisioner, &events, accounts.clone());
        let leader_tasks = LeaderTasks::new(&context, authority, sources);
        let election = leader::elect(&context, settings, leader_tasks, synced)?;
        let draining = CancellationToken::new();
        let supervisor = context.supervisor.clone();
        let admission = tls.zip(sockets.admission);
        let admission = admission.map(|((tls, trust), (socket, limit))| {
            let webhook = admission::webhook(&context, provisioner, events, accounts);
            let connection = Connection {
                tls: Some(TlsAcceptor::from(Arc::new(tls))),
                trust,
                router: Admission::new(webhook, metrics.server.clone())
                    .with_traces(traces)
                    .router(),
                metrics: metrics.server.clone(),
                draining: draining.clone(),
            };
            let listener = Listener {
                socket,
                limit,
                connection,
            };
            Server::start("admission listener", listener, &supervisor, GRACE)
        });
        if admission.is_none() {
            warn_without_sources(&context.live.config());
        }
        let admin = Listener {
            socket: sockets.admin,
            limit: MAX_ADMIN_CONNECTIONS,
            connection: Connection {
                tls: None,
                trust: None,
                router: admin::router(readiness, metrics.registry),
                metrics: Arc::default(),
                draining: CancellationToken::new(),
            },
        };
        let admin = Server::start("admin listener", admin, &supervisor, ADMIN_GRACE);
        serving.hold();
        Ok(Running {
            context,
            serving,
            draining,
            admission,
            election,
            admin,
            exporter,
        })
    }
}

impl Server {
    fn start(
        name: &'static str,
        listener: Listener,
        supervisor: &Supervisor,
        grace: Duration,
    ) -> Self {
        let (stop, supervisor) = (CancellationToken::new(), supervisor.clone());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let run = listener.run(stopped.clone(), supervisor.tasks().clone(), grace);
            let is_over = || stopped.is_cancelled();
            supervisor.supervise(name, is_over, run).await;
        });
        Self { stop, task }
    }

    /// Stops accepting connections, and waits for requests in flight.
    async fn stop(self) {
        self.stop.cancel();
        // A panic of the listener is in the log already.
        let _ = self.task.await;
    }
}

impl Running {
    /// Waits until a background task has failed, and returns the exit code for that.
    async fn failed(&self) -> ExitCode {
        self.context.supervisor.failed().await;
        ExitCode::from(TASK_FAILED)
    }

    /// Makes the process not ready, and asks clients to connect to other replicas.
    fn drain(&self) {
        self.serving.fail("stopping");
        self.draining.cancel();
    }

    /// Ends all parts, after `delay` for the clients to move to other replicas.
    async fn shut_down(self, delay: Duration) {
        sleep(delay).await;
        let (tasks, stop) = (
            self.context.supervisor.tasks(),
            self.context.supervisor.stop(),
        );
        let ended = timeout(SHUTDOWN_TIMEOUT, async {
            if let Some(admission) = self.admission {
                admission.stop().await;
            }
            stop.cancel();
            // The election releases the Lease, so that another replica can lead at once.
            let _ = self.election.await;
            self.admin.stop().await;
            tasks.close();
            tasks.wait().await;
        });
        let ended = ended.await;
        self.exporter.finish(LAST_TRACES).await;
        if ended.is_err() {
            tracing::warn!("background tasks were still running at shutdown");
        }
        tracing::info!("shutdown complete");
    }
}

/// Applies the log filter of the configuration file, or else of the argument, now and at each
/// change.
fn follow_log_filter(context: &Context, log: log::Filter, default: String) {
    let mut last = default.clone();
    let mut apply = move |config: &Config| {
        let filter = config.log_filter.as_ref().unwrap_or(&default);
        if *filter == last {
            return;
        }
        // The file's filter was checked with the file, the argument's at the start.
        if let Err(error) = log.set(filter) {
            let error = error_chain(&error);
            tracing::warn!(filter, %error, "invalid log filter; keeping the current one");
        }
        filter.clone_into(&mut last);
    };
    apply(&context.live.config());
    let mut changes = context.live.follow();
    context.supervisor.spawn("log filter", async move {
        loop {
            let config = changes.next().await;
            apply(&config);
        }
    });
}

/// Warns if nothing says which registries the namespaces need: no admission does.
fn warn_without_sources(config: &Config) {
    if config.refresh.prewarm.is_empty() && config.refresh.discovery == Discovery::None {
        tracing::warn!(
            "no admission reports the registries of Pods, and neither prewarm nor discover is set; \
             no pull secret will be created"
        );
    }
}

/// Tests, once `synced`, whether the guard rejects what it must.
fn test_guard(context: &Context, synced: [Condition; 2]) {
    let (client, own) = (
        context.cluster.client.clone(),
        context.cluster.own_namespace.clone(),
    );
    let (name, metrics) = (context.secret_name(), context.metrics.pull_secret.clone());
    context
        .supervisor
        .spawn_once("test of the guard", async move {
            readiness::all_held(&synced).await;
            guard::test_guard(client, &name, own.as_ref(), guard::TEST_TIMEOUT, &metrics).await;
        });
}

/// Starts the look-up of credentials, the gauges of each scrape, and the test of the guard.
fn start_measurements(context: &Context, synced: [Condition; 2]) {
    let environment = context.environment.clone();
    let check = async move { environment.check_credentials().await };
    context
        .supervisor
        .spawn_once("search for credentials", check);
    gauges::measure_at_each_scrape(
        &context.metrics.registry,
        context.metrics.pull_secret.clone(),
        context.secrets.clone(),
        context.namespaces.clone(),
        context.live.policy.clone(),
        context.clock.clone(),
    );
    test_guard(context, synced);
}

#[cfg(test)]
mod tests;
