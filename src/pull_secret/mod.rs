//! The pull secret: the one Secret that ecr-injector owns in a namespace.
//!
//! Its data is a docker config, one `auth` per host. Beside the data, in an annotation that a
//! metadata watch can see, is the state: for each host its demand and, apart from that, the
//! credential's identity and lifetime. A seal proves that the state is ours; without a good seal
//! the state's hosts count as demand at most.

pub mod by_hand;
pub mod error;
pub mod events;
mod foreign;
pub mod gauges;
pub mod guard;
pub mod merge;
pub mod metrics;
pub mod provisioner;
pub mod seal;
pub mod state;
pub mod state_key;
pub mod store;
pub mod writer;

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, de::IgnoredAny};
use thiserror::Error;

use self::{
    foreign::has_others_entries,
    state::{DataDigest, Seal, State, Subject},
};
use crate::{
    cluster::{
        namespace::Namespace,
        ownership::{MANAGED_BY, MANAGED_BY_LABEL, is_managed},
    },
    identity::IdentityHash,
    registry::{Host, Registry},
    token::{Token, rules::MAX_HOSTS},
};

/// The type of every pull secret.
pub const TYPE: &str = "kubernetes.io/dockerconfigjson";
/// The one key of its data.
pub const DATA_KEY: &str = ".dockerconfigjson";

/// The annotation with our state, a versioned JSON object.
pub const STATE_ANNOTATION: &str = "ecr-injector.dev/state";
/// The annotation with the soonest expiry of all hosts, RFC 3339, for people.
pub const EXPIRES_AT_ANNOTATION: &str = "ecr-injector.dev/expires-at";

/// The reason why a Secret of our name is not ours to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Foreign {
    /// The Secret lacks [`MANAGED_BY_LABEL`].
    #[error("it lacks the label {MANAGED_BY_LABEL}={MANAGED_BY}")]
    Label,
    /// The Secret has another type, and a type can't be changed.
    #[error("its type is not {TYPE}")]
    Type,
    /// The Secret is immutable.
    #[error("it is immutable")]
    Immutable,
    /// The Secret was handed over by its label, with a docker config that ecr-injector did not
    /// write: nothing of it may be lost.
    #[error("its docker config has entries that ecr-injector did not write")]
    Entries,
}

/// The facts about a namespace's pull secret that a decision needs.
#[derive(Debug, Clone, Copy)]
pub enum SecretFacts<'a> {
    /// No such Secret is known.
    Absent,
    /// Another client wrote the Secret, and this replica has not read it yet.
    Unverified,
    /// The Secret isn't ours.
    Foreign(Foreign),
    /// The Secret is ours and has this state.
    Ours(&'a State),
}

/// The observed content of a namespace's pull secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Observed {
    /// Written by one of our replicas, and intact.
    Managed(State),
    /// Not ours, by its label or after a read of the whole Secret.
    Foreign(Foreign),
    /// Ours by its label; nothing else is certain.
    Unverified {
        /// The content of its annotation.
        claims: Option<State>,
        /// Whether the claims carry a good seal.
        is_proven: bool,
        /// The last state that was known to be ours.
        before: Option<Box<State>>,
        /// How the Secret came to be unverified.
        since: Unverified,
    },
    /// Deleted; the last state.
    Deleted(Option<State>),
}

impl Observed {
    /// Returns the last state that was known to be ours.
    #[must_use]
    pub fn before(&self) -> Option<&State> {
        match self {
            Self::Managed(state) => Some(state),
            Self::Unverified { before, .. } => before.as_deref(),
            Self::Deleted(state) => state.as_ref(),
            Self::Foreign(_) => None,
        }
    }

    /// Returns the state to recreate the Secret with: the newest that is known to be ours. Where an
    /// older state replaced a newer one, that is the newer one.
    #[must_use]
    pub fn remembered(&self) -> Option<&State> {
        let states = self.proven().into_iter().chain(self.before());
        states.max_by_key(|state| state.revision)
    }

    /// Returns the state of an existing Secret, if the state carries a good seal; the data may have
    /// been changed since.
    #[must_use]
    pub fn proven(&self) -> Option<&State> {
        match self {
            Self::Managed(state) => Some(state),
            Self::Unverified {
                claims,
                is_proven: true,
                ..
            } => claims.as_ref(),
            _ => None,
        }
    }

    /// Returns the state that an existing Secret claims to have, true or not.
    #[must_use]
    pub fn claims(&self) -> Option<&State> {
        match self {
            Self::Managed(state) => Some(state),
            Self::Unverified { claims, .. } => claims.as_ref(),
            Self::Foreign(_) | Self::Deleted(_) => None,
        }
    }

    /// Returns the revision of the newest state that is known to be ours.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        self.remembered().map(|state| state.revision)
    }
}

/// How a pull secret came to be unverified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unverified {
    /// The Secret existed when the watch began.
    Listed,
    /// The Secret was written, and not by one of our replicas as far as its metadata show.
    Changed,
    /// The Secret was read whole: its state is not proven, is older than a known one, or does not
    /// match its data.
    Tampered,
}

/// The damage to a pull secret that is repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// The Secret was deleted.
    Deleted,
    /// The data or the state were changed by another client.
    Changed,
}

impl Damage {
    /// Returns the damage as a metric's label and a log's field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Changed => "changed",
        }
    }
}

/// A pull secret as it was read, to merge a write with.
#[derive(Debug)]
pub struct Existing {
    /// The UID; with `resource_version` the precondition of the write.
    pub uid: String,
    /// The version that was read.
    pub resource_version: String,
    /// The state, if its seal is good and its digest matches the data.
    pub state: Option<State>,
    /// The content of the annotation, true or not.
    pub claims: Option<State>,
    /// The hosts that the annotation names or, if the annotation can't be read, those that the data
    /// name: demand at most.
    pub claimed: Vec<Host>,
    auths: BTreeMap<Host, SecretString>,
}

#[derive(Deserialize)]
struct ReadConfig {
    auths: BTreeMap<String, ReadAuth>,
}

#[derive(Deserialize)]
struct ReadAuth {
    auth: SecretString,
}

impl Existing {
    /// Creates a Secret of which the state alone is known. Its credentials are not: a merge must
    /// have one for each host.
    #[must_use]
    pub fn known(uid: &str, version: u64, state: &State) -> Self {
        Self {
            uid: uid.to_owned(),
            resource_version: version.to_string(),
            state: Some(state.clone()),
            claims: None,
            claimed: vec![],
            auths: BTreeMap::new(),
        }
    }

    /// Reads a Secret; `is_proven` checks the seal of its state. A Secret that is not ours is an
    /// error with the reason.
    pub fn read(secret: &Secret, is_proven: impl FnOnce(&State) -> bool) -> Result<Self, Foreign> {
        if !is_managed(&secret.metadata) {
            return Err(Foreign::Label);
        }
        if secret.type_.as_deref() != Some(TYPE) {
            return Err(Foreign::Type);
        }
        if secret.immutable == Some(true) {
            return Err(Foreign::Immutable);
        }
        let data = secret.data.as_ref();
        let bytes = data
            .and_then(|data| data.get(DATA_KEY))
            .map_or(&[][..], |bytes| &bytes.0);
        let claims = state_of(&secret.metadata);
        let claimed = match &claims {
            Some(state) => state.hosts.keys().cloned().collect(),
            None => hosts_in(bytes),
        };
        let proven = claims.as_ref().filter(|state| is_proven(state));
        if proven.is_none() && has_others_entries(bytes) {
            return Err(Foreign::Entries);
        }
        // Other keys of the data belong to others: nothing that pulls images reads them, and an
        // apply can't remove them.
        let intact = proven.filter(|state| state.digest == DataDigest::new(bytes));
        Ok(Self {
            uid: secret.metadata.uid.clone().unwrap_or_default(),
            resource_version: secret.metadata.resource_version.clone().unwrap_or_default(),
            auths: intact.map_or_else(BTreeMap::new, |_| read_auths(bytes)),
            state: intact.cloned(),
            claims,
            claimed,
        })
    }
}

fn read_auths(bytes: &[u8]) -> BTreeMap<Host, SecretString> {
    let config: ReadConfig = serde_json::from_slice(bytes).unwrap_or(ReadConfig {
        auths: BTreeMap::new(),
    });
    config
        .auths
        .into_iter()
        .filter_map(|(host, auth)| Some((Host::parse(&host)?, auth.auth)))
        .collect()
}

/// Returns the hosts that a docker config names, at most the first [`MAX_HOSTS`].
fn hosts_in(bytes: &[u8]) -> Vec<Host> {
    #[allow(
        clippy::zero_sized_map_values,
        reason = "serde reads the JSON object as a map"
    )]
    #[derive(Deserialize)]
    struct Named {
        auths: BTreeMap<String, IgnoredAny>,
    }
    let config = serde_json::from_slice::<Named>(bytes).ok();
    let named = config.into_iter().flat_map(|config| config.auths);
    let hosts = named.filter_map(|(host, _)| Host::parse(&host));
    hosts.take(MAX_HOSTS).collect()
}

/// Returns the state in the metadata's annotation, if it can be read.
#[must_use]
pub fn state_of(metadata: &ObjectMeta) -> Option<State> {
    State::parse(metadata.annotations.as_ref()?.get(STATE_ANNOTATION)?).ok()
}

/// Returns whether a host's images also pull without a credential, so that an expired one does
/// harm.
#[must_use]
pub fn is_public(host: &Host) -> bool {
    Registry::parse_public(host.as_str()).is_some()
}

/// The credential that a pull secret should have for one host.
#[derive(Debug, Clone)]
pub struct DesiredCredential {
    /// The identity that mints the token.
    pub identity: IdentityHash,
    /// The token, or `None` where it couldn't be minted: the host is recorded all the same.
    pub token: Option<Arc<Token>>,
}

/// A pull secret to write.
#[derive(Debug)]
pub struct PullSecret {
    state: State,
    data: SecretString,
}

impl PullSecret {
    /// Returns the state that is written beside the data.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Sets the revision of the write and seals the state for its object by `seal`; `None` if the
    /// state can't be sealed.
    #[must_use]
    pub fn sealed(
        mut self,
        revision: u64,
        subject: Subject<'_>,
        seal: impl FnOnce(&str) -> Option<Seal>,
    ) -> Option<Self> {
        self.state.revision = revision;
        self.state.seal = seal(&self.state.sealed_text(subject))?;
        Some(self)
    }

    /// Returns the object to apply. Without `existing` the precondition is that no such Secret
    /// exists; with it, that the Secret is still the same object in the same version.
    #[must_use]
    pub fn to_object(
        &self,
        name: &str,
        namespace: &Namespace,
        existing: Option<&Existing>,
    ) -> Secret {
        let mut annotations = BTreeMap::from([(STATE_ANNOTATION.to_owned(), self.state.to_text())]);
        if let Some(expires_at) = self.state.expires_at() {
            annotations.insert(EXPIRES_AT_ANNOTATION.to_owned(), to_the_second(expires_at));
        }
        Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_string()),
                labels: Some(BTreeMap::from([(
                    MANAGED_BY_LABEL.to_owned(),
                    MANAGED_BY.to_owned(),
                )])),
                annotations: Some(annotations),
                // No object has the version "1": applying creates the object, or is a conflict if
                // the object exists.
                resource_version: Some(
                    existing.map_or("1".to_owned(), |existing| existing.resource_version.clone()),
                ),
                uid: existing.map(|existing| existing.uid.clone()),
                ..ObjectMeta::default()
            },
            type_: Some(TYPE.to_owned()),
            data: Some(BTreeMap::from([(
                DATA_KEY.to_owned(),
                ByteString(self.data.expose_secret().as_bytes().to_vec()),
            )])),
            ..Secret::default()
        }
    }
}

/// Formats a time for people: RFC 3339, to the second.
#[must_use]
pub fn to_the_second(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests;
