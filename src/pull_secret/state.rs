//! The state of a pull secret, in an annotation that a metadata watch can see.
//!
//! The state keeps demand apart from supply: for each host when an admission last wanted it, and
//! beside that the credential, if there is one. The states of all pull secrets of the cluster are
//! in memory, so they are small: a list instead of a tree, digests as bytes.

use std::{fmt, fmt::Write as _};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::{
    identity::IdentityHash,
    registry::Host,
    token::{Freshness, Lifetime, rules::MAX_HOSTS},
};

/// The size of the largest state that we write. All annotations together may not exceed 256 KiB.
pub(super) const MAX_STATE_BYTES: usize = 64 * 1024;
/// The most time between the write of a state that was sealed before its Secret had a UID and the
/// creation of that Secret: the difference of two honest clocks, and the duration of the call.
const CREATION_SKEW: SignedDuration = SignedDuration::from_mins(10);
/// How old the record of the last demand may be before a write renews it.
const DEMAND_RECORD_AGE: SignedDuration = SignedDuration::from_hours(24);
const STATE_VERSION: u32 = 2;

/// The state on a pull secret.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// The demand and the credential of each host.
    pub hosts: Hosts,
    /// The digest of the data, which shows whether another client wrote them.
    pub digest: DataDigest,
    /// The order of the writes: milliseconds since 1970, or one more than the write before.
    pub revision: u64,
    /// The proof that one of our replicas wrote the state.
    pub seal: Seal,
}

/// The object that a state belongs to; the seal binds the state to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subject<'a> {
    /// The namespace's name.
    pub namespace: &'a str,
    /// The namespace's UID: a namespace that was deleted and recreated is another.
    pub namespace_uid: &'a str,
    /// The Secret's UID; empty while it is being created.
    pub secret_uid: &'a str,
}

/// The hosts of a pull secret with their states, in the order of the hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hosts(Vec<(Host, HostState)>);

/// The demand and the supply of one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostState {
    /// The demand.
    pub demand: Demand,
    /// The credential; `None` if none could be minted yet, or none any longer.
    pub credential: Option<Credential>,
}

/// The time for which a host has been wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Demand {
    /// The first demand.
    pub since: Timestamp,
    /// The last demand of an admission, at most a few days old: it is written with other changes.
    pub last: Timestamp,
}

/// A credential for one host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Credential {
    /// The identity that minted it.
    pub identity: IdentityHash,
    /// The times of its minting and its expiry.
    pub lifetime: Lifetime,
}

/// SHA-256 of a pull secret's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DataDigest([u8; 32]);

/// The message authentication code of a state: the proof that one of our replicas wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seal([u8; 32]);

/// The reason why a state annotation can't be read.
#[derive(Debug, Error)]
pub enum StateError {
    /// Larger than any that we write.
    #[error("larger than {MAX_STATE_BYTES} bytes")]
    TooLarge,
    /// Not JSON of the right form.
    #[error("not the JSON that we write")]
    Json(#[source] serde_json::Error),
    /// More hosts than we ever write.
    #[error("{0} hosts where at most {MAX_HOSTS} can be")]
    Hosts(usize),
    /// A version that this program doesn't know.
    #[error("version {0} where {STATE_VERSION} was expected")]
    Version(u32),
    /// A host, an identity or a digest that can't be one.
    #[error("a host, an identity or a digest of wrong form")]
    Entry,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireState {
    version: u32,
    revision: u64,
    hosts: std::collections::BTreeMap<String, WireHost>,
    digest: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    seal: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireHost {
    wanted_since: Timestamp,
    wanted_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    minted_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
}

impl WireHost {
    fn parse(self) -> Result<HostState, StateError> {
        let lifetime = self.minted_at.zip(self.expires_at);
        let credential = match (self.identity, lifetime) {
            (None, None) => None,
            (Some(identity), Some((minted_at, expires_at))) => Some(Credential {
                identity: IdentityHash::parse(&identity).ok_or(StateError::Entry)?,
                lifetime: Lifetime {
                    minted_at,
                    expires_at,
                },
            }),
            _ => return Err(StateError::Entry),
        };
        let demand = Demand {
            since: self.wanted_since,
            last: self.wanted_at,
        };
        Ok(HostState { demand, credential })
    }
}

impl From<&HostState> for WireHost {
    fn from(entry: &HostState) -> Self {
        let credential = entry.credential;
        Self {
            wanted_since: entry.demand.since,
            wanted_at: entry.demand.last,
            identity: credential.map(|it| it.identity.to_string()),
            minted_at: credential.map(|it| it.lifetime.minted_at),
            expires_at: credential.map(|it| it.lifetime.expires_at),
        }
    }
}

impl State {
    /// Returns a state in which these hosts are wanted since `now` and have no credential; `None`
    /// if there are no hosts.
    #[must_use]
    pub fn from_wanted_hosts<'a>(
        hosts: impl IntoIterator<Item = &'a Host>,
        now: Timestamp,
    ) -> Option<Self> {
        let wanted = HostState {
            demand: Demand::new(now),
            credential: None,
        };
        let hosts: Hosts = hosts
            .into_iter()
            .map(|host| (host.clone(), wanted.clone()))
            .collect();
        (!hosts.is_empty()).then(|| Self {
            hosts,
            ..Self::default()
        })
    }

    /// Reads the annotation.
    pub fn parse(text: &str) -> Result<Self, StateError> {
        if text.len() > MAX_STATE_BYTES {
            return Err(StateError::TooLarge);
        }
        let wire: WireState = serde_json::from_str(text).map_err(StateError::Json)?;
        if wire.version != STATE_VERSION {
            return Err(StateError::Version(wire.version));
        }
        if wire.hosts.len() > MAX_HOSTS {
            return Err(StateError::Hosts(wire.hosts.len()));
        }
        let hosts = wire.hosts.into_iter().map(|(host, entry)| {
            let host = Host::parse(&host).ok_or(StateError::Entry)?;
            Ok((host, entry.parse()?))
        });
        let seal = match wire.seal.as_str() {
            "" => Seal::default(),
            text => Seal::parse(text).ok_or(StateError::Entry)?,
        };
        Ok(Self {
            hosts: hosts.collect::<Result<_, StateError>>()?,
            digest: DataDigest::parse(&wire.digest).ok_or(StateError::Entry)?,
            revision: wire.revision,
            seal,
        })
    }

    /// Returns the annotation's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        self.text(self.seal.to_string())
    }

    fn text(&self, seal: String) -> String {
        let hosts = self.hosts.iter();
        let wire = WireState {
            version: STATE_VERSION,
            revision: self.revision,
            hosts: hosts
                .map(|(host, entry)| (host.to_string(), entry.into()))
                .collect(),
            digest: self.digest.to_string(),
            seal,
        };
        // A map of strings and dates always serializes.
        serde_json::to_string(&wire).unwrap_or_default()
    }

    /// Returns the text that the seal is made over: the object that the state belongs to, and the
    /// whole state. A name and a UID have no line breaks, so no two states of two objects have the
    /// same text.
    #[must_use]
    pub fn sealed_text(&self, subject: Subject<'_>) -> String {
        let Subject {
            namespace,
            namespace_uid,
            secret_uid,
        } = subject;
        let mut text = format!("{namespace}\n{namespace_uid}\n{secret_uid}\n");
        // Writing to a String can't fail.
        let _ = text.write_str(&self.text(String::new()));
        text
    }

    /// Returns whether the Secret may be the one that this state was created with: a state that was
    /// sealed before its Secret had a UID proves nothing on a Secret that was created at another
    /// time.
    #[must_use]
    pub fn was_created_at(&self, created_at: Timestamp) -> bool {
        let written_at = i64::try_from(self.revision)
            .ok()
            .and_then(|millis| Timestamp::from_millisecond(millis).ok());
        written_at.is_some_and(|at| created_at.duration_since(at).abs() <= CREATION_SKEW)
    }

    /// Returns the freshness of a host's credential at `now`; a host that is not there, or has
    /// none, counts as expired.
    #[must_use]
    pub fn freshness(&self, host: &Host, now: Timestamp) -> Freshness {
        let entry = self.hosts.get(host);
        entry.map_or(Freshness::Expired, |entry| entry.freshness(now))
    }

    /// Returns the soonest expiry of all hosts that have a credential.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        let credentials = self.hosts.iter().filter_map(|(_, entry)| entry.credential);
        credentials.map(|it| it.lifetime.expires_at).min()
    }

    /// Returns whether all credentials have expired by `now`; dates that can't be true count as
    /// expired.
    #[must_use]
    pub fn has_expired(&self, now: Timestamp) -> bool {
        let mut credentials = self.hosts.iter().filter_map(|(_, entry)| entry.credential);
        credentials.all(|it| it.lifetime.is_expired(now))
    }
}

impl HostState {
    /// Returns the freshness of the credential at `now`; none counts as expired.
    #[must_use]
    pub fn freshness(&self, now: Timestamp) -> Freshness {
        self.credential
            .map_or(Freshness::Expired, |it| it.lifetime.freshness(now))
    }

    /// Returns the credential, if it is usable at `now`.
    #[must_use]
    pub fn good(&self, now: Timestamp) -> Option<Credential> {
        self.credential
            .filter(|it| it.lifetime.freshness(now) != Freshness::Expired)
    }
}

impl Demand {
    /// Creates the demand for a host that is wanted from `now` on.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        // To the second: the fraction would only make the annotation longer.
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        Self {
            since: now,
            last: now,
        }
    }

    /// Returns whether the record of the last demand is so recent that one at `now` need not be
    /// written.
    #[must_use]
    pub fn is_recent(self, now: Timestamp) -> bool {
        now.duration_since(self.last) < DEMAND_RECORD_AGE
    }

    /// Returns the demand of two records of the same host: since the earlier, and last at the
    /// later.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self {
            since: self.since.min(other.since),
            last: self.last.max(other.last),
        }
    }
}

impl Hosts {
    /// Returns the state of a host.
    #[must_use]
    pub fn get(&self, host: &Host) -> Option<&HostState> {
        let at = self.search(host).ok()?;
        self.0.get(at).map(|(_, entry)| entry)
    }

    /// Returns whether a host is there.
    #[must_use]
    pub fn contains_key(&self, host: &Host) -> bool {
        self.search(host).is_ok()
    }

    /// Sets the state of a host.
    pub fn insert(&mut self, host: Host, entry: HostState) {
        match self.search(&host) {
            Ok(at) => self.0[at].1 = entry,
            Err(at) => self.0.insert(at, (host, entry)),
        }
    }

    /// Removes a host.
    pub fn remove(&mut self, host: &Host) {
        if let Ok(at) = self.search(host) {
            self.0.remove(at);
        }
    }

    /// Returns all hosts with their states.
    pub fn iter(&self) -> impl Iterator<Item = (&Host, &HostState)> {
        self.0.iter().map(|(host, entry)| (host, entry))
    }

    /// Returns all hosts.
    pub fn keys(&self) -> impl Iterator<Item = &Host> {
        self.0.iter().map(|(host, _)| host)
    }

    /// Returns the number of hosts.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether there is no host.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the state of a host, to change it.
    pub fn get_mut(&mut self, host: &Host) -> Option<&mut HostState> {
        let at = self.search(host).ok()?;
        self.0.get_mut(at).map(|(_, entry)| entry)
    }

    /// Keeps the hosts for which the predicate holds.
    pub fn retain(&mut self, mut keep: impl FnMut(&Host, &HostState) -> bool) {
        self.0.retain(|(host, entry)| keep(host, entry));
    }

    /// Replaces each host by an equal one, which other states may share.
    pub fn share(&mut self, mut equal: impl FnMut(&Host) -> Host) {
        for (host, _) in &mut self.0 {
            *host = equal(host);
        }
    }

    /// Frees the spare capacity.
    pub fn shrink(&mut self) {
        self.0.shrink_to_fit();
    }

    fn search(&self, host: &Host) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.cmp(host))
    }
}

impl FromIterator<(Host, HostState)> for Hosts {
    fn from_iter<T: IntoIterator<Item = (Host, HostState)>>(pairs: T) -> Self {
        let mut hosts = Self::default();
        for (host, entry) in pairs {
            hosts.insert(host, entry);
        }
        hosts.shrink();
        hosts
    }
}

impl DataDigest {
    /// Returns the digest of a pull secret's data.
    #[must_use]
    pub fn new(data: &[u8]) -> Self {
        Self(Sha256::digest(data).into())
    }

    /// Parses 64 lower-case hex digits, or returns `None`.
    fn parse(text: &str) -> Option<Self> {
        hex_bytes(text).map(Self)
    }
}

/// Parses 64 lower-case hex digits, or returns `None`.
pub(super) fn hex_bytes(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != bytes.len() || !rest.is_empty() {
        return None;
    }
    let value = |digit: u8| {
        char::from(digit)
            .to_digit(16)
            .filter(|_| !digit.is_ascii_uppercase())
    };
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = u8::try_from(value(*high)? * 16 + value(*low)?).ok()?;
    }
    Some(bytes)
}

impl Seal {
    /// Creates a seal of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Parses 64 lower-case hex digits, or returns `None`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        hex_bytes(text).map(Self)
    }
}

impl fmt::Display for Seal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Display for DataDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

#[cfg(test)]
mod tests;
