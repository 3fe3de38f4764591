//! The end of ambient credentials, and the tokens that may die with it.

use std::time::Duration;

use jiff::Timestamp;

use super::command::{Identity, REGION, REGISTRY, ROLE};
use crate::support::FakeAws;
use crate::support::fake_aws::metadata::ContainerCredentials;
use crate::support::fake_aws::web_identity_token;

fn capped<'a>(aws: &'a FakeAws, cap: &str) -> Identity<'a> {
    Identity::of(aws, REGISTRY)
        .variables(aws.endpoints())
        .variable("AWS_EC2_METADATA_DISABLED", "true")
        .config(&format!("refresh: {{sessionCap: {cap}}}\n"))
}

#[tokio::test]
async fn session_of_ambient_credentials_caps_tokens_only_where_asked() {
    for (cap, hours) in [("auto", 12), ("none", 12), ("6h", 6), ("session", 1)] {
        let aws = FakeAws::start();
        let run = capped(&aws, cap)
            .variable("AWS_ROLE_ARN", ROLE)
            .file("AWS_WEB_IDENTITY_TOKEN_FILE", &web_identity_token("pod"))
            .mint()
            .await;
        run.minted("web_identity")
            .lasts_about(Duration::from_hours(hours));

        let agent = ContainerCredentials::start(&aws, "pod");
        let run = capped(&aws, cap)
            .variable("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent.uri())
            .mint()
            .await;
        // The endpoint gives sessions of six hours.
        let lasts = run.minted("ecs").lasts();
        assert!(
            lasts <= Duration::from_hours(hours.max(6)),
            "{cap}: {lasts:?}"
        );
    }
}

#[tokio::test]
async fn keys_without_an_end_are_not_capped() {
    let aws = FakeAws::start();
    let run = capped(&aws, "session")
        .variables(aws.static_keys())
        .mint()
        .await;
    run.minted("environment")
        .lasts_about(Duration::from_hours(12));
}

#[tokio::test]
async fn ambient_session_at_its_end_mints_nothing() {
    for minutes in [-60, 1, 4] {
        let aws = FakeAws::start();
        let end = Timestamp::now() + jiff::SignedDuration::from_mins(minutes);
        let keys = aws.session_of("arn:aws:iam::123456789012:role/pod", end);
        let printed = serde_json::json!({
            "Version": 1,
            "AccessKeyId": keys.access_key,
            "SecretAccessKey": keys.secret_access_key,
            "SessionToken": keys.session_token,
            "Expiration": end.to_string(),
        });
        let identity = capped(&aws, "session");
        let path = identity.write("printed.json", &printed.to_string());
        let profile = format!(
            "[default]\ncredential_process = /bin/cat {}\n",
            path.display()
        );

        let run = identity.file("AWS_CONFIG_FILE", &profile).mint().await;

        run.failed("session_expired", &["profile", &end.to_string()[..16]]);
        assert!(aws.ecr_calls(REGION).is_empty(), "{minutes}");
    }
}
