//! One sweep by hand.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;

use ecr_injector::leader::Leadership;
use ecr_injector::pull_secret::{Foreign, Knowledge};
use ecr_injector::refresher::{Sweep, Swept};
use jiff::SignedDuration;
use tokio::time::sleep;

use super::support::sim::{Fault, Obstacle, Sim, most_in_a_second};
use super::{IDENTITIES, IRELAND, VIRGINIA};

async fn swept(sim: &Sim, sweep: Sweep) -> Vec<Swept> {
    sim.refresher()
        .sweep(sweep, Leadership::unlimited(), &|_, _| {})
        .await
}

#[tokio::test(start_paused = true)]
async fn it_does_what_is_due_and_leaves_the_rest() {
    let sim = Sim::new("");
    let due = sim.teams("due", 30, &[IRELAND], Some(SignedDuration::from_hours(5)));
    sim.teams("fresh", 30, &[IRELAND], Some(SignedDuration::from_hours(1)));
    let progress = Mutex::new(Vec::new());
    let told = |done: usize, all: usize| progress.lock().unwrap().push((done, all));
    let results = sim
        .refresher()
        .sweep(Sweep::default(), Leadership::unlimited(), &told)
        .await;
    assert_eq!(results.len(), 60);
    for result in results {
        assert_eq!(
            result.written,
            due.contains(&result.namespace),
            "{result:?}"
        );
        assert!(result.is_done && result.error.is_none(), "{result:?}");
    }
    assert_eq!(progress.lock().unwrap().last(), Some(&(60, 60)));
}

#[tokio::test(start_paused = true)]
async fn what_was_under_way_when_it_was_ended_counts_as_done() {
    let sim = Sim::new("");
    sim.teams("due", 3, &[IRELAND], Some(SignedDuration::from_hours(5)));
    let term = Leadership::unlimited();
    let refresher = sim.refresher();
    let sweep = refresher.sweep(Sweep::default(), term.clone(), &|_, _| {});
    let end_in_a_write = async {
        while sim.cluster.calls().0 == 0 {
            sleep(Duration::from_millis(1)).await;
        }
        term.end();
    };
    let (results, ()) = tokio::join!(sweep, end_in_a_write);
    let written = sim.cluster.take_writes();
    assert_eq!(written.len(), 1, "the fence let another one out");
    for result in results {
        let was_written = result.namespace == written[0].namespace;
        assert_eq!(result.written, was_written, "{result:?}");
        assert_eq!(result.is_done, was_written, "{result:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn it_renews_all_with_one_token_for_each_key() {
    let sim = Sim::new(IDENTITIES);
    for team in ["a", "b", "c"] {
        sim.teams(
            team,
            50,
            &[IRELAND, VIRGINIA],
            Some(SignedDuration::from_hours(1)),
        );
    }
    sim.cluster.know_by_the_list_alone();
    let sweep = Sweep {
        renews_all: true,
        ..Sweep::default()
    };
    let results = swept(&sim, sweep).await;
    assert_eq!(results.len(), 150);
    assert!(
        results
            .iter()
            .all(|result| result.written && result.is_done)
    );
    assert_eq!(sim.aws.total(), (6, 0));
    let writes = sim.cluster.take_writes();
    assert_eq!(writes.len(), 150);
    assert!(most_in_a_second(&writes) <= 20);
}

#[tokio::test(start_paused = true)]
async fn it_touches_only_the_namespaces_that_it_is_for() {
    let sim = Sim::new("");
    let names = sim.teams("team", 5, &[IRELAND], None);
    let sweep = Sweep {
        namespaces: Some(BTreeSet::from([names[1].clone(), names[3].clone()])),
        renews_all: true,
    };
    let results = swept(&sim, sweep.clone()).await;
    assert_eq!(results.len(), 2);
    let writes = sim.cluster.take_writes();
    let written: BTreeSet<_> = writes.iter().map(|write| write.namespace.clone()).collect();
    assert_eq!((writes.len(), Some(written)), (2, sweep.namespaces));
}

#[tokio::test(start_paused = true)]
async fn it_tries_each_thing_once_however_long_it_takes() {
    let sim = Sim::new(IDENTITIES);
    let refused = sim.teams("a", 300, &[IRELAND], None);
    sim.aws.fail(0.0..99.0, "role/a", Fault::Refused);
    let good = sim.teams("c", 600, &[IRELAND], None);
    let full = sim.teams("full", 100, &[IRELAND], None);
    for name in &full {
        sim.cluster.obstruct(name, Some(Obstacle::Quota));
    }
    let results = swept(&sim, Sweep::default()).await;
    assert_eq!(sim.aws.total(), (1, 1));
    assert_eq!(sim.cluster.calls().0, 700);
    for result in results {
        let is_good = good.contains(&result.namespace);
        assert_eq!(
            (result.written, result.is_done),
            (is_good, is_good),
            "{result:?}"
        );
        let error = result.error.clone().unwrap_or_default();
        let expected = if refused.contains(&result.namespace) {
            "AccessDenied"
        } else if is_good {
            ""
        } else {
            "quota"
        };
        assert!(
            error.contains(expected) && error.is_empty() == is_good,
            "{result:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn one_of_two_hosts_is_written_and_the_error_of_the_other_told() {
    let sim = Sim::new("");
    sim.teams("team", 30, &[IRELAND, VIRGINIA], None);
    sim.aws.fail(0.0..99.0, "us-east-1", Fault::Refused);
    let results = swept(&sim, Sweep::default()).await;
    for result in results {
        assert!(result.written && !result.is_done, "{result:?}");
        assert!(result.error.is_some(), "{result:?}");
    }
    assert_eq!(sim.cluster.take_writes().len(), 30);
    assert_eq!(sim.aws.total(), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_ours_and_what_is_not_there_is_nothing_to_do() {
    let sim = Sim::new("");
    let names = sim.teams("team", 2, &[IRELAND], None);
    sim.cluster
        .set(&names[0], Knowledge::Foreign(Foreign::Label));
    sim.cluster.delete_namespace(&names[1]);
    let results = swept(&sim, Sweep::default()).await;
    assert!(
        results
            .iter()
            .all(|result| result.is_done && !result.written),
        "{results:?}"
    );
    assert_eq!(sim.cluster.calls().0, 0);
    assert_eq!(sim.cluster.knowledge(&names[1]), None);
}
