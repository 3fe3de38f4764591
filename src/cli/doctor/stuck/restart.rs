//! Restarts stuck Pods: each only while a copy of it, created in a dry run, gets the reference.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    group::{Group, Owner, StuckPod, has_reference, is_stuck},
    report::{Outcome, Stop},
};
use crate::{
    cli::doctor::survey::{
        pod::Shared,
        reader::{CallError, JSON, Reader},
        stuck::Scope,
    },
    cluster::namespace::Namespace,
    token::rules::Rules,
};

/// The pause between two evictions: five a second.
const INTERVAL: Duration = Duration::from_millis(200);
/// The time between two looks for new Pods that are stuck again.
const LOOK_PERIOD: Duration = Duration::from_secs(2);
/// How long the new Pods are followed after the last eviction.
const FOLLOW: Duration = Duration::from_secs(10);
/// How many new Pods may be stuck again before no more are restarted.
const MAX_STUCK_AGAIN: usize = 3;

/// The most namespaces whose Pods are all read at a look. In more of them only Pending Pods are.
const MAX_NAMESPACES: usize = 10;

/// The Pods to restart, and whether they are only shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Restart {
    /// Whether Pods of Jobs are restarted as well.
    pub(super) jobs: bool,
    /// Whether nothing is changed.
    pub(super) dry_run: bool,
}

/// The restarts of one run.
pub(super) struct Restarts<'a> {
    pub(super) shared: &'a Shared,
    pub(super) rules: &'a Rules,
    pub(super) scope: &'a Scope,
    pub(super) restart: Restart,
}

/// The result of a run of restarts.
#[derive(Debug, Default)]
pub(super) struct Restarted {
    /// The outcome for each Pod that was tried, by its uid.
    pub(super) outcomes: BTreeMap<String, Outcome>,
    /// The new Pods that are stuck again.
    pub(super) stuck_again: BTreeSet<String>,
    /// Why the run ended before its end.
    pub(super) stop: Option<Stop>,
}

/// The controllers whose Pods were restarted.
#[derive(Default)]
struct Owners<'a> {
    /// How many Pods of each, by its uid.
    pods: BTreeMap<&'a str, usize>,
    namespaces: BTreeSet<&'a str>,
}

/// A new Pod of a controller whose Pod was restarted.
struct Replacement {
    owner: String,
    name: String,
    is_stuck: bool,
}

impl Restarts<'_> {
    /// Restarts the Pods one after the other.
    pub(super) async fn run(&self, pods: &[StuckPod]) -> Restarted {
        let mut done = Restarted::default();
        let mut owners = Owners::default();
        let mut begun = None;
        let (mut next, mut next_look) = (Instant::now(), Instant::now() + LOOK_PERIOD);
        for pod in pods.iter().filter(|pod| self.is_meant(pod)) {
            sleep_until(next).await;
            next = Instant::now() + INTERVAL;
            if Instant::now() >= next_look && !owners.pods.is_empty() {
                self.look(&owners, self.begun(begun), &mut done).await;
                next_look = Instant::now() + LOOK_PERIOD;
            }
            if done.stuck_again.len() >= MAX_STUCK_AGAIN {
                done.stop = Some(Stop::StuckAgain);
                break;
            }
            let outcome = match self.one(pod, &mut begun).await {
                Ok(outcome) => outcome,
                Err(stop) => {
                    done.stop = Some(stop);
                    break;
                }
            };
            if let (Outcome::Restarted, Some(owner)) = (&outcome, &pod.owner) {
                *owners.pods.entry(&owner.uid).or_default() += 1;
                owners.namespaces.insert(&pod.namespace);
            }
            done.outcomes.insert(pod.uid.clone(), outcome);
        }
        let end = Instant::now() + FOLLOW;
        let begun = self.begun(begun);
        while !owners.pods.is_empty() && !self.look(&owners, begun, &mut done).await {
            if Instant::now() >= end {
                break;
            }
            sleep(LOOK_PERIOD).await;
        }
        done
    }

    /// Returns when the first Pod was restarted.
    fn begun(&self, first_copy: Option<Timestamp>) -> Timestamp {
        first_copy.unwrap_or(self.shared.now)
    }

    fn is_meant(&self, pod: &StuckPod) -> bool {
        let is_owned = pod.owner.is_some();
        is_owned
            && match pod.group {
                Group::Missed => true,
                Group::Job => self.restart.jobs,
                Group::Bare | Group::Static | Group::Referenced | Group::Skipped => false,
            }
    }

    /// Restarts a Pod, if its copy gets the reference. The first copy has the time by which new
    /// Pods are known: the API server's, as theirs is. The clock of this machine may be wrong.
    async fn one(&self, pod: &StuckPod, begun: &mut Option<Timestamp>) -> Result<Outcome, Stop> {
        let reader = self.shared.reader();
        let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", pod.namespace);
        match reader.post(&path, &pod.copy()).await {
            Ok(copy) if has_reference(&copy, self.rules) => *begun = begun.or(created(&copy)),
            Ok(_) => return Err(Stop::NoReference(pod.title())),
            // The Pod breaks a rule of the cluster, a quota is full, or a right is missing.
            Err(CallError::Status(status, message)) if status.is_client_error() => {
                return Ok(Outcome::Refused(format!(
                    "creating a copy (dry run): {message}"
                )));
            }
            Err(error) => return Err(Stop::NoAnswer(pod.title(), error.text())),
        }
        if self.restart.dry_run {
            return Ok(Outcome::WouldRestart);
        }
        Ok(evict(reader, pod).await)
    }

    /// Reads the new Pods of the controllers, and returns whether all are there and none is stuck.
    async fn look(&self, owners: &Owners<'_>, begun: Timestamp, done: &mut Restarted) -> bool {
        let keep = |pod: &Value| replacement(pod, &owners.pods, begun, self.rules);
        let namespaces = owners.namespaces.iter();
        let namespaces = namespaces.filter_map(|name| Namespace::parse(name));
        let namespaces: Vec<Namespace> = namespaces.collect();
        // A new Pod that runs is no longer Pending.
        let scope = if namespaces.len() > MAX_NAMESPACES {
            self.scope
        } else {
            &Scope::Namespaces(namespaces)
        };
        let found = self.shared.pods(scope, keep).await;
        // Without an answer nothing is known; the next look may have one.
        let Some(found) = found.value() else {
            return false;
        };
        let mut missing = owners.pods.clone();
        for replacement in found {
            if replacement.is_stuck {
                done.stuck_again.insert(replacement.name.clone());
            } else if let Some(number) = missing.get_mut(&*replacement.owner) {
                *number = number.saturating_sub(1);
            }
        }
        done.stuck_again.len() >= MAX_STUCK_AGAIN || missing.values().all(|number| *number == 0)
    }
}

/// Returns what a Pod is, if it is a new one of these controllers.
fn replacement(
    pod: &Value,
    owners: &BTreeMap<&str, usize>,
    begun: Timestamp,
    rules: &Rules,
) -> Option<Replacement> {
    let metadata = &pod["metadata"];
    let owner = Owner::of(pod)?.uid;
    let is_new = owners.contains_key(&*owner) && created(pod)? >= begun;
    let (namespace, name) = (metadata["namespace"].as_str()?, metadata["name"].as_str()?);
    is_new.then(|| Replacement {
        name: format!("{namespace}/{name}"),
        is_stuck: !has_reference(pod, rules) || is_stuck(pod, rules),
        owner,
    })
}

/// Returns when the API server created a Pod, or would have.
fn created(pod: &Value) -> Option<Timestamp> {
    pod["metadata"]["creationTimestamp"].as_str()?.parse().ok()
}

/// Evicts a Pod; where eviction is not allowed, deletes it.
async fn evict(reader: &Reader, pod: &StuckPod) -> Outcome {
    let StuckPod {
        namespace,
        name,
        uid,
        ..
    } = pod;
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
    let only_this = json!({"preconditions": {"uid": uid}});
    let eviction = json!({
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"namespace": namespace, "name": name},
        "deleteOptions": only_this,
    });
    let evicted = reader.post(&format!("{path}/eviction"), &eviction).await;
    let Err(CallError::Status(StatusCode::FORBIDDEN, refusal)) = evicted else {
        return outcome(evicted.map(drop), "evicting it");
    };
    let mut options = only_this;
    options["apiVersion"] = json!("v1");
    options["kind"] = json!("DeleteOptions");
    let deleted = reader
        .call(Method::DELETE, &path, JSON, Some(&options))
        .await;
    match deleted {
        Err(CallError::Status(StatusCode::FORBIDDEN, message)) => Outcome::Refused(format!(
            "neither evicting nor deleting it is allowed: {refusal}; {message}"
        )),
        deleted => outcome(deleted.map(drop), "deleting it"),
    }
}

fn outcome(result: Result<(), CallError>, operation: &str) -> Outcome {
    match result {
        Ok(()) => Outcome::Restarted,
        // A Pod of that name is another one by now.
        Err(CallError::Status(StatusCode::NOT_FOUND | StatusCode::CONFLICT, _)) => Outcome::Gone,
        Err(error) => Outcome::Refused(format!("{operation}: {}", error.text())),
    }
}

#[cfg(test)]
mod tests;
