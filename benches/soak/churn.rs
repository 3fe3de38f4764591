//! Namespaces and Pods that come and go, created by a `ServiceAccount` and not as an admin, whose
//! calls the API server would prefer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::{Client, ResourceExt as _};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::support::ControlPlane;
use crate::support::bed::image;
use crate::support::installation::{OPT_IN, PULL_SECRET};
use crate::support::pods::{pod, pull_secrets};

const REGIONS: [&str; 3] = ["eu-west-1", "us-east-1", "ap-southeast-2"];
const CREATORS: usize = 4;
/// How often each creator begins a Pod.
const POD_PACE: Duration = Duration::from_millis(500);
/// How often a namespace is replaced by a new one.
const NAMESPACE_PACE: Duration = Duration::from_secs(10);
/// How many namespaces are made at a time at the start.
const AT_A_TIME: usize = 8;

/// The load, which goes on until it is stopped.
pub struct Churn {
    stop: CancellationToken,
    pods: Arc<Counts>,
    workers: JoinSet<()>,
}

/// The Pods so far.
#[derive(Default)]
struct Counts {
    stored: AtomicUsize,
    without: AtomicUsize,
    failed: AtomicUsize,
}

/// How many Pods were stored, how many of those without the reference, and how many were not.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pods {
    pub stored: usize,
    pub without: usize,
    pub failed: usize,
}

type Namespaces = Arc<Mutex<Vec<String>>>;

impl Churn {
    /// Makes the namespaces with a first Pod each, but for those that are there, and begins.
    pub async fn start(plane: &ControlPlane, count: usize) -> Self {
        let creator = plane.pod_creator().await;
        let pods = Arc::<Counts>::default();
        let mut namespaces = opted_in(&Api::all(plane.admin().await)).await.unwrap();
        let made = futures::stream::iter(namespaces.len()..count).map(async |number| {
            let namespace = plane.namespace("soak", &[OPT_IN]).await;
            pods.create(&creator, &namespace, number).await;
            namespace
        });
        namespaces.extend(
            made.buffer_unordered(AT_A_TIME)
                .collect::<Vec<String>>()
                .await,
        );
        let namespaces = Arc::new(Mutex::new(namespaces));
        let stop = CancellationToken::new();
        let mut workers = JoinSet::new();
        for worker in 0..CREATORS {
            let (creator, namespaces) = (creator.clone(), namespaces.clone());
            let (pods, stop) = (pods.clone(), stop.clone());
            workers
                .spawn(async move { pods.keep_coming(&creator, &namespaces, worker, &stop).await });
        }
        let (admin, stopped) = (plane.admin().await, stop.clone());
        let counts = pods.clone();
        workers
            .spawn(async move { replace(&admin, &creator, &namespaces, &counts, &stopped).await });
        Self {
            stop,
            pods,
            workers,
        }
    }

    pub fn pods(&self) -> Pods {
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        Pods {
            stored: count(&self.pods.stored),
            without: count(&self.pods.without),
            failed: count(&self.pods.failed),
        }
    }

    pub async fn stop(mut self) -> Pods {
        self.stop.cancel();
        while let Some(ended) = self.workers.join_next().await {
            ended.unwrap();
        }
        self.pods()
    }
}

impl Counts {
    /// Creates a Pod, and deletes it once it was seen.
    async fn create(&self, creator: &Client, namespace: &str, number: usize) {
        let name = format!("web-{number}");
        let object = pod(&name, &image(REGIONS[number % REGIONS.len()]));
        let pods: Api<Pod> = Api::namespaced(creator.clone(), namespace);
        let Ok(stored) = pods.create(&PostParams::default(), &object).await else {
            // The API server is away, or the namespace is being deleted.
            self.failed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.stored.fetch_add(1, Ordering::Relaxed);
        if !pull_secrets(&stored).contains(&PULL_SECRET) {
            self.without.fetch_add(1, Ordering::Relaxed);
        }
        // One that stays is deleted with its namespace.
        let _ = pods
            .delete(&name, &DeleteParams::default().grace_period(0))
            .await;
    }

    async fn keep_coming(
        &self,
        creator: &Client,
        namespaces: &Namespaces,
        worker: usize,
        stop: &CancellationToken,
    ) {
        for number in (worker..).step_by(CREATORS) {
            let begun = Instant::now();
            let namespace = {
                let namespaces = namespaces.lock().await;
                namespaces[number * 37 % namespaces.len()].clone()
            };
            self.create(creator, &namespace, number).await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = sleep(POD_PACE.saturating_sub(begun.elapsed())) => {}
            }
        }
    }
}

/// Returns the namespaces that are opted in, but for those that are being deleted.
pub async fn opted_in(namespaces: &Api<Namespace>) -> kube::Result<Vec<String>> {
    let opted_in = ListParams::default().labels(&format!("{}={}", OPT_IN.0, OPT_IN.1));
    let listed = namespaces.list_metadata(&opted_in).await?;
    let living = listed
        .into_iter()
        .filter(|namespace| namespace.metadata.deletion_timestamp.is_none());
    Ok(living.map(|namespace| namespace.name_any()).collect())
}

/// Deletes one namespace after the other, and makes another in its place, with a first Pod.
async fn replace(
    admin: &Client,
    creator: &Client,
    namespaces: &Namespaces,
    pods: &Counts,
    stop: &CancellationToken,
) {
    let api: Api<Namespace> = Api::all(admin.clone());
    for number in 0.. {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(NAMESPACE_PACE) => {}
        }
        let object = serde_json::json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"generateName": "soak-new-", "labels": {OPT_IN.0: OPT_IN.1}},
        });
        let object = serde_json::from_value(object).unwrap();
        let Ok(made) = api.create(&PostParams::default(), &object).await else {
            continue;
        };
        let name = made.name_any();
        // Its ServiceAccount is made by a controller, and a Pod before that is rejected.
        sleep(Duration::from_secs(2)).await;
        pods.create(creator, &name, number).await;
        let mut namespaces = namespaces.lock().await;
        let place = number % namespaces.len();
        let old = std::mem::replace(&mut namespaces[place], name);
        drop(namespaces);
        // One that can't be deleted now stays, with its pull secret.
        let _ = api.delete(&old, &DeleteParams::default()).await;
    }
}
