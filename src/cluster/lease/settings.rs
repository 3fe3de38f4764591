//! The settings of a leader election, and the check that its times are safe.

use std::time::Duration;

use thiserror::Error;

use crate::cluster::namespace::{Namespace, is_label};

/// The jitter, which lengthens the retry period by up to this part of it: replicas don't retry in
/// step.
pub(super) const JITTER_SHARE: u32 = 5;

/// The settings of a leader election.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The Lease's namespace, which is ecr-injector's own.
    pub namespace: Namespace,
    /// The Lease's name.
    pub name: String,
    /// The Pod's name, for people. Each [`super::Elector`] adds a random suffix, so that a
    /// restarted container doesn't mistake its predecessor's Lease for its own.
    pub identity: String,
    /// How long other replicas wait for a holder that does not renew. The Lease has whole seconds,
    /// rounded up.
    pub duration: Duration,
    /// How long after its last renewal a holder ends its term. The rest of the duration is for the
    /// requests that its work has in flight, so it has to be longer than any of them may take.
    pub renew_deadline: Duration,
    /// The pause between two tries, lengthened by a jitter of up to a fifth; and how long one call
    /// may take.
    pub retry_period: Duration,
}

/// Error in [`Settings`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SettingsError {
    /// The name is not valid for a Lease.
    #[error(
        "the Lease's name {0:?} is not one: lower-case letters, digits and inner dashes, at most 63"
    )]
    Name(String),
    /// The identity is missing, so that no log could show who leads.
    #[error("the identity is empty")]
    Identity,
    /// The holder would continue when another replica may have begun.
    #[error(
        "the lease duration ({duration:?}) has to be longer than the renew deadline ({renew_deadline:?})"
    )]
    Duration {
        /// The value as configured.
        duration: Duration,
        /// The value as configured.
        renew_deadline: Duration,
    },
    /// One renewal that is late by its jitter would end the term.
    #[error(
        "the renew deadline ({renew_deadline:?}) has to be longer than the retry period with its jitter ({retry:?})"
    )]
    RenewDeadline {
        /// The value as configured.
        renew_deadline: Duration,
        /// The longest pause between two tries.
        retry: Duration,
    },
    /// The replica would retry without a pause.
    #[error("the retry period is zero")]
    RetryPeriod,
}

impl Settings {
    /// Returns settings with Kubernetes' own times: 15 s, 10 s and 2 s.
    #[must_use]
    pub fn new(namespace: Namespace, name: &str, identity: &str) -> Self {
        Self {
            namespace,
            name: name.to_owned(),
            identity: identity.to_owned(),
            duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }

    /// Checks that an election with these settings is safe.
    pub fn check(&self) -> Result<(), SettingsError> {
        let retry = self.retry_period + self.retry_period / JITTER_SHARE;
        if !is_label(&self.name) {
            return Err(SettingsError::Name(self.name.clone()));
        }
        if self.identity.is_empty() {
            return Err(SettingsError::Identity);
        }
        if self.retry_period.is_zero() {
            return Err(SettingsError::RetryPeriod);
        }
        if self.duration <= self.renew_deadline {
            return Err(SettingsError::Duration {
                duration: self.duration,
                renew_deadline: self.renew_deadline,
            });
        }
        if self.renew_deadline <= retry {
            return Err(SettingsError::RenewDeadline {
                renew_deadline: self.renew_deadline,
                retry,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn times_with_which_two_could_lead_are_rejected() {
        let namespace = Namespace::parse("ecr-injector").expect("a name");
        let usual = Settings::new(namespace, "ecr-injector", "pod");
        assert_eq!(usual.check(), Ok(()));
        let with = |change: &dyn Fn(&mut Settings)| {
            let mut settings = usual.clone();
            change(&mut settings);
            settings.check().map_err(|error| error.to_string())
        };
        for (change, named) in [
            (
                &(|s: &mut Settings| s.duration = seconds(10)) as &dyn Fn(&mut Settings),
                "lease duration (10s)",
            ),
            (&|s| s.renew_deadline = seconds(20), "renew deadline (20s)"),
            (
                &|s| s.retry_period = Duration::from_millis(8400),
                "retry period with its jitter (10.08s)",
            ),
            (&|s| s.retry_period = Duration::ZERO, "retry period is zero"),
            (&|s| s.identity.clear(), "identity"),
            (&|s| s.name = "a/b".to_owned(), r#""a/b""#),
        ] {
            let error = with(change).expect_err(named);
            assert!(error.contains(named), "{error}");
        }
    }
}
