//! A certificate in a Secret of our namespace, by name: watched, so that a new one is served within seconds.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokio::{sync::watch, time::sleep};

use super::{
    CertPublisher, Source,
    pair::{Material, Named},
};
use crate::{
    cluster::{
        namespace::Namespace,
        watch::{News, watch_one},
    },
    process::clock::Clock,
};

/// How often one that couldn't be served is looked at again: it may not have been good yet.
const PERIOD: Duration = Duration::from_mins(1);

/// A Secret of the type `kubernetes.io/tls`.
pub struct NamedSecret {
    api: Api<Secret>,
    /// For people.
    path: String,
    name: String,
    clock: Arc<dyn Clock>,
}

/// What it holds: `None` before anybody has looked, and nothing if there is no such Secret.
type Known = Option<Option<Arc<Material>>>;

impl NamedSecret {
    /// The Secret of this name.
    #[must_use]
    pub fn new(client: Client, namespace: &Namespace, name: String, clock: Arc<dyn Clock>) -> Self {
        Self {
            api: Api::namespaced(client, namespace.as_str()),
            path: format!("{}/{name}", namespace.as_str()),
            name,
            clock,
        }
    }

    async fn follow(&self, known: &watch::Sender<Known>) {
        let api = self.api.clone();
        watch_one("the certificate's Secret", api, &self.name, |news| {
            let found = match news {
                News::Is(secret) => Some(Arc::new(material(secret))),
                News::Gone(_) => None,
            };
            known.send_replace(Some(found));
        })
        .await;
    }

    /// Serves what the Secret holds. `last` is what it held last that was good.
    fn take(&self, known: Known, last: &mut Option<Arc<Material>>, served: &mut CertPublisher) {
        let found = match known {
            None => return,
            Some(None) => return served.refuse(&format!("there is no Secret {}", self.path)),
            Some(Some(found)) => found,
        };
        if last.as_ref() == Some(&found) {
            return served.settled();
        }
        let (certificate, key) = (
            format!("tls.crt of the Secret {}", self.path),
            format!("tls.key of the Secret {}", self.path),
        );
        let named = Named {
            certificate: &certificate,
            key: &key,
        };
        match found.pair(named, self.clock.now()) {
            Ok(pair) => {
                *last = Some(found);
                served.offer(pair, &self.path);
            }
            Err(error) => served.refuse(&error),
        }
    }

    async fn serve(self, mut served: CertPublisher) {
        let known = watch::Sender::<Known>::default();
        let mut changes = known.subscribe();
        let serve = async {
            let mut last = None;
            loop {
                let found = changes.borrow_and_update().clone();
                self.take(found, &mut last, &mut served);
                tokio::select! {
                    // An error would say that the sender is gone, and it is ours.
                    _ = changes.changed() => {}
                    () = sleep(PERIOD) => {}
                }
            }
        };
        tokio::join!(self.follow(&known), serve);
    }
}

fn material(mut secret: Secret) -> Material {
    let mut take = |key: &str| {
        let bytes = secret.data.as_mut().and_then(|data| data.remove(key));
        bytes.map(|bytes| bytes.0).unwrap_or_default()
    };
    Material {
        certificate: take("tls.crt"),
        key: take("tls.key").into(),
    }
}

impl Source for NamedSecret {
    fn run(self: Box<Self>, served: CertPublisher) -> BoxFuture<'static, ()> {
        self.serve(served).boxed()
    }
}
