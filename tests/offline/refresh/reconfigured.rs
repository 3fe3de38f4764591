//! A configuration that changes while a replica leads: the term goes on, and all is planned by the new one.

use ecr_injector::config::watcher::ConfigWatcher;
use ecr_injector::process::file_watcher::PERIOD;
use jiff::SignedDuration;

use super::{IDENTITIES, IRELAND, PUBLIC, VIRGINIA};
use crate::support::sim::{Sim, most_in_a_second, namespace};

/// Returns the identity that minted a team's credential.
fn minted_by(sim: &Sim, team: &str, host: &str) -> Option<String> {
    let state = sim.cluster.state(&namespace(team))?;
    let mut hosts = state.hosts.iter();
    let (_, entry) = hosts.find(|(name, _)| name.as_str() == host)?;
    Some(entry.credential?.identity.to_string())
}

fn wanted_by(sim: &Sim, team: &str) -> String {
    let key = sim.key(&namespace(team), IRELAND);
    key.identity.hash().to_string()
}

#[tokio::test(start_paused = true)]
async fn changed_identity_is_minted_again_within_the_term() {
    let sim = Sim::new("");
    let names: Vec<_> = ["a", "b", "c"]
        .iter()
        .flat_map(|team| sim.teams(team, 40, &[IRELAND], Some(SignedDuration::from_hours(1))))
        .collect();
    let leader = sim.lead();
    sim.after(60.0).await;
    assert!(sim.cluster.take_writes().is_empty(), "all is fresh");

    sim.configure(IDENTITIES);
    sim.after(10.0).await;
    let writes = sim.cluster.take_writes();
    assert_eq!(writes.len(), 80, "those of a-* and b-* once each");
    assert!(most_in_a_second(&writes) <= 20);
    assert_eq!(sim.aws.total(), (2, 0), "one token an identity");
    for name in &names {
        let name = name.as_str();
        assert_eq!(
            minted_by(&sim, name, IRELAND),
            Some(wanted_by(&sim, name)),
            "{name}"
        );
    }
    assert!(!leader.work.is_finished());
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn leader_follows_the_file_and_a_bad_one_changes_nothing() {
    let sim = Sim::new("");
    let teams = sim.teams("a", 3, &[IRELAND], Some(SignedDuration::ZERO));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    std::fs::write(&path, crate::support::config_file("")).unwrap();
    let (_, watched) = ConfigWatcher::load(&path).unwrap();
    let (live, clock, metrics) = (
        sim.live.clone(),
        sim.clock.clone(),
        sim.metrics.config.clone(),
    );
    tokio::spawn(watched.follow(live, clock, metrics, PERIOD));
    let leader = sim.lead();
    for bad in [
        format!("{IDENTITIES}secretNam: x"),
        IDENTITIES.replace("arn:aws:", ""),
    ] {
        std::fs::write(&path, crate::support::config_file(&bad)).unwrap();
        sim.after(30.0).await;
        assert_eq!(
            (sim.cluster.take_writes().len(), sim.aws.total()),
            (0, (0, 0))
        );
        assert_eq!(sim.count("ecr_injector_config_last_reload_successful"), 0);
    }
    std::fs::write(&path, crate::support::config_file(IDENTITIES)).unwrap();
    sim.after(15.0).await;
    assert_eq!(sim.cluster.take_writes().len(), teams.len());
    assert_eq!(
        minted_by(&sim, "a-0", IRELAND),
        Some(wanted_by(&sim, "a-0"))
    );
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn suspended_hosts_keep_their_credentials_until_they_end() {
    let sim = Sim::new("");
    let teams = sim.teams("team", 3, &[IRELAND], Some(SignedDuration::ZERO));
    let leader = sim.lead();
    sim.after(5.0).await;
    let before = sim.cluster.secret(&teams[0]).unwrap();

    sim.configure("allow: {regions: [us-east-1]}");
    sim.until(11.0).await;
    assert_eq!(sim.cluster.secret(&teams[0]).unwrap(), before);
    assert_eq!(
        (sim.cluster.take_writes().len(), sim.aws.total()),
        (0, (0, 0))
    );

    sim.configure("");
    sim.after(5.0).await;
    assert_eq!(sim.cluster.take_writes().len(), teams.len());
    assert_eq!(sim.cluster.unusable(), []);
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn suspended_hosts_are_renewed_when_allowed_after_they_ended() {
    let sim = Sim::new("");
    let teams = sim.teams("team", 3, &[IRELAND, VIRGINIA], Some(SignedDuration::ZERO));
    let leader = sim.lead();
    sim.configure("allow: {regions: [us-east-1]}");
    sim.until(30.0).await;
    for team in &teams {
        assert_eq!(sim.cluster.hosts(team), [IRELAND, VIRGINIA]);
        assert_eq!(sim.cluster.left(team, IRELAND), None, "ended");
        assert!(sim.cluster.left(team, VIRGINIA).is_some());
    }
    sim.configure("");
    sim.after(5.0).await;
    assert_eq!(sim.cluster.unusable(), []);
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn revoked_hosts_lose_their_credentials_at_once() {
    let sim = Sim::new("");
    let teams = sim.teams("team", 3, &[IRELAND, VIRGINIA], Some(SignedDuration::ZERO));
    let leader = sim.lead();
    sim.after(5.0).await;
    sim.configure("allow: {regions: [us-east-1]}\nrevoke: immediately");
    sim.after(5.0).await;
    for team in &teams {
        assert_eq!(sim.cluster.left(team, IRELAND), None);
        assert!(sim.cluster.left(team, VIRGINIA).is_some());
        assert_eq!(sim.cluster.hosts(team), [IRELAND, VIRGINIA], "still wanted");
    }
    assert_eq!(sim.cluster.take_writes().len(), teams.len());
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn prewarmed_hosts_are_added_to_what_is_there() {
    let sim = Sim::new("publicEcr: true");
    let teams = sim.teams("team", 3, &[IRELAND, PUBLIC], Some(SignedDuration::ZERO));
    let leader = sim.lead();
    sim.after(5.0).await;
    sim.configure(&format!("publicEcr: true\nprewarm: [{VIRGINIA}]"));
    sim.after(5.0).await;
    for team in &teams {
        assert_eq!(sim.cluster.hosts(team), [IRELAND, VIRGINIA, PUBLIC]);
        assert!(sim.cluster.left(team, VIRGINIA).is_some(), "{team}");
    }
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn mistake_that_suspends_most_namespaces_is_logged() {
    let sim = Sim::new("");
    sim.teams("team", 20, &[IRELAND], Some(SignedDuration::ZERO));
    let leader = sim.lead();
    sim.after(5.0).await;
    assert_eq!(sim.count("ecr_injector_mass_suspension"), 0);
    sim.configure("allow: {accounts: [\"123456789021\"]}");
    sim.after(5.0).await;
    assert_eq!(sim.count("ecr_injector_mass_suspension"), 1);
    sim.configure("allow: {accounts: [\"123456789012\"]}");
    sim.after(5.0).await;
    assert_eq!(sim.count("ecr_injector_mass_suspension"), 0);
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn new_pace_counts_from_the_next_write_on() {
    let sim = Sim::new("refresh: {writesPerSecond: 1}");
    sim.teams("team", 100, &[IRELAND], None);
    let leader = sim.lead();
    sim.after(10.0).await;
    let slow = sim.cluster.take_writes().len();
    assert!((5..=12).contains(&slow), "{slow}");
    sim.configure("refresh: {writesPerSecond: 50}");
    sim.after(3.0).await;
    let writes = sim.cluster.take_writes();
    assert_eq!(writes.len(), 100 - slow);
    assert!(most_in_a_second(&writes) <= 50);
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn failures_of_the_old_configuration_are_retried_at_once() {
    let sim = Sim::new("");
    let teams = sim.teams("team", 1, &[IRELAND], None);
    sim.cluster
        .obstruct(&teams[0], Some(crate::support::sim::Obstacle::Quota));
    let leader = sim.lead();
    // Pauses of minutes by now.
    sim.after(900.0).await;
    sim.cluster.obstruct(&teams[0], None);
    sim.configure("limits: {registriesPerSecret: 128}");
    sim.after(2.0).await;
    assert_eq!(sim.cluster.take_writes().len(), 1);
    leader.stop().await;
}
