//! Unit tests of `ecr`.

use aws_config::{BehaviorVersion, SdkConfig};
use aws_credential_types::{Credentials, provider::SharedCredentialsProvider};
use std::sync::Mutex;

use aws_smithy_http_client::test_util::{capture_request, infallible_client_fn};
use aws_smithy_runtime_api::client::http::HttpClient;
use aws_smithy_types::body::SdkBody;
use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::{
    aws::endpoints::RegionEndpoints,
    identity::Identity,
    process::clock::SystemClock,
    registry::{Region, Registry},
    token::{
        MalformedReply,
        cache::{AwsReply, Operation},
    },
};

fn key(host: &str) -> TokenKey {
    let registry: Registry = format!("123456789012.{host}").parse().expect("a registry");
    TokenKey::new(Identity::Ambient, &registry)
}

/// Mints once over a connector that captures the request and gives this reply; returns the
/// request and the result.
async fn ask(
    key: &TokenKey,
    endpoint: Option<&str>,
    status: u16,
    reply: &'static str,
) -> (
    aws_smithy_runtime_api::http::Request,
    Result<Token, MintError>,
) {
    let reply = http::Response::builder()
        .status(status)
        .body(SdkBody::from(reply))
        .expect("a reply");
    let (connector, captured) = capture_request(Some(reply));
    let mut config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .credentials_provider(SharedCredentialsProvider::new(Credentials::for_tests()))
        .sleep_impl(aws_smithy_async::rt::sleep::SharedAsyncSleep::new(
            aws_smithy_async::rt::sleep::TokioSleep::new(),
        ))
        .http_client(connector);
    config.set_endpoint_url(endpoint.map(str::to_owned));
    let environment = AwsEnvironment::from_config(&config.build(), None);
    let ecr = Ecr::new(
        environment,
        Current::new(SessionCap::Auto),
        Current::new(Endpoints::default()),
        Arc::new(SystemClock),
        Arc::default(),
    );
    let minted = ecr.mint(key).await;
    (captured.expect_request(), minted)
}

#[tokio::test]
async fn each_registry_is_asked_at_the_endpoint_of_its_region_and_partition() {
    for (host, uri, region) in [
        (
            "dkr.ecr.eu-west-1.amazonaws.com",
            "https://api.ecr.eu-west-1.amazonaws.com/",
            "eu-west-1",
        ),
        (
            "dkr.ecr-fips.us-east-1.amazonaws.com",
            "https://ecr-fips.us-east-1.amazonaws.com/",
            "us-east-1",
        ),
        (
            "dkr-ecr.us-west-2.on.aws",
            "https://ecr.us-west-2.api.aws/",
            "us-west-2",
        ),
        (
            "dkr-ecr-fips.us-west-2.on.aws",
            "https://ecr-fips.us-west-2.api.aws/",
            "us-west-2",
        ),
        (
            "dkr.ecr.us-gov-west-1.amazonaws.com",
            "https://api.ecr.us-gov-west-1.amazonaws.com/",
            "us-gov-west-1",
        ),
        (
            "dkr.ecr-fips.us-gov-west-1.amazonaws.com",
            "https://ecr-fips.us-gov-west-1.amazonaws.com/",
            "us-gov-west-1",
        ),
        (
            "dkr.ecr.cn-north-1.amazonaws.com.cn",
            "https://api.ecr.cn-north-1.amazonaws.com.cn/",
            "cn-north-1",
        ),
        (
            "dkr-ecr.cn-north-1.on.amazonwebservices.com.cn",
            "https://ecr.cn-north-1.api.amazonwebservices.com.cn/",
            "cn-north-1",
        ),
        (
            "dkr.ecr.eusc-de-east-1.amazonaws.eu",
            "https://api.ecr.eusc-de-east-1.amazonaws.eu/",
            "eusc-de-east-1",
        ),
        (
            "dkr.ecr.us-iso-east-1.c2s.ic.gov",
            "https://api.ecr.us-iso-east-1.c2s.ic.gov/",
            "us-iso-east-1",
        ),
        (
            "dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
            "https://api.ecr.us-isob-east-1.sc2s.sgov.gov/",
            "us-isob-east-1",
        ),
        (
            "dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
            "https://api.ecr.eu-isoe-west-1.cloud.adc-e.uk/",
            "eu-isoe-west-1",
        ),
        (
            "dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
            "https://api.ecr.us-isof-south-1.csp.hci.ic.gov/",
            "us-isof-south-1",
        ),
    ] {
        let (request, _) = ask(&key(host), None, 200, "{}").await;
        assert_eq!(request.uri(), uri, "{host}");
        let signature = request.headers().get("authorization").expect("signed");
        assert!(
            signature.contains(&format!("/{region}/ecr/aws4_request")),
            "{host}: {signature}"
        );
        let target = request.headers().get("x-amz-target");
        assert_eq!(
            target,
            Some("AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken")
        );
    }
}

#[tokio::test]
async fn an_endpoint_of_the_admins_own_replaces_all_others_with_their_flags() {
    for host in [
        "dkr.ecr.eu-west-1.amazonaws.com",
        "dkr-ecr-fips.us-west-2.on.aws",
    ] {
        let (request, _) = ask(&key(host), Some("https://vpce-1.example"), 200, "{}").await;
        assert_eq!(request.uri(), "https://vpce-1.example/", "{host}");
    }
}

/// Returns an environment whose calls end in `client`.
fn environment(client: impl HttpClient + 'static) -> AwsEnvironment {
    let config = SdkConfig::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .credentials_provider(SharedCredentialsProvider::new(Credentials::for_tests()))
        .sleep_impl(aws_smithy_async::rt::sleep::SharedAsyncSleep::new(
            aws_smithy_async::rt::sleep::TokioSleep::new(),
        ))
        .http_client(client);
    AwsEnvironment::from_config(&config.build(), Region::parse("cn-north-1"))
}

fn minting_at(environment: AwsEnvironment, endpoints: Current<Endpoints>) -> Ecr {
    let cap = Current::new(SessionCap::Auto);
    Ecr::new(
        environment,
        cap,
        endpoints,
        Arc::new(SystemClock),
        Arc::default(),
    )
}

#[tokio::test]
async fn panic_below_a_call_is_an_error_that_names_the_credentials() {
    let client = infallible_client_fn(|_| -> http::Response<SdkBody> { panic!("no such header") });
    let ecr = minting_at(environment(client), Current::new(Endpoints::default()));
    let minted = ecr.mint(&key("dkr.ecr.eu-west-1.amazonaws.com")).await;
    let error = minted.expect_err("a panic");
    assert_eq!(error.as_str(), "internal_error");
    let text = error.to_string();
    assert!(text.contains("the caller"), "{text}");
}

#[tokio::test]
async fn replaced_endpoints_count_from_the_next_mint_on() {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let uris = asked.clone();
    let client = infallible_client_fn(move |request: http::Request<SdkBody>| {
        let uri = request.uri().to_string();
        uris.lock().expect("no panic").push(uri);
        http::Response::new(SdkBody::from("{}"))
    });
    let endpoints = Current::new(Endpoints::default());
    let ecr = minting_at(environment(client), endpoints.clone());
    let at = |url: Option<&str>| {
        let of_region = RegionEndpoints {
            ecr: url.map(str::to_owned),
            sts: None,
        };
        let region = Region::parse("eu-west-1").expect("a region");
        endpoints.replace(Endpoints::from([(region, of_region)]));
    };
    let key = key("dkr.ecr.eu-west-1.amazonaws.com");
    for url in [
        None,
        Some("https://vpce-1.example"),
        Some("https://vpce-2.example"),
        None,
    ] {
        at(url);
        assert!(ecr.mint(&key).await.is_err());
    }
    let asked = asked.lock().expect("no panic");
    let own = "https://api.ecr.eu-west-1.amazonaws.com/";
    let expected = [
        own,
        "https://vpce-1.example/",
        "https://vpce-2.example/",
        own,
    ];
    assert_eq!(*asked, expected);
}

#[test]
fn session_cap_of_ambient_credentials_is_asked_for() {
    let now = Timestamp::UNIX_EPOCH;
    let hour = |hours| now + SignedDuration::from_hours(hours);
    let end = Some(hour(1));
    let caps = |cap: SessionCap| (cap.ends_by(end, false, now), cap.ends_by(end, true, now));
    assert_eq!(caps(SessionCap::Auto), (end, None));
    assert_eq!(caps(SessionCap::Session), (end, end));
    assert_eq!(caps(SessionCap::Off), (None, None));
    assert_eq!(caps(SessionCap::After(7200)), (end, Some(hour(2))));
    assert_eq!(SessionCap::Session.ends_by(None, true, now), None);
}

#[tokio::test]
async fn code_of_an_error_is_shown_on_one_short_line() {
    let key = key("dkr.ecr.eu-west-1.amazonaws.com");
    let code = "Denied\\u001b[2J\\n\\u202e";
    let reply = format!(r#"{{"__type":"{code}{}"}}"#, "x".repeat(4_000));
    let (_, minted) = ask(&key, None, 400, reply.leak()).await;
    let text = minted.map(|_| ()).expect_err("no token").to_string();
    assert!(text.contains("Denied [2J \\u{202e}xxx"), "{text}");
    assert!(!text.contains(char::is_control), "{text}");
    assert!(text.len() < 700, "{text}");
}

#[tokio::test]
async fn replies_of_every_kind_have_their_own_error() {
    let call = || Operation::GetAuthorizationToken.into();
    let key = key("dkr.ecr.eu-west-1.amazonaws.com");
    for (status, reply, expected) in [
        (
            200,
            "{}",
            MintError::Unusable(call(), MalformedReply::Missing),
        ),
        (
            200,
            r#"{"authorizationData":[]}"#,
            MintError::Unusable(call(), MalformedReply::Missing),
        ),
        (
            200,
            r#"{"authorizationData":[{"authorizationToken":"QVdTOnB3"}]}"#,
            MintError::Unusable(call(), MalformedReply::NoExpiry),
        ),
        (200, "<html>", MintError::NotAws(call())),
        (
            400,
            r#"{"__type":"ThrottlingException"}"#,
            MintError::Throttled(call(), "ThrottlingException".into()),
        ),
        (
            400,
            r#"{"__type":"AccessDeniedException","message":"not authorized"}"#,
            MintError::Refused(
                call(),
                AwsReply::new("AccessDeniedException", "not authorized"),
            ),
        ),
        (
            500,
            r#"{"__type":"ServerException"}"#,
            MintError::Server(call(), "ServerException".into()),
        ),
        (502, "<html>bad gateway</html>", MintError::NotAws(call())),
    ] {
        let (_, minted) = ask(&key, None, status, reply).await;
        assert_eq!(minted.map(|_| ()), Err(expected), "{status} {reply}");
    }
}
