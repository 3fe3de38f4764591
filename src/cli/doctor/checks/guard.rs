//! Checks of the service's permissions and of its guard. Pure.

use super::{listed, replicas};
use crate::{
    cli::doctor::{
        finding::Finding,
        installation::{Installation, name},
    },
    telemetry::printable::count,
};

/// The number of policies of the guard.
pub(super) const POLICIES: usize = 6;
/// The metric's value after the API server accepted what the guard should reject.
const ACCEPTED: f64 = 0.0;
/// The metric's value while the guard has not been tested.
const UNKNOWN: f64 = -1.0;

pub(super) fn rights(it: &Installation) -> Result<Finding, Finding> {
    let rights = it.rights.get()?.iter().filter(|it| it.is_needed);
    let (allowed, missing): (Vec<_>, Vec<_>) = rights.partition(|it| it.is_allowed);
    let missing: Vec<_> = missing.iter().map(|it| it.right.to_string()).collect();
    Ok(if missing.is_empty() {
        Finding::ok(count(allowed.len(), "permission"))
    } else {
        Finding::fail(
            format!("{} may not {}", account(it), listed(missing)),
            "apply deploy/rbac.yaml or upgrade the release; docs/reference/rbac.md has the reasons",
        )
    })
}

fn account(it: &Installation) -> String {
    format!(
        "the ServiceAccount {}/{}",
        it.names.namespace, it.names.account
    )
}

pub(super) fn too_much(it: &Installation) -> Result<Finding, Finding> {
    let rights = it.rights.get()?.iter();
    let granted = rights.filter(|it| !it.is_needed && it.is_allowed);
    let granted: Vec<_> = granted.map(|it| it.right.to_string()).collect();
    Ok(if granted.is_empty() {
        Finding::ok("")
    } else {
        Finding::warn(
            format!("{} may {}", account(it), listed(granted)),
            "find the binding that grants it (kubectl get clusterrolebindings -o wide), and remove \
             it: ecr-injector never needs it",
        )
    })
}

/// Returns the names of the policies about the service's account; `None` without the kind.
fn policies(it: &Installation) -> Result<Option<Vec<&str>>, Finding> {
    let user = format!(
        "\\\"system:serviceaccount:{}:{}\\\"",
        it.names.namespace, it.names.account
    );
    let Some(all) = it.policies.get()? else {
        return Ok(None);
    };
    let ours = all.iter().filter(|policy| {
        let conditions = policy["spec"]["matchConditions"].to_string();
        conditions.contains(&user)
    });
    Ok(Some(ours.map(name).collect()))
}

const APPLY: &str =
    "apply deploy/guard.yaml, or set guard.enabled: true in the values of the chart";

pub(super) fn there(it: &Installation) -> Result<Finding, Finding> {
    let Some(policies) = policies(it)? else {
        return Ok(Finding::skipped("after pre-vap"));
    };
    // One is about the registration alone.
    let wanted = POLICIES - usize::from(!it.names.has_webhook);
    Ok(match policies.len() {
        0 => Finding::warn(
            format!(
                "no ValidatingAdmissionPolicy limits what {} may write",
                account(it)
            ),
            APPLY,
        ),
        number if number < wanted => Finding::fail(
            format!("{number} of {wanted} policies exist: {}", listed(policies)),
            APPLY,
        ),
        number => Finding::ok(count(number, "policy")),
    })
}

pub(super) fn bound(it: &Installation) -> Result<Finding, Finding> {
    let policies = policies(it)?.unwrap_or_default();
    if policies.is_empty() {
        return Ok(Finding::skipped("after guard-there"));
    }
    let Some(bindings) = it.bindings.get()? else {
        return Ok(Finding::skipped("after pre-vap"));
    };
    let is_bound = |policy: &&&str| {
        bindings.iter().any(|binding| {
            let actions = binding["spec"]["validationActions"].as_array();
            binding["spec"]["policyName"] == **policy
                && actions.is_some_and(|actions| actions.iter().any(|it| it == "Deny"))
        })
    };
    let unbound: Vec<_> = policies.iter().filter(|policy| !is_bound(policy)).collect();
    Ok(if unbound.is_empty() {
        Finding::ok("")
    } else {
        Finding::fail(
            format!("no binding with the action Deny has {}", listed(unbound)),
            APPLY,
        )
    })
}

pub(super) fn works(it: &Installation) -> Result<Finding, Finding> {
    let values = replicas::scraped(it)?.into_iter();
    let values = values.filter_map(|(_, metrics)| metrics.value("ecr_injector_guard_enforced"));
    let values: Vec<f64> = values.collect();
    Ok(if values.is_empty() {
        Finding::skipped("no replica has tested the guard")
    } else if values.contains(&ACCEPTED) {
        Finding::fail(
            "the API server accepted a write that the guard should reject",
            APPLY,
        )
    } else if values.contains(&UNKNOWN) {
        Finding::warn(
            "a replica does not know yet whether the guard works",
            "wait a minute; else its log says why the test fails",
        )
    } else {
        Finding::ok("")
    })
}
