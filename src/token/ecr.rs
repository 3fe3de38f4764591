//! Mints tokens through `aws-sdk-ecr` and `aws-sdk-ecrpublic`: one client per region and endpoint,
//! shared by all identities.

use std::sync::Arc;

use aws_config::identity::IdentityCache;
use aws_credential_types::provider::SharedCredentialsProvider;
use futures::{FutureExt as _, future::BoxFuture};
use jiff::{SignedDuration, Timestamp};
use moka::future::Cache;
use tokio::time::{Instant, timeout_at};

use super::{
    SessionCap, Token, TokenKey,
    cache::{Call, MINT_TIMEOUT, Mint, MintError},
    metrics::TokenMetrics,
    reason::reason,
    session::{Session, Sessions},
};
use crate::{
    aws::AwsEnvironment,
    identity::Identity,
    process::{clock::Clock, current::Current},
    registry::{Endpoint, Region, Service},
};

/// The most clients in the cache; a client is cheap to create again.
const MAX_CLIENTS: u64 = 256;

/// Mints tokens at ECR and ECR Public.
pub struct Ecr {
    environment: AwsEnvironment,
    has_own_endpoint: bool,
    has_own_public_endpoint: bool,
    sessions: Sessions,
    session_cap: Current<SessionCap>,
    clients: Cache<(Region, Endpoint), Client>,
    clock: Arc<dyn Clock>,
    metrics: Arc<TokenMetrics>,
}

/// A client of one of the two services.
#[derive(Clone)]
enum Client {
    Private(aws_sdk_ecr::Client),
    Public(aws_sdk_ecrpublic::Client),
}

/// The part that the replies of both services share.
struct Reply {
    token: Option<String>,
    expires_at: Option<Timestamp>,
}

impl Ecr {
    /// Mints with the ambient credentials of the environment, and with what they may assume.
    #[must_use]
    pub fn new(
        environment: AwsEnvironment,
        session_cap: Current<SessionCap>,
        clock: Arc<dyn Clock>,
        metrics: Arc<TokenMetrics>,
    ) -> Self {
        Self {
            has_own_endpoint: environment.has_own_endpoint("ECR"),
            has_own_public_endpoint: environment.has_own_endpoint("ECR PUBLIC"),
            sessions: Sessions::new(environment.clone()),
            environment,
            session_cap,
            clients: Cache::builder().max_capacity(MAX_CLIENTS).build(),
            clock,
            metrics,
        }
    }

    async fn client(&self, key: &TokenKey) -> Client {
        let endpoint = (key.region.clone(), key.endpoint);
        self.clients
            .get_with_by_ref(&endpoint, async { self.make_client(&endpoint) })
            .await
    }

    fn make_client(&self, (region, endpoint): &(Region, Endpoint)) -> Client {
        let region = aws_config::Region::new(region.as_str().to_owned());
        let config = &self.environment.config;
        match endpoint.service {
            Service::Private => {
                let mut builder = aws_sdk_ecr::config::Builder::from(config).region(region);
                // An endpoint of the admin's own (a VPC endpoint, a test) excludes both flags in
                // the SDK's rules.
                if self.has_own_endpoint {
                    builder = builder.use_fips(false).use_dual_stack(false);
                } else {
                    if endpoint.fips {
                        builder = builder.use_fips(true);
                    }
                    if endpoint.dual_stack {
                        builder = builder.use_dual_stack(true);
                    }
                }
                Client::Private(aws_sdk_ecr::Client::from_conf(builder.build()))
            }
            Service::Public => {
                let mut builder = aws_sdk_ecrpublic::config::Builder::from(config).region(region);
                if self.has_own_public_endpoint {
                    builder = builder.use_fips(false).use_dual_stack(false);
                }
                Client::Public(aws_sdk_ecrpublic::Client::from_conf(builder.build()))
            }
        }
    }

    async fn mint_token(&self, key: &TokenKey) -> Result<Token, MintError> {
        let ends = Instant::now() + MINT_TIMEOUT;
        let session = match &key.identity {
            Identity::Ambient => None,
            Identity::Role(role) => {
                let call = Call::AssumeRole(role.arn.clone());
                let assumed = self.sessions.assume(role, key, self.clock.now());
                let assumed = within(ends, call, assumed).await;
                self.count("assume_role", assumed.as_ref().err());
                Some(assumed?)
            }
        };
        let ends_by = session.as_ref().map(|session| session.expires_at);
        let (call, operation) = match key.endpoint.service {
            Service::Private => (Call::GetAuthorizationToken, "get_authorization_token"),
            Service::Public => (
                Call::GetPublicAuthorizationToken,
                "get_public_authorization_token",
            ),
        };
        let client = self.client(key).await;
        let reply = within(ends, call.clone(), client.request(call.clone(), session)).await;
        let now = self.clock.now();
        let token = reply.and_then(|reply| {
            let cap = self.session_cap.get().ends_by(ends_by, now);
            Token::decode(reply.token.as_deref(), reply.expires_at, cap, now)
                .map_err(|error| MintError::Unusable(call, error))
        });
        self.count(operation, token.as_ref().err());
        token
    }

    fn count(&self, operation: &'static str, error: Option<&MintError>) {
        let outcome = error.map_or("ok", MintError::as_str);
        self.metrics.aws_call(operation, outcome);
    }
}

impl Client {
    /// Requests a token, as a role's session if there is one.
    async fn request(&self, name: Call, session: Option<Session>) -> Result<Reply, MintError> {
        // A session is used for this one call, so the client's identity cache must not keep it.
        let credentials =
            session.map(|session| SharedCredentialsProvider::new(session.credentials));
        match self {
            Self::Private(client) => {
                let mut call = client.get_authorization_token().customize();
                if let Some(credentials) = credentials {
                    call = call.config_override(
                        aws_sdk_ecr::config::Config::builder()
                            .credentials_provider(credentials)
                            .identity_cache(IdentityCache::no_cache()),
                    );
                }
                let reply = call.send().await.map_err(|error| reason(name, &error))?;
                let data = reply.authorization_data().first();
                Ok(Reply {
                    token: data
                        .and_then(|data| data.authorization_token())
                        .map(str::to_owned),
                    expires_at: data.and_then(|data| timestamp(data.expires_at()?.secs())),
                })
            }
            Self::Public(client) => {
                let mut call = client.get_authorization_token().customize();
                if let Some(credentials) = credentials {
                    call = call.config_override(
                        aws_sdk_ecrpublic::config::Config::builder()
                            .credentials_provider(credentials)
                            .identity_cache(IdentityCache::no_cache()),
                    );
                }
                let reply = call.send().await.map_err(|error| reason(name, &error))?;
                let data = reply.authorization_data();
                Ok(Reply {
                    token: data
                        .and_then(|data| data.authorization_token())
                        .map(str::to_owned),
                    expires_at: data.and_then(|data| timestamp(data.expires_at()?.secs())),
                })
            }
        }
    }
}

/// Awaits one call of a mint until the end of the whole mint; past that, the error names the call.
async fn within<T>(
    ends: Instant,
    call: Call,
    step: impl Future<Output = Result<T, MintError>>,
) -> Result<T, MintError> {
    let answered = timeout_at(ends, step).await;
    answered.unwrap_or(Err(MintError::Timeout(call)))
}

fn timestamp(seconds: i64) -> Option<Timestamp> {
    Timestamp::from_second(seconds).ok()
}

impl Mint for Ecr {
    fn mint<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Token, MintError>> {
        async move {
            let result = self.mint_token(key).await;
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

impl SessionCap {
    /// Returns the latest expiry of a token, given the end of its role's session.
    fn ends_by(self, session: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Session => session,
            Self::Off => None,
            Self::After(seconds) => {
                let cap = now
                    .checked_add(SignedDuration::from_secs(seconds.into()))
                    .ok();
                cap.into_iter().chain(session).min()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use aws_config::{BehaviorVersion, SdkConfig};
    use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
    use aws_smithy_http_client::test_util::capture_request;
    use aws_smithy_types::body::SdkBody;

    use super::*;
    use crate::{
        process::clock::SystemClock,
        registry::Registry,
        token::{MalformedReply, cache::AwsReply},
    };

    fn key(host: &str) -> TokenKey {
        let registry: Registry = format!("123456789012.{host}").parse().expect("a registry");
        TokenKey::new(Identity::Ambient, &registry)
    }

    /// Mints once over a connector that captures the request and gives this reply; returns the
    /// request and the result.
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
        let environment = AwsEnvironment::from_config(&config.build(), None);
        let ecr = Ecr::new(
            environment,
            Current::new(SessionCap::Session),
            Arc::new(SystemClock),
            Arc::default(),
        );
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
        let call = || Call::GetAuthorizationToken;
        let key = key("dkr.ecr.eu-west-1.amazonaws.com");
        for (status, reply, expected) in [
            (
                200,
                "{}",
                MintError::Unusable(call(), MalformedReply::Missing),
            ),
            (
                200,
                r#"{"authorizationData":[]}"#,
                MintError::Unusable(call(), MalformedReply::Missing),
            ),
            (
                200,
                r#"{"authorizationData":[{"authorizationToken":"QVdTOnB3"}]}"#,
                MintError::Unusable(call(), MalformedReply::NoExpiry),
            ),
            (200, "<html>", MintError::NotAws(call())),
            (
                400,
                r#"{"__type":"ThrottlingException"}"#,
                MintError::Throttled(call(), "ThrottlingException".into()),
            ),
            (
                400,
                r#"{"__type":"AccessDeniedException","message":"not authorized"}"#,
                MintError::Refused(
                    call(),
                    AwsReply::new("AccessDeniedException", "not authorized"),
                ),
            ),
            (
                500,
                r#"{"__type":"ServerException"}"#,
                MintError::Server(call(), "ServerException".into()),
            ),
            (502, "<html>bad gateway</html>", MintError::NotAws(call())),
        ] {
            let (_, minted) = ask(&key, None, status, reply).await;
            assert_eq!(minted.map(|_| ()), Err(expected), "{status} {reply}");
        }
    }
}
