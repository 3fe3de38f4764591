//! Keys as people have them: with a line break from a file, with quotes, half copied, deleted, of another session; and
//! clocks that are wrong. Each mistake is named with what to do about it.

use std::time::Duration;

use jiff::Timestamp;

use super::command::{Identity, REGION, REGISTRY, ROLE, Run, text};
use crate::support::fake_aws::metadata::ContainerCredentials;
use crate::support::fake_aws::web_identity_token;
use crate::support::{Behaviour, FakeAws};

const PRINCIPAL: &str = "arn:aws:iam::123456789012:user/of-this-test";
/// Texts around a value after `--from-file`, `echo | base64`, an editor on Windows, or a file with quotes.
const AROUND: [(&str, &str); 7] = [
    ("", "\n"),
    ("", "\r\n"),
    (" ", "\t \n"),
    ("\"", "\""),
    ("'", "'\n"),
    ("\u{feff}", "\r\n"),
    ("\u{feff}\"", " \"\n\n"),
];

fn in_an_hour() -> Timestamp {
    Timestamp::now() + Duration::from_hours(1)
}

/// Returns a run with endpoints and without any credentials.
fn identity(aws: &FakeAws) -> Identity<'_> {
    Identity::of(aws, REGISTRY)
        .variables(aws.endpoints())
        .variable("AWS_EC2_METADATA_DISABLED", "true")
}

#[track_caller]
fn minted_once(aws: &FakeAws, run: &Run, source: &str, principal: &str) {
    run.minted(source);
    let calls = aws.ecr_calls(REGION);
    assert_eq!(calls.len(), 1, "{calls:#?}");
    assert_eq!(calls[0].principal, principal);
    aws.clear();
}

#[tokio::test]
async fn keys_with_blanks_line_breaks_or_quotes_mint() {
    let aws = FakeAws::start();
    let keys = aws.session_of(PRINCIPAL, in_an_hour());
    for (before, after) in AROUND {
        let variables = keys.variables().into_iter();
        let variables = variables.map(|(name, value)| (name, format!("{before}{value}{after}")));

        let run = identity(&aws).variables(variables).mint().await;

        minted_once(&aws, &run, "environment", PRINCIPAL);
        let trimmed = &run.report["mint"]["trimmed"];
        for name in [
            "AWS_ACCESS_KEY_ID",
            "AWS_SECRET_ACCESS_KEY",
            "AWS_SESSION_TOKEN",
        ] {
            assert!(trimmed.to_string().contains(name), "{name}: {run:#?}");
        }
    }

    // Of values that are as they should be none is named.
    let run = identity(&aws).variables(keys.variables()).mint().await;
    minted_once(&aws, &run, "environment", PRINCIPAL);
    assert_eq!(run.report["mint"]["trimmed"], serde_json::json!([]));
}

#[tokio::test]
async fn keys_of_a_file_with_blanks_or_quotes_mint() {
    let aws = FakeAws::start();
    let keys = aws.session_of(PRINCIPAL, in_an_hour());
    let token = keys.session_token.clone().unwrap();
    for (start, end, quote) in [
        ("", "\r\n", ""),
        ("\u{feff}", "\r\n", ""),
        ("", "\n", "\""),
        ("", " \r\r\n", "'"),
    ] {
        let pairs = [
            ("aws_access_key_id", &keys.access_key),
            ("aws_secret_access_key", &keys.secret_access_key),
            ("aws_session_token", &token),
        ];
        let lines = pairs.map(|(name, value)| format!("{name} = {quote}{value}{quote}{end}"));
        let file = format!("{start}[default]{end}{}", lines.concat());

        let run = identity(&aws)
            .file("AWS_SHARED_CREDENTIALS_FILE", &file)
            .mint()
            .await;
        minted_once(&aws, &run, "profile", PRINCIPAL);

        // The SDK signs for a role with the keys of the file by itself.
        let file = format!(
            "{file}[puller]{end}role_arn = {quote}{ROLE}{quote}{end}source_profile = default{end}"
        );
        let run = identity(&aws)
            .file("AWS_SHARED_CREDENTIALS_FILE", &file)
            .variable("AWS_PROFILE", "puller\n")
            .mint()
            .await;
        minted_once(&aws, &run, "profile", ROLE);
    }
}

#[tokio::test]
async fn other_variables_with_blanks_or_line_breaks_work() {
    let aws = FakeAws::start();
    let agent = ContainerCredentials::start(&aws, "pod");
    agent.accept(&["the pod's token"]);
    for end in ["\n", "\r\n", "  "] {
        let endpoints = aws.endpoints().into_iter();
        let endpoints: Vec<_> = endpoints
            .map(|(name, value)| (name, value + end))
            .chain([
                ("AWS_REGION".to_owned(), format!("us-east-1{end}")),
                ("AWS_EC2_METADATA_DISABLED".to_owned(), format!("true{end}")),
            ])
            .collect();

        let identity = Identity::of(&aws, REGISTRY).variables(endpoints.clone());
        let token = identity.write("token", &web_identity_token("pod"));
        let run = identity
            .variable(
                "AWS_WEB_IDENTITY_TOKEN_FILE",
                &format!("{}{end}", text(&token)),
            )
            .variable("AWS_ROLE_ARN", &format!("{ROLE}{end}"))
            .mint()
            .await;
        minted_once(&aws, &run, "web_identity", ROLE);

        let identity = Identity::of(&aws, REGISTRY).variables(endpoints);
        let token = identity.write("token", "the pod's token");
        let run = identity
            .variable(
                "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
                &format!("{}{end}", text(&token)),
            )
            .variable(
                "AWS_CONTAINER_CREDENTIALS_FULL_URI",
                &format!("{}{end}", agent.uri()),
            )
            .mint()
            .await;
        minted_once(&aws, &run, "pod_identity", &agent.principal());
    }
}

#[tokio::test]
async fn keys_that_no_request_can_hold_are_named_and_never_sent() {
    let aws = FakeAws::start();
    let keys = aws.session_of(PRINCIPAL, in_an_hour());
    for broken in [
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
    ] {
        for inside in ["\n", "\r\n", " ", "\u{1}", "ö"] {
            let variables = keys.variables().into_iter().map(|(name, value)| {
                let value = if name == broken {
                    format!("{}{inside}{}", &value[..4], &value[4..])
                } else {
                    value
                };
                (name, value)
            });

            let run = identity(&aws).variables(variables).mint().await;

            run.failed("credentials", &["environment", broken]);
            assert!(aws.calls().is_empty(), "{broken} {inside:?}");
        }
    }
}

#[tokio::test]
async fn key_of_a_file_that_no_request_can_hold_is_named_with_the_file() {
    let aws = FakeAws::start();
    let keys = aws.keys_of(PRINCIPAL);
    let file = format!(
        "[default]\naws_access_key_id = {}\u{1}x\naws_secret_access_key = {}\n\
         [puller]\nrole_arn = {ROLE}\nsource_profile = default\n",
        keys.access_key, keys.secret_access_key
    );
    for profile in ["default", "puller"] {
        let run = identity(&aws)
            .file("AWS_SHARED_CREDENTIALS_FILE", &file)
            .variable("AWS_PROFILE", profile)
            .mint()
            .await;

        run.failed(
            "credentials",
            &["profile", "AWS_SHARED_CREDENTIALS_FILE", "access key id"],
        );
        assert!(aws.calls().is_empty());
    }
}

/// Code and message as AWS writes them, the reason that is counted, and words of the advice.
const MISTAKES: [(&str, &str, &str, &[&str]); 14] = [
    (
        "InvalidSignatureException",
        "Signature expired: 20261130T100000Z is now earlier than 20261130T110000Z (20261130T111500Z - 15 min.)",
        "clock_skew",
        &["clock"],
    ),
    (
        "InvalidSignatureException",
        "Signature not yet current: 20261130T120000Z is still later than 20261130T111500Z",
        "clock_skew",
        &["clock"],
    ),
    (
        "SignatureDoesNotMatch",
        "Signature expired: 20261130T100000Z is now earlier than 20261130T110000Z",
        "clock_skew",
        &["clock"],
    ),
    (
        "RequestTimeTooSkewed",
        "The difference is too large.",
        "clock_skew",
        &["clock"],
    ),
    (
        "RequestExpired",
        "Request has expired.",
        "clock_skew",
        &["clock"],
    ),
    (
        "InvalidSignatureException",
        "The request signature we calculated does not match the signature you provided. The Canonical String should \
         have been x-amz-security-token:THIS-IS-SECRET-NEVER-SHOW-IT-ANYWHERE",
        "invalid_signature",
        &["secret access key", "half"],
    ),
    (
        "SignatureDoesNotMatch",
        "The request signature we calculated does not match the signature you provided.",
        "invalid_signature",
        &["secret access key"],
    ),
    (
        "IncompleteSignature",
        "Credential must have exactly 5 slash-delimited elements, got THIS-IS-SECRET-NEVER-SHOW-IT-ANYWHERE",
        "invalid_signature",
        &["AWS_ACCESS_KEY_ID"],
    ),
    (
        "IncompleteSignatureException",
        "'x' not a valid key=value pair in Authorization header",
        "invalid_signature",
        &["AWS_ACCESS_KEY_ID"],
    ),
    (
        "InvalidClientTokenId",
        "The security token included in the request is invalid.",
        "unknown_access_key",
        &["deleted", "AWS_SESSION_TOKEN"],
    ),
    (
        "UnrecognizedClientException",
        "The security token included in the request is invalid.",
        "unknown_access_key",
        &["deleted", "partition", "AWS_SESSION_TOKEN"],
    ),
    (
        "ExpiredTokenException",
        "The security token included in the request is expired",
        "session_expired",
        &["AWS_SESSION_TOKEN"],
    ),
    (
        "ExpiredToken",
        "The security token included in the request is expired",
        "session_expired",
        &["AWS_SESSION_TOKEN"],
    ),
    (
        "AccessDeniedException",
        "User: arn:aws:iam::123456789012:user/x is not authorized to perform: ecr:GetAuthorizationToken",
        "access_denied",
        &["policy"],
    ),
];

#[tokio::test]
async fn each_mistake_of_clock_or_keys_has_its_own_reason_and_advice() {
    let aws = FakeAws::start();
    for (code, message, reason, advice) in MISTAKES {
        aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Code(code, message));

        let run = Identity::of(&aws, REGISTRY)
            .variables(aws.environment())
            .mint()
            .await;

        run.failed(reason, &[&["GetAuthorizationToken", code], advice].concat());
        if reason != "access_denied" {
            assert!(!run.err.contains("IAM policy"), "{run:#?}");
            assert!(run.err.contains("environment"), "no source: {run:#?}");
        }
    }
}

#[tokio::test]
async fn mistakes_have_the_same_reasons_where_a_role_is_assumed() {
    let aws = FakeAws::start();
    let config = format!("identities:\n- assumeRole: {{roleArn: \"{ROLE}\"}}\n");
    for (code, message, reason, advice) in MISTAKES {
        if reason == "access_denied" {
            continue;
        }
        aws.tune_sts(|knobs| knobs.behaviour = Behaviour::Code(code, message));

        let run = Identity::of(&aws, REGISTRY)
            .variables(aws.environment())
            .config(&config)
            .mint()
            .await;

        run.failed(reason, &[&["AssumeRole", ROLE, code], advice].concat());
        assert!(!run.err.contains("trust policy"), "{run:#?}");
        assert!(aws.calls_to("ecr").is_empty());
    }

    // What the session of the role is refused with is no mistake in the variables.
    aws.behave();
    aws.tune_ecr(|knobs| {
        knobs.behaviour = Behaviour::Code("ExpiredTokenException", "The token is expired");
    });
    let run = Identity::of(&aws, REGISTRY)
        .variables(aws.environment())
        .config(&config)
        .mint()
        .await;
    run.failed("session_expired", &["GetAuthorizationToken", ROLE]);
    assert!(!run.err.contains("AWS_SESSION_TOKEN"), "{run:#?}");
}

#[tokio::test]
async fn mistakes_below_a_source_of_credentials_have_their_reasons() {
    let aws = FakeAws::start();
    let web_identity = || {
        identity(&aws)
            .file("AWS_WEB_IDENTITY_TOKEN_FILE", &web_identity_token("pod"))
            .variable("AWS_ROLE_ARN", ROLE)
    };
    for (code, message, reason, advice) in [
        (
            "InvalidIdentityToken",
            "No OpenIDConnect provider found in your account for https://oidc.example",
            "credentials",
            &["OIDC provider"][..],
        ),
        (
            "IDPCommunicationError",
            "The request could not be fulfilled because the identity provider could not be reached",
            "credentials",
            &["OIDC"],
        ),
        (
            "ExpiredTokenException",
            "Token expired: current date/time 1795 must be before the expiration date/time 1794",
            "credentials",
            &["AWS_WEB_IDENTITY_TOKEN_FILE", "clock"],
        ),
        (
            "AccessDenied",
            "Not authorized to perform sts:AssumeRoleWithWebIdentity",
            "credentials",
            &["trust policy"],
        ),
    ] {
        aws.tune_sts(|knobs| knobs.behaviour = Behaviour::Code(code, message));
        let run = web_identity().mint().await;
        run.failed(reason, &[&["web_identity", code], advice].concat());
        assert!(aws.calls_to("ecr").is_empty());
    }

    let keys = aws.keys_of(PRINCIPAL);
    let file = format!(
        "[default]\nrole_arn = {ROLE}\nsource_profile = user\n\
         [user]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        keys.access_key, keys.secret_access_key
    );
    for (code, message, reason, advice) in MISTAKES {
        if reason == "access_denied" {
            continue;
        }
        aws.tune_sts(|knobs| knobs.behaviour = Behaviour::Code(code, message));
        let run = identity(&aws)
            .file("AWS_SHARED_CREDENTIALS_FILE", &file)
            .mint()
            .await;
        run.failed(reason, &["profile", code]);
        if reason == "clock_skew" {
            run.failed(reason, advice);
        }
    }
}

#[tokio::test]
async fn failed_restart_leaves_a_closed_pipe_an_error() {
    let aws = FakeAws::start();
    // The names of both in one variable are longer than the kernel takes for a new program.
    let names = ["A", "B"].map(|name| format!("AWS_{}", name.repeat(70_000)));
    let keys = aws.session_of(PRINCIPAL, in_an_hour());
    let mut run = identity(&aws).variables(keys.variables());
    for name in &names {
        run = run.variable(name, "x\n");
    }
    let run = run.mint().await;
    minted_once(&aws, &run, "environment", PRINCIPAL);
    let trimmed = &run.report["mint"]["trimmed"];
    assert_eq!(*trimmed, serde_json::json!([]), "it started again");

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_ecr-injector"))
        .args(["identity", "--registry", REGISTRY, "--namespace", "team-a"])
        .env_clear()
        .envs(names.iter().map(|name| (name, "x\n")))
        .stdout(writer)
        .stderr(std::process::Stdio::piped())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(err.contains("standard output"), "{err}");
}

#[tokio::test]
async fn quotes_in_quotes_are_trimmed_and_named() {
    let aws = FakeAws::start();
    let keys = aws.session_of(PRINCIPAL, in_an_hour());
    let variables = keys.variables().into_iter();
    let variables = variables.map(|(name, value)| (name, format!("'\"{value}\"'")));
    let run = identity(&aws)
        .variables(variables)
        .variable("AWS_REGION", "\"us-east-1\"")
        .mint()
        .await;
    minted_once(&aws, &run, "environment", PRINCIPAL);
    let trimmed = run.report["mint"]["trimmed"].to_string();
    for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"] {
        assert!(trimmed.contains(name), "{name}: {run:#?}");
    }
}
