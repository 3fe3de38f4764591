//! What every command shares that works on a cluster: its connections, its stores, and how they hang together.

use std::{path::PathBuf, sync::Arc};

use anyhow::Context as _;
use clap::{Args, builder::FalseyValueParser};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{AwsArgs, metrics::Metrics};
use crate::{
    aws::AwsEnvironment,
    cluster::{
        Cluster,
        changes::Changes,
        event_recorder::{EventRecorder, EventRecorderOptions, REPORTER},
        namespace::Namespace,
        namespaces::Namespaces,
        watch::Lists,
    },
    config::{Config, ConfigError, live::Live, watcher::ConfigWatcher},
    process::{
        clock::{Clock, SystemClock},
        file_watcher,
        readiness::{self, Condition, Readiness},
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

/// The namespace that an installation has by default.
const INSTALLATION: &str = "ecr-injector";

/// Where the configuration and the cluster are.
#[derive(Debug, Args)]
pub(super) struct ContextArgs {
    /// Path of the configuration file (YAML); by default every value has its default
    #[arg(long, env = "ECR_INJECTOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Path of the kubeconfig; by default the service account of the Pod, else the usual KUBECONFIG
    /// rules
    #[arg(long, env = "ECR_INJECTOR_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Use streaming lists (`WatchList`) instead of paginated lists: for very large clusters, from
    /// Kubernetes 1.34 on; falls back to paginated lists where the API server does not support them
    #[arg(long, env = "ECR_INJECTOR_STREAMING_LISTS", value_parser = FalseyValueParser::new())]
    streaming_lists: bool,
    #[command(flatten)]
    state_key: StateKeyArgs,
    #[command(flatten)]
    aws: AwsArgs,
}

/// The Secret that shares the key by which replicas seal the states of pull secrets.
#[derive(Debug, Args)]
struct StateKeyArgs {
    /// Secret of the state key, with which replicas seal the states of pull secrets
    #[arg(id = "state_key_secret", long = "state-key-secret", env = "ECR_INJECTOR_STATE_KEY_SECRET", value_name = "NAME", default_value = state_key::DEFAULT_NAME)]
    secret: String,
    /// Namespace of the state key's Secret; by default that of the Pod, outside a cluster
    /// ecr-injector
    #[arg(id = "state_key_namespace", long = "state-key-namespace", env = "ECR_INJECTOR_STATE_KEY_NAMESPACE", value_name = "NAMESPACE", value_parser = super::namespace)]
    namespace: Option<Namespace>,
}

impl StateKeyArgs {
    fn namespace(&self, own: Option<Namespace>) -> anyhow::Result<Namespace> {
        let named = self.namespace.clone().or(own);
        let namespace = named.or_else(|| Namespace::parse(INSTALLATION));
        namespace.context("the Secret of the state key has no namespace")
    }
}

impl ContextArgs {
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

    fn config(&self) -> Result<(Config, Option<ConfigWatcher>), ConfigError> {
        let Some(path) = &self.config else {
            return Ok((Config::default(), None));
        };
        let (config, file) = ConfigWatcher::load(path)?;
        Ok((config, Some(file)))
    }
}

/// The parts.
pub(super) struct Context {
    pub(super) cluster: Cluster,
    pub(super) live: Live,
    /// Where the configuration comes from, to be followed.
    pub(super) file: Option<ConfigWatcher>,
    pub(super) metrics: Metrics,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) environment: AwsEnvironment,
    pub(super) tokens: TokenCache,
    pub(super) namespaces: Namespaces,
    pub(super) secrets: PullSecrets,
    /// The Secret that shares these keys.
    pub(super) state_key_secret: KeySecret,
    lists: Lists,
    /// Everything that runs in the background.
    pub(super) tasks: TaskTracker,
    /// Ends it.
    pub(super) stop: CancellationToken,
    changes: Changes,
}

impl Context {
    /// Reads the configuration and makes the parts. No call leaves yet.
    pub(super) async fn new(flags: &ContextArgs) -> anyhow::Result<Self> {
        let (config, file) = flags.config()?;
        let trust = flags.aws.trust()?;
        let cluster = Cluster::connect(flags.kubeconfig.as_deref()).await?;
        let (metrics, tasks) = (Metrics::default(), TaskTracker::new());
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        metrics.config.applied(clock.now());
        let environment =
            AwsEnvironment::read(&trust, flags.aws.expect_credentials, metrics.aws.clone()).await;
        let live = Live::new(config, cluster.own_namespace.clone());
        let config = live.config();
        let ecr = Ecr::new(
            environment.clone(),
            live.session_cap.clone(),
            clock.clone(),
            metrics.token.clone(),
        );
        let tokens = TokenCache::new(Arc::new(ecr), clock.clone(), tasks.clone());
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
            flags.state_key.namespace(cluster.own_namespace.clone())?,
            flags.state_key.secret.clone(),
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
            lists: flags.lists(),
            tasks,
            stop: CancellationToken::new(),
            changes,
        })
    }

    /// The pull secret's name, which stays the same while the process runs.
    pub(super) fn secret_name(&self) -> String {
        self.live.config().rules.secret_name.clone()
    }

    /// Runs something in the background until everything stops.
    pub(super) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            stop.run_until_cancelled(work).await;
        });
    }

    /// Begins to follow the configuration's file, if there is one.
    pub(super) fn follow_file(&mut self) {
        if let Some(file) = self.file.take() {
            self.spawn(file.follow(
                self.live.clone(),
                self.clock.clone(),
                self.metrics.config.clone(),
                file_watcher::PERIOD,
            ));
        }
    }

    /// Starts both watches. The conditions hold once they have brought what there is. Where states are to be proven, `keyed`
    /// holds once there is a key for that.
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
        self.spawn(async move { watched.run(lists, condition).await });
        let (watched, condition) = (self.secrets.clone(), secrets_synced.clone());
        let (client, name) = (self.cluster.client.clone(), self.secret_name());
        // A state is proven by the key and its namespace's UID: a pull secret that is listed before both would have to be read.
        let before: Vec<_> = std::iter::once(namespaces_synced.clone())
            .chain(keyed)
            .collect();
        self.spawn(async move {
            readiness::all_held(&before).await;
            watched.run(client, &name, lists, condition).await;
        });
        [namespaces_synced, secrets_synced]
    }

    /// Starts to share the state key. The condition holds once a key is known.
    pub(super) fn share_state_key(&self, readiness: &mut Readiness) -> Condition {
        let condition = readiness
            .condition("state-key")
            .waiting_for("the state key");
        self.watch_state_key();
        self.spawn(self.state_key_secret.clone().provide(condition.clone()));
        condition
    }

    /// Starts to watch the state key, and makes none.
    pub(super) fn watch_state_key(&self) {
        self.spawn(self.state_key_secret.clone().watch());
    }

    /// A writer through the admissions' client, or the leader's.
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

    /// Who tells the namespaces' people.
    pub(super) fn events(&self) -> EventRecorder {
        EventRecorder::new(EventRecorderOptions {
            client: self.cluster.client.clone(),
            regarding: events::regarding(&self.secret_name()),
            instance: instance(),
            clock: self.clock.clone(),
            metrics: self.metrics.cluster.clone(),
            tasks: self.tasks.clone(),
            stop: self.stop.clone(),
        })
    }

    /// Who keeps pull secrets fresh.
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

/// Which of the replicas this is, for people: the Pod's name.
pub(super) fn instance() -> String {
    std::env::var("HOSTNAME").unwrap_or_else(|_| REPORTER.to_owned())
}
