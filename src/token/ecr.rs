//! Mints tokens through `aws-sdk-ecr` and `aws-sdk-ecrpublic`: one client per region and endpoint,
//! shared by all identities.

use std::sync::Arc;

use aws_config::identity::IdentityCache;
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use futures::{FutureExt as _, future::BoxFuture};
use jiff::{SignedDuration, Timestamp};
use moka::future::Cache;
use tokio::time::{Instant, timeout_at};

use super::{
    MIN_LEFT, SessionCap, Token, TokenKey,
    cache::{Call, MINT_TIMEOUT, Mint, MintError, Operation},
    metrics::TokenMetrics,
    reason::{Signed, caught, no_credentials, reason},
    session::{Session, Sessions},
};
use crate::{
    aws::{AwsEnvironment, Signer, endpoints::Endpoints, fault::Fault, origin::Origin},
    identity::{Identity, Role},
    process::{clock::Clock, current::Current},
    registry::{Endpoint, Region, Service},
};

/// The most clients in the cache; a client is cheap to create again.
const MAX_CLIENTS: u64 = 256;

/// Mints tokens at ECR and ECR Public.
pub struct Ecr {
    environment: AwsEnvironment,
    own_endpoint: Option<String>,
    own_public_endpoint: Option<String>,
    sessions: Sessions,
    session_cap: Current<SessionCap>,
    endpoints: Current<Endpoints>,
    clients: Cache<ClientKey, Client>,
    clock: Arc<dyn Clock>,
    metrics: Arc<TokenMetrics>,
}

/// The key of a client: the region, the endpoint, and its URL if the configuration has one.
type ClientKey = (Region, Endpoint, Option<String>);

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
    /// Mints with the ambient credentials of the environment or those of profiles, and with what
    /// they may assume.
    #[must_use]
    pub fn new(
        environment: AwsEnvironment,
        session_cap: Current<SessionCap>,
        endpoints: Current<Endpoints>,
        clock: Arc<dyn Clock>,
        metrics: Arc<TokenMetrics>,
    ) -> Self {
        Self {
            own_endpoint: environment.own_endpoint("ECR"),
            own_public_endpoint: environment.own_endpoint("ECR PUBLIC"),
            sessions: Sessions::new(environment.clone()),
            environment,
            session_cap,
            endpoints,
            clients: Cache::builder().max_capacity(MAX_CLIENTS).build(),
            clock,
            metrics,
        }
    }

    async fn client(&self, key: &TokenKey, url: Option<String>) -> Client {
        let key = (key.region.clone(), key.endpoint, url);
        self.clients
            .get_with_by_ref(&key, async { self.make_client(&key) })
            .await
    }

    fn make_client(&self, (region, endpoint, url): &ClientKey) -> Client {
        let region = aws_config::Region::new(region.as_str().to_owned());
        let config = &self.environment.config;
        match endpoint.service {
            Service::Private => {
                let mut builder = aws_sdk_ecr::config::Builder::from(config).region(region);
                if let Some(url) = url {
                    builder = builder.endpoint_url(url);
                }
                // An endpoint of the admin's own (a VPC endpoint, a test) excludes both flags in
                // the SDK's rules.
                if url.is_some() || self.own_endpoint.is_some() {
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
                if self.own_public_endpoint.is_some() {
                    builder = builder.use_fips(false).use_dual_stack(false);
                }
                Client::Public(aws_sdk_ecrpublic::Client::from_conf(builder.build()))
            }
        }
    }

    async fn mint_token(&self, key: &TokenKey) -> Result<Token, MintError> {
        let ends = Instant::now() + MINT_TIMEOUT;
        let endpoints = self.endpoints.get();
        let (operation, url, own, counted_as) = match key.endpoint.service {
            Service::Private => (
                Operation::GetAuthorizationToken,
                endpoints.get(&key.region).and_then(|urls| urls.ecr.clone()),
                &self.own_endpoint,
                "get_authorization_token",
            ),
            Service::Public => (
                Operation::GetPublicAuthorizationToken,
                None,
                &self.own_public_endpoint,
                "get_public_authorization_token",
            ),
        };
        let call = Call::at(operation, &key.region, url.as_deref().or(own.as_deref()));
        let base = within(ends, call.clone(), self.base(key)).await;
        let session = match &key.identity {
            Identity::Role(role) => {
                let assumed = match base {
                    Ok(base) => self.assume(role, key, &base, &endpoints, ends).await,
                    Err(error) => Err(error),
                };
                self.count("assume_role", assumed.as_ref().err());
                Ok(assumed?)
            }
            Identity::Ambient | Identity::Profile(_) => base.map(Session::from),
        };
        let token = match session {
            Ok(session) => self.request(key, call, url, session, ends).await,
            Err(error) => Err(error),
        };
        self.count(counted_as, token.as_ref().err());
        token
    }

    /// Returns the credentials that sign the first call.
    async fn base(&self, key: &TokenKey) -> Result<Signer, MintError> {
        let signer = self.environment.signer(key.identity.profile()).await;
        let signer = signer.map_err(|why| no_credentials(&why))?;
        let registry = key.region.partition();
        match signer.partition {
            Some(known) if known.partition != registry => {
                Err(MintError::OtherPartition(signer.origin, registry, known))
            }
            _ => Ok(signer),
        }
    }

    async fn assume(
        &self,
        role: &Role,
        key: &TokenKey,
        base: &Signer,
        endpoints: &Endpoints,
        ends: Instant,
    ) -> Result<Session, MintError> {
        let call = self.sessions.call(role, key, endpoints);
        let signed = self.signed(key, &base.origin);
        let now = self.clock.now();
        let assumed = self
            .sessions
            .assume(role, key, (base, &signed), endpoints, now);
        let assumed = within(ends, call, assumed).await;
        self.report_rejected(key, &base.credentials, assumed.as_ref().err());
        assumed
    }

    /// Requests the token in a session, which may cap its lifetime.
    async fn request(
        &self,
        key: &TokenKey,
        call: Call,
        url: Option<String>,
        session: Session,
        ends: Instant,
    ) -> Result<Token, MintError> {
        let is_ambient = key.identity == Identity::Ambient;
        let cap = |now| {
            let session_cap = self.session_cap.get();
            session_cap.ends_by(session.expires_at, is_ambient, now)
        };
        let now = self.clock.now();
        if let Some(end) = cap(now).filter(|end| end.duration_since(now) < MIN_LEFT) {
            return Err(MintError::SessionTooShort(call, session.origin, end));
        }
        let client = self.client(key, url).await;
        let signed = self.signed(key, &session.origin);
        let request = client.request(call.clone(), &signed, session.credentials.clone());
        let request = async { caught(call.clone(), signed.by, request).await? };
        let reply = within(ends, call.clone(), request).await;
        if !matches!(key.identity, Identity::Role(_)) {
            self.report_rejected(key, &session.credentials, reply.as_ref().err());
        }
        let reply = reply?;
        let now = self.clock.now();
        Token::decode(reply.token.as_deref(), reply.expires_at, cap(now), now)
            .map_err(|error| MintError::Unusable(call, error))
    }

    /// Reports credentials that AWS rejected, so that the next mint may have others.
    fn report_rejected(
        &self,
        key: &TokenKey,
        signed_with: &Credentials,
        error: Option<&MintError>,
    ) {
        if let Some(MintError::Rejected(.., rejection)) = error
            && rejection.fault != Fault::Clock
        {
            let profile = key.identity.profile();
            self.environment.reject(profile, signed_with);
        }
    }

    /// Returns whose credentials sign a call. If AWS doesn't know the keys, the region of the
    /// environment may show why.
    fn signed<'a>(&self, key: &TokenKey, by: &'a Origin) -> Signed<'a> {
        let registry = key.region.partition().as_str();
        let home = self.environment.home.as_ref();
        let other = home.filter(|home| home.partition().as_str() != registry);
        let hint = other.map(|home| {
            let partition = home.partition().as_str();
            format!(" (the environment's region {home} is in partition {partition}, the registry in {registry})")
        });
        Signed {
            by,
            hint: hint.unwrap_or_default(),
        }
    }

    fn count(&self, operation: &'static str, error: Option<&MintError>) {
        let outcome = error.map_or("ok", MintError::as_str);
        self.metrics.aws_call(operation, outcome);
    }
}

impl Client {
    /// Requests a token, signed with these credentials.
    async fn request(
        &self,
        call: Call,
        signed: &Signed<'_>,
        credentials: Credentials,
    ) -> Result<Reply, MintError> {
        let credentials = SharedCredentialsProvider::new(credentials);
        match self {
            Self::Private(client) => {
                let request = client
                    .get_authorization_token()
                    .customize()
                    .config_override(
                        aws_sdk_ecr::config::Config::builder()
                            .credentials_provider(credentials)
                            .identity_cache(IdentityCache::no_cache()),
                    );
                let reply = request.send().await;
                let reply = reply.map_err(|error| reason(call, signed, &error))?;
                let data = reply.authorization_data().first();
                Ok(Reply {
                    token: data
                        .and_then(|data| data.authorization_token())
                        .map(str::to_owned),
                    expires_at: data.and_then(|data| timestamp(data.expires_at()?.secs())),
                })
            }
            Self::Public(client) => {
                let request = client
                    .get_authorization_token()
                    .customize()
                    .config_override(
                        aws_sdk_ecrpublic::config::Config::builder()
                            .credentials_provider(credentials)
                            .identity_cache(IdentityCache::no_cache()),
                    );
                let reply = request.send().await;
                let reply = reply.map_err(|error| reason(call, signed, &error))?;
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

impl From<Signer> for Session {
    fn from(signer: Signer) -> Self {
        Self {
            expires_at: signer
                .credentials
                .expiry()
                .and_then(|at| at.try_into().ok()),
            credentials: signer.credentials,
            origin: signer.origin,
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
    /// Returns the latest expiry of a token, given the end of the session that mints it.
    fn ends_by(
        self,
        session: Option<Timestamp>,
        is_ambient: bool,
        now: Timestamp,
    ) -> Option<Timestamp> {
        let assumed = session.filter(|_| !is_ambient);
        match self {
            Self::Auto => assumed,
            Self::Session => session,
            Self::Off => None,
            Self::After(seconds) => {
                let cap = now
                    .checked_add(SignedDuration::from_secs(seconds.into()))
                    .ok();
                cap.into_iter().chain(assumed).min()
            }
        }
    }
}

#[cfg(test)]
mod tests;
