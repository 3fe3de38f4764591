//! The ambient credentials: the first source of the SDK's own chain that has any, and from then on no other.
//!
//! A chain that is walked anew at each refresh may end at another principal: a web identity whose STS throttles today, and
//! the node's role is next in line. A token carries all that its principal may do, so here a source that fails is an
//! error. Only a source that is not configured at all is passed over, and only until one was found.

use std::{
    error::Error as StdError,
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use aws_config::{
    ecs::EcsCredentialsProvider,
    environment::EnvironmentVariableCredentialsProvider,
    imds::{self, credentials::ImdsCredentialsProvider},
    profile::ProfileFileCredentialsProvider,
    provider_config::ProviderConfig,
    web_identity_token::WebIdentityTokenCredentialsProvider,
};
use aws_credential_types::{
    Credentials,
    provider::{self, ProvideCredentials, error::CredentialsError, future},
};
use thiserror::Error;
use tokio::time::timeout;

use crate::metrics::Metrics;

/// How long one source may take.
const SOURCE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long one call to the instance metadata service may take: it answers in milliseconds or never (a hop limit of 1).
const IMDS_TIMEOUT: Duration = Duration::from_millis(800);
const IMDS_ATTEMPTS: u32 = 2;
/// EKS Pod Identity and ECS use one protocol; only the former names a file with its token.
const POD_IDENTITY_VARIABLE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";

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

/// A source that has credentials to give and failed to.
#[derive(Debug, Error)]
#[error("{from}: {}", innermost(cause))]
pub struct SourceError {
    from: Source,
    cause: CredentialsError,
}

/// No source has any.
#[derive(Debug, Error)]
#[error(
    "neither the environment, a profile, a web identity, a container endpoint nor the instance metadata has any \
     ({}: {})",
    Source::InstanceMetadata,
    innermost(last)
)]
pub struct NoSource {
    last: CredentialsError,
}

/// The SDK's default chain, held to the first source that gave credentials. Clones of what it is shared in share that.
#[derive(Debug)]
pub struct PinnedChain {
    sources: Vec<(Source, Box<dyn ProvideCredentials>)>,
    pinned: OnceLock<usize>,
    metrics: Arc<Metrics>,
}

impl Source {
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
    /// The sources in the SDK's own order. `direct` is the way to endpoints on the node itself.
    #[must_use]
    pub fn new(config: &ProviderConfig, direct: &ProviderConfig, metrics: Arc<Metrics>) -> Self {
        let container = if std::env::var_os(POD_IDENTITY_VARIABLE).is_some() {
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
        let sources: Vec<(Source, Box<dyn ProvideCredentials>)> = vec![
            (
                Source::Environment,
                Box::new(EnvironmentVariableCredentialsProvider::new()),
            ),
            (
                Source::Profile,
                Box::new(
                    ProfileFileCredentialsProvider::builder()
                        .configure(config)
                        .build(),
                ),
            ),
            (
                Source::WebIdentity,
                Box::new(
                    WebIdentityTokenCredentialsProvider::builder()
                        .configure(config)
                        .build(),
                ),
            ),
            (
                container,
                Box::new(EcsCredentialsProvider::builder().configure(direct).build()),
            ),
            (
                Source::InstanceMetadata,
                Box::new(
                    ImdsCredentialsProvider::builder()
                        .configure(direct)
                        .imds_client(imds)
                        .build(),
                ),
            ),
        ];
        Self::of(sources, metrics)
    }

    /// Any sources, for tests.
    #[must_use]
    pub fn of(sources: Vec<(Source, Box<dyn ProvideCredentials>)>, metrics: Arc<Metrics>) -> Self {
        Self {
            sources,
            pinned: OnceLock::new(),
            metrics,
        }
    }

    async fn provide(&self) -> provider::Result {
        if let Some((from, source)) = self.pinned.get().and_then(|&at| self.sources.get(at)) {
            return ask(*from, source.as_ref())
                .await
                .map_err(|cause| failed(*from, cause));
        }
        let mut last = CredentialsError::not_loaded_no_source();
        for (at, (from, source)) in self.sources.iter().enumerate() {
            match ask(*from, source.as_ref()).await {
                Ok(credentials) => {
                    if self.pinned.set(at).is_ok() {
                        self.metrics.credentials_from(from.as_str());
                        tracing::info!(source = %from, "found AWS credentials; no other source is asked from now on");
                    }
                    return Ok(credentials);
                }
                Err(cause @ CredentialsError::CredentialsNotLoaded(_)) => last = cause,
                Err(cause) => return Err(failed(*from, cause)),
            }
        }
        Err(CredentialsError::not_loaded(NoSource { last }))
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

async fn ask(
    from: Source,
    source: &dyn ProvideCredentials,
) -> Result<Credentials, CredentialsError> {
    let asked = timeout(SOURCE_TIMEOUT, source.provide_credentials()).await;
    asked.unwrap_or_else(|_| {
        tracing::debug!(source = %from, "a source of credentials did not answer");
        Err(CredentialsError::provider_timed_out(SOURCE_TIMEOUT))
    })
}

fn failed(from: Source, cause: CredentialsError) -> CredentialsError {
    CredentialsError::provider_error(SourceError { from, cause })
}

/// What is wrong with the ambient credentials, in our words if they are ours.
#[must_use]
pub fn explain(error: &CredentialsError) -> String {
    let first: &(dyn StdError + 'static) = error;
    let chain = || std::iter::successors(Some(first), |&error| error.source());
    chain()
        .find_map(|error| error.downcast_ref::<SourceError>().map(ToString::to_string))
        .or_else(|| {
            chain().find_map(|error| error.downcast_ref::<NoSource>().map(ToString::to_string))
        })
        .unwrap_or_else(|| innermost(error))
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
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Gives what stands in its list, from the end.
    #[derive(Debug)]
    struct Script(Mutex<Vec<provider::Result>>);

    impl ProvideCredentials for Script {
        fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
        where
            Self: 'a,
        {
            let next = self.0.lock().expect("lock").pop();
            match next {
                Some(result) => future::ProvideCredentials::ready(result),
                None => future::ProvideCredentials::new(std::future::pending()),
            }
        }
    }

    #[allow(
        clippy::unnecessary_wraps,
        reason = "one of the results that a source can give"
    )]
    fn keys(name: &str) -> provider::Result {
        Ok(Credentials::new(name, "secret", None, None, "test"))
    }

    fn chain(sources: Vec<(Source, Vec<provider::Result>)>) -> PinnedChain {
        let sources =
            sources
                .into_iter()
                .map(|(from, script)| -> (Source, Box<dyn ProvideCredentials>) {
                    (from, Box::new(Script(Mutex::new(script))))
                });
        PinnedChain::of(sources.collect(), Arc::default())
    }

    fn not_configured() -> provider::Result {
        Err(CredentialsError::not_loaded("not configured"))
    }

    fn broken() -> provider::Result {
        Err(CredentialsError::provider_error("it throttles"))
    }

    async fn next(chain: &PinnedChain) -> Result<String, String> {
        let result = chain.provide_credentials().await;
        result
            .map(|credentials| credentials.access_key_id().to_owned())
            .map_err(|error| {
                let source = error.source().expect("a source");
                source.to_string()
            })
    }

    #[tokio::test]
    async fn the_first_source_that_is_configured_gives_the_credentials() {
        let chain = chain(vec![
            (Source::Environment, vec![not_configured()]),
            (Source::WebIdentity, vec![keys("web")]),
            (Source::InstanceMetadata, vec![keys("node")]),
        ]);
        assert_eq!(next(&chain).await.as_deref(), Ok("web"));
    }

    #[tokio::test]
    async fn a_source_that_fails_is_an_error_and_never_the_next_principal() {
        let chain = chain(vec![
            (Source::WebIdentity, vec![keys("web"), broken()]),
            (Source::InstanceMetadata, vec![keys("node")]),
        ]);
        let error = next(&chain).await.expect_err("broken");
        assert!(
            error.starts_with("web_identity: ") && error.contains("it throttles"),
            "{error}"
        );
        assert_eq!(
            next(&chain).await.as_deref(),
            Ok("web"),
            "once it works again"
        );
    }

    #[tokio::test]
    async fn a_source_that_gave_credentials_once_is_the_only_one_from_then_on() {
        let chain = chain(vec![
            (Source::Environment, vec![keys("late"), not_configured()]),
            (
                Source::WebIdentity,
                vec![keys("web again"), not_configured(), keys("web")],
            ),
            (Source::InstanceMetadata, vec![keys("node")]),
        ]);
        assert_eq!(next(&chain).await.as_deref(), Ok("web"));
        let error = next(&chain).await.expect_err("its configuration is gone");
        assert!(error.starts_with("web_identity: "), "{error}");
        assert_eq!(next(&chain).await.as_deref(), Ok("web again"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_hangs_is_an_error_that_names_it() {
        let chain = chain(vec![
            (Source::PodIdentity, vec![]),
            (Source::InstanceMetadata, vec![keys("node")]),
        ]);
        let error = next(&chain).await.expect_err("no answer");
        assert!(error.starts_with("pod_identity: "), "{error}");
    }

    #[tokio::test]
    async fn without_any_source_the_error_says_what_was_tried() {
        let chain = chain(vec![(Source::InstanceMetadata, vec![not_configured()])]);
        let error = next(&chain).await.expect_err("nothing");
        assert!(
            error.contains("a web identity") && error.contains("not configured"),
            "{error}"
        );
    }
}
