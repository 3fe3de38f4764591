//! The wire types of `AdmissionReview`: the request, which borrows from its body, and the response.
//!
//! `kube-core` has such types too. They aren't used, because they own every string, need the whole
//! object, and serialize the patch as an array of numbers where the API server expects base64.

use std::sync::Arc;

use serde::{Deserialize, Serialize, de::IgnoredAny};
use thiserror::Error;

use crate::admission::{
    json,
    pod::{Pod, Text},
};

/// The one version of the review that the webhook accepts.
pub const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// The maximum length of a warning, in characters; the API server truncates at 256 and may drop
/// warnings beyond 4,096 in all.
pub const MAX_WARNING_CHARS: usize = 120;

/// A request of the API server.
#[derive(Debug)]
pub struct Request<'a> {
    /// The review's uid, which the response repeats; empty offline.
    uid: Text<'a>,
    /// The operation.
    pub operation: Operation,
    /// The namespace of the request. The object's own may still be empty.
    pub namespace: Text<'a>,
    /// Whether the resource is a Pod, or the subresource that changes its containers
    /// (`pods/ephemeralcontainers`).
    pub is_pod: bool,
    /// Whether the request is a dry run, so that nothing will be stored.
    pub dry_run: bool,
    /// The object as it would be stored; `None` if it isn't a Pod or can't be read as one.
    pub object: Option<Pod<'a>>,
    /// The stored object, on UPDATE.
    pub old_object: Option<Pod<'a>>,
    /// The reason why the Pod, or the stored one, can't be read.
    pub unreadable: Option<serde_json::Error>,
}

/// The operation on the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// The object is new.
    Create,
    /// A stored object changes.
    Update,
    /// Any other operation, which is skipped.
    #[serde(other)]
    Other,
}

impl Operation {
    /// Returns the operation as a log field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Other => "other",
        }
    }
}

/// The reason why a body is not a review that can be answered.
#[derive(Debug, Error)]
pub enum ReviewError {
    /// The body is not JSON, or not an object of the right form.
    #[error("the body is not an AdmissionReview")]
    Json(#[source] serde_json::Error),
    /// The review has another version or kind.
    #[error("expected an AdmissionReview of {API_VERSION}, got {kind} of {api_version}")]
    Version {
        /// The body's `apiVersion`.
        api_version: String,
        /// The body's `kind`.
        kind: String,
    },
    /// The review has no `request`, or one without a `uid` string.
    #[error("the AdmissionReview has no request with a uid")]
    NoRequest,
}

impl ReviewError {
    /// Returns the error with its cause, for the client.
    #[must_use]
    pub fn with_cause(&self) -> String {
        match self {
            Self::Json(cause) => format!("{self}: {cause}"),
            Self::Version { .. } | Self::NoRequest => self.to_string(),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a, R> {
    #[serde(borrow, default)]
    api_version: Option<Text<'a>>,
    #[serde(borrow, default)]
    kind: Option<Text<'a>>,
    #[serde(default = "none")]
    request: Option<R>,
}

fn none<R>() -> Option<R> {
    None
}

/// A request whose objects are read as `O`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", bound(deserialize = "O: Deserialize<'de>"))]
struct WireRequest<'a, O> {
    #[serde(borrow, default)]
    uid: Option<Text<'a>>,
    #[serde(borrow, default)]
    resource: Option<Resource<'a>>,
    #[serde(borrow, default)]
    sub_resource: Option<Text<'a>>,
    #[serde(borrow, default)]
    namespace: Option<Text<'a>>,
    operation: Option<Operation>,
    #[serde(default)]
    dry_run: Option<bool>,
    #[serde(default = "none")]
    object: Option<O>,
    #[serde(default = "none")]
    old_object: Option<O>,
}

#[derive(Deserialize)]
#[allow(clippy::struct_field_names, reason = "the wire's own name")]
struct Resource<'a> {
    #[serde(borrow, default)]
    group: Option<Text<'a>>,
    #[serde(borrow, default)]
    version: Option<Text<'a>>,
    #[serde(borrow, default)]
    resource: Option<Text<'a>>,
}

/// The part of a request that an answer needs if nothing else can be read.
#[derive(Deserialize)]
struct WireUid<'a> {
    #[serde(borrow, default)]
    uid: Option<Text<'a>>,
}

impl<'a> Request<'a> {
    /// Parses a review. A review whose uid can be read is always `Ok`, even if its object is no Pod
    /// at all: the caller can then allow the object rather than fail the review.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReviewError> {
        if let Some(review) = json::read::<Review<'a, WireRequest<'a, Pod<'a>>>>(body) {
            return Self::from_wire(review, Some);
        }
        let error = match serde_json::from_slice::<Review<'a, WireRequest<'a, Pod<'a>>>>(body) {
            Ok(review) => return Self::from_wire(review, Some),
            Err(error) => error,
        };
        let Ok(review) = serde_json::from_slice::<Review<'a, WireRequest<'a, IgnoredAny>>>(body)
        else {
            return Self::with_uid_alone(body, error);
        };
        let request = Self::from_wire(review, |_| None)?;
        let unreadable = request.is_pod.then_some(error);
        Ok(Self {
            unreadable,
            ..request
        })
    }

    fn from_wire<O>(
        review: Review<'a, WireRequest<'a, O>>,
        pod: impl Fn(O) -> Option<Pod<'a>>,
    ) -> Result<Self, ReviewError> {
        check_version(review.api_version.as_ref(), review.kind.as_ref())?;
        let request = review.request.ok_or(ReviewError::NoRequest)?;
        let text = |text: &Option<Text<'a>>| {
            text.as_ref()
                .map_or(String::new(), |t| t.0.clone().into_owned())
        };
        let is_pod = request.resource.as_ref().is_some_and(|resource| {
            text(&resource.group).is_empty()
                && text(&resource.version) == "v1"
                && text(&resource.resource) == "pods"
        }) && matches!(
            text(&request.sub_resource).as_str(),
            "" | "ephemeralcontainers"
        );
        Ok(Self {
            uid: uid(request.uid)?,
            operation: request.operation.unwrap_or(Operation::Other),
            namespace: request.namespace.unwrap_or(Text("".into())),
            is_pod,
            dry_run: request.dry_run.unwrap_or(false),
            object: request.object.filter(|_| is_pod).and_then(&pod),
            old_object: request.old_object.filter(|_| is_pod).and_then(&pod),
            unreadable: None,
        })
    }

    fn with_uid_alone(body: &'a [u8], error: serde_json::Error) -> Result<Self, ReviewError> {
        let Ok(review) = serde_json::from_slice::<Review<'a, WireUid<'a>>>(body) else {
            return Err(ReviewError::Json(error));
        };
        check_version(review.api_version.as_ref(), review.kind.as_ref())?;
        let request = review.request.ok_or(ReviewError::NoRequest)?;
        Ok(Self {
            uid: uid(request.uid)?,
            operation: Operation::Other,
            namespace: Text("".into()),
            is_pod: false,
            dry_run: false,
            object: None,
            old_object: None,
            unreadable: None,
        })
    }

    /// Makes a request for the creation of a Pod, to decide on the Pod without a cluster.
    #[must_use]
    pub fn offline(namespace: &'a str, object: Pod<'a>) -> Self {
        Self {
            uid: Text("".into()),
            operation: Operation::Create,
            namespace: Text(namespace.into()),
            is_pod: true,
            dry_run: false,
            object: Some(object),
            old_object: None,
            unreadable: None,
        }
    }

    /// Returns the review's uid.
    #[must_use]
    pub fn uid(&self) -> &str {
        &self.uid.0
    }
}

fn check_version(
    api_version: Option<&Text<'_>>,
    kind: Option<&Text<'_>>,
) -> Result<(), ReviewError> {
    let text =
        |text: Option<&Text<'_>>| text.map_or(String::new(), |t| t.0.chars().take(64).collect());
    let (api_version, kind) = (text(api_version), text(kind));
    if api_version == API_VERSION && kind == KIND {
        Ok(())
    } else {
        Err(ReviewError::Version { api_version, kind })
    }
}

fn uid(uid: Option<Text<'_>>) -> Result<Text<'_>, ReviewError> {
    uid.ok_or(ReviewError::NoRequest)
}

/// A response to the API server.
#[derive(Debug, Default, PartialEq)]
pub struct Response {
    /// The HTTP status and the message for the user, if the object is denied.
    pub denial: Option<(u16, String)>,
    /// The JSON Patch of the object in base64, if anything changes.
    pub patch: Option<Arc<str>>,
    /// The warnings for the user, each of at most [`MAX_WARNING_CHARS`].
    pub warnings: Vec<String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireReview<'a> {
    api_version: &'a str,
    kind: &'a str,
    response: WireResponse<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct WireResponse<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<WireStatus<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    warnings: &'a [String],
}

#[derive(Serialize)]
struct WireStatus<'a> {
    code: u16,
    message: &'a str,
}

impl Response {
    /// Serializes the response as a review with the request's uid.
    #[must_use]
    pub fn to_json(&self, request: &Request<'_>) -> Vec<u8> {
        let patch = self.patch.as_deref().filter(|_| self.denial.is_none());
        let review = WireReview {
            api_version: API_VERSION,
            kind: KIND,
            response: WireResponse {
                uid: request.uid(),
                allowed: self.denial.is_none(),
                status: self.denial.as_ref().map(|(code, message)| WireStatus {
                    code: *code,
                    message,
                }),
                patch_type: patch.is_some().then_some("JSONPatch"),
                patch,
                warnings: &self.warnings,
            },
        };
        // Strings and numbers: serialization can't fail.
        serde_json::to_vec(&review).unwrap_or_default()
    }
}

/// Prefixes a warning with the product's name, and truncates the text at [`MAX_WARNING_CHARS`].
#[must_use]
pub fn warning(text: &str) -> String {
    let warning = format!("ecr-injector: {text}");
    if warning.chars().count() <= MAX_WARNING_CHARS {
        return warning;
    }
    let mut cut: String = warning.chars().take(MAX_WARNING_CHARS - 1).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, prelude::BASE64_STANDARD};
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::admission::{patch::EncodedPatches, pod::ReferenceState};

    fn body(request: &Value) -> Vec<u8> {
        serde_json::to_vec(&json!({"apiVersion": API_VERSION, "kind": KIND, "request": request}))
            .expect("json")
    }

    fn pods() -> Value {
        json!({"group": "", "version": "v1", "resource": "pods"})
    }

    #[test]
    fn creation_of_a_pod_is_parsed() {
        let body = body(&json!({
            "uid": "u-1", "operation": "CREATE", "namespace": "team", "resource": pods(), "dryRun": true,
            "object": {"metadata": {"name": "p"}, "spec": {"containers": [{"image": "a.example/b"}]}},
            "oldObject": null, "userInfo": {"username": "x"},
        }));
        let request = Request::parse(&body).expect("a review");
        assert_eq!((request.uid(), &*request.namespace.0), ("u-1", "team"));
        assert!(request.is_pod && request.dry_run && request.old_object.is_none());
        assert_eq!(request.operation, Operation::Create);
        assert_eq!(
            request.object.expect("object").images().collect::<Vec<_>>(),
            ["a.example/b"]
        );
    }

    #[test]
    fn object_of_another_kind_or_shape_is_answered() {
        for request in [
            json!({"uid": "u", "operation": "CREATE", "resource": {"group": "apps", "version": "v1", "resource": "deployments"},
                "object": {"spec": {"containers": []}}}),
            json!({"uid": "u", "operation": "CREATE", "resource": pods(), "object": {"spec": {"containers": "none"}}}),
            json!({"uid": "u", "operation": "CREATE", "resource": pods(), "object": 7}),
            json!({"uid": "u", "operation": 7, "resource": pods()}),
            json!({"uid": "u", "operation": "SING", "resource": pods(), "object": {}}),
            json!({"uid": "u", "operation": "CREATE", "resource": pods(), "subResource": "status", "object": {}}),
        ] {
            let body = body(&request);
            let request = Request::parse(&body).expect("answered");
            let is_read = request.is_pod && request.unreadable.is_none();
            assert!(!is_read || request.operation == Operation::Other);
            let answer: Value =
                serde_json::from_slice(&Response::default().to_json(&request)).expect("json");
            assert_eq!(answer["response"], json!({"uid": "u", "allowed": true}));
        }
    }

    #[test]
    fn review_without_a_readable_uid_is_an_error() {
        for request in [
            json!(null),
            json!({}),
            json!({"uid": null}),
            json!({"uid": 7}),
            json!({"uid": {"a": 1}}),
        ] {
            assert!(
                matches!(
                    Request::parse(&body(&request)),
                    Err(ReviewError::NoRequest | ReviewError::Json(_))
                ),
                "{request}"
            );
        }
        for text in [
            "",
            "{",
            "[]",
            "null",
            "\"x\"",
            "{\"apiVersion\": 1}",
            "{} {}",
        ] {
            assert!(Request::parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn other_version_is_named_in_the_error() {
        let body = br#"{"apiVersion":"admission.k8s.io/v1beta1","kind":"AdmissionReview","request":{"uid":"u"}}"#;
        let error = Request::parse(body).expect_err("v1beta1");
        assert_eq!(
            error.to_string(),
            "expected an AdmissionReview of admission.k8s.io/v1, got AdmissionReview of admission.k8s.io/v1beta1"
        );
    }

    #[test]
    fn hostile_json_is_an_error_and_never_a_crash() {
        let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let deep = format!(
            r#"{{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{{"uid":"u","object":{nested}}}}}"#
        );
        let twice = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","kind":"x","request":{"uid":"u"}}"#;
        let not_a_number = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","x":NaN}}"#;
        let surrogate = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","namespace":"\ud800"}}"#;
        for text in [deep.as_str(), twice, not_a_number, surrogate] {
            let _ = Request::parse(text.as_bytes());
        }
        assert!(Request::parse(not_a_number.as_bytes()).is_err());
        assert!(Request::parse(twice.as_bytes()).is_err());
    }

    #[test]
    fn uid_is_repeated_and_the_patch_is_base64() {
        let text = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"a\u0062\"c"}}"#;
        let request = Request::parse(text.as_bytes()).expect("a review");
        let response = Response {
            patch: EncodedPatches::new("s").get(ReferenceState::NoList),
            ..Response::default()
        };
        let json = String::from_utf8(response.to_json(&request)).expect("text");
        assert!(json.contains(r#""uid":"ab\"c""#), "{json}");
        let answer: Value = serde_json::from_str(&json).expect("json");
        let patch = BASE64_STANDARD
            .decode(answer["response"]["patch"].as_str().expect("text"))
            .expect("base64");
        assert_eq!(
            serde_json::from_slice::<Value>(&patch).expect("json"),
            json!([{"op": "add", "path": "/spec/imagePullSecrets", "value": [{"name": "s"}]}])
        );
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
    }

    /// A review with every field that is read, some of those that are skipped, and no escape in
    /// what is read.
    fn whole_review() -> Vec<u8> {
        let pod = json!({
            "metadata": {
                "name": "web-1", "generateName": "web-", "deletionTimestamp": null,
                "labels": {"app": "web", "ecr-injector.dev/inject": "disabled"},
                "annotations": {"note": "a \"b\"\n", "ecr-injector.dev/inject": "false"},
                "ownerReferences": [{"kind": "Job", "name": "other"},
                    {"controller": true, "kind": "ReplicaSet", "name": "web", "uid": "o"}],
                "managedFields": [{"fieldsV1": {"f:spec": {"k:{\"name\":\"c\"}": {".": {}}}}}],
            },
            "spec": {
                "initContainers": [{"image": "a.example/init:1", "args": ["x", 1, -2.5e3, true]}],
                "containers": [{"name": "c", "image": "a.example/b@sha256:12", "ports": []}],
                "ephemeralContainers": null,
                "volumes": [{"image": {"reference": "a.example/data"}}, {"emptyDir": {}}],
                "imagePullSecrets": [{"name": "mine"}, {}],
                "serviceAccountName": "app",
            },
        });
        body(&json!({
            "uid": "705ab4f5", "operation": "UPDATE", "namespace": "team", "resource": pods(),
            "subResource": "ephemeralcontainers", "dryRun": false, "object": pod,
            "oldObject": {"spec": {"containers": [{"image": "a.example/old"}]}},
            "userInfo": {"username": "x", "groups": ["y"]}, "options": null,
        }))
    }

    type Whole<'a> = Review<'a, WireRequest<'a, Pod<'a>>>;

    fn shown(review: Whole<'_>) -> String {
        format!("{:?}", Request::from_wire(review, Some))
    }

    #[test]
    fn usual_review_is_read_without_serde_json_and_alike() {
        let body = whole_review();
        let fast = json::read::<Whole<'_>>(&body).expect("read");
        let slow = serde_json::from_slice::<Whole<'_>>(&body).expect("read");
        assert_eq!(shown(fast), shown(slow));
    }

    proptest! {
        #[test]
        fn changed_review_is_read_alike_or_left_to_serde_json(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..3),
            removed in any::<prop::sample::Index>(),
            count in 0..40_usize,
        ) {
            let mut body = whole_review();
            let start = removed.index(body.len());
            body.drain(start..(start + count).min(body.len()));
            for (at, byte) in changes {
                let at = at.index(body.len());
                body[at] = byte;
            }
            if let Some(fast) = json::read::<Whole<'_>>(&body) {
                let slow = serde_json::from_slice::<Whole<'_>>(&body);
                prop_assert_eq!(Some(shown(fast)), slow.ok().map(shown));
            }
        }
    }

    #[test]
    fn denial_has_its_code_and_no_patch() {
        let body = body(&json!({"uid": "u"}));
        let request = Request::parse(&body).expect("a review");
        let response = Response {
            denial: Some((503, "why".to_owned())),
            patch: EncodedPatches::new("s").get(ReferenceState::NoList),
            warnings: vec![],
        };
        let answer: Value = serde_json::from_slice(&response.to_json(&request)).expect("json");
        assert_eq!(
            answer["response"],
            json!({"uid": "u", "allowed": false, "status": {"code": 503, "message": "why"}})
        );
    }

    #[test]
    fn warning_never_exceeds_its_length() {
        assert_eq!(warning("short"), "ecr-injector: short");
        let long = warning(&"ä".repeat(500));
        assert_eq!(long.chars().count(), MAX_WARNING_CHARS);
    }
}
