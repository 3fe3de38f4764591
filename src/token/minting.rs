//! One mint: the calls to STS and ECR that a token needs, and what their replies must hold.

use std::sync::Arc;

use aws_credential_types::Credentials;
use jiff::{SignedDuration, Timestamp};
use secrecy::SecretString;
use tokio::time::{Instant, timeout_at};

use super::{
    MIN_LEFT, SessionCap, Token, TokenKey,
    client::Client,
    clients::Clients,
    error::{Call, MintError, Operation},
    metrics::TokenMetrics,
    reason::{Signed, caught, no_credentials, no_such_host},
    session::{Session, Sessions},
};
use crate::{
    aws::{
        AwsEnvironment, Signer,
        endpoints::{self, Endpoints},
        fault::Fault,
        origin::Origin,
    },
    identity::{Identity, Role},
    process::{clock::Clock, current::Current},
    registry::Service,
};

/// Mints tokens at ECR and ECR Public, through clients that `C` gives.
pub(super) struct Minting<C> {
    environment: AwsEnvironment,
    own_endpoint: Option<String>,
    own_public_endpoint: Option<String>,
    sessions: Sessions,
    session_cap: Current<SessionCap>,
    endpoints: Current<Endpoints>,
    clients: C,
    clock: Arc<dyn Clock>,
    metrics: Arc<TokenMetrics>,
}

/// The endpoints at which a token is requested: the next only if there is no such host as the one
/// before. `None` is the SDK's own.
type Urls = Vec<Option<String>>;

impl<C: Clients> Minting<C> {
    pub(super) fn new(
        environment: AwsEnvironment,
        session_cap: Current<SessionCap>,
        endpoints: Current<Endpoints>,
        clients: C,
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
            clients,
            clock,
            metrics,
        }
    }

    /// Mints once. With a web identity token the role of the key is assumed by that token alone:
    /// no credentials of the environment are used or looked for.
    pub(super) async fn mint(
        &self,
        key: &TokenKey,
        web_identity: Option<&SecretString>,
        ends: Instant,
    ) -> Result<Token, MintError> {
        let endpoints = self.endpoints.get();
        let (operation, urls, counted_as) = self.place(key, &endpoints);
        let session = match (&key.identity, web_identity) {
            (Identity::Role(role), Some(token)) => {
                Box::pin(self.exchange(role, key, token, &endpoints, ends)).await
            }
            (identity, _) => {
                let url = urls.first().and_then(Option::as_deref);
                let call = self.call(operation.clone(), key, url);
                let base = within(ends, call, self.base(key)).await;
                match (identity, base) {
                    (Identity::Role(role), Ok(base)) => {
                        self.assume(role, key, &base, &endpoints, ends).await
                    }
                    (_, base) => base.map(Session::from),
                }
            }
        };
        if matches!(key.identity, Identity::Role(_)) {
            self.count("assume_role", session.as_ref().err());
        }
        let session = match session {
            Err(error) if matches!(key.identity, Identity::Role(_)) => return Err(error),
            session => session,
        };
        let token = match session {
            Ok(session) => Box::pin(self.request(key, &operation, urls, &session, ends)).await,
            Err(error) => Err(error),
        };
        self.count(counted_as, token.as_ref().err());
        token
    }

    /// Returns the operation that gives the token, the endpoints for it, and its name in metrics.
    fn place(&self, key: &TokenKey, endpoints: &Endpoints) -> (Operation, Urls, &'static str) {
        if key.endpoint.service == Service::Public {
            let counted_as = "get_public_authorization_token";
            return (
                Operation::GetPublicAuthorizationToken,
                vec![None],
                counted_as,
            );
        }
        let configured = endpoints.get(&key.region).and_then(|urls| urls.ecr.clone());
        let urls = match configured {
            Some(url) => vec![Some(url)],
            None if self.own_endpoint.is_some() => vec![None],
            None => self.fips_urls(key).unwrap_or_else(|| vec![None]),
        };
        (
            Operation::GetAuthorizationToken,
            urls,
            "get_authorization_token",
        )
    }

    /// Returns the FIPS endpoints of a region if the host or the environment asks for one and this
    /// program has a rule of its own for it.
    fn fips_urls(&self, key: &TokenKey) -> Option<Urls> {
        let is_dual_stack =
            key.endpoint.dual_stack || self.environment.config.use_dual_stack() == Some(true);
        let urls = endpoints::fips_urls(&key.region)?;
        (self.is_fips(key) && !is_dual_stack).then(|| urls.map(Some).into())
    }

    fn is_fips(&self, key: &TokenKey) -> bool {
        key.endpoint.fips || self.environment.config.use_fips() == Some(true)
    }

    fn call(&self, operation: Operation, key: &TokenKey, url: Option<&str>) -> Call {
        let own = match key.endpoint.service {
            Service::Private => &self.own_endpoint,
            Service::Public => &self.own_public_endpoint,
        };
        Call::at(operation, &key.region, url.or(own.as_deref()))
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
        let assumed =
            self.sessions
                .assume(&self.clients, role, key, (base, &signed), endpoints, now);
        let assumed = within(ends, call, assumed).await;
        self.report_rejected(key, &base.credentials, assumed.as_ref().err());
        assumed
    }

    /// Exchanges a web identity token for a session of a role.
    async fn exchange(
        &self,
        role: &Role,
        key: &TokenKey,
        token: &SecretString,
        endpoints: &Endpoints,
        ends: Instant,
    ) -> Result<Session, MintError> {
        let call = self.sessions.exchange_call(role, key, endpoints);
        let now = self.clock.now();
        let exchanged = self
            .sessions
            .exchange(&self.clients, role, key, token, endpoints, now);
        within(ends, call, exchanged).await
    }

    /// Requests the token in a session, which may cap its lifetime.
    async fn request(
        &self,
        key: &TokenKey,
        operation: &Operation,
        urls: Urls,
        session: &Session,
        ends: Instant,
    ) -> Result<Token, MintError> {
        let mut unknown: Option<(Call, String)> = None;
        for url in urls {
            let call = self.call(operation.clone(), key, url.as_deref());
            let error = match self.request_at(key, call, url, session, ends).await {
                Err(error) => error,
                token => return token,
            };
            let Some((call, why)) = no_such_host(&error) else {
                return Err(error);
            };
            let also = format!("{why}{}", call.place());
            unknown = Some(match unknown {
                None => (call.clone(), why.to_owned()),
                Some((first, of_first)) => (first, format!("{of_first}, and {also}")),
            });
        }
        let (call, why) = unknown.unwrap_or_else(|| (operation.clone().into(), String::new()));
        let hint = self
            .is_fips(key)
            .then(|| endpoints::no_fips(&key.region, key.endpoint.fips));
        let hint = hint.flatten().unwrap_or_default();
        Err(MintError::Unreachable(call, why + &hint))
    }

    async fn request_at(
        &self,
        key: &TokenKey,
        call: Call,
        url: Option<String>,
        session: &Session,
        ends: Instant,
    ) -> Result<Token, MintError> {
        let is_ambient = key.identity == Identity::Ambient;
        let cap = |now| {
            let session_cap = self.session_cap.get();
            session_cap.ends_by(session.expires_at, is_ambient, now)
        };
        let now = self.clock.now();
        if let Some(end) = cap(now).filter(|end| end.duration_since(now) < MIN_LEFT) {
            let origin = session.origin.clone();
            return Err(MintError::SessionTooShort(call, origin, end));
        }
        let has_own = match key.endpoint.service {
            Service::Private => self.own_endpoint.is_some(),
            Service::Public => self.own_public_endpoint.is_some(),
        };
        let client_key = (key.region.clone(), key.endpoint, url);
        let make = || Client::new(&self.environment.config, &client_key, has_own);
        let client = self.clients.client(&client_key, make).await;
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

impl SessionCap {
    /// Returns the latest expiry of a token, given the end of the session that mints it.
    pub(super) fn ends_by(
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
