//! The self-managed authority against a real API server, with the rights that `deploy/` gives: who makes it, what the
//! registration comes to trust, and what becomes of both when other hands reach in.

use std::sync::Arc;
use std::time::Duration;

use crate::support;
use crate::support::control_plane::WEBHOOK_CLIENT;
use crate::support::installation::{NAME, REGISTRATION};
use crate::support::tls::Trust;
use crate::support::{
    Authority, Caller, ControlPlane, FakeAws, Installation, Shared, Webhook, eventually,
};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ecr_injector::cli::metrics::Metrics;
use ecr_injector::cluster::lease::Leadership;
use ecr_injector::cluster::namespace::Namespace;
use ecr_injector::process::clock::{Clock, SystemClock};
use ecr_injector::process::readiness::{Condition, Readiness};
use ecr_injector::tls::authority::ROTATE;
use ecr_injector::tls::rotation::Lifetimes;
use ecr_injector::tls::secret::NamedSecret;
use ecr_injector::tls::self_managed::{SelfManaged, SelfManagedOptions};
use ecr_injector::tls::{CertPublisher, CertResolver, CertSource, MinVersion, server_config};
use jiff::{SignedDuration, Timestamp};
use kube::Client;
use rustls::pki_types::CertificateDer;
use rustls::version::TLS13;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Mutex, MutexGuard};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

const ROUNDS: usize = 50;
const SOON: Duration = Duration::from_secs(20);
const SERVICE: &str = "ecr-injector.ecr-injector.svc";
const CA: &str = "/api/v1/namespaces/ecr-injector/secrets/ecr-injector-ca";
/// Short, so that a change takes seconds.
const LIFETIMES: Lifetimes = Lifetimes {
    authority: SignedDuration::from_hours(24),
    leaf: SignedDuration::from_hours(1),
    publication: SignedDuration::from_secs(2),
};

/// One control plane for all tests of this file, which take turns: there is one CA Secret and one registration.
static PLANE: Shared<(ControlPlane, Installation)> = Shared::new();
static TURN: Mutex<()> = Mutex::const_new(());

/// A turn.
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
        Self {
            _turn: turn,
            installed,
            us,
            admin,
        }
    }

    fn installation(&self) -> &Installation {
        &self.installed.1
    }

    /// As before anything was served: registered, and nobody is trusted.
    async fn fresh(&self) {
        let _ = self.admin.delete(CA).await;
        let _ = self.admin.delete(&registration_path()).await;
        let (plane, installation) = &*self.installed;
        installation.apply_registration(plane).await;
    }

    async fn ca(&self) -> Value {
        self.admin.get(CA).await.allowed()
    }

    async fn bundles(&self) -> Vec<String> {
        let registration = self.admin.get(&registration_path()).await.allowed();
        let webhooks = registration["webhooks"].as_array().unwrap().iter();
        webhooks
            .map(|webhook| decode(&webhook["clientConfig"]["caBundle"]))
            .collect()
    }

    /// Waits until each entry trusts exactly what the Secret says.
    async fn published(&self) -> String {
        eventually("the registration trusts the authority", SOON, async || {
            let ca: Value = serde_json::from_str(&self.admin.get(CA).await.0.ok()?).unwrap();
            let bundle = decode(&ca["data"]["ca.crt"]);
            let bundles = self.bundles().await;
            let holds = !bundles.is_empty() && bundles.iter().all(|held| *held == bundle);
            holds.then_some(bundle)
        })
        .await
    }
}

fn registration_path() -> String {
    format!("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{REGISTRATION}")
}

fn decode(value: &Value) -> String {
    let bytes = BASE64_STANDARD.decode(value.as_str().unwrap_or_default());
    String::from_utf8(bytes.unwrap()).unwrap()
}

/// A clock that is wrong by so many seconds.
struct WrongClock(i64);

impl Clock for WrongClock {
    fn now(&self) -> Timestamp {
        SystemClock.now() + SignedDuration::from_secs(self.0)
    }
}

/// One replica's part; it ends when this is dropped.
struct Replica {
    authority: SelfManaged,
    serving: Arc<CertResolver>,
    certificate: Condition,
    trusted: Condition,
    metrics: Metrics,
    term: Leadership,
    tasks: JoinSet<()>,
}

impl Replica {
    fn start(us: &Client) -> Self {
        Self::start_with(us, Arc::new(SystemClock))
    }

    fn start_with(us: &Client, clock: Arc<dyn Clock>) -> Self {
        let metrics = Metrics::default();
        let authority = SelfManaged::new(SelfManagedOptions {
            client: us.clone(),
            namespace: Namespace::parse(NAME).unwrap(),
            secret: "ecr-injector-ca".to_owned(),
            registration: REGISTRATION.to_owned(),
            service: SERVICE.to_owned(),
            lifetimes: LIFETIMES,
            clock,
            metrics: metrics.tls.clone(),
        });
        let mut readiness = Readiness::default();
        let (certificate, trusted) = (
            readiness.condition("certificate"),
            readiness.condition("ca-bundle-trusted"),
        );
        let serving = Arc::<CertResolver>::default();
        let served = CertPublisher::new(
            serving.clone(),
            SERVICE.to_owned(),
            certificate.clone(),
            metrics.tls.clone(),
        );
        let mut tasks = JoinSet::new();
        tasks.spawn(authority.clone().watch());
        tasks.spawn(authority.clone().report(trusted.clone()));
        tasks.spawn(Box::new(authority.clone()).run(served));
        Self {
            authority,
            serving,
            certificate,
            trusted,
            metrics,
            term: Leadership::unlimited(),
            tasks,
        }
    }

    /// As the leader.
    fn lead(&mut self) {
        let (authority, term) = (self.authority.clone(), self.term.clone());
        self.tasks.spawn(async move { authority.keep(term).await });
    }

    fn count(&self, series: &str) -> f64 {
        support::webhook::sum(&self.metrics.registry.to_text(), series)
    }
}

/// Whether a client that trusts this bundle gets through to what is served, and by which certificate.
async fn handshake(serving: &Arc<CertResolver>, bundle: &str) -> Option<CertificateDer<'static>> {
    let config = server_config(serving.clone(), MinVersion::Tls13, None).unwrap();
    let (here, there) = tokio::io::duplex(16 * 1024);
    let (trust, versions) = (Trust::of_bundle(bundle), [&TLS13]);
    let (accepted, connected) = tokio::join!(
        TlsAcceptor::from(Arc::new(config)).accept(there),
        trust.connect(here, &versions, &["http/1.1"])
    );
    accepted.ok()?;
    let connection = connected.ok()?;
    Some(
        connection.get_ref().1.peer_certificates()?[0]
            .clone()
            .into_owned(),
    )
}

#[tokio::test]
async fn racing_replicas_share_one_authority_and_are_trusted() {
    let cluster = Cluster::turn().await;
    let mut lost = 0.0;
    for round in 0..ROUNDS {
        cluster.fresh().await;
        let mut replicas = [Replica::start(&cluster.us), Replica::start(&cluster.us)];
        replicas[round % 2].lead();
        for replica in &replicas {
            tokio::time::timeout(SOON, replica.certificate.held())
                .await
                .unwrap();
            tokio::time::timeout(SOON, replica.trusted.held())
                .await
                .unwrap();
        }
        let bundle = cluster.published().await;
        assert_eq!(
            bundle.matches("BEGIN").count(),
            1,
            "round {round}: {bundle}"
        );
        for replica in &replicas {
            let served = handshake(&replica.serving, &bundle).await;
            assert!(served.is_some(), "round {round}: a replica isn't trusted");
        }
        let made: f64 = replicas
            .iter()
            .map(|replica| replica.count("ecr_injector_ca_rotation_steps_total"))
            .sum();
        assert!((made - 1.0).abs() < 0.5, "round {round}: made {made} times");
        lost += replicas
            .iter()
            .map(|replica| {
                replica
                    .count(r#"ecr_injector_kube_api_calls_total{verb="apply",outcome="conflict"}"#)
            })
            .sum::<f64>();
    }
    println!("{ROUNDS} rounds, {lost} lost races");
    assert!(lost > 0.5, "there was no race at all");
}

#[tokio::test]
async fn requested_authority_is_published_before_it_signs() {
    let cluster = Cluster::turn().await;
    cluster.fresh().await;
    let mut replicas = [Replica::start(&cluster.us), Replica::start(&cluster.us)];
    replicas[0].lead();
    let first = cluster.published().await;
    for replica in &replicas {
        replica.certificate.held().await;
    }
    let ask = json!({"metadata": {"annotations": {ROTATE: "2026-11-23"}}});
    cluster.admin.merge(CA, &ask).await.allowed();
    let mut bundles = vec![first.clone()];
    let signed_by_another = eventually("all serve under the new one", SOON, async || {
        let now = cluster.bundles().await.swap_remove(0);
        if bundles.last() != Some(&now) {
            bundles.push(now.clone());
        }
        let mut accepted_by_first = 0;
        for replica in &replicas {
            // By a client that heard of the last change late, too.
            for bundle in bundles.iter().rev().take(2) {
                if bundle == &first {
                    continue;
                }
                assert!(handshake(&replica.serving, bundle).await.is_some());
            }
            accepted_by_first += usize::from(handshake(&replica.serving, &first).await.is_some());
        }
        (accepted_by_first == 0).then_some(now)
    })
    .await;
    assert!(
        signed_by_another.contains(&first),
        "the old one is still trusted"
    );
    assert_eq!(signed_by_another.matches("BEGIN").count(), 2);
    let steps = |step: &str| {
        let series = format!(r#"ecr_injector_ca_rotation_steps_total{{step="{step}"}}"#);
        replicas[0].count(&series)
    };
    assert!((steps("prepared") - 1.0).abs() < 0.1 && (steps("promoted") - 1.0).abs() < 0.1);
    // Asked once, done once.
    sleep(Duration::from_secs(4)).await;
    assert!((steps("prepared") - 1.0).abs() < 0.1);
    assert!((replicas[1].count("ecr_injector_ca_rotation_steps_total")) < 1.5);
}

#[tokio::test]
async fn leader_with_a_wrong_clock_leaves_a_good_authority() {
    const DAY: i64 = 24 * 60 * 60;
    let cluster = Cluster::turn().await;
    cluster.fresh().await;
    let bundle = {
        let mut right = Replica::start(&cluster.us);
        right.lead();
        right.certificate.held().await;
        cluster.published().await
    };
    let ca = cluster.ca().await;
    for wrong in [-2 * DAY, -DAY / 12, DAY * 3 / 4, 2 * DAY, 400 * DAY] {
        let mut replica = Replica::start_with(&cluster.us, Arc::new(WrongClock(wrong)));
        replica.lead();
        for condition in [&replica.certificate, &replica.trusted] {
            let held = tokio::time::timeout(SOON, condition.held()).await;
            assert!(held.is_ok(), "{wrong} s");
        }
        // Clients have the right time.
        let served = handshake(&replica.serving, &bundle).await;
        assert!(served.is_some(), "{wrong} s: it is refused");
        // Longer than an authority has to be published before it signs.
        sleep(Duration::from_secs(5)).await;
        let steps = replica.count("ecr_injector_ca_rotation_steps_total");
        assert!(steps < 0.5, "{wrong} s: {steps} steps");
        assert_eq!(cluster.ca().await["data"], ca["data"], "{wrong} s");
    }
}

#[tokio::test]
async fn authority_that_is_created_by_a_wrong_clock_is_valid_now() {
    let cluster = Cluster::turn().await;
    for wrong in [-40 * 60 * 60, 40 * 60 * 60] {
        cluster.fresh().await;
        let mut replica = Replica::start_with(&cluster.us, Arc::new(WrongClock(wrong)));
        replica.lead();
        let held = tokio::time::timeout(SOON, replica.certificate.held()).await;
        assert!(held.is_ok(), "{wrong} s");
        let bundle = cluster.published().await;
        let served = handshake(&replica.serving, &bundle).await;
        assert!(served.is_some(), "{wrong} s: it is refused");
    }
}

#[tokio::test]
async fn bundle_that_anything_resets_is_filled_again_within_seconds() {
    let cluster = Cluster::turn().await;
    cluster.fresh().await;
    let mut replica = Replica::start(&cluster.us);
    replica.lead();
    cluster.published().await;
    let admin = &cluster.admin;

    // An upgrade that renames one entry, and drops another, by apply: it goes through, as we own nothing but the bundles.
    let mut registration = cluster.installation().registration();
    admin.delete(&registration_path()).await.allowed();
    admin
        .apply(&registration_path(), &registration)
        .await
        .allowed();
    cluster.published().await;
    registration["webhooks"].as_array_mut().unwrap().swap(0, 1);
    registration["webhooks"][1]["name"] = json!("renamed.ecr-injector.dev");
    let applied = admin
        .apply(&registration_path(), &registration)
        .await
        .allowed();
    let names = |registration: &Value| -> Vec<String> {
        let webhooks = registration["webhooks"].as_array().unwrap().iter();
        webhooks
            .map(|webhook| webhook["name"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(names(&applied).len(), 2, "{:?}", names(&applied));
    cluster.published().await;
    registration["webhooks"].as_array_mut().unwrap().truncate(1);
    let applied = admin
        .apply(&registration_path(), &registration)
        .await
        .allowed();
    assert_eq!(names(&applied).len(), 1, "{:?}", names(&applied));
    cluster.published().await;
    let _ = admin.delete(&registration_path()).await;
}

#[tokio::test]
async fn bundle_that_is_reset_on_end_is_filled_in_ever_more_rarely() {
    let cluster = Cluster::turn().await;
    cluster.fresh().await;
    let admin = &cluster.admin;
    let mut replica = Replica::start(&cluster.us);
    replica.lead();
    cluster.published().await;
    let patches = r#"ecr_injector_kube_api_calls_total{resource="mutatingwebhookconfigurations",outcome="ok"}"#;
    let before = replica.count(patches);
    let empty = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]);
    let end = tokio::time::Instant::now() + Duration::from_secs(6);
    while tokio::time::Instant::now() < end {
        let _ = admin.json_patch(&registration_path(), &empty).await;
        sleep(Duration::from_millis(50)).await;
    }
    let count = replica.count(patches) - before;
    println!("put right {count} times while it was reset for 6 s on end");
    assert!((2.0..=6.0).contains(&count), "{count} times");
    cluster.published().await;
    let _ = admin.delete(&registration_path()).await;
}

#[tokio::test]
async fn deleted_or_changed_authority_is_restored_within_seconds() {
    let cluster = Cluster::turn().await;
    cluster.fresh().await;
    let mut replica = Replica::start(&cluster.us);
    replica.lead();
    let bundle = cluster.published().await;
    let ca = cluster.ca().await;
    let is_back = async || {
        eventually("it is as it was", SOON, async || {
            let now = cluster.admin.get(CA).await.0.ok()?;
            let now: Value = serde_json::from_str(&now).unwrap();
            let same =
                now["data"] == ca["data"] && now["metadata"]["labels"] == ca["metadata"]["labels"];
            same.then_some(())
        })
        .await;
    };
    cluster.admin.delete(CA).await.allowed();
    is_back().await;
    let garbage = BASE64_STANDARD.encode("x");
    for change in [
        json!({"data": {"tls.key": garbage}}),
        json!({"data": {"ca.crt": null}}),
        json!({"data": {"more": garbage, "next.crt": garbage}}),
    ] {
        cluster.admin.merge(CA, &change).await.allowed();
        if change["data"]["more"].is_null() {
            is_back().await;
        }
    }
    // What is somebody else's in it keeps the leader from nothing.
    let empty = json!([{"op": "remove", "path": "/webhooks/0/clientConfig/caBundle"}]);
    cluster
        .admin
        .json_patch(&registration_path(), &empty)
        .await
        .allowed();
    assert_eq!(cluster.published().await, bundle);
    assert!(handshake(&replica.serving, &bundle).await.is_some());
}

#[tokio::test]
async fn secret_of_others_in_the_authoritys_place_is_left_alone() {
    let cluster = Cluster::turn().await;
    cluster.fresh().await;
    let mut replica = Replica::start(&cluster.us);
    replica.lead();
    let bundle = cluster.published().await;
    // The registration may trust an authority a moment before anything is served under it.
    tokio::time::timeout(SOON, replica.certificate.held())
        .await
        .unwrap();
    let garbage = BASE64_STANDARD.encode("x");
    let foreign = json!({"metadata": {"labels": null}, "data": {"tls.key": garbage}});
    cluster.admin.merge(CA, &foreign).await.allowed();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(cluster.ca().await["data"]["tls.key"], garbage);
    assert!(
        handshake(&replica.serving, &bundle).await.is_some(),
        "what was served stays"
    );
}

#[tokio::test]
async fn bundle_that_cert_manager_fills_in_is_left_to_it() {
    let cluster = Cluster::turn().await;
    cluster.fresh().await;
    let annotation = json!({"metadata": {"annotations": {"cert-manager.io/inject-ca-from-secret": "ecr-injector/ecr-injector-ca"}}});
    cluster
        .admin
        .merge(&registration_path(), &annotation)
        .await
        .allowed();
    let mut replica = Replica::start(&cluster.us);
    replica.lead();
    tokio::time::timeout(SOON, replica.certificate.held())
        .await
        .unwrap();
    sleep(Duration::from_secs(2)).await;
    assert!(cluster.bundles().await.iter().all(String::is_empty));
    assert!(!replica.trusted.holds());
    // As the cainjector does it.
    let bundle = &cluster.ca().await["data"]["ca.crt"];
    let fill: Vec<Value> = [0, 1]
        .map(|index| json!({"op": "add", "path": format!("/webhooks/{index}/clientConfig/caBundle"), "value": bundle}))
        .into();
    cluster
        .admin
        .json_patch(&registration_path(), &json!(fill))
        .await
        .allowed();
    tokio::time::timeout(SOON, replica.trusted.held())
        .await
        .unwrap();
}

/// The whole of it, as it is installed, for clients with a certificate alone.
#[tokio::test]
async fn serves_as_installed_and_to_the_api_server_alone() {
    support::crypto();
    let plane = ControlPlane::start().await;
    let aws = FakeAws::start();
    let installation = Installation::apply(&plane).await;
    let mut options = installation.webhook(&plane, &aws).await;
    options.certificate = None;
    let authorities = plane.folder().join("ca.crt");
    let options = options
        .with_variable("ECR_INJECTOR_CLIENT_CA", authorities.to_str().unwrap())
        .with_variable("ECR_INJECTOR_CLIENT_NAME", WEBHOOK_CLIENT);
    let mut webhook = Webhook::spawn(options);
    installation.register_self_managed(&plane).await;
    webhook.wait_until_ready().await;
    let failures = r#"ecr_injector_connection_failures_total{reason="handshake"}"#;
    // Before it was trusted, the API server's own failed.
    let before = webhook.metric(failures).await;

    // A stranger has no certificate, and learns of that before anything is asked.
    let ca = Caller(plane.admin().await).get(CA).await.allowed();
    let bundle = decode(&ca["data"]["ca.crt"]);
    let stream = tokio::net::TcpStream::connect(webhook.address());
    let stream = stream.await.unwrap();
    let trust = Trust::of_bundle(&bundle);
    let connected = trust.connect(stream, &[&TLS13], &["http/1.1"]).await;
    let answer = async {
        let mut connection = connected?;
        connection
            .write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            .await?;
        connection.read_u8().await
    };
    let error = answer.await.unwrap_err().to_string();
    assert!(error.contains("CertificateRequired"), "{error}");
    assert!(webhook.metric(failures).await > before + 0.5);
    assert!(webhook.stop().await.success());
    // What it made stays: the next replica goes on with it.
    let again = Caller(plane.admin().await).get(CA).await.allowed();
    assert_eq!(again["data"], ca["data"]);
}

#[tokio::test]
#[allow(clippy::too_many_lines, reason = "one scenario in its order")]
async fn certificate_in_a_secret_is_followed_and_a_bad_one_not_served() {
    let cluster = Cluster::turn().await;
    let role = json!({
        "metadata": {"name": "certificate"},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["serving"], "verbs": ["list", "watch"]}],
    });
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/ecr-injector";
    cluster
        .admin
        .post(&format!("{rbac}/roles"), &role)
        .await
        .allowed();
    let binding = json!({
        "metadata": {"name": "certificate"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "certificate"},
        "subjects": [{"kind": "ServiceAccount", "name": NAME, "namespace": NAME}],
    });
    cluster
        .admin
        .post(&format!("{rbac}/rolebindings"), &binding)
        .await
        .allowed();
    let (serving, metrics) = (Arc::<CertResolver>::default(), Metrics::default());
    let condition = Readiness::default().condition("certificate");
    let namespace = Namespace::parse(NAME).unwrap();
    let clock = Arc::new(SystemClock);
    let source = NamedSecret::new(cluster.us.clone(), &namespace, "serving".to_owned(), clock);
    let served = CertPublisher::new(
        serving.clone(),
        SERVICE.to_owned(),
        condition.clone(),
        metrics.tls.clone(),
    );
    let mut tasks = JoinSet::new();
    tasks.spawn(Box::new(source).run(served));

    let authority = Authority::new("somebody's");
    let folder = tempfile::tempdir().unwrap();
    let pair = |name: &str| {
        let files = authority.serving(&[SERVICE], folder.path(), name);
        let read = |path| BASE64_STANDARD.encode(std::fs::read(path).unwrap());
        (read(files.certificate), read(files.key))
    };
    let (first, second) = (pair("first"), pair("second"));
    let secret = |(certificate, key): (&str, &str)| {
        json!({
            "metadata": {"name": "serving"},
            "type": "kubernetes.io/tls",
            "data": {"tls.crt": certificate, "tls.key": key},
        })
    };
    let secrets = format!("/api/v1/namespaces/{NAME}/secrets");
    assert!(!condition.holds());
    cluster
        .admin
        .post(&secrets, &secret((&first.0, &first.1)))
        .await
        .allowed();
    tokio::time::timeout(SOON, condition.held()).await.unwrap();
    let by_first = handshake(&serving, &authority.pem()).await.unwrap();
    let path = format!("{secrets}/serving");
    // Another key alone, another certificate alone, and then both.
    let refused = r#"ecr_injector_certificate_reloads_total{outcome="rejected"}"#;
    let before = support::webhook::sum(&metrics.registry.to_text(), refused);
    let no_key = BASE64_STANDARD.encode("x");
    for (count, half) in [(1.0, (&first.0, &no_key)), (2.0, (&second.0, &first.1))] {
        let half = secret((half.0, half.1));
        cluster.admin.merge(&path, &half).await.allowed();
        eventually("it is refused", SOON, async || {
            let now = support::webhook::sum(&metrics.registry.to_text(), refused);
            (now > before + count - 0.5).then_some(())
        })
        .await;
        let served = handshake(&serving, &authority.pem()).await;
        assert_eq!(served.unwrap(), by_first);
    }
    cluster
        .admin
        .merge(&path, &secret((&second.0, &second.1)))
        .await
        .allowed();
    eventually("the new one is served", SOON, async || {
        (handshake(&serving, &authority.pem()).await? != by_first).then_some(())
    })
    .await;
    cluster.admin.delete(&path).await.allowed();
    sleep(Duration::from_secs(1)).await;
    assert!(
        handshake(&serving, &authority.pem()).await.is_some(),
        "the last one stays"
    );
}
