//! Checks of the namespaces: which are opted in, which nearly so, and their roles. Pure.

use super::{listed, replicas};
use crate::{
    cli::doctor::{
        finding::Finding,
        installation::{Installation, NamespaceFacts, Settings},
    },
    cluster::{
        namespace::{Namespace, ROLE_ANNOTATION},
        near_miss::OptInNearMiss,
    },
    identity::Refusal,
    registry::Registry,
    telemetry::printable::{count, cut},
};

/// The registry by which the role of a namespace without a pull secret is checked; another
/// partition of it is no finding.
const SOME_REGISTRY: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
/// The most characters of a near miss that are shown.
const MAX_NOTE: usize = 300;

/// Returns the opted-in namespaces.
pub(super) fn opted_in_of<'a>(
    it: &'a Installation,
    settings: &'a Settings,
) -> Result<Vec<&'a NamespaceFacts>, Finding> {
    let all = it.namespaces.get()?.iter();
    Ok(all
        .filter(|it| settings.is_opted_in(it) && !it.is_terminating)
        .collect())
}

pub(super) fn opted_in(it: &Installation) -> Result<Finding, Finding> {
    let settings = replicas::settings(it)?;
    let number = opted_in_of(it, settings)?.len();
    Ok(if number == 0 {
        Finding::warn(
            format!(
                "no namespace has the label {}={}",
                settings.label, settings.value
            ),
            format!(
                "kubectl label namespace NAMESPACE {}={}",
                settings.label, settings.value
            ),
        )
    } else {
        Finding::ok(count(number, "namespace"))
    })
}

/// Returns the near misses of this kind.
fn near_misses(
    it: &Installation,
    is_meant: impl Fn(&OptInNearMiss) -> bool,
) -> Result<Vec<(&str, String)>, Finding> {
    let settings = replicas::settings(it)?;
    let (label, value) = (&*settings.label, &*settings.value);
    let mut found = Vec::new();
    for facts in it.namespaces.get()? {
        let Some(namespace) = Namespace::parse(&facts.name) else {
            continue;
        };
        let is_excluded = settings.rules.excluded.contains(&namespace);
        let near = OptInNearMiss::of(&facts.labels, &facts.annotations, label, value, is_excluded);
        if let Some(near) = near.filter(&is_meant) {
            found.push((&*facts.name, near.note(label, value, &namespace)));
        }
    }
    Ok(found)
}

pub(super) fn label_typo(it: &Installation) -> Result<Finding, Finding> {
    let near = near_misses(it, |near| *near != OptInNearMiss::Excluded)?;
    let Some((_, note)) = near.first() else {
        return Ok(Finding::ok(""));
    };
    let note = cut(note, MAX_NOTE).into_owned();
    let names: Vec<_> = near.iter().map(|(name, _)| *name).collect();
    Ok(Finding::warn(
        format!(
            "not opted in, but looks as if it should be: {}",
            listed(names)
        ),
        note,
    ))
}

pub(super) fn excluded(it: &Installation) -> Result<Finding, Finding> {
    let near = near_misses(it, |near| *near == OptInNearMiss::Excluded)?;
    let names: Vec<_> = near.iter().map(|(name, _)| *name).collect();
    Ok(if names.is_empty() {
        Finding::ok("")
    } else {
        Finding::warn(
            format!(
                "labelled, but excluded by the configuration: {}",
                listed(names)
            ),
            "remove the label, or the namespace from optIn.excludeNamespaces; kube-system, \
             kube-node-lease and that of ecr-injector stay excluded",
        )
    })
}

pub(super) fn role(it: &Installation) -> Result<Finding, Finding> {
    let settings = replicas::settings(it)?;
    let Some(registry) = Registry::parse(SOME_REGISTRY) else {
        return Ok(Finding::skipped("no registry to check the roles with"));
    };
    let mut refused = Vec::new();
    let mut roles = 0;
    for facts in opted_in_of(it, settings)? {
        let Some(name) = Namespace::parse(&facts.name) else {
            continue;
        };
        roles += usize::from(facts.annotations.contains_key(ROLE_ANNOTATION));
        let choice = settings
            .rules
            .identities
            .choose(&registry, &name, &facts.settings());
        if let Err(why @ (Refusal::NotAnArn | Refusal::NotAllowed)) = choice.identity {
            refused.push((&*facts.name, why));
        }
    }
    let Some((_, why)) = refused.first() else {
        return Ok(Finding::ok(count(roles, "role")));
    };
    let names = refused.iter().map(|(name, _)| *name);
    Ok(Finding::fail(
        format!("{}: {why}", listed(names)),
        "correct the annotation, or allow the role in namespaceRoles.allow; ecr-injector identity \
         explains the choice",
    ))
}
