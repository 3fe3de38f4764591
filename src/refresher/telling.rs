//! What the refresher says of its work: to the log, to the metrics, and to the namespaces' people.

use std::{collections::HashSet, sync::Arc, time::Duration};

use crate::{
    events::{Events, Happening},
    metrics::Metrics,
    namespace::{Namespace, store::ReadError},
    pull_secret::{Foreign, write::EnsureError},
    refresher::schedule::Target,
    token::{TokenKey, cache::MintError},
};

/// Says what comes of the work.
pub(super) struct Telling {
    metrics: Arc<Metrics>,
    events: Option<Events>,
    /// Who was told of a failure, and is to be told of its end.
    complained: HashSet<Namespace>,
}

impl Telling {
    pub(super) fn new(metrics: Arc<Metrics>, events: Option<Events>) -> Self {
        Self {
            metrics,
            events,
            complained: HashSet::new(),
        }
    }

    fn tell(&self, namespace: &Namespace, happening: &Happening) {
        if let Some(events) = &self.events {
            events.tell(namespace, happening);
        }
    }

    fn complain(&mut self, namespace: &Namespace, happening: &Happening) {
        self.complained.insert(namespace.clone());
        self.tell(namespace, happening);
    }

    /// A pull secret was written.
    pub(super) fn wrote(&self, namespace: &Namespace, target: &Target, reason: &'static str) {
        self.metrics.refreshed(reason);
        let hosts = target.due.len();
        tracing::debug!(%namespace, reason, hosts, "a pull secret was written");
        if let Some(what) = target.heals {
            self.metrics.healed(what.as_str());
            tracing::warn!(%namespace, what = what.as_str(), "a pull secret was put right");
            self.tell(namespace, &Happening::Healed { what });
        }
    }

    /// A pull secret has all that it should have.
    pub(super) fn is_well(&mut self, namespace: &Namespace) {
        if self.complained.remove(namespace) {
            tracing::info!(%namespace, "after failures, the pull secret has what it should have");
            self.tell(namespace, &Happening::Refreshed);
        }
    }

    /// A namespace is gone, or has nothing of ours any more: nobody waits to be told.
    pub(super) fn forget(&mut self, namespace: &Namespace) {
        self.complained.remove(namespace);
    }

    /// A namespace was opted in.
    pub(super) fn opted_in(&self, namespace: &Namespace) {
        tracing::info!(%namespace, "opted in");
        self.tell(namespace, &Happening::OptedIn);
    }

    /// A pull secret says now that its namespace is opted out.
    pub(super) fn opted_out(&self, namespace: &Namespace, grace: Duration) {
        tracing::info!(%namespace, ?grace, "opted out: the pull secret is kept fresh for a while");
        self.tell(namespace, &Happening::OptedOut { grace });
    }

    /// A pull secret is refreshed no more.
    pub(super) fn retired(&self, namespace: &Namespace) {
        tracing::info!(%namespace, "the pull secret of an opted-out namespace is refreshed no more");
        self.tell(namespace, &Happening::Retired);
    }

    /// A pull secret was removed.
    pub(super) fn removed(&self, namespace: &Namespace) {
        self.metrics.refreshed("removed");
        tracing::info!(%namespace, "the pull secret of an opted-out namespace was removed");
    }

    /// A Secret of our name is not ours.
    pub(super) fn foreign(&self, namespace: &Namespace, why: Foreign) {
        self.tell(namespace, &Happening::Foreign { why });
    }

    /// Somebody else changes it again and again.
    pub(super) fn fight(&mut self, namespace: &Namespace, heals: u32, pause: Duration) {
        self.metrics.refresh_failed("contested");
        tracing::warn!(%namespace, heals, ?pause, "a pull secret is changed by somebody else again and again");
        self.complain(namespace, &Happening::Fight);
    }

    /// A namespace waits for a token that can't be had.
    pub(super) fn waits(&mut self, namespace: &Namespace, error: &MintError) {
        if let MintError::Refused(_, code) | MintError::SessionExpired(_, code) = error {
            let code = code.clone();
            self.complain(namespace, &Happening::Refused { code });
        }
    }

    /// A token couldn't be minted.
    pub(super) fn no_token(&self, key: &TokenKey, error: &MintError, pause: Duration) {
        self.metrics.refresh_failed(error.as_str());
        tracing::warn!(identity = %key.identity, region = %key.region, %error, ?pause, "no token; it is tried again");
    }

    /// A token that couldn't be minted for a while was.
    pub(super) fn token_again(key: &TokenKey, failures: u32, waiting: usize) {
        tracing::info!(identity = %key.identity, region = %key.region, failures, waiting, "a token again");
    }

    /// A call to the API server for a namespace came to nothing, so many times in a row.
    pub(super) fn failed(&mut self, namespace: &Namespace, error: &EnsureError, times: u32) {
        self.metrics.refresh_failed(error.as_str());
        if times <= 1 {
            tracing::warn!(%namespace, %error, "a pull secret could not be brought up to date; it is tried again");
        } else {
            tracing::debug!(%namespace, %error, times, "a pull secret could still not be brought up to date");
        }
        match error {
            EnsureError::Foreign(why) => self.foreign(namespace, *why),
            EnsureError::Refused { message, .. } if message.contains("exceeded quota") => {
                let message = message.clone();
                self.complain(namespace, &Happening::Quota { message });
            }
            // It goes away, and what we would write with it.
            EnsureError::Refused { message, .. } if message.contains("being terminated") => {}
            EnsureError::Refused { message, .. } => {
                let message = message.clone();
                self.complain(namespace, &Happening::Forbidden { message });
            }
            _ => {}
        }
    }

    /// A namespace couldn't be read.
    pub(super) fn unread(&self, namespace: &Namespace, error: &ReadError) {
        self.metrics.refresh_failed("api_error");
        tracing::warn!(%namespace, %error, "a namespace could not be read; it is tried again");
    }

    /// What is due, what waits, and for how long.
    pub(super) fn backlog(&self, due: usize, waiting: usize, overdue: Duration) {
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        self.metrics.queue_depth.set(count(due));
        self.metrics.waiting.set(count(waiting));
        let seconds = i64::try_from(overdue.as_secs()).unwrap_or(i64::MAX);
        self.metrics.oldest_overdue.set(seconds);
    }
}
