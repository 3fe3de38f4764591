//! The clients of the API server, with no retry and no wait that ecr-injector did not ask for.

use std::path::PathBuf;

use http::{HeaderValue, header::USER_AGENT};
use kube::{
    Client, Config,
    config::{InClusterError, KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use secrecy::ExposeSecret as _;
use thiserror::Error;
use tokio::{runtime::Handle, time::timeout};

use super::{
    namespace::Namespace,
    watch::{self, WatchTimeouts},
};
use crate::process::files;

/// The variable that Kubernetes sets in every Pod.
const IN_CLUSTER_VARIABLE: &str = "KUBERNETES_SERVICE_HOST";

/// The user agent of admissions and watches, as the API server's audit log has it.
const AGENT: &str = concat!("ecr-injector/", env!("CARGO_PKG_VERSION"));
/// The leader's user agent.
const REFRESHER: &str = concat!("ecr-injector/", env!("CARGO_PKG_VERSION"), " refresher");

/// A cluster's clients, its server and the Pod's namespace. Calls through the
/// clients have no deadline of their own: every caller sets one.
pub struct Cluster {
    /// The client of the admissions and the watches.
    pub client: Client,
    /// The leader's client. Only its user agent differs, so that an audit log shows whose a request
    /// is.
    pub refresher: Client,
    /// The namespace of this Pod, when in a cluster.
    pub own_namespace: Option<Namespace>,
    /// The API server's URL and where it was configured, for people.
    pub server: String,
}

/// The choice of a cluster and of a user; the default is that of Pods and of kubectl.
#[derive(Debug, Clone, Default)]
pub struct ClusterSource {
    /// The kubeconfig's path.
    pub kubeconfig: Option<PathBuf>,
    /// The context in the kubeconfig.
    pub context: Option<String>,
    /// The user to impersonate.
    pub impersonate: Option<String>,
}

/// Error of connecting to a cluster.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// The Pod's own service account can't be used.
    #[error("using the Pod's service account failed; is automountServiceAccountToken off?")]
    InCluster(#[source] InClusterError),
    /// The kubeconfig can't be used.
    #[error("reading {kubeconfig}")]
    Kubeconfig {
        /// The kubeconfig's path, or where it was searched.
        kubeconfig: String,
        /// The cause.
        #[source]
        source: Box<KubeconfigError>,
    },
    /// The token can't be sent, for which kube's client panics.
    #[error(
        "the token of the user in the kubeconfig has a line break or another character that no \
         token has: write it again without"
    )]
    Token,
    /// The files can't be read in time.
    #[error(
        "reading {origin} took more than {} s; does its volume hang?",
        files::TIMEOUT.as_secs()
    )]
    Hung {
        /// The kubeconfig's path, or the files it would be in.
        origin: String,
    },
    /// No client can be created from the configuration.
    #[error("creating a client for the API server failed")]
    Client(#[source] Box<kube::Error>),
}

impl Cluster {
    /// Configures clients by a kubeconfig file if one is given; else by the Pod's service account
    /// if this is a Pod and no context is given; else by the usual rules (`KUBECONFIG`,
    /// `~/.kube/config`). Makes no call yet.
    pub async fn connect(from: &ClusterSource) -> Result<Self, ClusterError> {
        let in_cluster = from.kubeconfig.is_none()
            && from.context.is_none()
            && std::env::var_os(IN_CLUSTER_VARIABLE).is_some();
        let mut origin = match &from.kubeconfig {
            Some(path) => format!("kubeconfig {}", path.display()),
            None if in_cluster => "the Pod's service account".to_owned(),
            None => "KUBECONFIG or ~/.kube/config".to_owned(),
        };
        if let Some(context) = &from.context {
            origin = format!("{origin}, context {context}");
        }
        let (source, runtime) = (from.clone(), Handle::current());
        // kube reads the files where it is called.
        let read = files::off_the_workers(move || runtime.block_on(read(&source, in_cluster)));
        let Ok(config) = timeout(files::TIMEOUT, read).await else {
            return Err(ClusterError::Hung { origin });
        };
        let mut config = config?;
        let token = config.auth_info.token.as_ref();
        if token.is_some_and(|token| HeaderValue::from_str(token.expose_secret()).is_err()) {
            return Err(ClusterError::Token);
        }
        if let Some(user) = &from.impersonate {
            origin = format!("{origin}, as {user}");
            // Groups that the kubeconfig impersonates belong to another user.
            config.auth_info.impersonate = Some(user.clone());
            config.auth_info.impersonate_uid = None;
            config.auth_info.impersonate_groups = None;
            config.auth_info.impersonate_user_extra = None;
        }
        let own_namespace = in_cluster
            .then(|| Namespace::parse(&config.default_namespace))
            .flatten();
        let cluster = Self::new(config, WatchTimeouts::default())?;
        Ok(Self {
            own_namespace,
            server: format!("{} ({origin})", cluster.server),
            ..cluster
        })
    }

    /// Creates clients by this configuration, outside any namespace.
    pub fn new(config: Config, timeouts: WatchTimeouts) -> Result<Self, ClusterError> {
        // Without the user name and password that may come before an @.
        let url = &config.cluster_url;
        let port = url.port().map(|port| format!(":{port}"));
        let server = format!(
            "{}://{}{}",
            url.scheme_str().unwrap_or("https"),
            url.host().unwrap_or_default(),
            port.unwrap_or_default()
        );
        Ok(Self {
            client: client(config.clone(), timeouts, AGENT)?,
            refresher: client(config, timeouts, REFRESHER)?,
            own_namespace: None,
            server,
        })
    }
}

/// Reads the configuration of the clients.
async fn read(from: &ClusterSource, in_cluster: bool) -> Result<Config, ClusterError> {
    let options = KubeConfigOptions {
        context: from.context.clone(),
        ..KubeConfigOptions::default()
    };
    match &from.kubeconfig {
        Some(path) => {
            let failed = |source| ClusterError::Kubeconfig {
                kubeconfig: format!(
                    "kubeconfig {} ({})",
                    path.display(),
                    files::named_by("--kubeconfig", "ECR_INJECTOR_KUBECONFIG", Some(path))
                ),
                source: Box::new(source),
            };
            let file = Kubeconfig::read_from(path).map_err(failed)?;
            let config = Config::from_custom_kubeconfig(file, &options).await;
            config.map_err(failed)
        }
        None if in_cluster => Config::incluster().map_err(ClusterError::InCluster),
        None => {
            let config = Config::from_kubeconfig(&options).await;
            config.map_err(|source| ClusterError::Kubeconfig {
                kubeconfig: match std::env::var_os("KUBECONFIG").filter(|paths| !paths.is_empty()) {
                    Some(_) => "the kubeconfig (KUBECONFIG)".to_owned(),
                    None => {
                        "~/.kube/config (no --kubeconfig and no KUBECONFIG given, and not in a Pod)"
                            .to_owned()
                    }
                },
                source: Box::new(source),
            })
        }
    }
}

fn client(
    mut config: Config,
    timeouts: WatchTimeouts,
    agent: &'static str,
) -> Result<Client, ClusterError> {
    // kube's own retry waits up to 1,000 s and obeys any Retry-After; an admission has seconds.
    config.default_retry = false;
    // Without a read timeout a watch or a list that is never answered would never end. A
    // connection's idle time doesn't count.
    config.read_timeout = Some(timeouts.read);
    config.reset_reader_on_write = true;
    let agent = HeaderValue::from_static(agent);
    config.headers.push((USER_AGENT, agent));
    let client = Client::try_from(config).map_err(|error| ClusterError::Client(Box::new(error)))?;
    Ok(watch::spaced(client))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    #[tokio::test]
    async fn leader_has_a_user_agent_of_its_own() {
        // The clients' TLS is built even where it isn't used.
        crate::tls::install_crypto_provider();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let url = format!("http://{address}").parse().expect("a URL");
        let cluster = Cluster::new(Config::new(url), WatchTimeouts::default()).expect("clients");
        for (client, expected) in [(cluster.client, AGENT), (cluster.refresher, REFRESHER)] {
            let (_, agent) = tokio::join!(client.apiserver_version(), agent(&listener));
            assert_eq!(agent, [expected]);
        }
        assert_eq!(REFRESHER, format!("{AGENT} refresher"));
    }

    /// Returns the `User-Agent`s of the next request, which gets 404.
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
