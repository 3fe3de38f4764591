//! The frame of commands that do one thing on a cluster and end: from arguments to a synced
//! cluster, and from a report to an exit code.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, builder::FalseyValueParser};
use futures::{StreamExt as _, stream};
use tokio::{
    sync::Mutex,
    time::{Instant, MissedTickBehavior, interval, timeout},
};

use super::{
    args::parse_namespace,
    context::{Context, ContextArgs, OwnNamespace},
    permissions::check_permissions,
    progress::Progress,
    report::{Output, Report, Row},
    runtime, stdout,
};
use crate::{
    cluster::{
        lease::Leadership,
        namespace::Namespace,
        namespaces::NamespaceState,
        rights::{self, Permission, Scope},
    },
    process::{
        readiness::{self, Condition, Readiness},
        signals::Signals,
    },
    refresh::RECONCILE_TIMEOUT,
    telemetry::log,
    tls,
};

/// How long the API server may take for the first lists.
const SYNC_TIMEOUT: Duration = Duration::from_mins(1);
/// The most namespaces that are processed at the same time.
const CONCURRENCY: usize = 16;
/// How long a command that can do without the state key waits for the key.
const KEY_TIMEOUT: Duration = Duration::from_secs(3);
/// The arguments of such a command. The namespaces have no variable: a variable that was left set
/// must not narrow or widen what is done.
#[derive(Debug, Args)]
pub(super) struct OneShotArgs {
    /// Limit the command to this namespace; may be repeated. No other namespace is read
    #[arg(short, long = "namespace", value_name = "NAMESPACE", value_parser = parse_namespace)]
    pub(super) namespaces: Vec<Namespace>,
    /// Print what would be done, and change nothing
    #[arg(long, env = "ECR_INJECTOR_DRY_RUN", value_parser = FalseyValueParser::new())]
    pub(super) dry_run: bool,
    /// Output format of the report
    #[arg(short, long, env = "ECR_INJECTOR_OUTPUT", value_enum, default_value_t)]
    output: Output,
    /// Log filter for standard error in the form of RUST_LOG
    #[arg(
        long,
        env = "ECR_INJECTOR_LOG",
        value_name = "FILTER",
        default_value = "warn"
    )]
    log: String,
    #[command(flatten)]
    context: ContextArgs,
}

/// A cluster whose namespaces and pull secrets are synced, and the term to work on it.
pub(super) struct SyncedCluster {
    pub(super) context: Context,
    pub(super) progress: Progress,
    /// The term, which ends when the command is interrupted.
    pub(super) term: Leadership,
}

/// The properties of a command.
pub(super) struct Command {
    /// The verb of the progress bar, such as `refreshing`.
    pub(super) operation: &'static str,
    /// The verbs on pull secrets that the command needs, beside reading and watching; none in a dry
    /// run.
    pub(super) verbs: &'static [&'static str],
    /// Whether the command writes states, for which it needs the key that seals them.
    pub(super) seals: bool,
    /// Whether the namespace in which the command runs is excluded.
    pub(super) own_namespace: OwnNamespace,
}

impl OneShotArgs {
    /// Runs a command until it is done, or until a signal.
    pub(super) fn run(
        &self,
        command: &Command,
        work: impl AsyncFnOnce(&SyncedCluster) -> anyhow::Result<Report>,
    ) -> anyhow::Result<ExitCode> {
        let progress = Progress::new(command.operation);
        let log = progress.clone();
        log::start_beside_output(&self.log, move || log.clone())
            .with_context(|| format!("--log {:?}", self.log))?;
        tls::install_crypto_provider();
        runtime::run(self.run_until_signal(command, progress, work))?
    }

    async fn run_until_signal(
        &self,
        command: &Command,
        progress: Progress,
        work: impl AsyncFnOnce(&SyncedCluster) -> anyhow::Result<Report>,
    ) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::listen().context("listening for signals")?;
        let synced = tokio::select! {
            synced = self.sync(command, progress.clone()) => synced?,
            // Nothing has been done yet.
            code = signals.next() => return Ok(code),
        };
        let mut interrupted = None;
        let report = {
            let mut work = std::pin::pin!(work(&synced));
            loop {
                tokio::select! {
                    report = &mut work => break report,
                    task = synced.context.supervisor.failed() => {
                        anyhow::bail!("the background task {task:?} ended unexpectedly; report the bug with the log above");
                    }
                    code = signals.next() => {
                        if interrupted.is_some() {
                            return Ok(code);
                        }
                        interrupted = Some(code);
                        synced.term.end();
                        progress.print("interrupted: finishing what is in progress; interrupt again to exit at \
                         once");
                    }
                }
            }
        };
        progress.clear();
        let report = report?;
        let written = stdout::write(&report.to_text(self.output));
        // The summary is written even if the report could not be. There is nowhere left to report
        // that this write failed.
        let _ = writeln!(io::stderr(), "{}", report.summary);
        written.context("writing to standard output")?;
        let code = if report.is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
        Ok(interrupted.unwrap_or(code))
    }

    /// Whether there is a configuration file; without one, the webhook's configuration likely
    /// differs.
    pub(super) fn has_config(&self) -> bool {
        self.context.has_config()
    }

    /// Connects, checks the permissions, and waits for the first lists.
    async fn sync(&self, command: &Command, progress: Progress) -> anyhow::Result<SyncedCluster> {
        let own = command.own_namespace;
        let context = Context::with_own_namespace(&self.context, own).await?;
        let secret = Scope::Secrets(context.secret_name());
        let mut permissions = permissions(command, self, &secret);
        let is_key_needed = command.seals && !self.dry_run;
        if is_key_needed {
            let verbs = ["list", "watch", "create", "patch"];
            permissions.extend(state_key_permissions(&context, &verbs));
        }
        check_permissions(&context.cluster, &permissions).await?;
        let mut readiness = Readiness::default();
        let keyed = if is_key_needed {
            Some(share_state_key(&context, &mut readiness).await?)
        } else {
            read_state_key(&context).await;
            None
        };
        let conditions = if self.namespaces.is_empty() {
            context.watch(&mut readiness, keyed).to_vec()
        } else {
            for namespace in &self.namespaces {
                let loaded = context.namespaces.load(namespace, deadline()).await;
                loaded.with_context(|| format!("reading the namespace {namespace}"))?;
            }
            context.watch_in(&mut readiness, &self.namespaces)
        };
        timeout(SYNC_TIMEOUT, readiness::all_held(&conditions))
            .await
            .ok()
            .with_context(|| {
                format!(
                    "{} did not list its namespaces and the Secrets named {} within {} s; see the \
                 log above, or run with --log debug",
                    context.cluster.server,
                    context.secret_name(),
                    SYNC_TIMEOUT.as_secs()
                )
            })?;
        Ok(SyncedCluster {
            context,
            progress,
            term: Leadership::unlimited(),
        })
    }
}

/// Shares the state key, and waits for it.
async fn share_state_key(
    context: &Context,
    readiness: &mut Readiness,
) -> anyhow::Result<Condition> {
    let keyed = context.share_state_key(readiness);
    let held = timeout(SYNC_TIMEOUT, keyed.held()).await;
    held.ok().with_context(|| {
        format!(
            "no state key: {} has none in the Secret {} after {} s; see the log above. \
             --state-key-secret and --state-key-namespace name another Secret",
            context.cluster.server,
            context.state_key_secret.path(),
            SYNC_TIMEOUT.as_secs()
        )
    })?;
    Ok(keyed)
}

/// Returns the permissions that a command needs on namespaces and pull secrets.
fn permissions(command: &Command, args: &OneShotArgs, secret: &Scope) -> Vec<Permission> {
    let named = (!args.namespaces.is_empty()).then(|| args.namespaces.clone());
    let in_named = |verb, on| Permission {
        verb,
        on,
        namespaces: named.clone(),
    };
    let mut permissions = Vec::new();
    if named.is_none() {
        permissions.push(Permission::everywhere("list", Scope::Namespaces));
        permissions.push(Permission::everywhere("watch", Scope::Namespaces));
    }
    permissions.push(in_named("get", Scope::Namespaces));
    let reads = ["list", "watch", "get"].into_iter();
    permissions.extend(reads.map(|verb| in_named(verb, secret.clone())));
    if !args.dry_run {
        let verbs = command.verbs.iter();
        permissions.extend(verbs.map(|verb| in_named(verb, secret.clone())));
    }
    permissions
}

/// Returns the permissions for these verbs on the Secret of the state key.
fn state_key_permissions(context: &Context, verbs: &[&'static str]) -> Vec<Permission> {
    let secret = &context.state_key_secret;
    let permission = |verb: &&'static str| Permission {
        verb,
        on: Scope::Secrets(secret.name().to_owned()),
        namespaces: Some(vec![secret.namespace().clone()]),
    };
    verbs.iter().map(permission).collect()
}

/// Reads the state key if this account may: a command that writes no state can do without it.
async fn read_state_key(context: &Context) {
    let permissions = state_key_permissions(context, &["list", "watch"]);
    let missing = rights::missing(&context.cluster.client, &permissions).await;
    if missing.is_ok_and(|missing| missing.is_empty()) {
        context.watch_state_key();
        let _ = timeout(KEY_TIMEOUT, context.state_key_secret.wait_until_observed()).await;
    }
}

/// Returns the deadline for the work on one namespace that starts now.
pub(super) fn deadline() -> Instant {
    Instant::now() + RECONCILE_TIMEOUT
}

impl SyncedCluster {
    /// Reads the named namespaces, in their order; fails if one can't be read.
    pub(super) async fn read_namespaces(
        &self,
        named: &[Namespace],
    ) -> anyhow::Result<Vec<(Namespace, NamespaceState)>> {
        let mut states = Vec::new();
        for namespace in named {
            let state = self.context.namespaces.read(namespace, deadline()).await;
            let state = state.with_context(|| format!("reading the namespace {namespace}"))?;
            states.push((namespace.clone(), state));
        }
        Ok(states)
    }

    /// Does the work for each namespace, at the rate that the configuration sets for the leader.
    /// After the end of the term no work is started, and the rows show that.
    pub(super) async fn for_each(
        &self,
        names: Vec<Namespace>,
        work: impl AsyncFn(&Namespace) -> Row,
    ) -> Vec<Row> {
        let work = async |namespace: &Namespace| Some(work(namespace).await);
        self.filter_map(names, work).await
    }

    /// Does the work like [`Self::for_each`], and omits namespaces for which the work returns no
    /// row.
    pub(super) async fn filter_map(
        &self,
        names: Vec<Namespace>,
        work: impl AsyncFn(&Namespace) -> Option<Row>,
    ) -> Vec<Row> {
        let all = names.len();
        let per_second = self.context.live.config().refresh.writes_per_second;
        let mut rate = interval(Duration::from_secs(1) / per_second.max(1));
        // No burst follows a time in which nothing could start.
        rate.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let rate = Mutex::new(rate);
        let mut rows = Vec::with_capacity(all);
        let one = async |namespace: Namespace| {
            tokio::select! {
                _ = async { rate.lock().await.tick().await } => {}
                () = self.term.lost() => {}
            }
            if self.term.holds() {
                work(&namespace).await
            } else {
                Some(interrupted(namespace))
            }
        };
        let mut done = std::pin::pin!(stream::iter(names).map(one).buffer_unordered(CONCURRENCY));
        let mut finished = 0;
        while let Some(row) = done.next().await {
            rows.extend(row);
            finished += 1;
            self.progress.set(finished, all);
        }
        rows.sort_by(|a, b| a.namespace.cmp(&b.namespace));
        rows
    }
}

/// Returns the row of a namespace that an interrupted command did not reach.
pub(super) fn interrupted(namespace: Namespace) -> Row {
    let message = "not done: interrupted".to_owned();
    Row::error(namespace, "interrupted", message)
}
