//! Checks of the cluster around ecr-injector, which can be made before it is installed. Pure.

use serde_json::Value;

use super::listed;
use crate::cli::doctor::{
    finding::Finding,
    installation::{Installation, name},
};

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
