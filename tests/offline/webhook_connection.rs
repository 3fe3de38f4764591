//! Tests of the limits and the timeouts of one connection: in paused time, over streams that are no
//! sockets.

use std::time::Duration;

use ecr_injector::server::MAX_BODY_BYTES;
use ecr_injector::tls::MinVersion;
use rustls::version::TLS13;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::support::wire::{head, post, review};
use crate::support::{InProcess, Tls, Wire};

const TARGET: &str = "/mutate?timeout=10s";
const IMAGE: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/app:v1";

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn connect(webhook: &InProcess) -> Wire<impl AsyncRead + AsyncWrite + Unpin + Send + 'static> {
    Wire::new(webhook.connect(None))
}

/// Sends a review and checks its answer.
async fn serves(wire: &mut Wire<impl AsyncRead + AsyncWrite + Unpin>) {
    wire.send(post(TARGET, review("fine", "nginx"))).await;
    let answer = wire.answer().await.expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    assert_eq!(answer.response()["uid"], "fine");
}

/// How long the server keeps a connection from now on.
async fn lives_for(wire: &mut Wire<impl AsyncRead + AsyncWrite + Unpin>) -> Duration {
    let started = Instant::now();
    timeout(seconds(1_000), wire.closed())
        .await
        .expect("closed");
    started.elapsed()
}

/// Sends a text one byte a second until the server closes.
async fn dribble(wire: &mut Wire<impl AsyncRead + AsyncWrite + Unpin>, text: &str) -> Duration {
    let started = Instant::now();
    for byte in text.as_bytes() {
        wire.send([*byte]).await;
        if timeout(seconds(1), wire.closed()).await.is_ok() {
            return started.elapsed();
        }
    }
    panic!("still open after {:?}", started.elapsed());
}

fn is_about(limit: u64, took: Duration) -> bool {
    (seconds(limit)..=seconds(limit) + Duration::from_millis(100)).contains(&took)
}

#[tokio::test(start_paused = true)]
async fn connection_serves_on_after_a_refused_request() {
    let webhook = InProcess::new();
    let mut wire = connect(&webhook);
    let no_uid = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{}}"#;
    let v1beta1 = review("u", IMAGE).replace("admission.k8s.io/v1", "admission.k8s.io/v1beta1");
    for (request, expected) in [
        (post(TARGET, "{"), 400),
        (post(TARGET, no_uid), 400),
        (post(TARGET, v1beta1), 400),
        (post("/elsewhere", "{}"), 404),
        (b"GET /mutate HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), 405),
        (
            b"POST /mutate HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}".to_vec(),
            415,
        ),
    ] {
        wire.send(request).await;
        assert_eq!(wire.answer().await.expect("an answer").status, expected);
        serves(&mut wire).await;
    }
}

#[tokio::test(start_paused = true)]
async fn connection_serves_on_after_a_panic() {
    let webhook = InProcess::new();
    let mut wire = connect(&webhook);
    webhook.clock.set_panics(true);
    wire.send(post(TARGET, review("u", IMAGE))).await;
    assert_eq!(wire.answer().await.expect("an answer").status, 500);
    webhook.clock.set_panics(false);
    serves(&mut wire).await;
    assert_eq!(webhook.metric("ecr_injector_panics_total"), 1);
    assert_eq!(webhook.metric("ecr_injector_connections"), 1);
}

#[tokio::test(start_paused = true)]
async fn requests_that_come_at_once_are_answered_in_their_order() {
    let webhook = InProcess::new();
    let mut wire = connect(&webhook);
    let requests: Vec<u8> = (0..20)
        .flat_map(|n| post(TARGET, review(&format!("u-{n}"), IMAGE)))
        .collect();
    wire.send(requests).await;
    for n in 0..20 {
        let answer = wire.answer().await.expect("an answer");
        assert_eq!(answer.response()["uid"], format!("u-{n}"));
    }
}

#[tokio::test(start_paused = true)]
async fn body_shorter_than_announced_is_never_taken_for_whole() {
    let webhook = InProcess::new();
    let body = review("u", IMAGE);
    let mut wire = connect(&webhook);
    wire.send(head(TARGET, &format!("Content-Length: {}", body.len() + 1)) + &body)
        .await;
    let answer = wire.answer().await.expect("an answer");
    assert_eq!(answer.status, 408, "{}", answer.body);
    wire.closed().await;
    assert_eq!(webhook.mint.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn rest_of_a_body_longer_than_announced_is_no_request() {
    let webhook = InProcess::new();
    let body = review("u", "nginx");
    let mut wire = connect(&webhook);
    wire.send(head(TARGET, &format!("Content-Length: {}", body.len())) + &body + "{more}\r\n\r\n")
        .await;
    assert_eq!(wire.answer().await.expect("an answer").status, 200);
    assert_eq!(wire.answer().await.expect("an answer").status, 400);
    wire.closed().await;
}

#[tokio::test(start_paused = true)]
async fn two_lengths_that_differ_are_refused() {
    let webhook = InProcess::new();
    let mut wire = connect(&webhook);
    wire.send(head(TARGET, "Content-Length: 2\r\nContent-Length: 3") + "{}")
        .await;
    assert_eq!(wire.answer().await.expect("an answer").status, 400);
    wire.closed().await;
}

#[tokio::test(start_paused = true)]
async fn length_beyond_the_limit_is_refused_before_the_body_comes() {
    let webhook = InProcess::new();
    let mut wire = connect(&webhook);
    wire.send(head(
        TARGET,
        &format!("Content-Length: {}", MAX_BODY_BYTES + 1),
    ))
    .await;
    assert_eq!(wire.answer().await.expect("an answer").status, 413);
    wire.closed().await;
}

#[tokio::test(start_paused = true)]
async fn body_in_chunks_is_read_and_one_without_end_is_cut_off() {
    let webhook = InProcess::new();
    let mut wire = connect(&webhook);
    let body = review("u", "nginx");
    let (one, two) = body.split_at(100);
    let chunks = format!(
        "{:x}\r\n{one}\r\n{:x}\r\n{two}\r\n0\r\n\r\n",
        one.len(),
        two.len()
    );
    wire.send(head(TARGET, "Transfer-Encoding: chunked") + &chunks)
        .await;
    assert_eq!(wire.answer().await.expect("an answer").status, 200);

    let (mut reader, mut writer) = tokio::io::split(webhook.connect(None));
    let endless = tokio::spawn(async move {
        use tokio::io::AsyncWriteExt as _;
        let start = head(TARGET, "Transfer-Encoding: chunked");
        writer.write_all(start.as_bytes()).await.unwrap();
        let chunk = format!("10000\r\n{}\r\n", " ".repeat(65_536));
        let mut sent = 0;
        while writer.write_all(chunk.as_bytes()).await.is_ok() {
            sent += 65_536;
        }
        sent
    });
    let mut answer = String::new();
    // The end of such a connection may be a reset.
    let _ = tokio::io::AsyncReadExt::read_to_string(&mut reader, &mut answer).await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(endless.await.unwrap() <= MAX_BODY_BYTES + 1024 * 1024);
}

#[tokio::test(start_paused = true)]
async fn head_in_two_parts_with_a_pause_is_served() {
    let webhook = InProcess::new();
    let mut wire = connect(&webhook);
    for _ in 0..2 {
        let request = post(TARGET, review("u", "nginx"));
        let (one, two) = request.split_at(40);
        wire.send(one).await;
        sleep(seconds(5)).await;
        wire.send(two).await;
        assert_eq!(wire.answer().await.expect("an answer").status, 200);
        sleep(seconds(60)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn body_that_comes_slowly_but_in_time_is_served() {
    let webhook = InProcess::new();
    let mut wire = connect(&webhook);
    let request = post(TARGET, review("u", "nginx"));
    let (one, two) = request.split_at(request.len() - 10);
    wire.send(one).await;
    sleep(seconds(2)).await;
    wire.send(two).await;
    assert_eq!(wire.answer().await.expect("an answer").status, 200);
}

#[tokio::test(start_paused = true)]
async fn large_body_has_more_time_than_a_small_one() {
    let webhook = InProcess::new();
    let size = MAX_BODY_BYTES;
    let chunk = vec![b' '; size / 90];
    for (head, prefix) in [
        (format!("Content-Length: {size}"), String::new()),
        (
            "Transfer-Encoding: chunked".to_owned(),
            format!("{size:x}\r\n"),
        ),
    ] {
        let mut wire = connect(&webhook);
        let start = crate::support::wire::head("/mutate?timeout=30s", &head);
        wire.send(start + &prefix).await;
        // 900 KiB/s, for nine seconds.
        for _ in 0..89 {
            wire.send(&chunk).await;
            sleep(Duration::from_millis(100)).await;
        }
        let rest = size - 89 * chunk.len();
        wire.send(vec![b' '; rest]).await;
        wire.send("\r\n0\r\n\r\n").await;
        // It has come as a whole; that it is no review is another matter.
        assert_eq!(wire.answer().await.expect("an answer").status, 400);
    }
}

#[tokio::test(start_paused = true)]
async fn head_that_dribbles_in_is_cut_off_after_ten_seconds() {
    let webhook = InProcess::new();
    let request = head(TARGET, "Content-Length: 2");
    let took = dribble(&mut connect(&webhook), &request).await;
    assert!(is_about(10, took), "{took:?}");

    let mut wire = connect(&webhook);
    serves(&mut wire).await;
    sleep(seconds(30)).await;
    let took = dribble(&mut wire, &request).await;
    assert!(is_about(10, took), "after an idle pause: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn body_that_dribbles_in_is_cut_off_after_three_seconds() {
    let webhook = InProcess::new();
    let mut wire = connect(&webhook);
    wire.send(head("/mutate?timeout=30s", "Content-Length: 100"))
        .await;
    let started = Instant::now();
    let answer = loop {
        wire.send(" ").await;
        if let Ok(answer) = timeout(seconds(1), wire.answer()).await {
            break answer;
        }
    };
    assert_eq!(answer.expect("an answer").status, 408);
    wire.closed().await;
    assert!(is_about(3, started.elapsed()), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn unused_connection_outlives_the_api_servers_idle_time() {
    let webhook = InProcess::new();
    let tls = Tls::new(MinVersion::Tls13);
    for pause in [0, 9, 11, 95, 145] {
        // The API server dials ahead, and uses the connection up to 90 s later.
        let stream = webhook.connect(Some(tls.acceptor.clone()));
        let stream = tls.connect(stream, &[&TLS13], &["http/1.1"]).await.unwrap();
        let mut wire = Wire::new(stream);
        sleep(seconds(pause)).await;
        serves(&mut wire).await;
    }
    let took = lives_for(&mut connect(&webhook)).await;
    assert!(is_about(150, took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn used_connection_outlives_the_api_servers_idle_time() {
    let webhook = InProcess::new();
    let mut wire = connect(&webhook);
    serves(&mut wire).await;
    for pause in [5, 95, 120, 145] {
        sleep(seconds(pause)).await;
        serves(&mut wire).await;
    }
    let took = lives_for(&mut wire).await;
    assert!(is_about(150, took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn client_that_does_not_read_its_answers_is_cut_off() {
    // One answer that does not fit the stream between us, and many that together do not.
    for (requests, uid_bytes) in [(1, 200 * 1024), (20, 32 * 1024)] {
        let webhook = InProcess::new();
        let mut wire = connect(&webhook);
        let uid = "u".repeat(uid_bytes);
        let started = Instant::now();
        let cut_off = async {
            for _ in 0..requests {
                wire.send(post(TARGET, review(&uid, "nginx"))).await;
            }
            while webhook.metric("ecr_injector_connections") > 0 {
                sleep(Duration::from_millis(100)).await;
            }
        };
        timeout(seconds(60), cut_off).await.expect("cut off");
        assert!(is_about(10, started.elapsed()), "{:?}", started.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn head_beyond_its_limits_is_refused() {
    let webhook = InProcess::new();
    for header in [
        format!("X-Long: {}", "x".repeat(70 * 1024)),
        (0..100)
            .map(|n| format!("X-{n}: x"))
            .collect::<Vec<_>>()
            .join("\r\n"),
    ] {
        let mut wire = connect(&webhook);
        wire.send(head(TARGET, &header)).await;
        assert_eq!(wire.answer().await.expect("an answer").status, 431);
        wire.closed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn preface_of_http_2_is_refused() {
    let webhook = InProcess::new();
    let mut wire = connect(&webhook);
    wire.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    // hyper answers in HTTP/1.1 or just hangs up; either way that is the end.
    if let Some(answer) = wire.answer().await {
        assert_eq!(answer.status, 400);
    }
    assert!(wire.answer().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn stop_answers_the_request_under_way_and_closes_the_connection() {
    let webhook = InProcess::new();
    webhook.mint.set_hangs(true);
    let stop = CancellationToken::new();
    let open = || Wire::new(webhook.connect_until(None, &stop));
    let (mut busy, mut reading) = (open(), open());
    let (mut idle, mut unused) = (open(), open());
    serves(&mut idle).await;
    busy.send(post("/mutate?timeout=8s", review("busy", IMAGE)))
        .await;
    let request = post(TARGET, review("reading", "nginx"));
    let (one, two) = request.split_at(request.len() - 10);
    sleep(seconds(3)).await;
    reading.send(one).await;
    let (mut new, mut sending) = (open(), open());
    sleep(seconds(1)).await;

    let started = Instant::now();
    stop.cancel();
    idle.closed().await;
    unused.closed().await;
    assert_eq!(started.elapsed(), Duration::ZERO);
    // The first request of a new connection may be on its way.
    sleep(Duration::from_millis(500)).await;
    sending.send(post(TARGET, review("sending", "nginx"))).await;
    let answer = sending.answer().await.expect("an answer");
    assert_eq!(answer.response()["uid"], "sending");
    assert!(answer.head.contains("connection: close"), "{}", answer.head);
    sending.closed().await;
    new.closed().await;
    assert!(is_about(1, started.elapsed()), "{:?}", started.elapsed());

    reading.send(two).await;
    for (mut wire, uid) in [(reading, "reading"), (busy, "busy")] {
        let answer = wire.answer().await.expect("an answer");
        assert_eq!(answer.response()["uid"], uid);
        assert!(answer.head.contains("connection: close"), "{}", answer.head);
        wire.closed().await;
    }
    assert!(started.elapsed() <= seconds(6));
    assert_eq!(webhook.metric("ecr_injector_connections"), 0);
}

#[tokio::test(start_paused = true)]
async fn answers_before_a_stop_ask_the_client_to_reconnect() {
    let webhook = InProcess::new();
    let mut wire = connect(&webhook);
    serves(&mut wire).await;
    webhook.draining.cancel();
    wire.send(post(TARGET, review("last", IMAGE))).await;
    let answer = wire.answer().await.expect("an answer");
    assert_eq!(answer.response()["uid"], "last");
    assert!(answer.head.contains("connection: close"), "{}", answer.head);
    wire.closed().await;
    serves(&mut connect(&webhook)).await;
}

#[tokio::test(start_paused = true)]
async fn handshake_that_stalls_is_given_up() {
    let webhook = InProcess::new();
    let tls = Tls::new(MinVersion::Tls13);
    // A record's header, and the start of a client's hello that never comes.
    for start in [&b""[..], &b"\x16\x03\x01\x02\x00\x01"[..]] {
        let mut wire = Wire::new(webhook.connect(Some(tls.acceptor.clone())));
        wire.send(start).await;
        let took = lives_for(&mut wire).await;
        assert!(is_about(5, took), "{took:?}");
    }
    let failures = r#"ecr_injector_connection_failures_total{reason="handshake_timeout"}"#;
    assert_eq!(webhook.metric(failures), 2);
}

#[tokio::test(start_paused = true)]
async fn first_head_after_a_slow_handshake_has_ten_seconds() {
    let webhook = InProcess::new();
    let tls = Tls::new(MinVersion::Tls13);
    let stream = webhook.connect(Some(tls.acceptor.clone()));
    sleep(seconds(4)).await;
    let stream = tls.connect(stream, &[&TLS13], &["http/1.1"]).await.unwrap();
    let mut wire = Wire::new(stream);
    sleep(seconds(20)).await;
    let took = dribble(&mut wire, &head(TARGET, "Content-Length: 2")).await;
    assert!(is_about(10, took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn old_connection_ends_with_a_response_after_its_age() {
    let mut ages = Vec::new();
    for _ in 0..5 {
        let webhook = InProcess::new();
        let mut wire = connect(&webhook);
        let started = Instant::now();
        loop {
            wire.send(post(TARGET, review("u", "nginx"))).await;
            let answer = wire.answer().await.expect("an answer");
            assert_eq!(answer.response()["uid"], "u");
            if answer.head.contains("connection: close") {
                break;
            }
            assert!(started.elapsed() < seconds(40 * 60), "it never ends");
            sleep(seconds(10)).await;
        }
        wire.closed().await;
        ages.push(started.elapsed());
    }
    let range = seconds(27 * 60)..=seconds(33 * 60);
    assert!(ages.iter().all(|age| range.contains(age)), "{ages:?}");
    ages.sort_unstable();
    ages.dedup();
    assert!(ages.len() > 1, "all at the same age: {ages:?}");
}

#[tokio::test(start_paused = true)]
async fn review_that_its_client_gave_up_is_counted() {
    let webhook = InProcess::new();
    webhook.mint.set_hangs(true);
    let unanswered = r#"ecr_injector_rejected_requests_total{reason="unanswered"}"#;
    let mut wire = connect(&webhook);
    wire.send(post(TARGET, review("gone", IMAGE))).await;
    sleep(seconds(1)).await;
    assert_eq!(webhook.metric("ecr_injector_requests_in_flight"), 1);
    assert_eq!(webhook.metric(unanswered), 0);
    drop(wire);
    sleep(seconds(1)).await;
    assert_eq!(webhook.metric("ecr_injector_requests_in_flight"), 0);
    assert_eq!(webhook.metric(unanswered), 1);

    // An answer that is never read is none either.
    let mut wire = connect(&webhook);
    wire.send(post(TARGET, review(&"u".repeat(200 * 1024), "nginx")))
        .await;
    sleep(seconds(11)).await;
    assert_eq!(webhook.metric(unanswered), 2);

    // Neither one that was answered, nor one that was rejected and counted as such.
    let mut wire = connect(&webhook);
    serves(&mut wire).await;
    drop(wire);
    let mut wire = connect(&webhook);
    wire.send(&post(TARGET, review("u", IMAGE))[..300]).await;
    drop(wire);
    sleep(seconds(1)).await;
    assert_eq!(webhook.metric(unanswered), 2);
    assert_eq!(webhook.metric("ecr_injector_rejected_requests_total"), 3);
}
