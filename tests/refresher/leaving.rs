//! Namespaces that come and go.

use ecr_injector::namespace::Namespace;
use jiff::SignedDuration;

use super::support::sim::{Fault, START, Sim, namespace};
use super::{IRELAND, VIRGINIA};

fn is_retired(sim: &Sim, name: &Namespace) -> bool {
    sim.cluster.state(name).unwrap().retired
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_opted_in_is_written_within_a_second() {
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
async fn one_that_is_opted_out_is_marked_at_once_kept_fresh_for_a_day_and_retired_once() {
    let sim = Sim::new("");
    let name = sim.teams("team", 1, &[IRELAND], None).remove(0);
    let leader = sim.lead();
    sim.until(1.0).await;
    sim.cluster.opt_out(&name);
    sim.after(2.0).await;
    let since = sim.cluster.state(&name).unwrap().opted_out_at.unwrap();
    assert!(since.duration_since(START) >= SignedDuration::from_hours(1));
    for hour in 2..=24_u32 {
        sim.until(f64::from(hour)).await;
        let left = sim.cluster.left(&name, IRELAND).unwrap();
        assert!(
            left > SignedDuration::from_hours(8),
            "hour {hour}: {left:#}"
        );
        assert!(!is_retired(&sim, &name));
    }
    sim.until(25.1).await;
    assert!(is_retired(&sim, &name));
    let writes = sim.cluster.take_writes().len();
    assert!((9..=10).contains(&writes), "{writes}");
    let calls = sim.cluster.calls();
    sim.until(50.0).await;
    assert_eq!(sim.cluster.calls(), calls);
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_begins_in_the_grace_knows_when_it_began() {
    let sim = Sim::new("");
    let name = sim.teams("team", 1, &[IRELAND], None).remove(0);
    let leader = sim.lead();
    sim.until(1.0).await;
    sim.cluster.opt_out(&name);
    sim.until(10.0).await;
    leader.stop().await;
    let sim = sim.restarted();
    sim.cluster.know_by_the_list_alone();
    let leader = sim.lead();
    sim.until(24.9).await;
    assert!(!is_retired(&sim, &name));
    sim.until(25.1).await;
    assert!(is_retired(&sim, &name));
    leader.stop().await;
    let sim = sim.restarted();
    sim.cluster.know_by_the_list_alone();
    sim.cluster.take_writes();
    let leader = sim.lead();
    sim.until(45.0).await;
    assert_eq!(sim.cluster.take_writes().len(), 0);
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn the_grace_ends_also_where_no_token_can_be_had() {
    let sim = Sim::new("").gracing(4);
    let name = sim.teams("team", 1, &[IRELAND], None).remove(0);
    let leader = sim.lead();
    sim.until(1.0).await;
    sim.cluster.opt_out(&name);
    // Whoever leaves takes the role away too.
    sim.aws.fail(1.1..999.0, "", Fault::Refused);
    sim.until(5.1).await;
    assert!(is_retired(&sim, &name));
    let (_, failed) = sim.aws.total();
    sim.until(9.0).await;
    assert!(sim.aws.total().1 <= failed + 1, "nobody wants it any more");
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn it_is_removed_after_the_grace_if_that_is_wanted() {
    let sim = Sim::new("").removing();
    let names = sim.teams("team", 2, &[IRELAND], None);
    let leader = sim.lead();
    sim.until(1.0).await;
    sim.cluster.opt_out(&names[0]);
    sim.until(24.9).await;
    assert!(sim.cluster.knowledge(&names[0]).is_some());
    sim.until(25.1).await;
    assert_eq!(sim.cluster.knowledge(&names[0]), None);
    assert!(sim.cluster.knowledge(&names[1]).is_some());
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_is_kept_as_before() {
    for hours in [5.0, 30.0] {
        let sim = Sim::new("");
        let name = sim.teams("team", 1, &[IRELAND], None).remove(0);
        let leader = sim.lead();
        sim.until(1.0).await;
        sim.cluster.opt_out(&name);
        sim.until(hours).await;
        sim.cluster.opt_in(&name);
        sim.after(2.0).await;
        let state = sim.cluster.state(&name).unwrap();
        assert_eq!((state.opted_out_at, state.retired), (None, false));
        assert_eq!(sim.cluster.unusable(), []);
        sim.until(40.0).await;
        let left = sim.cluster.left(&name, IRELAND).unwrap();
        assert!(left > SignedDuration::from_hours(8), "{left:#}");
        leader.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_opt_out_is_marked_also_while_thousands_are_due() {
    let sim = Sim::new("");
    sim.teams(
        "busy",
        5000,
        &[IRELAND],
        Some(SignedDuration::from_hours(5)),
    );
    let name = namespace("team");
    sim.cluster.opt_in(&name);
    sim.give(&name, &[IRELAND], Some(SignedDuration::from_hours(1)));
    let leader = sim.lead();
    sim.after(5.0).await;
    sim.cluster.opt_out(&name);
    sim.after(5.0).await;
    assert!(sim.cluster.state(&name).unwrap().opted_out_at.is_some());
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_that_is_deleted_is_forgotten_and_one_that_goes_away_left_alone() {
    let sim = Sim::new("");
    let names = sim.teams("team", 2, &[IRELAND], None);
    let leader = sim.lead();
    sim.until(1.0).await;
    sim.cluster.take_writes();
    sim.cluster.delete_namespace(&names[0]);
    sim.cluster.terminate(&names[1]);
    sim.cluster.delete(&names[1]);
    sim.until(9.0).await;
    assert_eq!(sim.cluster.knowledge(&names[0]), None);
    assert_eq!(sim.cluster.take_writes().len(), 0);
    assert_eq!(
        sim.cluster.calls().2,
        1,
        "one question for the one that is gone"
    );
    leader.stop().await;
}
