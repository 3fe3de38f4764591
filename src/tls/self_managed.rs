//! Certificates that need nobody: one authority in a Secret that all replicas share, a serving certificate for each that is
//! signed in memory, and a registration that is made to trust them.
//!
//! Every replica watches the Secret and the registration. The leader alone writes (`keeper.rs`), but for the very first
//! authority, which whoever comes first makes: its write says that there must be none yet, so of several one wins.

pub mod ca_secret;
mod keeper;
pub mod registration;

use std::{sync::Arc, time::Duration};

use futures::{FutureExt as _, future::BoxFuture};
use kube::Client;
use tokio::time::{Instant, sleep_until};

use self::{
    ca_secret::{CaSecret, Content, Held},
    keeper::CaRotator,
    registration::{Registration, Seen},
};
use super::{
    CertPublisher, Source,
    authority::{Authority, Leaf},
    metrics::TlsMetrics,
    rotation::{Lifetimes, needs_renewal},
};
use crate::{
    cluster::{lease::Leadership, namespace::Namespace, write::WriteError},
    process::{clock::Clock, readiness::Condition},
};

/// The longest sleep: a machine that was suspended, or a clock that was set, is noticed by then.
const MAX_SLEEP: Duration = Duration::from_secs(30);
/// The shortest sleep: what is due by then is due now.
const SOON: Duration = Duration::from_millis(100);
/// The pause after an authority, or a certificate under it, could not be made.
const PAUSE: Duration = Duration::from_secs(2);

/// What it works with.
pub struct SelfManagedOptions {
    /// The API server.
    pub client: Client,
    /// Where we run, and the CA Secret is.
    pub namespace: Namespace,
    /// The CA Secret's name.
    pub secret: String,
    /// The `MutatingWebhookConfiguration`'s name.
    pub registration: String,
    /// The DNS name that certificates are for.
    pub service: String,
    /// How long what lasts.
    pub lifetimes: Lifetimes,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: Arc<TlsMetrics>,
}

/// The self-managed authority; clones share it.
#[derive(Clone)]
pub struct SelfManaged(Arc<Inner>);

struct Inner {
    secret: CaSecret,
    registration: Registration,
    service: String,
    lifetimes: Lifetimes,
    clock: Arc<dyn Clock>,
    metrics: Arc<TlsMetrics>,
}

impl SelfManaged {
    /// Makes it of its parts. No call leaves yet.
    #[must_use]
    pub fn new(parts: SelfManagedOptions) -> Self {
        let SelfManagedOptions {
            client,
            metrics,
            lifetimes,
            ..
        } = parts;
        Self(Arc::new(Inner {
            secret: CaSecret::new(
                client.clone(),
                parts.namespace,
                parts.secret,
                lifetimes,
                metrics.clone(),
            ),
            registration: Registration::new(client, parts.registration, metrics.clone()),
            service: parts.service,
            lifetimes,
            clock: parts.clock,
            metrics,
        }))
    }

    /// Follows the Secret and the registration until the future is dropped.
    pub async fn watch(self) {
        tokio::join!(self.0.secret.follow(), self.0.registration.follow());
    }

    /// Lets the condition hold once the registration trusts the authority that signs. It is not taken back: a replica that
    /// the API server can't trust for a moment is no reason to send it nowhere at all.
    pub async fn report(self, condition: Condition) {
        let (mut held, mut seen) = (self.0.secret.subscribe(), self.0.registration.subscribe());
        let mut is_missed = false;
        loop {
            let trusts = is_trusted(&held.borrow_and_update(), &seen.borrow_and_update());
            self.0.metrics.ca_bundle_trusted(trusts);
            if trusts {
                condition.hold();
            }
            let is_absent = matches!(*seen.borrow(), Seen::Absent);
            if is_absent && !is_missed {
                let name = self.0.registration.name();
                tracing::warn!(
                    webhook_configuration = name,
                    "MutatingWebhookConfiguration not found; the API server does not call this \
                     webhook"
                );
            }
            is_missed = is_absent;
            tokio::select! {
                _ = held.changed() => {}
                _ = seen.changed() => {}
            }
        }
    }

    /// Does the leader's part until the term is over.
    pub async fn keep(&self, term: Leadership) {
        CaRotator::new(&self.0, term).run().await;
    }

    /// Makes the first authority, unless somebody else is first.
    async fn create(&self, served: &mut CertPublisher) {
        let now = self.0.clock.now();
        let path = self.0.secret.path();
        let authority = match Authority::new(now, self.0.lifetimes) {
            Ok(authority) => authority,
            Err(error) => return served.refuse(&error),
        };
        match self.0.secret.write(&authority, None).await {
            Ok(()) => {
                tracing::info!(secret = path, "created the certificate authority");
                self.0.metrics.authority_step("created");
            }
            Err(WriteError::Conflict | WriteError::NotLeading) => {}
            Err(error @ (WriteError::Timeout | WriteError::Failed(_))) => {
                served.refuse(&format!(
                    "creating the Secret {path} for the certificate authority: {error}"
                ));
            }
        }
    }

    async fn serve(self, mut served: CertPublisher) {
        let mut changes = self.0.secret.subscribe();
        let mut leaf: Option<Leaf> = None;
        loop {
            let held = changes.borrow_and_update().clone();
            let now = self.0.clock.now();
            let mut wait = MAX_SLEEP;
            match &held.now {
                Content::Good { authority, .. } => {
                    let is_good = leaf.as_ref().is_some_and(|leaf| {
                        authority.signed(leaf) && needs_renewal(&leaf.pair.life, now).is_none()
                    });
                    if !is_good {
                        match authority.sign(&self.0.service, now) {
                            Ok(signed) => {
                                served.offer(signed.pair.clone(), &self.0.secret.path());
                                leaf = Some(signed);
                            }
                            Err(error) => served.refuse(&error),
                        }
                    }
                    // What is worn already could not be followed by another.
                    wait = leaf.as_ref().map_or(PAUSE, |leaf| {
                        let due = leaf.pair.life.renew_at().duration_since(now);
                        Duration::try_from(due).map_or(PAUSE, |due| due.max(SOON))
                    });
                }
                Content::Absent if held.last.is_none() => {
                    self.create(&mut served).await;
                    wait = PAUSE;
                }
                Content::Bad { why, .. } if leaf.is_none() => {
                    let path = self.0.secret.path();
                    served.refuse(&format!("the Secret {path} can't be used: {why}"));
                }
                // The leader puts it right, and what is served stays good for days.
                Content::Unknown | Content::Absent | Content::Bad { .. } => {}
            }
            tokio::select! {
                // An error would say that the sender is gone, and it is ours.
                _ = changes.changed() => {}
                () = sleep_until(Instant::now() + wait.min(MAX_SLEEP)) => {}
            }
        }
    }
}

fn is_trusted(held: &Held, seen: &Seen) -> bool {
    match (&held.now, seen) {
        (Content::Good { authority, .. }, Seen::There(entries)) => {
            entries.trust(authority.signer())
        }
        _ => false,
    }
}

impl Source for SelfManaged {
    fn run(self: Box<Self>, served: CertPublisher) -> BoxFuture<'static, ()> {
        self.serve(served).boxed()
    }
}
