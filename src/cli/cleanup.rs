//! `ecr-injector cleanup`: removes the pull secrets that ecr-injector created.

use std::process::ExitCode;

use clap::{Args, error::ErrorKind};

use super::{
    context::OwnNamespace,
    one_shot::{self, Command, OneShotArgs, SyncedCluster},
    report::{Report, Row, count},
};
use crate::{
    cluster::{namespace::Namespace, namespaces::NamespaceState},
    pull_secret::{
        Foreign, Observed,
        state::State,
        store::Entry,
        writer::{PullSecretError, Writer},
    },
};

const LONG_ABOUT: &str = "\
Remove the pull secrets that ecr-injector created, whether their namespaces are opted in or not.

A Secret of the same name that ecr-injector did not create is left unchanged. Each pull secret is removed as it was read: if \
another client changes it meanwhile, it is read again.";
const AFTER_HELP: &str = "\
The report goes to standard output; logs, progress and the summary go to standard error.

Exit codes:
  0         no pull secret is left in the namespaces that were named; with --dry-run: all could be read
  1         a pull secret is left, a permission is missing, or the cluster could not be reached
  2         wrong usage
  130, 143  interrupted by SIGINT or SIGTERM: what was in progress has ended and is reported

Examples:
  ecr-injector cleanup --all --dry-run
  ecr-injector cleanup --namespace team-a --namespace team-b";

const NO_SCOPE: &str = "\
--namespace or --all is missing: name the namespaces to remove pull secrets from, or all with --all. To preview: --dry-run.
";

const COMMAND: Command = Command {
    operation: "removing",
    verbs: &["delete"],
    seals: false,
    own_namespace: OwnNamespace::Excluded,
};
/// The most namespaces that a warning names.
const NAMED: usize = 5;
/// How often a removal is tried while another client writes the pull secret.
const ATTEMPTS: u32 = 4;

/// Remove the pull secrets that ecr-injector created.
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
pub struct CleanupArgs {
    /// Remove the pull secrets of all namespaces
    #[arg(long, conflicts_with = "namespaces")]
    all: bool,
    #[command(flatten)]
    scope: OneShotArgs,
}

impl CleanupArgs {
    /// Removes the pull secrets, and fails if one is left.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if !self.all && self.scope.namespaces.is_empty() {
            clap::Error::raw(ErrorKind::MissingRequiredArgument, NO_SCOPE).exit();
        }
        self.scope
            .run(&COMMAND, async |synced| self.clean(synced).await)
    }

    async fn clean(&self, synced: &SyncedCluster) -> anyhow::Result<Report> {
        let mut names = if self.all {
            synced.context.secrets.names()
        } else {
            let states = synced.read_namespaces(&self.scope.namespaces).await?;
            let absent = states
                .iter()
                .filter(|(_, state)| *state == NamespaceState::Absent);
            let absent: Vec<_> = absent.map(|(name, _)| name.as_str()).collect();
            anyhow::ensure!(
                absent.is_empty(),
                "namespace {} not found; nothing was removed",
                absent.join(", ")
            );
            states.into_iter().map(|(namespace, _)| namespace).collect()
        };
        names.sort_unstable();
        names.dedup();
        if let Some(warning) = self.warning(synced, &names) {
            synced.progress.print(&warning);
        }
        let writer = &synced.context.writer(&synced.context.cluster.refresher);
        let rows = synced.for_each(names, async |namespace: &Namespace| {
            let before = synced.context.secrets.get(namespace);
            if before.as_deref().is_none_or(|entry| !entry.is_there()) {
                return Row::ok(namespace.clone(), "absent");
            }
            if let Some(Observed::Foreign(why)) = before.as_deref().map(Entry::observed) {
                return skipped(namespace, *why);
            }
            let row = if self.scope.dry_run {
                let settings = synced
                    .context
                    .namespaces
                    .peek(namespace)
                    .unwrap_or_default();
                let read = writer
                    .observe(namespace, &settings, one_shot::deadline())
                    .await;
                let after = synced.context.secrets.get(namespace);
                match (read, after.as_deref().map(Entry::observed)) {
                    (Err(error), _) => failed(namespace, &error),
                    (Ok(()), Some(Observed::Foreign(why))) => skipped(namespace, *why),
                    (Ok(()), None | Some(Observed::Deleted(_))) => {
                        Row::ok(namespace.clone(), "absent")
                    }
                    (Ok(()), Some(_)) => Row::ok(namespace.clone(), "would-remove"),
                }
            } else {
                match remove(synced, writer, namespace).await {
                    Ok(_) => Row::ok(namespace.clone(), "removed"),
                    Err(PullSecretError::Foreign(why)) => skipped(namespace, why),
                    Err(PullSecretError::NotLeading) => one_shot::interrupted(namespace.clone()),
                    Err(error) => failed(namespace, &error),
                }
            };
            let state = before
                .as_deref()
                .and_then(|entry| entry.observed().claims());
            let hosts = state.into_iter().flat_map(|state| state.hosts.keys());
            Row {
                hosts: hosts.cloned().collect(),
                expires_at: state.and_then(State::expires_at),
                ..row
            }
        });
        let rows = rows.await;
        let summary = summary(&rows, &synced.context.cluster.server);
        Ok(Report { rows, summary })
    }

    /// Returns a warning about opted-in namespaces, where a running webhook creates the pull secret
    /// again.
    fn warning(&self, synced: &SyncedCluster, names: &[Namespace]) -> Option<String> {
        let has_pull_secret = |name: &&Namespace| {
            let known = synced.context.secrets.get(name);
            known.is_some_and(|entry| {
                entry.is_there() && !matches!(entry.observed(), Observed::Foreign(_))
            })
        };
        let opted_in: Vec<_> = names
            .iter()
            .filter(|name| synced.context.namespaces.peek(name).is_some())
            .filter(has_pull_secret)
            .map(Namespace::as_str)
            .collect();
        if opted_in.is_empty() {
            return None;
        }
        let mut list = opted_in[..opted_in.len().min(NAMED)].join(", ");
        if let Some(more @ 1..) = opted_in.len().checked_sub(NAMED) {
            list = format!("{list} and {more} more");
        }
        let would = if self.scope.dry_run { "would be" } else { "is" };
        let label = &synced.context.live.config().opt_in.label;
        Some(format!(
            "warning: opted in: {list}. Pull secrets that {would} removed there are created \
             again while the webhook runs; to opt out: kubectl label namespace {} {label}-",
            opted_in[0]
        ))
    }
}

/// Removes a pull secret, and tries again a few times if another client writes it meanwhile.
async fn remove(
    synced: &SyncedCluster,
    writer: &Writer,
    namespace: &Namespace,
) -> Result<bool, PullSecretError> {
    let deadline = one_shot::deadline();
    for _ in 1..ATTEMPTS {
        let removed = writer
            .remove(namespace, |_| false, &synced.term, deadline)
            .await;
        if !matches!(removed, Err(PullSecretError::Contended)) {
            return removed;
        }
    }
    writer
        .remove(namespace, |_| false, &synced.term, deadline)
        .await
}

fn skipped(namespace: &Namespace, why: Foreign) -> Row {
    Row {
        message: Some(format!("not created by ecr-injector: {why}")),
        ..Row::ok(namespace.clone(), "skipped")
    }
}

fn failed(namespace: &Namespace, error: &PullSecretError) -> Row {
    Row::error(namespace.clone(), "failed", error.to_string())
}

fn summary(rows: &[Row], server: &str) -> String {
    let number = |result| rows.iter().filter(|row| row.result == result).count();
    let secrets = |number| count(number, "pull secret");
    let mut parts = Vec::new();
    match (number("removed"), number("would-remove")) {
        (0, 0) => parts.push("nothing to remove".to_owned()),
        (removed, 0) => parts.push(format!("{} removed", secrets(removed))),
        (_, would) => parts.push(format!("{} would be removed", secrets(would))),
    }
    let foreign = number("skipped");
    if foreign > 0 {
        parts.push(format!("{} of others skipped", count(foreign, "Secret")));
    }
    let left = rows.iter().filter(|row| !row.is_ok).count();
    if left > 0 {
        parts.push(format!("{} not removed", secrets(left)));
        if parts[0] == "nothing to remove" {
            parts.remove(0);
        }
    }
    format!("{} in {server}", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summary_counts_what_was_removed_and_what_is_left() {
        let name = || Namespace::parse("team").expect("valid");
        let removed = Row::ok(name(), "removed");
        let would = Row::ok(name(), "would-remove");
        let none = Row::ok(name(), "absent");
        let foreign = skipped(&name(), Foreign::Label);
        let bad = failed(&name(), &PullSecretError::Contended);
        for (rows, expected) in [
            (vec![], "nothing to remove in x"),
            (vec![none.clone()], "nothing to remove in x"),
            (vec![removed.clone(), none], "1 pull secret removed in x"),
            (
                vec![would.clone(), would],
                "2 pull secrets would be removed in x",
            ),
            (
                vec![removed, foreign, bad.clone()],
                "1 pull secret removed, 1 Secret of others skipped, 1 pull secret not removed in x",
            ),
            (vec![bad], "1 pull secret not removed in x"),
        ] {
            assert_eq!(summary(&rows, "x"), expected);
        }
    }
}
