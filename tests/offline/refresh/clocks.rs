//! Clocks that are set, and machines that sleep.

use jiff::SignedDuration;

use super::{IDENTITIES, IRELAND};
use crate::support::sim::{Fault, Sim, most_in_a_second};

#[tokio::test(start_paused = true)]
async fn clock_jump_is_noticed_in_10s_and_all_is_right_soon() {
    for hours in [13, 4, -3] {
        let sim = Sim::new(IDENTITIES);
        for team in ["a", "b", "c"] {
            sim.teams(team, 40, &[IRELAND], None);
        }
        let leader = sim.lead();
        sim.until(1.0).await;
        sim.cluster.take_writes();
        let (minted, _) = sim.aws.total();
        sim.clock.jump(SignedDuration::from_hours(hours));
        sim.after(11.0).await;
        assert!(
            !sim.cluster.take_writes().is_empty(),
            "{hours} h: not noticed"
        );
        sim.after(7.0).await;
        assert_eq!(sim.cluster.unusable(), [], "{hours} h");
        sim.after(600.0).await;
        let (after, failed) = sim.aws.total();
        assert_eq!(
            (after - minted, failed),
            (3, 0),
            "{hours} h: one token for each key"
        );
        assert!(most_in_a_second(&sim.cluster.take_writes()) <= 20);
        leader.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn paused_work_is_tried_at_once_after_the_machine_slept() {
    let sim = Sim::new("");
    let names = sim.teams("team", 5, &[IRELAND], None);
    sim.aws.fail(0.0..1.0, "", Fault::Throttled);
    let leader = sim.lead();
    sim.until(0.9).await;
    assert_eq!(sim.cluster.unusable().len(), names.len());
    sim.clock.jump(SignedDuration::from_hours(8));
    sim.after(12.0).await;
    assert_eq!(sim.cluster.unusable(), []);
    leader.stop().await;
}
