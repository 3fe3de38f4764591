//! The clients of ECR and ECR Public: how one is made, and its one call.

use aws_config::{SdkConfig, identity::IdentityCache};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use jiff::Timestamp;

use super::{
    error::{Call, MintError},
    reason::{Signed, reason},
};
use crate::registry::{Endpoint, Region, Service};

/// The key of a client: the region, the endpoint, and its URL if the configuration has one.
pub(super) type ClientKey = (Region, Endpoint, Option<String>);

/// The STS endpoint of a client.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct StsEndpoint {
    pub(super) region: Region,
    pub(super) fips: bool,
    /// The endpoint of the configuration.
    pub(super) url: Option<String>,
}

/// A client of one of the two services.
#[derive(Clone)]
pub(super) enum Client {
    Private(aws_sdk_ecr::Client),
    Public(aws_sdk_ecrpublic::Client),
}

/// The part that the replies of both services share.
pub(super) struct Reply {
    pub(super) token: Option<String>,
    pub(super) expires_at: Option<Timestamp>,
}

impl Client {
    /// Makes a client. An endpoint of the admin's own (a VPC endpoint, a test), of which `has_own`
    /// says whether the environment names one, excludes FIPS and dual-stack in the SDK's rules.
    pub(super) fn new(
        config: &SdkConfig,
        (region, endpoint, url): &ClientKey,
        has_own: bool,
    ) -> Self {
        let region = aws_config::Region::new(region.as_str().to_owned());
        match endpoint.service {
            Service::Private => {
                let mut builder = aws_sdk_ecr::config::Builder::from(config).region(region);
                if let Some(url) = url {
                    builder = builder.endpoint_url(url);
                }
                if url.is_some() || has_own {
                    builder = builder.use_fips(false).use_dual_stack(false);
                } else {
                    if endpoint.fips {
                        builder = builder.use_fips(true);
                    }
                    if endpoint.dual_stack {
                        builder = builder.use_dual_stack(true);
                    }
                }
                Self::Private(aws_sdk_ecr::Client::from_conf(builder.build()))
            }
            Service::Public => {
                let mut builder = aws_sdk_ecrpublic::config::Builder::from(config).region(region);
                if has_own {
                    builder = builder.use_fips(false).use_dual_stack(false);
                }
                Self::Public(aws_sdk_ecrpublic::Client::from_conf(builder.build()))
            }
        }
    }

    /// Requests a token, signed with these credentials.
    pub(super) async fn request(
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

fn timestamp(seconds: i64) -> Option<Timestamp> {
    Timestamp::from_second(seconds).ok()
}
