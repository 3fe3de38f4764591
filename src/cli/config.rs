//! `ecr-injector config`: validates a configuration before it is used. Offline without `--cluster`.

mod cluster;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, ensure};
use clap::{Args, Subcommand, error::ErrorKind};
use jiff::SignedDuration;

use super::{
    connection::ConnectionArgs,
    report::{Output, count},
    runtime, stdout,
};
use crate::{
    config::{Config, ConfigError, Discovery, Found, Refresh, schema},
    identity::{DefaultIdentity, Identities},
    telemetry::printable::{printable, printable_json},
    tls,
    token::{
        SessionCap,
        rules::{Revocation, Rules},
    },
};

/// The file name of standard input.
const STDIN: &str = "-";

const ONE_FILE: &str = "--cluster compares one file with a cluster: name one\n";

const CHECK_HELP: &str = "\
A file is the configuration, the ConfigMap around it, or the values of the Helm chart; of these only `config` is checked \
(helm template checks the others).

The summary of each valid file goes to standard output. Every error goes to standard error, one per line, with the file and \
the path of the field; so does a warning of each rule, pattern or host that can never match.

With --cluster the file is compared with the pull secrets of a cluster: how many registries, in how many namespaces, it would \
suspend because the rules no longer allow them or no identity may mint. Only metadata is read, and nothing is changed.

Exit codes:
  0  every file is valid
  1  a file is invalid or could not be read; with --cluster also: the file would suspend registries in more than half of the
     namespaces that have any, and in at least 10, or the cluster could not be read
  2  wrong usage

Examples:
  ecr-injector config check config.yaml
  ecr-injector config check values.yaml
  kubectl -n ecr-injector get configmap ecr-injector -o yaml | ecr-injector config check -
  ecr-injector config check config.yaml --cluster --kubeconfig admin.kubeconfig -o json";

/// Validate configuration files, or print their JSON Schema.
#[derive(Debug, Args)]
#[command(arg_required_else_help = true)]
pub struct ConfigArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Validate configuration files as the webhook does, and summarize them
    #[command(after_long_help = CHECK_HELP)]
    Check {
        /// Configuration file (YAML), alone or within its manifest or the values of the chart, or - for
        /// standard input; may be repeated
        #[arg(required = true, value_name = "FILE|-")]
        files: Vec<PathBuf>,
        #[command(flatten)]
        against: ClusterArgs,
    },
    /// Print the JSON Schema of the configuration file, for editors and validators
    Schema,
}

/// The cluster that a file is compared with.
#[derive(Debug, Args)]
struct ClusterArgs {
    /// Also report which registries the file would suspend in a cluster
    #[arg(long)]
    cluster: bool,
    #[command(flatten)]
    connection: ConnectionArgs,
    /// With --cluster: output format of the report
    #[arg(short, long, env = "ECR_INJECTOR_OUTPUT", value_enum, default_value_t)]
    output: Output,
}

impl ConfigArgs {
    /// Checks files, or prints the schema.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Check { files, against } if against.cluster => {
                let [file] = files.as_slice() else {
                    clap::Error::raw(ErrorKind::TooManyValues, ONE_FILE).exit();
                };
                against.check(file)
            }
            Command::Check { files, .. } => check(&files),
            Command::Schema => {
                stdout::write(&schema::text()).context("writing to standard output")?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

impl ClusterArgs {
    fn check(&self, file: &Path) -> anyhow::Result<ExitCode> {
        let found = match read(file) {
            Ok(found) => found,
            Err(error) => {
                warn(&error_lines(&error));
                anyhow::bail!("1 of 1 files are invalid");
            }
        };
        warn(&warning_lines(file, &found));
        let config = found.config;
        tls::install_crypto_provider();
        let runtime = runtime::start()?;
        let comparison = cluster::compare(&config, &self.connection);
        let comparison = runtime.block_on(comparison)?;
        let output = match self.output {
            Output::Table => format!(
                "{}: valid\n{}{}",
                name(file),
                summary(&config),
                comparison.to_text()
            ),
            Output::Json => printable_json(&format!("{:#}\n", comparison.to_json(&name(file)))),
        };
        stdout::write(&output).context("writing to standard output")?;
        comparison.check()?;
        Ok(ExitCode::SUCCESS)
    }
}

fn check(files: &[PathBuf]) -> anyhow::Result<ExitCode> {
    let is_stdin = |file: &&PathBuf| file.as_os_str() == STDIN;
    ensure!(
        files.iter().filter(is_stdin).count() < 2,
        "standard input can be read only once"
    );
    let (mut valid, mut errors, mut invalid) = (String::new(), String::new(), 0);
    for file in files {
        match read(file) {
            Ok(found) => {
                valid += &name(file);
                valid += ": valid\n";
                valid += &summary(&found.config);
                errors += &warning_lines(file, &found);
            }
            Err(error) => {
                invalid += 1;
                errors += &error_lines(&error);
            }
        }
    }
    stdout::write(&valid).context("writing to standard output")?;
    warn(&errors);
    if invalid == 0 {
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("{invalid} of {} files are invalid", files.len());
}

fn name(file: &Path) -> String {
    if file.as_os_str() == STDIN {
        "standard input".to_owned()
    } else {
        file.display().to_string()
    }
}

fn read(file: &Path) -> Result<Found, ConfigError> {
    if file.as_os_str() != STDIN {
        return Found::read(file);
    }
    Found::read_from(io::stdin(), &name(file))
}

fn warn(lines: &str) {
    // There is nowhere left to report that this write failed.
    let _ = io::stderr().write_all(lines.as_bytes());
}

/// Returns a line for each part of a configuration that can never match.
fn warning_lines(file: &Path, found: &Found) -> String {
    let (name, prefix) = (name(file), &found.prefix);
    let warnings = found.config.warnings().into_iter();
    let lines = warnings.map(|warning| {
        let text = format!("{name}: warning: {prefix}{warning}");
        format!("{}\n", printable(&text))
    });
    lines.collect()
}

/// Returns a line for each error.
fn error_lines(error: &ConfigError) -> String {
    let line = |text: &str| format!("{}\n", printable(text));
    match error {
        ConfigError::Read { source, .. } => line(&format!("{error}: {source}")),
        ConfigError::TooLarge { .. } | ConfigError::Yaml { .. } => line(&error.to_string()),
        ConfigError::Fields { path, errors } => {
            let lines = errors.iter().map(|error| line(&format!("{path}: {error}")));
            lines.collect()
        }
    }
}

/// Returns a summary of a configuration.
fn summary(config: &Config) -> String {
    let (rules, opt_in, refresh) = (&config.rules, &config.opt_in, &config.refresh);
    let excluded: Vec<String> = rules.excluded.iter().map(ToString::to_string).collect();
    let cap = match config.session_cap {
        SessionCap::Auto => "with the role's session".to_owned(),
        SessionCap::Session => "with the session that mints them".to_owned(),
        SessionCap::Off => "by ECR alone".to_owned(),
        SessionCap::After(seconds) => format!("after {seconds} s"),
    };
    let mut lines = vec![
        ("secretName", rules.secret_name.clone()),
        (
            "optIn",
            format!(
                "{}={}, except {}",
                opt_in.label,
                opt_in.value,
                listed(&excluded)
            ),
        ),
        ("registries", registries(rules)),
        ("identities", identities(&rules.identities)),
        (
            "refresh",
            format!(
                "{} prewarmed; {} writes per second; tokens end {cap}",
                counted(refresh.prewarm.len(), "registry", "no registries"),
                refresh.writes_per_second
            ),
        ),
    ];
    lines.extend(lifecycle(refresh));
    lines.extend([
        (
            "limits",
            format!(
                "{} registries per Pod, {} per pull secret",
                rules.registries_per_pod, rules.registries_per_secret
            ),
        ),
        (
            "onFailure",
            format!("{:?}", rules.on_failure).to_lowercase(),
        ),
        (
            "log",
            config
                .log_filter
                .clone()
                .unwrap_or_else(|| "as set by --log".to_owned()),
        ),
    ]);
    let lines = lines
        .iter()
        .map(|(name, text)| format!("  {name:<14}{text}\n"));
    lines.collect()
}

/// Returns the registries that the rules allow.
fn registries(rules: &Rules) -> String {
    let aliases = match rules.aliases.iter().count() {
        0 => "no aliases".to_owned(),
        1 => "1 alias".to_owned(),
        count => format!("{count} aliases"),
    };
    let public = if rules.aliases.include_public() {
        "; ECR Public"
    } else {
        ""
    };
    format!(
        "{}, {}; {aliases}{public}",
        counted(rules.allow.accounts.len(), "account", "all accounts"),
        counted(rules.allow.regions.len(), "region", "all regions"),
    )
}

/// Returns the identities that mint.
fn identities(identities: &Identities) -> String {
    let default = match identities.default {
        DefaultIdentity::Ambient => "ambient",
        DefaultIdentity::None => "nobody",
    };
    let patterns = identities.namespace_roles.allow.len();
    format!(
        "{}; {} for annotated roles; default: {default}",
        counted(identities.rules.len(), "rule", "no rules"),
        counted(patterns, "pattern", "no patterns"),
    )
}

/// Returns the settings that end credentials before or beside their expiry.
fn lifecycle(refresh: &Refresh) -> [(&'static str, String); 5] {
    [
        (
            "forgetAfter",
            match refresh.forget_after {
                Some(after) => format!("{} after a Pod last needed the registry", days(after)),
                None => "nothing".to_owned(),
            },
        ),
        (
            "revoke",
            match refresh.revocation {
                Revocation::OnExpiry => {
                    "on expiry: credentials are kept until they expire, and not renewed"
                }
                Revocation::Immediately => "immediately",
            }
            .to_owned(),
        ),
        (
            "discover",
            match refresh.discovery {
                Discovery::None => "none: only what admissions report",
                Discovery::Pods => "pods: also what pending Pods need",
            }
            .to_owned(),
        ),
        (
            "noticeMissed",
            if refresh.notice_missed {
                "true: pending Pods without the pull secret get an Event"
            } else {
                "false: pending Pods are not searched for the pull secret"
            }
            .to_owned(),
        ),
        (
            "optOutRemove",
            if refresh.removes {
                "true: pull secrets are deleted once all credentials have expired"
            } else {
                "false: pull secrets stay, and are not renewed"
            }
            .to_owned(),
        ),
    ]
}

/// Returns a duration, in days if it is a whole number of them.
fn days(duration: SignedDuration) -> String {
    let hours = duration.as_hours();
    if duration == SignedDuration::from_hours(hours) && hours % 24 == 0 {
        format!("{}d", hours / 24)
    } else {
        format!("{duration:#}")
    }
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(", ")
    }
}

fn counted(number: usize, noun: &str, none: &str) -> String {
    match number {
        0 => none.to_owned(),
        _ => count(number, noun),
    }
}
