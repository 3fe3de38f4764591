//! `ecr-injector refresh --once`: what the leader does, once and by hand.

use std::{collections::HashMap, process::ExitCode, sync::Arc};

use clap::{Args, error::ErrorKind};

use super::{
    once::{self, Command, OnceFlags, Site},
    report::{Report, Row, count},
};
use crate::{
    namespace::{Namespace, OptedIn, store::Look},
    pull_secret::{Foreign, Knowledge, Terms, state::State, store::Entry, to_the_second},
    refresher::{
        Refresher, Sweep, Swept,
        schedule::{Action, Plan},
    },
};

const LONG_ABOUT: &str = "\
Bring all pull secrets up to date once, and end.

It does what a leader of `serve` does, by the same code: renews what is due, completes what AWS couldn't give, makes what \
`prewarm` names, puts right what was changed, and sees to namespaces that were opted out. It may run beside a leader.";
const AFTER_HELP: &str = "\
Standard output has what was done alone; logs, progress and the summary go to standard error.

Exit codes:
  0    everything is fresh; a dry run: nothing is in the way of that
  1    something is not (a Secret that isn't ours, no token, a refused write), a right is missing, or the cluster could not \
be reached
  2    wrong usage
  130  interrupted: what was under way has ended, and the output says what was done

Examples:
  ecr-injector refresh --once --dry-run
  ecr-injector refresh --once --all --namespace team-a";
const NOT_ONCE: &str = "\
--once is missing: this command does its work once and ends.
To keep pull secrets fresh all the time, run `ecr-injector serve`: one of its replicas leads and refreshes.
";
const NO_CONFIG: &str = "\
warning: no --config: all values are defaults. If the webhook has a configuration, give the same, or registries and \
identities that it names are taken out of the pull secrets";

const COMMAND: Command = Command {
    doing: "refreshing",
    verbs: &["create", "patch"],
    seals: true,
};

/// Bring all pull secrets up to date once, and end.
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
pub struct Flags {
    /// Do it once (required: `serve` does it all the time)
    #[arg(long)]
    once: bool,
    /// Renew also what isn't due yet: all credentials of these namespaces
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    scope: OnceFlags,
}

impl Flags {
    /// Refreshes, and fails if not everything is fresh then.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        if !self.once {
            clap::Error::raw(ErrorKind::MissingRequiredArgument, NOT_ONCE).exit();
        }
        self.scope.run(&COMMAND, async |site| {
            if self.scope.has_no_config() {
                site.progress.say(NO_CONFIG);
            }
            if self.scope.dry_run {
                self.preview(site).await
            } else {
                self.refresh(site).await
            }
        })
    }

    fn sweep(&self, renews_all: bool) -> Sweep {
        let named = &self.scope.namespaces;
        Sweep {
            namespaces: (!named.is_empty()).then(|| named.iter().cloned().collect()),
            renews_all,
        }
    }

    async fn refresh(&self, site: &Site) -> anyhow::Result<Report> {
        self.check_names(site).await?;
        let (wiring, config) = (&site.wiring, site.wiring.live.config());
        let before: HashMap<Namespace, Arc<Entry>> = wiring.secrets.all().into_iter().collect();
        let refresher = wiring.refresher(None);
        let progress = |done, all| site.progress.tell(done, all);
        let swept = refresher
            .sweep(self.sweep(self.all), site.term.clone(), &progress)
            .await;
        let plans = plans(&refresher, self.sweep(false));
        let rows = swept.iter().filter_map(|swept| {
            let namespace = &swept.namespace;
            let after = wiring.secrets.get(namespace);
            Seen {
                before: before.get(namespace).map(|entry| entry.knowledge()),
                after: after.as_deref().map(Entry::knowledge),
                said: wiring.namespaces.peek(namespace).as_ref(),
                is_excluded: config.rules.excluded.contains(namespace),
            }
            .done(swept, plans.get(namespace), !site.term.holds())
        });
        let rows: Vec<_> = rows.collect();
        let summary = done(&rows, &wiring.cluster.server);
        Ok(Report { rows, summary })
    }

    /// Reads what isn't known, and does nothing else.
    async fn preview(&self, site: &Site) -> anyhow::Result<Report> {
        self.check_names(site).await?;
        let (wiring, config) = (&site.wiring, site.wiring.live.config());
        let writer = &wiring.writer(&wiring.cluster.refresher);
        let refresher = wiring.refresher(None);
        let names = refresher.preview(self.sweep(self.all)).into_iter();
        let names = names.map(|(namespace, _)| namespace);
        let looked = site.each(names.collect(), async |namespace: &Namespace| {
            let known = wiring.secrets.get(namespace);
            let is_unverified =
                |entry: &Entry| matches!(entry.knowledge(), Knowledge::Unverified { .. });
            if known.as_deref().is_some_and(is_unverified)
                && let Err(error) = writer.look(namespace, once::deadline()).await
            {
                return Row::bad(namespace.clone(), "failed", error.to_string());
            }
            Row::good(namespace.clone(), "looked")
        });
        let looked = looked.await;
        let plans = plans(&refresher, self.sweep(self.all));
        let now = wiring.clock.now();
        let rows = looked.into_iter().filter_map(|row| {
            if !row.is_good {
                return Some(row);
            }
            let known = wiring.secrets.get(&row.namespace);
            let known = known.as_deref().map(Entry::knowledge);
            let said = wiring.namespaces.peek(&row.namespace);
            let seen = Seen {
                before: known,
                after: known,
                said: said.as_ref(),
                is_excluded: config.rules.excluded.contains(&row.namespace),
            };
            seen.would(&row.namespace, plans.get(&row.namespace), now)
        });
        let rows: Vec<_> = rows.collect();
        let summary = would(&rows, &wiring.cluster.server);
        Ok(Report { rows, summary })
    }

    /// A namespace that was named and isn't one to be refreshed is most likely a mistake: then nothing is done.
    async fn check_names(&self, site: &Site) -> anyhow::Result<()> {
        let config = site.wiring.live.config();
        let opt_in = &config.opt_in;
        let mut wrong = Vec::new();
        for (name, look) in site.look_at(&self.scope.namespaces).await? {
            let label = format!("{}={}", opt_in.label, opt_in.value);
            match look {
                _ if config.rules.excluded.contains(&name) => wrong.push(format!(
                    "{name} is excluded: by the configuration, or as a namespace of the system or our own"
                )),
                Look::OptedIn(_) => {}
                Look::OptedOut(_) => wrong.push(format!(
                    "{name} is not opted in; to do so: kubectl label namespace {name} {label}"
                )),
                Look::Absent => wrong.push(format!("there is no namespace {name}")),
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

/// What there is to do for each namespace, now or later.
fn plans(refresher: &Refresher, sweep: Sweep) -> HashMap<Namespace, Plan> {
    let plans = refresher.preview(sweep).into_iter();
    plans
        .filter_map(|(namespace, plan)| Some((namespace, plan?)))
        .collect()
}

/// What is known of a namespace.
#[derive(Clone, Copy)]
struct Seen<'a> {
    before: Option<&'a Knowledge>,
    after: Option<&'a Knowledge>,
    said: Option<&'a OptedIn>,
    is_excluded: bool,
}

impl Seen<'_> {
    /// What a sweep did for it. Nothing, if it is none of our business.
    fn done(&self, swept: &Swept, plan: Option<&Plan>, is_interrupted: bool) -> Option<Row> {
        let namespace = &swept.namespace;
        if !self.is_our_business() {
            return None;
        }
        if let Some(row) = self.set_aside(namespace) {
            return Some(row);
        }
        let state = self.after.and_then(Knowledge::claims);
        let had = self.before.and_then(Knowledge::claims);
        let is_good = swept.error.is_none() && swept.is_done;
        let row = if !is_good && swept.error.is_none() && is_interrupted {
            once::interrupted(namespace.clone())
        } else if !is_good {
            let still_due = || "something is still due; the log says why".to_owned();
            let message = swept.error.clone().unwrap_or_else(still_due);
            Row::bad(namespace.clone(), "failed", message)
        } else {
            let result = match (swept.written, had, state) {
                (false, _, None) => "none",
                (false, _, Some(state)) if state.retired => "let go",
                (false, _, Some(_)) => "fresh",
                (true, _, None) => "removed",
                (true, None, Some(_)) => "created",
                (true, Some(_), Some(state)) if state.retired => "retired",
                (true, Some(_), Some(_)) => "renewed",
            };
            Row::good(namespace.clone(), result)
        };
        Some(self.with_state(row, plan))
    }

    /// What a sweep would do for it.
    fn would(
        &self,
        namespace: &Namespace,
        plan: Option<&Plan>,
        now: jiff::Timestamp,
    ) -> Option<Row> {
        if !self.is_our_business() {
            return None;
        }
        if let Some(row) = self.set_aside(namespace) {
            return Some(row);
        }
        let state = self.after.and_then(Knowledge::claims);
        let due = plan.filter(|plan| plan.at <= now);
        let (result, message) = match due.map(|plan| &plan.action) {
            None => match state {
                None => ("none", None),
                Some(state) if state.retired => ("let go", None),
                Some(_) => ("fresh", None),
            },
            Some(Action::Write(target)) => {
                let result = match (target.terms, state) {
                    (Terms::Whole { retired: true, .. }, _) => "would retire",
                    (_, None) => "would create",
                    (_, Some(_)) => "would renew",
                };
                let (due, all) = (target.due.len(), target.keys.len());
                (result, Some(format!("{due} of {}", count(all, "host"))))
            }
            Some(Action::Look) => ("would look", None),
            Some(Action::AskNamespace) => {
                let message =
                    "opted out: would be kept fresh until optOutGrace is over, and then let go";
                ("would check", Some(message.to_owned()))
            }
            Some(Action::Remove) => ("would remove", None),
        };
        let row = Row {
            message,
            ..Row::good(namespace.clone(), result)
        };
        Some(self.with_state(row, plan))
    }

    /// Whether the namespace is opted in, or has or had a pull secret of ours.
    fn is_our_business(&self) -> bool {
        let has_claims = |known: Option<&Knowledge>| known.and_then(Knowledge::claims).is_some();
        !self.is_excluded
            && (self.said.is_some() || has_claims(self.before) || has_claims(self.after))
    }

    /// The row of a namespace for which nothing can be done.
    fn set_aside(&self, namespace: &Namespace) -> Option<Row> {
        let said = self.said?;
        if said.is_terminating {
            return Some(Row {
                message: Some("the namespace is being deleted".to_owned()),
                ..Row::good(namespace.clone(), "left")
            });
        }
        match self.after {
            Some(Knowledge::Foreign(why)) => Some(foreign(namespace, *why)),
            _ => None,
        }
    }

    fn with_state(&self, row: Row, plan: Option<&Plan>) -> Row {
        let state = self.after.and_then(Knowledge::claims);
        let hosts = state.into_iter().flat_map(|state| state.hosts.keys());
        Row {
            hosts: hosts.cloned().collect(),
            expires_at: state.and_then(State::expires_at),
            due_at: plan.map(|plan| plan.at),
            ..row
        }
    }
}

fn foreign(namespace: &Namespace, why: Foreign) -> Row {
    let message = format!("not ours, and so left alone: {why}");
    Row::bad(namespace.clone(), "left", message)
}

/// The summary of what was done.
fn done(rows: &[Row], server: &str) -> String {
    let changed = ["created", "renewed", "retired", "removed"];
    let changed = rows.iter().filter(|row| changed.contains(&row.result));
    let (changed, bad) = (changed.count(), bad(rows));
    let text = match (changed, bad) {
        _ if rows.is_empty() => "no namespace is opted in or has a pull secret of ours".to_owned(),
        (0, 0) => format!(
            "nothing to do: all is fresh in {}",
            count(rows.len(), "namespace")
        ),
        (changed, 0) => format!(
            "{} brought up to date, nothing else was due in {}",
            count(changed, "pull secret"),
            count(rows.len(), "namespace")
        ),
        (changed, bad) => format!(
            "{} brought up to date; {bad} of {} not as it should be, see above",
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
        _ if rows.is_empty() => "no namespace is opted in or has a pull secret of ours".to_owned(),
        (0, 0) => format!(
            "nothing would be done: all is fresh in {}",
            count(rows.len(), "namespace")
        ),
        (due, bad) => {
            let bad = match bad {
                0 => String::new(),
                bad => format!("; {bad} can't be brought up to date, see above"),
            };
            let all = count(rows.len(), "namespace");
            format!("something would be done in {due} of {all}{bad}")
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
        format!("\nthe next is due at {} ({namespace})", to_the_second(at))
    })
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::*;
    use crate::{
        identity::Identity, pull_secret::state::HostState, refresher::schedule::Class,
        registry::Host, token::Lifetime,
    };

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    fn team() -> Namespace {
        Namespace::parse("team").expect("valid")
    }

    fn later(hours: i64) -> Timestamp {
        NOW + SignedDuration::from_hours(hours)
    }

    fn ours(retired: bool) -> Knowledge {
        let host = Host::parse("123456789012.dkr.ecr.eu-west-1.amazonaws.com").expect("valid");
        let lifetime = Lifetime {
            minted_at: NOW,
            expires_at: later(12),
        };
        let entry = HostState {
            identity: Identity::Ambient.hash(),
            lifetime: Some(lifetime),
        };
        Knowledge::Ours(State {
            hosts: [(host, entry)].into_iter().collect(),
            retired,
            ..State::default()
        })
    }

    fn swept(written: bool, error: Option<&str>, is_done: bool) -> Swept {
        Swept {
            namespace: team(),
            written,
            error: error.map(str::to_owned),
            is_done,
        }
    }

    fn done_to(
        (before, after): (Option<&Knowledge>, Option<&Knowledge>),
        said: Option<&OptedIn>,
        swept: &Swept,
        is_interrupted: bool,
    ) -> Option<Row> {
        let is_excluded = false;
        let seen = Seen {
            before,
            after,
            said,
            is_excluded,
        };
        seen.done(swept, None, is_interrupted)
    }

    #[test]
    #[allow(clippy::too_many_lines, reason = "a table")]
    fn a_row_says_what_was_done_and_whether_it_is_well() {
        let said = OptedIn::default();
        let going = OptedIn {
            is_terminating: true,
            ..OptedIn::default()
        };
        let (secret, retired) = (&ours(false), &ours(true));
        let theirs = &Knowledge::Foreign(Foreign::Label);
        let (idle, wrote) = (swept(false, None, true), swept(true, None, true));
        let stuck = swept(true, Some("AWS refused"), false);
        let (left_over, in_error) = (swept(false, None, false), swept(false, Some("x"), true));
        for (known, said, swept, is_interrupted, expected) in [
            (
                (Some(secret), Some(secret)),
                Some(&said),
                &idle,
                false,
                Some(("fresh", true)),
            ),
            (
                (None, None),
                Some(&said),
                &idle,
                false,
                Some(("none", true)),
            ),
            (
                (None, Some(secret)),
                Some(&said),
                &wrote,
                false,
                Some(("created", true)),
            ),
            (
                (Some(secret), Some(secret)),
                Some(&said),
                &wrote,
                true,
                Some(("renewed", true)),
            ),
            (
                (Some(secret), Some(secret)),
                Some(&said),
                &stuck,
                false,
                Some(("failed", false)),
            ),
            (
                (Some(secret), Some(secret)),
                Some(&said),
                &in_error,
                false,
                Some(("failed", false)),
            ),
            (
                (Some(secret), Some(secret)),
                Some(&said),
                &left_over,
                false,
                Some(("failed", false)),
            ),
            (
                (Some(secret), Some(secret)),
                Some(&said),
                &left_over,
                true,
                Some(("interrupted", false)),
            ),
            (
                (Some(theirs), Some(theirs)),
                Some(&said),
                &idle,
                false,
                Some(("left", false)),
            ),
            ((Some(theirs), Some(theirs)), None, &idle, false, None),
            (
                (Some(secret), Some(secret)),
                Some(&going),
                &idle,
                false,
                Some(("left", true)),
            ),
            (
                (Some(secret), Some(retired)),
                None,
                &wrote,
                false,
                Some(("retired", true)),
            ),
            (
                (Some(retired), Some(retired)),
                None,
                &idle,
                false,
                Some(("let go", true)),
            ),
            (
                (Some(retired), None),
                None,
                &wrote,
                false,
                Some(("removed", true)),
            ),
            ((None, None), None, &idle, false, None),
        ] {
            let row = done_to(known, said, swept, is_interrupted);
            let seen = row.as_ref().map(|row| (row.result, row.is_good));
            assert_eq!(seen, expected, "{known:?} {swept:?}");
        }
    }

    #[test]
    fn a_preview_tells_what_is_due_from_what_is_not() {
        let (said, secret) = (OptedIn::default(), ours(false));
        let seen = Seen {
            before: Some(&secret),
            after: Some(&secret),
            said: Some(&said),
            is_excluded: false,
        };
        let ask = |at| Plan {
            class: Class::Due,
            at,
            ends: at,
            action: Action::Look,
        };
        for (plan, expected) in [(ask(NOW), "would look"), (ask(later(3)), "fresh")] {
            let row = seen.would(&team(), Some(&plan), NOW).expect("a row");
            assert_eq!((row.result, row.due_at), (expected, Some(plan.at)));
            assert_eq!((row.hosts.len(), row.expires_at), (1, Some(later(12))));
        }
        let excluded = Seen {
            is_excluded: true,
            ..seen
        };
        assert_eq!(excluded.would(&team(), None, NOW), None);
    }

    #[test]
    fn the_summary_says_so_when_nothing_was_due() {
        let row = |result| Row {
            due_at: Some(later(3)),
            ..Row::good(team(), result)
        };
        let next = "\nthe next is due at 1970-01-01T03:00:00Z (team)";
        assert_eq!(
            done(&[row("fresh")], "x"),
            format!("nothing to do: all is fresh in 1 namespace, in x{next}")
        );
        let failed = Row::bad(team(), "failed", "why".to_owned());
        assert_eq!(
            done(&[row("renewed"), failed.clone()], "x"),
            format!(
                "1 pull secret brought up to date; 1 of 2 namespaces not as it should be, see above, in x{next}"
            )
        );
        assert_eq!(
            done(&[], "x"),
            "no namespace is opted in or has a pull secret of ours, in x"
        );
        assert_eq!(
            would(&[row("would renew"), failed], "x"),
            "something would be done in 1 of 2 namespaces; 1 can't be brought up to date, see above, in x"
        );
        assert_eq!(
            would(&[row("fresh")], "x"),
            format!("nothing would be done: all is fresh in 1 namespace, in x{next}")
        );
    }
}
