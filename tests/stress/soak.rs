//! Everything that changes under a running webhook, under load: certificates, authorities, replicas, leaders. What counts
//! is the Pods that were stored without our entry, for the failure policy hides every error; and each review that is sent
//! past the API server has to be answered.
//!
//! `make test` does it at a pace that leaves the machine some air. `make soak` does it with the release build, as fast as
//! the machine goes.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support;
use crate::support::bed::{image, review};
use crate::support::creators::{Created, Creators};
use crate::support::installation::{NAME, OPT_IN, REGISTRATION};
use crate::support::pods::pod;
use crate::support::tls::Trust;
use crate::support::webhook::Options;
use crate::support::{Balancer, Caller, ControlPlane, FakeAws, Installation, Webhook, eventually};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ecr_injector::tls::authority::ROTATE;
use http::header::{CONNECTION, CONTENT_TYPE, HOST};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustls::version::TLS13;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_mins(1);
const SERVICE: &str = "ecr-injector.ecr-injector.svc";
const CA: &str = "/api/v1/namespaces/ecr-injector/secrets/ecr-injector-ca";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/ecr-injector/leases/ecr-injector";
/// As many connections as the API server keeps to a webhook.
const KEPT_ALIVE: usize = 25;
/// One in so many requests past the API server makes a connection of its own.
const NEW_CONNECTION_EVERY: usize = 10;
const CREATORS: usize = 24;
const NAMESPACES: usize = 4;

/// How often each worker begins a request.
struct Pace {
    create: Duration,
    post: Duration,
}

impl Pace {
    fn of_this_run() -> Self {
        if is_soak() {
            Self {
                create: Duration::from_millis(40),
                post: Duration::from_millis(40),
            }
        } else {
            Self {
                create: Duration::from_millis(400),
                post: Duration::from_millis(250),
            }
        }
    }
}

/// `make soak` says with which binary.
fn is_soak() -> bool {
    binary().is_some()
}

fn binary() -> Option<PathBuf> {
    std::env::var_os("ECR_INJECTOR_SOAK_BINARY").map(PathBuf::from)
}

struct Soak {
    plane: ControlPlane,
    aws: FakeAws,
    installation: Installation,
    replicas: Vec<Webhook>,
    balancer: Balancer,
}

impl Soak {
    /// Two replicas behind the Service, registered and trusted.
    async fn start(change: impl Fn(Options) -> Options) -> Self {
        support::crypto();
        let plane = ControlPlane::start().await;
        let aws = FakeAws::start();
        let installation = Installation::apply(&plane).await;
        let mut replicas = Vec::new();
        for _ in 0..2 {
            let options = change(installation.replica(&plane, &aws).await);
            replicas.push(Webhook::spawn(Options {
                binary: binary(),
                ..options
            }));
        }
        let addresses: Vec<_> = replicas.iter().map(Webhook::address).collect();
        let balancer = Balancer::start(installation.service_address(), &addresses);
        Self {
            plane,
            aws,
            installation,
            replicas,
            balancer,
        }
    }

    async fn wait_until_ready(&mut self) {
        for replica in &mut self.replicas {
            replica.wait_until_ready().await;
        }
    }

    async fn admin(&self) -> Caller {
        Caller(self.plane.admin().await)
    }

    async fn bundle(&self) -> String {
        bundle(&self.admin().await).await
    }

    async fn metric(&self, series: &str) -> f64 {
        let mut sum = 0.0;
        for replica in &self.replicas {
            sum += replica.metric(series).await;
        }
        sum
    }

    /// Runs something under load, and counts what became of the load.
    async fn under_load(&self, what: &str, disturbance: impl Future<Output = ()>) {
        let load = Load::start(self).await;
        sleep(Duration::from_secs(2)).await;
        let started = Instant::now();
        disturbance.await;
        let took = started.elapsed();
        sleep(Duration::from_secs(2)).await;
        let figures = load.stop().await;
        println!("{what} ({:.1} s): {}", took.as_secs_f64(), figures.show());
        assert_eq!(figures.pods.without_our_entry, 0, "{what}");
        assert_eq!(figures.pods.failed, 0, "{what}");
        assert!(
            figures.failures.is_empty(),
            "{what}: {:?}",
            figures.failures
        );
        assert!(figures.pods.stored > 20 && figures.answered > 20, "{what}");
        if is_soak() {
            assert!(figures.per_second() >= 500.0, "{what}: {}", figures.show());
        }
    }
}

async fn bundle(admin: &Caller) -> String {
    let path = format!(
        "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{REGISTRATION}"
    );
    let registration = admin.get(&path).await.allowed();
    let bundle = &registration["webhooks"][0]["clientConfig"]["caBundle"];
    let bytes = BASE64_STANDARD.decode(bundle.as_str().unwrap_or_default());
    String::from_utf8(bytes.unwrap()).unwrap()
}

/// The results of a load.
#[derive(Default)]
struct Summary {
    seconds: f64,
    pods: Created,
    answered: usize,
    connections: usize,
    failures: Vec<String>,
}

impl Summary {
    fn per_second(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let requests = (self.pods.stored + self.answered) as f64;
        requests / self.seconds
    }

    fn show(&self) -> String {
        format!(
            "{} Pods stored, {} without our entry, {} creations failed ({} asked to come back); {} reviews answered \
             past the API server on {} connections, {} failed; {:.0} requests/s",
            self.pods.stored,
            self.pods.without_our_entry,
            self.pods.failed,
            self.pods.turned_away,
            self.answered,
            self.connections,
            self.failures.len(),
            self.per_second()
        )
    }
}

#[derive(Default)]
struct Counts {
    answered: AtomicUsize,
    connections: AtomicUsize,
    failures: std::sync::Mutex<Vec<String>>,
}

struct Load {
    creators: Creators,
    stop: CancellationToken,
    counts: Arc<Counts>,
    workers: JoinSet<()>,
    started: Instant,
}

impl Load {
    async fn start(soak: &Soak) -> Self {
        let (stop, counts) = (CancellationToken::new(), Arc::<Counts>::default());
        let mut workers = JoinSet::new();
        let mut namespaces = Vec::new();
        for _ in 0..NAMESPACES {
            namespaces.push(soak.plane.namespace("soak", &[OPT_IN]).await);
        }
        let pace = Pace::of_this_run();
        let creators = Creators::start(&soak.plane, &namespaces, CREATORS, pace.create).await;
        let admin = soak.admin().await;
        let (sender, trusted) = watch::channel(Trust::of_bundle(&bundle(&admin).await));
        let follow = stop.clone();
        workers.spawn(async move {
            while !follow.is_cancelled() {
                sender.send_replace(Trust::of_bundle(&bundle(&admin).await));
                sleep(Duration::from_millis(500)).await;
            }
        });
        let body = review(&namespaces[0], &pod("web", &image("us-east-1"))).to_string();
        for _ in 0..KEPT_ALIVE {
            let (counts, stop, trusted) = (counts.clone(), stop.clone(), trusted.clone());
            let caller = Direct {
                address: soak.installation.service_address(),
                trusted,
                body: body.clone().into(),
            };
            workers.spawn(async move {
                let mut kept = None;
                for number in 1_usize.. {
                    let begun = Instant::now();
                    let mut own = None;
                    let connection = if number.is_multiple_of(NEW_CONNECTION_EVERY) {
                        &mut own
                    } else {
                        &mut kept
                    };
                    match caller.post(connection, &counts).await {
                        Ok(()) => {
                            counts.answered.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => counts.failures.lock().unwrap().push(error),
                    }
                    sleep(pace.post.saturating_sub(begun.elapsed())).await;
                    if stop.is_cancelled() {
                        return;
                    }
                }
            });
        }
        Self {
            creators,
            stop,
            counts,
            workers,
            started: Instant::now(),
        }
    }

    async fn stop(mut self) -> Summary {
        let seconds = self.started.elapsed().as_secs_f64();
        self.stop.cancel();
        let pods = self.creators.stop().await;
        while let Some(ended) = self.workers.join_next().await {
            ended.unwrap();
        }
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        let counts = &self.counts;
        Summary {
            seconds,
            pods,
            answered: count(&counts.answered),
            connections: count(&counts.connections),
            failures: counts.failures.lock().unwrap().clone(),
        }
    }
}

/// Somebody who posts reviews as the API server does: it keeps connections, trusts what was published, and doesn't try a
/// review again that was lost.
struct Direct {
    address: SocketAddr,
    trusted: watch::Receiver<Trust>,
    body: Bytes,
}

impl Direct {
    async fn post(
        &self,
        kept: &mut Option<SendRequest<Full<Bytes>>>,
        counts: &Counts,
    ) -> Result<(), String> {
        if kept.as_ref().is_none_or(SendRequest::is_closed) {
            *kept = Some(
                self.connect()
                    .await
                    .map_err(|error| format!("connecting: {error}"))?,
            );
            counts.connections.fetch_add(1, Ordering::Relaxed);
        }
        let sender = kept.as_mut().unwrap();
        let request = http::Request::post("/mutate?timeout=5s")
            .header(HOST, NAME)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(self.body.clone()))
            .unwrap();
        let answer = sender.send_request(request).await;
        let answer = answer.map_err(|error| {
            *kept = None;
            format!("posting: {error}")
        })?;
        let closes = answer
            .headers()
            .get(CONNECTION)
            .is_some_and(|value| value == "close");
        let status = answer.status();
        let body = answer.into_body().collect().await;
        let body = body
            .map_err(|error| format!("reading: {error}"))?
            .to_bytes();
        if closes {
            *kept = None;
        }
        let review: Value = serde_json::from_slice(&body).unwrap_or_default();
        if status == 200 && review["response"]["patchType"] == "JSONPatch" {
            Ok(())
        } else {
            Err(format!("{status}: {review}"))
        }
    }

    async fn connect(&self) -> std::io::Result<SendRequest<Full<Bytes>>> {
        let trust = self.trusted.borrow().clone();
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let stream = trust.connect(stream, &[&TLS13], &["http/1.1"]).await?;
        let (sender, connection) = handshake(TokioIo::new(stream))
            .await
            .map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        Ok(sender)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::too_many_lines, reason = "one scenario in its order")]
async fn pods_are_all_served_while_everything_changes() {
    let _alone = crate::alone().await;
    let mut soak = Soak::start(|options| {
        let options = Options {
            certificate: None,
            ..options
        };
        options
            .with_variable("ECR_INJECTOR_CERTIFICATE_LIFETIME", "20s")
            .with_variable("ECR_INJECTOR_CA_LIFETIME", "1h")
            .with_variable("ECR_INJECTOR_CA_PROPAGATION_DELAY", "3s")
            .with_variable("ECR_INJECTOR_LOG", "warn,ecr_injector::tls=info")
    })
    .await;
    soak.installation.register_self_managed(&soak.plane).await;
    soak.wait_until_ready().await;

    let served = r#"ecr_injector_certificate_reloads_total{outcome="ok"}"#;
    soak.under_load("certificates renewed", async {
        let before = soak.metric(served).await;
        eventually("each replica has renewed twice", SOON, async || {
            (soak.metric(served).await >= before + 4.0).then_some(())
        })
        .await;
    })
    .await;

    let step = |step: &str| format!(r#"ecr_injector_ca_rotation_steps_total{{step="{step}"}}"#);
    soak.under_load("the authority changed, start to end", async {
        let admin = soak.admin().await;
        let first = soak.bundle().await;
        let ask = json!({"metadata": {"annotations": {ROTATE: "now"}}});
        admin.merge(CA, &ask).await.allowed();
        for name in ["prepared", "promoted", "retired"] {
            eventually(name, SOON, async || {
                (soak.metric(&step(name)).await > 0.5).then_some(())
            })
            .await;
        }
        eventually("the old one is trusted no more", SOON, async || {
            let now = soak.bundle().await;
            (!now.contains(&first) && now.matches("BEGIN").count() == 1).then_some(())
        })
        .await;
    })
    .await;

    soak.under_load("another leads", async {
        let admin = soak.admin().await;
        let led = "ecr_injector_lease_transitions_total{to=\"leading\"}";
        let before = soak.metric(led).await;
        let taken = json!({"spec": {"holderIdentity": "somebody-else", "leaseDurationSeconds": 2}});
        admin.merge(LEASE, &taken).await.allowed();
        eventually("one of them leads again", SOON, async || {
            (soak.metric(led).await > before + 0.5).then_some(())
        })
        .await;
    })
    .await;

    soak.under_load("the configuration changed, to a bad one too", async {
        let generation = "ecr_injector_config_generation";
        let before = soak.metric(generation).await;
        let successful = "ecr_injector_config_last_reload_successful";
        for (text, series, counts) in [
            (
                "limits: {registriesPerPod: 4}",
                generation,
                before + 2.0..=f64::INFINITY,
            ),
            ("limits: {registriesPerPod: none}", successful, 0.0..=0.5),
            ("onFailure: deny", generation, before + 4.0..=f64::INFINITY),
        ] {
            for replica in &soak.replicas {
                fs::write(replica.config(), crate::support::config_file(text)).unwrap();
            }
            eventually(text, SOON, async || {
                counts.contains(&soak.metric(series).await).then_some(())
            })
            .await;
        }
    })
    .await;

    // As a rollout: another is ready before one is told to end, and the Service hears of that late.
    let options = soak.installation.replica(&soak.plane, &soak.aws).await;
    let options = Options {
        certificate: None,
        binary: binary(),
        ..options
    };
    let mut third = Webhook::start(options).await;
    let leaving = soak.replicas.remove(0);
    let stays = soak.replicas[0].address();
    soak.under_load("one replica follows another", async {
        let mut leaving = leaving;
        leaving.signal("TERM");
        sleep(Duration::from_millis(1_500)).await;
        assert_eq!(leaving.readiness().await, Some(503));
        soak.balancer.set_backends(&[stays, third.address()]);
        let ended = leaving.ended().await;
        assert!(ended.success(), "{ended}");
    })
    .await;
    assert!(third.stop().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_all_served_while_certificate_files_are_swapped() {
    let _alone = crate::alone().await;
    let mut soak = Soak::start(|options| options).await;
    soak.installation.register(&soak.plane).await;
    soak.wait_until_ready().await;
    let reloads = r#"ecr_injector_certificate_reloads_total{outcome="ok"}"#;
    soak.under_load("files swapped", async {
        for number in 0..2 {
            let before = soak.metric(reloads).await;
            let names = [SERVICE];
            let folder = soak.plane.folder();
            let authority = soak.installation.authority();
            let new = authority.serving(&names, folder, &format!("swap-{number}"));
            let served = soak.installation.certificate();
            // Half a pair for a moment.
            fs::rename(new.certificate, &served.certificate).unwrap();
            sleep(Duration::from_millis(100)).await;
            fs::rename(new.key, &served.key).unwrap();
            eventually("both replicas serve the new one", SOON, async || {
                (soak.metric(reloads).await >= before + 2.0).then_some(())
            })
            .await;
        }
    })
    .await;
}
