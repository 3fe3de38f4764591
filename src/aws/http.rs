//! The HTTP clients by which AWS is reached: one that keeps its connections, for a process that
//! goes on, and one for a process that makes a call or two.
//!
//! Both use the proxy that `HTTPS_PROXY` and `NO_PROXY` name, and trust the system's roots or the CA
//! bundle of the admin. Plain-text requests bypass the proxy: they go to the endpoints on the node
//! itself that give credentials, and a proxy would read those.

mod single_use;

use aws_smithy_http_client::{
    Builder, Connector,
    proxy::ProxyConfig,
    tls::{Provider, TlsContext, rustls_provider::CryptoMode},
};
use aws_smithy_runtime_api::{
    box_error::BoxError,
    client::{
        connector_metadata::ConnectorMetadata,
        http::{
            HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings,
            SharedHttpClient, SharedHttpConnector,
        },
        orchestrator::HttpRequest,
        runtime_components::{RuntimeComponents, RuntimeComponentsBuilder},
    },
};
use aws_smithy_types::config_bag::ConfigBag;

use self::single_use::SingleUseClient;
use super::trust::Trust;

/// The clients of a process.
#[derive(Debug, Clone)]
pub struct HttpClients {
    /// Takes the proxy for HTTPS.
    pub(super) routed: SharedHttpClient,
    /// Takes no proxy.
    pub(super) direct: SharedHttpClient,
}

impl HttpClients {
    /// Returns clients that keep their connections and speak HTTP/2 too.
    #[must_use]
    pub fn pooled(trust: &Trust) -> Self {
        let direct = http_client(trust, &ProxyConfig::disabled());
        let routed = SharedHttpClient::new(ProxyRoutedClient {
            proxied: http_client(trust, &ProxyConfig::from_env()),
            direct: direct.clone(),
        });
        Self { routed, direct }
    }

    /// Returns clients that open a connection for each request, with less memory and code.
    #[must_use]
    pub fn single_use(trust: &Trust) -> Self {
        let direct = SingleUseClient::direct(trust);
        let routed = SharedHttpClient::new(direct.clone().with_proxies());
        let direct = SharedHttpClient::new(direct);
        Self { routed, direct }
    }
}

/// Sends HTTPS requests through the proxy, and plain-text requests directly: those go to endpoints
/// on the node itself (a profile can lead there as well), and a proxy would see the credentials
/// that they give.
#[derive(Debug, Clone)]
struct ProxyRoutedClient {
    proxied: SharedHttpClient,
    direct: SharedHttpClient,
}

/// The connectors of a [`ProxyRoutedClient`] for one set of timeouts. Each is made when it is first
/// needed, and then kept by its client: one with TLS parses all trusted certificates.
#[derive(Debug)]
struct Connectors {
    client: ProxyRoutedClient,
    settings: HttpConnectorSettings,
    components: RuntimeComponents,
}

impl HttpClient for ProxyRoutedClient {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(Connectors {
            client: self.clone(),
            settings: settings.clone(),
            components: components.clone(),
        })
    }

    /// Checks nothing: the trusted certificates are, and the SDK's client would make a connector
    /// only to drop it.
    fn validate_base_client_config(
        &self,
        _: &RuntimeComponentsBuilder,
        _: &ConfigBag,
    ) -> Result<(), BoxError> {
        Ok(())
    }

    fn connector_metadata(&self) -> Option<ConnectorMetadata> {
        self.proxied.connector_metadata()
    }
}

impl HttpConnector for Connectors {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let scheme = request.uri().split_once("://").map(|(scheme, _)| scheme);
        let is_https = scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
        let client = if is_https {
            &self.client.proxied
        } else {
            &self.client.direct
        };
        let connector = client.http_connector(&self.settings, &self.components);
        connector.call(request)
    }
}

fn http_client(trust: &Trust, proxy: &ProxyConfig) -> SharedHttpClient {
    let (trust, proxy) = (trust.clone(), proxy.clone());
    // The SDK's builder of clients takes no proxy; its builder of connectors does.
    Builder::new().build_with_connector_fn(move |settings, components| {
        let mut builder = Connector::builder()
            .proxy_config(proxy.clone())
            .tls_provider(Provider::Rustls(CryptoMode::Ring));
        // The trust store was checked when it was read, and building fails for no other reason.
        if let Ok(context) = TlsContext::builder()
            .with_trust_store(trust.store())
            .build()
        {
            builder = builder.tls_context(context);
        }
        builder.set_connector_settings(settings.cloned());
        builder.set_sleep_impl(components.and_then(RuntimeComponents::sleep_impl));
        builder.build()
    })
}
