//! Keeps a watch running: events go to a sink, errors are waited out.

use std::fmt::Debug;

use futures::StreamExt as _;
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;

/// Watches until the future is dropped. After an error kube's watcher goes on where it stood, or lists anew; the pause
/// grows from 0.8 s to 30 s while errors last. `name` is for the log.
pub async fn watch<K>(
    name: &'static str,
    api: Api<K>,
    config: watcher::Config,
    mut sink: impl FnMut(Event<K>),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => sink(event),
            Err(error) => tracing::warn!(watch = name, %error, "a watch failed and is tried again"),
        }
    }
}
