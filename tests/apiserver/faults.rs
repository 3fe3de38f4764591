//! AWS at its worst, seen from the API server: the Pod is admitted in time, the intent is written, and the Secret is
//! completed when AWS comes back.

use std::sync::Arc;
use std::time::Duration;

use crate::support;
use crate::support::bed::{create, hosts, image, post_review_within, registry, review};
use crate::support::control_plane::ControlPlane;
use crate::support::installation::PULL_SECRET;
use crate::support::pods::{pod, pull_secrets};
use crate::support::{Bed, Behaviour, Garbage, Shared, Webhook, eventually, shows};
use ecr_injector::admission::handler::MAX_WAITING;
use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use serde_json::Value;
use tokio::time::Instant;

/// `timeoutSeconds` in the registration.
const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Its webhook logs all that it can.
async fn bed() -> Arc<Bed> {
    static BED: Shared<Bed> = Shared::new();
    BED.get_or_start(async || Bed::start("", "trace").await)
        .await
}

/// One behaviour in one region: a Pod now, and the Secret once AWS is well again.
async fn survives(behaviour: Behaviour, region: &str, label: &str) {
    let bed = bed().await;
    let namespace = bed
        .opted_in(&format!("fault-{label}").replace('_', "-"))
        .await;
    let client = bed.plane.pod_creator().await;
    bed.aws
        .tune_ecr_in(region, |knobs| knobs.behaviour = behaviour);

    let started = Instant::now();
    let admitted = create(&client, &namespace, &pod("web", &image(region)), false)
        .await
        .unwrap();
    let took = started.elapsed();
    assert!(took < WEBHOOK_TIMEOUT, "{took:?}");
    assert_eq!(pull_secrets(&admitted.pod), [PULL_SECRET]);
    let expected = format!(
        "ecr-injector: no credential yet for 1 ECR registry ({label}); image pulls may fail \
         until then"
    );
    assert_eq!(admitted.warnings, [expected]);
    let heading =
        "`no credential yet for 1 ECR registry (REASON); image pulls may fail until then`";
    shows(heading, &admitted.warnings[0]);

    let intent = bed.pull_secret(&namespace).await.unwrap();
    assert_eq!(hosts(&intent), [] as [&str; 0], "a credential was written");
    let state = &intent.metadata.annotations.as_ref().unwrap()["ecr-injector.dev/state"];
    let state: Value = serde_json::from_str(state).unwrap();
    let host = registry(123_456_789_012, region);
    assert!(state["hosts"][&host].is_object(), "no intent: {state}");

    // Within the kubelet's free window nothing has to happen in the cluster for it.
    bed.aws
        .tune_ecr_in(region, |knobs| knobs.behaviour = Behaviour::Answer);
    eventually(
        "the Secret is completed",
        Duration::from_secs(10),
        async || {
            (hosts(&bed.pull_secret(&namespace).await.unwrap()) == [host.as_str()]).then_some(())
        },
    )
    .await;
    let completed = bed.pull_secret(&namespace).await.unwrap();
    assert_eq!(
        completed.metadata.uid, intent.metadata.uid,
        "deleted and made again"
    );
}

#[tokio::test]
async fn pod_is_admitted_while_ecr_throttles() {
    survives(Behaviour::Throttle, "us-east-1", "throttled").await;
}

#[tokio::test]
async fn pod_is_admitted_while_ecr_hangs() {
    survives(Behaviour::Hang, "us-east-2", "deadline").await;
}

#[tokio::test]
async fn pod_is_admitted_while_ecr_refuses() {
    survives(Behaviour::Refuse, "us-west-1", "access_denied").await;
}

#[tokio::test]
async fn pod_is_admitted_while_ecr_fails() {
    survives(Behaviour::ServerError, "us-west-2", "server_error").await;
}

#[tokio::test]
async fn pod_is_admitted_while_ecr_answers_garbage() {
    for (garbage, region, label) in [
        (Garbage::BadBase64, "eu-west-1", "invalid_response"),
        (Garbage::NoColon, "eu-west-2", "invalid_response"),
        (Garbage::EmptyPassword, "eu-west-3", "invalid_response"),
        (Garbage::Expired, "eu-north-1", "invalid_response"),
        (Garbage::MissingExpiry, "eu-central-1", "invalid_response"),
        (
            Garbage::NoAuthorizationData,
            "ap-south-1",
            "invalid_response",
        ),
        (Garbage::NotJson, "ap-northeast-1", "invalid_response"),
        (Garbage::Truncated, "ap-northeast-2", "unreachable"),
    ] {
        survives(Behaviour::Garbage(garbage), region, label).await;
    }
}

#[tokio::test]
async fn long_outage_ends_with_the_next_admission() {
    let bed = bed().await;
    let namespace = bed.opted_in("outage").await;
    let client = bed.plane.pod_creator().await;
    let region = "sa-east-1";
    bed.aws
        .tune_ecr_in(region, |knobs| knobs.behaviour = Behaviour::Refuse);
    create(&client, &namespace, &pod("one", &image(region)), false)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_secs(13)).await;
    let calls = bed.aws.ecr_calls(region).len();
    assert!((4..30).contains(&calls), "{calls} calls in 13 s");
    bed.aws
        .tune_ecr_in(region, |knobs| knobs.behaviour = Behaviour::Answer);
    // The longest pause after a refusal: until then an admission gets the same refusal.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let admitted = create(&client, &namespace, &pod("two", &image(region)), false)
        .await
        .unwrap();
    assert_eq!(admitted.warnings, [] as [&str; 0]);
    assert_eq!(
        hosts(&bed.pull_secret(&namespace).await.unwrap()),
        [registry(123_456_789_012, region)]
    );
}

#[tokio::test]
async fn one_region_that_hangs_holds_no_other_back() {
    let bed = bed().await;
    let client = bed.plane.pod_creator().await;
    let namespace = bed.opted_in("apart").await;
    bed.aws
        .tune_ecr_in("ca-central-1", |knobs| knobs.behaviour = Behaviour::Hang);
    let hanging = async {
        create(
            &client,
            &namespace,
            &pod("hangs", &image("ca-central-1")),
            false,
        )
        .await
        .unwrap()
    };
    let well = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let started = Instant::now();
        let admitted = create(
            &client,
            &namespace,
            &pod("well", &image("ap-southeast-2")),
            false,
        )
        .await
        .unwrap();
        assert_eq!(admitted.warnings, [] as [&str; 0]);
        started.elapsed()
    };
    let (hung, took) = tokio::join!(hanging, well);
    assert_eq!(hung.warnings.len(), 1);
    assert!(took < Duration::from_secs(2), "{took:?}");
}

#[tokio::test]
async fn namespace_that_waits_leaves_places_to_the_others() {
    let bed = Arc::new(Bed::start("", "info").await);
    let client = bed.plane.pod_creator().await;
    let (waiting, warm) = (bed.opted_in("waiting").await, bed.opted_in("warm").await);
    let cold = bed.opted_in("cold").await;
    let first = pod("first", &image("eu-south-2"));
    let admitted = create(&client, &warm, &first, false).await;
    assert_eq!(admitted.unwrap().warnings, [] as [&str; 0]);
    bed.aws
        .tune_ecr_in("ap-northeast-3", |knobs| knobs.behaviour = Behaviour::Hang);
    let hanging = review(&waiting, &pod("hangs", &image("ap-northeast-3")));
    let posted = |review: Value| {
        let bed = bed.clone();
        async move {
            // Long enough for all of them to come in on a busy machine.
            let address = bed.webhook.address();
            post_review_within(&bed.installation, address, &review, 16).await
        }
    };
    // A namespace gets half of the places while it is alone.
    let half = MAX_WAITING / 2;
    let mut reviews: FuturesUnordered<_> =
        (0..half + 20).map(|_| posted(hanging.clone())).collect();
    for _ in 0..20 {
        let answer = reviews.next().await.unwrap();
        let warning = answer["response"]["warnings"][0].as_str().unwrap();
        assert!(warning.contains("overloaded"), "{warning}");
        assert!(answer["response"]["patch"].is_string(), "{answer}");
    }
    let others = async {
        let started = Instant::now();
        for (namespace, region) in [(&warm, "eu-south-2"), (&cold, "eu-south-2")] {
            let pod = pod("next", &image(region));
            let admitted = create(&client, namespace, &pod, false).await;
            assert_eq!(admitted.unwrap().warnings, [] as [&str; 0]);
        }
        started.elapsed()
    };
    let mut rest = Vec::new();
    let rest = async {
        while let Some(answer) = reviews.next().await {
            rest.push(answer);
        }
        rest
    };
    let (took, rest) = tokio::join!(others, rest);
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(rest.len(), half);
    for answer in rest {
        let warning = answer["response"]["warnings"][0].as_str().unwrap();
        assert!(!warning.contains("overloaded"), "{warning}");
    }
}

#[tokio::test]
async fn deny_policy_refuses_with_a_code_that_asks_to_retry() {
    let bed = Bed::start("onFailure: deny\n", "info").await;
    let namespace = bed.opted_in("deny").await;
    let client = bed.plane.pod_creator().await;
    bed.aws
        .tune_ecr(|knobs| knobs.behaviour = Behaviour::Refuse);
    let status = create(&client, &namespace, &pod("web", &image("us-east-1")), false)
        .await
        .unwrap_err();
    assert_eq!(status.code, 503);
    for heading in [
        "`pull secret ecr-pull-secret is not ready`",
        "`admission webhook \"create.ecr-injector.dev\" denied the request`",
    ] {
        shows(heading, &status.message);
    }
    assert!(
        status.message.contains("AccessDenied"),
        "{}",
        status.message
    );
    // A dry run asks AWS for nothing, so nothing can fail.
    create(&client, &namespace, &pod("dry", &image("us-east-1")), true)
        .await
        .unwrap();
    bed.aws.behave();
    eventually("admitted", Duration::from_secs(10), async || {
        create(&client, &namespace, &pod("web", &image("us-east-1")), false)
            .await
            .ok()
    })
    .await;
}

#[tokio::test]
async fn missing_credentials_are_in_the_warning_and_the_log() {
    let plane = ControlPlane::start().await;
    let aws = support::FakeAws::start();
    let installation = support::Installation::apply(&plane).await;
    let mut options = installation.webhook(&plane, &aws).await;
    options.environment.retain(|(name, _)| {
        !matches!(name.as_str(), "AWS_ACCESS_KEY_ID" | "AWS_SECRET_ACCESS_KEY")
    });
    let webhook = Webhook::start(options).await;
    installation.register(&plane).await;
    let namespace = plane
        .namespace("keyless", &[support::installation::OPT_IN])
        .await;
    let client = plane.pod_creator().await;
    let admitted = create(&client, &namespace, &pod("web", &image("us-east-1")), false)
        .await
        .unwrap();
    assert_eq!(
        admitted.warnings,
        [
            "ecr-injector: no credential yet for 1 ECR registry (credentials); image pulls may fail \
         until then"
        ]
    );
    webhook.log_with("no AWS credentials").await;
    assert_eq!(
        webhook.readiness().await,
        Some(200),
        "readiness depends on AWS"
    );
}

/// The last of the file's tests to end: it runs its own faults with everything logged, and then looks at all output.
#[tokio::test]
async fn token_is_in_no_log_metric_event_or_answer() {
    let bed = Bed::start("", "trace").await;
    let client = bed.plane.pod_creator().await;
    let namespace = bed.opted_in("leaks").await;
    let mut told = String::new();
    let behaviours = [
        Behaviour::Answer,
        Behaviour::Throttle,
        Behaviour::Refuse,
        Behaviour::Garbage(Garbage::NoColon),
        Behaviour::Garbage(Garbage::Expired),
        Behaviour::Garbage(Garbage::MissingExpiry),
        Behaviour::Garbage(Garbage::Truncated),
    ];
    let regions = [
        "us-east-1",
        "us-east-2",
        "us-west-1",
        "us-west-2",
        "eu-west-1",
        "eu-west-2",
        "eu-west-3",
    ];
    for (behaviour, region) in behaviours.into_iter().zip(regions) {
        bed.aws
            .tune_ecr_in(region, |knobs| knobs.behaviour = behaviour);
        let admitted = create(&client, &namespace, &pod(region, &image(region)), false)
            .await
            .unwrap();
        let shown = format!("{admitted:?}");
        told.push_str(&shown);
    }
    bed.aws.behave();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let secret = bed.pull_secret(&namespace).await.unwrap();
    assert!(
        hosts(&secret).len() >= 5,
        "too little was minted for this to mean anything"
    );
    told += &serde_json::to_string(&secret.metadata).unwrap();
    told += &bed
        .plane
        .kubectl(&["get", "events", "-A", "-o", "json"])
        .await
        .stdout
        .iter()
        .map(|b| char::from(*b))
        .collect::<String>();
    told += &bed.webhook.metrics().await;
    let log = bed.webhook.log_with("TRACE").await;
    assert_eq!(bed.aws.leak_in(&told), None);
    assert_eq!(bed.aws.leak_in(&log), None);
    let data = serde_json::to_string(&secret.data).unwrap();
    assert!(
        bed.aws.leak_in(&data).is_some(),
        "the search finds nothing where there is a token"
    );
}
