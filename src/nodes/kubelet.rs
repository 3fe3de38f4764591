//! The protocol of the kubelet's exec credential plugins, in its three versions: requests and
//! responses as bytes.
//!
//! The kubelet decodes responses strictly, and of a field that it doesn't know it only says that
//! the response can't be decoded. So a response has exactly the fields that are needed.

use std::collections::BTreeMap;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::Zeroizing;

/// The kind of a request.
const REQUEST_KIND: &str = "CredentialProviderRequest";
/// The most characters of a text from the request that an error shows.
const MAX_SHOWN: usize = 80;

/// A version of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// Since Kubernetes 1.26; the one with tokens of ServiceAccounts.
    V1,
    /// From Kubernetes 1.24.
    V1Beta1,
    /// From Kubernetes 1.20.
    V1Alpha1,
}

/// A request for the credentials of an image.
#[derive(Debug)]
pub struct CredentialRequest {
    /// The version, in which the response has to be as well.
    pub version: Version,
    /// The image.
    pub image: String,
    /// The ServiceAccount of the Pod, if the kubelet is configured to send its token.
    pub service_account: Option<ServiceAccount>,
}

/// The ServiceAccount of a Pod.
#[derive(Debug)]
pub struct ServiceAccount {
    /// Its token.
    pub token: SecretString,
    /// Those of its annotations that the kubelet is configured to send.
    pub annotations: BTreeMap<String, String>,
}

/// Why the input is no request.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RequestError {
    /// The input is no JSON object with these fields. The cause isn't shown, as it may quote a
    /// token.
    #[error(
        "standard input is no {REQUEST_KIND}: it is not JSON of that form from line {line}, column {column} on"
    )]
    Json {
        /// The line, from 1.
        line: usize,
        /// The column, from 1.
        column: usize,
    },
    /// The input is empty.
    #[error("standard input is empty: expected a {REQUEST_KIND} as JSON, as the kubelet sends it")]
    Empty,
    /// The object is of another kind or version.
    #[error(
        "standard input is {kind:?} of {version:?}: expected {REQUEST_KIND} of {}, {} or {}",
        Version::V1.as_str(), Version::V1Beta1.as_str(), Version::V1Alpha1.as_str()
    )]
    Other {
        /// The beginning of the kind.
        kind: String,
        /// The beginning of the version.
        version: String,
    },
    /// The request names no image.
    #[error("the request has no image")]
    NoImage,
}

/// The fields of a request; others may be added to the protocol.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Request {
    api_version: Option<String>,
    kind: Option<String>,
    image: Option<String>,
    service_account_token: Option<SecretString>,
    service_account_annotations: Option<BTreeMap<String, String>>,
}

/// A response, field by field in the order of the protocol's own type.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    api_version: &'a str,
    kind: &'a str,
    cache_key_type: &'a str,
    cache_duration: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth: Option<BTreeMap<&'a str, Credential<'a>>>,
}

#[derive(Serialize)]
struct Credential<'a> {
    username: &'a str,
    password: &'a str,
}

/// The credentials of a response.
#[derive(Clone, Copy)]
pub struct Auth<'a> {
    /// The host as in the image, with its port.
    pub host: &'a str,
    /// The user name.
    pub username: &'a str,
    /// The password.
    pub password: &'a str,
}

impl Version {
    /// All versions.
    pub const ALL: [Self; 3] = [Self::V1, Self::V1Beta1, Self::V1Alpha1];

    /// Returns the version of an `apiVersion`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|version| version.as_str() == text)
    }

    /// Returns the `apiVersion`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "credentialprovider.kubelet.k8s.io/v1",
            Self::V1Beta1 => "credentialprovider.kubelet.k8s.io/v1beta1",
            Self::V1Alpha1 => "credentialprovider.kubelet.k8s.io/v1alpha1",
        }
    }
}

impl CredentialRequest {
    /// Parses a request.
    pub fn parse(input: &[u8]) -> Result<Self, RequestError> {
        if input.iter().all(u8::is_ascii_whitespace) {
            return Err(RequestError::Empty);
        }
        let request: Option<Request> =
            serde_json::from_slice(input).map_err(|error| RequestError::Json {
                line: error.line(),
                column: error.column(),
            })?;
        let request = request.unwrap_or_default();
        let (kind, version) = (request.kind.as_deref(), request.api_version.as_deref());
        let (Some(REQUEST_KIND), Some(version)) = (kind, version.and_then(Version::parse)) else {
            let shown = |text: Option<&str>| {
                let text = text.unwrap_or_default();
                text.chars().take(MAX_SHOWN).collect()
            };
            return Err(RequestError::Other {
                kind: shown(kind),
                version: shown(version),
            });
        };
        let image = request.image.filter(|image| !host(image).is_empty());
        let token = request
            .service_account_token
            .filter(|token| !secrecy::ExposeSecret::expose_secret(token).is_empty())
            .filter(|_| version == Version::V1);
        Ok(Self {
            version,
            image: image.ok_or(RequestError::NoImage)?,
            service_account: token.map(|token| ServiceAccount {
                token,
                annotations: request.service_account_annotations.unwrap_or_default(),
            }),
        })
    }

    /// Returns a request as the kubelet sends it for an image, without a tag or a digest.
    #[must_use]
    pub fn to_json(image: &str) -> String {
        let name = image.split_once('@').map_or(image, |(name, _)| name);
        let path = name.rfind('/').unwrap_or_default();
        let end = name[path..].find(':').map_or(name.len(), |at| path + at);
        serde_json::json!({
            "apiVersion": Version::V1.as_str(),
            "kind": REQUEST_KIND,
            "image": &name[..end],
        })
        .to_string()
    }

    /// Returns the image's host, with its port.
    #[must_use]
    pub fn host(&self) -> &str {
        host(&self.image)
    }
}

/// Returns the part of an image that may be a host.
fn host(image: &str) -> &str {
    image.split('/').next().unwrap_or_default()
}

/// Returns a response as one line: credentials, or that there are none, and for how many seconds
/// the kubelet may keep it.
#[must_use]
pub fn response(version: Version, auth: Option<Auth<'_>>, keep: u64) -> Zeroizing<String> {
    let keep = format!("{keep}s");
    let response = Response {
        api_version: version.as_str(),
        kind: "CredentialProviderResponse",
        cache_key_type: "Registry",
        cache_duration: &keep,
        auth: auth.map(|auth| {
            let credential = Credential {
                username: auth.username,
                password: auth.password,
            };
            BTreeMap::from([(auth.host, credential)])
        }),
    };
    // A struct of texts can always be written as JSON.
    let mut line = serde_json::to_string(&response).unwrap_or_default();
    line.push('\n');
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(input: &str) -> Result<CredentialRequest, RequestError> {
        CredentialRequest::parse(input.as_bytes())
    }

    fn request(version: &str, fields: &str) -> String {
        format!(
            r#"{{"apiVersion":"credentialprovider.kubelet.k8s.io/{version}","kind":"CredentialProviderRequest"{fields}}}"#
        )
    }

    #[test]
    fn response_is_exactly_these_bytes() {
        let auth = Auth {
            host: "r.example:443",
            username: "AWS",
            password: "p\"w",
        };
        let line = response(Version::V1Beta1, Some(auth), 19_812);
        assert_eq!(
            *line,
            "{\"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1beta1\",\
             \"kind\":\"CredentialProviderResponse\",\"cacheKeyType\":\"Registry\",\
             \"cacheDuration\":\"19812s\",\
             \"auth\":{\"r.example:443\":{\"username\":\"AWS\",\"password\":\"p\\\"w\"}}}\n"
        );
        let line = response(Version::V1, None, 0);
        assert_eq!(
            *line,
            "{\"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1\",\
             \"kind\":\"CredentialProviderResponse\",\"cacheKeyType\":\"Registry\",\
             \"cacheDuration\":\"0s\"}\n"
        );
    }

    #[test]
    fn service_account_is_read_in_v1_alone() {
        let fields = r#","image":"r/a","podName":"x","serviceAccountToken":"t","serviceAccountAnnotations":{"a":"b"}"#;
        for (version, expected) in [("v1", true), ("v1beta1", false), ("v1alpha1", false)] {
            let request = parse(&request(version, fields)).expect("a request");
            assert_eq!(request.service_account.is_some(), expected, "{version}");
            assert_eq!(request.host(), "r");
        }
        let empty = r#","image":"r/a","serviceAccountToken":"","serviceAccountAnnotations":null"#;
        let request = parse(&request("v1", empty)).expect("a request");
        assert!(request.service_account.is_none());
    }

    #[test]
    fn input_that_is_no_request_is_an_error_of_its_own() {
        let other = |kind: &str, version: &str| RequestError::Other {
            kind: kind.to_owned(),
            version: version.to_owned(),
        };
        let v1 = Version::V1.as_str();
        for (input, expected) in [
            (String::new(), RequestError::Empty),
            (" \n\t".to_owned(), RequestError::Empty),
            ("null".to_owned(), other("", "")),
            ("[]".to_owned(), other("", "")),
            ("{}".to_owned(), other("", "")),
            (
                request("v2", ""),
                other(REQUEST_KIND, "credentialprovider.kubelet.k8s.io/v2"),
            ),
            (
                request("v1", "").replace("Request\"", "Response\""),
                other("CredentialProviderResponse", v1),
            ),
            (request("v1", ""), RequestError::NoImage),
            (request("v1", r#","image":"""#), RequestError::NoImage),
            (request("v1", r#","image":"/""#), RequestError::NoImage),
            (request("v1", r#","image":null"#), RequestError::NoImage),
        ] {
            assert_eq!(parse(&input).map(|_| ()), Err(expected), "{input}");
        }
        for input in ["{", "{\"kind\":1}", "\"SECRET\"", "[1]", "{} {}"] {
            let error = parse(input).map(|_| ()).expect_err("no request");
            assert!(matches!(error, RequestError::Json { .. }), "{error:?}");
            assert!(!error.to_string().contains("SECRET"));
        }
    }

    #[test]
    fn request_that_is_played_has_neither_tag_nor_digest() {
        for (image, expected) in [
            ("r.example/a/b", "r.example/a/b"),
            ("r.example:5000/a:1.2", "r.example:5000/a"),
            ("r.example:5000/a@sha256:abc", "r.example:5000/a"),
            ("r.example/a:1.2@sha256:abc", "r.example/a"),
            ("a:1", "a"),
        ] {
            let request = parse(&CredentialRequest::to_json(image)).expect("a request");
            assert_eq!(request.image, expected);
        }
    }
}
