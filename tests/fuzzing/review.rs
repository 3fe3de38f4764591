//! The body of a review: whether our reader and `serde_json` read the same from it, and whether the
//! answer changes a Pod by one reference and nothing else.

use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ecr_injector::admission::decide::{
    Decision, Facts, OptInFacts, decide, demand, skip_warnings, warning_for,
};
use ecr_injector::admission::patch::EncodedPatches;
use ecr_injector::admission::pod::{
    INJECT_ANNOTATION, INJECT_DISABLED, MIRROR_ANNOTATION, Pod, ReferenceState,
};
use ecr_injector::admission::review::{
    API_VERSION, MAX_WARNING_CHARS, Operation, Request, Response, ReviewError,
};
use ecr_injector::cluster::namespace::NamespaceSettings;
use ecr_injector::config::Config;
use ecr_injector::pull_secret::SecretFacts;
use ecr_injector::token::rules::Rules;
use serde_json::{Value, json};

use super::json::Json;
use super::{NOW, assert_is_one_line};

/// Rules with a bit of everything that an admission goes by.
const CONFIG: &str = r#"
apiVersion: ecr-injector.dev/v1alpha1
kind: Config
secretName: ours
publicEcr: true
allow: {accounts: ["123456789012", "210987654321"]}
aliases: [{host: mirror.example, registry: 123456789012.dkr.ecr.eu-west-1.amazonaws.com}]
limits: {registriesPerPod: 2}
"#;

static RULES: LazyLock<Rules> = LazyLock::new(|| Config::parse(CONFIG, "config").unwrap().rules);
static PATCHES: LazyLock<EncodedPatches> =
    LazyLock::new(|| EncodedPatches::new(&RULES.secret_name));
static SETTINGS: LazyLock<NamespaceSettings> = LazyLock::new(NamespaceSettings::default);

pub fn check(body: &[u8]) {
    let ours = Request::parse(body);
    // Our reader stops at a blank in front, so this is read by serde_json alone.
    let spaced = [b" ", body].concat();
    assert_same(&ours, &Request::parse(&spaced));

    let json = Json::parse_unambiguous(body);
    let uid = json.as_ref().and_then(uid_of);
    let Ok(request) = &ours else {
        assert_eq!(uid, None, "a review with a uid is refused: {ours:?}");
        return;
    };
    if let Some(uid) = uid {
        assert_eq!(request.uid(), uid);
    }
    if let (Some(pod), Some(json)) = (&request.object, &json) {
        assert_has_fields(pod, json);
    }
    for opt_in in [
        OptInFacts::OptedIn(&SETTINGS),
        OptInFacts::Unknown,
        OptInFacts::NotOptedIn,
    ] {
        assert_answer_is_safe(request, opt_in, body);
    }
}

/// Compares the readings of the same review.
fn assert_same(ours: &Result<Request<'_>, ReviewError>, theirs: &Result<Request<'_>, ReviewError>) {
    match (ours, theirs) {
        (Ok(ours), Ok(theirs)) => assert_eq!(fields(ours), fields(theirs)),
        (Err(ours), Err(theirs)) => assert_eq!(kind(ours), kind(theirs)),
        _ => panic!("serde_json disagrees: {ours:?}, {theirs:?}"),
    }
}

/// All fields of a request but the place of an error.
fn fields(request: &Request<'_>) -> String {
    let Request {
        operation,
        namespace,
        is_pod,
        dry_run,
        object,
        old_object,
        unreadable,
        ..
    } = request;
    let (uid, is_unreadable) = (request.uid(), unreadable.is_some());
    format!(
        "{uid:?} {operation:?} {namespace:?} {is_pod} {dry_run} {object:?} {old_object:?} {is_unreadable}"
    )
}

fn kind(error: &ReviewError) -> String {
    match error {
        ReviewError::Json(cause) => format!("{:?}", cause.classify()),
        other => other.to_string(),
    }
}

/// The uid of a review that has to be answered, whatever else is in it.
fn uid_of(review: &Json) -> Option<&str> {
    let is_review = review.text_at(&["apiVersion"]) == Some(API_VERSION)
        && review.text_at(&["kind"]) == Some("AdmissionReview");
    review.text_at(&["request", "uid"]).filter(|_| is_review)
}

/// Compares what was read of a Pod with a reading by hand.
fn assert_has_fields(pod: &Pod<'_>, review: &Json) {
    let Some(found) = find_fields(review) else {
        return;
    };
    // Of empty texts one is kept at most.
    let images: Vec<_> = pod.images().filter(|image| !image.is_empty()).collect();
    assert_eq!(images, found.images);
    assert_eq!(pod.reference_state("ours"), found.reference);
    assert_eq!(pod.is_mirror(), found.is_mirror);
    assert_eq!(pod.is_disabled(), found.is_disabled);
}

struct Found<'a> {
    images: Vec<&'a str>,
    reference: ReferenceState,
    is_mirror: bool,
    is_disabled: bool,
}

/// Reads the object of a review by hand; `None` where a list is in the place of an object, which
/// serde takes for its fields in their order, and no API server sends.
fn find_fields(review: &Json) -> Option<Found<'_>> {
    let pod = review.get("request")?.get("object")?;
    pod.fields()?;
    let spec = object(pod.get("spec")).ok()?;
    let field = |name: &str| spec.and_then(|spec| spec.get(name));
    let mut images = Vec::new();
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in elements(field(list))? {
            images.extend(container.get("image").and_then(Json::text));
        }
    }
    for volume in elements(field("volumes"))? {
        let image = object(volume.get("image")).ok()?;
        images.extend(image.and_then(|image| image.get("reference")?.text()));
    }
    images.retain(|image| !image.is_empty());
    let references = field("imagePullSecrets").filter(|list| **list != Json::Null);
    let names = elements(references)?;
    let has_ours = names.iter().any(|it| it.text_at(&["name"]) == Some("ours"));
    let metadata = object(pod.get("metadata")).ok()?;
    let annotations = object(metadata.and_then(|metadata| metadata.get("annotations"))).ok()?;
    let annotation = |key: &str| annotations.and_then(|annotations| annotations.get(key));
    Some(Found {
        images,
        reference: match references {
            None => ReferenceState::NoList,
            Some(_) if has_ours => ReferenceState::Present,
            Some(_) => ReferenceState::Missing,
        },
        is_mirror: annotation(MIRROR_ANNOTATION).is_some(),
        is_disabled: annotation(INJECT_ANNOTATION).and_then(Json::text) == Some(INJECT_DISABLED),
    })
}

/// An object or nothing; an error for other values.
fn object(value: Option<&Json>) -> Result<Option<&Json>, ()> {
    match value {
        None | Some(Json::Null) => Ok(None),
        Some(object @ Json::Object(_)) => Ok(Some(object)),
        Some(_) => Err(()),
    }
}

/// The objects of a list or of nothing; `None` for other values, also in the list.
fn elements(value: Option<&Json>) -> Option<Vec<&Json>> {
    let list = match value {
        None | Some(Json::Null) => &[][..],
        Some(Json::List(list)) => list,
        Some(_) => return None,
    };
    let objects = list.iter().map(|element| object(Some(element)).ok());
    let objects: Option<Vec<_>> = objects.collect();
    Some(objects?.into_iter().flatten().collect())
}

/// Decides as the webhook does, and checks the bytes of the answer.
fn assert_answer_is_safe(request: &Request<'_>, opt_in: OptInFacts<'_>, body: &[u8]) {
    let response = response(request, opt_in);
    for warning in &response.warnings {
        assert_is_one_line(warning);
        assert!(warning.chars().count() <= MAX_WARNING_CHARS, "{warning}");
    }
    let answer: Value = serde_json::from_slice(&response.to_json(request)).unwrap();
    let mut expected = json!({"uid": request.uid(), "allowed": true});
    if let Some(patch) = &response.patch {
        expected["patchType"] = json!("JSONPatch");
        expected["patch"] = json!(&**patch);
    }
    if !response.warnings.is_empty() {
        expected["warnings"] = json!(response.warnings);
    }
    let expected =
        json!({"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": expected});
    assert_eq!(answer, expected);
    if let Some(patch) = response.patch {
        assert_eq!(request.operation, Operation::Create);
        assert_ne!(opt_in, OptInFacts::NotOptedIn);
        assert_patch_adds_one_reference(&patch, body);
    }
}

fn response(request: &Request<'_>, opt_in: OptInFacts<'_>) -> Response {
    let rules = &RULES;
    let (patch, warnings): (Option<Arc<str>>, Vec<String>) = match demand(request, rules) {
        Err(reason) => (None, skip_warnings(reason, request, rules)),
        Ok(demand) => {
            let facts = Facts {
                opt_in,
                secret: SecretFacts::Absent,
                account_rejects_reference: false,
            };
            match decide(demand, rules, &facts, NOW) {
                Decision::Skip(reason) => (None, warning_for(reason, rules).into_iter().collect()),
                Decision::Inject(injection)
                | Decision::InjectAfterEnsuring(injection, _)
                | Decision::InjectUnprovisioned(injection) => {
                    (PATCHES.get(injection.reference), injection.warnings)
                }
            }
        }
    };
    Response {
        denial: None,
        patch,
        warnings,
    }
}

/// Applies a patch as the API server does, with a library, and compares the objects.
fn assert_patch_adds_one_reference(patch: &str, body: &[u8]) {
    let Ok(mut review) = serde_json::from_slice::<Value>(body) else {
        return;
    };
    let Some(before) = review.pointer_mut("/request/object").map(Value::take) else {
        return;
    };
    if !before["spec"].is_object() {
        return;
    }
    let patch = BASE64_STANDARD.decode(patch).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&patch).unwrap();
    let mut after = before.clone();
    json_patch::patch(&mut after, &patch).expect("a patch that applies");

    let names = |pod: &Value| -> Vec<Value> {
        let list = pod["spec"]["imagePullSecrets"].as_array();
        list.cloned().unwrap_or_default()
    };
    let ours = json!({"name": "ours"});
    let mut expected = names(&before);
    assert!(
        !expected.iter().any(|entry| entry["name"] == "ours"),
        "twice"
    );
    expected.push(ours);
    assert_eq!(names(&after), expected);

    let text = after.to_string();
    let pod: Pod<'_> = serde_json::from_str(&text).expect("a Pod");
    assert_eq!(pod.reference_state("ours"), ReferenceState::Present);

    let mut rest = [before, after];
    for pod in &mut rest {
        let spec = pod["spec"].as_object_mut().unwrap();
        spec.shift_remove("imagePullSecrets");
    }
    assert_eq!(rest[0], rest[1], "another field changed");
}
