//! The ambient credentials: the first source of the SDK's own chain that has any, and from then on no other.
//!
//! A chain that is walked anew at each refresh may end at another principal: a web identity whose STS throttles today, and
//! the node's role is next in line. A token carries all that its principal may do, so here a source that fails is an
//! error. Only a source that is not configured at all is passed over, and only until one was found. The SDK says "not
//! loaded" of one that is configured by half too (a token file without a role, one key of two, a profile that isn't
//! there), so what was begun is read from the environment here.

use std::{
    env,
    error::Error as StdError,
    fmt, io,
    sync::{Arc, OnceLock},
    time::Duration,
};

use aws_config::{
    ecs::EcsCredentialsProvider,
    environment::EnvironmentVariableCredentialsProvider,
    imds::{self, client::error::ImdsError, credentials::ImdsCredentialsProvider},
    profile::ProfileFileCredentialsProvider,
    provider_config::ProviderConfig,
    web_identity_token::WebIdentityTokenCredentialsProvider,
};
use aws_credential_types::{
    Credentials,
    provider::{self, ProvideCredentials, error::CredentialsError, future},
};
use aws_sdk_sts::{
    error::SdkError,
    operation::{
        assume_role::AssumeRoleError, assume_role_with_web_identity::AssumeRoleWithWebIdentityError,
    },
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::error::ErrorMetadata;
use thiserror::Error;
use tokio::time::timeout;

use super::metrics::AwsMetrics;

/// How long one source may take.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one call to the instance metadata service may take: it answers in milliseconds or never (a hop limit of 1).
const IMDS_TIMEOUT: Duration = Duration::from_millis(800);
const IMDS_ATTEMPTS: u32 = 2;
/// EKS Pod Identity and ECS use one protocol; only the former names a file with its token.
const POD_IDENTITY_VARIABLE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
/// How the SDK's errors about a credential process begin. They go on with what the process printed.
const PROCESS_ERROR: &str = "Error retrieving credentials";

/// Where ambient credentials come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `AWS_ACCESS_KEY_ID` and its fellows.
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

/// A source that has credentials to give and failed to. It holds words and no cause: the cause of a profile's failure may
/// hold what a credential process printed, and its debug text would show that.
#[derive(Debug, Error)]
#[error("{from}: {said}")]
pub struct SourceError {
    from: Source,
    said: String,
}

/// No source has any.
#[derive(Debug, Error)]
#[error(
    "neither the environment, a profile, a web identity, a container endpoint nor the instance metadata has any \
     ({}: {last})",
    Source::InstanceMetadata
)]
pub struct NoSource {
    last: String,
}

/// The expected source has none, nor has any other.
#[derive(Debug, Error)]
#[error("expected credentials of {expected}, and no source has any: {}", .expected.hint())]
pub struct NoExpectedSource {
    expected: Source,
}

/// Another source than the expected one has credentials. They are another principal's, so they sign nothing.
#[derive(Debug, Error)]
#[error("expected credentials of {expected} and found those of {found}, which are not used: {}", .expected.hint())]
pub struct UnexpectedSource {
    expected: Source,
    found: Source,
}

/// A source with its place in the chain.
#[derive(Debug)]
pub struct CredentialSource {
    /// Which it is.
    pub from: Source,
    /// What stands of its own configuration, in words that say what can be missing if it has no credentials all the same.
    /// Without any, it may be passed over.
    pub begun: Option<String>,
    /// What gives the credentials.
    pub provider: Box<dyn ProvideCredentials>,
}

/// The SDK's default chain, held to the first source that gave credentials. Clones of what it is shared in share that.
#[derive(Debug)]
pub struct PinnedChain {
    sources: Vec<CredentialSource>,
    expected: Option<Source>,
    pinned: OnceLock<usize>,
    metrics: Arc<AwsMetrics>,
}

impl Source {
    /// All that there are, in the order of the chain.
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

    /// What to check where it was expected and has no credentials.
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

    /// The source as a metric's label and a log's field.
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
    /// The sources in the SDK's own order. `direct` is the way to endpoints on the node itself. If a source is `expected`, the
    /// credentials of any other are an error.
    #[must_use]
    pub fn new(
        config: &ProviderConfig,
        direct: &ProviderConfig,
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
        let profile = ProfileFileCredentialsProvider::builder().configure(config);
        let web_identity = WebIdentityTokenCredentialsProvider::builder().configure(config);
        let endpoint = EcsCredentialsProvider::builder().configure(direct);
        let metadata = ImdsCredentialsProvider::builder()
            .configure(direct)
            .imds_client(imds);
        let sources: Vec<(Source, Box<dyn ProvideCredentials>)> = vec![
            (Source::Environment, Box::new(environment)),
            (Source::Profile, Box::new(profile.build())),
            (Source::WebIdentity, Box::new(web_identity.build())),
            (container, Box::new(endpoint.build())),
            (Source::InstanceMetadata, Box::new(metadata.build())),
        ];
        let candidates = sources
            .into_iter()
            .map(|(from, provider)| CredentialSource {
                from,
                begun: begun(from, value),
                provider,
            });
        Self::of(candidates.collect(), expected, metrics)
    }

    /// Any sources, for tests.
    #[must_use]
    pub fn of(
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

    async fn provide(&self) -> provider::Result {
        if let Some(source) = self.pinned.get().and_then(|&at| self.sources.get(at)) {
            return source.ask().await.map_err(|cause| source.failed(&cause));
        }
        let mut last = String::new();
        for (at, source) in self.sources.iter().enumerate() {
            match source.ask().await {
                Ok(credentials) => {
                    self.check(source.from)?;
                    if self.pinned.set(at).is_ok() {
                        let from = source.from;
                        self.metrics.credentials_from(from.as_str());
                        tracing::info!(source = %from, "found AWS credentials; using only this source from now on");
                    }
                    return Ok(credentials);
                }
                Err(cause) if source.may_be_passed_over(&cause) => last = innermost(&cause),
                Err(cause) => return Err(source.failed(&cause)),
            }
        }
        Err(match self.expected {
            Some(expected) => CredentialsError::not_loaded(NoExpectedSource { expected }),
            None => CredentialsError::not_loaded(NoSource { last }),
        })
    }

    /// Lets no other source than the expected one give credentials. It isn't pinned, so a source that comes up late is found.
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
        future::ProvideCredentials::new(self.provide())
    }
}

impl CredentialSource {
    async fn ask(&self) -> Result<Credentials, CredentialsError> {
        let asked = timeout(SOURCE_TIMEOUT, self.provider.provide_credentials()).await;
        asked.unwrap_or_else(|_| {
            tracing::debug!(source = %self.from, "credentials source timed out");
            Err(CredentialsError::provider_timed_out(SOURCE_TIMEOUT))
        })
    }

    /// Whether there is nothing of this source at all.
    fn may_be_passed_over(&self, cause: &CredentialsError) -> bool {
        // A profile that leads nowhere (to one that isn't there, say) has a reason; the SDK gives none for no profile.
        let leads_nowhere = self.from == Source::Profile && cause.source().is_some();
        matches!(cause, CredentialsError::CredentialsNotLoaded(_))
            && self.begun.is_none()
            && !leads_nowhere
    }

    fn failed(&self, cause: &CredentialsError) -> CredentialsError {
        let said = match self.from {
            Source::Profile => of_profile(cause),
            _ => innermost(cause),
        };
        let is_half = matches!(cause, CredentialsError::CredentialsNotLoaded(_));
        let said = match self.begun.as_ref().filter(|_| is_half) {
            Some(begun) => format!("configured by half: {begun} ({said})"),
            None => said,
        };
        CredentialsError::provider_error(SourceError {
            from: self.from,
            said,
        })
    }
}

/// What stands of a source's own configuration; `None` if there is nothing. A blank variable is like none, as for the SDK.
fn begun(from: Source, value: impl Fn(&str) -> Option<String>) -> Option<String> {
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

/// What a profile failed with. A credential process's errors hold what it printed, so nothing is shown but what certainly
/// comes from elsewhere: from reading the files, from our own clock, from an answer of AWS's or the way to it.
fn of_profile(cause: &CredentialsError) -> String {
    let first: &(dyn StdError + 'static) = cause;
    let chain = || std::iter::successors(Some(first), |&error| error.source());
    let is_of_no_process = matches!(
        cause,
        CredentialsError::CredentialsNotLoaded(_)
            | CredentialsError::InvalidConfiguration(_)
            | CredentialsError::ProviderTimedOut(_)
    );
    if is_of_no_process || chain().any(is_of_aws_or_the_system) {
        return innermost(cause);
    }
    let last = chain().last().map(ToString::to_string).unwrap_or_default();
    if last.starts_with(PROCESS_ERROR) {
        let status = exit_status(&last).unwrap_or("no credentials that can be read".to_owned());
        return format!("its credential process failed ({status}); run it by hand");
    }
    "the cause is not shown, as it may be what a credential process printed; log in again if the profile is of SSO, or try \
     it by hand (aws sts get-caller-identity)"
        .to_owned()
}

fn is_of_aws_or_the_system(error: &(dyn StdError + 'static)) -> bool {
    error.is::<SdkError<AssumeRoleError>>()
        || error.is::<SdkError<AssumeRoleWithWebIdentityError>>()
        || error.is::<SdkError<CredentialsError>>()
        || error.is::<ImdsError>()
        || error.is::<ErrorMetadata>()
        || error.is::<ConnectorError>()
        || error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.raw_os_error().is_some())
}

/// The exit status in the SDK's error about a credential process, and only digits of it.
fn exit_status(said: &str) -> Option<String> {
    let (_, rest) = said.split_once("exited with code ")?;
    ["exit status: ", "signal: "].into_iter().find_map(|kind| {
        let digits: String = rest
            .strip_prefix(kind)?
            .chars()
            .take_while(char::is_ascii_digit)
            .collect();
        Some(format!("{kind}{digits}"))
    })
}

/// What is wrong with the ambient credentials, in our words if they are ours.
#[must_use]
pub fn explain(error: &CredentialsError) -> String {
    let first: &(dyn StdError + 'static) = error;
    std::iter::successors(Some(first), |&error| error.source())
        .find(|error| {
            error.is::<SourceError>()
                || error.is::<UnexpectedSource>()
                || error.is::<NoSource>()
                || error.is::<NoExpectedSource>()
        })
        .map_or_else(|| innermost(error), ToString::to_string)
}

/// What the system or AWS said, where the SDK's own words only say that something failed.
fn innermost(error: &CredentialsError) -> String {
    let first: &(dyn StdError + 'static) = error;
    let chain = std::iter::successors(Some(first), |&error| error.source());
    let mut said: Vec<String> = Vec::new();
    for text in chain.map(ToString::to_string) {
        if said.last() != Some(&text) {
            said.push(text);
        }
    }
    // The first names the kind of failure, the last its cause; what is between is the SDK's own layers.
    match said.len() {
        0 | 1 => said.concat(),
        length => format!("{}: {}", said[0], said[length - 1]),
    }
}

#[cfg(test)]
mod tests;
