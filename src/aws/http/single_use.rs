//! An HTTP client that opens a connection for each request, speaks HTTP/1.1 and keeps nothing.
//!
//! The SDK's client keeps a pool of connections, has HTTP/2, and takes the trusted certificates as
//! text, of which it makes copies. In a process of a few milliseconds that was most of the memory.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Duration,
};

use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        connector_metadata::ConnectorMetadata,
        http::{
            HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings,
            SharedHttpConnector,
        },
        orchestrator::{HttpRequest, HttpResponse},
        result::ConnectorError,
        runtime_components::{RuntimeComponents, RuntimeComponentsBuilder},
    },
};
use aws_smithy_types::{body::SdkBody, config_bag::ConfigBag};
use http::{
    HeaderValue, Request, Uri,
    header::{Entry, HOST},
    uri::{PathAndQuery, Scheme},
};
use http_body_util::{BodyExt as _, Limited};
use hyper::{
    client::conn::http1,
    rt::{Read, Write},
};
use hyper_rustls::HttpsConnector;
use hyper_util::client::{
    legacy::connect::{HttpConnector as TcpConnector, proxy::Tunnel},
    proxy::matcher::Matcher,
};
use rustls::{ClientConfig, client::Resumption, crypto::ring};
use tokio::time::timeout;
use tower::Service as _;

use crate::aws::trust::{AwsEnvironmentError, Trust};

/// The most bytes of a response; the longest that is expected has six thousand.
const MAX_RESPONSE: usize = 1 << 20;
const ALPN: &[u8] = b"http/1.1";

/// Opens a connection for each request.
#[derive(Clone)]
pub(super) struct SingleUseClient {
    trust: Trust,
    /// Made when it is first needed: a process that only asks the node's own endpoints needs none.
    tls: Arc<OnceLock<Arc<ClientConfig>>>,
    proxies: Option<Arc<Matcher>>,
}

/// The client with the timeouts of one caller.
#[derive(Debug, Clone)]
struct Requests {
    client: SingleUseClient,
    settings: HttpConnectorSettings,
}

/// A connection, with TLS or without.
trait Stream: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> Stream for T {}

impl SingleUseClient {
    /// Returns a client that takes no proxy.
    pub(super) fn direct(trust: &Trust) -> Self {
        Self {
            trust: trust.clone(),
            tls: Arc::default(),
            proxies: None,
        }
    }

    /// Takes the proxies that the environment names.
    pub(super) fn with_proxies(self) -> Self {
        let proxies = Some(Arc::new(Matcher::from_env()));
        Self { proxies, ..self }
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, BoxError> {
        if let Some(config) = self.tls.get() {
            return Ok(config.clone());
        }
        let provider = Arc::new(ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(self.trust.roots()?)
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        // There is no second connection.
        config.resumption = Resumption::disabled();
        Ok(self.tls.get_or_init(|| Arc::new(config)).clone())
    }

    /// Connects to the host of a URI. Only HTTPS goes through a proxy.
    async fn connect(&self, uri: Uri) -> Result<Box<dyn Stream>, BoxError> {
        let mut tcp = TcpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        if uri.scheme() == Some(&Scheme::HTTP) {
            return Ok(Box::new(tcp.call(uri).await?));
        }
        let config = self.tls()?;
        let mut https = HttpsConnector::from((tcp, config.clone()));
        let proxies = self.proxies.as_ref();
        let Some(proxy) = proxies.and_then(|proxies| proxies.intercept(&uri)) else {
            return Ok(Box::new(https.call(uri).await?));
        };
        let mut tunnel = Tunnel::new(proxy.uri().clone(), https);
        if let Some(login) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(login.clone());
        }
        let mut tunnelled = HttpsConnector::from((tunnel, config));
        Ok(Box::new(tunnelled.call(uri).await?))
    }
}

impl fmt::Debug for SingleUseClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A proxy's URL may have a password.
        f.debug_struct("SingleUseClient").finish_non_exhaustive()
    }
}

impl HttpClient for SingleUseClient {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Requests {
            client: self.clone(),
            settings: settings.clone(),
        })
    }

    fn validate_base_client_config(
        &self,
        _: &RuntimeComponentsBuilder,
        _: &ConfigBag,
    ) -> Result<(), BoxError> {
        Ok(())
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        Some(ConnectorMetadata::new("hyper", Some("1.x".into())))
    }
}

impl HttpConnector for Requests {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let requests = self.clone();
        HttpConnectorFuture::new(async move { requests.send(request).await })
    }
}

impl Requests {
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, ConnectorError> {
        let request = request.try_into_http1x();
        let mut request = request.map_err(|error| ConnectorError::user(error.into()))?;
        let connect = self.client.connect(request.uri().clone());
        let limit = self.settings.connect_timeout();
        let stream = within(limit, "connect", connect).await?;
        to_origin_form(&mut request).map_err(ConnectorError::user)?;
        let opened = http1::handshake(stream).await;
        let (mut sender, connection) = opened.map_err(|error| ConnectorError::io(error.into()))?;
        // It ends with its one request, or with the runtime.
        tokio::spawn(connection);
        let exchange = async {
            let response = sender.send_request(request).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_RESPONSE).collect().await?;
            let body = SdkBody::from(body.to_bytes());
            Ok(http::Response::from_parts(head, body))
        };
        let limit = self.settings.read_timeout();
        let response = within(limit, "read", exchange).await?;
        HttpResponse::try_from(response).map_err(|error| ConnectorError::other(error.into(), None))
    }
}

/// Awaits a step, at most this long.
async fn within<T>(
    limit: Option<Duration>,
    name: &str,
    step: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, ConnectorError> {
    let Some(limit) = limit else {
        return step.await.map_err(failure);
    };
    let Ok(ended) = timeout(limit, step).await else {
        let text = format!("HTTP {name} timeout occurred after {limit:?}");
        return Err(ConnectorError::timeout(text.into()));
    };
    ended.map_err(failure)
}

/// Returns the error of a step. A mistake on this machine is none of the network's, after which
/// a token that was kept would be used.
fn failure(error: BoxError) -> ConnectorError {
    if error.is::<AwsEnvironmentError>() {
        return ConnectorError::user(error);
    }
    ConnectorError::io(error)
}

/// Leaves the path of a request's URI, and names its host in a header, as a server wants it.
fn to_origin_form(request: &mut Request<SdkBody>) -> Result<(), BoxError> {
    let uri = request.uri();
    let host = uri.host().ok_or("the URI has no host")?;
    let is_https = uri.scheme() == Some(&Scheme::HTTPS);
    let usual = if is_https { 443 } else { 80 };
    let host = match uri.port_u16().filter(|port| *port != usual) {
        Some(port) => HeaderValue::try_from(format!("{host}:{port}"))?,
        None => HeaderValue::try_from(host)?,
    };
    let path = uri.path_and_query().cloned();
    *request.uri_mut() = path.unwrap_or(PathAndQuery::from_static("/")).into();
    if let Entry::Vacant(entry) = request.headers_mut().entry(HOST) {
        entry.insert(host);
    }
    Ok(())
}
