//! `ecr-injector docker-credential`: the docker credential helper, and its entry in docker's
//! configuration.

use std::{
    env,
    ffi::OsString,
    fs::{self, DirBuilder, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{self, ExitCode},
};

use anyhow::{Context as _, bail, ensure};
use clap::{Args, Subcommand};
use similar::TextDiff;

use super::{args::read_config, stdout};
use crate::{
    nodes::{docker, docker_config::DockerConfig, docker_helper},
    registry::{Aliases, Registry},
    telemetry::printable::printable,
};

/// The modes of a folder and a file of docker's.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

const LONG_ABOUT: &str = "\
Act as the docker credential helper: get, list, store, erase or version, with the input on standard input.

docker runs the helper as docker-credential-ecr-injector, which is the small binary ecr-credentials under that name.";

const CONFIGURE_HELP: &str = "\
The difference goes to standard output. Without --write, nothing is changed.

Podman, skopeo and buildah read docker's file too, or name theirs with --file: ~/.config/containers/auth.json.

Exit codes:
  0  the file is as wanted, or was written, or would be with --write
  1  a host is no registry of ECR, or the file could not be read or written
  2  wrong usage

Examples:
  ecr-injector docker-credential configure 123456789012.dkr.ecr.eu-west-1.amazonaws.com
  ecr-injector docker-credential configure 123456789012.dkr.ecr.eu-west-1.amazonaws.com --write
  ecr-injector docker-credential configure 123456789012.dkr.ecr.eu-west-1.amazonaws.com --remove --write";

/// Act as the docker credential helper, or configure docker to use it.
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT)]
pub struct DockerCredentialArgs {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Have docker, podman, skopeo and buildah ask the helper for the credentials of registries
    #[command(after_long_help = CONFIGURE_HELP)]
    Configure(ConfigureArgs),
    #[command(external_subcommand)]
    Action(Vec<OsString>),
}

#[derive(Debug, Args)]
struct ConfigureArgs {
    /// Host of a registry, or an alias of the configuration; may be repeated
    #[arg(required = true, value_name = "HOST")]
    hosts: Vec<String>,
    /// docker's configuration file; by default config.json in the folder that `DOCKER_CONFIG` names,
    /// or else in ~/.docker
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Name of the helper: docker runs the program docker-credential-NAME
    #[arg(long, value_name = "NAME", default_value = "ecr-injector")]
    helper: String,
    /// Remove the hosts from the file instead
    #[arg(long)]
    remove: bool,
    /// Write the file
    #[arg(long)]
    write: bool,
    /// Path of the configuration file (YAML) with the aliases
    #[arg(long, env = "ECR_INJECTOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

impl DockerCredentialArgs {
    /// Runs an action of the helper, or configures docker.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Some(Command::Configure(args)) => args.run(),
            Some(Command::Action(arguments)) => Ok(docker_helper::run(&arguments).write()),
            None => Ok(docker_helper::run(&[]).write()),
        }
    }
}

impl ConfigureArgs {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let aliases = read_config(self.config.as_deref())?.rules.aliases;
        for host in &self.hosts {
            check_host(host, &aliases)?;
        }
        let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        ensure!(
            !self.helper.is_empty() && self.helper.chars().all(is_name),
            "--helper is {:?}: expected the part of the program's name behind docker-credential-",
            self.helper
        );
        let path = self.path()?;
        let shown = path.display();
        let old = match fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other.with_context(|| format!("reading {shown}"))?,
        };
        let config = DockerConfig::parse(&old);
        let mut config = config.with_context(|| format!("reading {shown}"))?;
        // Of another layout, a line could hold passwords, and would be shown.
        let old = if old.is_empty() {
            old
        } else {
            config.to_json()
        };
        let mut notes = Vec::new();
        for host in &self.hosts {
            if self.remove {
                config.unset(host, &self.helper);
                continue;
            }
            config.set(host, &self.helper);
            if config.has_login(host) {
                notes.push(format!(
                    "{shown} has a password of a login at {host}, which stays there unused: docker logout {host} before this"
                ));
            }
        }
        let program = format!("docker-credential-{}", self.helper);
        if !self.remove && !is_in_path(&program) {
            notes.push(format!(
                "there is no {program} in PATH: copy the small binary ecr-credentials there under this name"
            ));
        }
        let new = config.to_json();
        let mut output = difference(&old, &new, &path);
        if output.is_empty() {
            notes.push(format!("{shown} is as wanted: nothing to write"));
        } else if self.write {
            write(&path, &new).with_context(|| format!("writing {shown}"))?;
            notes.push(format!("{shown} is written"));
        } else {
            notes.push("nothing is written: run it again with --write".to_owned());
        }
        for note in notes {
            output.push_str(&printable(&note));
            output.push('\n');
        }
        stdout::write(&output).context("writing to standard output")?;
        Ok(ExitCode::SUCCESS)
    }

    /// Returns the path of the file. A link is followed: some keep such files elsewhere.
    fn path(&self) -> anyhow::Result<PathBuf> {
        let path = if let Some(path) = &self.file {
            path.clone()
        } else if let Some(folder) = env::var_os("DOCKER_CONFIG").filter(|f| !f.is_empty()) {
            PathBuf::from(folder).join("config.json")
        } else {
            let home = env::var_os("HOME").filter(|home| !home.is_empty());
            let home = home.context("neither --file, DOCKER_CONFIG nor HOME is set")?;
            PathBuf::from(home).join(".docker/config.json")
        };
        Ok(fs::canonicalize(&path).unwrap_or(path))
    }
}

fn check_host(host: &str, aliases: &Aliases) -> anyhow::Result<()> {
    let is_public = Registry::parse_public(host).is_some();
    if is_public || aliases.resolve(host).is_some() {
        return Ok(());
    }
    let shown = docker::shown(host);
    match aliases.lookalike_host(host) {
        Some(lookalike) => bail!("{shown:?} {lookalike}"),
        None => bail!(
            "{shown:?} is neither a registry of ECR (ACCOUNT.dkr.ecr.REGION.amazonaws.com or another form of AWS) nor an \
             alias of the configuration"
        ),
    }
}

fn is_in_path(program: &str) -> bool {
    let folders = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&folders).any(|folder| folder.join(program).is_file())
}

/// Returns the lines that differ, without those around them, which may hold passwords.
fn difference(old: &str, new: &str, path: &Path) -> String {
    if old == new {
        return String::new();
    }
    let diff = TextDiff::from_lines(old, new);
    let mut unified = diff.unified_diff();
    let name = path.display().to_string();
    let unified = unified.context_radius(0).header(&name, &name).to_string();
    let printable = |part: &str| printable(part).into_owned();
    // Tabs are docker's indentation.
    let lines = unified.lines().map(|line| {
        line.split('\t')
            .map(printable)
            .collect::<Vec<_>>()
            .join("\t")
    });
    lines.map(|line| line + "\n").collect()
}

/// Replaces the file as a whole. An existing one keeps its mode.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty())
    {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(FOLDER_MODE).create(folder)?;
    }
    let mode = fs::metadata(path).map_or(FILE_MODE, |file| file.permissions().mode() & 0o777);
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".tmp-{}", process::id()));
    let written = || {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(Permissions::from_mode(mode))?;
        fs::rename(&temporary, path)
    };
    written().inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
    })
}
