//! When what is written, and how fast.

use std::collections::HashMap;
use std::time::{Duration, Instant as Stopwatch};

use ecr_injector::cluster::namespace::Namespace;
use jiff::SignedDuration;
use tokio::time::Instant;

use super::{IRELAND, VIRGINIA};
use crate::support::sim::{Fault, Sim, Write, most_in_a_second, namespace};

fn by_namespace(writes: &[Write]) -> HashMap<Namespace, Vec<Instant>> {
    let mut times: HashMap<Namespace, Vec<Instant>> = HashMap::new();
    for write in writes {
        times
            .entry(write.namespace.clone())
            .or_default()
            .push(write.at);
    }
    times
}

#[tokio::test(start_paused = true)]
async fn each_due_time_costs_one_write_and_none_is_skipped() {
    let sim = Sim::new("");
    let names = sim.teams("team", 200, &[IRELAND], None);
    let leader = sim.lead();
    sim.until(24.0).await;
    leader.stop().await;
    let writes = by_namespace(&sim.cluster.take_writes());
    assert_eq!(writes.len(), names.len());
    for (name, times) in writes {
        assert!(
            (7..=8).contains(&times.len()),
            "{name}: {} writes",
            times.len()
        );
        for pair in times.windows(2) {
            let hours = pair[1].duration_since(pair[0]).as_secs_f64() / 3600.0;
            assert!((2.9..=3.7).contains(&hours), "{name}: {hours} h");
        }
    }
    let (minted, _) = sim.aws.total();
    assert!(minted <= 9, "{minted} tokens for one key");
}

#[tokio::test(start_paused = true)]
async fn hosts_minted_seconds_apart_are_renewed_by_one_write() {
    let sim = Sim::new("");
    sim.aws.fail(0.0..0.02, "us-east-1", Fault::Throttled);
    sim.teams("team", 5, &[IRELAND, VIRGINIA], None);
    let leader = sim.lead();
    sim.until(1.0).await;
    let first = by_namespace(&sim.cluster.take_writes());
    assert!(first.values().all(|times| times.len() == 2), "{first:?}");
    sim.until(4.0).await;
    leader.stop().await;
    let second = by_namespace(&sim.cluster.take_writes());
    assert_eq!(second.len(), 5);
    assert!(second.values().all(|times| times.len() == 1), "{second:?}");
}

#[tokio::test(start_paused = true)]
async fn idle_hour_with_ten_thousand_namespaces_costs_nothing() {
    let sim = Sim::new("");
    sim.teams(
        "team",
        10_000,
        &[IRELAND],
        Some(SignedDuration::from_hours(1)),
    );
    let leader = sim.lead();
    sim.after(60.0).await;
    let (calls, reads, watch) = (sim.cluster.calls(), sim.clock.reads(), Stopwatch::now());
    sim.after(3600.0).await;
    assert_eq!(sim.cluster.calls(), calls);
    assert_eq!((calls, sim.aws.total()), ((0, 0, 0), (0, 0)));
    let reads = sim.clock.reads() - reads;
    assert!(
        reads < 2000,
        "the loop turned more often than each ten seconds: {reads}"
    );
    assert!(
        watch.elapsed() < Duration::from_secs(2),
        "{:?}",
        watch.elapsed()
    );
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn write_rate_holds_also_when_all_is_due_at_once() {
    let sim = Sim::new("");
    let names = sim.teams("team", 3000, &[IRELAND], None);
    // All is due at the start; and again when AWS is back after seven hours.
    sim.aws.fail(2.9..9.9, "", Fault::Throttled);
    let leader = sim.lead();
    for hours in [2.5, 10.5] {
        sim.until(hours).await;
        let writes = sim.cluster.take_writes();
        assert_eq!(writes.len(), names.len());
        assert!(most_in_a_second(&writes) <= 20);
        let took = writes[writes.len() - 1].at.duration_since(writes[0].at);
        assert!(took < Duration::from_secs(170), "{took:?}");
    }
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn longest_overdue_comes_first() {
    let sim = Sim::new("");
    for (name, hours) in [("young", 4), ("old", 9), ("middle", 6)] {
        let name = namespace(name);
        sim.cluster.opt_in(&name);
        sim.give(&name, &[IRELAND], Some(SignedDuration::from_hours(hours)));
    }
    let leader = sim.lead();
    sim.after(2.0).await;
    leader.stop().await;
    let order: Vec<_> = sim
        .cluster
        .take_writes()
        .into_iter()
        .map(|write| write.namespace.to_string())
        .collect();
    assert_eq!(order, ["old", "middle", "young"]);
}
