//! Gets the tokens that are missing: so many at a time, each in its turn.

use std::{collections::HashSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{task::JoinSet, time::Instant};

use super::{mint_queue::MintQueue, plan::TOGETHER_FROM_PERCENT};
use crate::{
    cluster::namespace::Namespace,
    token::{
        Freshness, MalformedReply, Token, TokenKey,
        cache::{Call, MintError, TokenCache},
    },
};

/// Tokens that are minted at the same time, half of what the cache mints at a time: a crowd of roles that nobody answers for
/// leaves room for the others, and for admissions.
const MAX_MINTS: usize = 16;

/// Mints what the queue says.
pub(super) struct Minter {
    tokens: TokenCache,
    pub(super) queue: MintQueue,
    minting: JoinSet<(TokenKey, Result<Arc<Token>, MintError>)>,
}

/// What came of minting one token.
pub(super) enum Minted {
    /// It is there: who waited for it, and how often it had failed before.
    Landed(HashSet<Namespace>, u32),
    /// It can't be had: why, who doesn't know that yet, and how long it is left alone.
    Failed(MintError, HashSet<Namespace>, Duration),
}

impl Minter {
    pub(super) fn new(tokens: TokenCache) -> Self {
        Self {
            tokens,
            queue: MintQueue::default(),
            minting: JoinSet::new(),
        }
    }

    /// Returns a token that is in memory and can be used.
    pub(super) async fn usable(&self, key: &TokenKey) -> Option<Arc<Token>> {
        self.tokens.usable(key).await
    }

    /// Begins to mint what is queued and may be tried now, as much as may be at a time: admissions mint beside us.
    pub(super) fn start(&mut self, now: Instant) {
        self.queue.retry(now);
        while self.minting.len() < MAX_MINTS
            && let Some(key) = self.queue.take_first()
        {
            let tokens = self.tokens.clone();
            self.minting.spawn(async move {
                let minted = tokens.renew(&key).await;
                (key, minted)
            });
        }
    }

    /// Waits for the next token that is minted, or isn't; `None` if none is under way.
    pub(super) async fn next(&mut self) -> Option<(TokenKey, Result<Arc<Token>, MintError>)> {
        self.minting.join_next().await?.ok()
    }

    /// Takes what came of minting a token.
    pub(super) fn minted(
        &mut self,
        key: &TokenKey,
        minted: Result<Arc<Token>, MintError>,
        now: Timestamp,
    ) -> Minted {
        self.queue.minted(key);
        let useless = || {
            let call = Call::GetAuthorizationToken;
            MintError::Unusable(call, MalformedReply::Expired)
        };
        let minted = minted.and_then(|token| is_new(&token, now).then_some(()).ok_or_else(useless));
        match minted {
            Ok(()) => {
                let (waiting, failures) = self.queue.landed(key);
                Minted::Landed(waiting, failures)
            }
            Err(error) => {
                let (asking, pause) = self.queue.failed(key, error.clone(), Instant::now());
                Minted::Failed(error, asking, pause)
            }
        }
    }

    /// Takes a token that an admission got meanwhile, if somebody waits for it: who did, and how often it had failed.
    pub(super) async fn adopt(
        &mut self,
        key: &TokenKey,
        now: Timestamp,
    ) -> Option<(HashSet<Namespace>, u32)> {
        if !self.queue.is_wanting(key) {
            return None;
        }
        let token = self.tokens.usable(key).await?;
        is_new(&token, now).then(|| self.queue.landed(key))
    }
}

/// Returns whether a token is so new that what is written with it isn't due at once.
pub(super) fn is_new(token: &Token, now: Timestamp) -> bool {
    let life = token.lifetime();
    life.freshness(now) != Freshness::Expired && !life.has_used(TOGETHER_FROM_PERCENT, now)
}
