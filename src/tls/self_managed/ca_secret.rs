//! The CA Secret: watches it, creates it, and writes it in place.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::Status,
};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::{
    cluster::{
        call::ApiCall,
        lease::Leadership,
        namespace::Namespace,
        ownership::{FIELD_MANAGER, MANAGED_BY, MANAGED_BY_LABEL, is_managed},
        watch::{ObjectState, version, watch_one},
        write::{WriteError, write},
    },
    telemetry::error_chain::error_chain,
    tls::{
        authority::{Authority, SECRET_TYPE},
        metrics::TlsMetrics,
        rotation::Lifetimes,
    },
};

/// The precondition that there is no Secret yet: the API server creates one, or answers with a
/// conflict.
const NONE_YET: &str = "1";

/// Watches and writes the CA Secret.
pub struct CaSecret {
    api: Api<Secret>,
    namespace: Namespace,
    name: String,
    lifetimes: Lifetimes,
    metrics: Arc<TlsMetrics>,
    state: watch::Sender<SecretState>,
}

/// The known state of the Secret.
#[derive(Debug, Clone, Default)]
pub struct SecretState {
    /// The current content.
    pub content: Content,
    /// The last valid authority.
    pub last_valid: Option<Arc<Authority>>,
    version: Version,
}

/// The content of the Secret.
#[derive(Debug, Clone, Default)]
pub enum Content {
    /// The watch has reported nothing yet.
    #[default]
    Unknown,
    /// There is no Secret.
    Absent,
    /// The Secret holds no valid authority.
    Invalid {
        /// The reason.
        why: Arc<str>,
        /// Whether the Secret has ecr-injector's label, so that it may be written.
        is_managed: bool,
    },
    /// The Secret holds an authority.
    Valid {
        /// The authority.
        authority: Arc<Authority>,
        /// Whether the Secret has exactly the data and the label that ecr-injector would write.
        is_complete: bool,
    },
}

/// A version of the Secret.
#[derive(Debug, Clone, Default)]
struct Version {
    number: u64,
    uid: String,
}

impl CaSecret {
    /// Returns the Secret of this name, of which nothing is known yet.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: Namespace,
        name: String,
        lifetimes: Lifetimes,
        metrics: Arc<TlsMetrics>,
    ) -> Self {
        Self {
            api: Api::namespaced(client, namespace.as_str()),
            namespace,
            name,
            lifetimes,
            metrics,
            state: watch::Sender::default(),
        }
    }

    /// Returns the namespace and name, for messages.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}", self.namespace.as_str(), self.name)
    }

    /// Returns a receiver of each change of the state.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<SecretState> {
        self.state.subscribe()
    }

    /// Watches the Secret until the future is dropped.
    pub async fn follow(&self) {
        watch_one(
            "the CA",
            self.api.clone(),
            &self.name,
            |state| match state {
                ObjectState::Present(secret) => self.observe(&secret),
                ObjectState::Absent(last) => {
                    self.mark_deleted(last.map_or(u64::MAX, |last| version(&last.metadata)));
                }
            },
        )
        .await;
    }

    /// Takes a version of the Secret, unless a newer one is known.
    fn observe(&self, secret: &Secret) {
        let version = Version {
            number: version(&secret.metadata),
            uid: secret.metadata.uid.clone().unwrap_or_default(),
        };
        let content = match Authority::from_secret(secret, self.lifetimes) {
            Ok(authority) => Content::Valid {
                is_complete: is_managed(&secret.metadata) && authority.is_stored_in(secret),
                authority: Arc::new(authority),
            },
            Err(error) => Content::Invalid {
                why: error_chain(&error).into(),
                is_managed: is_managed(&secret.metadata),
            },
        };
        self.state.send_if_modified(|state| {
            let is_new = state.version.number < version.number;
            if is_new {
                if let Content::Valid { authority, .. } = &content {
                    state.last_valid = Some(authority.clone());
                    self.metrics.certificate_expiry("ca", authority.not_after());
                }
                (state.content, state.version) = (content, version);
            }
            is_new
        });
    }

    /// Notes that the Secret was deleted at a version, unless a newer one is known.
    fn mark_deleted(&self, number: u64) {
        self.state.send_if_modified(|state| {
            let is_absent = matches!(state.content, Content::Absent);
            let is_new = !is_absent && state.version.number <= number;
            if is_new {
                state.content = Content::Absent;
            }
            is_new
        });
    }

    /// Writes an authority over the state by which that was decided: where there was no Secret only
    /// if there still is none, else only over that very version. A replica that isn't the leader may
    /// only create the first one.
    pub(super) async fn write(
        &self,
        authority: &Authority,
        over: &SecretState,
        term: Option<&Leadership>,
    ) -> Result<(), WriteError> {
        let secret = self.manifest(authority, over);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&secret);
        if term.is_some_and(|term| !term.holds()) {
            return Err(WriteError::NotLeading);
        }
        let patch = self.api.patch(&self.name, &params, &patch);
        let call = ApiCall::new(&self.metrics.api_calls, "apply", "secrets");
        self.observe(&write(call, patch, Status::is_conflict).await?);
        Ok(())
    }

    fn manifest(&self, authority: &Authority, over: &SecretState) -> Value {
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
        if matches!(
            over.content,
            Content::Invalid { .. } | Content::Valid { .. }
        ) {
            metadata["resourceVersion"] = over.version.number.to_string().into();
            metadata["uid"] = over.version.uid.clone().into();
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
