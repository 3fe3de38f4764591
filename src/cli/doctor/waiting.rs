//! Pods that wait for an image: which containers wait, and whether an admission would help. Pure.

use jiff::Timestamp;
use serde::Deserialize as _;
use serde_json::Value;

use crate::{
    admission::{
        decide::{Decision, Facts, OptInFacts, decide, demand},
        pod::{Pod, ReferenceState},
        review::Request,
    },
    cli::doctor::installation::{NamespaceFacts, PodFacts, Settings},
    pull_secret::SecretFacts,
    registry::{Host, image::ImageReference},
    token::rules::Rules,
};

/// The reasons of a container that waits because the pull of its image failed.
pub(super) const PULL_REASONS: [&str; 2] = ["ErrImagePull", "ImagePullBackOff"];

/// A container that waits because the pull of its image failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    /// The container.
    pub(super) container: String,
    /// The image, as the Pod names it.
    pub(super) image: String,
    /// The host in the pull secret, if the image is one of ECR or of an alias.
    pub(super) host: Option<Host>,
    /// The reason, one of [`PULL_REASONS`].
    pub(super) reason: String,
    /// The message of the kubelet.
    pub(super) message: String,
}

/// Returns the containers of a Pod that wait because the pull of their image failed.
pub(super) fn waiting(pod: &Value, rules: &Rules) -> Vec<Waiting> {
    let mut found = Vec::new();
    for (containers, statuses) in [
        ("containers", "containerStatuses"),
        ("initContainers", "initContainerStatuses"),
        ("ephemeralContainers", "ephemeralContainerStatuses"),
    ] {
        for status in pod["status"][statuses].as_array().into_iter().flatten() {
            let state = &status["state"]["waiting"];
            let reason = state["reason"].as_str().unwrap_or_default();
            if !PULL_REASONS.contains(&reason) {
                continue;
            }
            let name = status["name"].as_str().unwrap_or_default();
            let containers = pod["spec"][containers].as_array().into_iter().flatten();
            let mut containers = containers.filter(|it| it["name"] == status["name"]);
            let image = containers.next().and_then(|it| it["image"].as_str());
            let image = image.or(status["image"].as_str()).unwrap_or_default();
            found.push(Waiting {
                container: name.to_owned(),
                image: image.to_owned(),
                host: host_of(image, rules),
                reason: reason.to_owned(),
                message: state["message"].as_str().unwrap_or_default().to_owned(),
            });
        }
    }
    found
}

/// Returns the host in the pull secret of an image of ECR, or of an alias.
pub(super) fn host_of(image: &str, rules: &Rules) -> Option<Host> {
    let reference = ImageReference::parse(image).ok()?;
    rules
        .aliases
        .resolve(reference.domain())
        .map(|(host, _)| host)
}

/// Returns the facts about a Pod in an opted-in namespace; `None` if it names no image of ECR or
/// can't be read.
pub(super) fn facts(
    pod: &Value,
    settings: &Settings,
    namespace: &NamespaceFacts,
) -> Option<PodFacts> {
    let rules = &settings.rules;
    let waits = waiting(pod, rules).iter().any(|it| it.host.is_some());
    let read = Pod::deserialize(pod).ok()?;
    let has_reference = read.reference_state(&rules.secret_name) == ReferenceState::Present;
    let is_deleting = read.is_deleting();
    let request = Request::offline(&namespace.name, read);
    let opted_in = namespace.settings();
    let facts = Facts {
        opt_in: OptInFacts::OptedIn(&opted_in),
        secret: SecretFacts::Absent,
        account_rejects_reference: false,
    };
    // Without a pull secret nothing can be old, so any time will do.
    let decision =
        demand(&request, rules).map(|demand| decide(demand, rules, &facts, Timestamp::UNIX_EPOCH));
    let is_injected = !matches!(decision, Err(_) | Ok(Decision::Skip(_)));
    (waits || is_injected).then(|| PodFacts {
        namespace: namespace.name.clone(),
        name: pod["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
        has_reference,
        would_get_reference: is_injected && !is_deleting,
        waits_for_image: waits && !is_deleting,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{cli::doctor::checks::tests, registry::AccountId};

    const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
    const OTHER: &str = "210987654321.dkr.ecr.eu-west-1.amazonaws.com";

    /// The settings of a configuration that allows the account of [`HOST`] alone.
    fn settings() -> Settings {
        let mut settings = tests::settings();
        let account = AccountId::parse("123456789012").expect("an id");
        settings.rules.allow.accounts.insert(account);
        settings
    }

    /// A Pod with an image of this registry, and a change.
    fn pod(registry: &str, change: &Value) -> Value {
        let mut pod = json!({
            "metadata": {"name": "web"},
            "spec": {"containers": [{"name": "app", "image": format!("{registry}/app:1")}]},
        });
        json_patch::merge(&mut pod, change);
        pod
    }

    #[test]
    fn pod_of_ecr_is_known_by_its_reference_and_its_wait() {
        let none = json!({});
        let state = json!({"waiting": {"reason": "ErrImagePull", "message": "denied"}});
        let waits = json!({"status": {"containerStatuses": [{"name": "app", "state": state}]}});
        let creating = json!({"waiting": {"reason": "ContainerCreating"}});
        let creating =
            json!({"status": {"containerStatuses": [{"name": "app", "state": creating}]}});
        let reference = json!({"spec": {"imagePullSecrets": [{"name": "ecr-pull-secret"}]}});
        let mut waits_with_reference = waits.clone();
        json_patch::merge(&mut waits_with_reference, &reference);
        let mut ends = waits.clone();
        ends["metadata"] = json!({"deletionTimestamp": "2027-01-15T08:00:00Z"});
        let namespace = NamespaceFacts {
            name: "team".to_owned(),
            ..NamespaceFacts::default()
        };
        for (registry, change, expected) in [
            (HOST, &none, Some([false, true, false])),
            (HOST, &creating, Some([false, true, false])),
            (HOST, &waits, Some([false, true, true])),
            (HOST, &waits_with_reference, Some([true, true, true])),
            (HOST, &ends, Some([false, false, false])),
            (OTHER, &none, None),
            (OTHER, &waits, Some([false, false, true])),
            ("docker.io", &waits, None),
        ] {
            let facts = facts(&pod(registry, change), &settings(), &namespace);
            let names = facts.as_ref().map(|it| (&*it.namespace, &*it.name));
            assert_eq!(
                names,
                expected.map(|_| ("team", "web")),
                "{registry} {change}"
            );
            let found =
                facts.map(|it| [it.has_reference, it.would_get_reference, it.waits_for_image]);
            assert_eq!(found, expected, "{registry} {change}");
        }
    }
}
