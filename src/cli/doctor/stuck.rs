//! `ecr-injector doctor --stuck`: finds the Pods that wait for an image of ECR, and restarts those
//! that a new admission helps.

pub(super) mod group;
mod report;
mod restart;

use std::process::ExitCode;

use anyhow::{Context as _, bail};
use clap::Args;

use self::{
    group::{Group, StuckPod},
    report::Report,
    restart::{Restart, Restarts},
};
use super::{
    finding::Reading,
    output::{Format, Style},
    survey::{Survey, stuck::Scope},
};
use crate::{
    cli::{args::parse_namespace, stdout},
    cluster::namespace::Namespace,
};

/// The arguments of `--stuck`. They have no variables: a variable that was left set must not widen
/// what is restarted.
#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag")]
pub(super) struct StuckArgs {
    /// Find the Pods that wait for an image of ECR: the Pending ones of all namespaces, or all of
    /// the namespaces of -n
    #[arg(long, conflicts_with_all = ["pre", "only", "skip"], help_heading = "Stuck Pods")]
    stuck: bool,
    /// Also those that are not Pending: a container of a Pod that runs may wait
    #[arg(
        short = 'A',
        long,
        requires = "stuck",
        conflicts_with = "namespace",
        help_heading = "Stuck Pods"
    )]
    all: bool,
    /// Evict those that get the pull secret once their controllers create them again
    #[arg(long, requires = "stuck", help_heading = "Stuck Pods")]
    restart: bool,
    /// Also those of Jobs, which count a deleted Pod as a failure
    #[arg(long, requires = "restart", help_heading = "Stuck Pods")]
    jobs: bool,
    /// Print what would be restarted, and change nothing
    #[arg(long, requires = "restart", help_heading = "Stuck Pods")]
    dry_run: bool,
    /// Namespace of the installation, as -n is that of the Pods; by default that of the Pod, outside
    /// a cluster ecr-injector
    #[arg(long, requires = "stuck", value_name = "NAMESPACE", value_parser = parse_namespace, help_heading = "Stuck Pods")]
    pub(super) install_namespace: Option<Namespace>,
}

/// Returns the codes of all groups.
pub(super) fn codes() -> impl Iterator<Item = &'static str> {
    Group::ALL.into_iter().map(Group::code)
}

impl StuckArgs {
    /// Whether stuck Pods are wanted, instead of the checks.
    pub(super) fn is_wanted(&self) -> bool {
        self.stuck
    }

    /// Finds the stuck Pods, and restarts them on request.
    pub(super) async fn run(
        &self,
        survey: &Survey<'_>,
        namespaces: &[Namespace],
        format: (Format, Style),
    ) -> anyhow::Result<ExitCode> {
        let scope = if self.all {
            Scope::All
        } else if namespaces.is_empty() {
            Scope::Pending
        } else {
            Scope::Namespaces(namespaces.to_vec())
        };
        let shared = survey.shared().await;
        let rules = match shared.settings() {
            Reading::Read(settings) => &settings.rules,
            other => match other.get() {
                Ok(settings) => &settings.rules,
                Err(finding) => bail!("reading the configuration: {}", finding.text()),
            },
        };
        let found = shared.stuck(&scope).await;
        let found = match found {
            Reading::Read(found) => found,
            other => match other.get() {
                Ok(_) => bail!("finding stuck Pods: nothing was read"),
                Err(finding) => bail!("finding stuck Pods: {}", finding.text()),
            },
        };
        let examined = found.cases.len();
        let pods = found.cases.iter();
        let pods: Vec<StuckPod> = pods.filter_map(|case| StuckPod::of(case, rules)).collect();
        let mut report = Report {
            not_ours: found.not_opted_in + examined - pods.len(),
            unexamined: found.unexamined,
            pods,
            ..Report::default()
        };
        if self.restart {
            let restarts = Restarts {
                shared: &shared,
                rules,
                scope: &scope,
                restart: Restart {
                    jobs: self.jobs,
                    dry_run: self.dry_run,
                },
            };
            let done = restarts.run(&report.pods).await;
            report.outcomes = done.outcomes;
            report.stuck_again = done.stuck_again;
            report.stop = done.stop;
        }
        stdout::write(&report.text(format)).context("writing to standard output")?;
        Ok(if report.is_ok() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}
