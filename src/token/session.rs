//! Assumes roles through `aws-sdk-sts`: a session is the temporary credentials of a role.
//!
//! Each mint takes a session of its own, so that a token can last as long as a whole session and no
//! credentials of a role stay in memory.

use aws_config::identity::IdentityCache;
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use aws_sdk_sts::{
    Client,
    config::Builder,
    types::{Credentials as StsCredentials, Tag},
};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};

use super::{
    MIN_LEFT, TokenKey,
    client::StsEndpoint,
    clients::Clients,
    error::{Call, MintError, Operation},
    reason::{Signed, caught, exchange_reason, reason},
};
use crate::{
    aws::{AwsEnvironment, Signer, endpoints::Endpoints, origin::Origin},
    identity::Role,
    registry::Service,
};

/// The session policy of a role that may only pull. A pull-through cache's first pull imports the
/// image.
const PULL_ACTIONS: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["ecr:GetAuthorizationToken","ecr:BatchGetImage","ecr:GetDownloadUrlForLayer","ecr:BatchImportUpstreamImage"],"Resource":"*"}]}"#;
/// The session policy for the public gallery, whose tokens are bearer tokens of STS.
const PUBLIC_PULL_ACTIONS: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["ecr-public:GetAuthorizationToken","sts:GetServiceBearerToken"],"Resource":"*"}]}"#;

/// The credentials that sign the call for a token.
pub(super) struct Session {
    pub(super) credentials: Credentials,
    pub(super) origin: Origin,
    /// The end of the credentials, if they have one.
    pub(super) expires_at: Option<Timestamp>,
}

/// Assumes roles.
pub(super) struct Sessions {
    environment: AwsEnvironment,
    own_endpoint: Option<String>,
}

impl Sessions {
    pub(super) fn new(environment: AwsEnvironment) -> Self {
        Self {
            own_endpoint: environment.own_endpoint("STS"),
            environment,
        }
    }

    /// Returns the call that assumes a role to mint for `key`, for its errors.
    pub(super) fn call(&self, role: &Role, key: &TokenKey, endpoints: &Endpoints) -> Call {
        let operation = Operation::AssumeRole(role.arn.clone());
        self.call_of(operation, role, key, endpoints)
    }

    /// Returns the call that assumes a role by a web identity token, for its errors.
    pub(super) fn exchange_call(&self, role: &Role, key: &TokenKey, endpoints: &Endpoints) -> Call {
        let operation = Operation::AssumeRoleWithWebIdentity(role.arn.clone());
        self.call_of(operation, role, key, endpoints)
    }

    fn call_of(
        &self,
        operation: Operation,
        role: &Role,
        key: &TokenKey,
        endpoints: &Endpoints,
    ) -> Call {
        let endpoint = self.endpoint(role, key, endpoints);
        let url = endpoint.url.as_deref().or(self.own_endpoint.as_deref());
        Call::at(operation, &endpoint.region, url)
    }

    async fn client(
        &self,
        clients: &impl Clients,
        role: &Role,
        key: &TokenKey,
        endpoints: &Endpoints,
    ) -> Client {
        let endpoint = self.endpoint(role, key, endpoints);
        clients.sts(&endpoint, || self.make_client(&endpoint)).await
    }

    /// Assumes a role to mint for `key`, with the credentials of `base`.
    pub(super) async fn assume(
        &self,
        clients: &impl Clients,
        role: &Role,
        key: &TokenKey,
        (base, signed): (&Signer, &Signed<'_>),
        endpoints: &Endpoints,
        now: Timestamp,
    ) -> Result<Session, MintError> {
        let call = self.call(role, key, endpoints);
        let client = self.client(clients, role, key, endpoints).await;
        // Building a tag with both parts can't fail; STS validates the texts.
        let tags = role
            .options
            .tags
            .iter()
            .filter_map(|(key, value)| Tag::builder().key(key).value(value).build().ok());
        let credentials = SharedCredentialsProvider::new(base.credentials.clone());
        let request = client
            .assume_role()
            .role_arn(role.arn.as_str())
            .role_session_name(&role.options.session_name)
            .set_external_id(role.options.external_id.clone())
            .duration_seconds(duration(role))
            .set_tags(Some(tags.collect::<Vec<_>>()).filter(|tags| !tags.is_empty()))
            .set_policy(role.options.pull_only.then(|| policy(key).to_owned()))
            .customize()
            .config_override(
                Builder::new()
                    .credentials_provider(credentials)
                    .identity_cache(IdentityCache::no_cache()),
            );
        let reply = caught(call.clone(), signed.by, request.send()).await?;
        let reply = reply.map_err(|error| reason(call.clone(), signed, &error))?;
        session(reply.credentials(), role, call, now)
    }

    /// Assumes a role by a web identity token, which no key signs. External id and tags are no part
    /// of this call.
    pub(super) async fn exchange(
        &self,
        clients: &impl Clients,
        role: &Role,
        key: &TokenKey,
        token: &SecretString,
        endpoints: &Endpoints,
        now: Timestamp,
    ) -> Result<Session, MintError> {
        let call = self.exchange_call(role, key, endpoints);
        let client = self.client(clients, role, key, endpoints).await;
        let request = client
            .assume_role_with_web_identity()
            .role_arn(role.arn.as_str())
            .role_session_name(&role.options.session_name)
            .web_identity_token(token.expose_secret())
            .duration_seconds(duration(role))
            .set_policy(role.options.pull_only.then(|| policy(key).to_owned()));
        let origin = Origin::Role(role.arn.to_string());
        let reply = caught(call.clone(), &origin, request.send()).await?;
        let reply = reply.map_err(|error| exchange_reason(call.clone(), &origin, &error))?;
        session(reply.credentials(), role, call, now)
    }

    /// Returns the STS endpoint: in the region that the role names; else in the environment's own,
    /// if it is of the registry's partition; else in the registry's. A FIPS registry needs FIPS
    /// endpoints, and only its own region certainly has one.
    fn endpoint(&self, role: &Role, key: &TokenKey, endpoints: &Endpoints) -> StsEndpoint {
        let home = self
            .environment
            .home
            .as_ref()
            .filter(|home| home.partition() == key.region.partition() && !key.endpoint.fips);
        let region = role
            .options
            .sts_region
            .as_ref()
            .or(home)
            .unwrap_or(&key.region);
        StsEndpoint {
            region: region.clone(),
            fips: key.endpoint.fips,
            url: endpoints.get(region).and_then(|urls| urls.sts.clone()),
        }
    }

    fn make_client(&self, endpoint: &StsEndpoint) -> Client {
        let region = aws_config::Region::new(endpoint.region.as_str().to_owned());
        let mut builder =
            aws_sdk_sts::config::Builder::from(&self.environment.config).region(region);
        if let Some(url) = &endpoint.url {
            builder = builder.endpoint_url(url);
        }
        if endpoint.url.is_some() || self.own_endpoint.is_some() {
            builder = builder.use_fips(false).use_dual_stack(false);
        } else if endpoint.fips {
            builder = builder.use_fips(true);
        }
        Client::from_conf(builder.build())
    }
}

/// Returns the session that STS gave.
fn session(
    credentials: Option<&StsCredentials>,
    role: &Role,
    call: Call,
    now: Timestamp,
) -> Result<Session, MintError> {
    let Some(credentials) = credentials else {
        return Err(MintError::NotAws(call));
    };
    let Ok(expires_at) = Timestamp::from_second(credentials.expiration().secs()) else {
        return Err(MintError::NotAws(call));
    };
    let origin = Origin::Role(role.arn.to_string());
    if expires_at.duration_since(now) < MIN_LEFT {
        return Err(MintError::SessionTooShort(call, origin, expires_at));
    }
    Ok(Session {
        credentials: Credentials::new(
            credentials.access_key_id(),
            credentials.secret_access_key(),
            Some(credentials.session_token().to_owned()),
            None,
            "AssumeRole",
        ),
        origin,
        expires_at: Some(expires_at),
    })
}

fn duration(role: &Role) -> i32 {
    i32::try_from(role.options.duration_seconds).unwrap_or(i32::MAX)
}

fn policy(key: &TokenKey) -> &'static str {
    match key.endpoint.service {
        Service::Private => PULL_ACTIONS,
        Service::Public => PUBLIC_PULL_ACTIONS,
    }
}
