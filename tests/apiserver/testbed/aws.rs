//! The fake AWS, as the real SDK sees it: what these tests hold is what every test against the fake rests on.

use std::time::{Duration, SystemTime};

use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials as _, SharedCredentialsProvider};
use aws_sdk_ecr::config::http::HttpResponse;
use aws_sdk_ecr::config::retry::RetryConfig;
use aws_sdk_ecr::config::timeout::TimeoutConfig;
use aws_sdk_ecr::config::{BehaviorVersion, Region};
use aws_sdk_ecr::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_ecr::operation::get_authorization_token::{
    GetAuthorizationTokenError, GetAuthorizationTokenOutput,
};
use aws_sdk_sts::operation::assume_role::builders::AssumeRoleFluentBuilder;
use aws_sdk_sts::types::Tag;
use aws_smithy_async::rt::sleep::{SharedAsyncSleep, TokioSleep};
use aws_smithy_http_client::Builder as HttpClientBuilder;
use aws_types::SdkConfig;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use jiff::Timestamp;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::support::connect_proxy::Tunnel;
use crate::support::fake_aws::metadata::{
    ClosedPort, ContainerCredentials, InstanceMetadata, Manners,
};
use crate::support::fake_aws::{
    ACCESS_KEY, Keys, Outcome, SECRET_MARKER, USER, password_of, secret_access_key,
    web_identity_token,
};
use crate::support::{Authority, Behaviour, ConnectProxy, FakeAws, Garbage, crypto};

const ECR_TARGET: &str =
    "X-Amz-Target: AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken\r\n";
const ROLE: &str = "arn:aws:iam::111122223333:role/ecr-pull";
const OTHER_ROLE: &str = "arn:aws:iam::444455556666:role/ecr-pull";

type EcrResult =
    Result<GetAuthorizationTokenOutput, SdkError<GetAuthorizationTokenError, HttpResponse>>;

#[tokio::test]
async fn fake_gives_a_token_that_the_real_sdk_reads() {
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
        knobs.lifetime = Some(Duration::from_mins(10));
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
async fn call_without_a_known_key_is_refused() {
    let aws = FakeAws::start();

    let unsigned = http_post(&aws, ECR_TARGET, "{}").await;
    assert!(unsigned.starts_with("HTTP/1.1 403"), "{unsigned}");
    assert!(unsigned.contains("MissingAuthenticationTokenException"));

    let stranger = Keys {
        access_key: "AKIASTRANGER".to_owned(),
        ..user()
    };
    let stranger = ecr(&aws, "eu-west-1", &stranger)
        .get_authorization_token()
        .send()
        .await;
    let error = stranger.unwrap_err().into_service_error();
    assert_eq!(error.code(), Some("UnrecognizedClientException"));
}

#[tokio::test]
async fn signature_for_another_service_counts_for_nothing() {
    let aws = FakeAws::start();

    let answer = http_post(&aws, &format!("{ECR_TARGET}{}", signed_for("sts")), "{}").await;
    assert!(answer.contains("UnrecognizedClientException"), "{answer}");
    let answer = http_post(&aws, &format!("{ECR_TARGET}{}", signed_for("ecr")), "{}").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let services = aws.calls();
    let services: Vec<_> = services.iter().map(|call| &call.signed_service).collect();
    assert_eq!(services, ["sts", "ecr"]);
}

#[tokio::test]
async fn leak_is_found_in_whatever_form_it_has() {
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
async fn call_says_by_whom_and_to_what_name_it_was_made() {
    let aws = FakeAws::start();

    token(&aws, "eu-west-1").await.unwrap();

    let call = aws.calls().remove(0);
    assert_eq!(call.host, aws.address().to_string());
    assert_eq!(call.path, "/");
    assert_eq!(
        (call.region.as_str(), call.signed_service.as_str()),
        ("eu-west-1", "ecr")
    );
    assert_eq!(call.principal, USER);
    assert!(!call.session_token);
}

#[tokio::test]
async fn ecr_public_answers_the_real_sdk_with_knobs_of_its_own() {
    let aws = FakeAws::start();
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Refuse);
    let client = aws_sdk_ecrpublic::Client::new(&sdk_config(&aws, "us-east-1", &user()));
    let ask = async || client.get_authorization_token().send().await;

    let reply = ask().await.unwrap();

    let data = reply.authorization_data().unwrap();
    let password = password_of(data.authorization_token().unwrap()).unwrap();
    assert_eq!(aws.passwords(), [password]);
    assert!(data.expires_at().unwrap().secs() > Timestamp::now().as_second() + 11 * 3_600);
    let call = aws.calls_to("ecr-public").remove(0);
    assert_eq!(call.operation, "GetAuthorizationToken");
    assert_eq!(
        (call.region.as_str(), call.signed_service.as_str()),
        ("us-east-1", "ecr-public")
    );

    let code = async || {
        let error = ask().await.unwrap_err().into_service_error();
        error.code().unwrap_or_default().to_owned()
    };
    aws.tune_ecr_public(|knobs| knobs.behaviour = Behaviour::Throttle);
    assert_eq!(code().await, "ThrottlingException");
    aws.tune_ecr_public(|knobs| knobs.behaviour = Behaviour::ExpiredToken);
    assert_eq!(code().await, "ExpiredTokenException");
    aws.tune_ecr_public(|knobs| knobs.behaviour = Behaviour::Garbage(Garbage::NoAuthorizationData));
    assert!(ask().await.unwrap().authorization_data().is_none());
    aws.behave();
    assert!(ask().await.is_ok());
}

#[tokio::test]
async fn password_names_whom_it_was_issued_for() {
    let aws = FakeAws::start();
    let role = assumed(assume(&aws, ROLE)).await;
    for keys in [&user(), &role] {
        let client = ecr(&aws, "eu-west-1", keys);
        client.get_authorization_token().send().await.unwrap();
    }

    let passwords = aws.passwords();

    assert_eq!(aws.principal_of(&passwords[0]).as_deref(), Some(USER));
    assert_eq!(aws.principal_of(&passwords[1]).as_deref(), Some(ROLE));
    assert_eq!(aws.principal_of("of nobody"), None);
    let auth = BASE64_STANDARD.encode(format!("AWS:{}", passwords[1]));
    assert_eq!(password_of(&auth).as_ref(), Some(&passwords[1]));
    assert_eq!(password_of("QVdT"), None);
}

#[tokio::test]
async fn assumed_role_gets_keys_that_ecr_knows_the_role_of() {
    let aws = FakeAws::start();
    let tag = |key: &str, value: &str| Tag::builder().key(key).value(value).build().unwrap();
    let call = assume(&aws, ROLE)
        .external_id("shared with nobody")
        .policy(r#"{"Version":"2012-10-17"}"#)
        .tags(tag("cluster", "prod"))
        .tags(tag("namespace", "team & co"));

    let keys = assumed(call).await;
    let client = ecr(&aws, "eu-west-1", &keys);
    let reply = client.get_authorization_token().send().await.unwrap();

    let calls = aws.calls();
    assert_eq!(calls[0].operation, "AssumeRole");
    assert_eq!(calls[0].principal, USER);
    for (name, value) in [
        ("RoleArn", ROLE),
        ("RoleSessionName", "test"),
        ("ExternalId", "shared with nobody"),
        ("Policy", r#"{"Version":"2012-10-17"}"#),
        ("Tags.member.1.Key", "cluster"),
        ("Tags.member.1.Value", "prod"),
        ("Tags.member.2.Value", "team & co"),
    ] {
        assert_eq!(calls[0].parameters[name], value, "{name}");
    }
    assert_eq!(calls[1].principal, ROLE);
    assert!(calls[1].session_token);
    assert_eq!(
        reply.authorization_data()[0].proxy_endpoint(),
        Some("https://111122223333.dkr.ecr.eu-west-1.amazonaws.com")
    );

    let without_token = Keys {
        session_token: None,
        ..keys
    };
    let client = ecr(&aws, "eu-west-1", &without_token);
    assert!(client.get_authorization_token().send().await.is_err());
}

#[tokio::test]
async fn session_lasts_as_long_as_it_was_asked_for() {
    let aws = FakeAws::start();
    let left = async |call: AssumeRoleFluentBuilder| {
        let reply = call.send().await.unwrap();
        let until = reply.credentials().unwrap().expiration().secs();
        until - Timestamp::now().as_second()
    };

    let hour = left(assume(&aws, ROLE)).await;
    assert!((3_595..=3_600).contains(&hour), "{hour}");
    let asked = left(assume(&aws, ROLE).duration_seconds(1_800)).await;
    assert!((1_795..=1_800).contains(&asked), "{asked}");
    aws.tune_sts(|knobs| knobs.lifetime = Some(Duration::from_mins(2)));
    let tuned = left(assume(&aws, ROLE).duration_seconds(1_800)).await;
    assert!((115..=120).contains(&tuned), "{tuned}");
}

#[tokio::test]
async fn sts_holds_to_the_limits_of_sessions() {
    let aws = FakeAws::start();
    let role = assumed(assume(&aws, ROLE)).await;
    let chained = |seconds| assume_as(&aws, &role, OTHER_ROLE).duration_seconds(seconds);

    for call in [
        assume(&aws, ROLE).duration_seconds(899),
        assume(&aws, ROLE).duration_seconds(43_201),
        assume(&aws, ROLE).role_session_name("no spaces"),
        assume(&aws, ROLE).role_session_name("x".repeat(65)),
        chained(3_601),
    ] {
        assert_eq!(sts_code(call).await, "ValidationError");
    }
    assumed(chained(3_600)).await;
    assumed(assume(&aws, ROLE).duration_seconds(43_200)).await;
}

#[tokio::test]
async fn sts_trusts_whom_the_test_says() {
    let aws = FakeAws::start();
    aws.require_external_id(ROLE, "right");
    assert_eq!(sts_code(assume(&aws, ROLE)).await, "AccessDenied");
    let wrong = assume(&aws, ROLE).external_id("wrong");
    assert_eq!(sts_code(wrong).await, "AccessDenied");
    assert_eq!(aws.calls()[1].outcome, Outcome::Rejected("AccessDenied"));
    assumed(assume(&aws, ROLE).external_id("right")).await;
    assumed(assume(&aws, OTHER_ROLE)).await;

    let with_token = async |token: &str| {
        let body = format!(
            "Action=AssumeRoleWithWebIdentity&Version=2011-06-15&RoleSessionName=test\
             &RoleArn={ROLE}&WebIdentityToken={token}"
        );
        http_post(&aws, "", &body).await
    };
    assert!(with_token("any").await.contains("<AccessKeyId>"));
    assert!(with_token("").await.contains("ValidationError"));
    let (old, new) = (web_identity_token("old"), web_identity_token("new"));
    aws.accept_web_identity(&[&new]);
    let refused = with_token(&old).await;
    assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
    assert!(refused.contains("InvalidIdentityToken"), "{refused}");
    let given = with_token(&new).await;
    let (_, rest) = given.split_once("<AccessKeyId>").expect("an access key");
    assert!(rest.starts_with("ASIA"));
    assert_eq!(aws.calls().last().unwrap().parameters["RoleArn"], ROLE);
    assert!(aws.leak_in(&new).is_some());
}

#[tokio::test]
async fn sts_fails_one_role_or_all() {
    let aws = FakeAws::start();
    for (behaviour, code) in [
        (Behaviour::Throttle, "Throttling"),
        (Behaviour::Refuse, "AccessDenied"),
        (Behaviour::ServerError, "InternalFailure"),
        (Behaviour::ExpiredToken, "ExpiredToken"),
    ] {
        aws.tune_sts_for(ROLE, |knobs| knobs.behaviour = behaviour);
        assert_eq!(sts_code(assume(&aws, ROLE)).await, code);
        assumed(assume(&aws, OTHER_ROLE)).await;
    }
    for behaviour in [Behaviour::Hang, Behaviour::Garbage(Garbage::NotJson)] {
        aws.tune_sts_for(ROLE, |knobs| knobs.behaviour = behaviour);
        assert!(assume(&aws, ROLE).send().await.is_err(), "{behaviour:?}");
    }
    aws.tune_sts(|knobs| knobs.behaviour = Behaviour::Refuse);
    for role in [ROLE, OTHER_ROLE] {
        assert_eq!(sts_code(assume(&aws, role)).await, "AccessDenied");
    }
    aws.behave();
    assumed(assume(&aws, ROLE)).await;
}

#[tokio::test]
async fn expired_session_is_refused_as_expired() {
    let aws = FakeAws::start();
    aws.tune_sts(|knobs| knobs.behaviour = Behaviour::Expired);
    let assumed = assumed(assume(&aws, ROLE)).await;
    let hour_ago = Timestamp::now() - Duration::from_hours(1);
    assert!(assumed.expires_at.unwrap() <= hour_ago);
    let issued = aws.session_of(ROLE, hour_ago);

    for keys in [assumed, issued] {
        let client = ecr(&aws, "eu-west-1", &keys);
        let error = client.get_authorization_token().send().await.unwrap_err();
        assert_eq!(
            error.into_service_error().code(),
            Some("ExpiredTokenException")
        );
        let chained = assume_as(&aws, &keys, OTHER_ROLE);
        assert_eq!(sts_code(chained).await, "ExpiredToken");
    }
}

#[tokio::test]
async fn tls_fake_serves_real_names_behind_a_proxy() {
    const NAME: &str = "api.ecr.eu-west-1.amazonaws.com";
    let authority = Authority::new("a private CA");
    let aws = FakeAws::start_tls(&authority, &[NAME, "sts.eu-west-1.amazonaws.com"]);
    let proxy = ConnectProxy::start(aws.address());

    let connection = through(&proxy, &format!("{NAME}:443"), "").await.unwrap();
    let mut connection = trusting(&authority, connection, NAME).await.unwrap();
    let headers = format!("{ECR_TARGET}{}", signed_for("ecr"));
    let answer = exchange(&mut connection, NAME, &headers, "{}").await;

    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(aws.calls()[0].host, NAME);
    assert_eq!(proxy.targets(), [format!("{NAME}:443")]);
    assert!(proxy.plain_requests().is_empty());

    let stranger = Authority::new("another CA");
    let connection = through(&proxy, &format!("{NAME}:443"), "").await.unwrap();
    assert!(trusting(&stranger, connection, NAME).await.is_err());
    assert_eq!(aws.calls().len(), 1);
}

#[tokio::test]
async fn proxy_refuses_on_demand_and_notes_what_came_in_the_clear() {
    let aws = FakeAws::start();
    let proxy = ConnectProxy::start(aws.address());
    proxy.require("user:pass");
    let authorization = format!(
        "Proxy-Authorization: Basic {}\r\n",
        BASE64_STANDARD.encode("user:pass")
    );

    assert_eq!(through(&proxy, "a.example:443", "").await.err(), Some(407));
    assert!(
        through(&proxy, "a.example:443", &authorization)
            .await
            .is_ok()
    );
    proxy.refuse(503);
    let refused = through(&proxy, "a.example:443", &authorization).await;
    assert_eq!(refused.err(), Some(503));

    let noted = |status, credentials: Option<&str>| Tunnel {
        target: "a.example:443".to_owned(),
        credentials: credentials.map(ToOwned::to_owned),
        status,
    };
    assert_eq!(
        proxy.tunnels(),
        [
            noted(407, None),
            noted(200, Some("user:pass")),
            noted(503, Some("user:pass"))
        ]
    );
    proxy.hang();
    let waiting = through(&proxy, "a.example:443", &authorization);
    let waited = tokio::time::timeout(Duration::from_millis(200), waiting).await;
    assert!(waited.is_err());
    assert_eq!(proxy.tunnels()[3].status, 0);

    let mut connection = TcpStream::connect(proxy.url().replace("http://", ""))
        .await
        .unwrap();
    let line = "GET http://169.254.169.254/latest/ HTTP/1.1";
    connection
        .write_all(format!("{line}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 501"), "{answer}");
    assert_eq!(proxy.plain_requests(), [line]);
}

#[tokio::test]
async fn metadata_service_gives_the_real_sdk_a_session_of_its_role() {
    let aws = FakeAws::start();
    let metadata = InstanceMetadata::start(&aws, "node");
    metadata.set_lifetime(Duration::from_hours(2));

    let credentials = from_metadata(&metadata).await.unwrap();

    let left = credentials
        .expiry()
        .unwrap()
        .duration_since(SystemTime::now())
        .unwrap();
    assert!(left > Duration::from_mins(118) && left <= Duration::from_hours(2));
    let paths: Vec<_> = metadata
        .visits()
        .into_iter()
        .map(|visit| visit.path)
        .collect();
    assert_eq!(
        paths,
        [
            "/latest/api/token",
            "/latest/meta-data/iam/security-credentials/",
            "/latest/meta-data/iam/security-credentials/node"
        ]
    );
    let keys = Keys {
        access_key: credentials.access_key_id().to_owned(),
        session_token: credentials.session_token().map(ToOwned::to_owned),
        ..user()
    };
    let client = ecr(&aws, "eu-west-1", &keys);
    client.get_authorization_token().send().await.unwrap();
    assert_eq!(aws.calls()[0].principal, metadata.principal());

    // Version 1 is what a caller without a token speaks.
    let address = metadata.environment().remove(0).1.replace("http://", "");
    let answer = http_get(&address, "/latest/meta-data/iam/security-credentials/", "").await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}

#[tokio::test]
async fn metadata_service_misbehaves_on_demand() {
    let aws = FakeAws::start();
    let metadata = InstanceMetadata::start(&aws, "node");

    for (manners, expected) in [
        (Manners::Hang, "timeout"),
        (Manners::NoRole, "404"),
        (Manners::Fail(403), "forbidden"),
    ] {
        metadata.behave(manners);
        let error = from_metadata(&metadata).await.unwrap_err();
        let error = format!("{error:?}").to_lowercase();
        assert!(error.contains(expected), "{manners:?}: {error}");
    }
    metadata.behave(Manners::Expired);
    // The SDK hopes that they are still good; whom they are sent to says that they aren't.
    let hopeful = from_metadata(&metadata).await.unwrap();
    assert!(hopeful.expiry().unwrap() > SystemTime::now());
    let keys = Keys {
        access_key: hopeful.access_key_id().to_owned(),
        session_token: hopeful.session_token().map(ToOwned::to_owned),
        ..user()
    };
    let client = ecr(&aws, "eu-west-1", &keys);
    let error = client.get_authorization_token().send().await.unwrap_err();
    assert_eq!(
        error.into_service_error().code(),
        Some("ExpiredTokenException")
    );
}

#[tokio::test]
async fn container_endpoint_gives_sessions_to_whom_it_knows() {
    let aws = FakeAws::start();
    let agent = ContainerCredentials::start(&aws, "pod");
    let uri = agent.uri();
    let (address, path) = uri
        .strip_prefix("http://")
        .and_then(|rest| rest.split_once('/'))
        .unwrap();
    let ask = async |authorization: &str| {
        let header = format!("Authorization: {authorization}\r\n");
        http_get(address, &format!("/{path}"), &header).await
    };

    let answer = ask("first").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    let keys = Keys {
        access_key: body["AccessKeyId"].as_str().unwrap().to_owned(),
        session_token: body["Token"].as_str().map(ToOwned::to_owned),
        ..user()
    };
    let client = ecr(&aws, "eu-west-1", &keys);
    client.get_authorization_token().send().await.unwrap();
    assert_eq!(aws.calls()[0].principal, agent.principal());

    agent.accept(&["second"]);
    assert!(ask("first").await.starts_with("HTTP/1.1 401"));
    assert!(ask("second").await.starts_with("HTTP/1.1 200"));
    agent.behave(Manners::Fail(500));
    assert!(ask("second").await.starts_with("HTTP/1.1 500"));
    assert_eq!(
        agent.authorizations(),
        ["first", "first", "second", "second"]
    );

    let closed = ClosedPort::reserve();
    let refused = TcpStream::connect(closed.address()).await.unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

/// The keys that are good from the start.
fn user() -> Keys {
    Keys {
        access_key: ACCESS_KEY.to_owned(),
        secret_access_key: secret_access_key(),
        session_token: None,
        expires_at: None,
    }
}

fn sdk_config(aws: &FakeAws, region: &str, keys: &Keys) -> SdkConfig {
    crypto();
    let credentials = Credentials::new(
        &keys.access_key,
        &keys.secret_access_key,
        keys.session_token.clone(),
        None,
        "test",
    );
    let timeouts = TimeoutConfig::builder().operation_timeout(Duration::from_secs(1));
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .http_client(HttpClientBuilder::new().build_http())
        .endpoint_url(aws.endpoint())
        .region(Region::new(region.to_owned()))
        .credentials_provider(SharedCredentialsProvider::new(credentials))
        .retry_config(RetryConfig::disabled())
        .sleep_impl(SharedAsyncSleep::new(TokioSleep::new()))
        .timeout_config(timeouts.build())
        .build()
}

fn ecr(aws: &FakeAws, region: &str, keys: &Keys) -> aws_sdk_ecr::Client {
    aws_sdk_ecr::Client::new(&sdk_config(aws, region, keys))
}

async fn token(aws: &FakeAws, region: &str) -> EcrResult {
    let client = ecr(aws, region, &user());
    client.get_authorization_token().send().await
}

/// A call of the user's that assumes this role.
fn assume(aws: &FakeAws, role: &str) -> AssumeRoleFluentBuilder {
    assume_as(aws, &user(), role)
}

fn assume_as(aws: &FakeAws, keys: &Keys, role: &str) -> AssumeRoleFluentBuilder {
    aws_sdk_sts::Client::new(&sdk_config(aws, "eu-west-1", keys))
        .assume_role()
        .role_arn(role)
        .role_session_name("test")
}

async fn assumed(call: AssumeRoleFluentBuilder) -> Keys {
    let reply = call.send().await.unwrap();
    let credentials = reply.credentials().unwrap();
    Keys {
        access_key: credentials.access_key_id().to_owned(),
        secret_access_key: credentials.secret_access_key().to_owned(),
        session_token: Some(credentials.session_token().to_owned()),
        expires_at: Timestamp::from_second(credentials.expiration().secs()).ok(),
    }
}

async fn sts_code(call: AssumeRoleFluentBuilder) -> String {
    let error = call.send().await.unwrap_err().into_service_error();
    error.code().unwrap_or_default().to_owned()
}

async fn from_metadata(metadata: &InstanceMetadata) -> aws_credential_types::provider::Result {
    crypto();
    let config =
        ProviderConfig::without_region().with_http_client(HttpClientBuilder::new().build_http());
    let client = aws_config::imds::Client::builder()
        .configure(&config)
        .endpoint(&metadata.environment()[0].1)
        .unwrap()
        .max_attempts(1)
        .build();
    let provider = ImdsCredentialsProvider::builder()
        .imds_client(client)
        .configure(&config)
        .build();
    provider.provide_credentials().await
}

/// The header of a request that the user signed for this service; the fake looks at no signature's value.
fn signed_for(service: &str) -> String {
    format!(
        "Authorization: AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20260101/eu-west-1/{service}/aws4_request, \
         SignedHeaders=host, Signature={}\r\n",
        "0".repeat(64)
    )
}

/// Posts without the SDK, which would sign; returns all of the response.
async fn http_post(aws: &FakeAws, headers: &str, body: &str) -> String {
    let address = aws.address().to_string();
    let mut connection = TcpStream::connect(&address).await.unwrap();
    exchange(&mut connection, &address, headers, body).await
}

async fn exchange(
    connection: &mut (impl AsyncRead + AsyncWrite + Unpin),
    host: &str,
    headers: &str,
    body: &str,
) -> String {
    let request = format!(
        "POST / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut response = Vec::new();
    // A peer that ends without TLS's own goodbye is an error after all was read.
    let _ = connection.read_to_end(&mut response).await;
    String::from_utf8_lossy(&response).into_owned()
}

async fn http_get(address: &str, path: &str, headers: &str) -> String {
    let mut connection = TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{headers}\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut response = String::new();
    connection.read_to_string(&mut response).await.unwrap();
    response
}

/// A tunnel to `target`, or the status that the proxy refused it with.
async fn through(proxy: &ConnectProxy, target: &str, headers: &str) -> Result<TcpStream, u16> {
    let mut connection = TcpStream::connect(proxy.url().replace("http://", ""))
        .await
        .unwrap();
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{headers}\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(connection.read_u8().await.unwrap());
    }
    let head = String::from_utf8_lossy(&head);
    match head.split(' ').nth(1).unwrap().parse().unwrap() {
        200 => Ok(connection),
        status => Err(status),
    }
}

async fn trusting(
    authority: &Authority,
    connection: TcpStream,
    name: &'static str,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    crypto();
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap();
    roots.add(root).unwrap();
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(std::sync::Arc::new(config))
        .connect(ServerName::try_from(name).unwrap(), connection)
        .await
}
