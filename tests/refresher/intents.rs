//! Pods wait for these: pull secrets that name a host for which nobody could mint.

use std::time::Duration;

use tokio::time::Instant;

use super::IRELAND;
use super::support::sim::{Fault, Obstacle, Sim, namespace};

#[tokio::test(start_paused = true)]
async fn an_intent_is_completed_within_a_second() {
    let sim = Sim::new("");
    let leader = sim.lead();
    sim.after(100.0).await;
    let name = namespace("team");
    sim.cluster.opt_in(&name);
    sim.intend(&name, &[IRELAND]);
    sim.after(1.0).await;
    assert!(sim.cluster.left(&name, IRELAND).is_some());
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn once_aws_is_back_the_newest_intents_come_first() {
    let sim = Sim::new("");
    sim.aws.fail(0.0..1.0, "", Fault::Throttled);
    let leader = sim.lead();
    let mut names = Vec::new();
    for number in [7, 3, 9, 1, 5, 8, 2, 6, 4, 0] {
        for more in 0..4 {
            let name = namespace(&format!("team-{number}-{more}"));
            sim.cluster.opt_in(&name);
            sim.intend(&name, &[IRELAND]);
            names.push(name);
            sim.after(20.0).await;
        }
    }
    sim.until(1.0).await;
    assert_eq!(
        sim.cluster.take_writes().len(),
        0,
        "there is nothing to write"
    );
    sim.until(1.1).await;
    leader.stop().await;
    let writes = sim.cluster.take_writes();
    let order: Vec<_> = writes.iter().map(|write| write.namespace.clone()).collect();
    names.reverse();
    assert_eq!(order, names);
    let took = writes[19].at.duration_since(writes[0].at);
    assert!(
        took < Duration::from_secs(1),
        "{took:?} for the first twenty"
    );
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_completes_the_newest_intents_first_too() {
    let sim = Sim::new("");
    let mut names = Vec::new();
    for number in [7, 3, 9, 1, 5, 8, 2, 6, 4, 0] {
        let name = namespace(&format!("team-{number}"));
        sim.cluster.opt_in(&name);
        sim.intend(&name, &[IRELAND]);
        names.push(name);
    }
    let leader = sim.lead();
    sim.after(10.0).await;
    leader.stop().await;
    let writes = sim.cluster.take_writes();
    let order: Vec<_> = writes.iter().map(|write| write.namespace.clone()).collect();
    names.reverse();
    assert_eq!(order, names);
}

#[tokio::test(start_paused = true)]
async fn an_admission_that_gets_the_token_ends_the_wait_of_all() {
    let sim = Sim::new("");
    sim.aws.fail(0.0..0.5, "", Fault::Throttled);
    let names = sim.teams("team", 10, &[IRELAND], None);
    let leader = sim.lead();
    sim.until(0.5).await;
    sim.after(1.0).await;
    assert_eq!(
        sim.cluster.unusable().len(),
        names.len(),
        "the leader pauses for minutes by now"
    );
    let key = sim.key(&names[0], IRELAND);
    let minted = sim
        .tokens
        .get(&key, Instant::now() + Duration::from_secs(5))
        .await;
    assert!(minted.is_ok(), "{minted:?}");
    sim.after(2.0).await;
    assert_eq!(sim.cluster.unusable(), []);
    assert_eq!(sim.aws.total().0, 1, "nobody minted another");
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_usable_is_not_held_back_while_a_newer_one_is_minted() {
    let sim = Sim::new("");
    sim.teams("team", 1, &[IRELAND], None);
    sim.aws.fail(2.9..9.0, "", Fault::Silent);
    let leader = sim.lead();
    // Of the token's life more than 24 % are gone.
    sim.until(2.95).await;
    let late = namespace("late");
    sim.cluster.opt_in(&late);
    sim.intend(&late, &[IRELAND]);
    sim.after(1.0).await;
    assert!(sim.cluster.left(&late, IRELAND).is_some());
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_intent_overtakes_ten_thousand_renewals() {
    let sim = Sim::new("");
    sim.teams(
        "team",
        10_000,
        &[IRELAND],
        Some(jiff::SignedDuration::from_hours(5)),
    );
    let leader = sim.lead();
    sim.after(30.0).await;
    let late = namespace("late");
    sim.cluster.opt_in(&late);
    sim.intend(&late, &[IRELAND]);
    sim.after(1.0).await;
    assert!(sim.cluster.left(&late, IRELAND).is_some());
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn intents_that_a_quota_refuses_do_not_hold_up_the_others() {
    let sim = Sim::new("");
    let refused = sim.teams("full", 40, &[IRELAND], None);
    for name in &refused {
        sim.cluster.obstruct(name, Some(Obstacle::Quota));
    }
    let names = sim.teams("team", 400, &[IRELAND], None);
    let leader = sim.lead();
    sim.after((440.0 + 40.0) / 20.0 * 1.2).await;
    leader.stop().await;
    assert_eq!(sim.cluster.take_writes().len(), names.len());
}
