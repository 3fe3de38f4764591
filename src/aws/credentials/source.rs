//! The sources of ambient credentials: their names, and what to check of each.

use std::fmt;

/// Where ambient credentials come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`.
    Environment,
    /// A profile file: keys, SSO, a credential process, a role.
    Profile,
    /// A web identity token file (IRSA).
    WebIdentity,
    /// EKS Pod Identity.
    PodIdentity,
    /// An ECS task role, or another container credential endpoint.
    Container,
    /// The instance metadata service, version 2.
    InstanceMetadata,
}

impl Source {
    /// All sources, in the order of the chain.
    pub const ALL: [Self; 6] = [
        Self::Environment,
        Self::Profile,
        Self::WebIdentity,
        Self::PodIdentity,
        Self::Container,
        Self::InstanceMetadata,
    ];

    /// Returns the source of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|source| source.as_str() == text)
    }

    /// Returns what to check if the source was expected and has no credentials.
    pub(super) fn hint(self) -> &'static str {
        match self {
            Self::Environment => {
                "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and the Secret that they come from"
            }
            Self::Profile => {
                "check AWS_PROFILE and the files AWS_CONFIG_FILE and AWS_SHARED_CREDENTIALS_FILE"
            }
            Self::WebIdentity => {
                "check the ServiceAccount's annotation eks.amazonaws.com/role-arn and the pod-identity webhook, and restart the Pod"
            }
            Self::PodIdentity => {
                "check the ServiceAccount's Pod Identity association and the agent's DaemonSet, and restart the Pod"
            }
            Self::Container => "check AWS_CONTAINER_CREDENTIALS_FULL_URI or _RELATIVE_URI",
            Self::InstanceMetadata => {
                "check the instance's profile and the hop limit of its metadata service"
            }
        }
    }

    /// Returns the source as a metric's label and a log field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Environment => "environment",
            Self::Profile => "profile",
            Self::WebIdentity => "web_identity",
            Self::PodIdentity => "pod_identity",
            Self::Container => "ecs",
            Self::InstanceMetadata => "instance_metadata",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
