//! The faults of a soak, one after the other.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::support::fake_aws::Behaviour;
use crate::support::{Caller, Webhook};
use crate::{MORTAL, STEADY, Soak};

/// From one fault to the next one, in ticks of fifteen seconds; the first half is the fault's.
pub const TICKS: u32 = 8;
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/ecr-injector/leases/ecr-injector";
/// The offsets of a clock, in seconds: less than a credential has left when it is renewed.
const CLOCK_STEPS: [&str; 2] = ["+150", "-150"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing, to compare with.
    None,
    AwsThrottles,
    AwsFails,
    AwsHangs,
    /// The API server is killed and comes back; watches begin again.
    ApiServerRestarts,
    /// The mortal replica is killed, the leader if it leads, and is back a minute later.
    Killed,
    /// It stands still for a minute, behind a balancer that has taken it out.
    Paused,
    /// Another one leads.
    LeaseTaken,
    ClockAhead,
    ClockBehind,
}

impl Fault {
    const ALL: [Self; 10] = [
        Self::None,
        Self::AwsThrottles,
        Self::Killed,
        Self::AwsFails,
        Self::LeaseTaken,
        Self::ApiServerRestarts,
        Self::AwsHangs,
        Self::Paused,
        Self::ClockAhead,
        Self::ClockBehind,
    ];

    /// Returns the fault of a tick.
    pub fn at(tick: u32, has_clock: bool) -> Self {
        let fault = Self::ALL[(tick / TICKS) as usize % Self::ALL.len()];
        let is_of_clock = matches!(fault, Self::ClockAhead | Self::ClockBehind);
        if is_of_clock && !has_clock {
            return Self::None;
        }
        fault
    }

    /// Returns whether reviews may be lost without a fault of the webhook: the API server doesn't
    /// try a call again whose process was killed.
    pub fn loses_reviews(self) -> bool {
        matches!(self, Self::Killed | Self::Paused | Self::ApiServerRestarts)
    }

    pub async fn begin(self, soak: &mut Soak) {
        match self {
            Self::None => {}
            Self::AwsThrottles => behave(soak, Behaviour::Throttle),
            Self::AwsFails => behave(soak, Behaviour::ServerError),
            Self::AwsHangs => behave(soak, Behaviour::Hang),
            Self::ApiServerRestarts => soak.plane.restart_api_server().await,
            Self::Killed => {
                soak.replicas[MORTAL].kill();
                soak.balance(false);
            }
            Self::Paused => {
                soak.balance(false);
                // Its open connections end first, as they do on a node that is drained.
                sleep(Duration::from_secs(5)).await;
                soak.replicas[MORTAL].signal("STOP");
            }
            Self::LeaseTaken => {
                let spec = json!({"holderIdentity": "somebody-else", "leaseDurationSeconds": 5});
                let admin = Caller(soak.plane.admin().await);
                admin.merge(LEASE, &json!({"spec": spec})).await.allowed();
            }
            Self::ClockAhead => set_clock(soak, CLOCK_STEPS[0]),
            Self::ClockBehind => set_clock(soak, CLOCK_STEPS[1]),
        }
    }

    pub async fn end(self, soak: &mut Soak) {
        match self {
            Self::None | Self::ApiServerRestarts | Self::LeaseTaken => {}
            Self::AwsThrottles | Self::AwsFails | Self::AwsHangs => {
                behave(soak, Behaviour::Answer);
            }
            Self::Killed => {
                let options = soak.options[MORTAL].clone();
                soak.replicas[MORTAL] = Webhook::start(options).await;
                soak.balance(true);
            }
            Self::Paused => {
                soak.replicas[MORTAL].signal("CONT");
                soak.replicas[MORTAL].wait_until_ready().await;
                soak.balance(true);
            }
            Self::ClockAhead | Self::ClockBehind => set_clock(soak, "+0"),
        }
        assert!(soak.replicas[STEADY].liveness().await == Some(200));
    }
}

fn behave(soak: &Soak, behaviour: Behaviour) {
    soak.aws.tune_ecr(|ecr| ecr.behaviour = behaviour);
}

fn set_clock(soak: &Soak, offset: &str) {
    let clock = soak.clock.as_ref().expect("a clock that can be set");
    std::fs::write(clock, offset).unwrap();
}
