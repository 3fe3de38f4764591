//! The field `awsEndpoints`.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use http::Uri;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

use super::{error::FieldErrors, patterns};
use crate::{
    aws::endpoints::{Endpoints, RegionEndpoints},
    registry::Region,
};

/// The most regions with endpoints: AWS has fewer than 50.
const MAX_REGIONS: usize = 64;

#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("not" = patterns::no_endpoint()))]
pub(super) struct FileEndpoints {
    /// URL of the ECR API in this region.
    #[schemars(extend("pattern" = patterns::endpoint(), "allOf" = patterns::endpoint_host()))]
    ecr: Option<String>,
    /// URL of STS in this region, where roles are assumed.
    #[schemars(extend("pattern" = patterns::endpoint(), "allOf" = patterns::endpoint_host()))]
    sts: Option<String>,
}

/// Returns the schema of a map by region. Patterns of keys rather than `propertyNames`: of that a
/// validator tells no path.
pub(super) fn by_region(generator: &mut SchemaGenerator) -> Schema {
    let endpoints = generator.subschema_for::<FileEndpoints>();
    json_schema!({
        "type": ["object", "null"],
        "additionalProperties": false,
        "patternProperties": {patterns::REGION: endpoints, patterns::NO_REGION: false},
        "maxProperties": MAX_REGIONS,
    })
}

/// Checks the field.
pub(super) fn check(
    by_region: BTreeMap<String, FileEndpoints>,
    errors: &mut FieldErrors,
) -> Endpoints {
    let field = "awsEndpoints";
    if by_region.len() > MAX_REGIONS {
        errors.push(field, format!("expected at most {MAX_REGIONS} regions"));
    }
    let mut endpoints = Endpoints::new();
    for (name, urls) in by_region {
        let field = format!("{field}.{name}");
        let Some(region) = Region::parse(&name) else {
            errors.push(field, "expected a region such as eu-west-1");
            continue;
        };
        if urls.ecr.is_none() && urls.sts.is_none() {
            errors.push(field, "expected ecr, sts or both");
            continue;
        }
        for (service, url) in [("ecr", &urls.ecr), ("sts", &urls.sts)] {
            if let Some(error) = url.as_deref().and_then(check_url) {
                errors.push(format!("{field}.{service}"), error);
            }
        }
        let FileEndpoints { ecr, sts } = urls;
        endpoints.insert(region, RegionEndpoints { ecr, sts });
    }
    endpoints
}

/// Checks the URL of an endpoint. Plain text is for this machine alone: who
/// reads such a call could use its answer.
fn check_url(text: &str) -> Option<&'static str> {
    let Some(uri) = text.parse::<Uri>().ok().filter(|uri| uri.host().is_some()) else {
        return Some(
            "expected a URL such as https://vpce-0a1b2c3d.api.ecr.eu-west-1.vpce.amazonaws.com",
        );
    };
    let is_loopback = matches!(uri.host(), Some("localhost" | "127.0.0.1" | "[::1]"));
    // The parser takes schemes in upper case as well.
    match text.split_once("://") {
        Some(("https", _)) => {}
        Some(("http", _)) if is_loopback => {}
        _ => return Some("expected https://; http:// only for localhost, 127.0.0.1 or [::1]"),
    }
    let has_user = uri
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'));
    // The parser drops a fragment.
    let has_rest = !matches!(uri.path(), "" | "/") || uri.query().is_some() || text.contains('#');
    if has_user || has_rest {
        return Some("expected a URL without user, path, query and fragment");
    }
    let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else {
        return Some("expected a URL with a host");
    };
    if !is_host(host) {
        return Some("expected the name or IP address of one host: no wildcard, no empty label");
    }
    match authority.as_str().strip_prefix(host) {
        Some("") => None,
        Some(port) if is_port(port) => None,
        _ => Some("expected a port from 1 to 65535 after the colon, or neither"),
    }
}

/// Returns whether a text is the name or address of a host.
fn is_host(host: &str) -> bool {
    if let Some(address) = host.strip_prefix('[') {
        let address = address.strip_suffix(']').unwrap_or_default();
        return !address.contains('.') && address.parse::<Ipv6Addr>().is_ok();
    }
    let is_in_label = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.chars().all(is_in_label)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let last = host.rsplit('.').next().unwrap_or_default();
    // No top-level domain is a number.
    let is_address = last.chars().all(|c| c.is_ascii_digit());
    host.len() <= 253
        && host.split('.').all(is_label)
        && (!is_address || host.parse::<Ipv4Addr>().is_ok())
}

/// Returns whether a text is a colon with a port.
fn is_port(text: &str) -> bool {
    let port = text.strip_prefix(':').unwrap_or_default();
    port.chars().all(|c| c.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn endpoint_is_https_or_on_this_machine() {
        for text in [
            "https://vpce-1.api.ecr.eu-west-1.vpce.amazonaws.com",
            "https://vpce-1.example:8443/",
            "http://127.0.0.1:8080",
            "http://localhost",
            "http://[::1]:1/",
            "https://[2001:db8::1]:65535",
            "https://192.0.2.1:443",
            "https://vpce_1.example",
        ] {
            assert_eq!(check_url(text), None, "{text}");
        }
        for (text, expected) in [
            ("", "expected a URL"),
            ("vpce-1.example", "expected https://"),
            ("/path", "expected a URL"),
            ("https://", "expected a URL"),
            ("https://two words", "expected a URL"),
            ("http://vpce-1.example", "expected https://"),
            ("http://127.0.0.1.example", "expected https://"),
            ("ftp://127.0.0.1", "expected https://"),
            (
                "https://user:secret@vpce-1.example",
                "expected a URL without user",
            ),
            ("https://vpce-1.example/path", "expected a URL without user"),
            ("https://vpce-1.example?x", "expected a URL without user"),
            ("https://vpce-1.example#x", "expected a URL without user"),
            ("https://vpce-1.example/#", "expected a URL without user"),
            ("https://vpce-1.example:0", "expected a port"),
            ("https://vpce-1.example:00", "expected a port"),
            ("https://vpce-1.example:65536", "expected a"),
            ("https://vpce-1.example:", "expected a port"),
            ("https://vpce-1.example:/", "expected a port"),
            ("https://vpce-1.example:+1", "expected a"),
            ("http://localhost:0", "expected a port"),
            ("http://[::1]:", "expected a port"),
            ("https://*.example", "expected the name"),
            ("https://*", "expected the name"),
            ("https://...", "expected the name"),
            ("https://.", "expected the name"),
            ("https://a..example", "expected the name"),
            ("https://.example", "expected the name"),
            ("https://example.", "expected the name"),
            ("https://-a.example", "expected the name"),
            ("https://300.0.2.1", "expected the name"),
            ("https://192.0.2", "expected the name"),
            ("https://[::1", "expected a"),
            ("https://[x]", "expected"),
            ("https://%61.example", "expected"),
        ] {
            let error = check_url(text).unwrap_or_default();
            assert!(error.starts_with(expected), "{text:?}: {error}");
        }
    }

    #[test]
    fn endpoints_are_checked_by_region_and_service() {
        let config = |endpoints: &str| {
            Config::parse_fields(&format!("awsEndpoints: {endpoints}"), "config.yaml")
        };
        let valid = config(
            "{eu-west-1: {ecr: \"https://e\", sts: \"https://s\"}, cn-north-1: {sts: \"https://c\"}}",
        );
        let endpoints = valid.expect("valid").endpoints;
        assert_eq!(endpoints.len(), 2);
        let region = Region::parse("eu-west-1").expect("a region");
        assert_eq!(endpoints[&region].ecr.as_deref(), Some("https://e"));
        assert_eq!(endpoints[&region].sts.as_deref(), Some("https://s"));
        for (text, expected) in [
            (
                "{eu: {ecr: \"https://e\"}}",
                "awsEndpoints.eu: expected a region such as eu-west-1",
            ),
            (
                "{eu-west-1: {}}",
                "awsEndpoints.eu-west-1: expected ecr, sts or both",
            ),
            (
                "{eu-west-1: {sts: \"http://s\"}}",
                "awsEndpoints.eu-west-1.sts: expected https://",
            ),
            (
                "{eu-west-1: {ec: x}}",
                "awsEndpoints.eu-west-1.ec: unknown field",
            ),
        ] {
            let error = config(text).expect_err(text).to_string();
            assert!(
                error.starts_with(&format!("config.yaml: {expected}")),
                "{error}"
            );
        }
    }
}
