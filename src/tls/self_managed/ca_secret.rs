//! The CA Secret: watched, made, and written in place.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::{
    cluster::{
        lease::Leadership,
        namespace::Namespace,
        ownership::{FIELD_MANAGER, MANAGED_BY, MANAGED_BY_LABEL, is_managed},
        watch::{News, version, watch_one},
        write::{WriteError, call},
    },
    tls::{
        authority::{Authority, SECRET_TYPE},
        metrics::TlsMetrics,
        rotation::Lifetimes,
    },
};

/// As a precondition: that there is none yet. The API server creates it, or answers with a conflict.
const NONE_YET: &str = "1";

/// Which one, and who is told.
pub struct CaSecret {
    api: Api<Secret>,
    namespace: Namespace,
    name: String,
    lifetimes: Lifetimes,
    metrics: Arc<TlsMetrics>,
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

impl CaSecret {
    /// The Secret of this name. Nothing is known of it yet.
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
        watch_one("the CA", self.api.clone(), &self.name, |news| match news {
            News::Is(secret) => self.learn(&secret),
            News::Gone(last) => {
                self.lose(last.map_or(u64::MAX, |last| version(&last.metadata)));
            }
        })
        .await;
    }

    fn learn(&self, secret: &Secret) {
        let version = Version {
            number: version(&secret.metadata),
            uid: secret.metadata.uid.clone().unwrap_or_default(),
        };
        let now = match Authority::of(secret, self.lifetimes) {
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
    pub(super) async fn write(
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
        let written = call(self.api.patch(&self.name, &params, &patch), |status| {
            status.is_conflict()
        });
        let written = written.await;
        let outcome = written.as_ref().map_or_else(WriteError::as_str, |_| "ok");
        self.metrics
            .api_calls
            .count_call("apply", "secrets", outcome);
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
