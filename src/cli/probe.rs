//! `ecr-injector probe`: whether an installation works, shown by a Pod.

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

use crate::{
    cli::probe::pod::{NotYet, Probe},
    cluster::{Cluster, namespace::Namespace},
    config::Config,
    process::{
        clock::{Clock as _, SystemClock},
        signals::Signals,
    },
    pull_secret::to_the_second,
    registry::{Host, image::ImageReference},
    telemetry::log,
    tls,
};

const LONG_ABOUT: &str = "\
Test an installation with a Pod in an opted-in namespace.

The Pod is created with a server-side dry run: the API server calls the webhook as for any Pod, and stores nothing. With \
--mint the Pod is then stored with a scheduling gate, so that no node runs it, and removed again; the pull secret must then \
have a valid credential for the registry.

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
const PAUSE: Duration = Duration::from_secs(1);

/// Test an installation with a Pod.
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
pub struct ProbeArgs {
    /// Opted-in namespace to create the Pod in
    #[arg(short, long, env = "ECR_INJECTOR_NAMESPACE", value_name = "NAMESPACE", value_parser = super::namespace)]
    namespace: Namespace,
    /// Image of the Pod; nothing pulls it, so only the registry has to exist
    #[arg(long, env = "ECR_INJECTOR_IMAGE", value_name = "IMAGE")]
    image: String,
    /// Label of the Pod, for an objectSelector of the webhook; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// Also store the Pod, and check that the pull secret has a valid credential for the registry
    #[arg(long, env = "ECR_INJECTOR_MINT", value_parser = FalseyValueParser::new())]
    mint: bool,
    /// How long to retry until it works
    #[arg(long, env = "ECR_INJECTOR_WAIT", value_name = "DURATION", default_value = "30s", value_parser = super::span)]
    wait: Duration,
    /// Path of the webhook's configuration file (YAML), for the name of the pull secret and the
    /// aliases; by default every value has its default
    #[arg(long, env = "ECR_INJECTOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Path of the kubeconfig; by default the service account of the Pod, else the usual KUBECONFIG
    /// rules
    #[arg(long, env = "ECR_INJECTOR_KUBECONFIG", value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
}

fn label(text: &str) -> Result<(String, String), &'static str> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

impl ProbeArgs {
    /// Tries, and fails if it doesn't work in time.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let config = Config::load_or_default(self.config.as_deref())?;
        let host = host(&self.image, &config)?;
        anyhow::ensure!(
            !config.rules.excluded.contains(&self.namespace),
            "--namespace {} is excluded, so no Pod in it is changed; name an opted-in namespace",
            self.namespace
        );
        log::start(log::Format::Text, "off")?;
        tls::install_crypto_provider();
        let runtime = super::runtime()?;
        let code = runtime.block_on(self.run_until_signal(&config, host));
        // What still waits for an answer that nobody wants any more is left behind.
        runtime.shutdown_background();
        code
    }

    async fn run_until_signal(&self, config: &Config, host: Host) -> anyhow::Result<ExitCode> {
        let mut signals = Signals::listen().context("listening for signals")?;
        let cluster = Cluster::connect(self.kubeconfig.as_deref())
            .await
            .context("no cluster found; set --kubeconfig or KUBECONFIG")?;
        let secret = config.rules.secret_name.clone();
        let mut probe = Probe::new(self.namespace.clone(), self.image.clone(), host, secret);
        probe.labels = self.labels.iter().cloned().collect();
        let attempt = Attempt {
            probe,
            cluster,
            wait: self.wait,
            end: Instant::now() + self.wait,
            interrupted: CancellationToken::new(),
        };
        let mut code = None;
        let mut done = std::pin::pin!(attempt.run(self.mint));
        let done = loop {
            tokio::select! {
                done = &mut done => break done,
                by = signals.next() => {
                    if attempt.interrupted.is_cancelled() {
                        return Ok(by);
                    }
                    code = Some(by);
                    attempt.interrupted.cancel();
                    say("interrupted: removing the Pod that is being created; interrupt again to \
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
    end: Instant,
    interrupted: CancellationToken,
}

impl Attempt {
    async fn run(&self, mint: bool) -> anyhow::Result<()> {
        let (probe, client) = (&self.probe, &self.cluster.client);
        let (namespace, secret) = (&probe.namespace, &probe.secret_name);
        self.until_it_works(async || probe.try_admission(client).await)
            .await?;
        super::write_out(&format!(
            "admitted  a Pod with {} in {namespace} gets {secret} (dry run)\n",
            probe.image
        ))?;
        if !mint {
            return Ok(());
        }
        let admitted = self.until_it_works(async || probe.be_admitted(client).await);
        let warnings = admitted.await?;
        let credential = async || {
            let now = SystemClock.now();
            probe.credential(client, &warnings, now).await
        };
        let expires_at = self.until_it_works(credential).await?;
        let left = expires_at.duration_since(SystemClock.now());
        super::write_out(&format!(
            "minted    {namespace}/{secret} has a credential for {} until {}, for {:#}\n",
            probe.host,
            to_the_second(expires_at),
            SignedDuration::from_mins(left.as_mins()),
        ))?;
        Ok(())
    }

    /// Tries until the time is over, and says why it goes on whenever the reason is another.
    async fn until_it_works<T>(
        &self,
        work: impl AsyncFn() -> Result<T, NotYet>,
    ) -> anyhow::Result<T> {
        let mut told = String::new();
        loop {
            anyhow::ensure!(!self.interrupted.is_cancelled(), "interrupted");
            let error = match work().await {
                Ok(done) => return Ok(done),
                Err(error) => anyhow::Error::new(error),
            };
            if Instant::now() + PAUSE >= self.end {
                let server = &self.cluster.server;
                let seconds = self.wait.as_secs();
                return Err(error.context(format!("does not work after {seconds} s in {server}")));
            }
            let reason = format!("{error:#}");
            if reason != told {
                say(&format!("not yet: {reason}"));
                told = reason;
            }
            tokio::select! {
                () = sleep(PAUSE) => {}
                () = self.interrupted.cancelled() => {}
            }
        }
    }
}

/// Whoever doesn't look at it misses nothing.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn host(image: &str, config: &Config) -> anyhow::Result<Host> {
    let reference = ImageReference::parse(image)
        .with_context(|| format!("--image {image:?} is not a valid image reference"))?;
    let resolved = config.rules.aliases.resolve(reference.domain());
    let (host, _) = resolved.with_context(|| {
        format!(
            "--image {image:?}: {} is neither an ECR registry \
             (ACCOUNT.dkr.ecr.REGION.amazonaws.com or another form of AWS) nor an alias of the \
             configuration, so no Pod with it is changed",
            reference.domain()
        )
    })?;
    Ok(host)
}
