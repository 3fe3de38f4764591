//! Pods wait for these: pull secrets that name a host which has no credential yet.

use std::time::Duration;

use tokio::time::Instant;

use super::IRELAND;
use crate::support::sim::{Fault, Obstacle, Sim, namespace};

#[tokio::test(start_paused = true)]
async fn pending_host_gets_its_credential_within_a_second() {
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
async fn waiting_hosts_are_all_written_once_aws_is_back() {
    let sim = Sim::new("");
    sim.aws.fail(0.0..1.0, "", Fault::Throttled);
    let leader = sim.lead();
    for number in 0..40 {
        let name = namespace(&format!("team-{number}"));
        sim.cluster.opt_in(&name);
        sim.intend(&name, &[IRELAND]);
        sim.after(20.0).await;
    }
    sim.until(1.0).await;
    let writes = sim.cluster.take_writes().len();
    assert_eq!(writes, 0, "there is nothing to write");
    sim.until(1.1).await;
    leader.stop().await;
    let writes = sim.cluster.take_writes();
    assert_eq!(writes.len(), 40);
    let took = writes[19].at.duration_since(writes[0].at);
    assert!(took < Duration::from_secs(1), "{took:?} for twenty");
}

#[tokio::test(start_paused = true)]
async fn token_of_an_admission_ends_the_wait_of_all() {
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
async fn usable_token_is_not_held_back_for_a_newer_one() {
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
async fn pending_host_overtakes_ten_thousand_renewals() {
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
async fn pending_hosts_under_quota_hold_up_no_other() {
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
