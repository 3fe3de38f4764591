//! Which names are asked: for each partition and each form of a registry's host, through a proxy that notes them.

use futures::future::join_all;

use super::command::Identity;
use crate::support::{Authority, ConnectProxy, FakeAws, shows};

/// A registry's host after the account; its partition; the hosts of ECR and of STS that are asked for it.
struct Row(&'static str, &'static str, &'static str, &'static str);

const ROWS: [Row; 22] = [
    Row(
        "dkr.ecr.eu-west-1.amazonaws.com",
        "aws",
        "api.ecr.eu-west-1.amazonaws.com",
        "sts.eu-west-1.amazonaws.com",
    ),
    Row(
        "dkr.ecr-fips.us-east-1.amazonaws.com",
        "aws",
        "ecr-fips.us-east-1.amazonaws.com",
        "sts-fips.us-east-1.amazonaws.com",
    ),
    Row(
        "dkr-ecr.us-west-2.on.aws",
        "aws",
        "ecr.us-west-2.api.aws",
        "sts.us-west-2.amazonaws.com",
    ),
    Row(
        "dkr-ecr-fips.us-west-2.on.aws",
        "aws",
        "ecr-fips.us-west-2.api.aws",
        "sts-fips.us-west-2.amazonaws.com",
    ),
    Row(
        "dkr.ecr.us-gov-west-1.amazonaws.com",
        "aws-us-gov",
        "api.ecr.us-gov-west-1.amazonaws.com",
        "sts.us-gov-west-1.amazonaws.com",
    ),
    // In this partition STS is FIPS under its plain name.
    Row(
        "dkr.ecr-fips.us-gov-west-1.amazonaws.com",
        "aws-us-gov",
        "ecr-fips.us-gov-west-1.amazonaws.com",
        "sts.us-gov-west-1.amazonaws.com",
    ),
    Row(
        "dkr-ecr.us-gov-east-1.on.aws",
        "aws-us-gov",
        "ecr.us-gov-east-1.api.aws",
        "sts.us-gov-east-1.amazonaws.com",
    ),
    Row(
        "dkr-ecr-fips.us-gov-east-1.on.aws",
        "aws-us-gov",
        "ecr-fips.us-gov-east-1.api.aws",
        "sts.us-gov-east-1.amazonaws.com",
    ),
    Row(
        "dkr.ecr.cn-north-1.amazonaws.com.cn",
        "aws-cn",
        "api.ecr.cn-north-1.amazonaws.com.cn",
        "sts.cn-north-1.amazonaws.com.cn",
    ),
    Row(
        "dkr.ecr-fips.cn-north-1.amazonaws.com.cn",
        "aws-cn",
        "api.ecr-fips.cn-north-1.amazonaws.com.cn",
        "sts-fips.cn-north-1.amazonaws.com.cn",
    ),
    Row(
        "dkr-ecr.cn-northwest-1.on.amazonwebservices.com.cn",
        "aws-cn",
        "ecr.cn-northwest-1.api.amazonwebservices.com.cn",
        "sts.cn-northwest-1.amazonaws.com.cn",
    ),
    Row(
        "dkr-ecr-fips.cn-north-1.on.amazonwebservices.com.cn",
        "aws-cn",
        "ecr-fips.cn-north-1.api.amazonwebservices.com.cn",
        "sts-fips.cn-north-1.amazonaws.com.cn",
    ),
    Row(
        "dkr.ecr.eusc-de-east-1.amazonaws.eu",
        "aws-eusc",
        "api.ecr.eusc-de-east-1.amazonaws.eu",
        "sts.eusc-de-east-1.amazonaws.eu",
    ),
    Row(
        "dkr.ecr-fips.eusc-de-east-1.amazonaws.eu",
        "aws-eusc",
        "api.ecr-fips.eusc-de-east-1.amazonaws.eu",
        "sts-fips.eusc-de-east-1.amazonaws.eu",
    ),
    Row(
        "dkr.ecr.us-iso-east-1.c2s.ic.gov",
        "aws-iso",
        "api.ecr.us-iso-east-1.c2s.ic.gov",
        "sts.us-iso-east-1.c2s.ic.gov",
    ),
    Row(
        "dkr.ecr-fips.us-iso-east-1.c2s.ic.gov",
        "aws-iso",
        "api.ecr-fips.us-iso-east-1.c2s.ic.gov",
        "sts-fips.us-iso-east-1.c2s.ic.gov",
    ),
    Row(
        "dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
        "aws-iso-b",
        "api.ecr.us-isob-east-1.sc2s.sgov.gov",
        "sts.us-isob-east-1.sc2s.sgov.gov",
    ),
    Row(
        "dkr.ecr-fips.us-isob-east-1.sc2s.sgov.gov",
        "aws-iso-b",
        "api.ecr-fips.us-isob-east-1.sc2s.sgov.gov",
        "sts-fips.us-isob-east-1.sc2s.sgov.gov",
    ),
    Row(
        "dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
        "aws-iso-e",
        "api.ecr.eu-isoe-west-1.cloud.adc-e.uk",
        "sts.eu-isoe-west-1.cloud.adc-e.uk",
    ),
    Row(
        "dkr.ecr-fips.eu-isoe-west-1.cloud.adc-e.uk",
        "aws-iso-e",
        "api.ecr-fips.eu-isoe-west-1.cloud.adc-e.uk",
        "sts-fips.eu-isoe-west-1.cloud.adc-e.uk",
    ),
    Row(
        "dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
        "aws-iso-f",
        "api.ecr.us-isof-south-1.csp.hci.ic.gov",
        "sts.us-isof-south-1.csp.hci.ic.gov",
    ),
    Row(
        "dkr.ecr-fips.us-isof-south-1.csp.hci.ic.gov",
        "aws-iso-f",
        "api.ecr-fips.us-isof-south-1.csp.hci.ic.gov",
        "sts-fips.us-isof-south-1.csp.hci.ic.gov",
    ),
];

/// The requests through a proxy: the names, and for each the region and the service that the call
/// was signed for.
struct Asked {
    targets: Vec<String>,
    calls: Vec<(String, String, String)>,
}

/// Mints behind a proxy and in an environment with these variables; AWS has a certificate for these names alone.
async fn asked(
    registry: &str,
    names: &[&str],
    variables: &[(&str, &str)],
    config: Option<&str>,
) -> Asked {
    let authority = Authority::new("a CA");
    let aws = FakeAws::start_tls(&authority, names);
    let proxy = ConnectProxy::start(aws.address());
    let mut identity = Identity::of(&aws, registry)
        .variables(aws.static_keys())
        .variable("AWS_EC2_METADATA_DISABLED", "true")
        .variable("HTTPS_PROXY", &proxy.url())
        .file("AWS_CA_BUNDLE", &authority.pem());
    for (name, value) in variables {
        identity = identity.variable(name, value);
    }
    if let Some(config) = config {
        identity = identity.config(config);
    }

    let run = identity.mint().await;

    run.minted("environment");
    assert_eq!(proxy.plain_requests(), [""; 0], "{registry}");
    let calls = aws.calls().into_iter();
    Asked {
        targets: proxy.targets(),
        calls: calls
            .map(|call| (call.host, call.region, call.signed_service))
            .collect(),
    }
}

/// A configuration that assumes a role of this partition.
fn assuming(partition: &str) -> String {
    let role = format!("arn:{partition}:iam::111122223333:role/ecr-pull");
    format!("identities:\n- assumeRole: {{roleArn: \"{role}\"}}\n")
}

fn region_of(host: &str) -> &str {
    let mut parts = host.split('.').filter(|part| part.contains('-'));
    parts
        .find(|part| part.ends_with(|c: char| c.is_ascii_digit()))
        .unwrap()
}

fn owned(host: &str, region: &str, service: &str) -> (String, String, String) {
    (host.to_owned(), region.to_owned(), service.to_owned())
}

#[tokio::test]
async fn endpoints_follow_the_registrys_partition_region_and_kind() {
    for rows in ROWS.chunks(4) {
        join_all(rows.iter().map(async |Row(suffix, partition, ecr, sts)| {
            let registry = format!("123456789012.{suffix}");
            let region = region_of(suffix);

            let ambient = asked(&registry, &[ecr, sts], &[], None).await;
            assert_eq!(ambient.targets, [format!("{ecr}:443")]);
            assert_eq!(ambient.calls, [owned(ecr, region, "ecr")]);

            let config = assuming(partition);
            let role = asked(&registry, &[ecr, sts], &[], Some(&config)).await;
            assert_eq!(role.targets, [format!("{sts}:443"), format!("{ecr}:443")]);
            assert_eq!(
                role.calls,
                [owned(sts, region, "sts"), owned(ecr, region, "ecr")]
            );
        }))
        .await;
    }
}

#[tokio::test]
async fn flags_of_the_environment_choose_the_endpoints_of_plain_hosts() {
    const FIPS: (&str, &str) = ("AWS_USE_FIPS_ENDPOINT", "true");
    const DUAL_STACK: (&str, &str) = ("AWS_USE_DUALSTACK_ENDPOINT", "true");
    for (variables, ecr, sts) in [
        (
            &[FIPS][..],
            "ecr-fips.us-east-1.amazonaws.com",
            "sts-fips.us-east-1.amazonaws.com",
        ),
        (
            &[DUAL_STACK],
            "ecr.us-east-1.api.aws",
            "sts.us-east-1.api.aws",
        ),
        (
            &[FIPS, DUAL_STACK],
            "ecr-fips.us-east-1.api.aws",
            "sts-fips.us-east-1.api.aws",
        ),
    ] {
        let registry = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
        let config = assuming("aws");
        let asked = asked(registry, &[ecr, sts], variables, Some(&config)).await;
        assert_eq!(asked.targets, [format!("{sts}:443"), format!("{ecr}:443")]);
        assert_eq!(
            asked.calls,
            [
                owned(sts, "us-east-1", "sts"),
                owned(ecr, "us-east-1", "ecr")
            ]
        );
    }
}

/// A role can be assumed in any region of its partition, and the near one needs no way out of the region.
#[tokio::test]
async fn sts_is_asked_at_home_if_home_is_in_the_registrys_partition() {
    for (home, registry, partition, sts, ecr) in [
        (
            "eu-central-1",
            "123456789012.dkr.ecr.us-east-1.amazonaws.com",
            "aws",
            "sts.eu-central-1.amazonaws.com",
            "api.ecr.us-east-1.amazonaws.com",
        ),
        (
            "eu-central-1",
            "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
            "aws-cn",
            "sts.cn-north-1.amazonaws.com.cn",
            "api.ecr.cn-north-1.amazonaws.com.cn",
        ),
    ] {
        let config = assuming(partition);
        let asked = asked(
            registry,
            &[sts, ecr],
            &[("AWS_REGION", home)],
            Some(&config),
        )
        .await;
        assert_eq!(asked.targets, [format!("{sts}:443"), format!("{ecr}:443")]);
        assert_eq!(asked.calls[0].1, region_of(sts));
        assert_eq!(asked.calls[1].1, region_of(ecr));
    }
}

#[tokio::test]
async fn public_gallery_is_asked_for_where_its_api_lives() {
    const PUBLIC: &str = "api.ecr-public.us-east-1.amazonaws.com";
    let asked = asked(
        "public.ecr.aws",
        &[PUBLIC],
        &[("AWS_REGION", "eu-west-1")],
        Some("publicEcr: true\n"),
    )
    .await;
    assert_eq!(asked.targets, [format!("{PUBLIC}:443")]);
    assert_eq!(asked.calls, [owned(PUBLIC, "us-east-1", "ecr-public")]);
}

/// Mints at a FIPS host behind a proxy that can't resolve these names; AWS has a certificate for the others.
async fn fips_mint(
    region: &str,
    unknown: &[&str],
    refusal: u16,
) -> (super::command::Run, Vec<String>) {
    let names = ["ecr-fips", "api.ecr-fips", "api.ecr"];
    let names = names.map(|name| format!("{name}.{region}.amazonaws.com"));
    let authority = Authority::new("a CA");
    let aws = FakeAws::start_tls(&authority, &names.each_ref().map(String::as_str));
    let proxy = ConnectProxy::start(aws.address());
    for name in unknown {
        proxy.forget_host(&format!("{name}.{region}.amazonaws.com"));
    }
    proxy.refuse(refusal);
    let registry = format!("123456789012.dkr.ecr-fips.{region}.amazonaws.com");
    let run = Identity::of(&aws, &registry)
        .variables(aws.static_keys())
        .variable("AWS_EC2_METADATA_DISABLED", "true")
        .variable("HTTPS_PROXY", &proxy.url())
        .file("AWS_CA_BUNDLE", &authority.pem())
        .mint()
        .await;
    (run, proxy.targets())
}

#[tokio::test]
async fn fips_host_is_asked_under_both_names_and_no_other() {
    let first = "ecr-fips.us-east-1.amazonaws.com:443";
    let second = "api.ecr-fips.us-east-1.amazonaws.com:443";

    let (run, targets) = fips_mint("us-east-1", &["api.ecr-fips"], 0).await;
    run.minted("environment");
    assert_eq!(targets, [first]);

    let (run, targets) = fips_mint("us-east-1", &["ecr-fips"], 0).await;
    run.minted("environment");
    assert_eq!(targets, [first, second]);

    let both = &["ecr-fips", "api.ecr-fips"];
    let (run, targets) = fips_mint("us-east-1", both, 0).await;
    run.failed(
        "unreachable",
        &[
            "https://ecr-fips.us-east-1.amazonaws.com",
            "https://api.ecr-fips.us-east-1.amazonaws.com",
        ],
    );
    assert!(!run.err.contains("has no FIPS endpoint"), "{run:#?}");
    assert_eq!(targets, [first, second]);
}

#[tokio::test]
async fn region_without_fips_endpoint_is_named_in_the_error() {
    let both = &["ecr-fips", "api.ecr-fips"];
    let (run, targets) = fips_mint("eu-west-1", both, 0).await;
    run.failed(
        "unreachable",
        &["AWS has no FIPS endpoint for ECR in eu-west-1; use the host without -fips"],
    );
    shows("`AWS has no FIPS endpoint for ECR in eu-west-1`", &run.err);
    assert_eq!(targets.len(), 2);
}

/// A proxy that wants a password says nothing about a host.
#[tokio::test]
async fn other_failures_than_of_the_name_ask_no_second_fips_host() {
    let (run, targets) = fips_mint("us-east-1", &[], 407).await;
    run.failed("unreachable", &["proxy authorization required"]);
    assert_eq!(targets, ["ecr-fips.us-east-1.amazonaws.com:443"]);
}
