//! The ambient credentials: the first source of the SDK's own chain that has any, and from then on
//! no other.
//!
//! A chain that is searched again at each refresh may end at another principal: when STS throttles
//! a web identity, the node's role is next in line. A token carries all that its principal may do,
//! so here a source that fails is an error. Only a source that is not configured at all is skipped,
//! and only until a source was found. The SDK reports "not loaded" also for a source that is
//! configured by half (a token file without a role, one key of two, a profile that doesn't exist),
//! so the configured variables are read from the environment here.

mod configured;
mod explain;
pub mod fingerprint;
mod lazy;
mod source;
mod unavailable;

use std::{
    env,
    error::Error as StdError,
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

pub use self::source::Source;
use self::{
    configured::{POD_IDENTITY_VARIABLE, configured, lacking, with_usable_variables},
    explain::{Refusal, innermost, profile_message},
    lazy::Lazy,
    unavailable::is_unavailable,
};
use super::{fault::Fault, keys, metrics::AwsMetrics, origin::Origin, profile::ProfileSource};

/// How long one source may take.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one call to the instance metadata service may take: the service answers in milliseconds
/// or never (a hop limit of 1).
const IMDS_TIMEOUT: Duration = Duration::from_millis(800);
const IMDS_ATTEMPTS: u32 = 2;
/// The most characters of a cause that are shown before what to do about it.
const MAX_MESSAGE: usize = 400;

/// A configured source failed. The error has a message and no cause: the cause of a profile's
/// failure may hold the output of a credential process, and its debug text would show that.
#[derive(Debug, Error)]
#[error("{from}: {message}")]
pub struct SourceError {
    from: String,
    message: String,
    fault: Option<Fault>,
    is_unavailable: bool,
}

/// Why there are no credentials, for the errors of calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoCredentials {
    /// The mistake of clock, keys or tokens, if it is one.
    pub fault: Option<Fault>,
    /// Whether no source of any kind is there, as opposed to one that failed.
    pub is_nowhere: bool,
    /// Whether the source, or the last of all, couldn't be asked or couldn't answer: no mistake of
    /// the configuration is known.
    pub is_unavailable: bool,
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
    is_unavailable: bool,
}

/// Neither the expected source nor any other has credentials.
#[derive(Debug, Error)]
#[error("expected credentials of {expected}, and no source has any: {lacks}{}", .expected.hint())]
pub struct NoExpectedSource {
    expected: Source,
    lacks: String,
}

/// Another source than the expected one has credentials. Those are another principal's, so they
/// sign nothing.
#[derive(Debug, Error)]
#[error("expected credentials of {expected} and found those of {found}, which are not used: {lacks}{}", .expected.hint())]
pub struct UnexpectedSource {
    expected: Source,
    found: Source,
    lacks: String,
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
    /// The variables that the expected source lacks.
    lacks: Option<String>,
    pinned: OnceLock<usize>,
    metrics: Arc<AwsMetrics>,
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
        let (for_web_identity, for_container, for_metadata) =
            (config.clone(), direct.clone(), direct.clone());
        let web_identity = Lazy::new(move || {
            let builder = WebIdentityTokenCredentialsProvider::builder();
            builder.configure(&for_web_identity).build()
        });
        let endpoint = Lazy::new(move || {
            let builder = EcsCredentialsProvider::builder();
            builder.configure(&for_container).build()
        });
        let metadata = Lazy::new(move || {
            let imds = imds::Client::builder()
                .configure(&for_metadata)
                .connect_timeout(IMDS_TIMEOUT)
                .read_timeout(IMDS_TIMEOUT)
                .max_attempts(IMDS_ATTEMPTS)
                .build();
            let builder = ImdsCredentialsProvider::builder();
            builder.configure(&for_metadata).imds_client(imds).build()
        });
        let environment = EnvironmentVariableCredentialsProvider::new();
        let sources: Vec<(Source, Arc<dyn ProvideCredentials>)> = vec![
            (Source::Environment, Arc::new(environment)),
            (Source::Profile, profile.clone()),
            (Source::WebIdentity, web_identity),
            (container, endpoint),
            (Source::InstanceMetadata, metadata),
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
                provider: with_usable_variables(from, provider),
            });
        let mut chain = Self::from_sources(sources.collect(), expected, metrics);
        chain.lacks = expected.and_then(|from| lacking(from, value));
        chain
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
            lacks: None,
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
                .map_err(|cause| self.failed(source, &cause));
        }
        let (mut last, mut lacks) = (String::new(), self.lacks.clone());
        let mut is_unanswered = false;
        for (at, source) in self.sources.iter().enumerate() {
            match source.fetch().await {
                Ok(credentials) => {
                    self.check(source.from, lacks.as_deref())?;
                    if self.pinned.set(at).is_ok() {
                        let from = source.from;
                        self.metrics.credentials_from(from.as_str());
                        tracing::info!(source = %from, "found AWS credentials; using only this source from now on");
                    }
                    return Ok((credentials, source));
                }
                Err(cause) if source.may_be_skipped(&cause) => {
                    last = innermost(&cause);
                    is_unanswered = is_unavailable(&cause);
                    if lacks.is_none() && self.expected == Some(source.from) {
                        lacks = Some(match &source.origin {
                            Origin::Profile(profile) => format!("credentials in {profile}"),
                            _ => format!("credentials ({last})"),
                        });
                    }
                }
                Err(cause) => return Err(self.failed(source, &cause)),
            }
        }
        Err(match self.expected {
            Some(expected) => {
                let lacks = it_lacks(lacks.as_deref());
                CredentialsError::not_loaded(NoExpectedSource { expected, lacks })
            }
            None => CredentialsError::not_loaded(NoSource {
                last,
                is_unavailable: is_unanswered,
            }),
        })
    }

    /// Rejects credentials of another source than the expected one. The other source isn't pinned,
    /// so the expected one is found if it appears late.
    fn check(&self, found: Source, lacks: Option<&str>) -> Result<(), CredentialsError> {
        match self.expected.filter(|expected| *expected != found) {
            Some(expected) => Err(CredentialsError::provider_error(UnexpectedSource {
                expected,
                found,
                lacks: it_lacks(lacks),
            })),
            None => Ok(()),
        }
    }

    /// Returns the error of a source, which also names the expected one and what that lacks.
    fn failed(&self, source: &CredentialSource, cause: &CredentialsError) -> CredentialsError {
        let expected = match (self.expected, &self.lacks) {
            (None, _) => String::new(),
            (Some(expected), None) => format!(" (expected: {expected})"),
            (Some(expected), Some(lacks)) => {
                format!(" (expected: {expected}, which lacks {lacks})")
            }
        };
        source.failed(cause, &expected)
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
        self.fetch().await.map_err(|cause| self.failed(&cause, ""))
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

    fn failed(&self, cause: &CredentialsError, expected: &str) -> CredentialsError {
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
                Origin::Profile(profile) => format!("{profile}{expected}"),
                _ => format!("{}{expected}", self.from),
            },
            message: message + &advice.map(|text| format!("; {text}")).unwrap_or_default(),
            fault,
            is_unavailable: is_unavailable(cause),
        })
    }
}

fn it_lacks(lacks: Option<&str>) -> String {
    let lacks = lacks.map(|lacks| format!("it lacks {lacks}; "));
    lacks.unwrap_or_default()
}

/// Returns why there are no credentials: the text of this file's own error, if the chain has one.
#[must_use]
pub fn explain(error: &CredentialsError) -> NoCredentials {
    let first: &(dyn StdError + 'static) = error;
    let chain = || std::iter::successors(Some(first), |&error| error.source());
    let fault = chain().find_map(|error| error.downcast_ref::<SourceError>()?.fault);
    let of_source = |error: &(dyn StdError + 'static)| {
        let of_none = || Some(error.downcast_ref::<NoSource>()?.is_unavailable);
        let source = error.downcast_ref::<SourceError>();
        source.map(|source| source.is_unavailable).or_else(of_none)
    };
    let message = chain()
        .find(|error| {
            error.is::<SourceError>()
                || error.is::<UnexpectedSource>()
                || error.is::<NoSource>()
                || error.is::<NoExpectedSource>()
        })
        .map_or_else(|| innermost(error), ToString::to_string);
    NoCredentials {
        fault,
        is_nowhere: chain().any(<dyn StdError>::is::<NoSource>),
        is_unavailable: chain()
            .find_map(of_source)
            .unwrap_or_else(|| is_unavailable(error)),
        message,
    }
}

#[cfg(test)]
mod tests;
