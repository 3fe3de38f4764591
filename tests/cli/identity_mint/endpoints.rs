//! Endpoints by region: VPC endpoints with names of their own, each for one region.

use super::command::{Identity, REGISTRY, ROLE};
use crate::support::fake_aws::metadata::ClosedPort;
use crate::support::{Behaviour, FakeAws};

/// Returns a run with keys and no endpoint.
fn identity<'a>(aws: &'a FakeAws, registry: &str, config: &str) -> Identity<'a> {
    Identity::of(aws, registry)
        .variables(aws.static_keys())
        .variable("AWS_EC2_METADATA_DISABLED", "true")
        .config(config)
}

fn in_region(region: &str) -> String {
    REGISTRY.replace("eu-west-1", region)
}

#[tokio::test]
async fn each_region_is_asked_at_its_own_endpoint() {
    let (west, central) = (FakeAws::start(), FakeAws::start());
    let config = format!(
        "awsEndpoints:\n  eu-west-1: {{ecr: \"{}\"}}\n  eu-central-1: {{ecr: \"{}\"}}\n",
        west.endpoint(),
        central.endpoint()
    );
    for (region, asked, other) in [
        ("eu-west-1", &west, &central),
        ("eu-central-1", &central, &west),
    ] {
        let run = identity(asked, &in_region(region), &config).mint().await;
        run.minted("environment");
        assert_eq!(asked.ecr_calls(region).len(), 1);
        assert!(other.ecr_calls(region).is_empty());
    }
}

#[tokio::test]
async fn endpoint_of_the_region_wins_over_the_environments() {
    let (of_region, of_environment) = (FakeAws::start(), FakeAws::start());
    let url = of_region.endpoint();
    let config = format!("awsEndpoints: {{eu-west-1: {{ecr: \"{url}\"}}}}\n");
    for (region, asked) in [("eu-west-1", &of_region), ("eu-west-2", &of_environment)] {
        let run = identity(asked, &in_region(region), &config)
            .variable("AWS_ENDPOINT_URL_ECR", &of_environment.endpoint())
            .mint()
            .await;
        run.minted("environment");
        assert_eq!(asked.ecr_calls(region).len(), 1, "{region}");
    }
}

#[tokio::test]
async fn hosts_of_all_forms_are_asked_at_the_endpoint_of_their_region() {
    let aws = FakeAws::start();
    let url = aws.endpoint();
    let config = format!("awsEndpoints: {{us-east-1: {{ecr: \"{url}\"}}}}\n");
    for form in [
        "dkr.ecr-fips.us-east-1.amazonaws.com",
        "dkr-ecr-fips.us-east-1.on.aws",
    ] {
        let run = identity(&aws, &format!("123456789012.{form}"), &config)
            .mint()
            .await;
        run.minted("environment");
    }
    assert_eq!(aws.ecr_calls("us-east-1").len(), 2);
}

#[tokio::test]
async fn role_is_assumed_at_the_endpoint_of_its_region() {
    let (ecr, sts) = (FakeAws::start(), FakeAws::start());
    let config = format!(
        "identities:\n- assumeRole: {{roleArn: \"{ROLE}\", stsRegion: eu-central-1}}\n\
         awsEndpoints:\n  eu-west-1: {{ecr: \"{}\"}}\n  eu-central-1: {{sts: \"{}\"}}\n",
        ecr.endpoint(),
        sts.endpoint()
    );
    // Each fake knows only its own sessions, so ECR refuses the key; that it was asked is enough.
    let run = identity(&ecr, REGISTRY, &config).mint().await;
    let calls = sts.calls_to("sts");
    assert_eq!(
        (calls.len(), &*calls[0].region),
        (1, "eu-central-1"),
        "{run:#?}"
    );
    assert_eq!(ecr.ecr_calls("eu-west-1").len(), 1);
}

#[tokio::test]
async fn error_names_the_endpoint_and_the_region() {
    let aws = FakeAws::start();
    let closed = ClosedPort::reserve();
    let dead = format!("http://{}", closed.address());
    let role = format!("identities:\n- assumeRole: {{roleArn: \"{ROLE}\"}}\n");

    let ecr = format!("awsEndpoints: {{eu-west-1: {{ecr: \"{dead}\"}}}}\n");
    let run = identity(&aws, REGISTRY, &ecr).mint().await;
    run.failed("unreachable", &["in eu-west-1", &dead]);

    let sts = format!("{role}awsEndpoints: {{eu-west-1: {{sts: \"{dead}\"}}}}\n");
    let run = identity(&aws, REGISTRY, &sts).mint().await;
    run.failed("unreachable", &["AssumeRole", "in eu-west-1", &dead]);

    // That of the environment too.
    let run = identity(&aws, REGISTRY, "")
        .variable("AWS_ENDPOINT_URL_ECR", &dead.replace("//", "//user:pass@"))
        .mint()
        .await;
    run.failed("unreachable", &["in eu-west-1", &dead]);
    assert!(!run.err.contains("pass@"), "{run:#?}");

    let url = aws.endpoint();
    let ecr = format!("awsEndpoints: {{eu-west-1: {{ecr: \"{url}\"}}}}\n");
    aws.tune_ecr(|knobs| knobs.behaviour = Behaviour::Refuse);
    let run = identity(&aws, REGISTRY, &ecr).mint().await;
    run.failed("access_denied", &["in eu-west-1", &url]);
}
