//! Manifests: finds the Pods and Pod templates in objects.
//!
//! A workload has a template, from which its controller makes Pods; a List has Pods or workloads. An
//! object of a custom kind may have Pods anywhere. Other objects have no Pod.

pub mod custom;
mod metadata;
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
    /// The Pod or template in the object.
    pub content: Content,
}

/// The Pods in an object, by its apiVersion and kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A Pod or its template, at this path in the object.
    Template(PointerBuf),
    /// Nothing: the kind is one of Kubernetes, and no Pods are made from it.
    NoPod,
    /// Perhaps Pods: the kind is a custom one, whose controller may make some.
    Custom,
    /// No kind that `kubectl` knows; the reason.
    Invalid(String),
}

/// The API groups of Kubernetes itself.
const BUILT_IN_GROUPS: [&str; 24] = [
    "",
    "admission.k8s.io",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "apps",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "extensions",
    "flowcontrol.apiserver.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
    "storagemigration.k8s.io",
];

/// The kinds of the groups in which workloads are, which have all been at version v1 for years;
/// `extensions` has none any more.
const KINDS: [(&str, &[&str]); 4] = [
    (
        "",
        &[
            "Binding",
            "ComponentStatus",
            "ConfigMap",
            "DeleteOptions",
            "Endpoints",
            "Event",
            "LimitRange",
            "Namespace",
            "Node",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "Pod",
            "PodTemplate",
            "ReplicationController",
            "ResourceQuota",
            "Secret",
            "Service",
            "ServiceAccount",
            "Status",
        ],
    ),
    (
        "apps",
        &[
            "ControllerRevision",
            "DaemonSet",
            "Deployment",
            "ReplicaSet",
            "StatefulSet",
        ],
    ),
    ("batch", &["CronJob", "Job"]),
    ("extensions", &[]),
];

/// The kinds with a Pod or a template: API group, kind, and path of the template. Their
/// version is v1.
const WORKLOADS: [(&str, &str, &[&str]); 9] = [
    ("", "Pod", &[]),
    ("", "PodTemplate", &["template"]),
    ("", "ReplicationController", &["spec", "template"]),
    ("apps", "Deployment", &["spec", "template"]),
    ("apps", "DaemonSet", &["spec", "template"]),
    ("apps", "ReplicaSet", &["spec", "template"]),
    ("apps", "StatefulSet", &["spec", "template"]),
    ("batch", "Job", &["spec", "template"]),
    (
        "batch",
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
    let mut content = content(api_version, kind);
    if !matches!(content, Content::Invalid(_))
        && let Some(fault) = metadata::fault(value, &content)
    {
        content = Content::Invalid(fault);
    }
    found.push(Object {
        value,
        path,
        kind,
        namespace: metadata["namespace"]
            .as_str()
            .filter(|name| !name.is_empty()),
        name: or(text(&metadata["name"]), text(&metadata["generateName"])),
        content,
    });
}

fn content(api_version: &str, kind: &str) -> Content {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if api_version.is_empty() {
        return Content::Invalid("it has no apiVersion".to_owned());
    }
    if kind.is_empty() {
        return Content::Invalid("it has no kind".to_owned());
    }
    let unknown = |hint: &str| {
        Content::Invalid(format!(
            "Kubernetes has no kind {kind:?} in apiVersion {api_version:?}{hint}"
        ))
    };
    if !BUILT_IN_GROUPS.contains(&group) {
        let is_misspelt = BUILT_IN_GROUPS
            .iter()
            .any(|known| known.eq_ignore_ascii_case(group));
        return if is_misspelt {
            unknown(": groups are lower-case")
        } else {
            Content::Custom
        };
    }
    if !is_version(version) {
        return unknown(": versions are like v1 or v1beta1");
    }
    let mut workloads = WORKLOADS.iter();
    if let Some((known, name, path)) =
        workloads.find(|(_, name, _)| name.eq_ignore_ascii_case(kind))
    {
        if *known == group && *name == kind && version == "v1" {
            return Content::Template(PointerBuf::from_tokens(path.iter().copied()));
        }
        let known = format!("{known}/v1");
        let known = known.trim_start_matches('/');
        return unknown(&format!(": write kind: {name} with apiVersion: {known}"));
    }
    // Every kind of Kubernetes begins with a capital letter.
    if !kind.starts_with(|c: char| c.is_ascii_uppercase()) {
        return unknown(": kinds begin with a capital letter");
    }
    let is_missing = |(name, kinds): &(&str, &[&str])| {
        let kind = kind.strip_suffix("List").unwrap_or(kind);
        *name == group && !(version == "v1" && (kinds.contains(&kind) || kind.is_empty()))
    };
    if KINDS.iter().any(is_missing) {
        unknown("")
    } else {
        Content::NoPod
    }
}

/// Returns whether a text is the version of an API, such as `v1` or `v1beta2`.
fn is_version(text: &str) -> bool {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let Some(rest) = text.strip_prefix('v') else {
        return false;
    };
    let stage = rest.split_once("alpha").or_else(|| rest.split_once("beta"));
    stage.map_or_else(
        || is_number(rest),
        |(version, level)| is_number(version) && is_number(level),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn paths(document: &Value) -> Vec<(String, Option<String>)> {
        objects(document)
            .into_iter()
            .map(|object| {
                let template = match object.content {
                    Content::Template(path) => Some(path.to_string()),
                    _ => None,
                };
                (object.path.to_string(), template)
            })
            .collect()
    }

    #[track_caller]
    fn content_of(api_version: &str, kind: &str) -> Content {
        let object = json!({"apiVersion": api_version, "kind": kind});
        objects(&object)[0].content.clone()
    }

    #[test]
    fn version_of_an_api_has_a_number_and_perhaps_a_stage() {
        for text in ["v1", "v12", "v1beta2", "v2alpha1"] {
            assert!(is_version(text), "{text}");
        }
        for text in [
            "", "v", "1", "vx", "v1x", "vbeta1", "v1beta", "v1betax", "vxalpha1",
        ] {
            assert!(!is_version(text), "{text}");
        }
    }

    #[test]
    fn template_of_every_kind_is_found() {
        for (api_version, kind, template) in [
            ("v1", "Pod", ""),
            ("v1", "PodTemplate", "/template"),
            ("v1", "ReplicationController", "/spec/template"),
            ("apps/v1", "Deployment", "/spec/template"),
            ("apps/v1", "DaemonSet", "/spec/template"),
            ("apps/v1", "ReplicaSet", "/spec/template"),
            ("apps/v1", "StatefulSet", "/spec/template"),
            ("batch/v1", "Job", "/spec/template"),
            ("batch/v1", "CronJob", "/spec/jobTemplate/spec/template"),
        ] {
            let object = json!({"apiVersion": api_version, "kind": kind});
            assert_eq!(paths(&object), [(String::new(), Some(template.to_owned()))]);
        }
    }

    #[test]
    fn kind_of_another_group_may_make_pods() {
        for (api_version, kind) in [
            ("batch.volcano.sh/v1alpha1", "Job"),
            ("example.com/v1", "Pod"),
            ("argoproj.io/v1alpha1", "Rollout"),
            ("serving.knative.dev/v1", "Service"),
            ("jobset.x-k8s.io/v1alpha2", "JobSet"),
        ] {
            assert_eq!(content_of(api_version, kind), Content::Custom, "{kind}");
        }
    }

    #[test]
    fn kind_of_kubernetes_without_a_template_has_no_pod() {
        for (api_version, kind) in [
            ("v1", "ConfigMap"),
            ("v1", "Secret"),
            ("v1", "List"),
            ("v1", "PodList"),
            ("policy/v1", "PodDisruptionBudget"),
            ("apps/v1", "ControllerRevision"),
            ("networking.k8s.io/v1", "Ingress"),
            ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        ] {
            assert_eq!(content_of(api_version, kind), Content::NoPod, "{kind}");
        }
    }

    #[test]
    fn kind_that_kubectl_rejects_is_invalid_with_a_hint() {
        for (api_version, kind, hint) in [
            ("v1", "pod", "write kind: Pod with apiVersion: v1"),
            (
                "apps/v1",
                "deployment",
                "write kind: Deployment with apiVersion: apps/v1",
            ),
            (
                "batch/v1",
                "CRONJOB",
                "write kind: CronJob with apiVersion: batch/v1",
            ),
            (
                "v1",
                "Deployment",
                "write kind: Deployment with apiVersion: apps/v1",
            ),
            ("apps/v1", "Pod", "write kind: Pod with apiVersion: v1"),
            (
                "extensions/v1beta1",
                "Deployment",
                "write kind: Deployment with apiVersion: apps/v1",
            ),
            (
                "batch/v1beta1",
                "CronJob",
                "write kind: CronJob with apiVersion: batch/v1",
            ),
            (
                "apps/v2",
                "Deployment",
                "write kind: Deployment with apiVersion: apps/v1",
            ),
            ("v2", "Pod", "write kind: Pod with apiVersion: v1"),
            ("apps/v1", "Deploymentt", "has no kind \"Deploymentt\""),
            ("v1", "Configmap", "has no kind \"Configmap\""),
            ("v2", "ConfigMap", "in apiVersion \"v2\""),
            ("extensions/v1beta1", "Ingress", "has no kind \"Ingress\""),
            ("v1", "configmap", "capital letter"),
            ("V1", "Pod", "versions are like v1"),
            ("apps", "Deployment", "versions are like v1"),
            ("Apps/v1", "Deployment", "groups are lower-case"),
            ("", "Pod", "it has no apiVersion"),
            ("v1", "", "it has no kind"),
        ] {
            match content_of(api_version, kind) {
                Content::Invalid(reason) => assert!(reason.contains(hint), "{reason}"),
                other => panic!("{api_version} {kind}: {other:?}"),
            }
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
