//! `ecr-injector probe`: tests an installation with a Pod.

pub mod pod;

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::{Args, builder::FalseyValueParser};
use jiff::SignedDuration;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::pod::{Probe, ProbeError};
use super::{
    args::{parse_duration, parse_namespace, read_config},
    connection::ConnectionArgs,
    runtime, stdout,
};
use crate::{
    cluster::{Cluster, namespace::Namespace, unreachable},
    config::Config,
    process::{
        clock::{Clock as _, SystemClock},
        signals::Signals,
    },
    pull_secret::to_the_second,
    registry::{Host, image::ImageReference},
    telemetry::{log, printable::printable},
    tls,
};

const LONG_ABOUT: &str = "\
Test an installation with a Pod in an opted-in namespace.

The Pod is created with a server-side dry run: the API server calls the webhook as for any Pod, and stores nothing. With \
--mint the Pod is then stored with a scheduling gate, so that no node runs it, until the pull secret has a valid credential \
for the registry, and removed again.

The command needs the permission to create Pods in that namespace; with --mint also to delete them and to get the Secret.";
const AFTER_HELP: &str = "\
Exit codes:
  0         it works
  1         it does not work; the last line has the reason
  2         wrong usage
  130, 143  interrupted by SIGINT or SIGTERM; the Pod is removed

Examples:
  ecr-injector probe --namespace team-a --image 123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app
  ecr-injector probe --namespace team-a --image 123456789012.dkr.ecr.eu-west-1.amazonaws.com/team/app --mint --wait 2m";
/// The pause between two tries.
const RETRY_PERIOD: Duration = Duration::from_secs(1);

/// Test an installation with a Pod.
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
pub struct ProbeArgs {
    /// Opted-in namespace to create the Pod in
    #[arg(short, long, env = "ECR_INJECTOR_NAMESPACE", value_name = "NAMESPACE", value_parser = parse_namespace)]
    namespace: Namespace,
    /// Image of the Pod; nothing pulls it, so only the registry has to exist
    #[arg(long, env = "ECR_INJECTOR_IMAGE", value_name = "IMAGE")]
    image: String,
    /// Label of the Pod, for an objectSelector of the webhook; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// Also store the Pod, and check that the pull secret has a valid credential for the registry
    #[arg(long, env = "ECR_INJECTOR_MINT", value_parser = FalseyValueParser::new())]
    mint: bool,
    /// How long to retry until it works
    #[arg(long, env = "ECR_INJECTOR_WAIT", value_name = "DURATION", default_value = "30s", value_parser = parse_duration)]
    wait: Duration,
    /// Path of the webhook's configuration file (YAML), for the name of the pull secret and the
    /// aliases; by default every value has its default
    #[arg(long, env = "ECR_INJECTOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    connection: ConnectionArgs,
}

fn parse_label(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl ProbeArgs {
    /// Tests the installation, and fails if it doesn't work in time.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let config = read_config(self.config.as_deref())?;
        let host = host(&self.image, &config)?;
        anyhow::ensure!(
            !config.rules.excluded.contains(&self.namespace),
            "--namespace {} is excluded, so no Pod in it is changed; name an opted-in namespace",
            self.namespace
        );
        log::start_silent()?;
        tls::install_crypto_provider();
        runtime::run(self.run_until_signal(&config, host))?
    }

    async fn run_until_signal(&self, config: &Config, host: Host) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::listen().context("listening for signals")?;
        let cluster = self.connection.connect().await?;
        let secret = config.rules.secret_name.clone();
        let mut probe = Probe::new(self.namespace.clone(), self.image.clone(), host, secret);
        probe.labels = self.labels.iter().cloned().collect();
        let attempt = Attempt {
            probe,
            cluster,
            wait: self.wait,
            deadline: Instant::now() + self.wait,
            interrupted: CancellationToken::new(),
        };
        let mut code = None;
        let mut done = std::pin::pin!(attempt.run(self.mint));
        let done = loop {
            tokio::select! {
                done = &mut done => break done,
                signalled = signals.next() => {
                    if attempt.interrupted.is_cancelled() {
                        return Ok(signalled);
                    }
                    code = Some(signalled);
                    attempt.interrupted.cancel();
                    print("interrupted: removing the Pod that is being created; interrupt again to \
                     exit at once");
                }
            }
        };
        match code {
            Some(code) => Ok(code),
            None => done.map(|()| ExitCode::SUCCESS),
        }
    }
}

/// One run of the command.
struct Attempt {
    probe: Probe,
    cluster: Cluster,
    wait: Duration,
    deadline: Instant,
    interrupted: CancellationToken,
}

impl Attempt {
    async fn run(&self, mint: bool) -> anyhow::Result<()> {
        let (probe, client) = (&self.probe, &self.cluster.client);
        let (namespace, secret) = (&probe.namespace, &probe.secret_name);
        self.retry(async || probe.admit_dry_run(client).await)
            .await?;
        stdout::write(&format!(
            "admitted  a Pod with {} in {namespace} gets {secret} (dry run)\n",
            probe.image
        ))?;
        if !mint {
            return Ok(());
        }
        let admitted = self.retry(async || probe.admit(client).await);
        let warnings = admitted.await?;
        let credential = async || {
            let now = SystemClock.now();
            probe.credential(client, &warnings, now).await
        };
        let credential = self.retry(credential).await;
        let removed = probe.remove(client).await;
        let expires_at = match credential {
            Ok(expires_at) => {
                removed?;
                expires_at
            }
            Err(error) => {
                if let Err(left) = removed {
                    print(&format!("the Pod is left: {left}"));
                }
                return Err(error);
            }
        };
        let left = expires_at.duration_since(SystemClock.now());
        stdout::write(&format!(
            "minted    {namespace}/{secret} has a credential for {} until {}, for {:#}\n",
            probe.host,
            to_the_second(expires_at),
            SignedDuration::from_mins(left.as_mins()),
        ))?;
        Ok(())
    }

    /// Retries until the deadline, and prints the reason whenever it changes.
    async fn retry<T>(&self, work: impl AsyncFn() -> Result<T, ProbeError>) -> anyhow::Result<T> {
        let mut printed = String::new();
        loop {
            anyhow::ensure!(!self.interrupted.is_cancelled(), "interrupted");
            let error = match work().await {
                Ok(done) => return Ok(done),
                Err(error) => anyhow::Error::new(error),
            };
            if Instant::now() + RETRY_PERIOD >= self.deadline {
                let server = &self.cluster.server;
                let seconds = self.wait.as_secs();
                let advice = unreachable::advice(error.as_ref());
                let advice = advice
                    .map(|advice| format!("; {advice}"))
                    .unwrap_or_default();
                return Err(error.context(format!(
                    "does not work after {seconds} s in {server}{advice}"
                )));
            }
            let reason = format!("{error:#}");
            if reason != printed {
                print(&format!("not yet: {reason}"));
                printed = reason;
            }
            tokio::select! {
                () = sleep(RETRY_PERIOD) => {}
                () = self.interrupted.cancelled() => {}
            }
        }
    }
}

/// Writes a line to standard error; a line that can't be written is no error.
fn print(text: &str) {
    let _ = writeln!(io::stderr(), "{}", printable(text));
}

/// Returns the host in the pull secret of an image of ECR, or of an alias.
pub(super) fn host(image: &str, config: &Config) -> anyhow::Result<Host> {
    let reference = ImageReference::parse(image)
        .with_context(|| format!("--image {image:?} is not a valid image reference"))?;
    let aliases = &config.rules.aliases;
    let (host, _) = aliases.resolve(reference.domain()).with_context(|| {
        if let Some(lookalike) = aliases.lookalike(image) {
            return format!("--image {image:?} {lookalike}, so no Pod with it is changed");
        }
        format!(
            "--image {image:?}: {} is neither an ECR registry \
             (ACCOUNT.dkr.ecr.REGION.amazonaws.com or another form of AWS) nor an alias of the \
             configuration, so no Pod with it is changed",
            reference.domain()
        )
    })?;
    Ok(host)
}
