//! Finds namespaces that look opted in and are not, and publishes an Event in each.
//!
//! The API server never calls the webhook for them, and the watch doesn't have them: their label
//! has another value or key. So the leader lists the metadata of all namespaces, at the start of its
//! term and then from time to time.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use k8s_openapi::api::core::v1::Namespace as Object;
use kube::{Api, Client, ResourceExt as _, api::ListParams};
use tokio::time::{Instant, sleep};

use super::discovery::jittered;
use crate::{
    cluster::{
        call::ApiCall, event_recorder::EventRecorder, lease::Leadership, metrics::ClusterMetrics,
        namespace::Namespace, namespaces::ReadError, near_miss::OptInNearMiss, object::Metadata,
    },
    config::{Config, live::Live},
    process::random::random,
    pull_secret::events::PullSecretEvent,
    telemetry::{error_chain::error_chain, log_once::LogOnce},
};

/// The time from one look to the next, give or take a tenth: 10,000 namespaces are some ten
/// megabytes.
const PERIOD: Duration = Duration::from_mins(10);
/// Namespaces in a page: each may be as large as etcd allows, 1.5 MiB.
const PAGE: u32 = 20;
/// The most pages of a look: Kubernetes supports 10,000 namespaces.
const MAX_PAGES: usize = 1_000;
/// How long a page may take.
const PAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// The most Events of a look, fewer than the recorder sends in one burst. The next look continues
/// after them.
const MAX_TOLD: usize = 20;

/// Looks for namespaces that nearly opted in, for as long as this replica leads.
#[derive(Clone)]
pub struct NearMisses {
    api: Api<Metadata<Object>>,
    live: Live,
    events: EventRecorder,
    metrics: Arc<ClusterMetrics>,
}

impl NearMisses {
    /// Lists through the client, which must not retry.
    #[must_use]
    pub fn new(
        client: Client,
        live: Live,
        events: EventRecorder,
        metrics: Arc<ClusterMetrics>,
    ) -> Self {
        Self {
            api: Api::all(client),
            live,
            events,
            metrics,
        }
    }

    /// Looks at once and then once a period, until the term is over.
    pub async fn lead(&self, term: Leadership) {
        let mut found = Found::default();
        let mut logged = LogOnce::<String>::default();
        while term.holds() {
            let look = async {
                match self.look(&mut found).await {
                    Ok(()) => {
                        logged.clear();
                    }
                    Err(error) => {
                        let error = error_chain(&error);
                        if logged.is_new(error.clone()) {
                            tracing::warn!(
                                error,
                                "looking for namespaces with a misspelt opt-in label failed; \
                                 retrying"
                            );
                        }
                    }
                }
                sleep(jittered(PERIOD, random())).await;
            };
            tokio::select! {
                () = look => {}
                () = term.lost() => return,
            }
        }
    }

    /// Lists all namespaces, and publishes an Event in each that nearly opted in, also if a later
    /// page failed.
    async fn look(&self, found: &mut Found) -> Result<(), ReadError> {
        let config = self.live.config();
        let result = self.list(found, &config).await;
        for (namespace, near_miss) in found.take() {
            let opt_in = &config.opt_in;
            let note = near_miss.note(&opt_in.label, &opt_in.value, &namespace);
            tracing::debug!(%namespace, ?near_miss, "namespace is nearly opted in");
            let event = PullSecretEvent::NearlyOptedIn { note };
            self.events.publish(&namespace, &event);
        }
        result
    }

    async fn list(&self, found: &mut Found, config: &Config) -> Result<(), ReadError> {
        let mut params = ListParams::default().limit(PAGE);
        for _ in 0..MAX_PAGES {
            let call = ApiCall::new(&self.metrics.api_calls, "list", "namespaces");
            let deadline = Instant::now() + PAGE_TIMEOUT;
            let page = call.send(deadline, self.api.list(&params), ReadError::from);
            let page = page.await?;
            for object in &page.items {
                if let Some((namespace, near_miss)) = near_miss(object, config) {
                    found.add(namespace, near_miss);
                }
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break,
            }
        }
        Ok(())
    }
}

fn near_miss(object: &Metadata<Object>, config: &Config) -> Option<(Namespace, OptInNearMiss)> {
    // Nothing can be created in a namespace that is terminating.
    if object.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let namespace = Namespace::parse(&object.name_any())?;
    let opt_in = &config.opt_in;
    let near_miss = OptInNearMiss::of(
        object.labels(),
        object.annotations(),
        &opt_in.label,
        &opt_in.value,
        config.rules.excluded.contains(&namespace),
    );
    Some((namespace, near_miss?))
}

/// The namespaces of a look that get an Event: first those after the last that got one, so that
/// each has its turn however many there are.
#[derive(Debug, Default)]
struct Found {
    last_told: Option<Namespace>,
    after: BTreeMap<Namespace, OptInNearMiss>,
    before: BTreeMap<Namespace, OptInNearMiss>,
}

impl Found {
    fn add(&mut self, namespace: Namespace, near_miss: OptInNearMiss) {
        let is_after = self.last_told.as_ref().is_none_or(|last| namespace > *last);
        let half = if is_after {
            &mut self.after
        } else {
            &mut self.before
        };
        half.insert(namespace, near_miss);
        if half.len() > MAX_TOLD {
            half.pop_last();
        }
    }

    /// Returns the namespaces to tell, and forgets all but the last.
    fn take(&mut self) -> Vec<(Namespace, OptInNearMiss)> {
        let (after, before) = (
            std::mem::take(&mut self.after),
            std::mem::take(&mut self.before),
        );
        let told: Vec<_> = after.into_iter().chain(before).take(MAX_TOLD).collect();
        self.last_told = told.last().map(|(namespace, _)| namespace.clone());
        told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(found: &mut Found, names: &[String]) -> Vec<String> {
        for name in names {
            let namespace = Namespace::parse(name).expect("a name");
            found.add(namespace, OptInNearMiss::Annotation);
        }
        let told = found.take().into_iter();
        told.map(|(namespace, _)| namespace.to_string()).collect()
    }

    #[test]
    fn each_namespace_has_its_turn_and_a_look_tells_few() {
        let names: Vec<String> = (0..50).map(|number| format!("team-{number:02}")).collect();
        let mut found = Found::default();
        for looks in [0..20, 20..40] {
            assert_eq!(look(&mut found, &names), names[looks]);
        }
        let wrapped: Vec<_> = names[40..].iter().chain(&names[..10]).cloned().collect();
        assert_eq!(look(&mut found, &names), wrapped);
        assert_eq!(look(&mut found, &[]), Vec::<String>::new());
        assert_eq!(look(&mut found, &names[..1]), names[..1]);
    }
}
