//! Requests and responses: the protocol, hosts that get nothing, lifetimes.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;

use super::command::{Node, REGISTRY, V1, request};
use crate::support::fake_aws::Garbage;
use crate::support::fake_aws::metadata::ClosedPort;
use crate::support::{Behaviour, FakeAws};

const HOUR: u64 = 3600;

/// P-01
#[tokio::test]
async fn token_is_answered_as_the_kubelet_decodes_it() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let ran = node.answer(&node.run()).await;
    let password = aws.passwords().pop().unwrap();
    assert_eq!(ran.credential(), (REGISTRY.to_owned(), password));
    assert_eq!(ran.response()["apiVersion"], V1);
    assert_eq!(ran.response().as_object().unwrap().len(), 5);
    assert_eq!(ran.err, "");
    assert!(ran.keep().abs_diff(6 * HOUR) <= 2, "{ran:?}");
}

/// P-02
#[tokio::test]
async fn older_versions_have_no_service_accounts() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    for version in ["v1beta1", "v1alpha1"] {
        let mut request = request(&format!("{REGISTRY}/a"));
        request["apiVersion"] = format!("credentialprovider.kubelet.k8s.io/{version}").into();
        request["serviceAccountToken"] = "a.b.c".into();
        request["serviceAccountAnnotations"] = json!({"ecr-injector.dev/role-arn": "x"});
        let ran = node.answer(&node.run().request(&request)).await;
        assert_eq!(ran.response()["apiVersion"], request["apiVersion"]);
        assert!(!ran.password().is_empty());
    }
    assert!(aws.calls_to("sts").is_empty());
}

/// P-03, P-04, P-05
#[tokio::test]
async fn input_that_is_no_request_is_refused_in_one_line() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let of = |field: &str, value: serde_json::Value| {
        let mut request = request(&format!("{REGISTRY}/a"));
        request[field] = value;
        request.to_string()
    };
    let known = &["/v1,", "/v1beta1", "/v1alpha1"][..];
    let v2 = "credentialprovider.kubelet.k8s.io/v2";
    for (input, texts) in [
        (of("apiVersion", v2.into()), &[&[v2], known].concat()[..]),
        (
            of("apiVersion", "other/v1".into()),
            &[&["other/v1"], known].concat(),
        ),
        (
            of("kind", "CredentialProviderResponse".into()),
            &["CredentialProviderResponse", "CredentialProviderRequest"],
        ),
        (of("kind", json!(null)), known),
        (String::new(), &["is empty"]),
        ("{".to_owned(), &["line 1, column 1"]),
        (" ".repeat(2 << 20), &["1 MiB"]),
        ("[]".to_owned(), known),
        ("null".to_owned(), known),
        (of("image", "".into()), &["no image"]),
        (of("image", "/".into()), &["no image"]),
        (of("image", json!(null)), &["no image"]),
        (of("image", json!(5)), &["not JSON of that form"]),
    ] {
        let ran = node.answer(&node.run().input(input.clone())).await;
        ran.failed(1, texts);
    }
    assert!(aws.calls().is_empty());
}

/// P-06
#[tokio::test]
async fn fields_of_later_protocols_are_ignored() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let mut request = request(&format!("{REGISTRY}/a"));
    request["podName"] = "x".into();
    request["a"] = json!({"b": [1, null]});
    let ran = node.answer(&node.run().request(&request)).await;
    assert_eq!(ran.credential().0, REGISTRY);
}

/// P-07
#[tokio::test]
async fn arguments_of_other_providers_are_ignored_and_typos_are_not() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    for arguments in [
        &["get-credentials"][..],
        &["-v", "4"],
        &["--v=4"],
        &["--logtostderr"],
    ] {
        let ran = node.answer(&node.run().arguments(arguments)).await;
        assert_eq!(ran.credential().0, REGISTRY, "{arguments:?}");
        assert_eq!(ran.err, "");
    }
    let ran = node
        .answer(&node.run().arguments(&["--alais", "x=y"]))
        .await;
    ran.failed(2, &["--alais", "--help"]);
}

/// P-14
#[tokio::test]
async fn other_hosts_get_an_answer_without_credentials() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    for image in [
        "registry.k8s.io/pause".to_owned(),
        format!("{REGISTRY}.evil.example/a"),
        format!("evil-{REGISTRY}/a"),
        format!("{REGISTRY}./a"),
        format!("user@{REGISTRY}/a"),
        REGISTRY.to_uppercase() + "/a",
        "docker.io/library/x".to_owned(),
        "10.0.0.1:5000/x".to_owned(),
        "nginx".to_owned(),
    ] {
        // A profile that can't be read would be an error if it were read.
        let run = node.run().variable("AWS_CONFIG_FILE", "/missing");
        let ran = node.answer(&run.image(&image)).await;
        ran.has_none(600);
        assert!(ran.err.contains("matchImages"), "{ran:?}");
    }
    assert!(aws.calls().is_empty());
    assert!(!node.tokens().exists());
}

/// P-15
#[tokio::test]
async fn alias_gets_the_token_of_its_registry() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let alias = |host: &str| {
        node.run()
            .arguments(&["--alias", &format!("{host}={REGISTRY}")])
    };
    let host = "mirror.corp.example:5000";
    let ran = node.answer(&alias(host).image(&format!("{host}/a"))).await;
    assert_eq!(ran.credential().0, host);
    // An alias without a port stands for the host with any port, and not the other way round.
    let ran = node
        .answer(&alias("mirror.corp.example").image(&format!("{host}/a")))
        .await;
    assert_eq!(ran.credential().0, host);
    let ran = node
        .answer(&alias(host).image("mirror.corp.example/a"))
        .await;
    ran.has_none(600);
    let ran = node.answer(&alias(&format!("x,{host}"))).await;
    ran.failed(2, &["--alias", "is not a host name"]);
}

/// P-16
#[tokio::test]
async fn public_gallery_never_gets_worse_by_a_token() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let run = |run: super::command::Run| run.image("public.ecr.aws/x/y");

    let ran = node.answer(&run(node.run())).await;
    ran.has_none(600);
    assert_eq!(ran.err, "");
    let without_source = node.bare().variable("AWS_EC2_METADATA_DISABLED", "true");
    let ran = node
        .answer(&run(without_source.arguments(&["--public"])))
        .await;
    ran.has_none(600);
    let closed = ClosedPort::reserve();
    let metadata = format!("http://{}", closed.address());
    let without_metadata = node.bare().arguments(&["--public"]);
    let without_metadata =
        without_metadata.variable("AWS_EC2_METADATA_SERVICE_ENDPOINT", &metadata);
    let ran = node.answer(&run(without_metadata)).await;
    ran.has_none(600);
    assert!(aws.calls().is_empty());

    let public = || run(node.run().arguments(&["--public"]));
    let ran = node.answer(&public()).await;
    assert_eq!(ran.credential().0, "public.ecr.aws");
    assert_eq!(aws.calls_to("ecr-public")[0].region, "us-east-1");

    fs::remove_dir_all(node.tokens()).unwrap();
    aws.tune_ecr_public(|knobs| knobs.behaviour = Behaviour::Refuse);
    let ran = node.answer(&public()).await;
    ran.has_none(0);
    assert!(ran.err.contains("public.ecr.aws: ECR Public's"), "{ran:?}");
}

/// P-20, P-21
#[tokio::test]
async fn kubelet_may_keep_a_token_for_half_of_what_is_left() {
    let minutes = |minutes| Some(Duration::from_mins(minutes));
    for (lifetime, inner, expected) in [
        (None, minutes(11 * 60 + 14), 5 * HOUR + 37 * 60),
        (minutes(60), None, HOUR / 2),
        (minutes(20 * 60), None, 6 * HOUR),
    ] {
        let aws = FakeAws::start();
        let node = Node::new(&aws);
        aws.tune_ecr(|knobs| {
            knobs.lifetime = lifetime;
            knobs.inner_lifetime = inner;
        });
        let ran = node.answer(&node.run()).await;
        let (least, most) = (expected - 3, expected + 1);
        assert!(
            (least..=most).contains(&ran.keep()),
            "{lifetime:?} {inner:?}: {ran:?}"
        );
    }
}

/// P-22, P-24
#[tokio::test]
async fn reply_without_a_usable_token_is_an_error() {
    let garbage = [
        Garbage::BadBase64,
        Garbage::NoColon,
        Garbage::EmptyPassword,
        Garbage::Expired,
        Garbage::MissingExpiry,
        Garbage::NoAuthorizationData,
        Garbage::NoField,
        Garbage::OtherUser,
        Garbage::NotJson,
        Garbage::Truncated,
    ];
    for garbage in garbage {
        let aws = FakeAws::start();
        let node = Node::new(&aws);
        aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Garbage(garbage));
        let ran = node.answer(&node.run()).await;
        ran.failed(1, &[REGISTRY, "GetAuthorizationToken"]);
        assert_eq!(
            fs::read_dir(node.tokens()).unwrap().count(),
            1,
            "only the lock"
        );
    }
    for seconds in [0, 30, 299] {
        let aws = FakeAws::start();
        let node = Node::new(&aws);
        aws.tune_ecr(|knobs| knobs.lifetime = Some(Duration::from_secs(seconds)));
        let ran = node.answer(&node.run()).await;
        ran.failed(1, &["expiry is in the past or less than 300 s away"]);
        assert_eq!(aws.calls().len(), 1);
    }
}

/// P-23, P-24
#[tokio::test]
async fn odd_reply_with_a_usable_token_is_answered() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    aws.tune_ecr(|knobs| {
        knobs.behaviour = Behaviour::Garbage(Garbage::OpaquePassword);
        knobs.lifetime = Some(Duration::from_hours(1));
    });
    let ran = node.answer(&node.run()).await;
    assert_eq!(ran.password(), aws.passwords().pop().unwrap());
    // Nothing inside the token bounds its life, so the reply does.
    assert!(ran.keep().abs_diff(HOUR / 2) <= 3, "{ran:?}");

    fs::remove_dir_all(node.tokens()).unwrap();
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Garbage(Garbage::TwoEntries));
    let ran = node.answer(&node.run()).await;
    let passwords = aws.passwords();
    assert_eq!(ran.password(), passwords[passwords.len() - 2], "the first");
}

/// P-54
#[tokio::test]
async fn closed_output_is_an_error_and_no_panic() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let run = node.run().image("docker.io/library/x");
    let mut command = run.command();
    let child = command.stdin(Stdio::null()).stdout(writer).spawn().unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(!String::from_utf8_lossy(&output.stderr).contains("panicked"));
}

/// P-54
#[tokio::test]
async fn person_on_a_terminal_gets_an_explanation() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let program = node.path("ecr-credential-provider");
    // It gives a program a terminal of its own.
    let output = tokio::process::Command::new("script")
        .args(["-qec", program.to_str().unwrap(), "/dev/null"])
        .stdin(Stdio::null())
        .output();
    let output = output.await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("--try"), "{text}");
    assert_eq!(output.status.code(), Some(2), "{text}");
}

#[tokio::test]
async fn trial_shows_an_answer_without_its_password() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let image = format!("{REGISTRY}/shop/web:1.4");
    let ran = node.run().arguments(&["--try", &image]).end().await;
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert_eq!(aws.calls().len(), 1);
    assert_eq!(aws.leak_in(&ran.out), None, "{ran:?}");
    for text in [REGISTRY, "\"AWS\"", "not shown", "cacheDuration"] {
        assert!(ran.out.contains(text), "{ran:?}");
    }
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Refuse);
    let other = "210987654321.dkr.ecr.eu-west-2.amazonaws.com/a";
    let ran = node.run().arguments(&["--try", other]).end().await;
    ran.failed(1, &["AccessDenied"]);
}

#[tokio::test]
async fn copies_and_other_names_of_the_program_work() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let binary = env!("CARGO_BIN_EXE_ecr-credentials");
    let copy = node.path("ecr-credential-provider-v1.2");
    // A copy of our own could be open for writing in a child that another test starts at this moment.
    let copied = tokio::process::Command::new("cp")
        .arg(binary)
        .arg(&copy)
        .status();
    assert!(copied.await.unwrap().success());
    let ran = node.answer(&node.run().program(&copy)).await;
    assert_eq!(ran.credential().0, REGISTRY);
    let main = node
        .run()
        .program(env!("CARGO_BIN_EXE_ecr-injector").as_ref());
    for run in [node.run().program(binary.as_ref()), main] {
        let ran = node.answer(&run.first("credential-provider")).await;
        assert_eq!(ran.credential().0, REGISTRY);
    }
    let ran = node.run().program(binary.as_ref()).end().await;
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert!(ran.err.starts_with("ecr-credentials: "), "{ran:?}");
}

#[tokio::test]
async fn configuration_of_the_webhook_chooses_who_mints() {
    let role = "arn:aws:iam::111122223333:role/node";
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    let config = node.path("config.yaml");
    let with = |fields: &str| {
        fs::write(&config, crate::support::config_file(fields)).unwrap();
        node.run()
            .arguments(&["--config", config.to_str().unwrap()])
    };
    let rules = format!(
        "identities:\n\
         - {{namespaces: [a], assumeRole: {{roleArn: \"{role}-of-a\"}}}}\n\
         - assumeRole: {{roleArn: \"{role}\"}}\n"
    );
    let password = node.answer(&with(&rules)).await.password();
    assert_eq!(aws.principal_of(&password).unwrap(), role);

    let ran = node.answer(&with("identity: []\n")).await;
    ran.failed(1, &["identity"]);
    let ran = node.answer(&with("defaultIdentity: none\n")).await;
    ran.failed(1, &["no identity rule matches"]);
    let ran = node.answer(&with("allow: {regions: [us-east-1]}\n")).await;
    ran.failed(1, &["allow list"]);
}
