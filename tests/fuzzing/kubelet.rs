//! The request of a kubelet to the credential plugin: whether it is read as any JSON reader reads
//! it, and whether no error shows the token of a ServiceAccount.

use ecr_injector::nodes::kubelet::{Auth, CredentialRequest, RequestError, Version, response};
use ecr_injector::registry::Aliases;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::assert_is_one_line;
use super::json::Json;

pub fn check(input: &[u8]) {
    let request = CredentialRequest::parse(input);
    let json = Json::parse_unambiguous(input).filter(|json| json.fields().is_some());
    match (&request, &json) {
        (Ok(request), Some(json)) => assert_has_fields(request, json),
        (Err(error), json) => assert_is_no_request(error, json.as_ref()),
        (Ok(_), None) => {}
    }
    if let Ok(request) = &request {
        assert_response_is_readable(request);
        let played = CredentialRequest::to_json(&request.image);
        assert!(
            CredentialRequest::parse(played.as_bytes()).is_ok(),
            "{played}"
        );
    }
}

fn assert_has_fields(request: &CredentialRequest, json: &Json) {
    assert_eq!(
        json.text_at(&["apiVersion"]),
        Some(request.version.as_str())
    );
    assert_eq!(json.text_at(&["kind"]), Some("CredentialProviderRequest"));
    assert_eq!(json.text_at(&["image"]), Some(&*request.image));
    let token = json.text_at(&["serviceAccountToken"]);
    let token = token.filter(|token| !token.is_empty() && request.version == Version::V1);
    let ours = request.service_account.as_ref();
    assert_eq!(ours.map(|ours| ours.token.expose_secret()), token);
    let annotations = json.get("serviceAccountAnnotations").and_then(Json::fields);
    for (key, value) in ours.iter().flat_map(|ours| &ours.annotations) {
        let mut annotations = annotations.expect("annotations").iter();
        let found = annotations.find(|(name, _)| name == key);
        assert_eq!(found.and_then(|(_, value)| value.text()), Some(&**value));
    }
    let shown = format!("{request:?}");
    let is_secret = |token: &&str| token.len() > 40 && !request.image.contains(*token);
    assert!(
        token
            .filter(is_secret)
            .is_none_or(|token| !shown.contains(token))
    );
}

/// An input that has all that a request needs is one; and an error has nothing of a token.
fn assert_is_no_request(error: &RequestError, json: Option<&Json>) {
    let text = error.to_string();
    assert!(text.chars().count() <= 500, "{text}");
    assert_is_one_line(&text);
    let Some(json) = json else {
        return;
    };
    let version = json.text_at(&["apiVersion"]).and_then(Version::parse);
    let is_kind = json.text_at(&["kind"]) == Some("CredentialProviderRequest");
    let has_image = json
        .text_at(&["image"])
        .is_some_and(|image| !image.is_empty() && !image.starts_with('/'));
    let has_other_type = matches!(error, RequestError::Json { .. });
    let is_request = version.is_some() && is_kind && has_image;
    assert!(has_other_type || !is_request, "{error:?}");
    if let Some(token) = json
        .text_at(&["serviceAccountToken"])
        .filter(|token| token.len() > 40)
    {
        let is_shown_anyway = [["kind"], ["apiVersion"]]
            .iter()
            .any(|path| json.text_at(path).is_some_and(|text| text.contains(token)));
        assert!(is_shown_anyway || !text.contains(token), "{text}");
    }
}

/// A response is one line, which has these fields and no other.
fn assert_response_is_readable(request: &CredentialRequest) {
    let resolved = Aliases::default().with_public().resolve(request.host());
    let auth = resolved.as_ref().map(|(host, _)| Auth {
        host: host.as_str(),
        username: "AWS",
        password: "p\"\n",
    });
    let line = response(request.version, auth, 60);
    assert_eq!(line.lines().count(), 1, "{}", *line);
    let mut expected = json!({
        "apiVersion": request.version.as_str(),
        "kind": "CredentialProviderResponse",
        "cacheKeyType": "Registry",
        "cacheDuration": "60s",
    });
    if resolved.is_some() {
        expected["auth"] = json!({request.host(): {"username": "AWS", "password": "p\"\n"}});
    }
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap(), expected);
}
