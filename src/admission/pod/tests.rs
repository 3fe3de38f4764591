//! Unit tests of `pod`.

use super::*;

fn parse(json: &str) -> Pod<'_> {
    serde_json::from_str(json).expect("a Pod")
}

#[test]
fn images_of_all_four_lists_are_found() {
    let pod = parse(
        r#"{"spec":{"volumes":[{"name":"v","image":{"reference":"d/4"}},{"name":"e","emptyDir":{}}],
            "containers":[{"image":"a/1","env":[{"name":"image","value":"no"}]}],
            "initContainers":[{"image":"b/2"}],"ephemeralContainers":[{"image":"c/3"}]}}"#,
    );
    assert_eq!(
        pod.images().collect::<Vec<_>>(),
        ["a/1", "b/2", "c/3", "d/4"]
    );
}

#[test]
fn keys_that_nearly_opt_out_are_kept_and_others_are_not() {
    let near = "ecr-injector/inject";
    let value = |text: &str| Some(OptOutNearMiss::Value(Quoted::new(text)));
    let key = Some(OptOutNearMiss::Key(Quoted::new(near)));
    for (field, name, text, expected) in [
        ("annotations", INJECT_ANNOTATION, r#""disabled""#, None),
        ("annotations", INJECT_ANNOTATION, r#""off""#, value("off")),
        ("annotations", INJECT_ANNOTATION, r#""""#, None),
        ("annotations", INJECT_ANNOTATION, "null", None),
        ("annotations", near, r#""disabled""#, key.clone()),
        ("annotations", near, r#""team-a""#, None),
        ("annotations", MIRROR_ANNOTATION, r#""disabled""#, None),
        (
            "labels",
            INJECT_ANNOTATION,
            r#""disabled""#,
            Some(OptOutNearMiss::Label),
        ),
        ("labels", INJECT_ANNOTATION, r#""""#, None),
        ("labels", near, r#""false""#, key),
        ("labels", MIRROR_ANNOTATION, r#""disabled""#, None),
        ("labels", "app", r#""disabled""#, None),
    ] {
        let text = format!(r#"{{"metadata":{{"{field}":{{"{name}":{text}}}}}}}"#);
        let pod = parse(&text);
        assert_eq!(pod.opt_out_near_miss(), expected.as_ref(), "{text}");
        let is_disabled = text.contains(r#""annotations":{"ecr-injector.dev/inject":"disabled""#);
        assert_eq!(pod.is_disabled(), is_disabled, "{text}");
        let is_mirror = field == "annotations" && name == MIRROR_ANNOTATION;
        assert_eq!(pod.is_mirror(), is_mirror, "{text}");
    }
    let error = serde_json::from_str::<Pod<'_>>(r#"{"metadata":{"annotations":7}}"#);
    let error = error.expect_err("no map").to_string();
    assert!(error.contains("expected a map of texts"), "{error}");
}

#[test]
fn service_account_has_a_name_or_is_the_default_one() {
    let named = parse(r#"{"spec":{"serviceAccountName":"builder"}}"#);
    assert_eq!(named.service_account(), "builder");
    for text in ["{}", r#"{"spec":{"serviceAccountName":""}}"#] {
        assert_eq!(parse(text).service_account(), "default", "{text}");
    }
}

#[test]
fn lists_keep_only_the_elements_that_matter() {
    let pod = parse(
        r#"{"metadata":{"name":"x","ownerReferences":[{},{"controller":false,"kind":"A"},{"controller":true,"kind":"B",
            "name":"b"},{"controller":true,"kind":"C"}]},
            "spec":{"containers":[{},{"image":""},{"image":""},{"image":"a/1"},{"image":""}],"imagePullSecrets":[{},{"name":""}]}}"#,
    );
    assert_eq!(pod.owner(), ("B", "b"));
    assert_eq!(pod.images().collect::<Vec<_>>(), ["", "a/1"]);
    assert_eq!(pod.reference_state("ours"), ReferenceState::Missing);
    let spec = pod.spec.as_ref().expect("a spec");
    assert_eq!(spec.image_pull_secrets.as_deref(), Some(&[][..]));
    let owners = pod.metadata.as_ref().expect("metadata");
    assert_eq!(owners.owner_references.as_ref().map(Vec::len), Some(1));
}

#[test]
fn list_longer_than_any_in_etcd_is_an_error() {
    let pod = |count: usize| {
        let containers = vec![r#"{"image":"a"}"#; count].join(",");
        format!(r#"{{"spec":{{"containers":[{containers}]}}}}"#)
    };
    assert_eq!(parse(&pod(MAX_ELEMENTS)).images().count(), MAX_ELEMENTS);
    let error = serde_json::from_str::<Pod<'_>>(&pod(MAX_ELEMENTS + 1)).expect_err("too long");
    assert!(error.to_string().contains("more than 15000"), "{error}");
}

#[test]
fn null_is_absent_everywhere() {
    let pod = parse(
        r#"{"metadata":null,"spec":{"containers":null,"initContainers":[{"image":null}],"volumes":[{"image":null}],
            "imagePullSecrets":null}}"#,
    );
    assert_eq!(pod.images().count(), 0);
    assert_eq!(pod.reference_state("x"), ReferenceState::NoList);
    let pod = parse(
        r#"{"metadata":{"ownerReferences":[null,{"controller":true,"kind":"Job","name":"a"}]},
            "spec":{"containers":[null,{"image":"a"}],"initContainers":[null],
            "ephemeralContainers":[null],"volumes":[null,{"image":{"reference":"b"}}],
            "imagePullSecrets":[null,{"name":"x"}]}}"#,
    );
    assert_eq!(pod.images().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(pod.reference_state("x"), ReferenceState::Present);
    assert_eq!(pod.reference_state("y"), ReferenceState::Missing);
    assert_eq!(pod.owner(), ("Job", "a"));
    let pod = parse(r#"{"metadata":{"annotations":null,"ownerReferences":null},"spec":null}"#);
    assert!(!pod.is_disabled() && !pod.is_mirror());
    assert_eq!(pod.owner(), ("Pod", ""));
}

#[test]
fn strings_without_an_escape_are_borrowed_others_copied() {
    let pod = parse(r#"{"spec":{"containers":[{"image":"a/b"},{"image":"a\/c"}]}}"#);
    let containers = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.containers.as_ref())
        .expect("containers");
    assert!(matches!(&containers[0], Text(Cow::Borrowed("a/b"))));
    assert!(matches!(&containers[1], Text(Cow::Owned(text)) if text == "a/c"));
}

#[test]
fn two_annotations_are_read_among_others() {
    let pod =
        parse(r#"{"metadata":{"annotations":{"x":"y","ecr-injector.dev/inject":"disabled"}}}"#);
    assert!(pod.is_disabled() && !pod.is_mirror());
    let pod = parse(
        r#"{"metadata":{"annotations":{"ecr-injector.dev/inject":"no","kubernetes.io/config.mirror":""}}}"#,
    );
    assert!(!pod.is_disabled() && pod.is_mirror());
}

#[test]
fn missing_list_differs_from_one_without_the_reference() {
    assert_eq!(
        parse(r#"{"spec":{}}"#).reference_state("ours"),
        ReferenceState::NoList
    );
    assert_eq!(
        parse(r#"{"spec":{"imagePullSecrets":[]}}"#).reference_state("ours"),
        ReferenceState::Missing
    );
    let pod = parse(r#"{"spec":{"imagePullSecrets":[{},{"name":"other"},{"name":"ours"}]}}"#);
    assert_eq!(pod.reference_state("ours"), ReferenceState::Present);
    assert_eq!(pod.reference_state("our"), ReferenceState::Missing);
}

#[test]
fn prefix_of_a_generated_name_replaces_a_missing_name() {
    assert_eq!(
        parse(r#"{"metadata":{"generateName":"web-"}}"#).name(),
        "web-"
    );
    assert_eq!(
        parse(r#"{"metadata":{"name":"web-1","generateName":"web-"}}"#).name(),
        "web-1"
    );
}

#[test]
fn owner_is_the_controller_or_else_the_pod_itself() {
    let pod = parse(
        r#"{"metadata":{"generateName":"web-7f-","ownerReferences":[{"kind":"ConfigMap","name":"other"},
            {"kind":"Node","name":"n","controller":false},{"kind":"ReplicaSet","name":"web-7f","controller":true}]}}"#,
    );
    assert_eq!(pod.owner(), ("ReplicaSet", "web-7f"));
    let pod = parse(
        r#"{"metadata":{"generateName":"web-","ownerReferences":[{"kind":"ConfigMap","name":"other","controller":null}]}}"#,
    );
    assert_eq!(pod.owner(), ("Pod", "web-"));
}
