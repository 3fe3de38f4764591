//! The life of a pull secret under Pods that a kubelet pulls: renewed, deleted, changed, opted out,
//! and with AWS away.

use std::time::{Duration, Instant};

use jiff::SignedDuration;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::isolation::isolated;
use crate::lab::HOST;
use crate::support::installation::{OPT_IN, PULL_SECRET};
use crate::support::{Behaviour, due, eventually};
use crate::webhook_lab::{SHORT_LIFE, WebhookLab, by_hand};
use crate::workloads::always_pulled;

/// How long a write of the leader may take that nothing holds up.
const SOON: Duration = Duration::from_secs(30);

#[test]
fn restarted_and_scaled_pods_pull_with_the_renewed_token() {
    isolated(async || {
        let mut bed = WebhookLab::start("").await;
        bed.lab
            .aws
            .tune_ecr(|knobs| knobs.lifetime = Some(SHORT_LIFE));
        let shop = bed.opted_in("shop").await;
        bed.lab.deploy(&shop, "web", 1, &always_pulled("web")).await;
        bed.lab.rolled_out(&shop, "web").await;
        // Its Pods have the reference from their own template.
        let mut listed = always_pulled("listed");
        listed["imagePullSecrets"] = by_hand()["imagePullSecrets"].clone();
        bed.lab.deploy(&shop, "listed", 1, &listed).await;
        bed.lab.rolled_out(&shop, "listed").await;

        // The leader renews in time, and then the registry takes the old token no longer.
        let old = bed.issued();
        bed.renewed(&shop, &old).await;
        bed.lab.registry.revoke_these(old.clone());
        bed.lab.restart(&shop, "web").await;
        bed.lab.rolled_out(&shop, "web").await;
        bed.lab.scale(&shop, "web", 3).await;
        bed.lab.rolled_out(&shop, "web").await;
        let asked = bed.lab.registry.asked("web");
        let last = asked.last().unwrap();
        let password = last.password.clone().unwrap();
        assert!(last.given && !old.contains(&password), "{last:?}");

        // Without a leader the same ends with Pods that can't be pulled.
        bed.lab.aws.behave();
        let old = bed.expire(&[&shop]).await;
        bed.lab.restart(&shop, "listed").await;
        bed.lab.cannot_roll_out(&shop, "listed", 1).await;
        bed.start_again().await;
        bed.renewed(&shop, &old).await;
        bed.lab.rolled_out(&shop, "listed").await;
        assert_eq!(bed.lab.aws.leak_in(&bed.webhook.log()), None);
    });
}

#[test]
fn deleted_or_changed_pull_secret_is_back_before_the_next_pull() {
    isolated(async || {
        let mut bed = WebhookLab::start("").await;
        let (shop, store) = (bed.opted_in("shop").await, bed.opted_in("store").await);
        bed.lab.runs(&shop, "first", &json!({})).await;
        bed.lab.runs(&store, "first", &json!({})).await;

        bed.delete_secret(&shop).await;
        bed.timed("the deleted one is back", async || {
            bed.password(&shop).await.map(drop)
        })
        .await;
        bed.lab.runs(&shop, "after-deletion", &by_hand()).await;

        change(&bed, &store).await;
        bed.timed("the changed one is repaired", async || {
            let issued = bed.issued();
            let password = bed.password(&store).await?;
            issued.contains(&password).then_some(())
        })
        .await;
        bed.lab.runs(&store, "after-change", &by_hand()).await;

        // Without a leader neither is repaired, and nothing can be pulled.
        bed.stop().await;
        bed.delete_secret(&shop).await;
        change(&bed, &store).await;
        bed.lab.cannot_pull(&shop, "deleted", &by_hand()).await;
        bed.lab.cannot_pull(&store, "changed", &by_hand()).await;
        assert!(bed.pull_secret(&shop).await.is_none());
        bed.start_again().await;
        bed.lab.wait_until_recovered(&store, "changed").await;
        // What a deleted one held is known to those who saw it: here an admission has to say it again.
        bed.lab.runs(&shop, "again", &json!({})).await;
        bed.lab.wait_until_recovered(&shop, "deleted").await;
    });
}

/// Writes a password of nobody's into a pull secret.
async fn change(bed: &WebhookLab, namespace: &str) {
    let config = json!({"auths": {HOST: {"username": "AWS", "password": "x", "auth": "QVdTOng="}}});
    let patch = json!({"stringData": {".dockerconfigjson": config.to_string()}});
    let secrets = bed.secrets(namespace);
    secrets
        .patch(PULL_SECRET, &PatchParams::default(), &Patch::Merge(patch))
        .await
        .unwrap();
    bed.lab.say("the pull secret is changed");
}

#[test]
fn outage_of_aws_costs_no_pull_until_the_token_ends() {
    isolated(async || {
        let mut bed = WebhookLab::start("").await;
        let shop = bed.opted_in("shop").await;
        bed.lab.runs(&shop, "first", &json!({})).await;
        let token = bed.password(&shop).await.unwrap();
        bed.lab
            .aws
            .tune_ecr(|knobs| knobs.behaviour = Behaviour::ServerError);
        bed.lab.say("AWS is away");
        // A replica that has no token in its memory, and a token of which ten minutes are left.
        bed.stop().await;
        let almost = SignedDuration::from_mins(11 * 60 + 50);
        due::make_old(&bed.lab.admin, &shop, HOST, &token, almost).await;
        bed.start_again().await;
        let calls = bed.lab.aws.calls().len();
        eventually("the leader asks AWS", SOON, async || {
            (bed.lab.aws.calls().len() > calls).then_some(())
        })
        .await;
        bed.lab.runs(&shop, "in-the-outage", &json!({})).await;
        assert_eq!(bed.password(&shop).await, Some(token.clone()));
        // There is nothing to pull with where nothing was minted before.
        let new = bed.opted_in("new").await;
        bed.lab
            .cannot_pull(&new, "first-of-a-namespace", &json!({}))
            .await;

        // The token's end.
        bed.lab.registry.revoke();
        let over = SignedDuration::from_mins(12 * 60 + 1);
        due::make_old(&bed.lab.admin, &shop, HOST, &token, over).await;
        bed.lab.say("the token has ended");
        bed.lab.cannot_pull(&shop, "too-late", &json!({})).await;
        // An image that is on the node starts with a token that has ended.
        bed.lab.kill_container("first");
        bed.lab
            .wait(&shop, "first", "is started again", restarted)
            .await;
        bed.lab
            .say("first is started again, from the image on the node");

        bed.lab.aws.behave();
        bed.lab.say("AWS is back");
        let back = Instant::now();
        bed.renewed(&shop, &[token].into()).await;
        bed.lab.wait_until_recovered(&shop, "too-late").await;
        bed.lab
            .wait_until_recovered(&new, "first-of-a-namespace")
            .await;
        let took = back.elapsed().as_secs_f64();
        bed.lab.say(&format!(
            "all that waited is ready {took:.2} s after AWS is back"
        ));
    });
}

fn restarted(pod: &Value) -> Option<()> {
    runs_after(pod, 1)
}

fn restarted_twice(pod: &Value) -> Option<()> {
    runs_after(pod, 2)
}

fn runs_after(pod: &Value, restarts: u64) -> Option<()> {
    let status = &pod["status"]["containerStatuses"][0];
    let is_up = status["restartCount"].as_u64()? >= restarts && status["ready"] == true;
    is_up.then_some(())
}

#[test]
fn opted_out_namespace_pulls_until_its_token_ends() {
    isolated(async || {
        let mut bed = WebhookLab::start("").await;
        let (shop, other) = (bed.opted_in("shop").await, bed.opted_in("other").await);
        bed.lab.runs(&shop, "first", &json!({})).await;
        bed.lab.runs(&other, "first", &json!({})).await;
        bed.lab.label(&shop, &json!({OPT_IN.0: null})).await;
        bed.lab.say("the namespace is opted out");

        // Nobody adds the reference any more; who has it pulls.
        bed.timed("Pods are left alone", async || {
            (!bed.lab.is_referenced(&shop).await).then_some(())
        })
        .await;
        bed.lab.runs(&shop, "second", &by_hand()).await;
        bed.lab.cannot_pull(&shop, "without", &json!({})).await;
        bed.lab.kill_container("second");
        bed.lab
            .wait(&shop, "second", "is started again", restarted)
            .await;

        // What is due is renewed where it is opted in, and not here.
        let old = bed.expire(&[&shop, &other]).await;
        bed.start_again().await;
        bed.renewed(&other, &old).await;
        let password = bed.password(&shop).await.unwrap();
        assert!(!bed.issued().contains(&password));
        bed.lab.cannot_pull(&shop, "third", &by_hand()).await;
        // It is the Secret that starts what is on the node.
        bed.lab.kill_container("second");
        bed.lab
            .wait(&shop, "second", "is started again", restarted_twice)
            .await;
        bed.delete_secret(&shop).await;
        bed.lab.kill_container("second");
        bed.lab.wait_for_failed_pull(&shop, "second").await;
        assert!(bed.pull_secret(&shop).await.is_none());

        bed.lab.label(&shop, &json!({OPT_IN.0: OPT_IN.1})).await;
        bed.lab.say("the namespace is opted in again");
        bed.lab.runs(&shop, "fourth", &json!({})).await;
        bed.lab.wait_until_recovered(&shop, "second").await;
    });
}
