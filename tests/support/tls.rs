//! Both ends of TLS: the webhook's own configuration over a certificate made for the test, and clients that trust it.

use std::sync::Arc;

use ecr_injector::process::clock::SystemClock;
use ecr_injector::tls::clients::Clients;
use ecr_injector::tls::files::Files;
use ecr_injector::tls::{CertResolver, MinVersion, server_config};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::certificates::{Authority, Leaf};

const NAME: &str = "ecr-injector.ecr-injector.svc";

/// A server's configuration and the root that its clients trust.
pub struct Tls {
    pub acceptor: TlsAcceptor,
    pub trust: Trust,
}

/// Clients that trust one authority, and call the webhook by its name.
#[derive(Clone)]
pub struct Trust(Arc<RootCertStore>);

impl Tls {
    pub fn new(min: MinVersion) -> Self {
        Self::with_clients(min, None)
    }

    /// Accepts only these clients.
    pub fn with_clients(min: MinVersion, clients: Option<Arc<Clients>>) -> Self {
        super::crypto();
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::new("the test's CA");
        let files = authority.serving(&[NAME], folder.path(), "tls");
        let files = Files {
            certificate: files.certificate,
            key: files.key,
        };
        let cert = files.cert(&SystemClock).unwrap();
        let config = server_config(CertResolver::new(cert), min, clients).unwrap();
        Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            trust: Trust::of(&authority),
        }
    }

    /// Shakes hands as a client with these versions and these protocols.
    pub async fn connect<S>(
        &self,
        stream: S,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&str],
    ) -> std::io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.trust.connect(stream, versions, protocols).await
    }
}

impl Trust {
    pub fn of(authority: &Authority) -> Self {
        Self::of_bundle(&authority.pem())
    }

    /// Returns the trust of a client in these authorities (PEM), such as a `caBundle`.
    pub fn of_bundle(bundle: &str) -> Self {
        super::crypto();
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(root.unwrap()).unwrap();
        }
        Self(Arc::new(roots))
    }

    /// Shakes hands as a client with these versions and these protocols.
    pub async fn connect<S>(
        &self,
        stream: S,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&str],
    ) -> std::io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        connect(self.client(versions, protocols), stream).await
    }

    /// A client's configuration; connections that share one share their sessions, too.
    pub fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        protocols: &[&str],
    ) -> Arc<ClientConfig> {
        let mut config = ClientConfig::builder_with_protocol_versions(versions)
            .with_root_certificates(self.0.clone())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|p| p.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

impl Trust {
    /// A client's configuration with a certificate of its own.
    pub fn client_as(&self, leaf: &Leaf) -> Arc<ClientConfig> {
        let chain = CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(self.0.clone());
        let config = config.with_client_auth_cert(vec![chain], key);
        Arc::new(config.unwrap())
    }
}

/// Shakes hands as a client with this configuration.
pub async fn connect<S>(config: Arc<ClientConfig>, stream: S) -> std::io::Result<TlsStream<S>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    TlsConnector::from(config)
        .connect(ServerName::try_from(NAME).unwrap(), stream)
        .await
}
