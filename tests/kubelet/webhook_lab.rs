//! A lab with the webhook in it, registered through its Service, and a kubelet without a plugin.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};

use crate::lab::{HOST, Lab};
use crate::support::installation::{OPT_IN, PULL_SECRET};
use crate::support::webhook::Options;
use crate::support::{Installation, Webhook, due, eventually};

/// The life of a token whose renewal a test waits for: due after a quarter of it, while there are
/// more than the five minutes left below which an admission mints.
pub(crate) const SHORT_LIFE: Duration = Duration::from_mins(8);
/// How long the leader may take: a token of a short life is due after two minutes, and a backoff may
/// hold up one that AWS didn't give.
pub(crate) const RENEWED: Duration = Duration::from_mins(4);

pub(crate) struct WebhookLab {
    // Ends before the lab.
    pub(crate) webhook: Webhook,
    pub(crate) lab: Lab,
    options: Options,
}

impl WebhookLab {
    /// Starts all of it, with this configuration of the webhook.
    pub(crate) async fn start(config: &str) -> Self {
        let mut lab = Lab::start().await;
        lab.start_kubelet(None).await;
        let installation = Installation::apply(&lab.plane).await;
        let mut options = installation.webhook(&lab.plane, &lab.aws).await;
        config.clone_into(&mut options.config);
        let webhook = Webhook::start(options.clone()).await;
        installation.register(&lab.plane).await;
        lab.say("the webhook is registered");
        Self {
            webhook,
            lab,
            options,
        }
    }

    pub(crate) async fn opted_in(&self, prefix: &str) -> String {
        self.lab.plane.namespace(prefix, &[OPT_IN]).await
    }

    /// Ends the only replica, which is the leader.
    pub(crate) async fn stop(&mut self) {
        self.webhook.stop().await;
        self.lab.say("the webhook is away");
    }

    /// Starts another replica, which knows nothing of the one before.
    pub(crate) async fn start_again(&mut self) {
        self.webhook = Webhook::start(self.options.clone()).await;
        self.lab.say("the webhook is back");
    }

    /// Starts another replica with this configuration.
    pub(crate) async fn start_again_with(&mut self, config: &str) {
        config.clone_into(&mut self.options.config);
        self.start_again().await;
    }

    pub(crate) fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.lab.admin.clone(), namespace)
    }

    pub(crate) async fn pull_secret(&self, namespace: &str) -> Option<Secret> {
        let secrets = self.secrets(namespace);
        secrets.get_opt(PULL_SECRET).await.unwrap()
    }

    /// Returns the password that a namespace's pull secret has for the host of the images.
    pub(crate) async fn password(&self, namespace: &str) -> Option<String> {
        self.lab.password(namespace).await
    }

    /// Returns all passwords that AWS has issued so far.
    pub(crate) fn issued(&self) -> BTreeSet<String> {
        self.lab.aws.passwords().into_iter().collect()
    }

    /// Hours later: the registry takes no token that was issued so far, the pull secrets have an old
    /// one, and nobody has renewed them. The webhook is away.
    pub(crate) async fn expire(&mut self, namespaces: &[&str]) -> BTreeSet<String> {
        self.stop().await;
        self.lab.registry.revoke();
        let namespaces: Vec<_> = namespaces.iter().map(ToString::to_string).collect();
        due::make_due(&self.lab.admin, &namespaces, &[HOST.to_owned()]).await;
        self.issued()
    }

    /// Waits until a namespace's pull secret has a password of AWS that isn't one of these, and prints
    /// how long that took.
    pub(crate) async fn renewed(&self, namespace: &str, old: &BTreeSet<String>) {
        let begun = Instant::now();
        eventually("the pull secret is renewed", RENEWED, async || {
            let password = self.password(namespace).await?;
            let is_new = !old.contains(&password) && self.issued().contains(&password);
            is_new.then_some(())
        })
        .await;
        let took = begun.elapsed().as_secs_f64();
        self.lab
            .say(&format!("the pull secret is renewed after {took:.2} s"));
    }

    /// Deletes a namespace's pull secret.
    pub(crate) async fn delete_secret(&self, namespace: &str) {
        let secrets = self.secrets(namespace);
        secrets
            .delete(PULL_SECRET, &DeleteParams::default())
            .await
            .unwrap();
        self.lab.say("the pull secret is deleted");
    }

    /// Prints how long something took that a test waits for.
    pub(crate) async fn timed(
        &self,
        what: &str,
        check: impl AsyncFnMut() -> Option<()>,
    ) -> Duration {
        let begun = Instant::now();
        eventually(what, RENEWED, check).await;
        let took = begun.elapsed();
        self.lab
            .say(&format!("{what} after {:.2} s", took.as_secs_f64()));
        took
    }
}

/// A Pod that names the pull secret itself, where no webhook adds it.
pub(crate) fn by_hand() -> Value {
    json!({"imagePullSecrets": [{"name": PULL_SECRET}]})
}
