//! The calls that a warm webhook has made once: an API server that knows one namespace, which is opted in, and the key
//! that seals states. A real one would be noise in the measurement, and the test suite has it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use axum::extract::{Query, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, patch};
use axum::{Router, body::Bytes};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ecr_injector::pull_secret::seal::key::KEY_BYTES;
use ecr_injector::pull_secret::state_key::DEFAULT_NAME;
use ecr_injector::pull_secret::state_key::plan::{CREATED_AT, CURRENT, SECRET_TYPE};
use ecr_injector::{
    cluster::ownership::{MANAGED_BY, MANAGED_BY_LABEL},
    pull_secret::to_the_second,
};
use http::{StatusCode, header::CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::support::installation::{NAME, OPT_IN};
use crate::support::own_runtime::OwnRuntime;

/// The namespace that is there.
pub const NAMESPACE: &str = "payments";
/// As long as a UID is.
const UID: &str = "7c1b0e5e-6f0a-4a5e-8f0e-9b8c1d2e3f40";

/// Serves until it is dropped.
pub struct ApiServer {
    address: SocketAddr,
    calls: Arc<AtomicUsize>,
    _runtime: OwnRuntime,
}

impl ApiServer {
    pub fn start() -> Self {
        let calls = Arc::<AtomicUsize>::default();
        let runtime = OwnRuntime::start("api-server");
        let (listener, address) = runtime.listen("127.0.0.1:0");
        let namespace = json!({"metadata": {
            "name": NAMESPACE, "uid": UID, "resourceVersion": "1", "labels": {OPT_IN.0: OPT_IN.1},
        }});
        let key = json!({
            "type": SECRET_TYPE,
            "metadata": {
                "name": DEFAULT_NAME, "namespace": NAME, "uid": UID, "resourceVersion": "1",
                "labels": {MANAGED_BY_LABEL: MANAGED_BY},
                "annotations": {CREATED_AT: Timestamp::now().to_string()},
            },
            "data": {CURRENT: BASE64_STANDARD.encode([7; KEY_BYTES])},
        });
        let router = Router::new()
            .route(
                "/api/v1/namespaces",
                get(async |watch| answer(watch, &[namespace])),
            )
            .route("/api/v1/secrets", get(async |watch| answer(watch, &[])))
            .route(
                "/api/v1/serviceaccounts",
                get(async |watch| answer(watch, &[])),
            )
            .route(
                "/api/v1/namespaces/{namespace}/secrets",
                get(async |watch| answer(watch, &[key])),
            )
            .route(
                "/api/v1/namespaces/{namespace}/secrets/{name}",
                patch(apply),
            )
            .with_state(Arc::clone(&calls));
        runtime.spawn(serve(listener, router));
        Self {
            address,
            calls,
            _runtime: runtime,
        }
    }

    pub fn kubeconfig(&self) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "bench", "cluster": {"server": format!("http://{}", self.address)}}],
            "users": [{"name": "bench", "user": {}}],
            "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
            "current-context": "bench",
        })
    }

    /// Calls other than lists, watches and dry runs.
    pub fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

async fn serve(listener: TcpListener, router: Router) {
    loop {
        let Ok((connection, _)) = listener.accept().await else {
            continue;
        };
        let service = TowerToHyperService::new(router.clone());
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(connection), service));
    }
}

type Parameters = Query<std::collections::HashMap<String, String>>;

/// A list of the metadata, or a watch on which nothing ever happens.
fn answer(Query(parameters): Parameters, items: &[Value]) -> Response {
    if parameters.contains_key("sendInitialEvents") {
        let message = "sendInitialEvents is forbidden for watch";
        let status = json!({
            "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Invalid",
            "message": message, "code": 422,
        });
        let code = StatusCode::UNPROCESSABLE_ENTITY;
        let kind = [(CONTENT_TYPE, "application/json")];
        return (code, kind, status.to_string()).into_response();
    }
    let body = if parameters.contains_key("watch") {
        Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>())
    } else {
        let list = json!({
            "apiVersion": "meta.k8s.io/v1",
            "kind": "PartialObjectMetadataList",
            "metadata": {"resourceVersion": "1"},
            "items": items,
        });
        Body::from(list.to_string())
    };
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

/// Takes whatever is applied, as a new object.
async fn apply(
    State(calls): State<Arc<AtomicUsize>>,
    Query(parameters): Parameters,
    body: Bytes,
) -> Response {
    if !parameters.contains_key("dryRun") {
        calls.fetch_add(1, Ordering::Relaxed);
    }
    let mut object: Value = serde_json::from_slice(&body).unwrap();
    object["metadata"]["uid"] = json!(UID);
    object["metadata"]["creationTimestamp"] = json!(to_the_second(Timestamp::now()));
    object["metadata"]["resourceVersion"] = json!("2");
    ([(CONTENT_TYPE, "application/json")], object.to_string()).into_response()
}
