//! Floods by anybody who reaches the port: each has a bound on the memory of the process and on how long a good client
//! waits meanwhile. The strangers call from the good client's own address, which is the worst case: nothing but what they do
//! tells one from the other.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::process::{Bench, Client, TARGET, ask, bench, plain};
use crate::support::proc::mebibytes;
use crate::support::wire::{head, post};
use crate::support::{Webhook, Wire};
use ecr_injector::process::file_descriptors;
use ecr_injector::server::MAX_BODY_BYTES;
use ecr_injector::server::accept::MAX_CONNECTIONS;
use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use rustls::version::TLS13;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The most memory that a flood may take, in MiB.
const MOST_MEMORY: f64 = 96.0;
/// How long 99 of 100 good calls may take, by a debug build on a machine that makes the flood, too. An API server waits 5 s
/// by the registration.
const P99: Duration = Duration::from_secs(2);
/// [`P99`] while the largest reviews are read: without optimization each keeps a worker busy for up to a second, and there
/// are as many workers as cores.
const P99_BESIDE_REVIEWS: Duration = Duration::from_secs(4);
/// How long a flood lasts once all its connections are open.
const LASTS: Duration = Duration::from_secs(4);
/// More connections than are served.
const STRANGERS: usize = MAX_CONNECTIONS + 64;
/// How many connections the strangers open in a second, once all are open.
const REOPENED: usize = 100;

/// A stranger, by what it does on a new connection before it waits for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stranger {
    /// Sends nothing.
    Silent,
    /// Sends a review and rests then.
    Used,
    /// Begins a handshake and never ends it.
    HalfHandshake,
    /// Sends half a head.
    HalfHead,
    /// Announces the largest body, and sends this much of it.
    HalfBody(usize),
    /// Announces no length, and sends this much of a longer chunk.
    HalfChunked(usize),
}

impl Stranger {
    async fn call(self, bench: &Bench, address: SocketAddr) -> std::io::Result<()> {
        match self {
            Self::Silent => {
                let stream = TcpStream::connect(address).await?;
                ended(Wire::new(stream)).await;
            }
            Self::Used => {
                let mut client = bench.try_connect(address).await?;
                client.send(post(TARGET, plain())).await;
                ended(client).await;
            }
            Self::HalfHandshake => {
                let config = bench.trust.client(&[&TLS13], &["http/1.1"]);
                let name = ServerName::try_from("ecr-injector.ecr-injector.svc").unwrap();
                let mut hello = Vec::new();
                let mut client = ClientConnection::new(config, name).unwrap();
                client.write_tls(&mut hello).unwrap();
                let mut stream = TcpStream::connect(address).await?;
                stream.write_all(&hello).await?;
                ended(Wire::new(stream)).await;
            }
            Self::HalfHead => {
                let mut client = bench.try_connect(address).await?;
                client.send(&head(TARGET, "Content-Length: 2")[..40]).await;
                ended(client).await;
            }
            Self::HalfBody(sent) => {
                let mut client = bench.try_connect(address).await?;
                let length = format!("Content-Length: {MAX_BODY_BYTES}");
                client.send(head("/mutate?timeout=30s", &length)).await;
                client.send(vec![b' '; sent]).await;
                ended(client).await;
            }
            Self::HalfChunked(sent) => {
                let mut client = bench.try_connect(address).await?;
                let start = head("/mutate?timeout=30s", "Transfer-Encoding: chunked");
                client.send(start + &format!("{:x}\r\n", sent + 1)).await;
                client.send(vec![b' '; sent]).await;
                ended(client).await;
            }
        }
        Ok(())
    }
}

/// Waits until the server has closed a connection.
async fn ended(mut client: Wire<impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>) {
    while client.answer().await.is_some() {}
}

/// A webhook before its flood.
struct Calm {
    bench: Arc<Bench>,
    webhook: Webhook,
    /// The memory at rest, in MiB.
    rest: f64,
}

impl Calm {
    async fn start() -> Arc<Self> {
        assert!(file_descriptors::raise_limit() > 4 * MAX_CONNECTIONS);
        let bench = bench().await;
        let webhook = bench.start().await;
        for _ in 0..20 {
            ask(&mut bench.connect(&webhook).await, &plain()).await;
        }
        // From now on VmHWM is the peak of the flood.
        fs::write(format!("/proc/{}/clear_refs", webhook.pid()), "5").unwrap();
        let rest = mebibytes(webhook.pid(), "VmRSS");
        Arc::new(Self {
            bench,
            webhook,
            rest,
        })
    }

    /// [`Self::holds`], on a thread that the strangers don't keep busy.
    async fn holds_in_a_thread(self: &Arc<Self>, name: String, limit: Duration) {
        let calm = self.clone();
        let held = tokio::task::spawn_blocking(move || {
            let mut runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = runtime.enable_all().build().unwrap();
            runtime.block_on(calm.holds(&name, limit));
        });
        if let Err(error) = held.await {
            std::panic::resume_unwind(error.into_panic());
        }
    }

    /// Calls as an API server does while the flood lasts, over a connection that is kept and over new ones, and holds the
    /// bounds.
    async fn holds(&self, name: &str, limit: Duration) {
        let (mut times, mut lost, mut kept) = (Vec::new(), Vec::new(), None);
        let begun = Instant::now();
        while begun.elapsed() < LASTS {
            sleep(Duration::from_millis(20)).await;
            let started = Instant::now();
            match timeout(2 * limit, self.call(&mut kept)).await {
                Ok(Ok(())) => times.push(started.elapsed()),
                Ok(Err(error)) => lost.push(error),
                Err(_) => lost.push("no answer in time".to_owned()),
            }
            if times.len().is_multiple_of(3) {
                kept = None;
            }
        }
        times.sort_unstable();
        let p99 = times.get(times.len() * 99 / 100).copied();
        let p99 = p99.unwrap_or(Duration::MAX);
        let grown = mebibytes(self.webhook.pid(), "VmHWM") - self.rest;
        let calls = times.len();
        println!(
            "{name}: {calls} calls, p99 {p99:?}, {} lost {lost:?}; {:.0} MiB and {grown:.0} more",
            lost.len(),
            self.rest
        );
        assert!(lost.is_empty() && calls >= 10, "{name}: {calls} {lost:?}");
        assert!(p99 <= limit, "{name}: {p99:?}");
        assert!(grown <= MOST_MEMORY, "{name}: grew by {grown:.0} MiB");
    }

    async fn call(&self, kept: &mut Option<Client>) -> Result<(), String> {
        // Like Go's client, which takes a connection out of its pool once that is closed.
        if let Some(client) = kept
            && timeout(Duration::ZERO, client.answer()).await.is_ok()
        {
            *kept = None;
        }
        let mut client = if let Some(client) = kept.take() {
            client
        } else {
            let connected = self.bench.try_connect(self.webhook.address()).await;
            connected.map_err(|error| format!("connecting: {error}"))?
        };
        client.send(post(TARGET, plain())).await;
        let answer = client.answer().await.ok_or("closed without an answer")?;
        if answer.status != 200 {
            return Err(format!("{answer:?}"));
        }
        *kept = Some(client);
        Ok(())
    }
}

/// Keeps more connections open than are served, for as long as a good client calls.
async fn flood_of(stranger: Stranger) {
    let _alone = crate::alone().await;
    let calm = Calm::start().await;
    let address = calm.webhook.address();
    // Those that begin go first, then as many a second as have ended.
    let turns = Arc::new(Semaphore::new(STRANGERS));
    let mut strangers = JoinSet::new();
    for _ in 0..STRANGERS {
        let (bench, turns) = (calm.bench.clone(), turns.clone());
        strangers.spawn(async move {
            loop {
                turns.acquire().await.unwrap().forget();
                // It may be closed at any time.
                let _ = stranger.call(&bench, address).await;
            }
        });
    }
    let refill = async {
        loop {
            sleep(Duration::from_millis(100)).await;
            turns.add_permits(REOPENED / 10);
        }
    };
    // Until the first of them have opened.
    let begun = sleep(Duration::from_secs(1));
    let calls = async {
        begun.await;
        calm.holds_in_a_thread(format!("{stranger:?}"), P99).await;
    };
    tokio::select! {
        () = calls => {}
        () = refill => unreachable!(),
    }
}

#[tokio::test]
async fn silent_connections_delay_no_good_call() {
    flood_of(Stranger::Silent).await;
}

#[tokio::test]
async fn used_connections_delay_no_good_call() {
    flood_of(Stranger::Used).await;
}

#[tokio::test]
async fn half_handshakes_delay_no_good_call() {
    flood_of(Stranger::HalfHandshake).await;
}

#[tokio::test]
async fn half_sent_heads_delay_no_good_call() {
    flood_of(Stranger::HalfHead).await;
}

#[tokio::test]
async fn one_byte_of_a_body_delays_no_good_call() {
    flood_of(Stranger::HalfBody(1)).await;
}

#[tokio::test]
async fn half_sent_bodies_delay_no_good_call() {
    flood_of(Stranger::HalfBody(60 * 1024)).await;
}

#[tokio::test]
async fn half_sent_chunks_delay_no_good_call() {
    flood_of(Stranger::HalfChunked(60 * 1024)).await;
}

#[tokio::test]
async fn largest_bodies_on_all_connections_delay_no_good_call() {
    flood_of(Stranger::HalfBody(MAX_BODY_BYTES - 1)).await;
}

/// Returns a review as large as a body may be, of one element again and again.
fn large((before, element, after): (&str, &str, &str)) -> String {
    let start = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","kind":{"group":"","version":"v1","kind":"Pod"},"resource":{"group":"","version":"v1","resource":"pods"},"operation":"CREATE","namespace":"default","object":{"#;
    let space = MAX_BODY_BYTES - start.len() - before.len() - after.len() - 8;
    let elements = element.repeat(space / element.len());
    let elements = elements.trim_end_matches(',');
    format!("{start}{before}{elements}{after}}}}}}}")
}

#[tokio::test]
async fn reviews_of_millions_of_elements_delay_no_good_call() {
    /// How many strangers send one after the other.
    const SENDERS: usize = 8;
    let _alone = crate::alone().await;
    let calm = Calm::start().await;
    let reviews: Vec<String> = [
        (r#""spec":{"containers":["#, "{},", "]}"),
        (r#""spec":{"containers":["#, r#"{"image":"a"},"#, "]}"),
        (r#""spec":{"imagePullSecrets":["#, r#"{"name":"a"},"#, "]}"),
        (
            r#""spec":{"volumes":["#,
            r#"{"image":{"reference":"a"}},"#,
            "]}",
        ),
        (r#""metadata":{"annotations":{"#, r#""a":"b","#, "}}"),
        (r#""unknown":["#, "0,", "]"),
        (r#""unknown":"#, "[", ""),
        (r#""metadata":{"name":""#, "x", r#""}"#),
        (r#""metadata":{"name":""#, r"\u0061", r#""}"#),
        (r#""spec":{"#, r#""nodeName":"a","#, "}"),
    ]
    .map(large)
    .into();
    let reviews = Arc::new(reviews);
    let mut strangers = JoinSet::new();
    for sender in 0..SENDERS {
        let (bench, reviews) = (calm.bench.clone(), reviews.clone());
        let address = calm.webhook.address();
        strangers.spawn(async move {
            for review in reviews.iter().cycle().skip(sender) {
                let Ok(mut client) = bench.try_connect(address).await else {
                    continue;
                };
                client.send(post(TARGET, review)).await;
                let _ = client.answer().await;
            }
        });
    }
    let name = "reviews of millions of elements".to_owned();
    calm.holds_in_a_thread(name, P99_BESIDE_REVIEWS).await;
    let read = r#"ecr_injector_rejected_requests_total{reason="not_a_review"}"#;
    let admitted = "ecr_injector_admission_duration_seconds_count";
    let reviewed = calm.webhook.metric(read).await + calm.webhook.metric(admitted).await;
    println!("{reviewed} reviews in all");
}
