//! The chart as Helm installs it, with the image of `make image` that the kubelet runs: the API server
//! calls the webhook through its Service, by kube-proxy.

use std::collections::BTreeSet;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, EvictParams, ListParams};
use serde_json::{Value, json};

use crate::isolation::{command_line, isolated, processes};
use crate::lab::{Lab, is_ready};
use crate::support::control_plane::{AuditLevel, Options, target};
use crate::support::helm::{RELEASE, chart, helm_by, program};
use crate::support::installation::{NAME, OPT_IN, PULL_SECRET};
use crate::support::{Caller, eventually};
use crate::webhook_lab::{RENEWED, SHORT_LIFE};
use crate::workloads::{always_pulled, deployment};

const IMAGE: &str = "ghcr.io/ecr-injector/ecr-injector";
const SOON: Duration = Duration::from_mins(1);
/// The pause between two restarts of the load: kubectl refuses a second one within a second.
const DELAY: Duration = Duration::from_millis(1_100);
/// How many Pods of the load are stored before something happens to the webhook, and after it.
const FLOW: usize = 20;

/// A lab with the chart in it.
struct Chart {
    lab: Lab,
}

/// Where `make image` put it, or the one that `ECR_INJECTOR_IMAGE` names.
fn archive() -> PathBuf {
    let built = || {
        let name = format!("ecr-injector-{}.tar", env!("CARGO_PKG_VERSION"));
        target().join("image").join(name)
    };
    let path = env::var_os("ECR_INJECTOR_IMAGE").map_or_else(built, PathBuf::from);
    assert!(
        path.is_file(),
        "there is no {}: make image builds it",
        path.display()
    );
    path
}

impl Chart {
    async fn install() -> Self {
        let mut lab = Lab::start_with(Options {
            audit: AuditLevel::RequestResponse,
            ..Lab::OPTIONS
        })
        .await;
        lab.start_kubelet(None).await;
        lab.import(&archive(), IMAGE);
        lab.start_proxy().await;
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAME}});
        let keys: serde_json::Map<_, _> = lab.aws.static_keys().into_iter().map(pair).collect();
        let keys = json!({
            "apiVersion": "v1", "kind": "Secret", "stringData": keys,
            "metadata": {"name": "ecr-injector-aws", "namespace": NAME},
        });
        lab.plane.apply(&format!("{namespace}\n---\n{keys}")).await;
        let chart = Self { lab };
        chart.helm(&["install", RELEASE], &json!({}));
        chart.lab.rolled_out(NAME, NAME).await;
        assert_eq!(chart.restarts().await, 0, "{}", chart.logs());
        chart
    }

    /// Runs Helm on the chart, with values beside those that lead to the fake AWS.
    fn helm(&self, arguments: &[&str], more: &Value) {
        let variable = |(name, value): (String, String)| json!({"name": name, "value": value});
        let mut variables: Vec<_> = self.lab.aws.endpoints().into_iter().map(variable).collect();
        variables.push(json!({"name": "AWS_EC2_METADATA_DISABLED", "value": "true"}));
        let mut values = json!({"aws": {"region": "us-east-1"}, "extraEnv": variables});
        values
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        let kubeconfig = self.lab.plane.kubeconfig_for_admin();
        let folder = chart();
        let here = [
            folder.to_str().unwrap(),
            "--namespace",
            NAME,
            "--kubeconfig",
            kubeconfig.to_str().unwrap(),
        ];
        let output = helm_by(
            &program(),
            &[arguments, &here].concat(),
            &values.to_string(),
        );
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        self.lab.say(&format!("helm {}", arguments.join(" ")));
    }

    /// Has `helm test` run its Pod.
    async fn test(&self) {
        let kubeconfig = self.lab.plane.kubeconfig_for_admin();
        let tested = tokio::task::spawn_blocking(move || {
            let kubeconfig = kubeconfig.to_str().unwrap();
            let here = ["--namespace", NAME, "--kubeconfig", kubeconfig];
            let arguments = [&["test", RELEASE, "--timeout", "90s"][..], &here].concat();
            crate::support::helm::run(&arguments)
        });
        let tested = tested.await.unwrap();
        let logs = self.logs();
        assert!(tested.status.success(), "{tested:?}\n{logs}");
        self.lab.say("helm test passed");
    }

    /// Returns what the containers of the installation have logged.
    fn logs(&self) -> String {
        let mut text = String::new();
        let mut folders = vec![self.lab.path("pod-logs")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.to_string_lossy().contains(NAME) {
                    let log = fs::read_to_string(&path).unwrap_or_default();
                    writeln!(text, "--- {}\n{log}", path.display()).unwrap();
                }
            }
        }
        text
    }

    async fn opted_in(&self, prefix: &str) -> String {
        self.lab.plane.namespace(prefix, &[OPT_IN]).await
    }

    /// Returns the name of the Pod that leads.
    async fn leader(&self) -> String {
        let admin = Caller(self.lab.admin.clone());
        let path = format!("/apis/coordination.k8s.io/v1/namespaces/{NAME}/leases/{NAME}");
        let lease = admin.get(&path).await.allowed();
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap().to_owned();
        let pods = self.replicas().await.into_iter();
        let mut names = pods.filter_map(|pod| pod.metadata.name);
        names
            .find(|name| holder.starts_with(name))
            .unwrap_or_else(|| panic!("no replica is {holder}"))
    }

    async fn replicas(&self) -> Vec<Pod> {
        let pods: Api<Pod> = Api::namespaced(self.lab.admin.clone(), NAME);
        let pods = pods.list(&ListParams::default()).await.unwrap();
        pods.items
    }

    /// Evicts the Pod that leads, as a drain does, and waits until another is ready in its place.
    async fn drain_leader(&self) {
        let leader = self.leader().await;
        let pods: Api<Pod> = Api::namespaced(self.lab.admin.clone(), NAME);
        // The budget may count the replicas of a rollout for a moment.
        eventually("the leader is evicted", SOON, async || {
            let evicted = pods.evict(&leader, &EvictParams::default()).await;
            evicted.is_ok().then_some(())
        })
        .await;
        self.lab.say(&format!("{leader}, which led, is evicted"));
        eventually("it is gone", SOON, async || {
            let left = pods.get_opt(&leader).await.unwrap();
            left.is_none().then_some(())
        })
        .await;
        self.settled().await;
    }

    /// Waits until the Deployment has all its replicas, ready, and no others are left.
    async fn settled(&self) {
        self.lab.rolled_out(NAME, NAME).await;
        eventually(
            "all replicas are ready, and no others left",
            SOON,
            async || {
                let admin = Caller(self.lab.admin.clone());
                let path = format!("/apis/apps/v1/namespaces/{NAME}/deployments/{NAME}");
                let deployment = admin.get(&path).await.allowed();
                let wanted = deployment["spec"]["replicas"].as_u64().unwrap();
                // The status of the Deployment comes later than that of its Pods.
                let replicas = self.replicas().await;
                let mut replicas = replicas
                    .iter()
                    .map(|pod| serde_json::to_value(pod).unwrap());
                let there = u64::try_from(replicas.len()).unwrap();
                (there == wanted && replicas.all(|pod| is_ready(&pod).is_some())).then_some(())
            },
        )
        .await;
    }

    /// Returns how often the containers of all replicas were started again.
    async fn restarts(&self) -> i32 {
        let replicas = self.replicas().await.into_iter();
        let statuses = replicas.filter_map(|pod| pod.status?.container_statuses);
        statuses.flatten().map(|status| status.restart_count).sum()
    }

    /// Kills the processes of this many replicas, and waits until the kubelet has noticed.
    async fn kill(&self, count: usize) {
        let before = self.restarts().await;
        let serving = |process: &PathBuf| {
            command_line(process).starts_with("/usr/local/bin/ecr-injector serve")
        };
        let mut killed = 0;
        for process in processes().filter(serving).take(count) {
            let pid = process.file_name().unwrap().to_owned();
            let kill = std::process::Command::new("sh")
                .args(["-c", "kill -KILL \"$1\"", "sh"])
                .arg(pid)
                .status();
            killed += usize::from(kill.unwrap().success());
        }
        assert_eq!(killed, count);
        self.lab.say(&format!("{count} killed"));
        let expected = before + i32::try_from(count).unwrap();
        eventually("the replicas are started again", SOON, async || {
            (self.restarts().await >= expected).then_some(())
        })
        .await;
    }

    /// Returns how many Pods a namespace has ever had, and how many of them were stored without the
    /// reference.
    fn stored(&self, namespace: &str) -> Stored {
        let mut stored = Stored::default();
        for event in self.lab.plane.audit_events() {
            let object = &event["objectRef"];
            let is_created = event["verb"] == "create"
                && object["resource"] == "pods"
                && object["subresource"].is_null()
                && object["namespace"] == namespace
                && event["responseStatus"]["code"] == 201;
            if is_created {
                let secrets = event["responseObject"]["spec"]["imagePullSecrets"].as_array();
                let mut secrets = secrets.into_iter().flatten();
                stored.pods += 1;
                stored.without += usize::from(!secrets.any(|it| it["name"] == PULL_SECRET));
            }
        }
        stored
    }
}

fn pair((name, value): (String, String)) -> (String, Value) {
    (name, value.into())
}

#[derive(Clone, Copy, Debug, Default)]
struct Stored {
    pods: usize,
    without: usize,
}

/// Restarts a Deployment of forty Pods again and again, whose Pods no node takes: they cost an
/// admission each, and nothing more.
struct Load<'a> {
    chart: &'a Chart,
    namespace: String,
}

impl Load<'_> {
    /// Runs something under the load, and returns what was stored meanwhile, just before and just
    /// after.
    async fn during(&self, what: &str, task: impl Future<Output = ()>) -> Stored {
        let before = self.flow().await;
        let begun = Instant::now();
        let mut task = std::pin::pin!(task);
        loop {
            self.restart().await;
            tokio::select! {
                () = &mut task => break,
                () = tokio::time::sleep(DELAY) => {}
            }
        }
        let now = self.flow().await;
        let stored = Stored {
            pods: now.pods - before.pods,
            without: now.without - before.without,
        };
        let took = begun.elapsed().as_secs_f64();
        self.chart
            .lab
            .say(&format!("{what}: {stored:?} in {took:.2} s"));
        stored
    }

    /// Waits until more Pods were stored, and returns how many were by then.
    async fn flow(&self) -> Stored {
        let before = self.chart.stored(&self.namespace);
        loop {
            self.restart().await;
            tokio::time::sleep(DELAY).await;
            let now = self.chart.stored(&self.namespace);
            if now.pods >= before.pods + FLOW {
                return now;
            }
        }
    }

    async fn restart(&self) {
        let restart = [
            "--namespace",
            &self.namespace,
            "rollout",
            "restart",
            "deployment/load",
        ];
        self.chart.lab.plane.kubectl(&restart).await;
    }
}

async fn load(chart: &Chart) -> Load<'_> {
    let namespace = chart.opted_in("load").await;
    let more = json!({"nodeSelector": {"kubernetes.io/os": "none"}});
    let mut load = deployment("load", 40, &more);
    load["metadata"]["namespace"] = json!(namespace);
    load["spec"]["strategy"] =
        json!({"rollingUpdate": {"maxSurge": "100%", "maxUnavailable": "100%"}});
    chart.lab.plane.apply(&load.to_string()).await;
    Load { chart, namespace }
}

#[test]
fn chart_serves_a_namespace_and_renews_its_pull_secret() {
    isolated(async || {
        let chart = Chart::install().await;
        let lab = &chart.lab;
        chart.test().await;
        lab.aws.tune_ecr(|knobs| knobs.lifetime = Some(SHORT_LIFE));
        let shop = chart.opted_in("shop").await;
        lab.runs(&shop, "first", &json!({})).await;
        lab.deploy(&shop, "web", 2, &always_pulled("web")).await;
        lab.rolled_out(&shop, "web").await;

        let old: BTreeSet<_> = lab.aws.passwords().into_iter().collect();
        let begun = Instant::now();
        eventually("the leader renews", RENEWED, async || {
            let password = lab.password(&shop).await?;
            (!old.contains(&password)).then_some(())
        })
        .await;
        let took = begun.elapsed().as_secs_f64();
        lab.say(&format!("the pull secret is renewed after {took:.2} s"));
        lab.registry.revoke_these(old.clone());
        lab.restart(&shop, "web").await;
        lab.rolled_out(&shop, "web").await;
        lab.scale(&shop, "web", 4).await;
        lab.rolled_out(&shop, "web").await;
        let asked = lab.registry.asked("web");
        let last = asked.last().unwrap();
        assert!(last.given && !old.contains(last.password.as_ref().unwrap()));
        assert_eq!(lab.aws.leak_in(&chart.logs()), None);
    });
}

#[test]
fn rollout_and_drain_of_the_webhook_lose_no_pod() {
    isolated(async || {
        let chart = Chart::install().await;
        let lab = &chart.lab;
        let load = load(&chart).await;
        let shop = chart.opted_in("shop").await;
        lab.deploy(&shop, "web", 2, &always_pulled("web")).await;
        lab.rolled_out(&shop, "web").await;

        let stored = load
            .during("rollout", async {
                lab.restart(NAME, NAME).await;
                lab.restart(&shop, "web").await;
                chart.settled().await;
                lab.rolled_out(&shop, "web").await;
            })
            .await;
        assert_eq!(stored.without, 0);
        let stored = load.during("drain", chart.drain_leader()).await;
        assert_eq!(stored.without, 0);
        // With `failurePolicy: Ignore` a Pod is stored as it is if nobody answers for it.
        load.during("kill of one replica", async {
            chart.kill(1).await;
            chart.settled().await;
        })
        .await;
        let stored = load.during("afterwards", async {}).await;
        assert_eq!(stored.without, 0);

        // Without replicas none has the reference, and nothing can be pulled.
        lab.scale(NAME, NAME, 0).await;
        chart.settled().await;
        let stored = load.during("no replica", async {}).await;
        assert_eq!(stored.without, stored.pods);
        lab.cannot_pull(&shop, "without-webhook", &json!({})).await;
    });
}

#[test]
fn policy_beside_the_webhook_loses_no_pod_when_all_replicas_are_killed() {
    isolated(async || {
        let chart = Chart::install().await;
        let lab = &chart.lab;
        let load = load(&chart).await;
        let discover = json!({"discover": "pods"});
        chart.helm(
            &["upgrade", RELEASE],
            &json!({"mode": "both", "config": discover}),
        );
        chart.settled().await;
        lab.scale(NAME, NAME, 0).await;
        chart.settled().await;
        eventually("the policy is in force", SOON, async || {
            lab.is_referenced(&load.namespace).await.then_some(())
        })
        .await;
        lab.scale(NAME, NAME, 2).await;
        chart.settled().await;
        let shop = chart.opted_in("shop").await;
        let stored = load
            .during("kill of both replicas", async {
                chart.kill(2).await;
                // None is ready again: nobody provides the pull secret at once.
                lab.create(&shop, "first", &json!({})).await;
                chart.settled().await;
            })
            .await;
        assert_eq!(stored.without, 0);
        lab.wait_until_recovered(&shop, "first").await;
    });
}
