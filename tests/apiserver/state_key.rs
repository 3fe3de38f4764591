//! The key that seals states against a real API server, with the rights and the guard that `deploy/` gives: who makes it,
//! and what becomes of it when other hands reach in.

use std::sync::Arc;
use std::time::Duration;

use crate::support;
use crate::support::installation::NAME;
use crate::support::{
    Caller, ControlPlane, FakeAws, Installation, Shared, Webhook, command, eventually,
};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ecr_injector::cli::metrics::Metrics;
use ecr_injector::cluster::lease::Leadership;
use ecr_injector::cluster::namespace::Namespace;
use ecr_injector::process::clock::SystemClock;
use ecr_injector::process::readiness::{Condition, Readiness};
use ecr_injector::pull_secret::seal::{StateKeys, key::StateKey};
use ecr_injector::pull_secret::state_key::plan::{CREATED_AT, ROTATE, ROTATED, SECRET_TYPE};
use ecr_injector::pull_secret::state_key::{DEFAULT_NAME, KeySecret};
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

const ROUNDS: usize = 20;
const SOON: Duration = Duration::from_secs(20);
const KEY: &str = "/api/v1/namespaces/ecr-injector/secrets/ecr-injector-state-key";

/// One control plane for all tests of this file, which take turns: there is one Secret.
static PLANE: Shared<(ControlPlane, Installation)> = Shared::new();
static TURN: Mutex<()> = Mutex::const_new(());

/// A turn, which begins without the Secret.
struct Cluster {
    _turn: MutexGuard<'static, ()>,
    installed: Arc<(ControlPlane, Installation)>,
    us: Client,
    admin: Caller,
}

impl Cluster {
    async fn turn() -> Self {
        support::crypto();
        let turn = TURN.lock().await;
        let start = async || {
            let plane = ControlPlane::start().await;
            let installation = Installation::apply(&plane).await;
            (plane, installation)
        };
        let installed = PLANE.get_or_start(start).await;
        let plane = &installed.0;
        let us = plane.as_service_account(NAME, NAME).await;
        let admin = Caller(plane.admin().await);
        let _ = admin.delete(KEY).await;
        Self {
            _turn: turn,
            installed,
            us,
            admin,
        }
    }

    fn plane(&self) -> &ControlPlane {
        &self.installed.0
    }

    fn installation(&self) -> &Installation {
        &self.installed.1
    }

    /// The Secret, if there is one.
    async fn try_secret(&self) -> Option<Value> {
        let found = self.admin.get(KEY).await.0.ok()?;
        Some(serde_json::from_str(&found).unwrap())
    }

    async fn secret(&self) -> Value {
        self.try_secret().await.unwrap()
    }

    /// Waits until the Secret has this data.
    async fn has_data(&self, data: &Value) {
        eventually("the Secret has the keys", SOON, async || {
            (self.try_secret().await?["data"] == *data).then_some(())
        })
        .await;
    }
}

fn key_of(secret: &Value, name: &str) -> StateKey {
    let text = secret["data"][name].as_str().unwrap_or_default();
    StateKey::from_slice(&BASE64_STANDARD.decode(text).unwrap()).unwrap()
}

fn annotation<'a>(secret: &'a Value, key: &str) -> &'a Value {
    &secret["metadata"]["annotations"][key]
}

fn ask(request: &str) -> Value {
    json!({"metadata": {"annotations": {ROTATE: request}}})
}

/// A Secret of the name that somebody else made.
fn foreign() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": DEFAULT_NAME},
        "data": {"current": BASE64_STANDARD.encode([7; 32])},
    })
}

/// One replica's part; it ends when this is dropped.
struct Replica {
    secret: KeySecret,
    keys: StateKeys,
    known: Condition,
    metrics: Metrics,
    tasks: JoinSet<()>,
}

impl Replica {
    fn start(us: &Client) -> Self {
        let (keys, metrics) = (StateKeys::default(), Metrics::default());
        let secret = KeySecret::new(
            us.clone(),
            Namespace::parse(NAME).unwrap(),
            DEFAULT_NAME.to_owned(),
            keys.clone(),
            Arc::new(SystemClock),
            metrics.pull_secret.clone(),
        );
        let known = Readiness::default().condition("state-key");
        let mut tasks = JoinSet::new();
        tasks.spawn(secret.clone().watch());
        tasks.spawn(secret.clone().provide(known.clone()));
        Self {
            secret,
            keys,
            known,
            metrics,
            tasks,
        }
    }

    fn lead(&mut self) {
        let secret = self.secret.clone();
        self.tasks
            .spawn(async move { secret.maintain(&Leadership::unlimited()).await });
    }

    async fn is_ready(&self) {
        timeout(SOON, self.known.held()).await.unwrap();
    }

    fn count(&self, series: &str) -> f64 {
        support::webhook::sum(&self.metrics.registry.to_text(), series)
    }
}

#[tokio::test]
async fn replicas_that_race_on_an_empty_namespace_share_a_key() {
    let cluster = Cluster::turn().await;
    let mut conflicts = 0.0;
    for round in 0..ROUNDS {
        let _ = cluster.admin.delete(KEY).await;
        let mut replicas = [Replica::start(&cluster.us), Replica::start(&cluster.us)];
        replicas[round % 2].lead();
        for replica in &replicas {
            replica.is_ready().await;
        }
        let secret = cluster.secret().await;
        assert_eq!(secret["type"], SECRET_TYPE);
        assert!(annotation(&secret, CREATED_AT).is_string());
        assert!(secret["data"]["previous"].is_null());
        for replica in &replicas {
            let key = replica.keys.current();
            assert_eq!(key, Some(key_of(&secret, "current")), "round {round}");
        }
        let count = |outcome: &str| -> f64 {
            let series = format!(r#"ecr_injector_kube_api_calls_total{{outcome="{outcome}"}}"#);
            replicas.iter().map(|replica| replica.count(&series)).sum()
        };
        let made = count("ok");
        assert!((made - 1.0).abs() < 0.5, "round {round}: made {made} times");
        conflicts += count("conflict");
    }
    println!("{ROUNDS} rounds, {conflicts} lost races");
    assert!(conflicts > 0.5, "there was no race at all");
}

#[tokio::test]
async fn deleted_or_malformed_secret_gets_the_same_key_back() {
    let cluster = Cluster::turn().await;
    let (mut leader, other) = (Replica::start(&cluster.us), Replica::start(&cluster.us));
    leader.lead();
    leader.is_ready().await;
    other.is_ready().await;
    let secret = cluster.secret().await;
    let key = key_of(&secret, "current");
    cluster.admin.delete(KEY).await.allowed();
    cluster.has_data(&secret["data"]).await;
    let garbage = json!({"data": {"current": BASE64_STANDARD.encode("x")}});
    cluster.admin.merge(KEY, &garbage).await.allowed();
    cluster.has_data(&secret["data"]).await;
    let restored = cluster.secret().await;
    let created = |secret: &Value| annotation(secret, CREATED_AT).clone();
    assert_eq!(created(&restored), created(&secret), "the key's age stays");
    for replica in [&leader, &other] {
        assert_eq!(replica.keys.current().as_ref(), Some(&key));
    }
}

#[tokio::test]
async fn rotation_request_is_followed_once_and_keeps_the_previous() {
    let cluster = Cluster::turn().await;
    let (mut leader, other) = (Replica::start(&cluster.us), Replica::start(&cluster.us));
    other.is_ready().await;
    let first = key_of(&cluster.secret().await, "current");
    let seal = other.keys.seal(b"a state").unwrap();
    cluster.admin.merge(KEY, &ask("1")).await.allowed();
    sleep(Duration::from_secs(2)).await;
    let untouched = key_of(&cluster.secret().await, "current");
    assert_eq!(untouched, first, "only the leader rotates");
    leader.lead();
    let rotated = eventually("the request is followed", SOON, async || {
        let secret = cluster.secret().await;
        (annotation(&secret, ROTATED) == "1").then_some(secret)
    })
    .await;
    assert_eq!(key_of(&rotated, "previous"), first);
    let second = key_of(&rotated, "current");
    assert_ne!(second, first);
    eventually("both replicas have the new key", SOON, async || {
        let current = [leader.keys.current(), other.keys.current()];
        (current == [Some(second.clone()), Some(second.clone())]).then_some(())
    })
    .await;
    assert!(other.keys.verify(b"a state", &seal));
    sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.secret().await["data"], rotated["data"], "once");
    // What is restored has both.
    cluster.admin.delete(KEY).await.allowed();
    cluster.has_data(&rotated["data"]).await;
}

#[tokio::test]
async fn foreign_secret_is_left_alone_and_known_keys_stay() {
    let cluster = Cluster::turn().await;
    cluster.admin.apply(KEY, &foreign()).await.allowed();
    let before = cluster.secret().await;
    let mut late = Replica::start(&cluster.us);
    late.lead();
    sleep(Duration::from_secs(3)).await;
    assert!(!late.known.holds() && late.keys.current().is_none());
    assert_eq!(cluster.secret().await, before);
    // Once it is gone a key is made; and that one stays in use when the Secret is taken over by others.
    cluster.admin.delete(KEY).await.allowed();
    late.is_ready().await;
    let known = late.keys.current();
    let label = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}},
        "data": {"current": BASE64_STANDARD.encode([7; 32])}});
    cluster.admin.merge(KEY, &label).await.allowed();
    let taken = cluster.secret().await;
    sleep(Duration::from_secs(3)).await;
    assert_eq!(cluster.secret().await, taken);
    assert!(late.known.holds() && late.keys.current() == known);
}

/// The processes as they are installed, with all that they log.
#[tokio::test]
async fn two_processes_share_a_key_that_no_line_of_theirs_shows() {
    let cluster = Cluster::turn().await;
    let aws = FakeAws::start();
    let mut options = Vec::new();
    for _ in 0..2 {
        let replica = cluster.installation().replica(cluster.plane(), &aws).await;
        let replica = replica
            .with_variable("ECR_INJECTOR_LOG", "trace")
            .with_variable("ECR_INJECTOR_SHUTDOWN_DELAY", "0");
        options.push(replica);
    }
    let mut replicas: Vec<_> = options.into_iter().map(Webhook::spawn).collect();
    for replica in &mut replicas {
        replica.wait_until_ready().await;
    }
    let first = cluster.secret().await;
    cluster.admin.merge(KEY, &ask("1")).await.allowed();
    let second = eventually("the leader rotates", SOON, async || {
        let secret = cluster.secret().await;
        (annotation(&secret, ROTATED) == "1").then_some(secret)
    })
    .await;
    assert_eq!(second["data"]["previous"], first["data"]["current"]);
    cluster.admin.delete(KEY).await.allowed();
    cluster.has_data(&second["data"]).await;

    // A command uses the key that is there.
    let kubeconfig = cluster.installation().kubeconfig(cluster.plane()).await;
    let arguments = ["refresh", "--once", "--log=trace"];
    let ran = command::end(command::spawn(&kubeconfig, aws.environment(), arguments)).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(cluster.secret().await["data"], second["data"]);

    let mut shown = vec![ran.stdout, ran.stderr];
    for replica in &mut replicas {
        replica.stop().await;
        shown.push(replica.log());
    }
    assert!(shown[2..].iter().all(|log| log.contains("state-key")));
    for name in ["current", "previous"] {
        let encoded = second["data"][name].as_str().unwrap();
        let bytes = BASE64_STANDARD.decode(encoded).unwrap();
        let hex: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let list = format!("{bytes:?}");
        for form in [encoded, &hex.concat(), &list[1..list.len() - 1]] {
            assert!(shown.iter().all(|text| !text.contains(form)), "{name}");
        }
    }
}

#[tokio::test]
async fn refresh_makes_a_key_or_says_why_there_is_none() {
    let cluster = Cluster::turn().await;
    let aws = FakeAws::start();
    let kubeconfig = cluster.installation().kubeconfig(cluster.plane()).await;
    let run = async |arguments: &[&str]| {
        let child = command::spawn(&kubeconfig, aws.environment(), arguments);
        command::end(child).await
    };
    // A dry run makes none.
    let ran = run(&["refresh", "--once", "--dry-run"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(cluster.try_secret().await, None);
    let ran = run(&["refresh", "--once"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    key_of(&cluster.secret().await, "current");
    // Our account has no right on another's.
    let ran = run(&["refresh", "--once", "--state-key-secret=other"]).await;
    let missing = "missing: list secrets/other (namespace ecr-injector)";
    assert!(
        ran.code == Some(1) && ran.stderr.contains(missing),
        "{}",
        ran.stderr
    );
}
