//! Minting through `aws-sdk-ecr`: one client per identity, region and endpoint, one HTTP connector for all.

use std::{error::Error as StdError, sync::Arc, time::Duration};

use aws_config::{
    BehaviorVersion, Region, SdkConfig, environment::EnvironmentVariableRegionProvider,
    identity::IdentityCache, meta::region::RegionProviderChain, profile::ProfileFileRegionProvider,
    retry::RetryConfig, timeout::TimeoutConfig,
};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ecr::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
};
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use aws_types::service_config::ServiceConfigKey;
use futures::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;
use moka::future::Cache;

use super::{
    Token, TokenKey,
    cache::{Mint, MintError},
};
use crate::{clock::Clock, identity::Identity, metrics::Metrics};

/// To open a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// From the request's last byte to the answer's first.
const READ_TIMEOUT: Duration = Duration::from_secs(4);
/// A whole call with its credentials: less than the cache allows a flight.
const OPERATION_TIMEOUT: Duration = Duration::from_secs(8);
/// To find credentials.
const CREDENTIALS_TIMEOUT: Duration = Duration::from_secs(5);
/// Credentials with less left than this are fetched anew before they are used.
const CREDENTIALS_BUFFER: Duration = Duration::from_mins(5);
/// Clients kept; they are cheap to make again.
const MAX_CLIENTS: u64 = 256;
/// Where credential providers that need a region ask if the surroundings name none.
const FALLBACK_REGION: &str = "us-east-1";
/// The codes by which AWS asks to slow down.
const THROTTLES: [&str; 5] = [
    "ThrottlingException",
    "Throttling",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "SlowDown",
];

/// ECR itself.
pub struct Ecr {
    config: SdkConfig,
    has_own_endpoint: bool,
    clients: Cache<TokenKey, Client>,
    clock: Arc<dyn Clock>,
    metrics: Arc<Metrics>,
}

impl Ecr {
    /// Reads the surroundings (environment, profile files) with the SDK's own rules. No call leaves yet.
    pub async fn from_surroundings(clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        let tls = Provider::Rustls(CryptoMode::Ring);
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls)
            .build_https();
        // Without the instance metadata service, which the SDK's own chain would ask and which hangs where it is not.
        let region = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::new())
            .or_else(Region::from_static(FALLBACK_REGION));
        let loader = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .http_client(http)
            .region(region);
        Self::new(&loader.load().await, clock, metrics)
    }

    /// The same with settings that were read already. Retries and timeouts are ours, whatever they say.
    #[must_use]
    pub fn new(config: &SdkConfig, clock: Arc<dyn Clock>, metrics: Arc<Metrics>) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .operation_timeout(OPERATION_TIMEOUT)
            .build();
        let identities = IdentityCache::lazy()
            .load_timeout(CREDENTIALS_TIMEOUT)
            .buffer_time(CREDENTIALS_BUFFER)
            .build();
        let config = config
            .to_builder()
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .identity_cache(identities)
            .build();
        Self {
            has_own_endpoint: has_own_endpoint(&config),
            config,
            clients: Cache::builder().max_capacity(MAX_CLIENTS).build(),
            clock,
            metrics,
        }
    }

    async fn client(&self, key: &TokenKey) -> Client {
        self.clients
            .get_with_by_ref(key, async { self.make_client(key) })
            .await
    }

    fn make_client(&self, key: &TokenKey) -> Client {
        match key.identity {
            Identity::Ambient => {}
        }
        let region = Region::new(key.region.as_str().to_owned());
        let mut builder = aws_sdk_ecr::config::Builder::from(&self.config).region(region);
        // An endpoint of the admin's own (a VPC endpoint, a test) excludes both flags in the SDK's rules.
        if !self.has_own_endpoint {
            if key.endpoint.fips {
                builder = builder.use_fips(true);
            }
            if key.endpoint.dual_stack {
                builder = builder.use_dual_stack(true);
            }
        }
        Client::from_conf(builder.build())
    }

    async fn ask(&self, key: &TokenKey) -> Result<Token, MintError> {
        let reply = self
            .client(key)
            .await
            .get_authorization_token()
            .send()
            .await
            .map_err(|error| reason(&error))?;
        let data = reply.authorization_data().first();
        let expires_at = data
            .and_then(|data| data.expires_at())
            .and_then(|at| Timestamp::from_second(at.secs()).ok());
        let token = data.and_then(|data| data.authorization_token());
        Token::decode(token, expires_at, self.clock.now()).map_err(MintError::Malformed)
    }
}

impl Mint for Ecr {
    fn mint<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Token, MintError>> {
        async move {
            let result = self.ask(key).await;
            self.metrics
                .aws_call(result.as_ref().map_or_else(MintError::as_str, |_| "ok"));
            let (region, identity) = (&key.region, &key.identity);
            match &result {
                Ok(token) => {
                    let expires_at = token.lifetime().expires_at;
                    tracing::info!(%region, %identity, %expires_at, "minted an ECR token");
                }
                Err(error) => {
                    tracing::warn!(%region, %identity, %error, "minting an ECR token failed");
                }
            }
            result
        }
        .boxed()
    }
}

/// Whether the surroundings name an endpoint for ECR, by the variable or profile key for all services or for this one.
fn has_own_endpoint(config: &SdkConfig) -> bool {
    let key = ServiceConfigKey::builder()
        .service_id("ECR")
        .env("AWS_ENDPOINT_URL")
        .profile("endpoint_url")
        .build();
    let own = key
        .ok()
        .and_then(|key| config.service_config()?.load_config(key));
    config.endpoint_url().is_some() || own.is_some()
}

/// What went wrong, in our words: the SDK's own debug text may hold a whole reply.
fn reason<E: ProvideErrorMetadata + StdError + 'static, R>(error: &SdkError<E, R>) -> MintError {
    match error {
        SdkError::ServiceError(service) => {
            let code = service.err().code().unwrap_or("no code").to_owned();
            let message = service.err().message().unwrap_or_default();
            if THROTTLES.contains(&code.as_str()) {
                MintError::Throttled(code)
            } else if code == "ServerException"
                || code.starts_with("Internal")
                || code.starts_with("ServiceUnavailable")
            {
                MintError::Server(code)
            } else if code == "no code" {
                MintError::NotEcr
            } else {
                MintError::Refused(format!("{code} {}", short(message)).trim_end().to_owned())
            }
        }
        SdkError::TimeoutError(_) => MintError::Timeout,
        SdkError::DispatchFailure(failure) => {
            let source: &(dyn StdError + 'static) = failure
                .as_connector_error()
                .map_or(error_as_dyn(), |error| error);
            if let Some(credentials) = find::<CredentialsError>(source) {
                MintError::Credentials(credentials_reason(credentials))
            } else if failure.is_timeout() {
                MintError::Timeout
            } else {
                MintError::Unreachable(root(source))
            }
        }
        SdkError::ConstructionFailure(failure) => {
            MintError::Request(short(&format!("{failure:?}")))
        }
        // Among them an answer that can't be read at all.
        _ => MintError::NotEcr,
    }
}

/// Stands in where the SDK gives no source.
fn error_as_dyn() -> &'static (dyn StdError + 'static) {
    &std::fmt::Error
}

fn credentials_reason(error: &CredentialsError) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", root(source)),
        None => error.to_string(),
    }
}

fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    std::iter::successors(Some(error), |&error| error.source())
        .find_map(|error| error.downcast_ref())
}

/// The last error of a chain: what the system said.
fn root(error: &(dyn StdError + 'static)) -> String {
    let last = std::iter::successors(Some(error), |&error| error.source()).last();
    short(&last.unwrap_or(error).to_string())
}

/// At most 200 characters, on one line.
fn short(text: &str) -> String {
    text.chars()
        .take(200)
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use aws_config::SdkConfig;
    use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
    use aws_smithy_http_client::test_util::capture_request;
    use aws_smithy_types::body::SdkBody;

    use super::*;
    use crate::{clock::SystemClock, registry::Registry, token::MalformedReply};

    fn key(host: &str) -> TokenKey {
        let registry: Registry = format!("123456789012.{host}").parse().expect("a registry");
        TokenKey::new(Identity::Ambient, &registry)
    }

    /// Mints once over a connector that keeps the request and gives this reply; what left, and what came of it.
    async fn ask(
        key: &TokenKey,
        endpoint: Option<&str>,
        status: u16,
        reply: &'static str,
    ) -> (
        aws_smithy_runtime_api::http::Request,
        Result<Token, MintError>,
    ) {
        let reply = http::Response::builder()
            .status(status)
            .body(SdkBody::from(reply))
            .expect("a reply");
        let (connector, captured) = capture_request(Some(reply));
        let mut config = SdkConfig::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .credentials_provider(SharedCredentialsProvider::new(Credentials::for_tests()))
            .sleep_impl(aws_smithy_async::rt::sleep::SharedAsyncSleep::new(
                aws_smithy_async::rt::sleep::TokioSleep::new(),
            ))
            .http_client(connector);
        config.set_endpoint_url(endpoint.map(str::to_owned));
        let ecr = Ecr::new(&config.build(), Arc::new(SystemClock), Arc::default());
        let minted = ecr.mint(key).await;
        (captured.expect_request(), minted)
    }

    #[tokio::test]
    async fn each_registry_is_asked_at_the_endpoint_of_its_region_and_partition() {
        for (host, uri, region) in [
            (
                "dkr.ecr.eu-west-1.amazonaws.com",
                "https://api.ecr.eu-west-1.amazonaws.com/",
                "eu-west-1",
            ),
            (
                "dkr.ecr-fips.us-east-1.amazonaws.com",
                "https://api.ecr-fips.us-east-1.amazonaws.com/",
                "us-east-1",
            ),
            (
                "dkr-ecr.us-west-2.on.aws",
                "https://ecr.us-west-2.api.aws/",
                "us-west-2",
            ),
            (
                "dkr-ecr-fips.us-west-2.on.aws",
                "https://ecr-fips.us-west-2.api.aws/",
                "us-west-2",
            ),
            (
                "dkr.ecr.us-gov-west-1.amazonaws.com",
                "https://api.ecr.us-gov-west-1.amazonaws.com/",
                "us-gov-west-1",
            ),
            (
                "dkr.ecr-fips.us-gov-west-1.amazonaws.com",
                "https://api.ecr-fips.us-gov-west-1.amazonaws.com/",
                "us-gov-west-1",
            ),
            (
                "dkr.ecr.cn-north-1.amazonaws.com.cn",
                "https://api.ecr.cn-north-1.amazonaws.com.cn/",
                "cn-north-1",
            ),
            (
                "dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
                "https://ecr.cn-north-1.api.amazonwebservices.com.cn/",
                "cn-north-1",
            ),
            (
                "dkr.ecr.eusc-de-east-1.amazonaws.eu",
                "https://api.ecr.eusc-de-east-1.amazonaws.eu/",
                "eusc-de-east-1",
            ),
            (
                "dkr.ecr.us-iso-east-1.c2s.ic.gov",
                "https://api.ecr.us-iso-east-1.c2s.ic.gov/",
                "us-iso-east-1",
            ),
            (
                "dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
                "https://api.ecr.us-isob-east-1.sc2s.sgov.gov/",
                "us-isob-east-1",
            ),
            (
                "dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
                "https://api.ecr.eu-isoe-west-1.cloud.adc-e.uk/",
                "eu-isoe-west-1",
            ),
            (
                "dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
                "https://api.ecr.us-isof-south-1.csp.hci.ic.gov/",
                "us-isof-south-1",
            ),
        ] {
            let (request, _) = ask(&key(host), None, 200, "{}").await;
            assert_eq!(request.uri(), uri, "{host}");
            let signature = request.headers().get("authorization").expect("signed");
            assert!(
                signature.contains(&format!("/{region}/ecr/aws4_request")),
                "{host}: {signature}"
            );
            let target = request.headers().get("x-amz-target");
            assert_eq!(
                target,
                Some("AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken")
            );
        }
    }

    #[tokio::test]
    async fn an_endpoint_of_the_admins_own_replaces_all_others_with_their_flags() {
        for host in [
            "dkr.ecr.eu-west-1.amazonaws.com",
            "dkr-ecr-fips.us-west-2.on.aws",
        ] {
            let (request, _) = ask(&key(host), Some("https://vpce-1.example"), 200, "{}").await;
            assert_eq!(request.uri(), "https://vpce-1.example/", "{host}");
        }
    }

    #[tokio::test]
    async fn replies_of_every_kind_have_their_own_error() {
        let key = key("dkr.ecr.eu-west-1.amazonaws.com");
        for (status, reply, expected) in [
            (200, "{}", MintError::Malformed(MalformedReply::Missing)),
            (
                200,
                r#"{"authorizationData":[]}"#,
                MintError::Malformed(MalformedReply::Missing),
            ),
            (
                200,
                r#"{"authorizationData":[{"authorizationToken":"QVdTOnB3"}]}"#,
                MintError::Malformed(MalformedReply::NoExpiry),
            ),
            (200, "<html>", MintError::NotEcr),
            (
                400,
                r#"{"__type":"ThrottlingException"}"#,
                MintError::Throttled("ThrottlingException".into()),
            ),
            (
                400,
                r#"{"__type":"AccessDeniedException","message":"not authorized"}"#,
                MintError::Refused("AccessDeniedException not authorized".into()),
            ),
            (
                500,
                r#"{"__type":"ServerException"}"#,
                MintError::Server("ServerException".into()),
            ),
            (502, "<html>bad gateway</html>", MintError::NotEcr),
        ] {
            let (_, minted) = ask(&key, None, status, reply).await;
            assert_eq!(minted.map(|_| ()), Err(expected), "{status} {reply}");
        }
    }
}
