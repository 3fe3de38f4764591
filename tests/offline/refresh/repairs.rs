//! Tests of the repairs after others have changed or deleted pull secrets.

use jiff::SignedDuration;

use super::{IRELAND, VIRGINIA};
use crate::support::sim::{Fault, Obstacle, Sim};

#[tokio::test(start_paused = true)]
async fn deleted_secret_is_made_again_with_the_hosts_it_had() {
    let sim = Sim::new("");
    let names = sim.teams("team", 3, &[IRELAND, VIRGINIA], None);
    let leader = sim.lead();
    sim.until(1.0).await;
    sim.cluster.take_writes();
    sim.cluster.delete(&names[1]);
    sim.after(2.0).await;
    leader.stop().await;
    let writes = sim.cluster.take_writes();
    assert_eq!(writes.len(), 1);
    assert_eq!((&writes[0].namespace, writes[0].hosts), (&names[1], 2));
    assert_eq!(sim.cluster.unusable(), []);
    assert_eq!(
        sim.count(r#"ecr_injector_repairs_total{cause="deleted"}"#),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn deleted_secret_gets_the_cached_token_while_aws_is_down() {
    let sim = Sim::new("");
    let names = sim.teams("team", 3, &[IRELAND], None);
    // At hour 5 the token has used more than a quarter of its life: it is to be renewed, and can't be.
    sim.aws.fail(2.9..9.0, "", Fault::Silent);
    let leader = sim.lead();
    sim.until(5.0).await;
    sim.cluster.delete(&names[0]);
    sim.after(2.0).await;
    let left = sim.cluster.left(&names[0], IRELAND).unwrap();
    assert!(left > SignedDuration::from_hours(6), "{left:#}");
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn deleted_secret_names_its_hosts_while_there_is_no_token() {
    let sim = Sim::new("");
    let names = sim.teams(
        "team",
        3,
        &[IRELAND, VIRGINIA],
        Some(SignedDuration::from_hours(1)),
    );
    sim.aws.fail(0.0..1.0, "", Fault::Throttled);
    let leader = sim.lead();
    sim.until(0.5).await;
    sim.cluster.delete(&names[0]);
    sim.after(5.0).await;
    let state = sim.cluster.state(&names[0]).unwrap();
    assert_eq!(state.hosts.keys().count(), 2);
    assert!(
        state
            .hosts
            .iter()
            .all(|(_, entry)| entry.credential.is_none())
    );
    assert_eq!(sim.cluster.take_writes().len(), 1);
    sim.until(1.1).await;
    assert_eq!(sim.cluster.unusable(), []);
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn deleted_secret_that_was_only_listed_is_made_again() {
    let sim = Sim::new("");
    let names = sim.teams("team", 2, &[IRELAND, VIRGINIA], Some(SignedDuration::ZERO));
    sim.cluster.know_by_the_list_alone();
    sim.cluster.delete(&names[0]);
    let leader = sim.lead();
    sim.after(2.0).await;
    leader.stop().await;
    let writes = sim.cluster.take_writes();
    assert_eq!(writes.len(), 1);
    assert_eq!((&writes[0].namespace, writes[0].hosts), (&names[0], 2));
}

#[tokio::test(start_paused = true)]
async fn changed_secret_stays_until_there_is_a_token() {
    let sim = Sim::new("");
    let names = sim.teams("team", 2, &[IRELAND], Some(SignedDuration::from_hours(1)));
    sim.aws.fail(0.0..1.0, "", Fault::Throttled);
    // It has good credentials for hours, whatever was done to it, and a new leader has no token.
    sim.cluster.rival(&names[0]);
    let leader = sim.lead();
    sim.until(0.9).await;
    assert_eq!(sim.cluster.take_writes().len(), 0);
    sim.until(1.1).await;
    leader.stop().await;
    assert_eq!(sim.cluster.take_writes().len(), 1);
    assert_eq!(sim.cluster.unusable(), []);
}

#[tokio::test(start_paused = true)]
async fn changed_secret_is_repaired() {
    let sim = Sim::new("");
    let names = sim.teams("team", 3, &[IRELAND], None);
    let leader = sim.lead();
    sim.until(1.0).await;
    sim.cluster.take_writes();
    sim.cluster.rival(&names[0]);
    sim.after(2.0).await;
    leader.stop().await;
    assert_eq!(sim.cluster.take_writes().len(), 1);
    assert_eq!(sim.cluster.unusable(), []);
}

#[tokio::test(start_paused = true)]
async fn contention_pauses_longer_and_holds_up_no_other() {
    let sim = Sim::new("");
    let fought = sim.teams("fought", 1, &[IRELAND], None).remove(0);
    sim.teams("team", 50, &[IRELAND], None);
    let leader = sim.lead();
    sim.after(10.0).await;
    sim.cluster.take_writes();
    sim.cluster.obstruct(
        &fought,
        Some(Obstacle::Rival(std::time::Duration::from_millis(500))),
    );
    sim.cluster.rival(&fought);
    let mut heals = Vec::new();
    for _ in 0..16 {
        sim.after(900.0).await;
        let writes = sim.cluster.take_writes();
        heals.push(
            writes
                .iter()
                .filter(|write| write.namespace == fought)
                .count(),
        );
    }
    assert!(heals[0] <= 11, "{heals:?}");
    assert!(
        heals[1..].iter().all(|heals| (3..=5).contains(heals)),
        "pauses do not shrink while the fight goes on: {heals:?}"
    );
    let contested = sim.count(r#"ecr_injector_refresh_failures_total{reason="contested"}"#);
    assert!(contested >= heals.iter().sum::<usize>() - 3, "{contested}");
    let others = sim.cluster.unusable();
    assert!(
        others.is_empty() || others == [fought.clone()],
        "{others:?}"
    );
    sim.cluster.obstruct(&fought, None);
    sim.after(301.0).await;
    assert_eq!(sim.cluster.unusable(), []);
    // Peace: what is done to it an hour later is put right at once again.
    sim.after(3600.0).await;
    sim.cluster.rival(&fought);
    sim.after(2.0).await;
    assert_eq!(sim.cluster.unusable(), []);
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn foreign_secrets_are_never_written() {
    let sim = Sim::new("").prewarming(&[IRELAND]);
    let names = sim.teams("team", 4, &[IRELAND], None);
    sim.cluster.edit(&names[0], |it| it.metadata.labels = None);
    sim.cluster
        .edit(&names[1], |it| it.type_ = Some("Opaque".into()));
    sim.cluster.edit(&names[2], |it| it.immutable = Some(true));
    let leader = sim.lead();
    sim.until(7.0).await;
    leader.stop().await;
    assert!(
        sim.cluster
            .take_writes()
            .iter()
            .all(|write| write.namespace == names[3])
    );
    assert_eq!(sim.cluster.calls().0, 3, "one each three hours");
}
