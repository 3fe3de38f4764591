//! Tests of the expiry of credentials that can't be renewed.

use ecr_injector::process::clock::Clock as _;
use jiff::{SignedDuration, Timestamp};

use super::{IRELAND, PUBLIC};
use crate::support::sim::{Fault, Sim};

#[tokio::test(start_paused = true)]
async fn old_token_stays_until_it_expires_and_its_host_after_that() {
    let sim = Sim::new("");
    let nine = SignedDuration::from_hours(9);
    let names = sim.teams("team", 20, &[IRELAND], Some(nine));
    sim.aws.fail(0.0..5.0, "", Fault::Throttled);
    let before: Vec<_> = names.iter().map(|name| sim.cluster.state(name)).collect();
    let leader = sim.lead();
    sim.until(4.9).await;
    assert_eq!(sim.cluster.take_writes().len(), 0);
    let after: Vec<_> = names.iter().map(|name| sim.cluster.state(name)).collect();
    assert_eq!(after, before);
    sim.until(5.1).await;
    assert_eq!(sim.cluster.unusable(), []);
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn public_entry_is_taken_out_before_it_expires_in_place() {
    for fault in [Fault::Throttled, Fault::Silent] {
        let sim = Sim::new("publicEcr: true");
        let nine = SignedDuration::from_hours(9);
        let names = sim.teams("team", 20, &[PUBLIC, IRELAND], Some(nine));
        sim.aws.fail(0.0..4.0, "", fault);
        let leader = sim.lead();
        sim.until(2.7).await;
        assert!(
            names
                .iter()
                .all(|name| sim.cluster.left(name, PUBLIC).is_some()),
            "kept as long as it is good"
        );
        sim.cluster.take_writes();
        for _ in 0..240 {
            sim.after(5.0).await;
            for name in &names {
                let left = sim.cluster.left(name, PUBLIC);
                assert!(
                    left.is_none_or(|left| left > SignedDuration::from_mins(4)),
                    "{name}: {left:?}"
                );
            }
        }
        assert_eq!(sim.cluster.take_writes().len(), names.len());
        let expired = sim.cluster.left(&names[0], IRELAND).unwrap();
        assert!(
            expired < SignedDuration::from_mins(5),
            "a private one stays: {expired:#}"
        );
        sim.until(4.1).await;
        assert_eq!(sim.cluster.unusable(), []);
        leader.stop().await;
    }
}

/// Sessions of an hour, of which the next is there five minutes before the end of one: so gives the metadata of an
/// instance, and for most of an hour the same session ends ever sooner.
#[tokio::test(start_paused = true)]
async fn tokens_that_end_with_their_session_are_minted_some_times_an_hour() {
    let sim = Sim::new("");
    sim.aws.end_tokens_with(|now: Timestamp| {
        let every = 55 * 60;
        let nth = now.as_second().div_euclid(every);
        Timestamp::from_second(nth * every + 3600).unwrap()
    });
    let names = sim.teams("team", 20, &[IRELAND], None);
    let leader = sim.lead();
    sim.until(0.1).await;
    let (mut minted, mut worst) = (sim.aws.total().0, 0);
    for quarter in 1..=96_u32 {
        sim.until(0.1 + f64::from(quarter) / 4.0).await;
        let (total, failed) = sim.aws.total();
        worst = worst.max(total - minted);
        minted = total;
        assert_eq!(failed, 0, "there was always a session that is long enough");
    }
    let left = sim.cluster.least_left();
    assert!(
        left > SignedDuration::from_mins(2),
        "a credential had {left:#} left"
    );
    assert!(
        (24 * 2..=24 * 12).contains(&minted),
        "{minted} mints in a day"
    );
    assert!(worst <= 8, "{worst} mints in a quarter of an hour");
    let writes = sim.cluster.take_writes().len();
    assert!(writes <= names.len() * 24 * 12, "{writes} writes in a day");
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn session_that_is_over_is_tried_again_with_backoff() {
    let sim = Sim::new("");
    let end = sim.clock.now() + SignedDuration::from_mins(30);
    sim.aws.end_tokens_with(move |now: Timestamp| {
        let over_for = now.duration_since(end);
        if over_for < SignedDuration::from_hours(2) {
            end
        } else {
            now + SignedDuration::from_hours(1)
        }
    });
    sim.teams("team", 20, &[IRELAND], None);
    let leader = sim.lead();
    sim.until(2.4).await;
    let (minted, failed) = sim.aws.total();
    assert!((1..=10).contains(&minted), "{minted} mints");
    assert!(
        (10..=60).contains(&failed),
        "{failed} failures in two hours"
    );
    sim.until(2.7).await;
    assert_eq!(sim.cluster.unusable(), [], "the new session is found");
    leader.stop().await;
}
