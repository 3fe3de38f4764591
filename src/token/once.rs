//! Mints one token in a process that then ends: one client for each call, and a few tries within
//! one deadline.

use std::{sync::Arc, time::Duration};

use secrecy::SecretString;
use tokio::time::{Instant, sleep};

use super::{
    SessionCap, Token, TokenKey, cache::MINT_TIMEOUT, clients::NewClients, error::MintError,
    minting::Minting,
};
use crate::{
    aws::{AwsEnvironment, endpoints::Endpoints},
    process::{clock::SystemClock, current::Current, random::random},
};

/// How long to wait before the second and the third try, in milliseconds. All nodes of a cluster
/// may ask at the same moment, so the time is random within these.
const PAUSES: [(u64, u64); 2] = [(200, 600), (1000, 3000)];

/// A token to be minted.
pub struct MintRequest {
    /// The identity, the region and the endpoint.
    pub key: TokenKey,
    /// The web identity token by which the role of the key is assumed, instead of any credentials
    /// of the environment.
    pub web_identity: Option<SecretString>,
    /// The cap of the token's lifetime.
    pub session_cap: SessionCap,
    /// The endpoints that the configuration names.
    pub endpoints: Endpoints,
    /// The most tries, at least one.
    pub tries: usize,
}

/// Mints a token. Only what may be over a moment later is tried again: that AWS throttles, fails,
/// can't be reached or doesn't answer in time, or that the source of the credentials does so.
pub async fn mint_once(
    environment: AwsEnvironment,
    request: &MintRequest,
    ends: Instant,
) -> Result<Token, MintError> {
    let minting = Minting::new(
        environment,
        Current::new(request.session_cap),
        Current::new(request.endpoints.clone()),
        NewClients,
        Arc::new(SystemClock),
        Arc::default(),
    );
    let pauses = PAUSES.into_iter().take(request.tries.saturating_sub(1));
    let mut pauses = pauses.map(|(least, most)| {
        let jitter = random() % (most - least);
        Duration::from_millis(least + jitter)
    });
    loop {
        let try_ends = ends.min(Instant::now() + MINT_TIMEOUT);
        let web_identity = request.web_identity.as_ref();
        let minted = minting.mint(&request.key, web_identity, try_ends).await;
        let error = match minted {
            Err(error) if error.may_pass() => error,
            other => return other,
        };
        match pauses.next() {
            Some(pause) if Instant::now() + pause < ends => {
                tracing::debug!(%error, ?pause, "no token yet; trying again");
                sleep(pause).await;
            }
            _ => return Err(error),
        }
    }
}
