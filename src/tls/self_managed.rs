//! Certificates without cert-manager: one authority in a Secret that all replicas share, a serving
//! certificate for each replica that is signed in memory, and a registration that trusts them.
//!
//! Every replica watches the Secret and the registration. Only the leader writes (`ca_rotator.rs`),
//! except for the very first authority, which the first replica creates: its write has the
//! precondition that there is none yet, so one of several wins.

mod ca_rotator;
pub mod ca_secret;
pub mod registration;
mod server_clock;
mod shared;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use kube::Client;
use tokio::time::{Instant, sleep_until};

use self::{
    ca_rotator::CaRotator,
    ca_secret::{CaSecret, Content, SecretState},
    registration::{Registration, RegistrationState},
    server_clock::ServerClock,
    shared::{MAX_SLEEP, Shared},
};
use super::{
    authority::{Authority, Leaf},
    metrics::TlsMetrics,
    publisher::{CertPublisher, CertSource},
    rotation::{Lifetimes, Renewal, needs_renewal},
};
use crate::{
    cluster::{lease::Leadership, namespace::Namespace, write::WriteError},
    process::{clock::Clock, readiness::Condition},
    telemetry::{error_chain::error_chain, log_once::LogOnce},
};

/// The shortest sleep: a renewal that is due by then is due now.
const SOON: Duration = Duration::from_millis(100);
/// The pause after an authority, or a certificate under it, could not be created.
const PAUSE: Duration = Duration::from_secs(2);

/// The parts of a self-managed authority.
pub struct SelfManagedOptions {
    /// The client of the API server.
    pub client: Client,
    /// The namespace of the installation and of the CA Secret.
    pub namespace: Namespace,
    /// The CA Secret's name.
    pub secret: String,
    /// The `MutatingWebhookConfiguration`'s name.
    pub registration: String,
    /// The DNS name that certificates are for.
    pub service: String,
    /// How long certificates last.
    pub lifetimes: Lifetimes,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// The metrics.
    pub metrics: Arc<TlsMetrics>,
}

/// The self-managed authority; clones share it.
#[derive(Clone)]
pub struct SelfManaged(Arc<Shared>);

impl SelfManaged {
    /// Returns an authority that has made no call yet.
    #[must_use]
    pub fn new(options: SelfManagedOptions) -> Self {
        let SelfManagedOptions {
            client,
            metrics,
            lifetimes,
            ..
        } = options;
        Self(Arc::new(Shared {
            secret: CaSecret::new(
                client.clone(),
                options.namespace,
                options.secret,
                lifetimes,
                metrics.clone(),
            ),
            registration: Registration::new(client.clone(), options.registration, metrics.clone()),
            service: options.service,
            lifetimes,
            clock: ServerClock::new(client, options.clock, metrics.clone()),
            metrics,
        }))
    }

    /// Watches the Secret and the registration until the future is dropped.
    pub async fn watch(self) {
        tokio::join!(self.0.secret.follow(), self.0.registration.follow());
    }

    /// Lets the condition hold once the registration trusts the authority that signs, and measures
    /// that trust. The condition isn't taken back: a replica that the API server can't trust for a
    /// moment is no reason to route its requests nowhere at all.
    pub async fn report(self, condition: Condition) {
        let mut secret = self.0.secret.subscribe();
        let mut registration = self.0.registration.subscribe();
        let mut absence = LogOnce::<()>::default();
        loop {
            let trusts = is_trusted(
                &secret.borrow_and_update(),
                &registration.borrow_and_update(),
            );
            self.0.metrics.ca_bundle_trusted(trusts);
            if trusts {
                condition.hold();
            }
            if !matches!(*registration.borrow(), RegistrationState::Absent) {
                absence.clear();
            } else if absence.is_new(()) {
                let name = self.0.registration.name();
                tracing::warn!(
                    webhook_configuration = name,
                    "MutatingWebhookConfiguration not found; the API server does not call this \
                     webhook"
                );
            }
            tokio::select! {
                _ = secret.changed() => {}
                _ = registration.changed() => {}
            }
        }
    }

    /// Restores and rotates the authority as the leader, until the term is over.
    pub async fn keep(&self, term: Leadership) {
        CaRotator::new(&self.0, term).run().await;
    }

    /// Creates the first authority, unless another replica is first.
    async fn create(&self, secret: &SecretState, publisher: &mut CertPublisher) {
        let path = self.0.secret.path();
        let now = match self.0.clock.now().await {
            Ok(now) => now,
            Err(error) => return publisher.reject(&error_chain(&error), self.0.clock.local()),
        };
        let authority = match Authority::new(now, self.0.lifetimes) {
            Ok(authority) => authority,
            Err(error) => return publisher.reject(&error_chain(&error), now),
        };
        match self.0.secret.write(&authority, secret, None).await {
            Ok(()) => {
                tracing::info!(secret = path, "created the certificate authority");
                self.0.metrics.authority_step("created");
            }
            Err(WriteError::Conflict | WriteError::NotLeading) => {}
            Err(error @ (WriteError::Timeout | WriteError::Failed(_))) => {
                let error =
                    format!("creating the Secret {path} for the certificate authority: {error}");
                publisher.reject(&error, now);
            }
        }
    }

    /// Publishes a new certificate under the authority, unless the one in use is good. Returns how
    /// long to wait until the next is due.
    async fn renew(
        &self,
        authority: &Authority,
        leaf: &mut Option<Leaf>,
        publisher: &mut CertPublisher,
    ) -> Duration {
        let server_time = self.0.clock.now().await;
        // A certificate that isn't renewed in time is an outage, so the local clock stands in. But
        // one that is not valid yet by that clock alone only shows that the clock was set back.
        let is_local = server_time.is_err();
        let now = server_time.unwrap_or_else(|_| self.0.clock.local());
        let is_current = leaf.as_ref().is_some_and(|leaf| {
            authority.signed(leaf)
                && match needs_renewal(&leaf.cert.validity, now) {
                    None => true,
                    Some(Renewal::NotYetValid) => is_local,
                    Some(_) => false,
                }
        });
        if !is_current {
            match authority.sign(&self.0.service, now) {
                Ok(signed) => {
                    publisher.publish(signed.cert.clone(), &self.0.secret.path(), now);
                    *leaf = Some(signed);
                }
                Err(error) => publisher.reject(&error_chain(&error), now),
            }
        }
        // A certificate whose renewal is overdue could not be replaced just now.
        leaf.as_ref().map_or(PAUSE, |leaf| {
            let due = leaf.cert.validity.renew_at().duration_since(now);
            Duration::try_from(due).map_or(PAUSE, |due| due.max(SOON))
        })
    }

    async fn serve(self, mut publisher: CertPublisher) {
        let mut changes = self.0.secret.subscribe();
        let mut leaf: Option<Leaf> = None;
        loop {
            let secret = changes.borrow_and_update().clone();
            let mut wait = MAX_SLEEP;
            match &secret.content {
                Content::Valid { authority, .. } => {
                    wait = self.renew(authority, &mut leaf, &mut publisher).await;
                }
                Content::Absent if secret.last_valid.is_none() => {
                    self.create(&secret, &mut publisher).await;
                    wait = PAUSE;
                }
                Content::Invalid { why, .. } if leaf.is_none() => {
                    let path = self.0.secret.path();
                    let error = format!("the Secret {path} can't be used: {why}");
                    publisher.reject(&error, self.0.clock.local());
                }
                // The leader restores the Secret, and the certificate in use stays valid for days.
                Content::Unknown | Content::Absent | Content::Invalid { .. } => {}
            }
            tokio::select! {
                // An error would mean that the sender is gone, and `self` has it.
                _ = changes.changed() => {}
                () = sleep_until(Instant::now() + wait.min(MAX_SLEEP)) => {}
            }
        }
    }
}

fn is_trusted(secret: &SecretState, registration: &RegistrationState) -> bool {
    match (&secret.content, registration) {
        (Content::Valid { authority, .. }, RegistrationState::Present(entries)) => {
            entries.trust(authority.signer())
        }
        _ => false,
    }
}

impl CertSource for SelfManaged {
    fn run(self: Box<Self>, publisher: CertPublisher) -> BoxFuture<'static, ()> {
        self.serve(publisher).boxed()
    }
}
