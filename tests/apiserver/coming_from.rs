//! docs/how-to/migrate.md: each way from another solution is walked with the commands that the page prints, there and
//! back, on a real API server with its controllers. There are no nodes: a task of the test stands for the kubelets. A Pod
//! is ready only while one of its pull secrets, or the node, has a good token for its image, and the test fails if one
//! that was ready ever lacks that. A stand-in for `aws` prints a token and keeps policies; those of External Secrets and
//! of Argo CD do the little that the way needs of them.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Client;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::support::control_plane::{Options, programs};
use crate::support::fake_aws::password_of;
use crate::support::installation::{OPT_IN, PULL_SECRET};
use crate::support::webhook::built_for_tests;
use crate::support::{self, ControlPlane, FakeAws, Installation, Webhook, eventually};

const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
/// The namespace of the page.
const TEAM: &str = "team-a";
const OLD: &str = "regcred";
const SOON: Duration = Duration::from_mins(1);
/// How a part of a way begins on the page.
const STEPS: &str = "Steps";
const CHECK: &str = "Check";
const BACK: &str = "The way back";
/// The stand-in for `aws`.
const AWS: &str = r#"#!/bin/sh
case "$1 $2" in
  "ecr get-login-password") printf %s "$OLD_TOKEN" ;;
  "ecr set-repository-policy") cp "${6#file://}" "$STAGE/repository-policy" ;;
  "iam update-assume-role-policy") cp "${6#file://}" "$STAGE/trust-policy" ;;
  *) echo "aws $*: the page has no such command" >&2; exit 9 ;;
esac
"#;

/// A block of code: the part of the way that it is in, its language, its text.
#[derive(Debug)]
struct Block {
    part: String,
    language: String,
    text: String,
}

/// Returns the blocks of a section of the page, in order.
fn blocks(heading: &str) -> Vec<Block> {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/how-to/migrate.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, section) = page
        .split_once(&format!("\n## {heading}\n"))
        .expect("the section");
    let section = section.split("\n## ").next().unwrap();
    let mut blocks = Vec::new();
    let mut part = "You have".to_owned();
    let mut parts = section.split("```");
    while let Some(prose) = parts.next() {
        // The last words in bold at the start of a paragraph.
        for paragraph in prose
            .split("\n\n")
            .filter_map(|it| it.trim_start().strip_prefix("**"))
        {
            let title = paragraph.split("**").next().unwrap();
            title.trim_end_matches('.').clone_into(&mut part);
        }
        let Some(block) = parts.next() else { break };
        let (language, text) = block.split_once('\n').unwrap();
        blocks.push(Block {
            part: part.clone(),
            language: language.to_owned(),
            text: text.to_owned(),
        });
    }
    blocks
}

/// The kubelets: what they pull with beside pull secrets, and Pods that could not be pulled.
struct Nodes {
    aws: Arc<FakeAws>,
    client: Client,
    namespace: String,
    has_token: Arc<AtomicBool>,
    gaps: Arc<Mutex<BTreeSet<String>>>,
}

impl Nodes {
    async fn run(self) {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        loop {
            for pod in pods.list(&ListParams::default()).await.unwrap() {
                self.look_after(&pods, pod).await;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn look_after(&self, pods: &Api<Pod>, pod: Pod) {
        let name = pod.metadata.name.clone().unwrap();
        if pod.metadata.deletion_timestamp.is_some() {
            return;
        }
        if !self.can_pull(&pod).await {
            // It may have ended meanwhile, and its Secret with it.
            if pods
                .get_opt(&name)
                .await
                .unwrap()
                .is_some_and(|it| it.metadata.deletion_timestamp.is_none())
                && !self.can_pull(&pod).await
            {
                let names = names_of_secrets(&pod);
                self.gaps
                    .lock()
                    .unwrap()
                    .insert(format!("{name} with {names:?}"));
            }
            return;
        }
        if !is_ready(&pod) {
            let status = json!({"status": {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": "True"}],
            }});
            let patch = Patch::Strategic(status);
            // It may be gone by now.
            let _ = pods
                .patch_status(&name, &PatchParams::default(), &patch)
                .await;
        }
    }

    async fn can_pull(&self, pod: &Pod) -> bool {
        if self.has_token.load(Ordering::Relaxed) {
            return true;
        }
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.namespace);
        for name in names_of_secrets(pod) {
            let secret = secrets.get_opt(&name).await.unwrap();
            let token = secret.and_then(|secret| token_of(&secret));
            if token.is_some_and(|token| self.aws.principal_of(&token).is_some()) {
                return true;
            }
        }
        false
    }
}

fn names_of_secrets(pod: &Pod) -> Vec<String> {
    let listed = pod
        .spec
        .as_ref()
        .unwrap()
        .image_pull_secrets
        .iter()
        .flatten();
    listed.map(|reference| reference.name.clone()).collect()
}

fn is_ready(pod: &Pod) -> bool {
    let status = pod.status.as_ref();
    let mut conditions = status
        .and_then(|status| status.conditions.as_ref())
        .into_iter()
        .flatten();
    conditions.any(|it| it.type_ == "Ready" && it.status == "True")
}

/// The token for the host in a Secret of docker's configuration.
fn token_of(secret: &Secret) -> Option<String> {
    if secret.type_.as_deref() != Some("kubernetes.io/dockerconfigjson") {
        return None;
    }
    let config = &secret.data.as_ref()?[".dockerconfigjson"].0;
    let config: Value = serde_json::from_slice(config).ok()?;
    let entry = &config["auths"][HOST];
    match entry["auth"].as_str() {
        Some(auth) => password_of(auth),
        None => Some(entry["password"].as_str()?.to_owned()),
    }
}

/// A cluster with ecr-injector beside another solution.
struct Stage {
    plane: ControlPlane,
    aws: Arc<FakeAws>,
    webhook: Webhook,
    team: String,
    folder: TempDir,
    old_token: String,
    has_token: Arc<AtomicBool>,
    gaps: Arc<Mutex<BTreeSet<String>>>,
    nodes: JoinHandle<()>,
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.nodes.abort();
    }
}

impl Stage {
    async fn start() -> Self {
        support::crypto();
        let plane = ControlPlane::start_with(Options {
            controllers: true,
            ..Options::default()
        })
        .await;
        let aws = Arc::new(FakeAws::start());
        let installation = Installation::apply(&plane).await;
        let options = installation.webhook(&plane, &aws).await;
        let webhook = Webhook::start(options).await;
        installation.register(&plane).await;
        let team = plane.namespace("team", &[]).await;
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::create_dir(path("bin")).unwrap();
        symlink(built_for_tests(), path("bin/ecr-injector")).unwrap();
        symlink(programs().join("kubectl"), path("bin/kubectl")).unwrap();
        fs::write(path("bin/aws"), AWS).unwrap();
        fs::set_permissions(path("bin/aws"), fs::Permissions::from_mode(0o755)).unwrap();
        let (has_token, gaps) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let nodes = Nodes {
            aws: Arc::clone(&aws),
            client: plane.admin().await,
            namespace: team.clone(),
            has_token: Arc::clone(&has_token),
            gaps: Arc::clone(&gaps),
        };
        let mut stage = Self {
            plane,
            aws,
            webhook,
            team,
            folder,
            old_token: String::new(),
            has_token,
            gaps,
            nodes: tokio::spawn(nodes.run()),
        };
        let docker = format!("ecr-injector secret --registry {HOST} -o dockerconfig");
        let docker: Value = serde_json::from_str(&stage.run(&docker).await).unwrap();
        stage.old_token = password_of(docker["auths"][HOST]["auth"].as_str().unwrap()).unwrap();
        stage
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    async fn shell(&self, text: &str) -> Output {
        let text = text.replace(TEAM, &self.team);
        let bin = self.path("bin");
        Command::new("sh")
            .args(["-euc", &text])
            .current_dir(self.folder.path())
            .env_clear()
            .envs(self.aws.environment())
            .env("KUBECONFIG", self.plane.kubeconfig_for_admin())
            .env("HOME", self.folder.path())
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .env("STAGE", self.folder.path())
            .env("OLD_TOKEN", &self.old_token)
            .kill_on_drop(true)
            .output()
            .await
            .unwrap()
    }

    /// Runs commands that succeed, and returns what they print.
    async fn run(&self, text: &str) -> String {
        let output = self.shell(text).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{text}\n{error}\n{}",
            self.webhook.log()
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Creates the workload, and waits until it runs with what was there before.
    async fn deploy(&self, secrets: &[&str]) {
        let secrets: Vec<Value> = secrets.iter().map(|name| json!({"name": name})).collect();
        let labels = json!({"app": "web"});
        let mut deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "web", "namespace": self.team},
            "spec": {"replicas": 2, "selector": {"matchLabels": labels}, "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [{"name": "main", "image": format!("{HOST}/shop/web:v1")}]},
            }},
        });
        if !secrets.is_empty() {
            deployment["spec"]["template"]["spec"]["imagePullSecrets"] = secrets.into();
        }
        self.plane.apply(&deployment.to_string()).await;
        self.run("kubectl -n team-a rollout status deployment/web --timeout=1m")
            .await;
        assert!(self.pods().await.iter().all(|pod| !has_ours(pod)));
    }

    /// The Pods that are not about to end.
    async fn pods(&self) -> Vec<Pod> {
        let pods: Api<Pod> = Api::namespaced(self.plane.admin().await, &self.team);
        let pods = pods.list(&ListParams::default()).await.unwrap().into_iter();
        pods.filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .collect()
    }

    async fn secret(&self, name: &str) -> Option<Secret> {
        let secrets: Api<Secret> = Api::namespaced(self.plane.admin().await, &self.team);
        secrets.get_opt(name).await.unwrap()
    }

    /// Writes the Secret that the other solution renews.
    async fn renew_old(&self, more: &Value) {
        let auth = BASE64_STANDARD.encode(format!("AWS:{}", self.old_token));
        let config = json!({"auths": {HOST: {"auth": auth}}}).to_string();
        let mut secret = json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/dockerconfigjson",
            "metadata": {"name": OLD, "namespace": self.team},
            "data": {".dockerconfigjson": BASE64_STANDARD.encode(config)},
        });
        if more.is_object() {
            secret["metadata"]["ownerReferences"] = json!([more]);
        }
        self.plane.apply(&secret.to_string()).await;
    }

    /// Walks the parts of a way with this name, and what happens beside each of its commands.
    async fn walk(&self, blocks: &[Block], part: &str, beside: impl AsyncFn(&Self, &str)) -> usize {
        let mut walked = 0;
        for block in blocks.iter().filter(|block| block.part == part) {
            match &*block.language {
                "sh" => {
                    self.run(&block.text).await;
                }
                // On nodes: what it removes or brings back.
                "console" => {
                    let brings = block.text.starts_with("install");
                    assert!(brings || block.text.starts_with("rm "), "{block:?}");
                    self.has_token.store(brings, Ordering::Relaxed);
                }
                "yaml" => {
                    self.plane
                        .apply(&block.text.replace(TEAM, &self.team))
                        .await;
                }
                other => panic!("{other}: {block:?}"),
            }
            beside(self, &block.text).await;
            // A person takes a moment, and the API server's own view of a namespace or an account is one old.
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.has_no_gap();
            walked += 1;
        }
        walked
    }

    fn has_no_gap(&self) {
        let gaps = self.gaps.lock().unwrap();
        assert!(gaps.is_empty(), "Pods could not be pulled: {gaps:?}");
    }

    /// The check of the page says that all is well, and it is.
    async fn check(&self, blocks: &[Block]) {
        let check: Vec<_> = blocks.iter().filter(|block| block.part == CHECK).collect();
        let [check] = check[..] else {
            panic!("one check: {check:?}")
        };
        let printed = self.run(&check.text).await;
        let lines: Vec<&str> = printed.lines().collect();
        let (expires, pods) = lines.split_last().unwrap();
        assert!(pods.len() >= 3, "{printed}");
        for pod in &pods[1..] {
            assert!(pod.contains(PULL_SECRET), "{printed}");
        }
        let expires: Timestamp = expires.parse().unwrap();
        assert!(expires > Timestamp::now(), "{printed}");
    }

    /// Only ecr-injector's credential is left, and it is enough.
    async fn is_moved(&self, blocks: &[Block]) {
        self.check(blocks).await;
        for pod in self.pods().await {
            assert!(has_ours(&pod) && is_ready(&pod), "{pod:?}");
            assert_eq!(names_of_secrets(&pod), [PULL_SECRET]);
        }
        assert!(!self.has_token.load(Ordering::Relaxed));
        // A Pod that lacks it would be seen.
        let token = self
            .secret(PULL_SECRET)
            .await
            .and_then(|it| token_of(&it))
            .unwrap();
        assert_ne!(token, self.old_token);
        // Long enough for each Pod to be looked after once more.
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.has_no_gap();
    }

    /// All is as it was.
    async fn is_back(&self, secrets: &[&str]) {
        for pod in self.pods().await {
            assert_eq!(names_of_secrets(&pod), secrets, "{pod:?}");
            assert!(is_ready(&pod));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        self.has_no_gap();
        let (key, _) = OPT_IN;
        let labels = self
            .run("kubectl get namespace team-a -o jsonpath='{.metadata.labels}'")
            .await;
        assert!(!labels.contains(key), "{labels}");
    }
}

fn has_ours(pod: &Pod) -> bool {
    names_of_secrets(pod).iter().any(|name| name == PULL_SECRET)
}

async fn nothing(_: &Stage, _: &str) {}

#[tokio::test]
async fn secret_by_hand() {
    let (stage, blocks) = (Stage::start().await, blocks("Secrets created by hand"));
    assert_eq!(stage.walk(&blocks, "You have", nothing).await, 1);
    stage.deploy(&[OLD]).await;
    assert_eq!(stage.walk(&blocks, STEPS, nothing).await, 3);
    assert!(stage.secret(OLD).await.is_none());
    stage.is_moved(&blocks).await;
    assert_eq!(stage.walk(&blocks, BACK, nothing).await, 2);
    stage.is_back(&[OLD]).await;
}

#[tokio::test]
async fn cron_job_on_the_nodes() {
    let (stage, blocks) = (Stage::start().await, blocks("A cron job on the nodes"));
    stage.has_token.store(true, Ordering::Relaxed);
    stage.deploy(&[]).await;
    assert_eq!(stage.walk(&blocks, STEPS, nothing).await, 3);
    stage.is_moved(&blocks).await;
    assert_eq!(stage.walk(&blocks, BACK, nothing).await, 3);
    stage.is_back(&[]).await;
}

/// The objects of the page, the Secret that they renew, and the list of the ServiceAccount.
async fn cron_job(stage: &Stage, blocks: &[Block]) {
    assert_eq!(stage.walk(blocks, "You have", nothing).await, 1);
    stage.renew_old(&Value::Null).await;
    let patch = r#"kubectl -n team-a patch serviceaccount default --type merge -p '{"imagePullSecrets": [{"name": "regcred"}]}'"#;
    stage.run(patch).await;
    // The API server's own view of the account is a moment old.
    eventually("new Pods have the list", SOON, async || {
        let dry = "kubectl -n team-a run probe --image=x --dry-run=server -o jsonpath='{.spec.imagePullSecrets}'";
        stage.run(dry).await.contains(OLD).then_some(())
    })
    .await;
    stage.deploy(&[]).await;
    assert!(
        stage
            .pods()
            .await
            .iter()
            .all(|pod| names_of_secrets(pod) == [OLD])
    );
}

/// Waits until new Pods have the list that the ServiceAccount has by now; only then a restart shows it.
async fn leave_cron_job(stage: &Stage, blocks: &[Block]) {
    assert_eq!(stage.walk(blocks, STEPS, nothing).await, 4);
    for gone in ["cronjob", "role", "rolebinding", "serviceaccount"] {
        let left = stage
            .run(&format!("kubectl -n team-a get {gone} -o name"))
            .await;
        assert!(!left.contains("ecr-renewer"), "{left}");
    }
    assert!(stage.secret(OLD).await.is_none());
    stage.is_moved(blocks).await;
    let objects = &blocks[0];
    stage
        .plane
        .apply(&objects.text.replace(TEAM, &stage.team))
        .await;
    assert_eq!(stage.walk(blocks, BACK, nothing).await, 3);
    stage.is_back(&[OLD]).await;
}

#[tokio::test]
async fn cron_job_with_static_keys() {
    let (stage, blocks) = (
        Stage::start().await,
        blocks("A CronJob that renews Secrets"),
    );
    let keys = "kubectl -n team-a create secret generic aws-keys --from-literal=AWS_ACCESS_KEY_ID=AKIA1 \
                --from-literal=AWS_SECRET_ACCESS_KEY=a/b+c=";
    stage.run(keys).await;
    cron_job(&stage, &blocks).await;
    assert_eq!(stage.walk(&blocks, "With static keys", nothing).await, 1);
    let read = |namespace: &str, name: &str| {
        format!("kubectl -n {namespace} get secret {name} -o jsonpath='{{.data}}'")
    };
    let copied = stage.run(&read("ecr-injector", "ecr-injector-aws")).await;
    assert_eq!(copied, stage.run(&read(TEAM, "aws-keys")).await);
    leave_cron_job(&stage, &blocks).await;
    assert!(stage.secret("aws-keys").await.is_none());
}

#[tokio::test]
async fn cron_job_with_irsa() {
    let (stage, blocks) = (
        Stage::start().await,
        blocks("A CronJob that renews Secrets"),
    );
    cron_job(&stage, &blocks).await;
    assert_eq!(stage.walk(&blocks, "With IRSA", nothing).await, 1);
    let trust = fs::read_to_string(stage.path("trust-policy")).unwrap();
    for account in [
        format!("{}:ecr-renewer", stage.team),
        "ecr-injector:ecr-injector".to_owned(),
    ] {
        assert!(
            trust.contains(&format!("system:serviceaccount:{account}")),
            "{trust}"
        );
    }
    leave_cron_job(&stage, &blocks).await;
}

#[tokio::test]
async fn role_of_the_nodes_with_a_repository_policy() {
    let (stage, blocks) = (Stage::start().await, blocks("The role of the nodes"));
    stage.has_token.store(true, Ordering::Relaxed);
    stage.deploy(&[]).await;
    // Nodes pull as long as the policy of the repository names their role.
    let follow_policy = async |stage: &Stage, _: &str| {
        let policy = fs::read_to_string(stage.path("repository-policy")).unwrap();
        assert!(policy.contains("role/ecr-injector"), "{policy}");
        stage
            .has_token
            .store(policy.contains("role/nodes"), Ordering::Relaxed);
    };
    assert_eq!(stage.walk(&blocks, STEPS, follow_policy).await, 4);
    stage.is_moved(&blocks).await;
    assert_eq!(stage.walk(&blocks, BACK, follow_policy).await, 2);
    assert!(stage.has_token.load(Ordering::Relaxed));
    stage.is_back(&[]).await;
}

/// Defines a kind of others, as far as it has to be stored.
async fn define(stage: &Stage, group: &str, version: &str, kind: &str) {
    let (singular, plural) = (kind.to_lowercase(), format!("{}s", kind.to_lowercase()));
    let schema = json!({"openAPIV3Schema": {
        "type": "object", "x-kubernetes-preserve-unknown-fields": true,
    }});
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": {"kind": kind, "singular": singular, "plural": plural},
            "versions": [{"name": version, "served": true, "storage": true, "schema": schema}],
        },
    });
    stage.plane.apply(&definition.to_string()).await;
    let established =
        format!("kubectl wait --for=condition=Established crd/{plural}.{group} --timeout=30s");
    stage.run(&established).await;
}

#[tokio::test]
async fn external_secrets_operator() {
    let (stage, blocks) = (
        Stage::start().await,
        blocks("The External Secrets Operator"),
    );
    define(
        &stage,
        "generators.external-secrets.io",
        "v1alpha1",
        "ECRAuthorizationToken",
    )
    .await;
    define(&stage, "external-secrets.io", "v1", "ExternalSecret").await;
    // The operator writes the Secret, and owns it.
    let operator = async |stage: &Stage, _: &str| {
        let uid = "kubectl -n team-a get externalsecret.external-secrets.io regcred -o jsonpath='{.metadata.uid}'";
        let owner = json!({
            "apiVersion": "external-secrets.io/v1", "kind": "ExternalSecret", "name": OLD,
            "uid": stage.run(uid).await, "controller": true,
        });
        stage.renew_old(&owner).await;
    };
    assert_eq!(stage.walk(&blocks, "You have", operator).await, 1);
    stage.deploy(&[OLD]).await;
    assert_eq!(stage.walk(&blocks, STEPS, nothing).await, 3);
    eventually(
        "its Secret goes with the ExternalSecret",
        SOON,
        async || stage.secret(OLD).await.is_none().then_some(()),
    )
    .await;
    stage.is_moved(&blocks).await;
    assert_eq!(stage.walk(&blocks, "You have", operator).await, 1);
    assert_eq!(stage.walk(&blocks, BACK, nothing).await, 2);
    stage.is_back(&[OLD]).await;
}

#[tokio::test]
async fn argo_cd_on_k3s() {
    let (stage, blocks) = (Stage::start().await, blocks("Argo CD on k3s"));
    define(&stage, "argoproj.io", "v1alpha1", "Application").await;
    stage.run("kubectl create namespace argocd").await;
    // Argo CD sets the labels that the Application has for its namespace.
    let argo = async |stage: &Stage, _: &str| {
        let read = "kubectl -n argocd get application.argoproj.io shop -o json";
        let application: Value = serde_json::from_str(&stage.run(read).await).unwrap();
        let metadata = &application["spec"]["syncPolicy"]["managedNamespaceMetadata"];
        let namespace = json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": application["spec"]["destination"]["namespace"], "labels": metadata["labels"]},
        });
        let apply = [
            "apply",
            "--server-side",
            "--field-manager=argocd",
            "-f",
            "-",
        ];
        let output = stage
            .plane
            .kubectl_with_input(&apply, &namespace.to_string())
            .await;
        assert!(output.status.success(), "{output:?}");
    };
    stage.has_token.store(true, Ordering::Relaxed);
    assert_eq!(stage.walk(&blocks, "You have", argo).await, 1);
    stage.deploy(&[]).await;
    assert_eq!(stage.walk(&blocks, STEPS, argo).await, 3);
    stage.is_moved(&blocks).await;
    assert_eq!(stage.walk(&blocks, BACK, nothing).await, 3);
    stage.is_back(&[]).await;
}

/// The watch over the Pods sees a way that has a gap.
#[tokio::test]
async fn removal_before_the_restart_is_seen_as_a_gap() {
    let (stage, blocks) = (Stage::start().await, blocks("Secrets created by hand"));
    stage.walk(&blocks, "You have", nothing).await;
    stage.deploy(&[OLD]).await;
    stage
        .run("kubectl label namespace team-a ecr-injector.dev/inject=enabled")
        .await;
    stage.run("kubectl -n team-a delete secret regcred").await;
    eventually("Pods can't pull", SOON, async || {
        (!stage.gaps.lock().unwrap().is_empty()).then_some(())
    })
    .await;
}

/// Each section has a table, steps, a check and a way back, and every section of the page that has steps is walked.
#[test]
fn every_way_is_whole() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/how-to/migrate.md");
    let page = fs::read_to_string(Path::new(page)).unwrap();
    let own = include_str!("coming_from.rs");
    let mut ways = 0;
    for section in page
        .split("\n## ")
        .skip(1)
        .filter(|it| it.contains("**Steps.**"))
    {
        let heading = section.lines().next().unwrap();
        assert!(
            own.contains(&format!("blocks({heading:?})")),
            "{heading} is not walked"
        );
        for part in [
            "| you have | equivalent |",
            "**Check.**",
            "**The way back.**",
        ] {
            assert!(section.contains(part), "{heading}: {part}");
        }
        ways += 1;
    }
    assert_eq!(ways, 6);
}
