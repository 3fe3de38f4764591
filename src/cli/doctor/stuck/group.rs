//! Stuck Pods by what can be done about them: in groups, each with a code. Pure.

use serde_json::{Value, json};

use crate::{
    cli::doctor::{
        pod::{PodCase, Verdict, verdict},
        waiting,
    },
    token::rules::Rules,
};

/// The codes of verdicts on Pods that a new admission would help.
const HELPED: [&str; 3] = ["pod-older-than-opt-in", "pod-image-changed", "pod-missed"];
/// The codes of verdicts on Pods that are none of ours.
const NOT_OURS: [&str; 3] = ["pod-not-opted-in", "pod-opted-out", "pod-no-ecr"];
/// The most bytes of the name that a Pod's copy has before its random part.
const MAX_NAME: usize = 200;
/// Fields that the API server or its admission plugins set, and that they would compare with what
/// they set for the copy.
const SET_BY_SERVER: [&str; 5] = [
    "nodeName",
    "priority",
    "preemptionPolicy",
    "overhead",
    "ephemeralContainers",
];

/// A group of stuck Pods by what can be done about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Group {
    /// Lacks the reference, and its controller replaces it.
    Missed,
    /// Lacks the reference, and its Job counts a deleted Pod as a failure.
    Job,
    /// Lacks the reference, and no controller replaces it.
    Bare,
    /// Is the mirror of a static Pod.
    Static,
    /// Has the reference, so the kubelet tries again by itself.
    Referenced,
    /// An admission would not add the reference.
    Skipped,
}

/// The controller of a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// A Pod that waits for an image of ECR.
#[derive(Debug, Clone)]
pub(crate) struct StuckPod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) owner: Option<Owner>,
    pub(crate) group: Group,
    pub(crate) verdict: Verdict,
    /// The Pod, for its copy.
    pub(crate) pod: Value,
}

impl Group {
    /// Every value, in the order of the output.
    pub(crate) const ALL: [Self; 6] = [
        Self::Missed,
        Self::Job,
        Self::Bare,
        Self::Static,
        Self::Referenced,
        Self::Skipped,
    ];

    /// Returns the word that names the group, an anchor of the reference.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Self::Missed => "stuck-missed",
            Self::Job => "stuck-job",
            Self::Bare => "stuck-bare",
            Self::Static => "stuck-static",
            Self::Referenced => "stuck-referenced",
            Self::Skipped => "stuck-skipped",
        }
    }

    fn of(pod: &Value, verdict: &Verdict, rules: &Rules) -> Option<Self> {
        let owner = Owner::of(pod).map(|owner| owner.kind);
        if NOT_OURS.contains(&verdict.code) {
            None
        } else if verdict.code == "pod-static" || owner.as_deref() == Some("Node") {
            Some(Self::Static)
        } else if has_reference(pod, rules) {
            Some(Self::Referenced)
        } else if !HELPED.contains(&verdict.code) {
            Some(Self::Skipped)
        } else {
            Some(match owner.as_deref() {
                None => Self::Bare,
                Some("Job") => Self::Job,
                Some(_) => Self::Missed,
            })
        }
    }
}

impl Owner {
    /// Returns the controller of a Pod, if it has one.
    pub(crate) fn of(pod: &Value) -> Option<Self> {
        let owners = pod["metadata"]["ownerReferences"].as_array()?;
        let owner = owners.iter().find(|owner| owner["controller"] == true)?;
        let text = |field: &str| owner[field].as_str().map(str::to_owned);
        Some(Self {
            kind: text("kind")?,
            name: text("name")?,
            uid: text("uid")?,
        })
    }
}

impl StuckPod {
    /// Returns the Pod with its group; `None` if it is none of ours.
    pub(crate) fn of(case: &PodCase, rules: &Rules) -> Option<Self> {
        let verdict = verdict(case);
        let group = Group::of(&case.pod, &verdict, rules)?;
        let metadata = &case.pod["metadata"];
        Some(Self {
            namespace: case.namespace_name.clone(),
            name: metadata["name"].as_str()?.to_owned(),
            uid: metadata["uid"].as_str()?.to_owned(),
            owner: Owner::of(&case.pod),
            group,
            verdict,
            pod: case.pod.clone(),
        })
    }

    /// Returns the Pod's name with its namespace.
    pub(crate) fn title(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Returns the next step for people.
    pub(crate) fn fix(&self) -> String {
        let Self {
            namespace, name, ..
        } = self;
        let restart = "ecr-injector doctor --stuck --restart";
        match self.group {
            Group::Missed => format!("{restart}, or kubectl -n {namespace} delete pod {name}"),
            Group::Job => format!(
                "{restart} --jobs: the Job counts a deleted Pod as a failure, against its \
                 backoffLimit"
            ),
            Group::Bare => format!(
                "no controller makes a new one: kubectl -n {namespace} get pod {name} -o yaml | \
                 kubectl replace --force -f -"
            ),
            Group::Static | Group::Referenced | Group::Skipped => {
                self.verdict.fix.clone().unwrap_or_default()
            }
        }
    }

    /// Returns a Pod as the controller would create it again, to be created in a dry run.
    pub(crate) fn copy(&self) -> Value {
        let metadata = &self.pod["metadata"];
        let prefix = metadata["generateName"].as_str().map(str::to_owned);
        let mut prefix = prefix.unwrap_or_else(|| format!("{}-", self.name));
        prefix.truncate(prefix.floor_char_boundary(MAX_NAME));
        let mut owners = metadata["ownerReferences"].clone();
        for owner in owners.as_array_mut().into_iter().flatten() {
            // It would need a right on the owner's finalizers.
            if let Some(owner) = owner.as_object_mut() {
                owner.remove("blockOwnerDeletion");
            }
        }
        let mut spec = self.pod["spec"].clone();
        if let Some(spec) = spec.as_object_mut() {
            for field in SET_BY_SERVER {
                spec.remove(field);
            }
        }
        let mut copy = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "generateName": prefix,
                "namespace": self.namespace,
                "labels": metadata["labels"],
                "annotations": metadata["annotations"],
                "ownerReferences": owners,
            },
            "spec": spec,
        });
        if let Some(metadata) = copy["metadata"].as_object_mut() {
            metadata.retain(|_, value| !value.is_null());
        }
        copy
    }
}

/// Returns whether a Pod references the pull secret.
pub(crate) fn has_reference(pod: &Value, rules: &Rules) -> bool {
    let listed = pod["spec"]["imagePullSecrets"].as_array();
    let mut listed = listed.into_iter().flatten();
    listed.any(|it| it["name"].as_str() == Some(&rules.secret_name))
}

/// Returns whether a Pod waits for an image of ECR, and is not being deleted.
pub(crate) fn is_stuck(pod: &Value, rules: &Rules) -> bool {
    let waiting = waiting::waiting(pod, rules);
    pod["metadata"]["deletionTimestamp"].is_null() && waiting.iter().any(|it| it.host.is_some())
}

#[cfg(test)]
pub(super) mod tests;
