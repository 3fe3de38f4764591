//! Leaders that begin and end.

use jiff::SignedDuration;

use super::{IDENTITIES, IRELAND, VIRGINIA};
use crate::support::sim::{Fault, Sim};

#[tokio::test(start_paused = true)]
async fn ended_term_sends_nothing_more_and_ends_the_work() {
    let sim = Sim::new("");
    sim.teams("team", 1000, &[IRELAND], None);
    let leader = sim.lead();
    sim.after(10.0).await;
    leader.term.end();
    let (sent, ..) = sim.cluster.calls();
    assert!((150..=210).contains(&sent), "{sent}");
    sim.after(1.0).await;
    assert_eq!(sim.cluster.calls().0, sent);
    assert!(leader.work.is_finished());
    assert_eq!(
        sim.cluster.take_writes().len() as u64,
        sent,
        "what was under way ended"
    );
}

#[tokio::test(start_paused = true)]
async fn write_prepared_in_the_term_is_not_sent_after_it() {
    let sim = Sim::new("");
    // One of two is renewed, so the other's credential has to be read first.
    sim.aws.fail(0.0..9.0, "us-east-1", Fault::Refused);
    let five = Some(SignedDuration::from_hours(5));
    sim.teams("team", 100, &[IRELAND, VIRGINIA], five);
    let leader = sim.lead();
    sim.after(1.0).await;
    while !sim.cluster.is_reading() {
        sim.after(0.001).await;
    }
    let (sent, ..) = sim.cluster.calls();
    leader.stop().await;
    assert_eq!(sim.cluster.calls().0, sent);
}

#[tokio::test(start_paused = true)]
async fn new_leader_in_a_new_process_writes_nothing_that_is_fresh() {
    let sim = Sim::new("");
    sim.teams("team", 100, &[IRELAND], None);
    let leader = sim.lead();
    sim.until(1.0).await;
    leader.stop().await;
    assert_eq!(sim.cluster.take_writes().len(), 100);
    let sim = sim.restarted();
    sim.cluster.know_by_the_list_alone();
    let leader = sim.lead();
    sim.until(2.9).await;
    assert_eq!(sim.cluster.take_writes().len(), 0);
    assert_eq!(sim.aws.total().0, 1);
    assert_eq!(sim.cluster.calls().1, 100, "each is looked at once");
    sim.until(4.0).await;
    assert_eq!(sim.cluster.take_writes().len(), 100);
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn listed_secrets_come_after_urgent_and_due_ones() {
    let sim = Sim::new("");
    sim.teams(
        "fresh",
        600,
        &[IRELAND],
        Some(SignedDuration::from_hours(1)),
    );
    let due = sim.teams("due", 100, &[IRELAND], Some(SignedDuration::from_hours(5)));
    sim.cluster.know_by_the_list_alone();
    let leader = sim.lead();
    sim.after(6.0).await;
    assert_eq!(sim.cluster.take_writes().len(), due.len());
    sim.after(30.0).await;
    let (_, looks, _) = sim.cluster.calls();
    assert_eq!(
        looks,
        600 + 100,
        "each once, and before a write for its sake"
    );
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn another_identity_mints_again_what_is_there() {
    let sim = Sim::new("");
    let names = sim.teams("a", 10, &[IRELAND], None);
    let leader = sim.lead();
    sim.until(1.0).await;
    leader.stop().await;
    sim.cluster.take_writes();
    let sim = sim.restarted();
    sim.configure(IDENTITIES);
    sim.aws.fail(1.0..1.5, "role/a", Fault::Refused);
    let leader = sim.lead();
    sim.until(1.4).await;
    assert_eq!(
        sim.cluster.take_writes().len(),
        0,
        "the old one is better than none"
    );
    sim.until(1.7).await;
    let writes = sim.cluster.take_writes();
    assert_eq!(writes.len(), names.len());
    let hash = sim.key(&names[0], IRELAND).identity.hash();
    let state = sim.cluster.state(&names[0]).unwrap();
    assert!(
        state
            .hosts
            .iter()
            .all(|(_, entry)| entry.credential.is_some_and(|it| it.identity == hash))
    );
    leader.stop().await;
}
