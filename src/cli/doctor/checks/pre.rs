//! Checks of the cluster around ecr-injector, which can be made before it is installed. Pure.

use serde_json::Value;

use super::listed;
use crate::{
    cli::doctor::{
        finding::{Finding, Reading},
        installation::{Installation, name},
    },
    telemetry::printable::count,
};

const INSTALLED: &str = "it is installed; --pre asks all the same";

/// Returns a reading that is made before an installation; a fine finding where it was not made
/// because there is one.
fn before<'a, T>(it: &Installation, reading: &'a Reading<T>) -> Result<&'a T, Finding> {
    match reading {
        Reading::Unread(_) if it.is_installed() => Err(Finding::ok(INSTALLED)),
        other => other.get(),
    }
}

pub(super) fn rights(it: &Installation) -> Result<Finding, Finding> {
    let rights = before(it, &it.may_install)?.iter();
    let (allowed, missing): (Vec<_>, Vec<_>) = rights.partition(|it| it.is_allowed);
    let missing: Vec<_> = missing.iter().map(|it| it.right.to_string()).collect();
    Ok(if missing.is_empty() {
        Finding::ok(count(allowed.len(), "permission"))
    } else {
        Finding::fail(
            format!("you may not {}", listed(missing)),
            "have somebody install it who administers the cluster; docs/how-to/one-namespace.md \
             has what one namespace can do alone",
        )
    })
}

pub(super) fn admission_api(it: &Installation) -> Result<Finding, Finding> {
    let rights = before(it, &it.may_install)?;
    let has_policies = it.mutating_policies.get()?.is_some();
    let mut rights = rights.iter();
    let may_register = rights.any(|granted| {
        let resource = &granted.right.resource;
        resource.starts_with("mutatingwebhookconfigurations") && granted.is_allowed
    });
    Ok(match (may_register, has_policies) {
        (true, true) => Finding::ok("by a webhook, and by a MutatingAdmissionPolicy"),
        (true, false) => Finding::ok("by a webhook"),
        (false, true) => Finding::warn(
            "you may not register webhooks, but there are MutatingAdmissionPolicies",
            "install with mode: policy; docs/how-to/policy-mode.md has what differs",
        ),
        (false, false) => Finding::fail(
            "you may not register webhooks, and the API server has no MutatingAdmissionPolicy v1",
            "use Kubernetes 1.36 or newer with mode: policy, or imagePullSecrets of \
             ServiceAccounts: docs/how-to/policy-mode.md#without-a-policy",
        ),
    })
}

pub(super) fn others(it: &Installation) -> Result<Finding, Finding> {
    let tools = before(it, &it.other_tools)?;
    let secrets = it.pull_secrets.value().into_iter().flatten();
    let foreign = secrets.filter(|secret| !secret.is_managed);
    let foreign: Vec<_> = foreign.map(|secret| &secret.namespace).collect();
    let mut causes = Vec::new();
    if !tools.is_empty() {
        causes.push(format!(
            "pull secrets for ECR are kept by {}",
            listed(tools)
        ));
    }
    if !foreign.is_empty() {
        causes.push(format!(
            "a Secret with the name of the pull secret is in {}",
            listed(foreign)
        ));
    }
    Ok(if causes.is_empty() {
        Finding::ok("")
    } else {
        Finding::warn(
            causes.join("; "),
            "docs/how-to/migrate.md has the order in which nothing stops pulling, and when another \
             secretName is needed",
        )
    })
}

pub(super) fn policies(it: &Installation) -> Result<Finding, Finding> {
    Ok(match it.policies.get()? {
        Some(_) => Finding::ok(""),
        None => Finding::warn(
            "the API server has no ValidatingAdmissionPolicy v1, so that there is no guard: what \
             ecr-injector writes is limited by RBAC alone",
            "use Kubernetes 1.30 or newer",
        ),
    })
}

pub(super) fn image_rewriter(it: &Installation) -> Result<Finding, Finding> {
    let all = it.registrations.get()?;
    let own = all
        .iter()
        .find(|object| name(object) == it.names.registration);
    // Without a registration the chart's default counts, which has conditions.
    let is_conditional = own.is_none_or(|own| {
        let conditions = own["webhooks"][0]["matchConditions"].as_array();
        conditions.is_some_and(|conditions| !conditions.is_empty())
    });
    if !is_conditional {
        return Ok(Finding::ok(
            "the webhook is called for every Pod of an opted-in namespace",
        ));
    }
    let later = all.iter().filter(|object| {
        let webhooks = object["webhooks"].as_array();
        name(object) > it.names.registration.as_str()
            && webhooks.into_iter().flatten().any(is_asked_about_pods)
    });
    let later: Vec<_> = later.map(name).collect();
    Ok(if later.is_empty() {
        Finding::ok("")
    } else {
        Finding::warn(
            format!(
                "called after {}, and may change Pods: {}",
                it.names.registration,
                listed(later)
            ),
            "if it rewrites images, set matchConditions.enabled: false in the values of the chart",
        )
    })
}

/// Whether a webhook is called for new Pods.
fn is_asked_about_pods(webhook: &Value) -> bool {
    let rules = webhook["rules"].as_array();
    rules.into_iter().flatten().any(|rule| {
        let has = |field: &str, wanted: &[&str]| {
            let values = rule[field].as_array().into_iter().flatten();
            let mut values = values.filter_map(Value::as_str);
            values.any(|value| value == "*" || wanted.contains(&value))
        };
        has("apiGroups", &[""])
            && has("operations", &["CREATE"])
            && has("resources", &["pods", "*/*"])
    })
}

pub(super) fn enforcer(it: &Installation) -> Result<Finding, Finding> {
    let namespaces = it.namespaces.get()?;
    let is_aks = namespaces.iter().any(|it| {
        let mut labels = it.labels.keys();
        it.name == "kube-system" && labels.any(|key| key.starts_with("kubernetes.azure.com/"))
    });
    if !is_aks {
        return Ok(Finding::ok(""));
    }
    let all = it.registrations.get()?;
    let own = all
        .iter()
        .find(|object| name(object) == it.names.registration);
    let annotation = own.map(|own| &own["metadata"]["annotations"]["admissions.enforcer/disabled"]);
    Ok(if annotation.and_then(Value::as_str) == Some("true") {
        Finding::ok("AKS, whose enforcer is switched off for this registration")
    } else {
        Finding::warn(
            "this is AKS, whose admissions enforcer changes the selectors of webhooks",
            "set webhook.annotations: {admissions.enforcer/disabled: \"true\"} in the values",
        )
    })
}
