//! The configuration of the AWS SDK from the process's environment: region, endpoints, proxy, TLS
//! roots, credentials.
//!
//! All clients share one HTTP client. It uses the proxy that `HTTPS_PROXY` and `NO_PROXY` name, and
//! trusts the system's roots or the CA bundle of the admin. Plain-text requests bypass the proxy:
//! they go to the endpoints on the node itself that give credentials, and a proxy would read those.

pub mod credentials;
pub mod metrics;

use std::{fs, io, path::Path, sync::Arc, time::Duration};

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
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_smithy_http_client::{
    Builder, Connector,
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        connector_metadata::ConnectorMetadata,
        http::{
            HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings,
            SharedHttpClient, SharedHttpConnector,
        },
        orchestrator::HttpRequest,
        runtime_components::{RuntimeComponents, RuntimeComponentsBuilder},
    },
};
use aws_smithy_types::config_bag::ConfigBag;
use aws_types::service_config::ServiceConfigKey;
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use thiserror::Error;

use self::credentials::{PinnedChain, Source};
use self::metrics::AwsMetrics;
use crate::registry::Region;

/// The version of the SDK's defaults that the tests use.
const BEHAVIOR: fn() -> BehaviorVersion = BehaviorVersion::v2026_01_12;
/// How long opening a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// The time from a request's last byte to the response's first.
const READ_TIMEOUT: Duration = Duration::from_secs(4);
/// How long a whole call may take, with its credentials.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(8);
/// How long finding credentials may take: more than the chain's own limit, whose error names the
/// source that timed out.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(6);
/// Credentials with less time left than this are fetched again before they are used.
const CREDENTIALS_BUFFER: Duration = Duration::from_mins(5);
/// The region for credential sources that need one, if the environment names none.
const FALLBACK_REGION: &str = "us-east-1";

/// The AWS environment of the process, read once.
#[derive(Debug, Clone)]
pub struct AwsEnvironment {
    /// The configuration of every client: no retry, the timeouts above, the ambient credentials.
    pub config: SdkConfig,
    /// The region that the environment names, if it has a known form.
    pub home: Option<Region>,
}

/// Why the CA bundle can't be used.
#[derive(Debug, Error)]
pub enum AwsEnvironmentError {
    /// The bundle can't be read.
    #[error("reading the CA bundle {path}: check the path and its permissions")]
    ReadBundle {
        /// The file.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// The bundle holds no usable certificate.
    #[error(
        "the CA bundle {path} holds no usable certificate: {message}; expected PEM, one CERTIFICATE block each"
    )]
    Bundle {
        /// The file.
        path: String,
        /// The reason.
        message: String,
    },
}

/// The CA certificates that AWS's endpoints are verified with.
#[derive(Debug, Clone, Default)]
pub struct Trust(Option<Arc<[u8]>>);

impl Trust {
    /// Trusts only the CA certificates of a PEM file (for a network whose proxy intercepts TLS, or
    /// a private endpoint), or else the system's.
    pub fn load(bundle: Option<&Path>) -> Result<Self, AwsEnvironmentError> {
        let Some(path) = bundle else {
            return Ok(Self(None));
        };
        let name = path.display().to_string();
        let pem = fs::read(path).map_err(|source| AwsEnvironmentError::ReadBundle {
            path: name.clone(),
            source,
        })?;
        let unusable = |message: String| AwsEnvironmentError::Bundle {
            path: name.clone(),
            message,
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| unusable(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(unusable("it is empty".to_owned()));
        }
        Ok(Self(Some(pem.into())))
    }

    fn store(&self) -> TrustStore {
        match &self.0 {
            Some(pem) => TrustStore::empty().with_pem_certificate(pem.to_vec()),
            None => TrustStore::default(),
        }
    }
}

/// Sends HTTPS requests through the proxy, and plain-text requests directly: those go to endpoints
/// on the node itself (a profile can lead there as well), and a proxy would see the credentials
/// that they give.
#[derive(Debug)]
struct ProxyRoutedClient {
    proxied: SharedHttpClient,
    direct: SharedHttpClient,
}

/// The connectors of a [`ProxyRoutedClient`] for one set of timeouts.
#[derive(Debug)]
struct Connectors {
    proxied: SharedHttpConnector,
    direct: SharedHttpConnector,
}

impl HttpClient for ProxyRoutedClient {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Connectors {
            proxied: self.proxied.http_connector(settings, components),
            direct: self.direct.http_connector(settings, components),
        })
    }

    fn validate_base_client_config(
        &self,
        components: &RuntimeComponentsBuilder,
        bag: &ConfigBag,
    ) -> Result<(), BoxError> {
        HttpClient::validate_base_client_config(&self.proxied, components, bag)
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.proxied.connector_metadata()
    }
}

impl HttpConnector for Connectors {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let scheme = request.uri().split_once("://").map(|(scheme, _)| scheme);
        if scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https")) {
            self.proxied.call(request)
        } else {
            self.direct.call(request)
        }
    }
}

impl AwsEnvironment {
    /// Reads the environment and profile files by the SDK's own rules, without a call. If a source
    /// of credentials is `expected`, those of any other sign nothing.
    pub async fn read(trust: &Trust, expected: Option<Source>, metrics: Arc<AwsMetrics>) -> Self {
        let direct = http_client(trust, &ProxyConfig::disabled());
        let client = SharedHttpClient::new(ProxyRoutedClient {
            proxied: http_client(trust, &ProxyConfig::from_env()),
            direct: direct.clone(),
        });
        // The SDK's own chain would also ask the instance metadata service, which hangs where there
        // is none.
        let named = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new())
            .region()
            .await;
        let home = named
            .as_ref()
            .and_then(|region| Region::parse(region.as_ref()));
        let region = named.unwrap_or(aws_config::Region::from_static(FALLBACK_REGION));

        let config = aws_config::defaults(BEHAVIOR())
            .http_client(client.clone())
            .region(region.clone())
            .no_credentials()
            .load()
            .await;
        let mut environment = Self {
            config: with_limits(&config),
            home,
        };
        let providers = ProviderConfig::without_region()
            .with_region(Some(region))
            .with_behavior_version(Some(BEHAVIOR()))
            .with_retry_config(RetryConfig::disabled())
            .with_timeout_config(timeouts())
            .with_http_client(client);
        // The sources that call AWS call STS, and an endpoint of the admin's own excludes both
        // flags.
        let (fips, dual_stack) = if environment.has_own_endpoint("STS") {
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
        let chain = PinnedChain::new(
            &providers,
            &providers.clone().with_http_client(direct),
            expected,
            metrics,
        );
        environment.config = environment
            .config
            .to_builder()
            .credentials_provider(SharedCredentialsProvider::new(chain))
            .build();
        environment
    }

    /// Takes a configuration instead of reading the environment, and replaces its retries and
    /// timeouts.
    #[must_use]
    pub fn from_config(config: &SdkConfig, home: Option<Region>) -> Self {
        Self {
            config: with_limits(config),
            home,
        }
    }

    /// Fetches the ambient credentials once, so that the log has their source, or that there are
    /// none, from the start and not only when the first Pod waits for them.
    pub async fn check_credentials(&self) {
        let Some(provider) = self.config.credentials_provider() else {
            return;
        };
        if let Err(error) = provider.provide_credentials().await {
            let error = credentials::explain(&error);
            tracing::warn!(%error, "no AWS credentials yet; docs/reference/aws-credentials.md lists what each source needs");
        }
    }

    /// Returns whether the environment names an endpoint for a service, by the variable or profile
    /// key for all services or for this one. Such an endpoint (a VPC endpoint, a test) excludes
    /// FIPS and dual-stack in the SDK's rules.
    #[must_use]
    pub fn has_own_endpoint(&self, service_id: &str) -> bool {
        let key = ServiceConfigKey::builder()
            .service_id(service_id)
            .env("AWS_ENDPOINT_URL")
            .profile("endpoint_url")
            .build();
        let own = key
            .ok()
            .and_then(|key| self.config.service_config()?.load_config(key));
        self.config.endpoint_url().is_some() || own.is_some()
    }
}

/// Disables the SDK's retries and sets the timeouts: each caller has a deadline and a backoff of
/// its own.
fn with_limits(config: &SdkConfig) -> SdkConfig {
    let identities = IdentityCache::lazy()
        .load_timeout(CREDENTIALS_TIMEOUT)
        .buffer_time(CREDENTIALS_BUFFER)
        .build();
    config
        .to_builder()
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts())
        .identity_cache(identities)
        .build()
}

fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(CONNECT_TIMEOUT)
        .read_timeout(READ_TIMEOUT)
        .operation_timeout(OPERATION_TIMEOUT)
        .build()
}

fn http_client(trust: &Trust, proxy: &ProxyConfig) -> SharedHttpClient {
    let (trust, proxy) = (trust.clone(), proxy.clone());
    // The SDK's builder of clients takes no proxy; its builder of connectors does.
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut builder = Connector::builder()
            .proxy_config(proxy.clone())
            .tls_provider(Provider::Rustls(CryptoMode::Ring));
        // The trust store was checked when it was read, and building fails for no other reason.
        if let Ok(context) = TlsContext::builder()
            .with_trust_store(trust.store())
            .build()
        {
            builder = builder.tls_context(context);
        }
        builder.set_connector_settings(settings.cloned());
        builder.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        builder.build()
    })
}
