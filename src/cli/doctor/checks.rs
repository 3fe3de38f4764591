//! All checks of an installation, as data. Pure.

mod cluster;
mod guard;
mod namespaces;
mod policy;
mod pre;
mod registration;
mod replicas;
mod secrets;

use std::collections::BTreeMap;

use crate::cli::doctor::{
    finding::{Finding, Status},
    installation::Installation,
};

/// A check.
pub(super) struct Check {
    /// The word that names it, for good: an anchor of the reference, and never used for another.
    pub(super) code: &'static str,
    /// The group in the output.
    pub(super) category: &'static str,
    /// The sentence of a check that finds nothing wrong.
    pub(super) title: &'static str,
    /// The check that has to succeed before.
    after: Option<&'static str>,
    run: fn(&Installation) -> Result<Finding, Finding>,
}

/// A check with its result.
#[derive(Debug, Clone)]
pub(super) struct Checked {
    pub(super) code: &'static str,
    pub(super) category: &'static str,
    pub(super) title: &'static str,
    pub(super) finding: Finding,
}

const fn check(
    category: &'static str,
    code: &'static str,
    title: &'static str,
    after: Option<&'static str>,
    run: fn(&Installation) -> Result<Finding, Finding>,
) -> Check {
    Check {
        code,
        category,
        title,
        after,
        run,
    }
}

const REACHABLE: Option<&str> = Some("cluster-reachable");
const REGISTERED: Option<&str> = Some("registration-there");

/// The checks in the order of the output: each after the one that it depends on.
#[rustfmt::skip]
pub(super) const CHECKS: &[Check] = &[
    check("cluster", "cluster-reachable", "the API server answers", None, cluster::reachable),
    check("cluster", "cluster-version", "the Kubernetes version is supported", REACHABLE, cluster::version),
    check("cluster", "cluster-clock", "the clocks agree", REACHABLE, cluster::clock),
    check("pre", "pre-rights", "you may create what the chart creates", REACHABLE, pre::rights),
    check("pre", "pre-admission-api", "the API server can add the reference", REACHABLE, pre::admission_api),
    check("pre", "pre-others", "no other solution keeps pull secrets for ECR", REACHABLE, pre::others),
    check("pre", "pre-vap", "ValidatingAdmissionPolicies are served", REACHABLE, pre::policies),
    check("pre", "pre-image-rewriter", "no later webhook rewrites images", REACHABLE, pre::image_rewriter),
    check("pre", "pre-enforcer", "no enforcer changes the selectors", REACHABLE, pre::enforcer),
    check("registration", "registration-there", "the webhook is registered", REACHABLE, registration::there),
    check("registration", "registration-one", "it is registered once", REGISTERED, registration::one),
    check("registration", "registration-trusts-us", "the API server trusts the webhook's certificate", REGISTERED, registration::trusts_us),
    check("registration", "registration-service", "the Service has ready endpoints", REGISTERED, registration::service),
    check("registration", "registration-selector", "the selectors have the opt-in label", REGISTERED, registration::selector),
    check("registration", "registration-failure-policy", "the failure policy fits the replicas", REGISTERED, registration::failure_policy),
    check("registration", "registration-timeout", "the timeout is 3 s to 10 s", REGISTERED, registration::timeout),
    check("registration", "registration-answers", "a dry-run Pod gets the pull secret", REGISTERED, registration::answers),
    check("policy", "policy-there", "the policy exists where it is needed", REACHABLE, policy::there),
    check("policy", "policy-bound", "the policy is bound", Some("policy-there"), policy::bound),
    check("policy", "policy-works", "the policy adds the reference", Some("policy-bound"), policy::works),
    check("deployment", "pods-ready", "all replicas are ready", REACHABLE, replicas::ready),
    check("deployment", "pods-same-version", "all replicas run one image", REACHABLE, replicas::same_version),
    check("deployment", "pods-spread", "the replicas are on several nodes", REACHABLE, replicas::spread),
    check("deployment", "leader-there", "a replica leads", REACHABLE, replicas::leader),
    check("deployment", "config-loads", "the configuration is valid", REACHABLE, replicas::config),
    check("deployment", "config-restart", "no replica has to be restarted", REACHABLE, replicas::restart),
    check("deployment", "metrics-readable", "the replicas' metrics can be read", REACHABLE, replicas::metrics),
    check("deployment", "version-self", "this program has the cluster's version", REACHABLE, replicas::version),
    check("certificates", "cert-leaf", "the serving certificates are valid", REACHABLE, replicas::leaf),
    check("certificates", "cert-authority", "the self-managed authority is valid", REACHABLE, replicas::authority),
    check("rbac", "rbac-ours", "the ServiceAccount has all permissions", REACHABLE, guard::rights),
    check("rbac", "rbac-too-much", "the ServiceAccount has no dangerous permission", REACHABLE, guard::too_much),
    check("guard", "guard-there", "the policies of the guard exist", REACHABLE, guard::there),
    check("guard", "guard-bound", "the policies of the guard are bound", Some("guard-there"), guard::bound),
    check("guard", "guard-works", "the guard rejects what it should", REACHABLE, guard::works),
    check("aws", "aws-source", "AWS credentials are found", REACHABLE, replicas::aws_source),
    check("aws", "aws-reach", "AWS can be reached", REACHABLE, replicas::aws_reach),
    check("aws", "aws-clock", "AWS accepts the time of the calls", REACHABLE, replicas::aws_clock),
    check("aws", "aws-mint", "AWS gives tokens", REACHABLE, replicas::aws_mint),
    check("namespaces", "namespaces-opted-in", "there are opted-in namespaces", REACHABLE, namespaces::opted_in),
    check("namespaces", "namespaces-label-typo", "no namespace is nearly opted in", REACHABLE, namespaces::label_typo),
    check("namespaces", "namespaces-excluded", "no excluded namespace has the label", REACHABLE, namespaces::excluded),
    check("namespaces", "namespaces-role", "the namespaces' roles are allowed", REACHABLE, namespaces::role),
    check("secrets", "secret-foreign", "the pull secret's name is free", REACHABLE, secrets::foreign),
    check("secrets", "secret-expired", "no credential has expired", REACHABLE, secrets::expired),
    check("secrets", "secret-pending", "no registry waits for a credential", REACHABLE, secrets::pending),
    check("secrets", "secret-tampered", "only ecr-injector writes pull secrets", REACHABLE, secrets::tampered),
    check("secrets", "secret-serviceaccounts", "no ServiceAccount names an old pull secret", REACHABLE, secrets::service_accounts),
    check("pods", "pods-missed", "no waiting Pod lacks the pull secret", REACHABLE, secrets::missed),
    check("pods", "pods-stuck", "no Pod waits for an image of ECR", REACHABLE, secrets::stuck),
    check("pods", "sandbox-image", "the nodes can pull their sandbox image", REACHABLE, secrets::sandbox),
];

/// Makes all checks whose category is wanted and whose code is not skipped.
pub(super) fn run(installation: &Installation, is_wanted: impl Fn(&Check) -> bool) -> Vec<Checked> {
    // The checks that failed, and those after them with the one that failed first.
    let mut failed: BTreeMap<&str, &str> = BTreeMap::new();
    let mut results = Vec::new();
    for check in CHECKS {
        let before = check.after.and_then(|code| failed.get(code).copied());
        let finding = match before {
            Some(code) => Finding::skipped(format!("after {code}")),
            None => (check.run)(installation).unwrap_or_else(|finding| finding),
        };
        if finding.status() == Status::Fail || before.is_some() {
            failed.insert(check.code, before.unwrap_or(check.code));
        }
        if is_wanted(check) {
            results.push(Checked {
                code: check.code,
                category: check.category,
                title: check.title,
                finding,
            });
        }
    }
    results
}

/// Returns names for a sentence, and how many others there are.
fn listed<T: AsRef<str>>(names: impl IntoIterator<Item = T>) -> String {
    const MAX_NAMED: usize = 3;
    let names: Vec<T> = names.into_iter().collect();
    let first: Vec<&str> = names.iter().take(MAX_NAMED).map(AsRef::as_ref).collect();
    let first = first.join(", ");
    match names.len().checked_sub(MAX_NAMED) {
        Some(more @ 1..) => format!("{first} and {more} more"),
        _ => first,
    }
}

#[cfg(test)]
pub(super) mod tests;
