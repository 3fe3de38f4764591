//! Namespaces that come and go.

use ecr_injector::pull_secret::Observed;
use jiff::SignedDuration;

use super::{IRELAND, VIRGINIA};
use crate::support::sim::{Sim, namespace};

#[tokio::test(start_paused = true)]
async fn opted_in_namespace_is_written_within_a_second() {
    let sim = Sim::new("").prewarming(&[IRELAND, VIRGINIA]);
    let leader = sim.lead();
    sim.until(1.0).await;
    let name = namespace("team");
    sim.cluster.opt_in(&name);
    sim.after(1.0).await;
    leader.stop().await;
    assert!(
        sim.cluster.left(&name, IRELAND).is_some() && sim.cluster.left(&name, VIRGINIA).is_some()
    );
    assert_eq!(sim.cluster.take_writes().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn opted_out_namespace_is_never_written_again() {
    let sim = Sim::new("").prewarming(&[VIRGINIA]);
    let name = sim.teams("team", 1, &[IRELAND], None).remove(0);
    let leader = sim.lead();
    sim.until(1.0).await;
    let copy = sim.cluster.secret(&name).unwrap();
    sim.cluster.opt_out(&name);
    sim.after(5.0).await;
    let left = sim.cluster.secret(&name).unwrap();
    sim.cluster.take_writes();
    // Whatever its tenant makes of it.
    for hour in 2..40_u32 {
        match hour % 5 {
            0 => sim.cluster.rival(&name),
            1 => sim.cluster.put_back(&name, &copy),
            2 => sim.cluster.delete(&name),
            3 => sim.cluster.forge(&name, &[IRELAND.to_owned()]),
            _ => {}
        }
        sim.until(f64::from(hour)).await;
    }
    leader.stop().await;
    assert_eq!(sim.cluster.take_writes().len(), 0);
    assert_eq!(left.data, copy.data, "as good as its tokens");
}

#[tokio::test(start_paused = true)]
async fn new_leader_leaves_opted_out_namespaces_alone() {
    let sim = Sim::new("");
    let name = sim.teams("team", 1, &[IRELAND], None).remove(0);
    sim.cluster.opt_out(&name);
    sim.cluster.know_by_the_list_alone();
    let leader = sim.lead();
    sim.until(13.0).await;
    leader.stop().await;
    assert_eq!((sim.cluster.calls(), sim.aws.total()), ((0, 0, 0), (0, 0)));
}

#[tokio::test(start_paused = true)]
async fn expired_secret_of_an_opted_out_namespace_is_deleted() {
    let sim = Sim::new("").removing();
    let names = sim.teams("team", 2, &[IRELAND], Some(SignedDuration::ZERO));
    let leader = sim.lead();
    sim.until(1.0).await;
    sim.cluster.opt_out(&names[0]);
    sim.until(11.9).await;
    assert!(
        sim.cluster.secret(&names[0]).is_some(),
        "its tokens are good"
    );
    sim.until(12.1).await;
    assert!(sim.cluster.secret(&names[0]).is_none());
    assert_eq!(sim.cluster.observed(&names[0]), None);
    assert!(sim.cluster.secret(&names[1]).is_some());
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn namespace_that_comes_back_is_fresh_at_once() {
    for hours in [5.0, 30.0] {
        let sim = Sim::new("");
        let name = sim.teams("team", 1, &[IRELAND], None).remove(0);
        let leader = sim.lead();
        sim.until(1.0).await;
        sim.cluster.opt_out(&name);
        sim.until(hours).await;
        sim.cluster.opt_in(&name);
        sim.after(2.0).await;
        assert_eq!(sim.cluster.unusable(), []);
        sim.until(40.0).await;
        let left = sim.cluster.left(&name, IRELAND).unwrap();
        assert!(left > SignedDuration::from_hours(8), "{left:#}");
        leader.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn deleted_or_terminating_namespace_is_left_alone() {
    let sim = Sim::new("");
    let names = sim.teams("team", 2, &[IRELAND], None);
    let leader = sim.lead();
    sim.until(1.0).await;
    sim.cluster.take_writes();
    sim.cluster.delete_namespace(&names[0]);
    sim.cluster.terminate(&names[1]);
    sim.cluster.delete(&names[1]);
    sim.until(9.0).await;
    assert!(!matches!(
        sim.cluster.observed(&names[0]),
        Some(Observed::Managed(_))
    ));
    assert_eq!(sim.cluster.take_writes().len(), 0);
    leader.stop().await;
}
