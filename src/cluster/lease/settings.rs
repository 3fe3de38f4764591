//! Which Lease is held and how patiently, and by which times an election is safe.

use std::time::Duration;

use thiserror::Error;

use crate::cluster::namespace::{Namespace, is_label};

/// How much longer than the retry period a pause may be, as a divisor of it: replicas don't ask in step.
pub(super) const JITTER_SHARE: u32 = 5;

/// Which Lease, as whom, and how patiently.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The Lease's namespace: our own.
    pub namespace: Namespace,
    /// The Lease's name.
    pub name: String,
    /// Who we are, for people: the Pod's name. Each [`super::Elector`] adds something random, so that a restarted container
    /// doesn't take itself for the one before.
    pub identity: String,
    /// How long others wait for a holder that is silent. In the Lease it is rounded up to whole seconds.
    pub duration: Duration,
    /// How long after its last renewal a holder ends its term. What is left of the duration is for the requests that its
    /// work has under way, so it has to be longer than any of them may take.
    pub renew_deadline: Duration,
    /// The pause between two tries, up to a fifth longer by chance; and how long one call may take.
    pub retry_period: Duration,
}

/// What is wrong with [`Settings`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SettingsError {
    /// The name can't be a Lease's.
    #[error(
        "the Lease's name {0:?} is not one: lower-case letters, digits and inner dashes, at most 63"
    )]
    Name(String),
    /// Nobody could tell who leads.
    #[error("the identity is empty")]
    Identity,
    /// The holder would go on when others may have begun.
    #[error(
        "the lease duration ({duration:?}) has to be longer than the renew deadline ({renew_deadline:?})"
    )]
    Duration {
        /// As it was set.
        duration: Duration,
        /// As it was set.
        renew_deadline: Duration,
    },
    /// One renewal that comes late by its jitter would end the term.
    #[error(
        "the renew deadline ({renew_deadline:?}) has to be longer than the retry period with its jitter ({retry:?})"
    )]
    RenewDeadline {
        /// As it was set.
        renew_deadline: Duration,
        /// The longest pause between two tries.
        retry: Duration,
    },
    /// It would ask without a pause.
    #[error("the retry period is zero")]
    RetryPeriod,
}

impl Settings {
    /// Kubernetes' own times: 15 s, 10 s and 2 s.
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

    /// Whether an election by these is safe.
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
    fn times_by_which_two_could_lead_are_refused() {
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
