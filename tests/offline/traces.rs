//! Traces, to a collector that is real, dead, or never answers.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use axum::body::Body;
use ecr_injector::cli::metrics::Metrics;
use ecr_injector::telemetry::otel::{Exporter, Traces};
use http::{Method, Request, StatusCode, header};
use http_body_util::BodyExt as _;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::json;
use tower::ServiceExt as _;

use crate::support;
use crate::support::InProcess;
use crate::support::collector::{collector, number, texts};
use crate::support::in_process::NAMESPACE;
use crate::support::wire::{review, review_of};

const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const THEIR_SPAN: u128 = 0x00f0_67aa_0ba9_02b7;
/// The processor's queue, as `src/telemetry/otel.rs` has it.
const QUEUE: u64 = 2048;

fn traced(url: &str) -> (InProcess, Exporter) {
    support::crypto();
    let metrics = Metrics::default();
    let (traces, exporter) = Traces::start(Some(url), "replica-1", metrics.traces.clone()).unwrap();
    (InProcess::traced(traces, metrics), exporter)
}

async fn send(webhook: &InProcess, body: String, headers: &[(&'static str, String)]) {
    let mut request = Request::builder()
        .method(Method::POST)
        .uri("/mutate?timeout=2s")
        .header(header::CONTENT_TYPE, "application/json");
    for (name, value) in headers {
        request = request.header(*name, value);
    }
    let request = request.body(Body::from(body)).unwrap();
    let started = Instant::now();
    let response = webhook.router.clone().oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("\"allowed\":true"));
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "it waited for the collector"
    );
}

fn traceparent(flags: &str) -> (&'static str, String) {
    (
        "traceparent",
        format!("00-{TRACE:032x}-{THEIR_SPAN:016x}-{flags}"),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn admission_continues_the_trace_with_its_phases_below() {
    let (url, received) = collector(true).await;
    let (webhook, exporter) = traced(&url);
    let pod = json!({
        "metadata": {"generateName": "web-"},
        "spec": {"containers": [{"name": "app", "image": format!("{HOST}/app:v1"),
            "env": [{"name": "PASSWORD", "value": "hunter2"}]}]},
    });
    let state = ("tracestate", "vendor=opaque".to_owned());
    send(
        &webhook,
        review_of("t-1", &pod),
        &[traceparent("01"), state],
    )
    .await;
    exporter.finish(Duration::from_secs(5)).await;

    let spans = received.spans();
    let named = |name: &str| {
        let mut of_it = spans.iter().filter(|span| span.name == name);
        let span = of_it.next().unwrap_or_else(|| panic!("no span {name}"));
        assert!(of_it.next().is_none(), "two spans {name}");
        span
    };
    let admission = named("admission");
    assert_eq!(number(&admission.trace_id), TRACE);
    assert_eq!(number(&admission.parent_span_id), THEIR_SPAN);
    assert_eq!(admission.trace_state, "", "a stranger's text is not kept");
    for phase in ["parse", "decide", "token", "write"] {
        let span = named(phase);
        assert_eq!(number(&span.trace_id), TRACE, "{phase}");
        assert_eq!(span.parent_span_id, admission.span_id, "{phase}");
        assert!(span.start_time_unix_nano >= admission.start_time_unix_nano);
        assert!(span.end_time_unix_nano <= admission.end_time_unix_nano);
    }
    assert_eq!(spans.len(), 5);
    let told = texts(&admission.attributes);
    for (key, value) in [
        ("uid", "t-1"),
        ("namespace", NAMESPACE),
        ("owner_kind", "Pod"),
        ("owner", "web-"),
        ("decision", "inject"),
        ("reason", "provisioned"),
        ("registries", HOST),
        ("token_source", "minted"),
        ("secret_outcome", "written"),
    ] {
        assert_eq!(told.get(key).map(String::as_str), Some(value), "{key}");
    }
    let resource = received.requests()[0].resource_spans[0].resource.clone();
    let resource = resource.unwrap().attributes;
    let about = texts(&resource);
    assert_eq!(about["service.name"], "ecr-injector");
    assert_eq!(about["service.instance.id"], "replica-1");
    for body in received.bodies() {
        let text = String::from_utf8_lossy(&body);
        for secret in ["token-1", "QVdTOnRva2VuLT", "hunter2", "PASSWORD", "app:v1"] {
            assert!(!text.contains(secret), "{secret}");
        }
    }
    assert_eq!(
        webhook.metric(r#"ecr_injector_trace_spans_total{outcome="sent"}"#),
        5
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unsampled_trace_is_not_sent_and_a_missing_one_begins() {
    let (url, received) = collector(true).await;
    let (webhook, exporter) = traced(&url);
    send(&webhook, review("t-2", "nginx"), &[traceparent("00")]).await;
    send(&webhook, review("t-3", "nginx"), &[]).await;
    let broken = ("traceparent", "00-zz-yy-01".to_owned());
    send(&webhook, review("t-4", "nginx"), &[broken]).await;
    exporter.finish(Duration::from_secs(5)).await;
    let spans = received.spans();
    let roots: Vec<&Span> = spans.iter().filter(|it| it.name == "admission").collect();
    let uids: BTreeSet<String> = roots
        .iter()
        .map(|it| texts(&it.attributes)["uid"].clone())
        .collect();
    assert_eq!(uids, BTreeSet::from(["t-3", "t-4"].map(str::to_owned)));
    let traces: BTreeSet<_> = spans.iter().map(|it| it.trace_id.clone()).collect();
    assert_eq!(traces.len(), 2);
    assert!(roots.iter().all(|it| it.parent_span_id.is_empty()));
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_collector_holds_up_nobody_and_its_queue_is_bounded() {
    let (url, received) = collector(false).await;
    let (webhook, exporter) = traced(&url);
    let count = 2 * QUEUE;
    let started = Instant::now();
    for number in 0..count {
        send(&webhook, review(&format!("u-{number}"), "nginx"), &[]).await;
    }
    let took = started.elapsed();
    let started = Instant::now();
    exporter.finish(Duration::from_secs(1)).await;
    let ended = started.elapsed();
    assert!(ended < Duration::from_secs(3), "{ended:?}");
    assert!(!received.spans().is_empty(), "it was asked");
    // Each admission made three spans, and none could be sent. A call that was given up while they were made frees a batch.
    let lost = |outcome: &str| {
        webhook.metric(&format!(
            "ecr_injector_trace_spans_total{{outcome=\"{outcome}\"}}"
        ))
    };
    assert_eq!(lost("sent"), 0);
    let waited = 3 * count - lost("dropped") - lost("failed");
    assert!(waited <= QUEUE, "{waited} waited, after {took:?}");
    assert!(lost("dropped") > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_collector_is_counted_and_costs_no_admission() {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", socket.local_addr().unwrap());
    drop(socket);
    let (webhook, exporter) = traced(&url);
    for number in 0..100 {
        send(&webhook, review(&format!("u-{number}"), "nginx"), &[]).await;
    }
    exporter.finish(Duration::from_secs(30)).await;
    let failed = webhook.metric(r#"ecr_injector_trace_spans_total{outcome="failed"}"#);
    assert_eq!(failed, 300);
}

#[tokio::test(flavor = "multi_thread")]
async fn immediate_end_does_not_wait_for_the_collector() {
    let (url, _received) = collector(false).await;
    let (webhook, exporter) = traced(&url);
    send(&webhook, review("t-5", "nginx"), &[]).await;
    let started = Instant::now();
    drop(exporter);
    drop(webhook);
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[tokio::test]
async fn endpoint_that_is_no_url_is_an_error_at_the_start() {
    support::crypto();
    let error =
        Traces::start(Some("not a url"), "replica-1", Metrics::default().traces).unwrap_err();
    assert!(error.to_string().contains("not a url"), "{error}");
}
