//! What the AWS SDK is told about this process's environment: region, endpoints, the way through the network, credentials.
//!
//! All clients share one HTTP client. It goes through the proxy that `HTTPS_PROXY` and `NO_PROXY` name, and trusts the
//! system's roots or the one bundle that the admin gave. What is asked in the clear is asked directly: the endpoints that
//! hand out credentials on the node itself are, and a proxy would read them.

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

/// Which release of the SDK's defaults we were tested with.
const BEHAVIOR: fn() -> BehaviorVersion = BehaviorVersion::v2026_01_12;
/// To open a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// From a request's last byte to the answer's first.
const READ_TIMEOUT: Duration = Duration::from_secs(4);
/// A whole call with its credentials.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(8);
/// To find credentials: more than the chain's own limit, which says what it waited for.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(6);
/// Credentials with less left than this are fetched anew before they are used.
const CREDENTIALS_BUFFER: Duration = Duration::from_mins(5);
/// Where credential sources that need a region ask if the environment name none.
const FALLBACK_REGION: &str = "us-east-1";

/// The environment, read once.
#[derive(Debug, Clone)]
pub struct AwsEnvironment {
    /// What every client is made of: no retry, our own timeouts, the ambient credentials.
    pub config: SdkConfig,
    /// The region that the environment name, if it is one of a known form.
    pub home: Option<Region>,
}

/// Why the environment can't be used.
#[derive(Debug, Error)]
pub enum AwsEnvironmentError {
    /// The bundle couldn't be read.
    #[error("reading the CA bundle {path}: check the path and its permissions")]
    ReadBundle {
        /// The file.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The bundle holds something else.
    #[error(
        "the CA bundle {path} holds no usable certificate: {message}; expected PEM, one CERTIFICATE block each"
    )]
    Bundle {
        /// The file.
        path: String,
        /// What is wrong.
        message: String,
    },
}

/// The certificate authorities that AWS's endpoints are trusted by.
#[derive(Debug, Clone, Default)]
pub struct Trust(Option<Arc<[u8]>>);

impl Trust {
    /// Those of a PEM file alone (a network whose proxy breaks TLS open, a private endpoint), or the system's.
    pub fn of(bundle: Option<&Path>) -> Result<Self, AwsEnvironmentError> {
        let Some(path) = bundle else {
            return Ok(Self(None));
        };
        let name = path.display().to_string();
        let pem = fs::read(path).map_err(|source| AwsEnvironmentError::ReadBundle {
            path: name.clone(),
            source,
        })?;
        let wrong = |message: String| AwsEnvironmentError::Bundle {
            path: name.clone(),
            message,
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
            roots
                .add(certificate)
                .map_err(|error| wrong(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(wrong("it is empty".to_owned()));
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

/// Two client through the network. What is encrypted may go through a proxy. What is not goes directly: that is the
/// endpoints on the node itself (a profile can lead to them as well), and a proxy would see the credentials that they give.
#[derive(Debug)]
struct ProxyRoutedClient {
    proxied: SharedHttpClient,
    direct: SharedHttpClient,
}

/// The same for one set of timeouts.
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
    /// Reads the environment and profile files by the SDK's own rules. No call leaves yet. If a source of credentials is
    /// `expected`, those of any other sign nothing.
    pub async fn read(trust: &Trust, expected: Option<Source>, metrics: Arc<AwsMetrics>) -> Self {
        let direct = http_client(trust, &ProxyConfig::disabled());
        let client = SharedHttpClient::new(ProxyRoutedClient {
            proxied: http_client(trust, &ProxyConfig::from_env()),
            direct: direct.clone(),
        });
        // Without the instance metadata service, which the SDK's own chain would ask and which hangs where it is not.
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
            config: tuned(&config),
            home,
        };
        let providers = ProviderConfig::without_region()
            .with_region(Some(region))
            .with_behavior_version(Some(BEHAVIOR()))
            .with_retry_config(RetryConfig::disabled())
            .with_timeout_config(timeouts())
            .with_http_client(client);
        // The sources that need AWS ask STS, and an endpoint of the admin's own excludes both flags.
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

    /// Given settings instead of read ones. Retries and timeouts are ours, whatever they say.
    #[must_use]
    pub fn given(config: &SdkConfig, home: Option<Region>) -> Self {
        Self {
            config: tuned(config),
            home,
        }
    }

    /// Asks for the ambient credentials once, so that the log tells at the start where they come from, or that there
    /// are none, and not only when the first Pod waits for them.
    pub async fn look_for_credentials(&self) {
        let Some(provider) = self.config.credentials_provider() else {
            return;
        };
        if let Err(error) = provider.provide_credentials().await {
            let error = credentials::explain(&error);
            tracing::warn!(%error, "no AWS credentials yet; docs/reference/aws-credentials.md lists what each source needs");
        }
    }

    /// Whether the environment name an endpoint for a service, by the variable or profile key for all services or for
    /// this one. Such an endpoint (a VPC endpoint, a test) excludes FIPS and dual-stack in the SDK's rules.
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

/// No hidden retry and no unbounded wait: who calls has a deadline and a pause of its own.
fn tuned(config: &SdkConfig) -> SdkConfig {
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
        // The trust store was checked when it was read, and nothing else can be wrong with it.
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
