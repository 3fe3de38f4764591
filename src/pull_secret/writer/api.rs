//! The three calls to the API server that writing pull secrets takes, and their errors.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
};
use tokio::{sync::Semaphore, time::Instant};

use crate::{
    cluster::{
        call::{ApiCall, CallFailure, CallOutcome, within},
        namespace::Namespace,
        object::WholeSecret,
        ownership::FIELD_MANAGER,
    },
    pull_secret::{error::PullSecretError, guard, metrics::PullSecretMetrics},
};

/// How long one call to the API server may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// The most calls to the API server at the same time. Each is a connection of its own, and a burst
/// of handshakes would only be slow.
const MAX_CALLS: usize = 32;
/// The part of the API server's message that is kept, in characters.
const MAX_MESSAGE: usize = 300;

/// The error of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallError {
    /// Another writer was first.
    Conflict,
    /// The guard doesn't see the namespace as opted in: another API server may not have seen the
    /// label yet.
    Guard(String),
    /// The API server refuses the call, and will refuse it again as long as nothing changes.
    Refused(String),
    /// The API server failed, or couldn't be reached.
    Failed(String),
    /// No answer in time.
    Timeout(String),
}

/// The pull secrets of a cluster, or of a fake of one: one name in every namespace.
pub trait SecretApi: Send + Sync + 'static {
    /// Reads the Secret of a namespace.
    fn get<'a>(
        &'a self,
        namespace: &'a Namespace,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Option<Secret>, CallError>>;

    /// Applies the Secret of a namespace by its preconditions, and returns the stored Secret.
    fn apply<'a>(
        &'a self,
        namespace: &'a Namespace,
        secret: &'a Secret,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Secret, CallError>>;

    /// Deletes the Secret of a namespace, if it still has this UID and version; one that is gone
    /// counts as deleted.
    fn delete<'a>(
        &'a self,
        namespace: &'a Namespace,
        uid: &'a str,
        version: &'a str,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), CallError>>;
}

/// The pull secrets behind the cluster's API server.
pub struct KubeSecrets {
    client: Client,
    name: String,
    metrics: Arc<PullSecretMetrics>,
    calls: Semaphore,
}

impl KubeSecrets {
    /// Creates the access to the Secrets of this name.
    #[must_use]
    pub fn new(client: Client, name: String, metrics: Arc<PullSecretMetrics>) -> Self {
        Self {
            client,
            name,
            metrics,
            calls: Semaphore::new(MAX_CALLS),
        }
    }

    fn api(&self, namespace: &Namespace) -> Api<WholeSecret> {
        Api::namespaced(self.client.clone(), namespace.as_str())
    }

    /// Makes a call once fewer than [`MAX_CALLS`] run, within its own deadline and the request's,
    /// and counts the call.
    async fn call<T>(
        &self,
        verb: &'static str,
        call: impl Future<Output = kube::Result<T>>,
        deadline: Instant,
    ) -> Result<T, CallError> {
        let limited = async {
            // The semaphore is never closed.
            let _permit = self.calls.acquire().await;
            within(CALL_TIMEOUT, call).await
        };
        let counted = ApiCall::new(&self.metrics.api_calls, verb, "secrets");
        counted.send(deadline, limited, CallError::from).await
    }
}

impl SecretApi for KubeSecrets {
    fn get<'a>(
        &'a self,
        namespace: &'a Namespace,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Option<Secret>, CallError>> {
        Box::pin(async move {
            let api = self.api(namespace);
            let found = self.call("get", api.get_opt(&self.name), deadline).await?;
            Ok(found.map(|WholeSecret(secret)| secret))
        })
    }

    fn apply<'a>(
        &'a self,
        namespace: &'a Namespace,
        secret: &'a Secret,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<Secret, CallError>> {
        Box::pin(async move {
            let (api, params) = (
                self.api(namespace),
                PatchParams::apply(FIELD_MANAGER).force(),
            );
            let patch = Patch::Apply(secret);
            let call = api.patch(&self.name, &params, &patch);
            let WholeSecret(written) = self.call("apply", call, deadline).await?;
            Ok(written)
        })
    }

    fn delete<'a>(
        &'a self,
        namespace: &'a Namespace,
        uid: &'a str,
        version: &'a str,
        deadline: Instant,
    ) -> BoxFuture<'a, Result<(), CallError>> {
        Box::pin(async move {
            let params = DeleteParams {
                preconditions: Some(Preconditions {
                    uid: Some(uid.to_owned()),
                    resource_version: Some(version.to_owned()),
                }),
                ..DeleteParams::default()
            };
            let api = self.api(namespace);
            let delete = async {
                match api.delete(&self.name, &params).await {
                    Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
                    deleted => deleted.map(|_| ()),
                }
            };
            self.call("delete", delete, deadline).await
        })
    }
}

impl CallOutcome for CallError {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::Guard(_) => "guard",
            Self::Refused(_) | Self::Failed(_) => "error",
            Self::Timeout(_) => "timeout",
        }
    }
}

impl CallError {
    /// Returns the error of a pull secret for which this call, with a verb for people, was made.
    pub(super) fn while_trying(self, verb: &'static str) -> PullSecretError {
        match self {
            Self::Conflict => PullSecretError::Contended,
            Self::Guard(message) | Self::Refused(message) => {
                PullSecretError::Refused { verb, message }
            }
            Self::Failed(message) | Self::Timeout(message) => {
                PullSecretError::Api { verb, message }
            }
        }
    }
}

impl From<CallFailure> for CallError {
    fn from(failure: CallFailure) -> Self {
        match failure {
            CallFailure::Kube(error) => Self::from(&error),
            CallFailure::Timeout => Self::Timeout(format!(
                "no response within {} s or before the request's deadline",
                CALL_TIMEOUT.as_secs()
            )),
        }
    }
}

impl From<&kube::Error> for CallError {
    fn from(error: &kube::Error) -> Self {
        let short = |text: &str| text.chars().take(MAX_MESSAGE).collect::<String>();
        match error {
            // The object changed, or another was created first.
            kube::Error::Api(status) if status.code == 409 => Self::Conflict,
            // Only the guard may be behind: a Secret that is too large stays too large.
            kube::Error::Api(status)
                if status.code == 422 && guard::is_by_guard(&status.message) =>
            {
                Self::Guard(short(&status.message))
            }
            kube::Error::Api(status) if matches!(status.code, 400..=428) => {
                Self::Refused(short(&status.message))
            }
            kube::Error::Api(status) => {
                Self::Failed(format!("{} {}", status.code, short(&status.message)))
            }
            other => Self::Failed(short(&other.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn error(code: u16, reason: &str, message: &str) -> CallError {
        let status = Status::failure(message, reason).with_code(code);
        CallError::from(&kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn refusals_of_the_guard_differ_from_others() {
        let guard = "secrets \"ecr-pull-secret\" is forbidden: ValidatingAdmissionPolicy 'secrets.ecr-injector.dev' with binding \
                     'secrets.ecr-injector.dev' denied request: not opted in";
        assert_eq!(
            error(422, "Invalid", guard),
            CallError::Guard(guard.to_owned())
        );
        // The same words from others, and other words with the same code.
        for (code, reason, message) in [
            (
                422,
                "Invalid",
                "Secret is invalid: data: Too long: must have at most 1048576 bytes",
            ),
            (
                422,
                "Invalid",
                "ValidatingAdmissionPolicy 'theirs.example.com' with binding 'x' denied request: no",
            ),
            (403, "Forbidden", guard),
            (
                403,
                "Forbidden",
                "exceeded quota: secrets, requested: secrets=1, used: secrets=9",
            ),
            (
                403,
                "Forbidden",
                "unable to create new content in namespace team because it is being terminated",
            ),
            (404, "NotFound", "namespaces \"team\" not found"),
            (413, "RequestEntityTooLarge", "limit is 3145728"),
        ] {
            let refused = CallError::Refused(message.to_owned());
            assert_eq!(error(code, reason, message), refused, "{code}");
            assert_eq!(refused.as_str(), "error");
        }
    }

    #[test]
    fn conflict_is_recognized_by_its_code() {
        for reason in ["Conflict", "AlreadyExists", ""] {
            let conflict = error(409, reason, "the object has been modified");
            assert_eq!(conflict, CallError::Conflict, "{reason:?}");
        }
    }

    #[test]
    fn failures_of_the_api_server_are_no_refusals() {
        for code in [429, 500, 503, 504] {
            let failed = CallError::Failed(format!("{code} busy"));
            assert_eq!(error(code, "", "busy"), failed);
        }
        let other = kube::Error::Api(Box::default());
        assert!(matches!(CallError::from(&other), CallError::Failed(_)));
    }

    #[test]
    fn long_messages_are_cut() {
        let CallError::Refused(message) = error(403, "Forbidden", &"ä".repeat(1000)) else {
            panic!("not refused")
        };
        assert_eq!(message.chars().count(), MAX_MESSAGE);
    }
}
