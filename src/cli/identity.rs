//! `ecr-injector identity`: explains the identity for a registry and a namespace. Offline without
//! `--mint`.

use std::{
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context as _, ensure};
use clap::{Args, ValueEnum, builder::FalseyValueParser};
use serde_json::{Value, json};

use super::{
    args::{AwsArgs, parse_namespace, read_config},
    runtime,
};
use crate::{
    aws::{
        AwsEnvironment, Trust, credentials::Source, http::HttpClients, metrics::AwsMetrics,
        variables::trimmed_names,
    },
    cluster::namespace::{Namespace, NamespaceSettings},
    config::Config,
    identity::{Choice, Identity, Profile},
    process::{clock::SystemClock, current::Current},
    registry::{Aliases, Host, Registry, Service},
    telemetry::{
        log,
        printable::{printable, printable_json, shortened},
    },
    tls,
    token::{
        Token, TokenKey,
        cache::{Mint as _, MintError},
        ecr::Ecr,
    },
};

const LONG_ABOUT: &str = "\
Explain which identity mints tokens for a registry and a namespace, and what decided it.

Only the configuration is read, unless --mint is given: then AWS is asked for a token in the same way as the webhook does, \
and nothing of the token is shown.";
const AFTER_HELP: &str = "\
Exit codes:
  0  there is an identity; with --mint: and AWS gave it a token
  1  no identity may mint, the configuration excludes the namespace or doesn't allow the registry, AWS gave no token, or the
     configuration could not be read
  2  wrong usage

Examples:
  ecr-injector identity --registry 123456789012.dkr.ecr.eu-west-1.amazonaws.com --namespace team-a
  ecr-injector identity --registry 123456789012.dkr.ecr.eu-west-1.amazonaws.com --namespace team-a \\
    --config config.yaml --role-arn arn:aws:iam::123456789012:role/ecr-pull-team-a --mint";

/// The reason why no Pod of a namespace gets a pull secret.
const EXCLUDED: &str = "the configuration excludes the namespace (optIn.excludeNamespaces): its Pods get no pull secret";

/// Explain which identity mints for a registry and a namespace.
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
pub struct IdentityArgs {
    /// Host of the registry, or an alias of the configuration
    #[arg(long, env = "ECR_INJECTOR_REGISTRY", value_name = "HOST")]
    registry: String,
    /// Namespace of the Pod
    #[arg(short, long, env = "ECR_INJECTOR_NAMESPACE", value_name = "NAMESPACE", value_parser = parse_namespace)]
    namespace: Namespace,
    /// Value of the namespace's annotation ecr-injector.dev/role-arn
    #[arg(long, env = "ECR_INJECTOR_ROLE_ARN", value_name = "ARN")]
    role_arn: Option<String>,
    /// Path of the webhook's configuration file (YAML); by default every value has its default
    #[arg(long, env = "ECR_INJECTOR_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Also mint a token, to test the identity from here
    #[arg(long, env = "ECR_INJECTOR_MINT", value_parser = FalseyValueParser::new())]
    mint: bool,
    /// Output format
    #[arg(short, long, env = "ECR_INJECTOR_OUTPUT", value_enum, default_value_t)]
    output: Output,
    #[command(flatten)]
    aws: AwsArgs,
}

/// The format of the output.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Output {
    /// Human-readable lines
    #[default]
    Text,
    /// A JSON object
    Json,
}

/// The result of a mint, and the source of its credentials.
struct Minted {
    result: Result<Token, MintError>,
    source: &'static str,
    /// The variables whose values were trimmed.
    trimmed: Vec<String>,
}

impl IdentityArgs {
    /// Explains the identity, mints with `--mint`, and fails if no identity may mint.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        let config = read_config(self.config.as_deref())?;
        let trust = self.aws.trust()?;
        let (_, registry) = resolve_registry(&config.rules.aliases, &self.registry)?;
        let settings = NamespaceSettings {
            role: self.role_arn.as_deref().map(Into::into),
            ..NamespaceSettings::default()
        };
        let choice = config
            .rules
            .identities
            .choose(&registry, &self.namespace, &settings);
        let is_allowed = config.rules.allow.permits(&registry);
        let is_excluded = config.rules.excluded.contains(&self.namespace);
        let minted = match &choice.identity {
            Ok(identity) if self.mint => {
                let key = TokenKey::new(identity.clone(), &registry);
                Some(self.try_mint(&config, &trust, &key)?)
            }
            _ => None,
        };
        let explanation = Explanation {
            args: &self,
            registry: &registry,
            choice: &choice,
            is_allowed,
            is_excluded,
            minted: minted.as_ref(),
        };
        let text = match self.output {
            Output::Text => explanation.to_text(),
            Output::Json => printable_json(&format!("{:#}\n", explanation.to_json())),
        };
        io::stdout()
            .write_all(text.as_bytes())
            .context("writing to standard output")?;
        match explanation.failure() {
            None => Ok(ExitCode::SUCCESS),
            Some(failure) => Err(anyhow::Error::msg(failure)),
        }
    }

    fn try_mint(&self, config: &Config, trust: &Trust, key: &TokenKey) -> anyhow::Result<Minted> {
        log::start_silent()?;
        tls::install_crypto_provider();
        runtime::run(async {
            let metrics = Arc::<AwsMetrics>::default();
            let http = HttpClients::pooled(trust);
            let environment =
                AwsEnvironment::read(http, self.aws.expect_credentials, metrics.clone()).await;
            let ecr = Ecr::new(
                environment,
                Current::new(config.session_cap),
                Current::new(config.endpoints.clone()),
                Arc::new(SystemClock),
                Arc::default(),
            );
            let result = ecr.mint(key).await;
            Minted {
                result,
                source: match key.identity.profile() {
                    Some(_) => Source::Profile.as_str(),
                    None => metrics.credentials_source(),
                },
                trimmed: trimmed_names(),
            }
        })
    }
}

/// Resolves `--registry`, the host of a registry or an alias.
pub(super) fn resolve_registry(aliases: &Aliases, host: &str) -> anyhow::Result<(Host, Registry)> {
    // Somebody may have copied a login with it, and a password is not for a log.
    ensure!(
        !host.contains('@'),
        "--registry has an @: expected the host alone, such as \
         123456789012.dkr.ecr.eu-west-1.amazonaws.com, without user, password and digest"
    );
    aliases.resolve(host).with_context(|| {
        let public = Registry::parse_public(host).is_some();
        let why = match aliases.lookalike_host(host) {
            _ if public => {
                "is ECR Public, which needs publicEcr: true in the configuration".to_owned()
            }
            Some(lookalike) => format!(
                "{lookalike}; expected ACCOUNT.dkr.ecr.REGION.amazonaws.com, another form of AWS, \
                 or an alias of the configuration"
            ),
            None => "is neither a private ECR registry (ACCOUNT.dkr.ecr.REGION.amazonaws.com or \
                 another form of AWS) nor an alias of the configuration"
                .to_owned(),
        };
        format!("--registry {:?} {why}", shortened(host))
    })
}

struct Explanation<'a> {
    args: &'a IdentityArgs,
    registry: &'a Registry,
    choice: &'a Choice,
    is_allowed: bool,
    is_excluded: bool,
    minted: Option<&'a Minted>,
}

impl Explanation<'_> {
    fn failure(&self) -> Option<String> {
        if let Err(refusal) = &self.choice.identity {
            return Some(format!("no identity may mint: {refusal}"));
        }
        if self.is_excluded {
            return Some(EXCLUDED.to_owned());
        }
        if !self.is_allowed {
            return Some("the registry is not in the configuration's allow list".to_owned());
        }
        let error = self.minted?.result.as_ref().err()?;
        Some(error.to_string())
    }

    fn to_text(&self) -> String {
        let registry = self.registry;
        let description = match (registry.account(), registry.endpoint().service) {
            (Some(account), Service::Private) => format!(
                "account {account}, region {}, partition {}",
                registry.region(),
                registry.partition().as_str()
            ),
            _ => format!("ECR Public, region {}", registry.region()),
        };
        let mut lines = vec![
            (
                "registry",
                format!("{} ({description})", self.args.registry),
            ),
            ("namespace", self.args.namespace.to_string()),
        ];
        match &self.choice.identity {
            Ok(Identity::Ambient) => {
                lines.push((
                    "identity",
                    "ambient: the AWS credentials of this process".to_owned(),
                ));
            }
            Ok(Identity::Profile(profile)) => {
                lines.push(("identity", format!("profile {}", profile.name())));
            }
            Ok(Identity::Role(role)) => {
                lines.push(("identity", format!("role {}", role.arn)));
                let profile = role.options.profile.as_ref();
                lines.extend(profile.map(|profile| ("profile", profile.name().to_owned())));
                lines.push(("session", role.options.session_name.clone()));
                lines.extend(
                    role.options
                        .external_id
                        .clone()
                        .map(|id| ("external id", id)),
                );
                let tags = role
                    .options
                    .tags
                    .iter()
                    .map(|(key, value)| ("tag", format!("{key}={value}")));
                lines.extend(tags);
                if role.options.pull_only {
                    lines.push(("may", "pull only".to_owned()));
                }
            }
            Err(refusal) => lines.push(("refused", refusal.to_string())),
        }
        lines.push(("because", self.choice.reason.to_string()));
        if self.is_excluded {
            lines.push(("excluded", EXCLUDED.to_owned()));
        }
        if !self.is_allowed {
            lines.push((
                "allow",
                "the registry is not in the configuration's allow list".to_owned(),
            ));
        }
        if let Some(minted) = self.minted {
            lines.push(("credentials", minted.source.to_owned()));
            if !minted.trimmed.is_empty() {
                let names = minted.trimmed.join(", ");
                lines.push((
                    "trimmed",
                    format!("{names}: blanks, line breaks or quotes around the value"),
                ));
            }
            lines.push(match &minted.result {
                Ok(token) => (
                    "token",
                    format!("minted, expires at {}", token.lifetime().expires_at),
                ),
                Err(error) => ("token", format!("none: {error}")),
            });
        }
        let line = |(name, text): &(&str, String)| format!("{name:<12}{}\n", printable(text));
        lines.iter().map(line).collect()
    }

    fn to_json(&self) -> Value {
        let registry = self.registry;
        let identity = match &self.choice.identity {
            Ok(Identity::Ambient) => json!({"kind": "ambient"}),
            Ok(Identity::Profile(profile)) => json!({"kind": "profile", "profile": profile.name()}),
            Ok(Identity::Role(role)) => json!({
                "kind": "role",
                "roleArn": role.arn.as_str(),
                "profile": role.options.profile.as_ref().map(Profile::name),
                "sessionName": role.options.session_name,
                "externalId": role.options.external_id,
                "tags": role.options.tags,
                "pullOnly": role.options.pull_only,
            }),
            Err(_) => Value::Null,
        };
        let mint = self.minted.map(|minted| match &minted.result {
            Ok(token) => json!({
                "credentials": minted.source,
                "trimmed": minted.trimmed,
                "mintedAt": token.lifetime().minted_at,
                "expiresAt": token.lifetime().expires_at,
            }),
            Err(error) => json!({
                "credentials": minted.source,
                "trimmed": minted.trimmed,
                "error": {"kind": error.as_str(), "message": error.to_string()},
            }),
        });
        json!({
            "registry": self.args.registry,
            "account": registry.account().map(ToString::to_string),
            "region": registry.region().as_str(),
            "partition": registry.partition().as_str(),
            "namespace": self.args.namespace.as_str(),
            "allowed": self.is_allowed,
            "excluded": self.is_excluded,
            "identity": identity,
            "because": self.choice.reason.to_string(),
            "refusal": self.choice.identity.as_ref().err().map(ToString::to_string),
            "mint": mint,
        })
    }
}
