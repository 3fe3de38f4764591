//! Manifests: finds the Pods and Pod templates in objects.
//!
//! A workload has a template, from which its controller makes Pods; a List has Pods or workloads.
//! Other objects have no Pod. Nothing here is known about images.

pub mod text;

use json_patch::jsonptr::PointerBuf;
use serde_json::Value;

/// An object in a document.
#[derive(Debug, Clone, PartialEq)]
pub struct Object<'a> {
    /// The object.
    pub value: &'a Value,
    /// The object's path in its document; the root unless the object is in a List.
    pub path: PointerBuf,
    /// The object's kind; empty if there is none.
    pub kind: &'a str,
    /// The object's namespace, if there is one.
    pub namespace: Option<&'a str>,
    /// The object's name, or the prefix of a generated name; empty if there is neither.
    pub name: &'a str,
    /// The path of the Pod or its template in the object; `None` if there is none.
    pub template: Option<PointerBuf>,
}

/// The kinds with a Pod or a template: API groups, kind, and path of the template.
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

/// Returns the objects of a document in order: the document itself, or the items of a List.
#[must_use]
pub fn objects(document: &Value) -> Vec<Object<'_>> {
    let mut found = Vec::new();
    collect(document, PointerBuf::new(), ("", ""), &mut found);
    found
}

/// Collects the objects of a value. The items of a typed list as the API server writes it have no
/// kind of their own: theirs is the list's.
fn collect<'a>(
    value: &'a Value,
    path: PointerBuf,
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
            let mut path = path.clone();
            path.push_back("items");
            path.push_back(at);
            collect(item, path, (api_version, listed_kind), found);
        }
        return;
    }
    let metadata = &value["metadata"];
    found.push(Object {
        value,
        path,
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
        .map(|(_, _, path)| PointerBuf::from_tokens(path.iter().copied()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(document: &Value) -> Vec<(String, Option<String>)> {
        objects(document)
            .into_iter()
            .map(|object| {
                let template = object.template.map(|path| path.to_string());
                (object.path.to_string(), template)
            })
            .collect()
    }

    #[test]
    fn template_of_every_kind_is_found() {
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
            assert_eq!(paths(&object), [(String::new(), Some(template.to_owned()))]);
        }
    }

    #[test]
    fn kind_of_another_group_has_no_template() {
        for (api_version, kind) in [
            ("batch.volcano.sh/v1alpha1", "Job"),
            ("example.com/v1", "Pod"),
            ("v1", "Deployment"),
            ("v1", "ConfigMap"),
            ("", ""),
        ] {
            let object = json!({"apiVersion": api_version, "kind": kind});
            assert_eq!(paths(&object), [(String::new(), None)]);
        }
    }

    #[test]
    fn items_of_a_typed_list_have_the_lists_kind() {
        let document = json!({"apiVersion": "v1", "kind": "List", "items": [
            {"apiVersion": "apps/v1", "kind": "DeploymentList", "items": [{}, {}]},
            {"apiVersion": "v1", "kind": "List", "items": []},
            {"apiVersion": "v1", "kind": "Pod"},
            {},
        ]});
        let template = Some("/spec/template".to_owned());
        assert_eq!(
            paths(&document),
            [
                ("/items/0/items/0".to_owned(), template.clone()),
                ("/items/0/items/1".to_owned(), template),
                ("/items/2".to_owned(), Some(String::new())),
                ("/items/3".to_owned(), None),
            ]
        );
    }

    #[test]
    fn fields_of_wrong_types_are_ignored() {
        let document = json!({"apiVersion": 1, "kind": ["Pod"], "metadata": "x", "items": {}});
        let found = objects(&document);
        assert_eq!(
            (found[0].kind, found[0].name, found[0].namespace),
            ("", "", None)
        );
    }

    #[test]
    fn prefix_of_a_generated_name_replaces_a_missing_name() {
        let document = json!({"metadata": {"generateName": "web-", "namespace": ""}});
        let found = objects(&document);
        assert_eq!((found[0].name, found[0].namespace), ("web-", None));
    }
}
