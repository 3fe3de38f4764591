//! A container that dies while AWS can't be asked, whose image is on the node: from Kubernetes 1.35
//! on the kubelet wants to see the ServiceAccount's credentials before it starts it again.

use std::time::Instant;

use serde_json::{Value, json};

use crate::accounts::{ROLE, TOKENS, account, allow_tokens};
use crate::isolation::isolated;
use crate::lab::{Lab, Plugin, failed_pull};
use crate::support::Behaviour;

const START_CACHED: Plugin = Plugin {
    config: TOKENS.config,
    arguments: &["--on-outage", "start-cached"],
};

/// With it begins the line that says why there is no token.
const REASON: &str = "ecr-credential-provider: 123456789012.dkr.ecr";

struct Outage {
    lab: Lab,
    shop: String,
    robot: Value,
}

/// The end of a container that was killed.
#[derive(Debug, PartialEq)]
enum Fate {
    RunsAgain,
    CannotBePulled,
}

impl Outage {
    /// Two Pods run, and then AWS is away.
    async fn begin(plugin: Plugin) -> Self {
        let lab = Lab::with(plugin).await;
        allow_tokens(&lab).await;
        let shop = lab.plane.namespace("shop", &[]).await;
        let robot = account(&lab, &shop, "robot", Some(ROLE)).await;
        lab.runs(&shop, "one", &robot).await;
        lab.runs(&shop, "two", &robot).await;
        lab.aws
            .tune_sts(|knobs| knobs.behaviour = Behaviour::ServerError);
        lab.aws
            .tune_ecr(|knobs| knobs.behaviour = Behaviour::ServerError);
        lab.say("AWS is away");
        Self { lab, shop, robot }
    }

    /// Kills a container, and returns what the kubelet does then.
    async fn kill(&self, name: &str) -> Fate {
        let Self { lab, shop, .. } = self;
        let killed = Instant::now();
        lab.kill_container(name);
        let fate = lab.wait(shop, name, "is started again or not", fate).await;
        let took = killed.elapsed().as_secs_f64();
        lab.say(&format!("{name} was killed: {fate:?} after {took:.2} s"));
        fate
    }
}

fn fate(pod: &Value) -> Option<Fate> {
    let status = &pod["status"]["containerStatuses"][0];
    if failed_pull(pod).is_some() {
        return Some(Fate::CannotBePulled);
    }
    let runs_again = status["restartCount"].as_u64()? > 0 && status["ready"] == true;
    runs_again.then_some(Fate::RunsAgain)
}

/// P-60
#[test]
fn outage_keeps_a_container_from_starting_unless_a_token_is_left() {
    isolated(async || {
        let mut outage = Outage::begin(TOKENS).await;
        outage.lab.start_kubelet(Some(TOKENS)).await;
        // The plugin still has the token.
        assert_eq!(outage.kill("one").await, Fate::RunsAgain);

        outage.lab.forget_tokens();
        outage.lab.start_kubelet(Some(TOKENS)).await;
        assert_eq!(outage.kill("two").await, Fate::CannotBePulled);
        let Outage { lab, shop, robot } = &outage;
        lab.cannot_pull(shop, "new", robot).await;
        assert!(lab.kubelet_log().contains(REASON));
        lab.aws.behave();
        lab.say("AWS is back");
        lab.wait_until_ready(shop, "two").await;
        lab.say("two is ready");
    });
}

/// P-60
#[test]
fn start_cached_starts_a_container_in_an_outage_and_pulls_nothing() {
    isolated(async || {
        let mut outage = Outage::begin(START_CACHED).await;
        outage.lab.start_kubelet(Some(START_CACHED)).await;
        // The plugin still has the token.
        assert_eq!(outage.kill("one").await, Fate::RunsAgain);

        outage.lab.forget_tokens();
        outage.lab.start_kubelet(Some(START_CACHED)).await;
        assert_eq!(outage.kill("two").await, Fate::RunsAgain);
        let Outage { lab, shop, robot } = &outage;
        lab.cannot_pull(shop, "new", robot).await;
        // The kubelet drops what a plugin writes that has an answer.
        assert!(!lab.kubelet_log().contains(REASON));
        let other = account(lab, shop, "other", Some(ROLE)).await;
        let of_another = json!({
            "serviceAccountName": other["serviceAccountName"],
            "containers": [{"name": "main", "image": crate::lab::image("one"), "args": ["x"]}],
        });
        // It never pulled this image, so the image on the node isn't its own.
        lab.cannot_pull(shop, "of-another", &of_another).await;
        assert_eq!(lab.aws.leak_in(&lab.kubelet_log()), None);
    });
}
