//! `ecr-injector refresh --once`: what the leader does, once and by hand.

use std::process::ExitCode;

use clap::{Args, error::ErrorKind};
use jiff::Timestamp;

use super::{
    one_shot::{self, Command, OneShotArgs, SyncedCluster},
    report::{Report, Row, count},
};
use crate::{
    cluster::{
        namespace::{Namespace, NamespaceSettings},
        namespaces::Look,
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
  ecr-injector refresh --once --prune --config config.yaml";
const NOT_ONCE: &str = "\
--once is missing: this command refreshes once and exits.
To refresh pull secrets continuously, run `ecr-injector serve`: one of its replicas leads and refreshes.
";
const NO_CONFIG: &str = "\
warning: no --config: all values are defaults. Use the configuration of the webhook if it has one: without it, other \
identities mint, and aliases are unknown";

const COMMAND: Command = Command {
    doing: "refreshing",
    verbs: &["create", "patch"],
    seals: true,
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
    #[command(flatten)]
    scope: OneShotArgs,
}

impl RefreshArgs {
    /// Refreshes, and fails if not everything is fresh then.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if !self.once {
            clap::Error::raw(ErrorKind::MissingRequiredArgument, NOT_ONCE).exit();
        }
        self.scope.run(&COMMAND, async |synced| {
            if self.scope.has_no_config() {
                synced.progress.say(NO_CONFIG);
            }
            if self.scope.dry_run {
                self.preview(synced).await
            } else {
                self.refresh(synced).await
            }
        })
    }

    /// The namespaces that the sweep is for.
    fn names(&self, synced: &SyncedCluster) -> Vec<Namespace> {
        let scope = &self.scope.namespaces;
        let mut names = synced.context.reconciler(None).names();
        names.retain(|name| scope.is_empty() || scope.contains(name));
        names
    }

    async fn refresh(&self, synced: &SyncedCluster) -> anyhow::Result<Report> {
        self.check_names(synced).await?;
        let context = &synced.context;
        let reconciler = context.reconciler(None);
        let sweep = Sweep::new(self.all, self.prune);
        let rows = synced.each_seen(self.names(synced), async |namespace: &Namespace| {
            let before = context.secrets.get(namespace);
            let swept = reconciler
                .reconcile_once(namespace, &sweep, &synced.term)
                .await;
            let after = context.secrets.get(namespace);
            let settings = context.namespaces.peek(namespace);
            Seen {
                before: before.as_deref().map(Entry::observed),
                after: after.as_deref().map(Entry::observed),
                settings: settings.as_ref(),
                is_excluded: context.live.config().rules.excluded.contains(namespace),
                now: context.clock.now(),
            }
            .done(namespace, &swept, !synced.term.holds())
        });
        let rows = rows.await;
        let summary = done(&rows, &context.cluster.server);
        Ok(Report { rows, summary })
    }

    /// Reads what isn't known, and does nothing else.
    async fn preview(&self, synced: &SyncedCluster) -> anyhow::Result<Report> {
        self.check_names(synced).await?;
        let context = &synced.context;
        let reconciler = context.reconciler(None);
        let sweep = Sweep::new(self.all, self.prune);
        let rows = synced.each_seen(self.names(synced), async |namespace: &Namespace| {
            let plan = match reconciler.preview(namespace, &sweep).await {
                Ok(plan) => plan,
                Err(error) => {
                    return Some(Row::bad(namespace.clone(), "failed", error.to_string()));
                }
            };
            let known = context.secrets.get(namespace);
            let known = known.as_deref().map(Entry::observed);
            let settings = context.namespaces.peek(namespace);
            Seen {
                before: known,
                after: known,
                settings: settings.as_ref(),
                is_excluded: context.live.config().rules.excluded.contains(namespace),
                now: context.clock.now(),
            }
            .would(namespace, plan.as_ref())
        });
        let rows = rows.await;
        let summary = would(&rows, &context.cluster.server);
        Ok(Report { rows, summary })
    }

    /// A namespace that was named and isn't one to be refreshed is most likely a mistake: then nothing is done.
    async fn check_names(&self, synced: &SyncedCluster) -> anyhow::Result<()> {
        let config = synced.context.live.config();
        let opt_in = &config.opt_in;
        let mut wrong = Vec::new();
        for (name, look) in synced.read_namespaces(&self.scope.namespaces).await? {
            let label = format!("{}={}", opt_in.label, opt_in.value);
            match look {
                _ if config.rules.excluded.contains(&name) => wrong.push(format!(
                    "{name} is excluded: by the configuration, as a system namespace, or as the \
                     namespace of ecr-injector"
                )),
                Look::OptedIn(_) => {}
                Look::OptedOut(_) => wrong.push(format!(
                    "{name} is not opted in; to opt in: kubectl label namespace {name} {label}"
                )),
                Look::Absent => wrong.push(format!("namespace {name} not found")),
            }
        }
        anyhow::ensure!(
            wrong.is_empty(),
            "nothing was refreshed: {}",
            wrong.join("; ")
        );
        Ok(())
    }
}

/// What is known of a namespace.
#[derive(Clone, Copy)]
struct Seen<'a> {
    before: Option<&'a Observed>,
    after: Option<&'a Observed>,
    settings: Option<&'a NamespaceSettings>,
    is_excluded: bool,
    now: Timestamp,
}

impl Seen<'_> {
    /// Returns what a sweep did for it. Nothing, if it is none of our business.
    fn done(
        &self,
        namespace: &Namespace,
        swept: &SweepOutcome,
        is_interrupted: bool,
    ) -> Option<Row> {
        if !self.is_our_business() {
            return None;
        }
        if let Some(row) = self.set_aside(namespace) {
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
            Row::bad(namespace.clone(), result, error.clone())
        } else if !is_done {
            let message = "the pull secret is still due; see the log".to_owned();
            Row::bad(namespace.clone(), "failed", message)
        } else {
            match (swept.written, had, has) {
                (true, _, None) => Row::good(namespace.clone(), "removed"),
                (true, None, Some(_)) => Row::good(namespace.clone(), "created"),
                (true, Some(_), Some(_)) => Row::good(namespace.clone(), "renewed"),
                (false, _, _) => self.standing(namespace, plan),
            }
        };
        Some(self.with_state(Self::warned(row, plan), plan))
    }

    /// Returns what a sweep would do for it.
    fn would(&self, namespace: &Namespace, plan: Option<&Plan>) -> Option<Row> {
        if !self.is_our_business() {
            return None;
        }
        if let Some(row) = self.set_aside(namespace) {
            return Some(row);
        }
        let has = self.after.and_then(Observed::claims);
        let due = plan.filter(|plan| plan.at <= self.now);
        let (result, message) = match due.map(|plan| &plan.action) {
            None => {
                let row = Self::warned(self.standing(namespace, plan), plan);
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
            ..Row::good(namespace.clone(), result)
        };
        Some(self.with_state(row, plan))
    }

    /// Returns what a pull secret is worth for which there is nothing to do now.
    fn standing(&self, namespace: &Namespace, plan: Option<&Plan>) -> Row {
        let Some(state) = self.after.and_then(Observed::claims) else {
            return Row::good(namespace.clone(), "absent");
        };
        if self.settings.is_none() {
            let result = if state.has_expired(self.now) {
                "expired-out"
            } else {
                "opted-out"
            };
            return Row::good(namespace.clone(), result);
        }
        let desired = desired_of(plan);
        let allowed = desired.map_or(0, |desired| desired.keys.len());
        let is_expired = |host| state.freshness(host, self.now) == Freshness::Expired;
        let has_expired = desired.is_some_and(|desired| desired.keys.keys().any(is_expired));
        if state.hosts.is_empty() {
            Row::good(namespace.clone(), "empty")
        } else if has_expired {
            let message = "a credential has expired and could not be renewed".to_owned();
            Row::bad(namespace.clone(), "expired", message)
        } else if allowed == 0 && desired.is_some() {
            Row::good(namespace.clone(), "suspended")
        } else {
            Row::good(namespace.clone(), "fresh")
        }
    }

    /// Says which hosts the configuration does not allow: their credentials end, and that is most likely not meant.
    fn warned(row: Row, plan: Option<&Plan>) -> Row {
        let desired = desired_of(plan).filter(|_| row.is_good);
        let suspended = desired.map(|desired| &desired.suspended);
        let Some((host, why)) = suspended.and_then(|hosts| hosts.first_key_value()) else {
            return row;
        };
        let more = suspended.map_or(0, |hosts| hosts.len() - 1);
        let others = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        Row {
            message: Some(format!("{host}{others} suspended: {why}")),
            is_good: false,
            ..row
        }
    }

    /// Whether the namespace is opted in, or has or had a pull secret of ours.
    fn is_our_business(&self) -> bool {
        let has_claims = |known: Option<&Observed>| known.and_then(Observed::claims).is_some();
        !self.is_excluded
            && (self.settings.is_some() || has_claims(self.before) || has_claims(self.after))
    }

    /// The row of a namespace for which nothing can be done.
    fn set_aside(&self, namespace: &Namespace) -> Option<Row> {
        let settings = self.settings?;
        if settings.is_terminating {
            return Some(Row {
                message: Some("the namespace is being deleted".to_owned()),
                ..Row::good(namespace.clone(), "skipped")
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
    Row::bad(namespace.clone(), "skipped", message)
}

/// The summary of what was done.
fn done(rows: &[Row], server: &str) -> String {
    let changed = ["created", "renewed", "removed"];
    let changed = rows.iter().filter(|row| changed.contains(&row.result));
    let (changed, bad) = (changed.count(), bad(rows));
    let text = match (changed, bad) {
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
        (changed, bad) => format!(
            "{} refreshed; {bad} of {} not fresh, see above",
            count(changed, "pull secret"),
            count(rows.len(), "namespace")
        ),
    };
    format!("{text}, in {server}{}", next(rows))
}

/// The summary of what would be done.
fn would(rows: &[Row], server: &str) -> String {
    let due = rows.iter().filter(|row| row.result.starts_with("would"));
    let text = match (due.count(), bad(rows)) {
        _ if rows.is_empty() => {
            "no namespace is opted in or has a pull secret of ecr-injector".to_owned()
        }
        (0, 0) => format!(
            "nothing would be done: all pull secrets are fresh in {}",
            count(rows.len(), "namespace")
        ),
        (due, bad) => {
            let bad = match bad {
                0 => String::new(),
                bad => format!("; {bad} can't be refreshed, see above"),
            };
            let all = count(rows.len(), "namespace");
            format!("{due} of {all} would be refreshed{bad}")
        }
    };
    format!("{text}, in {server}{}", next(rows))
}

fn bad(rows: &[Row]) -> usize {
    rows.iter().filter(|row| !row.is_good).count()
}

/// When there is something to do again.
fn next(rows: &[Row]) -> String {
    let later = rows
        .iter()
        .filter(|row| row.is_good && !row.result.starts_with("would"));
    let due = later.filter_map(|row| Some((row.due_at?, &row.namespace)));
    due.min().map_or_else(String::new, |(at, namespace)| {
        format!("\nnext refresh due at {} ({namespace})", to_the_second(at))
    })
}

#[cfg(test)]
mod tests;
