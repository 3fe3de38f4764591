//! The flights that are under way: who waits for each, and how many there may be.
//!
//! Whoever reaches the webhook's port can name registries, so the work that names alone make is bounded here, by lanes: a
//! crowd in one of them holds up no other. Nothing here looks at more than one key, or at more than [`MAX_UNPROVEN`].

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use futures::future::{BoxFuture, Shared, WeakShared};
use tokio::time::Instant;

use super::{
    Token, TokenKey,
    error::{MAX_UNPROVEN, MintError},
};
use crate::registry::{Endpoint, Region};

/// Flights in one lane, of some two kilobytes each. At 150 ms a mint, what is further behind would not have its turn
/// within any admission's deadline.
pub(super) const MAX_FLIGHTS: usize = 1024;
/// Endpoints that are remembered to have given a token. AWS has fewer than 200; more can only come from an endpoint of the
/// admin's own that answers for every region.
const MAX_PROVEN: usize = 512;
/// The first pause after a failure where nobody has a usable token; it doubles up to [`MISSING_CEILING`].
const MISSING_FLOOR: Duration = Duration::from_millis(250);
/// The longest pause where nobody has a usable token: Pods wait, and the kubelet's first retries come within 13 s.
pub(super) const MISSING_CEILING: Duration = Duration::from_secs(2);
/// The first pause after a failed renewal of a token that is still good; it doubles up to [`RENEWAL_CEILING`].
const RENEWAL_FLOOR: Duration = Duration::from_secs(1);
/// The longest pause between renewals of a token that is still good.
pub(super) const RENEWAL_CEILING: Duration = Duration::from_mins(5);

/// What all who wait for a flight hold.
pub(super) type Flight = Shared<Minting>;
type Minting = BoxFuture<'static, Result<Arc<Token>, MintError>>;

/// Who shares permits with whom, so that no other has to wait for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Admissions at endpoints that have given a token.
    Proven,
    /// Admissions at endpoints of known regions that have given none yet: it may not exist, or not be reachable from here.
    Untried,
    /// Renewals: the caller has chosen what to renew, and admissions are not to hold it up.
    Renewal,
    /// Regions that are in no table and have given no token. They wait for nothing, as there are few at a time.
    Unproven,
}

/// Why a flight is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// An admission, or a look ahead for the next one.
    Admission,
    /// The leader's renewal.
    Renewal,
}

/// A failure that is remembered for a moment.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) error: MintError,
    pub(super) count: u32,
    pub(super) at: Instant,
}

/// What is known of a flight.
struct Entry {
    id: u64,
    lane: Lane,
    stage: Stage,
}

/// How far a flight is.
enum Stage {
    /// It waits for its turn, by those who wait for it, and is gone when they are.
    Queued(Option<WeakShared<Minting>>),
    /// It mints, whoever still waits.
    Minting(Flight),
}

/// The flights under way and what bounds them.
#[derive(Default)]
pub(super) struct Flights {
    entries: HashMap<TokenKey, Entry>,
    in_lane: [usize; 4],
    proven: HashSet<(Region, Endpoint)>,
    /// The tokens of unproven regions in hand; `None` while they are in flight for the first time.
    unproven: HashMap<TokenKey, Option<Failure>>,
    next_id: u64,
}

impl Lane {
    pub(super) const ALL: [Self; 4] = [Self::Proven, Self::Untried, Self::Renewal, Self::Unproven];
}

impl Failure {
    /// The failure of another try, after `before`.
    pub(super) fn after(before: Option<&Self>, error: MintError) -> Self {
        Self {
            error,
            count: before.map_or(0, |before| before.count.saturating_add(1)),
            at: Instant::now(),
        }
    }

    /// Whether it is too soon to try again.
    pub(super) fn is_pausing(&self, has_token: bool) -> bool {
        let (floor, ceiling) = if has_token {
            (RENEWAL_FLOOR, RENEWAL_CEILING)
        } else {
            (MISSING_FLOOR, MISSING_CEILING)
        };
        let pause = floor
            .saturating_mul(2_u32.saturating_pow(self.count))
            .min(ceiling);
        self.at.elapsed() < pause
    }
}

impl Flights {
    /// Joins the flight for a key, if there is one.
    pub(super) fn join(&mut self, key: &TokenKey) -> Option<Flight> {
        let entry = self.entries.get(key)?;
        let flight = match &entry.stage {
            Stage::Queued(flight) => flight.as_ref().and_then(WeakShared::upgrade),
            Stage::Minting(flight) => Some(flight.clone()),
        };
        if flight.is_none() {
            // Its last waiter goes in this moment.
            let id = entry.id;
            self.end(key, id);
        }
        flight
    }

    /// Reserves a place for a new flight, or says why there is none: its number and its lane. It has to
    /// [`begin`](Self::begin) before the lock is released.
    pub(super) fn reserve(
        &mut self,
        key: &TokenKey,
        purpose: Purpose,
    ) -> Result<(u64, Lane), MintError> {
        let lane = self.lane(key, purpose);
        if lane == Lane::Unproven {
            self.reserve_unproven(key)?;
        } else if self.in_lane[lane as usize] >= MAX_FLIGHTS {
            return Err(MintError::TooManyMints);
        }
        self.next_id += 1;
        Ok((self.next_id, lane))
    }

    fn lane(&self, key: &TokenKey, purpose: Purpose) -> Lane {
        let is_proven = self.is_proven(key);
        if !is_proven && !key.region.is_known() {
            Lane::Unproven
        } else if purpose == Purpose::Renewal {
            Lane::Renewal
        } else if is_proven {
            Lane::Proven
        } else {
            Lane::Untried
        }
    }

    /// The longest failed gives way to a new one once it may be tried again itself.
    fn reserve_unproven(&mut self, key: &TokenKey) -> Result<(), MintError> {
        if self.unproven.contains_key(key) {
            return Ok(());
        }
        if self.unproven.len() >= MAX_UNPROVEN {
            let idle = self.unproven.iter().filter_map(|(key, failure)| {
                let failure = failure.as_ref()?;
                let is_idle = !failure.is_pausing(false) && !self.entries.contains_key(key);
                is_idle.then_some((failure.at, key))
            });
            let longest = idle.min_by_key(|(at, _)| *at).map(|(_, key)| key.clone());
            self.unproven
                .remove(&longest.ok_or(MintError::TooManyRegions)?);
        }
        self.unproven.insert(key.clone(), None);
        Ok(())
    }

    /// Begins the flight of a place that was reserved.
    pub(super) fn begin(&mut self, key: &TokenKey, (id, lane): (u64, Lane), flight: &Flight) {
        self.in_lane[lane as usize] += 1;
        let stage = Stage::Queued(flight.downgrade());
        self.entries.insert(key.clone(), Entry { id, lane, stage });
    }

    /// Notes that a flight has its turn: from here on it goes on by itself.
    pub(super) fn mint(&mut self, key: &TokenKey, id: u64, flight: Flight) {
        if let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.id == id) {
            entry.stage = Stage::Minting(flight);
        }
    }

    /// Takes a flight off, however it ended.
    pub(super) fn end(&mut self, key: &TokenKey, id: u64) {
        if self.entries.get(key).is_none_or(|entry| entry.id != id) {
            return;
        }
        if let Some(entry) = self.entries.remove(key) {
            self.in_lane[entry.lane as usize] -= 1;
        }
        // It came to no result at all.
        if self.unproven.get(key).is_some_and(Option::is_none) {
            self.unproven.remove(key);
        }
    }

    /// Remembers that an endpoint gave a token.
    pub(super) fn prove(&mut self, key: &TokenKey) {
        if self.proven.len() < MAX_PROVEN {
            self.proven.insert((key.region.clone(), key.endpoint));
        }
        let is_other =
            |other: &TokenKey| (&other.region, other.endpoint) != (&key.region, key.endpoint);
        self.unproven.retain(|other, _| is_other(other));
    }

    /// Returns how the last try for a key of an unproven region failed.
    pub(super) fn failure(&self, key: &TokenKey) -> Option<&Failure> {
        self.unproven.get(key)?.as_ref()
    }

    /// Remembers a failure here if the key is of an unproven region; `false` if it is not.
    pub(super) fn fail(&mut self, key: &TokenKey, error: &MintError) -> bool {
        let Some(failure) = self.unproven.get_mut(key) else {
            return false;
        };
        *failure = Some(Failure::after(failure.as_ref(), error.clone()));
        true
    }

    fn is_proven(&self, key: &TokenKey) -> bool {
        self.proven.contains(&(key.region.clone(), key.endpoint))
    }
}

#[cfg(test)]
impl Flights {
    /// How many are under way.
    pub(super) fn count(&self) -> usize {
        assert_eq!(self.in_lane.iter().sum::<usize>(), self.entries.len());
        self.entries.len()
    }

    /// How many tokens of unproven regions are in hand.
    pub(super) fn unproven(&self) -> usize {
        self.unproven.len()
    }
}
