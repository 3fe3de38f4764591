//! The survey of an installation: reads all that the checks look at, once and in parallel, with the
//! rights that there are.

mod bundle;
mod neighbours;
pub(super) mod pod;
pub(super) mod reader;
mod replicas;
mod rights;
pub(super) mod stuck;

use std::collections::BTreeMap;

use http::{Method, header::DATE};
use jiff::Timestamp;
use serde_json::Value;

use self::reader::{CallError, List, Reader};
use super::{
    finding::{Reading, Right},
    installation::{
        ConfigFacts, DryRun, Granted, Installation, Names, NamespaceFacts, PodFacts,
        PullSecretFacts, Settings, name, serving,
    },
    waiting,
};
use crate::{
    cli::probe::pod::{Probe, ProbeError},
    cluster::{Cluster, namespace::Namespace},
    config::Config,
    process::clock::{Clock as _, SystemClock},
    registry::{Host, Registry},
    telemetry::error_chain::error_chain,
};

/// The most calls that are made at the same time.
pub(super) const CONCURRENCY: usize = 12;
/// The most Pods that are named in a finding about sandboxes.
const MAX_SANDBOXES: usize = 100;

/// The installation to survey.
pub(super) struct Survey<'a> {
    /// The cluster.
    pub(super) cluster: &'a Cluster,
    /// The namespace of the installation.
    pub(super) namespace: &'a Namespace,
    /// The name of the release.
    pub(super) release: &'a str,
    /// The configuration, instead of that of the installation.
    pub(super) config: Option<&'a Config>,
    /// Whether the installation is yet to come, whatever is there.
    pub(super) is_pre: bool,
    /// The image of the dry-run Pod and its host, instead of one that is known.
    pub(super) image: Option<&'a (String, Host)>,
}

/// The first part of a survey: what has no name of the installation in its path.
struct Surroundings {
    deployment: Reading<Option<Value>>,
    namespaces: Reading<Vec<NamespaceFacts>>,
    registrations: Reading<Vec<Value>>,
    policies: Reading<Option<Vec<Value>>>,
    bindings: Reading<Option<Vec<Value>>>,
    pods: Reading<Vec<Value>>,
    endpoints: Reading<Vec<Value>>,
    sandboxes: Reading<Vec<String>>,
}

impl Survey<'_> {
    fn reader(&self) -> Reader {
        Reader::new(self.cluster.client.clone())
    }

    /// Reads the installation.
    pub(super) async fn run(&self) -> Installation {
        let reader = self.reader();
        let (server, date) = version(&reader).await;
        let local = SystemClock.now();
        let names = Names::of_release(self.namespace.as_str(), self.release);
        if matches!(server, Reading::Failed(_)) {
            return self.unreachable(server, names, local);
        }
        let around = self.surroundings(&reader).await;
        let names = match around.deployment.value() {
            Some(Some(deployment)) => names.of_deployment(deployment),
            _ => names,
        };
        let replicas = around
            .pods
            .map(|pods| replicas::replicas(pods, &around.deployment));
        let own = around.registrations.value();
        let own = own.and_then(|all| all.iter().find(|it| name(it) == names.registration));
        let (config, lease, service, metrics, mutating, before) = tokio::join!(
            self.config(&reader, &names),
            replicas::lease(&reader, &names),
            replicas::service(&reader, own),
            replicas::metrics(&reader, &replicas, &names),
            neighbours::mutating_policies(&reader, &names.policy),
            self.before(&reader, &around.deployment),
        );
        let settings = config.value().and_then(ConfigFacts::settings);
        let (rights, account_references, pods, (pull_secrets, dry_run)) = tokio::join!(
            rights::granted(&reader, &names, settings),
            neighbours::account_references(&reader, settings, &around.namespaces),
            pending_pods(&reader, &config, &around.namespaces),
            async {
                let secrets = pull_secrets(&reader, &config).await;
                let dry_run = self.dry_run(&config, &around.namespaces, &secrets).await;
                (secrets, dry_run)
            },
        );
        Installation {
            own_version: env!("CARGO_PKG_VERSION").to_owned(),
            now: date.unwrap_or(local),
            clock_ahead: date.map(|date| local.duration_since(date)),
            server,
            server_name: self.cluster.server.clone(),
            names,
            deployment: around.deployment,
            registrations: around.registrations,
            service,
            endpoints: around.endpoints,
            policies: around.policies,
            bindings: around.bindings,
            mutating_policies: mutating.policies,
            mutating_bindings: mutating.bindings,
            may_install: before.0,
            other_tools: before.1,
            account_references,
            replicas,
            metrics,
            lease,
            rights,
            config,
            namespaces: around.namespaces,
            pull_secrets,
            pods,
            sandboxes: around.sandboxes,
            dry_run,
        }
    }

    /// Returns an installation of which nothing could be read.
    fn unreachable(&self, server: Reading<String>, names: Names, now: Timestamp) -> Installation {
        fn unread<T>() -> Reading<T> {
            Reading::Unread("after cluster-reachable".to_owned())
        }
        Installation {
            own_version: env!("CARGO_PKG_VERSION").to_owned(),
            now,
            clock_ahead: None,
            server,
            server_name: self.cluster.server.clone(),
            names,
            deployment: unread(),
            registrations: unread(),
            service: unread(),
            endpoints: unread(),
            policies: unread(),
            bindings: unread(),
            mutating_policies: unread(),
            mutating_bindings: unread(),
            may_install: unread(),
            other_tools: unread(),
            account_references: unread(),
            replicas: unread(),
            metrics: unread(),
            lease: unread(),
            rights: unread(),
            config: unread(),
            namespaces: unread(),
            pull_secrets: unread(),
            pods: unread(),
            sandboxes: unread(),
            dry_run: unread(),
        }
    }

    /// Reads what matters before an installation.
    async fn before(
        &self,
        reader: &Reader,
        deployment: &Reading<Option<Value>>,
    ) -> (Reading<Vec<Granted>>, Reading<Vec<String>>) {
        if self.is_pre || matches!(deployment, Reading::Read(None)) {
            return tokio::join!(
                rights::may_install(reader, self.namespace.as_str()),
                neighbours::other_tools(reader),
            );
        }
        let why = "--pre asks, also where it is installed";
        (
            Reading::Unread(why.to_owned()),
            Reading::Unread(why.to_owned()),
        )
    }

    async fn surroundings(&self, reader: &Reader) -> Surroundings {
        let own = self.namespace.as_str();
        let whole = |object: &Value| Some(object.clone());
        let core = format!("/api/v1/namespaces/{own}/pods");
        let slices = format!("/apis/discovery.k8s.io/v1/namespaces/{own}/endpointslices");
        let admission = "/apis/admissionregistration.k8s.io/v1";
        let registrations = format!("{admission}/mutatingwebhookconfigurations");
        let policies = format!("{admission}/validatingadmissionpolicies");
        let bindings = format!("{admission}/validatingadmissionpolicybindings");
        let list = |path, resource: &str, namespace| List {
            path,
            query: "",
            metadata: false,
            right: Right::new("list", resource, namespace),
        };
        let kind = |kind: &str| format!("{kind}.admissionregistration.k8s.io");
        let (registrations_kind, policies_kind, bindings_kind) = (
            kind("mutatingwebhookconfigurations"),
            kind("validatingadmissionpolicies"),
            kind("validatingadmissionpolicybindings"),
        );
        let events = List {
            query: "fieldSelector=reason%3DFailedCreatePodSandBox",
            ..list("/api/v1/events", "events", None)
        };
        let (deployment, namespaces, registrations, policies, bindings, pods, endpoints, sandboxes) = tokio::join!(
            self.deployment(reader),
            namespaces(reader),
            reader.list(list(&registrations, &registrations_kind, None), whole),
            reader.list(list(&policies, &policies_kind, None), whole),
            reader.list(list(&bindings, &bindings_kind, None), whole),
            reader.list(list(&core, "pods", Some(own)), whole),
            reader.list(
                list(&slices, "endpointslices.discovery.k8s.io", Some(own)),
                whole
            ),
            reader.list(events, sandbox),
        );
        Surroundings {
            deployment,
            namespaces,
            registrations: registrations.map(Option::unwrap_or_default),
            policies,
            bindings,
            pods: pods.map(Option::unwrap_or_default),
            endpoints: endpoints.map(Option::unwrap_or_default),
            sandboxes: sandboxes.map(|pods| {
                let mut pods = pods.unwrap_or_default();
                pods.sort();
                pods.dedup();
                pods.truncate(MAX_SANDBOXES);
                pods
            }),
        }
    }

    /// Reads the Deployment of the release: the one that runs `serve`.
    pub(super) async fn deployment(&self, reader: &Reader) -> Reading<Option<Value>> {
        let own = self.namespace.as_str();
        let path = format!("/apis/apps/v1/namespaces/{own}/deployments");
        let query = format!(
            "labelSelector=app.kubernetes.io/instance%3D{}",
            self.release
        );
        let list = List {
            path: &path,
            query: &query,
            metadata: false,
            right: Right::new("list", "deployments.apps", Some(own)),
        };
        let serves = |object: &Value| {
            let is_ours = serving(&object["spec"]["template"]["spec"]).is_some();
            is_ours.then(|| object.clone())
        };
        let found = reader.list(list, serves).await;
        found.map(|all| all.and_then(|all| all.into_iter().next()))
    }

    /// Reads the configuration of the installation, unless a file was given.
    pub(super) async fn config(&self, reader: &Reader, names: &Names) -> Reading<ConfigFacts> {
        if let Some(config) = self.config {
            return Reading::Read(self.valid(config.clone()));
        }
        let Some((map, key)) = &names.config else {
            return Reading::Read(self.valid(Config::default()));
        };
        let own = self.namespace.as_str();
        let path = format!("/api/v1/namespaces/{own}/configmaps/{map}");
        let right = Right::new("get", format!("configmaps/{map}"), Some(own));
        let object = reader.get(&path, right).await;
        object.map(|object| {
            let Some(object) = object else {
                if self.is_pre {
                    return self.valid(Config::default());
                }
                return ConfigFacts::Absent(format!("the ConfigMap {own}/{map}"));
            };
            let Some(text) = object["data"][key].as_str() else {
                return ConfigFacts::Absent(format!("the key {key} of the ConfigMap {own}/{map}"));
            };
            match Config::parse(text, &format!("{key} of the ConfigMap {own}/{map}")) {
                Ok(config) => self.valid(config),
                Err(error) => ConfigFacts::Invalid(error_chain(&error)),
            }
        })
    }

    fn valid(&self, config: Config) -> ConfigFacts {
        let config = config.excluding(Some(self.namespace.clone()));
        ConfigFacts::Valid(Box::new(Settings {
            rules: config.rules,
            label: config.opt_in.label,
            value: config.opt_in.value,
            watches_service_accounts: config.watches_service_accounts,
            lists_pods: config.refresh.lists_pods(),
        }))
    }

    /// Creates a Pod in a dry run in an opted-in namespace.
    async fn dry_run(
        &self,
        config: &Reading<ConfigFacts>,
        namespaces: &Reading<Vec<NamespaceFacts>>,
        secrets: &Reading<Vec<PullSecretFacts>>,
    ) -> Reading<DryRun> {
        let Some(Some(settings)) = config.value().map(ConfigFacts::settings) else {
            let unread = config.unread("the configuration");
            return unread.unwrap_or_else(|| Reading::Unread("after config-loads".to_owned()));
        };
        let Some(all) = namespaces.value() else {
            let unread = namespaces.unread("the list of namespaces");
            return unread.unwrap_or_else(|| Reading::Unread(String::new()));
        };
        let mut opted_in = all.iter();
        let opted_in = opted_in.find(|it| settings.is_opted_in(it) && !it.is_terminating);
        let Some(namespace) = opted_in.and_then(|it| Namespace::parse(&it.name)) else {
            return Reading::Unread("no namespace is opted in".to_owned());
        };
        let known = || registry_in_use(settings, secrets);
        let Some((image, host)) = self.image.cloned().or_else(known) else {
            return Reading::Unread(
                "no registry is known yet; name an image by --image".to_owned(),
            );
        };
        let secret = settings.rules.secret_name.clone();
        let probe = Probe::new(namespace.clone(), image, host, secret);
        match probe.admit_dry_run(&self.cluster.client).await {
            Ok(_) => Reading::Read(DryRun::Injected(namespace.to_string())),
            Err(error @ ProbeError::NotInjected { .. }) => {
                Reading::Read(DryRun::NotInjected(error_chain(&error)))
            }
            Err(ProbeError::Rejected { message, .. })
                if message.contains("cannot create resource \"pods\"") =>
            {
                Reading::Forbidden(Right::new("create", "pods", Some(namespace.as_str())))
            }
            Err(ProbeError::Rejected { message, .. }) => Reading::Read(DryRun::Rejected(message)),
            Err(error) => Reading::Failed(error_chain(&error)),
        }
    }
}

/// Returns an image in a registry that a pull secret has, or that the configuration allows.
fn registry_in_use(
    settings: &Settings,
    secrets: &Reading<Vec<PullSecretFacts>>,
) -> Option<(String, Host)> {
    let rules = &settings.rules;
    let states = secrets.value().into_iter().flatten();
    let states = states
        .filter(|it| it.is_managed)
        .filter_map(|it| it.state.as_ref());
    let mut hosts = states.flat_map(|state| state.hosts.keys());
    let is_allowed = |host: &&Host| {
        let resolved = rules.aliases.resolve(host.as_str());
        resolved.is_some_and(|(_, registry)| rules.allow.permits(&registry))
    };
    let known = hosts.find(is_allowed).cloned();
    let allowed = || {
        let account = rules.allow.accounts.first()?;
        let region = rules.allow.regions.first()?;
        let host = format!("{account}.dkr.ecr.{region}.amazonaws.com");
        Registry::parse(&host).map(|registry| registry.host().clone())
    };
    let host = known.or_else(allowed)?;
    Some((format!("{host}/ecr-injector-doctor"), host))
}

/// Reads the API server's version and clock.
async fn version(reader: &Reader) -> (Reading<String>, Option<Timestamp>) {
    match reader
        .call(Method::GET, "/version", "application/json", None)
        .await
    {
        Ok((headers, body)) => {
            let date = headers.get(DATE).and_then(|date| date.to_str().ok());
            let date = date.and_then(|date| jiff::fmt::rfc2822::parse(date).ok());
            let version: Value = serde_json::from_slice(&body).unwrap_or_default();
            let version = version["gitVersion"].as_str().unwrap_or_default();
            (
                Reading::Read(version.to_owned()),
                date.map(|date| date.timestamp()),
            )
        }
        Err(CallError::Status(status, _)) if status.as_u16() == 403 => (
            Reading::Forbidden(Right::new("get", "/version", None)),
            None,
        ),
        Err(error) => (Reading::Failed(error.text()), None),
    }
}

/// Reads the metadata of all namespaces.
pub(super) async fn namespaces(reader: &Reader) -> Reading<Vec<NamespaceFacts>> {
    let list = List {
        path: "/api/v1/namespaces",
        query: "",
        metadata: true,
        right: Right::new("list", "namespaces", None),
    };
    let all = reader.list(list, NamespaceFacts::of).await;
    all.map(Option::unwrap_or_default)
}

/// Returns the Pod that an Event is about, if its sandbox image could not be pulled.
fn sandbox(event: &Value) -> Option<String> {
    let message = event["message"].as_str()?;
    let object = &event["involvedObject"];
    let is_about_image = message.contains("sandbox image") || message.contains("pause");
    let place = || {
        Some(format!(
            "{}/{}",
            object["namespace"].as_str()?,
            object["name"].as_str()?
        ))
    };
    is_about_image.then(place).flatten()
}

/// Reads the metadata of all Secrets with the pull secret's name.
async fn pull_secrets(
    reader: &Reader,
    config: &Reading<ConfigFacts>,
) -> Reading<Vec<PullSecretFacts>> {
    let Some(Some(settings)) = config.value().map(ConfigFacts::settings) else {
        let unread = config.unread("the configuration");
        return unread.unwrap_or_else(|| Reading::Unread("after config-loads".to_owned()));
    };
    let secret = &settings.rules.secret_name;
    let query = format!("fieldSelector=metadata.name%3D{secret}");
    let list = List {
        path: "/api/v1/secrets",
        query: &query,
        metadata: true,
        right: Right::new("list", format!("secrets/{secret}"), None),
    };
    let all = reader.list(list, PullSecretFacts::of).await;
    all.map(Option::unwrap_or_default)
}

/// Reads the Pending Pods of opted-in namespaces that name images of ECR.
async fn pending_pods(
    reader: &Reader,
    config: &Reading<ConfigFacts>,
    namespaces: &Reading<Vec<NamespaceFacts>>,
) -> Reading<Vec<PodFacts>> {
    let Some(Some(settings)) = config.value().map(ConfigFacts::settings) else {
        let unread = config.unread("the configuration");
        return unread.unwrap_or_else(|| Reading::Unread("after config-loads".to_owned()));
    };
    let Some(all) = namespaces.value() else {
        let unread = namespaces.unread("the list of namespaces");
        return unread.unwrap_or_else(|| Reading::Unread(String::new()));
    };
    let opted_in = all.iter().filter(|it| settings.is_opted_in(it));
    let opted_in: BTreeMap<&str, _> = opted_in.map(|it| (&*it.name, it)).collect();
    let list = List {
        path: "/api/v1/pods",
        query: "fieldSelector=status.phase%3DPending",
        metadata: false,
        right: Right::new("list", "pods", None),
    };
    let facts = |pod: &Value| {
        let namespace = opted_in.get(pod["metadata"]["namespace"].as_str()?)?;
        waiting::facts(pod, settings, namespace)
    };
    reader
        .list(list, facts)
        .await
        .map(Option::unwrap_or_default)
}
