//! Merges the content of a pull secret with the changes of a writer.
//!
//! Everything in the Secret stays unless the merge names it: no writer removes a host that it did
//! not name. Each step below is one rule; a later step may overrule an earlier one.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Serialize;

use super::{
    DesiredCredential, Existing, PullSecret, is_public,
    state::{Credential, DataDigest, Demand, HostState, Hosts, State},
};
use crate::{
    registry::Host,
    token::{Freshness, Lifetime, Token, rules::MAX_HOSTS},
};

/// The writer that merges, which decides what a token of another identity may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeMode {
    /// An admission adds. A credential that is still good is not replaced by another identity's:
    /// that change is the leader's, because replicas may read different configurations for a while.
    /// The demand is of now.
    Add,
    /// The leader reconciles: the identities are those of the current configuration. The demand was
    /// recorded before.
    Reconcile,
}

/// The changes of a merge.
#[derive(Debug, Clone, Copy)]
pub struct Changes<'a> {
    /// The writer.
    pub mode: MergeMode,
    /// The hosts to have, each with a token if there is one.
    pub wanted: &'a BTreeMap<Host, DesiredCredential>,
    /// The hosts to forget; one whose credential is still good stays until that expires.
    pub forgotten: &'a BTreeSet<Host>,
    /// The hosts whose credential is removed at once.
    pub revoked: &'a BTreeSet<Host>,
    /// The state before another client wrote or deleted the Secret: its hosts are still wanted.
    pub remembered: Option<&'a State>,
    /// The most hosts; those that are there already stay even if there are more.
    pub limit: usize,
}

/// The result of a merge.
#[derive(Debug)]
pub struct Merged {
    /// The Secret to write; `None` if nothing would change.
    pub secret: Option<PullSecret>,
    /// The hosts for which the limit leaves no room.
    pub left_out: Vec<Host>,
}

/// Merges the existing Secret with the changes at `now`. A Secret whose state is not known to be
/// ours counts as empty.
#[must_use]
pub fn merge(existing: Option<&Existing>, changes: Changes<'_>, now: Timestamp) -> Merged {
    let had = existing.and_then(|existing| Some((existing, existing.state.as_ref()?)));
    let mut merging = Merging {
        hosts: Hosts::default(),
        auths: BTreeMap::new(),
        now,
    };
    if let Some((existing, state)) = had {
        merging.carry_over(state, existing, changes);
    }
    merging.restore_demand(changes);
    let before: BTreeSet<Host> = merging.hosts.keys().cloned().collect();
    merging.apply_wanted(changes);
    // A limit that was lowered removes no host that is there.
    let limit = changes.limit.max(before.len()).min(MAX_HOSTS);
    merging.evict_unused(limit, changes.wanted);
    let left_out = merging.enforce_limit(limit, &before);
    let Merging {
        mut hosts, auths, ..
    } = merging;
    let data = encode(&auths);
    hosts.shrink();
    let digest = DataDigest::new(data.expose_secret().as_bytes());
    let is_unchanged = had.is_some_and(|(_, state)| state.hosts == hosts && state.digest == digest);
    let state = State {
        hosts,
        digest,
        ..State::default()
    };
    Merged {
        secret: (!is_unchanged).then_some(PullSecret { state, data }),
        left_out,
    }
}

/// A merge in progress.
struct Merging {
    hosts: Hosts,
    auths: BTreeMap<Host, SecretString>,
    now: Timestamp,
}

impl Merging {
    /// Takes over the existing hosts. A credential is removed only if it has expired or is revoked.
    fn carry_over(&mut self, state: &State, existing: &Existing, changes: Changes<'_>) {
        for (host, entry) in state.hosts.iter() {
            let is_good = entry.good(self.now).is_some();
            let is_revoked = changes.revoked.contains(host);
            if changes.forgotten.contains(host) && (!is_good || is_revoked) {
                continue;
            }
            let auth = existing.auths.get(host);
            // Where an entry of a public host matches, the kubelet no longer pulls anonymously.
            let is_unwanted =
                changes.mode == MergeMode::Reconcile && !changes.wanted.contains_key(host);
            let is_removed = is_revoked || !is_good && (is_public(host) || is_unwanted);
            let credential = entry.credential.filter(|_| auth.is_some() && !is_removed);
            if credential.is_some() {
                self.auths
                    .extend(auth.map(|auth| (host.clone(), auth.clone())));
            }
            let entry = HostState {
                demand: entry.demand,
                credential,
            };
            self.hosts.insert(host.clone(), entry);
        }
    }

    /// Restores the demand that the Secret had before another client wrote it, but for the hosts to
    /// forget.
    fn restore_demand(&mut self, changes: Changes<'_>) {
        let remembered = changes.remembered.iter();
        for (host, entry) in remembered.flat_map(|state| state.hosts.iter()) {
            match self.hosts.get_mut(host) {
                Some(known) => known.demand = known.demand.union(entry.demand),
                None if changes.forgotten.contains(host) => {}
                None => self.hosts.insert(
                    host.clone(),
                    HostState {
                        demand: entry.demand,
                        credential: None,
                    },
                ),
            }
        }
    }

    /// Records the demand for each wanted host, and sets its token if that is better than the
    /// existing credential.
    fn apply_wanted(&mut self, changes: Changes<'_>) {
        for (host, desired) in changes.wanted {
            let had = self.hosts.get(host);
            let mut entry = had.cloned().unwrap_or(HostState {
                demand: Demand::new(self.now),
                credential: None,
            });
            if changes.mode == MergeMode::Add && !entry.demand.is_recent(self.now) {
                entry.demand.last = Demand::new(self.now).last;
            }
            if let Some(token) = &desired.token
                && replaces(token, desired, entry.good(self.now), changes.mode)
            {
                entry.credential = Some(Credential {
                    identity: desired.identity,
                    lifetime: token.lifetime(),
                });
                self.auths.insert(host.clone(), token.auth());
            }
            self.hosts.insert(host.clone(), entry);
        }
    }

    /// Forgets unwanted hosts without a good credential, as many as exceed the limit: first those
    /// that never had one, then those whose demand is the longest ago.
    fn evict_unused(&mut self, limit: usize, wanted: &BTreeMap<Host, DesiredCredential>) {
        let excess = self.hosts.len().saturating_sub(limit);
        if excess == 0 {
            return;
        }
        let mut unused: Vec<_> = self
            .hosts
            .iter()
            .filter(|(host, entry)| !wanted.contains_key(*host) && entry.good(self.now).is_none())
            .map(|(host, entry)| (entry.credential.is_some(), entry.demand.last, host.clone()))
            .collect();
        unused.sort();
        for (.., host) in unused.into_iter().take(excess) {
            self.remove(&host);
        }
    }

    /// Removes the new hosts that exceed the limit, the last of them, and returns them.
    fn enforce_limit(&mut self, limit: usize, before: &BTreeSet<Host>) -> Vec<Host> {
        let excess = self.hosts.len().saturating_sub(limit);
        let new = self.hosts.keys().filter(|host| !before.contains(*host));
        let mut new: Vec<Host> = new.cloned().collect();
        let left_out = new.split_off(new.len().saturating_sub(excess));
        for host in &left_out {
            self.remove(host);
        }
        left_out
    }

    fn remove(&mut self, host: &Host) {
        self.hosts.remove(host);
        self.auths.remove(host);
    }
}

/// Returns whether a token is better than the credential that is good now: a shorter life never
/// replaces a longer one of the same identity.
fn replaces(
    token: &Token,
    desired: &DesiredCredential,
    good: Option<Credential>,
    mode: MergeMode,
) -> bool {
    match good {
        None => true,
        Some(had) if had.identity == desired.identity => {
            // Tokens that end with one session end at the same time. The newer one counts, so that
            // the next renewal comes after a part of the life that is left.
            let end_and_start = |life: Lifetime| (life.expires_at, life.minted_at);
            end_and_start(token.lifetime()) > end_and_start(had.lifetime)
        }
        Some(_) => mode == MergeMode::Reconcile,
    }
}

/// Returns whether every credential that a merge with this state would carry over is replaced by a
/// token of `wanted`, so that the data need not be read.
#[must_use]
pub fn replaces_all(
    state: &State,
    wanted: &BTreeMap<Host, DesiredCredential>,
    now: Timestamp,
) -> bool {
    state.hosts.iter().all(|(host, entry)| {
        entry.credential.is_none()
            || wanted.get(host).is_some_and(|desired| {
                let token = desired.token.as_ref();
                token.is_some_and(|token| {
                    token.lifetime().freshness(now) != Freshness::Expired
                        && replaces(token, desired, entry.good(now), MergeMode::Reconcile)
                })
            })
    })
}

/// Encodes the docker config: a bare host per auth. A `https://` key would serve the kubelet and
/// break other readers.
fn encode(auths: &BTreeMap<Host, SecretString>) -> SecretString {
    #[derive(Serialize)]
    struct Auth<'a> {
        auth: &'a str,
    }
    #[derive(Serialize)]
    struct Config<'a> {
        auths: BTreeMap<&'a str, Auth<'a>>,
    }
    let auths = auths.iter().map(|(host, auth)| {
        let auth = Auth {
            auth: auth.expose_secret(),
        };
        (host.as_str(), auth)
    });
    // A map of strings always serializes.
    serde_json::to_string(&Config {
        auths: auths.collect(),
    })
    .unwrap_or_default()
    .into()
}

#[cfg(test)]
mod tests;
