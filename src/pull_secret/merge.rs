//! Merges what a pull secret has with what it is to have.
//!
//! Whatever is there stays unless the merge names it: a host that nobody named is nobody's to remove. Each step below is
//! one rule; their order is the order in which a later rule may overrule an earlier one.

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
    rules::MAX_HOSTS,
    token::{Freshness, Token},
};

/// Who merges, and so what a token of another identity may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeMode {
    /// An admission adds. A credential that is still good is not replaced by another identity's: that change is the
    /// leader's, because replicas may read different configurations for a while. What is wanted is wanted now.
    Add,
    /// The leader reconciles: the identities are those that the configuration says now. What is wanted was noted before.
    Reconcile,
}

/// What a merge changes.
#[derive(Debug, Clone, Copy)]
pub struct Changes<'a> {
    /// Who merges.
    pub mode: MergeMode,
    /// The hosts that are to be there, each with a token if there is one.
    pub wanted: &'a BTreeMap<Host, DesiredCredential>,
    /// The hosts that are to be forgotten; one with a credential that is still good stays until that ends.
    pub forgotten: &'a BTreeSet<Host>,
    /// The hosts whose credential is to be taken out at once.
    pub revoked: &'a BTreeSet<Host>,
    /// The state before somebody else wrote or deleted the Secret: what it had is wanted still.
    pub remembered: Option<&'a State>,
    /// How many hosts there may be; what is there already stays though there are more.
    pub limit: usize,
}

/// What comes of a merge.
#[derive(Debug)]
pub struct Merged {
    /// What is to be written; `None` if nothing would change.
    pub secret: Option<PullSecret>,
    /// The hosts for which the limit leaves no room.
    pub left_out: Vec<Host>,
}

/// Merges what is there with the changes at `now`. What is there and not known to be ours counts as nothing.
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
    merging.recall(changes);
    let before: BTreeSet<Host> = merging.hosts.keys().cloned().collect();
    merging.want(changes);
    // A limit that is lower than it was takes nothing away that is there.
    let limit = changes.limit.max(before.len()).min(MAX_HOSTS);
    merging.make_room(limit, changes.wanted);
    let left_out = merging.leave_out(limit, &before);
    let Merging {
        mut hosts, auths, ..
    } = merging;
    let data = encode(&auths);
    hosts.shrink();
    let digest = DataDigest::of(data.expose_secret().as_bytes());
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

/// A merge under way.
struct Merging {
    hosts: Hosts,
    auths: BTreeMap<Host, SecretString>,
    now: Timestamp,
}

impl Merging {
    /// Takes over what is there. A credential leaves only when it has expired, or when somebody asks.
    fn carry_over(&mut self, state: &State, existing: &Existing, changes: Changes<'_>) {
        for (host, entry) in state.hosts.iter() {
            let is_good = entry.good(self.now).is_some();
            let is_revoked = changes.revoked.contains(host);
            if changes.forgotten.contains(host) && (!is_good || is_revoked) {
                continue;
            }
            let auth = existing.auths.get(host);
            // Where a public entry matches, the kubelet doesn't pull anonymously any more.
            let is_left =
                changes.mode == MergeMode::Reconcile && !changes.wanted.contains_key(host);
            let leaves = is_revoked || !is_good && (is_public(host) || is_left);
            let credential = entry.credential.filter(|_| auth.is_some() && !leaves);
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

    /// Wants what the Secret had before somebody else wrote it, but for what is to be forgotten.
    fn recall(&mut self, changes: Changes<'_>) {
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

    /// Notes who is wanted, and gives each the token that there is for it, if that is better than what it has.
    fn want(&mut self, changes: Changes<'_>) {
        for (host, desired) in changes.wanted {
            let had = self.hosts.get(host);
            let mut entry = had.cloned().unwrap_or(HostState {
                demand: Demand::new(self.now),
                credential: None,
            });
            if changes.mode == MergeMode::Add && !entry.demand.is_noted(self.now) {
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

    /// Forgets hosts that nobody wants now and that have no good credential, as many as have to go: first those that never
    /// had one, of the others those whose demand is the longest ago.
    fn make_room(&mut self, limit: usize, wanted: &BTreeMap<Host, DesiredCredential>) {
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

    /// Takes out again what is new and doesn't fit: the last of them.
    fn leave_out(&mut self, limit: usize, before: &BTreeSet<Host>) -> Vec<Host> {
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

/// Returns whether a token is better than the credential that is good now: a shorter life never replaces a longer one of the
/// same identity.
fn replaces(
    token: &Token,
    desired: &DesiredCredential,
    good: Option<Credential>,
    mode: MergeMode,
) -> bool {
    match good {
        None => true,
        Some(had) if had.identity == desired.identity => {
            token.lifetime().expires_at > had.lifetime.expires_at
        }
        Some(_) => mode == MergeMode::Reconcile,
    }
}

/// Returns whether every credential that a merge with this state would carry over is replaced by a token of `wanted`, so that
/// nothing of the data has to be read.
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

/// Encodes the docker config: a bare host per auth. A `https://` key would serve the kubelet and break other readers.
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
