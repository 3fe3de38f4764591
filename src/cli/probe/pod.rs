//! The test of an installation from a user's side: creates a Pod, and checks the admitted Pod and
//! the pull secret.

use std::{collections::BTreeMap, time::Duration};

use http::{HeaderMap, Request, header::WARNING};
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
    client::Body,
    core::Status,
};
use serde_json::json;
use thiserror::Error;
use tokio::time::timeout;

use crate::{
    cluster::{namespace::Namespace, ownership},
    process::random::random,
    pull_secret,
    registry::Host,
    token::Freshness,
};

/// How long one call may take: longer than any webhook may (30 s), as the API server calls several
/// in a row.
const CALL_TIMEOUT: Duration = Duration::from_secs(35);
/// The scheduling gate that keeps the Pod from being scheduled: no controller removes the gate.
const GATE: &str = "ecr-injector.dev/probe";

/// A Pod that tests an installation.
#[derive(Debug, Clone)]
pub struct Probe {
    /// The Pod's namespace.
    pub namespace: Namespace,
    /// The Pod's image.
    pub image: String,
    /// The registry of the image.
    pub host: Host,
    /// The Pod's labels, for an `objectSelector` of the webhook.
    pub labels: BTreeMap<String, String>,
    /// The pull secret's name.
    pub secret_name: String,
    name: String,
}

/// Error of a test.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// The API server rejected a call.
    #[error("{operation} {object}: {message}")]
    Rejected {
        /// The operation.
        operation: &'static str,
        /// The object.
        object: String,
        /// The API server's message.
        message: String,
    },
    /// The API server did not respond, or can't be reached.
    #[error("{operation} {object}")]
    Call {
        /// The operation.
        operation: &'static str,
        /// The object.
        object: String,
        /// The cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The Pod was admitted without the pull secret.
    #[error(
        "the Pod was admitted without {secret_name} in its imagePullSecrets{}: either the \
         webhook is not called for Pods of {namespace} (is the namespace labelled? does the \
         MutatingWebhookConfiguration exist and trust the certificate?), or it did not respond, \
         or skipped the Pod; with mode: policy: is the MutatingAdmissionPolicy there?",
        with_warnings(.warnings)
    )]
    NotInjected {
        /// The entry that the Pod lacks.
        secret_name: String,
        /// The Pod's namespace.
        namespace: Namespace,
        /// The warnings of the API server's response.
        warnings: Vec<String>,
    },
    /// The pull secret has no valid credential for the registry.
    #[error("{secret} has no valid credential for {host}{}", with_warnings(.warnings))]
    NoCredential {
        /// The pull secret.
        secret: String,
        /// The registry.
        host: Host,
        /// The warnings of the Pod's admission.
        warnings: Vec<String>,
    },
}

/// The warnings of a Pod's admission.
type Warnings = Vec<String>;

fn with_warnings(warnings: &[String]) -> String {
    if warnings.is_empty() {
        String::new()
    } else {
        format!(" ({})", warnings.join("; "))
    }
}

impl Probe {
    /// Returns a Pod with a unique name.
    #[must_use]
    pub fn new(namespace: Namespace, image: String, host: Host, secret_name: String) -> Self {
        let name = format!("ecr-injector-probe-{:016x}", random());
        Self {
            namespace,
            image,
            host,
            labels: BTreeMap::new(),
            secret_name,
            name,
        }
    }

    /// Creates the Pod in a dry run: no object is stored, and no token minted.
    pub async fn admit_dry_run(&self, client: &Client) -> Result<Warnings, ProbeError> {
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        self.create(client, &dry_run, "creating (dry run)").await
    }

    /// Stores the Pod, which no node ever runs, until [`Self::remove`]. A webhook has then written the
    /// pull secret, or returned a warning; without one, the leader's discovery sees the Pod. A Pod
    /// that was not admitted as expected is removed again.
    pub async fn admit(&self, client: &Client) -> Result<Warnings, ProbeError> {
        // Without the permission to delete the Pod none is stored; the API server checks it even if
        // there is no Pod.
        self.remove(client).await?;
        let created = self
            .create(client, &PostParams::default(), "creating")
            .await;
        if created.is_err() {
            self.remove(client).await?;
        }
        created
    }

    /// Removes the Pod, if it exists.
    pub async fn remove(&self, client: &Client) -> Result<(), ProbeError> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), self.namespace.as_str());
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        let removed = async { pods.delete(&self.name, &now).await.map(drop) };
        match in_time(removed).await {
            Err(Failed::Rejected(status)) if status.code == 404 => Ok(()),
            removed => removed.map_err(|failed| failed.during("removing", self.object())),
        }
    }

    /// Returns when the pull secret's credential for the registry expires. Reads metadata alone.
    pub async fn credential(
        &self,
        client: &Client,
        warnings: &[String],
        now: Timestamp,
    ) -> Result<Timestamp, ProbeError> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), self.namespace.as_str());
        let object = format!("the Secret {}/{}", self.namespace, self.secret_name);
        let secret = in_time(secrets.get_metadata(&self.secret_name))
            .await
            .map_err(|failed| failed.during("reading", object.clone()))?;
        let state = pull_secret::state_of(&secret.metadata)
            .filter(|_| ownership::is_managed(&secret.metadata));
        let entry = state
            .as_ref()
            .filter(|state| state.freshness(&self.host, now) != Freshness::Expired)
            .and_then(|state| state.hosts.get(&self.host)?.credential)
            .map(|credential| credential.lifetime);
        entry
            .map(|life| life.expires_at)
            .ok_or_else(|| ProbeError::NoCredential {
                secret: object,
                host: self.host.clone(),
                warnings: warnings.to_vec(),
            })
    }

    async fn create(
        &self,
        client: &Client,
        params: &PostParams,
        operation: &'static str,
    ) -> Result<Warnings, ProbeError> {
        let failed = |failed: Failed| failed.during(operation, self.object());
        let request = self.request(params).map_err(failed)?;
        // kube's own `create` does not return the response's headers, which have the warnings.
        let response = async {
            let (head, body) = client.send(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok((head, body))
        };
        let (head, body) = in_time(response).await.map_err(failed)?;
        if !head.status.is_success() {
            let status = serde_json::from_slice(&body)
                .unwrap_or_else(|_| Status::failure(head.status.as_str(), ""));
            return Err(failed(Failed::Rejected(Box::new(status))));
        }
        let pod: Pod = serde_json::from_slice(&body).map_err(|error| failed(error.into()))?;
        let warnings = warnings(&head.headers);
        let mut entries = pod
            .spec
            .into_iter()
            .flat_map(|spec| spec.image_pull_secrets.unwrap_or_default());
        if entries.any(|entry| entry.name == self.secret_name) {
            Ok(warnings)
        } else {
            Err(ProbeError::NotInjected {
                secret_name: self.secret_name.clone(),
                namespace: self.namespace.clone(),
                warnings,
            })
        }
    }

    fn request(&self, params: &PostParams) -> Result<Request<Body>, Failed> {
        let pods = format!("/api/v1/namespaces/{}/pods", self.namespace);
        let pod = serde_json::to_vec(&self.pod())?;
        let request = kube::core::Request::new(pods).create(params, pod);
        Ok(request.map_err(kube::Error::BuildRequest)?.map(Body::from))
    }

    /// Returns a Pod that *restricted* Pod Security and a `ResourceQuota` accept.
    fn pod(&self) -> serde_json::Value {
        json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": self.name, "labels": self.labels},
            "spec": {
                "schedulingGates": [{"name": GATE}],
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": false,
                "enableServiceLinks": false,
                "securityContext": {
                    "runAsNonRoot": true,
                    "runAsUser": 65532,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [{
                    "name": "probe",
                    "image": self.image,
                    "resources": {
                        "requests": {"cpu": "1m", "memory": "1Mi"},
                        "limits": {"cpu": "10m", "memory": "16Mi"},
                    },
                    "securityContext": {
                        "allowPrivilegeEscalation": false,
                        "capabilities": {"drop": ["ALL"]},
                    },
                }],
            },
        })
    }

    fn object(&self) -> String {
        format!("the Pod {}/{}", self.namespace, self.name)
    }
}

/// Error of a call.
enum Failed {
    Rejected(Box<Status>),
    Call(Box<dyn std::error::Error + Send + Sync>),
}

impl Failed {
    fn during(self, operation: &'static str, object: String) -> ProbeError {
        match self {
            Self::Rejected(status) => ProbeError::Rejected {
                operation,
                object,
                message: status.message,
            },
            Self::Call(source) => ProbeError::Call {
                operation,
                object,
                source,
            },
        }
    }
}

impl From<kube::Error> for Failed {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Rejected(status),
            other => Self::Call(other.into()),
        }
    }
}

impl From<serde_json::Error> for Failed {
    fn from(error: serde_json::Error) -> Self {
        Self::Call(error.into())
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Failed> {
    match timeout(CALL_TIMEOUT, call).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Failed::Call(
            format!("no response within {} s", CALL_TIMEOUT.as_secs()).into(),
        )),
    }
}

/// Returns the texts of the `Warning` headers (RFC 9111, 5.5: `299 - "text"`).
fn warnings(headers: &HeaderMap) -> Warnings {
    let texts = headers.get_all(WARNING).into_iter();
    texts
        .filter_map(|header| {
            let (_, quoted) = header.to_str().ok()?.split_once('"')?;
            let text = quoted.strip_suffix('"').unwrap_or(quoted);
            Some(text.replace("\\\"", "\"").replace("\\\\", "\\"))
        })
        .collect()
}
