//! The survey of one Pod: reads what its verdict depends on.

use http::{Method, header::DATE};
use jiff::Timestamp;
use serde_json::Value;

use super::{
    Survey,
    reader::{List, Reader},
};
use crate::{
    cli::doctor::{
        finding::{Reading, Right},
        installation::{ConfigFacts, Names, NamespaceFacts, PullSecretFacts},
        pod::{PodCase, PodEvent},
    },
    cluster::{namespace::Namespace, service_accounts::MOUNTABLE_SECRETS_ANNOTATION},
    process::clock::{Clock as _, SystemClock},
};

/// The parts that the Pods of one run share.
pub(crate) struct Shared {
    pub(super) reader: Reader,
    pub(super) config: Reading<ConfigFacts>,
    /// The API server's time, or that of this machine if the API server gave none.
    pub(crate) now: Timestamp,
}

impl Survey<'_> {
    /// Reads the configuration, and the API server's clock.
    pub(crate) async fn shared(&self) -> Shared {
        let reader = Reader::new(self.cluster.client.clone());
        let names = Names::of_release(self.namespace.as_str(), self.release);
        let config = async {
            if self.config.is_some() {
                return self.config(&reader, &names).await;
            }
            let deployment = self.deployment(&reader).await;
            let names = match deployment.value() {
                Some(Some(deployment)) => names.of_deployment(deployment),
                _ => names,
            };
            self.config(&reader, &names).await
        };
        let version = reader.call(Method::GET, "/version", "application/json", None);
        let (config, version) = tokio::join!(config, version);
        let date = version.ok().and_then(|(headers, _)| {
            let date = headers.get(DATE)?.to_str().ok()?;
            Some(jiff::fmt::rfc2822::parse(date).ok()?.timestamp())
        });
        Shared {
            now: date.unwrap_or_else(|| SystemClock.now()),
            config,
            reader,
        }
    }
}

impl Shared {
    /// Returns the parts for a client and a time, for tests.
    #[cfg(test)]
    pub(crate) fn at(client: kube::Client, config: Reading<ConfigFacts>, now: Timestamp) -> Self {
        let reader = Reader::new(client);
        Self {
            reader,
            config,
            now,
        }
    }

    /// Returns the reader of the API server.
    pub(crate) fn reader(&self) -> &Reader {
        &self.reader
    }

    /// Reads a Pod of the cluster; `None` if there is none.
    pub(crate) async fn stored(
        &self,
        namespace: &Namespace,
        name: &str,
    ) -> Reading<Option<PodCase>> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let right = Right::new("get", format!("pods/{name}"), Some(namespace.as_str()));
        match self.reader.get(&path, right).await {
            Reading::Read(Some(pod)) => Reading::Read(Some(self.case(namespace, pod, true).await)),
            other => other.map(|_| None),
        }
    }

    /// Reads what surrounds a Pod.
    pub(crate) async fn case(&self, namespace: &Namespace, pod: Value, is_stored: bool) -> PodCase {
        let (facts, secret, account_rejects, events) = tokio::join!(
            self.namespace(namespace),
            self.secret(namespace),
            self.account_rejects(namespace, &pod),
            self.events(namespace, &pod, is_stored),
        );
        PodCase {
            pod,
            is_stored,
            namespace_name: namespace.to_string(),
            namespace: facts,
            secret,
            account_rejects,
            events,
            config: self.config.clone(),
            now: self.now,
        }
    }

    pub(super) async fn namespace(&self, namespace: &Namespace) -> Reading<Option<NamespaceFacts>> {
        let path = format!("/api/v1/namespaces/{namespace}");
        let right = Right::new(
            "get",
            format!("namespaces/{namespace}"),
            Some(namespace.as_str()),
        );
        let object = self.reader.get(&path, right).await;
        object.map(|object| object.as_ref().and_then(NamespaceFacts::of))
    }

    /// Reads the metadata of the pull secret, by a list: a get of the metadata alone has no other
    /// right, and a list shows at once that there is none.
    pub(super) async fn secret(&self, namespace: &Namespace) -> Reading<Option<PullSecretFacts>> {
        let Some(Some(settings)) = self.config.value().map(ConfigFacts::settings) else {
            let unread = self.config.unread("the configuration");
            return unread
                .unwrap_or_else(|| Reading::Unread("the configuration is invalid".into()));
        };
        let name = &settings.rules.secret_name;
        let path = format!("/api/v1/namespaces/{namespace}/secrets");
        let query = format!("fieldSelector=metadata.name%3D{name}");
        let list = List {
            path: &path,
            query: &query,
            metadata: true,
            right: Right::new("list", format!("secrets/{name}"), Some(namespace.as_str())),
        };
        let found = self.reader.list(list, PullSecretFacts::of).await;
        found.map(|found| found.and_then(|found| found.into_iter().next()))
    }

    /// Reads whether the Pod's ServiceAccount enforces mountable secrets, and lacks the pull secret.
    pub(super) async fn account_rejects(
        &self,
        namespace: &Namespace,
        pod: &Value,
    ) -> Reading<bool> {
        let name = pod["spec"]["serviceAccountName"]
            .as_str()
            .filter(|it| !it.is_empty());
        let name = name.unwrap_or("default");
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}");
        let resource = format!("serviceaccounts/{name}");
        let right = Right::new("get", resource, Some(namespace.as_str()));
        let object = self.reader.get(&path, right).await;
        let settings = self.config.value().and_then(ConfigFacts::settings);
        let secret = settings.map(|settings| settings.rules.secret_name.as_str());
        object.map(|object| {
            let object = object.unwrap_or_default();
            let enforces = &object["metadata"]["annotations"][MOUNTABLE_SECRETS_ANNOTATION];
            let listed = object["imagePullSecrets"].as_array().into_iter().flatten();
            let mut listed = listed.filter_map(|it| it["name"].as_str());
            enforces.as_str() == Some("true") && !listed.any(|it| Some(it) == secret)
        })
    }

    pub(super) async fn events(
        &self,
        namespace: &Namespace,
        pod: &Value,
        is_stored: bool,
    ) -> Reading<Vec<PodEvent>> {
        let Some(uid) = pod["metadata"]["uid"].as_str().filter(|_| is_stored) else {
            return Reading::Read(Vec::new());
        };
        let path = format!("/api/v1/namespaces/{namespace}/events");
        let query = format!("fieldSelector=involvedObject.uid%3D{uid}");
        let list = List {
            path: &path,
            query: &query,
            metadata: false,
            right: Right::new("list", "events", Some(namespace.as_str())),
        };
        let event = |event: &Value| {
            let seen_at = event["lastTimestamp"]
                .as_str()
                .or(event["eventTime"].as_str());
            let count = event["count"].as_u64().unwrap_or(1);
            Some(PodEvent {
                reason: event["reason"].as_str()?.to_owned(),
                message: event["message"].as_str().unwrap_or_default().to_owned(),
                count: usize::try_from(count).unwrap_or(usize::MAX),
                last: seen_at.and_then(|at| at.parse().ok()),
            })
        };
        let found = self.reader.list(list, event).await;
        found.map(Option::unwrap_or_default)
    }
}
