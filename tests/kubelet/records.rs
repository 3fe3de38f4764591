//! The kubelet's records of who pulled an image (KEP-2535), by which it decides who may start it.

use std::collections::BTreeSet;
use std::fs;

use serde_json::{Value, json};

use crate::isolation::isolated;
use crate::lab::{Lab, image};
use crate::support::installation::PULL_SECRET;
use crate::webhook_lab::WebhookLab;

/// A Pod of the image that another has pulled.
fn of_the_same_image() -> Value {
    json!({"containers": [{"name": "main", "image": image("first"), "args": ["x"]}]})
}

/// Returns the Secrets that have opened an image, by the kubelet's records.
fn openers(lab: &Lab, repository: &str) -> Vec<Value> {
    let records = fs::read_dir(lab.path("kubelet/image_manager/pulled")).unwrap();
    let texts = records.map(|record| fs::read_to_string(record.unwrap().path()).unwrap());
    let of_image = image(repository);
    let of_image = of_image.strip_suffix(":v1").unwrap();
    let mut secrets = Vec::new();
    for text in texts {
        let record: Value = serde_json::from_str(&text).unwrap();
        let openers = &record["credentialMapping"][of_image]["kubernetesSecrets"];
        secrets.extend(openers.as_array().into_iter().flatten().cloned());
    }
    secrets
}

fn uids(openers: &[Value]) -> BTreeSet<&str> {
    let uids = openers.iter().map(|opener| opener["uid"].as_str().unwrap());
    uids.collect()
}

#[test]
fn rotation_in_place_needs_no_new_pull() {
    isolated(async || {
        let mut bed = WebhookLab::start("").await;
        let shop = bed.opted_in("shop").await;
        bed.lab.runs(&shop, "first", &json!({})).await;
        let uid = bed.pull_secret(&shop).await.unwrap().metadata.uid.unwrap();
        let before = openers(&bed.lab, "first");
        assert_eq!(uids(&before), [&*uid].into(), "{before:?}");
        assert_eq!(before[0]["name"], PULL_SECRET);
        let asked = bed.lab.registry.asked("first").len();

        let old = bed.expire(&[&shop]).await;
        bed.start_again().await;
        bed.renewed(&shop, &old).await;
        bed.lab.runs(&shop, "second", &of_the_same_image()).await;
        assert_eq!(bed.lab.registry.asked("first").len(), asked, "no new pull");
        let after = openers(&bed.lab, "first");
        assert_eq!(uids(&after), [&*uid].into(), "{after:?}");
        assert_ne!(before, after, "the renewed credential is known");

        // Where the Secret is created again, with another token, the kubelet asks the registry.
        bed.stop().await;
        bed.lab.registry.revoke();
        bed.delete_secret(&shop).await;
        bed.start_again().await;
        bed.lab.runs(&shop, "third", &of_the_same_image()).await;
        assert!(bed.lab.registry.asked("first").len() > asked, "a new pull");
        assert_eq!(uids(&openers(&bed.lab, "first")).len(), 2);
    });
}

#[test]
fn image_on_the_node_starts_for_those_alone_who_may_pull_it() {
    isolated(async || {
        let mut bed = WebhookLab::start("").await;
        let shop = bed.opted_in("shop").await;
        bed.lab.runs(&shop, "first", &json!({})).await;
        let plain = bed.lab.plane.namespace("plain", &[]).await;
        bed.lab
            .cannot_pull(&plain, "verified", &of_the_same_image())
            .await;
        // With the rule switched off, whoever knows the name of the image has it.
        let off = json!({"featureGates": {"KubeletEnsureSecretPulledImages": false}});
        bed.lab.configure_kubelet(off);
        bed.lab.start_kubelet(None).await;
        bed.lab
            .runs(&plain, "unverified", &of_the_same_image())
            .await;
    });
}
