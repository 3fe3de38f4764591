//! Tenants that make as much work as they can, and those who have to live beside them.

use std::sync::Arc;
use std::time::Duration;

use ecr_injector::cluster::namespace::Namespace;
use jiff::SignedDuration;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::{IRELAND, VIRGINIA};
use crate::support::sim::{Fault, Sim, namespace};

/// The least that a credential of an honest neighbour may ever have left: 25 % of its life.
const LEAST: SignedDuration = SignedDuration::from_hours(3);

/// Does something to each of these namespaces again and again.
fn harass(
    sim: &Arc<Sim>,
    names: &[Namespace],
    pause: Duration,
    mut act: impl FnMut(&Sim, &Namespace, usize) + Send + 'static,
) -> JoinHandle<()> {
    let (sim, names) = (sim.clone(), names.to_vec());
    tokio::spawn(async move {
        for round in 0.. {
            for name in &names {
                act(&sim, name, round);
            }
            sleep(pause).await;
        }
    })
}

/// How many of the writes were for these.
fn writes_for(sim: &Sim, names: &[Namespace]) -> (usize, usize) {
    let writes = sim.cluster.take_writes();
    let theirs = writes.iter().filter(|it| names.contains(&it.namespace));
    let theirs = theirs.count();
    (theirs, writes.len() - theirs)
}

/// Whether each has more than [`LEAST`] left for a host.
fn starved(sim: &Sim, names: &[Namespace], host: &str) -> Vec<Namespace> {
    let is_starved = |name: &&Namespace| sim.cluster.left(name, host).is_none_or(|it| it < LEAST);
    names.iter().filter(is_starved).cloned().collect()
}

fn invented(number: usize) -> String {
    let letter = |k: usize| char::from(b'a' + u8::try_from(k % 26).unwrap());
    let place: String = [17_576, 676, 26, 1]
        .map(|by| letter(number / by))
        .iter()
        .collect();
    format!("123456789012.dkr.ecr.aa-{place}-1.amazonaws.com")
}

#[tokio::test(start_paused = true)]
async fn forged_secrets_in_opted_in_namespaces_starve_nobody() {
    let sim = Arc::new(Sim::new(""));
    let hostile = sim.teams("bad", 40, &[IRELAND], Some(SignedDuration::ZERO));
    let others = sim.teams(
        "other",
        400,
        &[IRELAND],
        Some(SignedDuration::from_hours(8)),
    );
    let attack = harass(
        &sim,
        &hostile,
        Duration::from_millis(100),
        |sim, name, _| {
            sim.cluster.forge(name, &[IRELAND.to_owned()]);
        },
    );
    let leader = sim.lead();
    sim.after(60.0).await;
    assert_eq!(starved(&sim, &others, IRELAND), []);
    sim.after(540.0).await;
    attack.abort();
    leader.stop().await;
    let (theirs, _) = writes_for(&sim, &hostile);
    assert!(theirs <= 40 * 9, "{theirs} writes in ten minutes");
    assert!(sim.count(r#"ecr_injector_refresh_failures_total{reason="contested"}"#) > 0);
}

#[tokio::test(start_paused = true)]
async fn old_copies_put_back_are_contention() {
    let sim = Arc::new(Sim::new(""));
    let hostile = sim.teams("bad", 10, &[IRELAND], Some(SignedDuration::from_hours(20)));
    let others = sim.teams(
        "other",
        200,
        &[IRELAND],
        Some(SignedDuration::from_mins(700)),
    );
    let old: Vec<_> = hostile
        .iter()
        .map(|it| sim.cluster.secret(it).unwrap())
        .collect();
    let names = hostile.clone();
    let tool = harass(
        &sim,
        &hostile,
        Duration::from_millis(200),
        move |sim, name, _| {
            let at = names.iter().position(|it| it == name).unwrap();
            if sim.cluster.secret(name).unwrap().data != old[at].data {
                sim.cluster.put_back(name, &old[at]);
            }
        },
    );
    let leader = sim.lead();
    sim.after(720.0).await;
    tool.abort();
    leader.stop().await;
    assert_eq!(starved(&sim, &others, IRELAND), []);
    let (theirs, of_others) = writes_for(&sim, &hostile);
    assert_eq!(of_others, others.len());
    assert!(theirs <= 10 * 12, "{theirs}");
}

#[tokio::test(start_paused = true)]
async fn role_that_flips_is_charged_to_its_namespace() {
    let allow = "namespaceRoles: {allow: [\"arn:aws:iam::*:role/{namespace}-*\"]}";
    let sim = Arc::new(Sim::new(allow));
    let hostile = sim.teams("bad", 20, &[IRELAND, VIRGINIA], Some(SignedDuration::ZERO));
    let others = sim.teams(
        "other",
        300,
        &[IRELAND],
        Some(SignedDuration::from_hours(8)),
    );
    let attack = harass(
        &sim,
        &hostile,
        Duration::from_millis(50),
        |sim, name, round| {
            let role = format!("arn:aws:iam::123456789012:role/{name}-{round}");
            sim.cluster.name_role(name, &role);
        },
    );
    let leader = sim.lead();
    sim.after(150.0).await;
    assert_eq!(starved(&sim, &others, IRELAND), []);
    let (minted, _) = sim.aws.total();
    sim.after(900.0).await;
    attack.abort();
    leader.stop().await;
    let minted = sim.aws.total().0 - minted;
    assert!(
        minted <= 20 * 2 * 12,
        "{minted} tokens in a quarter of an hour"
    );
    let (theirs, _) = writes_for(&sim, &hostile);
    assert!(theirs <= 20 * 20, "{theirs}");
}

#[tokio::test(start_paused = true)]
async fn invented_regions_hold_up_no_tenant() {
    let role = "arn:aws:iam::111122223333:role/{namespace}";
    let config =
        format!("identities: [{{namespaces: [\"team-*\"], assumeRole: {{roleArn: '{role}'}}}}]");
    let sim = Arc::new(Sim::new(&config));
    sim.aws.fail(0.0..99.0, "aa-", Fault::Silent);
    let hostile = sim.teams("bad", 10, &[IRELAND], Some(SignedDuration::ZERO));
    let leader = sim.lead();
    sim.after(1.0).await;
    let attack = harass(
        &sim,
        &hostile,
        Duration::from_millis(50),
        |sim, name, round| {
            let hosts: Vec<String> = (0..64).map(|n| invented(round * 64 + n)).collect();
            sim.cluster.forge(name, &hosts);
        },
    );
    sim.after(1.0).await;
    let victims = sim.teams("team", 20, &[IRELAND], Some(SignedDuration::from_mins(714)));
    sim.after(60.0).await;
    assert_eq!(starved(&sim, &victims, IRELAND), []);
    attack.abort();
    leader.stop().await;
}

#[tokio::test(start_paused = true)]
async fn two_installations_that_disagree_are_contention() {
    let role = "arn:aws:iam::123456789012:role/a";
    let config = format!("identities: [{{assumeRole: {{roleArn: '{role}'}}}}]");
    let sim = Arc::new(Sim::new(&config));
    let names = sim.teams("team", 5, &[IRELAND], Some(SignedDuration::ZERO));
    // The other's states are proven by another key: to us they are anybody's.
    let other = harass(&sim, &names, Duration::from_millis(100), |sim, name, _| {
        if sim.cluster.state(name).is_some() {
            sim.cluster.forge(name, &[IRELAND.to_owned()]);
        }
    });
    let leader = sim.lead();
    sim.after(600.0).await;
    other.abort();
    leader.stop().await;
    let (theirs, _) = writes_for(&sim, &names);
    assert!(theirs <= 5 * 12, "{theirs}");
    assert!(sim.count(r#"ecr_injector_refresh_failures_total{reason="contested"}"#) > 0);
}

#[tokio::test(start_paused = true)]
async fn typo_is_not_overdue_for_ever() {
    let sim = Sim::new("");
    sim.aws.fail(0.0..9999.0, "aa-", Fault::Refused);
    let name = sim
        .teams("team", 1, &[IRELAND, &invented(0)], None)
        .remove(0);
    let leader = sim.lead();
    sim.until(1.0).await;
    let overdue = || sim.count("ecr_injector_refresh_oldest_overdue_seconds");
    assert!(overdue() > 3000, "{}", overdue());
    sim.until(26.0).await;
    assert!(overdue() < 60, "{}", overdue());
    assert_eq!(
        sim.cluster.hosts(&name).len(),
        2,
        "kept while it may be right"
    );
    // Nobody wants it for a month, and another one is wanted.
    sim.until(24.0 * 31.0).await;
    leader.stop().await;
    assert_eq!(sim.cluster.hosts(&name), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn same_password_twice_is_no_edit() {
    let sim = Sim::new("");
    sim.aws.repeat_passwords();
    sim.teams("team", 20, &[IRELAND], None);
    let leader = sim.lead();
    sim.until(12.0).await;
    leader.stop().await;
    assert_eq!(sim.cluster.unusable(), []);
    assert_eq!(sim.count("ecr_injector_repairs_total"), 0);
    let writes = sim.cluster.take_writes().len();
    assert!((80..=100).contains(&writes), "{writes}");
}

#[tokio::test(start_paused = true)]
async fn honest_pods_beside_hostile_ones_are_served_within_seconds() {
    let sim = Arc::new(Sim::new(""));
    let hostile = sim.teams("bad", 100, &[IRELAND], Some(SignedDuration::ZERO));
    let attack = harass(
        &sim,
        &hostile,
        Duration::from_millis(200),
        |sim, name, _| {
            sim.cluster.rival(name);
        },
    );
    let leader = sim.lead();
    sim.after(120.0).await;
    for number in 0..10 {
        let name = namespace(&format!("good-{number}"));
        sim.cluster.opt_in(&name);
        sim.intend(&name, &[IRELAND]);
        sim.after(5.0).await;
        assert!(sim.cluster.left(&name, IRELAND).is_some(), "{name}");
    }
    attack.abort();
    leader.stop().await;
}

/// Numbers that follow from a seed: chance that is the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, range: u64) -> u64 {
        // Knuth's multiplier of MMIX; the upper bits are the better ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % range
    }
}

#[tokio::test(start_paused = true)]
async fn any_mix_of_hostile_behaviour_starves_nobody() {
    let allow = "namespaceRoles: {allow: [\"arn:aws:iam::*:role/{namespace}-*\"]}";
    for seed in [1, 2, 3] {
        let sim = Arc::new(Sim::new(allow));
        sim.aws.fail(0.0..99.0, "aa-", Fault::Silent);
        let now = Some(SignedDuration::ZERO);
        let hostile = sim.teams("bad", 40, &[IRELAND, VIRGINIA], now);
        let copies: Vec<_> = hostile
            .iter()
            .map(|it| sim.cluster.secret(it).unwrap())
            .collect();
        // Their credentials end at all times of the next hours.
        let mut others = Vec::new();
        for hours in 0..8 {
            let age = Some(SignedDuration::from_hours(hours));
            others.extend(sim.teams(&format!("other-{hours}"), 30, &[IRELAND], age));
        }
        let mut chance = Chance(seed);
        let attack = harass(
            &sim,
            &[namespace("all")],
            Duration::from_secs(1),
            move |sim, _, round| {
                for _ in 0..8 {
                    let at = usize::try_from(chance.below(40)).unwrap();
                    let name = &hostile[at];
                    match chance.below(8) {
                        0 => sim.cluster.forge(name, &[IRELAND.to_owned()]),
                        1 => {
                            let hosts: Vec<String> =
                                (0..8).map(|n| invented(round * 8 + n)).collect();
                            sim.cluster.forge(name, &hosts);
                        }
                        2 => sim.cluster.rival(name),
                        3 => sim.cluster.put_back(name, &copies[at]),
                        4 => sim.cluster.delete(name),
                        5 => sim.cluster.opt_out(name),
                        6 => sim.cluster.opt_in(name),
                        _ => {
                            sim.cluster.opt_in(name);
                            let role = format!("arn:aws:iam::123456789012:role/{name}-{round}");
                            sim.cluster.name_role(name, &role);
                        }
                    }
                }
            },
        );
        let leader = sim.lead();
        sim.after(60.0).await;
        for minute in (5..180).step_by(5) {
            let starved = starved(&sim, &others, IRELAND);
            assert_eq!(starved, [], "seed {seed}, before minute {minute}");
            sim.after(300.0).await;
        }
        attack.abort();
        leader.stop().await;
    }
}
