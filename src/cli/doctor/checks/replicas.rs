//! Checks of the Deployment's replicas, of what their metrics say, and of AWS as they see it. Pure.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use super::listed;
use crate::{
    cli::doctor::{
        exposition::Exposition,
        finding::{Finding, Reading},
        installation::{ConfigFacts, Installation, Settings, serving},
    },
    pull_secret::to_the_second,
    telemetry::printable::count,
};

/// How long a rollout may take before two images are a finding.
const ROLLOUT: SignedDuration = SignedDuration::from_mins(10);
/// How long a Lease may be without renewal: twice its duration.
const MAX_LEASE_AGE: SignedDuration = SignedDuration::from_secs(30);
/// The rest of a serving certificate's life that is a finding.
const LEAF_ENDS_SOON: SignedDuration = SignedDuration::from_hours(24);
/// The rest of an authority's life that is a finding: it is replaced after two thirds of a year.
const AUTHORITY_ENDS_SOON: SignedDuration = SignedDuration::from_hours(7 * 24);
/// The metric of the expiry of certificates.
pub(super) const EXPIRY: &str = "ecr_injector_certificate_expiration_timestamp_seconds";
const CALLS: &str = "ecr_injector_aws_calls_total";

/// Returns the settings of the configuration; a check that needs them is skipped without.
pub(super) fn settings(it: &Installation) -> Result<&Settings, Finding> {
    let config = it.config.get()?;
    config
        .settings()
        .ok_or_else(|| Finding::skipped("after config-loads"))
}

/// Returns the metrics of the replicas that could be read; a check that needs them is skipped
/// without any.
pub(super) fn scraped(it: &Installation) -> Result<Vec<(&str, &Exposition)>, Finding> {
    let all = it.metrics.get()?;
    if all.is_empty() {
        return Err(Finding::skipped("no replica runs"));
    }
    let read = all.iter();
    let read = read.filter_map(|(name, metrics)| Some((name.as_str(), metrics.value()?)));
    let read: Vec<_> = read.collect();
    if !read.is_empty() {
        return Ok(read);
    }
    let forbidden = all
        .iter()
        .find(|(_, it)| matches!(it, Reading::Forbidden(_)));
    Err(match forbidden.map(|(_, reading)| reading.get()) {
        Some(Err(skipped)) => skipped,
        _ => Finding::skipped("after metrics-readable"),
    })
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions
        .into_iter()
        .any(|it| it["type"] == "Ready" && it["status"] == "True")
}

/// Returns why the containers of Pods wait.
fn waiting(pods: &[Value]) -> BTreeSet<&str> {
    let statuses = pods.iter().flat_map(|pod| {
        let statuses = pod["status"]["containerStatuses"].as_array();
        statuses.into_iter().flatten()
    });
    let reasons = statuses.filter_map(|status| status["state"]["waiting"]["reason"].as_str());
    reasons.collect()
}

pub(super) fn ready(it: &Installation) -> Result<Finding, Finding> {
    let names = &it.names;
    let place = format!("{}/{}", names.namespace, names.deployment);
    let Some(deployment) = it.deployment.get()? else {
        return Ok(Finding::fail(
            format!("there is no Deployment {place}"),
            "-n and --release name an installation with other names",
        ));
    };
    let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
    let ready = deployment["status"]["readyReplicas"].as_u64().unwrap_or(0);
    let pods = it.replicas.value().map_or(&[][..], Vec::as_slice);
    let reasons = waiting(pods);
    let why = if reasons.is_empty() {
        String::new()
    } else {
        format!(" ({})", listed(reasons))
    };
    let fix = format!(
        "kubectl -n {0} get pods; /readyz?verbose of a Pod names the condition that does not hold",
        names.namespace
    );
    Ok(if ready == 0 {
        Finding::fail(format!("no replica of {wanted} is ready{why}"), fix)
    } else if ready < wanted {
        Finding::warn(format!("{ready} of {wanted} replicas are ready{why}"), fix)
    } else {
        Finding::ok(format!("{ready} of {wanted}"))
    })
}

pub(super) fn same_version(it: &Installation) -> Result<Finding, Finding> {
    let pods = it.replicas.get()?;
    let images = pods
        .iter()
        .filter_map(|pod| serving(&pod["spec"])?["image"].as_str());
    let images: BTreeSet<_> = images.collect();
    if images.len() < 2 {
        return Ok(Finding::ok(listed(images)));
    }
    let created = pods.iter().filter_map(|pod| {
        let at = pod["metadata"]["creationTimestamp"].as_str()?;
        at.parse::<Timestamp>().ok()
    });
    let newest = created.max();
    Ok(
        if newest.is_some_and(|at| it.now.duration_since(at) < ROLLOUT) {
            Finding::ok(format!("a rollout is in progress: {}", listed(images)))
        } else {
            Finding::warn(
                format!("the replicas run different images: {}", listed(images)),
                format!(
                    "kubectl -n {} rollout status deployment {}",
                    it.names.namespace, it.names.deployment
                ),
            )
        },
    )
}

pub(super) fn spread(it: &Installation) -> Result<Finding, Finding> {
    let pods = it.replicas.get()?;
    let nodes = pods.iter().filter(|pod| is_ready(pod));
    let nodes: Vec<_> = nodes
        .filter_map(|pod| pod["spec"]["nodeName"].as_str())
        .collect();
    let distinct: BTreeSet<_> = nodes.iter().collect();
    Ok(if nodes.len() > 1 && distinct.len() == 1 {
        Finding::warn(
            format!("all {} replicas run on {}", nodes.len(), nodes[0]),
            "a second node that they may run on; see tolerations and nodeSelector",
        )
    } else {
        Finding::ok(format!("on {}", count(distinct.len(), "node")))
    })
}

pub(super) fn leader(it: &Installation) -> Result<Finding, Finding> {
    let place = format!("{}/{}", it.names.namespace, it.names.lease);
    let fix = "without a leader nothing is refreshed; see the log for lines about the Lease, and \
               rbac-ours";
    let Some(lease) = it.lease.get()? else {
        return Ok(Finding::fail(format!("there is no Lease {place}"), fix));
    };
    let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
    let renewed = lease["spec"]["renewTime"].as_str();
    let renewed = renewed.and_then(|at| at.parse::<Timestamp>().ok());
    let (false, Some(renewed)) = (holder.is_empty(), renewed) else {
        return Ok(Finding::fail(
            format!("nobody holds the Lease {place}"),
            fix,
        ));
    };
    let age = it.now.duration_since(renewed);
    Ok(if age > MAX_LEASE_AGE {
        Finding::fail(
            format!(
                "{holder} has not renewed the Lease {place} for {} s",
                age.as_secs()
            ),
            fix,
        )
    } else {
        Finding::ok(holder)
    })
}

pub(super) fn config(it: &Installation) -> Result<Finding, Finding> {
    let fix = "correct it: the last valid configuration stays in use until the next restart, which \
               fails; ecr-injector config check names every field";
    match it.config.value() {
        Some(ConfigFacts::Invalid(errors)) => return Ok(Finding::fail(errors.clone(), fix)),
        Some(ConfigFacts::Absent(what)) => {
            return Ok(Finding::fail(
                format!("{what} does not exist"),
                "apply deploy/configmap.yaml or upgrade the release; --config names a file instead",
            ));
        }
        Some(ConfigFacts::Valid(_)) | None => {}
    }
    let rejected = scraped(it).map(|replicas| {
        let metric = "ecr_injector_config_last_reload_successful";
        let rejected = replicas
            .into_iter()
            .filter(|(_, it)| it.is_one(metric) == Some(false));
        rejected.map(|(name, _)| name).collect::<Vec<_>>()
    });
    match rejected {
        Ok(names) if !names.is_empty() => Ok(Finding::fail(
            format!("the configuration was rejected by {}", listed(names)),
            fix,
        )),
        Ok(_) if it.config.value().is_none() => Ok(Finding::ok("as the replicas report")),
        _ => {
            it.config.get()?;
            Ok(Finding::ok(""))
        }
    }
}

pub(super) fn restart(it: &Installation) -> Result<Finding, Finding> {
    let replicas = scraped(it)?.into_iter();
    let metric = "ecr_injector_config_restart_required";
    let names = replicas.filter(|(_, metrics)| metrics.is_one(metric) == Some(true));
    let names: Vec<_> = names.map(|(name, _)| name).collect();
    Ok(if names.is_empty() {
        Finding::ok("")
    } else {
        Finding::warn(
            format!(
                "a changed secretName or optIn waits for a restart of {}",
                listed(names)
            ),
            format!(
                "kubectl -n {} rollout restart deployment {}",
                it.names.namespace, it.names.deployment
            ),
        )
    })
}

pub(super) fn metrics(it: &Installation) -> Result<Finding, Finding> {
    let all = it.metrics.get()?;
    let failed = all.iter().filter_map(|(name, metrics)| match metrics {
        Reading::Failed(error) => Some(format!("{name}: {error}")),
        _ => None,
    });
    let failed: Vec<_> = failed.collect();
    if !failed.is_empty() {
        return Ok(Finding::warn(
            listed(failed),
            "the API server reaches the admin port of a Pod by pods/proxy; is there a \
             NetworkPolicy, or a firewall in between?",
        ));
    }
    let read = scraped(it)?;
    Ok(Finding::ok(format!("{} of {}", read.len(), all.len())))
}

pub(super) fn version(it: &Installation) -> Result<Finding, Finding> {
    let versions = scraped(it)?.into_iter().flat_map(|(_, metrics)| {
        let infos = metrics.series("ecr_injector_build_info");
        infos.filter_map(|info| info.labels.get("version"))
    });
    let versions: BTreeSet<_> = versions.collect();
    let others = versions
        .iter()
        .filter(|version| ***version != it.own_version);
    let others: Vec<_> = others.collect();
    Ok(if versions.is_empty() {
        Finding::skipped("the replicas do not report their version")
    } else if others.is_empty() {
        Finding::ok(it.own_version.clone())
    } else {
        Finding::warn(
            format!(
                "this is {}, the cluster runs {}",
                it.own_version,
                listed(others)
            ),
            "use the version of the cluster: other versions may check other things",
        )
    })
}

/// Checks the expiry of a kind of certificate on each replica.
fn expiry(
    it: &Installation,
    kind: &str,
    soon: SignedDuration,
    fix: &str,
) -> Result<Finding, Finding> {
    let expiries = scraped(it)?.into_iter().filter_map(|(name, metrics)| {
        let seconds = metrics.labelled(EXPIRY, "kind", kind)?;
        #[allow(
            clippy::cast_possible_truncation,
            reason = "a date in seconds; the cast saturates"
        )]
        let at = Timestamp::from_second(seconds as i64).ok()?;
        Some((at, name))
    });
    let Some((at, name)) = expiries.min() else {
        return Err(Finding::skipped("no replica reports such a certificate"));
    };
    let left = at.duration_since(it.now);
    let until = to_the_second(at);
    Ok(if left <= SignedDuration::ZERO {
        Finding::fail(format!("that of {name} expired at {until}"), fix)
    } else if left < soon {
        Finding::warn(
            format!("that of {name} expires at {until}, and was not renewed"),
            fix,
        )
    } else {
        Finding::ok(format!("until {until}"))
    })
}

pub(super) fn leaf(it: &Installation) -> Result<Finding, Finding> {
    let fix = "see the log of the replica; with certificates from elsewhere ask who renews them \
               (docs/how-to/certificates.md)";
    expiry(it, "leaf", LEAF_ENDS_SOON, fix)
}

pub(super) fn authority(it: &Installation) -> Result<Finding, Finding> {
    if it.deployment.value().is_some_and(Option::is_some) && it.names.authority.is_none() {
        return Ok(Finding::ok("the certificates come from elsewhere"));
    }
    let fix = "the leader rotates it after two thirds of its life; see leader-there, rbac-ours and \
               the leader's log";
    expiry(it, "ca", AUTHORITY_ENDS_SOON, fix)
}

/// The outcomes of calls to AWS, counted since the replicas started.
struct Calls {
    has_success: bool,
    failures: BTreeSet<String>,
}

fn calls(it: &Installation) -> Result<Calls, Finding> {
    let mut calls = Calls {
        has_success: false,
        failures: BTreeSet::new(),
    };
    for (_, metrics) in scraped(it)? {
        let made = metrics.series(CALLS).filter(|series| series.value > 0.0);
        for series in made {
            let label = |name: &str| series.labels.get(name).map_or("", String::as_str);
            match label("outcome") {
                // A session opens no registry yet.
                "ok" if label("operation") != "assume_role" => calls.has_success = true,
                "ok" | "" => {}
                other => {
                    calls.failures.insert(other.to_owned());
                }
            }
        }
    }
    Ok(calls)
}

pub(super) fn aws_source(it: &Installation) -> Result<Finding, Finding> {
    let replicas = scraped(it)?.into_iter();
    let sources = replicas.flat_map(|(_, metrics)| {
        let set = metrics.series("ecr_injector_credentials_source");
        set.filter(|series| series.value > 0.0)
    });
    let sources = sources.filter_map(|series| series.labels.get("source").map(String::as_str));
    let sources: BTreeSet<_> = sources.collect();
    let calls = calls(it)?;
    let fix = "docs/reference/aws-credentials.md has the sources and how each is set up";
    Ok(
        if sources.is_empty() && calls.failures.contains("credentials") {
            Finding::fail("the replicas find no AWS credentials", fix)
        } else if sources.is_empty() {
            Finding::skipped("no credentials were needed yet")
        } else if sources.len() > 1 {
            Finding::warn(
                format!("the replicas use different sources: {}", listed(sources)),
                "set aws.expectCredentials to the one that is meant",
            )
        } else if sources.contains("instance_metadata") {
            Finding::warn(
                "the credentials are those of the instance: every Pod that reaches the instance \
             metadata has them as well",
                fix,
            )
        } else {
            Finding::ok(listed(sources))
        },
    )
}

/// Checks that no call failed for one of these reasons, or that others succeeded.
fn aws(it: &Installation, is_meant: impl Fn(&str) -> bool, fix: &str) -> Result<Finding, Finding> {
    let calls = calls(it)?;
    let failures: Vec<_> = calls.failures.iter().filter(|it| is_meant(it)).collect();
    Ok(match (failures.is_empty(), calls.has_success) {
        (true, true) => Finding::ok(""),
        (true, false) => Finding::skipped(if calls.failures.is_empty() {
            "no token was needed yet; ecr-injector probe --mint tries it"
        } else {
            "no call has succeeded, for other reasons"
        }),
        (false, true) => Finding::warn(
            format!(
                "some calls failed since the replicas started: {}; others succeeded",
                listed(failures)
            ),
            fix,
        ),
        (false, false) => Finding::fail(
            format!(
                "no call has succeeded since the replicas started: {}",
                listed(failures)
            ),
            fix,
        ),
    })
}

const UNREACHABLE: [&str; 2] = ["unreachable", "timeout"];
const CLOCK: &str = "clock_skew";

pub(super) fn aws_reach(it: &Installation) -> Result<Finding, Finding> {
    let fix = "see DNS, the proxy variables, the egress of the NetworkPolicy and VPC endpoints: \
               kubectl exec into a replica, and run ecr-injector identity --mint";
    aws(it, |reason| UNREACHABLE.contains(&reason), fix)
}

pub(super) fn aws_clock(it: &Installation) -> Result<Finding, Finding> {
    aws(
        it,
        |reason| reason == CLOCK,
        "set the clocks of the nodes by NTP",
    )
}

pub(super) fn aws_mint(it: &Installation) -> Result<Finding, Finding> {
    let fix = "docs/reference/metrics.md#aws-errors says what each word means; the log of the \
               replicas has the message of AWS";
    let is_meant = |reason: &str| reason != CLOCK && !UNREACHABLE.contains(&reason);
    aws(it, is_meant, fix)
}
