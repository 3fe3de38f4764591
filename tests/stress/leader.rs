//! Leaders that die, stop and sleep, against a real API server: another goes on where they were, and its audit log says
//! that nothing was written twice and nothing left out.
//!
//! `make test` does some rounds; `make kill-rounds` does all of them and one with Kubernetes' own times.

use std::collections::HashMap;
use std::time::Duration;

use crate::support;
use crate::support::bed::{hosts, registry};
use crate::support::due::make_due;
use crate::support::installation::{OPT_IN, PULL_SECRET, USER};
use crate::support::webhook::Options;
use crate::support::{ControlPlane, FakeAws, Installation, Webhook, eventually};
use tokio::time::{Instant, sleep};

const NAMESPACES: usize = 60;

/// A Lease's times in seconds: duration, renew deadline, retry period.
type Times = (f64, f64, f64);
const QUICK: Times = (3.0, 2.0, 0.4);
const USUAL: Times = (15.0, 10.0, 2.0);

/// Two replicas, of which one leads, and namespaces with pull secrets.
struct Pair {
    plane: ControlPlane,
    aws: FakeAws,
    options: Vec<Options>,
    replicas: Vec<Webhook>,
    namespaces: Vec<String>,
    host: String,
}

impl Pair {
    async fn start(times: Times) -> Self {
        support::crypto();
        let plane = ControlPlane::start().await;
        let aws = FakeAws::start();
        let installation = Installation::apply(&plane).await;
        let mut options = Vec::new();
        let mut replicas = Vec::new();
        for _ in 0..2 {
            let mut one = installation.replica(&plane, &aws).await;
            "refresh: {writesPerSecond: 20}".clone_into(&mut one.config);
            for (name, seconds) in [
                ("LEASE_DURATION", times.0),
                ("LEASE_RENEW_DEADLINE", times.1),
                ("LEASE_RETRY_PERIOD", times.2),
            ] {
                let text = format!("{}ms", seconds * 1000.0);
                one = one.with_variable(&format!("ECR_INJECTOR_{name}"), &text);
            }
            one = one.with_variable("ECR_INJECTOR_SHUTDOWN_DELAY", "0");
            replicas.push(Webhook::start(one.clone()).await);
            options.push(one);
        }
        let mut namespaces = Vec::new();
        for _ in 0..NAMESPACES {
            namespaces.push(plane.namespace("team", &[OPT_IN]).await);
        }
        let host = registry(123_456_789_012, "eu-west-1");
        Self {
            plane,
            aws,
            options,
            replicas,
            namespaces,
            host,
        }
    }

    async fn leader(&self) -> usize {
        eventually("one leads", Duration::from_secs(40), async || {
            let mut leaders = Vec::new();
            for (at, replica) in self.replicas.iter().enumerate() {
                if replica.metric("ecr_injector_leader").await > 0.5 {
                    leaders.push(at);
                }
            }
            (leaders.len() == 1).then(|| leaders[0])
        })
        .await
    }

    /// How long until this one leads.
    async fn until_leads(&self, at: usize) -> Duration {
        let begun = Instant::now();
        eventually("the other leads", Duration::from_secs(40), async || {
            let leads = self.replicas[at].metric("ecr_injector_leader").await > 0.5;
            leads.then_some(())
        })
        .await;
        begun.elapsed()
    }

    async fn restart(&mut self, at: usize) {
        self.replicas[at] = Webhook::start(self.options[at].clone()).await;
    }

    async fn make_due(&self) {
        let hosts = [self.host.clone()];
        make_due(&self.plane.admin().await, &self.namespaces, &hosts).await;
    }

    /// Waits until no pull secret holds an old token.
    async fn until_fresh(&self) {
        let client = self.plane.admin().await;
        let secrets: kube::Api<k8s_openapi::api::core::v1::Secret> = kube::Api::all(client);
        let ours = kube::api::ListParams::default().fields(&format!("metadata.name={PULL_SECRET}"));
        eventually("all are fresh", Duration::from_mins(1), async || {
            let listed = secrets.list(&ours).await.unwrap();
            let fresh = listed.iter().filter(|secret| {
                assert_eq!(hosts(secret), [self.host.as_str()]);
                let passwords = self.aws.passwords();
                let config = &secret.data.as_ref().unwrap()[".dockerconfigjson"].0;
                let config: serde_json::Value = serde_json::from_slice(config).unwrap();
                let auth = config["auths"][&self.host]["auth"].as_str().unwrap();
                let password = support::fake_aws::password_of(auth);
                password.is_some_and(|password| passwords.contains(&password))
            });
            (fresh.count() == NAMESPACES).then_some(())
        })
        .await;
    }

    /// The leaders' writes to pull secrets since a number of audit events: how many for each namespace, by status.
    fn writes_since(&self, seen: usize) -> HashMap<(String, i64), usize> {
        let mut writes = HashMap::new();
        for event in self.plane.audit_events().iter().skip(seen) {
            let agent = event["userAgent"].as_str().unwrap_or_default();
            if event["user"]["username"] == USER
                && event["verb"] == "patch"
                && event["objectRef"]["resource"] == "secrets"
                && agent.ends_with(" refresher")
                && event["stage"] == "ResponseComplete"
            {
                let namespace = event["objectRef"]["namespace"].as_str().unwrap().to_owned();
                let code = event["responseStatus"]["code"].as_i64().unwrap();
                *writes.entry((namespace, code)).or_default() += 1;
            }
        }
        writes
    }

    /// Each was written once and none left out; how many requests there were beside.
    fn check_writes(&self, seen: usize) -> usize {
        let writes = self.writes_since(seen);
        for namespace in &self.namespaces {
            let count = |code| writes.get(&(namespace.clone(), code)).copied();
            let (written, cut_off) = (count(200).unwrap_or(0), count(504).unwrap_or(0));
            // Of a write whose sender died the API server's log says 504, also where it came through.
            let once = written == 1 || (written == 0 && cut_off == 1);
            assert!(once, "{namespace}: {writes:?}");
        }
        writes.values().sum::<usize>() - NAMESPACES
    }
}

/// A number below one that looks random, the same in each run.
fn chance(round: usize) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "small numbers")]
    let number = (round * 7_919 % 101) as f64;
    number / 101.0
}

fn rounds() -> usize {
    let asked = std::env::var("ECR_INJECTOR_KILL_ROUNDS").ok();
    asked.map_or(3, |text| text.parse().unwrap())
}

async fn kill_rounds(pair: &mut Pair, rounds: usize, limit: Duration) {
    let mut slowest = Duration::ZERO;
    for round in 0..rounds {
        let leader = pair.leader().await;
        let seen = pair.plane.audit_events().len();
        pair.make_due().await;
        let into = Duration::from_secs_f64(3.0 * chance(round));
        sleep(into).await;
        pair.replicas[leader].kill();
        let took = pair.until_leads(1 - leader).await;
        assert!(took <= limit, "round {round}: {took:?}");
        slowest = slowest.max(took);
        pair.until_fresh().await;
        let beside = pair.check_writes(seen);
        println!(
            "round {round}: killed {into:.1?} into the sweep, the other led {took:.1?} later, {beside} requests beside"
        );
        pair.restart(leader).await;
    }
    println!("{rounds} rounds; the slowest take-over took {slowest:.1?}");
}

#[tokio::test]
async fn killed_leaders_successor_writes_each_secret_once() {
    let _alone = crate::alone().await;
    let mut pair = Pair::start(QUICK).await;
    kill_rounds(&mut pair, rounds(), Duration::from_secs(8)).await;
    if std::env::var_os("ECR_INJECTOR_KILL_ROUNDS").is_some() {
        drop(pair);
        let mut pair = Pair::start(USUAL).await;
        kill_rounds(&mut pair, 1, Duration::from_secs(20)).await;
    }
}

#[tokio::test]
async fn released_lease_is_taken_over_in_3s() {
    let _alone = crate::alone().await;
    let mut pair = Pair::start(USUAL).await;
    let leader = pair.leader().await;
    let seen = pair.plane.audit_events().len();
    pair.make_due().await;
    sleep(Duration::from_secs(1)).await;
    let begun = Instant::now();
    assert!(pair.replicas[leader].stop().await.success());
    pair.until_leads(1 - leader).await;
    let took = begun.elapsed();
    assert!(took <= Duration::from_secs(3), "{took:?}");
    pair.until_fresh().await;
    println!(
        "the other led {took:.1?} after SIGTERM; {} requests beside",
        pair.check_writes(seen)
    );
}

#[tokio::test]
async fn leader_that_slept_past_its_lease_starts_no_write() {
    let _alone = crate::alone().await;
    let pair = Pair::start(QUICK).await;
    let mut sleeper = pair.leader().await;
    for round in 0..3 {
        let seen = pair.plane.audit_events().len();
        pair.make_due().await;
        sleep(Duration::from_secs_f64(0.3 + chance(round + 1))).await;
        pair.replicas[sleeper].signal("STOP");
        let took = pair.until_leads(1 - sleeper).await;
        pair.until_fresh().await;
        pair.replicas[sleeper].signal("CONT");
        sleep(Duration::from_secs(2)).await;
        let beside = pair.check_writes(seen);
        println!(
            "round {round}: the other led {took:.1?} after the stop, {beside} requests beside"
        );
        assert!(beside <= 1, "{:?}", pair.writes_since(seen));
        assert_eq!(pair.leader().await, 1 - sleeper);
        sleeper = 1 - sleeper;
    }
}
