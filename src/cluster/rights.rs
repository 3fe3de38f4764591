//! Checks this account's permissions before a command starts: the command reports all missing
//! permissions at once, instead of failing at the first one midway.

use std::{fmt, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::{
    authentication::v1::SelfSubjectReview,
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
};
use kube::{Api, Client, api::PostParams};
use thiserror::Error;
use tokio::time::timeout;

use crate::cluster::namespace::Namespace;

/// How long the API server may take for all checks, which are the first calls to it.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Checks at the same time.
const CONCURRENCY: usize = 8;

/// A permission that a command needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    /// The verb, such as `get`.
    pub verb: &'static str,
    /// The objects.
    pub on: Scope,
    /// The namespaces; `None` for all of them.
    pub namespaces: Option<Vec<Namespace>>,
}

/// The objects of a permission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Namespace objects.
    Namespaces,
    /// The Secrets of this name.
    Secrets(String),
}

/// A permission that this account lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    verb: &'static str,
    on: Scope,
    namespace: Option<Namespace>,
}

/// Error of a check of permissions.
#[derive(Debug, Error)]
pub enum RightsError {
    /// This account may not check its permissions.
    #[error("the API server rejects the check: {0}")]
    Refused(String),
    /// The API server did not respond.
    #[error("no response within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The API server does not accept the credentials.
    #[error("the API server does not accept these credentials: {0}")]
    Unauthorized(String),
    /// The API server can't be reached, or failed.
    #[error("the call to the API server failed")]
    Call(#[source] Box<kube::Error>),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = self.verb;
        match &self.on {
            Scope::Namespaces => write!(f, "{verb} namespaces")?,
            Scope::Secrets(name) => write!(f, "{verb} secrets/{name}")?,
        }
        match &self.namespace {
            Some(namespace) => write!(f, " (namespace {namespace})"),
            None => f.write_str(" (all namespaces)"),
        }
    }
}

impl Permission {
    /// Returns the permission for a verb in all namespaces.
    #[must_use]
    pub fn everywhere(verb: &'static str, on: Scope) -> Self {
        Self {
            verb,
            on,
            namespaces: None,
        }
    }

    fn lacking(&self, namespace: Option<Namespace>) -> Missing {
        Missing {
            verb: self.verb,
            on: self.on.clone(),
            namespace,
        }
    }
}

impl Missing {
    fn attributes(&self) -> ResourceAttributes {
        let namespace = self.namespace.as_ref().map(ToString::to_string);
        let (resource, name) = match &self.on {
            // A Namespace object is authorized as in its own namespace.
            Scope::Namespaces => ("namespaces", namespace.clone()),
            // A list with a field selector for one name is authorized as that name.
            Scope::Secrets(name) => ("secrets", Some(name.clone())),
        };
        ResourceAttributes {
            verb: Some(self.verb.to_owned()),
            version: Some("v1".to_owned()),
            resource: Some(resource.to_owned()),
            name,
            namespace,
            ..ResourceAttributes::default()
        }
    }
}

/// Checks each permission, and returns those that are missing. If the API server rejects the check
/// itself, none are: then each call will report its own error.
pub async fn missing(
    client: &Client,
    permissions: &[Permission],
) -> Result<Vec<Missing>, RightsError> {
    let checks = stream::iter(permissions)
        .map(|permission| lacks(client, permission))
        .buffered(CONCURRENCY)
        .try_concat();
    let missing = timeout(TIMEOUT, checks)
        .await
        .map_err(|_| RightsError::Timeout)?;
    match missing {
        Err(RightsError::Refused(message)) => {
            tracing::warn!(error = %message, "checking this account's permissions failed; continuing without the check");
            Ok(Vec::new())
        }
        missing => missing,
    }
}

/// Returns this account's user name, if the API server reports it.
pub async fn account(client: &Client) -> Option<String> {
    let reviews: Api<SelfSubjectReview> = Api::all(client.clone());
    let params = PostParams::default();
    let review = SelfSubjectReview::default();
    let answer = timeout(TIMEOUT, reviews.create(&params, &review));
    answer.await.ok()?.ok()?.status?.user_info?.username
}

async fn lacks(client: &Client, permission: &Permission) -> Result<Vec<Missing>, RightsError> {
    // A permission in all namespaces includes each of them.
    let everywhere = permission.lacking(None);
    if is_allowed(client, &everywhere).await? {
        return Ok(Vec::new());
    }
    let Some(namespaces) = &permission.namespaces else {
        return Ok(vec![everywhere]);
    };
    let mut lacking = Vec::new();
    for namespace in namespaces {
        let here = permission.lacking(Some(namespace.clone()));
        if !is_allowed(client, &here).await? {
            lacking.push(here);
        }
    }
    Ok(lacking)
}

async fn is_allowed(client: &Client, missing: &Missing) -> Result<bool, RightsError> {
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(missing.attributes()),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    match reviews.create(&PostParams::default(), &review).await {
        Ok(answer) => Ok(answer.status.is_some_and(|status| status.allowed)),
        Err(kube::Error::Api(status)) if status.code == 401 => {
            Err(RightsError::Unauthorized(status.message.clone()))
        }
        Err(kube::Error::Api(status)) if (400..500).contains(&status.code) => {
            Err(RightsError::Refused(status.message.clone()))
        }
        Err(error) => Err(RightsError::Call(Box::new(error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_permission_names_verb_objects_and_namespace() {
        let team = Namespace::parse("team");
        let secrets = Scope::Secrets("ecr-pull-secret".to_owned());
        let right = Permission::everywhere("delete", secrets);
        for (missing, expected) in [
            (
                right.lacking(None),
                "delete secrets/ecr-pull-secret (all namespaces)",
            ),
            (
                right.lacking(team.clone()),
                "delete secrets/ecr-pull-secret (namespace team)",
            ),
            (
                Permission::everywhere("list", Scope::Namespaces).lacking(None),
                "list namespaces (all namespaces)",
            ),
        ] {
            assert_eq!(missing.to_string(), expected);
        }
        let get = Permission::everywhere("get", Scope::Namespaces).lacking(team);
        let attributes = get.attributes();
        assert_eq!(attributes.name.as_deref(), Some("team"));
        assert_eq!(attributes.namespace.as_deref(), Some("team"));
    }
}
