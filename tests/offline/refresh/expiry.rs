//! Tests of the expiry of credentials that can't be renewed.

use jiff::SignedDuration;

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
