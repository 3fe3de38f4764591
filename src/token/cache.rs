//! The token cache: one flight per token, and a token stays in use until it truly expires.
//!
//! moka keeps the tokens; what it doesn't do is written here: a caller that gives up doesn't stop the flight for the
//! others (moka drops the load with its first caller), a failure is remembered for a moment, and a token that wants
//! renewal is served while the renewal runs.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use jiff::Timestamp;
use moka::{Expiry, future::Cache};
use tokio::{
    sync::{Semaphore, broadcast},
    time::{Instant, timeout_at},
};
use tokio_util::task::TaskTracker;

pub use super::error::{AwsReply, Call, MintError};
use super::{
    Freshness, Token, TokenKey,
    error::{FLIGHT_TIMEOUT, MAX_UNPROVEN},
    flights::{Failure, Flight, Flights, Lane, Purpose, RENEWAL_CEILING},
};
use crate::process::clock::Clock;

/// Tokens kept, of some three kilobytes each: as many as the namespaces of the largest cluster, where each has a role of its
/// own, and some.
const MAX_TOKENS: u64 = 16_384;
/// How long minting may take within a flight: less than the flight, so that it can say what it waited for.
pub(super) const MINT_TIMEOUT: Duration = Duration::from_secs(9);
/// Mints at the same time in one lane: at endpoints that have given a token before; as many beside them in all others, which
/// come from Pods, whoever makes those: some of what can be named doesn't answer, and is not to be in the others' way; and
/// as many for renewals.
const MAX_MINTS: usize = 32;

/// Tokens that may come in before a listener has heard of the first of them.
const LANDINGS: usize = 1024;

/// What mints a token: ECR, or a stand-in for it.
pub trait Mint: Send + Sync + 'static {
    /// Asks for a token once, with no retry.
    fn mint<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Token, MintError>>;
}

/// Where a token came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was there.
    Memory,
    /// It was waited for.
    Minted,
}

/// A handle on the cache; clones share it.
#[derive(Clone)]
pub struct TokenCache(Arc<Inner>);

struct Inner {
    tokens: Cache<TokenKey, Arc<Token>>,
    failures: Cache<TokenKey, Failure>,
    flights: Mutex<Flights>,
    landings: broadcast::Sender<TokenKey>,
    permits: [Arc<Semaphore>; Lane::ALL.len()],
    mint: Arc<dyn Mint>,
    clock: Arc<dyn Clock>,
    tasks: TaskTracker,
}

/// A token leaves the cache when it expires.
struct UntilExpired(Arc<dyn Clock>);

impl Expiry<TokenKey, Arc<Token>> for UntilExpired {
    fn expire_after_create(
        &self,
        _: &TokenKey,
        token: &Arc<Token>,
        _: std::time::Instant,
    ) -> Option<Duration> {
        Some(left(token, self.0.now()))
    }

    fn expire_after_update(
        &self,
        _: &TokenKey,
        token: &Arc<Token>,
        _: std::time::Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(left(token, self.0.now()))
    }
}

fn left(token: &Token, now: Timestamp) -> Duration {
    Duration::try_from(token.lifetime().expires_at.duration_since(now)).unwrap_or_default()
}

impl TokenCache {
    /// An empty cache over `mint`. Its flights belong to `tasks`, so that shutdown can wait for them.
    #[must_use]
    pub fn new(mint: Arc<dyn Mint>, clock: Arc<dyn Clock>, tasks: TaskTracker) -> Self {
        let expiry = UntilExpired(clock.clone());
        let tokens = Cache::builder()
            .max_capacity(MAX_TOKENS)
            .expire_after(expiry)
            .build();
        let failures = Cache::builder()
            .max_capacity(MAX_TOKENS)
            .time_to_live(2 * RENEWAL_CEILING)
            .build();
        let permits = Lane::ALL.map(|lane| {
            Arc::new(Semaphore::new(match lane {
                // There are no more flights than that.
                Lane::Unproven => MAX_UNPROVEN,
                Lane::Proven | Lane::Untried | Lane::Renewal => MAX_MINTS,
            }))
        });
        Self(Arc::new(Inner {
            tokens,
            failures,
            flights: Mutex::default(),
            landings: broadcast::Sender::new(LANDINGS),
            permits,
            mint,
            clock,
            tasks,
        }))
    }

    /// A token that can be used now: from memory if there is one, else from the one flight for this key. Past
    /// `deadline` the caller gets an error, and the flight goes on if others wait for it or it has begun to mint.
    ///
    /// There is an error at once if as many flights as may be are under way ([`MintError::TooManyMints`]), or as many for
    /// regions that AWS is not known to have ([`MintError::TooManyRegions`]).
    pub async fn get(
        &self,
        key: &TokenKey,
        deadline: Instant,
    ) -> Result<(Arc<Token>, Origin), MintError> {
        let failure = self.failure(key).await;
        let is_pausing = |has_token| {
            failure
                .as_ref()
                .filter(|failure: &&Failure| failure.is_pausing(has_token))
        };
        if let Some(token) = self.usable(key).await {
            if token.lifetime().wants_renewal(self.0.clock.now()) && is_pausing(true).is_none() {
                self.renew_ahead(key);
            }
            return Ok((token, Origin::Memory));
        }
        if let Some(failure) = is_pausing(false) {
            return Err(failure.error.clone());
        }
        let flight = self.flight(key, Purpose::Admission)?;
        let minted = timeout_at(deadline, flight).await;
        let token = minted.unwrap_or(Err(MintError::Deadline))?;
        Ok((token, Origin::Minted))
    }

    /// A token that can be used now, if there is one in memory. Nothing is minted.
    pub async fn usable(&self, key: &TokenKey) -> Option<Arc<Token>> {
        let token = self.0.tokens.get(key).await?;
        (token.lifetime().freshness(self.0.clock.now()) != Freshness::Expired).then_some(token)
    }

    /// A new token, whatever there is in memory and whatever has failed before: when to try is the caller's to know. Who asks
    /// while a flight is under way gets what that brings. Renewals have permits of their own, so admissions never hold one up;
    /// they are bounded as in [`Self::get`].
    pub async fn renew(&self, key: &TokenKey) -> Result<Arc<Token>, MintError> {
        self.flight(key, Purpose::Renewal)?.await
    }

    /// Hears of each token that comes in from now on.
    #[must_use]
    pub fn landings(&self) -> broadcast::Receiver<TokenKey> {
        self.0.landings.subscribe()
    }

    /// Starts a renewal that nobody waits for, if none is under way. If there is no room for it, the next caller tries again.
    fn renew_ahead(&self, key: &TokenKey) {
        // Bound to a name, so that it isn't dropped under the lock.
        let under_way = self.flights().join(key);
        if under_way.is_none()
            && let Ok(flight) = self.flight(key, Purpose::Admission)
        {
            self.0.tasks.spawn(flight);
        }
    }

    /// Joins the flight for a key, started if there is none.
    fn flight(&self, key: &TokenKey, purpose: Purpose) -> Result<Flight, MintError> {
        let mut flights = self.flights();
        if let Some(flight) = flights.join(key) {
            return Ok(flight);
        }
        let (id, lane) = flights.reserve(key, purpose)?;
        let landing = Landing {
            cache: self.clone(),
            key: key.clone(),
            id,
        };
        let flight = landing.fly(lane).boxed().shared();
        flights.begin(key, (id, lane), &flight);
        Ok(flight)
    }

    async fn failed(&self, key: &TokenKey, error: &MintError) {
        if self.flights().fail(key, error) {
            return;
        }
        let before = self.0.failures.get(key).await;
        let failure = Failure::after(before.as_ref(), error.clone());
        self.0.failures.insert(key.clone(), failure).await;
    }

    /// How the last try failed, if it did and that is remembered.
    async fn failure(&self, key: &TokenKey) -> Option<Failure> {
        let unproven = self.flights().failure(key).cloned();
        match unproven {
            Some(failure) => Some(failure),
            None => self.0.failures.get(key).await,
        }
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.0
            .flights
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A flight from its start to its end, which takes it off: also when it panics, and when all who wait for its turn are gone.
struct Landing {
    cache: TokenCache,
    key: TokenKey,
    id: u64,
}

impl Landing {
    /// Waits for a turn, as long as somebody waits for this, and mints in a task of its own: nobody's giving up ends that for
    /// the others.
    async fn fly(self, lane: Lane) -> Result<Arc<Token>, MintError> {
        let ends = Instant::now() + FLIGHT_TIMEOUT;
        let (cache, key, id) = (self.cache.clone(), self.key.clone(), self.id);
        let permits = cache.0.permits[lane as usize].clone();
        // No semaphore is ever closed.
        let Ok(permit) = timeout_at(ends, permits.acquire_owned()).await else {
            cache.failed(&key, &MintError::GaveUp).await;
            return Err(MintError::GaveUp);
        };
        let task = cache.0.tasks.spawn(async move {
            let _permit = permit;
            self.mint(ends).await
        });
        let flight = task
            .map(|result| result.unwrap_or(Err(MintError::Crashed)))
            .boxed()
            .shared();
        cache.flights().mint(&key, id, flight.clone());
        flight.await
    }

    async fn mint(self, ends: Instant) -> Result<Arc<Token>, MintError> {
        let Self { cache, key, .. } = &self;
        let minted = timeout_at(ends, cache.0.mint.mint(key)).await;
        match minted.unwrap_or(Err(MintError::GaveUp)) {
            Ok(token) => {
                let token = Arc::new(token);
                cache.flights().prove(key);
                cache.0.tokens.insert(key.clone(), token.clone()).await;
                cache.0.failures.invalidate(key).await;
                // Nobody need listen.
                let _ = cache.0.landings.send(key.clone());
                Ok(token)
            }
            Err(error) => {
                cache.failed(key, &error).await;
                Err(error)
            }
        }
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.cache.flights().end(&self.key, self.id);
    }
}

#[cfg(test)]
mod tests;
