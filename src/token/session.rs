//! Assumes roles through `aws-sdk-sts`: a session is the temporary credentials of a role.
//!
//! Each mint takes a session of its own, so that a token can last as long as a whole session and no
//! credentials of a role stay in memory.

use aws_credential_types::Credentials;
use aws_sdk_sts::{Client, types::Tag};
use jiff::Timestamp;
use moka::future::Cache;

use super::{
    MIN_LEFT, TokenKey,
    cache::{Call, MintError},
    reason::reason,
};
use crate::{
    aws::AwsEnvironment,
    identity::Role,
    registry::{Region, Service},
};

/// The most clients in the cache: one per region.
const MAX_CLIENTS: u64 = 64;
/// The session policy of a role that may only pull. A pull-through cache's first pull imports the
/// image.
const PULL_ACTIONS: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["ecr:GetAuthorizationToken","ecr:BatchGetImage","ecr:GetDownloadUrlForLayer","ecr:BatchCheckLayerAvailability","ecr:BatchImportUpstreamImage"],"Resource":"*"}]}"#;
/// The session policy for the public gallery, whose tokens are bearer tokens of STS.
const PUBLIC_PULL_ACTIONS: &str = r#"{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["ecr-public:GetAuthorizationToken","sts:GetServiceBearerToken"],"Resource":"*"}]}"#;

/// Temporary credentials of a role, and their expiry.
pub(super) struct Session {
    pub(super) credentials: Credentials,
    pub(super) expires_at: Timestamp,
}

/// The STS endpoint of a client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct StsEndpoint {
    region: Region,
    fips: bool,
}

/// Assumes roles.
pub(super) struct Sessions {
    environment: AwsEnvironment,
    has_own_endpoint: bool,
    clients: Cache<StsEndpoint, Client>,
}

impl Sessions {
    pub(super) fn new(environment: AwsEnvironment) -> Self {
        Self {
            has_own_endpoint: environment.has_own_endpoint("STS"),
            environment,
            clients: Cache::builder().max_capacity(MAX_CLIENTS).build(),
        }
    }

    /// Assumes a role to mint for `key`.
    pub(super) async fn assume(
        &self,
        role: &Role,
        key: &TokenKey,
        now: Timestamp,
    ) -> Result<Session, MintError> {
        let call = || Call::AssumeRole(role.arn.clone());
        let endpoint = self.endpoint(role, key);
        let client = self
            .clients
            .get_with_by_ref(&endpoint, async { self.make_client(&endpoint) })
            .await;
        // Building a tag with both parts can't fail; STS validates the texts.
        let tags = role
            .options
            .tags
            .iter()
            .filter_map(|(key, value)| Tag::builder().key(key).value(value).build().ok());
        let reply = client
            .assume_role()
            .role_arn(role.arn.as_str())
            .role_session_name(&role.options.session_name)
            .set_external_id(role.options.external_id.clone())
            .duration_seconds(i32::try_from(role.options.duration_seconds).unwrap_or(i32::MAX))
            .set_tags(Some(tags.collect::<Vec<_>>()).filter(|tags| !tags.is_empty()))
            .set_policy(role.options.pull_only.then(|| policy(key).to_owned()))
            .send()
            .await
            .map_err(|error| reason(call(), &error))?;
        let credentials = reply
            .credentials()
            .ok_or_else(|| MintError::NotAws(call()))?;
        let expires_at = Timestamp::from_second(credentials.expiration().secs())
            .map_err(|_| MintError::NotAws(call()))?;
        if expires_at.duration_since(now) < MIN_LEFT {
            return Err(MintError::SessionTooShort(call(), expires_at));
        }
        Ok(Session {
            credentials: Credentials::new(
                credentials.access_key_id(),
                credentials.secret_access_key(),
                Some(credentials.session_token().to_owned()),
                None,
                "AssumeRole",
            ),
            expires_at,
        })
    }

    /// Returns the STS endpoint: in the region that the role names; else in the environment's own,
    /// if it is of the registry's partition; else in the registry's. A FIPS registry needs FIPS
    /// endpoints, and only its own region certainly has one.
    fn endpoint(&self, role: &Role, key: &TokenKey) -> StsEndpoint {
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
        }
    }

    fn make_client(&self, endpoint: &StsEndpoint) -> Client {
        let region = aws_config::Region::new(endpoint.region.as_str().to_owned());
        let mut builder =
            aws_sdk_sts::config::Builder::from(&self.environment.config).region(region);
        if self.has_own_endpoint {
            builder = builder.use_fips(false).use_dual_stack(false);
        } else if endpoint.fips {
            builder = builder.use_fips(true);
        }
        Client::from_conf(builder.build())
    }
}

fn policy(key: &TokenKey) -> &'static str {
    match key.endpoint.service {
        Service::Private => PULL_ACTIONS,
        Service::Public => PUBLIC_PULL_ACTIONS,
    }
}
