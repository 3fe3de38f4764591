//! The configuration of the AWS SDK from the process's environment: region, endpoints, proxy, TLS
//! roots, credentials.
//!
//! All clients share one HTTP client (see `http`).

pub mod credentials;
pub mod endpoints;
pub mod fault;
mod held;
pub mod http;
mod keys;
pub mod metrics;
pub mod origin;
mod profile;
pub mod restart;
mod signer;
mod trust;
pub mod variables;

use std::{sync::Arc, time::Duration};

use aws_config::{
    BehaviorVersion, SdkConfig,
    default_provider::{use_dual_stack::use_dual_stack_provider, use_fips::use_fips_provider},
    environment::EnvironmentVariableRegionProvider,
    identity::IdentityCache,
    meta::region::RegionProviderChain,
    profile::ProfileFileRegionProvider,
    provider_config::ProviderConfig,
    retry::RetryConfig,
    timeout::TimeoutConfig,
};
use aws_credential_types::Credentials;
use aws_types::service_config::ServiceConfigKey;

use self::{
    credentials::{NoCredentials, PinnedChain, Source},
    http::HttpClients,
    metrics::AwsMetrics,
    profile::{ProfileFiles, ProfileSource},
    signer::{Ambient, Signers},
};
pub use self::{
    signer::Signer,
    trust::{AwsEnvironmentError, Trust},
};
use crate::{identity::Profile, process::files, registry::Region};

/// The version of the SDK's defaults that the tests use.
const BEHAVIOR: fn() -> BehaviorVersion = BehaviorVersion::v2026_01_12;
/// How long opening a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The time from a request's last byte to the response's first.
const READ_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a whole call may take, with its credentials.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(8);
/// The region for credential sources that need one, if the environment names none.
const FALLBACK_REGION: &str = "us-east-1";

/// The AWS environment of the process, read once.
#[derive(Debug, Clone)]
pub struct AwsEnvironment {
    /// The configuration of every client: no retry, the timeouts above, no credentials.
    pub config: SdkConfig,
    /// The region that the environment names, if it has a known form.
    pub home: Option<Region>,
    signers: Arc<Signers>,
}

impl AwsEnvironment {
    /// Reads the environment and profile files by the SDK's own rules, without a call. If a source
    /// of credentials is `expected`, those of any other sign nothing.
    pub async fn read(
        http: HttpClients,
        expected: Option<Source>,
        metrics: Arc<AwsMetrics>,
    ) -> Self {
        let HttpClients { routed, direct } = http;
        // The SDK's own chain would also ask the instance metadata service, which hangs where there
        // is none.
        let files = ProfileFiles::from_environment();
        let files = files::off_the_workers(move || files.read()).await;
        let files = files.map(|contents| contents.for_sdk()).ok();
        let mut in_profile = ProfileFileRegionProvider::builder();
        if let Some(files) = files.clone() {
            in_profile = in_profile.profile_files(files);
        }
        let named = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
            .or_else(in_profile.build())
            .region()
            .await;
        let home = named
            .as_ref()
            .and_then(|region| Region::parse(region.as_ref()));
        let region = named.unwrap_or(aws_config::Region::from_static(FALLBACK_REGION));

        let mut loader = aws_config::defaults(BEHAVIOR())
            .http_client(routed.clone())
            .region(region.clone())
            .no_credentials();
        if let Some(files) = files {
            loader = loader.profile_files(files);
        }
        let config = with_limits(&loader.load().await);
        let providers = ProviderConfig::without_region()
            .with_region(Some(region))
            .with_behavior_version(Some(BEHAVIOR()))
            .with_retry_config(RetryConfig::disabled())
            .with_timeout_config(timeouts())
            .with_http_client(routed);
        // The sources that call AWS call STS, and an endpoint of the admin's own excludes both
        // flags.
        let (fips, dual_stack) = if own_endpoint(&config, "STS").is_some() {
            (Some(false), Some(false))
        } else {
            (
                use_fips_provider(&providers).await,
                use_dual_stack_provider(&providers).await,
            )
        };
        let providers = providers
            .with_use_fips(fips)
            .with_use_dual_stack(dual_stack);
        let profile = Arc::new(ProfileSource::new(None, providers.clone()));
        let chain = PinnedChain::new(
            &providers,
            &providers.clone().with_http_client(direct),
            &profile,
            expected,
            metrics,
        );
        for variable in variables::trimmed_names() {
            tracing::warn!(%variable, "ignored blanks, line breaks or quotes around the value of an environment variable");
        }
        Self {
            config,
            home,
            signers: Arc::new(Signers::new(Ambient::Chain(chain, profile), providers)),
        }
    }

    /// Takes a configuration instead of reading the environment, and replaces its retries and
    /// timeouts.
    #[must_use]
    pub fn from_config(config: &SdkConfig, home: Option<Region>) -> Self {
        let ambient = Ambient::Given(config.credentials_provider());
        let mut providers = ProviderConfig::without_region();
        if let Some(client) = config.http_client() {
            providers = providers.with_http_client(client);
        }
        Self {
            config: with_limits(config),
            home,
            signers: Arc::new(Signers::new(ambient, providers)),
        }
    }

    /// Returns the credentials of a profile, or else the ambient ones.
    pub async fn signer(&self, profile: Option<&Profile>) -> Result<Signer, NoCredentials> {
        self.signers.signer(profile).await
    }

    /// Has the held credentials of a profile, or else the ambient ones, fetched again if AWS
    /// rejected these very ones: at most once a minute, and they stay if no others can be fetched.
    pub fn reject(&self, profile: Option<&Profile>, rejected: &Credentials) {
        self.signers.reject(profile, rejected);
    }

    /// Fetches the ambient credentials once, so that the log has their source, or that there are
    /// none, from the start and not only when the first Pod waits for them.
    pub async fn check_credentials(&self) {
        if let Err(NoCredentials { message: error, .. }) = self.signer(None).await {
            tracing::warn!(%error, "no AWS credentials yet; docs/reference/aws-credentials.md lists what each source needs");
        }
    }

    /// Returns the endpoint that the environment names for a service, by the variable or profile key
    /// for all services or for this one. Such an endpoint (a VPC endpoint, a test) excludes FIPS
    /// and dual-stack in the SDK's rules.
    #[must_use]
    pub fn own_endpoint(&self, service_id: &str) -> Option<String> {
        own_endpoint(&self.config, service_id)
    }
}

fn own_endpoint(config: &SdkConfig, service_id: &str) -> Option<String> {
    let key = ServiceConfigKey::builder()
        .service_id(service_id)
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build();
    let own = key
        .ok()
        .and_then(|key| config.service_config()?.load_config(key));
    own.or_else(|| config.endpoint_url().map(str::to_owned))
}

/// Disables the SDK's retries and sets the timeouts: each caller has a deadline and a backoff of
/// its own.
fn with_limits(config: &SdkConfig) -> SdkConfig {
    config
        .to_builder()
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts())
        // Each call gets its credentials.
        .identity_cache(IdentityCache::no_cache())
        .build()
}

fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .operation_timeout(OPERATION_TIMEOUT)
        .build()
}
