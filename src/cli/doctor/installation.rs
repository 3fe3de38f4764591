//! An installation of ecr-injector as it was read from a cluster, once. Pure.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::{
    admission::missed::labelled,
    cli::doctor::{
        exposition::Exposition,
        finding::{Reading, Right},
    },
    cluster::{
        namespace::{Namespace, NamespaceSettings, ROLE_ANNOTATION},
        ownership::{FIELD_MANAGER, is_managed},
    },
    pull_secret::{STATE_ANNOTATION, state::State, state_of},
    token::rules::Rules,
};

/// All that the checks look at.
#[derive(Debug, Clone)]
pub(super) struct Installation {
    /// The version of this program.
    pub(super) own_version: String,
    /// The time of the API server, or of this machine while that is unknown.
    pub(super) now: Timestamp,
    /// How far the clock of this machine is ahead of the API server's.
    pub(super) clock_ahead: Option<SignedDuration>,
    /// The API server's version, such as `v1.37.2`.
    pub(super) server: Reading<String>,
    /// The API server's URL and where it was configured.
    pub(super) server_name: String,
    /// The names of the objects.
    pub(super) names: Names,
    /// The Deployment.
    pub(super) deployment: Reading<Option<Value>>,
    /// All `MutatingWebhookConfigurations`.
    pub(super) registrations: Reading<Vec<Value>>,
    /// The Service that the registration names.
    pub(super) service: Reading<Option<Value>>,
    /// The `EndpointSlices` of that Service.
    pub(super) endpoints: Reading<Vec<Value>>,
    /// All `ValidatingAdmissionPolicies`; `None` if the API server has no such kind.
    pub(super) policies: Reading<Option<Vec<Value>>>,
    /// All their bindings.
    pub(super) bindings: Reading<Option<Vec<Value>>>,
    /// All `MutatingAdmissionPolicies`; `None` if the API server has no such kind.
    pub(super) mutating_policies: Reading<Option<Vec<Value>>>,
    /// All their bindings; not read without a policy of ours.
    pub(super) mutating_bindings: Reading<Option<Vec<Value>>>,
    /// The rights of the person to create what the chart creates; not read if it is installed.
    pub(super) may_install: Reading<Vec<Granted>>,
    /// Other solutions that keep pull secrets for ECR; not read if it is installed.
    pub(super) other_tools: Reading<Vec<String>>,
    /// ServiceAccounts of opted-in namespaces with other pull secrets for ECR.
    pub(super) account_references: Reading<Vec<AccountReference>>,
    /// The Pods of the Deployment.
    pub(super) replicas: Reading<Vec<Value>>,
    /// The metrics of those Pods that run.
    pub(super) metrics: Reading<Vec<(String, Reading<Exposition>)>>,
    /// The Lease.
    pub(super) lease: Reading<Option<Value>>,
    /// The rights of the service's account, and those that it should not have.
    pub(super) rights: Reading<Vec<Granted>>,
    /// The configuration.
    pub(super) config: Reading<ConfigFacts>,
    /// All namespaces.
    pub(super) namespaces: Reading<Vec<NamespaceFacts>>,
    /// All Secrets with the pull secret's name.
    pub(super) pull_secrets: Reading<Vec<PullSecretFacts>>,
    /// Pending Pods of opted-in namespaces with images of ECR.
    pub(super) pods: Reading<Vec<PodFacts>>,
    /// The Pods whose sandbox image could not be pulled, by the Events of the last hour.
    pub(super) sandboxes: Reading<Vec<String>>,
    /// The dry run of a Pod.
    pub(super) dry_run: Reading<DryRun>,
}

/// A ServiceAccount that names a pull secret of others, which looks like one for ECR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AccountReference {
    /// The namespace.
    pub(super) namespace: String,
    /// The ServiceAccount.
    pub(super) account: String,
    /// The Secret.
    pub(super) secret: String,
    /// When the Secret was last written; `None` if there is none, or its metadata don't have it.
    pub(super) written_at: Option<Timestamp>,
}

/// The names of an installation's objects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Names {
    /// The namespace of the installation.
    pub(super) namespace: String,
    /// The Deployment.
    pub(super) deployment: String,
    /// The ServiceAccount.
    pub(super) account: String,
    /// The `MutatingWebhookConfiguration`.
    pub(super) registration: String,
    /// The `MutatingAdmissionPolicy`, if there is one.
    pub(super) policy: String,
    /// Whether the replicas answer admissions; else a policy adds the reference.
    pub(super) has_webhook: bool,
    /// The Lease.
    pub(super) lease: String,
    /// The Secret of the state key.
    pub(super) state_key: String,
    /// The Secret of the self-managed authority, if there is one.
    pub(super) authority: Option<String>,
    /// The ConfigMap and its key; `None` if the process has no configuration file.
    pub(super) config: Option<(String, String)>,
}

/// The configuration, as far as the checks need it.
#[derive(Debug, Clone)]
pub(super) enum ConfigFacts {
    /// A valid one.
    Valid(Box<Settings>),
    /// An invalid one; its errors.
    Invalid(String),
    /// The ConfigMap, or its key, does not exist.
    Absent(String),
}

/// The settings of a valid configuration.
#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// The rules; the namespace of the installation is excluded.
    pub(super) rules: Rules,
    /// The label that opts a namespace in.
    pub(super) label: String,
    /// The label's value.
    pub(super) value: String,
    /// Whether ServiceAccounts are watched.
    pub(super) watches_service_accounts: bool,
    /// Whether the leader lists Pods.
    pub(super) lists_pods: bool,
}

/// A right of the service's account.
#[derive(Debug, Clone)]
pub(super) struct Granted {
    /// The right.
    pub(super) right: Right,
    /// Whether the account should have it.
    pub(super) is_needed: bool,
    /// Whether the account has it.
    pub(super) is_allowed: bool,
}

/// A namespace.
#[derive(Debug, Clone, Default)]
pub(super) struct NamespaceFacts {
    /// The name.
    pub(super) name: String,
    /// The labels.
    pub(super) labels: BTreeMap<String, String>,
    /// The annotations.
    pub(super) annotations: BTreeMap<String, String>,
    /// Whether the namespace is being deleted.
    pub(super) is_terminating: bool,
    /// When a client last wrote the labels, by key: the API server keeps no other history.
    pub(super) labelled_at: BTreeMap<String, Timestamp>,
}

/// A Secret with the pull secret's name.
#[derive(Debug, Clone)]
pub(super) struct PullSecretFacts {
    /// The namespace.
    pub(super) namespace: String,
    /// Whether the label says that ecr-injector manages the Secret.
    pub(super) is_managed: bool,
    /// The state; `None` if the annotation is absent or can't be read.
    pub(super) state: Option<State>,
    /// Others than ecr-injector who wrote the data or the state.
    pub(super) other_managers: BTreeSet<String>,
}

/// A Pod that waits to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodFacts {
    /// The namespace.
    pub(super) namespace: String,
    /// The name.
    pub(super) name: String,
    /// Whether the Pod references the pull secret.
    pub(super) has_reference: bool,
    /// Whether an admission would add the reference now.
    pub(super) would_get_reference: bool,
    /// Whether a container waits for an image of ECR.
    pub(super) waits_for_image: bool,
}

/// The outcome of the dry run of a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum DryRun {
    /// The Pod got the reference, in this namespace.
    Injected(String),
    /// The Pod did not; the reason.
    NotInjected(String),
    /// The API server rejected the Pod, which says nothing about the webhook; its message.
    Rejected(String),
}

impl Installation {
    /// Whether the Deployment exists.
    pub(super) fn is_installed(&self) -> bool {
        matches!(self.deployment.value(), Some(Some(_)))
    }
}

impl ConfigFacts {
    /// Returns the settings, if the configuration is valid.
    pub(super) fn settings(&self) -> Option<&Settings> {
        match self {
            Self::Valid(settings) => Some(settings),
            Self::Invalid(_) | Self::Absent(_) => None,
        }
    }
}

impl Settings {
    /// Returns whether a namespace has the label and is not excluded.
    pub(super) fn is_opted_in(&self, namespace: &NamespaceFacts) -> bool {
        let name = Namespace::parse(&namespace.name);
        self.has_label(namespace) && name.is_some_and(|it| !self.rules.excluded.contains(&it))
    }

    /// Returns whether a namespace has the label.
    pub(super) fn has_label(&self, namespace: &NamespaceFacts) -> bool {
        namespace.labels.get(&self.label) == Some(&self.value)
    }
}

impl NamespaceFacts {
    /// Reads a Namespace's metadata.
    pub(super) fn of(object: &Value) -> Option<Self> {
        let metadata = &object["metadata"];
        let mut labelled_at = BTreeMap::new();
        for (key, at) in labelled(object) {
            let last: &mut Timestamp = labelled_at.entry(key.to_owned()).or_insert(at);
            *last = at.max(*last);
        }
        Some(Self {
            name: metadata["name"].as_str()?.to_owned(),
            labels: texts(&metadata["labels"]),
            annotations: texts(&metadata["annotations"]),
            is_terminating: metadata["deletionTimestamp"].is_string(),
            labelled_at,
        })
    }

    /// Returns the settings that the webhook would take from the namespace.
    pub(super) fn settings(&self) -> NamespaceSettings {
        NamespaceSettings {
            role: self
                .annotations
                .get(ROLE_ANNOTATION)
                .map(|it| it.as_str().into()),
            is_terminating: self.is_terminating,
            ..NamespaceSettings::default()
        }
    }
}

impl PullSecretFacts {
    /// Reads a Secret's metadata.
    pub(super) fn of(object: &Value) -> Option<Self> {
        let metadata = &object["metadata"];
        let read = ObjectMeta {
            labels: Some(texts(&metadata["labels"])),
            annotations: Some(texts(&metadata["annotations"])),
            ..ObjectMeta::default()
        };
        let entries = metadata["managedFields"].as_array().into_iter().flatten();
        let is_ours = |entry: &&Value| entry["manager"].as_str() == Some(FIELD_MANAGER);
        let state = format!("f:{STATE_ANNOTATION}");
        let writes = |entry: &&Value| {
            let fields = &entry["fieldsV1"];
            fields["f:data"].is_object()
                || fields["f:metadata"]["f:annotations"].get(&state).is_some()
        };
        let others = entries.filter(|entry| !is_ours(entry)).filter(writes);
        let name = |entry: &Value| entry["manager"].as_str().unwrap_or("unknown").to_owned();
        Some(Self {
            namespace: metadata["namespace"].as_str()?.to_owned(),
            is_managed: is_managed(&read),
            state: state_of(&read),
            other_managers: others.map(name).collect(),
        })
    }
}

fn texts(value: &Value) -> BTreeMap<String, String> {
    let pairs = value.as_object().into_iter().flatten();
    let texts = pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
    texts.collect()
}

impl Names {
    /// Returns the names that the chart gives a release.
    pub(super) fn of_release(namespace: &str, release: &str) -> Self {
        let name = if release.contains("ecr-injector") {
            release.to_owned()
        } else {
            format!("{release}-ecr-injector")
        };
        Self {
            namespace: namespace.to_owned(),
            registration: format!("zz-{name}"),
            policy: policy_of(&name),
            state_key: format!("{name}-state-key"),
            authority: Some(format!("{name}-ca")),
            account: name.clone(),
            has_webhook: true,
            lease: name.clone(),
            config: Some((name.clone(), "config.yaml".to_owned())),
            deployment: name,
        }
    }

    /// Returns the names in the arguments of a Deployment; a name that is not there is unchanged.
    pub(super) fn of_deployment(self, deployment: &Value) -> Self {
        let text = |value: &Value| {
            value
                .as_str()
                .filter(|it| !it.is_empty())
                .map(str::to_owned)
        };
        let spec = &deployment["spec"]["template"]["spec"];
        let Some(container) = serving(spec) else {
            return self;
        };
        let arguments = container["args"].as_array().into_iter().flatten();
        let arguments: Vec<&str> = arguments.filter_map(Value::as_str).collect();
        let flag = |name: &str| {
            let joined = arguments
                .iter()
                .find_map(|it| it.strip_prefix(name)?.strip_prefix('='));
            joined.map(str::to_owned)
        };
        let own = text(&deployment["metadata"]["name"]);
        Self {
            policy: own.as_deref().map_or(self.policy, policy_of),
            deployment: own.unwrap_or(self.deployment),
            account: text(&spec["serviceAccountName"]).unwrap_or(self.account),
            registration: flag("--webhook-configuration").unwrap_or(self.registration),
            has_webhook: !arguments.contains(&"--no-admission"),
            lease: flag("--lease-name").unwrap_or(self.lease),
            state_key: flag("--state-key-secret").unwrap_or(self.state_key),
            authority: flag("--ca-secret"),
            config: flag("--config").and_then(|path| config_map(spec, container, &path)),
            namespace: self.namespace,
        }
    }
}

/// Returns the name that the chart gives the policy of a release.
fn policy_of(name: &str) -> String {
    if name == "ecr-injector" {
        "pull-secret-reference.ecr-injector.dev".to_owned()
    } else {
        format!("pull-secret-reference.{name}.ecr-injector.dev")
    }
}

/// Returns the name of an object.
pub(super) fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Returns the container of a Pod's specification that runs `serve`.
pub(super) fn serving(spec: &Value) -> Option<&Value> {
    let containers = spec["containers"].as_array()?;
    let serves = |container: &&Value| {
        let arguments = container["args"].as_array();
        arguments.is_some_and(|arguments| arguments.iter().any(|it| it == "serve"))
    };
    containers.iter().find(serves)
}

/// Returns the ConfigMap and the key of the file that a container has at a path.
fn config_map(spec: &Value, container: &Value, path: &str) -> Option<(String, String)> {
    let (folder, key) = path.rsplit_once('/')?;
    let mounts = container["volumeMounts"].as_array()?;
    let mount = mounts
        .iter()
        .find(|it| it["mountPath"].as_str() == Some(folder))?;
    let volumes = spec["volumes"].as_array()?;
    let volume = volumes.iter().find(|it| it["name"] == mount["name"])?;
    let name = volume["configMap"]["name"].as_str()?;
    Some((name.to_owned(), key.to_owned()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::registry::Host;

    #[test]
    fn names_come_from_the_deployment_where_it_is_known() {
        let names = Names::of_release("ecr-injector", "prod");
        assert_eq!(names.registration, "zz-prod-ecr-injector");
        let policy = "pull-secret-reference.prod-ecr-injector.ecr-injector.dev";
        assert_eq!(names.policy, policy);
        let deployment = json!({
            "metadata": {"name": "own"},
            "spec": {"template": {"spec": {
                "serviceAccountName": "account",
                "containers": [{"args": ["serve", "--config=/etc/x/settings.yaml", "--lease-name=l"],
                    "volumeMounts": [{"name": "v", "mountPath": "/etc/x"}]}],
                "volumes": [{"name": "v", "configMap": {"name": "map"}}],
            }}},
        });
        let names = names.of_deployment(&deployment);
        assert_eq!(
            (&*names.deployment, &*names.account, &*names.lease),
            ("own", "account", "l")
        );
        assert_eq!(
            names.config,
            Some(("map".to_owned(), "settings.yaml".to_owned()))
        );
        assert_eq!(names.authority, None);
        assert!(names.has_webhook);
        assert_eq!(names.policy, "pull-secret-reference.own.ecr-injector.dev");
        assert_eq!(names.registration, "zz-prod-ecr-injector");
    }

    #[test]
    fn managers_of_a_pull_secret_are_those_of_data_and_state() {
        let entry = |manager: &str, fields: Value| json!({"manager": manager, "fieldsV1": fields});
        let data = json!({"f:data": {"f:.dockerconfigjson": {}}});
        let state = json!({"f:metadata": {"f:annotations": {format!("f:{STATE_ANNOTATION}"): {}}}});
        let label = json!({"f:metadata": {"f:labels": {"f:team": {}}}});
        let object = json!({"metadata": {"namespace": "team", "managedFields": [
            entry("ecr-injector", data.clone()), entry("kubectl-edit", data),
            entry("script", state), entry("kubectl-label", label),
        ]}});
        let facts = PullSecretFacts::of(&object).expect("facts");
        let others: Vec<_> = facts.other_managers.into_iter().collect();
        assert_eq!(others, ["kubectl-edit", "script"]);
        assert!(!facts.is_managed);
    }

    #[test]
    fn pull_secret_is_ours_by_its_label_and_has_a_state() {
        let host = Host::parse("123456789012.dkr.ecr.eu-west-1.amazonaws.com").expect("a host");
        let state = State::from_wanted_hosts([&host], Timestamp::UNIX_EPOCH).expect("a host");
        let object = json!({"metadata": {
            "namespace": "team",
            "labels": {"app.kubernetes.io/managed-by": "ecr-injector"},
            "annotations": {STATE_ANNOTATION: state.to_text()},
        }});
        let facts = PullSecretFacts::of(&object).expect("facts");
        assert_eq!((facts.is_managed, facts.state), (true, Some(state)));
    }

    #[test]
    fn namespace_has_the_settings_of_its_metadata() {
        let role = "arn:aws:iam::123456789012:role/pull";
        let labelled = |at: &str| {
            let fields = json!({"f:metadata": {"f:labels": {"f:inject": {}}}});
            json!({"time": at, "fieldsV1": fields})
        };
        let mut object = json!({"metadata": {
            "name": "team",
            "labels": {"inject": "enabled", "number": 7},
            "annotations": {ROLE_ANNOTATION: role},
            "managedFields": [labelled("2027-01-15T09:00:00Z"), labelled("2027-01-15T08:00:00Z")],
        }});
        let facts = NamespaceFacts::of(&object).expect("facts");
        assert_eq!(facts.name, "team");
        let labels = BTreeMap::from([("inject".to_owned(), "enabled".to_owned())]);
        assert_eq!(facts.labels, labels);
        let last: Timestamp = "2027-01-15T09:00:00Z".parse().expect("a time");
        assert_eq!(
            facts.labelled_at,
            BTreeMap::from([("inject".to_owned(), last)])
        );
        let settings = facts.settings();
        assert_eq!(settings.role.as_deref(), Some(role));
        assert!(!settings.is_terminating);
        object["metadata"]["deletionTimestamp"] = json!("2027-01-15T10:00:00Z");
        let facts = NamespaceFacts::of(&object).expect("facts");
        assert!(facts.settings().is_terminating);
        assert!(
            NamespaceFacts::of(&json!({"metadata": {}})).is_none(),
            "it has no name"
        );
    }
}
