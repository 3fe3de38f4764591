//! The Kubernetes Events about a namespace's pull secret: which reasons and notes there are.

use k8s_openapi::api::core::v1::ObjectReference;

use super::{Damage, Foreign};
use crate::{
    cluster::{
        event::{EventRecord, ToEventRecord, quote},
        namespace::Namespace,
    },
    token::error::AwsReply,
};

/// Returns the object that the Events regard: the Secret of this name.
#[must_use]
pub fn regarding(secret_name: &str) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Secret".to_owned()),
        name: Some(secret_name.to_owned()),
        ..ObjectReference::default()
    }
}

/// An event in the life of a pull secret. Each has a fixed text, which quotes foreign texts in
/// part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullSecretEvent {
    /// Has every credential again, after failures.
    Refreshed,
    /// AWS gives no token, by this code of its API.
    Refused {
        /// Such as `AccessDeniedException`. AWS's message, which names the account and the
        /// principal, is not quoted.
        code: AwsReply,
    },
    /// A Secret of its name is not ours and is skipped.
    Foreign {
        /// Why the Secret is not ours.
        why: Foreign,
    },
    /// Was repaired.
    Repaired {
        /// The damage.
        what: Damage,
    },
    /// Another client changes the Secret again and again, so ecr-injector repairs it less often.
    Contended,
    /// The configuration no longer allows registries in the Secret.
    Suspended {
        /// The first of them.
        host: String,
        /// The number of others.
        more: usize,
        /// The cause.
        why: String,
    },
    /// The namespace's quota has no room for the Secret.
    Quota {
        /// The API server's message.
        message: String,
    },
    /// The API server refused the write.
    Forbidden {
        /// The API server's message.
        message: String,
    },
    /// The API server would reject a Pod with the reference, because of its ServiceAccount.
    MountableSecrets {
        /// The account's name.
        account: String,
    },
    /// The role that the namespace requests can't be used.
    RoleRefused {
        /// The annotation's value.
        role: String,
        /// The cause.
        why: String,
    },
    /// The namespace was opted in.
    OptedIn,
    /// The namespace was opted out.
    OptedOut,
    /// A Pod lacks the reference to the pull secret, although it should have it.
    NotInjected {
        /// The Pod's name.
        pod: String,
        /// The Pod's uid.
        uid: String,
        /// The cause, as a part of a sentence.
        why: &'static str,
    },
    /// The namespace looks opted in, and is not.
    NearlyOptedIn {
        /// The note.
        note: String,
    },
}

impl PullSecretEvent {
    /// Returns the event of a write that the API server refused with this message; `None` where the
    /// namespace is being deleted, and its Events with it.
    #[must_use]
    pub fn from_refusal(message: &str) -> Option<Self> {
        let text = message.to_owned();
        if message.contains("being terminated") {
            None
        } else if message.contains("exceeded quota") {
            Some(Self::Quota { message: text })
        } else {
            Some(Self::Forbidden { message: text })
        }
    }
}

impl ToEventRecord for PullSecretEvent {
    fn regarding(&self) -> Option<ObjectReference> {
        match self {
            Self::NotInjected { pod, uid, .. } => Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                name: Some(pod.clone()),
                uid: Some(uid.clone()),
                ..ObjectReference::default()
            }),
            _ => None,
        }
    }

    #[allow(clippy::too_many_lines, reason = "a table: each event with its texts")]
    fn to_record(&self, secret: &str, namespace: &Namespace) -> EventRecord {
        match self {
            Self::Refreshed => EventRecord::normal(
                "PullSecretRefreshed",
                "Refresh",
                &format!(
                    "The pull secret {secret} has valid credentials for every registry again."
                ),
            ),
            Self::Refused { code } => {
                let code = quote(code.code().unwrap_or("a code that can't be shown"));
                let note = format!(
                    "AWS refused to give an ECR token: {code}. The credentials in the pull \
                     secret {secret} stay valid until they expire; minting is retried."
                );
                EventRecord::warning("TokenRefused", "Mint", code, &note)
            }
            Self::Foreign { why } => EventRecord::warning(
                "ForeignSecret",
                "Skip",
                why.to_string(),
                &format!(
                    "ecr-injector did not create the Secret {secret} ({why}), so it leaves the \
                     Secret unchanged and admits Pods without it. Rename or delete the Secret \
                     to have a pull secret created."
                ),
            ),
            Self::Repaired { what } => {
                let note = match what {
                    Damage::Deleted => format!(
                        "The pull secret {secret} was deleted, and ecr-injector created it \
                         again. To do without it, remove the opt-in label from the namespace."
                    ),
                    Damage::Changed => format!(
                        "The pull secret {secret} was changed, and ecr-injector repaired it. \
                         For credentials of your own, use another Secret."
                    ),
                };
                EventRecord {
                    dedup_key: what.as_str().to_owned(),
                    ..EventRecord::normal("PullSecretRepaired", "Repair", &note)
                }
            }
            Self::Contended => EventRecord::warning(
                "PullSecretContested",
                "Repair",
                String::new(),
                &format!(
                    "Another client changes the pull secret {secret} repeatedly, so \
                     ecr-injector repairs it less and less often. To find the client: kubectl \
                     get secret {secret} -n {namespace} -o \
                     jsonpath='{{.metadata.managedFields[*].manager}}'"
                ),
            ),
            Self::Suspended { host, more, why } => {
                let others = match more {
                    0 => String::new(),
                    more => format!(" and {more} more"),
                };
                let (host, why) = (quote(host), quote(why));
                let note = format!(
                    "The configuration no longer allows the registry {host}{others} in the pull \
                     secret {secret}: {why}. The credential is kept until it expires, and \
                     renewed once the registry is allowed again."
                );
                EventRecord::warning("RegistrySuspended", "Suspend", host + &why, &note)
            }
            Self::Quota { message } => EventRecord::warning(
                "QuotaExceeded",
                "Write",
                String::new(),
                &format!(
                    "The quota of the namespace has no room for the pull secret {secret}: {}",
                    quote(message)
                ),
            ),
            Self::Forbidden { message } => EventRecord::warning(
                "WriteForbidden",
                "Write",
                String::new(),
                &format!(
                    "The API server does not allow ecr-injector to write the pull secret \
                     {secret}: {}",
                    quote(message)
                ),
            ),
            Self::MountableSecrets { account } => {
                let account = quote(account);
                let note = format!(
                    "ServiceAccount {account} enforces mountable secrets \
                     (kubernetes.io/enforce-mountable-secrets) and does not list {secret}, so its \
                     Pods are admitted without the pull secret. To have it used: kubectl patch \
                     serviceaccount {account} -n {namespace} -p \
                     '{{\"imagePullSecrets\":[{{\"name\":\"{secret}\"}}]}}'"
                );
                EventRecord::warning("MountableSecretsEnforced", "Skip", account, &note)
            }
            Self::RoleRefused { role, why } => {
                let (role, why) = (quote(role), quote(why));
                let note =
                    format!("The role {role}, which this namespace requests, is not used: {why}");
                EventRecord::warning("RoleRefused", "AssumeRole", role + &why, &note)
            }
            Self::OptedIn => EventRecord::normal(
                "OptedIn",
                "OptIn",
                &format!(
                    "New Pods get the pull secret {secret} for their ECR images. Existing Pods \
                     are unchanged; to replace those of Deployments: kubectl rollout restart \
                     deployment -n {namespace}"
                ),
            ),
            Self::OptedOut => EventRecord::normal(
                "OptedOut",
                "OptOut",
                &format!(
                    "New Pods no longer get the pull secret {secret}, and ecr-injector no \
                     longer refreshes it. Pods that reference it can pull until its credentials \
                     expire, in at least eight hours."
                ),
            ),
            Self::NotInjected { uid, why, .. } => EventRecord::warning(
                "EcrPullSecretNotInjected",
                "Admit",
                quote(uid),
                &format!(
                    "This Pod has an image of ECR and does not reference the pull secret {secret}: \
                     {why}. Its imagePullSecrets can't change. To have its controller create it \
                     again: ecr-injector doctor --stuck -n {namespace} --restart"
                ),
            ),
            Self::NearlyOptedIn { note } => {
                EventRecord::warning("NotOptedIn", "OptIn", String::new(), note)
            }
        }
    }
}

#[cfg(test)]
mod tests;
