//! Checks of the `MutatingAdmissionPolicy` that adds the reference instead of the webhook, or beside
//! it. Pure.

use serde_json::Value;

use super::replicas;
use crate::{
    cli::doctor::{
        finding::Finding,
        installation::{DryRun, Installation, name},
    },
    registry::cel::private_image,
};

const WEBHOOK: &str = "the webhook alone adds the reference";
const UPGRADE: &str =
    "upgrade the release to the version of the replicas; docs/how-to/policy-mode.md has the mode";

/// Returns the policy of this installation, if there is one.
fn own(it: &Installation) -> Result<Option<&Value>, Finding> {
    let all = it.mutating_policies.get()?.iter().flatten();
    Ok(all
        .into_iter()
        .find(|object| name(object) == it.names.policy))
}

pub(super) fn there(it: &Installation) -> Result<Finding, Finding> {
    Ok(match (own(it)?, it.names.has_webhook) {
        (Some(_), false) => Finding::ok(it.names.policy.clone()),
        (Some(_), true) => Finding::ok(format!("{} beside the webhook", it.names.policy)),
        (None, true) => Finding::ok(WEBHOOK),
        (None, false) => Finding::fail(
            format!(
                "the replicas run with --no-admission, and there is no MutatingAdmissionPolicy {}: \
                 nothing adds the reference",
                it.names.policy
            ),
            "upgrade the release with mode: policy on Kubernetes 1.36 or newer, or with mode: \
             webhook",
        ),
    })
}

pub(super) fn bound(it: &Installation) -> Result<Finding, Finding> {
    if own(it)?.is_none() {
        return Ok(Finding::ok(WEBHOOK));
    }
    let mut bindings = it.mutating_bindings.get()?.iter().flatten();
    let is_bound = bindings.any(|binding| binding["spec"]["policyName"] == *it.names.policy);
    Ok(if is_bound {
        Finding::ok("")
    } else {
        Finding::fail(
            format!(
                "no MutatingAdmissionPolicyBinding has {}: the API server ignores it",
                it.names.policy
            ),
            UPGRADE,
        )
    })
}

pub(super) fn works(it: &Installation) -> Result<Finding, Finding> {
    let Some(policy) = own(it)? else {
        return Ok(Finding::ok(WEBHOOK));
    };
    let spec = &policy["spec"];
    let variables = spec["variables"].as_array().into_iter().flatten();
    let variables = variables.map(|variable| &variable["expression"]);
    let mutations = spec["mutations"].as_array().into_iter().flatten();
    let mutations = mutations.map(|mutation| &mutation["jsonPatch"]["expression"]);
    let expressions = variables.chain(mutations).filter_map(Value::as_str);
    let text: String = expressions.map(without_spaces).collect();
    if !text.contains(&without_spaces(&private_image())) {
        return Ok(Finding::fail(
            format!(
                "the expressions of {} do not have the registries of this version",
                it.names.policy
            ),
            UPGRADE,
        ));
    }
    let secret = &replicas::settings(it)?.rules.secret_name;
    if !text.contains(&format!("{secret:?}")) {
        return Ok(Finding::fail(
            format!("{} adds another Secret than {secret}", it.names.policy),
            "set config.secretName in the values of the chart alone: policy and configuration \
             follow",
        ));
    }
    if it.names.has_webhook {
        return Ok(Finding::ok("its expressions are those of this version"));
    }
    Ok(match it.dry_run.get()? {
        DryRun::Injected(namespace) => Finding::ok(format!("in {namespace}")),
        DryRun::NotInjected(why) => Finding::fail(
            why.clone(),
            "its failurePolicy is Ignore, which hides errors: see that its expressions and \
             selectors are those of the chart (helm get manifest)",
        ),
        DryRun::Rejected(why) => {
            Finding::skipped(format!("the API server rejected the dry-run Pod: {why}"))
        }
    })
}

fn without_spaces(text: &str) -> String {
    text.chars().filter(|it| !it.is_whitespace()).collect()
}
