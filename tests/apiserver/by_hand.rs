//! `ecr-injector secret | kubectl apply -f -`, and the flags by which a person chooses a cluster and
//! a user, against a real API server.

use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use serde_json::{Value, json};

use crate::support::command::{self, Ran, end};
use crate::support::installation::{OPT_IN, PULL_SECRET};
use crate::support::{self, ControlPlane, FakeAws, Installation, Shared};

const REGISTRY: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

/// A cluster with `deploy/` in it, and no webhook that runs.
struct Ground {
    plane: ControlPlane,
    installation: Installation,
}

impl Ground {
    async fn shared() -> Arc<Self> {
        static SHARED: Shared<Ground> = Shared::new();
        let start = async || {
            support::crypto();
            let plane = ControlPlane::start().await;
            let installation = Installation::apply(&plane).await;
            Ground {
                plane,
                installation,
            }
        };
        SHARED.get_or_start(start).await
    }

    async fn kubeconfig(&self) -> PathBuf {
        self.installation.kubeconfig(&self.plane).await
    }

    /// Runs `ecr-injector secret`, and applies its output as a person would.
    async fn apply(&self, aws: &FakeAws, arguments: &[&str]) {
        let base = ["secret", "--registry", REGISTRY];
        let arguments = [&base[..], arguments].concat();
        let ran = run(self.kubeconfig().await, aws, &arguments).await;
        assert_eq!(ran.code, Some(0), "{ran:?}");
        assert_eq!(aws.leak_in(&ran.stderr), None);
        let output = self
            .plane
            .kubectl_with_input(&["apply", "-f", "-"], &ran.stdout);
        let output = output.await;
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }

    async fn secret(&self, namespace: &str, name: &str) -> Secret {
        let secrets: Api<Secret> = Api::namespaced(self.plane.admin().await, namespace);
        secrets.get(name).await.unwrap()
    }
}

async fn run(kubeconfig: PathBuf, aws: &FakeAws, arguments: &[&str]) -> Ran {
    end(command::spawn(&kubeconfig, aws.environment(), arguments)).await
}

#[tokio::test]
async fn secret_by_hand_is_applied_and_then_renewed_in_place() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    let namespace = ground.plane.namespace("by-hand", &[]).await;
    let arguments = ["-n", &*namespace, "--name", "mine"];
    ground.apply(&aws, &arguments).await;
    let first = ground.secret(&namespace, "mine").await;
    ground.apply(&aws, &arguments).await;
    let second = ground.secret(&namespace, "mine").await;
    assert_eq!(first.metadata.uid, second.metadata.uid);
    assert_eq!(first.metadata.labels, second.metadata.labels);
    assert_eq!(
        first.type_.as_deref(),
        Some("kubernetes.io/dockerconfigjson")
    );
    let data = |secret: &Secret| {
        let data = secret.data.clone().unwrap();
        assert_eq!(data.len(), 1);
        let config: Value = serde_json::from_slice(&data[".dockerconfigjson"].0).unwrap();
        let password = config["auths"][REGISTRY]["password"]
            .as_str()
            .unwrap()
            .to_owned();
        assert!(aws.principal_of(&password).is_some(), "a token of the fake");
        password
    };
    assert_ne!(data(&first), data(&second));
    // ecr-injector leaves it alone, under whatever name.
    ground.apply(&aws, &["-n", &namespace]).await;
    let ours = ground.secret(&namespace, PULL_SECRET).await;
    assert_eq!(ours.metadata.labels, None);
}

#[tokio::test]
async fn managed_secret_is_taken_over_by_the_leaders_work() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    let namespace = ground.plane.namespace("managed", &[OPT_IN]).await;
    ground.apply(&aws, &["-n", &namespace, "--managed"]).await;
    let by_hand = ground.secret(&namespace, PULL_SECRET).await;
    let arguments = ["refresh", "--once", "-o", "json", "-n", &namespace];
    let ran = run(ground.kubeconfig().await, &aws, &arguments).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(report["namespaces"][0]["result"], "renewed", "{report}");
    let renewed = ground.secret(&namespace, PULL_SECRET).await;
    assert_eq!(
        by_hand.metadata.uid, renewed.metadata.uid,
        "written in place"
    );
    assert_ne!(by_hand.data, renewed.data);
}

#[tokio::test]
async fn context_chooses_the_cluster_and_as_the_user() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    let namespace = ground.plane.namespace("context", &[OPT_IN]).await;
    let admin = std::fs::read_to_string(ground.plane.kubeconfig_for_admin()).unwrap();
    let mut kubeconfig: Value = serde_saphyr::from_str(&admin).unwrap();
    let mut good = kubeconfig["contexts"][0].clone();
    good["name"] = json!("good");
    let mut cluster = kubeconfig["clusters"][0].clone();
    cluster["name"] = json!("closed");
    cluster["cluster"]["server"] = json!("https://127.0.0.1:1");
    let mut closed = good.clone();
    closed["name"] = json!("closed");
    closed["context"]["cluster"] = json!("closed");
    kubeconfig["contexts"] = json!([good, closed]);
    kubeconfig["clusters"].as_array_mut().unwrap().push(cluster);
    kubeconfig["current-context"] = json!("closed");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    let cleanup = async |more: &[&str]| {
        let base = ["cleanup", "--dry-run", "-n", &namespace];
        run(path.clone(), &aws, &[&base[..], more].concat()).await
    };

    let ran = cleanup(&[]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(
        ran.stderr.contains("https://127.0.0.1:1 (KUBECONFIG"),
        "{ran:?}"
    );
    let ran = cleanup(&["--context", "good"]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains("config, context good)"), "{ran:?}");
    let ran = cleanup(&["--context", "other"]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    for text in ["no cluster found", "--context", "other"] {
        assert!(ran.stderr.contains(text), "{text}: {ran:?}");
    }

    // The account of ecr-injector may read what the command needs, and another may not.
    let ours = "system:serviceaccount:ecr-injector:ecr-injector";
    let ran = cleanup(&["--context", "good", "--as", ours]).await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stderr.contains(&format!("as {ours})")), "{ran:?}");
    let nobody = "system:serviceaccount:default:nobody";
    let ran = cleanup(&["--context", "good", "--as", nobody]).await;
    assert_eq!(ran.code, Some(1), "{ran:?}");
    for text in [nobody, "list", "secrets"] {
        assert!(ran.stderr.contains(text), "{text}: {ran:?}");
    }
}
