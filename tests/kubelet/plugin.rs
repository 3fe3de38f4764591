//! The credential plugin of the node: its identity mints for all Pods.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Instant;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures::future::join_all;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, PostParams};
use serde_json::json;

use crate::isolation::isolated;
use crate::lab::{HOST, Lab, PLUGIN, Plugin};
use crate::support::fake_aws::USER;

const WITHOUT_FILES: Plugin = Plugin {
    config: &[],
    arguments: &["--cache-dir", "none"],
};

/// All but Talos, which has a document of its own.
const DISTRIBUTIONS: &[&[&str]] = &[
    &["--for", "eks"],
    &["--for", "eks-hybrid"],
    &["--for", "k3s"],
    &["--for", "rke2"],
    &["--for", "microk8s"],
    &["--for", "kind"],
    &["--partition", "aws", "--partition", "aws-cn"],
    &[
        "--public",
        "--alias",
        "mirror.example:5000=123456789012.dkr.ecr.eu-west-1.amazonaws.com",
    ],
    &["--service-account-tokens", "--require-role-annotation"],
    &["--for", "kops"],
];

#[test]
fn pod_is_pulled_by_the_plugin_and_not_without_it() {
    isolated(async || {
        let mut lab = Lab::start().await;
        lab.start_kubelet(None).await;
        let shop = lab.plane.namespace("shop", &[]).await;
        lab.cannot_pull(&shop, "without", &json!({})).await;
        let asked = lab.registry.asked("without");
        assert!(
            asked.iter().all(|asked| asked.password.is_none()),
            "{asked:?}"
        );
        assert!(lab.aws.calls().is_empty());

        lab.start_kubelet(Some(Plugin::default())).await;
        lab.runs(&shop, "with", &json!({})).await;
        assert_eq!(lab.aws.calls().len(), 1);
        assert_eq!(lab.registry.principals("with"), [USER.to_owned()].into());
        assert_eq!(lab.aws.leak_in(&lab.kubelet_log()), None);
    });
}

#[test]
fn twelve_images_at_once_cost_one_call_to_aws() {
    isolated(async || {
        let mut lab = Lab::with(Plugin::default()).await;
        let shop = lab.plane.namespace("shop", &[]).await;
        let created = Instant::now();
        let names: Vec<_> = (1..=12).map(|number| format!("web-{number}")).collect();
        let none = json!({});
        join_all(names.iter().map(|name| lab.create(&shop, name, &none))).await;
        join_all(names.iter().map(|name| lab.wait_until_ready(&shop, name))).await;
        let took = created.elapsed().as_secs_f64();
        lab.say(&format!("12 Pods of 12 images are ready after {took:.2} s"));
        assert_eq!(lab.aws.calls().len(), 1);

        // The kubelet has forgotten the token, the plugin hasn't.
        lab.start_kubelet(Some(Plugin::default())).await;
        lab.runs(&shop, "later", &none).await;
        assert_eq!(lab.aws.calls().len(), 1);

        lab.forget_tokens();
        lab.start_kubelet(Some(Plugin::default())).await;
        lab.runs(&shop, "after-a-reboot", &none).await;
        assert_eq!(lab.aws.calls().len(), 2);

        // It is the tokens on the disk that save the calls: without them each kubelet costs one.
        for calls in 3..=4 {
            lab.start_kubelet(Some(WITHOUT_FILES)).await;
            let name = format!("without-files-{calls}");
            lab.runs(&shop, &name, &none).await;
            assert_eq!(lab.aws.calls().len(), calls);
        }
    });
}

#[test]
fn plugin_pulls_where_the_pull_secret_has_expired() {
    isolated(async || {
        let mut lab = Lab::with(Plugin::default()).await;
        let shop = lab.plane.namespace("shop", &[]).await;
        lab.runs(&shop, "first", &json!({})).await;
        let old = lab.aws.passwords().remove(0);
        create_pull_secret(&lab, &shop, &old).await;
        let secret = json!({"imagePullSecrets": [{"name": "pull"}]});
        lab.start_kubelet(None).await;
        lab.runs(&shop, "good-secret", &secret).await;

        lab.registry.revoke();
        lab.cannot_pull(&shop, "old-secret-alone", &secret).await;

        lab.forget_tokens();
        lab.start_kubelet(Some(Plugin::default())).await;
        lab.runs(&shop, "old-secret", &secret).await;
        let new = lab.aws.passwords().pop().unwrap();
        let asked = lab.registry.asked("old-secret").into_iter();
        let mut tried: Vec<_> = asked.filter_map(|asked| asked.password).collect();
        tried.dedup();
        assert_eq!(tried, [old, new], "the pull secret is tried first");
    });
}

#[test]
fn plugin_of_a_running_kubelet_can_be_replaced() {
    isolated(async || {
        let mut lab = Lab::start().await;
        let other = lab.path("another-plugin");
        fs::write(
            &other,
            "#!/bin/sh\ncat >/dev/null\necho 'no token today' >&2\nexit 1\n",
        )
        .unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o755)).unwrap();
        lab.install(&other);
        lab.start_kubelet(Some(Plugin::default())).await;
        let kubelet = lab.kubelet_pid();
        let shop = lab.plane.namespace("shop", &[]).await;
        lab.cannot_pull(&shop, "by-the-other", &json!({})).await;
        assert!(lab.kubelet_log().contains("no token today"));

        lab.install(Path::new(env!("CARGO_BIN_EXE_ecr-credentials")));
        lab.runs(&shop, "by-ours", &json!({})).await;
        // The Pod that waits is pulled at the kubelet's next attempt.
        lab.wait_until_ready(&shop, "by-the-other").await;
        lab.say(&format!(
            "the Pod that waited is ready; {PLUGIN} was replaced"
        ));
        assert_eq!(lab.kubelet_pid(), kubelet);
        assert_eq!(lab.aws.calls().len(), 1);
    });
}

/// P-70
#[test]
fn kubelet_starts_with_the_configuration_of_each_distribution() {
    isolated(async || {
        let mut lab = Lab::start().await;
        for config in DISTRIBUTIONS {
            lab.say(&config.join(" "));
            let arguments = &[];
            lab.start_kubelet(Some(Plugin { config, arguments })).await;
        }
        let shop = lab.plane.namespace("shop", &[]).await;
        lab.runs(&shop, "web", &json!({})).await;
    });
}

/// Creates a pull secret with this password.
async fn create_pull_secret(lab: &Lab, namespace: &str, password: &str) {
    let auth = BASE64_STANDARD.encode(format!("AWS:{password}"));
    let config = json!({"auths": {HOST: {"auth": auth}}}).to_string();
    let secret = json!({
        "metadata": {"name": "pull"},
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": config},
    });
    let secret: Secret = serde_json::from_value(secret).unwrap();
    let secrets: Api<Secret> = Api::namespaced(lab.plane.admin().await, namespace);
    secrets
        .create(&PostParams::default(), &secret)
        .await
        .unwrap();
}
