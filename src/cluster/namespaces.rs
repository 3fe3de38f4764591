//! The opted-in namespaces: a metadata watch, and a live read for one that was labelled a moment
//! ago.

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
    namespace::{Namespace, NamespaceSettings, OptIn, ROLE_ANNOTATION},
};
use crate::{
    cluster::{
        call::{ApiCall, CallFailure, CallOutcome},
        object::Metadata,
        watch::{Lists, watch},
    },
    process::readiness::Condition,
};

/// How long the result of a live read is cached: until the watch has surely seen the label.
const LIVE_TTL: Duration = Duration::from_secs(5);
/// How long a live read may take.
const LIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// The most cached results. A client that reaches the port can name any namespace; this bounds the
/// memory.
const MAX_CACHED: u64 = 10_000;
/// The most live reads at the same time for admissions, and as many for other callers, mostly the
/// leader. A client that reaches the port can name any namespace, and the leader must not wait for
/// those.
const MAX_READS: usize = 16;

/// The opted-in namespaces, shared by clones.
#[derive(Clone)]
pub struct Namespaces(Arc<Inner>);

struct Inner {
    api: Api<Metadata<Object>>,
    opt_in: OptIn,
    known: RwLock<HashMap<Namespace, NamespaceSettings>>,
    live: Cache<Namespace, Option<NamespaceSettings>>,
    admission_reads: Semaphore,
    other_reads: Semaphore,
    changes: Changes,
    metrics: Arc<ClusterMetrics>,
}

impl Namespaces {
    /// Returns an empty store of the cluster's namespaces.
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
                .max_capacity(MAX_CACHED)
                .time_to_live(LIVE_TTL)
                .build(),
            admission_reads: Semaphore::new(MAX_READS),
            other_reads: Semaphore::new(MAX_READS),
            changes,
            metrics,
        }))
    }

    /// Fills the store until the future is dropped; `synced` holds after the first list.
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
                    self.notify_differences(&before);
                    synced.hold();
                }
                Event::Apply(object) => {
                    if let Some((namespace, settings)) = entry(&object) {
                        let before = self.known_mut().insert(namespace.clone(), settings.clone());
                        if before != Some(settings) {
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

    fn notify_differences(&self, before: &HashMap<Namespace, NamespaceSettings>) {
        let now = self.known();
        for (namespace, settings) in now.iter() {
            if before.get(namespace) != Some(settings) {
                self.0.changes.notify(namespace);
            }
        }
        for namespace in before.keys() {
            if !now.contains_key(namespace) {
                self.0.changes.notify(namespace);
            }
        }
    }

    /// Returns a namespace's settings, if the watch has it as opted in.
    #[must_use]
    pub fn peek(&self, namespace: &Namespace) -> Option<NamespaceSettings> {
        self.known().get(namespace).cloned()
    }

    /// Returns without a call what is known about a namespace, from the watch or a recent read:
    /// its settings, or `Some(None)` if it is not opted in.
    pub async fn recall(&self, namespace: &Namespace) -> Option<Option<NamespaceSettings>> {
        if let Some(settings) = self.peek(namespace) {
            return Some(Some(settings));
        }
        self.0.live.get(namespace).await
    }

    /// Returns the UID of a namespace that the watch has as opted in.
    #[must_use]
    pub fn uid(&self, namespace: &Namespace) -> Option<Arc<str>> {
        self.known().get(namespace).map(|known| known.uid.clone())
    }

    /// Returns the names of the opted-in namespaces of the watch.
    #[must_use]
    pub fn names(&self) -> Vec<Namespace> {
        self.known().keys().cloned().collect()
    }

    /// Reads a namespace from the API server. Admissions' reads never delay this one.
    pub async fn read(
        &self,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Result<NamespaceState, ReadError> {
        let permits = &self.0.other_reads;
        self.read_with(permits, namespace, deadline).await
    }

    /// Reads a namespace like [`Self::read`], and stores what it shows, for a process that watches no
    /// namespaces.
    pub async fn load(&self, namespace: &Namespace, deadline: Instant) -> Result<(), ReadError> {
        if let NamespaceState::OptedIn(settings) = self.read(namespace, deadline).await? {
            self.known_mut().insert(namespace.clone(), settings);
        }
        Ok(())
    }

    async fn read_with(
        &self,
        permits: &Semaphore,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Result<NamespaceState, ReadError> {
        let Some(object) = self.get(permits, namespace, deadline).await? else {
            return Ok(NamespaceState::Absent);
        };
        let OptIn { label, value } = &self.0.opt_in;
        Ok(if object.labels().get(label) == Some(value) {
            NamespaceState::OptedIn(settings_of(&object))
        } else {
            NamespaceState::OptedOut(settings_of(&object))
        })
    }

    fn known(&self) -> RwLockReadGuard<'_, HashMap<Namespace, NamespaceSettings>> {
        self.0.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, HashMap<Namespace, NamespaceSettings>> {
        self.0.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an opted-in namespace's settings; `None` if the namespace is not opted in. A
    /// namespace that the watch doesn't have is read live, once for all callers at the same time;
    /// an error means that nothing is known about the namespace.
    pub async fn opted_in(
        &self,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Result<Option<NamespaceSettings>, Arc<ReadError>> {
        if let Some(known) = self.known().get(namespace) {
            return Ok(Some(known.clone()));
        }
        let deadline = deadline.min(Instant::now() + LIVE_TIMEOUT);
        // The first caller reads for all, with its own deadline, which may be later or earlier than
        // this caller's.
        loop {
            let read = self
                .0
                .live
                .try_get_with_by_ref(namespace, self.read_settings(namespace, deadline));
            let error = match timeout_at(deadline, read).await {
                Ok(Ok(opted_in)) => return Ok(opted_in),
                Ok(Err(error)) => error,
                Err(_) => Arc::new(ReadError::Timeout),
            };
            let was_other_deadline =
                matches!(*error, ReadError::Timeout) && Instant::now() < deadline;
            if !was_other_deadline {
                return Err(error);
            }
        }
    }

    async fn read_settings(
        &self,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Result<Option<NamespaceSettings>, ReadError> {
        let permits = &self.0.admission_reads;
        Ok(match self.read_with(permits, namespace, deadline).await? {
            NamespaceState::OptedIn(settings) => Some(settings),
            NamespaceState::OptedOut(_) | NamespaceState::Absent => None,
        })
    }

    async fn get(
        &self,
        permits: &Semaphore,
        namespace: &Namespace,
        deadline: Instant,
    ) -> Result<Option<Metadata<Object>>, ReadError> {
        let call = ApiCall::new(&self.0.metrics.api_calls, "get", "namespaces");
        let read = async {
            // Neither semaphore is ever closed.
            let _permit = permits.acquire().await;
            self.0.api.get_opt(namespace.as_str()).await
        };
        call.send(deadline, read, ReadError::from).await
    }
}

/// The state of a namespace, as the API server has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamespaceState {
    /// The namespace is opted in.
    OptedIn(NamespaceSettings),
    /// The namespace exists and is not opted in.
    OptedOut(NamespaceSettings),
    /// There is no such namespace.
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

/// Error of reading a namespace.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The API server did not respond in time.
    #[error("no response in time")]
    Timeout,
    /// The API server returned an error, or can't be reached.
    #[error(transparent)]
    Api(Box<kube::Error>),
}

impl CallOutcome for ReadError {
    fn as_str(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Api(_) => "error",
        }
    }
}

impl From<CallFailure> for ReadError {
    fn from(failure: CallFailure) -> Self {
        match failure {
            CallFailure::Timeout => Self::Timeout,
            CallFailure::Kube(error) => Self::Api(Box::new(error)),
        }
    }
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

    /// Returns a store over an API server that never responds for namespaces named `stranger-*`.
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
    async fn leaders_read_waits_for_no_admission() {
        let namespaces = namespaces();
        let strangers = (0..2 * MAX_READS).map(|number| {
            let (namespaces, name) = (namespaces.clone(), format!("stranger-{number}"));
            async move {
                let deadline = Instant::now() + LIVE_TIMEOUT;
                namespaces.opted_in(&namespace(&name), deadline).await
            }
        });
        let read = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(namespaces.0.admission_reads.available_permits(), 0);
            let deadline = Instant::now() + Duration::from_millis(100);
            namespaces.read(&namespace("team"), deadline).await
        };
        let (strangers, read) = tokio::join!(futures::future::join_all(strangers), read);
        assert!(strangers.iter().all(Result::is_err));
        assert!(matches!(read, Ok(NamespaceState::OptedIn(_))), "{read:?}");
    }
}
