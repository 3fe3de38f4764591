//! `make soak-long`: hours of churn and faults, with tokens that live a quarter of an hour: memory,
//! descriptors and threads must not grow, no credential may come close to its end, and each Pod that
//! was stored has the reference.
//!
//! Everything is real but AWS: kube-apiserver, etcd, the controllers that empty namespaces, two
//! replicas of the release binary. One of them runs from start to end, so that its memory shows a
//! trend; the other one is killed, paused and has its clock set. Each fault lasts a minute, and a
//! minute without one follows ([`faults`]). A row of figures is written every fifteen seconds
//! ([`figures`]); `tests/tools/soak-picture.py` draws them.
//!
//! | variable | for |
//! |---|---|
//! | `SOAK_MINUTES` | the duration: 240 |
//! | `SOAK_NAMESPACES` | how many there are at a time: 1,000 |
//! | `SOAK_BINARY` | another binary than the one of this build |
//! | `SOAK_CSV` | the file of the figures |
//! | `SOAK_STATE` | a folder that keeps etcd: a run goes on where the last one ended |
//! | `SOAK_FAKETIME` | libfaketime, for steps of a clock; without it there are none |
#![allow(
    unreachable_pub,
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "what it prints is what it is for, and a bench that can't go on panics"
)]

#[path = "../../tests/support/mod.rs"]
mod support;

mod churn;
mod faults;
mod figures;

use std::path::PathBuf;
use std::time::Duration;

use support::control_plane;
use support::webhook::Options;
use support::{Balancer, ControlPlane, FakeAws, Installation, Webhook};
use tokio::time::{Instant, sleep_until};

use churn::Churn;
use faults::{Fault, TICKS};
use figures::Figures;

/// A sixteenth of the usual life: a credential is renewed after 30 % of it, so 53 times in 4 hours.
const TOKEN_LIFE: Duration = Duration::from_mins(15);
const TICK: Duration = Duration::from_secs(15);
/// The replica that runs from start to end, and the one that doesn't.
const STEADY: usize = 0;
const MORTAL: usize = 1;

fn main() {
    // `cargo test --all-targets` runs benches too, and without this flag.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("to measure: make soak-long");
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(soak());
}

/// The installation under test.
struct Soak {
    plane: ControlPlane,
    aws: FakeAws,
    balancer: Balancer,
    /// How each replica is started.
    options: Vec<Options>,
    replicas: Vec<Webhook>,
    /// The offset of the mortal replica's clock, if the clock can be set.
    clock: Option<PathBuf>,
    /// Whether an earlier run has left its namespaces, with credentials that may have expired.
    resumes: bool,
}

async fn soak() {
    support::crypto();
    let minutes = number("SOAK_MINUTES", 240);
    let namespaces = number("SOAK_NAMESPACES", 1_000);
    let mut soak = Soak::start().await;
    let churn = Churn::start(&soak.plane, namespaces).await;
    println!("{namespaces} namespaces; {minutes} minutes begin");
    let mut figures = Figures::start(&soak.plane, soak.resumes).await;
    let started = Instant::now();
    let ticks = u32::try_from(minutes * 4).unwrap();
    for tick in 0..ticks {
        let fault = Fault::at(tick, soak.clock.is_some());
        if tick % TICKS == 0 {
            println!("minute {}: {fault:?}", tick / 4);
            fault.begin(&mut soak).await;
        } else if tick % TICKS == TICKS / 2 {
            fault.end(&mut soak).await;
        }
        figures
            .sample(&soak.replicas, &churn, fault, started.elapsed())
            .await;
        // What the fake remembers would be most of this process' memory.
        soak.aws.clear();
        sleep_until(started + TICK * (tick + 1)).await;
    }
    let pods = churn.stop().await;
    let last = ticks.saturating_sub(1);
    if last % TICKS < TICKS / 2 {
        let fault = Fault::at(last, soak.clock.is_some());
        fault.end(&mut soak).await;
    }
    for replica in &mut soak.replicas {
        assert!(replica.stop().await.success(), "a replica didn't end well");
    }
    figures.report(&pods, namespaces, minutes);
}

impl Soak {
    /// Two replicas behind the Service, registered.
    async fn start() -> Self {
        let parts = control_plane::Options {
            controllers: true,
            ..control_plane::Options::default()
        };
        let state = std::env::var_os("SOAK_STATE").map(PathBuf::from);
        let resumes = state
            .as_ref()
            .is_some_and(|state| state.join("etcd").exists());
        let plane = match &state {
            Some(state) => ControlPlane::start_in(state, parts).await,
            None => ControlPlane::start_with(parts).await,
        };
        let aws = FakeAws::start();
        aws.tune_ecr(|ecr| ecr.lifetime = Some(TOKEN_LIFE));
        let installation = Installation::apply(&plane).await;
        let library = std::env::var("SOAK_FAKETIME")
            .ok()
            .filter(|path| !path.is_empty());
        let clock = library.as_ref().map(|_| plane.folder().join("clock"));
        let (mut options, mut replicas) = (Vec::new(), Vec::new());
        for index in [STEADY, MORTAL] {
            let mut option = installation.replica(&plane, &aws).await;
            let binary = std::env::var_os("SOAK_BINARY").map(PathBuf::from);
            option.binary = Some(binary.unwrap_or(env!("CARGO_BIN_EXE_ecr-injector").into()));
            option = option.with_variable("ECR_INJECTOR_LOG", "warn");
            if let (MORTAL, Some(library), Some(clock)) = (index, &library, &clock) {
                std::fs::write(clock, "+0").unwrap();
                for (name, value) in [
                    ("LD_PRELOAD", library.as_str()),
                    ("FAKETIME_TIMESTAMP_FILE", clock.to_str().unwrap()),
                    ("FAKETIME_NO_CACHE", "1"),
                    ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
                ] {
                    option = option.with_variable(name, value);
                }
            }
            replicas.push(Webhook::start(option.clone()).await);
            options.push(option);
        }
        let addresses: Vec<_> = replicas.iter().map(Webhook::address).collect();
        let balancer = Balancer::start(installation.service_address(), &addresses);
        installation.register(&plane).await;
        Self {
            plane,
            aws,
            balancer,
            options,
            replicas,
            clock,
            resumes,
        }
    }

    /// Has new connections go to both replicas, or to the steady one alone.
    fn balance(&self, both: bool) {
        let addresses: Vec<_> = self.replicas.iter().map(Webhook::address).collect();
        let count = if both { addresses.len() } else { 1 };
        self.balancer.set_backends(&addresses[..count]);
    }
}

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable} is no number: {text}"))
    })
}
