//! Reviews through the router, with no socket and, where it matters, with paused time.

use std::convert::Infallible;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ecr_injector::config::Config;
use ecr_injector::{admission::handler::MAX_WAITING, server::MAX_BODY_BYTES};
use futures::StreamExt as _;
use futures::stream::{self, FuturesUnordered};
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Bytes;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};
use tower::ServiceExt as _;

use crate::support::in_process::NAMESPACE;
use crate::support::wire::{review, review_of};
use crate::support::{InProcess, shows};

const IMAGE: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/app:v1";

/// Where a test's log lines go.
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn send(webhook: &InProcess, request: Request<Body>) -> (StatusCode, String) {
    let response = webhook.router.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn request(target: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(target)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body.into())
        .unwrap()
}

async fn post(webhook: &InProcess, body: impl Into<Body>) -> (StatusCode, String) {
    send(webhook, request("/mutate?timeout=10s", body)).await
}

fn response(body: &str) -> Value {
    serde_json::from_str::<Value>(body).unwrap()["response"].clone()
}

/// A review of exactly this many bytes.
fn padded(bytes: usize) -> String {
    let review = review("u", "nginx");
    let padding = bytes - review.len();
    review.replacen('{', &format!("{{{}", " ".repeat(padding)), 1)
}

/// A body of unknown length.
fn chunked(text: String) -> Body {
    let text = Bytes::from(text);
    let chunks = (0..text.len().div_ceil(16_384))
        .map(move |n| text.slice(n * 16_384..text.len().min((n + 1) * 16_384)))
        .map(Ok::<_, Infallible>);
    Body::from_stream(stream::iter(chunks))
}

/// This many bytes, and then nothing more, though the body does not end.
fn stalled(bytes: usize) -> Body {
    let part = Bytes::from(vec![b' '; bytes]);
    let stream = stream::iter([Ok::<_, Infallible>(part)]).chain(stream::pending());
    Body::from_stream(stream)
}

#[tokio::test]
async fn cold_namespace_gets_its_secret_and_a_warm_one_costs_no_call() {
    let webhook = InProcess::new();
    let (status, body) = post(&webhook, review("u-1", IMAGE)).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    let answer = response(&body);
    assert_eq!(
        (&answer["uid"], &answer["allowed"], &answer["patchType"]),
        (&json!("u-1"), &json!(true), &json!("JSONPatch"))
    );
    let secret = webhook.api.secret(NAMESPACE).expect("written");
    assert_eq!(secret["type"], "kubernetes.io/dockerconfigjson");

    let calls = (webhook.api.calls().len(), webhook.mint.calls());
    let (_, body) = post(&webhook, review("u-2", IMAGE)).await;
    assert_eq!(response(&body)["patchType"], "JSONPatch");
    assert_eq!((webhook.api.calls().len(), webhook.mint.calls()), calls);
}

#[tokio::test]
async fn replica_that_meets_the_secret_of_another_adds_to_it() {
    let one = InProcess::new();
    let two = InProcess::over(one.api.clone());
    let other = IMAGE.replace("eu-west-1", "us-east-1");
    post(&one, review("u-1", IMAGE)).await;
    // It knows of no Secret, so it tries to create one.
    let (_, body) = post(&two, review("u-2", &other)).await;
    assert_eq!(response(&body)["patchType"], "JSONPatch");
    assert_eq!(response(&body)["warnings"], Value::Null, "{body}");
    let secret = one.api.secret(NAMESPACE).expect("written");
    let state = secret["metadata"]["annotations"]["ecr-injector.dev/state"].as_str();
    for region in ["eu-west-1", "us-east-1"] {
        let host = format!("123456789012.dkr.ecr.{region}.amazonaws.com");
        assert!(state.unwrap().contains(&host), "{state:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn replica_without_a_token_takes_what_another_has_written() {
    let one = InProcess::new();
    let two = InProcess::over(one.api.clone());
    two.mint.set_hangs(true);
    let luckier = async {
        sleep(Duration::from_secs(1)).await;
        post(&one, review("u-1", IMAGE)).await
    };
    let ((_, body), _) = tokio::join!(post(&two, review("u-2", IMAGE)), luckier);
    let answer = response(&body);
    assert_eq!(answer["patchType"], "JSONPatch", "{body}");
    assert_eq!(answer["warnings"], Value::Null, "{body}");
}

#[tokio::test(start_paused = true)]
async fn changed_secret_is_kept_while_no_token_can_be_had() {
    let one = InProcess::new();
    post(&one, review("u-1", IMAGE)).await;
    let garbage = json!(BASE64_STANDARD.encode(r#"{"auths": {}}"#));
    one.api.change(NAMESPACE, |secret| {
        secret["data"][".dockerconfigjson"] = garbage.clone();
    });
    // A replica that has no token yet.
    let two = InProcess::over(one.api.clone());
    two.mint.set_hangs(true);
    let (_, body) = post(&two, review("u-2", IMAGE)).await;
    assert_eq!(response(&body)["patchType"], "JSONPatch", "{body}");
    let warning = response(&body)["warnings"][0].to_string();
    assert!(warning.contains("no credential yet"), "{body}");
    let data = |webhook: &InProcess| webhook.api.secret(NAMESPACE).unwrap()["data"].clone();
    assert_eq!(data(&one)[".dockerconfigjson"], garbage);
    // What it doesn't name yet is written down as wanted all the same.
    let other = IMAGE.replace("eu-west-1", "us-east-1");
    post(&two, review("u-3", &other)).await;
    let secret = one.api.secret(NAMESPACE).unwrap();
    let state = secret["metadata"]["annotations"]["ecr-injector.dev/state"].to_string();
    assert!(
        state.contains("eu-west-1") && state.contains("us-east-1"),
        "{state}"
    );
}

#[tokio::test]
async fn review_is_only_a_post_of_json_to_the_one_path() {
    let webhook = InProcess::new();
    for (method, target, content_type, expected) in [
        (Method::POST, "/mutate", Some("application/json"), 200),
        (
            Method::POST,
            "/mutate?timeout=5s",
            Some("application/json; charset=utf-8"),
            200,
        ),
        (Method::GET, "/mutate", None, 405),
        (Method::HEAD, "/mutate", None, 405),
        (Method::PUT, "/mutate", Some("application/json"), 405),
        (Method::DELETE, "/mutate", None, 405),
        (Method::POST, "/", Some("application/json"), 404),
        (Method::POST, "/mutate/", Some("application/json"), 404),
        (Method::POST, "/mutate/x", Some("application/json"), 404),
        (Method::POST, "//mutate", Some("application/json"), 404),
        (Method::GET, "/metrics", None, 404),
        (Method::POST, "/mutate", None, 415),
        (Method::POST, "/mutate", Some("text/plain"), 415),
        (Method::POST, "/mutate", Some("application/yaml"), 415),
    ] {
        let what = format!("{method} {target} {content_type:?}");
        let mut request = Request::builder().method(method).uri(target);
        if let Some(content_type) = content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        let request = request.body(review("u", "nginx").into()).unwrap();
        assert_eq!(send(&webhook, request).await.0.as_u16(), expected, "{what}");
    }
}

#[tokio::test]
async fn unknown_paths_and_methods_are_counted() {
    let webhook = InProcess::new();
    let rejected = |reason: &str| {
        let series = format!(r#"ecr_injector_rejected_requests_total{{reason="{reason}"}}"#);
        webhook.metric(&series)
    };
    for (method, target, counts) in [
        (Method::POST, "/", (1, 0)),
        (Method::GET, "/metrics", (2, 0)),
        (Method::GET, "/mutate", (2, 1)),
        (Method::PUT, "/mutate?timeout=10s", (2, 2)),
    ] {
        let what = format!("{method} {target}");
        let request = Request::builder().method(method).uri(target);
        let request = request.body(Body::empty()).unwrap();
        let response = webhook.router.clone().oneshot(request).await.unwrap();
        let allows = response.headers().get(header::ALLOW).is_some();
        let is_method = response.status() == StatusCode::METHOD_NOT_ALLOWED;
        assert_eq!(allows, is_method, "{what}");
        let body = response.into_body().collect().await.unwrap().to_bytes();
        assert!(body.ends_with(b"\n"), "{what} says nothing");
        let counted = (rejected("not_found"), rejected("method_not_allowed"));
        assert_eq!(counted, counts, "{what}");
    }
}

#[tokio::test]
async fn body_that_is_no_review_is_a_bad_request() {
    let webhook = InProcess::new();
    let whole = review("u", IMAGE);
    for body in [
        "",
        "null",
        "[]",
        "{",
        &whole[..whole.len() - 1],
        &format!("{whole}x"),
        r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}"#,
        r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{}}"#,
        r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":7}}"#,
        r#"{"apiVersion":"v1","kind":"Pod","request":{"uid":"u"}}"#,
    ] {
        let (status, text) = post(&webhook, body.to_owned()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {text}");
        assert!(text.ends_with('\n') && text.len() > 10, "{body}: {text}");
    }
    assert!(webhook.metric(r#"ecr_injector_rejected_requests_total{reason="not_a_review"}"#) >= 10);
}

#[tokio::test]
async fn other_reviews_are_allowed_by_their_uid_and_unchanged() {
    let webhook = InProcess::new();
    let whole = review("u-7", IMAGE);
    let with = |from: &str, to: &str| {
        let changed = whole.replace(from, to);
        assert_ne!(changed, whole, "{from}");
        changed
    };
    let object = |object: &str| {
        let mut review: Value = serde_json::from_str(&whole).unwrap();
        review["request"]["object"] = serde_json::from_str(object).unwrap();
        review.to_string()
    };
    for body in [
        with(r#""CREATE""#, r#""CONNECT""#),
        with(r#""CREATE""#, r#""FROBNICATE""#),
        with(r#""CREATE""#, r#""create""#),
        with(r#""CREATE""#, "7"),
        with(r#""operation""#, r#""operations""#),
        with(r#""pods""#, r#""services""#),
        with(r#""object""#, r#""objects""#),
        object("null"),
        object("[]"),
        object("7"),
        object(r#""a Pod""#),
        object(r#"{"spec": 7}"#),
        object(r#"{"spec": {"containers": {"image": "x"}}}"#),
    ] {
        let (status, text) = post(&webhook, body.clone()).await;
        assert_eq!(status, StatusCode::OK, "{body}: {text}");
        let mut answer = response(&text);
        // A Pod that can't be read is told.
        answer.as_object_mut().unwrap().remove("warnings");
        let expected = json!({"uid": "u-7", "allowed": true});
        assert_eq!(answer, expected, "{body}");
    }
    assert_eq!(webhook.mint.calls(), 0);
    assert_eq!(webhook.api.secret(NAMESPACE), None);
}

#[tokio::test]
async fn v1beta1_is_a_bad_request_that_names_both_versions() {
    let webhook = InProcess::new();
    let body = review("u", IMAGE).replace("admission.k8s.io/v1", "admission.k8s.io/v1beta1");
    let (status, text) = post(&webhook, body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(
        text.contains("expected an AdmissionReview of admission.k8s.io/v1, got")
            && text.contains("admission.k8s.io/v1beta1"),
        "{text}"
    );
}

#[tokio::test]
async fn complaint_does_not_repeat_a_long_body() {
    let webhook = InProcess::new();
    let long = "secret".repeat(100_000);
    let body = format!(r#"{{"request":{{"uid":"u","object":{{"spec":"{long}"}}}}, broken"#);
    let (status, text) = post(&webhook, body).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(text.len() < 1_000, "{} bytes", text.len());
}

#[tokio::test]
async fn log_line_does_not_repeat_a_long_name() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || Log(writer.clone()))
        .finish();
    let _guard = crate::support::log::scoped(subscriber);
    let webhook = InProcess::new();
    let long = "\u{e9}".repeat(500_000);
    let pod = json!({"metadata": {"name": long, "ownerReferences": [{"kind": long, "name": long}]},
        "spec": {"containers": []}});
    let body = review_of(&long, &pod).replace(NAMESPACE, &long);
    assert_eq!(post(&webhook, body).await.0, StatusCode::OK);
    let written = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
    let line = written
        .lines()
        .find(|line| line.contains("admission uid=") && line.contains('\u{e9}'));
    let line = line.expect("the admission is logged");
    assert!(line.len() < 8_192, "{} bytes", line.len());
}

#[tokio::test]
async fn body_may_have_eight_mebibytes_and_not_one_byte_more() {
    let webhook = InProcess::new();
    for (bytes, expected) in [
        (3 * 1024 * 1024, StatusCode::OK),
        (MAX_BODY_BYTES - 1, StatusCode::OK),
        (MAX_BODY_BYTES, StatusCode::OK),
        (MAX_BODY_BYTES + 1, StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        let body = padded(bytes);
        assert_eq!(body.len(), bytes);
        let mut announced = request("/mutate", body.clone());
        announced
            .headers_mut()
            .insert(header::CONTENT_LENGTH, bytes.into());
        let (status, text) = send(&webhook, announced).await;
        assert_eq!(status, expected, "{bytes} announced: {text}");
        let (status, text) = post(&webhook, chunked(body)).await;
        assert_eq!(status, expected, "{bytes} in chunks: {text}");
    }
}

#[tokio::test]
async fn body_without_end_is_cut_off_at_the_limit() {
    let webhook = InProcess::new();
    let chunk = Bytes::from(vec![b'['; 64 * 1024]);
    let endless = stream::repeat_with(move || Ok::<_, Infallible>(chunk.clone()));
    let (status, _) = post(&webhook, Body::from_stream(endless)).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test(start_paused = true)]
async fn stalled_body_is_given_up_by_the_deadline_or_after_10s() {
    let webhook = InProcess::new();
    for (target, limit) in [
        ("/mutate?timeout=2s", 2),
        ("/mutate?timeout=10s", 10),
        ("/mutate?timeout=30s", 10),
    ] {
        let started = Instant::now();
        let (status, _) = send(&webhook, request(target, stalled(100))).await;
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT, "{target}");
        assert!(
            started.elapsed() <= Duration::from_secs(limit),
            "{target}: {:?}",
            started.elapsed()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn body_budget_sheds_large_reviews_until_it_is_free_again() {
    let webhook = InProcess::new();
    let holders: Vec<_> = (0..3)
        .map(|_| {
            let router = webhook.router.clone();
            let held = request("/mutate?timeout=30s", stalled(MAX_BODY_BYTES));
            tokio::spawn(async move { router.oneshot(held).await.unwrap().status() })
        })
        .collect();
    sleep(Duration::from_secs(1)).await;

    let started = Instant::now();
    let shed = request("/mutate?timeout=2s", padded(MAX_BODY_BYTES));
    let (status, _) = send(&webhook, shed).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let shed = r#"ecr_injector_shed_total{kind="body"}"#;
    assert_eq!(webhook.metric(shed), 1);
    // Most reviews are small, and large ones leave them their part.
    let (status, _) = post(&webhook, review("u", "nginx")).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(started.elapsed(), Duration::ZERO, "nobody waited");

    for holder in holders {
        assert_eq!(holder.await.unwrap(), StatusCode::REQUEST_TIMEOUT);
    }
    let (status, _) = post(&webhook, padded(MAX_BODY_BYTES)).await;
    assert_eq!(status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn stalled_bodies_give_way_to_one_that_needs_their_memory() {
    let webhook = InProcess::new();
    // More than the part of the memory that small bodies have, and no part of it is ever returned.
    let holders: Vec<_> = (0..300)
        .map(|_| {
            let router = webhook.router.clone();
            let held = request("/mutate?timeout=30s", stalled(60 * 1024));
            tokio::spawn(async move { router.oneshot(held).await.unwrap().status() })
        })
        .collect();
    sleep(Duration::from_secs(1)).await;
    let started = Instant::now();
    let (status, _) = post(&webhook, review("u", "nginx")).await;
    assert_eq!(status, StatusCode::OK);
    let took = started.elapsed();
    assert!(took <= Duration::from_millis(100), "{took:?}");
    let mut statuses = Vec::new();
    for holder in holders {
        statuses.push(holder.await.unwrap());
    }
    let (shed, slow) = (StatusCode::SERVICE_UNAVAILABLE, StatusCode::REQUEST_TIMEOUT);
    assert!(statuses.contains(&shed) && statuses.contains(&slow));
    assert!(statuses.iter().all(|status| [shed, slow].contains(status)));
}

#[tokio::test(start_paused = true)]
async fn slow_large_bodies_take_no_budget_from_the_others() {
    let webhook = InProcess::new();
    for _ in 0..100 {
        let mut slow = request("/mutate?timeout=30s", stalled(1));
        slow.headers_mut()
            .insert(header::CONTENT_LENGTH, MAX_BODY_BYTES.into());
        tokio::spawn(webhook.router.clone().oneshot(slow));
    }
    sleep(Duration::from_millis(1)).await;
    let answered = timeout(
        Duration::from_millis(1),
        post(&webhook, padded(MAX_BODY_BYTES)),
    );
    assert_eq!(answered.await.expect("at once").0, StatusCode::OK);
}

#[tokio::test]
async fn panic_is_that_requests_500_and_counted() {
    let webhook = InProcess::new();
    webhook.clock.set_panics(true);
    let (status, text) = post(&webhook, review("u", IMAGE)).await;
    assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR);
    assert!(!text.contains("told to panic"), "{text}");
    webhook.clock.set_panics(false);
    let (status, _) = post(&webhook, review("u", IMAGE)).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(webhook.metric("ecr_injector_panics_total"), 1);
}

#[tokio::test]
async fn hostile_json_is_answered_quickly() {
    let webhook = InProcess::new();
    // What is wanted is 50 ms. The debug build takes many times as long (1.3 s for 50,000 registries), and other tests run
    // beside this one; what grows with the square of its input takes minutes.
    let limit = Duration::from_millis(if cfg!(debug_assertions) { 5_000 } else { 50 });
    let nested = |open: &str, close: &str| open.repeat(100_000) + &close.repeat(100_000);
    let inside = |object: &str| {
        review("u", IMAGE).replace(r#""object":{"#, &format!(r#""object":{object},"x":{{"#))
    };
    let containers = |image: &dyn Fn(usize) -> String| {
        let containers: Vec<Value> = (0..50_000)
            .map(|n| json!({"name": "c", "image": image(n)}))
            .collect();
        review_of("u", &json!({"spec": {"containers": containers}}))
    };
    for (what, body, expected) in [
        ("nested arrays", nested("[", "]"), 400),
        ("nested arrays as the Pod", inside(&nested("[", "]")), 200),
        (
            "nested objects as the Pod",
            inside(&(nested(r#"{"a":"#, "}").replace(":}", ":1}"))),
            200,
        ),
        ("a key twice", inside("{},\"object\":{}"), 200),
        ("not a number", inside("NaN"), 400),
        (
            "a lone surrogate",
            review("u", "\\ud800").replace("\\\\", "\\"),
            200,
        ),
        (
            "one image 50,000 times",
            containers(&|_| IMAGE.to_owned()),
            200,
        ),
        (
            "50,000 registries",
            containers(&|n| format!("{n:012}.dkr.ecr.eu-west-1.amazonaws.com/a")),
            200,
        ),
        (
            "an image of 1 MiB",
            review("u", &"a".repeat(1024 * 1024)),
            200,
        ),
        (
            "an image of 1 MiB in a registry",
            review("u", &format!("{IMAGE}{}", "a/".repeat(512 * 1024))),
            200,
        ),
        (
            "a uid of 1 MiB",
            review(&"u".repeat(1024 * 1024), IMAGE),
            200,
        ),
    ] {
        // The best of some: the machine may be busy with something else.
        let mut best = Duration::MAX;
        for _ in 0..if cfg!(debug_assertions) { 2 } else { 5 } {
            let started = Instant::now();
            let (status, text) = post(&webhook, body.clone()).await;
            best = best.min(started.elapsed());
            let start: String = text.chars().take(200).collect();
            assert_eq!(status.as_u16(), expected, "{what}: {start}");
        }
        println!("{what}: {best:?}");
        assert!(best <= limit, "{what} took {best:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn hanging_ecr_costs_the_pod_at_most_the_webhook_timeout() {
    let webhook = InProcess::new();
    webhook.mint.set_hangs(true);
    for seconds in [1, 5, 30] {
        let started = Instant::now();
        let target = format!("/mutate?timeout={seconds}s");
        let (status, body) = send(&webhook, request(&target, review("u", IMAGE))).await;
        let took = started.elapsed();
        assert_eq!(status, StatusCode::OK);
        assert!(took < Duration::from_secs(seconds), "{target}: {took:?}");
        let answer = response(&body);
        assert_eq!(answer["allowed"], true);
        assert_eq!(answer["patchType"], "JSONPatch");
        assert_eq!(answer["warnings"].as_array().unwrap().len(), 1, "{answer}");
    }
    let secret = webhook.api.secret(NAMESPACE).expect("the intent");
    let state = secret["metadata"]["annotations"]["ecr-injector.dev/state"].as_str();
    assert!(state.unwrap().contains("123456789012.dkr.ecr"), "{state:?}");
}

#[tokio::test(start_paused = true)]
async fn hanging_api_server_costs_the_pod_at_most_the_time_left() {
    let webhook = InProcess::new();
    webhook.api.hang();
    let started = Instant::now();
    let (status, body) = send(&webhook, request("/mutate?timeout=5s", review("u", IMAGE))).await;
    assert_eq!(status, StatusCode::OK);
    assert!(started.elapsed() < Duration::from_secs(5));
    let answer = response(&body);
    assert_eq!(
        (&answer["allowed"], &answer["patchType"]),
        (&json!(true), &json!("JSONPatch")),
        "{body}"
    );
}

#[tokio::test(start_paused = true)]
async fn namespace_that_cannot_be_read_is_not_a_namespace_opted_out() {
    let webhook = InProcess::new();
    webhook.api.hang();
    let (_, body) = post(&webhook, review("u", IMAGE)).await;
    let answer = response(&body);
    assert_eq!(answer["patchType"], "JSONPatch", "{body}");
    let warning = answer["warnings"][0].as_str().unwrap();
    let heading =
        "`this namespace could not be read (namespace_unknown); image pulls may fail until it can`";
    shows(heading, warning);
    let counted = "ecr_injector_admission_duration_seconds_count";
    let reason = |reason| format!("{counted}{{decision=\"inject_unready\",reason=\"{reason}\"}}");
    assert_eq!(webhook.metric(&reason("namespace_unknown")), 1);
    // Whoever needs nothing of us doesn't notice.
    let (_, body) = post(&webhook, review("plain", "nginx")).await;
    assert_eq!(response(&body)["warnings"], Value::Null, "{body}");
}

#[tokio::test(start_paused = true)]
async fn namespace_that_cannot_be_read_denies_under_deny() {
    let webhook = InProcess::with_config("onFailure: deny");
    let (_, body) = post(&webhook, review("control", IMAGE)).await;
    assert_eq!(response(&body)["allowed"], true, "{body}");
    let webhook = InProcess::with_config("onFailure: deny");
    webhook.api.hang();
    let (_, body) = post(&webhook, review("u", IMAGE)).await;
    let answer = response(&body);
    assert_eq!(
        (&answer["allowed"], &answer["status"]["code"]),
        (&json!(false), &json!(503)),
        "{body}"
    );
    let message = answer["status"]["message"].as_str().unwrap();
    assert!(
        message.contains("reading the namespace failed"),
        "{message}"
    );
}

#[tokio::test(start_paused = true)]
async fn pod_that_cannot_be_read_is_admitted_with_a_warning() {
    let webhook = InProcess::with_config("onFailure: deny");
    let mut unreadable: Value = serde_json::from_str(&review("u", IMAGE)).unwrap();
    unreadable["request"]["object"]["spec"]["containers"] = json!("none");
    let (_, body) = post(&webhook, unreadable.to_string()).await;
    let answer = response(&body);
    assert_eq!(answer["allowed"], true, "{body}");
    let warning = answer["warnings"][0].as_str().unwrap();
    assert!(warning.contains("could not be read"), "{warning}");
    // Another object may have any form.
    unreadable["request"]["resource"]["resource"] = json!("replicasets");
    let (_, body) = post(&webhook, unreadable.to_string()).await;
    assert_eq!(response(&body)["warnings"], Value::Null, "{body}");
}

/// As many reviews that wait for ECR as one namespace may have. The webhook knows the namespace.
async fn full(webhook: &InProcess) -> FuturesUnordered<impl Future<Output = (StatusCode, String)>> {
    let (_, body) = post(webhook, in_other_region("first")).await;
    assert_eq!(response(&body)["warnings"], Value::Null, "{body}");
    webhook.mint.set_hangs(true);
    let mut waiting: FuturesUnordered<_> = (0..MAX_WAITING / 2)
        .map(async |number| post(webhook, review(&format!("u-{number}"), IMAGE)).await)
        .collect();
    let first = timeout(Duration::from_millis(10), waiting.next());
    assert!(first.await.is_err(), "they wait for ECR");
    waiting
}

/// A review of a Pod with an image of a region that no other test names.
fn in_other_region(uid: &str) -> String {
    review(uid, "123456789012.dkr.ecr.us-east-2.amazonaws.com/app")
}

#[tokio::test(start_paused = true)]
async fn overload_adds_the_reference_at_once_with_a_warning() {
    let webhook = InProcess::new();
    let mut waiting = full(&webhook).await;

    let started = Instant::now();
    let (status, body) = post(&webhook, review("late", IMAGE)).await;
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(status, StatusCode::OK);
    let answer = response(&body);
    assert_eq!(
        (&answer["uid"], &answer["allowed"], &answer["patchType"]),
        (&json!("late"), &json!(true), &json!("JSONPatch"))
    );
    let warning = answer["warnings"][0].as_str().unwrap();
    let heading =
        "`no credential yet for 1 ECR registry (overloaded); image pulls may fail until then`";
    shows(heading, warning);
    // Whoever waits for nothing doesn't notice.
    for body in [in_other_region("warm"), review("plain", "nginx")] {
        let (_, body) = post(&webhook, body).await;
        assert_eq!(response(&body)["warnings"], Value::Null, "{body}");
    }

    while let Some((status, body)) = waiting.next().await {
        assert_eq!(status, StatusCode::OK, "{body}");
    }
    webhook.mint.set_hangs(false);
    sleep(Duration::from_secs(30)).await;
    let (_, body) = post(&webhook, review("after", IMAGE)).await;
    assert_eq!(response(&body)["warnings"], Value::Null, "{body}");
}

#[tokio::test(start_paused = true)]
async fn place_of_a_client_that_gives_up_is_held_until_its_work_ends() {
    let webhook = InProcess::new();
    drop(full(&webhook).await);
    let (_, body) = post(&webhook, review("late", IMAGE)).await;
    let warning = response(&body)["warnings"][0].to_string();
    assert!(warning.contains("overloaded"), "{warning}");
    // The attempts end by their deadlines.
    sleep(Duration::from_secs(30)).await;
    let (_, body) = post(&webhook, review("after", IMAGE)).await;
    let warning = response(&body)["warnings"][0].to_string();
    assert!(!warning.contains("overloaded"), "{warning}");
}

#[tokio::test(start_paused = true)]
async fn retained_demand_is_served_by_the_rules_of_now() {
    for allows in [true, false] {
        let webhook = InProcess::new();
        webhook.mint.set_hangs(true);
        let (_, body) = post(&webhook, review("u", IMAGE)).await;
        assert!(response(&body)["warnings"][0].is_string(), "{body}");
        let fields = if allows {
            ""
        } else {
            "allow: {accounts: [\"999999999999\"]}"
        };
        let config = Config::parse(&crate::support::config_file(fields), "config").unwrap();
        assert_eq!(webhook.live.replace(config), [] as [&str; 0]);
        webhook.mint.set_hangs(false);
        sleep(Duration::from_mins(10)).await;
        let secret = webhook.api.secret(NAMESPACE).unwrap();
        let data = secret["data"][".dockerconfigjson"].as_str().unwrap();
        let data = BASE64_STANDARD.decode(data).unwrap();
        let has_token = String::from_utf8(data).unwrap().contains("\"auth\"");
        assert_eq!(has_token, allows);
    }
}

#[tokio::test(start_paused = true)]
async fn overload_denies_pods_that_would_wait_under_deny() {
    let webhook = InProcess::with_config("onFailure: deny");
    let _waiting = full(&webhook).await;

    let (status, body) = post(&webhook, review("late", IMAGE)).await;
    assert_eq!(status, StatusCode::OK);
    let answer = response(&body);
    assert_eq!(
        (&answer["allowed"], &answer["status"]["code"]),
        (&json!(false), &json!(429)),
        "{body}"
    );
    // Whoever waits for nothing doesn't notice.
    for body in [in_other_region("warm"), review("plain", "nginx")] {
        let (_, body) = post(&webhook, body).await;
        assert_eq!(response(&body)["allowed"], true, "{body}");
    }
}

#[tokio::test]
async fn admission_keeps_the_configuration_it_began_with() {
    let webhook = InProcess::new();
    let first = webhook.live.config();
    webhook.mint.set_hangs(true);
    let router = webhook.router.clone();
    let pending = tokio::spawn(async move {
        let request = request("/mutate?timeout=1s", review("u-1", IMAGE));
        let answer = router.oneshot(request).await.unwrap().into_body();
        answer.collect().await.unwrap().to_bytes()
    });
    while webhook.mint.calls() == 0 {
        tokio::task::yield_now().await;
    }
    let denying = crate::support::config_file("onFailure: deny\nallow: {regions: [us-east-1]}");
    let denying = Config::parse(&denying, "config");
    assert!(webhook.live.replace(denying.unwrap()).is_empty());
    // It began under `onFailure: admit`.
    let body = String::from_utf8(pending.await.unwrap().to_vec()).unwrap();
    assert_eq!(response(&body)["allowed"], true, "{body}");
    assert_eq!(response(&body)["patchType"], "JSONPatch", "{body}");

    webhook.mint.set_hangs(false);
    let (_, body) = post(&webhook, review("u-2", IMAGE)).await;
    let warnings = response(&body)["warnings"].to_string();
    assert!(warnings.contains("allow list"), "{body}");
    assert_eq!(response(&body)["patchType"], Value::Null, "{body}");

    assert!(webhook.live.replace(Config::clone(&first)).is_empty());
    let (_, body) = post(&webhook, review("u-3", IMAGE)).await;
    assert_eq!(response(&body)["patchType"], "JSONPatch", "{body}");
}
