//! Which endpoint is asked for which host, through a proxy that notes the names.

use futures::future::join_all;

use super::command::Node;
use crate::support::{Authority, ConnectProxy, FakeAws};

/// A registry's host after the account, its region, and the host of ECR that is asked for it.
const ROWS: [(&str, &str, &str); 22] = [
    (
        "dkr.ecr.eu-west-1.amazonaws.com",
        "eu-west-1",
        "api.ecr.eu-west-1.amazonaws.com",
    ),
    (
        "dkr.ecr-fips.us-east-1.amazonaws.com",
        "us-east-1",
        "ecr-fips.us-east-1.amazonaws.com",
    ),
    (
        "dkr-ecr.eu-north-1.on.aws",
        "eu-north-1",
        "ecr.eu-north-1.api.aws",
    ),
    (
        "dkr-ecr-fips.us-west-2.on.aws",
        "us-west-2",
        "ecr-fips.us-west-2.api.aws",
    ),
    (
        "dkr.ecr.us-gov-west-1.amazonaws.com",
        "us-gov-west-1",
        "api.ecr.us-gov-west-1.amazonaws.com",
    ),
    (
        "dkr.ecr-fips.us-gov-west-1.amazonaws.com",
        "us-gov-west-1",
        "ecr-fips.us-gov-west-1.amazonaws.com",
    ),
    (
        "dkr-ecr.us-gov-east-1.on.aws",
        "us-gov-east-1",
        "ecr.us-gov-east-1.api.aws",
    ),
    (
        "dkr-ecr-fips.us-gov-east-1.on.aws",
        "us-gov-east-1",
        "ecr-fips.us-gov-east-1.api.aws",
    ),
    (
        "dkr.ecr.cn-north-1.amazonaws.com.cn",
        "cn-north-1",
        "api.ecr.cn-north-1.amazonaws.com.cn",
    ),
    (
        "dkr.ecr-fips.cn-north-1.amazonaws.com.cn",
        "cn-north-1",
        "api.ecr-fips.cn-north-1.amazonaws.com.cn",
    ),
    (
        "dkr-ecr.cn-northwest-1.on.amazonwebservices.com.cn",
        "cn-northwest-1",
        "ecr.cn-northwest-1.api.amazonwebservices.com.cn",
    ),
    (
        "dkr-ecr-fips.cn-north-1.on.amazonwebservices.com.cn",
        "cn-north-1",
        "ecr-fips.cn-north-1.api.amazonwebservices.com.cn",
    ),
    (
        "dkr.ecr.eusc-de-east-1.amazonaws.eu",
        "eusc-de-east-1",
        "api.ecr.eusc-de-east-1.amazonaws.eu",
    ),
    (
        "dkr.ecr-fips.eusc-de-east-1.amazonaws.eu",
        "eusc-de-east-1",
        "api.ecr-fips.eusc-de-east-1.amazonaws.eu",
    ),
    (
        "dkr.ecr.us-iso-east-1.c2s.ic.gov",
        "us-iso-east-1",
        "api.ecr.us-iso-east-1.c2s.ic.gov",
    ),
    (
        "dkr.ecr-fips.us-iso-east-1.c2s.ic.gov",
        "us-iso-east-1",
        "api.ecr-fips.us-iso-east-1.c2s.ic.gov",
    ),
    (
        "dkr.ecr.us-isob-east-1.sc2s.sgov.gov",
        "us-isob-east-1",
        "api.ecr.us-isob-east-1.sc2s.sgov.gov",
    ),
    (
        "dkr.ecr-fips.us-isob-east-1.sc2s.sgov.gov",
        "us-isob-east-1",
        "api.ecr-fips.us-isob-east-1.sc2s.sgov.gov",
    ),
    (
        "dkr.ecr.eu-isoe-west-1.cloud.adc-e.uk",
        "eu-isoe-west-1",
        "api.ecr.eu-isoe-west-1.cloud.adc-e.uk",
    ),
    (
        "dkr.ecr-fips.eu-isoe-west-1.cloud.adc-e.uk",
        "eu-isoe-west-1",
        "api.ecr-fips.eu-isoe-west-1.cloud.adc-e.uk",
    ),
    (
        "dkr.ecr.us-isof-south-1.csp.hci.ic.gov",
        "us-isof-south-1",
        "api.ecr.us-isof-south-1.csp.hci.ic.gov",
    ),
    (
        "dkr.ecr-fips.us-isof-south-1.csp.hci.ic.gov",
        "us-isof-south-1",
        "api.ecr-fips.us-isof-south-1.csp.hci.ic.gov",
    ),
];

/// P-10, P-11, P-12
#[tokio::test]
async fn each_form_of_host_asks_its_own_endpoint() {
    for rows in ROWS.chunks(4) {
        join_all(rows.iter().map(async |(suffix, region, endpoint)| {
            let authority = Authority::new("a CA");
            let aws = FakeAws::start_tls(&authority, &[endpoint]);
            let proxy = ConnectProxy::start(aws.address());
            let node = Node::new(&aws);
            let bundle = node.path("ca.pem");
            std::fs::write(&bundle, authority.pem()).unwrap();
            let host = format!("210987654321.{suffix}");
            let run = node.bare().variables(aws.static_keys());
            let run = run
                .variable("HTTPS_PROXY", &proxy.url())
                .arguments(&["--aws-ca-bundle", bundle.to_str().unwrap()])
                .image(&format!("{host}/a"));

            let ran = node.answer(&run).await;

            assert_eq!(ran.credential().0, host);
            assert_eq!(proxy.targets(), [format!("{endpoint}:443")]);
            let call = &aws.calls()[0];
            assert_eq!((&*call.region, &*call.signed_service), (*region, "ecr"));
        }))
        .await;
    }
}

/// P-13
#[tokio::test]
async fn port_of_the_image_stays_in_the_answer() {
    let aws = FakeAws::start();
    let node = Node::new(&aws);
    for port in [":443", ":8443"] {
        let host = format!("210987654321.dkr.ecr.eu-west-1.amazonaws.com{port}");
        let ran = node.answer(&node.run().image(&format!("{host}/a"))).await;
        assert_eq!(ran.credential().0, host);
    }
}
