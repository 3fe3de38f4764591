//! Mints tokens through `aws-sdk-ecr` and `aws-sdk-ecrpublic`, for a process that mints often.

use std::sync::Arc;

use futures::{FutureExt as _, future::BoxFuture};
use tokio::time::Instant;

use super::{
    SessionCap, Token, TokenKey,
    cache::{MINT_TIMEOUT, Mint, MintError},
    clients::KeptClients,
    metrics::TokenMetrics,
    minting::Minting,
};
use crate::{
    aws::{AwsEnvironment, endpoints::Endpoints},
    process::{clock::Clock, current::Current},
};

/// Mints tokens at ECR and ECR Public.
pub struct Ecr(Minting<KeptClients>);

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
        let clients = KeptClients::default();
        Self(Minting::new(
            environment,
            session_cap,
            endpoints,
            clients,
            clock,
            metrics,
        ))
    }
}

impl Mint for Ecr {
    fn mint<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Token, MintError>> {
        async move {
            let result = {
                let ends = Instant::now() + MINT_TIMEOUT;
                self.0.mint(key, None, ends).await
            };
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

#[cfg(test)]
mod tests;
