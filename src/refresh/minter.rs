//! Mints the tokens that are missing: so many at a time, each in its turn.

use std::{collections::HashSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{
    sync::broadcast::{self, error::RecvError},
    task::JoinSet,
    time::Instant,
};

use super::{mint_queue::MintQueue, plan::TOGETHER_FROM_PERCENT};
use crate::{
    cluster::namespace::Namespace,
    token::{
        Freshness, MalformedReply, Token, TokenKey,
        cache::{MintError, Operation, TokenCache},
    },
};

/// Tokens that are minted at the same time, half of what the cache mints at a time: a crowd of
/// roles for which AWS doesn't answer leaves room for the others, and for admissions.
const MAX_MINTS: usize = 16;

/// Mints the tokens of its queue.
pub(super) struct Minter {
    tokens: TokenCache,
    pub(super) queue: MintQueue,
    minting: JoinSet<(TokenKey, Result<Arc<Token>, MintError>)>,
    /// Receives each token that comes into the cache.
    cached: broadcast::Receiver<TokenKey>,
}

/// Something that changes which tokens are there.
pub(super) enum TokenEvent {
    /// A token was minted here, or could not be.
    Minted(TokenKey, Result<Arc<Token>, MintError>),
    /// A token came into the cache: an admission may have minted one that namespaces wait for.
    Cached(TokenKey),
    /// More tokens came into the cache than the channel holds.
    CachedMany,
}

/// The outcome for one token that namespaces waited for.
pub(super) struct MintOutcome {
    pub(super) key: TokenKey,
    /// If the token is there: all that waited for it. If not: those that don't know that yet.
    pub(super) namespaces: HashSet<Namespace>,
    /// How often minting had failed before; or the error, and the time until the next try.
    pub(super) result: Result<u32, (MintError, Duration)>,
}

impl Minter {
    /// Returns a minter with nothing to mint.
    pub(super) fn new(tokens: TokenCache) -> Self {
        Self {
            cached: tokens.subscribe(),
            tokens,
            queue: MintQueue::default(),
            minting: JoinSet::new(),
        }
    }

    /// Begins to mint what is queued and may be tried now, up to [`MAX_MINTS`].
    pub(super) fn start(&mut self, now: Instant) {
        self.queue.retry(now);
        while self.minting.len() < MAX_MINTS
            && let Some(key) = self.queue.pop()
        {
            let tokens = self.tokens.clone();
            self.minting.spawn(async move {
                let minted = tokens.renew(&key).await;
                (key, minted)
            });
        }
    }

    /// Waits for the next event.
    pub(super) async fn next(&mut self) -> TokenEvent {
        loop {
            tokio::select! {
                biased;
                Some(done) = self.minting.join_next() => {
                    if let Ok((key, minted)) = done {
                        return TokenEvent::Minted(key, minted);
                    }
                }
                cached = self.cached.recv() => match cached {
                    Ok(key) => return TokenEvent::Cached(key),
                    // Never closed: `self.tokens` keeps the sender alive.
                    Err(RecvError::Lagged(_) | RecvError::Closed) => return TokenEvent::CachedMany,
                },
            }
        }
    }

    /// Updates the queue by an event, and returns the outcome for each token that namespaces waited
    /// for.
    pub(super) async fn handle(&mut self, event: TokenEvent, now: Timestamp) -> Vec<MintOutcome> {
        let keys = match event {
            TokenEvent::Minted(key, minted) => return vec![self.finish(key, minted, now)],
            TokenEvent::Cached(key) => vec![key],
            TokenEvent::CachedMany => self.queue.wanted_keys(),
        };
        let mut outcomes = Vec::new();
        for key in keys {
            outcomes.extend(self.adopt(key, now).await);
        }
        outcomes
    }

    fn finish(
        &mut self,
        key: TokenKey,
        minted: Result<Arc<Token>, MintError>,
        now: Timestamp,
    ) -> MintOutcome {
        self.queue.release(&key);
        let expired = || {
            MintError::Unusable(
                Operation::GetAuthorizationToken.into(),
                MalformedReply::Expired,
            )
        };
        let minted = minted.and_then(|token| is_new(&token, now).then_some(()).ok_or_else(expired));
        match minted {
            Ok(()) => self.available(key),
            Err(error) => {
                let (namespaces, pause) = self.queue.failed(&key, error.clone(), Instant::now());
                MintOutcome {
                    key,
                    namespaces,
                    result: Err((error, pause)),
                }
            }
        }
    }

    /// Adopts a token that an admission minted, if namespaces wait for that token.
    async fn adopt(&mut self, key: TokenKey, now: Timestamp) -> Option<MintOutcome> {
        if !self.queue.is_wanted(&key) {
            return None;
        }
        let token = self.tokens.usable(&key).await?;
        is_new(&token, now).then(|| self.available(key))
    }

    fn available(&mut self, key: TokenKey) -> MintOutcome {
        let (namespaces, failures) = self.queue.available(&key);
        MintOutcome {
            key,
            namespaces,
            result: Ok(failures),
        }
    }
}

/// Returns whether a token is so new that what is written with it isn't due at once.
pub(super) fn is_new(token: &Token, now: Timestamp) -> bool {
    let life = token.lifetime();
    life.freshness(now) != Freshness::Expired && !life.has_used(TOGETHER_FROM_PERCENT, now)
}
