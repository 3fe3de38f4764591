//! Tests of isolation: a failure for one holds up no other.

use jiff::SignedDuration;

use super::{IDENTITIES, IRELAND, VIRGINIA};
use crate::support::sim::{Fault, Sim, namespace};

#[tokio::test(start_paused = true)]
async fn identity_that_is_refused_and_one_that_hangs_delay_no_other() {
    let sim = Sim::new(IDENTITIES);
    sim.aws.fail(0.0..99.0, "role/a", Fault::Refused);
    sim.aws.fail(0.0..99.0, "role/b", Fault::Silent);
    sim.teams("a", 100, &[IRELAND], None);
    sim.teams("b", 100, &[IRELAND], None);
    let names = sim.teams("c", 100, &[IRELAND], None);
    let leader = sim.lead();
    sim.after(10.0).await;
    for hour in 1..=13_u32 {
        for name in &names {
            let left = sim.cluster.left(name, IRELAND).unwrap();
            assert!(
                left > SignedDuration::from_mins(8 * 60 + 20),
                "{name} in hour {hour}: {left:#}"
            );
        }
        sim.until(f64::from(hour)).await;
    }
    assert_eq!(sim.cluster.unusable().len(), 200);
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn host_is_renewed_though_another_of_its_namespace_fails() {
    for fault in [Fault::Refused, Fault::Silent] {
        let sim = Sim::new("");
        let names = sim.teams("team", 10, &[IRELAND, VIRGINIA], None);
        sim.aws.fail(2.9..99.0, "us-east-1", fault.clone());
        let leader = sim.lead();
        for hour in 1..=13_u32 {
            sim.until(f64::from(hour)).await;
            for name in &names {
                let left = sim.cluster.left(name, IRELAND).unwrap();
                assert!(
                    left > SignedDuration::from_hours(8),
                    "{fault:?}, {name} in hour {hour}: {left:#}"
                );
                let age = SignedDuration::from_hours(12 - i64::from(hour));
                let other = sim.cluster.left(name, VIRGINIA).unwrap();
                assert!(
                    (other - age).abs() < SignedDuration::from_secs(9),
                    "{other:#}: kept as it was"
                );
            }
        }
        let writes = sim.cluster.take_writes().len();
        assert!(writes <= names.len() * 6, "{writes}");
        leader.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn namespace_of_two_hosts_gets_the_one_that_can_be_had() {
    let sim = Sim::new("");
    sim.aws.fail(0.0..1.0, "us-east-1", Fault::Silent);
    let names = sim.teams("team", 10, &[IRELAND, VIRGINIA], None);
    let leader = sim.lead();
    sim.after(12.0).await;
    for name in &names {
        assert!(sim.cluster.left(name, IRELAND).is_some());
        assert!(sim.cluster.left(name, VIRGINIA).is_none());
    }
    sim.until(1.1).await;
    assert_eq!(sim.cluster.unusable(), []);
    assert_eq!(sim.cluster.take_writes().len(), 2 * names.len());
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn seven_hours_without_aws_cost_few_calls_and_no_write() {
    let sim = Sim::new(IDENTITIES);
    for team in ["a", "b", "c"] {
        sim.teams(team, 700, &[IRELAND], None);
    }
    sim.aws.fail(2.9..9.9, "", Fault::Throttled);
    let leader = sim.lead();
    sim.until(2.9).await;
    let (writes, _) = (sim.cluster.take_writes(), sim.cluster.calls());
    assert_eq!(writes.len(), 2100);
    sim.until(9.9).await;
    assert_eq!(sim.cluster.take_writes().len(), 0);
    assert_eq!(sim.count("ecr_injector_refresh_waiting_for_token"), 2100);
    let failed = sim.aws.failed.lock().unwrap().clone();
    assert_eq!(failed.len(), 3);
    for (key, calls) in failed {
        // Eight pauses up to five minutes, and then one in 225 to 300 s.
        assert!((80..=125).contains(&calls), "{key:?}: {calls}");
    }
    sim.until(10.2).await;
    assert_eq!(sim.cluster.take_writes().len(), 2100);
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn token_that_nobody_waits_for_is_not_tried_for_ever() {
    let sim = Sim::new(IDENTITIES);
    sim.aws.fail(0.0..99.0, "role/a", Fault::Refused);
    let names = sim.teams("a", 3, &[IRELAND], None);
    let leader = sim.lead();
    sim.until(1.0).await;
    sim.cluster.delete_namespace(&names[0]);
    sim.cluster.terminate(&names[1]);
    sim.cluster.edit(&names[2], |it| it.metadata.labels = None);
    sim.until(1.2).await;
    let (_, failed) = sim.aws.total();
    sim.until(3.0).await;
    assert_eq!(sim.aws.total().1, failed);
    assert_eq!(sim.count("ecr_injector_refresh_waiting_for_token"), 0);
    leader.stop().await;
}

/// Each namespace has a role of its own, and 300 of them have their registry in a region.
fn crowd(region: &str, whom: &str) -> Sim {
    let role = "arn:aws:iam::111122223333:role/{namespace}";
    let sim = Sim::new(&format!(
        "identities: [{{assumeRole: {{roleArn: '{role}'}}}}]"
    ));
    sim.aws.fail(0.0..99.0, whom, Fault::Silent);
    sim.teams("hung", 300, &[region], None);
    sim
}

#[tokio::test(start_paused = true)]
async fn crowd_of_hanging_roles_delays_no_other() {
    for (region, whom) in [(VIRGINIA, "us-east-1"), (IRELAND, "role/hung")] {
        let sim = crowd(region, whom);
        let leader = sim.lead();
        sim.after(1.0).await;
        for number in 0..5 {
            let late = sim.teams(&format!("late-{number}"), 1, &[IRELAND], None);
            // As long as one that hangs holds its place, and then its own time.
            sim.after(11.0).await;
            let left = sim.cluster.left(&late[0], IRELAND);
            assert!(left.is_some(), "{whom}: {}", late[0]);
        }
        assert_eq!(sim.cluster.unusable().len(), 300);
        leader.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn crowd_of_hanging_roles_leaves_admissions_room_to_mint() {
    let sim = crowd(IRELAND, "role/hung");
    let leader = sim.lead();
    sim.after(1.0).await;
    let key = sim.key(&namespace("team"), IRELAND);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(2);
    let minted = sim.tokens.get(&key, deadline).await;
    assert!(minted.is_ok(), "{minted:?}");
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn token_of_an_admission_is_used_before_its_turn() {
    let sim = crowd(IRELAND, "role/hung");
    let leader = sim.lead();
    sim.after(1.0).await;
    let late = sim.teams("late", 1, &[IRELAND], None);
    sim.after(0.1).await;
    let key = sim.key(&late[0], IRELAND);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(2);
    sim.tokens.get(&key, deadline).await.unwrap();
    sim.after(0.5).await;
    assert!(sim.cluster.left(&late[0], IRELAND).is_some());
    assert_eq!(sim.aws.total().0, 1, "nobody minted another");
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn unknown_regions_hold_up_no_known_region() {
    let sim = Sim::new("");
    let names = sim.teams("team", 1, &[IRELAND], None);
    let soon = || tokio::time::Instant::now() + std::time::Duration::from_secs(2);
    let key = |region: &str| {
        let host = format!("123456789012.dkr.ecr.{region}.amazonaws.com");
        sim.key(&names[0], &host)
    };
    sim.tokens.get(&key("eu-west-1"), soon()).await.unwrap();
    sim.aws.fail(0.0..99.0, "aa-", Fault::Silent);
    let invented: Vec<_> = ('a'..='z')
        .flat_map(|a| ('a'..='d').map(move |b| format!("aa-{a}{b}-1")))
        .map(|region| key(&region))
        .collect();
    let asked = invented.iter().map(|key| sim.tokens.get(key, soon()));
    let asked = futures::future::join_all(asked);
    let renewed = async {
        sim.after(0.5).await;
        let proven = key("eu-west-1");
        tokio::time::timeout_at(soon(), sim.tokens.renew(&proven)).await
    };
    let (failed, renewed) = tokio::join!(asked, renewed);
    assert!(failed.iter().all(Result::is_err));
    assert!(renewed.is_ok_and(|minted| minted.is_ok()));
}
