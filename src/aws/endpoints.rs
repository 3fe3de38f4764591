//! The endpoints by region that the configuration names, such as those of VPC endpoints.

use std::collections::BTreeMap;

use crate::registry::{Partition, Region};

/// The endpoints of a region; `None`: AWS's own, or the one that the environment names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RegionEndpoints {
    /// The endpoint of the ECR API.
    pub ecr: Option<String>,
    /// The endpoint of STS.
    pub sts: Option<String>,
}

/// The endpoints by region.
pub type Endpoints = BTreeMap<Region, RegionEndpoints>;

/// The regions of the commercial partition that have a FIPS endpoint of ECR, by AWS's list of
/// endpoints; those for the US government all have one.
const FIPS_REGIONS: [&str; 4] = ["us-east-1", "us-east-2", "us-west-1", "us-west-2"];

/// Returns the FIPS endpoints of ECR in a region: the name in AWS's list of endpoints, then the one
/// in the SDK's rules, which may not exist. `None`: the partition isn't in that list, so the SDK's
/// rule holds.
#[must_use]
pub fn fips_urls(region: &Region) -> Option<[String; 2]> {
    let is_listed = matches!(region.partition(), Partition::Aws | Partition::AwsUsGov);
    let url = |name: &str| format!("https://{name}.{region}.amazonaws.com");
    is_listed.then(|| [url("ecr-fips"), url("api.ecr-fips")])
}

/// Returns what to do if a region's FIPS endpoint isn't there, as far as it is known to have none.
/// The host asks for it, or else a variable does.
#[must_use]
pub fn no_fips(region: &Region, by_host: bool) -> Option<String> {
    let instead = if by_host {
        "use the host without -fips"
    } else {
        "unset AWS_USE_FIPS_ENDPOINT"
    };
    let has_none = region.partition() == Partition::Aws && !FIPS_REGIONS.contains(&region.as_str());
    has_none.then(|| format!("; AWS has no FIPS endpoint for ECR in {region}; {instead}"))
}

/// Returns the URL of an endpoint as errors show it: without a user and a password.
#[must_use]
pub fn shown(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("https", url));
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let host = rest[..end].rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(name: &str) -> Region {
        Region::parse(name).expect("a region")
    }

    #[test]
    fn fips_endpoints_are_those_of_awss_list() {
        let expected = [
            "https://ecr-fips.us-gov-west-1.amazonaws.com",
            "https://api.ecr-fips.us-gov-west-1.amazonaws.com",
        ];
        let urls = fips_urls(&region("us-gov-west-1")).expect("a list");
        assert_eq!(urls, expected);
        assert!(fips_urls(&region("eu-west-1")).is_some());
        assert_eq!(fips_urls(&region("cn-north-1")), None);
    }

    #[test]
    fn region_without_a_fips_endpoint_has_advice() {
        let advice = no_fips(&region("eu-west-1"), true).expect("advice");
        let expected =
            "; AWS has no FIPS endpoint for ECR in eu-west-1; use the host without -fips";
        assert_eq!(advice, expected);
        let advice = no_fips(&region("eu-west-1"), false).expect("advice");
        assert!(advice.ends_with("unset AWS_USE_FIPS_ENDPOINT"), "{advice}");
        for other in ["us-east-1", "us-gov-west-1", "cn-north-1"] {
            assert_eq!(no_fips(&region(other), true), None, "{other}");
        }
    }

    #[test]
    fn shown_endpoint_has_no_password() {
        assert_eq!(shown("https://user:p@ss@host:1/x?y"), "https://host:1");
        assert_eq!(shown("http://127.0.0.1:2"), "http://127.0.0.1:2");
        assert_eq!(shown("garbage"), "https://garbage");
    }
}
