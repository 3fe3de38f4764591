//! All of it together: a control plane with `deploy/` in it, AWS, and one webhook process that answers for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Secret};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, ListParams, PostParams};
use kube::core::Status;
use kube::{Client, Resource};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::control_plane::ControlPlane;
use super::eventually;
use super::fake_aws::FakeAws;
use super::installation::{Installation, NAME, OPT_IN, PULL_SECRET};
use super::webhook::Webhook;

/// A cluster with the webhook in it. Tests that share one keep apart by namespace and by AWS region.
pub struct Bed {
    pub plane: ControlPlane,
    pub aws: FakeAws,
    pub installation: Installation,
    pub webhook: Webhook,
}

/// A Pod as it was stored, and the warnings that its creator got.
#[derive(Debug)]
pub struct Admitted {
    pub pod: Pod,
    pub warnings: Vec<String>,
}

impl Bed {
    /// Logs at `filter`; its configuration is `config`.
    pub async fn start(config: &str, filter: &str) -> Self {
        Self::start_with(config, filter, |_| Vec::new()).await
    }

    /// Starts with more variables.
    pub async fn start_with(
        config: &str,
        filter: &str,
        variables: impl FnOnce(&FakeAws) -> Vec<(&'static str, String)>,
    ) -> Self {
        super::crypto();
        let plane = ControlPlane::start().await;
        let aws = FakeAws::start();
        let installation = Installation::apply(&plane).await;
        let mut options = installation.webhook(&plane, &aws).await;
        config.clone_into(&mut options.config);
        for (name, value) in variables(&aws) {
            options = options.with_variable(name, &value);
        }
        let webhook = Webhook::start(options.with_variable("ECR_INJECTOR_LOG", filter)).await;
        installation.register(&plane).await;
        aws.clear();
        Self {
            plane,
            aws,
            installation,
            webhook,
        }
    }

    pub async fn opted_in(&self, prefix: &str) -> String {
        self.plane.namespace(prefix, &[OPT_IN]).await
    }

    pub async fn secrets(&self, namespace: &str) -> Api<Secret> {
        Api::namespaced(self.plane.admin().await, namespace)
    }

    /// Waits for an Event with one of these reasons, and returns its note.
    pub async fn note(&self, namespace: &str, reasons: &[&str], limit: Duration) -> String {
        let events: Api<Event> = Api::namespaced(self.plane.admin().await, namespace);
        let what = format!("an Event {reasons:?} in {namespace}");
        eventually(&what, limit, async || {
            let published = events.list(&ListParams::default()).await.unwrap();
            let fits = |event: &Event| {
                let reason = event.reason.as_deref();
                reason.is_some_and(|reason| reasons.contains(&reason))
            };
            published.into_iter().find(fits)?.note
        })
        .await
    }

    /// The pull secret of a namespace.
    pub async fn pull_secret(&self, namespace: &str) -> Option<Secret> {
        let secrets: Api<Secret> = Api::namespaced(self.plane.admin().await, namespace);
        secrets.get_opt(PULL_SECRET).await.unwrap()
    }
}

/// The registry of an account in a region, and an image in it.
pub fn registry(account: u64, region: &str) -> String {
    format!("{account:012}.dkr.ecr.{region}.amazonaws.com")
}

pub fn image(region: &str) -> String {
    format!("{}/team/app:v1", registry(123_456_789_012, region))
}

/// The hosts in a pull secret's docker config.
pub fn hosts(secret: &Secret) -> Vec<String> {
    let config = &secret.data.as_ref().unwrap()[".dockerconfigjson"].0;
    let config: Value = serde_json::from_slice(config).unwrap();
    config["auths"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect()
}

/// Creates a Pod by a plain POST, which shows the warnings that kube's own `create` drops.
pub async fn create(
    client: &Client,
    namespace: &str,
    pod: &Pod,
    dry_run: bool,
) -> Result<Admitted, Status> {
    let parameters = PostParams {
        dry_run,
        ..PostParams::default()
    };
    let request = kube::core::Request::new(Pod::url_path(&(), Some(namespace)))
        .create(&parameters, serde_json::to_vec(pod).unwrap())
        .unwrap();
    send(client, request).await
}

/// Replaces a Pod's image, or adds an ephemeral container, by a patch of it or of the subresource below it.
pub async fn change(
    client: &Client,
    namespace: &str,
    name: &str,
    sub: &str,
    change: &Value,
) -> Result<Admitted, Status> {
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}{sub}");
    let request = http::Request::patch(path)
        .header("content-type", "application/strategic-merge-patch+json")
        .body(change.to_string().into_bytes());
    send(client, request.unwrap()).await
}

async fn send(client: &Client, request: http::Request<Vec<u8>>) -> Result<Admitted, Status> {
    let response = client
        .send(request.map(kube::client::Body::from))
        .await
        .unwrap();
    let succeeded = response.status().is_success();
    let warnings = response
        .headers()
        .get_all("warning")
        .iter()
        .map(text_of_warning)
        .collect();
    let body = http_body_util::BodyExt::collect(response.into_body())
        .await
        .unwrap()
        .to_bytes();
    if succeeded {
        Ok(Admitted {
            pod: serde_json::from_slice(&body).unwrap(),
            warnings,
        })
    } else {
        Err(serde_json::from_slice(&body).unwrap())
    }
}

/// `299 - "text"`, with quotes escaped.
fn text_of_warning(value: &http::HeaderValue) -> String {
    let text = value.to_str().unwrap();
    let text = text
        .strip_prefix("299 - \"")
        .unwrap()
        .strip_suffix('"')
        .unwrap();
    text.replace("\\\"", "\"")
}

/// A Pod spec with one container.
pub fn spec(image: &str) -> Value {
    json!({"containers": [{"name": "main", "image": image}]})
}

/// A POST by anybody who reaches the webhook's port, past the API server.
pub async fn post_review(
    installation: &Installation,
    address: SocketAddr,
    review: &Value,
) -> Value {
    post_review_within(installation, address, review, 5).await
}

/// Posts a review that the API server would wait so many seconds for.
pub async fn post_review_within(
    installation: &Installation,
    address: SocketAddr,
    review: &Value,
    seconds: u32,
) -> Value {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(installation.authority().pem().as_bytes());
    roots.add(authority.unwrap()).unwrap();
    let config = ClientConfig::builder()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = TcpStream::connect(address).await.unwrap();
    let name = format!("{NAME}.{NAME}.svc").try_into().unwrap();
    let mut stream = TlsConnector::from(Arc::new(config))
        .connect(name, socket)
        .await
        .unwrap();
    let body = review.to_string();
    let head = format!(
        "POST /mutate?timeout={seconds}s HTTP/1.1\r\nHost: {NAME}\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await.unwrap();
    // Where many connections share a task, a write may stay in the buffer of TLS.
    stream.flush().await.unwrap();
    let mut answer = Vec::new();
    // Whether the TLS connection was closed with a goodbye is not what this is about.
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// A review of a Pod's creation, as the API server would send it.
pub fn review(namespace: &str, pod: &Pod) -> Value {
    json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "review", "operation": "CREATE", "namespace": namespace,
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "object": pod,
        },
    })
}
