//! Workloads that controllers run, and the labels of namespaces.

use std::time::Instant;

use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::lab::{HOST, LIMIT, Lab, image, is_ready, spec};
use crate::support::eventually;
use crate::support::fake_aws::password_of;
use crate::support::installation::PULL_SECRET;
use crate::support::pods::{pod_with, pull_secrets};

/// How long a rollout may take, as kubectl takes it.
const ROLLOUT: &str = "--timeout=240s";

/// Returns a Deployment of a repository's image, by its name, whose Pods have more fields.
pub(crate) fn deployment(name: &str, replicas: u32, more: &Value) -> Value {
    let labels = json!({"app": name});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec(name, more)},
        },
    })
}

/// Returns the fields of a Pod that asks the registry at each start of its container.
pub(crate) fn always_pulled(name: &str) -> Value {
    let image = image(name);
    json!({"containers": [
        {"name": "main", "image": image, "args": [name], "imagePullPolicy": "Always"},
    ]})
}

impl Lab {
    /// Creates a Deployment, and waits for nothing.
    pub(crate) async fn deploy(&self, namespace: &str, name: &str, replicas: u32, more: &Value) {
        let mut deployment = deployment(name, replicas, more);
        deployment["metadata"]["namespace"] = namespace.into();
        self.plane.apply(&deployment.to_string()).await;
    }

    /// Runs kubectl as the admin, and returns its output.
    pub(crate) async fn kubectl(&self, namespace: &str, arguments: &[&str]) -> String {
        let arguments = [&["--namespace", namespace], arguments].concat();
        let output = self.plane.kubectl(&arguments).await;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits until all Pods of a Deployment are of its last revision and ready.
    pub(crate) async fn rolled_out(&self, namespace: &str, name: &str) {
        let begun = Instant::now();
        let deployment = format!("deployment/{name}");
        self.kubectl(namespace, &["rollout", "status", ROLLOUT, &deployment])
            .await;
        let took = begun.elapsed().as_secs_f64();
        self.say(&format!("{name} is rolled out after {took:.2} s"));
    }

    pub(crate) async fn restart(&self, namespace: &str, name: &str) {
        let deployment = format!("deployment/{name}");
        self.kubectl(namespace, &["rollout", "restart", &deployment])
            .await;
    }

    pub(crate) async fn scale(&self, namespace: &str, name: &str, replicas: u32) {
        let (deployment, replicas) = (
            format!("deployment/{name}"),
            format!("--replicas={replicas}"),
        );
        self.kubectl(namespace, &["scale", &deployment, &replicas])
            .await;
    }

    /// Returns the Pods of a Deployment that are not being deleted.
    pub(crate) async fn pods_of(&self, namespace: &str, name: &str) -> Vec<Pod> {
        let pods: Api<Pod> = Api::namespaced(self.admin.clone(), namespace);
        let of_app = ListParams::default().labels(&format!("app={name}"));
        let pods = pods.list(&of_app).await.unwrap().into_iter();
        pods.filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .collect()
    }

    /// Waits until a Deployment has this number of Pods and each of them can't be pulled, and returns
    /// their names.
    pub(crate) async fn cannot_roll_out(
        &self,
        namespace: &str,
        name: &str,
        count: usize,
    ) -> Vec<String> {
        let what = format!("{count} Pods of {name}");
        let names = eventually(&what, LIMIT, async || {
            let pods = self.pods_of(namespace, name).await;
            let pods = pods.iter().filter(|pod| {
                let pod = serde_json::to_value(pod).unwrap();
                is_ready(&pod).is_none()
            });
            let names: Vec<_> = pods.filter_map(|pod| pod.metadata.name.clone()).collect();
            (names.len() == count).then_some(names)
        })
        .await;
        for name in &names {
            self.wait_for_failed_pull(namespace, name).await;
        }
        names
    }

    /// Whether all Pods of a Deployment are there and ready, with the reference to the pull secret.
    pub(crate) async fn all_ready(&self, namespace: &str, name: &str, count: usize) -> Option<()> {
        let pods = self.pods_of(namespace, name).await;
        let mut ready = pods.iter().filter(|pod| {
            let value = serde_json::to_value(pod).unwrap();
            pull_secrets(pod).contains(&PULL_SECRET) && is_ready(&value).is_some()
        });
        (pods.len() == count && ready.by_ref().count() == count).then_some(())
    }

    /// Sets labels of a namespace, or removes those that are null.
    pub(crate) async fn label(&self, namespace: &str, labels: &Value) {
        let namespaces: Api<Namespace> = Api::all(self.admin.clone());
        let patch = Patch::Merge(json!({"metadata": {"labels": labels}}));
        namespaces
            .patch(namespace, &PatchParams::default(), &patch)
            .await
            .unwrap();
    }

    /// Whether a Pod that is created now, in a dry run, has the reference to the pull secret.
    pub(crate) async fn is_referenced(&self, namespace: &str) -> bool {
        let pods: Api<Pod> = Api::namespaced(self.admin.clone(), namespace);
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        let pod = pod_with("probe", &spec("probe", &json!({})));
        let created = pods.create(&dry_run, &pod).await.unwrap();
        pull_secrets(&created).contains(&PULL_SECRET)
    }

    /// Returns the password that a namespace's pull secret has for the host of the images.
    pub(crate) async fn password(&self, namespace: &str) -> Option<String> {
        let secrets: Api<Secret> = Api::namespaced(self.admin.clone(), namespace);
        let secret = secrets.get_opt(PULL_SECRET).await.unwrap()?;
        let config = secret.data?.remove(".dockerconfigjson")?;
        let config: Value = serde_json::from_slice(&config.0).ok()?;
        password_of(config["auths"][HOST]["auth"].as_str()?)
    }

    /// Waits until the kubelet has tried once more to pull a repository's image, after this many
    /// requests.
    pub(crate) async fn wait_for_attempt(&self, repository: &str, after: usize) {
        let what = format!("the kubelet tries again to pull {repository}");
        eventually(&what, LIMIT, async || {
            (self.registry.asked(repository).len() > after).then_some(())
        })
        .await;
    }
}
