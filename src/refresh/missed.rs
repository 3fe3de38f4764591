//! Notices Pending Pods that lack the reference although an admission would add it: publishes an
//! Event about each, once, and counts it.
//!
//! The API server stores a Pod without the reference while the webhook is away, or before its
//! namespace is opted in, and nothing else shows that. Discovery lists the Pods; this file remembers
//! which ones were noticed, within limits: whoever may create Pods can make any number of them.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use http_body_util::{BodyExt as _, Limited};
use jiff::Timestamp;
use kube::{Client, api::GetParams, client::Body, core::Request};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::metrics::RefreshMetrics;
use crate::{
    admission::{
        decide::{Facts, OptInFacts},
        missed::{History, is_missed, labelled},
        pod::{Pod, Text},
    },
    cluster::{
        event_recorder::EventRecorder,
        namespace::{Namespace, NamespaceSettings},
        service_accounts::ServiceAccounts,
    },
    pull_secret::{SecretFacts, events::PullSecretEvent, store::PullSecrets},
    token::rules::Rules,
};

/// The most Pods that are remembered, some 100 bytes each. Further ones wait until others are no
/// longer Pending.
const MAX_REMEMBERED: usize = 10_000;
/// The most Pods of a round that are noticed. The next round continues with others.
const MAX_PER_ROUND: usize = 500;
/// The most of them in one namespace: others have their Pods noticed, however many it has.
const MAX_OF_NAMESPACE: usize = 50;
/// The most namespaces of a round whose label's time is read: each takes a call.
const MAX_NAMESPACES: usize = 20;
/// The most Events in [`WINDOW`]; Pods without one get theirs in a later round.
const MAX_EVENTS: usize = 20;
/// The most Events of a round in one namespace.
const MAX_EVENTS_OF_NAMESPACE: usize = 3;
/// See [`MAX_EVENTS`].
const WINDOW: Duration = Duration::from_mins(1);
/// How long the read of a namespace may take.
const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// The largest namespace that is read: etcd takes no object over 1.5 MiB.
const MAX_NAMESPACE_BYTES: usize = 4 * 1024 * 1024;
/// The longest uid that the API server gives.
const MAX_UID: usize = 64;

/// Notices missed Pods; clones share what is remembered.
#[derive(Clone)]
pub struct MissedPods(Arc<Inner>);

struct Inner {
    sources: MissedSources,
    memory: Mutex<Memory>,
}

/// The dependencies of [`MissedPods`].
pub struct MissedSources {
    /// Reads namespaces; must not retry.
    pub client: Client,
    /// The pull secrets, of which some are Secrets of others.
    pub secrets: PullSecrets,
    /// The ServiceAccounts whose Pods may not reference the pull secret, if they are watched.
    pub accounts: Option<ServiceAccounts>,
    /// Publishes the Events.
    pub events: EventRecorder,
    /// Counts the Pods.
    pub metrics: Arc<RefreshMetrics>,
}

/// A Pod that was missed.
#[derive(Debug)]
struct MissedPod {
    name: String,
    uid: String,
    history: History,
}

/// The Pods of a round that were missed and still have to be noticed, by namespace.
#[derive(Debug, Default)]
pub(super) struct MissedOfRound {
    pods: BTreeMap<Namespace, Vec<MissedPod>>,
    number: usize,
}

/// The Pods that were noticed in this term.
#[derive(Debug, Default)]
struct Memory {
    pods: HashMap<String, Noticed>,
    /// The number of the pass over all Pods.
    pass: u64,
    /// When the last Events were published, the oldest first.
    published: VecDeque<Instant>,
    /// The namespace that had the last turn.
    last: Option<Namespace>,
}

#[derive(Debug)]
struct Noticed {
    pass: u64,
    has_event: bool,
}

#[derive(Deserialize)]
struct Identified<'a> {
    #[serde(borrow)]
    metadata: Identity<'a>,
}

#[derive(Deserialize)]
struct Identity<'a> {
    #[serde(borrow)]
    name: Text<'a>,
    #[serde(borrow)]
    uid: Text<'a>,
}

impl MissedPods {
    /// Returns a memory of no Pods.
    #[must_use]
    pub fn new(sources: MissedSources) -> Self {
        Self(Arc::new(Inner {
            sources,
            memory: Mutex::default(),
        }))
    }

    /// Forgets all Pods, at the start of a term.
    pub(super) fn clear(&self) {
        *self.memory() = Memory::default();
    }

    /// Adds a Pod to those of a round that were missed, if it still has to be noticed; `json` is the
    /// whole Pod.
    pub(super) fn find(
        &self,
        pod: Pod<'_>,
        json: &str,
        rules: &Rules,
        (namespace, settings): (&Namespace, &NamespaceSettings),
        found: &mut MissedOfRound,
    ) {
        let sources = &self.0.sources;
        let entry = sources.secrets.get(namespace);
        let account = pod.service_account().to_owned();
        let accounts = sources.accounts.as_ref();
        let facts = Facts {
            opt_in: OptInFacts::OptedIn(settings),
            secret: entry.as_ref().map_or(SecretFacts::Absent, |it| it.facts()),
            account_rejects_reference: accounts
                .is_some_and(|accounts| accounts.rejects_reference(namespace, &account)),
        };
        if !is_missed(pod, rules, namespace, &facts) {
            return;
        }
        let Ok(identified) = serde_json::from_str::<Identified<'_>>(json) else {
            return;
        };
        let Identity { name, uid } = identified.metadata;
        let is_open = uid.0.len() <= MAX_UID && self.memory().see(&uid.0);
        if !is_open || !found.has_room(namespace) {
            return;
        }
        if let Ok(value) = serde_json::from_str::<Value>(json) {
            found.add(
                namespace,
                MissedPod {
                    name: name.0.into_owned(),
                    uid: uid.0.into_owned(),
                    history: History::of(&value, None),
                },
            );
        }
    }

    /// Counts the Pods that a round found, and publishes Events about them. After the last page of
    /// a list, Pods that it did not have are forgotten.
    pub(super) async fn notice(&self, found: MissedOfRound, label: &str, is_complete: bool) {
        let turns = self.memory().turns(found);
        for (namespace, pods) in turns {
            let labelled = self.labelled(&namespace, label).await;
            let mut events = 0;
            for pod in pods {
                events += usize::from(self.notice_one(&namespace, &pod, labelled, events));
            }
        }
        if is_complete {
            self.memory().end_pass();
        }
    }

    /// Counts a Pod, and returns whether an Event was published about it, given how many its
    /// namespace had in this round.
    fn notice_one(
        &self,
        namespace: &Namespace,
        pod: &MissedPod,
        labelled: Option<Timestamp>,
        events: usize,
    ) -> bool {
        let history = History {
            labelled,
            ..pod.history
        };
        let reason = history.reason();
        let may_have_event = events < MAX_EVENTS_OF_NAMESPACE;
        let (is_new, gets_event) = self.memory().note(&pod.uid, Instant::now(), may_have_event);
        let sources = &self.0.sources;
        if is_new {
            sources.metrics.missed_pod(reason);
            tracing::debug!(
                %namespace,
                pod = pod.name,
                reason = reason.as_str(),
                "Pod lacks the pull secret"
            );
        }
        if gets_event {
            let event = PullSecretEvent::NotInjected {
                pod: pod.name.clone(),
                uid: pod.uid.clone(),
                why: reason.text(),
            };
            sources.events.publish(namespace, &event);
        }
        gets_event
    }

    /// Reads when the opt-in label of a namespace was last written. Without an answer, or without a
    /// time in the managed fields, it is unknown.
    async fn labelled(&self, namespace: &Namespace, label: &str) -> Option<Timestamp> {
        let sources = &self.0.sources;
        let read = async {
            let request = Request::new("/api/v1/namespaces");
            let request = request
                .get(namespace.as_str(), &GetParams::default())
                .ok()?;
            let response = sources.client.send(request.map(Body::from)).await.ok()?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_NAMESPACE_BYTES)
                .collect()
                .await
                .ok()?;
            let body = head.status.is_success().then(|| body.to_bytes())?;
            serde_json::from_slice::<Value>(&body).ok()
        };
        let (object, outcome) = match timeout(READ_TIMEOUT, read).await {
            Ok(Some(object)) => (Some(object), "ok"),
            Ok(None) => (None, "error"),
            Err(_) => (None, "timeout"),
        };
        let calls = &sources.metrics.api_calls;
        calls.count_call("get", "namespaces", outcome);
        let object = object?;
        let times = labelled(&object).filter(|(key, _)| *key == label);
        times.map(|(_, at)| at).max()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        let memory = self.0.memory.lock();
        memory.unwrap_or_else(PoisonError::into_inner)
    }
}

impl MissedOfRound {
    fn has_room(&self, namespace: &Namespace) -> bool {
        let of_namespace = self.pods.get(namespace).map_or(0, Vec::len);
        self.number < MAX_PER_ROUND && of_namespace < MAX_OF_NAMESPACE
    }

    fn add(&mut self, namespace: &Namespace, pod: MissedPod) {
        self.number += 1;
        self.pods.entry(namespace.clone()).or_default().push(pod);
    }
}

impl Memory {
    /// Returns whether a Pod still has to be noticed or to get its Event, and that it is still there.
    fn see(&mut self, uid: &str) -> bool {
        let pass = self.pass;
        match self.pods.get_mut(uid) {
            Some(noticed) => {
                noticed.pass = pass;
                !noticed.has_event
            }
            None => self.pods.len() < MAX_REMEMBERED,
        }
    }

    /// Remembers a Pod, and returns whether it is new and whether it gets its Event now.
    fn note(&mut self, uid: &str, now: Instant, may_have_event: bool) -> (bool, bool) {
        let pass = self.pass;
        let is_new = !self.pods.contains_key(uid);
        if is_new && self.pods.len() >= MAX_REMEMBERED {
            return (false, false);
        }
        while let Some(oldest) = self.published.front()
            && now.saturating_duration_since(*oldest) >= WINDOW
        {
            self.published.pop_front();
        }
        let has_room = may_have_event && self.published.len() < MAX_EVENTS;
        let noticed = self.pods.entry(uid.to_owned()).or_insert(Noticed {
            pass,
            has_event: false,
        });
        noticed.pass = pass;
        let gets_event = has_room && !noticed.has_event;
        if gets_event {
            noticed.has_event = true;
            self.published.push_back(now);
        }
        (is_new, gets_event)
    }

    /// Returns the namespaces that have their turn in this round: those after the last one of the
    /// round before, so that each has a turn however many there are.
    fn turns(&mut self, found: MissedOfRound) -> Vec<(Namespace, Vec<MissedPod>)> {
        let mut first = found.pods;
        let last = self.last.as_ref();
        let later = last.map(|last| first.split_off(last)).unwrap_or_default();
        let mut turns: Vec<_> = later.into_iter().chain(first).collect();
        // The last one is the first of its half, and comes after all others.
        if turns.first().map(|(namespace, _)| namespace) == last && turns.len() > 1 {
            turns.rotate_left(1);
        }
        turns.truncate(MAX_NAMESPACES);
        if let Some((namespace, _)) = turns.last() {
            self.last = Some(namespace.clone());
        }
        turns
    }

    /// Forgets the Pods that the pass did not see.
    fn end_pass(&mut self) {
        let pass = self.pass;
        self.pods.retain(|_, noticed| noticed.pass == pass);
        self.pass += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn see_and_note(memory: &mut Memory, uid: &str, now: Instant) -> (bool, bool) {
        if memory.see(uid) {
            memory.note(uid, now, true)
        } else {
            (false, false)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_pod_is_counted_once_and_gets_one_event_within_the_rate() {
        let mut memory = Memory::default();
        let uids: Vec<String> = (0..50).map(|number| format!("uid-{number}")).collect();
        let round = |memory: &mut Memory| {
            let now = Instant::now();
            let results = uids.iter().map(|uid| see_and_note(memory, uid, now));
            let results: Vec<_> = results.collect();
            memory.end_pass();
            let count = |of: fn(&(bool, bool)) -> bool| results.iter().filter(|it| of(it)).count();
            (count(|it| it.0), count(|it| it.1))
        };
        assert_eq!(round(&mut memory), (50, 20));
        assert_eq!(round(&mut memory), (0, 0), "a minute has twenty");
        tokio::time::advance(WINDOW).await;
        assert_eq!(round(&mut memory), (0, 20));
        tokio::time::advance(WINDOW).await;
        assert_eq!(round(&mut memory), (0, 10));
        tokio::time::advance(WINDOW).await;
        assert_eq!(round(&mut memory), (0, 0), "once a Pod");
    }

    #[tokio::test]
    async fn memory_is_bounded_and_forgets_pods_that_are_gone() {
        let mut memory = Memory::default();
        let now = Instant::now();
        for number in 0..MAX_REMEMBERED + 5 {
            let uid = number.to_string();
            let (is_new, _) = see_and_note(&mut memory, &uid, now);
            assert_eq!(is_new, number < MAX_REMEMBERED, "{number}");
        }
        assert_eq!(memory.pods.len(), MAX_REMEMBERED);
        memory.end_pass();
        // The next pass sees one of them alone.
        assert!(!memory.see("0"), "it had its Event");
        memory.end_pass();
        assert_eq!(memory.pods.len(), 1);
        let (is_new, _) = see_and_note(&mut memory, "new", now);
        assert!(is_new);
    }
    #[test]
    fn each_namespace_has_its_turn_however_many_pods_another_has() {
        let namespaces: Vec<Namespace> = (0..50)
            .map(|number| Namespace::parse(&format!("team-{number:02}")).expect("a name"))
            .collect();
        let pod = |number: usize| MissedPod {
            name: format!("pod-{number}"),
            uid: number.to_string(),
            history: History::default(),
        };
        let round = || {
            let mut found = MissedOfRound::default();
            for number in 0..1_000 {
                if found.has_room(&namespaces[0]) {
                    found.add(&namespaces[0], pod(number));
                }
            }
            assert_eq!(found.number, MAX_OF_NAMESPACE);
            for namespace in &namespaces[1..] {
                assert!(found.has_room(namespace));
                found.add(namespace, pod(0));
            }
            found
        };
        let mut memory = Memory::default();
        let mut turns = Vec::new();
        for _ in 0..3 {
            let names = memory.turns(round()).into_iter();
            turns.push(names.map(|(namespace, _)| namespace).collect::<Vec<_>>());
        }
        assert_eq!(turns[0], namespaces[..20]);
        assert_eq!(turns[1], namespaces[20..40]);
        let wrapped: Vec<_> = namespaces[40..]
            .iter()
            .chain(&namespaces[..10])
            .cloned()
            .collect();
        assert_eq!(turns[2], wrapped);
        // One alone has every turn.
        for _ in 0..2 {
            let mut found = MissedOfRound::default();
            found.add(&namespaces[9], pod(0));
            assert_eq!(memory.turns(found).len(), 1);
        }
    }
}
