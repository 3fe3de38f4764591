//! The survey of stuck Pods: which wait for an image of ECR, and what the verdict on each depends on.

use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, stream};
use serde_json::Value;

use super::{CONCURRENCY, namespaces, pod::Shared, reader::List};
use crate::{
    cli::doctor::{
        finding::{Reading, Right},
        installation::{ConfigFacts, NamespaceFacts, PullSecretFacts, Settings},
        pod::{PodCase, PodEvent},
        stuck::group::{has_reference, is_stuck},
    },
    cluster::namespace::Namespace,
};

/// The most Pods that are examined in one run.
const MAX_PODS: usize = 1_000;
/// The most Pods whose Events are read: each takes a call.
const MAX_EVENTS: usize = 100;

/// The Pods to search.
#[derive(Debug, Clone)]
pub(crate) enum Scope {
    /// Those that are Pending, in all namespaces.
    Pending,
    /// All of these namespaces.
    Namespaces(Vec<Namespace>),
    /// All of all namespaces.
    All,
}

/// The Pods of a search.
pub(crate) struct Found {
    /// Those of opted-in namespaces, each with what its verdict depends on.
    pub(crate) cases: Vec<PodCase>,
    /// How many are in other namespaces.
    pub(crate) not_opted_in: usize,
    /// How many were not examined, because there are too many.
    pub(crate) unexamined: usize,
}

impl Shared {
    /// Returns the settings of the installation.
    pub(crate) fn settings(&self) -> Reading<&Settings> {
        match &self.config {
            Reading::Read(ConfigFacts::Valid(settings)) => Reading::Read(settings),
            Reading::Read(ConfigFacts::Invalid(why) | ConfigFacts::Absent(why)) => {
                Reading::Failed(format!("the configuration can't be used: {why}"))
            }
            Reading::Forbidden(right) => Reading::Forbidden(right.clone()),
            Reading::Failed(error) => Reading::Failed(error.clone()),
            Reading::Unread(why) => Reading::Unread(why.clone()),
        }
    }

    /// Returns what `keep` returns of the Pods in a scope.
    pub(crate) async fn pods<T>(
        &self,
        scope: &Scope,
        mut keep: impl FnMut(&Value) -> Option<T>,
    ) -> Reading<Vec<T>> {
        let (query, namespaces) = match scope {
            Scope::Pending => ("fieldSelector=status.phase%3DPending", None),
            Scope::All => ("", None),
            Scope::Namespaces(names) => ("", Some(names)),
        };
        let Some(names) = namespaces else {
            let list = List {
                path: "/api/v1/pods",
                query,
                metadata: false,
                right: Right::new("list", "pods", None),
            };
            let found = self.reader.list(list, keep).await;
            return found.map(Option::unwrap_or_default);
        };
        let mut all = Vec::new();
        for name in names {
            let path = format!("/api/v1/namespaces/{name}/pods");
            let list = List {
                path: &path,
                query,
                metadata: false,
                right: Right::new("list", "pods", Some(name.as_str())),
            };
            match self.reader.list(list, &mut keep).await {
                Reading::Read(found) => all.extend(found.unwrap_or_default()),
                other => return other.map(Option::unwrap_or_default),
            }
        }
        Reading::Read(all)
    }

    /// Finds the Pods that wait for an image of ECR.
    pub(crate) async fn stuck(&self, scope: &Scope) -> Reading<Found> {
        let settings = match self.settings() {
            Reading::Read(settings) => settings,
            other => return other.map(|_| Found::none()),
        };
        let rules = &settings.rules;
        let stuck = |pod: &Value| is_stuck(pod, rules).then(|| pod.clone());
        let (pods, namespaces) = tokio::join!(self.pods(scope, stuck), self.namespaces(scope));
        let pods = match pods {
            Reading::Read(pods) => pods,
            other => return other.map(|_| Found::none()),
        };
        let namespaces = match namespaces {
            Reading::Read(namespaces) => namespaces,
            other => return other.map(|_| Found::none()),
        };
        let opted_in: BTreeMap<&str, &NamespaceFacts> = namespaces
            .iter()
            .filter(|it| settings.is_opted_in(it))
            .map(|it| (&*it.name, it))
            .collect();
        let of = |pod: &Value| {
            let name = pod["metadata"]["namespace"].as_str()?;
            opted_in.get(name).copied()
        };
        let (mut ours, others): (Vec<_>, Vec<_>) =
            pods.into_iter().partition(|pod| of(pod).is_some());
        let unexamined = ours.len().saturating_sub(MAX_PODS);
        ours.truncate(MAX_PODS);
        Reading::Read(Found {
            cases: self.cases(ours, &opted_in, settings).await,
            not_opted_in: others.len(),
            unexamined,
        })
    }

    async fn namespaces(&self, scope: &Scope) -> Reading<Vec<NamespaceFacts>> {
        let Scope::Namespaces(names) = scope else {
            return namespaces(&self.reader).await;
        };
        let mut all = Vec::new();
        for name in names {
            match self.namespace(name).await {
                Reading::Read(facts) => all.extend(facts),
                other => return other.map(|facts| facts.into_iter().collect()),
            }
        }
        Reading::Read(all)
    }

    /// Reads what surrounds the Pods: a pull secret once a namespace, a ServiceAccount once.
    async fn cases(
        &self,
        pods: Vec<Value>,
        opted_in: &BTreeMap<&str, &NamespaceFacts>,
        settings: &Settings,
    ) -> Vec<PodCase> {
        let place = |pod: &Value| pod["metadata"]["namespace"].as_str().map(str::to_owned);
        let names: BTreeSet<String> = pods.iter().filter_map(place).collect();
        let secrets = names.into_iter().filter_map(|name| {
            let namespace = Namespace::parse(&name)?;
            Some(async move { (name, self.secret(&namespace).await) })
        });
        let secrets = secrets.collect::<Vec<_>>();
        let secrets = stream::iter(secrets).buffer_unordered(CONCURRENCY);
        let secrets: BTreeMap<String, Reading<Option<PullSecretFacts>>> = secrets.collect().await;

        let is_referenced = |pod: &Value| has_reference(pod, &settings.rules);
        let account = |pod: &Value| {
            let name = pod["spec"]["serviceAccountName"].as_str();
            Some((place(pod)?, name.unwrap_or_default().to_owned()))
        };
        let mut accounts: BTreeMap<_, &Value> = BTreeMap::new();
        for pod in pods.iter().filter(|pod| !is_referenced(pod)) {
            accounts.extend(account(pod).map(|key| (key, pod)));
        }
        let accounts = accounts.into_iter().filter_map(|(key, pod)| {
            let namespace = Namespace::parse(&key.0)?;
            Some(async move { (key, self.account_rejects(&namespace, pod).await) })
        });
        let accounts = accounts.collect::<Vec<_>>();
        let accounts = stream::iter(accounts).buffer_unordered(CONCURRENCY);
        let accounts: BTreeMap<(String, String), Reading<bool>> = accounts.collect().await;

        let mut with_events = 0;
        let events = pods.iter().map(|pod| {
            let is_read = is_referenced(pod) && with_events < MAX_EVENTS;
            with_events += usize::from(is_read);
            async move { self.events_if(is_read, pod).await }
        });
        let events = events.collect::<Vec<_>>();
        let events = stream::iter(events).buffered(CONCURRENCY);
        let events: Vec<Reading<Vec<PodEvent>>> = events.collect().await;

        let cases = pods.into_iter().zip(events).filter_map(|(pod, events)| {
            let name = place(&pod)?;
            let rejects = account(&pod).and_then(|key| accounts.get(&key).cloned());
            Some(PodCase {
                is_stored: true,
                namespace: Reading::Read(opted_in.get(&*name).map(|facts| (*facts).clone())),
                secret: secrets.get(&name).cloned().unwrap_or_else(unread),
                account_rejects: rejects.unwrap_or_else(unread),
                events,
                config: self.config.clone(),
                now: self.now,
                namespace_name: name,
                pod,
            })
        });
        cases.collect()
    }

    /// Reads the Events about a Pod, which only the next pull of one with the reference needs.
    async fn events_if(&self, is_read: bool, pod: &Value) -> Reading<Vec<PodEvent>> {
        let name = pod["metadata"]["namespace"].as_str();
        match name.and_then(Namespace::parse).filter(|_| is_read) {
            Some(namespace) => self.events(&namespace, pod, true).await,
            None => Reading::Read(Vec::new()),
        }
    }
}

fn unread<T>() -> Reading<T> {
    Reading::Unread("not read".to_owned())
}

impl Found {
    fn none() -> Self {
        Self {
            cases: Vec::new(),
            not_opted_in: 0,
            unexamined: 0,
        }
    }
}
