//! The test bed itself, so that a test that fails says something about the webhook and not about what stands around it.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test that can't go on panics, and reads the clock itself"
)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_sdk_ecr::config::http::HttpResponse;
use aws_sdk_ecr::config::retry::RetryConfig;
use aws_sdk_ecr::config::timeout::TimeoutConfig;
use aws_sdk_ecr::config::{BehaviorVersion, Region};
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ecr::operation::get_authorization_token::{
    GetAuthorizationTokenError, GetAuthorizationTokenOutput,
};
use aws_smithy_http_client::Builder as HttpClientBuilder;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{Api, ListParams, PostParams};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use support::child::{GuardedChild, GuardedFolder};
use support::fake_aws::{ACCESS_KEY, Outcome, SECRET_MARKER, secret_access_key};
use support::{Balancer, Behaviour, ControlPlane, FakeAws, Garbage, crypto, eventually, webhook};

mod support;

type EcrResult =
    Result<GetAuthorizationTokenOutput, SdkError<GetAuthorizationTokenError, HttpResponse>>;

#[tokio::test]
async fn an_account_without_rights_is_refused() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace("rights", &[]).await;
    let nobody = plane.as_service_account(&namespace, "nobody").await;

    let answer = Api::<Secret>::namespaced(nobody, &namespace)
        .list(&ListParams::default())
        .await;

    assert!(matches!(answer, Err(kube::Error::Api(status)) if status.code == 403));
}

#[tokio::test]
async fn the_pod_creator_creates_pods_and_nothing_else() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace("creator", &[("team", "blue")]).await;
    let creator = plane.pod_creator().await;
    let pods: Api<Pod> = Api::namespaced(creator.clone(), &namespace);

    let stored = pods
        .create(
            &PostParams::default(),
            &support::pods::pod("one", "example.com/app:1"),
        )
        .await
        .unwrap();

    assert_eq!(support::pods::pull_secrets(&stored), Vec::<&str>::new());
    let secrets = Api::<Secret>::namespaced(creator, &namespace);
    assert!(secrets.list(&ListParams::default()).await.is_err());
}

#[tokio::test]
async fn the_audit_log_tells_who_did_what() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace("audit", &[]).await;
    let reader = plane.as_service_account(&namespace, "reader").await;
    let _refused = Api::<Secret>::namespaced(reader, &namespace)
        .get_opt("some-secret")
        .await;

    let events = plane.audit_events_of(&format!("system:serviceaccount:{namespace}:reader"));

    assert_eq!(events.len(), 1, "{events:?}");
    assert_eq!(events[0]["verb"], "get");
    assert_eq!(events[0]["objectRef"]["name"], "some-secret");
    assert_eq!(events[0]["responseStatus"]["code"], 403);
}

#[tokio::test]
async fn kubectl_applies_many_documents() {
    let plane = ControlPlane::shared().await;
    let namespace = plane.namespace("kubectl", &[]).await;
    let document = |name: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: {namespace}}}\n"
        )
    };

    plane
        .apply(&format!("{}---\n{}", document("one"), document("two")))
        .await;

    let listed = plane
        .kubectl(&["get", "configmaps", "-o", "name", "-n", &namespace])
        .await;
    assert_eq!(
        String::from_utf8_lossy(&listed.stdout),
        "configmap/one\nconfigmap/two\n"
    );
}

#[tokio::test]
async fn two_control_planes_stand_side_by_side_and_controllers_run_when_asked() {
    let first = ControlPlane::shared().await;
    let second = ControlPlane::start_with(support::control_plane::Options {
        controllers: true,
        ..Default::default()
    })
    .await;
    assert_ne!(first.service_ip(9), second.service_ip(9));

    let namespace = second.namespace("apps", &[]).await;
    second
        .apply(&format!(
            "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: app, namespace: {namespace}}}, spec: \
             {{selector: {{matchLabels: {{app: app}}}}, template: {{metadata: {{labels: {{app: app}}}}, spec: \
             {{containers: [{{name: main, image: example.com/app:1}}]}}}}}}}}"
        ))
        .await;

    let pods: Api<Pod> = Api::namespaced(second.admin().await, &namespace);
    let made = eventually(
        "the controllers make the Deployment's Pod",
        Duration::from_secs(20),
        async || pods.list(&ListParams::default()).await.unwrap().items.pop(),
    )
    .await;
    assert!(made.metadata.name.unwrap().starts_with("app-"));
}

#[tokio::test]
async fn a_child_dies_when_its_watcher_loses_us_and_its_folder_goes_too() {
    let folder = GuardedFolder::create();
    let path = folder.path().to_owned();
    let mut child = GuardedChild::spawn(Path::new("sleep"), ["600"], None, path.join("sleep.log"));
    assert!(child.exited().is_none());
    child.signal("CONT");

    child.lose();
    let status = child.ended(Duration::from_secs(5)).await;
    drop(folder);

    assert!(!status.success());
    eventually("the folder is gone", Duration::from_secs(5), async || {
        (!path.exists()).then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_fake_gives_a_token_that_the_real_sdk_reads() {
    let aws = FakeAws::start();

    let output = token(&aws, "eu-west-1").await.unwrap();

    let data = &output.authorization_data()[0];
    let decoded = BASE64_STANDARD
        .decode(data.authorization_token().unwrap())
        .unwrap();
    let decoded = String::from_utf8(decoded).unwrap();
    let (user, password) = decoded.split_once(':').unwrap();
    assert_eq!(user, "AWS");
    assert_eq!(aws.passwords(), [password]);
    assert!(
        (2_300..=2_700).contains(&password.len()),
        "{}",
        password.len()
    );
    let inner: serde_json::Value =
        serde_json::from_slice(&BASE64_STANDARD.decode(password).unwrap()).unwrap();
    assert!(inner["payload"].as_str().unwrap().contains(SECRET_MARKER));
    let expires = data.expires_at().unwrap().secs();
    assert!((inner["expiration"].as_i64().unwrap() - expires).abs() <= 1);
    assert_eq!(
        data.proxy_endpoint().unwrap(),
        "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com"
    );

    let calls = aws.ecr_calls("eu-west-1");
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].operation, "GetAuthorizationToken");
    assert_eq!(calls[0].access_key, ACCESS_KEY);
    assert_eq!(calls[0].outcome, Outcome::Answered);
}

#[tokio::test]
async fn each_kind_of_failure_is_what_it_says() {
    let aws = FakeAws::start();
    let code = async || {
        let error = token(&aws, "eu-west-1").await.unwrap_err();
        let service_error = error.into_service_error();
        service_error.code().map(ToOwned::to_owned)
    };

    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Throttle);
    assert_eq!(code().await.as_deref(), Some("ThrottlingException"));
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Refuse);
    assert_eq!(code().await.as_deref(), Some("AccessDeniedException"));
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::ServerError);
    assert_eq!(code().await.as_deref(), Some("ServerException"));
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Hang);
    let hung = token(&aws, "eu-west-1").await;
    assert!(matches!(hung, Err(SdkError::TimeoutError(_))), "{hung:?}");

    aws.behave();
    assert!(token(&aws, "eu-west-1").await.is_ok());
}

#[tokio::test]
async fn each_kind_of_garbage_is_what_it_says() {
    let aws = FakeAws::start();
    let reply = async |garbage| {
        aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Garbage(garbage));
        token(&aws, "eu-west-1").await
    };
    let decoded = |result: &EcrResult| {
        let data = &result.as_ref().unwrap().authorization_data()[0];
        BASE64_STANDARD.decode(data.authorization_token().unwrap())
    };

    assert!(decoded(&reply(Garbage::BadBase64).await).is_err());
    let no_colon = decoded(&reply(Garbage::NoColon).await).unwrap();
    assert!(!no_colon.contains(&b':'));
    let empty = decoded(&reply(Garbage::EmptyPassword).await).unwrap();
    assert_eq!(empty, b"AWS:");
    let expired = reply(Garbage::Expired).await.unwrap();
    let expiry = expired.authorization_data()[0].expires_at().unwrap();
    assert!(expiry.secs() < jiff::Timestamp::now().as_second());
    let no_expiry = reply(Garbage::MissingExpiry).await.unwrap();
    assert!(no_expiry.authorization_data()[0].expires_at().is_none());
    let none = reply(Garbage::NoAuthorizationData).await.unwrap();
    assert!(none.authorization_data().is_empty());
    assert!(reply(Garbage::NotJson).await.is_err());
    assert!(reply(Garbage::Truncated).await.is_err());
}

#[tokio::test]
async fn knobs_turn_one_region_or_all() {
    let aws = FakeAws::start();
    aws.tune_ecr_in("eu-west-1", |knobs| knobs.behaviour = Behaviour::Refuse);
    assert!(token(&aws, "eu-west-1").await.is_err());
    assert!(token(&aws, "us-east-1").await.is_ok());

    aws.tune_ecr(|knobs| {
        knobs.behaviour = Behaviour::Answer;
        knobs.lifetime = Duration::from_mins(10);
        knobs.inner_lifetime = Some(Duration::from_mins(5));
    });
    for region in ["eu-west-1", "us-east-1"] {
        let output = token(&aws, region).await.unwrap();
        let expiry = output.authorization_data()[0].expires_at().unwrap();
        let left = expiry.secs() - jiff::Timestamp::now().as_second();
        assert!((590..=600).contains(&left), "{left}");
    }
}

#[tokio::test]
async fn a_call_without_a_known_key_is_refused() {
    let aws = FakeAws::start();

    let unsigned = http_post(
        &aws,
        "X-Amz-Target: AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken\r\n",
        "{}",
    )
    .await;
    assert!(unsigned.starts_with("HTTP/1.1 403"), "{unsigned}");
    assert!(unsigned.contains("MissingAuthenticationTokenException"));

    let stranger = ecr(&aws, "eu-west-1", "AKIASTRANGER")
        .get_authorization_token()
        .send()
        .await;
    let error = stranger.unwrap_err().into_service_error();
    assert_eq!(error.code(), Some("UnrecognizedClientException"));
}

#[tokio::test]
async fn an_assumed_role_gets_keys_that_ecr_knows_the_role_of() {
    const ROLE: &str = "arn:aws:iam::111122223333:role/ecr-pull";
    let aws = FakeAws::start();
    let body = "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleSessionName=s\
                &RoleArn=arn%3Aaws%3Aiam%3A%3A111122223333%3Arole%2Fecr-pull&WebIdentityToken=jwt";
    let reply = http_post(&aws, "", body).await;
    let (_, rest) = reply.split_once("<AccessKeyId>").expect("an access key");
    let (access_key, _) = rest.split_once('<').unwrap();

    let assumed = ecr(&aws, "eu-west-1", access_key);
    assumed.get_authorization_token().send().await.unwrap();

    assert_eq!(aws.ecr_calls("eu-west-1")[0].principal, ROLE);
    let calls = aws.calls();
    assert_eq!(calls[0].operation, "AssumeRoleWithWebIdentity");
    assert_eq!(calls[0].parameters["RoleArn"], ROLE);
}

#[tokio::test]
async fn a_leak_is_found_in_whatever_form_it_has() {
    let aws = FakeAws::start();
    token(&aws, "eu-west-1").await.unwrap();
    let password = aws.passwords().remove(0);
    let auth = BASE64_STANDARD.encode(format!("AWS:{password}"));
    let docker_config = format!(r#"{{"auths":{{"host":{{"auth":"{auth}"}}}}}}"#);
    let secret_data = BASE64_STANDARD.encode(&docker_config);
    let bytes = format!("{:?}", password.as_bytes());

    for leaky in [password, auth, docker_config, secret_data, bytes] {
        let log = format!("before {leaky} after");
        assert!(aws.leak_in(&log).is_some(), "{log}");
    }
    assert_eq!(aws.leak_in(&aws.endpoint()), None);
    assert_eq!(aws.leak_in(&"QUJD".repeat(1_000)), None);
}

#[tokio::test]
async fn the_balancer_splits_connections_and_follows_its_backends() {
    let (first, second) = (greeter("first").await, greeter("second").await);
    let balancer = Balancer::start("127.0.0.1:0".parse().unwrap(), &[first, second]);

    for _ in 0..6 {
        greeting(balancer.address()).await;
    }
    assert_eq!(
        balancer.connections(),
        BTreeMap::from([(first, 3), (second, 3)])
    );

    balancer.set_backends(&[second]);
    assert_eq!(greeting(balancer.address()).await, "second");
    assert_eq!(greeting(balancer.address()).await, "second");
}

#[test]
fn metrics_are_summed_by_name_and_labels() {
    let exposition = "# TYPE calls counter\n\
        calls_total{region=\"eu-west-1\",outcome=\"ok\"} 2\n\
        calls_total{region=\"us-east-1\",outcome=\"ok\"} 3\n\
        calls_total_of_another{outcome=\"ok\"} 7\n\
        up 1\n# EOF\n";
    let close_to = |series: &str, expected: f64| {
        assert!((webhook::sum(exposition, series) - expected).abs() < f64::EPSILON);
    };
    close_to("up", 1.0);
    close_to("calls_total", 5.0);
    close_to("calls_total{outcome=\"ok\",region=\"us-east-1\"}", 3.0);
    close_to("calls_total{outcome=\"error\"}", 0.0);
}

fn ecr(aws: &FakeAws, region: &str, access_key: &str) -> aws_sdk_ecr::Client {
    crypto();
    let config = aws_sdk_ecr::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(HttpClientBuilder::new().build_http())
        .endpoint_url(aws.endpoint())
        .region(Region::new(region.to_owned()))
        .credentials_provider(Credentials::new(
            access_key,
            secret_access_key(),
            None,
            None,
            "test",
        ))
        .retry_config(RetryConfig::disabled())
        .timeout_config(
            TimeoutConfig::builder()
                .operation_timeout(Duration::from_secs(1))
                .build(),
        )
        .build();
    aws_sdk_ecr::Client::from_conf(config)
}

async fn token(aws: &FakeAws, region: &str) -> EcrResult {
    ecr(aws, region, ACCESS_KEY)
        .get_authorization_token()
        .send()
        .await
}

/// Posts without the SDK, which would sign; returns all of the response.
async fn http_post(aws: &FakeAws, headers: &str, body: &str) -> String {
    let address = aws.endpoint().replace("http://", "");
    let mut connection = TcpStream::connect(&address).await.unwrap();
    let request = format!(
        "POST / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    connection.read_to_string(&mut response).await.unwrap();
    response
}

/// A server that says its name to each connection, and closes it.
async fn greeter(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            connection.write_all(name.as_bytes()).await.unwrap();
        }
    });
    address
}

async fn greeting(address: SocketAddr) -> String {
    let mut text = String::new();
    let mut connection = TcpStream::connect(address).await.unwrap();
    connection.read_to_string(&mut text).await.unwrap();
    text
}
