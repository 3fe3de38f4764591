//! The arguments that the commands of doctor share: the installation, the cluster and the output.

use std::{
    env,
    future::Future,
    io::{self, IsTerminal as _},
    path::PathBuf,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::output::{Format, Style};
use crate::{
    cli::{args::read_config, connection::ConnectionArgs, runtime},
    cluster::{Cluster, namespace::Namespace},
    config::Config,
    process::signals::Signals,
    telemetry::log,
    tls,
};

/// The namespace and the release of an installation by default.
const INSTALLATION: &str = "ecr-injector";

/// The arguments about the installation, the cluster and the output.
#[derive(Debug, Args)]
pub(super) struct InstallationArgs {
    /// Name of the Helm release, or of the objects in deploy/
    #[arg(long, env = "ECR_INJECTOR_RELEASE", value_name = "NAME", default_value = INSTALLATION)]
    pub(super) release: String,
    /// Path of a configuration file (YAML), instead of the ConfigMap of the installation
    #[arg(long, env = "ECR_INJECTOR_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Output format
    #[arg(short, long, env = "ECR_INJECTOR_OUTPUT", value_enum, default_value_t)]
    pub(super) output: Output,
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
}

/// The output format.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(super) enum Output {
    /// All checks, by category
    #[default]
    Table,
    /// A line for each check that is not ok
    Short,
    /// A JSON object
    Json,
    /// A YAML object
    Yaml,
}

impl Output {
    /// Returns the format, and how this terminal shows a table.
    pub(super) fn format(self) -> (Format, Style) {
        let format = match self {
            Self::Table => Format::Table,
            Self::Short => Format::Short,
            Self::Json => Format::Json,
            Self::Yaml => Format::Yaml,
        };
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let is_dumb = variable("TERM").is_none_or(|terminal| terminal == "dumb");
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .into_iter()
            .find_map(variable);
        let locale = locale.unwrap_or_default().to_string_lossy().to_lowercase();
        let style = Style {
            has_color: io::stdout().is_terminal() && variable("NO_COLOR").is_none() && !is_dumb,
            has_utf8: locale.contains("utf-8") || locale.contains("utf8"),
        };
        (format, style)
    }
}

impl InstallationArgs {
    /// Reads the configuration file, if one is given.
    pub(super) fn config(&self) -> anyhow::Result<Option<Config>> {
        let path = self.config.as_deref();
        path.map(|path| read_config(Some(path))).transpose()
    }
}

/// Returns the namespace of the installation.
pub(super) fn installed_in(
    given: Option<&Namespace>,
    cluster: &Cluster,
) -> anyhow::Result<Namespace> {
    let own = given.or(cluster.own_namespace.as_ref()).cloned();
    own.or_else(|| Namespace::parse(INSTALLATION))
        .context("the installation has no namespace; name it by -n")
}

/// Runs a command on a cluster to its end, or until a signal.
pub(super) fn run_on_cluster<F, W>(connection: &ConnectionArgs, work: W) -> anyhow::Result<ExitCode>
where
    F: Future<Output = anyhow::Result<ExitCode>>,
    W: FnOnce(Cluster) -> F,
{
    log::start_silent()?;
    tls::install_crypto_provider();
    runtime::run(async {
        let mut signals = Signals::listen().context("listening for signals")?;
        let work = async { work(connection.connect().await?).await };
        tokio::select! {
            done = work => done,
            code = signals.next() => Ok(code),
        }
    })?
}
