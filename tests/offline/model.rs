//! Explores interleavings of admissions, the leader, and what happens around them, over the real code: the webhook, the
//! provisioner, the writer, the stores and the leader's loop of each process run on a paused clock, and every call to the API
//! server, every news of a watch and every event is a step whose place in the order the explorer chooses.
//!
//! Each schedule is replayed from the start, since tasks can't be copied. Of the schedules that
//! differ only in the order of steps that don't touch each other one is explored (sleep sets), and
//! a state that was reached before is not explored again: a state is identified by what each
//! process has heard, in its order, and by what is stored and on its way. Where a scenario has more
//! schedules than its limit, as many as that are explored in order and as many more at random.
//! `MODEL_TIMES=20 cargo test --test offline model::` raises all limits by that factor.
//!
//! | invariant | says |
//! |---|---|
//! | I1 | no host loses a good credential unasked |
//! | I2 | a Pod that is reported ready has all its hosts in the Secret |
//! | I3 | in the end, everything that was admitted and is allowed is there |
//! | I4 | nothing is written outside opted-in namespaces |
//! | I5 | a mistake in the configuration removes nothing (I1), and undone it leaves all as it was (I3) |
//! | I6 | no forged state makes a credential appear, or counts as fresh (I2) |
//! | I7 | in the end nothing is written any more |

mod explore;
mod server;
mod world;

use ecr_injector::config::Config;

use self::{explore::explore, world::config};

/// A registry that the configurations allow, at times.
const A: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
/// One that they always allow.
const B: &str = "210987654321.dkr.ecr.eu-west-2.amazonaws.com";
/// The public gallery.
const C: &str = "public.ecr.aws";
/// One that they never allow.
const D: &str = "999999999999.dkr.ecr.eu-west-1.amazonaws.com";

/// The usual configuration.
const BOTH: &str = r#"
refresh: {writesPerSecond: 1000}
allow: {accounts: ["123456789012", "210987654321"]}
"#;
/// One digit is wrong.
const MISTAKE: &str = r#"
refresh: {writesPerSecond: 1000}
allow: {accounts: ["123456789013", "210987654321"]}
"#;

/// Another identity mints for A.
const ROLE: &str = r#"
refresh: {writesPerSecond: 1000}
allow: {accounts: ["123456789012", "210987654321"]}
identities:
  - {accounts: ["123456789012"], namespaces: ["team"], assumeRole: {roleArn: "arn:aws:iam::123456789012:role/a"}}
"#;
/// The public gallery is served too.
const PUBLIC: &str = r#"
refresh: {writesPerSecond: 1000}
allow: {accounts: ["123456789012", "210987654321"]}
publicEcr: true
"#;
/// The registries that are not allowed are taken out at once.
const REVOKING: &str = r#"
refresh: {writesPerSecond: 1000}
allow: {accounts: ["210987654321"]}
revoke: immediately
"#;
const HOUR: u64 = 3600;

/// An event that no process of ours decides.
#[derive(Debug, Clone, Copy)]
pub enum Event {
    /// A Pod with images in these registries comes to a replica.
    Admit(usize, &'static [&'static str]),
    /// A Pod with such images comes to a replica in a namespace that is not opted in.
    AdmitStranger(usize, &'static [&'static str]),
    /// A quota refuses writes, or no longer.
    Quota(bool),
    /// AWS gives no tokens, or gives them again.
    Outage(bool),
    /// The configuration file is replaced by the next one.
    NextConfiguration,
    /// The leader's process ends, and another begins.
    RestartLeader,
    /// Somebody deletes the Secret.
    Delete,
    /// Somebody changes its data.
    Edit,
    /// Somebody writes a state of these hosts without a seal.
    Forge(&'static [&'static str]),
    /// Somebody writes such a state in a namespace that is not opted in.
    ForgeStranger(&'static [&'static str]),
    /// Somebody keeps a copy of the Secret.
    Copy,
    /// Somebody puts that copy in its place.
    PutBack,
    /// The label comes or goes.
    OptIn(bool),
    /// So many seconds pass.
    Pass(u64),
}

/// A scenario to explore.
pub struct Scenario {
    /// How many replicas there are; the leader may be one of them, or one more process.
    pub replicas: usize,
    pub leader: usize,
    pub configs: Vec<Config>,
    /// The events that happened before, one after another.
    pub setup: &'static [Event],
    /// The events to explore, each script in its order, and any of them before the others.
    pub scripts: &'static [&'static [Event]],
    /// Whether calls to AWS wait as well.
    pub mints_wait: bool,
    /// Whether the API server refuses what the guard refuses.
    pub has_guard: bool,
    /// Whether the configuration revokes at once.
    pub revokes: bool,
}

impl Scenario {
    fn new(configs: &[&str]) -> Self {
        Self {
            replicas: 2,
            leader: 2,
            configs: configs.iter().map(|text| config(text)).collect(),
            setup: &[],
            scripts: &[],
            mints_wait: false,
            has_guard: true,
            revokes: false,
        }
    }
}

/// Explores a scenario, and sees to it that not much less is explored than was when it was written.
fn explored(name: &str, scenario: &Scenario, limit: usize, states: usize) {
    let explored = explore(name, scenario, limit);
    assert!(explored.states >= states, "{name}: {explored:?}");
}

#[test]
fn two_admissions_and_the_leader_lose_nothing() {
    let scripts: &[&[Event]] = &[&[Event::Admit(0, &[A])], &[Event::Admit(1, &[A, B])]];
    let scenario = Scenario {
        scripts,
        ..Scenario::new(&[BOTH])
    };
    explored("two replicas, and a leader", &scenario, 600, 570);
    let scenario = Scenario {
        leader: 1,
        ..scenario
    };
    explored("two replicas, one of which leads", &scenario, 600, 240);
    let scenario = Scenario {
        scripts: &[&[Event::Admit(0, &[A])], &[Event::Admit(0, &[B])]],
        replicas: 1,
        leader: 1,
        mints_wait: true,
        ..scenario
    };
    explored("one replica, and slow mints", &scenario, 600, 740);
}

#[test]
fn renewals_lose_no_host_that_is_admitted_meanwhile() {
    let scenario = Scenario {
        setup: &[Event::Admit(0, &[A])],
        scripts: &[&[Event::Pass(4 * HOUR)], &[Event::Admit(1, &[B])]],
        mints_wait: true,
        ..Scenario::new(&[BOTH])
    };
    explored("a renewal", &scenario, 500, 2110);
    let scenario = Scenario {
        scripts: &[
            &[Event::Pass(13 * HOUR)],
            &[Event::Admit(1, &[A, B])],
            &[Event::Outage(true), Event::Outage(false)],
        ],
        mints_wait: false,
        ..scenario
    };
    explored("an expiry in an outage", &scenario, 500, 4200);
}

#[test]
fn mistakes_in_the_configuration_lose_nothing() {
    let scenario = Scenario {
        setup: &[Event::Admit(0, &[A])],
        scripts: &[
            &[Event::NextConfiguration, Event::NextConfiguration],
            &[Event::Admit(1, &[A, B])],
        ],
        ..Scenario::new(&[BOTH, MISTAKE, BOTH])
    };
    explored("a mistake", &scenario, 600, 580);
    let scenario = Scenario {
        setup: &[Event::Admit(0, &[A, B])],
        scripts: &[
            &[
                Event::NextConfiguration,
                Event::Pass(4 * HOUR),
                Event::NextConfiguration,
            ],
            &[Event::Admit(1, &[A])],
        ],
        ..scenario
    };
    explored(
        "a mistake while credentials become due",
        &scenario,
        400,
        1350,
    );
    let scenario = Scenario {
        setup: &[Event::Admit(0, &[A])],
        scripts: &[
            &[Event::NextConfiguration],
            &[Event::Admit(1, &[A, B])],
            &[Event::RestartLeader],
        ],
        ..Scenario::new(&[BOTH, ROLE])
    };
    explored("another identity", &scenario, 500, 3820);
    let scenario = Scenario {
        setup: &[Event::Admit(0, &[A])],
        scripts: &[&[Event::NextConfiguration], &[Event::Admit(1, &[A, B])]],
        revokes: true,
        ..Scenario::new(&[BOTH, REVOKING])
    };
    explored("a revocation", &scenario, 1500, 3540);
}

#[test]
fn refusals_and_outages_lose_no_want() {
    let scenario = Scenario {
        scripts: &[
            &[Event::Quota(true), Event::Quota(false)],
            &[Event::Admit(0, &[A])],
            &[Event::Admit(1, &[B])],
        ],
        ..Scenario::new(&[BOTH])
    };
    explored("a refusal", &scenario, 500, 1750);
    let scenario = Scenario {
        scripts: &[
            &[Event::Outage(true), Event::Outage(false)],
            &[Event::Admit(0, &[A])],
            &[Event::Admit(1, &[B])],
        ],
        ..scenario
    };
    explored("an outage", &scenario, 500, 6000);
    let scenario = Scenario {
        scripts: &[
            &[Event::Quota(true), Event::Pass(1), Event::Quota(false)],
            &[Event::Admit(0, &[A])],
            &[Event::RestartLeader, Event::Outage(true)],
        ],
        ..scenario
    };
    explored("a refusal, an outage and a restart", &scenario, 900, 1350);
}

#[test]
fn restarts_of_the_leader_lose_nothing() {
    let scenario = Scenario {
        setup: &[Event::Admit(0, &[A])],
        scripts: &[
            &[Event::Pass(4 * HOUR), Event::RestartLeader],
            &[Event::Admit(1, &[B])],
        ],
        ..Scenario::new(&[BOTH])
    };
    explored("a restart", &scenario, 500, 2720);
}

#[test]
fn secret_that_others_change_is_repaired() {
    for (name, event) in [
        ("a deletion", &[Event::Delete][..]),
        ("an edit", &[Event::Edit]),
        ("a forged state", &[Event::Forge(&[A, D])]),
        ("an older copy", &[Event::PutBack]),
        ("an edit and a deletion", &[Event::Edit, Event::Delete]),
    ] {
        let scripts: &'static [&'static [Event]] =
            Box::leak(Box::new([event, &[Event::Admit(1, &[A, B])]]));
        let scenario = Scenario {
            setup: &[Event::Admit(0, &[A]), Event::Copy, Event::Admit(0, &[B])],
            scripts,
            ..Scenario::new(&[BOTH])
        };
        explored(name, &scenario, 400, 110);
    }
}

#[test]
fn forged_secrets_open_nothing() {
    let scenario = Scenario {
        scripts: &[
            &[Event::Forge(&[A, D]), Event::ForgeStranger(&[A])],
            &[Event::Admit(0, &[A]), Event::AdmitStranger(0, &[A])],
        ],
        ..Scenario::new(&[BOTH])
    };
    explored("forged secrets", &scenario, 500, 5060);
}

#[test]
fn opted_out_namespaces_are_left_alone() {
    for has_guard in [true, false] {
        let scenario = Scenario {
            setup: &[Event::Admit(0, &[A])],
            scripts: &[
                &[
                    Event::OptIn(false),
                    Event::Pass(4 * HOUR),
                    Event::OptIn(true),
                ],
                &[Event::Admit(1, &[B])],
            ],
            has_guard,
            ..Scenario::new(&[BOTH])
        };
        explored("an opt-out", &scenario, 400, 3340);
    }
}

#[test]
fn public_hosts_come_and_go() {
    let scenario = Scenario {
        setup: &[Event::Admit(0, &[C])],
        scripts: &[
            &[
                Event::Outage(true),
                Event::Pass(13 * HOUR),
                Event::Outage(false),
            ],
            &[Event::Admit(1, &[A, C])],
        ],
        ..Scenario::new(&[PUBLIC])
    };
    explored("the public gallery", &scenario, 500, 3770);
}

#[test]
fn everything_at_once_loses_nothing() {
    let scenario = Scenario {
        setup: &[Event::Admit(0, &[A])],
        scripts: &[
            &[Event::NextConfiguration, Event::NextConfiguration],
            &[Event::Admit(0, &[B]), Event::Admit(1, &[A])],
            &[
                Event::Quota(true),
                Event::Pass(4 * HOUR),
                Event::Quota(false),
            ],
            &[Event::Outage(true), Event::Outage(false)],
            &[Event::RestartLeader],
        ],
        ..Scenario::new(&[BOTH, MISTAKE, BOTH])
    };
    explored("all at once", &scenario, 700, 15650);
}
