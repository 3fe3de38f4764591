//! Credentials that are used again until they are about to expire, or until AWS rejects them.

use std::{
    mem,
    time::{Duration, SystemTime},
};

use aws_credential_types::Credentials;
use tokio::time::Instant;

use super::keys::trimmed;
use crate::process::clock::{Clock as _, SystemClock};

/// Credentials with less time left than this are fetched again before they are used: a bit more
/// than a token needs, so that a token that is capped by them is never too short.
const BUFFER: Duration = Duration::from_mins(6);
/// How long credentials without an expiry are used, if nothing shows that they have changed.
const WITHOUT_EXPIRY: Duration = Duration::from_mins(15);
/// How often a rejection may have credentials fetched again. A tenant causes rejections at will, by
/// an image in a region where the account's keys are unknown.
const BETWEEN_REJECTIONS: Duration = Duration::from_mins(1);

/// Credentials, and when they were fetched.
#[derive(Debug)]
pub(super) struct Held {
    credentials: Credentials,
    fetched: Instant,
    /// When a rejection last counted.
    rejected: Option<Instant>,
    /// Whether others are to be fetched because of a rejection.
    is_rejected: bool,
}

impl Held {
    pub(super) fn new(credentials: Credentials) -> Self {
        Self {
            credentials,
            fetched: Instant::now(),
            rejected: None,
            is_rejected: false,
        }
    }

    /// Returns the credentials unless they have to be fetched again. A rejection causes one fetch:
    /// if that fails or is cancelled, these are used on.
    pub(super) fn credentials(&mut self) -> Option<Credentials> {
        let is_rejected = mem::take(&mut self.is_rejected);
        self.unexpired().filter(|_| !is_rejected)
    }

    /// Returns the credentials, rejected or not, unless they are about to expire.
    pub(super) fn unexpired(&self) -> Option<Credentials> {
        self.is_good(SystemClock.now().into())
            .then(|| self.credentials.clone())
    }

    /// Replaces the credentials by those of a new fetch.
    pub(super) fn replace(&mut self, credentials: Credentials) {
        self.credentials = credentials;
        self.fetched = Instant::now();
    }

    /// Has the credentials fetched again if AWS rejected these very ones, and if the last rejection
    /// that counted is long enough ago.
    pub(super) fn reject(&mut self, rejected: &Credentials) {
        let is_due = |last: Instant| last.elapsed() >= BETWEEN_REJECTIONS;
        if is_same(rejected, &self.credentials) && self.rejected.is_none_or(is_due) {
            self.rejected = Some(Instant::now());
            self.is_rejected = true;
        }
    }

    fn is_good(&self, now: SystemTime) -> bool {
        match self.credentials.expiry() {
            Some(expiry) => expiry.duration_since(now).is_ok_and(|left| left > BUFFER),
            None => self.fetched.elapsed() < WITHOUT_EXPIRY,
        }
    }
}

/// Returns whether both are the same keys: what signs is trimmed, what is held need not be.
fn is_same(a: &Credentials, b: &Credentials) -> bool {
    let keys = |credentials: &Credentials| {
        let token = credentials.session_token().unwrap_or_default();
        [
            credentials.access_key_id(),
            credentials.secret_access_key(),
            token,
        ]
        .map(|key| trimmed(key).to_owned())
    };
    keys(a) == keys(b)
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

    #[tokio::test(start_paused = true)]
    async fn rejection_counts_once_a_minute_for_these_keys_alone() {
        let rejected = Credentials::new("AKIA", "secret", None, None, "test");
        let mut held = Held::new(rejected.clone());
        held.reject(&Credentials::new("ASIA", "secret", None, None, "test"));
        assert!(held.credentials().is_some(), "other keys were rejected");

        held.reject(&rejected);
        assert!(held.credentials().is_none());
        assert!(held.credentials().is_some(), "one fetch for one rejection");
        held.replace(rejected.clone());
        held.reject(&rejected);
        assert!(held.credentials().is_some(), "the minute outlasts a fetch");
        tokio::time::advance(BETWEEN_REJECTIONS).await;
        held.reject(&rejected);
        assert!(held.credentials().is_none());
    }
}
