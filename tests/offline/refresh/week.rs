//! A week of many namespaces: three identities, two regions, so six tokens. Each write is the real one, merged and sealed,
//! which an unoptimized build does two thousand times a second. So `make test` has a fifth of the namespaces at a fifth of
//! the pace, which is the same backlog for each; `make week` has all ten thousand.

use std::collections::HashMap;
use std::time::{Duration, Instant as Stopwatch};

use ecr_injector::cluster::namespace::Namespace;
use jiff::SignedDuration;
use tokio::time::{Instant, sleep};

use super::{IDENTITIES, IRELAND, VIRGINIA};
use crate::support::sim::{A_SECOND, Fault, Sim, namespace};

/// So many namespaces a write per second make a backlog of 500 s.
const NAMESPACES_PER_WRITE: usize = 500;

/// How many namespaces there are.
fn namespaces() -> usize {
    let named = std::env::var("ECR_INJECTOR_WEEK_NAMESPACES").ok();
    named.map_or(2_000, |text| text.parse().unwrap())
}

const HOSTS: [&str; 2] = [IRELAND, VIRGINIA];
fn names() -> Vec<Namespace> {
    let name = |number: usize| {
        let team = ["a", "b", "c"][number % 3];
        namespace(&format!("{team}-{number}"))
    };
    (0..namespaces()).map(name).collect()
}

/// Outages at random hours, drawn from a fixed seed, and at the worst: from just before a renewal on. A renewal is due
/// three hours after the one before; all tokens begin with the cluster.
fn outages() -> Vec<(f64, f64, &'static str)> {
    vec![
        // Everything, from one second before the first renewal: seven hours, the longest that is to be survived.
        (2.9997, 7.0, ""),
        // One region, then one identity, at no particular time.
        (30.11, 4.0, "eu-west-1"),
        (51.73, 4.0, "role/a"),
        (61.2, 1.0, ""),
        // In the middle of the writes that follow a renewal.
        (77.4, 7.0, "role/b"),
        (100.9, 1.0, "us-east-1"),
        (120.05, 7.0, ""),
        (150.0, 4.0, "ambient"),
    ]
}

#[tokio::test(start_paused = true)]
async fn week_with_outages_leaves_every_credential_an_hour() {
    let watch = Stopwatch::now();
    let pace = namespaces() / NAMESPACES_PER_WRITE;
    let sim = Sim::new(&format!("{IDENTITIES}refresh: {{writesPerSecond: {pace}}}"));
    for (number, name) in names().iter().enumerate() {
        sim.cluster.opt_in(name);
        // Every seventh has registries in both regions, the others in one of them.
        let hosts = match number % 7 {
            0 => &HOSTS[..],
            odd if odd % 2 == 1 => &HOSTS[..1],
            _ => &HOSTS[1..],
        };
        sim.intend(name, hosts);
    }
    let mut hours = 0.0;
    for (from, length, whom) in outages() {
        let fault = match whom {
            "" => Fault::Silent,
            "role/b" => Fault::Refused,
            _ => Fault::Throttled,
        };
        sim.aws.fail(from..from + length, whom, fault);
        hours += length;
    }
    let leader = sim.lead();
    let mut gaps: HashMap<u64, u64> = HashMap::new();
    let (mut last, mut total, mut most) = (None::<Instant>, 0_u64, 0_usize);
    let mut per_hour = Vec::new();
    for hour in 1..=168_u32 {
        sim.until(f64::from(hour)).await;
        let writes = sim.cluster.take_writes();
        let mut window = std::collections::VecDeque::new();
        for write in &writes {
            if let Some(last) = last {
                let gap = write.at.duration_since(last).as_millis();
                *gaps
                    .entry(u64::try_from(gap).unwrap().min(1000) / 10 * 10)
                    .or_default() += 1;
            }
            last = Some(write.at);
            window.push_back(write.at);
            while write.at.duration_since(window[0]) >= A_SECOND {
                window.pop_front();
            }
            most = most.max(window.len());
        }
        total += writes.len() as u64;
        per_hour.push(writes.len());
    }
    leader.stop().await;
    let (minted, failed) = sim.aws.total();
    let left = sim.cluster.least_left();
    println!(
        "{total} writes, at most {most} in any second; {minted} tokens, {failed} refusals in {hours} h of outages;"
    );
    println!(
        "the least that any credential had left: {left:#}; real time {:?}",
        watch.elapsed()
    );
    println!("writes in each hour: {per_hour:?}");
    let mut gaps: Vec<_> = gaps.into_iter().collect();
    gaps.sort_unstable();
    println!("milliseconds between writes, and how often: {gaps:?}");
    assert!(left >= SignedDuration::from_hours(1), "{left:#}");
    assert!(most <= pace, "{most} writes in a second");
    for (key, count) in sim.aws.minted.lock().unwrap().iter() {
        // A renewal is due after 25 % of twelve hours at the soonest.
        assert!((40..=56).contains(count), "{key:?}: {count}");
    }
    sleep(Duration::ZERO).await;
}
