//! Checks of the `MutatingWebhookConfiguration` and of the Service behind it. Pure.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    listed,
    replicas::{self, EXPIRY},
};
use crate::cli::doctor::{
    exposition::Exposition,
    finding::Finding,
    installation::{DryRun, Installation, name},
};

/// The end of the names of a registration's webhooks.
const DOMAIN: &str = ".ecr-injector.dev";
/// The Service's port, if a registration names none.
const DEFAULT_PORT: u64 = 443;

fn webhooks(registration: &Value) -> &[Value] {
    registration["webhooks"]
        .as_array()
        .map_or(&[], Vec::as_slice)
}

/// Returns the registration of this installation.
fn own(it: &Installation) -> Result<&Value, Finding> {
    if !it.names.has_webhook {
        return Err(Finding::skipped(
            "the replicas run with --no-admission: a MutatingAdmissionPolicy adds the reference, \
             which registration-answers tries",
        ));
    }
    let all = it.registrations.get()?;
    let own = all
        .iter()
        .find(|object| name(object) == it.names.registration);
    own.filter(|object| !webhooks(object).is_empty()).ok_or_else(|| {
        Finding::fail(
            format!(
                "there is no MutatingWebhookConfiguration {} with webhooks: the API server asks \
                 nobody about Pods",
                it.names.registration
            ),
            "install the chart or deploy/registration.yaml; --release and -n name an installation \
             with other names",
        )
    })
}

pub(super) fn there(it: &Installation) -> Result<Finding, Finding> {
    let names = webhooks(own(it)?).iter();
    let names: Vec<_> = names
        .filter_map(|webhook| webhook["name"].as_str())
        .collect();
    Ok(Finding::ok(names.join(", ")))
}

pub(super) fn one(it: &Installation) -> Result<Finding, Finding> {
    let is_ours = |webhook: &Value| {
        let name = webhook["name"].as_str();
        name.is_some_and(|name| name.ends_with(DOMAIN))
    };
    let others = it.registrations.get()?.iter().filter(|object| {
        name(object) != it.names.registration && webhooks(object).iter().any(is_ours)
    });
    let others: Vec<_> = others.map(name).collect();
    Ok(if others.is_empty() {
        Finding::ok("")
    } else {
        Finding::warn(
            format!("another installation is registered: {}", listed(others)),
            "remove one of them, or give them different optIn labels: both write the pull secret \
             of a namespace that both match",
        )
    })
}

pub(super) fn trusts_us(it: &Installation) -> Result<Finding, Finding> {
    let own = own(it)?;
    let empty = webhooks(own).iter().filter(|webhook| {
        let bundle = webhook["clientConfig"]["caBundle"].as_str();
        bundle.is_none_or(str::is_empty)
    });
    let empty: Vec<_> = empty
        .filter_map(|webhook| webhook["name"].as_str())
        .collect();
    let fix = "docs/how-to/gitops.md has what Argo CD and Flux have to ignore; the leader's log \
               says why it can't write the caBundle";
    if !empty.is_empty() {
        let cause = format!(
            "the caBundle of {} is empty{}",
            listed(empty),
            written_by(own)
        );
        return Ok(Finding::fail(cause, fix));
    }
    if it.names.authority.is_none() {
        return Ok(Finding::ok("a caBundle from elsewhere is set"));
    }
    // Without an authority of its own a replica reports 0.
    let signs = |metrics: &Exposition| metrics.labelled(EXPIRY, "kind", "ca").is_some();
    let scraped = replicas::scraped(it)?.into_iter();
    let trusts: Vec<_> = scraped
        .filter(|(_, metrics)| signs(metrics))
        .filter_map(|(_, metrics)| metrics.is_one("ecr_injector_ca_bundle_trusted"))
        .collect();
    Ok(match (trusts.is_empty(), trusts.contains(&false)) {
        (true, _) => Finding::skipped("no replica has a self-managed authority"),
        (false, true) => Finding::fail(
            format!(
                "the caBundle is not that of the self-managed authority{}",
                written_by(own)
            ),
            fix,
        ),
        (false, false) => Finding::ok(""),
    })
}

/// Returns who wrote the `caBundle`, as far as the managed fields have it.
fn written_by(registration: &Value) -> String {
    let entries = registration["metadata"]["managedFields"].as_array();
    let writers = entries.into_iter().flatten().filter(|entry| {
        let fields = entry["fieldsV1"].to_string();
        fields.contains("\"f:caBundle\"")
    });
    let writers: BTreeSet<_> = writers
        .filter_map(|entry| entry["manager"].as_str())
        .collect();
    if writers.is_empty() {
        String::new()
    } else {
        format!("; written by {}", listed(writers))
    }
}

pub(super) fn service(it: &Installation) -> Result<Finding, Finding> {
    let own = own(it)?;
    let reference = &webhooks(own)[0]["clientConfig"]["service"];
    let Some(name) = reference["name"].as_str() else {
        return Ok(Finding::skipped(
            "the registration calls a URL, not a Service",
        ));
    };
    let place = format!(
        "{}/{name}",
        reference["namespace"].as_str().unwrap_or_default()
    );
    let Some(service) = it.service.get()? else {
        return Ok(Finding::fail(
            format!("the Service {place} does not exist"),
            "apply deploy/service.yaml or upgrade the release",
        ));
    };
    let port = reference["port"].as_u64().unwrap_or(DEFAULT_PORT);
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    if !ports
        .into_iter()
        .any(|it| it["port"].as_u64() == Some(port))
    {
        return Ok(Finding::fail(
            format!("the Service {place} has no port {port}, which the registration calls"),
            "apply the registration and the Service of one release",
        ));
    }
    let slices = it.endpoints.get()?.iter();
    let slices = slices.filter(|slice| {
        slice["metadata"]["labels"]["kubernetes.io/service-name"].as_str() == Some(name)
    });
    let endpoints = slices.flat_map(|slice| slice["endpoints"].as_array().into_iter().flatten());
    // An endpoint that doesn't say counts as ready, as the API has it.
    let ready = endpoints
        .filter(|it| it["conditions"]["ready"].as_bool() != Some(false))
        .count();
    Ok(if ready == 0 {
        Finding::fail(
            format!("the Service {place} has no ready endpoint"),
            "see pods-ready; else the selector of the Service matches no Pod",
        )
    } else {
        Finding::ok(format!("{ready} ready behind {place}"))
    })
}

pub(super) fn selector(it: &Installation) -> Result<Finding, Finding> {
    let own = own(it)?;
    let settings = replicas::settings(it)?;
    let (label, value) = (&settings.label, &settings.value);
    let differ = webhooks(own).iter().filter(|webhook| {
        let labels = &webhook["namespaceSelector"]["matchLabels"];
        labels.get(label).and_then(Value::as_str) != Some(value)
    });
    let differ: Vec<_> = differ
        .filter_map(|webhook| webhook["name"].as_str())
        .collect();
    Ok(if differ.is_empty() {
        Finding::ok(format!("{label}={value}"))
    } else {
        Finding::fail(
            format!(
                "the namespaceSelector of {} has not {label}={value}, the optIn of the \
                 configuration",
                listed(differ)
            ),
            "set optIn in the values of the chart alone: registration, guard and configuration \
             follow",
        )
    })
}

pub(super) fn failure_policy(it: &Installation) -> Result<Finding, Finding> {
    let own = own(it)?;
    let fails = |webhook: &&Value| webhook["failurePolicy"].as_str() == Some("Fail");
    let fail: Vec<&Value> = webhooks(own).iter().filter(fails).collect();
    if fail.is_empty() {
        return Ok(Finding::ok("Ignore"));
    }
    let excludes = |webhook: &&Value| {
        let expressions = webhook["namespaceSelector"]["matchExpressions"].as_array();
        expressions.into_iter().flatten().any(|expression| {
            let values = expression["values"].as_array();
            expression["key"] == "kubernetes.io/metadata.name"
                && expression["operator"] == "NotIn"
                && values
                    .is_some_and(|values| values.iter().any(|name| *name == it.names.namespace))
        })
    };
    if !fail.iter().all(excludes) {
        return Ok(Finding::warn(
            format!(
                "failurePolicy is Fail, and the namespace {} is not excluded: a webhook that is \
                 down could be in the way of what brings it up again",
                it.names.namespace
            ),
            "exclude the namespace of the installation in the namespaceSelector, as the chart does",
        ));
    }
    let deployment = it.deployment.get()?;
    let replicas = deployment
        .as_ref()
        .and_then(|it| it["spec"]["replicas"].as_u64());
    Ok(if replicas.unwrap_or(1) < 2 {
        Finding::warn(
            "failurePolicy is Fail with one replica: while it restarts, no Pod with an image of \
             ECR is created in opted-in namespaces",
            "set replicaCount: 2 or more, or failurePolicy: Ignore",
        )
    } else {
        Finding::ok("Fail")
    })
}

pub(super) fn timeout(it: &Installation) -> Result<Finding, Finding> {
    let seconds = webhooks(own(it)?).iter();
    let seconds = seconds.map(|webhook| webhook["timeoutSeconds"].as_i64().unwrap_or(10));
    let outside = seconds.clone().find(|seconds| !(3..=10).contains(seconds));
    let seconds: BTreeSet<_> = seconds.map(|it| format!("{it} s")).collect();
    Ok(match outside {
        None => Finding::ok(listed(seconds)),
        Some(outside) => Finding::warn(
            format!("timeoutSeconds is {outside}"),
            "set webhook.timeoutSeconds to 3 to 10: less cuts off a first token, more holds up \
             the creation of Pods while the webhook is away",
        ),
    })
}

pub(super) fn answers(it: &Installation) -> Result<Finding, Finding> {
    Ok(match it.dry_run.get()? {
        DryRun::Injected(namespace) => Finding::ok(format!("in {namespace}")),
        DryRun::NotInjected(why) => Finding::fail(
            why.clone(),
            "see the other findings of registration and deployment; ecr-injector probe tries it \
             alone, with --wait; docs/how-to/troubleshooting.md#on-kubectl-rejected-pods explains the \
             texts of the API server",
        ),
        DryRun::Rejected(why) => {
            Finding::skipped(format!("the API server rejected the dry-run Pod: {why}"))
        }
    })
}
