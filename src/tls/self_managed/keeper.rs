//! The leader's part: the CA Secret is put right, its authority follows the last one in time, and the registration trusts it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::{Instant, sleep_until};

use super::{
    Inner, MAX_SLEEP,
    ca_secret::{Content, Held},
    registration::{Entries, Seen},
};
use crate::{
    cluster::{
        lease::Leadership,
        write::{WriteBackoff, WriteError},
    },
    process::clock::ClockReading,
    tls::{Complaint, authority::Authority, rotation::Step},
};

/// What the leader remembers in its term.
pub(super) struct CaRotator<'a> {
    inner: &'a Inner,
    term: Leadership,
    /// Since when the registration has trusted all of the bundle without a break.
    published: Option<ClockReading>,
    /// Before then nothing is written, after a failure.
    secret: WriteBackoff,
    registration: WriteBackoff,
    complaint: Complaint,
}

impl<'a> CaRotator<'a> {
    pub(super) fn new(inner: &'a Inner, term: Leadership) -> Self {
        Self {
            inner,
            term,
            published: None,
            secret: WriteBackoff::default(),
            registration: WriteBackoff::default(),
            complaint: Complaint::default(),
        }
    }

    /// Until the term is over.
    pub(super) async fn run(mut self) {
        let mut held = self.inner.secret.subscribe();
        let mut seen = self.inner.registration.subscribe();
        let term = self.term.clone();
        loop {
            let (secret, registration) = (
                held.borrow_and_update().clone(),
                seen.borrow_and_update().clone(),
            );
            let look = self.look(&secret, &registration).await;
            let by = look.min(Instant::now() + MAX_SLEEP);
            tokio::select! {
                biased;
                () = term.lost() => return,
                // An error would say that the sender is gone, and it is ours.
                _ = held.changed() => {}
                _ = seen.changed() => {}
                () = sleep_until(by) => {}
            }
        }
    }

    /// Does what is to be done, and says when to look again if nothing changes.
    async fn look(&mut self, held: &Held, seen: &Seen) -> Instant {
        let now = self.inner.clock.now();
        let authority = match &held.now {
            Content::Good {
                authority,
                is_whole: true,
            } => authority,
            Content::Unknown => return Instant::now() + MAX_SLEEP,
            broken => return self.mend(broken, held.last.as_deref(), now).await,
        };
        let bundle = authority.bundle();
        let looked = self.publish(seen, &bundle).await;
        let since = self.published.as_ref().map(|at| at.at_the_latest(now));
        let stage = authority.stage();
        let Some(step) = stage.step(since, now) else {
            let wait = stage.next_look(since, now).duration_since(now);
            let wait = Duration::try_from(wait).unwrap_or_default();
            return looked.min(Instant::now() + wait.min(MAX_SLEEP));
        };
        if !self.secret.is_over() {
            return self.secret.until().unwrap_or_else(Instant::now);
        }
        match authority.after(step, now) {
            Ok(after) => self.write(&after, label(step)).await,
            Err(error) => {
                self.complain(&format!("creating a certificate authority: {error}"));
                self.secret.failed();
            }
        }
        self.secret.until().unwrap_or_else(Instant::now)
    }

    /// Makes the Secret what it has to be: the last authority that was known, or a new one if nobody knows one.
    async fn mend(
        &mut self,
        broken: &Content,
        last: Option<&Authority>,
        now: Timestamp,
    ) -> Instant {
        if let Content::Bad {
            why,
            is_ours: false,
        } = broken
        {
            let path = self.inner.secret.path();
            self.complain(&format!("Secret {path} was not created by ecr-injector and can't be used: {why}; delete it, \
             or name another Secret with --ca-secret"));
            return Instant::now() + MAX_SLEEP;
        }
        if !self.secret.is_over() {
            return self.secret.until().unwrap_or_else(Instant::now);
        }
        let known = match broken {
            Content::Good { authority, .. } => Some(&**authority),
            _ => last,
        };
        let (authority, what) = match known {
            Some(known) => (Ok(known.clone()), "restored"),
            None => (Authority::new(now, self.inner.lifetimes), "created"),
        };
        match authority {
            Ok(authority) => self.write(&authority, what).await,
            Err(error) => {
                self.complain(&format!("creating a certificate authority: {error}"));
                self.secret.failed();
            }
        }
        self.secret.until().unwrap_or_else(Instant::now)
    }

    async fn write(&mut self, authority: &Authority, what: &'static str) {
        let path = self.inner.secret.path();
        match self.inner.secret.write(authority, Some(&self.term)).await {
            Ok(()) => {
                tracing::info!(
                    secret = path,
                    step = what,
                    "wrote the certificate authority"
                );
                self.inner.metrics.authority_step(what);
                self.secret.wrote();
                self.complaint.settle();
            }
            // The watch brings what is there now.
            Err(WriteError::Conflict | WriteError::NotLeading) => self.secret.failed(),
            Err(error @ (WriteError::Timeout | WriteError::Failed(_))) => {
                self.complain(&format!("writing the Secret {path}: {error}"));
                self.secret.failed();
            }
        }
    }

    /// Makes the registration trust the bundle, and keeps account of since when it does.
    async fn publish(&mut self, seen: &Seen, bundle: &str) -> Instant {
        let later = Instant::now() + MAX_SLEEP;
        let Seen::There(entries) = seen else {
            self.published = None;
            return later;
        };
        let is_published = if entries.is_injected {
            entries.trust(bundle)
        } else {
            entries.hold(bundle)
        };
        if is_published {
            self.published
                .get_or_insert_with(|| ClockReading::now(&*self.inner.clock));
            return later;
        }
        self.published = None;
        if entries.is_injected {
            self.complain("the MutatingWebhookConfiguration does not trust the certificate authority yet; its \
             caBundle is left to cert-manager, as its annotation says");
            return later;
        }
        if self.registration.is_over() {
            self.patch(entries, bundle).await;
        }
        self.registration.until().unwrap_or(later)
    }

    async fn patch(&mut self, entries: &Entries, bundle: &str) {
        let registration = &self.inner.registration;
        match registration.publish(entries, bundle, &self.term).await {
            Ok(()) => {
                tracing::info!(
                    webhook_configuration = registration.name(),
                    "patched the caBundle of the MutatingWebhookConfiguration"
                );
                self.registration.wrote();
                self.complaint.settle();
            }
            // What it is now is brought by the watch.
            Err(WriteError::Conflict | WriteError::NotLeading) => self.registration.failed(),
            Err(error @ (WriteError::Timeout | WriteError::Failed(_))) => {
                let name = registration.name();
                self.complain(&format!(
                    "writing the caBundle of the MutatingWebhookConfiguration {name}: {error}"
                ));
                self.registration.failed();
            }
        }
    }

    /// Once for each thing that is wrong, not once for each time it is tried.
    fn complain(&mut self, complaint: &str) {
        if self.complaint.is_news(&complaint) {
            tracing::warn!(error = %complaint, "keeping the certificate authority failed; retrying");
        }
    }
}

fn label(step: Step) -> &'static str {
    match step {
        Step::Prepare(_) => "prepared",
        Step::Promote => "promoted",
        Step::Retire => "retired",
        Step::Replace(_) => "replaced",
    }
}
