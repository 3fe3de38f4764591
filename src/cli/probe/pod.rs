//! An installation as its users meet it: a Pod that names an image is created, and what becomes of it is looked at.

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
    cluster::{namespace::Namespace, ownership, random},
    pull_secret,
    registry::Host,
    token::Freshness,
};

/// How long one call may take: longer than any webhook may (30 s), and the API server asks several in a row.
const CALL_TIMEOUT: Duration = Duration::from_secs(35);
/// Keeps a Pod from being scheduled, for good: nobody removes it.
const GATE: &str = "ecr-injector.dev/probe";

/// A Pod that is created to see what becomes of it.
#[derive(Debug, Clone)]
pub struct Probe {
    /// Where.
    pub namespace: Namespace,
    /// What it names.
    pub image: String,
    /// The registry of that.
    pub host: Host,
    /// What it is labelled with, where the registration looks at Pods' labels.
    pub labels: BTreeMap<String, String>,
    /// What the pull secret is called.
    pub secret_name: String,
    name: String,
}

/// What is not as it should be, so far.
#[derive(Debug, Error)]
pub enum NotYet {
    /// The API server didn't do what it was asked.
    #[error("{doing} {what}: {why}")]
    Refused {
        /// What was tried.
        doing: &'static str,
        /// On what.
        what: String,
        /// In its words.
        why: String,
    },
    /// It didn't answer, or couldn't be asked.
    #[error("{doing} {what}")]
    Call {
        /// What was tried.
        doing: &'static str,
        /// On what.
        what: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The Pod was admitted, as it was.
    #[error(
        "the Pod was admitted without {secret_name} in its imagePullSecrets{}: either the \
         webhook is not called for Pods of {namespace} (is the namespace labelled? does the \
         MutatingWebhookConfiguration exist and trust the certificate?), or it did not respond, \
         or skipped the Pod",
        with_warnings(.warnings)
    )]
    LeftAlone {
        /// The entry that it lacks.
        secret_name: String,
        /// Where.
        namespace: Namespace,
        /// What the API server said beside.
        warnings: Vec<String>,
    },
    /// The pull secret doesn't open the registry.
    #[error("{what} has no valid credential for {host}{}", with_warnings(.warnings))]
    NoCredential {
        /// The pull secret.
        what: String,
        /// The registry.
        host: Host,
        /// What was said when the Pod was admitted.
        warnings: Vec<String>,
    },
}

/// What was said when a Pod was admitted.
type Warnings = Vec<String>;

fn with_warnings(warnings: &[String]) -> String {
    if warnings.is_empty() {
        String::new()
    } else {
        format!(" ({})", warnings.join("; "))
    }
}

impl Probe {
    /// A Pod with a name that no other has.
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

    /// Creates the Pod in a dry run: nothing is stored, nothing minted, nothing written.
    pub async fn try_admission(&self, client: &Client) -> Result<Warnings, NotYet> {
        let dry_run = PostParams {
            dry_run: true,
            ..PostParams::default()
        };
        self.create(client, &dry_run, "creating (dry run)").await
    }

    /// Stores the Pod, which no node ever runs, and removes it again: the webhook has then written the pull secret, or told why
    /// it couldn't.
    pub async fn be_admitted(&self, client: &Client) -> Result<Warnings, NotYet> {
        // Nothing is stored that couldn't be removed: whether it may be is told even of a Pod that isn't there.
        self.remove(client).await?;
        let created = self
            .create(client, &PostParams::default(), "creating")
            .await;
        self.remove(client).await?;
        created
    }

    /// Removes the Pod, if it is there.
    async fn remove(&self, client: &Client) -> Result<(), NotYet> {
        let pods: Api<Pod> = Api::namespaced(client.clone(), self.namespace.as_str());
        let now = DeleteParams {
            grace_period_seconds: Some(0),
            ..DeleteParams::default()
        };
        let removed = async { pods.delete(&self.name, &now).await.map(drop) };
        match in_time(removed).await {
            Err(Failed::Refused(status)) if status.code == 404 => Ok(()),
            removed => removed.map_err(|failed| failed.at("removing", self.what())),
        }
    }

    /// Until when the pull secret opens the registry. Its metadata alone are asked for, not what is in it.
    pub async fn credential(
        &self,
        client: &Client,
        warnings: &[String],
        now: Timestamp,
    ) -> Result<Timestamp, NotYet> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), self.namespace.as_str());
        let what = format!("the Secret {}/{}", self.namespace, self.secret_name);
        let secret = in_time(secrets.get_metadata(&self.secret_name))
            .await
            .map_err(|failed| failed.at("reading", what.clone()))?;
        let state = pull_secret::state_of(&secret.metadata)
            .filter(|_| ownership::is_managed(&secret.metadata));
        let entry = state
            .as_ref()
            .filter(|state| state.freshness(&self.host, now) != Freshness::Expired)
            .and_then(|state| state.hosts.get(&self.host)?.credential)
            .map(|credential| credential.lifetime);
        entry
            .map(|life| life.expires_at)
            .ok_or_else(|| NotYet::NoCredential {
                what,
                host: self.host.clone(),
                warnings: warnings.to_vec(),
            })
    }

    async fn create(
        &self,
        client: &Client,
        params: &PostParams,
        doing: &'static str,
    ) -> Result<Warnings, NotYet> {
        let failed = |failed: Failed| failed.at(doing, self.what());
        let request = self.request(params).map_err(failed)?;
        // Past kube's own `create`, which keeps the answer's head to itself.
        let answer = async {
            let (head, body) = client.send(request).await?.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok((head, body))
        };
        let (head, body) = in_time(answer).await.map_err(failed)?;
        if !head.status.is_success() {
            let status = serde_json::from_slice(&body)
                .unwrap_or_else(|_| Status::failure(head.status.as_str(), ""));
            return Err(failed(Failed::Refused(Box::new(status))));
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
            Err(NotYet::LeftAlone {
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

    /// A Pod that *restricted* Pod Security and a quota of resources have nothing against.
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

    fn what(&self) -> String {
        format!("the Pod {}/{}", self.namespace, self.name)
    }
}

/// A call that came to nothing.
enum Failed {
    Refused(Box<Status>),
    Call(Box<dyn std::error::Error + Send + Sync>),
}

impl Failed {
    fn at(self, doing: &'static str, what: String) -> NotYet {
        match self {
            Self::Refused(status) => NotYet::Refused {
                doing,
                what,
                why: status.message,
            },
            Self::Call(source) => NotYet::Call {
                doing,
                what,
                source,
            },
        }
    }
}

impl From<kube::Error> for Failed {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Refused(status),
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
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failed::Call(
            format!("no response within {} s", CALL_TIMEOUT.as_secs()).into(),
        )),
    }
}

/// The texts of the `Warning` headers (RFC 9111, 5.5: `299 - "text"`).
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
