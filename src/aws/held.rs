//! Credentials that are used again until they are about to expire.

use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use tokio::time::Instant;

use crate::process::clock::{Clock as _, SystemClock};

/// Credentials with less time left than this are fetched again before they are used: a bit more
/// than a token needs, so that a token that is capped by them is never too short.
const BUFFER: Duration = Duration::from_mins(6);
/// How long credentials without an expiry are used, if nothing shows that they have changed.
const WITHOUT_EXPIRY: Duration = Duration::from_mins(15);

/// Credentials, and when they were fetched.
#[derive(Debug)]
pub(super) struct Held {
    credentials: Credentials,
    fetched: Instant,
}

impl Held {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self {
            credentials,
            fetched: Instant::now(),
        }
    }

    /// Returns the credentials unless they have to be fetched again.
    pub(super) fn credentials(&self) -> Option<Credentials> {
        self.is_good(SystemClock.now().into())
            .then(|| self.credentials.clone())
    }

    fn is_good(&self, now: SystemTime) -> bool {
        match self.credentials.expiry() {
            Some(expiry) => expiry.duration_since(now).is_ok_and(|left| left > BUFFER),
            None => self.fetched.elapsed() < WITHOUT_EXPIRY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(expiry: Option<SystemTime>) -> Held {
        Held::new(Credentials::new("AKIA", "secret", None, expiry, "test"))
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_are_used_until_shortly_before_their_expiry() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(1);
        let at = |minutes| held(Some(now + Duration::from_mins(minutes)));
        assert!(at(7).is_good(now));
        assert!(!at(6).is_good(now) && !at(0).is_good(now));
        assert!(!held(Some(SystemTime::UNIX_EPOCH)).is_good(now));

        let endless = held(None);
        assert!(endless.is_good(now));
        tokio::time::advance(WITHOUT_EXPIRY).await;
        assert!(
            !endless.is_good(now),
            "a credential process may give others"
        );
    }
}
