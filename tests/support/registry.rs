//! The wire of a registry over TLS, for the tests in which real clients pull: who asks with which password, and the
//! registry's answers. What it holds, and for whom, is the test's.

use std::net::SocketAddr;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Response, StatusCode, header};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use sha2::{Digest as _, Sha256};
use tokio_rustls::TlsAcceptor;

use super::Authority;
use super::own_runtime::OwnRuntime;

/// Serves HTTPS for a host on a free loopback port, until the runtime is dropped.
pub fn serve(authority: &Authority, host: &str, router: Router) -> (SocketAddr, OwnRuntime) {
    let runtime = OwnRuntime::start("registry");
    let (listener, address) = runtime.listen("127.0.0.1:0");
    let acceptor = TlsAcceptor::from(authority.server_config(&[host]));
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
    (address, runtime)
}

/// The digest of a blob or a manifest.
pub fn digest(blob: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(blob) {
        write!(text, "{byte:02x}").unwrap();
    }
    text
}

/// The password of ECR's user, if the request has one.
pub fn password(headers: &HeaderMap) -> Option<String> {
    let given = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let given = BASE64_STANDARD.decode(given.strip_prefix("Basic ")?).ok()?;
    let given = String::from_utf8(given).ok()?;
    Some(given.strip_prefix("AWS:")?.to_owned())
}

/// The answer to a request without a good password, as ECR gives it.
pub fn unauthorized() -> Response<Body> {
    let challenge = r#"Basic realm="https://registry/",service="ecr.amazonaws.com""#;
    Response::builder()
        .status(StatusCode::UNAUTHORIZED)
        .header(header::WWW_AUTHENTICATE, challenge)
        .header("Docker-Distribution-Api-Version", "registry/2.0")
        .body(Body::from("no basic auth credentials"))
        .unwrap()
}

/// The answer to a good password of a principal that the repository's policy doesn't let pull, as
/// ECR gives it.
pub fn denied(method: &Method, repository: &str) -> Response<Body> {
    let message = format!("no policy allows ecr:BatchGetImage on repository/{repository}");
    error(method, StatusCode::FORBIDDEN, "DENIED", &message)
}

fn error(method: &Method, status: StatusCode, code: &str, message: &str) -> Response<Body> {
    let body = serde_json::json!({"errors": [{"code": code, "message": message}]});
    let body = match *method {
        Method::HEAD => Body::empty(),
        _ => Body::from(body.to_string()),
    };
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .header("Docker-Distribution-Api-Version", "registry/2.0")
        .body(body)
        .unwrap()
}

/// The answer with a document or a blob; to `HEAD` without it.
pub fn found(method: &Method, content_type: &str, body: Vec<u8>) -> Response<Body> {
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

/// The answer with a blob, if the registry has it.
pub fn blob(method: &Method, blob: Option<Vec<u8>>) -> Response<Body> {
    match blob {
        Some(blob) => found(method, "application/octet-stream", blob),
        None => Response::builder()
            .status(StatusCode::NOT_FOUND)
            .body(Body::empty())
            .unwrap(),
    }
}

/// A repository that ECR gives to nobody, or that isn't there, by its name: how ECR answers those who ask for it with a
/// good token, but for [`STALE`].
const REFUSALS: [(&str, StatusCode, &str, &str); 4] = [
    (
        STALE,
        StatusCode::FORBIDDEN,
        "DENIED",
        "Your authorization token has expired. Reauthenticate and try again.",
    ),
    (
        FORBIDDEN,
        StatusCode::FORBIDDEN,
        "DENIED",
        "User: arn:aws:iam::123456789012:user/fake is not authorized to perform: ecr:BatchGetImage on resource: \
         arn:aws:ecr:eu-west-1:123456789012:repository/forbidden because no resource-based policy allows the \
         ecr:BatchGetImage action",
    ),
    (
        ABSENT,
        StatusCode::NOT_FOUND,
        "NAME_UNKNOWN",
        "The repository with name 'absent' does not exist in the registry with id '123456789012'",
    ),
    (
        UNTAGGED,
        StatusCode::NOT_FOUND,
        "MANIFEST_UNKNOWN",
        "Requested image not found",
    ),
];
/// Answers as to a token that has expired.
pub const STALE: &str = "stale";
/// Its policy lets nobody pull.
pub const FORBIDDEN: &str = "forbidden";
/// Doesn't exist.
pub const ABSENT: &str = "absent";
/// Has no such tag.
pub const UNTAGGED: &str = "untagged";

/// Returns ECR's answer to a request for the manifest of a repository that it refuses.
pub fn refusal(method: &Method, path: &str) -> Option<Response<Body>> {
    let (repository, _) = path.strip_prefix("/v2/")?.split_once("/manifests/")?;
    let mut refusals = REFUSALS.iter();
    let (_, status, code, message) = refusals.find(|(name, ..)| *name == repository)?;
    Some(error(method, *status, code, message))
}
