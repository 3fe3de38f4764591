//! People who create Pods all the time, by a `ServiceAccount` and not as an admin, whose calls the
//! API server would prefer. Only stored Pods count: a failure policy of Ignore hides every error.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::bed::{create, image};
use super::control_plane::ControlPlane;
use super::installation::PULL_SECRET;
use super::pods::{pod, pull_secrets};

/// The creators of Pods, which run until they are stopped.
pub struct Creators {
    stop: CancellationToken,
    counts: Arc<Counts>,
    workers: JoinSet<()>,
}

/// The counts of the creators' Pods, by outcome.
#[derive(Debug, Default, Clone, Copy)]
pub struct Created {
    pub stored: usize,
    pub without_our_entry: usize,
    pub failed: usize,
    /// Answered with 429, and tried again.
    pub turned_away: usize,
}

#[derive(Default)]
struct Counts {
    stored: AtomicUsize,
    without: AtomicUsize,
    failed: AtomicUsize,
    turned_away: AtomicUsize,
}

impl Creators {
    /// So many, each of which begins a Pod at this pace, in these namespaces by turns.
    pub async fn start(
        plane: &ControlPlane,
        namespaces: &[String],
        count: usize,
        pace: Duration,
    ) -> Self {
        let (stop, counts) = (CancellationToken::new(), Arc::<Counts>::default());
        let mut workers = JoinSet::new();
        let client = plane.pod_creator().await;
        for worker in 0..count {
            let (client, counts, stop) = (client.clone(), counts.clone(), stop.clone());
            let namespace = namespaces[worker % namespaces.len()].clone();
            workers.spawn(async move {
                for number in 0_u32.. {
                    let object = pod(&format!("web-{worker}-{number}"), &image("us-east-1"));
                    let begun = Instant::now();
                    loop {
                        match create(&client, &namespace, &object, false).await {
                            Ok(admitted) => {
                                counts.stored.fetch_add(1, Ordering::Relaxed);
                                let has_entry = pull_secrets(&admitted.pod).contains(&PULL_SECRET);
                                let without = usize::from(!has_entry);
                                counts.without.fetch_add(without, Ordering::Relaxed);
                                break;
                            }
                            Err(status) if status.code == 429 => {
                                counts.turned_away.fetch_add(1, Ordering::Relaxed);
                                sleep(Duration::from_millis(200)).await;
                            }
                            Err(_) => {
                                counts.failed.fetch_add(1, Ordering::Relaxed);
                                break;
                            }
                        }
                    }
                    sleep(pace.saturating_sub(begun.elapsed())).await;
                    if stop.is_cancelled() {
                        return;
                    }
                }
            });
        }
        Self {
            stop,
            counts,
            workers,
        }
    }

    /// Lets each finish its Pod.
    pub async fn stop(mut self) -> Created {
        self.stop.cancel();
        while let Some(ended) = self.workers.join_next().await {
            ended.unwrap();
        }
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        Created {
            stored: count(&self.counts.stored),
            without_our_entry: count(&self.counts.without),
            failed: count(&self.counts.failed),
            turned_away: count(&self.counts.turned_away),
        }
    }
}
