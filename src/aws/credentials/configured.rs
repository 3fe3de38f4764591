//! Which variables of a source of credentials are set, missing or blank.

use std::sync::Arc;

use aws_credential_types::provider::{ProvideCredentials, error::CredentialsError, future};

use super::source::Source;
use crate::aws::variables::{self, VariableError};

/// The variable that distinguishes EKS Pod Identity from ECS: both use one protocol, and only the
/// former names a file with its token.
pub(super) const POD_IDENTITY_VARIABLE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
/// The URIs of an endpoint for containers.
const URIS: [&str; 2] = [
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
];

/// A source with a variable that can't be used, in the place of the SDK's provider.
#[derive(Debug)]
struct Unusable(VariableError);

impl ProvideCredentials for Unusable {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::ready(Err(CredentialsError::invalid_configuration(self.0)))
    }
}

/// Returns the provider of a source, or one of an error if a variable of the source can't be used:
/// the SDK takes a blank variable for none, and the next source is another principal.
pub(super) fn with_usable_variables(
    from: Source,
    provider: Arc<dyn ProvideCredentials>,
) -> Arc<dyn ProvideCredentials> {
    let names: &[&'static str] = match from {
        Source::Environment => &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
        Source::WebIdentity => &["AWS_WEB_IDENTITY_TOKEN_FILE"],
        Source::PodIdentity | Source::Container => &[URIS[0], URIS[1], POD_IDENTITY_VARIABLE],
        // A profile has variables of its own.
        Source::Profile | Source::InstanceMetadata => &[],
    };
    match names.iter().find_map(|name| variables::value(name).err()) {
        Some(error) => Arc::new(Unusable(error)),
        None => provider,
    }
}

/// Returns which variables an expected source lacks; `None` if it needs none or has all.
pub(super) fn lacking(from: Source, value: impl Fn(&str) -> Option<String>) -> Option<String> {
    let needed: &[&str] = match from {
        Source::Environment => &["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"],
        Source::WebIdentity => &["AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN"],
        Source::PodIdentity => &[URIS[1], POD_IDENTITY_VARIABLE],
        Source::Container if URIS.into_iter().any(|uri| value(uri).is_some()) => &[],
        Source::Container => &URIS,
        Source::Profile | Source::InstanceMetadata => &[],
    };
    let missing = needed.iter().filter(|name| value(name).is_none());
    let missing: Vec<&str> = missing.copied().collect();
    let joint = match from {
        Source::Container => " or ",
        _ => " and ",
    };
    Some(missing.join(joint)).filter(|names| !names.is_empty())
}

/// Returns which variables of a source are set; `None` if none are.
pub(super) fn configured(from: Source, value: impl Fn(&str) -> Option<String>) -> Option<String> {
    let value = |name| value(name).filter(|text| !text.trim().is_empty());
    let is_set = |name| value(name).is_some();
    let missing = |set: &str, missing: &str| Some(format!("{set} is set and {missing} is not"));
    match from {
        Source::Environment => {
            let (key, secret) = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY");
            match (is_set(key), is_set(secret)) {
                (true, false) => missing(key, secret),
                (false, true) => missing(secret, key),
                (true, true) => Some(format!("{key} and {secret} are set")),
                (false, false) => None,
            }
        }
        Source::WebIdentity => {
            let (file, role) = ("AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN");
            match (is_set(file), is_set(role)) {
                (true, false) => missing(file, role),
                (true, true) => Some(format!("{file} and {role} are set")),
                // A role alone is a setting for other tools.
                (false, _) => None,
            }
        }
        Source::PodIdentity | Source::Container => {
            match URIS.into_iter().find(|&uri| is_set(uri)) {
                Some(uri) => Some(format!("{uri} is set")),
                None if is_set(POD_IDENTITY_VARIABLE) => missing(POD_IDENTITY_VARIABLE, URIS[1]),
                None => None,
            }
        }
        // A profile says by itself whether one is selected.
        Source::Profile | Source::InstanceMetadata => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expected_source_lacks_what_is_not_set() {
        let uri = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
        for (from, set, expected) in [
            (
                Source::Environment,
                &[][..],
                Some("AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
            ),
            (
                Source::WebIdentity,
                &["AWS_WEB_IDENTITY_TOKEN_FILE"],
                Some("AWS_ROLE_ARN"),
            ),
            (Source::PodIdentity, &[uri], Some(POD_IDENTITY_VARIABLE)),
            (Source::Container, &[uri], None),
            (Source::InstanceMetadata, &[], None),
        ] {
            let value = |name: &str| set.contains(&name).then(String::new);
            assert_eq!(lacking(from, value).as_deref(), expected, "{from} {set:?}");
        }
        let neither = lacking(Source::Container, |_| None).expect("both");
        assert!(neither.contains(" or "), "{neither}");
    }
}
