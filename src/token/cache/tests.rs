//! Unit tests of `cache`.

use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::SignedDuration;
use secrecy::ExposeSecret as _;
use tokio::sync::watch;

use super::*;
use crate::{
    identity::{AssumeRoleOptions, Identity, RoleArn},
    registry::{Endpoint, Region},
    token::flights::{MAX_FLIGHTS, MISSING_CEILING},
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
            Token::decode(Some(&text), expires_at, None, now).map_err(|wrong| {
                MintError::Unusable(Operation::GetAuthorizationToken.into(), wrong)
            })
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
    key_in("eu-west-1")
}

fn key_in(region: &str) -> TokenKey {
    TokenKey {
        identity: Identity::Ambient,
        region: Region::parse(region).expect("valid"),
        endpoint: Endpoint::default(),
    }
}

/// In a region that AWS doesn't have.
fn invented(number: usize) -> TokenKey {
    let letter = |at: usize| char::from(b"abcdefghijklmnopqrstuvwxyz"[at % 26]);
    let place: String = [number / 676, number / 26, number]
        .map(letter)
        .iter()
        .collect();
    key_in(&format!("aa-{place}-1"))
}

/// Of one of many roles, in a known region.
fn of_role(number: usize) -> TokenKey {
    let arn = RoleArn::parse(&format!("arn:aws:iam::123456789012:role/r{number}"));
    TokenKey {
        identity: Identity::Role(AssumeRoleOptions::default().role(arn.expect("valid"), "team")),
        ..key()
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
    assert_eq!(
        bed.cache.flights().count(),
        0,
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
        Operation::GetAuthorizationToken.into(),
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
        Operation::GetAuthorizationToken.into(),
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
    assert_eq!(bed.cache.flights().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_panics_is_an_error_and_blocks_nobody_after() {
    let bed = bed_that(true);
    assert_eq!(bed.get().await, Err(MintError::Crashed));
    assert_eq!(bed.cache.flights().count(), 0);
    assert_eq!(bed.get().await, Err(MintError::Crashed));
    assert_eq!(bed.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn unproven_regions_in_hand_are_bounded() {
    let bed = bed();
    bed.mint.gate.send_replace(false);
    let soon = Instant::now() + Duration::from_secs(1);
    let names: Vec<_> = (0..500).map(invented).collect();
    let asked = names.iter().map(|key| bed.cache.get(key, soon));
    let results = futures::future::join_all(asked).await;
    let count = |wanted: &MintError| {
        let errors = results.iter().filter_map(|result| result.as_ref().err());
        errors.filter(|error| *error == wanted).count()
    };
    assert_eq!(count(&MintError::Deadline), MAX_UNPROVEN);
    assert_eq!(count(&MintError::TooManyRegions), 500 - MAX_UNPROVEN);
    assert_eq!(bed.calls(), MAX_UNPROVEN, "each that is in hand is minted");
    // Neither a renewal nor a known region is any different for it.
    assert_eq!(
        bed.cache.renew(&invented(500)).await.map(|_| ()),
        Err(MintError::TooManyRegions)
    );
    bed.mint.gate.send_replace(true);
    assert!(bed.get().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn failing_unproven_regions_make_room_after_their_pause() {
    let bed = bed();
    bed.fail(Some(MintError::NotAws(
        Operation::GetAuthorizationToken.into(),
    )));
    let get = async |number| {
        let key = invented(number);
        let minted = bed.cache.get(&key, Instant::now() + FLIGHT_TIMEOUT);
        minted.await.map(|_| ())
    };
    for number in 0..100 {
        let expected = if number < MAX_UNPROVEN {
            MintError::NotAws(Operation::GetAuthorizationToken.into())
        } else {
            MintError::TooManyRegions
        };
        assert_eq!(get(number).await, Err(expected), "{number}");
    }
    assert_eq!(bed.calls(), MAX_UNPROVEN, "a failure is remembered");
    tokio::time::advance(MISSING_CEILING).await;
    for number in 100..200 {
        let _ = get(number).await;
    }
    assert_eq!(bed.calls(), 2 * MAX_UNPROVEN);
    assert_eq!(bed.cache.flights().unproven(), MAX_UNPROVEN);
    assert_eq!(bed.cache.flights().count(), 0);
}

#[tokio::test(start_paused = true)]
async fn region_that_gave_a_token_is_bounded_no_more() {
    let bed = bed();
    let newer = |number| TokenKey {
        region: invented(0).region,
        ..of_role(number)
    };
    let soon = Instant::now() + Duration::from_secs(1);
    assert!(bed.cache.get(&newer(0), soon).await.is_ok());
    assert_eq!(bed.cache.flights().unproven(), 0);
    bed.mint.gate.send_replace(false);
    let names: Vec<_> = (1..100).map(newer).collect();
    let asked = names.iter().map(|key| bed.cache.get(key, soon));
    let results = futures::future::join_all(asked).await;
    for result in results {
        assert_eq!(result.map(|_| ()), Err(MintError::Deadline));
    }
}

#[tokio::test(start_paused = true)]
async fn flights_are_bounded_and_renewals_have_room_all_the_same() {
    let bed = bed();
    bed.mint.gate.send_replace(false);
    let soon = Instant::now() + Duration::from_secs(1);
    let names: Vec<_> = (0..MAX_FLIGHTS + 100).map(of_role).collect();
    let asked = names.iter().map(|key| bed.cache.get(key, soon));
    let counted = async {
        bed.settle().await;
        assert_eq!(bed.cache.flights().count(), MAX_FLIGHTS);
        assert_eq!(bed.calls(), MAX_MINTS);
        let renewed = bed.cache.renew(&names[MAX_FLIGHTS]);
        let _ = tokio::time::timeout(Duration::from_millis(1), renewed).await;
        assert_eq!(bed.calls(), MAX_MINTS + 1, "a renewal waits for admissions");
    };
    let (results, ()) = futures::join!(futures::future::join_all(asked), counted);
    let refused = results
        .iter()
        .filter(|result| matches!(result, Err(MintError::TooManyMints)));
    assert_eq!(refused.count(), 100);
}

#[tokio::test(start_paused = true)]
async fn queued_key_goes_with_its_last_waiter() {
    let bed = bed();
    bed.mint.gate.send_replace(false);
    let names: Vec<_> = (0..MAX_MINTS + 50).map(of_role).collect();
    let get = |number: usize, time| bed.cache.get(&names[number], Instant::now() + time);
    let (short, long) = (Duration::from_secs(1), Duration::from_secs(3));
    let asked = futures::future::join_all((0..names.len()).map(|at| get(at, short)));
    let stays = get(names.len() - 1, long);
    let looked = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        bed.settle().await;
        assert_eq!(
            bed.cache.flights().count(),
            MAX_MINTS + 1,
            "those that mint and the one that somebody waits for"
        );
        bed.mint.gate.send_replace(true);
    };
    let (_, stays, ()) = futures::join!(asked, stays, looked);
    assert!(stays.is_ok());
    bed.settle().await;
    assert_eq!(bed.calls(), MAX_MINTS + 1, "nobody wanted the others");
    for key in &names[..MAX_MINTS] {
        assert!(bed.cache.usable(key).await.is_some(), "it was minting");
    }
}

#[tokio::test(start_paused = true)]
async fn renewal_ahead_of_need_goes_on_though_nobody_waits() {
    let bed = bed();
    assert!(bed.get().await.is_ok());
    bed.mint.gate.send_replace(false);
    let crowd: Vec<_> = (0..MAX_MINTS).map(of_role).collect();
    let soon = Instant::now() + Duration::from_secs(1);
    let asked = futures::future::join_all(crowd.iter().map(|key| bed.cache.get(key, soon)));
    let looked = async {
        bed.settle().await;
        bed.clock.advance(4);
        assert_eq!(bed.get().await.as_deref(), Ok("AWS:token-1"));
        bed.settle().await;
        assert_eq!(bed.calls(), MAX_MINTS + 1, "it has its turn yet to come");
        bed.mint.gate.send_replace(true);
    };
    futures::join!(asked, looked);
    bed.settle().await;
    assert_eq!(bed.calls(), MAX_MINTS + 2);
}
