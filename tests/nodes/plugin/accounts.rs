//! Tokens of ServiceAccounts: which role is assumed, under which name, and what STS says to it.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::command::{Node, REGISTRY, Run, request};
use crate::support::fake_aws::SECRET_MARKER;
use crate::support::fake_aws::metadata::InstanceMetadata;
use crate::support::{Behaviour, FakeAws, shows};

pub(crate) const ROLE: &str = "arn:aws:iam::210987654321:role/shop-pull";
const OTHER: &str = "arn:aws:iam::210987654321:role/other";
pub(crate) const OURS: &str = "ecr-injector.dev/role-arn";
const ECR_ROLE: &str = "eks.amazonaws.com/ecr-role-arn";
const POD_ROLE: &str = "eks.amazonaws.com/role-arn";

/// A token as the kubelet gets it from the API server.
pub(crate) fn token(namespace: &str, name: &str) -> String {
    let encode = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    let header = encode(json!({"alg": "RS256"}));
    let claims = encode(json!({
        "aud": ["sts.amazonaws.com"],
        "iss": "https://oidc.example/id/1",
        "sub": format!("system:serviceaccount:{namespace}:{name}"),
    }));
    format!("{header}.{claims}.{SECRET_MARKER}")
}

/// The request of a Pod with this ServiceAccount.
pub(crate) fn pod(token: &str, annotations: &Value) -> Value {
    let mut request = request(&format!("{REGISTRY}/shop/web"));
    request["serviceAccountToken"] = token.into();
    request["serviceAccountAnnotations"] = annotations.clone();
    request
}

fn robot(annotations: &Value) -> Value {
    pod(&token("shop", "robot"), annotations)
}

/// A node without keys, whose role is at hand.
fn without_keys(node: &Node<'_>, metadata: &InstanceMetadata) -> Run {
    let run = node.bare().variables(node.aws.endpoints());
    run.variables(metadata.environment())
}

/// P-30
#[tokio::test]
async fn role_is_assumed_by_the_service_accounts_token_alone() {
    let aws = FakeAws::start();
    let metadata = InstanceMetadata::start(&aws, "node");
    let node = Node::new(&aws);
    let token = token("shop", "robot");
    let run = without_keys(&node, &metadata).request(&pod(&token, &json!({OURS: ROLE})));

    let ran = node.answer(&run).await;

    let password = ran.password();
    assert_eq!(aws.principal_of(&password).unwrap(), ROLE);
    let calls = aws.calls();
    let [sts, ecr] = &calls[..] else {
        panic!("{calls:?}")
    };
    assert_eq!(sts.operation, "AssumeRoleWithWebIdentity");
    assert_eq!((&*sts.access_key, &*sts.region), ("", ""), "unsigned");
    assert_eq!(sts.parameters["WebIdentityToken"], token);
    assert_eq!(sts.parameters["RoleArn"], ROLE);
    assert_eq!(sts.parameters["RoleSessionName"], "shop.robot");
    assert!(ecr.session_token);
    assert!(metadata.visits().is_empty(), "{:?}", metadata.visits());
}

/// P-31, P-32, P-33
#[tokio::test]
async fn annotations_name_the_role_in_order() {
    for (annotations, arguments, expected) in [
        (json!({POD_ROLE: OTHER, OURS: ROLE}), &[][..], ROLE),
        (json!({POD_ROLE: OTHER, ECR_ROLE: ROLE}), &[], ROLE),
        (json!({ECR_ROLE: ROLE}), &[], ROLE),
        (json!({POD_ROLE: ROLE}), &[], ROLE),
        (
            json!({OURS: OTHER, "a": ROLE}),
            &["--role-annotation", "a", "--role-annotation", OURS],
            ROLE,
        ),
        (
            json!({"b": OTHER}),
            &[],
            "arn:aws:iam::210987654321:role/default",
        ),
        (json!(null), &[], "arn:aws:iam::210987654321:role/default"),
    ] {
        let aws = FakeAws::start();
        let node = Node::new(&aws);
        let run = node
            .run()
            .arguments(arguments)
            .variable("AWS_ECR_ROLE_ARN", "arn:aws:iam::210987654321:role/default")
            .request(&robot(&annotations));
        node.answer(&run).await.password();
        assert_eq!(
            aws.calls()[0].parameters["RoleArn"],
            expected,
            "{annotations}"
        );
    }
}

/// P-34
#[tokio::test]
async fn service_account_without_a_role_gets_nothing_by_default() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let run = node.run().request(&robot(&json!({})));
    let ran = node.answer(&run).await;
    ran.failed(
        1,
        &[
            OURS,
            ECR_ROLE,
            POD_ROLE,
            "AWS_ECR_ROLE_ARN",
            "--without-role ambient",
        ],
    );
    assert!(aws.calls().is_empty());

    let ran = node
        .answer(&run.arguments(&["--without-role", "ambient"]))
        .await;
    let principal = aws.principal_of(&ran.password()).unwrap();
    assert_eq!(principal, crate::support::fake_aws::USER);
}

/// P-35
#[tokio::test]
async fn token_is_kept_no_longer_than_the_session_that_asked() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let run = node.run().request(&robot(&json!({OURS: ROLE})));
    let ran = node.answer(&run).await;
    assert!((1700..=1800).contains(&ran.keep()), "{ran:?}");
    let other = pod(&token("shop", "other"), &json!({OURS: ROLE}));
    let run = node
        .run()
        .arguments(&["--session-duration", "4h"])
        .request(&other);
    let ran = node.answer(&run).await;
    assert!((7100..=7200).contains(&ran.keep()), "{ran:?}");
}

/// P-36, P-37
#[tokio::test]
async fn role_that_is_none_or_elsewhere_is_not_called_for() {
    let long = "x".repeat(3000);
    for (text, expected) in [
        ("arn:aws-cn:iam::210987654321:role/pull", "partition aws-cn"),
        (
            "not-an-arn",
            "\"not-an-arn\", the role of ecr-injector.dev/role-arn",
        ),
        ("arn:aws:iam::210987654321:role/a\nb", "\\n"),
        ("", "is not the ARN of a role"),
        (&long, "is not the ARN of a role"),
    ] {
        let aws = FakeAws::start();
        let node = Node::new(&aws);
        let run = node
            .run()
            .request(&robot(&json!({OURS: text, POD_ROLE: ROLE})));
        let ran = node.answer(&run).await;
        ran.failed(1, &[expected]);
        assert!(aws.calls().is_empty());
    }
}

/// P-38
#[tokio::test]
async fn errors_of_sts_say_what_to_check() {
    let sub = "system:serviceaccount:shop:robot";
    let issuer = "https://oidc.example/id/1";
    for (behaviour, calls, texts) in [
        (
            Behaviour::Refuse,
            1,
            &["AccessDenied", "trust policy", "`sub` and `aud`", sub][..],
        ),
        (
            Behaviour::Code("InvalidIdentityToken", "Incorrect token audience"),
            1,
            &["Incorrect token audience", "sts.amazonaws.com"],
        ),
        (
            Behaviour::Code(
                "InvalidIdentityToken",
                "No OpenIDConnect provider found in your account",
            ),
            1,
            &[
                "No OpenIDConnect provider",
                "OIDC provider for the token's issuer",
                issuer,
            ],
        ),
        (
            Behaviour::ExpiredToken,
            1,
            &["ExpiredTokenException", "clock of the node"],
        ),
        (
            Behaviour::Code(
                "IDPCommunicationError",
                "Couldn't retrieve verification key",
            ),
            3,
            &["IDPCommunicationError"],
        ),
        (Behaviour::Throttle, 3, &["is throttled"]),
        (Behaviour::ServerError, 3, &["failed on AWS's side"]),
        (Behaviour::Expired, 1, &["expired credentials"]),
    ] {
        let aws = FakeAws::start();
        let node = Node::new(&aws);
        aws.tune_sts(|knobs| knobs.behaviour = behaviour);
        let run = node.run().request(&robot(&json!({OURS: ROLE})));
        let ran = node.answer(&run).await;
        ran.failed(1, texts);
        if behaviour == Behaviour::Refuse {
            shows(
                "`STS's AssumeRoleWithWebIdentity of … was refused`",
                &ran.err,
            );
        }
        assert_eq!(aws.calls().len(), calls, "{behaviour:?}");
    }
}

/// P-39
#[tokio::test]
async fn token_that_cannot_be_read_is_sent_all_the_same() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let token = format!("opaque-{SECRET_MARKER}");
    let run = node.run().request(&pod(&token, &json!({OURS: ROLE})));
    for runs in 1..=2 {
        node.answer(&run).await.password();
        let calls = aws.calls_to("sts");
        assert_eq!(calls.len(), runs, "whose token it is isn't known");
        assert_eq!(calls[0].parameters["RoleSessionName"], "ecr-injector");
    }
    aws.tune_sts(|knobs| knobs.behaviour = Behaviour::Refuse);
    node.answer(&run).await.failed(1, &["AccessDenied"]);
}

/// P-42
#[tokio::test]
async fn service_accounts_share_no_token() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let mut passwords = Vec::new();
    for name in ["robot", "courier", "robot"] {
        let request = pod(&token("shop", name), &json!({OURS: ROLE}));
        passwords.push(node.answer(&node.run().request(&request)).await.password());
    }
    assert_ne!(passwords[0], passwords[1]);
    assert_eq!(passwords[0], passwords[2]);
    assert_eq!(aws.calls_to("sts").len(), 2);
    let files = std::fs::read_dir(node.tokens()).unwrap();
    let names = files.map(|file| file.unwrap().path());
    let tokens = names.filter(|path| path.extension().unwrap() == "json");
    assert_eq!(tokens.count(), 2);
}

#[tokio::test]
async fn outage_of_sts_ends_as_it_is_told_to() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let run = node.run().request(&robot(&json!({OURS: ROLE})));
    let start_cached = run.clone().arguments(&["--on-outage", "start-cached"]);
    aws.tune_sts(|knobs| knobs.behaviour = Behaviour::ServerError);
    node.answer(&run).await.failed(1, &["failed on AWS's side"]);

    let ran = node.answer(&start_cached).await;
    assert_eq!((ran.password(), ran.keep()), (String::new(), 0));
    assert!(ran.err.contains("failed on AWS's side"), "{ran:?}");

    aws.behave();
    let before = node.answer(&run).await.password();
    super::cache::age(&node, Duration::from_hours(13), Duration::from_hours(12));
    aws.tune_sts(|knobs| knobs.behaviour = Behaviour::ServerError);
    let ran = node.answer(&start_cached).await;
    assert_eq!((ran.password(), ran.keep()), (before, 0));

    aws.tune_sts(|knobs| knobs.behaviour = Behaviour::Refuse);
    node.answer(&start_cached)
        .await
        .failed(1, &["AccessDenied"]);
    // Only a ServiceAccount's images are started by its credential.
    aws.behave();
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::ServerError);
    let node = Node::new(&aws);
    let run = node.run().arguments(&["--on-outage", "start-cached"]);
    node.answer(&run).await.failed(1, &["failed on AWS's side"]);
}
