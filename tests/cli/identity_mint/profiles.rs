//! Profiles that a rule names: two sets of keys in one process, each for its own registries.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use serde_json::json;

use super::command::{Identity, REGION, REGISTRY, ROLE, text};
use crate::support::fake_aws::web_identity_token;
use crate::support::{Behaviour, FakeAws};

const CN_REGISTRY: &str = "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn";
const CN_ROLE: &str = "arn:aws-cn:iam::123456789012:role/ecr-pull";
const VENDOR: &str = "arn:aws:iam::999988887777:user/customer-7";
const CN_USER: &str = "arn:aws-cn:iam::123456789012:user/puller";
const CONFIG: &str = r#"
identities:
- regions: [cn-north-1]
  profile: cn
- accounts: ["999988887777"]
  profile: vendor
"#;

/// The credentials file of both.
fn credentials(aws: &FakeAws) -> String {
    let (vendor, cn) = (aws.keys_of(VENDOR), aws.keys_of(CN_USER));
    format!(
        "[vendor]\naws_access_key_id = {}\naws_secret_access_key = {}\n\
         [cn]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        vendor.access_key, vendor.secret_access_key, cn.access_key, cn.secret_access_key
    )
}

/// Returns a run with ambient keys, the file and a configuration.
fn identity<'a>(aws: &'a FakeAws, registry: &str, file: &str, config: &str) -> Identity<'a> {
    Identity::of(aws, registry)
        .variables(aws.environment())
        .file("AWS_SHARED_CREDENTIALS_FILE", file)
        .config(config)
}

#[tokio::test]
async fn each_profile_mints_for_its_registries_and_ambient_keys_for_others() {
    let aws = FakeAws::start();
    let file = credentials(&aws);
    let vendor = REGISTRY.replace("123456789012", "999988887777");
    for (registry, region, source, principal, identity_of) in [
        (
            CN_REGISTRY,
            "cn-north-1",
            "profile",
            CN_USER,
            json!({"kind": "profile", "profile": "cn"}),
        ),
        (
            &vendor,
            REGION,
            "profile",
            VENDOR,
            json!({"kind": "profile", "profile": "vendor"}),
        ),
        (
            REGISTRY,
            REGION,
            "environment",
            crate::support::fake_aws::USER,
            json!({"kind": "ambient"}),
        ),
    ] {
        aws.clear();
        let run = identity(&aws, registry, &file, CONFIG).mint().await;
        run.minted(source);
        assert_eq!(run.report["identity"], identity_of);
        let calls = aws.ecr_calls(region);
        assert_eq!(calls.len(), 1, "{calls:#?}");
        assert_eq!(calls[0].principal, principal);
    }
}

#[tokio::test]
async fn role_is_assumed_with_the_profiles_keys() {
    let aws = FakeAws::start();
    let config = format!("identities:\n- profile: cn\n  assumeRole: {{roleArn: \"{CN_ROLE}\"}}\n");
    let run = identity(&aws, CN_REGISTRY, &credentials(&aws), &config)
        .mint()
        .await;

    run.minted("profile");
    assert_eq!(run.report["identity"]["profile"], "cn");
    let assumed = aws.calls_to("sts").remove(0);
    assert_eq!(assumed.principal, CN_USER);
    assert_eq!(assumed.region, "cn-north-1");
    assert_eq!(aws.ecr_calls("cn-north-1")[0].principal, CN_ROLE);
}

#[tokio::test]
async fn profile_that_does_not_exist_is_never_replaced_by_ambient_keys() {
    let aws = FakeAws::start();
    let config = "identities:\n- profile: nobody\n";
    let role = format!("{config}  assumeRole: {{roleArn: \"{ROLE}\"}}\n");
    let without_keys = "[nobody]\nregion = eu-west-1\n[vendor]\n";
    let files = [credentials(&aws), without_keys.to_owned(), String::new()];
    for config in [config, &role] {
        for file in &files {
            let run = identity(&aws, REGISTRY, file, config).mint().await;
            run.failed(
                "credentials",
                &["\"nobody\"", "AWS_SHARED_CREDENTIALS_FILE"],
            );
            assert!(aws.calls().is_empty());
        }
    }
}

#[tokio::test]
async fn profile_file_that_cannot_be_read_is_the_named_error() {
    let aws = FakeAws::start();
    let config = "identities:\n- profile: vendor\n";

    // Absent.
    let identity = Identity::of(&aws, REGISTRY).variables(aws.environment());
    let path = identity.path("absent");
    let run = identity
        .config(config)
        .variable("AWS_SHARED_CREDENTIALS_FILE", text(&path))
        .mint()
        .await;
    run.failed("credentials", &["\"vendor\"", text(&path), "No such file"]);

    // A folder, which nobody can read as a file, root included.
    let identity = Identity::of(&aws, REGISTRY).variables(aws.environment());
    let path = identity.path("folder");
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    let run = identity
        .config(config)
        .variable("AWS_CONFIG_FILE", text(&path))
        .mint()
        .await;
    run.failed("credentials", &["\"vendor\"", text(&path)]);

    // No text.
    let identity = Identity::of(&aws, REGISTRY).variables(aws.environment());
    let path = identity.path("utf-16");
    fs::write(&path, b"\xff\xfe[\0v\0").unwrap();
    let run = identity
        .config(config)
        .variable("AWS_SHARED_CREDENTIALS_FILE", text(&path))
        .mint()
        .await;
    run.failed("credentials", &["\"vendor\"", text(&path), "UTF-8"]);

    // Of another form.
    let run = self::identity(&aws, REGISTRY, "[vendor]\nno equals sign\n", config)
        .mint()
        .await;
    run.failed(
        "credentials",
        &["\"vendor\"", "AWS_SHARED_CREDENTIALS_FILE", "line 2"],
    );
    assert!(aws.calls().is_empty());
}

/// The source that comes after the profile would be another principal.
#[tokio::test]
async fn ambient_profile_file_that_cannot_be_read_is_never_skipped() {
    let aws = FakeAws::start();
    let identity = Identity::of(&aws, REGISTRY)
        .variables(aws.endpoints())
        .variable("AWS_EC2_METADATA_DISABLED", "true")
        .variable("AWS_ROLE_ARN", ROLE)
        .file("AWS_WEB_IDENTITY_TOKEN_FILE", &web_identity_token("pod"));
    let path = identity.path("folder");
    fs::create_dir(&path).unwrap();

    let run = identity
        .variable("AWS_SHARED_CREDENTIALS_FILE", text(&path))
        .mint()
        .await;

    run.failed("credentials", &["profile \"default\"", text(&path)]);
    assert!(aws.calls().is_empty());
}

#[tokio::test]
async fn profile_of_another_partition_is_recognised_before_aws_is_asked() {
    let aws = FakeAws::start();
    let keys = aws.keys_of(CN_USER);
    let keys = format!(
        "aws_access_key_id = {}\naws_secret_access_key = {}\n",
        keys.access_key, keys.secret_access_key
    );
    let region = format!("[cn]\n{keys}region = cn-north-1\n");
    let role = format!("[cn]\nrole_arn = {CN_ROLE}\nsource_profile = user\n[user]\n{keys}");
    let config = "identities:\n- profile: cn\n";
    let assume = format!("{config}  assumeRole: {{roleArn: \"{ROLE}\"}}\n");
    for (file, config, because) in [
        (&region, config, "the region cn-north-1"),
        (&region, &assume, "the region cn-north-1"),
        (&role, config, CN_ROLE),
    ] {
        aws.clear();
        let run = identity(&aws, REGISTRY, file, config).mint().await;
        run.failed("partition_mismatch", &["\"cn\"", "aws-cn", because]);
        assert!(aws.calls_to("ecr").is_empty());
    }

    // In its own partition it mints, and its role is assumed there.
    for (file, principal) in [(&region, CN_USER), (&role, CN_ROLE)] {
        aws.clear();
        identity(&aws, CN_REGISTRY, file, config)
            .mint()
            .await
            .minted("profile");
        assert_eq!(aws.ecr_calls("cn-north-1")[0].principal, principal);
        let sts = aws.calls_to("sts");
        assert!(
            sts.iter()
                .all(|call| principal == CN_ROLE && call.principal == CN_USER)
        );
    }
}

#[tokio::test]
async fn web_identity_of_another_partition_is_recognised_before_ecr_is_asked() {
    let aws = FakeAws::start();
    let run = Identity::of(&aws, CN_REGISTRY)
        .variables(aws.endpoints())
        .variable("AWS_EC2_METADATA_DISABLED", "true")
        .variable("AWS_ROLE_ARN", ROLE)
        .file("AWS_WEB_IDENTITY_TOKEN_FILE", &web_identity_token("pod"))
        .mint()
        .await;
    run.failed(
        "partition_mismatch",
        &["web_identity", ROLE, "aws-cn", "profile"],
    );
    assert!(aws.calls_to("ecr").is_empty());
}

/// Keys show no partition, and the region beside them may be the cluster's.
#[tokio::test]
async fn keys_of_another_partition_are_told_by_awss_error() {
    let aws = FakeAws::start();
    let run = Identity::of(&aws, CN_REGISTRY)
        .variables(aws.environment())
        .mint()
        .await;
    run.minted("environment");

    aws.tune_ecr(|knobs| {
        knobs.behaviour = Behaviour::Code(
            "UnrecognizedClientException",
            "The security token is invalid.",
        );
    });
    let run = Identity::of(&aws, CN_REGISTRY)
        .variables(aws.environment())
        .mint()
        .await;
    run.failed(
        "unknown_access_key",
        &["another partition", "us-east-1", "aws-cn"],
    );
}

#[tokio::test]
async fn rule_names_a_profile_or_is_ambient() {
    let aws = FakeAws::start();
    for (rule, expected) in [
        (
            "profile: vendor\n  ambient: true",
            "expected one of the two",
        ),
        ("namespaces: [a]", "expected one of the two"),
        (
            "profile: \"two words\"",
            "identities[0].profile: expected the name of a profile",
        ),
        ("profile: \"\"", "identities[0].profile"),
        ("profile: \"vendor-{namespace}\"", "identities[0].profile"),
    ] {
        let config = format!("identities:\n- {rule}\n");
        let run = identity(&aws, REGISTRY, "", &config).run().await;
        assert_eq!(run.code, Some(1), "{run:#?}");
        assert!(run.err.contains(expected), "{rule}: {run:#?}");
    }
}

#[tokio::test]
async fn annotation_cannot_name_a_profile() {
    let aws = FakeAws::start();
    let config = "namespaceRoles:\n  allow: [\"arn:aws:iam::*:role/*\"]\n";
    for annotation in [
        "vendor",
        "profile vendor",
        "arn:aws:iam::123456789012:profile/vendor",
    ] {
        let run = identity(&aws, REGISTRY, &credentials(&aws), config)
            .argument("--role-arn", annotation)
            .mint()
            .await;
        assert_eq!(run.code, Some(1), "{run:#?}");
        assert!(run.err.contains("is not the ARN of a role"), "{run:#?}");
    }
    assert!(aws.calls().is_empty());
}

#[tokio::test]
async fn session_of_a_profile_caps_its_tokens() {
    let aws = FakeAws::start();
    let keys = aws.keys_of(VENDOR);
    let file = format!(
        "[vendor]\nrole_arn = {ROLE}\nsource_profile = user\n\
         [user]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
        keys.access_key, keys.secret_access_key
    );
    let rule = "identities:\n- profile: vendor\n";
    for (cap, hours) in [("auto", 1), ("session", 1), ("none", 12)] {
        let config = format!("{rule}refresh: {{sessionCap: {cap}}}\n");
        let run = identity(&aws, REGISTRY, &file, &config).mint().await;
        run.minted("profile")
            .lasts_about(Duration::from_hours(hours));
    }
}
