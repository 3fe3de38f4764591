//! Single flight: the mints that are in flight or queued, which callers share, and how many there
//! may be.
//!
//! A client that reaches the webhook's port can name registries, so the work that names alone cause
//! is bounded here, by lanes: a full lane delays no other. No operation here visits more than one
//! key, or more than [`MAX_UNPROVEN`].

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

/// The most flights in one lane, of some two kilobytes each. At 150 ms a mint, flights further
/// behind would not begin within any admission's deadline.
pub(super) const MAX_FLIGHTS: usize = 1024;
/// The most endpoints that are remembered to have given a token. AWS has fewer than 200; more can
/// only come from an endpoint of the admin's own that answers for every region.
const MAX_PROVEN: usize = 512;
/// The first pause after a failure where nobody has a usable token; it doubles up to
/// [`MISSING_CEILING`].
const MISSING_FLOOR: Duration = Duration::from_millis(250);
/// The longest pause where nobody has a usable token: Pods wait, and the kubelet's first retries
/// come within 13 s.
pub(super) const MISSING_CEILING: Duration = Duration::from_secs(2);
/// The first pause after a failed renewal of a token that is still good; it doubles up to
/// [`RENEWAL_CEILING`].
const RENEWAL_FLOOR: Duration = Duration::from_secs(1);
/// The longest pause between renewals of a token that is still good.
pub(super) const RENEWAL_CEILING: Duration = Duration::from_mins(5);

/// A flight as its waiters share it.
pub(super) type Flight = Shared<Minting>;
type Minting = BoxFuture<'static, Result<Arc<Token>, MintError>>;

/// A class of flights with permits of its own, so that no other class waits for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lane {
    /// Admissions at endpoints that have given a token.
    Proven,
    /// Admissions at endpoints of known regions that have given none yet: it may not exist, or not
    /// be reachable from here.
    Untried,
    /// Renewals: the caller has chosen the tokens to renew, and admissions must not delay them.
    Renewal,
    /// Regions that are in no table and have given no token. They wait for nothing, as there are
    /// few at a time.
    Unproven,
}

/// Why a flight is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// An admission, or a renewal ahead of the next one.
    Admission,
    /// The leader's renewal.
    Renewal,
}

/// A failure that is remembered for a short time.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    pub(super) error: MintError,
    pub(super) count: u32,
    pub(super) at: Instant,
}

/// A flight in the table.
struct Entry {
    id: u64,
    lane: Lane,
    stage: Stage,
}

/// The stage of a flight.
enum Stage {
    /// The flight waits for a permit. Its waiters own it: without any, it is dropped.
    Queued(Option<WeakShared<Minting>>),
    /// The flight mints, whether or not anybody still waits.
    Minting(Flight),
}

/// The flights and their bounds.
#[derive(Default)]
pub(super) struct Flights {
    entries: HashMap<TokenKey, Entry>,
    in_lane: [usize; 4],
    proven: HashSet<(Region, Endpoint)>,
    /// The tokens of unproven regions that are in flight (`None` the first time) or failed a moment
    /// ago.
    unproven: HashMap<TokenKey, Option<Failure>>,
    next_id: u64,
}

impl Lane {
    pub(super) const ALL: [Self; 4] = [Self::Proven, Self::Untried, Self::Renewal, Self::Unproven];
}

impl Failure {
    /// Returns the failure of another try, after `before`.
    pub(super) fn after(before: Option<&Self>, error: MintError) -> Self {
        Self {
            error,
            count: before.map_or(0, |before| before.count.saturating_add(1)),
            at: Instant::now(),
        }
    }

    /// Returns whether it is too soon to try again.
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
            // The last waiter is being dropped at this moment.
            let id = entry.id;
            self.end(key, id);
        }
        flight
    }

    /// Reserves a new flight and returns its number and lane, or why there is no room. The flight
    /// has to [`begin`](Self::begin) before the lock is released.
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

    /// Reserves one of the few keys of unproven regions. A new key replaces the one that failed
    /// longest ago and may be tried again.
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

    /// Begins a flight that was reserved.
    pub(super) fn begin(&mut self, key: &TokenKey, (id, lane): (u64, Lane), flight: &Flight) {
        self.in_lane[lane as usize] += 1;
        let stage = Stage::Queued(flight.downgrade());
        self.entries.insert(key.clone(), Entry { id, lane, stage });
    }

    /// Notes that a flight has its permit: from here on it continues without waiters.
    pub(super) fn mint(&mut self, key: &TokenKey, id: u64, flight: Flight) {
        if let Some(entry) = self.entries.get_mut(key).filter(|entry| entry.id == id) {
            entry.stage = Stage::Minting(flight);
        }
    }

    /// Removes a flight, however it ended.
    pub(super) fn end(&mut self, key: &TokenKey, id: u64) {
        if self.entries.get(key).is_none_or(|entry| entry.id != id) {
            return;
        }
        if let Some(entry) = self.entries.remove(key) {
            self.in_lane[entry.lane as usize] -= 1;
        }
        // The flight had no result at all.
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
    /// Returns the number of flights.
    pub(super) fn count(&self) -> usize {
        assert_eq!(self.in_lane.iter().sum::<usize>(), self.entries.len());
        self.entries.len()
    }

    /// Returns how many tokens of unproven regions are in flight or failed a moment ago.
    pub(super) fn unproven(&self) -> usize {
        self.unproven.len()
    }
}
