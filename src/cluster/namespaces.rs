//! Which namespaces are opted in: a metadata watch, and a live read for one that was labelled a moment ago.

use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};

use k8s_openapi::api::core::v1::Namespace as Object;
use kube::{Api, Client, Resource as _, ResourceExt as _, runtime::watcher::Event};
use moka::future::Cache;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use super::{
    changes::Changes,
    metrics::ClusterMetrics,
    namespace::{Namespace, NamespaceSettings, ROLE_ANNOTATION},
};
use crate::{
    cluster::{
        object::Metadata,
        watch::{Lists, watch},
    },
    process::readiness::Condition,
};

/// The label that opts a namespace in. The registration's selector and the guard name the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OptIn {
    /// The label's key.
    pub label: String,
    /// The label's value.
    pub value: String,
}

/// How long the answer of a live read is remembered: until the watch has surely seen the label.
const LIVE_TTL: Duration = Duration::from_secs(5);
/// How long a live read may take.
const LIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Live answers remembered. Whoever reaches the port may name namespaces; this bounds what that costs.
const MAX_LIVE: u64 = 10_000;
/// Live reads for admissions at the same time; and as many beside them for whoever else looks, mostly the leader. Anybody
/// who reaches the port may name namespaces, and the leader is not to wait for those.
const MAX_READS: usize = 16;

/// The opted-in namespaces; clones share them.
#[derive(Clone)]
pub struct Namespaces(Arc<Inner>);

struct Inner {
    api: Api<Metadata<Object>>,
    opt_in: OptIn,
    known: RwLock<HashMap<Namespace, NamespaceSettings>>,
    live: Cache<Namespace, Option<NamespaceSettings>>,
    admission_reads: Semaphore,
    looks: Semaphore,
    changes: Changes,
    metrics: Arc<ClusterMetrics>,
}

impl Namespaces {
    /// An empty store over the cluster's namespaces.
    #[must_use]
    pub fn new(
        client: Client,
        opt_in: OptIn,
        changes: Changes,
        metrics: Arc<ClusterMetrics>,
    ) -> Self {
        Self(Arc::new(Inner {
            api: Api::all(client),
            opt_in,
            known: RwLock::default(),
            live: Cache::builder()
                .max_capacity(MAX_LIVE)
                .time_to_live(LIVE_TTL)
                .build(),
            admission_reads: Semaphore::new(MAX_READS),
            looks: Semaphore::new(MAX_READS),
            changes,
            metrics,
        }))
    }

    /// Keeps the store filled until the future is dropped.
    pub async fn run(&self, lists: Lists, synced: Condition) {
        let OptIn { label, value } = &self.0.opt_in;
        let config = lists.config().labels(&format!("{label}={value}"));
        let mut listed = HashMap::new();
        watch("namespaces", self.0.api.clone(), config, |event| {
            match event {
                Event::Init => listed.clear(),
                Event::InitApply(object) => listed.extend(entry(&object)),
                Event::InitDone => {
                    let before =
                        std::mem::replace(&mut *self.known_mut(), std::mem::take(&mut listed));
                    self.tell_differences(&before);
                    synced.hold();
                }
                Event::Apply(object) => {
                    if let Some((namespace, said)) = entry(&object) {
                        let before = self.known_mut().insert(namespace.clone(), said.clone());
                        if before != Some(said) {
                            self.0.changes.notify(&namespace);
                        }
                    }
                }
                Event::Delete(object) => {
                    if let Some((namespace, _)) = entry(&object) {
                        self.known_mut().remove(&namespace);
                        self.0.changes.notify(&namespace);
                    }
                }
            }
            let count = self.known().len();
            self.0
                .metrics
                .namespaces
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        })
        .await;
    }

    fn tell_differences(&self, before: &HashMap<Namespace, NamespaceSettings>) {
        let now = self.known();
        for (namespace, said) in now.iter() {
            if before.get(namespace) != Some(said) {
                self.0.changes.notify(namespace);
            }
        }
        for namespace in before.keys() {
            if !now.contains_key(namespace) {
                self.0.changes.notify(namespace);
            }
        }
    }

    /// What the watch knows of a namespace.
    #[must_use]
    pub fn peek(&self, namespace: &Namespace) -> Option<NamespaceSettings> {
        self.known().get(namespace).cloned()
    }

    /// Returns the UID of an opted-in namespace that the watch knows.
    #[must_use]
    pub fn uid(&self, namespace: &Namespace) -> Option<Arc<str>> {
        self.known().get(namespace).map(|known| known.uid.clone())
    }

    /// The opted-in namespaces that the watch knows.
    #[must_use]
    pub fn names(&self) -> Vec<Namespace> {
        self.known().keys().cloned().collect()
    }

    /// Asks the API server itself what has become of a namespace. Admissions' reads never hold this up.
    pub async fn look(&self, namespace: &Namespace, deadline: Instant) -> Result<Look, ReadError> {
        self.look_by(&self.0.looks, namespace, deadline).await
    }

    async fn look_by(
        &self,
        permits: &Semaphore,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Result<Look, ReadError> {
        let Some(object) = self.get(permits, namespace, deadline).await? else {
            return Ok(Look::Absent);
        };
        let OptIn { label, value } = &self.0.opt_in;
        Ok(if object.labels().get(label) == Some(value) {
            Look::OptedIn(settings_of(&object))
        } else {
            Look::OptedOut(settings_of(&object))
        })
    }

    fn known(&self) -> RwLockReadGuard<'_, HashMap<Namespace, NamespaceSettings>> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, HashMap<Namespace, NamespaceSettings>> {
        self.0.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// What an opted-in namespace says about itself; `None` if it is not opted in. A namespace that the watch doesn't
    /// know is read live, once for all who ask at the same time; if that fails before `deadline`, it is not opted in as
    /// far as we know.
    pub async fn opted_in(
        &self,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Option<NamespaceSettings> {
        if let Some(known) = self.known().get(namespace) {
            return Some(known.clone());
        }
        let deadline = deadline.min(Instant::now() + LIVE_TIMEOUT);
        // Whoever asks first reads for all, by a deadline of its own: it may be later than ours, and it may be too soon.
        loop {
            let read = self
                .0
                .live
                .try_get_with_by_ref(namespace, self.read(namespace, deadline));
            let error = match timeout_at(deadline, read).await {
                Ok(Ok(opted_in)) => return opted_in,
                Ok(Err(error)) => error,
                Err(_) => Arc::new(ReadError::Timeout),
            };
            let was_anothers = matches!(*error, ReadError::Timeout) && Instant::now() < deadline;
            if !was_anothers {
                tracing::warn!(%namespace, %error, "reading the namespace's label failed");
                return None;
            }
        }
    }

    async fn read(
        &self,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Result<Option<NamespaceSettings>, ReadError> {
        let permits = &self.0.admission_reads;
        Ok(match self.look_by(permits, namespace, deadline).await? {
            Look::OptedIn(said) => Some(said),
            Look::OptedOut(_) | Look::Absent => None,
        })
    }

    async fn get(
        &self,
        permits: &Semaphore,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Result<Option<Metadata<Object>>, ReadError> {
        let read = timeout_at(deadline, async {
            // Neither semaphore is ever closed.
            let _permit = permits.acquire().await;
            self.0.api.get_opt(namespace.as_str()).await
        });
        let result = read.await;
        let outcome = match &result {
            Ok(Ok(_)) => "ok",
            Ok(Err(_)) => "error",
            Err(_) => "timeout",
        };
        self.0
            .metrics
            .api_calls
            .count_call("get", "namespaces", outcome);
        result
            .map_err(|_| ReadError::Timeout)?
            .map_err(|error| ReadError::Api(Box::new(error)))
    }
}

/// What has become of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// It is opted in.
    OptedIn(NamespaceSettings),
    /// It is there and not opted in.
    OptedOut(NamespaceSettings),
    /// It is not there.
    Absent,
}

fn entry(object: &Metadata<Object>) -> Option<(Namespace, NamespaceSettings)> {
    Some((Namespace::parse(&object.name_any())?, settings_of(object)))
}

/// Returns the settings in a namespace's metadata, whether or not it is opted in.
#[must_use]
pub fn settings_of(object: &Metadata<Object>) -> NamespaceSettings {
    let role = object.annotations().get(ROLE_ANNOTATION);
    NamespaceSettings {
        uid: object.meta().uid.as_deref().unwrap_or_default().into(),
        role: role.map(|text| text.as_str().into()),
        is_terminating: object.meta().deletion_timestamp.is_some(),
    }
}

/// Why a namespace couldn't be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No answer in time.
    #[error("no response in time")]
    Timeout,
    /// The API server's error, or none could be reached.
    #[error(transparent)]
    Api(Box<kube::Error>),
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::{Request, Response};
    use http_body_util::Full;
    use hyper::body::Bytes;
    use kube::client::Body;
    use serde_json::json;

    use super::*;
    use crate::cli::metrics::Metrics;

    fn namespace(name: &str) -> Namespace {
        Namespace::parse(name).expect("a name")
    }

    /// Over an API server that never answers about strangers.
    fn namespaces() -> Namespaces {
        let service = tower::service_fn(|request: Request<Body>| async move {
            if request.uri().path().contains("stranger") {
                std::future::pending::<()>().await;
            }
            let object = json!({
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {"name": "team", "labels": {"ecr-injector.dev/inject": "enabled"}},
            });
            let body = Full::<Bytes>::from(object.to_string());
            Ok::<_, Infallible>(Response::new(body))
        });
        let client = Client::new(service, "default");
        let opt_in = OptIn {
            label: "ecr-injector.dev/inject".to_owned(),
            value: "enabled".to_owned(),
        };
        Namespaces::new(
            client,
            opt_in,
            Changes::default(),
            Metrics::default().cluster,
        )
    }

    #[tokio::test(start_paused = true)]
    async fn leaders_look_waits_for_no_admission() {
        let namespaces = namespaces();
        let strangers = (0..2 * MAX_READS).map(|number| {
            let (namespaces, name) = (namespaces.clone(), format!("stranger-{number}"));
            async move {
                let deadline = Instant::now() + LIVE_TIMEOUT;
                namespaces.opted_in(&namespace(&name), deadline).await
            }
        });
        let look = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(namespaces.0.admission_reads.available_permits(), 0);
            let deadline = Instant::now() + Duration::from_millis(100);
            namespaces.look(&namespace("team"), deadline).await
        };
        let (strangers, look) = tokio::join!(futures::future::join_all(strangers), look);
        assert!(strangers.iter().all(Option::is_none));
        assert!(matches!(look, Ok(Look::OptedIn(_))), "{look:?}");
    }
}
