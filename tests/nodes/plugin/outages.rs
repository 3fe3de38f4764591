//! AWS or the way to it as it shouldn't be: how often it is asked, how long that may take, and who is never asked instead.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use super::command::{Node, REGISTRY};
use crate::support::fake_aws::Outcome;
use crate::support::fake_aws::metadata::{ClosedPort, InstanceMetadata};
use crate::support::{Authority, Behaviour, ConnectProxy, FakeAws, Garbage, eventually};

/// P-50
#[tokio::test]
async fn what_may_be_over_a_moment_later_is_tried_three_times() {
    for (behaviour, calls, texts) in [
        (Behaviour::Throttle, 3, &["is throttled"][..]),
        (Behaviour::ServerError, 3, &["failed on AWS's side"]),
        (
            Behaviour::Refuse,
            1,
            &["AccessDeniedException", "IAM policy"],
        ),
        (Behaviour::ExpiredToken, 1, &["ExpiredToken"]),
        (
            Behaviour::Garbage(Garbage::NotJson),
            1,
            &["not one of AWS's"],
        ),
    ] {
        let aws = FakeAws::start();
        let node = Node::new(&aws);
        aws.tune_ecr(|knobs| knobs.behaviour = behaviour);
        let ran = node.answer(&node.run()).await;
        ran.failed(1, texts);
        assert_eq!(aws.calls().len(), calls, "{behaviour:?}");
    }
}

/// P-50
#[tokio::test]
async fn third_try_succeeds_if_aws_is_back() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Throttle);
    let child = node.run().spawn().await;
    eventually("two calls", Duration::from_secs(20), async || {
        (aws.calls().len() == 2).then(|| aws.behave())
    })
    .await;
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(output.stderr.is_empty());
    let outcomes: Vec<_> = aws.calls().into_iter().map(|call| call.outcome).collect();
    let throttled = Outcome::Failed(Behaviour::Throttle);
    assert_eq!(outcomes, [throttled, throttled, Outcome::Answered]);
}

/// P-50
#[tokio::test]
async fn endpoint_that_does_not_answer_is_given_up_in_time() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Hang);
    let ran = node.answer(&node.run()).await;
    ran.failed(1, &["timed out"]);
    assert!(ran.took < Duration::from_secs(29), "{ran:?}");
    assert_eq!(aws.calls().len(), 3);

    let closed = ClosedPort::reserve();
    let url = format!("http://{}", closed.address());
    let run = node
        .run()
        .without("AWS_ENDPOINT_URL_ECR")
        .variable("AWS_ENDPOINT_URL_ECR", &url);
    let ran = node.answer(&run).await;
    ran.failed(1, &["can't be reached", &url]);
    assert!(ran.took < Duration::from_secs(5), "{ran:?}");
}

/// P-50
#[tokio::test]
async fn redirect_is_an_error_and_is_not_followed() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let target = aws.endpoint();
    // It ends with the process of the tests.
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let _ = connection.read(&mut [0; 16 << 10]);
            counted.fetch_add(1, SeqCst);
            let head =
                format!("HTTP/1.1 302 Found\r\nLocation: {target}/\r\nContent-Length: 0\r\n\r\n");
            connection.write_all(head.as_bytes()).unwrap();
        }
    });
    let run = node
        .run()
        .without("AWS_ENDPOINT_URL_ECR")
        .variable("AWS_ENDPOINT_URL_ECR", &url);
    let ran = node.answer(&run).await;
    ran.failed(1, &[REGISTRY]);
    assert_eq!(asked.load(SeqCst), 1);
    assert!(aws.calls().is_empty());
}

/// P-51
#[tokio::test]
async fn timeout_holds_for_all_of_a_run() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Hang);
    let run = node.run().arguments(&["--timeout", "2s"]);
    let ran = node.answer(&run).await;
    ran.failed(1, &["timed out"]);
    assert!((2000..9000).contains(&ran.took.as_millis()), "{ran:?}");
}

/// A run that waits for another's call keeps time for one of its own.
#[tokio::test]
async fn run_that_waits_for_another_does_not_wait_for_ever() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Hang);
    let first = node.run().spawn().await;
    eventually("a call", Duration::from_secs(20), async || {
        (!aws.calls().is_empty()).then_some(())
    })
    .await;
    aws.behave();
    let run = node.run().arguments(&["--timeout", "12s"]);
    let ran = node.answer(&run).await;
    ran.password();
    assert!((1900..12_000).contains(&ran.took.as_millis()), "{ran:?}");
    drop(first);
}

/// P-52
#[tokio::test]
async fn lack_of_credentials_lists_where_they_were_looked_for() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let run = node.bare().variables(aws.endpoints());
    let ran = node
        .answer(&run.variable("AWS_EC2_METADATA_DISABLED", "true"))
        .await;
    ran.failed(
        1,
        &[
            "environment",
            "profile",
            "web identity",
            "container",
            "instance metadata",
        ],
    );
    assert!(aws.calls().is_empty());
}

/// P-53
#[tokio::test]
async fn wrong_keys_never_fall_back_to_the_nodes_role() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let metadata = InstanceMetadata::start(&aws, "node");
    let run = node
        .bare()
        .variables(aws.endpoints())
        .variables(metadata.environment())
        .variable("AWS_ACCESS_KEY_ID", "AKIAUNKNOWNUNKNOWN00")
        .variable("AWS_SECRET_ACCESS_KEY", "x");
    let ran = node.answer(&run).await;
    ran.failed(1, &["source environment"]);
    assert!(metadata.visits().is_empty());
    let half = node
        .bare()
        .variables(aws.endpoints())
        .variables(metadata.environment());
    let ran = node
        .answer(&half.variable("AWS_ACCESS_KEY_ID", "AKIA"))
        .await;
    ran.failed(1, &["AWS_SECRET_ACCESS_KEY"]);
    assert!(metadata.visits().is_empty());
}

#[tokio::test]
async fn endpoint_of_an_unknown_authority_is_not_trusted() {
    let authority = Authority::new("a CA");
    let aws = FakeAws::start_tls(&authority, &["127.0.0.1"]);
    let node = Node::new(&aws);
    let bundle = node.path("ca.pem");
    std::fs::write(&bundle, Authority::new("another CA").pem()).unwrap();
    for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
        let run = node.run().variable(variable, bundle.to_str().unwrap());
        let ran = node.answer(&run).await;
        ran.failed(1, &["can't be reached", "invalid peer certificate"]);
    }
    assert!(aws.calls().is_empty());
}

/// A node without the package ca-certificates, or with a variable that names nothing.
#[tokio::test]
async fn store_without_certificates_is_the_error_and_no_unknown_issuer() {
    let authority = Authority::new("a CA");
    let aws = FakeAws::start_tls(&authority, &["127.0.0.1"]);
    let node = Node::new(&aws);
    let (missing, empty) = (node.path("missing.pem"), node.path("empty.pem"));
    std::fs::write(&empty, "").unwrap();
    for (bundle, reason) in [
        (missing, "No such file"),
        (empty, "no certificate is in it"),
    ] {
        let bundle = bundle.to_str().unwrap();
        let ran = node
            .answer(&node.run().variable("SSL_CERT_FILE", bundle))
            .await;
        ran.failed(1, &[bundle, reason, "install the package ca-certificates"]);
    }
    assert!(aws.calls().is_empty());
}

/// P-55
#[tokio::test]
async fn proxy_leads_to_aws_and_not_to_the_instance_metadata() {
    const ENDPOINT: &str = "api.ecr.eu-west-1.amazonaws.com";
    let authority = Authority::new("a CA");
    let aws = FakeAws::start_tls(&authority, &[ENDPOINT]);
    let metadata = InstanceMetadata::start(&aws, "node");
    let proxy = ConnectProxy::start(aws.address());
    let node = Node::new(&aws);
    let bundle = node.path("ca.pem");
    std::fs::write(&bundle, authority.pem()).unwrap();
    // A bundle of the admin's own, and one in the place of the system's.
    for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
        let run = node
            .bare()
            .arguments(&["--cache-dir", "none"])
            .variables(metadata.environment())
            .variable("HTTPS_PROXY", &proxy.url())
            .variable("HTTP_PROXY", &proxy.url())
            .variable(variable, bundle.to_str().unwrap());
        let ran = node.answer(&run).await;
        assert_eq!(
            aws.principal_of(&ran.password()).unwrap(),
            metadata.principal()
        );
    }
    let target = format!("{ENDPOINT}:443");
    assert_eq!(proxy.targets(), [target.clone(), target]);
    assert_eq!(proxy.plain_requests(), [""; 0]);
    assert!(!metadata.visits().is_empty());
}
