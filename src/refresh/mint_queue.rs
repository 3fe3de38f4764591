//! Queues the tokens that are missing, and remembers which namespaces wait for each: an outage
//! costs some calls a token, however many namespaces wait for that token, and holds up no other.
//!
//! Turns follow the rule of the namespaces' queue: the token that has failed the least, and of
//! those the one for the namespace that was served the longest ago. A region that doesn't answer
//! holds up no other. A token that no namespace waits for leaves the queue.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::{
    cluster::namespace::Namespace,
    process::backoff::Backoff,
    registry::Region,
    token::{TokenKey, cache::MintError},
};

/// A host that never had a credential counts as overdue for so long after it was first wanted.
const OVERDUE_FOR: SignedDuration = SignedDuration::from_hours(24);

/// The tokens that are missing, and the namespaces that wait for them.
#[derive(Debug, Default)]
pub(super) struct MintQueue {
    wanted: HashMap<TokenKey, Wanted>,
    waits: HashMap<Namespace, Wait>,
    /// The tokens that wait for their turn, by region.
    queued: BTreeMap<Region, BTreeMap<Rank, BTreeMap<u64, TokenKey>>>,
    /// How many tokens of each region are being minted.
    minting: BTreeMap<Region, usize>,
    /// The tokens that failed, by the time of the next try.
    retries: BTreeSet<(Instant, TokenKey)>,
    /// When each namespace was served last, in turns.
    served: HashMap<Namespace, u64>,
    turns: u64,
}

/// The order of tokens: by failures, then by the last turn of the namespace that asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    failures: u32,
    served: u64,
}

#[derive(Debug)]
struct Wait {
    keys: BTreeSet<TokenKey>,
    overdue: Overdue,
}

/// Since when the credentials that a namespace waits for are overdue.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Overdue {
    /// The first of those that the namespace once had.
    renewal: Option<Timestamp>,
    /// Those that the namespace never had: when each was first wanted.
    first_wanted: Vec<Timestamp>,
}

impl Overdue {
    /// Adds a credential whose renewal was due at `since`.
    pub(super) fn add_renewal(&mut self, since: Timestamp) {
        self.renewal = self.renewal.into_iter().chain([since]).min();
    }

    /// Adds a credential that never was there and was first wanted at `since`.
    pub(super) fn add_first(&mut self, since: Timestamp) {
        self.first_wanted.push(since);
    }

    /// Returns since when the first credential that counts at `now` is overdue. A host without a
    /// credential for a day doesn't count: most likely, the image's name has a mistake.
    fn since(&self, now: Timestamp) -> Option<Timestamp> {
        let counts = |since: &&Timestamp| now.duration_since(**since) <= OVERDUE_FOR;
        let first_wanted = self.first_wanted.iter().filter(counts).copied();
        self.renewal.into_iter().chain(first_wanted).min()
    }
}

#[derive(Debug)]
struct Wanted {
    stage: Stage,
    backoff: Backoff,
    /// The error of the last try.
    error: Option<MintError>,
    /// The namespaces that asked during the first try, and don't know its result.
    asking: HashSet<Namespace>,
    /// The namespaces that know that minting fails, and wait.
    waiting: HashSet<Namespace>,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// With the turn in which the token was asked for.
    Queued(Rank, u64),
    Minting,
    /// Failed; the next try is not before then.
    Pausing(Instant),
}

/// The status of a token.
#[derive(Debug)]
pub(super) enum MintStatus<'a> {
    /// No namespace has asked for the token.
    Unknown,
    /// The first try is queued or in progress.
    Minting,
    /// The last try ended with this error, and no write has to wait for the next.
    Failing(&'a MintError),
}

impl MintQueue {
    /// Returns the status of a token.
    pub(super) fn status(&self, key: &TokenKey) -> MintStatus<'_> {
        match self.wanted.get(key) {
            None => MintStatus::Unknown,
            Some(Wanted {
                error: Some(error), ..
            }) => MintStatus::Failing(error),
            Some(_) => MintStatus::Minting,
        }
    }

    /// Has a namespace wait for these tokens, and no longer for others. Tokens that no namespace
    /// asked for yet are queued.
    pub(super) fn wait(
        &mut self,
        namespace: &Namespace,
        missing: &BTreeSet<TokenKey>,
        overdue: Overdue,
    ) {
        for key in missing {
            if !self.wanted.contains_key(key) {
                let stage = self.enqueue(key, 0, namespace);
                let wanted = Wanted {
                    stage,
                    backoff: Backoff::default(),
                    error: None,
                    asking: HashSet::new(),
                    waiting: HashSet::new(),
                };
                self.wanted.insert(key.clone(), wanted);
            }
            if let Some(wanted) = self.wanted.get_mut(key) {
                let waiters = match wanted.error {
                    None => &mut wanted.asking,
                    Some(_) => &mut wanted.waiting,
                };
                waiters.insert(namespace.clone());
            }
        }
        let wait = Wait {
            keys: missing.clone(),
            overdue,
        };
        let before = self.waits.insert(namespace.clone(), wait);
        let before = before.into_iter().flat_map(|wait| wait.keys);
        for key in before.filter(|key| !missing.contains(key)) {
            self.abandon(namespace, &key);
        }
    }

    /// Returns whether a namespace waits for all of these tokens already.
    pub(super) fn is_waiting(&self, namespace: &Namespace, keys: &BTreeSet<TokenKey>) -> bool {
        let wait = self.waits.get(namespace);
        wait.is_some_and(|wait| keys.is_subset(&wait.keys))
    }

    /// Has a namespace no longer wait.
    pub(super) fn leave(&mut self, namespace: &Namespace) {
        let wait = self.waits.remove(namespace);
        for key in wait.into_iter().flat_map(|wait| wait.keys) {
            self.abandon(namespace, &key);
        }
    }

    /// Forgets a namespace that no longer exists, with its last turn.
    pub(super) fn forget(&mut self, namespace: &Namespace) {
        self.leave(namespace);
        self.served.remove(namespace);
    }

    fn abandon(&mut self, namespace: &Namespace, key: &TokenKey) {
        let Some(wanted) = self.wanted.get_mut(key) else {
            return;
        };
        wanted.asking.remove(namespace);
        wanted.waiting.remove(namespace);
        let is_last = wanted.asking.is_empty() && wanted.waiting.is_empty();
        if is_last && let Stage::Queued(rank, asked) = wanted.stage {
            self.dequeue(key, rank, asked);
            self.wanted.remove(key);
        }
    }

    fn enqueue(&mut self, key: &TokenKey, failures: u32, namespace: &Namespace) -> Stage {
        self.turns += 1;
        let rank = Rank {
            failures,
            served: self.served.get(namespace).copied().unwrap_or_default(),
        };
        let queued = self.queued.entry(key.region.clone()).or_default();
        let equals = queued.entry(rank).or_default();
        equals.insert(self.turns, key.clone());
        Stage::Queued(rank, self.turns)
    }

    fn dequeue(&mut self, key: &TokenKey, rank: Rank, asked: u64) {
        let Some(queued) = self.queued.get_mut(&key.region) else {
            return;
        };
        if let Some(equals) = queued.get_mut(&rank) {
            equals.remove(&asked);
            if equals.is_empty() {
                queued.remove(&rank);
            }
        }
        if queued.is_empty() {
            self.queued.remove(&key.region);
        }
    }

    /// Takes the token whose turn it is: of the region with the fewest tokens being minted. There
    /// are few regions: unknown ones are bounded where tokens are minted.
    pub(super) fn pop(&mut self) -> Option<TokenKey> {
        let in_flight = |region: &Region| self.minting.get(region).copied().unwrap_or_default();
        // Of equals the first and the last in alternation: a crowd of tokens that time out delays
        // no later one by all of the crowd, and a later crowd delays none that was first.
        let is_last_first = self.turns.is_multiple_of(2);
        let regions = self.queued.iter();
        let firsts = regions.filter_map(|(region, queued)| {
            let (rank, equals) = queued.first_key_value()?;
            let (asked, key) = if is_last_first {
                equals.last_key_value()?
            } else {
                equals.first_key_value()?
            };
            Some((region, *rank, *asked, key))
        });
        let (_, rank, asked, key) =
            firsts.min_by_key(|(region, rank, asked, _)| (in_flight(region), *rank, *asked))?;
        let key = key.clone();
        self.dequeue(&key, rank, asked);
        *self.minting.entry(key.region.clone()).or_default() += 1;
        self.turns += 1;
        if let Some(wanted) = self.wanted.get_mut(&key) {
            wanted.stage = Stage::Minting;
            // The namespace that asked has had its turn.
            let askers = wanted.asking.iter().chain(&wanted.waiting).take(1);
            self.served
                .extend(askers.map(|it| (it.clone(), self.turns)));
        }
        Some(key)
    }

    /// Notes that minting a token has ended, whatever the result.
    pub(super) fn release(&mut self, key: &TokenKey) {
        if let Some(count) = self.minting.get_mut(&key.region) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.minting.remove(&key.region);
            }
        }
    }

    /// Notes that a token is there. Returns all namespaces that waited for the token, and how often
    /// minting had failed.
    pub(super) fn available(&mut self, key: &TokenKey) -> (HashSet<Namespace>, u32) {
        let Some(mut wanted) = self.wanted.remove(key) else {
            return Default::default();
        };
        match wanted.stage {
            Stage::Queued(rank, asked) => self.dequeue(key, rank, asked),
            Stage::Pausing(until) => {
                self.retries.remove(&(until, key.clone()));
            }
            Stage::Minting => {}
        }
        wanted.waiting.extend(wanted.asking);
        for namespace in &wanted.waiting {
            if let Some(wait) = self.waits.get_mut(namespace) {
                wait.keys.remove(key);
                if wait.keys.is_empty() {
                    self.waits.remove(namespace);
                }
            }
        }
        (wanted.waiting, wanted.backoff.failures())
    }

    /// Notes that minting a token failed. Returns the namespaces that don't know that yet, and the
    /// time until the next try.
    pub(super) fn failed(
        &mut self,
        key: &TokenKey,
        error: MintError,
        now: Instant,
    ) -> (HashSet<Namespace>, Duration) {
        let Some(wanted) = self.wanted.get_mut(key) else {
            return Default::default();
        };
        // Each token has its own jitter, so that not all are retried at once after an outage.
        let jitter = format!("{} {:?}", key.identity, key.region);
        let pause = wanted.backoff.next(&jitter);
        wanted.stage = Stage::Pausing(now + pause);
        wanted.error = Some(error);
        self.retries.insert((now + pause, key.clone()));
        let asking = std::mem::take(&mut wanted.asking);
        wanted.waiting.extend(asking.iter().cloned());
        (asking, pause)
    }

    /// Queues the tokens whose pause is over and that a namespace waits for; forgets the others.
    pub(super) fn retry(&mut self, now: Instant) {
        while self.retries.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.retries.pop_first() else {
                return;
            };
            let Some(wanted) = self.wanted.get(&key) else {
                continue;
            };
            let Some(namespace) = wanted.waiting.iter().chain(&wanted.asking).next().cloned()
            else {
                self.wanted.remove(&key);
                continue;
            };
            let stage = self.enqueue(&key, wanted.backoff.failures(), &namespace);
            if let Some(wanted) = self.wanted.get_mut(&key) {
                wanted.stage = stage;
            }
        }
    }

    /// Returns when the first pause is over.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.retries.first().map(|(at, _)| *at)
    }

    /// Ends all pauses: minting may succeed after the machine slept.
    pub(super) fn clear_backoffs(&mut self, now: Instant) {
        let retries = std::mem::take(&mut self.retries);
        for (_, key) in retries {
            if let Some(wanted) = self.wanted.get_mut(&key) {
                wanted.stage = Stage::Pausing(now);
                self.retries.insert((now, key));
            }
        }
    }

    /// Returns whether a namespace waits for a token that isn't being minted: an admission may mint
    /// the token sooner.
    pub(super) fn is_wanted(&self, key: &TokenKey) -> bool {
        let wanted = self.wanted.get(key);
        wanted.is_some_and(|wanted| !matches!(wanted.stage, Stage::Minting))
    }

    /// Returns every token that a namespace waits for and that isn't being minted.
    pub(super) fn wanted_keys(&self) -> Vec<TokenKey> {
        let keys = self.wanted.keys();
        keys.filter(|key| self.is_wanted(key)).cloned().collect()
    }

    /// Returns how many namespaces wait.
    pub(super) fn waiting_count(&self) -> usize {
        self.waits.len()
    }

    /// Returns since when the first credential that a namespace waits for is overdue at `now`.
    pub(super) fn overdue_since(&self, now: Timestamp) -> Option<Timestamp> {
        let waits = self.waits.values();
        waits.filter_map(|wait| wait.overdue.since(now)).min()
    }
}

#[cfg(test)]
mod tests;
