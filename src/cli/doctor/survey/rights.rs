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
    let reviews: Vec<_> = reviews.collect();
    let answers: Vec<Result<Granted, CallError>> =
        stream::iter(reviews).buffered(CONCURRENCY).collect().await;
    let answers: Result<Vec<Granted>, CallError> = answers.into_iter().collect();
    match answers {
        Ok(granted) => Reading::Read(granted),
        Err(CallError::Status(status, _)) if status.as_u16() == 403 => {
            let resource = "subjectaccessreviews.authorization.k8s.io";
            Reading::Forbidden(Right::new("create", resource, None))
        }
        Err(error) => Reading::Failed(format!("create subjectaccessreviews: {}", error.text())),
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
        &["get", "list", "watch", "create", "patch"],
    );
    ask("", "namespaces", &None, &None, &["get", "list", "watch"]);
    if settings.watches_service_accounts {
        ask("", "serviceaccounts", &None, &None, &["watch"]);
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
