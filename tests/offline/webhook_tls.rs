//! The listener with real sockets and real TLS.

use std::fs;
use std::io;
use std::process::Stdio;
use std::time::Duration;

use ecr_injector::cli::metrics::Metrics;
use ecr_injector::process::readiness::Readiness;
use ecr_injector::server::MAX_BODY_BYTES;
use ecr_injector::server::accept::{Listener, MAX_CONNECTIONS};
use ecr_injector::server::admin;
use ecr_injector::tls::MinVersion;
use ecr_injector::tls::clients::Clients;
use rustls::version::{TLS12, TLS13};
use rustls::{HandshakeKind, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::support;
use crate::support::in_process::Listening;
use crate::support::wire::{head, post, review};
use crate::support::{Authority, InProcess, Tls, Wire, eventually};

const TARGET: &str = "/mutate?timeout=10s";
const IMAGE: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/app:v1";
/// The time that a busy machine may add to a duration.
const SLACK: Duration = Duration::from_secs(2);

struct Bed {
    webhook: InProcess,
    tls: Tls,
    listening: Listening,
}

impl Bed {
    async fn start(min: MinVersion) -> Self {
        Self::start_for(MAX_CONNECTIONS, min).await
    }

    async fn start_for(limit: usize, min: MinVersion) -> Self {
        let (webhook, tls) = (InProcess::new(), Tls::new(min));
        let listening = webhook.listen_for(limit, Some(tls.acceptor.clone())).await;
        Self {
            webhook,
            tls,
            listening,
        }
    }

    async fn tcp(&self) -> Wire<TcpStream> {
        Wire::new(TcpStream::connect(self.listening.address).await.unwrap())
    }

    async fn connect(&self) -> Wire<TlsStream<TcpStream>> {
        self.connect_with(&[&TLS13], &["http/1.1"]).await.unwrap()
    }

    async fn connect_with(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&str],
    ) -> io::Result<Wire<TlsStream<TcpStream>>> {
        let stream = self.tcp().await.stream;
        Ok(Wire::new(
            self.tls.connect(stream, versions, protocols).await?,
        ))
    }

    /// Sends a review over a new connection.
    async fn serves(&self) {
        serves(&mut self.connect().await).await;
    }
}

async fn serves(wire: &mut Wire<TlsStream<TcpStream>>) {
    wire.send(post(TARGET, review("fine", "nginx"))).await;
    let answer = wire.answer().await.expect("an answer");
    assert_eq!(answer.response()["uid"], "fine");
}

#[tokio::test]
async fn tls_1_3_is_the_only_default() {
    let bed = Bed::start(MinVersion::default()).await;
    let error = bed.connect_with(&[&TLS12], &["http/1.1"]).await.map(|_| ());
    assert!(error.unwrap_err().to_string().contains("ProtocolVersion"));
    bed.serves().await;
}

#[tokio::test]
async fn tls_1_2_is_spoken_by_a_flag() {
    let bed = Bed::start(MinVersion::Tls12).await;
    let mut wire = bed.connect_with(&[&TLS12], &["http/1.1"]).await.unwrap();
    serves(&mut wire).await;
    bed.serves().await;
}

#[tokio::test]
async fn http_1_1_is_the_only_protocol_on_offer() {
    let bed = Bed::start(MinVersion::default()).await;
    for (protocols, agreed) in [
        (&["http/1.1"][..], Some(&b"http/1.1"[..])),
        (&["h2", "http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ] {
        let mut wire = bed.connect_with(&[&TLS13], protocols).await.unwrap();
        assert_eq!(wire.stream.get_ref().1.alpn_protocol(), agreed);
        serves(&mut wire).await;
    }
    for protocols in [&["h2"][..], &["http/1.0"], &["h3", "h2"]] {
        let refused = bed.connect_with(&[&TLS13], protocols).await.map(|_| ());
        let error = refused.unwrap_err().to_string();
        assert!(
            error.contains("NoApplicationProtocol"),
            "{protocols:?}: {error}"
        );
    }
}

#[tokio::test]
async fn sessions_are_never_resumed() {
    let bed = Bed::start(MinVersion::Tls12).await;
    for version in [&TLS13, &TLS12] {
        let config = bed.tls.trust.client(&[version], &["http/1.1"]);
        for _ in 0..3 {
            let stream = bed.tcp().await.stream;
            let stream = support::tls::connect(config.clone(), stream).await.unwrap();
            let mut wire = Wire::new(stream);
            serves(&mut wire).await;
            let (_, connection) = wire.stream.get_ref();
            assert_eq!(connection.handshake_kind(), Some(HandshakeKind::Full));
        }
    }
}

/// The hello of a client that speaks no more than this version, as it was before there were extensions for that.
fn old_hello(version: u8) -> Vec<u8> {
    let mut body = vec![3, version];
    body.extend([7; 32]); // random
    body.push(0); // no session
    let suites = [0xc0, 0x0a, 0xc0, 0x09, 0xc0, 0x14, 0xc0, 0x13, 0x00, 0x35];
    body.extend([0, 10].into_iter().chain(suites));
    body.extend([1, 0]); // no compression
    let extensions = [
        &[0, 10, 0, 6, 0, 4, 0, 29, 0, 23][..], // groups
        &[0, 11, 0, 2, 1, 0],                   // points
        &[0, 13, 0, 8, 0, 6, 4, 3, 2, 3, 2, 1], // signatures
        &[0, 23, 0, 0],                         // extended master secret
        &[0xff, 1, 0, 1, 0],                    // renegotiation
    ]
    .concat();
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let length = u16::try_from(body.len()).unwrap();
    let mut record = vec![0x16, 3, 1];
    record.extend((length + 4).to_be_bytes());
    record.extend([1, 0]);
    record.extend(length.to_be_bytes());
    record.extend(body);
    record
}

#[tokio::test]
async fn tls_1_1_and_older_are_refused_whatever_the_flag_says() {
    for min in [MinVersion::Tls13, MinVersion::Tls12] {
        let bed = Bed::start(min).await;
        for version in [0, 1, 2] {
            let mut stream = bed.tcp().await.stream;
            stream.write_all(&old_hello(version)).await.unwrap();
            let mut answer = Vec::new();
            let all = timeout(SLACK, stream.read_to_end(&mut answer)).await;
            all.expect("closed").unwrap();
            // One record: a fatal alert.
            assert_eq!((answer[0], answer.len()), (0x15, 7), "{answer:?}");
            assert_eq!(answer[5], 2, "{answer:?}");
        }
        bed.serves().await;
    }
}

#[tokio::test]
async fn connection_of_tls_1_2_is_not_renegotiated() {
    let bed = Bed::start(MinVersion::Tls12).await;
    let mut client = tokio::process::Command::new("openssl")
        .args(["s_client", "-tls1_2", "-connect"])
        .arg(bed.listening.address.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("the command openssl");
    let mut input = client.stdin.take().unwrap();
    let mut output = client.stdout.take().unwrap();
    let mut errors = client.stderr.take().unwrap();
    let mut shown = String::new();
    let told = timeout(Duration::from_secs(10), async {
        let mut bytes = [0; 1024];
        while !shown.contains("Verify return code") {
            let read = output.read(&mut bytes).await.unwrap();
            assert!(read > 0, "{shown}");
            shown.push_str(&String::from_utf8_lossy(&bytes[..read]));
        }
        // Its word for "negotiate anew".
        input.write_all(b"R\n").await.unwrap();
        let mut told = String::new();
        errors.read_to_string(&mut told).await.unwrap();
        told
    });
    let told = told.await.expect("refused");
    assert!(shown.contains("TLSv1.2"), "{shown}");
    assert!(
        told.contains("RENEGOTIATING") && told.contains("no renegotiation"),
        "{told}"
    );
    bed.serves().await;
}

#[tokio::test]
async fn http_2_inside_tls_is_refused() {
    let bed = Bed::start(MinVersion::default()).await;
    for protocols in [&["http/1.1"][..], &[]] {
        let mut wire = bed.connect_with(&[&TLS13], protocols).await.unwrap();
        // The preface, empty settings, and a stream that is reset as soon as it is opened.
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
        for stream in (1_u8..100).step_by(2) {
            bytes.extend([0, 0, 1, 1, 5, 0, 0, 0, stream, 0x82]);
            bytes.extend([0, 0, 4, 3, 0, 0, 0, 0, stream, 0, 0, 0, 8]);
        }
        wire.send(bytes).await;
        if let Some(answer) = timeout(SLACK, wire.answer()).await.expect("at once") {
            assert_eq!(answer.status, 400);
        }
        assert!(
            timeout(SLACK, wire.answer())
                .await
                .expect("closed")
                .is_none()
        );
    }
    bed.serves().await;
}

#[tokio::test]
async fn plain_text_is_closed_at_once() {
    let bed = Bed::start(MinVersion::default()).await;
    for bytes in [
        post(TARGET, review("u", "nginx")),
        b"GET / HTTP/1.0\r\n\r\n".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        vec![0; 4096],
        vec![0x16, 0x03, 0x01, 0xff, 0xff, 0xff],
    ] {
        let mut wire = bed.tcp().await;
        let started = Instant::now();
        wire.send(&bytes).await;
        // An alert, perhaps, and then the end.
        assert!(wire.answer().await.is_none());
        assert!(
            started.elapsed() < SLACK,
            "{bytes:?}: {:?}",
            started.elapsed()
        );
    }
    bed.serves().await;
    let failures = r#"ecr_injector_connection_failures_total{reason="handshake"}"#;
    assert_eq!(bed.webhook.metric(failures), 5);
}

#[tokio::test]
async fn slow_clients_are_closed_in_10s_and_nobody_else_notices() {
    let bed = Bed::start(MinVersion::default()).await;
    let closed_by = Duration::from_secs(10) + SLACK;
    let silent = async {
        let mut wires = Vec::new();
        for _ in 0..100 {
            wires.push(bed.tcp().await);
        }
        for wire in &mut wires {
            wire.closed().await;
        }
    };
    let half_a_hello = async {
        let mut wire = bed.tcp().await;
        wire.send(b"\x16\x03\x01\x02\x00\x01").await;
        wire.closed().await;
    };
    let slow_head = async {
        let mut wire = bed.connect().await;
        for byte in head(TARGET, "Content-Length: 2").into_bytes() {
            wire.send([byte]).await;
            if timeout(Duration::from_secs(1), wire.closed()).await.is_ok() {
                return;
            }
        }
        panic!("a whole head at one byte a second");
    };
    let dawdlers = async {
        futures::join!(silent, half_a_hello, slow_head);
    };
    let good = async {
        let mut kept = bed.connect().await;
        loop {
            serves(&mut kept).await;
            bed.serves().await;
            sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::select! {
        closed = timeout(closed_by, dawdlers) => closed.expect("closed in time"),
        () = good => unreachable!(),
    }
}

#[tokio::test]
async fn stop_lets_requests_under_way_end_and_takes_no_more() {
    let bed = Bed::start(MinVersion::default()).await;
    bed.webhook.mint.set_hangs(true);
    let mut busy = bed.connect().await;
    let mut idle = bed.connect().await;
    serves(&mut idle).await;
    busy.send(post("/mutate?timeout=2s", review("busy", IMAGE)))
        .await;
    eventually("the mint is asked", SLACK, async || {
        (bed.webhook.mint.calls() == 1).then_some(())
    })
    .await;

    let address = bed.listening.address;
    let started = Instant::now();
    let stopped = tokio::spawn(bed.listening.stop());
    idle.closed().await;
    let answer = busy.answer().await.expect("an answer");
    assert_eq!(answer.response()["uid"], "busy");
    assert!(answer.head.contains("connection: close"), "{}", answer.head);
    stopped.await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(2) + SLACK);
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn many_connections_at_once_are_all_served() {
    let bed = Bed::start(MinVersion::default()).await;
    futures::future::join_all((0..100).map(|_| bed.serves())).await;
    eventually("all are closed", SLACK, async || {
        (bed.webhook.metric("ecr_injector_connections") == 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn idle_connections_give_way_and_unused_ones_first() {
    let bed = Bed::start_for(8, MinVersion::default()).await;
    let mut kept = Vec::new();
    for _ in 0..4 {
        let mut wire = bed.connect().await;
        serves(&mut wire).await;
        kept.push(wire);
    }
    // More than there are places, and none of them ever sends a byte of a request.
    let (mut silent, mut connected) = (Vec::new(), Vec::new());
    for _ in 0..30 {
        silent.push(bed.tcp().await);
        connected.push(bed.connect().await);
    }
    let soon = timeout(SLACK, async {
        bed.serves().await;
        for wire in &mut silent[..20] {
            wire.closed().await;
        }
        for wire in &mut connected[..20] {
            wire.closed().await;
        }
        for wire in &mut kept {
            serves(wire).await;
        }
        // Whoever sends one request and then rests has no more right than the others: the longest rest ends first.
        let mut resting = Vec::new();
        for _ in 0..8 {
            let mut wire = bed.connect().await;
            serves(&mut wire).await;
            resting.push(wire);
        }
        for wire in &mut kept {
            wire.closed().await;
        }
        for wire in &mut resting {
            serves(wire).await;
        }
    });
    soon.await.expect("at once");
    let shed = r#"ecr_injector_connection_failures_total{reason="shed"}"#;
    assert!(bed.webhook.metric(shed) >= 24);
}

#[tokio::test]
async fn address_with_many_connections_gives_way_to_one_with_few() {
    let bed = Bed::start_for(48, MinVersion::default()).await;
    let connect = async |address: &str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket
            .bind(format!("{address}:0").parse().unwrap())
            .unwrap();
        let stream = socket.connect(bed.listening.address).await.unwrap();
        let stream = bed.tls.connect(stream, &[&TLS13], &["http/1.1"]).await;
        Wire::new(stream.unwrap())
    };
    // Longer idle than all of the other address, some not even used.
    let mut kept = Vec::new();
    for number in 0..4 {
        let mut wire = connect("127.0.0.2").await;
        if number < 2 {
            serves(&mut wire).await;
        }
        kept.push(wire);
    }
    let mut used = Vec::new();
    for _ in 0..100 {
        let mut wire = connect("127.0.0.3").await;
        serves(&mut wire).await;
        used.push(wire);
    }
    for wire in &mut kept {
        serves(wire).await;
    }
    timeout(SLACK, serves(&mut connect("127.0.0.2").await))
        .await
        .expect("at once");
}

#[tokio::test]
async fn bodies_give_way_after_idle_connections_and_the_stalled_first() {
    let bed = Bed::start_for(4, MinVersion::default()).await;
    let announced = format!("Content-Length: {MAX_BODY_BYTES}");
    let start = head("/mutate?timeout=30s", &announced);
    let mut large = bed.connect().await;
    large.send(&start).await;
    let mut stalled = bed.connect().await;
    stalled.send(start.clone() + "x").await;
    let mut idle = Vec::new();
    for _ in 0..2 {
        let mut wire = bed.connect().await;
        serves(&mut wire).await;
        idle.push(wire);
    }
    // 1 MiB/s, which is slow in a cluster.
    let piece = vec![b' '; MAX_BODY_BYTES / 64];
    let sent = async {
        for _ in 0..64 {
            large.send(&piece).await;
            sleep(Duration::from_millis(100)).await;
        }
        large.answer().await.expect("a whole body").status
    };
    let others = async {
        sleep(Duration::from_secs(1)).await;
        let mut busy = Vec::new();
        bed.webhook.mint.set_hangs(true);
        // With both bodies, the second of which ends in the last round.
        let in_flight = [3, 4, 4];
        for (gives_way, in_flight) in idle.iter_mut().chain([&mut stalled]).zip(in_flight) {
            let mut wire = bed.connect().await;
            wire.send(post("/mutate?timeout=8s", review("busy", IMAGE)))
                .await;
            busy.push(wire);
            eventually("the review is handled", SLACK, async || {
                let handled = bed.webhook.metric("ecr_injector_requests_in_flight");
                (handled == in_flight).then_some(())
            })
            .await;
            timeout(SLACK, gives_way.closed()).await.expect("closed");
        }
        for wire in &mut busy {
            assert_eq!(wire.answer().await.expect("an answer").status, 200);
        }
    };
    let (status, ()) = tokio::join!(sent, others);
    assert_eq!(status, 400, "it was read to its end, and is no review");
}

#[tokio::test]
async fn connections_that_are_busy_never_give_way() {
    let bed = Bed::start_for(2, MinVersion::default()).await;
    bed.webhook.mint.set_hangs(true);
    let mut busy = Vec::new();
    for _ in 0..2 {
        let mut wire = bed.connect().await;
        wire.send(post("/mutate?timeout=2s", review("busy", IMAGE)))
            .await;
        busy.push(wire);
    }
    eventually("both are busy", SLACK, async || {
        (bed.webhook.metric("ecr_injector_connections") == 2).then_some(())
    })
    .await;
    sleep(Duration::from_millis(100)).await;
    timeout(Duration::from_secs(2) + SLACK, bed.serves())
        .await
        .expect("served once one of them rests");
    for mut wire in busy {
        assert_eq!(wire.answer().await.expect("an answer").status, 200);
    }
}

#[tokio::test]
async fn connection_does_not_give_way_while_its_answer_is_sent() {
    let bed = Bed::start_for(1, MinVersion::default()).await;
    let mut slow = bed.connect().await;
    // More than the kernel holds for a client that doesn't read.
    let uid = "u".repeat(6 * 1024 * 1024);
    slow.send(post(TARGET, review(&uid, "nginx"))).await;
    let admitted = "ecr_injector_admission_duration_seconds_count";
    eventually("the review is answered", SLACK, async || {
        (bed.webhook.metric(admitted) == 1).then_some(())
    })
    .await;
    let other = async { timeout(4 * SLACK, bed.serves()).await.expect("served") };
    let read = async {
        // The other one asks for the only place meanwhile.
        sleep(Duration::from_millis(500)).await;
        let answer = slow.answer().await.expect("a whole answer");
        assert_eq!(answer.response()["uid"].as_str(), Some(&*uid));
    };
    tokio::join!(other, read);
}

#[tokio::test]
async fn connections_in_the_accept_queue_are_served_at_the_stop() {
    let (webhook, tls) = (InProcess::new(), Tls::new(MinVersion::default()));
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let mut queued = Vec::new();
    for _ in 0..20 {
        queued.push(TcpStream::connect(address).await.unwrap());
    }
    let listener = Listener {
        socket,
        limit: MAX_CONNECTIONS,
        connection: webhook.connection(Some(tls.acceptor.clone())),
    };
    let stop = CancellationToken::new();
    stop.cancel();
    let grace = Duration::from_secs(10);
    let stopped = tokio::spawn(listener.run(stop, TaskTracker::new(), grace));
    for stream in queued {
        let stream = tls.connect(stream, &[&TLS13], &["http/1.1"]).await.unwrap();
        let mut wire = Wire::new(stream);
        wire.send(post(TARGET, review("queued", "nginx"))).await;
        let answer = wire.answer().await.expect("an answer");
        assert_eq!(answer.response()["uid"], "queued");
        assert!(answer.head.contains("connection: close"), "{}", answer.head);
        wire.closed().await;
    }
    timeout(SLACK, stopped).await.expect("stopped").unwrap();
}

#[tokio::test]
async fn removed_client_authority_ends_the_connections_of_its_clients() {
    support::crypto();
    let (removed, kept) = (Authority::new("removed"), Authority::new("kept"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clients.pem");
    fs::write(&path, removed.pem() + &kept.pem()).unwrap();
    let clients = Clients::load(path.clone(), Vec::new()).unwrap();
    let webhook = InProcess::new();
    let follow = clients.clone();
    let period = Duration::from_millis(50);
    tokio::spawn(follow.follow(period, webhook.metrics.tls.clone()));
    let tls = Tls::with_clients(MinVersion::default(), Some(clients.clone()));
    let mut connection = webhook.connection(Some(tls.acceptor.clone()));
    connection.trust = Some(clients);
    let listening = webhook.listen_as(MAX_CONNECTIONS, connection).await;
    let connect = async |authority: &Authority| {
        let leaf = authority.client("kube-apiserver", "x");
        let stream = TcpStream::connect(listening.address).await.unwrap();
        let config = tls.trust.client_as(&leaf);
        support::tls::connect(config, stream).await.map(Wire::new)
    };
    webhook.mint.set_hangs(true);
    let mut busy = connect(&removed).await.unwrap();
    busy.send(post("/mutate?timeout=2s", review("busy", IMAGE)))
        .await;
    let mut idle = connect(&removed).await.unwrap();
    let mut other = connect(&kept).await.unwrap();
    for wire in [&mut idle, &mut other] {
        for _ in 0..2 {
            serves(wire).await;
        }
    }
    eventually("the mint is asked", SLACK, async || {
        (webhook.mint.calls() == 1).then_some(())
    })
    .await;

    fs::write(&path, kept.pem()).unwrap();
    timeout(SLACK, idle.closed()).await.expect("closed at once");
    let answer = busy.answer().await.expect("an answer");
    assert_eq!(answer.response()["uid"], "busy");
    assert!(answer.head.contains("connection: close"), "{}", answer.head);
    busy.closed().await;
    // Its request would be lost, so it isn't closed before the next response.
    other.send(post(TARGET, review("kept", "nginx"))).await;
    let answer = other.answer().await.expect("an answer");
    assert_eq!(answer.response()["uid"], "kept");
    assert!(answer.head.contains("connection: close"), "{}", answer.head);
    other.closed().await;
    let mut again = connect(&kept).await.unwrap();
    for _ in 0..2 {
        serves(&mut again).await;
    }
    // In TLS 1.3 a client hears of its refusal with the first answer.
    if let Ok(mut refused) = connect(&removed).await {
        refused.send(post(TARGET, review("u", "nginx"))).await;
        assert!(refused.answer().await.is_none());
    }
    let distrusted = r#"ecr_injector_connection_failures_total{reason="distrusted"}"#;
    assert_eq!(webhook.metric(distrusted), 2);
}

#[tokio::test]
async fn client_that_goes_away_in_the_middle_harms_nobody() {
    let bed = Bed::start(MinVersion::default()).await;
    for bytes in [0, 1, 50, 200] {
        let mut wire = bed.connect().await;
        wire.send(&post(TARGET, review("u", IMAGE))[..bytes]).await;
        wire.stream.get_mut().0.shutdown().await.unwrap();
    }
    bed.serves().await;
    assert_eq!(bed.webhook.metric("ecr_injector_panics_total"), 0);
}

#[tokio::test]
async fn admin_listener_shows_liveness_readiness_and_metrics() {
    let mut admin = InProcess::new();
    let mut readiness = Readiness::default();
    let serving = readiness.condition("serving");
    admin.router = admin::router(readiness, Metrics::default().registry);
    let listening = admin.listen(None).await;
    let mut wire = Wire::new(TcpStream::connect(listening.address).await.unwrap());
    let mut get = async |path: &str| {
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
            .await;
        let answer = wire.answer().await.expect("an answer");
        (answer.status, answer.body)
    };
    assert_eq!(get("/livez").await, (200, "ok\n".to_owned()));
    assert_eq!(get("/readyz").await.0, 503);
    serving.hold();
    assert_eq!(get("/readyz").await, (200, "ok\n".to_owned()));
    let verbose = get("/readyz?verbose").await.1;
    assert!(verbose.starts_with("[+]serving ok\n"), "{verbose}");
    serving.fail("stopping");
    let (status, why) = get("/readyz").await;
    assert_eq!(status, 503);
    assert!(why.starts_with("[-]serving failed: stopping\n"), "{why}");
    let (status, metrics) = get("/metrics").await;
    assert_eq!(status, 200);
    assert!(metrics.ends_with("# EOF\n"), "{metrics}");
    assert_eq!(get("/mutate").await.0, 404);
}
