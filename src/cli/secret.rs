//! `ecr-injector secret`: prints a Secret with ECR tokens, for whoever creates it by hand.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal as _, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum, builder::FalseyValueParser, error::ErrorKind};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use secrecy::ExposeSecret as _;

use super::{
    args::{AwsArgs, parse_namespace, parse_role, parse_secret_name, read_config},
    identity::resolve_registry,
    runtime, stdout,
};
use crate::{
    admission::manifest::text,
    aws::{AwsEnvironment, Trust, http::HttpClients},
    cluster::namespace::{Namespace, NamespaceSettings},
    config::Config,
    identity::{AssumeRoleOptions, Identities, RoleArn, RoleTemplate, Rule},
    process::{
        clock::{Clock as _, SystemClock},
        current::Current,
    },
    pull_secret::{
        DesiredCredential,
        by_hand::{self, SecretName, Tokens},
        to_the_second,
    },
    registry::{Host, Registry},
    telemetry::{log, printable::printable},
    tls,
    token::{Token, TokenKey, cache::Mint as _, ecr::Ecr},
};

const LONG_ABOUT: &str = "\
Print a Secret with ECR tokens, to create by hand: for namespaces without the webhook, for Argo CD and Flux, for a laptop.

The tokens are minted as the webhook would, and expire after 12 hours at most: nothing renews the Secret. If one registry \
fails, nothing is printed.";
const AFTER_HELP: &str = "\
Standard output is a password: pipe it to kubectl or to a file that nobody else reads.

Exit codes:
  0  the Secret is on standard output
  1  a host is no registry, no identity may mint, or AWS gave no token
  2  wrong usage, or standard output is a terminal

Examples:
  ecr-injector secret --registry 123456789012.dkr.ecr.eu-west-1.amazonaws.com -n team-a | kubectl apply --server-side -f -
  ecr-injector secret --registry 123456789012.dkr.ecr.eu-west-1.amazonaws.com -n argocd --name ecr-charts --for argocd \\
    | kubectl apply --server-side -f -
  ecr-injector secret --registry 123456789012.dkr.ecr.eu-west-1.amazonaws.com -o dockerconfig >auth.json";

const TERMINAL: &str = "\
the output is a password, and standard output is a terminal: pipe it to `kubectl apply --server-side -f -`, or add --show
";
const NO_NAMESPACE: &str = "\
--namespace is missing: a managed pull secret belongs to one
";
const ONE_REGISTRY: &str = "\
--for argocd prints the credentials of one registry: name one --registry
";

/// Print a Secret with ECR tokens, to create by hand.
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
pub struct SecretArgs {
    /// Host of a registry, or an alias of the configuration; may be repeated
    #[arg(long = "registry", value_name = "HOST", required = true)]
    registries: Vec<String>,
    /// Name of the Secret; by default ecr-pull-secret, or secretName of the configuration
    #[arg(long, value_name = "NAME", value_parser = parse_secret_name)]
    name: Option<String>,
    /// Namespace of the Secret; by default that of whoever applies it
    #[arg(short, long, value_name = "NAMESPACE", value_parser = parse_namespace)]
    namespace: Option<Namespace>,
    /// Reader of the Secret
    #[arg(long = "for", value_enum, value_name = "READER", default_value_t)]
    reader: Reader,
    /// Path of the webhook's configuration file (YAML), whose aliases, identities and allow list
    /// count; by default every value has its default
    #[arg(long, env = "ECR_INJECTOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Role to mint with; with --config, the value of the namespace's annotation
    /// ecr-injector.dev/role-arn
    #[arg(long, value_name = "ARN", value_parser = parse_role)]
    role_arn: Option<RoleArn>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Print the Secret as ecr-injector writes it, for ecr-injector to take over
    #[arg(long)]
    managed: bool,
    /// Print to a terminal too
    #[arg(long, value_parser = FalseyValueParser::new())]
    show: bool,
    #[command(flatten)]
    aws: AwsArgs,
}

/// The reader of a Secret.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Reader {
    /// The kubelet, by imagePullSecrets
    #[default]
    Pull,
    /// Flux, by secretRef of its sources
    Flux,
    /// Argo CD: the credentials of a repository of Helm charts
    Argocd,
}

/// The format of a Secret.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A manifest
    #[default]
    Yaml,
    /// A manifest
    Json,
    /// The docker config alone, as for ~/.docker/config.json
    Dockerconfig,
}

/// A registry of the Secret: its host in images, and the key of its token.
type Wanted = BTreeMap<Host, TokenKey>;

impl SecretArgs {
    /// Mints the tokens, and prints the Secret.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        self.check_usage();
        let mut config = read_config(self.config.as_deref())?;
        let trust = self.aws.trust()?;
        if let (None, Some(arn)) = (&self.config, &self.role_arn) {
            config.rules.identities = only(arn);
        }
        let wanted = self.wanted(&config)?;
        let now = SystemClock.now();
        let tokens = self.mint(&config, &trust, &wanted)?;
        let output = self.output(&config, &wanted, &tokens, now)?;
        stdout::write(&output).context("writing to standard output")?;
        if let Some(at) = by_hand::expires_at(&tokens) {
            let left = SignedDuration::from_mins(at.duration_since(now).as_mins());
            let at = to_the_second(at);
            note(&format!(
                "expires {at} ({left:#}): nothing renews it; ecr-injector serve would"
            ));
        }
        if self.managed {
            note(
                "--managed: ecr-injector takes it over where the namespace is opted in; the guard or \
                 the pull secret that is there already may reject it",
            );
        }
        Ok(ExitCode::SUCCESS)
    }

    fn check_usage(&self) {
        let is_docker = self.output == Output::Dockerconfig;
        let (kind, text) = if self.reader == Reader::Argocd && self.registries.len() > 1 {
            (ErrorKind::TooManyValues, ONE_REGISTRY)
        } else if self.managed && self.reader != Reader::Pull {
            (
                ErrorKind::ArgumentConflict,
                "--managed is for the kubelet alone: leave --for out\n",
            )
        } else if self.managed && is_docker {
            (
                ErrorKind::ArgumentConflict,
                "--managed prints a manifest: leave -o dockerconfig out\n",
            )
        } else if self.managed && self.name.is_some() {
            (
                ErrorKind::ArgumentConflict,
                "--managed has the name in the configuration: leave --name out\n",
            )
        } else if self.managed && self.namespace.is_none() {
            (ErrorKind::MissingRequiredArgument, NO_NAMESPACE)
        } else if self.reader == Reader::Argocd && is_docker {
            (
                ErrorKind::ArgumentConflict,
                "Argo CD reads no docker config: leave -o dockerconfig out\n",
            )
        } else if !self.show && io::stdout().is_terminal() {
            (ErrorKind::ValueValidation, TERMINAL)
        } else {
            return;
        };
        clap::Error::raw(kind, text).exit();
    }

    /// Resolves the registries, and chooses who mints for each.
    fn wanted(&self, config: &Config) -> anyhow::Result<Wanted> {
        let rules = &config.rules;
        let namespace = if let Some(namespace) = &self.namespace {
            namespace.clone()
        } else {
            ensure!(
                !rules.identities.depends_on_namespace(),
                "--namespace is missing: who mints depends on it, by the configuration"
            );
            // Any would do.
            Namespace::parse("default").context("no namespace")?
        };
        ensure!(
            !self.managed || !rules.excluded.contains(&namespace),
            "--namespace {namespace} is excluded by the configuration, so ecr-injector takes \
             nothing over there; leave --managed out"
        );
        let annotation = self.role_arn.as_ref().filter(|_| self.config.is_some());
        let settings = NamespaceSettings {
            role: annotation.map(|arn| arn.as_str().into()),
            ..NamespaceSettings::default()
        };
        let key = |text: &String| -> anyhow::Result<(Host, TokenKey)> {
            let bare = bare_host(text);
            let (host, registry): (Host, Registry) = resolve_registry(&rules.aliases, bare)?;
            ensure!(
                rules.allow.permits(&registry),
                "--registry {host} is not in the allow list of the configuration"
            );
            let choice = rules.identities.choose(&registry, &namespace, &settings);
            let identity = choice
                .identity
                .with_context(|| format!("no identity may mint for --registry {host}"))?;
            Ok((host, TokenKey::new(identity, &registry)))
        };
        self.registries.iter().map(key).collect()
    }

    /// Mints a token for each key, once.
    fn mint(&self, config: &Config, trust: &Trust, wanted: &Wanted) -> anyhow::Result<Tokens> {
        log::start_silent()?;
        tls::install_crypto_provider();
        runtime::run(async {
            let http = HttpClients::pooled(trust);
            let environment =
                AwsEnvironment::read(http, self.aws.expect_credentials, Arc::default()).await;
            let ecr = Ecr::new(
                environment,
                Current::new(config.session_cap),
                Current::new(config.endpoints.clone()),
                Arc::new(SystemClock),
                Arc::default(),
            );
            let mut minted: BTreeMap<&TokenKey, Arc<Token>> = BTreeMap::new();
            let mut tokens = Tokens::new();
            for (host, key) in wanted {
                if !minted.contains_key(key) {
                    let token = ecr.mint(key).await;
                    let token = token.with_context(|| format!("no token for {host}"))?;
                    minted.insert(key, Arc::new(token));
                }
                tokens.extend(minted.get(key).map(|token| (host.clone(), token.clone())));
            }
            Ok(tokens)
        })?
    }

    fn output(
        &self,
        config: &Config,
        wanted: &Wanted,
        tokens: &Tokens,
        now: Timestamp,
    ) -> anyhow::Result<String> {
        if self.output == Output::Dockerconfig {
            return Ok(format!(
                "{}\n",
                by_hand::docker_config(tokens).expose_secret()
            ));
        }
        let secret = self.secret(config, wanted, tokens, now)?;
        let secret = serde_json::to_value(secret).context("writing the Secret")?;
        if self.output == Output::Json {
            return Ok(format!("{secret:#}\n"));
        }
        text::to_yaml(&secret).context("writing the Secret as YAML")
    }

    fn secret(
        &self,
        config: &Config,
        wanted: &Wanted,
        tokens: &Tokens,
        now: Timestamp,
    ) -> anyhow::Result<Secret> {
        let name = self.name.as_ref().unwrap_or(&config.rules.secret_name);
        if let (true, Some(namespace)) = (self.managed, &self.namespace) {
            let desired = wanted.iter().map(|(host, key)| {
                let desired = DesiredCredential {
                    identity: key.identity.hash(),
                    token: tokens.get(host).cloned(),
                };
                (host.clone(), desired)
            });
            let secret = by_hand::managed_secret(name, namespace, &desired.collect(), now);
            return secret.context("the pull secret could not be written");
        }
        let name = SecretName {
            name: name.clone(),
            namespace: self.namespace.clone(),
        };
        match tokens.first_key_value() {
            Some((host, token)) if self.reader == Reader::Argocd => {
                Ok(by_hand::argocd_secret(name, host, token))
            }
            _ => Ok(by_hand::docker_secret(name, tokens)),
        }
    }
}

/// Returns the identities of a command that names one role and no configuration.
fn only(arn: &RoleArn) -> Identities {
    let template = RoleTemplate::new(arn.to_string(), AssumeRoleOptions::default());
    let rule = Rule {
        accounts: [].into(),
        regions: [].into(),
        namespaces: Vec::new(),
        assume_role: Some(template),
        profile: None,
    };
    Identities {
        rules: vec![rule],
        ..Identities::default()
    }
}

/// Returns the host in the URL of a registry: keys of docker configs have no scheme, with which
/// containerd finds none.
fn bare_host(text: &str) -> &str {
    let text = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .unwrap_or(text);
    text.strip_suffix('/').unwrap_or(text)
}

/// Writes a line to standard error; a line that can't be written is no error.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{}", printable(text));
}
