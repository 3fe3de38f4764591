//! Unit tests of `mint_queue`.

use super::*;
use crate::{
    identity::Identity,
    registry::{Endpoint, Registry},
    token::cache::Operation,
};

fn key_in(region: &str, fips: bool) -> TokenKey {
    let host = format!("123456789012.dkr.ecr.{region}.amazonaws.com");
    let registry: Registry = host.parse().expect("valid");
    let endpoint = Endpoint {
        fips,
        ..Endpoint::default()
    };
    TokenKey {
        endpoint,
        ..TokenKey::new(Identity::Ambient, &registry)
    }
}

fn key() -> TokenKey {
    key_in("eu-west-1", false)
}

const DUE: Timestamp = Timestamp::constant(1_800_000_000, 0);

fn namespace(name: &str) -> Namespace {
    Namespace::parse(name).expect("valid")
}

fn renewal(at: Timestamp) -> Overdue {
    Overdue {
        renewal: Some(at),
        ..Overdue::default()
    }
}

fn refused() -> MintError {
    MintError::Timeout(Operation::GetAuthorizationToken.into())
}

fn only(key: &TokenKey) -> BTreeSet<TokenKey> {
    BTreeSet::from([key.clone()])
}

#[tokio::test(start_paused = true)]
async fn failure_is_returned_once_to_each_and_its_end_to_all() {
    let (mut queue, now) = (MintQueue::default(), Instant::now());
    queue.wait(&namespace("a"), &only(&key()), renewal(DUE));
    assert_eq!(queue.pop(), Some(key()));
    queue.release(&key());
    let (informed, pause) = queue.failed(&key(), refused(), now);
    assert_eq!(informed, HashSet::from([namespace("a")]));
    assert!(matches!(queue.status(&key()), MintStatus::Failing(_)));
    let later = now + pause;
    queue.retry(later);
    assert_eq!(queue.pop(), Some(key()));
    // No write has to wait for the result of this try.
    assert!(matches!(queue.status(&key()), MintStatus::Failing(_)));
    queue.wait(&namespace("b"), &only(&key()), renewal(DUE));
    let (informed, longer) = queue.failed(&key(), refused(), later);
    assert_eq!(informed, HashSet::new(), "both know it");
    assert!(longer > pause);
    assert_eq!(queue.waiting_count(), 2);
    let (all, failures) = queue.available(&key());
    assert_eq!((all.len(), failures, queue.waiting_count()), (2, 2, 0));
    assert!(matches!(queue.status(&key()), MintStatus::Unknown));
    assert_eq!(queue.next_retry(), None);
}

#[tokio::test(start_paused = true)]
async fn next_is_of_the_region_with_the_fewest_under_way() {
    let (mut queue, now) = (MintQueue::default(), Instant::now());
    let failing = key();
    let early = DUE - jiff::SignedDuration::from_secs(9);
    queue.wait(&namespace("b"), &only(&failing), renewal(DUE));
    queue.wait(&namespace("a"), &only(&failing), renewal(early));
    assert_eq!(queue.pop(), Some(failing.clone()));
    queue.release(&failing);
    let (_, pause) = queue.failed(&failing, refused(), now);
    assert_eq!(queue.overdue_since(DUE), Some(early));
    queue.leave(&namespace("a"));
    assert_eq!(queue.overdue_since(DUE), Some(DUE));
    let (first, second) = (key_in("us-east-1", false), key_in("us-east-1", true));
    let available = key_in("eu-west-2", false);
    queue.wait(&namespace("c"), &only(&first), Overdue::default());
    queue.wait(&namespace("d"), &only(&second), Overdue::default());
    queue.wait(&namespace("e"), &only(&available), Overdue::default());
    queue.retry(now + pause);
    assert!(queue.is_wanted(&available));
    queue.available(&available);
    let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
    let regions: Vec<_> = order.iter().map(|key| key.region.to_string()).collect();
    assert_eq!(regions, ["us-east-1", "eu-west-1", "us-east-1"]);
}

#[tokio::test(start_paused = true)]
async fn first_and_last_of_a_crowd_take_turns() {
    let mut queue = MintQueue::default();
    let numbered = |number: usize| {
        let endpoint = Endpoint {
            fips: number & 1 == 1,
            dual_stack: number & 2 == 2,
            ..Endpoint::default()
        };
        TokenKey { endpoint, ..key() }
    };
    for number in 0..4 {
        let name = namespace(&format!("team-{number}"));
        queue.wait(&name, &only(&numbered(number)), Overdue::default());
    }
    let order: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();
    let number_of = |key: &TokenKey| (0..4).find(|number| numbered(*number) == *key);
    let numbers: Vec<_> = order.iter().filter_map(number_of).collect();
    assert!(
        numbers == [0, 3, 1, 2] || numbers == [3, 0, 2, 1],
        "{numbers:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn namespace_served_the_longest_ago_comes_first() {
    let mut queue = MintQueue::default();
    let regions = ["eu-west-1", "eu-west-1"];
    for (number, region) in regions.iter().enumerate() {
        queue.wait(
            &namespace("greedy"),
            &only(&key_in(region, number == 1)),
            Overdue::default(),
        );
        assert!(queue.pop().is_some());
    }
    let (greedy, patient) = (key_in("eu-west-1", false), key_in("eu-west-1", true));
    let mut queue = MintQueue {
        served: queue.served,
        turns: queue.turns,
        ..MintQueue::default()
    };
    queue.wait(&namespace("greedy"), &only(&greedy), Overdue::default());
    queue.wait(&namespace("patient"), &only(&patient), Overdue::default());
    assert_eq!(queue.pop(), Some(patient));
}

#[test]
fn host_without_a_credential_counts_for_a_day() {
    let hours = SignedDuration::from_hours;
    let overdue = Overdue {
        renewal: None,
        first_wanted: vec![DUE, DUE + hours(20)],
    };
    for (after, expected) in [(1, Some(DUE)), (25, Some(DUE + hours(20))), (45, None)] {
        assert_eq!(overdue.since(DUE + hours(after)), expected, "{after}");
    }
}

#[tokio::test(start_paused = true)]
async fn queued_token_goes_with_its_last_waiter() {
    let mut queue = MintQueue::default();
    queue.wait(&namespace("a"), &only(&key()), Overdue::default());
    queue.wait(&namespace("b"), &only(&key()), Overdue::default());
    queue.leave(&namespace("a"));
    assert!(queue.is_wanted(&key()));
    queue.wait(
        &namespace("b"),
        &only(&key_in("us-east-1", false)),
        Overdue::default(),
    );
    assert!(!queue.is_wanted(&key()));
    queue.forget(&namespace("b"));
    assert_eq!(queue.pop(), None);
    assert!(queue.wanted.is_empty() && queue.queued.is_empty());
}

#[tokio::test(start_paused = true)]
async fn token_that_nobody_waits_for_is_not_tried_again() {
    let (mut queue, now) = (MintQueue::default(), Instant::now());
    queue.wait(&namespace("a"), &only(&key()), Overdue::default());
    assert!(queue.pop().is_some());
    let (_, pause) = queue.failed(&key(), refused(), now);
    queue.leave(&namespace("a"));
    queue.retry(now + pause);
    assert_eq!((queue.pop(), queue.next_retry()), (None, None));
    assert!(queue.wanted.is_empty());
}
