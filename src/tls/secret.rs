//! A certificate in a Secret of the webhook's own namespace, watched by name, so that a new one is
//! served within seconds.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokio::{sync::watch, time::sleep};

use super::{
    publisher::{CertPublisher, CertSource},
    serving_cert::{PemNames, PemPair},
};
use crate::{
    cluster::{
        namespace::Namespace,
        watch::{ObjectState, watch_one},
    },
    process::clock::Clock,
    telemetry::error_chain::error_chain,
};

/// How often a certificate that couldn't be served is checked again: it may not have been valid
/// yet, or be better than the one in use once that has expired.
const PERIOD: Duration = Duration::from_mins(1);

/// Serves the certificate of a Secret of the type `kubernetes.io/tls`.
pub struct NamedSecret {
    api: Api<Secret>,
    /// The namespace and name, for the log.
    path: String,
    name: String,
    clock: Arc<dyn Clock>,
}

/// The content of the Secret as the watch reported it.
#[derive(Clone, Default)]
enum Content {
    /// The watch has reported nothing yet.
    #[default]
    Unknown,
    /// There is no Secret.
    Absent,
    /// The Secret has this data.
    Present(Arc<PemPair>),
}

impl NamedSecret {
    /// Serves the certificate of the Secret of this name.
    #[must_use]
    pub fn new(client: Client, namespace: &Namespace, name: String, clock: Arc<dyn Clock>) -> Self {
        Self {
            api: Api::namespaced(client, namespace.as_str()),
            path: format!("{}/{name}", namespace.as_str()),
            name,
            clock,
        }
    }

    async fn follow(&self, content: &watch::Sender<Content>) {
        let api = self.api.clone();
        watch_one("the certificate's Secret", api, &self.name, |news| {
            let found = match news {
                ObjectState::Present(secret) => Content::Present(Arc::new(pem_pair(secret))),
                ObjectState::Absent(_) => Content::Absent,
            };
            content.send_replace(found);
        })
        .await;
    }

    /// Publishes the certificate of the Secret, if it has changed. `in_use` is the one that was
    /// published last.
    fn publish(
        &self,
        content: Content,
        in_use: &mut Option<Arc<PemPair>>,
        publisher: &mut CertPublisher,
    ) {
        let now = self.clock.now();
        let found = match content {
            Content::Unknown => return,
            Content::Absent => {
                let error = format!("there is no Secret {}", self.path);
                return publisher.reject(&error, now);
            }
            Content::Present(found) => found,
        };
        if in_use.as_ref() == Some(&found) {
            return publisher.clear_rejection();
        }
        let (certificate, key) = (
            format!("tls.crt of the Secret {}", self.path),
            format!("tls.key of the Secret {}", self.path),
        );
        let names = PemNames {
            certificate: &certificate,
            key: &key,
        };
        match found.parse(names, now) {
            Ok(cert) => {
                if publisher.publish(cert, &self.path, now) {
                    *in_use = Some(found);
                }
            }
            Err(error) => publisher.reject(&error_chain(&error), now),
        }
    }

    async fn serve(self, mut publisher: CertPublisher) {
        let content = watch::Sender::<Content>::default();
        let mut changes = content.subscribe();
        let serve = async {
            let mut in_use = None;
            loop {
                let found = changes.borrow_and_update().clone();
                self.publish(found, &mut in_use, &mut publisher);
                tokio::select! {
                    // An error would mean that the sender is gone, and this function has it.
                    _ = changes.changed() => {}
                    () = sleep(PERIOD) => {}
                }
            }
        };
        tokio::join!(self.follow(&content), serve);
    }
}

fn pem_pair(mut secret: Secret) -> PemPair {
    let mut take = |key: &str| {
        let bytes = secret.data.as_mut().and_then(|data| data.remove(key));
        bytes.map(|bytes| bytes.0).unwrap_or_default()
    };
    PemPair {
        certificate: take("tls.crt"),
        key: take("tls.key").into(),
    }
}

impl CertSource for NamedSecret {
    fn run(self: Box<Self>, publisher: CertPublisher) -> BoxFuture<'static, ()> {
        self.serve(publisher).boxed()
    }
}
