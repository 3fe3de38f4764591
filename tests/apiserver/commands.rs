//! `refresh --once` and `cleanup`, as a person or a `CronJob` runs them: the binary itself against a real API server, with
//! the rights that `deploy/` gives and no more.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::support;
use crate::support::bed::{hosts as hosts_of, registry};
use crate::support::command::{self, Ran, end, interrupt};
use crate::support::control_plane::may;
use crate::support::due::{make_due, minted_ago_in, state_keys};
use crate::support::fake_aws::ACCOUNT;
use crate::support::installation::{NAME, OPT_IN, PULL_SECRET};
use crate::support::{Behaviour, ControlPlane, FakeAws, Installation, Shared, eventually};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::process::Child;

const SOON: Duration = Duration::from_secs(20);

/// A cluster with `deploy/` in it, and no webhook that runs.
struct Ground {
    plane: ControlPlane,
    installation: Installation,
    admin: Client,
}

impl Ground {
    async fn start() -> Self {
        support::crypto();
        let plane = ControlPlane::start().await;
        let installation = Installation::apply(&plane).await;
        let admin = plane.admin().await;
        Self {
            plane,
            installation,
            admin,
        }
    }

    /// The one that tests share which keep to their own namespaces.
    async fn shared() -> Arc<Self> {
        static SHARED: Shared<Ground> = Shared::new();
        SHARED.get_or_start(Self::start).await
    }

    /// Clients belong to the runtime that made them, and each test has its own.
    async fn admin(&self) -> Client {
        self.plane.admin().await
    }

    async fn opted_in(&self, prefix: &str, count: usize) -> Vec<String> {
        let mut names = Vec::new();
        for _ in 0..count {
            names.push(self.plane.namespace(prefix, &[OPT_IN]).await);
        }
        names
    }

    async fn ours(&self) -> PathBuf {
        self.installation.kubeconfig(&self.plane).await
    }

    /// A kubeconfig of an account that the guard doesn't watch, with deploy/'s rights and these beside.
    async fn account(&self, name: &str, roles: &[&str]) -> PathBuf {
        let mut manifests = vec![
            json!({
                "apiVersion": "v1", "kind": "ServiceAccount",
                "metadata": {"name": name, "namespace": "default"},
            }),
            json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                "metadata": {"name": "removes-pull-secrets"},
                "rules": [{
                    "apiGroups": [""], "resources": ["secrets"],
                    "resourceNames": [PULL_SECRET], "verbs": ["delete"],
                }],
            }),
        ];
        for role in roles {
            manifests.push(json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
                "metadata": {"name": format!("{name}-{role}")},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": name}],
            }));
        }
        let manifests: Vec<_> = manifests.iter().map(Value::to_string).collect();
        self.plane.apply(&manifests.join("\n---\n")).await;
        let kubeconfig = self
            .plane
            .kubeconfig_for_service_account("default", name)
            .await;
        if !roles.is_empty() {
            let client = support::control_plane::client(&kubeconfig).await;
            eventually("RBAC knows the account", SOON, async || {
                may(&client, "list", "namespaces").await.then_some(())
            })
            .await;
        }
        kubeconfig
    }

    async fn janitor(&self) -> PathBuf {
        self.account("janitor", &[NAME, "removes-pull-secrets"])
            .await
    }

    /// Gives a namespace a pull secret that was written so long ago.
    async fn written_ago(&self, namespace: &str, hosts: &[String], ago: SignedDuration) {
        let secret = self.sealed_ago(namespace, hosts, ago).await;
        self.apply(namespace, &secret).await;
    }

    /// A pull secret for a namespace that was written so long ago.
    async fn sealed_ago(&self, namespace: &str, hosts: &[String], ago: SignedDuration) -> Secret {
        let admin = self.admin().await;
        let keys = state_keys(&admin).await;
        minted_ago_in(&admin, &keys, namespace, hosts, ago).await
    }

    async fn apply(&self, namespace: &str, secret: &Secret) {
        let secrets: Api<Secret> = Api::namespaced(self.admin().await, namespace);
        let params = PatchParams::apply("ecr-injector").force();
        let patch = Patch::Apply(secret);
        secrets.patch(PULL_SECRET, &params, &patch).await.unwrap();
    }

    async fn secret(&self, namespace: &str) -> Option<Secret> {
        let secrets: Api<Secret> = Api::namespaced(self.admin().await, namespace);
        secrets.get_opt(PULL_SECRET).await.unwrap()
    }

    async fn version(&self, namespace: &str) -> Option<String> {
        self.secret(namespace).await?.metadata.resource_version
    }

    async fn versions(&self, namespaces: &[String]) -> Vec<Option<String>> {
        let mut versions = Vec::new();
        for namespace in namespaces {
            versions.push(self.version(namespace).await);
        }
        versions
    }

    /// A Secret of our name that somebody else made.
    async fn foreign(&self, namespace: &str, labels: &Value) {
        let secret = json!({
            "metadata": {"name": PULL_SECRET, "labels": labels},
            "type": "Opaque", "stringData": {"theirs": "x"},
        });
        let secret = serde_json::from_value(secret).unwrap();
        let secrets: Api<Secret> = Api::namespaced(self.admin().await, namespace);
        secrets
            .create(&PostParams::default(), &secret)
            .await
            .unwrap();
    }

    async fn opt_out(&self, namespace: &str) {
        let namespaces: Api<Namespace> = Api::all(self.admin().await);
        let patch = json!({"metadata": {"labels": {OPT_IN.0: null}}});
        let params = PatchParams::default();
        namespaces
            .patch(namespace, &params, &Patch::Merge(patch))
            .await
            .unwrap();
    }
}

/// Starts a command in an environment that has AWS in it and nothing else.
fn spawn(kubeconfig: &Path, aws: &FakeAws, arguments: &[&str]) -> Child {
    command::spawn(kubeconfig, aws.environment(), arguments)
}

async fn run(kubeconfig: &Path, aws: &FakeAws, arguments: &[&str]) -> Ran {
    end(spawn(kubeconfig, aws, arguments)).await
}

/// `refresh --once -o json` of these namespaces.
fn refresh<'a>(namespaces: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    named(&["refresh", "--once", "-o", "json"], namespaces, more)
}

fn cleanup<'a>(namespaces: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    named(&["cleanup", "-o", "json"], namespaces, more)
}

fn named<'a>(command: &[&'a str], namespaces: &'a [String], more: &[&'a str]) -> Vec<&'a str> {
    let named = namespaces.iter().flat_map(|name| ["--namespace", name]);
    let command = command.iter().copied();
    command.chain(named).chain(more.iter().copied()).collect()
}

impl Ran {
    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// Returns the result of each namespace.
    #[track_caller]
    fn results(&self) -> BTreeMap<String, String> {
        let json = self.json();
        let rows = json["namespaces"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        rows.map(|row| (text(&row["namespace"]), text(&row["result"])))
            .collect()
    }

    #[track_caller]
    fn message(&self, namespace: &str) -> String {
        let json = self.json();
        let mut rows = json["namespaces"].as_array().unwrap().iter();
        let row = rows.find(|row| row["namespace"] == namespace).unwrap();
        row["message"].as_str().unwrap().to_owned()
    }

    #[track_caller]
    fn ended(&self, code: i32) {
        assert_eq!(self.code, Some(code), "{self:#?}");
    }

    #[track_caller]
    fn says(&self, text: &str) {
        assert!(self.stderr.contains(text), "no {text:?} in {self:#?}");
    }
}

fn each(namespaces: &[String], result: &str) -> BTreeMap<String, String> {
    let rows = namespaces.iter();
    rows.map(|name| (name.clone(), result.to_owned())).collect()
}

fn host(region: &str) -> String {
    registry(ACCOUNT.parse().unwrap(), region)
}

const RECENTLY: SignedDuration = SignedDuration::from_mins(10);

// Refreshing

#[tokio::test]
async fn renews_what_is_due_and_leaves_what_is_fresh_untouched() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    let (due, fresh) = (
        ground.opted_in("due", 3).await,
        ground.opted_in("fresh", 1).await,
    );
    let hosts = [host("eu-west-1")];
    make_due(&ground.admin().await, &due, &hosts).await;
    ground.written_ago(&fresh[0], &hosts, RECENTLY).await;
    let before = ground.versions(&fresh).await;
    let all: Vec<_> = due.iter().chain(&fresh).cloned().collect();

    let ran = run(
        &ground.ours().await,
        &aws,
        &refresh(&all, &["--log", "trace"]),
    )
    .await;
    ran.ended(0);
    let mut expected = each(&due, "renewed");
    expected.extend(each(&fresh, "fresh"));
    assert_eq!(ran.results(), expected);
    assert_eq!(ground.versions(&fresh).await, before);
    assert_eq!(aws.ecr_calls("eu-west-1").len(), 1, "one token, one call");
    let row = &ran.json()["namespaces"][0];
    assert_eq!(row["registries"], json!(hosts));
    let expires: Timestamp = row["expiresAt"].as_str().unwrap().parse().unwrap();
    let left = expires.duration_since(Timestamp::now());
    assert!(left > SignedDuration::from_hours(11), "{left}");
    assert!(row["dueAt"].is_string(), "{row}");
    assert!(ran.stderr.contains("TRACE"), "no traces in the log");
    assert_eq!(aws.leak_in(&format!("{}{}", ran.stdout, ran.stderr)), None);

    let before = ground.versions(&all).await;
    let again = run(&ground.ours().await, &aws, &refresh(&all, &[])).await;
    again.ended(0);
    again.says("nothing to do: all pull secrets are fresh in 4 namespaces");
    assert_eq!(again.results(), each(&all, "fresh"));
    assert_eq!(ground.versions(&all).await, before);
    assert_eq!(aws.calls().len(), 1);
}

#[tokio::test]
async fn everything_is_renewed_on_demand_with_one_call_a_token() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    let all = ground.opted_in("all", 4).await;
    let hosts = [host("eu-west-1"), host("us-east-2")];
    for namespace in &all {
        ground.written_ago(namespace, &hosts, RECENTLY).await;
    }
    let before = ground.versions(&all).await;
    let ran = run(&ground.ours().await, &aws, &refresh(&all, &["--all"])).await;
    ran.ended(0);
    assert_eq!(ran.results(), each(&all, "renewed"));
    let after = ground.versions(&all).await;
    assert!(
        before
            .iter()
            .zip(&after)
            .all(|(before, after)| before != after)
    );
    assert_eq!(aws.calls_to("ecr").len(), 2, "{:?}", aws.calls());
}

#[tokio::test]
async fn dry_run_writes_nothing_and_asks_aws_for_nothing() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    let (due, fresh) = (
        ground.opted_in("dry-due", 2).await,
        ground.opted_in("dry-fresh", 1).await,
    );
    let all: Vec<_> = due.iter().chain(&fresh).cloned().collect();
    make_due(&ground.admin().await, &due, &[host("eu-west-1")]).await;
    ground
        .written_ago(&fresh[0], &[host("eu-west-1")], RECENTLY)
        .await;
    let before = ground.versions(&all).await;
    let ran = run(&ground.ours().await, &aws, &refresh(&all, &["--dry-run"])).await;
    ran.ended(0);
    let mut expected = each(&due, "would-renew");
    expected.extend(each(&fresh, "fresh"));
    assert_eq!(ran.results(), expected);
    ran.says("2 of 3 namespaces would be refreshed");
    ran.says(&format!("({})", fresh[0]));
    let forced = run(
        &ground.ours().await,
        &aws,
        &refresh(&all, &["--dry-run", "--all"]),
    )
    .await;
    assert_eq!(forced.results(), each(&all, "would-renew"));

    let table = named(&["refresh", "--once", "--dry-run"], &all, &[]);
    let table = run(&ground.ours().await, &aws, &table).await;
    table.ended(0);
    let lines: Vec<_> = table.stdout.lines().collect();
    table.says("warning: no --config");
    assert_eq!(lines.len(), 4, "{table:?}");
    assert!(lines[0].starts_with("NAMESPACE "), "{}", lines[0]);
    assert!(lines[1].contains("would-renew   1 "), "{}", lines[1]);
    assert_eq!(ground.versions(&all).await, before);
    assert!(aws.calls().is_empty(), "{:?}", aws.calls());
}

#[tokio::test]
async fn secret_of_others_is_left_and_named() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    let all = ground.opted_in("theirs", 2).await;
    ground.foreign(&all[0], &json!({})).await;
    let ours = json!({"app.kubernetes.io/managed-by": "ecr-injector"});
    ground.foreign(&all[1], &ours).await;
    let before = ground.versions(&all).await;
    for more in [&["--dry-run"][..], &[]] {
        let ran = run(&ground.ours().await, &aws, &refresh(&all, more)).await;
        ran.ended(1);
        assert_eq!(ran.results(), each(&all, "skipped"));
        assert!(ran.message(&all[0]).contains("lacks the label"));
        assert!(ran.message(&all[1]).contains("its type is not"));
        assert_eq!(ran.json()["ok"], false);
    }
    assert_eq!(ground.versions(&all).await, before);
}

#[tokio::test]
async fn fails_with_the_reason_when_aws_refuses() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Refuse);
    let all = ground.opted_in("refused", 40).await;
    make_due(&ground.admin().await, &all, &[host("eu-west-1")]).await;
    let before = ground.versions(&all).await;
    let ran = run(&ground.ours().await, &aws, &refresh(&all, &[])).await;
    ran.ended(1);
    assert_eq!(ran.results(), each(&all, "rejected"));
    for namespace in &all {
        let message = ran.message(namespace);
        assert!(message.contains("AccessDeniedException"), "{message}");
    }
    ran.says("0 pull secrets refreshed; 40 of 40 namespaces not fresh");
    assert_eq!(ground.versions(&all).await, before);
    let calls = aws.calls().len();
    assert!(calls < 10, "{calls} calls for one token");
}

/// Each has to be looked at first, and by then it is known that there is no token.
#[tokio::test]
async fn reason_is_given_also_to_those_that_asked_after_the_refusal() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Refuse);
    let all = ground.opted_in("tampered", 6).await;
    for namespace in &all {
        let hosts = [host("eu-west-1")];
        let mut secret = ground.sealed_ago(namespace, &hosts, RECENTLY).await;
        let data = secret.data.as_mut().unwrap();
        data.get_mut(".dockerconfigjson").unwrap().0 = b"{\"auths\":{}}".to_vec();
        ground.apply(namespace, &secret).await;
    }
    let config = ground.plane.folder().join("slow-looks.yaml");
    std::fs::write(
        &config,
        crate::support::config_file("refresh: {writesPerSecond: 10}"),
    )
    .unwrap();
    let slow = refresh(&all, &["--config", config.to_str().unwrap()]);
    let ran = run(&ground.ours().await, &aws, &slow).await;
    ran.ended(1);
    assert_eq!(ran.results(), each(&all, "rejected"));
    for namespace in &all {
        let message = ran.message(namespace);
        assert!(message.contains("AccessDeniedException"), "{message}");
    }
}

#[tokio::test]
async fn suspended_hosts_stay_until_they_are_pruned() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    let all = ground.opted_in("suspended", 2).await;
    let hosts = [host("eu-west-1"), host("us-east-1")];
    ground.written_ago(&all[0], &hosts[..1], RECENTLY).await;
    ground.written_ago(&all[1], &hosts, RECENTLY).await;
    let before = ground.versions(&all).await;
    let config = ground.plane.folder().join("one-region.yaml");
    std::fs::write(
        &config,
        crate::support::config_file("allow: {regions: [us-east-1]}"),
    )
    .unwrap();
    let with = ["--config", config.to_str().unwrap()];
    let mut expected = each(&all[..1], "suspended");
    expected.extend(each(&all[1..], "fresh"));
    for more in [&[][..], &["--dry-run"]] {
        let more: Vec<_> = with.iter().chain(more).copied().collect();
        let ran = run(&ground.ours().await, &aws, &refresh(&all, &more)).await;
        ran.ended(1);
        assert_eq!(ran.results(), expected);
        for namespace in &all {
            let message = ran.message(namespace);
            let named = format!("{} suspended: ", hosts[0]);
            assert!(message.starts_with(&named), "{message}");
        }
    }
    assert_eq!(ground.versions(&all).await, before);

    let more: Vec<_> = with
        .iter()
        .chain(&["--prune", "--dry-run"])
        .copied()
        .collect();
    let dry = run(&ground.ours().await, &aws, &refresh(&all, &more)).await;
    assert_eq!(dry.results(), each(&all, "would-renew"));
    assert!(
        dry.message(&all[0]).contains("1 registry removed"),
        "{dry:?}"
    );
    assert_eq!(ground.versions(&all).await, before);

    let more: Vec<_> = with.iter().chain(&["--prune"]).copied().collect();
    let ran = run(&ground.ours().await, &aws, &refresh(&all, &more)).await;
    ran.ended(0);
    assert_eq!(ran.results(), each(&all, "renewed"));
    let held = hosts_of(&ground.secret(&all[1]).await.unwrap());
    assert_eq!(held, hosts[1..]);
    let again = run(&ground.ours().await, &aws, &refresh(&all, &with)).await;
    again.ended(0);
    let mut expected = each(&all[..1], "empty");
    expected.extend(each(&all[1..], "fresh"));
    assert_eq!(again.results(), expected);
    assert!(aws.calls().is_empty(), "{:?}", aws.calls());
}

/// A namespace that is opted out can't be named, so this takes a cluster.
#[tokio::test]
async fn opted_out_secret_is_removed_once_it_has_expired() {
    let (ground, aws) = (Ground::start().await, FakeAws::start());
    let all = ground.opted_in("out", 2).await;
    let (good, expired) = (&all[0], &all[1]);
    let hosts = [host("eu-west-1")];
    ground.written_ago(good, &hosts, RECENTLY).await;
    let thirteen = SignedDuration::from_hours(13);
    ground.written_ago(expired, &hosts, thirteen).await;
    for namespace in &all {
        ground.opt_out(namespace).await;
    }
    let before = ground.versions(&all).await;
    let admin = ground.plane.kubeconfig_for_admin();
    let results = |last: &str| {
        let mut results = each(&all[..1], "opted-out");
        results.extend(each(&all[1..], last));
        results
    };
    let ran = run(&admin, &aws, &refresh(&[], &[])).await;
    ran.ended(0);
    assert_eq!(ran.results(), results("expired-out"));
    assert_eq!(ground.versions(&all).await, before);

    let config = ground.plane.folder().join("removes.yaml");
    std::fs::write(&config, crate::support::config_file("optOutRemove: true")).unwrap();
    let with = ["--config", config.to_str().unwrap()];
    let dry: Vec<_> = with.iter().chain(&["--dry-run"]).copied().collect();
    let dry = run(&admin, &aws, &refresh(&[], &dry)).await;
    assert_eq!(dry.results(), results("would-remove"));
    assert_eq!(ground.versions(&all).await, before);
    let ran = run(&admin, &aws, &refresh(&[], &with)).await;
    ran.ended(0);
    assert_eq!(ran.results(), results("removed"));
    assert!(ground.secret(good).await.is_some());
    assert!(ground.secret(expired).await.is_none());
    assert!(aws.calls().is_empty(), "{:?}", aws.calls());
}

#[tokio::test]
async fn names_that_are_no_opted_in_namespaces_are_refused_first() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    let due = ground.opted_in("named", 1).await;
    make_due(&ground.admin().await, &due, &[host("eu-west-1")]).await;
    let before = ground.versions(&due).await;
    let plain = ground.plane.namespace("plain", &[]).await;
    let mut names = due.clone();
    names.extend([
        "nowhere".to_owned(),
        plain.clone(),
        "kube-system".to_owned(),
    ]);
    let ran = run(&ground.ours().await, &aws, &refresh(&names, &[])).await;
    ran.ended(1);
    ran.says("namespace nowhere not found");
    ran.says(&format!("{plain} is not opted in"));
    ran.says("kube-system is excluded");
    assert_eq!(ran.stdout, "");
    assert_eq!(ground.versions(&due).await, before);
}

#[tokio::test]
async fn termination_loses_nothing_and_lists_what_was_done() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    let all = ground.opted_in("middle", 40).await;
    make_due(&ground.admin().await, &all, &[host("eu-west-1")]).await;
    let before = ground.versions(&all).await;
    let config = ground.plane.folder().join("slow.yaml");
    std::fs::write(
        &config,
        crate::support::config_file("refresh: {writesPerSecond: 10}"),
    )
    .unwrap();
    let ours = ground.ours().await;
    let slow = refresh(&all, &["--config", config.to_str().unwrap()]);
    let child = spawn(&ours, &aws, &slow);
    eventually("some are written", SOON, async || {
        let last = ground.versions(&all[..15]).await;
        let written = last.iter().zip(&before).filter(|(a, b)| a != b).count();
        (written >= 5).then_some(())
    })
    .await;
    interrupt(&child).await;
    let ran = end(child).await;
    ran.ended(130);
    ran.says("interrupted");
    assert!(!ran.stderr.contains("no --config"), "{}", ran.stderr);
    let after = ground.versions(&all).await;
    let results = ran.results();
    let mut renewed = 0;
    for ((namespace, before), after) in all.iter().zip(&before).zip(&after) {
        let result = results[namespace].as_str();
        assert!(["renewed", "interrupted"].contains(&result), "{result}");
        assert_eq!(
            result == "renewed",
            before != after,
            "{namespace}: {result}"
        );
        renewed += usize::from(result == "renewed");
    }
    assert!((5..40).contains(&renewed), "{renewed}");

    let rest = run(&ours, &aws, &refresh(&all, &[])).await;
    rest.ended(0);
    let again = rest.results();
    for namespace in &all {
        let done = results[namespace] == "renewed";
        assert_eq!(again[namespace], if done { "fresh" } else { "renewed" });
    }
}

/// Refreshes and then cleans all namespaces of a cluster, which no test with neighbours can do.
#[tokio::test]
async fn sees_to_a_whole_cluster_and_clears_it() {
    let (ground, aws) = (Ground::start().await, FakeAws::start());
    let hosts = [host("eu-west-1")];
    let due = ground.opted_in("due", 2).await;
    let new = ground.opted_in("new", 1).await.remove(0);
    let out = ground.opted_in("out", 1).await.remove(0);
    let theirs = ground.plane.namespace("theirs", &[]).await;
    make_due(&ground.admin, &due, &hosts).await;
    let five = SignedDuration::from_hours(5);
    ground.written_ago(&out, &hosts, five).await;
    ground.opt_out(&out).await;
    let as_it_was = ground.version(&out).await;
    ground.foreign(&theirs, &json!({})).await;
    let config = ground.plane.folder().join("prewarm.yaml");
    std::fs::write(
        &config,
        crate::support::config_file(&format!("prewarm: [{}]", hosts[0])),
    )
    .unwrap();
    let config = config.to_str().unwrap();
    let ours = ground.ours().await;

    let preview = run(
        &ours,
        &aws,
        &refresh(&[], &["--dry-run", "--config", config]),
    )
    .await;
    preview.ended(0);
    let mut expected = each(&due, "would-renew");
    expected.insert(new.clone(), "would-create".to_owned());
    expected.insert(out.clone(), "opted-out".to_owned());
    assert_eq!(
        preview.results(),
        expected,
        "the others' is no business of ours"
    );
    let ran = run(&ours, &aws, &refresh(&[], &["--config", config])).await;
    ran.ended(0);
    let mut expected = each(&due, "renewed");
    expected.insert(new.clone(), "created".to_owned());
    expected.insert(out.clone(), "opted-out".to_owned());
    assert_eq!(ran.results(), expected);
    assert_eq!(aws.calls().len(), 1);
    let forced = run(&ours, &aws, &refresh(&[], &["--all", "--config", config])).await;
    forced.ended(0);
    assert_eq!(forced.results()[&out], "opted-out", "{forced:#?}");
    assert_eq!(ground.version(&out).await, as_it_was, "it isn't written");

    let janitor = ground.janitor().await;
    let all = [due[0].clone(), due[1].clone(), new.clone(), out.clone()];
    let before = ground.versions(&all).await;
    let dry = run(&janitor, &aws, &cleanup(&[], &["--all", "--dry-run"])).await;
    dry.ended(0);
    let mut expected = each(&all, "would-remove");
    expected.insert(theirs.clone(), "skipped".to_owned());
    assert_eq!(dry.results(), expected);
    dry.says("4 pull secrets would be removed, 1 Secret of others skipped");
    assert_eq!(ground.versions(&all).await, before);

    let ran = run(&janitor, &aws, &cleanup(&[], &["--all"])).await;
    ran.ended(0);
    let mut expected = each(&all, "removed");
    expected.insert(theirs.clone(), "skipped".to_owned());
    assert_eq!(ran.results(), expected);
    ran.says("are created again while the webhook runs");
    ran.says(&format!(
        "kubectl label namespace {} ecr-injector.dev/inject-",
        due[0]
    ));
    assert!(
        !ran.stderr.contains(&out),
        "it is opted out: {}",
        ran.stderr
    );
    assert_eq!(ground.versions(&all).await, [None, None, None, None]);
    assert!(ground.secret(&theirs).await.is_some());

    let again = run(&janitor, &aws, &cleanup(&[], &["--all"])).await;
    again.ended(0);
    again.says("nothing to remove");
    let none = run(&janitor, &aws, &cleanup(&all, &[])).await;
    none.ended(0);
    assert_eq!(none.results(), each(&all, "absent"));
}

// Cleaning up

#[tokio::test]
async fn guard_holds_our_own_account_to_namespaces_that_are_opted_out() {
    let (ground, aws) = (Ground::start().await, FakeAws::start());
    let all = ground.opted_in("guarded", 2).await;
    make_due(&ground.admin, &all, &[host("eu-west-1")]).await;
    ground.opt_out(&all[1]).await;
    ground.account("unused", &[]).await;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "ours-removes"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "removes-pull-secrets"},
        "subjects": [{"kind": "ServiceAccount", "namespace": NAME, "name": NAME}],
    });
    ground.plane.apply(&binding.to_string()).await;
    let ours = ground.ours().await;
    let ran = eventually("RBAC knows it", SOON, async || {
        let ran = run(&ours, &aws, &cleanup(&all, &[])).await;
        (!ran.stderr.contains("missing: ")).then_some(ran)
    })
    .await;
    ran.ended(1);
    let message = ran.message(&all[0]);
    assert!(
        message.contains("deletes no pull Secret in a namespace with the label"),
        "{message}"
    );
    assert_eq!(ran.results()[&all[1]], "removed");
    ran.says("1 pull secret removed, 1 pull secret not removed");
    assert!(ground.secret(&all[0]).await.is_some());
    assert!(ground.secret(&all[1]).await.is_none());
}

#[tokio::test]
async fn interrupted_cleanup_says_what_is_left() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    let all = ground.opted_in("sweep", 30).await;
    make_due(&ground.admin().await, &all, &[host("eu-west-1")]).await;
    let config = ground.plane.folder().join("slow-cleanup.yaml");
    std::fs::write(
        &config,
        crate::support::config_file("refresh: {writesPerSecond: 10}"),
    )
    .unwrap();
    let janitor = ground.janitor().await;
    let slow = cleanup(&all, &["--config", config.to_str().unwrap()]);
    let child = spawn(&janitor, &aws, &slow);
    eventually("one is removed", SOON, async || {
        ground.secret(&all[2]).await.is_none().then_some(())
    })
    .await;
    interrupt(&child).await;
    let ran = end(child).await;
    ran.ended(130);
    let results = ran.results();
    let versions = ground.versions(&all).await;
    for (namespace, version) in all.iter().zip(versions) {
        let expected = if version.is_some() {
            "interrupted"
        } else {
            "removed"
        };
        assert_eq!(results[namespace], expected);
    }
    assert!(results.values().any(|result| result == "interrupted"));
    run(&janitor, &aws, &cleanup(&all, &[])).await.ended(0);
}

#[tokio::test]
async fn name_that_is_no_namespace_is_no_cleanup() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    let janitor = ground.janitor().await;
    let nowhere = ["nowhere".to_owned()];
    let ran = run(&janitor, &aws, &cleanup(&nowhere, &[])).await;
    ran.ended(1);
    ran.says("namespace nowhere not found; nothing was removed");
}

// Rights, and reaching a cluster

#[tokio::test]
async fn every_missing_right_is_named_at_once() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    let stranger = ground.account("stranger", &[]).await;
    let team = ground.opted_in("rights", 1).await;
    let lines = |ran: &Ran| -> Vec<String> {
        let lines = ran.stderr.lines();
        lines
            .filter_map(|line| line.trim_start().strip_prefix("missing: "))
            .map(str::to_owned)
            .collect()
    };
    let ran = run(&stranger, &aws, &refresh(&[], &[])).await;
    ran.ended(1);
    let expected = [
        "list namespaces (all namespaces)",
        "watch namespaces (all namespaces)",
        "get namespaces (all namespaces)",
        "list secrets/ecr-pull-secret (all namespaces)",
        "watch secrets/ecr-pull-secret (all namespaces)",
        "get secrets/ecr-pull-secret (all namespaces)",
        "create secrets/ecr-pull-secret (all namespaces)",
        "patch secrets/ecr-pull-secret (all namespaces)",
        "list secrets/ecr-injector-state-key (namespace ecr-injector)",
        "watch secrets/ecr-injector-state-key (namespace ecr-injector)",
        "create secrets/ecr-injector-state-key (namespace ecr-injector)",
        "patch secrets/ecr-injector-state-key (namespace ecr-injector)",
    ];
    assert_eq!(lines(&ran), expected);
    ran.says("system:serviceaccount:default:stranger lacks permissions for this command");
    ran.says("docs/how-to/refresh-and-clean-up.md");
    assert_eq!(ran.stdout, "");
    let dry = run(&stranger, &aws, &refresh(&team, &["--dry-run"])).await;
    let expected = [
        format!("get namespaces (namespace {})", team[0]),
        format!("list secrets/ecr-pull-secret (namespace {})", team[0]),
        format!("watch secrets/ecr-pull-secret (namespace {})", team[0]),
        format!("get secrets/ecr-pull-secret (namespace {})", team[0]),
    ];
    assert_eq!(lines(&dry), expected, "a dry run doesn't write");

    // deploy/ gives all but the right to remove.
    let ours = ground.account("reader", &[NAME]).await;
    let ran = run(&ours, &aws, &cleanup(&[], &["--all"])).await;
    ran.ended(1);
    assert_eq!(
        lines(&ran),
        ["delete secrets/ecr-pull-secret (all namespaces)"]
    );
    let ran = run(&ours, &aws, &cleanup(&team, &[])).await;
    let expected = format!("delete secrets/ecr-pull-secret (namespace {})", team[0]);
    assert_eq!(lines(&ran), [expected]);
    run(&ours, &aws, &cleanup(&team, &["--dry-run"]))
        .await
        .ended(0);
}

/// Each call then shows by itself whether the right is there.
#[tokio::test]
async fn refresh_goes_on_where_rights_can_not_be_asked() {
    let (ground, aws) = (Ground::start().await, FakeAws::start());
    let due = ground.opted_in("unasked", 1).await;
    make_due(&ground.admin, &due, &[host("eu-west-1")]).await;
    let ours = ground.ours().await;
    let everybody = ["delete", "clusterrolebinding", "system:basic-user"];
    assert!(ground.plane.kubectl(&everybody).await.status.success());
    let ran = eventually("nobody may ask", SOON, async || {
        let ran = run(&ours, &aws, &refresh(&due, &["--dry-run"])).await;
        ran.stderr
            .contains("checking this account's permissions failed")
            .then_some(ran)
    })
    .await;
    ran.ended(0);
    let ran = run(&ours, &aws, &refresh(&due, &[])).await;
    ran.ended(0);
    assert_eq!(ran.results(), each(&due, "renewed"));
    assert_eq!(
        ran.stderr
            .matches("checking this account's permissions failed")
            .count(),
        1,
        "{}",
        ran.stderr
    );
}

#[tokio::test]
async fn right_in_one_namespace_is_enough_for_that_one() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    let all = ground.opted_in("partly", 2).await;
    make_due(&ground.admin().await, &all, &[host("eu-west-1")]).await;
    let account = ground.account("partial", &[NAME]).await;
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "partial", "namespace": all[0]},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "removes-pull-secrets"},
        "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": "partial"}],
    });
    ground.plane.apply(&role.to_string()).await;
    eventually("RBAC knows it", SOON, async || {
        let ran = run(&account, &aws, &cleanup(&all[..1], &[])).await;
        (ran.code == Some(0)).then_some(())
    })
    .await;
    let ran = run(&account, &aws, &cleanup(&all, &[])).await;
    ran.ended(1);
    ran.says(&format!(
        "missing: delete secrets/ecr-pull-secret (namespace {})",
        all[1]
    ));
    assert!(!ran.stderr.contains(&all[0]), "{}", ran.stderr);
}

#[tokio::test]
async fn cluster_that_can_not_be_worked_on_is_named_with_what_to_do() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    let ours = std::fs::read_to_string(ground.ours().await).unwrap();
    let folder = ground.plane.folder();
    let changed = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut kubeconfig: Value = serde_json::from_str(&ours).unwrap();
        change(&mut kubeconfig);
        let path = folder.join(name);
        std::fs::write(&path, kubeconfig.to_string()).unwrap();
        path
    };
    let closed = changed("closed", &|kubeconfig| {
        kubeconfig["clusters"][0]["cluster"]["server"] = json!("https://127.0.0.1:1");
    });
    let no_context = changed("no-context", &|kubeconfig| {
        kubeconfig["current-context"] = json!("elsewhere");
    });
    let nobody = changed("nobody", &|kubeconfig| {
        kubeconfig["users"][0]["user"] = json!({"token": "x"});
    });
    let absent = folder.join("absent");
    for (kubeconfig, expected) in [
        (
            &closed,
            &[
                "https://127.0.0.1:1 (KUBECONFIG",
                "kubectl config current-context",
                "refused",
            ][..],
        ),
        (
            &no_context,
            &["no cluster found", "--kubeconfig", "elsewhere"],
        ),
        (
            &nobody,
            &[
                "does not accept these credentials",
                "kubectl get namespaces",
            ],
        ),
        (&absent, &["no cluster found", "absent"]),
    ] {
        let ran = run(kubeconfig, &aws, &refresh(&[], &[])).await;
        ran.ended(1);
        for text in expected {
            ran.says(text);
        }
        assert_eq!(ran.stdout, "");
    }
}

#[tokio::test]
async fn scope_of_the_work_is_a_required_argument() {
    let (ground, aws) = (Ground::shared().await, FakeAws::start());
    let ours = ground.ours().await;
    let ran = run(&ours, &aws, &["refresh"]).await;
    ran.ended(2);
    ran.says("`ecr-injector serve`");
    let ran = run(&ours, &aws, &["cleanup"]).await;
    ran.ended(2);
    ran.says("--namespace or --all is missing");
    run(&ours, &aws, &["cleanup", "--all", "-n", "team"])
        .await
        .ended(2);
}
