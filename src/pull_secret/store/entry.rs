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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pull_secret::{
        Foreign,
        tests::{NOW, entry, host, state},
    };

    fn unverified(since: Unverified) -> Observed {
        Observed::Unverified {
            claims: Some(state([(host(1), entry(NOW, None))])),
            is_proven: true,
            before: None,
            since,
        }
    }

    #[test]
    fn only_an_intact_version_is_merged_without_a_read() {
        let known = state([(host(1), entry(NOW, None))]);
        let managed = Entry::new(7, "secret-uid", Observed::Managed(known.clone()));
        assert_eq!((managed.version(), managed.state()), (7, Some(&known)));
        let existing = managed.existing().expect("all is known");
        assert_eq!(
            (&*existing.uid, &*existing.resource_version),
            ("secret-uid", "7")
        );
        assert_eq!(existing.state, Some(known));
        for observed in [
            unverified(Unverified::Listed),
            Observed::Foreign(Foreign::Label),
            Observed::Deleted(None),
        ] {
            let other = Entry::new(7, "secret-uid", observed);
            assert!(
                other.state().is_none() && other.existing().is_none(),
                "{other:?}"
            );
        }
    }

    #[test]
    fn version_is_unread_until_its_data_were_compared() {
        for (observed, is_unread, is_there) in [
            (unverified(Unverified::Listed), true, true),
            (unverified(Unverified::Changed), true, true),
            (unverified(Unverified::Tampered), false, true),
            (Observed::Managed(State::default()), false, true),
            (Observed::Foreign(Foreign::Type), false, true),
            (Observed::Deleted(None), false, false),
        ] {
            let entry = Entry::new(1, "", observed);
            assert_eq!(
                (entry.is_unread(), entry.is_there()),
                (is_unread, is_there),
                "{entry:?}"
            );
        }
    }
}
