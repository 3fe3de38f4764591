//! Traces from end to end: a real API server that traces, the real binary, a collector.

use std::time::Duration;

use crate::support;
use crate::support::bed::{create, image};
use crate::support::collector::{collector, number, texts};
use crate::support::control_plane::{ControlPlane, Options};
use crate::support::installation::{Installation, OPT_IN};
use crate::support::pods::pod;
use crate::support::{FakeAws, Webhook, eventually};

#[tokio::test(flavor = "multi_thread")]
async fn admission_is_a_span_of_the_api_servers_trace() {
    support::crypto();
    let (url, received) = collector(true).await;
    let plane = ControlPlane::start_with(Options {
        traces: true,
        ..Options::default()
    })
    .await;
    let aws = FakeAws::start();
    let installation = Installation::apply(&plane).await;
    let options = installation.webhook(&plane, &aws).await;
    let options = options.with_variable("OTEL_EXPORTER_OTLP_ENDPOINT", &url);
    // Without its being told to end, nothing would be sent within the test's time.
    let options = options.with_variable("OTEL_BSP_SCHEDULE_DELAY", "600000");
    let options = options.with_variable("ECR_INJECTOR_SHUTDOWN_DELAY", "0");
    let mut webhook = Webhook::start(options).await;
    installation.register(&plane).await;
    let namespace = plane.namespace("traced", &[OPT_IN]).await;
    let client = plane.pod_creator().await;
    let admitted = create(&client, &namespace, &pod("web", &image("eu-west-1")), false).await;
    assert_eq!(admitted.unwrap().warnings, [] as [&str; 0]);
    assert!(received.spans().is_empty());
    assert!(webhook.stop().await.success());

    let spans = eventually("the spans", Duration::from_secs(5), async || {
        Some(received.spans()).filter(|spans| !spans.is_empty())
    })
    .await;
    let is_of_the_pod =
        |attributes: &[_]| texts(attributes).get("pod").is_some_and(|it| it == "web");
    let admission = spans
        .iter()
        .find(|span| span.name == "admission" && is_of_the_pod(&span.attributes))
        .expect("the admission's span");
    assert_ne!(
        number(&admission.parent_span_id),
        0,
        "the API server's span"
    );
    let told = texts(&admission.attributes);
    assert_eq!(told["namespace"], namespace);
    assert_eq!(told["reason"], "provisioned");
    for phase in ["parse", "decide", "token", "write"] {
        let mut below = spans
            .iter()
            .filter(|span| span.parent_span_id == admission.span_id);
        assert!(below.any(|span| span.name == phase), "{phase}");
    }
}
