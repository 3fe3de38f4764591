//! The webhook, registered through its Service, for a kubelet without a plugin.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use serde_json::json;

use crate::isolation::isolated;
use crate::lab::{HOST, Lab};
use crate::support::installation::{OPT_IN, PULL_SECRET};
use crate::support::{Installation, Webhook, due, eventually};

#[test]
fn webhook_gives_a_pod_the_pull_secret_that_it_pulls_with() {
    isolated(async || {
        let mut lab = Lab::start().await;
        lab.start_kubelet(None).await;
        let installation = Installation::apply(&lab.plane).await;
        let options = installation.webhook(&lab.plane, &lab.aws).await;
        let mut webhook = Webhook::start(options.clone()).await;
        installation.register(&lab.plane).await;
        lab.say("the webhook is registered");

        let other = lab.plane.namespace("not-opted-in", &[]).await;
        lab.cannot_pull(&other, "not-opted-in", &json!({})).await;
        let shop = lab.plane.namespace("shop", &[OPT_IN]).await;
        lab.runs(&shop, "first", &json!({})).await;

        // Hours later: the registry takes the old token no longer, nobody has renewed it.
        webhook.stop().await;
        lab.registry.revoke();
        let admin = lab.plane.admin().await;
        due::make_due(&admin, std::slice::from_ref(&shop), &[HOST.to_owned()]).await;
        let by_hand = json!({"imagePullSecrets": [{"name": PULL_SECRET}]});
        lab.cannot_pull(&shop, "too-early", &by_hand).await;
        let issued = lab.aws.passwords().len();
        let started = Instant::now();
        let webhook = Webhook::start(options).await;
        let secrets: Api<Secret> = Api::namespaced(admin, &shop);
        eventually("the leader renews", Duration::from_mins(1), async || {
            let secret = secrets.get(PULL_SECRET).await.unwrap();
            let text = secret.data.unwrap().remove(".dockerconfigjson").unwrap().0;
            let text = String::from_utf8(text).unwrap();
            let renewed = lab.aws.passwords().len() > issued && lab.aws.leak_in(&text).is_some();
            renewed.then_some(())
        })
        .await;
        let took = started.elapsed().as_secs_f64();
        lab.say(&format!("the leader renewed {took:.2} s after its start"));
        lab.runs(&shop, "second", &json!({})).await;
        // The Pod that waits is pulled at the kubelet's next attempt.
        lab.wait_until_ready(&shop, "too-early").await;
        lab.say("too-early is ready");
        assert_eq!(lab.aws.leak_in(&webhook.log()), None);
    });
}
