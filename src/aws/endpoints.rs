//! The endpoints by region that the configuration names, such as those of VPC endpoints.

use std::collections::BTreeMap;

use crate::registry::Region;

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

    #[test]
    fn shown_endpoint_has_no_password() {
        assert_eq!(shown("https://user:p@ss@host:1/x?y"), "https://host:1");
        assert_eq!(shown("http://127.0.0.1:2"), "http://127.0.0.1:2");
        assert_eq!(shown("garbage"), "https://garbage");
    }
}
