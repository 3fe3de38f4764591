//! `ecr-injector doctor bundle`: writes what a doctor read of an installation to an archive, for
//! somebody else to read.

mod archive;
pub(super) mod contents;
mod scrub;

use std::{
    fs::OpenOptions,
    io::{self, IsTerminal as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anyhow::Context as _;
use clap::Args;

use self::contents::Contents;
use super::{
    arguments::{InstallationArgs, installed_in, run_on_cluster},
    checks,
    output::{self, Counts, Format, Style},
    survey::Survey,
};
use crate::{cli::args::parse_namespace, cluster::namespace::Namespace};

const LONG_ABOUT: &str = "\
Write a support archive about an installation.

The archive is a tar.gz with the findings of doctor, and the fields of the objects that it read which matter: the Deployment, \
its Pods, the registrations, the opted-in namespaces, the metadata of the pull secrets, Events, the configuration, the metrics \
and the logs of the replicas. No data of any Secret is read, no value of a variable and no annotation is copied, and what looks \
like a token, a key or a password is removed from texts. What could not be read is listed in manifest.json with the permission \
that is missing.

Read the archive before you pass it on: it has names of namespaces, registries, roles and nodes.";
const AFTER_HELP: &str = "\
Exit codes:
  0  the archive is written, whatever was found
  1  it could not be written, or there is no cluster
  2  wrong usage

Examples:
  ecr-injector doctor bundle
  ecr-injector doctor bundle --file - | tar tzf -";

/// Write a support archive about an installation
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
pub(super) struct BundleArgs {
    /// Path of the archive, which must not exist, or - for standard output; by default
    /// ecr-injector-bundle-TIME.tar.gz in the current folder
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Namespace of the installation; by default that of the Pod, outside a cluster ecr-injector
    #[arg(short, long, env = "ECR_INJECTOR_NAMESPACE", value_name = "NAMESPACE", value_parser = parse_namespace)]
    namespace: Option<Namespace>,
    #[command(flatten)]
    installation: InstallationArgs,
}

impl BundleArgs {
    /// Reads the installation, and writes the archive.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let config = self.installation.config()?;
        run_on_cluster(&self.installation.connection, async |cluster| {
            let namespace = installed_in(self.namespace.as_ref(), &cluster)?;
            let survey = Survey {
                cluster: &cluster,
                namespace: &namespace,
                release: &self.installation.release,
                config: config.as_ref(),
                is_pre: false,
                image: None,
            };
            let started = Instant::now();
            let installation = survey.run().await;
            let results = checks::run(&installation, |_| true);
            let is_ok = Counts::of(&results).is_ok(false);
            let format = (Format::Json, Style::default());
            let findings = output::checks(&results, format, (is_ok, started.elapsed()));
            let parts = survey.parts(&installation).await;
            let contents = Contents::of(&installation, &parts, findings);
            let at = installation.now;
            let folder = format!("ecr-injector-bundle-{}", at.strftime("%Y%m%dT%H%M%SZ"));
            let bytes = archive::archive(&contents.files, &folder, at);
            let bytes = bytes.context("making the archive")?;
            let path = self
                .file
                .unwrap_or_else(|| format!("{folder}.tar.gz").into());
            write(&path, &bytes)?;
            Ok(ExitCode::SUCCESS)
        })
    }
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if path == Path::new("-") {
        let mut stdout = io::stdout().lock();
        anyhow::ensure!(
            !stdout.is_terminal(),
            "an archive is not written to a terminal; name a file by --file"
        );
        let written = stdout.write_all(bytes).and_then(|()| stdout.flush());
        return match written {
            // The reader has closed the pipe.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            written => written.context("writing to standard output"),
        };
    }
    let what = || {
        format!(
            "writing {}; name another file by --file if it exists",
            path.display()
        )
    };
    let mut options = OpenOptions::new();
    options.write(true).create_new(true).mode(0o600);
    let mut file = options.open(path).with_context(what)?;
    file.write_all(bytes).with_context(what)?;
    // A line that can't be written is no error.
    let _ = writeln!(
        io::stderr(),
        "wrote {}: read it before you pass it on",
        path.display()
    );
    Ok(())
}
