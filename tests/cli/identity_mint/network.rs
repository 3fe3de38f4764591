//! Networks as they are: proxies, certificate authorities of the admin's own, and private endpoints.

use std::collections::BTreeSet;

use super::command::{Identity, NAMESPACE, REGION, REGISTRY, ROLE, Run, text};
use crate::support::fake_aws::metadata::{ClosedPort, ContainerCredentials, InstanceMetadata};
use crate::support::fake_aws::{SECRET_MARKER, USER, web_identity_token};
use crate::support::{Authority, ConnectProxy, FakeAws};

const ECR: &str = "api.ecr.eu-west-1.amazonaws.com";
const STS: &str = "sts.eu-west-1.amazonaws.com";
const BUNDLE: &str = "AWS_CA_BUNDLE";

/// AWS under its real names, trusted by a private CA, behind a proxy.
struct Proxied {
    aws: FakeAws,
    authority: Authority,
    proxy: ConnectProxy,
}

impl Proxied {
    fn start() -> Self {
        let authority = Authority::new("the company's own CA");
        let aws = FakeAws::start_tls(&authority, &[ECR, STS, "localhost", "127.0.0.1"]);
        let proxy = ConnectProxy::start(aws.address());
        Self {
            aws,
            authority,
            proxy,
        }
    }

    /// With the user's keys and no endpoint, proxy or CA.
    fn bare(&self) -> Identity<'_> {
        Identity::of(&self.aws, REGISTRY)
            .variables(self.aws.static_keys())
            .variable("AWS_EC2_METADATA_DISABLED", "true")
    }

    /// With the CA.
    fn trusting(&self) -> Identity<'_> {
        self.bare().file(BUNDLE, &self.authority.pem())
    }

    /// With the CA and the proxy.
    fn proxied(&self) -> Identity<'_> {
        self.trusting().variable("HTTPS_PROXY", &self.proxy.url())
    }

    /// The hosts of the calls that came through.
    fn hosts(&self) -> Vec<String> {
        self.aws.calls().into_iter().map(|call| call.host).collect()
    }
}

/// A configuration that assumes [`ROLE`].
fn role() -> String {
    format!("identities:\n- assumeRole: {{roleArn: \"{ROLE}\"}}\n")
}

fn port_443(hosts: &[&str]) -> Vec<String> {
    hosts.iter().map(|host| format!("{host}:443")).collect()
}

#[tokio::test]
async fn calls_go_through_the_proxy_under_their_real_names() {
    for variable in ["HTTPS_PROXY", "https_proxy"] {
        let net = Proxied::start();

        let run = net
            .trusting()
            .variable(variable, &net.proxy.url())
            .config(&role())
            .mint()
            .await;

        run.minted("environment");
        assert_eq!(net.proxy.targets(), port_443(&[STS, ECR]));
        assert_eq!(net.hosts(), [STS, ECR]);
        assert_eq!(net.proxy.plain_requests(), [""; 0]);
    }
}

#[tokio::test]
async fn web_identity_is_exchanged_through_the_proxy_too() {
    let net = Proxied::start();

    let run = Identity::of(&net.aws, REGISTRY)
        .file(BUNDLE, &net.authority.pem())
        .variable("HTTPS_PROXY", &net.proxy.url())
        .variable("AWS_REGION", REGION)
        .variable("AWS_ROLE_ARN", ROLE)
        .file("AWS_WEB_IDENTITY_TOKEN_FILE", &web_identity_token("pod"))
        .mint()
        .await;

    run.minted("web_identity");
    assert_eq!(net.proxy.targets(), port_443(&[STS, ECR]));
}

#[tokio::test]
async fn credential_endpoints_on_the_node_are_asked_directly() {
    let net = Proxied::start();
    let metadata = InstanceMetadata::start(&net.aws, "node");
    let agent = ContainerCredentials::start(&net.aws, "pod");
    let everything_through_the_proxy = || {
        let mut identity = Identity::of(&net.aws, REGISTRY).file(BUNDLE, &net.authority.pem());
        for variable in ["HTTPS_PROXY", "HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
            identity = identity.variable(variable, &net.proxy.url());
        }
        identity
    };

    let run = everything_through_the_proxy()
        .variables(metadata.environment())
        .mint()
        .await;
    run.minted("instance_metadata");
    assert!(!metadata.visits().is_empty());

    let run = everything_through_the_proxy()
        .variable("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent.uri())
        .file("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "the pod's token")
        .mint()
        .await;
    run.minted("pod_identity");
    assert!(!agent.visits().is_empty());

    assert_eq!(net.proxy.targets(), port_443(&[ECR, ECR]));
    assert_eq!(net.proxy.plain_requests(), [""; 0]);
}

/// A profile may lead to the same endpoints.
#[tokio::test]
async fn credential_endpoints_of_a_profile_are_asked_directly_too() {
    for source in ["Ec2InstanceMetadata", "EcsContainer"] {
        let net = Proxied::start();
        let metadata = InstanceMetadata::start(&net.aws, "node");
        let agent = ContainerCredentials::start(&net.aws, "pod");
        let profile = format!("[default]\nrole_arn = {ROLE}\ncredential_source = {source}\n");

        let run = Identity::of(&net.aws, REGISTRY)
            .file(BUNDLE, &net.authority.pem())
            .variable("HTTPS_PROXY", &net.proxy.url())
            .variable("HTTP_PROXY", &net.proxy.url())
            .variable("AWS_REGION", REGION)
            .variable("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent.uri())
            .variables(metadata.environment())
            .file("AWS_CONFIG_FILE", &profile)
            .mint()
            .await;

        assert_eq!(net.proxy.plain_requests(), [""; 0], "{source}");
        run.minted("profile");
        assert_eq!(net.proxy.targets(), port_443(&[STS, ECR]), "{source}");
    }
}

#[tokio::test]
async fn hosts_in_no_proxy_are_asked_directly() {
    for (host, no_proxy) in [
        ("localhost", "localhost"),
        ("localhost", "*"),
        ("127.0.0.1", "10.0.0.0/8,127.0.0.0/8"),
        ("127.0.0.1", ".example.com,127.0.0.1"),
    ] {
        for variable in ["NO_PROXY", "no_proxy"] {
            let net = Proxied::start();
            let endpoint = format!("https://{host}:{}", net.aws.address().port());

            let run = net
                .proxied()
                .variable(variable, no_proxy)
                .variable("AWS_ENDPOINT_URL_ECR", &endpoint)
                .mint()
                .await;

            run.minted("environment");
            assert!(net.proxy.tunnels().is_empty(), "{host} {no_proxy}");
        }
    }

    // The rest goes through the proxy as before.
    let net = Proxied::start();
    let port = net.aws.address().port();
    let run = net
        .proxied()
        .variable("NO_PROXY", "localhost")
        .variable("AWS_ENDPOINT_URL_ECR", &format!("https://localhost:{port}"))
        .config(&role())
        .mint()
        .await;
    run.minted("environment");
    assert_eq!(net.proxy.targets(), port_443(&[STS]));
    assert_eq!(net.hosts(), [STS.to_owned(), format!("localhost:{port}")]);
}

#[tokio::test]
async fn proxys_user_and_password_are_sent_to_it_and_shown_to_nobody() {
    let net = Proxied::start();
    net.proxy
        .require(&format!("pull@corp:p@ss {SECRET_MARKER}"));
    let url = net
        .proxy
        .url_for("pull%40corp", &format!("p%40ss%20{SECRET_MARKER}"));
    let identity = || {
        net.trusting()
            .variable("HTTPS_PROXY", &url)
            .variable("RUST_LOG", "trace")
    };
    // Each run looks for the marker; these are the parts beside it.
    let shows_nothing = |run: &Run| {
        for text in [&run.out, &run.err] {
            assert!(!text.contains("p%40ss") && !text.contains("p@ss"), "{text}");
        }
    };

    let run = identity().mint().await;
    run.minted("environment");
    shows_nothing(&run);

    for status in [407, 503] {
        net.proxy.refuse(status);
        let run = identity().mint().await;
        run.failed("unreachable", &["GetAuthorizationToken"]);
        shows_nothing(&run);
        let run = identity().config(&role()).mint().await;
        run.failed("unreachable", &["AssumeRole", ROLE]);
        shows_nothing(&run);
    }
    assert_eq!(net.hosts(), [ECR]);
}

#[tokio::test]
async fn proxy_that_lacks_its_password_is_the_named_error() {
    let net = Proxied::start();
    net.proxy.require("puller:secret");

    let run = net.proxied().mint().await;

    run.failed("unreachable", &["GetAuthorizationToken", "prox"]);
    assert_eq!(net.proxy.tunnels()[0].credentials, None);
    assert!(net.aws.calls().is_empty());
}

#[tokio::test]
async fn proxy_that_is_down_is_the_named_error_and_not_bypassed() {
    let net = Proxied::start();
    let closed = ClosedPort::reserve();
    let url = format!("http://puller:{SECRET_MARKER}@{}", closed.address());

    let run = net.trusting().variable("HTTPS_PROXY", &url).mint().await;

    run.failed("unreachable", &["GetAuthorizationToken"]);
    assert!(net.aws.calls().is_empty());
}

#[tokio::test]
async fn proxy_that_hangs_is_the_named_error_in_time() {
    let net = Proxied::start();
    net.proxy.hang();

    let run = net.proxied().mint().await;

    run.failed("timeout", &["GetAuthorizationToken"]);
    assert!(!net.proxy.tunnels().is_empty());
}

/// A chart that has a place for a value and no value leaves a variable empty.
#[tokio::test]
async fn empty_variable_is_like_none() {
    let aws = FakeAws::start();
    let mut failed = Vec::new();
    for variable in [
        "AWS_CA_BUNDLE",
        "HTTPS_PROXY",
        "NO_PROXY",
        "AWS_PROFILE",
        "AWS_REGION",
        "AWS_SESSION_TOKEN",
        "AWS_CONFIG_FILE",
        "AWS_ENDPOINT_URL",
        "AWS_USE_FIPS_ENDPOINT",
    ] {
        let mut variables = aws.environment();
        variables.retain(|(name, _)| name != "AWS_REGION");
        let run = Identity::of(&aws, REGISTRY)
            .variables(variables)
            .variable(variable, "")
            .mint()
            .await;
        if run.code != Some(0) {
            failed.push((variable, run.err));
        }
    }
    assert_eq!(failed, []);
}

#[tokio::test]
async fn certificate_of_a_stranger_is_refused_and_named() {
    let net = Proxied::start();
    let stranger = Authority::new("somebody else's CA");
    let identities = [
        // The system's roots.
        net.bare(),
        net.bare().file(BUNDLE, &stranger.pem()),
    ];
    for identity in identities {
        let run = identity
            .variable("HTTPS_PROXY", &net.proxy.url())
            .mint()
            .await;

        run.failed("unreachable", &["GetAuthorizationToken", "certificate"]);
        assert!(net.aws.calls().is_empty());
    }
}

#[tokio::test]
async fn certificate_for_another_name_is_not_trusted() {
    let net = Proxied::start();
    let other_region = REGISTRY.replace(REGION, "eu-central-1");

    let run = net
        .proxied()
        .argument("--registry", &other_region)
        .mint()
        .await;

    run.failed("unreachable", &["GetAuthorizationToken", "certificate"]);
    assert!(net.aws.calls().is_empty());
}

#[tokio::test]
async fn ca_bundle_may_be_a_flag_and_may_hold_many() {
    let net = Proxied::start();
    let other = Authority::new("another of the company's");
    let identity = net.bare().variable("HTTPS_PROXY", &net.proxy.url());
    let bundle = identity.write("bundle.pem", &(other.pem() + &net.authority.pem()));

    let run = identity
        .argument("--aws-ca-bundle", text(&bundle))
        .mint()
        .await;

    run.minted("environment");
}

#[tokio::test]
async fn unusable_ca_bundle_is_an_error_that_names_the_file() {
    let net = Proxied::start();
    let identity = net.bare();
    let missing = identity.path("missing.pem");
    let run = identity
        .argument("--aws-ca-bundle", text(&missing))
        .mint()
        .await;
    assert!(matches!(run.code, Some(1 | 2)), "{run:#?}");
    assert!(run.err.contains("missing.pem"), "{run:#?}");

    for content in [
        "",
        "no PEM",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let identity = net.bare();
        let bundle = identity.write("broken.pem", content);
        let run = identity
            .argument("--aws-ca-bundle", text(&bundle))
            .mint()
            .await;
        assert!(matches!(run.code, Some(1 | 2)), "{content:?}: {run:#?}");
        assert!(run.err.contains("broken.pem"), "{run:#?}");
    }
    assert!(net.proxy.tunnels().is_empty());
}

/// A VPC endpoint is named by variable or profile, for one service or for all; it is the admin's word, so it stands above
/// whatever endpoint the host or a flag would ask for.
#[tokio::test]
async fn endpoints_of_the_admins_own_are_asked_whatever_the_host_says() {
    let hosts = [
        REGISTRY.to_owned(),
        "123456789012.dkr.ecr-fips.us-east-1.amazonaws.com".to_owned(),
        "123456789012.dkr-ecr.us-east-1.on.aws".to_owned(),
        "123456789012.dkr-ecr-fips.us-east-1.on.aws".to_owned(),
    ];
    let aws = FakeAws::start();
    let url = aws.endpoint();
    let services = format!(
        "[default]\nservices = vpce\n[services vpce]\necr =\n  endpoint_url = {url}\nsts =\n  endpoint_url = {url}\n"
    );
    for host in &hosts {
        for (variables, profile) in [
            (&["AWS_ENDPOINT_URL_ECR", "AWS_ENDPOINT_URL_STS"][..], ""),
            (&["AWS_ENDPOINT_URL"], ""),
            (&[], &format!("[default]\nendpoint_url = {url}\n")),
            (&[], &services),
        ] {
            aws.clear();
            let mut identity = Identity::of(&aws, host)
                .variables(aws.static_keys())
                .variable("AWS_EC2_METADATA_DISABLED", "true")
                .file("AWS_CONFIG_FILE", profile)
                .config(&role());
            for variable in variables {
                identity = identity.variable(variable, &url);
            }

            let run = identity.mint().await;

            run.minted("environment");
            let calls = aws.calls();
            let services: Vec<_> = calls.iter().map(|call| call.service).collect();
            assert_eq!(services, ["sts", "ecr"], "{host} {variables:?} {profile}");
            assert_eq!(calls[1].principal, ROLE);
            let region = host
                .split('.')
                .find(|part| part.contains("-east-") || part.contains("-west-"));
            assert_eq!(Some(calls[1].region.as_str()), region);
        }
    }
}

#[tokio::test]
async fn endpoints_of_the_admins_own_are_asked_whatever_the_flags_say() {
    for flag in ["AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"] {
        let aws = FakeAws::start();
        let run = Identity::of(&aws, REGISTRY)
            .variables(aws.environment())
            .variable(flag, "true")
            .config(&role())
            .mint()
            .await;
        run.minted("environment");
        assert_eq!(aws.calls().len(), 2);
    }
}

#[tokio::test]
async fn web_identity_is_exchanged_at_the_admins_own_endpoint() {
    for flag in ["AWS_USE_FIPS_ENDPOINT", "AWS_USE_DUALSTACK_ENDPOINT"] {
        let aws = FakeAws::start();
        let run = Identity::of(&aws, REGISTRY)
            .variables(aws.endpoints())
            .variable("AWS_ROLE_ARN", ROLE)
            .file("AWS_WEB_IDENTITY_TOKEN_FILE", &web_identity_token("pod"))
            .variable(flag, "true")
            .mint()
            .await;
        run.minted("web_identity");
    }
}

/// The SDK's own switch for endpoints that somebody else configured.
#[tokio::test]
async fn endpoints_that_are_to_be_ignored_leave_the_hosts_own() {
    let net = Proxied::start();

    let run = net
        .proxied()
        .variable("AWS_ENDPOINT_URL", &net.aws.endpoint())
        .variable("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
        .argument(
            "--registry",
            "123456789012.dkr.ecr-fips.eu-west-1.amazonaws.com",
        )
        .mint()
        .await;

    // There is no certificate for this name here: that it was asked for is the point.
    run.failed("unreachable", &["GetAuthorizationToken"]);
    assert_eq!(
        net.proxy.targets(),
        port_443(&["ecr-fips.eu-west-1.amazonaws.com"])
    );
}

#[tokio::test]
async fn endpoint_for_ecr_alone_leaves_sts_where_it_is() {
    let net = Proxied::start();
    let port = net.aws.address().port();

    let run = net
        .proxied()
        .variable("AWS_ENDPOINT_URL_ECR", &format!("https://localhost:{port}"))
        .argument(
            "--registry",
            "123456789012.dkr.ecr-fips.eu-west-1.amazonaws.com",
        )
        .config(&role())
        .mint()
        .await;

    // There is no certificate for this name here: that it was asked for is the point.
    run.failed("unreachable", &["AssumeRole"]);
    assert_eq!(
        net.proxy.targets(),
        port_443(&["sts-fips.eu-west-1.amazonaws.com"])
    );
}

#[tokio::test]
async fn public_gallery_is_asked_by_its_own_api_if_wanted() {
    for host in ["public.ecr.aws", "ecr-public.aws.com"] {
        let aws = FakeAws::start();
        let run = Identity::of(&aws, host)
            .variables(aws.environment())
            .variable("AWS_REGION", REGION)
            .config("publicEcr: true\n")
            .mint()
            .await;

        run.minted("environment");
        assert_eq!(run.report["registry"], host);
        assert_eq!(run.report["namespace"], NAMESPACE);
        let calls = aws.calls();
        assert_eq!(calls.len(), 1, "{calls:#?}");
        assert_eq!(calls[0].service, "ecr-public");
        assert_eq!(calls[0].signed_service, "ecr-public");
        assert_eq!(calls[0].region, "us-east-1");
        assert_eq!(calls[0].principal, USER);
    }
}

#[tokio::test]
async fn role_for_the_public_gallery_may_do_no_more_there_either() {
    let aws = FakeAws::start();
    let config = format!(
        "publicEcr: true\nidentities:\n- assumeRole: {{roleArn: \"{ROLE}\", pullOnly: true}}\n"
    );

    let run = Identity::of(&aws, "public.ecr.aws")
        .variables(aws.environment())
        .config(&config)
        .mint()
        .await;

    run.minted("environment");
    assert_eq!(aws.calls_to("ecr-public")[0].principal, ROLE);
    let policy = &aws.calls_to("sts")[0].parameters["Policy"];
    let policy: serde_json::Value = serde_json::from_str(policy).unwrap();
    let statements = policy["Statement"].as_array().unwrap().iter();
    let actions: BTreeSet<_> = statements
        .flat_map(|statement| statement["Action"].as_array().unwrap())
        .map(|action| action.as_str().unwrap())
        .collect();
    assert_eq!(
        actions,
        BTreeSet::from([
            "ecr-public:GetAuthorizationToken",
            "sts:GetServiceBearerToken"
        ])
    );
}
