//! The ambient credentials: the first source of the SDK's own chain that has any, and from then on
//! no other.
//!
//! A chain that is searched again at each refresh may end at another principal: when STS throttles
//! a web identity, the node's role is next in line. A token carries all that its principal may do,
//! so here a source that fails is an error. Only a source that is not configured at all is skipped,
//! and only until a source was found. The SDK reports "not loaded" also for a source that is
//! configured by half (a token file without a role, one key of two, a profile that doesn't exist),
//! so the configured variables are read from the environment here.

mod explain;

use std::{
    env,
    error::Error as StdError,
    fmt,
    panic::AssertUnwindSafe,
    sync::{Arc, OnceLock},
    time::Duration,
};

use aws_config::{
    ecs::EcsCredentialsProvider,
    environment::EnvironmentVariableCredentialsProvider,
    imds::{self, credentials::ImdsCredentialsProvider},
    provider_config::ProviderConfig,
    web_identity_token::WebIdentityTokenCredentialsProvider,
};
use aws_credential_types::{
    Credentials,
    provider::{ProvideCredentials, error::CredentialsError, future},
};
use futures::FutureExt as _;
use thiserror::Error;
use tokio::time::timeout;

use self::explain::{Refusal, innermost, profile_message};
use super::{fault::Fault, keys, metrics::AwsMetrics, origin::Origin, profile::ProfileSource};

/// How long one source may take.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one call to the instance metadata service may take: the service answers in milliseconds
/// or never (a hop limit of 1).
const IMDS_TIMEOUT: Duration = Duration::from_millis(800);
const IMDS_ATTEMPTS: u32 = 2;
/// The most characters of a cause that are shown before what to do about it.
const MAX_MESSAGE: usize = 400;
/// The variable that distinguishes EKS Pod Identity from ECS: both use one protocol, and only the
/// former names a file with its token.
const POD_IDENTITY_VARIABLE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";

/// Where ambient credentials come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
    Environment,
    /// A profile file: keys, SSO, a credential process, a role.
    Profile,
    /// A web identity token file (IRSA).
    WebIdentity,
    /// EKS Pod Identity.
    PodIdentity,
    /// An ECS task role, or another container credential endpoint.
    Container,
    /// The instance metadata service, version 2.
    InstanceMetadata,
}

/// A configured source failed. The error has a message and no cause: the cause of a profile's
/// failure may hold the output of a credential process, and its debug text would show that.
#[derive(Debug, Error)]
#[error("{from}: {message}")]
pub struct SourceError {
    from: String,
    message: String,
    fault: Option<Fault>,
}

/// Why there are no credentials, for the errors of calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoCredentials {
    /// The mistake of clock, keys or tokens, if it is one.
    pub fault: Option<Fault>,
    /// The text, which names the source.
    pub message: String,
}

/// No source has credentials.
#[derive(Debug, Error)]
#[error(
    "neither the environment, a profile, a web identity, a container endpoint nor the instance metadata has any \
     ({}: {last})",
    Source::InstanceMetadata
)]
pub struct NoSource {
    last: String,
}

/// Neither the expected source nor any other has credentials.
#[derive(Debug, Error)]
#[error("expected credentials of {expected}, and no source has any: {}", .expected.hint())]
pub struct NoExpectedSource {
    expected: Source,
}

/// Another source than the expected one has credentials. Those are another principal's, so they
/// sign nothing.
#[derive(Debug, Error)]
#[error("expected credentials of {expected} and found those of {found}, which are not used: {}", .expected.hint())]
pub struct UnexpectedSource {
    expected: Source,
    found: Source,
}

/// A source with its place in the chain.
#[derive(Debug)]
pub struct CredentialSource {
    /// Which source this is.
    pub from: Source,
    /// The origin of its credentials, for errors.
    pub origin: Origin,
    /// Which of its variables are set, as a text that names what may be missing if the source has
    /// no credentials all the same. Without any, the source may be skipped.
    pub configured: Option<String>,
    /// The SDK's provider of the credentials.
    pub provider: Arc<dyn ProvideCredentials>,
}

/// The SDK's default chain, pinned to the first source that gave credentials.
#[derive(Debug)]
pub struct PinnedChain {
    sources: Vec<CredentialSource>,
    expected: Option<Source>,
    pinned: OnceLock<usize>,
    metrics: Arc<AwsMetrics>,
}

impl Source {
    /// All sources, in the order of the chain.
    pub const ALL: [Self; 6] = [
        Self::Environment,
        Self::Profile,
        Self::WebIdentity,
        Self::PodIdentity,
        Self::Container,
        Self::InstanceMetadata,
    ];

    /// Returns the source of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.as_str() == text)
    }

    /// Returns what to check if the source was expected and has no credentials.
    fn hint(self) -> &'static str {
        match self {
            Self::Environment => {
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and the Secret that they come from"
            }
            Self::Profile => {
                "check AWS_PROFILE and the files AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE"
            }
            Self::WebIdentity => {
                "check the ServiceAccount's annotation eks.amazonaws.com/role-arn and the pod-identity webhook, and restart the Pod"
            }
            Self::PodIdentity => {
                "check the ServiceAccount's Pod Identity association and the agent's DaemonSet, and restart the Pod"
            }
            Self::Container => "check AWS_CONTAINER_CREDENTIALS_FULL_URI or _RELATIVE_URI",
            Self::InstanceMetadata => {
                "check the instance's profile and the hop limit of its metadata service"
            }
        }
    }

    /// Returns the source as a metric's label and a log field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Environment => "environment",
            Self::Profile => "profile",
            Self::WebIdentity => "web_identity",
            Self::PodIdentity => "pod_identity",
            Self::Container => "ecs",
            Self::InstanceMetadata => "instance_metadata",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PinnedChain {
    /// Returns the chain of all sources in the SDK's own order. `direct` reaches endpoints on the
    /// node itself without a proxy. If a source is `expected`, the credentials of any other are an
    /// error.
    #[must_use]
    pub(super) fn new(
        config: &ProviderConfig,
        direct: &ProviderConfig,
        profile: &Arc<ProfileSource>,
        expected: Option<Source>,
        metrics: Arc<AwsMetrics>,
    ) -> Self {
        let value = |name: &str| env::var(name).ok();
        let container = if value(POD_IDENTITY_VARIABLE).is_some() {
            Source::PodIdentity
        } else {
            Source::Container
        };
        let imds = imds::Client::builder()
            .configure(direct)
            .connect_timeout(IMDS_TIMEOUT)
            .read_timeout(IMDS_TIMEOUT)
            .max_attempts(IMDS_ATTEMPTS)
            .build();
        let environment = EnvironmentVariableCredentialsProvider::new();
        let web_identity = WebIdentityTokenCredentialsProvider::builder().configure(config);
        let endpoint = EcsCredentialsProvider::builder().configure(direct);
        let metadata = ImdsCredentialsProvider::builder()
            .configure(direct)
            .imds_client(imds);
        let sources: Vec<(Source, Arc<dyn ProvideCredentials>)> = vec![
            (Source::Environment, Arc::new(environment)),
            (Source::Profile, profile.clone()),
            (Source::WebIdentity, Arc::new(web_identity.build())),
            (container, Arc::new(endpoint.build())),
            (Source::InstanceMetadata, Arc::new(metadata.build())),
        ];
        let sources = sources
            .into_iter()
            .map(|(from, provider)| CredentialSource {
                from,
                origin: match from {
                    Source::Profile => profile.origin(),
                    Source::Environment => Origin::Environment,
                    _ => Origin::Source(from.as_str()),
                },
                configured: configured(from, value),
                provider,
            });
        Self::from_sources(sources.collect(), expected, metrics)
    }

    /// Returns a chain of any sources, for tests.
    #[must_use]
    pub fn from_sources(
        sources: Vec<CredentialSource>,
        expected: Option<Source>,
        metrics: Arc<AwsMetrics>,
    ) -> Self {
        Self {
            sources,
            expected,
            pinned: OnceLock::new(),
            metrics,
        }
    }

    /// Returns credentials and their source.
    pub(super) async fn provide(
        &self,
    ) -> Result<(Credentials, &CredentialSource), CredentialsError> {
        if let Some(source) = self.pinned.get().and_then(|&at| self.sources.get(at)) {
            let fetched = source.fetch().await;
            return fetched
                .map(|credentials| (credentials, source))
                .map_err(|cause| source.failed(&cause));
        }
        let mut last = String::new();
        for (at, source) in self.sources.iter().enumerate() {
            match source.fetch().await {
                Ok(credentials) => {
                    self.check(source.from)?;
                    if self.pinned.set(at).is_ok() {
                        let from = source.from;
                        self.metrics.credentials_from(from.as_str());
                        tracing::info!(source = %from, "found AWS credentials; using only this source from now on");
                    }
                    return Ok((credentials, source));
                }
                Err(cause) if source.may_be_skipped(&cause) => last = innermost(&cause),
                Err(cause) => return Err(source.failed(&cause)),
            }
        }
        Err(match self.expected {
            Some(expected) => CredentialsError::not_loaded(NoExpectedSource { expected }),
            None => CredentialsError::not_loaded(NoSource { last }),
        })
    }

    /// Rejects credentials of another source than the expected one. The other source isn't pinned,
    /// so the expected one is found if it appears late.
    fn check(&self, found: Source) -> Result<(), CredentialsError> {
        match self.expected.filter(|expected| *expected != found) {
            Some(expected) => Err(CredentialsError::provider_error(UnexpectedSource {
                expected,
                found,
            })),
            None => Ok(()),
        }
    }
}

impl ProvideCredentials for PinnedChain {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            let (credentials, _) = self.provide().await?;
            Ok(credentials)
        })
    }
}

impl CredentialSource {
    /// Returns the source of a profile that a rule names.
    pub(super) fn of_profile(profile: Arc<ProfileSource>) -> Self {
        Self {
            from: Source::Profile,
            origin: profile.origin(),
            configured: None,
            provider: profile,
        }
    }

    /// Returns the credentials of this source, or why it has none.
    pub(super) async fn credentials(&self) -> Result<Credentials, CredentialsError> {
        self.fetch().await.map_err(|cause| self.failed(&cause))
    }

    async fn fetch(&self) -> Result<Credentials, CredentialsError> {
        // The SDK panics on some values that no request can hold.
        let provided = AssertUnwindSafe(self.provider.provide_credentials()).catch_unwind();
        let Ok(provided) = timeout(SOURCE_TIMEOUT, provided).await else {
            tracing::debug!(source = %self.from, "credentials source timed out");
            return Err(CredentialsError::provider_timed_out(SOURCE_TIMEOUT));
        };
        let provided = provided.unwrap_or_else(|_| {
            let message = "the AWS SDK panicked: a value has a character that no request can hold";
            Err(CredentialsError::invalid_configuration(message))
        });
        let names = match self.from {
            Source::Environment => keys::VARIABLES,
            _ => keys::PARTS,
        };
        keys::checked(provided?, names).map_err(CredentialsError::invalid_configuration)
    }

    /// Returns whether the source is not configured at all.
    fn may_be_skipped(&self, cause: &CredentialsError) -> bool {
        // A profile that leads nowhere (for example to one that doesn't exist) has a source error;
        // a missing profile has none.
        let leads_nowhere = self.from == Source::Profile && cause.source().is_some();
        matches!(cause, CredentialsError::CredentialsNotLoaded(_))
            && self.configured.is_none()
            && !leads_nowhere
    }

    fn failed(&self, cause: &CredentialsError) -> CredentialsError {
        let refusal = Refusal::of(cause);
        let message = match (&refusal, self.from) {
            (Some(refusal), _) => refusal.to_string(),
            (None, Source::Profile) => profile_message(cause),
            (None, _) => innermost(cause),
        };
        let message: String = message.chars().take(MAX_MESSAGE).collect();
        let is_half = matches!(cause, CredentialsError::CredentialsNotLoaded(_));
        let message = match self.configured.as_ref().filter(|_| is_half) {
            Some(configured) => format!("configured by half: {configured} ({message})"),
            None => message,
        };
        let fault = refusal.as_ref().and_then(Refusal::fault);
        let advice = refusal.and_then(|refusal| refusal.advice(&self.origin));
        CredentialsError::provider_error(SourceError {
            from: match &self.origin {
                Origin::Profile(profile) => profile.clone(),
                _ => self.from.to_string(),
            },
            message: message + &advice.map(|text| format!("; {text}")).unwrap_or_default(),
            fault,
        })
    }
}

/// Returns which variables of a source are set; `None` if none are. A blank variable counts as
/// unset, as in the SDK.
fn configured(from: Source, value: impl Fn(&str) -> Option<String>) -> Option<String> {
    let value = |name| value(name).filter(|text| !text.trim().is_empty());
    let is_set = |name| value(name).is_some();
    let missing = |set: &str, missing: &str| Some(format!("{set} is set and {missing} is not"));
    match from {
        Source::Environment => {
            let (key, secret) = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");
            match (is_set(key), is_set(secret)) {
                (true, false) => missing(key, secret),
                (false, true) => missing(secret, key),
                (true, true) => Some(format!("{key} and {secret} are set")),
                (false, false) => None,
            }
        }
        Source::Profile => value("AWS_PROFILE").map(|name| {
            format!("AWS_PROFILE names {name:?}, and no file has a profile of this name with credentials")
        }),
        Source::WebIdentity => {
            let (file, role) = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN");
            match (is_set(file), is_set(role)) {
                (true, false) => missing(file, role),
                (true, true) => Some(format!("{file} and {role} are set")),
                // A role alone is a setting for other tools.
                (false, _) => None,
            }
        }
        Source::PodIdentity | Source::Container => {
            let uris = [
                "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            ];
            match uris.into_iter().find(|&uri| is_set(uri)) {
                Some(uri) => Some(format!("{uri} is set")),
                None if is_set(POD_IDENTITY_VARIABLE) => missing(POD_IDENTITY_VARIABLE, uris[1]),
                None => None,
            }
        }
        Source::InstanceMetadata => None,
    }
}

/// Returns why there are no credentials: the text of this file's own error, if the chain has one.
#[must_use]
pub fn explain(error: &CredentialsError) -> NoCredentials {
    let first: &(dyn StdError + 'static) = error;
    let chain = || std::iter::successors(Some(first), |&error| error.source());
    let fault = chain().find_map(|error| error.downcast_ref::<SourceError>()?.fault);
    let message = chain()
        .find(|error| {
            error.is::<SourceError>()
                || error.is::<UnexpectedSource>()
                || error.is::<NoSource>()
                || error.is::<NoExpectedSource>()
        })
        .map_or_else(|| innermost(error), ToString::to_string);
    NoCredentials { fault, message }
}

#[cfg(test)]
mod tests;
