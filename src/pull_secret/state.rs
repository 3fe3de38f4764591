//! Our state on a pull secret: what a metadata watch can see of it.
//!
//! It is kept for every pull secret of the cluster, so it is small: a list instead of a tree, digests as bytes.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::{
    identity::{Identity, IdentityHash},
    registry::Host,
    token::{Freshness, Lifetime},
};

/// The annotations that together may not exceed 256 KiB; a state larger than this was not written by us.
pub(super) const MAX_STATE_BYTES: usize = 64 * 1024;
/// The most hosts that a pull secret ever has, whatever the configuration says: with tokens of 4 KB it stays below the megabyte that
/// a Secret may have. One that claims more is not of our writing.
pub const MAX_HOSTS: usize = 128;
const STATE_VERSION: u32 = 1;

/// Our state on a pull secret.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct State {
    /// What each host has.
    pub hosts: Hosts,
    /// Tells whether somebody else wrote the data.
    pub digest: DataDigest,
    /// Since when its namespace is not opted in any more.
    pub opted_out_at: Option<Timestamp>,
    /// Whether it is kept fresh no longer, because its namespace has been out for the time of grace.
    pub retired: bool,
}

/// What each host of a pull secret has, in the order of the hosts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hosts(Vec<(Host, HostState)>);

/// What the pull secret has for one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostState {
    /// Whose credential it is, or is to be.
    pub identity: IdentityHash,
    /// From when to when it is good; `None` is an intent.
    pub lifetime: Option<Lifetime>,
}

/// SHA-256 of a pull secret's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DataDigest([u8; 32]);

/// The message authentication code of a state: the proof that one of our replicas wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seal([u8; 32]);

/// Why a state annotation can't be read.
#[derive(Debug, Error)]
pub enum StateError {
    /// Larger than any that we write.
    #[error("larger than {MAX_STATE_BYTES} bytes")]
    TooLarge,
    /// Not JSON of the right form.
    #[error("not the JSON that we write: {0}")]
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
    hosts: std::collections::BTreeMap<String, WireHost>,
    digest: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    opted_out_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    retired: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireHost {
    identity: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    minted_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<Timestamp>,
}

impl State {
    /// That of a pull secret of which nothing is known but the hosts; `None` if there are none. Whoever plans by it chooses
    /// the identities anew.
    #[must_use]
    pub fn of_intents(hosts: &[Host]) -> Option<Self> {
        let intent = HostState {
            identity: Identity::Ambient.hash(),
            lifetime: None,
        };
        let hosts = hosts.iter().map(|host| (host.clone(), intent.clone()));
        let hosts: Hosts = hosts.collect();
        hosts.iter().next()?;
        Some(Self {
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
            let lifetime = entry
                .minted_at
                .zip(entry.expires_at)
                .map(|(minted_at, expires_at)| Lifetime {
                    minted_at,
                    expires_at,
                });
            let identity = IdentityHash::parse(&entry.identity).ok_or(StateError::Entry)?;
            Ok((
                Host::parse(&host).ok_or(StateError::Entry)?,
                HostState { identity, lifetime },
            ))
        });
        Ok(Self {
            hosts: hosts.collect::<Result<_, StateError>>()?,
            digest: DataDigest::parse(&wire.digest).ok_or(StateError::Entry)?,
            opted_out_at: wire.opted_out_at,
            retired: wire.retired,
        })
    }

    /// The annotation's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let hosts = self.hosts.iter().map(|(host, entry)| {
            let wire = WireHost {
                identity: entry.identity.to_string(),
                minted_at: entry.lifetime.map(|life| life.minted_at),
                expires_at: entry.lifetime.map(|life| life.expires_at),
            };
            (host.to_string(), wire)
        });
        let wire = WireState {
            version: STATE_VERSION,
            hosts: hosts.collect(),
            digest: self.digest.to_string(),
            opted_out_at: self.opted_out_at,
            retired: self.retired,
        };
        // A map of strings and dates always serializes.
        serde_json::to_string(&wire).unwrap_or_default()
    }

    /// How fresh the credential of a host is at `now`; a host that is not there, or only intended, is expired.
    #[must_use]
    pub fn freshness(&self, host: &Host, now: Timestamp) -> Freshness {
        let lifetime = self.hosts.get(host).and_then(|entry| entry.lifetime);
        lifetime.map_or(Freshness::Expired, |life| life.freshness(now))
    }

    /// The soonest expiry of all hosts that have a credential.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.hosts
            .iter()
            .filter_map(|(_, entry)| entry.lifetime)
            .map(|life| life.expires_at)
            .min()
    }
}

impl Hosts {
    /// What a host has.
    #[must_use]
    pub fn get(&self, host: &Host) -> Option<&HostState> {
        let at = self.place(host).ok()?;
        self.0.get(at).map(|(_, entry)| entry)
    }

    /// Whether a host is there.
    #[must_use]
    pub fn contains_key(&self, host: &Host) -> bool {
        self.place(host).is_ok()
    }

    /// Sets what a host has.
    pub fn insert(&mut self, host: Host, entry: HostState) {
        match self.place(&host) {
            Ok(at) => self.0[at].1 = entry,
            Err(at) => self.0.insert(at, (host, entry)),
        }
    }

    /// Takes a host away.
    pub fn remove(&mut self, host: &Host) {
        if let Ok(at) = self.place(host) {
            self.0.remove(at);
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&Host, &HostState)> {
        self.0.iter().map(|(host, entry)| (host, entry))
    }

    /// The hosts.
    pub fn keys(&self) -> impl Iterator<Item = &Host> {
        self.0.iter().map(|(host, _)| host)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Gives back what growing took too much.
    pub fn shrink(&mut self) {
        self.0.shrink_to_fit();
    }

    fn place(&self, host: &Host) -> Result<usize, usize> {
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
    /// The digest of a pull secret's data.
    #[must_use]
    pub fn of(data: &[u8]) -> Self {
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
    /// A code of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns its bytes.
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
