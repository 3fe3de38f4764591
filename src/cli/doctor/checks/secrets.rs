//! Checks of pull secrets and of the Pods that wait for them. Pure.

use std::collections::BTreeMap;

use jiff::SignedDuration;

use super::{listed, namespaces, replicas};
use crate::{
    cli::doctor::{
        finding::Finding,
        installation::{Installation, NamespaceFacts, PodFacts, PullSecretFacts, Settings},
    },
    cluster::namespace::Namespace,
    pull_secret::{is_public, state::HostState},
    registry::Host,
    telemetry::printable::count,
    token::Freshness,
};

/// How long a registry may be wanted without a credential: a token takes seconds.
const MAX_PENDING: SignedDuration = SignedDuration::from_mins(2);
/// The longest lifetime of a token of ECR.
const TOKEN_LIFETIME: SignedDuration = SignedDuration::from_hours(12);

/// Returns the pull secrets of opted-in namespaces.
fn pull_secrets(it: &Installation) -> Result<Vec<(&NamespaceFacts, &PullSecretFacts)>, Finding> {
    let settings = replicas::settings(it)?;
    let namespaces = namespaces::opted_in_of(it, settings)?.into_iter();
    let namespaces: BTreeMap<&str, _> = namespaces.map(|it| (&*it.name, it)).collect();
    let secrets = it.pull_secrets.get()?.iter();
    let secrets = secrets.filter_map(|secret| {
        let namespace = namespaces.get(&*secret.namespace)?;
        Some((*namespace, secret))
    });
    Ok(secrets.collect())
}

pub(super) fn foreign(it: &Installation) -> Result<Finding, Finding> {
    let secrets = pull_secrets(it)?;
    let name = &replicas::settings(it)?.rules.secret_name;
    let foreign = secrets.iter().filter(|(_, secret)| !secret.is_managed);
    let names: Vec<_> = foreign.map(|(_, secret)| &secret.namespace).collect();
    Ok(if names.is_empty() {
        Finding::ok(count(secrets.len(), "pull secret"))
    } else {
        Finding::fail(
            format!("a Secret {name} of others is in {}", listed(names)),
            format!(
                "kubectl -n NAMESPACE delete secret {name} after you have looked who uses it, or \
                 set another secretName"
            ),
        )
    })
}

/// Returns the hosts that still have to be refreshed and are as asked for.
fn hosts(
    it: &Installation,
    is_meant: impl Fn(&Host, &HostState) -> bool,
) -> Result<Vec<String>, Finding> {
    let settings: &Settings = replicas::settings(it)?;
    let mut found = Vec::new();
    for (facts, secret) in pull_secrets(it)? {
        let (Some(name), Some(state)) = (Namespace::parse(&facts.name), &secret.state) else {
            continue;
        };
        let wanted = facts.settings();
        let meant = state
            .hosts
            .iter()
            .filter(|(host, entry)| is_meant(host, entry));
        for (host, _) in meant {
            // The rules suspend others, which is no fault.
            if settings
                .rules
                .key_for(host.as_str(), &name, &wanted)
                .is_some()
            {
                found.push(format!("{} ({host})", facts.name));
            }
        }
    }
    Ok(found)
}

const REFRESH: &str = "see the findings of aws and leader-there; ecr-injector refresh --once \
                       renews them by hand and says why it can't";

pub(super) fn expired(it: &Installation) -> Result<Finding, Finding> {
    let expired = hosts(it, |_, entry| {
        entry.credential.is_some() && entry.freshness(it.now) == Freshness::Expired
    })?;
    Ok(if expired.is_empty() {
        Finding::ok("")
    } else {
        Finding::fail(format!("expired: {}", listed(expired)), REFRESH)
    })
}

pub(super) fn pending(it: &Installation) -> Result<Finding, Finding> {
    let pending = hosts(it, |host, entry| {
        let age = it.now.duration_since(entry.demand.since);
        // Images of ECR Public also pull without.
        entry.credential.is_none() && age > MAX_PENDING && !is_public(host)
    })?;
    Ok(if pending.is_empty() {
        Finding::ok("")
    } else {
        Finding::fail(
            format!(
                "wanted for more than 2 min, and without a credential: {}",
                listed(pending)
            ),
            REFRESH,
        )
    })
}

pub(super) fn tampered(it: &Installation) -> Result<Finding, Finding> {
    let secrets = pull_secrets(it)?;
    let of = |secret: &&PullSecretFacts| {
        let managers = secret.other_managers.iter();
        if let Some(manager) = managers.clone().next() {
            return Some(format!("{} (by {manager})", secret.namespace));
        }
        let is_unreadable = secret.state.is_none();
        is_unreadable.then(|| format!("{} (its state can't be read)", secret.namespace))
    };
    let managed = secrets
        .iter()
        .map(|(_, secret)| *secret)
        .filter(|it| it.is_managed);
    let tampered: Vec<_> = managed.filter_map(|secret| of(&secret)).collect();
    Ok(if tampered.is_empty() {
        Finding::ok("")
    } else {
        Finding::warn(
            format!("written by others: {}", listed(tampered)),
            "find the client by metadata.managedFields of the Secret: the leader repairs what it \
             changes, again and again",
        )
    })
}

pub(super) fn service_accounts(it: &Installation) -> Result<Finding, Finding> {
    let references = it.account_references.get()?.iter();
    let old = references.filter_map(|reference| {
        let age = it.now.duration_since(reference.written_at?);
        let (namespace, account) = (&reference.namespace, &reference.account);
        let hours = age.as_hours();
        let secret = &reference.secret;
        (age > TOKEN_LIFETIME)
            .then(|| format!("{namespace}/{account} names {secret}, written {hours} h ago"))
    });
    let old: Vec<_> = old.collect();
    Ok(if old.is_empty() {
        Finding::ok("")
    } else {
        Finding::warn(
            format!(
                "ServiceAccounts name pull secrets whose tokens of ECR must have expired: {}",
                listed(old)
            ),
            "remove the entries from imagePullSecrets, then the Secrets: docs/how-to/migrate.md; an \
             entry that is no token of ECR is no fault (--skip secret-serviceaccounts)",
        )
    })
}

/// Returns the names of the waiting Pods of this kind.
fn pods(it: &Installation, is_meant: impl Fn(&&PodFacts) -> bool) -> Result<Vec<String>, Finding> {
    replicas::settings(it)?;
    let pods = it.pods.get()?.iter().filter(is_meant);
    Ok(pods
        .map(|pod| format!("{}/{}", pod.namespace, pod.name))
        .collect())
}

pub(super) fn missed(it: &Installation) -> Result<Finding, Finding> {
    let missed = pods(it, |pod| pod.would_get_reference && !pod.has_reference)?;
    Ok(if missed.is_empty() {
        Finding::ok("among Pending Pods")
    } else {
        Finding::warn(
            format!(
                "without the pull secret in their imagePullSecrets: {}",
                listed(missed)
            ),
            "ecr-injector doctor --stuck --restart has their controllers make new ones, where that \
             helps; ecr-injector doctor pod NAMESPACE/NAME says why each has none",
        )
    })
}

pub(super) fn stuck(it: &Installation) -> Result<Finding, Finding> {
    let stuck = pods(it, |pod| pod.waits_for_image)?;
    Ok(if stuck.is_empty() {
        Finding::ok("among Pending Pods")
    } else {
        Finding::fail(
            format!("the pull of an image of ECR fails: {}", listed(stuck)),
            "ecr-injector doctor --stuck says why, and what helps",
        )
    })
}

pub(super) fn sandbox(it: &Installation) -> Result<Finding, Finding> {
    let pods = it.sandboxes.get()?;
    Ok(if pods.is_empty() {
        Finding::ok("by the Events of the last hour")
    } else {
        Finding::warn(
            format!("a node can't pull its pause image: {}", listed(pods)),
            "no pull secret helps: the runtime of the node needs an image of its own region; \
             update the node's image (AMI) or its configuration of the sandbox image",
        )
    })
}
