//! What this account may do, asked before anything is done: a command names all that it lacks at once, instead of failing
//! in the middle at the first.

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

/// How long the API server may take for all answers. They are the first that it is asked.
const TIMEOUT: Duration = Duration::from_secs(15);
/// Questions at the same time.
const AT_ONCE: usize = 8;

/// One thing that a command has to be allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Permission {
    /// Such as `get`.
    pub verb: &'static str,
    /// Scope what.
    pub on: Scope,
    /// In which namespaces; `None`: in all.
    pub namespaces: Option<Vec<Namespace>>,
}

/// What a right is on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// The namespaces themselves.
    Namespaces,
    /// The Secrets of this name.
    Secrets(String),
}

/// A right that this account has not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    verb: &'static str,
    on: Scope,
    namespace: Option<Namespace>,
}

/// Why it isn't known what this account may do.
#[derive(Debug, Error)]
pub enum RightsError {
    /// This account may not even ask.
    #[error("the API server rejects the check: {0}")]
    Refused(String),
    /// There was no answer.
    #[error("no response within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The API server doesn't know who asks.
    #[error("the API server does not accept these credentials: {0}")]
    Unauthorized(String),
    /// It couldn't be asked, or failed.
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
    /// This verb in all namespaces.
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
            // A namespace is in itself.
            Scope::Namespaces => ("namespaces", namespace.clone()),
            // A list with a field selector for one name is authorized as of that name.
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

/// Asks for each right, and tells those that are missing. Where the question itself is refused, nothing is: then each call
/// will tell.
pub async fn missing(client: &Client, rights: &[Permission]) -> Result<Vec<Missing>, RightsError> {
    let answers = stream::iter(rights)
        .map(|right| lacks(client, right))
        .buffered(AT_ONCE)
        .try_concat();
    let missing = timeout(TIMEOUT, answers)
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

/// As whom we call, as far as the API server says so.
pub async fn account(client: &Client) -> Option<String> {
    let reviews: Api<SelfSubjectReview> = Api::all(client.clone());
    let params = PostParams::default();
    let review = SelfSubjectReview::default();
    let answer = timeout(TIMEOUT, reviews.create(&params, &review));
    answer.await.ok()?.ok()?.status?.user_info?.username
}

async fn lacks(client: &Client, right: &Permission) -> Result<Vec<Missing>, RightsError> {
    // Whoever may in all namespaces needn't be asked for each.
    let everywhere = right.lacking(None);
    if is_allowed(client, &everywhere).await? {
        return Ok(Vec::new());
    }
    let Some(namespaces) = &right.namespaces else {
        return Ok(vec![everywhere]);
    };
    let mut lacking = Vec::new();
    for namespace in namespaces {
        let here = right.lacking(Some(namespace.clone()));
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
    fn says_what_is_missing_on_what_and_where() {
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
