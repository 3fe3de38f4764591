//! `ecr-injector doctor`: finds what is wrong with an installation, or with one Pod.

mod arguments;
mod bundle;
mod checks;
mod exposition;
mod finding;
mod installation;
mod output;
mod pod;
mod pod_command;
mod pull_error;
mod stuck;
mod survey;
mod waiting;

use std::{
    collections::BTreeSet,
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum, builder::PossibleValuesParser, error::ErrorKind};
use tokio::time::{Instant, sleep};

use self::{
    arguments::{InstallationArgs, installed_in, run_on_cluster},
    bundle::BundleArgs,
    checks::{CHECKS, Check, Checked},
    finding::Status,
    output::Counts,
    pod_command::PodArgs,
    stuck::StuckArgs,
    survey::Survey,
};
use super::{
    args::{parse_duration, parse_namespace},
    probe, stdout,
};
use crate::{
    cluster::namespace::Namespace, config::Config, registry::Host, telemetry::printable::printable,
};

const LONG_ABOUT: &str = "\
Find what is wrong with an installation, or with one Pod.

The command reads the installation once, with the permissions that you have, and writes nothing without --restart: the Pod \
by which it tries the webhook is a server-side dry run. A check for which you lack a permission is skipped, with the kubectl command that shows \
the permission. AWS is seen through the metrics of the replicas, never with your own credentials.

Every code has a heading in docs/reference/doctor.md.";
const AFTER_HELP: &str = "\
Exit codes:
  0         nothing failed; warnings and skipped checks are allowed. With --stuck: no Pod is stuck, or all were restarted
  1         something failed, or warned with --fail-on warn, or --wait ran out. With --stuck: a Pod is stuck
  2         wrong usage
  130, 143  interrupted by SIGINT or SIGTERM

Examples:
  ecr-injector doctor
  ecr-injector doctor --wait 2m --fail-on warn -o short
  ecr-injector doctor --stuck
  ecr-injector doctor --stuck -n team-a --restart --dry-run
  ecr-injector doctor pod team-a/web-7f9c5d-x2x4v
  ecr-injector doctor pod -f pod.yaml -n team-a";
const ONE_NAMESPACE: &str =
    "-n may be repeated with --stuck only: an installation has one namespace\n";
/// The pause between two surveys of `--wait`.
const RETRY_PERIOD: Duration = Duration::from_secs(2);

/// Find what is wrong with an installation, or with one Pod.
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_long_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
pub struct DoctorArgs {
    #[command(subcommand)]
    command: Option<Command>,
    /// Namespace of the installation; by default that of the Pod, outside a cluster ecr-injector.
    /// With --stuck that of the Pods; may then be repeated
    #[arg(short, long, env = "ECR_INJECTOR_NAMESPACE", value_name = "NAMESPACE", value_parser = parse_namespace)]
    namespace: Vec<Namespace>,
    /// Make only the checks that can be made before an installation
    #[arg(long, conflicts_with = "only")]
    pre: bool,
    /// Make only the checks of this category; may be repeated
    #[arg(long, value_name = "CATEGORY", value_parser = categories())]
    only: Vec<String>,
    /// Omit this check; may be repeated
    #[arg(long, value_name = "CODE", value_parser = PossibleValuesParser::new(CHECKS.iter().map(|it| it.code)))]
    skip: Vec<String>,
    /// How long to try again until nothing fails
    #[arg(long, env = "ECR_INJECTOR_WAIT", value_name = "DURATION", value_parser = parse_duration)]
    wait: Option<Duration>,
    /// The least result that fails the command
    #[arg(long, value_enum, value_name = "RESULT", default_value_t)]
    fail_on: FailOn,
    /// Image of the Pod that is created in a dry run; by default one of a registry in use
    #[arg(long, env = "ECR_INJECTOR_IMAGE", value_name = "IMAGE")]
    image: Option<String>,
    #[command(flatten)]
    stuck: StuckArgs,
    #[command(flatten)]
    installation: InstallationArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Pod(PodArgs),
    Bundle(BundleArgs),
}

/// The least result that fails the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum FailOn {
    /// Something is likely wrong
    Warn,
    /// Something is wrong
    #[default]
    Fail,
}

/// Returns the codes of all checks, verdicts and groups of stuck Pods.
#[must_use]
pub fn codes() -> Vec<&'static str> {
    let checks = CHECKS.iter().map(|check| check.code);
    checks.chain(pod::CODES).chain(stuck::codes()).collect()
}

fn categories() -> PossibleValuesParser {
    let mut categories: Vec<&str> = CHECKS.iter().map(|check| check.category).collect();
    categories.dedup();
    PossibleValuesParser::new(categories)
}

impl DoctorArgs {
    /// Makes the checks, and fails if one does.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Some(Command::Pod(args)) => return args.run(),
            Some(Command::Bundle(args)) => return args.run(),
            None => {}
        }
        let is_stuck = self.stuck.is_wanted();
        if self.namespace.len() > 1 && !is_stuck {
            clap::Error::raw(ErrorKind::TooManyValues, ONE_NAMESPACE).exit();
        }
        let config = self.installation.config()?;
        let image = self.image.as_deref();
        let image = image.map(|image| -> anyhow::Result<(String, Host)> {
            let default = Config::default();
            let host = probe::host(image, config.as_ref().unwrap_or(&default))?;
            Ok((image.to_owned(), host))
        });
        let image = image.transpose()?;
        let connection = &self.installation.connection;
        run_on_cluster(connection, async |cluster| {
            let namespace = if is_stuck {
                self.stuck.install_namespace.as_ref()
            } else {
                self.namespace.first()
            };
            let namespace = installed_in(namespace, &cluster)?;
            let survey = Survey {
                cluster: &cluster,
                namespace: &namespace,
                release: &self.installation.release,
                config: config.as_ref(),
                is_pre: self.pre,
                image: image.as_ref(),
            };
            if is_stuck {
                let format = self.installation.output.format();
                return self.stuck.run(&survey, &self.namespace, format).await;
            }
            self.check(&survey).await
        })
    }

    async fn check(&self, survey: &Survey<'_>) -> anyhow::Result<ExitCode> {
        let fails_on_warn = self.fail_on == FailOn::Warn;
        let deadline = self.wait.map(|wait| Instant::now() + wait);
        let mut told = BTreeSet::new();
        loop {
            let started = Instant::now();
            let results = checks::run(&survey.run().await, |check| self.is_wanted(check));
            let is_ok = Counts::of(&results).is_ok(fails_on_warn);
            let is_over = deadline.is_none_or(|deadline| Instant::now() + RETRY_PERIOD > deadline);
            if is_ok || is_over {
                let took = started.elapsed();
                let text =
                    output::checks(&results, self.installation.output.format(), (is_ok, took));
                stdout::write(&text).context("writing to standard output")?;
                return Ok(if is_ok {
                    ExitCode::SUCCESS
                } else {
                    ExitCode::FAILURE
                });
            }
            tell(&results, &mut told);
            sleep(RETRY_PERIOD).await;
        }
    }

    fn is_wanted(&self, check: &Check) -> bool {
        let is_category = if self.pre {
            ["cluster", "pre"].contains(&check.category)
        } else {
            self.only.is_empty() || self.only.iter().any(|it| it == check.category)
        };
        is_category && !self.skip.iter().any(|it| it == check.code)
    }
}

/// Writes each new cause to standard error, while the command waits.
fn tell(results: &[Checked], told: &mut BTreeSet<String>) {
    for checked in results
        .iter()
        .filter(|it| it.finding.status() == Status::Fail)
    {
        let line = format!("not yet: {}: {}", checked.code, checked.finding.text());
        if told.insert(line.clone()) {
            // A line that can't be written is no error.
            let _ = writeln!(io::stderr(), "{}", printable(&line));
        }
    }
}
