//! One version of a pull secret, as far as it is known.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::pull_secret::{Existing, Observed, SecretFacts, Unverified, state::State};

/// The knowledge of one version of a pull secret.
#[derive(Debug)]
pub struct Entry {
    version: u64,
    uid: Box<str>,
    observed: Observed,
}

impl Entry {
    /// Creates the entry of one version of a pull secret.
    #[must_use]
    pub fn new(version: u64, uid: &str, observed: Observed) -> Self {
        Self {
            version,
            uid: uid.into(),
            observed,
        }
    }

    /// Creates the entry of the Secret with these metadata.
    pub(super) fn from_metadata(metadata: &ObjectMeta, version: u64, observed: Observed) -> Self {
        Self::new(
            version,
            metadata.uid.as_deref().unwrap_or_default(),
            observed,
        )
    }

    /// Returns the facts for a decision.
    #[must_use]
    pub fn facts(&self) -> SecretFacts<'_> {
        match &self.observed {
            Observed::Managed(state) => SecretFacts::Ours(state),
            Observed::Foreign(why) => SecretFacts::Foreign(*why),
            Observed::Unverified { .. } => SecretFacts::Unverified,
            Observed::Deleted(_) => SecretFacts::Absent,
        }
    }

    /// Returns all that was observed.
    #[must_use]
    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Returns the version.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns the state, if it is ours and intact.
    #[must_use]
    pub fn state(&self) -> Option<&State> {
        match &self.observed {
            Observed::Managed(state) => Some(state),
            _ => None,
        }
    }

    /// Returns the Secret to merge a write with, if all that the merge needs of the Secret is
    /// known.
    #[must_use]
    pub fn existing(&self) -> Option<Existing> {
        Some(Existing::known(&self.uid, self.version, self.state()?))
    }

    /// Returns whether another client wrote the Secret, or it was only listed, and this replica has
    /// not read the Secret since.
    #[must_use]
    pub fn is_unread(&self) -> bool {
        matches!(
            self.observed,
            Observed::Unverified {
                since: Unverified::Listed | Unverified::Changed,
                ..
            }
        )
    }

    /// Returns whether the Secret exists.
    #[must_use]
    pub fn is_there(&self) -> bool {
        !matches!(self.observed, Observed::Deleted(_))
    }
}
