//! `ecr-injector serve`: the webhook.

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use rustix::io::Errno;
use tokio::{
    net::{TcpListener, TcpSocket},
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use super::{
    certificates::CertificateArgs,
    context::{Context, ContextArgs, instance},
    span,
};
use crate::{
    admission::handler::Webhook,
    cluster::{
        event_recorder::EventRecorder,
        lease::{Elector, Leadership, Settings},
        namespace::Namespace,
    },
    config::Config,
    process::{
        file_descriptors::{self, DescriptorNeeds},
        readiness::{self, Condition, Readiness},
        signals::Signals,
    },
    pull_secret::{
        gauges, guard,
        provisioner::{Provisioner, ProvisionerOptions},
        state_key::KeySecret,
    },
    refresh::{Reconciler, discovery::Discoverer},
    registry::Host,
    server::{
        Admission, MAX_IN_HAND,
        accept::{Connection, Listener, MAX_CONNECTIONS},
        admin,
    },
    telemetry::{log, otel::Traces},
    tls::{self, CertPublisher, CertResolver, CertSource, self_managed::SelfManaged},
};

/// The name of the Lease and the Service, and their namespace where this isn't a Pod.
const LEASE: &str = "ecr-injector";

/// How long requests under way may take to end.
const GRACE: Duration = Duration::from_secs(10);

/// The same on the other listener, where nobody asks for anything that matters by then.
const ADMIN_GRACE: Duration = Duration::from_secs(1);

/// How long the whole end may take, from when no more reviews are taken: requests, the Lease, background work. With the
/// time before and the traces after it this has to fit what the kubelet waits before it kills.
const ENDING: Duration = Duration::from_secs(20);

/// Connections of kubelets and of what reads metrics.
const MAX_ADMIN_CONNECTIONS: usize = 64;

/// Connections that wait to be accepted, as far as the kernel allows (`net.core.somaxconn`).
const BACKLOG: u32 = 1024;

/// File descriptors for what does not follow from connections: watches, the leader's calls, AWS, files.
const OWN_FILES: usize = 64;

/// How long the last traces may take to be sent.
const LAST_TRACES: Duration = Duration::from_secs(3);

/// Serve the webhook: answer admission reviews and keep pull secrets in opted-in namespaces.
///
/// AWS credentials, region and endpoints come from the environment by the rules of the AWS SDK (`AWS_*` variables,
/// profiles, IRSA, EKS Pod Identity, instance roles).
#[derive(Debug, Args)]
pub struct ServeArgs {
    #[command(flatten)]
    context: ContextArgs,
    /// Address to serve admission reviews on (HTTPS)
    #[arg(
        long,
        env = "ECR_INJECTOR_LISTEN",
        value_name = "ADDR",
        default_value = "[::]:8443"
    )]
    listen: SocketAddr,
    /// Address to serve /livez, /readyz and /metrics on (HTTP)
    #[arg(
        long,
        env = "ECR_INJECTOR_ADMIN_LISTEN",
        value_name = "ADDR",
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
    /// Seconds to keep serving after SIGTERM, while the API server's connections move to other
    /// replicas
    #[arg(
        long,
        env = "ECR_INJECTOR_SHUTDOWN_DELAY",
        value_name = "SECONDS",
        default_value_t = 5
    )]
    shutdown_delay: u64,
    #[command(flatten)]
    lease: LeaseArgs,
}

/// The Lease by which one replica leads, and so keeps the pull secrets fresh.
#[derive(Debug, Args)]
struct LeaseArgs {
    /// Name of the Lease for leader election
    #[arg(id = "lease_name", long = "lease-name", env = "ECR_INJECTOR_LEASE_NAME", value_name = "NAME", default_value = LEASE)]
    name: String,
    /// Namespace of the Lease; by default that of the Pod, outside a cluster ecr-injector
    #[arg(id = "lease_namespace", long = "lease-namespace", env = "ECR_INJECTOR_LEASE_NAMESPACE", value_name = "NAMESPACE", value_parser = super::namespace)]
    namespace: Option<Namespace>,
    /// How long other replicas wait for a leader that does not renew the Lease
    #[arg(id = "lease_duration", long = "lease-duration", env = "ECR_INJECTOR_LEASE_DURATION", value_name = "DURATION", default_value = "15s", value_parser = span)]
    duration: Duration,
    /// How long a leader that can't renew the Lease keeps leading
    #[arg(id = "lease_renew_deadline", long = "lease-renew-deadline", env = "ECR_INJECTOR_LEASE_RENEW_DEADLINE", value_name = "DURATION", default_value = "10s", value_parser = span)]
    renew_deadline: Duration,
    /// Interval between attempts to renew or acquire the Lease
    #[arg(id = "lease_retry_period", long = "lease-retry-period", env = "ECR_INJECTOR_LEASE_RETRY_PERIOD", value_name = "DURATION", default_value = "2s", value_parser = span)]
    retry_period: Duration,
}

impl LeaseArgs {
    /// Where we run, or are to be taken to run.
    fn home(&self, own: Option<Namespace>) -> anyhow::Result<Namespace> {
        let named = self.namespace.clone().or(own);
        let namespace = named.or_else(|| Namespace::parse(LEASE));
        namespace.context("the Lease has no namespace")
    }

    fn settings(&self, namespace: Namespace) -> anyhow::Result<Settings> {
        let settings = Settings {
            duration: self.duration,
            renew_deadline: self.renew_deadline,
            retry_period: self.retry_period,
            ..Settings::new(namespace, &self.name, &instance())
        };
        settings.check().context("the flags of the Lease")?;
        Ok(settings)
    }
}

impl ServeArgs {
    /// Serves until a signal.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let log = log::start(self.log_format, &self.log)
            .with_context(|| format!("--log {:?}", self.log))?;
        tls::install_crypto_provider();
        super::runtime()?.block_on(self.serve(log))
    }

    #[allow(
        clippy::too_many_lines,
        reason = "the one place where the parts are put together, in the order in which they start and end"
    )]
    async fn serve(self, log: log::Filter) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::listen().context("listening for signals")?;
        let connections = connections();
        let socket = bind(self.listen, "--listen")?;
        let admin_socket = bind(self.admin_listen, "--admin-listen")?;
        let mut context = Context::new(&self.context).await?;
        let home = self.lease.home(context.cluster.own_namespace.clone())?;
        let service = self.service_name.clone();
        let service = service.unwrap_or_else(|| format!("{LEASE}.{}.svc", home.as_str()));
        let certificates = self.certificates.source(&context, &home, &service)?;
        let settings = self.lease.settings(home)?;
        let (metrics, tasks, stop) = (
            context.metrics.clone(),
            context.tasks.clone(),
            context.stop.clone(),
        );

        follow_log_filter(&context, log, self.log.clone());
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
        let tls = serve_certificate(&context, &mut readiness, certificates.source, service);
        let tls = self.certificates.server_config(&context, tls)?;
        let authority = certificates.authority;
        if let Some(authority) = authority.clone() {
            let condition = readiness
                .condition("ca-bundle-trusted")
                .waiting_for("the MutatingWebhookConfiguration to trust the certificate authority");
            context.spawn(authority.clone().report(condition));
            context.spawn(authority.watch());
        }
        let serving = readiness.condition("serving").waiting_for("its sockets");
        let environment = context.environment.clone();
        context.spawn(async move { environment.check_credentials().await });
        gauges::measure_at_each_scrape(
            &metrics.registry,
            metrics.pull_secret.clone(),
            context.secrets.clone(),
            context.namespaces.clone(),
            context.live.rules.clone(),
            context.clock.clone(),
        );
        test_guard(&context, synced.clone());
        let events = context.events();
        let provisioner = provisioner(&context, events.clone());
        let duties = Duties {
            reconciler: context.reconciler(Some(events.clone())),
            authority,
            state_key: context.state_key_secret.clone(),
            discoverer: discoverer(&context, provisioner.clone()),
        };
        let leading = lead(&context, settings, duties, synced)?;
        let webhook = webhook(&context, provisioner, events);
        let draining = CancellationToken::new();
        let admission = Listener {
            socket,
            limit: connections,
            connection: Connection {
                tls: Some(TlsAcceptor::from(Arc::new(tls))),
                router: Admission::new(webhook, metrics.server.clone())
                    .traced(traces)
                    .router(),
                metrics: metrics.server.clone(),
                draining: draining.clone(),
            },
        };
        let admin = Listener {
            socket: admin_socket,
            limit: MAX_ADMIN_CONNECTIONS,
            connection: Connection {
                tls: None,
                router: admin::router(readiness, metrics.registry.clone()),
                metrics: Arc::default(),
                draining: CancellationToken::new(),
            },
        };
        let (stop_serving, stop_admin) = (CancellationToken::new(), CancellationToken::new());
        let serve = tokio::spawn(admission.run(stop_serving.clone(), tasks.clone(), GRACE));
        let serve_admin = tokio::spawn(admin.run(stop_admin.clone(), tasks.clone(), ADMIN_GRACE));
        serving.hold();
        tracing::info!(listen = %self.listen, admin = %self.admin_listen, version = env!("CARGO_PKG_VERSION"), "serving");

        signals.next().await;
        tracing::info!(
            delay_seconds = self.shutdown_delay,
            "shutting down: draining connections"
        );
        serving.fail("stopping");
        draining.cancel();
        let ending = async {
            sleep(Duration::from_secs(self.shutdown_delay)).await;
            stop_serving.cancel();
            let ended = timeout(ENDING, async {
                // A listener's own panic is in the log already.
                let _ = serve.await;
                stop.cancel();
                // It lets go of the Lease, so that another replica can go on at once.
                let _ = leading.await;
                stop_admin.cancel();
                let _ = serve_admin.await;
                tasks.close();
                tasks.wait().await;
            });
            let ended = ended.await;
            exporter.finish(LAST_TRACES).await;
            ended
        };
        tokio::select! {
            ended = ending => {
                if ended.is_err() {
                    tracing::warn!("background tasks were still running at shutdown");
                }
                tracing::info!("shutdown complete");
                Ok(ExitCode::SUCCESS)
            }
            code = signals.next() => Ok(code),
        }
    }
}

/// How many connections reviews may come by: fewer where few files may be open.
fn connections() -> usize {
    let files = file_descriptors::raise_limit();
    let needs = DescriptorNeeds {
        connections: MAX_CONNECTIONS,
        calls: MAX_IN_HAND,
        others: MAX_ADMIN_CONNECTIONS + OWN_FILES,
    };
    let connections = needs.max_connections(files);
    if connections < MAX_CONNECTIONS {
        tracing::warn!(
            limit = files,
            connections,
            "file descriptor limit is low; reducing max connections"
        );
    }
    connections
}

fn bind(address: SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    // The usual queue holds 128: of a burst of more, the kernel drops some without a word to their clients.
    let listen = |address| {
        let socket = match address {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    let listener = listen(address).or_else(|error| {
        let instead = without_ipv6(address, &error).ok_or(error)?;
        tracing::info!(%address, %instead, "IPv6 is not available; listening on all IPv4 addresses");
        listen(instead)
    });
    listener.with_context(|| format!("{flag} {address}: can't listen there"))
}

/// Where to listen in the place of all addresses, on a machine whose kernel has no IPv6 (`ipv6.disable=1`).
fn without_ipv6(address: SocketAddr, error: &io::Error) -> Option<SocketAddr> {
    let is_missing = error.raw_os_error() == Some(Errno::AFNOSUPPORT.raw_os_error());
    let is_all = address.is_ipv6() && address.ip().is_unspecified();
    (is_missing && is_all).then(|| SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())))
}

fn provisioner(context: &Context, events: EventRecorder) -> Provisioner {
    Provisioner::new(ProvisionerOptions {
        writer: context.writer(&context.cluster.client),
        namespaces: context.namespaces.clone(),
        tokens: context.tokens.clone(),
        metrics: context.metrics.pull_secret.clone(),
        events: Some(events),
        tasks: context.tasks.clone(),
        stop: context.stop.clone(),
    })
}

/// Hands what Pending Pods want to the provisioner, as an admission that could not write does.
fn discoverer(context: &Context, provisioner: Provisioner) -> Discoverer {
    let (rules, namespaces) = (context.live.rules.clone(), context.namespaces.clone());
    let sink = move |namespace: &Namespace, hosts: BTreeSet<Host>| {
        let (rules, Some(settings)) = (rules.get(), namespaces.peek(namespace)) else {
            return;
        };
        let hosts = hosts.iter();
        let keys = hosts.filter_map(|host| rules.key_for(host.as_str(), namespace, &settings));
        provisioner.retain_demand(namespace, keys.collect(), &rules);
    };
    Discoverer::new(
        context.cluster.refresher.clone(),
        context.namespaces.clone(),
        context.live.clone(),
        context.metrics.refresh.clone(),
        Arc::new(sink),
    )
}

fn webhook(context: &Context, provisioner: Provisioner, events: EventRecorder) -> Webhook {
    Webhook::new(
        context.live.rules.clone(),
        context.namespaces.clone(),
        context.secrets.clone(),
        provisioner,
        context.clock.clone(),
        context.metrics.admission.clone(),
    )
    .with_events(events)
}

/// Logs what the configuration's file says, or else what the flag says, now and whenever that changes.
fn follow_log_filter(context: &Context, log: log::Filter, flag: String) {
    let mut last = flag.clone();
    let mut apply = move |config: &Config| {
        let filter = config.log_filter.as_ref().unwrap_or(&flag);
        if *filter == last {
            return;
        }
        // The file's was checked with the rest of it, the flag's at the start.
        if let Err(error) = log.set(filter) {
            let error = anyhow::Error::from(error);
            tracing::warn!(filter, error = %format_args!("{error:#}"), "invalid log filter; keeping the current one");
        }
        filter.clone_into(&mut last);
    };
    apply(&context.live.config());
    let mut changes = context.live.follow();
    context.spawn(async move {
        loop {
            let config = changes.next().await;
            apply(&config);
        }
    });
}

/// Serves what the source brings. The condition holds once there is a certificate.
fn serve_certificate(
    context: &Context,
    readiness: &mut Readiness,
    source: Box<dyn CertSource>,
    service: String,
) -> Arc<CertResolver> {
    let (serving, condition) = (
        Arc::<CertResolver>::default(),
        readiness
            .condition("certificate")
            .waiting_for("a certificate"),
    );
    let served = CertPublisher::new(
        serving.clone(),
        service,
        condition,
        context.metrics.tls.clone(),
    );
    context.spawn(source.run(served));
    serving
}

/// Once it is known what there is, tries whether the guard refuses what it must.
fn test_guard(context: &Context, synced: [Condition; 2]) {
    let (client, own) = (
        context.cluster.client.clone(),
        context.cluster.own_namespace.clone(),
    );
    let (name, metrics) = (context.secret_name(), context.metrics.pull_secret.clone());
    context.spawn(async move {
        readiness::all_held(&synced).await;
        guard::test_guard(client, &name, own.as_ref(), guard::TEST_TIMEOUT, &metrics).await;
    });
}

/// What the leader does, beside what every replica does.
#[derive(Clone)]
struct Duties {
    reconciler: Reconciler,
    authority: Option<SelfManaged>,
    state_key: KeySecret,
    discoverer: Discoverer,
}

impl Duties {
    async fn lead(self, term: Leadership) {
        let keep = async {
            if let Some(authority) = self.authority {
                authority.keep(term.clone()).await;
            }
        };
        tokio::join!(
            self.reconciler.lead(term.clone()),
            keep,
            self.state_key.maintain(&term),
            self.discoverer.lead(term.clone()),
        );
    }
}

/// Once it is known what there is, takes part in the election, until everything stops. To be awaited then: it releases the
/// Lease.
fn lead(
    context: &Context,
    settings: Settings,
    duties: Duties,
    synced: [Condition; 2],
) -> anyhow::Result<JoinHandle<()>> {
    let elector = Elector::new(
        context.cluster.refresher.clone(),
        settings,
        context.clock.clone(),
        context.metrics.cluster.clone(),
    )?;
    let stop = context.stop.clone();
    Ok(tokio::spawn(async move {
        let known = stop.run_until_cancelled(readiness::all_held(&synced));
        if known.await.is_none() {
            return;
        }
        let lead = |term: Leadership| duties.clone().lead(term);
        elector.run(stop, lead).await;
    }))
}

#[cfg(test)]
mod tests;
