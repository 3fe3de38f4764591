//! `config check --cluster`, as a person runs it: the binary itself against a real API server, with the rights of `deploy/`.

use std::path::Path;

use crate::support;
use crate::support::bed::registry;
use crate::support::command::{self, Ran};
use crate::support::due::make_due;
use crate::support::installation::{OPT_IN, PULL_SECRET};
use crate::support::{ControlPlane, Installation};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ListParams, PostParams};
use serde_json::{Value, json};

const ACCOUNT: u64 = 123_456_789_012;

async fn check(kubeconfig: &Path, config: &Path, more: &[&str]) -> Ran {
    let config = config.to_str().unwrap();
    let arguments = ["config", "check", config, "--cluster"];
    let arguments = arguments.iter().chain(more);
    command::end(command::spawn(kubeconfig, Vec::new(), arguments)).await
}

/// The versions of all pull secrets.
async fn versions(plane: &ControlPlane) -> Vec<String> {
    let secrets: Api<Secret> = Api::all(plane.admin().await);
    let params = ListParams::default().fields(&format!("metadata.name={PULL_SECRET}"));
    let secrets = secrets.list(&params).await.unwrap();
    let version = |secret: Secret| secret.metadata.resource_version.unwrap();
    secrets.items.into_iter().map(version).collect()
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "one scenario in its order")]
async fn config_check_says_what_a_file_would_suspend() {
    support::crypto();
    let plane = ControlPlane::start().await;
    let installation = Installation::apply(&plane).await;
    let admin = plane.admin().await;
    let mut teams = Vec::new();
    for _ in 0..12 {
        teams.push(plane.namespace("team", &[OPT_IN]).await);
    }
    let hosts = [
        registry(ACCOUNT, "eu-west-1"),
        registry(ACCOUNT, "us-east-1"),
    ];
    make_due(&admin, &teams, &hosts).await;
    // One that wants nothing yet, one that is not opted in, and a Secret of somebody else.
    plane.namespace("new", &[OPT_IN]).await;
    let left = plane.namespace("left", &[]).await;
    make_due(&admin, &[left], &hosts).await;
    let theirs = plane.namespace("theirs", &[OPT_IN]).await;
    let foreign = json!({"metadata": {"name": PULL_SECRET}, "stringData": {"a": "b"}});
    let secrets: Api<Secret> = Api::namespaced(admin, &theirs);
    let foreign = serde_json::from_value(foreign).unwrap();
    secrets
        .create(&PostParams::default(), &foreign)
        .await
        .unwrap();
    let before = versions(&plane).await;

    let ours = installation.kubeconfig(&plane).await;
    let file = |name: &str, text: &str| {
        let path = plane.folder().join(name);
        std::fs::write(&path, crate::support::config_file(text)).unwrap();
        path
    };
    let ran = check(&ours, &file("good.yaml", ""), &[]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    for line in [
        "; 14 namespaces opted in, 12 with 24 registries in their pull secrets\n",
        "  suspends      nothing\n",
        "good.yaml: valid\n",
    ] {
        assert!(ran.stdout.contains(line), "{line} not in {ran:#?}");
    }

    // One wrong digit.
    let wrong = file("wrong.yaml", "allow: {accounts: [\"123456789013\"]}");
    let ran = check(&ours, &wrong, &[]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.stderr
            .contains("would suspend registries in 12 of 12 namespaces"),
        "{ran:#?}"
    );
    for line in [
        "  suspends      24 registries in 12 namespaces: kept until they expire, and not renewed\n",
        "  the registry is not in the allow list\n",
        "    and 4 more; -o json has all of them\n",
    ] {
        assert!(ran.stdout.contains(line), "{line} not in {ran:#?}");
    }
    let ran = check(&ours, &wrong, &["-o", "json"]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    let all: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(all["ok"], false);
    assert_eq!(all["suspended"].as_array().unwrap().len(), 24);

    // One region that is no longer allowed, and one namespace that nobody mints for any more.
    let some = format!(
        "revoke: immediately\nallow: {{regions: [eu-west-1, us-east-1]}}\ndefaultIdentity: none\n\
         identities: [{{ambient: true, namespaces: {}}}]",
        json!(teams[1..])
    );
    let ran = check(&ours, &file("some.yaml", &some), &["-o", "json"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let some: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(some["ok"], true);
    let suspended = some["suspended"].as_array().unwrap();
    assert_eq!(suspended.len(), 2, "{suspended:?}");
    for (it, host) in suspended.iter().zip(&hosts) {
        assert_eq!(it["namespace"], json!(teams[0]));
        assert_eq!(
            (&it["registry"], &it["reason"]),
            (&json!(host), &json!("no_identity"))
        );
    }
    assert_eq!(versions(&plane).await, before, "nothing is changed");

    // Who may not read is told what is missing, and nothing else is tried.
    let nobody = plane
        .kubeconfig_for_service_account("ecr-injector", "nobody")
        .await;
    let ran = check(&nobody, &wrong, &[]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    for line in [
        "missing: list namespaces (all namespaces)",
        "missing: list secrets/ecr-pull-secret (all namespaces)",
    ] {
        assert!(ran.stderr.contains(line), "{line} not in {ran:#?}");
    }
    let wrong = wrong.to_str().unwrap().to_owned();
    assert_eq!(
        check(&ours, &file("a.yaml", ""), &[&wrong]).await.code,
        Some(2)
    );
    let bad = check(&ours, &file("bad.yaml", "optOutGrace: 1h"), &[]).await;
    assert_eq!(bad.code, Some(1), "{bad:?}");
    assert!(bad.stderr.contains("bad.yaml: optOutGrace: "), "{bad:#?}");
    assert!(bad.stdout.is_empty(), "{bad:#?}");
}
