//! A registry with one image, which answers only those who have a token of the fake AWS.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsAcceptor;

use crate::support::own_runtime::OwnRuntime;
use crate::support::{Authority, FakeAws};

/// docker's own types: its client of Debian knows no others.
const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";

pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    room: Arc<Room>,
    _runtime: OwnRuntime,
}

struct Room {
    aws: Arc<FakeAws>,
    manifest: String,
    blobs: BTreeMap<String, Vec<u8>>,
    pulls: Mutex<usize>,
}

impl Registry {
    pub(crate) fn start(authority: &Authority, host: &str, aws: Arc<FakeAws>) -> Self {
        // The end of an archive, and nothing in it.
        let layer = vec![0; 1024];
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest(&layer)]},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "size": config.len(), "digest": digest(&config)},
            "layers": [{"mediaType": LAYER, "size": layer.len(), "digest": digest(&layer)}],
        });
        let room = Arc::new(Room {
            aws,
            manifest: manifest.to_string(),
            blobs: [config, layer].map(|blob| (digest(&blob), blob)).into(),
            pulls: Mutex::default(),
        });
        let runtime = OwnRuntime::start("registry");
        let (listener, address) = runtime.listen("127.0.0.1:0");
        let acceptor = TlsAcceptor::from(authority.server_config(&[host]));
        let router = Router::new().fallback(answer).with_state(Arc::clone(&room));
        runtime.spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (acceptor, router) = (acceptor.clone(), router.clone());
                tokio::spawn(async move {
                    if let Ok(connection) = acceptor.accept(connection).await {
                        let service = TowerToHyperService::new(router);
                        let _ = http1::Builder::new()
                            .serve_connection(TokioIo::new(connection), service)
                            .await;
                    }
                });
            }
        });
        Self {
            address,
            room,
            _runtime: runtime,
        }
    }

    /// How often the manifest was given to somebody with a token.
    pub(crate) fn pulls(&self) -> usize {
        *self.room.pulls.lock().unwrap()
    }
}

fn digest(blob: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(blob) {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

async fn answer(
    State(room): State<Arc<Room>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
) -> Response<Body> {
    let given = headers.get(header::AUTHORIZATION);
    let given = given.and_then(|value| value.to_str().ok()?.strip_prefix("Basic "));
    let given = given.and_then(|given| BASE64_STANDARD.decode(given).ok());
    let given = given.and_then(|given| String::from_utf8(given).ok());
    let password = given
        .as_deref()
        .and_then(|given| given.strip_prefix("AWS:"));
    let is_known = password.is_some_and(|password| room.aws.principal_of(password).is_some());
    if !is_known {
        let challenge = r#"Basic realm="https://registry/",service="ecr.amazonaws.com""#;
        return Response::builder()
            .status(StatusCode::UNAUTHORIZED)
            .header(header::WWW_AUTHENTICATE, challenge)
            .header("Docker-Distribution-Api-Version", "registry/2.0")
            .body(Body::from("no basic auth credentials"))
            .unwrap();
    }
    let path = uri.path();
    if path.contains("/manifests/") {
        *room.pulls.lock().unwrap() += 1;
        return found(&method, MANIFEST, room.manifest.clone().into_bytes());
    }
    if path.ends_with("/tags/list") {
        let tags = json!({"name": "shop/web", "tags": ["v1"]});
        return found(&method, "application/json", tags.to_string().into_bytes());
    }
    if path == "/v2/" {
        return found(&method, "application/json", b"{}".to_vec());
    }
    let blob = path
        .rsplit('/')
        .next()
        .and_then(|name| room.blobs.get(name));
    match blob {
        Some(blob) => found(&method, "application/octet-stream", blob.clone()),
        None => Response::builder()
            .status(StatusCode::NOT_FOUND)
            .body(Body::empty())
            .unwrap(),
    }
}

fn found(method: &Method, content_type: &str, body: Vec<u8>) -> Response<Body> {
    let response = Response::builder()
        .header(header::CONTENT_TYPE, content_type)
        .header(header::CONTENT_LENGTH, body.len())
        .header("Docker-Content-Digest", digest(&body))
        .header("Docker-Distribution-Api-Version", "registry/2.0");
    let body = if method == Method::HEAD {
        Body::empty()
    } else {
        Body::from(body)
    };
    response.body(body).unwrap()
}
