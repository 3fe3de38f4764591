//! A certificate in a Secret of our namespace, by name: watched, so that a new one is served within seconds.

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    runtime::watcher::{self, Event},
};
use tokio::{sync::watch, time::sleep};

use super::{
    Served, Source,
    pair::{Named, Pair},
};
use crate::{clock::Clock, cluster::watch::watch, namespace::Namespace};

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

/// What is known of it; `None` before anybody has looked.
type Known = Option<Option<Secret>>;

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
        let config = watcher::Config::default().fields(&format!("metadata.name={}", self.name));
        let mut is_listed = false;
        let api = self.api.clone();
        watch(
            "the certificate's Secret",
            api,
            config,
            |event| match event {
                Event::Init => is_listed = false,
                Event::InitApply(secret) => {
                    is_listed = true;
                    known.send_replace(Some(Some(secret)));
                }
                Event::Apply(secret) => {
                    known.send_replace(Some(Some(secret)));
                }
                Event::InitDone if is_listed => {}
                Event::InitDone | Event::Delete(_) => {
                    known.send_replace(Some(None));
                }
            },
        )
        .await;
    }

    /// Serves what the Secret holds. `served` is what it held last that was good.
    fn take(&self, known: &Known, last: &mut Vec<u8>, served: &mut Served) {
        let secret = match known {
            None => return,
            Some(None) => return served.refuse(&format!("there is no Secret {}", self.path)),
            Some(Some(secret)) => secret,
        };
        let data = |key: &str| {
            let data = secret.data.as_ref().and_then(|data| data.get(key));
            data.map(|bytes| bytes.0.as_slice()).unwrap_or_default()
        };
        let (certificate, key) = (
            format!("tls.crt of the Secret {}", self.path),
            format!("tls.key of the Secret {}", self.path),
        );
        let named = Named {
            certificate: &certificate,
            key: &key,
        };
        if data("tls.crt") == last.as_slice() {
            return served.settled();
        }
        match Pair::read(data("tls.crt"), data("tls.key"), named, self.clock.now()) {
            Ok(pair) => {
                data("tls.crt").clone_into(last);
                served.offer(pair, &self.path);
            }
            Err(error) => served.refuse(&error),
        }
    }

    async fn serve(self, mut served: Served) {
        let known = watch::Sender::<Known>::default();
        let mut changes = known.subscribe();
        let serve = async {
            let mut last = Vec::new();
            loop {
                let secret = changes.borrow_and_update().clone();
                self.take(&secret, &mut last, &mut served);
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

impl Source for NamedSecret {
    fn run(self: Box<Self>, served: Served) -> BoxFuture<'static, ()> {
        self.serve(served).boxed()
    }
}
