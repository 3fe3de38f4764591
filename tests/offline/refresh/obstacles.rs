//! Namespaces whose writes the API server refuses, or doesn't answer.

use ecr_injector::cluster::namespace::Namespace;

use super::IRELAND;
use ecr_injector::token::Lifetime;
use jiff::SignedDuration;

use crate::support::sim::{Obstacle, START, Sim};

const TEAMS: usize = 600;

/// How long it takes until every namespace without an obstacle has a credential.
async fn seconds_with(obstacle: Option<Obstacle>) -> f64 {
    let sim = Sim::new("");
    let names = sim.teams(
        "team",
        TEAMS,
        &[IRELAND],
        Some(SignedDuration::from_hours(5)),
    );
    let obstructed: Vec<&Namespace> = names.iter().step_by(20).collect();
    for name in &obstructed {
        sim.cluster.obstruct(name, obstacle.clone());
    }
    let leader = sim.lead();
    let expected = TEAMS
        - if obstacle.is_some() {
            obstructed.len()
        } else {
            0
        };
    let (mut seconds, mut written) = (0.0, 0);
    while written < expected && seconds < 600.0 {
        sim.after(0.5).await;
        seconds += 0.5;
        written += sim.cluster.take_writes().len();
    }
    leader.stop().await;
    seconds
}

#[tokio::test(start_paused = true)]
async fn obstacles_do_not_slow_the_others_down() {
    let undisturbed = seconds_with(None).await;
    for obstacle in [Obstacle::Quota, Obstacle::Forbidden, Obstacle::Silent] {
        let seconds = seconds_with(Some(obstacle.clone())).await;
        assert!(
            seconds <= undisturbed * 1.2,
            "{obstacle:?}: {seconds} s instead of {undisturbed} s"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn obstacles_are_retried_ever_more_rarely_up_to_5m() {
    for obstacle in [Obstacle::Quota, Obstacle::Forbidden, Obstacle::Silent] {
        let sim = Sim::new("");
        let name = sim.teams("team", 1, &[IRELAND], None).remove(0);
        sim.cluster.obstruct(&name, Some(obstacle.clone()));
        let leader = sim.lead();
        sim.until(1.0).await;
        let (tried, ..) = sim.cluster.calls();
        assert!((16..=26).contains(&tried), "{obstacle:?}: {tried}");
        sim.until(2.0).await;
        let more = sim.cluster.calls().0 - tried;
        assert!((11..=16).contains(&more), "{obstacle:?}: {more}");
        sim.cluster.obstruct(&name, None);
        sim.after(301.0).await;
        assert_eq!(sim.cluster.unusable(), []);
        leader.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn write_that_changes_nothing_is_not_made_again_and_again() {
    let sim = Sim::new("");
    let name = sim.teams("team", 1, &[IRELAND], None).remove(0);
    // Due by its age, and yet good for longer than any token that can be had.
    let lifetime = Lifetime {
        minted_at: START - SignedDuration::from_hours(9),
        expires_at: START + SignedDuration::from_mins(12 * 60 + 9),
    };
    sim.give_until(&name, &[IRELAND], Some(lifetime));
    let leader = sim.lead();
    sim.after(300.0).await;
    leader.stop().await;
    let (written, read, _) = sim.cluster.calls();
    assert_eq!(written, 0);
    assert!((5..=12).contains(&read), "{read}");
}
