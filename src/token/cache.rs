//! The token cache: one flight per token, and a token stays in use until it truly expires.
//!
//! moka keeps the tokens; what it doesn't do is written here: a caller that gives up doesn't stop the flight for the
//! others (moka drops the load with its first caller), a failure is remembered for a moment, and a token that wants
//! renewal is served while the renewal runs.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use jiff::Timestamp;
use moka::{Expiry, future::Cache};
use thiserror::Error;
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::TaskTracker;

use super::{Freshness, MalformedReply, Token, TokenKey};
use crate::{
    clock::Clock,
    identity::RoleArn,
    registry::{Endpoint, Region},
};

/// Tokens kept, of some three kilobytes each: as many as the namespaces of the largest cluster, where each has a role of its
/// own, and some.
const MAX_TOKENS: u64 = 16_384;
/// How long one flight may take, whoever still waits for it.
const FLIGHT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long minting may take within a flight: less, so that it can say what it waited for.
pub(super) const MINT_TIMEOUT: Duration = Duration::from_secs(9);
/// Mints at the same time at endpoints that have given a token before; and as many beside them in all others, which come from
/// Pods, whoever makes those: most that can be named don't exist, and none of them is to be in the others' way.
const MAX_FLIGHTS: usize = 32;
/// The first pause after a failure where nobody has a usable token; it doubles up to [`MISSING_CEILING`].
const MISSING_FLOOR: Duration = Duration::from_millis(250);
/// The longest pause where nobody has a usable token: Pods wait, and the kubelet's first retries come within 13 s.
const MISSING_CEILING: Duration = Duration::from_secs(2);
/// The first pause after a failed renewal of a token that is still good; it doubles up to [`RENEWAL_CEILING`].
const RENEWAL_FLOOR: Duration = Duration::from_secs(1);
/// The longest pause between renewals of a token that is still good.
const RENEWAL_CEILING: Duration = Duration::from_mins(5);

/// What mints a token: ECR, or a stand-in for it.
pub trait Mint: Send + Sync + 'static {
    /// Asks for a token once, with no retry.
    fn mint<'a>(&'a self, key: &'a TokenKey) -> BoxFuture<'a, Result<Token, MintError>>;
}

/// A call to AWS that minting takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// ECR's.
    GetAuthorizationToken,
    /// ECR Public's.
    GetPublicAuthorizationToken,
    /// STS's, for a role.
    AssumeRole(RoleArn),
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GetAuthorizationToken => f.write_str("ECR's GetAuthorizationToken"),
            Self::GetPublicAuthorizationToken => f.write_str("ECR Public's GetAuthorizationToken"),
            Self::AssumeRole(arn) => write!(f, "STS's AssumeRole of {arn}"),
        }
    }
}

impl Call {
    /// Where to look if it was refused.
    fn policy(&self) -> &'static str {
        match self {
            Self::GetAuthorizationToken | Self::GetPublicAuthorizationToken => {
                "the principal's IAM policy"
            }
            Self::AssumeRole(_) => {
                "the role's trust policy, its external id, and that the ambient identity may assume it"
            }
        }
    }
}

/// Why there is no token. Never holds any part of a reply but AWS's own code and message.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum MintError {
    /// No principal could be found in this process's surroundings, or its source failed.
    #[error("no AWS credentials: {0}; docs/aws.md has what each source needs")]
    Credentials(String),
    /// AWS said no.
    #[error("{0} was refused: {1}; check {policy}", policy = .0.policy())]
    Refused(Call, String),
    /// AWS asked us to slow down.
    #[error("{0} is throttled ({1})")]
    Throttled(Call, String),
    /// AWS had an error of its own.
    #[error("{0} failed on AWS's side ({1})")]
    Server(Call, String),
    /// No connection.
    #[error("{0}: the endpoint can't be reached: {1}")]
    Unreachable(Call, String),
    /// No answer in time.
    #[error("{0} was not answered in time")]
    Timeout(Call),
    /// The credentials that signed the call, or those that it gave, have expired.
    #[error("{0}: expired credentials: {1}")]
    SessionExpired(Call, String),
    /// An answer to this call that holds no usable token.
    #[error("{0}: the answer can't be used: {1}")]
    Unusable(Call, MalformedReply),
    /// An answer that isn't one of AWS's.
    #[error("{0}: the answer is not one of AWS's")]
    NotAws(Call),
    /// The request couldn't be made, such as for an endpoint that can't be.
    #[error("{0}: the request could not be made: {1}")]
    Request(Call, String),
    /// The caller's own deadline came first; the flight goes on.
    #[error("no token within the request's deadline")]
    Deadline,
    /// The flight took longer than any may. A call that isn't answered is [`Self::Timeout`]: it ends earlier.
    #[error(
        "minting was given up after {} s, the wait for its turn among {MAX_FLIGHTS} included",
        FLIGHT_TIMEOUT.as_secs()
    )]
    GaveUp,
    /// The flight died.
    #[error("minting the token failed inside ecr-injector")]
    Crashed,
}

impl MintError {
    /// The error as a metric's label.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Credentials(_) => "credentials",
            Self::Refused(..) => "refused",
            Self::Throttled(..) => "throttled",
            Self::Server(..) => "server_error",
            Self::Unreachable(..) => "unreachable",
            Self::Timeout(_) | Self::GaveUp => "timeout",
            Self::SessionExpired(..) => "session_expired",
            Self::Unusable(..) | Self::NotAws(_) => "malformed",
            Self::Request(..) => "request",
            Self::Deadline => "deadline",
            Self::Crashed => "crashed",
        }
    }
}

/// Where a token came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It was there.
    Memory,
    /// It was waited for.
    Minted,
}

type Flight = Shared<BoxFuture<'static, Result<Arc<Token>, MintError>>>;

/// A handle on the cache; clones share it.
#[derive(Clone)]
pub struct TokenCache(Arc<Inner>);

struct Inner {
    tokens: Cache<TokenKey, Arc<Token>>,
    failures: Cache<TokenKey, Failure>,
    flights: Mutex<HashMap<TokenKey, Flight>>,
    landings: watch::Sender<()>,
    permits: Semaphore,
    /// For endpoints that have given no token yet.
    strange: Semaphore,
    proven: Mutex<HashSet<(Region, Endpoint)>>,
    mint: Arc<dyn Mint>,
    clock: Arc<dyn Clock>,
    tasks: TaskTracker,
}

#[derive(Debug, Clone)]
struct Failure {
    error: MintError,
    count: u32,
    at: Instant,
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
        let permits = Semaphore::new(MAX_FLIGHTS);
        let strange = Semaphore::new(MAX_FLIGHTS);
        Self(Arc::new(Inner {
            tokens,
            failures,
            flights: Mutex::default(),
            landings: watch::Sender::default(),
            permits,
            strange,
            proven: Mutex::default(),
            mint,
            clock,
            tasks,
        }))
    }

    /// A token that can be used now: from memory if there is one, else from the one flight for this key. Past
    /// `deadline` the caller gets an error and the flight goes on for the others.
    pub async fn get(
        &self,
        key: &TokenKey,
        deadline: Instant,
    ) -> Result<(Arc<Token>, Origin), MintError> {
        let failure = self.0.failures.get(key).await;
        let is_pausing = |has_token| {
            failure
                .as_ref()
                .filter(|failure: &&Failure| failure.is_pausing(has_token))
        };
        if let Some(token) = self.usable(key).await {
            if token.lifetime().wants_renewal(self.0.clock.now()) && is_pausing(true).is_none() {
                drop(self.flight(key));
            }
            return Ok((token, Origin::Memory));
        }
        if let Some(failure) = is_pausing(false) {
            return Err(failure.error.clone());
        }
        let minted = timeout_at(deadline, self.flight(key)).await;
        let token = minted.unwrap_or(Err(MintError::Deadline))?;
        Ok((token, Origin::Minted))
    }

    /// A token that can be used now, if there is one in memory. Nothing is minted.
    pub async fn usable(&self, key: &TokenKey) -> Option<Arc<Token>> {
        let token = self.0.tokens.get(key).await?;
        (token.lifetime().freshness(self.0.clock.now()) != Freshness::Expired).then_some(token)
    }

    /// A new token, whatever there is in memory and whatever has failed before: when to try is the caller's to know. Who asks
    /// while a flight is under way gets what that brings.
    pub async fn renew(&self, key: &TokenKey) -> Result<Arc<Token>, MintError> {
        self.flight(key).await
    }

    /// Hears of each token that comes in from now on.
    #[must_use]
    pub fn landings(&self) -> watch::Receiver<()> {
        self.0.landings.subscribe()
    }

    /// The flight for a key, started if there is none. It runs in a task of its own: nobody's giving up ends it.
    fn flight(&self, key: &TokenKey) -> Flight {
        let mut flights = self.flights();
        if let Some(flight) = flights.get(key) {
            return flight.clone();
        }
        let landing = Landing {
            cache: self.clone(),
            key: key.clone(),
        };
        let task = self
            .0
            .tasks
            .spawn(async move { landing.cache.fly(&landing.key).await });
        let flight = task
            .map(|result| result.unwrap_or(Err(MintError::Crashed)))
            .boxed()
            .shared();
        flights.insert(key.clone(), flight.clone());
        flight
    }

    async fn fly(&self, key: &TokenKey) -> Result<Arc<Token>, MintError> {
        let minted = timeout(FLIGHT_TIMEOUT, async {
            let endpoint = (key.region.clone(), key.endpoint);
            let is_proven = self.proven().contains(&endpoint);
            let permits = if is_proven {
                &self.0.permits
            } else {
                &self.0.strange
            };
            // Neither semaphore is ever closed.
            let _permit = permits.acquire().await;
            self.0.mint.mint(key).await
        });
        match minted.await.unwrap_or(Err(MintError::GaveUp)) {
            Ok(token) => {
                let token = Arc::new(token);
                self.proven().insert((key.region.clone(), key.endpoint));
                self.0.tokens.insert(key.clone(), token.clone()).await;
                self.0.failures.invalidate(key).await;
                self.0.landings.send_replace(());
                Ok(token)
            }
            Err(error) => {
                let count = self
                    .0
                    .failures
                    .get(key)
                    .await
                    .map_or(0, |failure| failure.count.saturating_add(1));
                let failure = Failure {
                    error: error.clone(),
                    count,
                    at: Instant::now(),
                };
                self.0.failures.insert(key.clone(), failure).await;
                Err(error)
            }
        }
    }

    fn proven(&self) -> MutexGuard<'_, HashSet<(Region, Endpoint)>> {
        self.0.proven.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<TokenKey, Flight>> {
        self.0
            .flights
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes a flight off the map when it ends, also by a panic.
struct Landing {
    cache: TokenCache,
    key: TokenKey,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.cache.flights().remove(&self.key);
    }
}

impl Failure {
    fn is_pausing(&self, has_token: bool) -> bool {
        let (floor, ceiling) = if has_token {
            (RENEWAL_FLOOR, RENEWAL_CEILING)
        } else {
            (MISSING_FLOOR, MISSING_CEILING)
        };
        let pause = floor
            .saturating_mul(2_u32.saturating_pow(self.count))
            .min(ceiling);
        self.at.elapsed() < pause
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use jiff::SignedDuration;
    use secrecy::ExposeSecret as _;
    use tokio::sync::watch;

    use super::*;
    use crate::{
        identity::Identity,
        registry::{Endpoint, Region},
    };

    /// A clock that tests turn by hand.
    #[derive(Default)]
    struct ManualClock(AtomicI64);

    impl Clock for ManualClock {
        fn now(&self) -> Timestamp {
            Timestamp::constant(1_800_000_000, 0)
                + SignedDuration::from_secs(self.0.load(Ordering::SeqCst))
        }
    }

    impl ManualClock {
        fn advance(&self, hours: i64) {
            self.0.fetch_add(hours * 3600, Ordering::SeqCst);
        }
    }

    /// Mints once the gate is open; fails with whatever error is set.
    struct FakeMint {
        calls: AtomicUsize,
        error: Mutex<Option<MintError>>,
        gate: watch::Sender<bool>,
        clock: Arc<ManualClock>,
        panics: bool,
    }

    impl Mint for FakeMint {
        fn mint<'a>(&'a self, _: &'a TokenKey) -> BoxFuture<'a, Result<Token, MintError>> {
            async move {
                let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
                assert!(!self.panics, "asked to panic");
                let _ = self.gate.subscribe().wait_for(|open| *open).await;
                if let Some(error) = self.error.lock().expect("lock").clone() {
                    return Err(error);
                }
                let now = self.clock.now();
                let text = STANDARD.encode(format!("AWS:token-{call}"));
                let expires_at = Some(now + SignedDuration::from_hours(12));
                Token::decode(Some(&text), expires_at, None, now)
                    .map_err(|wrong| MintError::Unusable(Call::GetAuthorizationToken, wrong))
            }
            .boxed()
        }
    }

    struct Bed {
        mint: Arc<FakeMint>,
        clock: Arc<ManualClock>,
        cache: TokenCache,
    }

    fn bed() -> Bed {
        bed_that(false)
    }

    fn bed_that(panics: bool) -> Bed {
        let clock = Arc::new(ManualClock::default());
        let mint = Arc::new(FakeMint {
            calls: AtomicUsize::new(0),
            error: Mutex::new(None),
            gate: watch::channel(true).0,
            clock: clock.clone(),
            panics,
        });
        let cache = TokenCache::new(mint.clone(), clock.clone(), TaskTracker::new());
        Bed { mint, clock, cache }
    }

    fn key() -> TokenKey {
        let region = Region::parse("eu-west-1").expect("valid");
        TokenKey {
            identity: Identity::Ambient,
            region,
            endpoint: Endpoint::default(),
        }
    }

    impl Bed {
        async fn get(&self) -> Result<String, MintError> {
            self.get_within(Duration::from_mins(1)).await
        }

        async fn get_within(&self, time: Duration) -> Result<String, MintError> {
            let (token, _) = self.cache.get(&key(), Instant::now() + time).await?;
            let auth = STANDARD
                .decode(token.auth().expose_secret())
                .expect("base64");
            Ok(String::from_utf8(auth).expect("text"))
        }

        fn calls(&self) -> usize {
            self.mint.calls.load(Ordering::SeqCst)
        }

        fn fail(&self, error: Option<MintError>) {
            *self.mint.error.lock().expect("lock") = error;
        }

        async fn settle(&self) {
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn many_callers_at_once_cost_one_call() {
        let bed = bed();
        bed.mint.gate.send_replace(false);
        let callers = futures::future::join_all((0..500).map(|_| bed.get()));
        let opener = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            bed.mint.gate.send_replace(true);
        };
        let (tokens, ()) = futures::join!(callers, opener);
        assert!(
            tokens
                .iter()
                .all(|token| token.as_deref() == Ok("AWS:token-1"))
        );
        assert_eq!(bed.calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_gives_up_does_not_stop_the_flight_for_the_others() {
        let bed = bed();
        bed.mint.gate.send_replace(false);
        assert_eq!(
            bed.get_within(Duration::from_millis(100)).await,
            Err(MintError::Deadline)
        );
        tokio::time::timeout(Duration::from_millis(1), bed.get())
            .await
            .expect_err("cancelled");
        bed.mint.gate.send_replace(true);
        bed.settle().await;
        assert!(
            bed.cache.flights().is_empty(),
            "the flight waits for somebody who waits for it"
        );
        assert_eq!(bed.get().await.as_deref(), Ok("AWS:token-1"));
        assert_eq!(bed.calls(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn renews_at_a_quarter_of_life_and_serves_the_old_one_meanwhile() {
        let bed = bed();
        assert_eq!(bed.get().await.as_deref(), Ok("AWS:token-1"));
        bed.clock.advance(2);
        assert_eq!(bed.get().await.as_deref(), Ok("AWS:token-1"));
        bed.settle().await;
        assert_eq!(bed.calls(), 1, "renewed too early");
        bed.clock.advance(1);
        assert_eq!(bed.get().await.as_deref(), Ok("AWS:token-1"));
        bed.settle().await;
        assert_eq!(bed.get().await.as_deref(), Ok("AWS:token-2"));
        assert_eq!(bed.calls(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn keeps_the_old_token_while_ecr_throttles_and_not_past_its_expiry() {
        let bed = bed();
        assert!(bed.get().await.is_ok());
        bed.fail(Some(MintError::Throttled(
            Call::GetAuthorizationToken,
            "ThrottlingException".into(),
        )));
        for _ in 0..11 {
            bed.clock.advance(1);
            assert_eq!(bed.get().await.as_deref(), Ok("AWS:token-1"));
            bed.settle().await;
        }
        assert_eq!(
            bed.calls(),
            2,
            "the pause after a failed renewal was not kept"
        );
        tokio::time::advance(RENEWAL_CEILING).await;
        bed.clock.advance(1);
        assert!(
            matches!(bed.get().await, Err(MintError::Throttled(..))),
            "served past its expiry"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_remembered_for_a_moment_only() {
        let bed = bed();
        bed.fail(Some(MintError::Refused(
            Call::GetAuthorizationToken,
            "AccessDenied".into(),
        )));
        for _ in 0..10 {
            assert!(matches!(bed.get().await, Err(MintError::Refused(..))));
        }
        assert_eq!(bed.calls(), 1);
        bed.fail(None);
        tokio::time::advance(MISSING_CEILING).await;
        assert_eq!(bed.get().await.as_deref(), Ok("AWS:token-2"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_that_hangs_ends_by_its_own_deadline() {
        let bed = bed();
        bed.mint.gate.send_replace(false);
        assert_eq!(
            bed.get_within(FLIGHT_TIMEOUT * 2).await,
            Err(MintError::GaveUp)
        );
        assert!(bed.cache.flights().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_that_panics_is_an_error_and_blocks_nobody_after() {
        let bed = bed_that(true);
        assert_eq!(bed.get().await, Err(MintError::Crashed));
        assert!(bed.cache.flights().is_empty());
        assert_eq!(bed.get().await, Err(MintError::Crashed));
        assert_eq!(bed.calls(), 2);
    }
}
