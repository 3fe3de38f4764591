//! The survey of what is beside an installation: the API server's own policies, older solutions, and
//! ServiceAccounts with pull secrets of others.

use futures::{StreamExt as _, stream};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    CONCURRENCY,
    reader::{List, Reader},
};
use crate::cli::doctor::{
    finding::{Reading, Right},
    installation::{AccountReference, NamespaceFacts, Settings, name},
};

const ADMISSION: &str = "/apis/admissionregistration.k8s.io/v1";
/// Parts of the images of other solutions that keep pull secrets for ECR.
const IMAGES: [&str; 4] = [
    "imagepullsecret-patcher",
    "k8s-ecr-login-renew",
    "registry-creds",
    "image-pull-secrets-provisioner",
];
/// Parts of the commands by which a job gets a token.
const COMMANDS: [&str; 2] = ["ecr get-login", "ecr get-authorization-token"];
/// Parts of the names of pull secrets for ECR.
const SECRETS: [&str; 2] = ["ecr", "aws"];
/// The most pull secrets of others that are read: each takes a call.
const MAX_SECRETS: usize = 20;

/// The API server's `MutatingAdmissionPolicies` and their bindings; `None` if it has no such kind.
pub(super) struct MutatingPolicies {
    pub(super) policies: Reading<Option<Vec<Value>>>,
    pub(super) bindings: Reading<Option<Vec<Value>>>,
}

/// Reads all `MutatingAdmissionPolicies`, and their bindings only if there is this policy.
pub(super) async fn mutating_policies(reader: &Reader, own: &str) -> MutatingPolicies {
    let whole = |object: &Value| Some(object.clone());
    let read = async |kind: &str| {
        let path = format!("{ADMISSION}/{kind}");
        let right = Right::new("list", format!("{kind}.admissionregistration.k8s.io"), None);
        let list = List {
            path: &path,
            query: "",
            metadata: false,
            right,
        };
        reader.list(list, whole).await
    };
    let policies = read("mutatingadmissionpolicies").await;
    let all = policies.value().into_iter().flatten().flatten();
    let is_there = all.into_iter().any(|policy| name(policy) == own);
    let bindings = if is_there {
        read("mutatingadmissionpolicybindings").await
    } else {
        Reading::Unread("after policy-there".to_owned())
    };
    MutatingPolicies { policies, bindings }
}

/// Finds other solutions that keep pull secrets for ECR, by their images and commands.
pub(super) async fn other_tools(reader: &Reader) -> Reading<Vec<String>> {
    let read = async |path: &str, resource: &str, kind: &str, pointer: &str| {
        let list = List {
            path,
            query: "",
            metadata: false,
            right: Right::new("list", resource, None),
        };
        let found = |object: &Value| {
            let spec = object.pointer(pointer)?;
            let metadata = &object["metadata"];
            let namespace = metadata["namespace"].as_str()?;
            let is_other = is_other_tool(spec);
            is_other.then(|| format!("{kind} {namespace}/{}", name(object)))
        };
        let found = reader.list(list, found).await;
        found.map(Option::unwrap_or_default)
    };
    let (deployments, jobs) = tokio::join!(
        read(
            "/apis/apps/v1/deployments",
            "deployments.apps",
            "Deployment",
            "/spec/template/spec"
        ),
        read(
            "/apis/batch/v1/cronjobs",
            "cronjobs.batch",
            "CronJob",
            "/spec/jobTemplate/spec/template/spec"
        ),
    );
    match (deployments, jobs) {
        (Reading::Read(mut all), Reading::Read(jobs)) => {
            all.extend(jobs);
            Reading::Read(all)
        }
        (Reading::Read(_), other) | (other, _) => other,
    }
}

fn is_other_tool(spec: &Value) -> bool {
    let containers = ["containers", "initContainers"].into_iter();
    let mut containers = containers
        .filter_map(|field| spec[field].as_array())
        .flatten();
    containers.any(|container| {
        let image = container["image"].as_str().unwrap_or_default();
        let words = ["command", "args"].into_iter();
        let words = words.filter_map(|field| container[field].as_array());
        let words: Vec<&str> = words.flatten().filter_map(Value::as_str).collect();
        let command = words.join(" ");
        IMAGES.iter().any(|part| image.contains(part))
            || COMMANDS.iter().any(|part| command.contains(part))
    })
}

/// Finds the ServiceAccounts of opted-in namespaces that name other pull secrets which look like
/// ones of ECR, with when these were written.
pub(super) async fn account_references(
    reader: &Reader,
    settings: Option<&Settings>,
    namespaces: &Reading<Vec<NamespaceFacts>>,
) -> Reading<Vec<AccountReference>> {
    let Some(settings) = settings else {
        return Reading::Unread("after config-loads".to_owned());
    };
    let Some(all) = namespaces.value() else {
        let unread = namespaces.unread("the list of namespaces");
        return unread.unwrap_or_else(|| Reading::Unread(String::new()));
    };
    let is_opted_in = |name: &str| {
        let mut facts = all.iter().filter(|it| it.name == name);
        facts.any(|it| settings.is_opted_in(it))
    };
    let list = List {
        path: "/api/v1/serviceaccounts",
        query: "",
        metadata: false,
        right: Right::new("list", "serviceaccounts", None),
    };
    let references = |account: &Value| {
        let namespace = account["metadata"]["namespace"].as_str()?;
        let listed = account["imagePullSecrets"].as_array()?.iter();
        let listed = listed.filter_map(|it| it["name"].as_str());
        let others = listed.filter(|name| {
            let lower = name.to_lowercase();
            *name != settings.rules.secret_name && SECRETS.iter().any(|it| lower.contains(it))
        });
        let found = others.map(|secret| AccountReference {
            namespace: namespace.to_owned(),
            account: name(account).to_owned(),
            secret: secret.to_owned(),
            written_at: None,
        });
        let found: Vec<_> = found.collect();
        (!found.is_empty() && is_opted_in(namespace)).then_some(found)
    };
    let found = match reader.list(list, references).await {
        Reading::Read(found) => found.unwrap_or_default().into_iter().flatten(),
        other => return other.map(|_| Vec::new()),
    };
    let found = found.take(MAX_SECRETS).map(async |reference| {
        let AccountReference {
            namespace, secret, ..
        } = &reference;
        let path = format!("/api/v1/namespaces/{namespace}/secrets/{secret}");
        let right = Right::new("get", format!("secrets/{secret}"), Some(namespace));
        let object = reader.get_metadata(&path, right).await;
        object.map(|object| AccountReference {
            written_at: object.as_ref().and_then(written_at),
            ..reference
        })
    });
    let found: Vec<_> = found.collect();
    let found: Vec<Reading<AccountReference>> =
        stream::iter(found).buffered(CONCURRENCY).collect().await;
    let mut all = Vec::new();
    for reading in found {
        match reading {
            Reading::Read(reference) => all.push(reference),
            other => return other.map(|reference| vec![reference]),
        }
    }
    Reading::Read(all)
}

/// Returns when the data of a Secret were last written, as far as its metadata have it.
fn written_at(secret: &Value) -> Option<Timestamp> {
    let metadata = &secret["metadata"];
    let entries = metadata["managedFields"].as_array().into_iter().flatten();
    let entries = entries.filter(|entry| entry["fieldsV1"]["f:data"].is_object());
    let times = entries.filter_map(|entry| entry["time"].as_str()?.parse().ok());
    let created = || metadata["creationTimestamp"].as_str()?.parse().ok();
    times.max().or_else(created)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn other_solutions_are_known_by_image_or_command() {
        let of = |container: Value| is_other_tool(&json!({"containers": [container]}));
        assert!(of(json!({"image": "docker.io/x/k8s-ecr-login-renew:v1"})));
        let shell = json!({"image": "amazon/aws-cli", "command": ["sh", "-c"],
            "args": ["TOKEN=$(aws ecr get-login-password)"]});
        assert!(of(shell));
        let words = json!({"image": "amazon/aws-cli", "args": ["ecr", "get-login-password"]});
        assert!(of(words));
        assert!(!of(json!({"image": "nginx:1", "args": ["serve"]})));
        let init = json!({"initContainers": [{"image": "x/registry-creds"}]});
        assert!(is_other_tool(&init));
    }

    #[test]
    fn secret_is_as_old_as_its_data() {
        let metadata = json!({"metadata": {"creationTimestamp": "2027-01-01T00:00:00Z",
        "managedFields": [
            {"time": "2027-01-02T00:00:00Z", "fieldsV1": {"f:data": {}}},
            {"time": "2027-01-03T00:00:00Z", "fieldsV1": {"f:metadata": {}}},
        ]}});
        let at = |text: &str| text.parse().ok();
        assert_eq!(written_at(&metadata), at("2027-01-02T00:00:00Z"));
        let bare = json!({"metadata": {"creationTimestamp": "2027-01-01T00:00:00Z"}});
        assert_eq!(written_at(&bare), at("2027-01-01T00:00:00Z"));
    }
}
