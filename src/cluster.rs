//! How we reach the API server: its client, with no retry and no wait that we did not ask for.

pub mod watch;

use std::path::Path;

use http::{HeaderValue, header::USER_AGENT};
use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use thiserror::Error;

use crate::namespace::Namespace;

/// The variable that Kubernetes sets in every Pod.
const IN_CLUSTER_VARIABLE: &str = "KUBERNETES_SERVICE_HOST";

/// A client, and what its configuration says about us.
pub struct Cluster {
    /// The client. Calls through it have no deadline of their own: every caller sets one.
    pub client: Client,
    /// The namespace that we run in, when in a cluster.
    pub own_namespace: Option<Namespace>,
}

/// Why there is no client.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// The Pod's own service account can't be used.
    #[error("using the Pod's service account: {0}; is automountServiceAccountToken off?")]
    InCluster(#[source] InClusterError),
    /// The kubeconfig can't be used.
    #[error("reading {what}: {source}")]
    Kubeconfig {
        /// Which one.
        what: String,
        /// What is wrong with it.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// The client can't be made of it.
    #[error("making a client for the API server: {0}")]
    Client(#[source] Box<kube::Error>),
}

impl Cluster {
    /// Connects by a kubeconfig file if one is named; else by the Pod's service account if this is a Pod; else by the
    /// usual rules (`KUBECONFIG`, `~/.kube/config`). No call leaves yet.
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Self, ClusterError> {
        let in_cluster = kubeconfig.is_none() && std::env::var_os(IN_CLUSTER_VARIABLE).is_some();
        let options = KubeConfigOptions::default();
        let mut config = match kubeconfig {
            Some(path) => {
                let wrong = |source| ClusterError::Kubeconfig {
                    what: format!("kubeconfig {}", path.display()),
                    source: Box::new(source),
                };
                let file = Kubeconfig::read_from(path).map_err(wrong)?;
                Config::from_custom_kubeconfig(file, &options)
                    .await
                    .map_err(wrong)?
            }
            None if in_cluster => Config::incluster().map_err(ClusterError::InCluster)?,
            None => Config::from_kubeconfig(&options).await.map_err(|source| {
                ClusterError::Kubeconfig {
                    what: "the kubeconfig (no --kubeconfig given, and not in a Pod)".to_owned(),
                    source: Box::new(source),
                }
            })?,
        };
        // kube's own retry waits up to 1,000 s and obeys any Retry-After; an admission has seconds.
        config.default_retry = false;
        let agent = HeaderValue::from_static(concat!("ecr-injector/", env!("CARGO_PKG_VERSION")));
        config.headers.push((USER_AGENT, agent));
        let own_namespace = in_cluster
            .then(|| Namespace::parse(&config.default_namespace))
            .flatten();
        let client =
            Client::try_from(config).map_err(|error| ClusterError::Client(Box::new(error)))?;
        Ok(Self {
            client,
            own_namespace,
        })
    }
}
