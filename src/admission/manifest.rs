//! Manifests: where the Pods are in what people write.
//!
//! A Pod is one itself; a workload has a template that its controller makes Pods of; a List has either. What none of
//! these is has no Pod for us. Nothing here is known about images.

pub mod text;

use json_patch::jsonptr::PointerBuf;
use serde_json::Value;

/// An object of a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Object<'a> {
    /// The object.
    pub value: &'a Value,
    /// Where it stands in its document; the root unless it is in a List.
    pub place: PointerBuf,
    /// What it says it is; empty if it doesn't.
    pub kind: &'a str,
    /// Its namespace, if it names one.
    pub namespace: Option<&'a str>,
    /// Its name, or the prefix that one will be generated from; empty if it has neither.
    pub name: &'a str,
    /// Where the Pod or its template stands in the object; `None` if there is none.
    pub template: Option<PointerBuf>,
}

/// The kinds that have a Pod in them: API groups, kind, and the place of the template.
const WORKLOADS: [(&[&str], &str, &[&str]); 9] = [
    (&[""], "Pod", &[]),
    (&[""], "PodTemplate", &["template"]),
    (&[""], "ReplicationController", &["spec", "template"]),
    (&["apps", "extensions"], "Deployment", &["spec", "template"]),
    (&["apps", "extensions"], "DaemonSet", &["spec", "template"]),
    (&["apps", "extensions"], "ReplicaSet", &["spec", "template"]),
    (&["apps"], "StatefulSet", &["spec", "template"]),
    (&["batch"], "Job", &["spec", "template"]),
    (
        &["batch"],
        "CronJob",
        &["spec", "jobTemplate", "spec", "template"],
    ),
];

/// The objects of a document in its order: the document itself, or what it lists.
#[must_use]
pub fn objects(document: &Value) -> Vec<Object<'_>> {
    let mut found = Vec::new();
    collect(document, PointerBuf::new(), ("", ""), &mut found);
    found
}

/// The items of a typed list as the API server writes it have no kind of their own: they are of the list's.
fn collect<'a>(
    value: &'a Value,
    place: PointerBuf,
    (listed_version, listed_kind): (&'a str, &'a str),
    found: &mut Vec<Object<'a>>,
) {
    let text = |value: &'a Value| value.as_str().unwrap_or_default();
    let or = |given: &'a str, otherwise| if given.is_empty() { otherwise } else { given };
    let api_version = or(text(&value["apiVersion"]), listed_version);
    let kind = or(text(&value["kind"]), listed_kind);
    if let Some(items) = value["items"].as_array()
        && let Some(listed_kind) = kind.strip_suffix("List")
    {
        for (at, item) in items.iter().enumerate() {
            let mut place = place.clone();
            place.push_back("items");
            place.push_back(at);
            collect(item, place, (api_version, listed_kind), found);
        }
        return;
    }
    let metadata = &value["metadata"];
    found.push(Object {
        value,
        place,
        kind,
        namespace: metadata["namespace"]
            .as_str()
            .filter(|name| !name.is_empty()),
        name: or(text(&metadata["name"]), text(&metadata["generateName"])),
        template: template(api_version, kind),
    });
}

fn template(api_version: &str, kind: &str) -> Option<PointerBuf> {
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    WORKLOADS
        .iter()
        .find(|(groups, name, _)| *name == kind && groups.contains(&group))
        .map(|(_, _, place)| PointerBuf::from_tokens(place.iter().copied()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn places(document: &Value) -> Vec<(String, Option<String>)> {
        objects(document)
            .into_iter()
            .map(|object| {
                let template = object.template.map(|place| place.to_string());
                (object.place.to_string(), template)
            })
            .collect()
    }

    #[test]
    fn finds_the_template_of_every_kind() {
        for (api_version, kind, template) in [
            ("v1", "Pod", ""),
            ("v1", "PodTemplate", "/template"),
            ("v1", "ReplicationController", "/spec/template"),
            ("apps/v1", "Deployment", "/spec/template"),
            ("extensions/v1beta1", "Deployment", "/spec/template"),
            ("apps/v1", "DaemonSet", "/spec/template"),
            ("apps/v1", "ReplicaSet", "/spec/template"),
            ("apps/v1", "StatefulSet", "/spec/template"),
            ("batch/v1", "Job", "/spec/template"),
            (
                "batch/v1beta1",
                "CronJob",
                "/spec/jobTemplate/spec/template",
            ),
        ] {
            let object = json!({"apiVersion": api_version, "kind": kind});
            assert_eq!(
                places(&object),
                [(String::new(), Some(template.to_owned()))]
            );
        }
    }

    #[test]
    fn a_kind_of_the_same_name_in_another_group_is_not_ours() {
        for (api_version, kind) in [
            ("batch.volcano.sh/v1alpha1", "Job"),
            ("example.com/v1", "Pod"),
            ("v1", "Deployment"),
            ("v1", "ConfigMap"),
            ("", ""),
        ] {
            let object = json!({"apiVersion": api_version, "kind": kind});
            assert_eq!(places(&object), [(String::new(), None)]);
        }
    }

    #[test]
    fn lists_are_walked_and_typed_ones_lend_their_kind() {
        let document = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "apps/v1", "kind": "DeploymentList", "items": [{}, {}]},
            {"apiVersion": "v1", "kind": "List", "items": []},
            {"apiVersion": "v1", "kind": "Pod"},
            {},
        ]});
        let template = Some("/spec/template".to_owned());
        assert_eq!(
            places(&document),
            [
                ("/items/0/items/0".to_owned(), template.clone()),
                ("/items/0/items/1".to_owned(), template),
                ("/items/2".to_owned(), Some(String::new())),
                ("/items/3".to_owned(), None),
            ]
        );
    }

    #[test]
    fn fields_of_wrong_types_are_nothing() {
        let document = json!({"apiVersion": 1, "kind": ["Pod"], "metadata": "x", "items": {}});
        let found = objects(&document);
        assert_eq!(
            (found[0].kind, found[0].name, found[0].namespace),
            ("", "", None)
        );
    }

    #[test]
    fn a_generated_name_stands_in_for_a_missing_one() {
        let document = json!({"metadata": {"generateName": "web-", "namespace": ""}});
        let found = objects(&document);
        assert_eq!((found[0].name, found[0].namespace), ("web-", None));
    }
}
