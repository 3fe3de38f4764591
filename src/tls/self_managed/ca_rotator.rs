//! Rotates the certificate authority as the leader: restores the CA Secret, replaces the authority
//! in time, and makes the registration trust it.

use std::time::Duration;

use jiff::SignedDuration;
use tokio::time::{Instant, sleep_until};

use super::{
    ca_secret::{Content, SecretState},
    registration::{Entries, RegistrationState},
    shared::{MAX_SLEEP, Shared},
};
use crate::{
    cluster::{
        lease::Leadership,
        write::{WriteBackoff, WriteError},
    },
    telemetry::{error_chain::error_chain, log_once::LogOnce},
    tls::{authority::Authority, rotation::Step},
};

/// Rotates the authority for one term of the leader.
pub(super) struct CaRotator<'a> {
    shared: &'a Shared,
    term: Leadership,
    /// Since when the registration has trusted the whole bundle without a break.
    published_since: Option<Instant>,
    secret_backoff: WriteBackoff,
    registration_backoff: WriteBackoff,
    failure: LogOnce,
}

impl<'a> CaRotator<'a> {
    pub(super) fn new(shared: &'a Shared, term: Leadership) -> Self {
        Self {
            shared,
            term,
            published_since: None,
            secret_backoff: WriteBackoff::default(),
            registration_backoff: WriteBackoff::default(),
            failure: LogOnce::default(),
        }
    }

    /// Reconciles at each change until the term is over.
    pub(super) async fn run(mut self) {
        let mut secrets = self.shared.secret.subscribe();
        let mut registrations = self.shared.registration.subscribe();
        let term = self.term.clone();
        loop {
            let (secret, registration) = (
                secrets.borrow_and_update().clone(),
                registrations.borrow_and_update().clone(),
            );
            let next_check = self.reconcile(&secret, &registration).await;
            let by = next_check.min(Instant::now() + MAX_SLEEP);
            tokio::select! {
                biased;
                () = term.lost() => return,
                // An error would mean that the sender is gone, and `self.shared` has it.
                _ = secrets.changed() => {}
                _ = registrations.changed() => {}
                () = sleep_until(by) => {}
            }
        }
    }

    /// Takes the steps that are due, and returns when to check again if nothing changes.
    async fn reconcile(
        &mut self,
        secret: &SecretState,
        registration: &RegistrationState,
    ) -> Instant {
        let authority = match &secret.content {
            Content::Valid {
                authority,
                is_complete: true,
            } => authority,
            Content::Unknown => return Instant::now() + MAX_SLEEP,
            broken => {
                return self.restore(broken, secret).await;
            }
        };
        let bundle = authority.bundle();
        let publish_check = self.publish(registration, &bundle).await;
        // A step by a clock that is wrong would replace what everybody accepts by what nobody does.
        let now = match self.shared.clock.now().await {
            Ok(now) => now,
            Err(error) => {
                self.warn_once(&error_chain(&error));
                return publish_check.min(Instant::now() + MAX_SLEEP);
            }
        };
        // The monotonic clock stops while a machine is suspended, and then only waits longer.
        let elapsed = self.published_since.map(|since| since.elapsed());
        let since = elapsed
            .and_then(|elapsed| SignedDuration::try_from(elapsed).ok())
            .map(|elapsed| now - elapsed);
        let stage = authority.stage();
        let Some(step) = stage.step(since, now) else {
            let wait = stage.next_check(since, now).duration_since(now);
            let wait = Duration::try_from(wait).unwrap_or_default();
            return publish_check.min(Instant::now() + wait.min(MAX_SLEEP));
        };
        if !self.secret_backoff.is_over() {
            return self.secret_backoff.until().unwrap_or_else(Instant::now);
        }
        match authority.after(step, now) {
            Ok(after) => self.write(&after, secret, label(step)).await,
            Err(error) => {
                self.warn_once(&format!(
                    "creating a certificate authority: {}",
                    error_chain(&error)
                ));
                self.secret_backoff.failed();
            }
        }
        self.secret_backoff.until().unwrap_or_else(Instant::now)
    }

    /// Restores the Secret: writes the last known authority, or a new one if none is known. Returns
    /// when to check again.
    async fn restore(&mut self, broken: &Content, secret: &SecretState) -> Instant {
        if let Content::Invalid {
            why,
            is_managed: false,
        } = broken
        {
            let path = self.shared.secret.path();
            self.warn_once(&format!("Secret {path} was not created by ecr-injector and can't be used: {why}; delete it, \
             or name another Secret with --ca-secret"));
            return Instant::now() + MAX_SLEEP;
        }
        if !self.secret_backoff.is_over() {
            return self.secret_backoff.until().unwrap_or_else(Instant::now);
        }
        let known = match broken {
            Content::Valid { authority, .. } => Some(&**authority),
            _ => secret.last_valid.as_deref(),
        };
        let (authority, step) = match known {
            Some(known) => (Ok(known.clone()), "restored"),
            None => match self.shared.clock.now().await {
                Ok(now) => (Authority::new(now, self.shared.lifetimes), "created"),
                Err(error) => {
                    self.warn_once(&error_chain(&error));
                    return Instant::now() + MAX_SLEEP;
                }
            },
        };
        match authority {
            Ok(authority) => self.write(&authority, secret, step).await,
            Err(error) => {
                self.warn_once(&format!(
                    "creating a certificate authority: {}",
                    error_chain(&error)
                ));
                self.secret_backoff.failed();
            }
        }
        self.secret_backoff.until().unwrap_or_else(Instant::now)
    }

    async fn write(&mut self, authority: &Authority, over: &SecretState, step: &'static str) {
        let path = self.shared.secret.path();
        let term = Some(&self.term);
        match self.shared.secret.write(authority, over, term).await {
            Ok(()) => {
                tracing::info!(secret = path, step, "wrote the certificate authority");
                self.shared.metrics.authority_step(step);
                self.secret_backoff.wrote();
                self.failure.clear();
            }
            // The watch reports the current Secret.
            Err(WriteError::Conflict | WriteError::NotLeading) => self.secret_backoff.failed(),
            Err(error @ (WriteError::Timeout | WriteError::Failed(_))) => {
                self.warn_once(&format!("writing the Secret {path}: {error}"));
                self.secret_backoff.failed();
            }
        }
    }

    /// Makes the registration trust the bundle, and notes since when the registration does. Returns
    /// when to check again.
    async fn publish(&mut self, registration: &RegistrationState, bundle: &str) -> Instant {
        let later = Instant::now() + MAX_SLEEP;
        let RegistrationState::Present(entries) = registration else {
            self.published_since = None;
            return later;
        };
        let is_published = if entries.is_injected {
            entries.trust(bundle)
        } else {
            entries.hold(bundle)
        };
        if is_published {
            self.published_since.get_or_insert_with(Instant::now);
            return later;
        }
        self.published_since = None;
        if entries.is_injected {
            self.warn_once("the MutatingWebhookConfiguration does not trust the certificate authority yet; its \
             caBundle is left to cert-manager, as its annotation says");
            return later;
        }
        if self.registration_backoff.is_over() {
            self.patch(entries, bundle).await;
        }
        self.registration_backoff.until().unwrap_or(later)
    }

    async fn patch(&mut self, entries: &Entries, bundle: &str) {
        let registration = &self.shared.registration;
        match registration.publish(entries, bundle, &self.term).await {
            Ok(()) => {
                tracing::info!(
                    webhook_configuration = registration.name(),
                    "patched the caBundle of the MutatingWebhookConfiguration"
                );
                self.registration_backoff.wrote();
                self.failure.clear();
            }
            // The watch reports the current registration.
            Err(WriteError::Conflict | WriteError::NotLeading) => {
                self.registration_backoff.failed();
            }
            Err(error @ (WriteError::Timeout | WriteError::Failed(_))) => {
                let name = registration.name();
                self.warn_once(&format!(
                    "writing the caBundle of the MutatingWebhookConfiguration {name}: {error}"
                ));
                self.registration_backoff.failed();
            }
        }
    }

    /// Logs a failure once, not at each retry.
    fn warn_once(&mut self, failure: &str) {
        if self.failure.is_new(failure) {
            tracing::warn!(error = %failure, "keeping the certificate authority failed; retrying");
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
