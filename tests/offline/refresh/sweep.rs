//! One sweep by hand.

use std::time::Duration;

use ecr_injector::cluster::lease::Leadership;
use ecr_injector::cluster::namespace::Namespace;
use ecr_injector::refresh::{Sweep, SweepOutcome};
use jiff::SignedDuration;
use tokio::time::sleep;

use super::{IDENTITIES, IRELAND, VIRGINIA};
use crate::support::sim::{Fault, Obstacle, START, Sim};

async fn swept(sim: &Sim, sweep: Sweep) -> Vec<(Namespace, SweepOutcome)> {
    sim.sweep(&sweep, &Leadership::unlimited()).await
}

/// Whether nothing is left to do now.
fn is_done(sim: &Sim, swept: &SweepOutcome) -> bool {
    use ecr_injector::process::clock::Clock as _;
    let now = sim.clock.now();
    assert!(now >= START);
    swept.plan.as_ref().is_none_or(|plan| plan.at > now)
}

#[tokio::test(start_paused = true)]
async fn sweep_does_what_is_due_and_leaves_the_rest() {
    let sim = Sim::new("");
    let due = sim.teams("due", 30, &[IRELAND], Some(SignedDuration::from_hours(5)));
    sim.teams("fresh", 30, &[IRELAND], Some(SignedDuration::from_hours(1)));
    let results = swept(&sim, Sweep::default()).await;
    assert_eq!(results.len(), 60);
    for (name, result) in results {
        assert_eq!(result.written, due.contains(&name), "{name}: {result:?}");
        assert!(
            is_done(&sim, &result) && result.error.is_none(),
            "{result:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn sweep_begins_nothing_after_its_term() {
    let sim = Sim::new("");
    sim.teams("due", 60, &[IRELAND], Some(SignedDuration::from_hours(5)));
    let term = Leadership::unlimited();
    let sweep = Sweep::default();
    let end_in_a_write = async {
        while sim.cluster.calls().0 == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        term.end();
    };
    let (results, ()) = tokio::join!(sim.sweep(&sweep, &term), end_in_a_write);
    let written = sim.cluster.take_writes().len();
    assert!((1..=16).contains(&written), "{written}");
    assert_eq!(results.iter().filter(|(_, it)| it.written).count(), written);
    let done = results.iter().filter(|(_, it)| is_done(&sim, it)).count();
    assert_eq!(done, written);
}

#[tokio::test(start_paused = true)]
async fn sweep_renews_all_with_one_token_for_each_key() {
    let sim = Sim::new(IDENTITIES);
    for team in ["a", "b", "c"] {
        let one = Some(SignedDuration::from_hours(1));
        sim.teams(team, 50, &[IRELAND, VIRGINIA], one);
    }
    sim.cluster.know_by_the_list_alone();
    let results = swept(&sim, Sweep::new(true, false)).await;
    assert_eq!(results.len(), 150);
    for (name, result) in results {
        assert!(
            result.written && is_done(&sim, &result),
            "{name}: {result:?}"
        );
    }
    assert_eq!(sim.aws.total(), (6, 0));
    assert_eq!(sim.cluster.take_writes().len(), 150);
}

#[tokio::test(start_paused = true)]
async fn sweep_tries_each_thing_once() {
    let sim = Sim::new(IDENTITIES);
    let refused = sim.teams("a", 300, &[IRELAND], None);
    sim.aws.fail(0.0..99.0, "role/a", Fault::Refused);
    let good = sim.teams("c", 600, &[IRELAND], None);
    let full = sim.teams("full", 100, &[IRELAND], None);
    for name in &full {
        sim.cluster.obstruct(name, Some(Obstacle::Quota));
    }
    let results = swept(&sim, Sweep::default()).await;
    let (minted, failed) = sim.aws.total();
    assert!(
        minted == 1 && failed <= 16,
        "{minted} minted, {failed} failed"
    );
    assert_eq!(sim.cluster.calls().0, 700);
    for (name, result) in results {
        let is_good = good.contains(&name);
        assert_eq!(result.written, is_good, "{name}: {result:?}");
        let error = result.error.clone().unwrap_or_default();
        let expected = if refused.contains(&name) {
            "AccessDenied"
        } else if is_good {
            ""
        } else {
            "quota"
        };
        let fits = error.contains(expected) && error.is_empty() == is_good;
        assert!(fits, "{name}: {result:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn sweep_writes_one_of_two_hosts_and_names_the_others_error() {
    let sim = Sim::new("");
    sim.teams("team", 30, &[IRELAND, VIRGINIA], None);
    sim.aws.fail(0.0..99.0, "us-east-1", Fault::Refused);
    for (name, result) in swept(&sim, Sweep::default()).await {
        assert!(
            result.written && !is_done(&sim, &result),
            "{name}: {result:?}"
        );
        assert!(result.error.is_some(), "{name}: {result:?}");
    }
    assert_eq!(sim.cluster.take_writes().len(), 30);
}

#[tokio::test(start_paused = true)]
async fn sweep_prunes_what_is_not_allowed_only_when_asked() {
    let sim = Sim::new("allow: {regions: [eu-west-1]}");
    let name = crate::support::sim::namespace("team");
    sim.configure("");
    sim.cluster.opt_in(&name);
    sim.give(
        &name,
        &[IRELAND, VIRGINIA],
        Some(SignedDuration::from_hours(1)),
    );
    sim.configure("allow: {regions: [eu-west-1]}");
    swept(&sim, Sweep::default()).await;
    assert_eq!(sim.cluster.hosts(&name), [IRELAND, VIRGINIA]);
    let results = swept(&sim, Sweep::new(false, true)).await;
    assert!(
        results[0].1.written && is_done(&sim, &results[0].1),
        "{results:?}"
    );
    assert_eq!(sim.cluster.hosts(&name), [IRELAND]);
    assert!(sim.cluster.left(&name, IRELAND).is_some());
}

#[tokio::test(start_paused = true)]
async fn sweep_has_nothing_to_do_for_foreign_or_missing() {
    let sim = Sim::new("");
    let names = sim.teams("team", 2, &[IRELAND], None);
    sim.cluster.edit(&names[0], |it| it.metadata.labels = None);
    sim.cluster.delete_namespace(&names[1]);
    for (name, result) in swept(&sim, Sweep::default()).await {
        assert!(
            is_done(&sim, &result) && !result.written,
            "{name}: {result:?}"
        );
    }
    assert_eq!(sim.cluster.calls().0, 0);
}
