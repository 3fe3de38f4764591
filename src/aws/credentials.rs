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

use crate::telemetry::metrics::Metrics;

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
    metrics: Arc<Metrics>,
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
        metrics: Arc<Metrics>,
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
        metrics: Arc<Metrics>,
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

    fn candidate(
        from: Source,
        begun: Option<&str>,
        script: Vec<provider::Result>,
    ) -> CredentialSource {
        CredentialSource {
            from,
            begun: begun.map(str::to_owned),
            provider: Box::new(Script(Mutex::new(script))),
        }
    }

    fn chain(sources: Vec<(Source, Vec<provider::Result>)>) -> PinnedChain {
        let sources = sources
            .into_iter()
            .map(|(from, script)| candidate(from, None, script));
        PinnedChain::of(sources.collect(), None, Arc::default())
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

    #[tokio::test]
    async fn unexpected_source_is_an_error_until_the_expected_one_is_there() {
        let sources = vec![
            candidate(
                Source::WebIdentity,
                None,
                vec![keys("web"), not_configured()],
            ),
            candidate(Source::InstanceMetadata, None, vec![keys("node")]),
        ];
        let chain = PinnedChain::of(sources, Some(Source::WebIdentity), Arc::default());
        let error = next(&chain).await.expect_err("another principal");
        for word in ["web_identity", "instance_metadata", "role-arn", "not used"] {
            assert!(error.contains(word), "{error}");
        }
        assert_eq!(next(&chain).await.as_deref(), Ok("web"));
    }

    #[tokio::test]
    async fn every_expectation_that_fails_says_what_to_check() {
        for expected in Source::ALL {
            assert_eq!(Source::parse(expected.as_str()), Some(expected));
            let other = Source::ALL.into_iter().find(|other| *other != expected);
            let found = candidate(other.expect("six"), None, vec![keys("other")]);
            let none = Err(CredentialsError::not_loaded_no_source());
            let none = candidate(expected, None, vec![none]);
            for sources in [vec![found], vec![none]] {
                let chain = PinnedChain::of(sources, Some(expected), Arc::default());
                let error = chain.provide_credentials().await.expect_err("not it");
                let error = explain(&error);
                assert!(
                    error.contains(expected.as_str()) && error.contains("check "),
                    "{error}"
                );
                // What is longer is cut before it is logged.
                assert!(error.len() <= 300, "{error}");
            }
        }
        assert_eq!(Source::parse("any"), None);
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

    #[tokio::test]
    async fn a_source_that_is_configured_by_half_is_an_error_and_never_the_next_principal() {
        let sources = vec![
            candidate(
                Source::Environment,
                None,
                vec![not_configured(), not_configured()],
            ),
            candidate(
                Source::WebIdentity,
                Some("A is set and B is not"),
                vec![not_configured(), not_configured()],
            ),
            candidate(Source::InstanceMetadata, None, vec![keys("node")]),
        ];
        let chain = PinnedChain::of(sources, None, Arc::default());
        for _ in 0..2 {
            let error = next(&chain).await.expect_err("half");
            assert!(
                error.starts_with("web_identity: ") && error.contains("B is not"),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_profile_that_leads_nowhere_is_an_error_and_none_at_all_is_passed_over() {
        let none = Err(CredentialsError::not_loaded_no_source());
        let chain_of = |result| {
            chain(vec![
                (Source::Profile, vec![result]),
                (Source::InstanceMetadata, vec![keys("node")]),
            ])
        };
        assert_eq!(next(&chain_of(none)).await.as_deref(), Ok("node"));
        let nowhere = Err(CredentialsError::not_loaded("no source profile base"));
        let error = next(&chain_of(nowhere)).await.expect_err("nowhere");
        assert!(
            error.starts_with("profile: ") && error.contains("base"),
            "{error}"
        );
    }

    #[test]
    fn what_is_begun_is_told_from_what_is_absent() {
        const KEY: &str = "AWS_ACCESS_KEY_ID";
        const SECRET: &str = "AWS_SECRET_ACCESS_KEY";
        const FILE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
        const ROLE: &str = "AWS_ROLE_ARN";
        const URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
        const RELATIVE: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
        const CONFIG: &str = "AWS_CONFIG_FILE";
        for (from, set, expected) in [
            (Source::Environment, &[][..], None),
            (Source::Environment, &["AWS_SESSION_TOKEN"], None),
            (
                Source::Environment,
                &[KEY],
                Some("AWS_SECRET_ACCESS_KEY is not"),
            ),
            (
                Source::Environment,
                &[SECRET],
                Some("AWS_ACCESS_KEY_ID is not"),
            ),
            (Source::Profile, &[CONFIG], None),
            (
                Source::Profile,
                &["AWS_PROFILE", CONFIG],
                Some("\"a value\""),
            ),
            (Source::WebIdentity, &[], None),
            (Source::WebIdentity, &[ROLE], None),
            (Source::WebIdentity, &[FILE], Some("AWS_ROLE_ARN is not")),
            (Source::WebIdentity, &[FILE, ROLE], Some(FILE)),
            (Source::Container, &[], None),
            (Source::Container, &[URI], Some(URI)),
            (Source::Container, &[RELATIVE], Some(RELATIVE)),
            (
                Source::PodIdentity,
                &[POD_IDENTITY_VARIABLE],
                Some("FULL_URI is not"),
            ),
            (Source::InstanceMetadata, &[KEY, FILE, URI], None),
        ] {
            let with = |text: &'static str| {
                begun(from, |name: &str| {
                    set.contains(&name).then(|| text.to_owned())
                })
            };
            let said = with("a value");
            match expected {
                Some(expected) => {
                    let said = said.expect("begun");
                    assert!(said.contains(expected), "{from} {set:?}: {said}");
                }
                None => assert_eq!(said, None, "{from} {set:?}"),
            }
            assert_eq!(with(" "), None, "blank is like none: {from} {set:?}");
        }
    }

    /// What a profile says when its base credentials failed so.
    async fn profile_that_failed(cause: CredentialsError) -> String {
        let wrapped = Err(CredentialsError::provider_error(cause));
        let chain = chain(vec![(Source::Profile, vec![wrapped])]);
        let error = chain.provide_credentials().await.expect_err("failed");
        // Some logs have an error's debug text.
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        explain(&error)
    }

    #[tokio::test]
    async fn of_a_profile_nothing_is_shown_that_a_process_may_have_printed() {
        for (text, said) in [
            (
                "Error retrieving credentials: external process exited with code exit status: 3. Stderr: hunter2",
                "its credential process failed (exit status: 3); run it by hand",
            ),
            (
                "Error retrieving credentials: external process exited with code signal: 9 (SIGKILL). Stderr: hunter2",
                "its credential process failed (signal: 9); run it by hand",
            ),
            (
                "Error retrieving credentials from external process, could not parse response: hunter2",
                "its credential process failed (no credentials that can be read); run it by hand",
            ),
            ("the same in other words: hunter2", "the cause is not shown"),
        ] {
            let cause = CredentialsError::provider_error(text);
            let shown = profile_that_failed(cause).await;
            assert!(
                shown.starts_with("profile: ") && shown.contains(said),
                "{shown}"
            );
            assert!(!shown.contains("hunter2"), "{shown}");
            let shown = profile_that_failed(CredentialsError::unhandled(text)).await;
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        let other = io::Error::other("hunter2");
        let shown = profile_that_failed(CredentialsError::provider_error(other)).await;
        assert!(!shown.contains("hunter2"), "{shown}");
    }

    #[tokio::test]
    async fn of_a_profile_what_aws_or_the_system_said_is_shown() {
        let answer = ErrorMetadata::builder().code("AccessDenied").build();
        let shown = profile_that_failed(CredentialsError::provider_error(answer)).await;
        assert!(shown.contains("AccessDenied"), "{shown}");
        let missing = io::Error::from_raw_os_error(2);
        let shown = profile_that_failed(CredentialsError::provider_error(missing)).await;
        assert!(shown.contains("No such file"), "{shown}");
    }
}
