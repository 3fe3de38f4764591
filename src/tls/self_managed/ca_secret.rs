//! The CA Secret: watched, made, and written in place.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::watcher::{self, Event},
};
use serde_json::{Map, Value, json};
use thiserror::Error;
use tokio::{sync::watch, time::timeout};

use crate::{
    cluster::watch::watch,
    leader::Leadership,
    metrics::Metrics,
    namespace::Namespace,
    pull_secret::{FIELD_MANAGER, MANAGED_BY, MANAGED_BY_LABEL, is_managed},
    tls::{
        authority::{Authority, SECRET_TYPE},
        rotation::Lifetimes,
    },
};

/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// As a precondition: that there is none yet. The API server creates it, or answers with a conflict.
const NONE_YET: &str = "1";

/// Which one, and who is told.
pub struct CaSecret {
    api: Api<Secret>,
    namespace: Namespace,
    name: String,
    lifetimes: Lifetimes,
    metrics: Arc<Metrics>,
    held: watch::Sender<Held>,
}

/// What the Secret is known to hold.
#[derive(Debug, Clone, Default)]
pub struct Held {
    /// Now.
    pub now: Content,
    /// The last authority that was whole.
    pub last: Option<Arc<Authority>>,
    version: Version,
}

/// What is in the Secret.
#[derive(Debug, Clone, Default)]
pub enum Content {
    /// Nobody has looked yet.
    #[default]
    Unknown,
    /// There is no Secret.
    Absent,
    /// There is one that can't be used.
    Bad {
        /// Why.
        why: Arc<str>,
        /// Whether it has our label, so that we may write it.
        is_ours: bool,
    },
    /// An authority.
    Good {
        /// What it is.
        authority: Arc<Authority>,
        /// Whether the Secret holds what we would write, and nothing else.
        is_whole: bool,
    },
}

/// A version of the Secret.
#[derive(Debug, Clone, Default)]
struct Version {
    number: u64,
    uid: String,
}

/// Why the Secret wasn't written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// Somebody else wrote it first.
    #[error("somebody else wrote it first")]
    Conflict,
    /// We lead no more.
    #[error("another replica leads now")]
    NotLeading,
    /// The API server says no, or can't be reached.
    #[error("{0}")]
    Failed(String),
}

impl WriteError {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::NotLeading => "not_leading",
            Self::Failed(_) => "error",
        }
    }
}

impl CaSecret {
    /// The Secret of this name. Nothing is known of it yet.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: Namespace,
        name: String,
        lifetimes: Lifetimes,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace.as_str()),
            namespace,
            name,
            lifetimes,
            metrics,
            held: watch::Sender::default(),
        }
    }

    /// For people: where it is.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace.as_str(), self.name)
    }

    /// Tells of each change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Held> {
        self.held.subscribe()
    }

    /// Follows it until the future is dropped.
    pub async fn follow(&self) {
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut is_listed = false;
        watch("the CA", self.api.clone(), config, |event| match event {
            Event::Init => is_listed = false,
            Event::InitApply(secret) => {
                is_listed = true;
                self.learn(&secret);
            }
            Event::Apply(secret) => self.learn(&secret),
            Event::InitDone if is_listed => {}
            Event::InitDone => self.lose(u64::MAX),
            Event::Delete(secret) => self.lose(number(&secret)),
        })
        .await;
    }

    fn learn(&self, secret: &Secret) {
        let (version, lifetimes) = (version(secret), self.lifetimes);
        let now = match Authority::of(secret, lifetimes) {
            Ok(authority) => Content::Good {
                is_whole: is_managed(&secret.metadata) && authority.is_in(secret),
                authority: Arc::new(authority),
            },
            Err(error) => Content::Bad {
                why: error.to_string().into(),
                is_ours: is_managed(&secret.metadata),
            },
        };
        self.held.send_if_modified(|held| {
            let is_new = held.version.number < version.number;
            if is_new {
                if let Content::Good { authority, .. } = &now {
                    held.last = Some(authority.clone());
                    self.metrics.certificate_expiry("ca", authority.not_after());
                }
                (held.now, held.version) = (now, version);
            }
            is_new
        });
    }

    fn lose(&self, number: u64) {
        self.held.send_if_modified(|held| {
            let is_news = !matches!(held.now, Content::Absent) && held.version.number <= number;
            if is_news {
                held.now = Content::Absent;
            }
            is_news
        });
    }

    /// Writes an authority over what is known to be there: over nothing only if there is still nothing, else only over
    /// that very version. A replica that isn't the leader may only make the first one.
    pub async fn write(
        &self,
        authority: &Authority,
        term: Option<&Leadership>,
    ) -> Result<(), WriteError> {
        let secret = self.manifest(authority);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&secret);
        if term.is_some_and(|term| !term.holds()) {
            return Err(WriteError::NotLeading);
        }
        let call = self.api.patch(&self.name, &params, &patch);
        let written = match timeout(CALL_TIMEOUT, call).await {
            Ok(Ok(secret)) => Ok(secret),
            Ok(Err(kube::Error::Api(status))) if status.is_conflict() => Err(WriteError::Conflict),
            Ok(Err(error)) => Err(WriteError::Failed(short(&error))),
            Err(_) => {
                let seconds = CALL_TIMEOUT.as_secs();
                Err(WriteError::Failed(format!("no answer within {seconds} s")))
            }
        };
        let outcome = written.as_ref().map_or_else(WriteError::as_str, |_| "ok");
        self.metrics.api_call("apply", "secrets", outcome);
        self.learn(&written?);
        Ok(())
    }

    fn manifest(&self, authority: &Authority) -> Value {
        let data: Map<String, Value> = authority
            .data()
            .into_iter()
            .map(|(key, text)| (key.to_owned(), BASE64_STANDARD.encode(&*text).into()))
            .collect();
        let mut metadata = json!({
            "name": self.name,
            "namespace": self.namespace.as_str(),
            "labels": {MANAGED_BY_LABEL: MANAGED_BY, "app.kubernetes.io/name": MANAGED_BY},
            "annotations": authority.annotations(),
            "resourceVersion": NONE_YET,
        });
        let held = self.held.borrow();
        if matches!(held.now, Content::Bad { .. } | Content::Good { .. }) {
            metadata["resourceVersion"] = held.version.number.to_string().into();
            metadata["uid"] = held.version.uid.clone().into();
        }
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "type": SECRET_TYPE,
            "data": data,
        })
    }
}

/// What went wrong, for people, and not at length.
pub(super) fn short(error: &kube::Error) -> String {
    let text = match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    };
    text.chars().take(300).collect()
}

fn version(secret: &Secret) -> Version {
    Version {
        number: number(secret),
        uid: secret.metadata.uid.clone().unwrap_or_default(),
    }
}

fn number(secret: &Secret) -> u64 {
    let version = secret.metadata.resource_version.as_deref();
    version
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}
