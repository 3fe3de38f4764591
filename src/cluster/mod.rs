//! How we reach the API server: its client, with no retry and no wait that we did not ask for.

pub mod changes;
pub mod event;
pub mod event_recorder;
pub mod lease;
pub mod metrics;
pub mod namespace;
pub mod namespaces;
pub mod object;
pub mod ownership;
pub mod rights;
pub mod watch;
pub(crate) mod write;

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    path::Path,
};

use http::{HeaderValue, header::USER_AGENT};
use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use thiserror::Error;

use self::watch::Patience;
use crate::cluster::namespace::Namespace;

/// The variable that Kubernetes sets in every Pod.
const IN_CLUSTER_VARIABLE: &str = "KUBERNETES_SERVICE_HOST";

/// What the admissions and the watches are called in the API server's audit log.
const AGENT: &str = concat!("ecr-injector/", env!("CARGO_PKG_VERSION"));
/// What the leader is called there.
const REFRESHER: &str = concat!("ecr-injector/", env!("CARGO_PKG_VERSION"), " refresher");

/// The clients, and what their configuration says about us. Calls through them have no deadline of their own: every
/// caller sets one.
pub struct Cluster {
    /// The client of the admissions and the watches.
    pub client: Client,
    /// The leader's: the same but for the name, so that an audit log tells its requests apart.
    pub refresher: Client,
    /// The namespace that we run in, when in a cluster.
    pub own_namespace: Option<Namespace>,
    /// The API server's URL and what named it, for people.
    pub server: String,
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
    #[error("creating a client for the API server: {0}")]
    Client(#[source] Box<kube::Error>),
}

impl Cluster {
    /// Connects by a kubeconfig file if one is named; else by the Pod's service account if this is a Pod; else by the
    /// usual rules (`KUBECONFIG`, `~/.kube/config`). No call leaves yet.
    pub async fn connect(kubeconfig: Option<&Path>) -> Result<Self, ClusterError> {
        let in_cluster = kubeconfig.is_none() && std::env::var_os(IN_CLUSTER_VARIABLE).is_some();
        let options = KubeConfigOptions::default();
        let origin = match kubeconfig {
            Some(path) => format!("kubeconfig {}", path.display()),
            None if in_cluster => "the Pod's service account".to_owned(),
            None => "KUBECONFIG or ~/.kube/config".to_owned(),
        };
        let config = match kubeconfig {
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
        let own_namespace = in_cluster
            .then(|| Namespace::parse(&config.default_namespace))
            .flatten();
        let cluster = Self::of(config, Patience::default())?;
        Ok(Self {
            own_namespace,
            server: format!("{} ({origin})", cluster.server),
            ..cluster
        })
    }

    /// Connects by this configuration, in a namespace that it doesn't tell.
    pub fn of(config: Config, patience: Patience) -> Result<Self, ClusterError> {
        // Without what may stand before an @.
        let url = &config.cluster_url;
        let port = url.port().map(|port| format!(":{port}"));
        let server = format!(
            "{}://{}{}",
            url.scheme_str().unwrap_or("https"),
            url.host().unwrap_or_default(),
            port.unwrap_or_default()
        );
        Ok(Self {
            client: client(config.clone(), patience, AGENT)?,
            refresher: client(config, patience, REFRESHER)?,
            own_namespace: None,
            server,
        })
    }
}

/// A number that differs between processes and calls, so that they don't do the same at the same moment or under the same
/// name. The standard library seeds its hash maps with such.
pub(crate) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

fn client(
    mut config: Config,
    patience: Patience,
    agent: &'static str,
) -> Result<Client, ClusterError> {
    // kube's own retry waits up to 1,000 s and obeys any Retry-After; an admission has seconds.
    config.default_retry = false;
    // Without it a watch or a list that is never answered would never end. A connection's idle time doesn't count.
    config.read_timeout = Some(patience.silence);
    config.reset_reader_on_write = true;
    let agent = HeaderValue::from_static(agent);
    config.headers.push((USER_AGENT, agent));
    let client = Client::try_from(config).map_err(|error| ClusterError::Client(Box::new(error)))?;
    Ok(watch::paced(client))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn the_leaders_requests_have_a_name_of_their_own() {
        // The clients' TLS is built even where it isn't used.
        crate::tls::install_crypto_provider();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let url = format!("http://{address}").parse().expect("a URL");
        let cluster = Cluster::of(Config::new(url), Patience::default()).expect("clients");
        for (client, expected) in [(cluster.client, AGENT), (cluster.refresher, REFRESHER)] {
            let (_, agent) = tokio::join!(client.apiserver_version(), agent(&listener));
            assert_eq!(agent, [expected]);
        }
        assert_eq!(REFRESHER, format!("{AGENT} refresher"));
    }

    /// The `User-Agent`s of the next request, which is refused.
    async fn agent(listener: &TcpListener) -> Vec<String> {
        let (mut stream, _) = listener.accept().await.expect("a connection");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a head"));
        }
        let refusal = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(refusal).await.expect("written");
        let head = String::from_utf8(head).expect("text");
        head.lines()
            .filter_map(|line| line.split_once(": "))
            .filter(|(name, _)| name.eq_ignore_ascii_case("user-agent"))
            .map(|(_, value)| value.to_owned())
            .collect()
    }
}
