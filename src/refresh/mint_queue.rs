//! Which tokens are to be minted, are being minted, or can't be had, and which namespaces wait for them: an outage costs some
//! calls a token, however many namespaces wait for it, and holds up nobody else.
//!
//! Turns follow the same rule as those of the namespaces: what has failed the least, and of that what the namespace wants
//! that was served the longest ago. A region that doesn't answer holds up no other. What nobody waits for leaves the queue.

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

/// A host for which nobody could ever mint counts as overdue for so long after it was first wanted.
const HOPELESS_AFTER: SignedDuration = SignedDuration::from_hours(24);

/// The tokens that are not simply there.
#[derive(Debug, Default)]
pub(super) struct MintQueue {
    wanted: HashMap<TokenKey, Wanted>,
    waits: HashMap<Namespace, Wait>,
    /// What is to be minted and isn't yet, by region.
    queued: BTreeMap<Region, BTreeMap<Rank, BTreeMap<u64, TokenKey>>>,
    /// How many of each region's are being minted.
    minting: BTreeMap<Region, usize>,
    /// When which is to be tried again.
    retries: BTreeSet<(Instant, TokenKey)>,
    /// When each namespace was served last, in turns.
    served: HashMap<Namespace, u64>,
    turns: u64,
}

/// Failed the least first; of those wanted by who was served the longest ago.
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
    /// The first of those that it had once.
    pub(super) renewal: Option<Timestamp>,
    /// Those that it never had: when each was first wanted.
    pub(super) wishes: Vec<Timestamp>,
}

impl Overdue {
    /// Returns since when the first is overdue that counts at `now`: what nobody could mint for within a day is most likely a
    /// mistake in an image's name.
    fn since(&self, now: Timestamp) -> Option<Timestamp> {
        let is_hopeful = |since: &&Timestamp| now.duration_since(**since) <= HOPELESS_AFTER;
        let wishes = self.wishes.iter().filter(is_hopeful).copied();
        self.renewal.into_iter().chain(wishes).min()
    }
}

#[derive(Debug)]
struct Wanted {
    stage: Stage,
    backoff: Backoff,
    /// Why it couldn't be had the last time, if ever.
    error: Option<MintError>,
    /// The namespaces that asked during the first try, and don't know how it ends.
    asking: HashSet<Namespace>,
    /// The namespaces that know that it can't be had, and wait.
    waiting: HashSet<Namespace>,
}

#[derive(Debug, Clone, Copy)]
enum Stage {
    /// With when it was asked for, in turns.
    Queued(Rank, u64),
    Minting,
    /// Not to be tried again before then.
    Pausing(Instant),
}

/// What is known of a token that is wanted.
#[derive(Debug)]
pub(super) enum MintStatus<'a> {
    /// Nobody has asked for it.
    Unknown,
    /// It is on its way.
    Minting,
    /// It couldn't be had, by this error, and nobody need wait for the next try's end.
    Failing(&'a MintError),
}

impl MintQueue {
    /// Returns what is known of a token.
    pub(super) fn status(&self, key: &TokenKey) -> MintStatus<'_> {
        match self.wanted.get(key) {
            None => MintStatus::Unknown,
            Some(Wanted {
                error: Some(error), ..
            }) => MintStatus::Failing(error),
            Some(_) => MintStatus::Minting,
        }
    }

    /// Has a namespace wait for these tokens, and for no others any more. Those that nobody asked for yet are queued.
    pub(super) fn wait(
        &mut self,
        namespace: &Namespace,
        lacking: &BTreeSet<TokenKey>,
        overdue: Overdue,
    ) {
        for key in lacking {
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
            keys: lacking.clone(),
            overdue,
        };
        let before = self.waits.insert(namespace.clone(), wait);
        let before = before.into_iter().flat_map(|wait| wait.keys);
        for key in before.filter(|key| !lacking.contains(key)) {
            self.abandon(namespace, &key);
        }
    }

    /// Returns whether a namespace waits for all of these tokens already.
    pub(super) fn is_waiting(&self, namespace: &Namespace, keys: &BTreeSet<TokenKey>) -> bool {
        let wait = self.waits.get(namespace);
        wait.is_some_and(|wait| keys.is_subset(&wait.keys))
    }

    /// Has a namespace wait no more.
    pub(super) fn leave(&mut self, namespace: &Namespace) {
        let wait = self.waits.remove(namespace);
        for key in wait.into_iter().flat_map(|wait| wait.keys) {
            self.abandon(namespace, &key);
        }
    }

    /// Forgets a namespace that is no more.
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

    /// Takes the token whose turn it is: of the region that has the fewest under way. There are few regions: those that
    /// nobody has heard of are bounded where tokens are minted.
    pub(super) fn take_first(&mut self) -> Option<TokenKey> {
        let under_way = |region: &Region| self.minting.get(region).copied().unwrap_or_default();
        // Of equals the first and the last by turns: a crowd that doesn't answer makes nobody who comes later wait for all of
        // it, and a crowd that comes later nobody who was first.
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
            firsts.min_by_key(|(region, rank, asked, _)| (under_way(region), *rank, *asked))?;
        let key = key.clone();
        self.dequeue(&key, rank, asked);
        *self.minting.entry(key.region.clone()).or_default() += 1;
        self.turns += 1;
        if let Some(wanted) = self.wanted.get_mut(&key) {
            wanted.stage = Stage::Minting;
            // Whoever asked has had its turn.
            let askers = wanted.asking.iter().chain(&wanted.waiting).take(1);
            self.served
                .extend(askers.map(|it| (it.clone(), self.turns)));
        }
        Some(key)
    }

    /// Notes that one that was taken is minted no more, whatever came of it.
    pub(super) fn minted(&mut self, key: &TokenKey) {
        if let Some(count) = self.minting.get_mut(&key.region) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.minting.remove(&key.region);
            }
        }
    }

    /// Notes that a token is there. Returns all who waited for it, and how often it had failed.
    pub(super) fn landed(&mut self, key: &TokenKey) -> (HashSet<Namespace>, u32) {
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

    /// Notes that a token can't be had. Returns those who don't know it yet, and how long it is left alone.
    pub(super) fn failed(
        &mut self,
        key: &TokenKey,
        error: MintError,
        now: Instant,
    ) -> (HashSet<Namespace>, Duration) {
        let Some(wanted) = self.wanted.get_mut(key) else {
            return Default::default();
        };
        // Each token by itself: in an outage, many are not to be tried again in the same moment.
        let jitter = format!("{} {:?}", key.identity, key.region);
        let pause = wanted.backoff.next(&jitter);
        wanted.stage = Stage::Pausing(now + pause);
        wanted.error = Some(error);
        self.retries.insert((now + pause, key.clone()));
        let asking = std::mem::take(&mut wanted.asking);
        wanted.waiting.extend(asking.iter().cloned());
        (asking, pause)
    }

    /// Queues those whose pause is over and that somebody waits for; forgets the others.
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

    /// Ends all pauses: what was true before a sleep may not be now.
    pub(super) fn clear_backoffs(&mut self, now: Instant) {
        let retries = std::mem::take(&mut self.retries);
        for (_, key) in retries {
            if let Some(wanted) = self.wanted.get_mut(&key) {
                wanted.stage = Stage::Pausing(now);
                self.retries.insert((now, key));
            }
        }
    }

    /// Returns whether somebody waits for a token that isn't being minted: an admission may get it sooner.
    pub(super) fn is_wanting(&self, key: &TokenKey) -> bool {
        let wanted = self.wanted.get(key);
        wanted.is_some_and(|wanted| !matches!(wanted.stage, Stage::Minting))
    }

    /// Returns every token that somebody waits for and that isn't being minted.
    pub(super) fn wanting(&self) -> Vec<TokenKey> {
        let keys = self.wanted.keys();
        keys.filter(|key| self.is_wanting(key)).cloned().collect()
    }

    /// Returns how many namespaces wait.
    pub(super) fn waiting(&self) -> usize {
        self.waits.len()
    }

    /// Returns since when the first of those is overdue who wait, as far as they count at `now`.
    pub(super) fn overdue_since(&self, now: Timestamp) -> Option<Timestamp> {
        let waits = self.waits.values();
        waits.filter_map(|wait| wait.overdue.since(now)).min()
    }
}

#[cfg(test)]
mod tests;
