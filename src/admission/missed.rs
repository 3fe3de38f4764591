//! Stored Pods that lack the reference: whether an admission would add it now, and why none did, as
//! far as the API server's history has it. Pure.

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::{
    decide::{Decision, Facts, decide, demand},
    pod::{Pod, ReferenceState},
    review::Request,
};
use crate::{cluster::namespace::Namespace, token::rules::Rules};

/// How long after its creation a Pod may still be written by its own creation.
const CREATION: SignedDuration = SignedDuration::from_secs(2);

/// The reason why a Pod lacks the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissedReason {
    /// The Pod was created before the label of its namespace was last written.
    OlderThanOptIn,
    /// An image was changed after the Pod's creation.
    ImageChanged,
    /// The Pod was created without an answer of the webhook, or a later webhook wrote the image.
    NotInjected,
}

/// The times in the history of a Pod that say why it lacks the reference. The API server keeps the
/// last write alone, so each may be absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct History {
    /// When the Pod was created.
    pub created: Option<Timestamp>,
    /// When the label of its namespace was last written.
    pub labelled: Option<Timestamp>,
    /// When an image was last changed.
    pub image_written: Option<Timestamp>,
}

impl MissedReason {
    /// Every value.
    pub const ALL: [Self; 3] = [Self::OlderThanOptIn, Self::ImageChanged, Self::NotInjected];

    /// Returns the reason as a metric's label.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OlderThanOptIn => "older_than_opt_in",
            Self::ImageChanged => "image_changed",
            Self::NotInjected => "not_injected",
        }
    }

    /// Returns the reason as a part of a sentence about the Pod.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::OlderThanOptIn => "it was created before its namespace was opted in",
            Self::ImageChanged => {
                "an image was changed after its creation, when its imagePullSecrets can't change"
            }
            Self::NotInjected => {
                "it was created while the webhook did not answer in time, or a later webhook wrote \
                 the image"
            }
        }
    }
}

impl History {
    /// Reads the history of a Pod, given when the label of its namespace was last written.
    #[must_use]
    pub fn of(pod: &Value, labelled: Option<Timestamp>) -> Self {
        let created = pod["metadata"]["creationTimestamp"].as_str();
        Self {
            created: created.and_then(|at| at.parse().ok()),
            labelled,
            image_written: image_written(pod),
        }
    }

    /// Returns why the Pod lacks the reference.
    #[must_use]
    pub fn reason(&self) -> MissedReason {
        let Some(created) = self.created else {
            return MissedReason::NotInjected;
        };
        if self.labelled.is_some_and(|labelled| created < labelled) {
            MissedReason::OlderThanOptIn
        } else if self
            .image_written
            .is_some_and(|at| at.duration_since(created) > CREATION)
        {
            MissedReason::ImageChanged
        } else {
            MissedReason::NotInjected
        }
    }
}

/// Returns when a client last updated an image, as far as the managed fields have it.
fn image_written(pod: &Value) -> Option<Timestamp> {
    let entries = pod["metadata"]["managedFields"].as_array()?;
    let entries = entries.iter().filter(|entry| {
        let spec = &entry["fieldsV1"]["f:spec"];
        entry["subresource"].is_null() && spec.to_string().contains("\"f:image\"")
    });
    let times = entries.filter_map(|entry| entry["time"].as_str()?.parse().ok());
    times.max()
}

/// Returns when a client last wrote each label of an object, by key, as far as the managed fields
/// have it.
pub fn labelled(object: &Value) -> impl Iterator<Item = (&str, Timestamp)> {
    let entries = object["metadata"]["managedFields"].as_array();
    entries.into_iter().flatten().flat_map(|entry| {
        let at: Option<Timestamp> = entry["time"].as_str().and_then(|at| at.parse().ok());
        let labels = entry["fieldsV1"]["f:metadata"]["f:labels"].as_object();
        let keys = labels.into_iter().flat_map(|labels| labels.keys());
        keys.filter_map(move |key| Some((key.trim_start_matches("f:"), at?)))
    })
}

/// Returns whether a stored Pod lacks the reference although an admission would add it now.
#[must_use]
pub fn is_missed(pod: Pod<'_>, rules: &Rules, namespace: &Namespace, facts: &Facts<'_>) -> bool {
    let has_reference = pod.reference_state(&rules.secret_name) == ReferenceState::Present;
    if has_reference || pod.is_deleting() {
        return false;
    }
    let request = Request::offline(namespace.as_str(), pod);
    // It only matters whether there would be an injection, and no time changes that.
    let now = Timestamp::UNIX_EPOCH;
    let decision = demand(&request, rules).map(|demand| decide(demand, rules, facts, now));
    !matches!(decision, Err(_) | Ok(Decision::Skip(_)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        admission::decide::OptInFacts,
        cluster::namespace::NamespaceSettings,
        config::Config,
        pull_secret::{Foreign, SecretFacts},
    };

    fn at(text: &str) -> Timestamp {
        format!("2027-01-15T{text}Z").parse().expect("a time")
    }

    #[test]
    fn reason_follows_from_the_order_of_the_times() {
        let history = |labelled: Option<&str>, image_written: Option<&str>| History {
            created: Some(at("09:00:00")),
            labelled: labelled.map(at),
            image_written: image_written.map(at),
        };
        for (labelled, written, expected) in [
            (None, None, MissedReason::NotInjected),
            (Some("08:00:00"), None, MissedReason::NotInjected),
            (Some("09:00:00"), None, MissedReason::NotInjected),
            (Some("09:00:01"), None, MissedReason::OlderThanOptIn),
            (
                Some("08:00:00"),
                Some("09:00:02"),
                MissedReason::NotInjected,
            ),
            (
                Some("08:00:00"),
                Some("09:00:03"),
                MissedReason::ImageChanged,
            ),
            (None, Some("09:10:00"), MissedReason::ImageChanged),
        ] {
            let found = history(labelled, written).reason();
            assert_eq!(found, expected, "{labelled:?} {written:?}");
        }
        assert_eq!(History::default().reason(), MissedReason::NotInjected);
    }

    #[test]
    fn reasons_have_labels_and_texts_of_their_own() {
        for texts in [
            MissedReason::ALL.map(MissedReason::as_str),
            MissedReason::ALL.map(MissedReason::text),
        ] {
            let own: std::collections::BTreeSet<&str> = texts.into_iter().collect();
            assert_eq!(own.len(), texts.len(), "{texts:?}");
        }
    }

    #[test]
    fn times_that_no_type_can_hold_are_absent() {
        let image = json!({"f:spec": {"f:containers": {"k:{\"name\":\"app\"}": {"f:image": {}}}}});
        let pod = |time: &str| {
            json!({"metadata": {"creationTimestamp": "2027-01-15T09:00:00Z",
                "managedFields": [{"time": time, "fieldsV1": image}]}})
        };
        let history = History::of(&pod("2027-01-15T10:00:00Z"), None);
        assert_eq!(history.image_written, Some(at("10:00:00")));
        assert_eq!(history.reason(), MissedReason::ImageChanged);
        // An ephemeral container is added, and a status is written, without any change of an image.
        let mut others = pod("2027-01-15T10:00:00Z");
        others["metadata"]["managedFields"][0]["subresource"] = json!("ephemeralcontainers");
        assert_eq!(History::of(&others, None).image_written, None);
        others["metadata"]["managedFields"][0] = json!({"time": "2027-01-15T10:00:00Z",
            "fieldsV1": {"f:spec": {"f:activeDeadlineSeconds": {}}}});
        assert_eq!(History::of(&others, None).image_written, None);
        let hostile = History::of(&pod("9999-12-31T00:00:00Z"), None);
        assert_eq!(hostile.image_written, None);
    }

    #[test]
    fn labels_have_the_times_of_their_managers() {
        let entry = |time: &str, key: &str| json!({"time": time, "fieldsV1": {"f:metadata": {"f:labels": {format!("f:{key}"): {}}}}});
        let object = json!({"metadata": {"managedFields": [
            entry("2027-01-15T08:00:00Z", "a"), entry("2027-01-15T09:00:00Z", "b"),
            entry("9999-12-31T00:00:00Z", "a"),
        ]}});
        let all: Vec<_> = labelled(&object).collect();
        assert_eq!(all, [("a", at("08:00:00")), ("b", at("09:00:00"))]);
    }

    #[test]
    fn pod_is_missed_only_where_an_admission_would_inject() {
        const IMAGE: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/app:1";
        let rules = Config::default().rules;
        let namespace = Namespace::parse("team").expect("a name");
        let settings = NamespaceSettings::default();
        let facts = Facts {
            opt_in: OptInFacts::OptedIn(&settings),
            secret: SecretFacts::Absent,
            account_rejects_reference: false,
        };
        let missed = |pod: &Value, facts: &Facts<'_>| {
            let text = pod.to_string();
            let pod: Pod<'_> = serde_json::from_str(&text).expect("a Pod");
            is_missed(pod, &rules, &namespace, facts)
        };
        let pod = json!({"metadata": {}, "spec": {"containers": [{"image": IMAGE}]}});
        assert!(missed(&pod, &facts));
        for (pointer, value) in [
            (
                "/spec/imagePullSecrets",
                json!([{"name": "ecr-pull-secret"}]),
            ),
            ("/spec/containers", json!([{"image": "nginx"}])),
            ("/metadata/deletionTimestamp", json!("2027-01-15T09:00:00Z")),
            (
                "/metadata/annotations",
                json!({"ecr-injector.dev/inject": "disabled"}),
            ),
            (
                "/metadata/annotations",
                json!({"kubernetes.io/config.mirror": "x"}),
            ),
        ] {
            let mut other = pod.clone();
            let (parent, key) = pointer.rsplit_once('/').expect("a path");
            other.pointer_mut(parent).expect("there")[key] = value;
            assert!(!missed(&other, &facts), "{pointer}");
        }
        let rejected = Facts {
            account_rejects_reference: true,
            ..facts
        };
        assert!(!missed(&pod, &rejected));
        let foreign = Facts {
            secret: SecretFacts::Foreign(Foreign::Label),
            ..facts
        };
        assert!(!missed(&pod, &foreign));
    }
}
