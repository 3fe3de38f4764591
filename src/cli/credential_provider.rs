//! `ecr-injector credential-provider`: the kubelet's credential plugin, as in the small binary, and
//! the kubelet's configuration for it.

use std::{
    ffi::OsString,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail, ensure};
use clap::{
    Args, Subcommand, ValueEnum,
    builder::{PossibleValuesParser, TypedValueParser},
};

use super::stdout;
use crate::{
    nodes::{
        kubelet_config::{Distribution, ServiceAccounts, Settings, check, rbac, write_yaml},
        kubelet_plugin,
    },
    registry::{Partition, Registry},
};

const LONG_ABOUT: &str = "\
Run as the kubelet's exec credential plugin: a CredentialProviderRequest on standard input, credentials on standard output.

The flags are those of the small binary ecr-credential-provider, which is what to install on nodes.";
const CONFIG_HELP: &str = "\
Exit codes:
  0  the file is printed; with --check: no mistake was found
  1  with --check: a mistake was found, or a file can't be read
  2  wrong usage

Examples:
  ecr-injector credential-provider config --for k3s > config.yaml
  ecr-injector credential-provider config --for kubeadm --service-account-tokens --rbac
  ecr-injector credential-provider config --check /etc/kubernetes/credential-provider.yaml";
/// The names of the files that the kubelet reads in a folder.
const EXTENSIONS: [&str; 3] = ["json", "yaml", "yml"];
/// The most bytes of a file that is checked.
const MAX_BYTES: u64 = 1 << 20;

/// Run as the kubelet's credential plugin for Amazon ECR
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_help = kubelet_plugin::HELP, args_conflicts_with_subcommands = true)]
pub struct CredentialProviderArgs {
    #[command(subcommand)]
    command: Option<Command>,
    /// Flags of the plugin; see below
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "FLAGS"
    )]
    flags: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
enum Command {
    Config(ConfigArgs),
}

/// Print the kubelet's configuration for the plugin, or check one
#[derive(Debug, Args)]
#[command(after_long_help = CONFIG_HELP)]
struct ConfigArgs {
    /// Way in which Kubernetes was installed
    #[arg(long = "for", value_name = "DISTRIBUTION", default_value = "kubeadm", value_parser = distribution_parser())]
    distribution: Distribution,
    /// Partition whose registries get credentials, such as aws-cn; may be repeated [default: all]
    #[arg(long = "partition", value_name = "PARTITION", value_parser = parse_partition)]
    partitions: Vec<Partition>,
    /// Another host, which gets the token of a registry; may be repeated
    #[arg(long = "alias", value_name = "HOST=REGISTRY", value_parser = kubelet_plugin::parse_alias)]
    aliases: Vec<(String, Registry)>,
    /// Also call the plugin for the public gallery
    #[arg(long)]
    public: bool,
    #[command(flatten)]
    accounts: AccountArgs,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Check this file, or the files of this folder, and print nothing else
    #[arg(long, value_name = "FILE|DIR", conflicts_with_all = ["distribution", "output"])]
    check: Option<PathBuf>,
}

/// The use of ServiceAccounts.
#[derive(Debug, Args)]
struct AccountArgs {
    /// Let the role of a Pod's ServiceAccount mint, instead of the node's own identity
    #[arg(long)]
    service_account_tokens: bool,
    /// Call the plugin only for ServiceAccounts that have the annotation ecr-injector.dev/role-arn
    #[arg(long, requires = "service_account_tokens")]
    require_role_annotation: bool,
    /// Also print the cluster role that lets nodes request the tokens of ServiceAccounts
    #[arg(long, requires = "service_account_tokens")]
    rbac: bool,
}

/// The format of the output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// YAML with comments that say where the file goes
    #[default]
    Yaml,
    /// JSON
    Json,
}

fn distribution_parser() -> impl TypedValueParser<Value = Distribution> {
    let all = Distribution::ALL;
    PossibleValuesParser::new(all.map(|(name, _)| name)).try_map(move |name| {
        let found = all.into_iter().find(|(known, _)| *known == name);
        found.map(|found| found.1).ok_or("no such distribution")
    })
}

fn parse_partition(text: &str) -> Result<Partition, String> {
    Partition::parse(text).ok_or_else(|| {
        let names: Vec<_> = Partition::all().map(Partition::as_str).collect();
        format!("expected one of {}", names.join(", "))
    })
}

impl CredentialProviderArgs {
    /// Answers one request, or prints or checks a configuration.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            None => Ok(kubelet_plugin::run(&self.flags).write()),
            Some(Command::Config(args)) => args.run(),
        }
    }
}

impl ConfigArgs {
    fn run(self) -> anyhow::Result<ExitCode> {
        if let Some(path) = &self.check {
            return check_files(path);
        }
        let settings = Settings {
            distribution: self.distribution,
            partitions: self.partitions,
            aliases: self.aliases,
            public: self.public,
            service_accounts: match (
                self.accounts.service_account_tokens,
                self.accounts.require_role_annotation,
            ) {
                (false, _) => ServiceAccounts::Unused,
                (true, false) => ServiceAccounts::Used,
                (true, true) => ServiceAccounts::RoleRequired,
            },
        };
        let objects = self.accounts.rbac.then(rbac);
        let text = match self.output {
            Output::Yaml => {
                let mut text = settings.to_yaml();
                for object in objects.iter().flatten() {
                    text += "---\n";
                    write_yaml(&mut text, object, 0);
                }
                text
            }
            Output::Json => {
                // JSON has no comments.
                for warning in settings.warnings() {
                    // There is nowhere left to report that this write failed.
                    let _ = writeln!(io::stderr(), "ecr-injector: {warning}");
                }
                let values = [settings.to_json()].into_iter();
                let values = values.chain(objects.into_iter().flatten());
                let texts: Vec<_> = values.map(|value| format!("{value:#}\n")).collect();
                texts.concat()
            }
        };
        stdout::write(&text).context("writing to standard output")?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Checks a file, or a folder as the kubelet merges it.
fn check_files(path: &Path) -> anyhow::Result<ExitCode> {
    let mut paths = vec![path.to_owned()];
    if path.is_dir() {
        let entries =
            fs::read_dir(path).with_context(|| format!("--check: reading {}", path.display()))?;
        let entries: Result<Vec<_>, _> = entries.collect();
        let entries = entries.with_context(|| format!("--check: reading {}", path.display()))?;
        let is_read = |path: &PathBuf| {
            let extension = path.extension().and_then(|extension| extension.to_str());
            extension.is_some_and(|extension| EXTENSIONS.contains(&extension))
        };
        paths = entries.into_iter().map(|entry| entry.path()).collect();
        paths.retain(is_read);
        paths.sort();
        ensure!(
            !paths.is_empty(),
            "{} has no file that ends with .json, .yaml or .yml, and a kubelet does not start without one",
            path.display()
        );
    }
    let read = |path: &PathBuf| {
        let name = path.display().to_string();
        let found = fs::metadata(path).with_context(|| format!("--check: reading {name}"))?;
        if found.len() > MAX_BYTES {
            bail!("{name} is longer than 1 MiB: it is another file");
        }
        let text = fs::read_to_string(path).with_context(|| format!("--check: reading {name}"))?;
        Ok((name, text))
    };
    let files: anyhow::Result<Vec<_>> = paths.iter().map(read).collect();
    let findings = check::check(&files?);
    if findings.is_empty() {
        stdout::write(&format!("{}: no mistake was found\n", path.display()))
            .context("writing to standard output")?;
        return Ok(ExitCode::SUCCESS);
    }
    let lines = findings.join("\n") + "\n";
    stdout::write(&lines).context("writing to standard output")?;
    let count = findings.len();
    bail!("{}: mistakes: {count}; see the lines above", path.display())
}
