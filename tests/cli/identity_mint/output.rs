//! Tests of the command's output and exit code: offline unless asked to mint, in both formats.

use serde_json::{Value, json};

use super::command::{Identity, NAMESPACE, REGION, REGISTRY, ROLE};
use crate::support::FakeAws;

#[tokio::test]
async fn identity_without_mint_asks_nothing() {
    let aws = FakeAws::start();

    let run = Identity::of(&aws, REGISTRY)
        .variables(aws.environment())
        .run()
        .await;

    assert_eq!(run.code, Some(0), "{run:#?}");
    for (field, expected) in [
        ("registry", json!(REGISTRY)),
        ("account", json!("123456789012")),
        ("region", json!(REGION)),
        ("partition", json!("aws")),
        ("namespace", json!(NAMESPACE)),
        ("identity", json!({"kind": "ambient"})),
        ("refusal", Value::Null),
        ("mint", Value::Null),
    ] {
        assert_eq!(run.report.get(field), Some(&expected), "{field}: {run:#?}");
    }
    assert_ne!(run.report["because"].as_str().unwrap(), "");
    assert_eq!(run.err, "");
    assert!(aws.calls().is_empty());
}

#[tokio::test]
async fn text_holds_the_same_as_json() {
    let aws = FakeAws::start();
    let identity = || {
        let config = format!("identities:\n- assumeRole: {{roleArn: \"{ROLE}\"}}\n");
        Identity::of(&aws, REGISTRY)
            .variables(aws.environment())
            .config(&config)
            .argument("-o", "text")
    };

    let run = identity().run().await;
    assert_eq!(run.code, Some(0), "{run:#?}");
    for word in [REGISTRY, NAMESPACE, ROLE] {
        assert!(run.out.contains(word), "{run:#?}");
    }
    assert!(aws.calls().is_empty());

    let run = identity().mint().await;
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert!(run.out.contains("environment"), "{run:#?}");
}

#[tokio::test]
async fn host_that_is_no_registry_is_named() {
    const NO_REGISTRY: &str = "neither a private ECR registry";
    let aws = FakeAws::start();
    for (host, why) in [
        ("registry.example", NO_REGISTRY),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.example",
            "looks like ECR, but it ends in \"amazonaws.com.evil.example\" instead of amazonaws.com",
        ),
        (
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com/path",
            "looks like ECR, but a host has no path",
        ),
        (
            "https://123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            "looks like ECR, but images have no scheme such as https://",
        ),
        (
            "1234-5678-9012.dkr.ecr.eu-west-1.amazonaws.com",
            "looks like ECR, but its account \"1234-5678-9012\" is not 12 digits; expected \
             ACCOUNT.dkr.ecr.REGION.amazonaws.com",
        ),
        // Pulls anonymously unless the admin says otherwise.
        ("public.ecr.aws", "publicEcr: true"),
    ] {
        let run = Identity::of(&aws, host)
            .variables(aws.environment())
            .mint()
            .await;
        assert!(matches!(run.code, Some(1 | 2)), "{run:#?}");
        assert!(run.err.contains(why), "{run:#?}");
    }
    assert!(aws.calls().is_empty());
}

#[tokio::test]
async fn login_in_the_registry_is_not_echoed() {
    let aws = FakeAws::start();
    for host in [
        format!("AWS:pa55word@{REGISTRY}"),
        format!("https://AWS:pa55word@{REGISTRY}"),
        format!("AWS:pa55/word+=@{REGISTRY}/web"),
        format!("pa55word@{}", "x".repeat(300)),
    ] {
        for format in ["json", "text"] {
            let run = Identity::of(&aws, &host).argument("-o", format).run().await;
            assert_eq!(run.code, Some(1), "{run:#?}");
            assert!(run.err.contains("--registry has an @"), "{run:#?}");
            assert!(!format!("{}{}", run.out, run.err).contains("pa55"));
        }
    }
}

#[tokio::test]
async fn excluded_namespace_is_an_error() {
    let aws = FakeAws::start();
    let identity = |config: &str| Identity::of(&aws, REGISTRY).config(config);
    let excludes = format!("optIn: {{excludeNamespaces: [{NAMESPACE}]}}\n");

    let run = identity(&excludes).run().await;
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert_eq!(run.report["excluded"], json!(true), "{run:#?}");
    assert!(run.err.contains("optIn.excludeNamespaces"), "{run:#?}");

    let run = identity(&excludes).argument("-o", "text").run().await;
    assert_eq!(run.code, Some(1), "{run:#?}");
    assert!(
        run.out
            .contains("\nexcluded    the configuration excludes the namespace"),
        "{run:#?}"
    );

    let run = identity("optIn: {excludeNamespaces: [other]}\n")
        .run()
        .await;
    assert_eq!(run.code, Some(0), "{run:#?}");
    assert_eq!(run.report["excluded"], json!(false), "{run:#?}");
}

#[tokio::test]
async fn usage_error_ends_with_2() {
    let aws = FakeAws::start();
    let unknown_format = Identity::of(&aws, REGISTRY).argument("-o", "xml");
    let unknown_flag = Identity::of(&aws, REGISTRY).argument("--nonsense", "1");
    for identity in [unknown_format, unknown_flag] {
        let run = identity.run().await;
        assert_eq!(run.code, Some(2), "{run:#?}");
        assert_eq!(run.report, Value::Null);
    }
}

#[tokio::test]
async fn alias_is_asked_about_like_its_registry() {
    let aws = FakeAws::start();
    let config = format!("aliases: [{{host: images.example.com, registry: \"{REGISTRY}\"}}]\n");

    let run = Identity::of(&aws, "images.example.com")
        .variables(aws.environment())
        .config(&config)
        .mint()
        .await;

    run.minted("environment");
    assert_eq!(aws.ecr_calls(REGION).len(), 1);
}

#[tokio::test]
async fn host_with_a_port_has_the_identity_of_its_registry() {
    let aws = FakeAws::start();
    let plain = Identity::of(&aws, REGISTRY).run().await;
    let mut with_port = Identity::of(&aws, &format!("{REGISTRY}:4566")).run().await;
    assert_eq!(with_port.code, Some(0), "{with_port:#?}");
    assert_eq!(with_port.report["registry"], format!("{REGISTRY}:4566"));
    with_port.report["registry"] = plain.report["registry"].clone();
    assert_eq!(with_port.report, plain.report);
}
