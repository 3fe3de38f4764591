//! The token cache: one flight per token, and a token stays in use until it truly expires.
//!
//! moka keeps the tokens. This file adds what moka lacks: a caller that gives up doesn't stop the
//! flight for the others (moka drops the load with its first caller), a failure is remembered for a
//! short time, and a token that needs renewal is served while the renewal runs (stale while
//! revalidate).

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

pub use super::error::{AwsReply, Call, MintError, Operation};
use super::{
    Freshness, Token, TokenKey,
    error::{FLIGHT_TIMEOUT, MAX_UNPROVEN},
    flights::{Failure, Flight, Flights, Lane, Purpose, RENEWAL_CEILING},
};
use crate::process::clock::Clock;

/// The most tokens in the cache, of some three kilobytes each: as many as the namespaces of the
/// largest cluster, where each has a role of its own, and some.
const MAX_TOKENS: u64 = 16_384;
/// How long minting may take within a flight: less than the flight, so that the error can name the
/// call that timed out.
pub(super) const MINT_TIMEOUT: Duration = Duration::from_secs(9);
/// The most concurrent mints in one lane: at endpoints that have given a token before; as many at
/// all others, which anybody can name in a Pod, may not answer, and must not delay the former; and
/// as many for renewals.
const MAX_MINTS: usize = 32;

/// The most new tokens that a subscriber may lag behind.
const MAX_LAG: usize = 1024;

/// Mints tokens: ECR, or a fake of it.
pub trait Mint: Send + Sync + 'static {
    /// Requests a token once, without a retry.
    fn mint<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Token, MintError>>;
}

/// Where a token came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The cache had the token.
    Memory,
    /// The caller waited for a flight.
    Minted,
}

/// A handle on the cache; clones share it.
#[derive(Clone)]
pub struct TokenCache(Arc<Inner>);

struct Inner {
    tokens: Cache<TokenKey, Arc<Token>>,
    failures: Cache<TokenKey, Failure>,
    flights: Mutex<Flights>,
    minted: broadcast::Sender<TokenKey>,
    permits: [Arc<Semaphore>; Lane::ALL.len()],
    mint: Arc<dyn Mint>,
    clock: Arc<dyn Clock>,
    tasks: TaskTracker,
}

/// Evicts a token from the cache when the token expires.
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
    /// Returns an empty cache over `mint`. Its flights run in `tasks`, so that shutdown can wait
    /// for them.
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
            minted: broadcast::Sender::new(MAX_LAG),
            permits,
            mint,
            clock,
            tasks,
        }))
    }

    /// Returns a usable token: from memory if there is one, else from the one flight for this key.
    /// Past `deadline` the caller gets an error, and the flight continues if others wait for it or
    /// it mints already.
    ///
    /// Fails at once if there are too many flights ([`MintError::TooManyMints`]), or too many for
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
            if token.lifetime().needs_renewal(self.0.clock.now()) && is_pausing(true).is_none() {
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

    /// Returns a usable token from memory, if there is one. Mints nothing.
    pub async fn usable(&self, key: &TokenKey) -> Option<Arc<Token>> {
        let token = self.0.tokens.get(key).await?;
        (token.lifetime().freshness(self.0.clock.now()) != Freshness::Expired).then_some(token)
    }

    /// Returns a new token, also if there is one in memory and whatever has failed before: the
    /// caller knows when to try. A call during a flight joins that flight. Renewals have permits of
    /// their own, so admissions never delay them; they are bounded as in [`Self::get`].
    pub async fn renew(&self, key: &TokenKey) -> Result<Arc<Token>, MintError> {
        self.flight(key, Purpose::Renewal)?.await
    }

    /// Returns a receiver of the key of each token that is minted from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<TokenKey> {
        self.0.minted.subscribe()
    }

    /// Starts a renewal that nobody waits for, if there is no flight. If there is no room for it,
    /// the next caller tries again.
    fn renew_ahead(&self, key: &TokenKey) {
        // Bound to a name, so that it isn't dropped under the lock.
        let under_way = self.flights().join(key);
        if under_way.is_none()
            && let Ok(flight) = self.flight(key, Purpose::Admission)
        {
            self.0.tasks.spawn(flight);
        }
    }

    /// Joins the flight for a key, or starts one.
    fn flight(&self, key: &TokenKey, purpose: Purpose) -> Result<Flight, MintError> {
        let mut flights = self.flights();
        if let Some(flight) = flights.join(key) {
            return Ok(flight);
        }
        let (id, lane) = flights.reserve(key, purpose)?;
        let guard = FlightGuard {
            cache: self.clone(),
            key: key.clone(),
            id,
        };
        let flight = guard.fly(lane).boxed().shared();
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

    /// Returns the remembered failure of the last try, if it failed.
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

/// Removes a flight at its end: also when it panics, and when all its waiters are gone before it
/// has a permit.
struct FlightGuard {
    cache: TokenCache,
    key: TokenKey,
    id: u64,
}

impl FlightGuard {
    /// Waits for a permit, as long as there are waiters, and mints in a task of its own, which no
    /// waiter that gives up ends for the others.
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
                // There may be no subscriber.
                let _ = cache.0.minted.send(key.clone());
                Ok(token)
            }
            Err(error) => {
                cache.failed(key, &error).await;
                Err(error)
            }
        }
    }
}

impl Drop for FlightGuard {
    fn drop(&mut self) {
        self.cache.flights().end(&self.key, self.id);
    }
}

#[cfg(test)]
mod tests;
