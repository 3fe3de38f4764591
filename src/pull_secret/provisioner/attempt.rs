//! One attempt to provision a pull secret: mints the missing tokens, then writes.

use std::collections::BTreeMap;

use futures::future::join_all;
use tokio::time::Instant;

use super::outcome::{Provisioned, SecretSource, TokenSource};
use crate::{
    cluster::namespace::{Namespace, NamespaceSettings},
    pull_secret::{
        DesiredCredential,
        error::PullSecretError,
        is_public,
        metrics::PullSecretMetrics,
        writer::{Added, Addition, Writer},
    },
    registry::{Host, Service},
    telemetry::{otel::SpanParent, phases::Phase},
    token::{
        TokenKey,
        cache::{Origin, TokenCache},
        rules::Rules,
    },
};

/// The part of the time that is kept for writing when minting takes long, as a divisor.
const WRITE_SHARE: u32 = 4;

/// An attempt for one namespace, until a deadline.
#[derive(Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) writer: &'a Writer,
    pub(super) tokens: &'a TokenCache,
    pub(super) metrics: &'a PullSecretMetrics,
    pub(super) namespace: &'a Namespace,
    pub(super) settings: &'a NamespaceSettings,
    pub(super) rules: &'a Rules,
    pub(super) deadline: Instant,
}

/// The outcome of minting.
struct Minted {
    wanted: BTreeMap<Host, DesiredCredential>,
    source: TokenSource,
    /// The first failure that matters.
    failure: Option<PullSecretError>,
}

impl Attempt<'_> {
    /// Mints the missing tokens and writes them; the Secret also names the hosts whose tokens could
    /// not be minted.
    pub(super) async fn run(
        &self,
        hosts: &BTreeMap<Host, TokenKey>,
        parent: &SpanParent,
    ) -> Provisioned {
        let minting = parent.enter(&self.metrics.phases, Phase::Token);
        let Minted {
            wanted,
            source: tokens,
            failure,
        } = self.mint(hosts.clone()).await;
        drop(minting);
        let _writing = parent.enter(&self.metrics.phases, Phase::Write);
        // The public gallery's images pull without a credential.
        let matters = |host: &&Host| !is_public(host);
        let names: Vec<Host> = wanted.keys().filter(matters).cloned().collect();
        let provisioned = |secret, result| Provisioned {
            tokens,
            secret,
            result,
        };
        let (secret, left_out) = match self.write(wanted).await {
            Err(error @ PullSecretError::Foreign(_)) => {
                return provisioned(SecretSource::Foreign, Err(error));
            }
            Err(error) => return provisioned(SecretSource::Failed, Err(error)),
            Ok(Added::Written(left_out)) => (SecretSource::Written, left_out),
            Ok(Added::Unchanged(left_out)) => (SecretSource::Unchanged, left_out),
            Ok(Added::Tampered(_)) => (SecretSource::Unchanged, vec![]),
        };
        // Another replica, or the leader, may have minted what failed here.
        let fits = |host: &&Host| !left_out.contains(*host);
        let fitting: Vec<Host> = names.iter().filter(fits).cloned().collect();
        let failure = failure.filter(|_| !self.writer.is_usable(self.namespace, &fitting));
        match failure {
            Some(error) => provisioned(SecretSource::Wanted, Err(error)),
            None if left_out.is_empty() => provisioned(secret, Ok(())),
            None => {
                let (hosts, limit) = (left_out, self.rules.registries_per_secret);
                provisioned(secret, Err(PullSecretError::Full { hosts, limit }))
            }
        }
    }

    async fn write(
        &self,
        mut wanted: BTreeMap<Host, DesiredCredential>,
    ) -> Result<Added, PullSecretError> {
        let added = self.add(&wanted, false).await?;
        let Added::Tampered(claimed) = added else {
            return Ok(added);
        };
        let has_new_hosts = wanted.keys().any(|host| !claimed.contains(host));
        self.restore(&claimed, &mut wanted).await;
        let has_any_token = wanted.values().any(|desired| desired.token.is_some());
        if !has_any_token && !has_new_hosts {
            // The Secret already names all hosts. Its credentials may still open registries, while
            // a Secret without any opens none.
            return Ok(Added::Tampered(claimed));
        }
        self.add(&wanted, true).await
    }

    async fn add(
        &self,
        wanted: &BTreeMap<Host, DesiredCredential>,
        replaces_tampered: bool,
    ) -> Result<Added, PullSecretError> {
        let addition = Addition {
            wanted,
            limit: self.rules.registries_per_secret,
            replaces_tampered,
        };
        self.writer
            .add(self.namespace, self.settings, addition, self.deadline)
            .await
    }

    /// Mints a token for each host. A host of the public gallery without a token is no failure: its
    /// images pull without one.
    async fn mint(&self, hosts: BTreeMap<Host, TokenKey>) -> Minted {
        let left = self.deadline.saturating_duration_since(Instant::now());
        let deadline = self.deadline - left / WRITE_SHARE;
        let mints = hosts.into_iter().map(|(host, key)| async move {
            let token = self.tokens.get(&key, deadline).await;
            (host, key, token)
        });
        let mut failure = None;
        let mut wanted = BTreeMap::new();
        let mut source = TokenSource::None;
        for (host, key, token) in join_all(mints).await {
            if let Err(error) = &token
                && key.endpoint.service == Service::Private
            {
                failure.get_or_insert(PullSecretError::Mint {
                    host: host.clone(),
                    error: error.clone(),
                });
            }
            source = source.max(match &token {
                Ok((_, Origin::Memory)) => TokenSource::Memory,
                Ok((_, Origin::Minted)) => TokenSource::Minted,
                Err(_) => TokenSource::Failed,
            });
            let desired = DesiredCredential {
                identity: key.identity.hash(),
                token: token.ok().map(|(token, _)| token),
            };
            wanted.insert(host, desired);
        }
        Minted {
            wanted,
            source,
            failure,
        }
    }

    /// Mints for the hosts of a tampered Secret. Another client changed its data or state, so
    /// nothing in the Secret can be trusted: every host that it claims to have and that the rules
    /// allow is treated as wanted.
    async fn restore(&self, claimed: &[Host], wanted: &mut BTreeMap<Host, DesiredCredential>) {
        let (namespace, rules) = (self.namespace, self.rules);
        tracing::warn!(%namespace, "pull secret was changed by another client; repairing it");
        self.metrics.tampered.inc();
        let claimed = claimed
            .iter()
            .filter(|host| !wanted.contains_key(*host))
            .filter_map(|host| rules.key_for(host.as_str(), namespace, self.settings))
            .take(rules.registries_per_secret.saturating_sub(wanted.len()))
            .collect();
        wanted.extend(self.mint(claimed).await.wanted);
    }
}
