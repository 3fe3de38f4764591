//! `ecr-injector refresh --once`: refreshes the pull secrets like the leader, once and by hand.

mod named;

use std::process::ExitCode;

use clap::{Args, error::ErrorKind};
use jiff::Timestamp;

use self::named::Named;
use super::{
    context::OwnNamespace,
    one_shot::{self, Command, OneShotArgs, SyncedCluster},
    report::{Report, Row, count},
};
use crate::{
    cluster::{
        namespace::{Namespace, NamespaceSettings},
        namespaces::NamespaceState,
    },
    pull_secret::{Foreign, Observed, state::State, store::Entry, to_the_second},
    refresh::{
        Sweep, SweepOutcome,
        plan::{Action, DesiredState, Plan},
    },
    token::Freshness,
};

const LONG_ABOUT: &str = "\
Refresh all pull secrets once, and exit.

The command does what the leader of `serve` does, with the same code: it renews what is due, mints what could not be minted \
before, creates what `prewarm` names, and repairs what was changed. It writes only to opted-in namespaces, and may run beside \
a leader.";
const AFTER_HELP: &str = "\
The report goes to standard output; logs, progress and the summary go to standard error.

Exit codes:
  0         every pull secret is fresh; with --dry-run: nothing prevents that
  1         a pull secret is not fresh (a Secret of that name that ecr-injector did not create, no token, a rejected write, a \
suspended registry), a permission is missing, or the cluster could not be reached
  2         wrong usage
  130, 143  interrupted by SIGINT or SIGTERM: what was in progress has ended and is reported

Examples:
  ecr-injector refresh --once --dry-run
  ecr-injector refresh --once --all --namespace team-a
  ecr-injector refresh --once --prune --config config.yaml
  ecr-injector refresh --once --namespace team-a --registry 123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const NOT_ONCE: &str = "\
--once is missing: this command refreshes once and exits.
To refresh pull secrets continuously, run `ecr-injector serve`: one of its replicas leads and refreshes.
";
const NO_CONFIG: &str = "\
warning: no --config: all values are defaults. Use the configuration of the webhook if it has one: without it, other \
identities mint, and aliases are unknown";

const COMMAND: Command = Command {
    operation: "refreshing",
    verbs: &["create", "patch"],
    seals: true,
    own_namespace: OwnNamespace::Excluded,
};

/// Refresh all pull secrets once, and exit.
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
pub struct RefreshArgs {
    /// Refresh once (required: `serve` refreshes continuously)
    #[arg(long)]
    once: bool,
    /// Also renew credentials that are not due yet
    #[arg(long)]
    all: bool,
    /// Remove registries that the configuration does not allow, even if their credentials are still
    /// valid
    #[arg(long)]
    prune: bool,
    /// Also create the credential for this registry (its host, or an alias) in the namespaces,
    /// although no Pod needs it; may be repeated. The namespace of the command is one like any other
    /// then
    #[arg(long = "registry", value_name = "HOST", requires = "namespaces")]
    registries: Vec<String>,
    #[command(flatten)]
    scope: OneShotArgs,
}

impl RefreshArgs {
    /// Refreshes the pull secrets, and fails if one is not fresh then.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if !self.once {
            clap::Error::raw(ErrorKind::MissingRequiredArgument, NOT_ONCE).exit();
        }
        let own_namespace = if self.registries.is_empty() {
            OwnNamespace::Excluded
        } else {
            OwnNamespace::Included
        };
        let command = Command {
            own_namespace,
            ..COMMAND
        };
        self.scope.run(&command, async |synced| {
            if !self.scope.has_config() {
                synced.progress.print(NO_CONFIG);
            }
            let named = Named::resolve(&self.registries, &synced.context.live.rules.get())?;
            named.prewarm(&synced.context.live.policy);
            if self.scope.dry_run {
                self.preview(synced).await
            } else {
                self.refresh(synced, &named).await
            }
        })
    }

    /// Returns the namespaces of the sweep.
    fn names(&self, synced: &SyncedCluster) -> Vec<Namespace> {
        let scope = &self.scope.namespaces;
        let mut names = synced.context.reconciler(None).names();
        names.retain(|name| scope.is_empty() || scope.contains(name));
        names
    }

    async fn refresh(&self, synced: &SyncedCluster, named: &Named) -> anyhow::Result<Report> {
        self.check_names(synced).await?;
        let context = &synced.context;
        let reconciler = context.reconciler(None);
        let sweep = Sweep::new(self.all, self.prune);
        let rows = synced.filter_map(self.names(synced), async |namespace: &Namespace| {
            let before = context.secrets.get(namespace);
            let swept = reconciler
                .reconcile_once(namespace, &sweep, &synced.term)
                .await;
            let after = context.secrets.get(namespace);
            let settings = context.namespaces.peek(namespace);
            NamespaceRefresh {
                before: before.as_deref().map(Entry::observed),
                after: after.as_deref().map(Entry::observed),
                settings: settings.as_ref(),
                is_excluded: context.live.config().rules.excluded.contains(namespace),
                now: context.clock.now(),
            }
            .done_row(namespace, &swept, !synced.term.holds())
            .map(|row| named.require(row))
        });
        let rows = rows.await;
        let summary = summary_of_done(&rows, &context.cluster.server);
        Ok(Report { rows, summary })
    }

    /// Reads the pull secrets that are unverified, and changes nothing.
    async fn preview(&self, synced: &SyncedCluster) -> anyhow::Result<Report> {
        self.check_names(synced).await?;
        let context = &synced.context;
        let reconciler = context.reconciler(None);
        let sweep = Sweep::new(self.all, self.prune);
        let rows = synced.filter_map(self.names(synced), async |namespace: &Namespace| {
            let plan = match reconciler.preview(namespace, &sweep).await {
                Ok(plan) => plan,
                Err(error) => {
                    return Some(Row::error(namespace.clone(), "failed", error.to_string()));
                }
            };
            let known = context.secrets.get(namespace);
            let known = known.as_deref().map(Entry::observed);
            let settings = context.namespaces.peek(namespace);
            NamespaceRefresh {
                before: known,
                after: known,
                settings: settings.as_ref(),
                is_excluded: context.live.config().rules.excluded.contains(namespace),
                now: context.clock.now(),
            }
            .planned_row(namespace, plan.as_ref())
        });
        let rows = rows.await;
        let summary = summary_of_planned(&rows, &context.cluster.server);
        Ok(Report { rows, summary })
    }

    /// Fails if a named namespace can't be refreshed, which is most likely a mistake.
    async fn check_names(&self, synced: &SyncedCluster) -> anyhow::Result<()> {
        let config = synced.context.live.config();
        let opt_in = &config.opt_in;
        let mut errors = Vec::new();
        for (name, state) in synced.read_namespaces(&self.scope.namespaces).await? {
            let label = format!("{}={}", opt_in.label, opt_in.value);
            match state {
                _ if config.rules.excluded.contains(&name) => errors.push(format!(
                    "{name} is excluded: by the configuration, as a system namespace, or as the \
                     namespace of ecr-injector"
                )),
                NamespaceState::OptedIn(_) => {}
                NamespaceState::OptedOut(_) => errors.push(format!(
                    "{name} is not opted in; to opt in: kubectl label namespace {name} {label}"
                )),
                NamespaceState::Absent => errors.push(format!("namespace {name} not found")),
            }
        }
        anyhow::ensure!(
            errors.is_empty(),
            "nothing was refreshed: {}",
            errors.join("; ")
        );
        Ok(())
    }
}

/// The state of a namespace before and after a sweep, or for a preview of one.
#[derive(Clone, Copy)]
struct NamespaceRefresh<'a> {
    before: Option<&'a Observed>,
    after: Option<&'a Observed>,
    settings: Option<&'a NamespaceSettings>,
    is_excluded: bool,
    now: Timestamp,
}

impl NamespaceRefresh<'_> {
    /// Returns the row of a sweep; `None` if ecr-injector manages nothing in the namespace.
    fn done_row(
        &self,
        namespace: &Namespace,
        swept: &SweepOutcome,
        is_interrupted: bool,
    ) -> Option<Row> {
        if !self.is_managed() {
            return None;
        }
        if let Some(row) = self.skipped_row(namespace) {
            return Some(row);
        }
        let plan = swept.plan.as_ref();
        let is_done = plan.is_none_or(|plan| plan.at > self.now);
        let had = self.before.and_then(Observed::claims);
        let has = self.after.and_then(Observed::claims);
        let row = if swept.error.is_none() && !is_done && is_interrupted {
            one_shot::interrupted(namespace.clone())
        } else if let Some(error) = &swept.error {
            let is_refused = error.contains("refused");
            let result = if is_refused { "rejected" } else { "failed" };
            Row::error(namespace.clone(), result, error.clone())
        } else if !is_done {
            let message = "the pull secret is still due; see the log".to_owned();
            Row::error(namespace.clone(), "failed", message)
        } else {
            match (swept.written, had, has) {
                (true, _, None) => Row::ok(namespace.clone(), "removed"),
                (true, None, Some(_)) => Row::ok(namespace.clone(), "created"),
                (true, Some(_), Some(_)) => Row::ok(namespace.clone(), "renewed"),
                (false, _, _) => self.idle_row(namespace, plan),
            }
        };
        Some(self.with_state(Self::with_suspended(row, plan), plan))
    }

    /// Returns the row of a preview; `None` if ecr-injector manages nothing in the namespace.
    fn planned_row(&self, namespace: &Namespace, plan: Option<&Plan>) -> Option<Row> {
        if !self.is_managed() {
            return None;
        }
        if let Some(row) = self.skipped_row(namespace) {
            return Some(row);
        }
        let has = self.after.and_then(Observed::claims);
        let due = plan.filter(|plan| plan.at <= self.now);
        let (result, message) = match due.map(|plan| &plan.action) {
            None => {
                let row = Self::with_suspended(self.idle_row(namespace, plan), plan);
                return Some(self.with_state(row, plan));
            }
            Some(Action::Write(desired)) => {
                let result = if has.is_some() {
                    "would-renew"
                } else {
                    "would-create"
                };
                let (due, all) = (desired.due.len(), desired.keys.len());
                let dropped = desired.forgotten.len();
                let mut message = format!("{due} of {}", count(all, "registry"));
                if dropped > 0 {
                    message = format!("{message}; {} removed", count(dropped, "registry"));
                }
                (result, Some(message))
            }
            Some(Action::Read) => ("would-verify", None),
            Some(Action::Delete) => ("would-remove", None),
        };
        let row = Row {
            message,
            ..Row::ok(namespace.clone(), result)
        };
        Some(self.with_state(row, plan))
    }

    /// Returns the row of a pull secret for which no work is due.
    fn idle_row(&self, namespace: &Namespace, plan: Option<&Plan>) -> Row {
        let Some(state) = self.after.and_then(Observed::claims) else {
            return Row::ok(namespace.clone(), "absent");
        };
        if self.settings.is_none() {
            let result = if state.has_expired(self.now) {
                "expired-out"
            } else {
                "opted-out"
            };
            return Row::ok(namespace.clone(), result);
        }
        let desired = desired_of(plan);
        let allowed = desired.map_or(0, |desired| desired.keys.len());
        let is_expired = |host| state.freshness(host, self.now) == Freshness::Expired;
        let has_expired = desired.is_some_and(|desired| desired.keys.keys().any(is_expired));
        if state.hosts.is_empty() {
            Row::ok(namespace.clone(), "empty")
        } else if has_expired {
            let message = "a credential has expired and could not be renewed".to_owned();
            Row::error(namespace.clone(), "expired", message)
        } else if allowed == 0 && desired.is_some() {
            Row::ok(namespace.clone(), "suspended")
        } else {
            Row::ok(namespace.clone(), "fresh")
        }
    }

    /// Adds the hosts that the configuration suspends: their credentials end, most likely by
    /// mistake.
    fn with_suspended(row: Row, plan: Option<&Plan>) -> Row {
        let desired = desired_of(plan).filter(|_| row.is_ok);
        let suspended = desired.map(|desired| &desired.suspended);
        let Some((host, cause)) = suspended.and_then(|hosts| hosts.first_key_value()) else {
            return row;
        };
        let more = suspended.map_or(0, |hosts| hosts.len() - 1);
        let others = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        Row {
            message: Some(format!("{host}{others} suspended: {cause}")),
            is_ok: false,
            ..row
        }
    }

    /// Whether the namespace is opted in, or has or had a managed pull secret.
    fn is_managed(&self) -> bool {
        let has_claims = |known: Option<&Observed>| known.and_then(Observed::claims).is_some();
        !self.is_excluded
            && (self.settings.is_some() || has_claims(self.before) || has_claims(self.after))
    }

    /// Returns the row of a namespace that ecr-injector skips.
    fn skipped_row(&self, namespace: &Namespace) -> Option<Row> {
        let settings = self.settings?;
        if settings.is_terminating {
            return Some(Row {
                message: Some("the namespace is being deleted".to_owned()),
                ..Row::ok(namespace.clone(), "skipped")
            });
        }
        match self.after {
            Some(Observed::Foreign(why)) => Some(foreign(namespace, *why)),
            _ => None,
        }
    }

    fn with_state(&self, row: Row, plan: Option<&Plan>) -> Row {
        let state = self.after.and_then(Observed::claims);
        let hosts = state.into_iter().flat_map(|state| state.hosts.keys());
        let never = Timestamp::MAX;
        Row {
            hosts: hosts.cloned().collect(),
            expires_at: state.and_then(State::expires_at),
            due_at: plan.map(|plan| plan.at).filter(|at| *at != never),
            ..row
        }
    }
}

fn desired_of(plan: Option<&Plan>) -> Option<&DesiredState> {
    match plan.map(|plan| &plan.action) {
        Some(Action::Write(desired)) => Some(desired),
        _ => None,
    }
}

fn foreign(namespace: &Namespace, why: Foreign) -> Row {
    let message = format!("not created by ecr-injector, left unchanged: {why}");
    Row::error(namespace.clone(), "skipped", message)
}

/// Returns the summary of a sweep.
fn summary_of_done(rows: &[Row], server: &str) -> String {
    let changed = ["created", "renewed", "removed"];
    let changed = rows.iter().filter(|row| changed.contains(&row.result));
    let (changed, stale) = (changed.count(), count_errors(rows));
    let text = match (changed, stale) {
        _ if rows.is_empty() => {
            "no namespace is opted in or has a pull secret of ecr-injector".to_owned()
        }
        (0, 0) => format!(
            "nothing to do: all pull secrets are fresh in {}",
            count(rows.len(), "namespace")
        ),
        (changed, 0) => format!(
            "{} refreshed, nothing else was due in {}",
            count(changed, "pull secret"),
            count(rows.len(), "namespace")
        ),
        (changed, stale) => format!(
            "{} refreshed; {stale} of {} not fresh, see above",
            count(changed, "pull secret"),
            count(rows.len(), "namespace")
        ),
    };
    format!("{text}, in {server}{}", next_due(rows))
}

/// Returns the summary of a preview.
fn summary_of_planned(rows: &[Row], server: &str) -> String {
    let due = rows.iter().filter(|row| row.result.starts_with("would"));
    let text = match (due.count(), count_errors(rows)) {
        _ if rows.is_empty() => {
            "no namespace is opted in or has a pull secret of ecr-injector".to_owned()
        }
        (0, 0) => format!(
            "nothing would be done: all pull secrets are fresh in {}",
            count(rows.len(), "namespace")
        ),
        (due, errors) => {
            let errors = match errors {
                0 => String::new(),
                errors => format!("; {errors} can't be refreshed, see above"),
            };
            let all = count(rows.len(), "namespace");
            format!("{due} of {all} would be refreshed{errors}")
        }
    };
    format!("{text}, in {server}{}", next_due(rows))
}

fn count_errors(rows: &[Row]) -> usize {
    rows.iter().filter(|row| !row.is_ok).count()
}

/// Returns a line with the time of the next refresh.
fn next_due(rows: &[Row]) -> String {
    let later = rows
        .iter()
        .filter(|row| row.is_ok && !row.result.starts_with("would"));
    let due = later.filter_map(|row| Some((row.due_at?, &row.namespace)));
    due.min().map_or_else(String::new, |(at, namespace)| {
        format!("\nnext refresh due at {} ({namespace})", to_the_second(at))
    })
}

#[cfg(test)]
mod tests;
