//! The permissions of the service's account: those of the chart, and those that it must not have.

use futures::{StreamExt as _, stream};
use serde_json::json;

use super::{
    CONCURRENCY,
    reader::{CallError, Reader},
};
use crate::cli::doctor::{
    finding::{Reading, Right},
    installation::{Granted, Names, Settings},
};

/// The kinds that the chart creates by default, as group and resource; whether they are in the
/// namespace of the installation. That may have been created by an administrator.
pub(super) const KINDS: [(&str, &str, bool); 13] = [
    ("", "serviceaccounts", true),
    ("", "configmaps", true),
    ("", "services", true),
    ("apps", "deployments", true),
    ("policy", "poddisruptionbudgets", true),
    ("rbac.authorization.k8s.io", "roles", true),
    ("rbac.authorization.k8s.io", "rolebindings", true),
    ("rbac.authorization.k8s.io", "clusterroles", false),
    ("rbac.authorization.k8s.io", "clusterrolebindings", false),
    (
        "admissionregistration.k8s.io",
        "mutatingwebhookconfigurations",
        false,
    ),
    (
        "admissionregistration.k8s.io",
        "validatingadmissionpolicies",
        false,
    ),
    (
        "admissionregistration.k8s.io",
        "validatingadmissionpolicybindings",
        false,
    ),
    ("flowcontrol.apiserver.k8s.io", "flowschemas", false),
];
const OWN_REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/subjectaccessreviews";

/// A permission to ask about.
struct Asked {
    verb: &'static str,
    group: &'static str,
    resource: &'static str,
    name: Option<String>,
    namespace: Option<String>,
    is_needed: bool,
}

/// Asks the API server about each permission.
pub(super) async fn granted(
    reader: &Reader,
    names: &Names,
    settings: Option<&Settings>,
) -> Reading<Vec<Granted>> {
    let Some(settings) = settings else {
        return Reading::Unread("after config-loads".to_owned());
    };
    let user = format!(
        "system:serviceaccount:{}:{}",
        names.namespace, names.account
    );
    let groups = [
        "system:serviceaccounts".to_owned(),
        format!("system:serviceaccounts:{}", names.namespace),
        "system:authenticated".to_owned(),
    ];
    let asked = asked(names, settings);
    let reviews = asked.into_iter().map(async |asked| {
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SubjectAccessReview",
            "spec": {"user": user, "groups": groups, "resourceAttributes": {
                "verb": asked.verb, "group": asked.group, "resource": asked.resource,
                "name": asked.name, "namespace": asked.namespace, "version": "v1",
            }},
        });
        let answer = reader.post(REVIEWS, &review).await?;
        let right = right(&asked);
        Ok(Granted {
            right,
            is_needed: asked.is_needed,
            is_allowed: answer["status"]["allowed"] == true,
        })
    });
    answers(reviews.collect(), "subjectaccessreviews").await
}

/// Asks the API server whether the person may create what the chart creates.
pub(super) async fn may_install(reader: &Reader, namespace: &str) -> Reading<Vec<Granted>> {
    let asked = KINDS.map(async |(group, resource, is_namespaced)| {
        let namespace = is_namespaced.then(|| namespace.to_owned());
        let review = json!({
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"verb": "create", "group": group,
                "resource": resource, "namespace": namespace}},
        });
        let answer = reader.post(OWN_REVIEWS, &review).await?;
        let asked = Asked {
            verb: "create",
            group,
            resource,
            name: None,
            namespace,
            is_needed: true,
        };
        Ok(Granted {
            right: right(&asked),
            is_needed: true,
            is_allowed: answer["status"]["allowed"] == true,
        })
    });
    answers(asked.into(), "selfsubjectaccessreviews").await
}

/// Collects the answers of reviews.
async fn answers<F>(reviews: Vec<F>, resource: &str) -> Reading<Vec<Granted>>
where
    F: Future<Output = Result<Granted, CallError>>,
{
    let answers: Vec<Result<Granted, CallError>> =
        stream::iter(reviews).buffered(CONCURRENCY).collect().await;
    let answers: Result<Vec<Granted>, CallError> = answers.into_iter().collect();
    match answers {
        Ok(granted) => Reading::Read(granted),
        Err(CallError::Status(status, _)) if status.as_u16() == 403 => {
            let resource = format!("{resource}.authorization.k8s.io");
            Reading::Forbidden(Right::new("create", resource, None))
        }
        Err(error) => Reading::Failed(format!("create {resource}: {}", error.text())),
    }
}

fn right(asked: &Asked) -> Right {
    let group = if asked.group.is_empty() {
        String::new()
    } else {
        format!(".{}", asked.group)
    };
    let name = asked.name.as_ref().map(|name| format!("/{name}"));
    let resource = format!("{}{group}{}", asked.resource, name.unwrap_or_default());
    Right::new(asked.verb, resource, asked.namespace.as_deref())
}

/// Returns the permissions of `deploy/rbac.yaml`, without the `list` beside a `watch` where it is
/// of no use alone; and three that nobody should have given.
#[allow(clippy::too_many_lines, reason = "a table: each permission")]
fn asked(names: &Names, settings: &Settings) -> Vec<Asked> {
    let own = Some(names.namespace.clone());
    let pull_secret = Some(settings.rules.secret_name.clone());
    let mut all = Vec::new();
    let mut ask = |group,
                   resource,
                   name: &Option<String>,
                   namespace: &Option<String>,
                   verbs: &[&'static str]| {
        all.extend(verbs.iter().map(|verb| Asked {
            verb,
            group,
            resource,
            name: name.clone(),
            namespace: namespace.clone(),
            is_needed: true,
        }));
    };
    ask(
        "",
        "secrets",
        &pull_secret,
        &None,
        &["get", "watch", "create", "patch"],
    );
    ask("", "namespaces", &None, &None, &["get", "list", "watch"]);
    if settings.watches_service_accounts {
        ask("", "serviceaccounts", &None, &None, &["watch"]);
    }
    if settings.lists_pods {
        ask("", "pods", &None, &None, &["list"]);
    }
    ask("events.k8s.io", "events", &None, &None, &["create"]);
    let lease = Some(names.lease.clone());
    ask(
        "coordination.k8s.io",
        "leases",
        &lease,
        &own,
        &["get", "create", "update"],
    );
    let state_key = Some(names.state_key.clone());
    ask(
        "",
        "secrets",
        &state_key,
        &own,
        &["watch", "create", "patch"],
    );
    if names.authority.is_some() {
        let registration = Some(names.registration.clone());
        let resource = "mutatingwebhookconfigurations";
        ask(
            "admissionregistration.k8s.io",
            resource,
            &registration,
            &None,
            &["watch", "patch"],
        );
        ask(
            "",
            "secrets",
            &names.authority,
            &own,
            &["watch", "create", "patch"],
        );
    }
    for (verb, group, resource) in [
        ("list", "", "secrets"),
        ("create", "", "pods"),
        ("create", "rbac.authorization.k8s.io", "clusterrolebindings"),
    ] {
        all.push(Asked {
            verb,
            group,
            resource,
            name: None,
            namespace: None,
            is_needed: false,
        });
    }
    all
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn kinds_to_create_are_those_of_the_manifests() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy");
        let mut kinds = BTreeSet::new();
        for entry in fs::read_dir(folder).expect("the folder") {
            let path = entry.expect("an entry").path();
            if path.extension().is_none_or(|it| it != "yaml") {
                continue;
            }
            let text = fs::read_to_string(path).expect("a manifest");
            for line in text.lines() {
                kinds.extend(line.strip_prefix("kind: ").map(str::to_lowercase));
            }
        }
        assert!(kinds.remove("namespace"));
        let singular = |resource: &str| {
            let policy = resource
                .strip_suffix("policies")
                .map(|it| format!("{it}policy"));
            policy.unwrap_or_else(|| resource.trim_end_matches('s').to_owned())
        };
        let asked: BTreeSet<String> = KINDS.iter().map(|kind| singular(kind.1)).collect();
        assert_eq!(asked, kinds);
    }
}
