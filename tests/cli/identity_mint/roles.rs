//! Roles: what STS is asked for, who ECR is then asked by, and how long the token may live.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::command::{Identity, REGION, REGISTRY, ROLE, Run};
use crate::support::fake_aws::{Call, USER};
use crate::support::{Behaviour, FakeAws, Garbage};

const PULL_ACTIONS: [&str; 4] = [
    "ecr:BatchGetImage",
    "ecr:BatchImportUpstreamImage",
    "ecr:GetAuthorizationToken",
    "ecr:GetDownloadUrlForLayer",
];

/// A configuration whose one rule assumes [`ROLE`] in this manner, with these further lines.
fn config(manner: &str, further: &str) -> String {
    format!("identities:\n- assumeRole: {{roleArn: \"{ROLE}\"{manner}}}\n{further}")
}

fn identity<'a>(aws: &'a FakeAws, config: &str) -> Identity<'a> {
    Identity::of(aws, REGISTRY)
        .variables(aws.environment())
        .config(config)
}

/// The one call that assumed a role.
#[track_caller]
fn assumption(aws: &FakeAws) -> Call {
    let mut calls = aws.calls_to("sts");
    assert_eq!(calls.len(), 1, "{calls:#?}");
    calls.remove(0)
}

/// Asserts that the report names [`ROLE`] as the identity that mints.
#[track_caller]
fn is_role(run: &Run) {
    let identity = &run.report["identity"];
    assert_eq!(identity["kind"], "role", "{run:#?}");
    assert_eq!(identity["roleArn"], ROLE, "{run:#?}");
}

#[tokio::test]
async fn role_of_the_rule_that_matches_mints() {
    let aws = FakeAws::start();

    let run = identity(&aws, &config("", "")).mint().await;

    run.minted("environment");
    is_role(&run);
    let call = assumption(&aws);
    assert_eq!(call.operation, "AssumeRole");
    assert_eq!(call.principal, USER);
    assert_eq!(call.parameters["RoleArn"], ROLE);
    for absent in ["ExternalId", "Policy"] {
        assert!(!call.parameters.contains_key(absent), "{call:#?}");
    }
    let calls = aws.ecr_calls(REGION);
    assert_eq!(calls.len(), 1);
    assert_eq!(calls[0].principal, ROLE);
    assert!(calls[0].session_token);
    let password = aws.passwords().remove(0);
    assert_eq!(aws.principal_of(&password).as_deref(), Some(ROLE));
}

#[tokio::test]
async fn rule_for_others_leaves_the_ambient_identity() {
    for narrowed in [
        "accounts: [\"999999999999\"]",
        "regions: [us-east-1]",
        "namespaces: [\"team-b\"]",
    ] {
        let aws = FakeAws::start();
        let config = format!("identities:\n- {narrowed}\n  assumeRole: {{roleArn: \"{ROLE}\"}}\n");

        let run = identity(&aws, &config).mint().await;

        run.minted("environment");
        assert_eq!(run.report["identity"], json!({"kind": "ambient"}));
        assert!(aws.calls_to("sts").is_empty());
        assert_eq!(aws.ecr_calls(REGION)[0].principal, USER);
    }
}

#[tokio::test]
async fn call_to_sts_carries_what_the_rule_says() {
    let aws = FakeAws::start();
    aws.require_external_id(ROLE, "shared:with/them");
    let manner = ", externalId: shared:with/them, duration: 30m, sessionName: pulls, \
                  tags: {team: blue, cost-center: \"42 = more\"}, stsRegion: eu-central-1";

    let run = identity(&aws, &config(manner, "clusterName: prod\n"))
        .variable("RUST_LOG", "trace")
        .mint()
        .await;

    run.minted("environment");
    let call = assumption(&aws);
    for (name, value) in [
        ("ExternalId", "shared:with/them"),
        ("DurationSeconds", "1800"),
        ("RoleSessionName", "pulls"),
    ] {
        assert_eq!(call.parameters[name], value, "{call:#?}");
    }
    for (key, value) in [("team", "blue"), ("cost-center", "42 = more")] {
        assert_eq!(tag(&call, key), Some(value), "{call:#?}");
    }
    assert_eq!(call.region, "eu-central-1");
    assert_eq!(call.signed_service, "sts");
    // ECR is asked where the registry is all the same.
    assert_eq!(aws.calls_to("ecr")[0].region, REGION);
}

/// The value of a session tag.
fn tag<'a>(call: &'a Call, key: &str) -> Option<&'a str> {
    let (name, _) = call
        .parameters
        .iter()
        .find(|(name, value)| name.ends_with(".Key") && *value == key)?;
    let value = name.replace(".Key", ".Value");
    Some(call.parameters.get(&value)?.as_str())
}

/// The fake refuses a name that STS wouldn't take.
#[tokio::test]
async fn session_is_named_so_that_awss_own_logs_say_who_it_was() {
    let long = "a-namespace-with-a-name-as-long-as-kubernetes-allows-it-to-be-1";
    for (manner, namespace, expected) in [
        // One session is for many namespaces, so by default none is named.
        ("", "team-a", "ecr-injector-prod"),
        (
            ", sessionName: \"{cluster}.{namespace}\"",
            "team-a",
            "prod.team-a",
        ),
        (
            ", sessionName: \"{cluster}.{namespace}\"",
            long,
            "prod.a-namespace-with-a-name",
        ),
    ] {
        let aws = FakeAws::start();

        let config = config(manner, "clusterName: prod\n");
        let run = identity(&aws, &config)
            .argument("--namespace", namespace)
            .mint()
            .await;

        run.minted("environment");
        let name = &assumption(&aws).parameters["RoleSessionName"];
        assert!(name.starts_with(expected), "{name}");
    }
}

#[tokio::test]
async fn session_that_may_only_pull_has_a_policy_of_exactly_that() {
    let aws = FakeAws::start();

    let run = identity(&aws, &config(", pullOnly: true", "")).mint().await;

    run.minted("environment");
    let policy = &assumption(&aws).parameters["Policy"];
    let policy: Value = serde_json::from_str(policy).unwrap();
    assert_eq!(policy["Version"], "2012-10-17");
    let statements = policy["Statement"].as_array().unwrap();
    let mut actions = BTreeSet::new();
    for statement in statements {
        assert_eq!(statement["Effect"], "Allow", "{policy:#}");
        for other in ["NotAction", "NotResource", "Principal"] {
            assert_eq!(statement[other], Value::Null, "{policy:#}");
        }
        let given = statement["Action"].as_array().unwrap();
        actions.extend(given.iter().map(|action| action.as_str().unwrap()));
    }
    assert_eq!(actions, BTreeSet::from(PULL_ACTIONS), "{policy:#}");
}

#[tokio::test]
async fn namespace_may_name_a_role_within_the_patterns_and_no_other() {
    const ALLOW: &str = "namespaceRoles: {allow: [\"arn:aws:iam::*:role/ecr-*\"]}\n";
    let aws = FakeAws::start();

    let run = identity(&aws, ALLOW)
        .argument("--role-arn", ROLE)
        .mint()
        .await;
    run.minted("environment");
    is_role(&run);
    assert_eq!(aws.ecr_calls(REGION)[0].principal, ROLE);
    aws.clear();

    for other in [
        "arn:aws:iam::111122223333:role/admin",
        "arn:aws:iam::111122223333:user/ecr-pull",
        "no ARN",
    ] {
        let run = identity(&aws, ALLOW)
            .argument("--role-arn", other)
            .mint()
            .await;
        assert_eq!(run.code, Some(1), "{run:#?}");
        let refusal = run.report["refusal"].as_str().unwrap();
        assert!(!refusal.is_empty() && run.err.contains(refusal), "{run:#?}");
        assert_eq!(run.report["mint"], Value::Null, "{run:#?}");
    }
    assert!(aws.calls().is_empty(), "refused offline");
}

#[tokio::test]
async fn wrong_external_id_is_refused_and_the_error_names_the_role() {
    let aws = FakeAws::start();
    aws.require_external_id(ROLE, "right");

    for manner in ["", ", externalId: wrong"] {
        let run = identity(&aws, &config(manner, "")).mint().await;
        run.failed("access_denied", &["AssumeRole", ROLE, "AccessDenied"]);
    }
    assert!(aws.calls_to("ecr").is_empty());
}

#[tokio::test]
async fn each_failure_of_sts_is_the_named_error() {
    let aws = FakeAws::start();
    for (behaviour, kind) in [
        (Behaviour::Throttle, "throttled"),
        (Behaviour::Refuse, "access_denied"),
        (Behaviour::ServerError, "server_error"),
        (Behaviour::Hang, "timeout"),
        (Behaviour::Garbage(Garbage::NotJson), "invalid_response"),
        (Behaviour::ExpiredToken, "session_expired"),
        // A session that is over when it is given.
        (Behaviour::Expired, "session_expired"),
    ] {
        aws.tune_sts_for(ROLE, |knobs| knobs.behaviour = behaviour);

        let run = identity(&aws, &config("", "")).mint().await;

        run.failed(kind, &["AssumeRole", ROLE]);
        assert!(aws.calls_to("ecr").is_empty(), "{behaviour:?}");
    }
}

#[tokio::test]
async fn ambient_session_that_has_expired_assumes_no_role() {
    let aws = FakeAws::start();
    let keys = aws.session_of(USER, Timestamp::now() - Duration::from_hours(1));

    let run = Identity::of(&aws, REGISTRY)
        .variables(aws.endpoints())
        .variables(keys.variables())
        .config(&config("", ""))
        .mint()
        .await;

    run.failed("session_expired", &["AssumeRole", ROLE]);
    assert!(aws.calls_to("ecr").is_empty());
}

#[tokio::test]
async fn token_does_not_outlive_the_session_that_asked_for_it() {
    for (manner, expected) in [
        ("", Duration::from_hours(1)),
        (", duration: 15m", Duration::from_mins(15)),
        (", duration: 2h", Duration::from_hours(2)),
        (", duration: 12h", Duration::from_hours(12)),
    ] {
        let aws = FakeAws::start();
        let run = identity(&aws, &config(manner, "")).mint().await;
        run.minted("environment").lasts_about(expected);
    }

    // STS may give less than it was asked for.
    let aws = FakeAws::start();
    aws.tune_sts(|knobs| knobs.lifetime = Some(Duration::from_mins(20)));
    let run = identity(&aws, &config("", "")).mint().await;
    run.minted("environment")
        .lasts_about(Duration::from_mins(20));
}

#[tokio::test]
async fn token_lives_as_long_as_ecr_says_if_the_cap_is_off() {
    let aws = FakeAws::start();

    let config = config("", "refresh: {sessionCap: none}\n");
    let run = identity(&aws, &config).mint().await;

    run.minted("environment")
        .lasts_about(Duration::from_hours(12));
}

#[tokio::test]
async fn role_that_a_role_assumes_keeps_to_an_hour() {
    let aws = FakeAws::start();
    let keys = aws.session_of(
        "arn:aws:iam::123456789012:role/node",
        Timestamp::now() + Duration::from_hours(6),
    );
    let identity = |manner: &str| {
        Identity::of(&aws, REGISTRY)
            .variables(aws.endpoints())
            .variables(keys.variables())
            .config(&config(manner, ""))
    };

    let run = identity("").mint().await;
    run.minted("environment")
        .lasts_about(Duration::from_hours(1));

    // STS gives no longer session to a role, and says so.
    let run = identity(", duration: 2h").mint().await;
    run.failed("access_denied", &["AssumeRole", ROLE, "ValidationError"]);
}
