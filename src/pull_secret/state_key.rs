//! The Secret in our own namespace that shares the state key, which seals states, among all
//! replicas.
//!
//! Every replica watches the Secret and uses its keys. Only the leader writes the Secret, except
//! for the very first key, which the first replica creates: its write requires that there is no
//! Secret yet, so of several replicas one wins. A key that was known once stays in use whatever
//! becomes of the Secret, and the leader restores it.

pub mod plan;

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    core::Status,
};
use rustls::crypto::ring::default_provider;
use serde_json::{Map, Value, json};
use thiserror::Error;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use zeroize::Zeroizing;

use self::plan::{Content, SECRET_TYPE, SharedKeys, Step, plan, read};
use super::{
    metrics::PullSecretMetrics,
    seal::{
        StateKeys,
        key::{KEY_BYTES, StateKey},
    },
};
use crate::{
    cluster::{
        call::ApiCall,
        lease::Leadership,
        namespace::Namespace,
        object::WholeSecret,
        ownership::{FIELD_MANAGER, MANAGED_BY, MANAGED_BY_LABEL},
        watch::{ObjectState, version, watch_one},
        write::{WriteBackoff, WriteError, write},
    },
    process::{clock::Clock, readiness::Condition},
    telemetry::log_once::LogOnce,
};

/// The Secret's name, unless another is configured.
pub const DEFAULT_NAME: &str = "ecr-injector-state-key";
/// The precondition that there is no Secret yet: the API server creates one, or answers with a
/// conflict.
const NONE_YET: &str = "1";
/// The longest sleep: a key that is a year old, or a clock that was set, is noticed by then.
const MAX_SLEEP: Duration = Duration::from_secs(30);
/// The pause after the first key could not be created.
const PAUSE: Duration = Duration::from_secs(2);

/// The Secret that shares the state key; clones share the knowledge of it.
#[derive(Clone)]
pub struct KeySecret(Arc<Inner>);

struct Inner {
    api: Api<WholeSecret>,
    namespace: Namespace,
    name: String,
    keys: StateKeys,
    clock: Arc<dyn Clock>,
    metrics: Arc<PullSecretMetrics>,
    seen: watch::Sender<Seen>,
}

/// The last observation of the Secret.
#[derive(Debug, Clone, Default)]
struct Seen {
    content: Content,
    /// The last keys that could be read, which are in use.
    known: Option<SharedKeys>,
    number: u64,
    uid: String,
}

/// The error that the system has no random bytes.
#[derive(Debug, Error)]
#[error("the system provides no random bytes")]
struct NoRandomBytes;

impl KeySecret {
    /// Returns the Secret of this name, whose keys go to `keys`. No call is made yet.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: Namespace,
        name: String,
        keys: StateKeys,
        clock: Arc<dyn Clock>,
        metrics: Arc<PullSecretMetrics>,
    ) -> Self {
        Self(Arc::new(Inner {
            api: Api::namespaced(client, namespace.as_str()),
            namespace,
            name,
            keys,
            clock,
            metrics,
            seen: watch::Sender::default(),
        }))
    }

    /// Returns the Secret's namespace.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.0.namespace
    }

    /// Returns the Secret's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Returns the Secret's namespace and name, for people.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}/{}", self.0.namespace, self.0.name)
    }

    /// Watches the Secret, and uses its keys, until the future is dropped.
    pub async fn watch(self) {
        let (api, name) = (self.0.api.clone(), &self.0.name);
        watch_one("the state key", api, name, |state| match state {
            ObjectState::Present(WholeSecret(secret)) => self.0.record_watched(&secret),
            ObjectState::Absent(last) => {
                let number = last.map(|WholeSecret(last)| version(&last.metadata));
                self.0.seen.send_modify(|seen| {
                    seen.content = Content::Absent;
                    seen.number = number.unwrap_or(seen.number).max(seen.number);
                });
            }
        })
        .await;
    }

    /// Waits until the Secret has been observed, or its absence.
    pub async fn wait_until_observed(&self) {
        let is_known = |seen: &Seen| seen.content != Content::Unknown;
        // An error would mean that the sender is gone, and `self` has it.
        let _ = self.0.seen.subscribe().wait_for(is_known).await;
    }

    /// Waits for the first key, and creates it if no other replica has; then the condition holds.
    /// The condition isn't taken back: a key that was known stays in use.
    pub async fn provide(self, condition: Condition) {
        let mut changes = self.0.seen.subscribe();
        let mut logged = LogOnce::default();
        loop {
            let seen = changes.borrow_and_update().clone();
            if seen.known.is_some() {
                return condition.hold();
            }
            let path = self.path();
            let mut wait = MAX_SLEEP;
            match &seen.content {
                Content::Absent => {
                    wait = PAUSE;
                    match self.0.create(&seen).await {
                        Ok(()) => tracing::info!(secret = path, "created the state key"),
                        // The watch brings the key of the replica that was first.
                        Err(WriteError::Conflict | WriteError::NotLeading) => {}
                        Err(error) => complain(&mut logged, &writing(&path, &error)),
                    }
                }
                Content::Foreign => complain(&mut logged, &foreign(&path)),
                Content::Malformed(why) => {
                    let what = format!(
                        "Secret {path} holds no valid state key: {why}; the leader replaces it"
                    );
                    complain(&mut logged, &what);
                }
                Content::Unknown | Content::Shared { .. } => {}
            }
            tokio::select! {
                // An error would mean that the sender is gone, and it is ours.
                _ = changes.changed() => {}
                () = sleep_until(Instant::now() + wait) => {}
            }
        }
    }

    /// Does the leader's part until the term is over: restores the Secret, and rotates the key when
    /// the key is old or a person requests it.
    pub async fn maintain(&self, term: &Leadership) {
        let mut changes = self.0.seen.subscribe();
        let (mut backoff, mut logged) = (WriteBackoff::default(), LogOnce::default());
        loop {
            let seen = changes.borrow_and_update().clone();
            let mut by = Instant::now() + MAX_SLEEP;
            if seen.content == Content::Foreign {
                complain(&mut logged, &foreign(&self.path()));
            }
            if let Some(step) = plan(&seen.content, seen.known.as_ref(), self.0.clock.now()) {
                if backoff.is_over() {
                    self.execute(&step, &seen, term, &mut backoff, &mut logged)
                        .await;
                }
                by = backoff.until().map_or(by, |until| until.min(by));
            }
            tokio::select! {
                biased;
                () = term.lost() => return,
                // An error would mean that the sender is gone, and it is ours.
                _ = changes.changed() => {}
                () = sleep_until(by) => {}
            }
        }
    }

    async fn execute(
        &self,
        step: &Step,
        seen: &Seen,
        term: &Leadership,
        backoff: &mut WriteBackoff,
        logged: &mut LogOnce,
    ) {
        let path = self.path();
        let written = match self.0.keys_after(step) {
            Ok(_) if !term.holds() => Err(WriteError::NotLeading),
            Ok(keys) => self.0.write(&keys, seen).await,
            Err(error) => Err(WriteError::Failed(error.to_string())),
        };
        match written {
            Ok(()) => {
                let what = label(step);
                tracing::info!(secret = path, step = what, "wrote the state key");
                backoff.wrote();
                logged.clear();
            }
            // The watch brings the current version.
            Err(WriteError::Conflict | WriteError::NotLeading) => backoff.failed(),
            Err(error) => {
                complain(logged, &writing(&path, &error));
                backoff.failed();
            }
        }
    }
}

impl Inner {
    /// Records an observation of the watch. A version below the known one counts too: the cluster
    /// was restored.
    fn record_watched(&self, secret: &Secret) {
        self.seen.send_modify(|seen| self.record(secret, seen));
    }

    /// Records the result of our own write, unless the watch was faster.
    fn record_written(&self, secret: &Secret) {
        self.seen.send_if_modified(|seen| {
            let is_new = seen.number < version(&secret.metadata);
            if is_new {
                self.record(secret, seen);
            }
            is_new
        });
    }

    fn record(&self, secret: &Secret, seen: &mut Seen) {
        seen.content = read(secret, seen.known.as_ref());
        seen.number = version(&secret.metadata);
        seen.uid = secret.metadata.uid.clone().unwrap_or_default();
        if let Content::Shared { keys, .. } = &seen.content {
            self.keys
                .replace(keys.current.clone(), keys.previous.clone());
            seen.known = Some(keys.clone());
        }
    }

    async fn create(&self, seen: &Seen) -> Result<(), WriteError> {
        let keys = self.keys_after(&Step::Create);
        let keys = keys.map_err(|error| WriteError::Failed(error.to_string()))?;
        self.write(&keys, seen).await
    }

    /// Returns the keys after a step.
    fn keys_after(&self, step: &Step) -> Result<SharedKeys, NoRandomBytes> {
        let now = self.clock.now();
        Ok(match step {
            Step::Create => SharedKeys::new(random_key()?, now),
            Step::Restore(keys) => keys.clone(),
            Step::Rotate { from, requested } => {
                from.rotated_to(random_key()?, requested.clone(), now)
            }
        })
    }

    /// Writes the keys, on condition that the Secret is still as it was observed: absent, or in
    /// that very version.
    async fn write(&self, keys: &SharedKeys, seen: &Seen) -> Result<(), WriteError> {
        let secret = self.manifest(keys, seen);
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&secret);
        let patch = self.api.patch(&self.name, &params, &patch);
        let call = ApiCall::new(&self.metrics.api_calls, "apply", "secrets");
        let written = write(call, patch, Status::is_conflict).await;
        let WholeSecret(written) = written.map_err(|error| redact(keys, error))?;
        self.record_written(&written);
        Ok(())
    }

    fn manifest(&self, keys: &SharedKeys, seen: &Seen) -> Value {
        let data: Map<String, Value> = keys
            .data()
            .into_iter()
            .map(|(name, key)| (name.to_owned(), BASE64_STANDARD.encode(key).into()))
            .collect();
        let mut metadata = json!({
            "name": self.name,
            "namespace": self.namespace.as_str(),
            "labels": {MANAGED_BY_LABEL: MANAGED_BY, "app.kubernetes.io/name": MANAGED_BY},
            "annotations": keys.annotations(),
            "resourceVersion": NONE_YET,
        });
        if seen.content != Content::Absent {
            metadata["resourceVersion"] = seen.number.to_string().into();
            metadata["uid"] = seen.uid.clone().into();
        }
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "type": SECRET_TYPE,
            "data": data,
        })
    }
}

fn random_key() -> Result<StateKey, NoRandomBytes> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    default_provider()
        .secure_random
        .fill(&mut *bytes)
        .map_err(|_| NoRandomBytes)?;
    Ok(StateKey::new(*bytes))
}

/// Returns the error without the keys, which a policy or a proxy may have quoted.
fn redact(keys: &SharedKeys, error: WriteError) -> WriteError {
    let WriteError::Failed(mut message) = error else {
        return error;
    };
    for key in keys.data().values() {
        message = message.replace(&BASE64_STANDARD.encode(key), "(key)");
    }
    WriteError::Failed(message)
}

fn foreign(path: &str) -> String {
    format!(
        "Secret {path} lacks the label {MANAGED_BY_LABEL}={MANAGED_BY}, so ecr-injector leaves \
         it unchanged; delete it, or name another Secret with --state-key-secret"
    )
}

fn writing(path: &str, error: &WriteError) -> String {
    format!("writing the state key to Secret {path}: {error}")
}

/// Logs an error once, not at every attempt.
fn complain(logged: &mut LogOnce, what: &str) {
    if logged.is_new(what) {
        tracing::warn!(error = %what, "keeping the state key failed; retrying");
    }
}

fn label(step: &Step) -> &'static str {
    match step {
        Step::Create => "created",
        Step::Restore(_) => "restored",
        Step::Rotate { .. } => "rotated",
    }
}

#[cfg(test)]
mod tests;
