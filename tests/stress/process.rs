//! The process at its limits and at its end: floods, too few file descriptors, a full disk, SIGTERM and SIGKILL, a swapped
//! certificate. The real binary before a real API server; the clients call it past the API server, as anybody may who
//! reaches its port.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support;
use crate::support::bed::{hosts, image, registry, review};
use crate::support::installation::{OPT_IN, PULL_SECRET};
use crate::support::pods::pod;
use crate::support::proc::{cpu_time, mebibytes};
use crate::support::webhook::Options;
use crate::support::wire::{Answer, head, post};
use crate::support::{
    Authority, Behaviour, Caller, ControlPlane, FakeAws, Installation, ServingCertificate, Shared,
    Trust, Webhook, Wire, eventually,
};
use ecr_injector::process::file_descriptors;
use ecr_injector::server::accept::MAX_CONNECTIONS;
use ecr_injector::server::{BODY_BUDGET_BYTES, MAX_BODY_BYTES};
use futures::future::join_all;
use k8s_openapi::api::core::v1::Secret;
use rustls::version::TLS13;
use serde_json::Value;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;

pub(crate) const TARGET: &str = "/mutate?timeout=10s";
const SOON: Duration = Duration::from_secs(30);
/// The time that a busy machine may add to a duration.
const SLACK: Duration = Duration::from_secs(3);
const BINARY: &str = env!("CARGO_BIN_EXE_ecr-injector");

pub(crate) type Client = Wire<TlsStream<TcpStream>>;

/// The test bed that the processes of these tests share.
pub(crate) struct Bench {
    plane: ControlPlane,
    aws: FakeAws,
    installation: Installation,
    pub(crate) trust: Trust,
}

pub(crate) async fn bench() -> Arc<Bench> {
    static BENCH: Shared<Bench> = Shared::new();
    BENCH.get_or_start(Bench::new).await
}

impl Bench {
    async fn new() -> Self {
        support::crypto();
        let plane = ControlPlane::start().await;
        let installation = Installation::apply(&plane).await;
        Self {
            aws: FakeAws::start(),
            trust: Trust::of(installation.authority()),
            installation,
            plane,
        }
    }

    async fn options(&self) -> Options {
        self.installation.replica(&self.plane, &self.aws).await
    }

    pub(crate) async fn start(&self) -> Webhook {
        Webhook::start(self.options().await).await
    }

    pub(crate) async fn connect(&self, webhook: &Webhook) -> Client {
        self.try_connect(webhook.address()).await.unwrap()
    }

    pub(crate) async fn try_connect(&self, address: SocketAddr) -> std::io::Result<Client> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let stream = self.trust.connect(stream, &[&TLS13], &["http/1.1"]).await?;
        Ok(Wire::new(stream))
    }

    /// An opted-in namespace that nobody knows yet, and a review of a Pod there with an ECR image.
    async fn cold(&self, name: &str, region: &str) -> (String, String) {
        let namespace = self.plane.namespace(name, &[OPT_IN]).await;
        let review = review(&namespace, &pod("web", &image(region)));
        (namespace, review.to_string())
    }

    async fn pull_secret(&self, namespace: &str) -> Secret {
        let admin = Caller(self.plane.admin().await);
        let path = format!("/api/v1/namespaces/{namespace}/secrets/{PULL_SECRET}");
        serde_json::from_value(admin.get(&path).await.allowed()).unwrap()
    }

    /// Somebody who was not there before gets what is promised: a token from AWS, a Secret through the API server.
    async fn serves_a_cold_namespace(&self, webhook: &Webhook, name: &str) {
        let (namespace, review) = self.cold(name, "us-east-1").await;
        let answer = ask(&mut self.connect(webhook).await, &review).await;
        assert_eq!(answer["patchType"], "JSONPatch", "{answer}");
        assert_eq!(answer["warnings"], Value::Null, "{answer}");
        let secret = self.pull_secret(&namespace).await;
        assert_eq!(hosts(&secret), [registry(123_456_789_012, "us-east-1")]);
    }
}

/// A review that needs nothing of us.
pub(crate) fn plain() -> String {
    review("default", &pod("web", "nginx")).to_string()
}

async fn answer(client: &mut Client) -> Answer {
    let answer = timeout(SOON, client.answer()).await;
    answer.expect("in time").expect("an answer")
}

/// Sends a review, and gives the response.
pub(crate) async fn ask(client: &mut Client, review: &str) -> Value {
    client.send(post(TARGET, review)).await;
    let answer = answer(client).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    answer.response()
}

/// A program that is the binary within limits, which a shell sets.
fn limited(bench: &Bench, name: &str, limits: &str, output: &str) -> PathBuf {
    let path = bench.plane.folder().join(name);
    let script = format!("#!/bin/sh\n{limits}\nexec '{BINARY}' \"$@\" {output}\n");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// From exec to ready, of a replica whose authority is there and trusted, as all but a cluster's first one find it.
#[tokio::test]
async fn is_ready_soon_after_its_start() {
    let _beside_another = crate::beside_another().await;
    // A cluster of its own: elsewhere replicas lead that have their certificates from files, and fill in no caBundle.
    let bench = Bench::new().await;
    bench.installation.apply_registration(&bench.plane).await;
    let options = Options {
        certificate: None,
        ..bench.options().await
    };
    // Makes the authority, and the API server trust it.
    let _leader = Webhook::start(options.clone()).await;
    let mut times = Vec::new();
    for _ in 0..5 {
        let replica = Options {
            listen: (bench.plane.private_address(), 8443).into(),
            admin_listen: (bench.plane.private_address(), 9443).into(),
            ..options.clone()
        };
        let started = Instant::now();
        let webhook = Webhook::spawn(replica);
        while webhook.readiness().await != Some(200) {
            assert!(started.elapsed() < SOON, "{}", webhook.log());
            sleep(Duration::from_millis(2)).await;
        }
        times.push(started.elapsed());
    }
    println!("from exec to ready: {times:?}");
    // The debug build on a machine that does other things, some of them this file's; an added wait of seconds would show.
    let best = times.iter().min().unwrap();
    assert!(*best < Duration::from_millis(2_500), "{times:?}");
}

#[tokio::test]
async fn shutdown_under_load_is_unready_first_and_loses_no_call() {
    const CLIENTS: usize = 20;
    const DELAY: Duration = Duration::from_secs(1);
    const GRACE: Duration = Duration::from_secs(10);
    let _beside_another = crate::beside_another().await;
    let bench = bench().await;
    let options = bench.options().await;
    let options = options.with_variable("ECR_INJECTOR_SHUTDOWN_DELAY", "1");
    let (mut leaving, stays) = (Webhook::start(options).await, bench.start().await);
    let (_, review) = bench.cold("ending", "us-east-1").await;
    ask(&mut bench.connect(&leaving).await, &review).await;
    let (over, answered, sent_away) = (
        AtomicBool::new(false),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let begun = Instant::now();
    let clients = (0..CLIENTS).map(async |_| {
        let mut connection = bench.connect(&leaving).await;
        while !over.load(Ordering::Relaxed) {
            connection.send(post(TARGET, &review)).await;
            let answer = answer(&mut connection).await;
            assert_eq!(answer.status, 200, "{}", answer.body);
            assert_eq!(answer.response()["patchType"], "JSONPatch");
            answered.fetch_add(1, Ordering::Relaxed);
            if answer.head.contains("\r\nconnection: close\r\n") {
                // By now whoever picks among the replicas knows better.
                assert_eq!(leaving.readiness().await, Some(503));
                connection.closed().await;
                connection = bench.connect(&stays).await;
                sent_away.fetch_add(1, Ordering::Relaxed);
            }
            sleep(Duration::from_millis(40)).await;
        }
    });
    let told = async {
        sleep(Duration::from_secs(2)).await;
        assert_eq!(leaving.readiness().await, Some(200));
        assert_eq!(sent_away.load(Ordering::Relaxed), 0);
        let count = answered.load(Ordering::Relaxed);
        println!("{count} requests in {:?}", begun.elapsed());
        let told = Instant::now();
        leaving.signal("TERM");
        // Two that never finish, as late as they can: neither may hold up the end.
        sleep(DELAY / 2).await;
        let mut stuck = bench.connect(&leaving).await;
        stuck
            .send(head("/mutate?timeout=30s", "Content-Length: 8000000"))
            .await;
        // Just fast enough not to be cut off.
        let stuck = tokio::spawn(async move {
            loop {
                stuck.send(vec![b' '; 64 * 1024]).await;
                sleep(Duration::from_millis(200)).await;
            }
        });
        sleep(DELAY).await;
        over.store(true, Ordering::Relaxed);
        (told, stuck)
    };
    let (_, (told, stuck)) = tokio::join!(join_all(clients), told);
    assert_eq!(sent_away.load(Ordering::Relaxed), CLIENTS);
    assert!(answered.load(Ordering::Relaxed) > 10 * CLIENTS);
    // Just before the first listener gives up.
    sleep(GRACE.saturating_sub(told.elapsed() + DELAY)).await;
    let mut probe = TcpStream::connect(leaving.admin_address()).await.unwrap();
    probe.write_all(b"GET /livez HTTP/1.1\r\n").await.unwrap();
    let ended = leaving.ended().await;
    assert!(ended.success(), "{ended}");
    let took = told.elapsed();
    println!("ended {took:?} after SIGTERM");
    assert!(
        took < DELAY + GRACE + Duration::from_secs(1) + SLACK,
        "{took:?}"
    );
    stuck.abort();
    drop(probe);
}

/// A pair in a folder, as the kubelet mounts a Secret: links to a folder that is itself a link.
struct Mounted(PathBuf);

impl Mounted {
    fn new(folder: PathBuf, first: &ServingCertificate) -> Self {
        fs::create_dir(&folder).unwrap();
        let this = Self(folder);
        this.swap("..1", &first.certificate, &first.key);
        for name in ["tls.crt", "tls.key"] {
            symlink(format!("..data/{name}"), this.0.join(name)).unwrap();
        }
        this
    }

    fn swap(&self, version: &str, certificate: &Path, key: &Path) {
        let folder = self.0.join(version);
        fs::create_dir(&folder).unwrap();
        fs::copy(certificate, folder.join("tls.crt")).unwrap();
        fs::copy(key, folder.join("tls.key")).unwrap();
        symlink(version, self.0.join("..data_tmp")).unwrap();
        fs::rename(self.0.join("..data_tmp"), self.0.join("..data")).unwrap();
    }

    fn files(&self) -> ServingCertificate {
        ServingCertificate {
            certificate: self.0.join("tls.crt"),
            key: self.0.join("tls.key"),
        }
    }
}

fn served(client: &Client) -> Vec<u8> {
    let (_, connection) = client.stream.get_ref();
    connection.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn swapped_certificate_is_served_in_10s_and_drops_no_connection() {
    let _beside_another = crate::beside_another().await;
    let bench = bench().await;
    let authority: &Authority = bench.installation.authority();
    let folder = bench.plane.folder();
    let pair = |name| authority.serving(&["ecr-injector.ecr-injector.svc"], folder, name);
    let (first, second) = (pair("swapped-1"), pair("swapped-2"));
    let mounted = Mounted::new(folder.join("mounted"), &first);
    let options = Options {
        certificate: Some(mounted.files()),
        ..bench.options().await
    };
    let webhook = Webhook::start(options).await;
    let mut kept = bench.connect(&webhook).await;
    let old = served(&kept);
    // Each step is followed by a kept connection and by new ones; none of them may fail.
    let mut step =
        async |what: &str, limit: Duration, is_done: &mut dyn FnMut(&[u8], f64) -> bool| {
            let started = Instant::now();
            loop {
                ask(&mut kept, &plain()).await;
                let mut new = bench.connect(&webhook).await;
                ask(&mut new, &plain()).await;
                let refused = r#"ecr_injector_certificate_reloads_total{outcome="rejected"}"#;
                let refused = webhook.metric(refused).await;
                if is_done(&served(&new), refused) {
                    println!("{what}: after {:?}", started.elapsed());
                    return;
                }
                assert!(started.elapsed() < limit, "{what}: {}", webhook.log());
                sleep(Duration::from_millis(100)).await;
            }
        };
    let limit = Duration::from_secs(10);
    mounted.swap("..2", &second.certificate, &first.key);
    step("half a pair is refused", limit, &mut |leaf, refused| {
        assert_eq!(leaf, old, "a pair is served that can't be");
        refused > 0.5
    })
    .await;
    mounted.swap("..3", &second.certificate, &second.key);
    step("the new pair is served", limit, &mut |leaf, _| leaf != old).await;
}

#[tokio::test]
async fn flood_of_bodies_costs_at_most_twice_their_budget_in_memory() {
    let _beside_another = crate::beside_another().await;
    let bench = bench().await;
    let webhook = bench.start().await;
    ask(&mut bench.connect(&webhook).await, &plain()).await;
    let before = mebibytes(webhook.pid(), "VmHWM");
    // Six times the budget, in bodies that lack their last byte. Some are of a size at which a buffer that doubles is
    // largest for what it holds.
    let bodies = (0..64).map(async |number: usize| {
        let size = if number.is_multiple_of(2) {
            MAX_BODY_BYTES
        } else {
            MAX_BODY_BYTES * 5 / 8
        };
        let mut client = bench.connect(&webhook).await;
        let start = head("/mutate?timeout=6s", &format!("Content-Length: {size}"));
        client.send(start).await;
        client.send(vec![b' '; size - 1]).await;
        let answer = timeout(SOON, client.answer()).await.expect("in time");
        // A connection that ends while its client still sends is reset, and that may overtake the answer.
        answer.map_or(503, |answer| answer.status)
    });
    let statuses = join_all(bodies).await;
    let shed = statuses.iter().filter(|status| **status == 503).count();
    let slow = statuses.iter().filter(|status| **status == 408).count();
    let peak = mebibytes(webhook.pid(), "VmHWM");
    println!("{shed} shed, {slow} too slow; {before:.0} MiB before, {peak:.0} MiB at the peak");
    assert_eq!(shed + slow, 64, "{statuses:?}");
    assert!(shed > 0, "{statuses:?}");
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let twice = 2.0 * BODY_BUDGET_BYTES as f64 / 1024.0 / 1024.0;
    assert!(peak - before <= twice, "grew by {:.0} MiB", peak - before);
    ask(&mut bench.connect(&webhook).await, &plain()).await;
}

#[tokio::test]
async fn process_takes_no_huge_pages() {
    let _beside_another = crate::beside_another().await;
    let bench = bench().await;
    let webhook = bench.start().await;
    ask(&mut bench.connect(&webhook).await, &plain()).await;
    let said = |file: &str, name: &str| {
        let text = fs::read_to_string(format!("/proc/{}/{file}", webhook.pid())).unwrap();
        let mut lines = text.lines().filter_map(|line| line.split_once(':'));
        let line = lines.find(|(found, _)| *found == name);
        line.map(|(_, value)| value.trim().to_owned())
    };
    assert_eq!(said("status", "THP_enabled").as_deref(), Some("0"));
    let huge = said("smaps_rollup", "AnonHugePages");
    assert_eq!(huge.as_deref(), Some("0 kB"));
}

#[tokio::test]
async fn limit_of_256_descriptors_sheds_connections_and_no_work() {
    let _beside_another = crate::beside_another().await;
    let bench = bench().await;
    let options = Options {
        binary: Some(limited(&bench, "few-files", "ulimit -n 256", "")),
        ..bench.options().await
    };
    let mut webhook = Webhook::start(options).await;
    webhook.log_with("file descriptor limit is low").await;
    // All of them rest after a request, and 400 more never send a byte.
    let mut resting = Vec::new();
    for _ in 0..400 {
        let mut client = bench.connect(&webhook).await;
        ask(&mut client, &plain()).await;
        resting.push(client);
    }
    bench.serves_a_cold_namespace(&webhook, "few-files").await;
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(TcpStream::connect(webhook.address()).await.unwrap());
    }
    bench.serves_a_cold_namespace(&webhook, "fewer-files").await;
    assert!(webhook.metric("process_open_fds").await < 250.0);
    let shed = webhook
        .metric(r#"ecr_injector_shed_total{kind="connection"}"#)
        .await;
    assert!(shed > 300.0, "{shed}");
    let failed = r#"ecr_injector_connection_failures_total{reason="accept"}"#;
    assert!(webhook.metric(failed).await < 0.5, "{}", webhook.log());
    drop((resting, silent));
    bench
        .serves_a_cold_namespace(&webhook, "enough-files")
        .await;
    assert!(webhook.stop().await.success());
}

#[tokio::test]
async fn full_disk_changes_nothing() {
    let _beside_another = crate::beside_another().await;
    let bench = bench().await;
    // A byte written to a file would end it by a signal, and its log goes where there is never any room.
    let options = Options {
        binary: Some(limited(&bench, "no-disk", "ulimit -f 0", ">/dev/full 2>&1")),
        ..bench.options().await
    };
    let mut webhook = Webhook::start(options).await;
    bench.serves_a_cold_namespace(&webhook, "no-disk").await;
    let mut client = bench.connect(&webhook).await;
    client.send(post(TARGET, "no review")).await;
    assert_eq!(answer(&mut client).await.status, 400);
    assert_eq!(webhook.readiness().await, Some(200));
    for descriptor in fs::read_dir(format!("/proc/{}/fd", webhook.pid())).unwrap() {
        let Ok(target) = fs::read_link(descriptor.unwrap().path()) else {
            continue;
        };
        let shown = target.to_string_lossy().into_owned();
        let is_file = shown.starts_with('/') && !shown.starts_with("/dev/");
        assert!(!is_file, "{shown} is open");
    }
    assert!(webhook.metric("ecr_injector_panics_total").await < 0.5);
    assert!(webhook.stop().await.success());
}

#[tokio::test]
async fn log_that_nobody_reads_holds_up_nothing() {
    let _beside_another = crate::beside_another().await;
    let bench = bench().await;
    let pipe = bench.plane.folder().join("log-pipe");
    let (make, open) = (
        format!("mkfifo '{}'", pipe.display()),
        format!("1<>'{}' 2>&1", pipe.display()),
    );
    let mut options = Options {
        binary: Some(limited(&bench, "unread-log", &make, &open)),
        ..bench.options().await
    };
    options.arguments.push("--shutdown-delay=0".to_owned());
    let mut webhook = Webhook::start(options).await;
    let mut client = bench.connect(&webhook).await;
    // The pipe holds 64 KiB and the buffer 1 MiB, which is some 2,500 lines.
    for _ in 0..5_000 {
        assert_eq!(ask(&mut client, &plain()).await["allowed"], true);
    }
    bench.serves_a_cold_namespace(&webhook, "unread-log").await;
    assert_eq!(webhook.readiness().await, Some(200));
    assert_eq!(webhook.liveness().await, Some(200));
    assert!(webhook.metric("ecr_injector_log_lines_dropped_total").await > 0.5);
    let started = Instant::now();
    assert!(webhook.stop().await.success());
    assert!(started.elapsed() < Duration::from_secs(5) + SLACK);
}

#[tokio::test]
async fn refused_requests_cost_nothing_afterwards() {
    let _beside_another = crate::beside_another().await;
    let bench = bench().await;
    let webhook = bench.start().await;
    for bytes in [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        post(TARGET, plain()),
        vec![0x16, 0x03, 0x02, 0x00, 0x05, 0x01, 0x00, 0x00, 0x01, 0x00],
        vec![0xff; 4096],
    ] {
        let mut streams = Vec::new();
        for _ in 0..100 {
            let mut stream = TcpStream::connect(webhook.address()).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
            streams.push(Wire::new(stream));
        }
        for stream in &mut streams {
            let closed = timeout(SOON, stream.answer()).await.expect("in time");
            assert!(closed.is_none(), "{closed:?}");
        }
    }
    let open = async || (webhook.metric("ecr_injector_connections").await < 0.5).then_some(());
    eventually("all are closed", SOON, open).await;
    let before = cpu_time(webhook.pid());
    sleep(Duration::from_secs(2)).await;
    let spent = cpu_time(webhook.pid()).saturating_sub(before);
    assert!(spent <= Duration::from_millis(150), "{spent:?}");
    ask(&mut bench.connect(&webhook).await, &plain()).await;
}

#[tokio::test]
async fn restart_while_aws_is_away_serves_what_was_there() {
    let _beside_another = crate::beside_another().await;
    let bench = bench().await;
    let options = bench.options().await;
    let mut webhook = Webhook::start(options.clone()).await;
    let region = "eu-west-3";
    let (namespace, review) = bench.cold("restarted", region).await;
    ask(&mut bench.connect(&webhook).await, &review).await;
    let written = bench.pull_secret(&namespace).await.metadata;
    assert_eq!(bench.aws.ecr_calls(region).len(), 1);
    webhook.kill();
    bench
        .aws
        .tune_ecr_in(region, |knobs| knobs.behaviour = Behaviour::Hang);
    let webhook = Webhook::start(options).await;
    for _ in 0..2 {
        let answer = ask(&mut bench.connect(&webhook).await, &review).await;
        assert_eq!(answer["patchType"], "JSONPatch", "{answer}");
        assert_eq!(answer["warnings"], Value::Null, "{answer}");
    }
    assert_eq!(bench.aws.ecr_calls(region).len(), 1);
    let found = bench.pull_secret(&namespace).await.metadata;
    assert_eq!(found.resource_version, written.resource_version);
}

#[tokio::test]
async fn silent_connections_are_closed_in_10s_beside_served_ones() {
    let _beside_another = crate::beside_another().await;
    assert!(
        file_descriptors::raise_limit() > 2_000,
        "this test needs 2,000 file descriptors: see `ulimit -Hn`"
    );
    let bench = bench().await;
    let webhook = bench.start().await;
    let mut kept = bench.connect(&webhook).await;
    ask(&mut kept, &plain()).await;
    let address = webhook.address();
    // Always more than are served, and never more than the kernel's queue holds beside them: of what finds no place there
    // the client's end is never told, and so not closed.
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS + 60));
    let turns = Arc::new(Semaphore::new(64));
    let silent = (0..5_000).map(|_| {
        let (places, turns) = (places.clone(), turns.clone());
        tokio::spawn(async move {
            let _place = places.acquire().await;
            let turn = turns.acquire().await;
            sleep(Duration::from_millis(20)).await;
            drop(turn);
            let mut stream = Wire::new(TcpStream::connect(address).await.unwrap());
            let opened = Instant::now();
            stream.closed().await;
            opened.elapsed()
        })
    });
    let silent = async {
        let lives = join_all(silent).await;
        lives.into_iter().map(Result::unwrap).max().unwrap()
    };
    let mut served = 0;
    let good = async {
        loop {
            ask(&mut kept, &plain()).await;
            ask(&mut bench.connect(&webhook).await, &plain()).await;
            served += 2;
            sleep(Duration::from_millis(50)).await;
        }
    };
    let longest = tokio::select! {
        longest = timeout(Duration::from_mins(2), silent) => longest.expect("all are closed"),
        () = good => unreachable!(),
    };
    println!("the last was closed after {longest:?}; {served} reviews were answered meanwhile");
    assert!(longest < Duration::from_secs(10) + SLACK, "{longest:?}");
    assert!(served > 20, "{served}");
}
