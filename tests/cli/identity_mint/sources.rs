//! The ambient identity: each source of credentials is found, named and used, and one that fails is never replaced by
//! another principal.

use std::time::Duration;

use jiff::Timestamp;

use super::command::{Identity, REGION, REGISTRY, ROLE, Run, text};
use crate::support::fake_aws::metadata::{
    ClosedPort, ContainerCredentials, InstanceMetadata, Manners,
};
use crate::support::fake_aws::{Keys, SECRET_MARKER, web_identity_token};
use crate::support::{Behaviour, FakeAws, Garbage};

const PRINCIPAL: &str = "arn:aws:iam::123456789012:user/of-this-test";
const TOKEN_FILE: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
const AGENT_TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
const AGENT_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";

/// A fake AWS, and a node whose metadata service gives its own role to whoever asks.
struct Node {
    aws: FakeAws,
    metadata: InstanceMetadata,
}

impl Node {
    fn start() -> Self {
        let aws = FakeAws::start();
        let metadata = InstanceMetadata::start(&aws, "node");
        Self { aws, metadata }
    }

    /// A run on this node, with no other source of credentials.
    fn identity(&self) -> Identity<'_> {
        Identity::of(&self.aws, REGISTRY)
            .variables(self.aws.endpoints())
            .variables(self.metadata.environment())
    }

    /// It minted with credentials of this source, as this principal, and the node's role was left alone.
    #[track_caller]
    fn minted_by(&self, run: &Run, source: &str, principal: &str) {
        run.minted(source);
        let calls = self.aws.ecr_calls(REGION);
        assert_eq!(calls.len(), 1, "{calls:#?}");
        assert_eq!(calls[0].principal, principal);
        let password = self.aws.passwords().remove(0);
        assert_eq!(self.aws.principal_of(&password).as_deref(), Some(principal));
        assert!(self.metadata.visits().is_empty());
    }

    /// It failed in this source: nobody went on to the node's role, and ECR wasn't asked.
    #[track_caller]
    fn failed_in(&self, run: &Run, source: &str, words: &[&str]) {
        run.failed("credentials", &[&[source], words].concat());
        assert!(
            self.metadata.visits().is_empty(),
            "the node's role was asked for after {source} had failed: {run:#?}"
        );
        assert!(self.aws.calls_to("ecr").is_empty());
    }
}

/// A file of profiles with these keys in the one of this name.
fn profile(name: &str, keys: &Keys) -> String {
    let token = keys.session_token.as_ref();
    let token = token.map(|token| format!("aws_session_token = {token}\n"));
    format!(
        "[{name}]\naws_access_key_id = {}\naws_secret_access_key = {}\n{}",
        keys.access_key,
        keys.secret_access_key,
        token.unwrap_or_default()
    )
}

/// Returns the output of a credential process.
fn printed(keys: &Keys) -> String {
    serde_json::json!({
        "Version": 1,
        "AccessKeyId": keys.access_key,
        "SecretAccessKey": keys.secret_access_key,
        "SessionToken": keys.session_token,
        "Expiration": keys.expires_at.map(|at| at.to_string()),
    })
    .to_string()
}

fn in_an_hour() -> Timestamp {
    Timestamp::now() + Duration::from_hours(1)
}

fn with_web_identity<'a>(identity: Identity<'a>, token: &str) -> Identity<'a> {
    identity
        .file(TOKEN_FILE, token)
        .variable("AWS_ROLE_ARN", ROLE)
}

fn with_agent<'a>(identity: Identity<'a>, uri: &str) -> Identity<'a> {
    identity
        .file(AGENT_TOKEN_FILE, "the pod's token")
        .variable(AGENT_URI, uri)
}

#[tokio::test]
async fn keys_in_the_environment_mint() {
    let node = Node::start();
    let keys = node.aws.keys_of(PRINCIPAL);

    let run = node.identity().variables(keys.variables()).mint().await;

    node.minted_by(&run, "environment", PRINCIPAL);
    run.lasts_about(Duration::from_hours(12));
}

#[tokio::test]
async fn session_in_the_environment_mints() {
    let node = Node::start();
    let keys = node.aws.session_of(PRINCIPAL, in_an_hour());

    let run = node.identity().variables(keys.variables()).mint().await;

    node.minted_by(&run, "environment", PRINCIPAL);
    assert!(node.aws.calls()[0].session_token);
}

#[tokio::test]
async fn keys_in_a_credentials_file_mint() {
    let node = Node::start();
    let keys = node.aws.keys_of(PRINCIPAL);

    let run = node
        .identity()
        .file("AWS_SHARED_CREDENTIALS_FILE", &profile("default", &keys))
        .mint()
        .await;

    node.minted_by(&run, "profile", PRINCIPAL);
}

#[tokio::test]
async fn keys_in_the_named_profile_of_a_config_file_mint() {
    let node = Node::start();
    let other = node.aws.keys_of("arn:aws:iam::123456789012:user/default");
    let keys = node.aws.session_of(PRINCIPAL, in_an_hour());
    let file = profile("default", &other) + &profile("profile puller", &keys);

    let run = node
        .identity()
        .file("AWS_CONFIG_FILE", &file)
        .variable("AWS_PROFILE", "puller")
        .mint()
        .await;

    node.minted_by(&run, "profile", PRINCIPAL);
}

#[tokio::test]
async fn profile_of_a_role_mints_as_that_role() {
    let node = Node::start();
    let keys = node.aws.keys_of(PRINCIPAL);
    let file = profile("profile user", &keys)
        + &format!("[default]\nrole_arn = {ROLE}\nsource_profile = user\n");

    let run = node.identity().file("AWS_CONFIG_FILE", &file).mint().await;

    node.minted_by(&run, "profile", ROLE);
    assert_eq!(node.aws.calls_to("sts")[0].principal, PRINCIPAL);
}

#[tokio::test]
async fn credential_process_mints() {
    let node = Node::start();
    let keys = node.aws.session_of(PRINCIPAL, in_an_hour());
    let identity = node.identity();
    let printed = identity.write("printed.json", &printed(&keys));
    let file = format!(
        "[default]\ncredential_process = /bin/cat {}\n",
        text(&printed)
    );

    let run = identity.file("AWS_CONFIG_FILE", &file).mint().await;

    node.minted_by(&run, "profile", PRINCIPAL);
}

#[tokio::test]
async fn web_identity_mints_as_its_role() {
    let node = Node::start();
    let token = web_identity_token("pod");
    node.aws.accept_web_identity(&[&token]);

    let run = with_web_identity(node.identity(), &token).mint().await;

    node.minted_by(&run, "web_identity", ROLE);
    let call = node.aws.calls_to("sts").remove(0);
    assert_eq!(call.operation, "AssumeRoleWithWebIdentity");
    assert_eq!(call.parameters["WebIdentityToken"], token);
    assert_eq!(call.access_key, "", "a web identity is its own proof");
}

#[tokio::test]
async fn pod_identity_agent_mints() {
    let node = Node::start();
    let agent = ContainerCredentials::start(&node.aws, "pod");
    agent.accept(&["the pod's token"]);

    let run = with_agent(node.identity(), &agent.uri()).mint().await;

    node.minted_by(&run, "pod_identity", &agent.principal());
    assert_eq!(agent.authorizations(), ["the pod's token"]);
}

#[tokio::test]
async fn container_endpoint_of_ecs_mints() {
    let node = Node::start();
    let endpoint = ContainerCredentials::start(&node.aws, "task");

    let run = node
        .identity()
        .variable(AGENT_URI, &endpoint.uri())
        .variable("AWS_CONTAINER_AUTHORIZATION_TOKEN", "the task's")
        .mint()
        .await;

    node.minted_by(&run, "ecs", &endpoint.principal());
    assert_eq!(endpoint.authorizations(), ["the task's"]);
}

#[tokio::test]
async fn instance_metadata_mints() {
    let node = Node::start();

    let run = node.identity().mint().await;

    run.minted("instance_metadata");
    let calls = node.aws.ecr_calls(REGION);
    assert_eq!(calls[0].principal, node.metadata.principal());
}

#[tokio::test]
async fn expected_web_identity_never_becomes_the_nodes_role() {
    let node = Node::start();

    let run = node
        .identity()
        .argument("--expect-credentials", "web_identity")
        .mint()
        .await;

    run.failed(
        "credentials",
        &[
            "expected credentials of web_identity",
            "instance_metadata",
            "eks.amazonaws.com/role-arn",
            "pod-identity webhook",
        ],
    );
    assert!(
        node.aws.calls().is_empty(),
        "a call was signed by the node's role"
    );
    assert_eq!(run.report["mint"]["credentials"], "none", "{run:#?}");
}

#[tokio::test]
async fn expected_pod_identity_never_becomes_keys() {
    let node = Node::start();
    let agent = ContainerCredentials::start(&node.aws, "pod");
    let keys = node.aws.keys_of(PRINCIPAL);

    let run = with_agent(node.identity(), &agent.uri())
        .variables(keys.variables())
        .variable("ECR_INJECTOR_EXPECT_CREDENTIALS", "pod_identity")
        .mint()
        .await;

    node.failed_in(&run, "pod_identity", &["environment", "association"]);
}

#[tokio::test]
async fn failed_expectation_says_what_the_source_lacks() {
    let node = Node::start();
    for (expected, lacks) in [
        ("environment", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("profile", "lacks credentials in profile \"default\""),
        (
            "web_identity",
            "AWS_WEB_IDENTITY_TOKEN_FILE and AWS_ROLE_ARN",
        ),
        ("pod_identity", AGENT_TOKEN_FILE),
        ("ecs", AGENT_URI),
    ] {
        // Another source has credentials, none has any, another one is broken.
        for (variable, value) in [
            ("AWS_PAGER", ""),
            ("AWS_EC2_METADATA_DISABLED", "true"),
            ("AWS_CONFIG_FILE", "/nowhere/config"),
        ] {
            let run = node
                .identity()
                .argument("--expect-credentials", expected)
                .variable(variable, value)
                .mint()
                .await;
            let mut words = vec!["expected", expected];
            if expected != "profile" || variable != "AWS_CONFIG_FILE" {
                words.extend(["lacks", lacks]);
            }
            run.failed("credentials", &words);
            assert!(node.aws.calls().is_empty());
        }
    }

    node.metadata.behave(Manners::NoRole);
    let run = node
        .identity()
        .argument("--expect-credentials", "instance_metadata")
        .mint()
        .await;
    run.failed("credentials", &["instance_metadata", "expected"]);
}

#[tokio::test]
async fn expected_source_that_is_found_mints() {
    let node = Node::start();
    let token = web_identity_token("pod");
    node.aws.accept_web_identity(&[&token]);

    let run = with_web_identity(node.identity(), &token)
        .argument("--expect-credentials", "web_identity")
        .mint()
        .await;

    node.minted_by(&run, "web_identity", ROLE);
}

#[tokio::test]
async fn expected_source_without_any_says_what_to_check() {
    let node = Node::start();

    let run = node
        .identity()
        .variable("AWS_EC2_METADATA_DISABLED", "true")
        .argument("--expect-credentials", "pod_identity")
        .mint()
        .await;

    run.failed("credentials", &["pod_identity", "no source", "association"]);
    assert!(node.metadata.visits().is_empty());
}

#[tokio::test]
async fn expected_source_of_no_known_name_is_refused() {
    let node = Node::start();

    let run = node
        .identity()
        .argument("--expect-credentials", "irsa")
        .mint()
        .await;

    assert_eq!(run.code, Some(2), "{run:#?}");
    assert!(run.err.contains("web_identity"), "{run:#?}");
}

#[tokio::test]
async fn first_source_in_the_sdks_order_mints() {
    let node = Node::start();
    let agent = ContainerCredentials::start(&node.aws, "pod");
    let environment = node.aws.keys_of("arn:aws:iam::123456789012:user/env");
    let in_profile = node.aws.keys_of("arn:aws:iam::123456789012:user/profile");

    for (from, source) in ["environment", "profile", "web_identity", "pod_identity"]
        .into_iter()
        .enumerate()
    {
        let mut identity = with_agent(node.identity(), &agent.uri());
        if from <= 2 {
            identity = with_web_identity(identity, &web_identity_token("pod"));
        }
        if from <= 1 {
            let file = profile("default", &in_profile);
            identity = identity.file("AWS_SHARED_CREDENTIALS_FILE", &file);
        }
        if from == 0 {
            identity = identity.variables(environment.variables());
        }
        identity.mint().await.minted(source);
    }
    assert!(node.metadata.visits().is_empty());
}

#[tokio::test]
async fn failed_web_identity_is_an_error_and_never_the_nodes_role() {
    for (behaviour, words) in [
        (Behaviour::Throttle, "Throttling"),
        (Behaviour::Refuse, "AccessDenied"),
        (Behaviour::ServerError, "InternalFailure"),
        (Behaviour::ExpiredToken, "ExpiredToken"),
        (Behaviour::Hang, ""),
        (Behaviour::Garbage(Garbage::NotJson), ""),
    ] {
        let node = Node::start();
        node.aws.tune_sts(|knobs| knobs.behaviour = behaviour);

        let run = with_web_identity(node.identity(), &web_identity_token("pod"))
            .mint()
            .await;

        node.failed_in(&run, "web_identity", &[words]);
    }
}

#[tokio::test]
async fn web_identity_token_that_sts_does_not_take_is_the_named_error() {
    let node = Node::start();
    node.aws.accept_web_identity(&[&web_identity_token("new")]);

    let run = with_web_identity(node.identity(), &web_identity_token("old"))
        .mint()
        .await;
    node.failed_in(&run, "web_identity", &["InvalidIdentityToken"]);

    // The file is read anew each time.
    let run = with_web_identity(node.identity(), &web_identity_token("new"))
        .mint()
        .await;
    node.minted_by(&run, "web_identity", ROLE);
}

#[tokio::test]
async fn missing_or_empty_web_identity_file_is_the_named_error() {
    let node = Node::start();

    let identity = node.identity().variable("AWS_ROLE_ARN", ROLE);
    let missing = identity.path("no-such-token");
    let run = identity.variable(TOKEN_FILE, text(&missing)).mint().await;
    node.failed_in(&run, "web_identity", &["No such file"]);
    assert!(node.aws.calls().is_empty());

    let run = with_web_identity(node.identity(), "").mint().await;
    node.failed_in(&run, "web_identity", &[]);
}

#[tokio::test]
async fn web_identity_without_a_role_never_becomes_the_nodes_role() {
    let node = Node::start();

    let run = node
        .identity()
        .file(TOKEN_FILE, &web_identity_token("pod"))
        .mint()
        .await;

    node.failed_in(&run, "web_identity", &["AWS_ROLE_ARN"]);
}

#[tokio::test]
async fn half_a_pair_of_keys_is_an_error_and_never_the_nodes_role() {
    for given in [0, 1] {
        let node = Node::start();
        let mut keys = node.aws.keys_of(PRINCIPAL).variables();
        let absent = keys.remove(1 - given).0;

        let run = node.identity().variables(keys).mint().await;

        node.failed_in(&run, "environment", &[&absent]);
    }
}

/// As from an optional Secret, or a file that quotes its values.
#[tokio::test]
async fn blank_variable_of_a_source_is_never_the_nodes_role() {
    let node = Node::start();
    let keys = node.aws.keys_of(PRINCIPAL);
    for (variable, source) in [
        ("AWS_ACCESS_KEY_ID", "environment"),
        ("AWS_SECRET_ACCESS_KEY", "environment"),
        ("AWS_PROFILE", "profile"),
        ("AWS_CONFIG_FILE", "profile"),
        ("AWS_SHARED_CREDENTIALS_FILE", "profile"),
        (TOKEN_FILE, "web_identity"),
        (AGENT_URI, "ecs"),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "ecs"),
        (AGENT_TOKEN_FILE, "pod_identity"),
    ] {
        for blank in ["", " ", "\"\"", "''\n"] {
            let identity = node.identity();
            let home = identity.path(".aws");
            std::fs::create_dir(&home).unwrap();
            // The default profile would be another principal too.
            if source == "profile" {
                identity.write(".aws/credentials", &profile("default", &keys));
            }
            let run = identity.variable(variable, blank).mint().await;
            node.failed_in(&run, source, &[variable, "configured by half", "blank"]);
        }
    }

    let run = node
        .identity()
        .variable("AWS_ACCESS_KEY_ID", "\"\"")
        .variable("AWS_SECRET_ACCESS_KEY", "''")
        .mint()
        .await;
    node.failed_in(&run, "environment", &["AWS_ACCESS_KEY_ID"]);
}

/// The Secret of the file may be optional, and come later.
#[tokio::test]
async fn absent_file_that_a_variable_names_is_never_the_nodes_role() {
    for variable in ["AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"] {
        let node = Node::start();
        let identity = node.identity();
        let absent = identity.path("absent");

        let run = identity.variable(variable, text(&absent)).mint().await;

        node.failed_in(
            &run,
            "profile",
            &[variable, text(&absent), "No such file", "mounted"],
        );
    }
}

#[tokio::test]
async fn missing_profile_is_an_error_and_never_the_nodes_role() {
    let node = Node::start();
    let keys = node.aws.keys_of(PRINCIPAL);
    let files = [profile("default", &keys), "[profile other]\n".to_owned()];
    for file in files {
        let run = node
            .identity()
            .file("AWS_CONFIG_FILE", &file)
            .variable("AWS_PROFILE", "misspelt")
            .mint()
            .await;

        node.failed_in(&run, "profile", &["misspelt", "no profile of this name"]);
    }
}

#[tokio::test]
async fn failed_pod_identity_agent_never_becomes_the_nodes_role() {
    for (manners, words) in [
        (Manners::Fail(401), "401"),
        (Manners::Fail(500), "500"),
        (Manners::Hang, ""),
    ] {
        let node = Node::start();
        let agent = ContainerCredentials::start(&node.aws, "pod");
        agent.behave(manners);

        let run = with_agent(node.identity(), &agent.uri()).mint().await;

        node.failed_in(&run, "pod_identity", &[words]);
        assert!(!agent.visits().is_empty());
    }
}

#[tokio::test]
async fn pod_identity_agent_that_is_down_is_the_named_error() {
    let node = Node::start();
    let down = ClosedPort::reserve();

    let run = with_agent(node.identity(), &down.container_uri())
        .mint()
        .await;

    node.failed_in(&run, "pod_identity", &["refused"]);
}

#[tokio::test]
async fn pod_identity_without_its_token_file_is_the_named_error() {
    let node = Node::start();
    let agent = ContainerCredentials::start(&node.aws, "pod");

    let identity = node.identity().variable(AGENT_URI, &agent.uri());
    let missing = identity.path("no-such-token");
    let run = identity
        .variable(AGENT_TOKEN_FILE, text(&missing))
        .mint()
        .await;

    node.failed_in(&run, "pod_identity", &["No such file"]);
    assert!(agent.visits().is_empty());
}

#[tokio::test]
async fn remote_container_endpoint_in_the_clear_is_the_named_error() {
    let node = Node::start();

    let run = with_agent(node.identity(), "http://192.0.2.1/v1/credentials")
        .mint()
        .await;

    node.failed_in(&run, "pod_identity", &["192.0.2.1"]);
}

#[tokio::test]
async fn instance_metadata_out_of_reach_is_the_named_error() {
    for manners in [
        // What a Pod sees where the hop limit is 1.
        Manners::Hang,
        Manners::NoRole,
        Manners::Fail(403),
        Manners::Fail(500),
    ] {
        let node = Node::start();
        node.metadata.behave(manners);

        let run = node.identity().mint().await;

        run.failed("credentials", &["instance_metadata"]);
        assert!(!node.metadata.visits().is_empty());
        assert!(node.aws.calls().is_empty());
    }

    let aws = FakeAws::start();
    let closed = ClosedPort::reserve();
    let run = Identity::of(&aws, REGISTRY)
        .variables(aws.endpoints())
        .variable(
            "AWS_EC2_METADATA_SERVICE_ENDPOINT",
            &format!("http://{}", closed.address()),
        )
        .mint()
        .await;
    run.failed("credentials", &["instance_metadata"]);
}

#[tokio::test]
async fn error_without_any_source_lists_what_was_tried() {
    let node = Node::start();

    let run = node
        .identity()
        .variable("AWS_EC2_METADATA_DISABLED", "true")
        .mint()
        .await;

    run.failed("credentials", &["environment", "profile", "web identity"]);
    assert!(node.metadata.visits().is_empty());
    assert!(node.aws.calls().is_empty());
}

/// Some endpoints hand out what is left of a session that others share.
#[tokio::test]
async fn session_that_has_minutes_left_mints() {
    let node = Node::start();
    let agent = ContainerCredentials::start(&node.aws, "pod");
    agent.set_lifetime(Duration::from_mins(2));

    let run = with_agent(node.identity(), &agent.uri()).mint().await;

    node.minted_by(&run, "pod_identity", &agent.principal());
}

#[tokio::test]
async fn slow_road_ends_in_time_and_the_error_names_a_step() {
    let node = Node::start();
    let slow = Duration::from_millis(3_500);
    node.aws.tune_sts(|knobs| knobs.latency = slow);
    node.aws.tune_ecr(|knobs| knobs.latency = slow);
    let config = format!(
        "identities:\n- assumeRole: {{roleArn: \"{}\"}}\n",
        "arn:aws:iam::444455556666:role/other"
    );

    let run = with_web_identity(node.identity(), &web_identity_token("pod"))
        .config(&config)
        .mint()
        .await;

    run.failed("timeout", &["GetAuthorizationToken"]);
    assert!(node.metadata.visits().is_empty());
}

/// A profile with a credential process that is this shell script.
fn with_process<'a>(identity: Identity<'a>, script: &str) -> Identity<'a> {
    let script = identity.write("process.sh", script);
    let file = format!(
        "[default]\ncredential_process = /bin/sh {}\n",
        text(&script)
    );
    identity.file("AWS_CONFIG_FILE", &file)
}

#[tokio::test]
async fn credential_process_that_fails_is_the_named_error() {
    for script in ["exit 3", "exec sleep 15"] {
        let node = Node::start();
        let run = with_process(node.identity(), script).mint().await;
        node.failed_in(&run, "profile", &[]);
    }
}

/// Each run looks for the marker in what is printed.
#[tokio::test]
async fn output_of_a_credential_process_is_not_shown() {
    for script in [
        format!("echo 'no JSON: {SECRET_MARKER}'"),
        format!("echo '{{\"Version\": 1, \"SecretAccessKey\": \"{SECRET_MARKER}\"}}'"),
    ] {
        let node = Node::start();
        let run = with_process(node.identity(), &script).mint().await;
        node.failed_in(&run, "profile", &[]);
    }
}

#[tokio::test]
async fn errors_of_a_credential_process_are_not_shown() {
    let node = Node::start();
    let script = format!("echo 'token {SECRET_MARKER} has expired' >&2; exit 3");

    let run = with_process(node.identity(), &script).mint().await;

    node.failed_in(&run, "profile", &[]);
}

#[tokio::test]
async fn ambient_session_that_has_expired_is_the_named_error() {
    let hour_ago = Timestamp::now() - Duration::from_hours(1);

    let node = Node::start();
    let keys = node.aws.session_of(PRINCIPAL, hour_ago);
    let run = node.identity().variables(keys.variables()).mint().await;
    run.failed("session_expired", &["GetAuthorizationToken"]);
    assert!(node.metadata.visits().is_empty());

    let node = Node::start();
    node.metadata.behave(Manners::Expired);
    let run = node.identity().mint().await;
    run.failed("session_expired", &["GetAuthorizationToken"]);

    let node = Node::start();
    node.aws
        .tune_sts(|knobs| knobs.behaviour = Behaviour::Expired);
    let run = with_web_identity(node.identity(), &web_identity_token("pod"))
        .mint()
        .await;
    run.failed("session_expired", &["GetAuthorizationToken"]);
    assert!(node.metadata.visits().is_empty());
}

#[tokio::test]
async fn each_failure_of_ecr_is_the_named_error() {
    let aws = FakeAws::start();
    for (behaviour, kind) in [
        (Behaviour::Throttle, "throttled"),
        (Behaviour::Refuse, "access_denied"),
        (Behaviour::ServerError, "server_error"),
        (Behaviour::ExpiredToken, "session_expired"),
        (Behaviour::Hang, "timeout"),
        (Behaviour::Garbage(Garbage::NotJson), "invalid_response"),
        // The connection breaks in the middle.
        (Behaviour::Garbage(Garbage::Truncated), "unreachable"),
    ] {
        aws.tune_ecr(|knobs| knobs.behaviour = behaviour);
        let run = Identity::of(&aws, REGISTRY)
            .variables(aws.environment())
            .mint()
            .await;
        run.failed(kind, &["GetAuthorizationToken"]);
    }
}

#[tokio::test]
async fn answer_of_ecr_that_holds_no_usable_token_is_the_named_error() {
    let aws = FakeAws::start();
    for garbage in [
        Garbage::BadBase64,
        Garbage::NoColon,
        Garbage::EmptyPassword,
        Garbage::Expired,
        Garbage::MissingExpiry,
        Garbage::NoAuthorizationData,
    ] {
        aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Garbage(garbage));
        let run = Identity::of(&aws, REGISTRY)
            .variables(aws.environment())
            .mint()
            .await;
        run.failed("invalid_response", &["GetAuthorizationToken"]);
    }
}

#[tokio::test]
async fn ecr_that_is_down_is_unreachable() {
    let aws = FakeAws::start();
    let closed = ClosedPort::reserve();

    let run = Identity::of(&aws, REGISTRY)
        .variables(aws.environment())
        .variable(
            "AWS_ENDPOINT_URL_ECR",
            &format!("http://{}", closed.address()),
        )
        .mint()
        .await;

    run.failed("unreachable", &["GetAuthorizationToken", "refused"]);
}
