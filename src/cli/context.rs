//! The parts of every command that works on a cluster: clients, stores, and the tasks that fill
//! them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use clap::{Args, builder::FalseyValueParser};
use tokio::time::timeout;

use super::{
    args::{AwsArgs, config_flag, parse_namespace},
    connection::ConnectionArgs,
    metrics::Metrics,
};
use crate::{
    aws::{AwsEnvironment, http::HttpClients},
    cluster::{
        Cluster,
        changes::Changes,
        event_recorder::{EventRecorder, EventRecorderOptions, REPORTER},
        namespace::Namespace,
        namespaces::Namespaces,
        service_accounts::ServiceAccounts,
        watch::Lists,
    },
    config::{Config, live::Live, watcher::ConfigWatcher},
    process::{
        clock::{Clock, SystemClock},
        file_watcher,
        readiness::{self, Condition, Readiness},
        supervisor::Supervisor,
    },
    pull_secret::{
        events,
        seal::StateKeys,
        state_key::{self, KeySecret},
        store::PullSecrets,
        writer::{Writer, api::KubeSecrets},
    },
    refresh::{self, Reconciler},
    token::{cache::TokenCache, ecr::Ecr},
};

/// The default namespace of an installation.
const INSTALLATION: &str = "ecr-injector";

/// How long readiness waits for the first list of ServiceAccounts. Without it, Pods of most accounts
/// are admitted as usual.
const FIRST_ACCOUNTS_TIMEOUT: Duration = Duration::from_secs(30);

/// The arguments of the configuration and the cluster.
#[derive(Debug, Args)]
pub(super) struct ContextArgs {
    /// Path of the configuration file (YAML); by default every value has its default
    #[arg(long, env = "ECR_INJECTOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    connection: ConnectionArgs,
    /// Use streaming lists (`WatchList`) instead of paginated lists: for very large clusters, from
    /// Kubernetes 1.34 on; falls back to paginated lists where the API server does not support them
    #[arg(long, env = "ECR_INJECTOR_STREAMING_LISTS", value_parser = FalseyValueParser::new())]
    streaming_lists: bool,
    #[command(flatten)]
    state_key: StateKeyArgs,
    #[command(flatten)]
    aws: AwsArgs,
}

/// The arguments of the Secret with the key that seals the states of pull secrets.
#[derive(Debug, Args)]
struct StateKeyArgs {
    /// Secret of the state key, with which replicas seal the states of pull secrets
    #[arg(id = "state_key_secret", long = "state-key-secret", env = "ECR_INJECTOR_STATE_KEY_SECRET", value_name = "NAME", default_value = state_key::DEFAULT_NAME)]
    secret: String,
    /// Namespace of the state key's Secret; by default that of the Pod, outside a cluster
    /// ecr-injector
    #[arg(id = "state_key_namespace", long = "state-key-namespace", env = "ECR_INJECTOR_STATE_KEY_NAMESPACE", value_name = "NAMESPACE", value_parser = parse_namespace)]
    namespace: Option<Namespace>,
}

impl StateKeyArgs {
    fn namespace(&self, own: Option<Namespace>) -> anyhow::Result<Namespace> {
        let namespace = self.namespace.clone().or(own);
        let namespace = namespace.or_else(|| Namespace::parse(INSTALLATION));
        namespace.context("the Secret of the state key has no namespace")
    }
}

impl ContextArgs {
    /// Whether there is a configuration file.
    pub(super) fn has_config(&self) -> bool {
        self.config.is_some()
    }

    fn lists(&self) -> Lists {
        if self.streaming_lists {
            Lists::Streamed
        } else {
            Lists::Paged
        }
    }

    fn config(&self) -> anyhow::Result<(Config, Option<ConfigWatcher>)> {
        let Some(path) = &self.config else {
            return Ok((Config::default(), None));
        };
        let loaded = ConfigWatcher::load(path);
        let (config, file) = loaded.with_context(|| config_flag(Some(path)))?;
        Ok((config, Some(file)))
    }
}

/// Whether the namespace in which the process runs is excluded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OwnNamespace {
    /// It is that of the installation.
    Excluded,
    /// It is one like any other.
    Included,
}

impl OwnNamespace {
    fn excluded(self, cluster: &Cluster) -> Option<Namespace> {
        match self {
            Self::Excluded => cluster.own_namespace.clone(),
            Self::Included => None,
        }
    }
}

/// The parts of a command.
pub(super) struct Context {
    pub(super) cluster: Cluster,
    pub(super) live: Live,
    /// The configuration file, until it is followed.
    pub(super) file: Option<ConfigWatcher>,
    pub(super) metrics: Metrics,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) environment: AwsEnvironment,
    pub(super) tokens: TokenCache,
    pub(super) namespaces: Namespaces,
    pub(super) secrets: PullSecrets,
    /// The Secret with the state key.
    pub(super) state_key_secret: KeySecret,
    lists: Lists,
    /// Runs the background tasks.
    pub(super) supervisor: Supervisor,
    changes: Changes,
}

impl Context {
    /// Reads the configuration and creates the parts. Makes no call to the cluster yet.
    pub(super) async fn new(args: &ContextArgs) -> anyhow::Result<Self> {
        Self::with_own_namespace(args, OwnNamespace::Excluded).await
    }

    /// Creates the parts like [`Self::new`], for a process that may serve the namespace in which it
    /// runs.
    pub(super) async fn with_own_namespace(
        args: &ContextArgs,
        own: OwnNamespace,
    ) -> anyhow::Result<Self> {
        let (config, file) = args.config()?;
        let trust = args.aws.trust()?;
        let cluster = args.connection.connect().await?;
        let (metrics, supervisor) = (Metrics::default(), Supervisor::default());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        metrics.config.applied(clock.now());
        let http = HttpClients::pooled(&trust);
        let environment =
            AwsEnvironment::read(http, args.aws.expect_credentials, metrics.aws.clone()).await;
        let live = Live::new(config, own.excluded(&cluster));
        let config = live.config();
        let ecr = Ecr::new(
            environment.clone(),
            live.session_cap.clone(),
            live.endpoints.clone(),
            clock.clone(),
            metrics.token.clone(),
        );
        let tasks = supervisor.tasks().clone();
        let tokens = TokenCache::new(Arc::new(ecr), clock.clone(), tasks);
        let changes = Changes::default();
        let namespaces = Namespaces::new(
            cluster.client.clone(),
            config.opt_in.clone(),
            changes.clone(),
            metrics.cluster.clone(),
        );
        let state_keys = StateKeys::default();
        let state_key_secret = KeySecret::new(
            cluster.client.clone(),
            args.state_key.namespace(cluster.own_namespace.clone())?,
            args.state_key.secret.clone(),
            state_keys.clone(),
            clock.clone(),
            metrics.pull_secret.clone(),
        );
        let known = namespaces.clone();
        let secrets = PullSecrets::new(
            state_keys,
            Arc::new(move |namespace| known.uid(namespace)),
            clock.clone(),
            changes.clone(),
            metrics.pull_secret.clone(),
        );
        Ok(Self {
            cluster,
            live,
            file,
            metrics,
            clock,
            environment,
            tokens,
            namespaces,
            secrets,
            state_key_secret,
            lists: args.lists(),
            supervisor,
            changes,
        })
    }

    /// Returns the pull secret's name, which does not change while the process runs.
    pub(super) fn secret_name(&self) -> String {
        self.live.config().rules.secret_name.clone()
    }

    /// Starts to follow the configuration file, if there is one.
    pub(super) fn follow_file(&mut self) {
        if let Some(file) = self.file.take() {
            let follow = file.follow(
                self.live.clone(),
                self.clock.clone(),
                self.metrics.config.clone(),
                file_watcher::PERIOD,
            );
            self.supervisor.spawn("configuration file", follow);
        }
    }

    /// Starts both watches, whose conditions hold after their first lists. Where states must be
    /// verified, `keyed` holds once there is a state key.
    pub(super) fn watch(
        &self,
        readiness: &mut Readiness,
        keyed: Option<Condition>,
    ) -> [Condition; 2] {
        let namespaces_synced = readiness
            .condition("namespaces-synced")
            .waiting_for("the first list of namespaces");
        let secrets_synced = readiness
            .condition("pull-secrets-synced")
            .waiting_for("the first list of pull secrets");
        let lists = self.lists;
        let (watched, condition) = (self.namespaces.clone(), namespaces_synced.clone());
        self.supervisor.spawn("watch of namespaces", async move {
            watched.run(lists, condition).await;
        });
        let (watched, condition) = (self.secrets.clone(), secrets_synced.clone());
        let (client, name) = (self.cluster.client.clone(), self.secret_name());
        // A state is verified with the key and its namespace's UID: a pull secret that is listed
        // before both are known would have to be read.
        let before: Vec<_> = std::iter::once(namespaces_synced.clone())
            .chain(keyed)
            .collect();
        self.supervisor.spawn("watch of pull secrets", async move {
            readiness::all_held(&before).await;
            watched.run(client, (None, &name), lists, condition).await;
        });
        [namespaces_synced, secrets_synced]
    }

    /// Starts to watch the pull secrets of the named namespaces alone, for which a Role in each is
    /// enough. The conditions hold after the first lists.
    pub(super) fn watch_in(
        &self,
        readiness: &mut Readiness,
        namespaces: &[Namespace],
    ) -> Vec<Condition> {
        let watch = |namespace: &Namespace| {
            let synced = readiness
                .condition("pull-secrets-synced")
                .waiting_for("the first list of pull secrets");
            let (watched, condition) = (self.secrets.clone(), synced.clone());
            let (client, name) = (self.cluster.client.clone(), self.secret_name());
            let (lists, namespace) = (self.lists, namespace.clone());
            self.supervisor.spawn("watch of pull secrets", async move {
                let of = (Some(&namespace), name.as_str());
                watched.run(client, of, lists, condition).await;
            });
            synced
        };
        namespaces.iter().map(watch).collect()
    }

    /// Starts the watch of ServiceAccounts, if the configuration has it, for the accounts that
    /// reject a reference to the pull secret. Readiness waits for the first list, for a while.
    pub(super) fn watch_service_accounts(
        &self,
        readiness: &mut Readiness,
    ) -> Option<ServiceAccounts> {
        if !self.live.config().watches_service_accounts {
            return None;
        }
        let synced = readiness
            .condition("service-accounts-synced")
            .waiting_for("the first list of ServiceAccounts");
        let client = self.cluster.client.clone();
        let metrics = self.metrics.cluster.clone();
        let accounts = ServiceAccounts::new(client, self.secret_name(), metrics);
        let (watched, condition) = (accounts.clone(), synced.clone());
        let supervisor = &self.supervisor;
        supervisor.spawn("watch of ServiceAccounts", async move {
            watched.run(condition).await;
        });
        supervisor.spawn_once("first list of ServiceAccounts", async move {
            let first = readiness::all_held(std::slice::from_ref(&synced));
            if timeout(FIRST_ACCOUNTS_TIMEOUT, first).await.is_err() {
                tracing::warn!(
                    "ServiceAccounts can't be listed; grant list and watch on serviceaccounts, or \
                     set watchServiceAccounts: false"
                );
                synced.hold();
            }
        });
        Some(accounts)
    }

    /// Starts to share the state key. The condition holds once there is a key.
    pub(super) fn share_state_key(&self, readiness: &mut Readiness) -> Condition {
        let condition = readiness
            .condition("state-key")
            .waiting_for("the state key");
        self.watch_state_key();
        let provide = self.state_key_secret.clone().provide(condition.clone());
        self.supervisor.spawn_once("first state key", provide);
        condition
    }

    /// Starts to watch the state key, and creates none.
    pub(super) fn watch_state_key(&self) {
        let watch = self.state_key_secret.clone().watch();
        self.supervisor.spawn("watch of the state key", watch);
    }

    /// Returns a writer through the admissions' client, or the leader's.
    pub(super) fn writer(&self, client: &kube::Client) -> Writer {
        let name = self.secret_name();
        let api = KubeSecrets::new(
            client.clone(),
            name.clone(),
            self.metrics.pull_secret.clone(),
        );
        Writer::new(
            Arc::new(api),
            name,
            self.secrets.clone(),
            self.clock.clone(),
        )
    }

    /// Returns the recorder of Events.
    pub(super) fn events(&self) -> EventRecorder {
        EventRecorder::new(EventRecorderOptions {
            client: self.cluster.client.clone(),
            regarding: events::regarding(&self.secret_name()),
            instance: instance(),
            clock: self.clock.clone(),
            metrics: self.metrics.cluster.clone(),
            supervisor: self.supervisor.clone(),
        })
    }

    /// Returns the reconciler of pull secrets.
    pub(super) fn reconciler(&self, events: Option<EventRecorder>) -> Reconciler {
        Reconciler::new(refresh::ReconcilerContext {
            namespaces: Arc::new(self.namespaces.clone()),
            secrets: self.secrets.clone(),
            writer: self.writer(&self.cluster.refresher),
            tokens: self.tokens.clone(),
            policy: self.live.policy.clone(),
            changes: self.changes.clone(),
            clock: self.clock.clone(),
            metrics: self.metrics.refresh.clone(),
            events,
        })
    }
}

/// Returns the Pod's name, which identifies this replica for people.
pub(super) fn instance() -> String {
    std::env::var("HOSTNAME").unwrap_or_else(|_| REPORTER.to_owned())
}
