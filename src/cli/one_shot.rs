//! What the commands share that do one thing on a cluster and end: from flags to a cluster that is known, and from a report
//! to an exit code.

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
    context::{Context, ContextArgs},
    progress::Progress,
    report::{Output, Report, Row},
};
use crate::{
    cluster::{
        Cluster, ClusterError,
        lease::Leadership,
        namespace::Namespace,
        namespaces::Look,
        rights::{self, Permission, Scope},
    },
    process::{
        readiness::{self, Readiness},
        signals::Signals,
    },
    refresh::RECONCILE_TIMEOUT,
    telemetry::log,
    tls,
};

/// How long the API server may take to list what there is.
const SYNC_TIMEOUT: Duration = Duration::from_mins(1);
/// Namespaces that are worked on at the same time.
const AT_ONCE: usize = 16;
/// How long a command that needs no state key waits for one.
const KEY_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a namespace that was labelled a moment ago may be unknown to the watch.
const LABEL_TIMEOUT: Duration = Duration::from_secs(5);

/// The flags of such a command. The scope has no variables: none that is left over is to narrow or widen what is done.
#[derive(Debug, Args)]
pub(super) struct OneShotArgs {
    /// Limit the command to this namespace; may be repeated
    #[arg(short, long = "namespace", value_name = "NAMESPACE", value_parser = super::namespace)]
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

/// A cluster whose namespaces and pull secrets are known, and leave to work on it.
pub(super) struct SyncedCluster {
    pub(super) context: Context,
    pub(super) progress: Progress,
    /// Over once a person has had enough.
    pub(super) term: Leadership,
}

/// What a command is like.
pub(super) struct Command {
    /// Such as `refreshing`.
    pub(super) doing: &'static str,
    /// What it does to pull secrets, beside reading and watching; nothing in a dry run.
    pub(super) verbs: &'static [&'static str],
    /// Whether it writes states, which takes the key that seals them.
    pub(super) seals: bool,
}

impl OneShotArgs {
    /// Runs a command, until it is done or a signal ends it.
    pub(super) fn run(
        &self,
        command: &Command,
        work: impl AsyncFnOnce(&SyncedCluster) -> anyhow::Result<Report>,
    ) -> anyhow::Result<ExitCode> {
        let progress = Progress::of(command.doing);
        let log = progress.clone();
        log::start_beside_output(&self.log, move || log.clone())
            .with_context(|| format!("--log {:?}", self.log))?;
        tls::install_crypto_provider();
        let runtime = super::runtime()?;
        let code = runtime.block_on(self.run_until_signal(command, progress, work));
        // What still waits for an answer that nobody wants any more is left behind.
        runtime.shutdown_background();
        code
    }

    async fn run_until_signal(
        &self,
        command: &Command,
        progress: Progress,
        work: impl AsyncFnOnce(&SyncedCluster) -> anyhow::Result<Report>,
    ) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::listen().context("listening for signals")?;
        let cluster = tokio::select! {
            cluster = self.cluster(command, progress.clone()) => cluster?,
            // Nothing has been done yet.
            code = signals.next() => return Ok(code),
        };
        let mut interrupted = None;
        let report = {
            let mut work = std::pin::pin!(work(&cluster));
            loop {
                tokio::select! {
                    report = &mut work => break report,
                    code = signals.next() => {
                        if interrupted.is_some() {
                            return Ok(code);
                        }
                        interrupted = Some(code);
                        cluster.term.end();
                        progress.say("interrupted: finishing what is in progress; interrupt again to exit at \
                         once");
                    }
                }
            }
        };
        progress.clear();
        let report = report?;
        let written = super::write_out(&report.to_text(self.output));
        // What there is to say is said even if nobody reads the report; to whom should a failure be told?
        let _ = writeln!(io::stderr(), "{}", report.summary);
        written.context("writing to standard output")?;
        let code = if report.is_good() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
        Ok(interrupted.unwrap_or(code))
    }

    /// Whether the cluster's own configuration is likely not the one that is worked by.
    pub(super) fn has_no_config(&self) -> bool {
        !self.context.has_config()
    }

    /// Connects, sees to the rights, and waits until it is known what there is.
    async fn cluster(
        &self,
        command: &Command,
        progress: Progress,
    ) -> anyhow::Result<SyncedCluster> {
        let context = Context::new(&self.context).await.map_err(|error| {
            if error.is::<ClusterError>() {
                error.context("no cluster found; set --kubeconfig or KUBECONFIG")
            } else {
                error
            }
        })?;
        let secret = Scope::Secrets(context.secret_name());
        let mut rights = rights(command, self, &secret);
        let is_key_needed = command.seals && !self.dry_run;
        if is_key_needed {
            let verbs = ["list", "watch", "create", "patch"];
            rights.extend(state_key_rights(&context, &verbs));
        }
        demand_rights(&context.cluster, &rights).await?;
        let mut readiness = Readiness::default();
        let keyed = is_key_needed.then(|| context.share_state_key(&mut readiness));
        match &keyed {
            Some(keyed) => {
                let held = timeout(SYNC_TIMEOUT, keyed.held()).await;
                held.ok().with_context(|| {
                    format!(
                        "no state key: {} has none in the Secret {} after {} s; see the log \
                         above. --state-key-secret and --state-key-namespace name another \
                         Secret",
                        context.cluster.server,
                        context.state_key_secret.path(),
                        SYNC_TIMEOUT.as_secs()
                    )
                })?;
            }
            None => read_state_key(&context).await,
        }
        let synced = context.watch(&mut readiness, keyed);
        timeout(SYNC_TIMEOUT, readiness::all_held(&synced))
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

/// Fails if this account has not all of these rights, and names those that are missing.
pub(super) async fn demand_rights(cluster: &Cluster, rights: &[Permission]) -> anyhow::Result<()> {
    let (client, server) = (&cluster.client, &cluster.server);
    let missing = rights::missing(client, rights).await.with_context(|| {
        format!(
            "can't use {server}; if that is the wrong cluster, see --kubeconfig and `kubectl \
             config current-context`; if it is the right one, `kubectl get namespaces` must \
             work from here"
        )
    })?;
    if missing.is_empty() {
        return Ok(());
    }
    let account = rights::account(client).await;
    let account = account.as_deref().unwrap_or("this account");
    let lines: Vec<_> = missing
        .iter()
        .map(|right| format!("\nmissing: {right}"))
        .collect();
    anyhow::bail!(
        "{account} lacks permissions for this command in {server}; docs/how-to/refresh-and-clean-up.md has the Role{}",
        lines.concat()
    );
}

fn rights(command: &Command, flags: &OneShotArgs, secret: &Scope) -> Vec<Permission> {
    let named = (!flags.namespaces.is_empty()).then(|| flags.namespaces.clone());
    let there = |verb, on| Permission {
        verb,
        on,
        namespaces: named.clone(),
    };
    let mut rights = vec![
        Permission::everywhere("list", Scope::Namespaces),
        Permission::everywhere("watch", Scope::Namespaces),
        there("get", Scope::Namespaces),
        Permission::everywhere("list", secret.clone()),
        Permission::everywhere("watch", secret.clone()),
        there("get", secret.clone()),
    ];
    if !flags.dry_run {
        let verbs = command.verbs.iter();
        rights.extend(verbs.map(|verb| there(verb, secret.clone())));
    }
    rights
}

/// These verbs on the Secret of the state key.
fn state_key_rights(context: &Context, verbs: &[&'static str]) -> Vec<Permission> {
    let secret = &context.state_key_secret;
    let right = |verb: &&'static str| Permission {
        verb,
        on: Scope::Secrets(secret.name().to_owned()),
        namespaces: Some(vec![secret.namespace().clone()]),
    };
    verbs.iter().map(right).collect()
}

/// Reads the state key where this account may: a command that writes no state does without.
async fn read_state_key(context: &Context) {
    let rights = state_key_rights(context, &["list", "watch"]);
    let missing = rights::missing(&context.cluster.client, &rights).await;
    if missing.is_ok_and(|missing| missing.is_empty()) {
        context.watch_state_key();
        let _ = timeout(KEY_TIMEOUT, context.state_key_secret.wait_until_observed()).await;
    }
}

/// A deadline for the work for one namespace, from now on.
pub(super) fn deadline() -> Instant {
    Instant::now() + RECONCILE_TIMEOUT
}

impl SyncedCluster {
    /// What has become of the namespaces that were named, in their order; fails if one can't be read.
    pub(super) async fn read_namespaces(
        &self,
        named: &[Namespace],
    ) -> anyhow::Result<Vec<(Namespace, Look)>> {
        let mut looks = Vec::new();
        for namespace in named {
            let look = self.context.namespaces.look(namespace, deadline()).await;
            let look = look.with_context(|| format!("reading the namespace {namespace}"))?;
            if matches!(look, Look::OptedIn(_)) {
                self.wait_for_label(namespace).await;
            }
            looks.push((namespace.clone(), look));
        }
        Ok(looks)
    }

    async fn wait_for_label(&self, namespace: &Namespace) {
        let seen = async {
            while self.context.namespaces.peek(namespace).is_none() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        // The label may be gone by now.
        let _ = timeout(LABEL_TIMEOUT, seen).await;
    }

    /// Does something for each namespace, at the pace that the configuration gives the leader. Once the term is over nothing
    /// more is begun, and the rows say so.
    pub(super) async fn each(
        &self,
        names: Vec<Namespace>,
        work: impl AsyncFn(&Namespace) -> Row,
    ) -> Vec<Row> {
        let work = async |namespace: &Namespace| Some(work(namespace).await);
        self.each_seen(names, work).await
    }

    /// Does what [`Self::each`] does, and leaves out the rows of namespaces that are none of our business.
    pub(super) async fn each_seen(
        &self,
        names: Vec<Namespace>,
        work: impl AsyncFn(&Namespace) -> Option<Row>,
    ) -> Vec<Row> {
        let all = names.len();
        let per_second = self.context.live.config().refresh.writes_per_second;
        let mut pace = interval(Duration::from_secs(1) / per_second.max(1));
        // After a while in which nothing could leave, nothing leaves in a burst.
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let pace = Mutex::new(pace);
        let mut rows = Vec::with_capacity(all);
        let one = async |namespace: Namespace| {
            tokio::select! {
                _ = async { pace.lock().await.tick().await } => {}
                () = self.term.lost() => {}
            }
            if self.term.holds() {
                work(&namespace).await
            } else {
                Some(interrupted(namespace))
            }
        };
        let mut done = std::pin::pin!(stream::iter(names).map(one).buffer_unordered(AT_ONCE));
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

/// A namespace whose turn didn't come.
pub(super) fn interrupted(namespace: Namespace) -> Row {
    let message = "not done: interrupted".to_owned();
    Row::bad(namespace, "interrupted", message)
}
