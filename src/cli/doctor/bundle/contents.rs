//! The files of a bundle: of each object the fields that are named here, and no others. Pure.

use serde_json::{Map, Value, json};

use super::scrub::{REMOVED, scrub};
use crate::{
    cli::doctor::{
        finding::Reading,
        installation::{Installation, NamespaceFacts, PullSecretFacts, name, serving},
    },
    cluster::namespace::ROLE_ANNOTATION,
    pull_secret::to_the_second,
};

/// The most bytes of one file.
const MAX_BYTES: usize = 4 << 20;
/// The fields of a configuration that are secrets, or shared with somebody.
const SECRET_FIELDS: [&str; 1] = ["externalId"];

/// The texts that a survey reads for a bundle alone.
pub(crate) struct Parts {
    /// The ConfigMap's text; `None` if there is none.
    pub(crate) config: Reading<Option<String>>,
    /// The metrics and the log of each replica, by its name.
    pub(crate) replicas: Vec<(String, Reading<String>, Reading<String>)>,
    /// The Events of the installation's namespace, and those of ecr-injector in others.
    pub(crate) events: Reading<Vec<Value>>,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    pub(super) path: String,
    pub(super) text: String,
}

/// The files of a bundle, and what was left out.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) files: Vec<File>,
    /// The parts that were left out, and why.
    left_out: Vec<(String, String)>,
}

impl Contents {
    /// Collects all files; the last one is a list of them.
    pub(super) fn of(it: &Installation, parts: &Parts, findings: String) -> Self {
        let mut all = Self::default();
        all.add("findings.json", findings);
        all.json("cluster.json", &Reading::Read(cluster(it)));
        all.add_reading("deployment.json", &it.deployment, |object| {
            object.as_ref().map_or(Value::Null, deployment)
        });
        all.add_reading("registrations.json", &it.registrations, |registrations| {
            json!(registrations.iter().map(registration).collect::<Vec<_>>())
        });
        all.add_reading("pods.json", &it.replicas, |pods| {
            json!(pods.iter().map(pod).collect::<Vec<_>>())
        });
        all.add_reading("lease.json", &it.lease, |lease| {
            lease
                .as_ref()
                .map_or(Value::Null, |lease| lease["spec"].clone())
        });
        all.add_reading("namespaces.json", &it.namespaces, |all| {
            let settings = it.config.value().and_then(|config| config.settings());
            let is_opted_in = |facts: &&NamespaceFacts| {
                settings.is_some_and(|settings| settings.is_opted_in(facts))
            };
            let opted_in = all.iter().filter(is_opted_in).map(namespace);
            json!({"all": all.len(), "optedIn": opted_in.collect::<Vec<_>>()})
        });
        all.add_reading("pull-secrets.json", &it.pull_secrets, |all| {
            json!(all.iter().map(pull_secret).collect::<Vec<_>>())
        });
        all.add_reading("events.json", &parts.events, |events| {
            json!(events.iter().map(event).collect::<Vec<_>>())
        });
        all.config(&parts.config);
        for (pod, metrics, log) in &parts.replicas {
            all.text(&format!("replicas/{pod}/metrics.txt"), metrics);
            all.text(&format!("replicas/{pod}/log.txt"), log);
        }
        all.leave_out(
            "secrets",
            "no data of any Secret is read; of pull secrets the metadata are",
        );
        all.leave_out("values of env, annotations", "they may be secrets");
        all.manifest(it);
        all
    }

    fn add(&mut self, path: &str, text: String) {
        let end = text.floor_char_boundary(MAX_BYTES);
        if end < text.len() {
            self.leave_out(path, "the rest of a file of more than 4 MiB");
        }
        let mut text = text;
        text.truncate(end);
        self.files.push(File {
            path: path.to_owned(),
            text,
        });
    }

    fn leave_out(&mut self, what: &str, why: &str) {
        self.left_out.push((what.to_owned(), why.to_owned()));
    }

    fn json(&mut self, path: &str, value: &Reading<Value>) {
        self.add_reading(path, value, Value::clone);
    }

    /// Adds what `of` returns of a reading, or says why there is none.
    fn add_reading<T>(&mut self, path: &str, reading: &Reading<T>, of: impl FnOnce(&T) -> Value) {
        match reading.get() {
            Ok(value) => {
                let mut value = of(value);
                scrub_values(&mut value);
                self.add(path, format!("{value:#}\n"));
            }
            Err(finding) => self.leave_out(path, finding.text()),
        }
    }

    fn text(&mut self, path: &str, reading: &Reading<String>) {
        match reading.get() {
            Ok(text) => self.add(path, scrub(text)),
            Err(finding) => self.leave_out(path, finding.text()),
        }
    }

    fn config(&mut self, reading: &Reading<Option<String>>) {
        let path = "config.json";
        let text = match reading.get() {
            Ok(Some(text)) => text,
            Ok(None) => return self.leave_out(path, "there is no ConfigMap"),
            Err(finding) => return self.leave_out(path, finding.text()),
        };
        match serde_saphyr::from_str::<Value>(text) {
            Ok(mut value) => {
                without_secret_fields(&mut value);
                scrub_values(&mut value);
                self.add(path, format!("{value:#}\n"));
            }
            Err(_) => self.leave_out(path, "it is not YAML"),
        }
    }

    fn manifest(&mut self, it: &Installation) {
        let files = self
            .files
            .iter()
            .map(|file| json!({"path": file.path, "bytes": file.text.len()}));
        let left_out = self.left_out.iter();
        let left_out = left_out.map(|(what, why)| json!({"what": what, "why": scrub(why)}));
        let manifest = json!({
            "version": it.own_version,
            "createdAt": to_the_second(it.now),
            "files": files.collect::<Vec<_>>(),
            "leftOut": left_out.collect::<Vec<_>>(),
        });
        self.add("manifest.json", format!("{manifest:#}\n"));
    }
}

/// Scrubs all texts of a value, but not its keys.
fn scrub_values(value: &mut Value) {
    match value {
        Value::String(text) => *text = scrub(text),
        Value::Array(all) => all.iter_mut().for_each(scrub_values),
        Value::Object(all) => all.values_mut().for_each(scrub_values),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn without_secret_fields(value: &mut Value) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(without_secret_fields),
        Value::Object(all) => {
            for (key, value) in all {
                if SECRET_FIELDS.contains(&key.as_str()) && !value.is_null() {
                    *value = json!(REMOVED);
                } else {
                    without_secret_fields(value);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Returns these fields of an object, as far as it has them.
fn pick(object: &Value, fields: &[&str]) -> Value {
    let fields = fields.iter().filter_map(|field| {
        let value = object.get(*field).filter(|it| !it.is_null())?;
        Some(((*field).to_owned(), value.clone()))
    });
    Value::Object(fields.collect::<Map<_, _>>())
}

fn cluster(it: &Installation) -> Value {
    let policies = |reading: &Reading<Option<Vec<Value>>>| {
        let all = reading.value().and_then(Option::as_ref);
        all.map(|all| all.iter().map(|it| name(it).to_owned()).collect::<Vec<_>>())
    };
    json!({
        "version": it.server.value(),
        "clockAheadSeconds": it.clock_ahead.map(|ahead| ahead.as_secs()),
        "namespace": it.names.namespace,
        "validatingAdmissionPolicies": policies(&it.policies),
        "mutatingAdmissionPolicies": policies(&it.mutating_policies),
    })
}

/// Returns a container without the values of its variables.
fn container(container: &Value) -> Value {
    let mut picked = pick(container, &["name", "image", "args", "ports", "resources"]);
    let env = container["env"].as_array().into_iter().flatten();
    picked["env"] = env.map(|it| it["name"].clone()).collect();
    picked
}

fn deployment(object: &Value) -> Value {
    let template = &object["spec"]["template"]["spec"];
    let containers = template["containers"].as_array().into_iter().flatten();
    json!({
        "name": name(object),
        "labels": object["metadata"]["labels"],
        "replicas": object["spec"]["replicas"],
        "serviceAccountName": template["serviceAccountName"],
        "containers": containers.map(container).collect::<Vec<_>>(),
        "status": pick(&object["status"],
            &["replicas", "updatedReplicas", "readyReplicas", "availableReplicas", "conditions"]),
    })
}

fn registration(object: &Value) -> Value {
    let webhooks = object["webhooks"].as_array().into_iter().flatten();
    let webhooks = webhooks.map(|webhook| {
        let mut picked = pick(
            webhook,
            &[
                "name",
                "failurePolicy",
                "timeoutSeconds",
                "reinvocationPolicy",
                "sideEffects",
                "namespaceSelector",
                "objectSelector",
                "rules",
                "matchConditions",
            ],
        );
        let client = &webhook["clientConfig"];
        let bundle = client["caBundle"].as_str().unwrap_or_default();
        picked["service"] = client["service"].clone();
        picked["caBundleBytes"] = json!(bundle.len());
        picked
    });
    let managers = object["metadata"]["managedFields"].as_array();
    let managers = managers.into_iter().flatten();
    let managers = managers.map(|it| pick(it, &["manager", "operation", "time"]));
    json!({
        "name": name(object),
        "webhooks": webhooks.collect::<Vec<_>>(),
        "managers": managers.collect::<Vec<_>>(),
    })
}

fn pod(object: &Value) -> Value {
    let images = serving(&object["spec"]).map(container);
    json!({
        "name": name(object),
        "createdAt": object["metadata"]["creationTimestamp"],
        "nodeName": object["spec"]["nodeName"],
        "container": images,
        "status": pick(&object["status"],
            &["phase", "reason", "message", "conditions", "containerStatuses", "startTime"]),
    })
}

fn namespace(facts: &NamespaceFacts) -> Value {
    json!({
        "name": facts.name,
        "terminating": facts.is_terminating,
        "role": facts.annotations.get(ROLE_ANNOTATION),
    })
}

fn pull_secret(facts: &PullSecretFacts) -> Value {
    let hosts = facts.state.as_ref().map(|state| {
        let hosts = state.hosts.iter().map(|(host, entry)| {
            let lifetime = entry.credential.map(|credential| credential.lifetime);
            let value = json!({
                "wantedSince": to_the_second(entry.demand.since),
                "wantedAt": to_the_second(entry.demand.last),
                "mintedAt": lifetime.map(|it| to_the_second(it.minted_at)),
                "expiresAt": lifetime.map(|it| to_the_second(it.expires_at)),
            });
            (host.to_string(), value)
        });
        Value::Object(hosts.collect::<Map<_, _>>())
    });
    json!({
        "namespace": facts.namespace,
        "managed": facts.is_managed,
        "otherManagers": facts.other_managers,
        "hosts": hosts,
    })
}

fn event(object: &Value) -> Value {
    let mut picked = pick(
        object,
        &[
            "type",
            "reason",
            "message",
            "count",
            "firstTimestamp",
            "lastTimestamp",
            "eventTime",
            "reportingComponent",
        ],
    );
    let about = &object["involvedObject"];
    picked["about"] = pick(about, &["kind", "namespace", "name"]);
    picked
}

#[cfg(test)]
mod tests;
