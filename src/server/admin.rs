//! The admin listener: liveness, readiness and metrics, in plain HTTP and apart from admission.

use std::sync::Arc;

use axum::{
    Router,
    extract::State,
    response::{IntoResponse as _, Response},
    routing::get,
};
use http::{StatusCode, Uri, header::CONTENT_TYPE};

use crate::{process::readiness::Readiness, telemetry::metrics::Registry};

const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Clone)]
struct Admin {
    readiness: Readiness,
    registry: Arc<Registry>,
}

/// Returns the routes: `/livez` shows that the process responds, `/readyz` whether it should get
/// traffic (`?verbose` why), and `/metrics` the metrics.
pub fn router(readiness: Readiness, registry: Arc<Registry>) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(show_metrics))
        .with_state(Admin {
            readiness,
            registry,
        })
}

async fn readyz(State(admin): State<Admin>, uri: Uri) -> Response {
    let ready = admin.readiness.is_ready();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let verbose = uri.query().is_some_and(|query| {
        query
            .split('&')
            .any(|key| key == "verbose" || key == "verbose=")
    });
    if ready && !verbose {
        (status, "ok\n").into_response()
    } else {
        (status, admin.readiness.to_text()).into_response()
    }
}

async fn show_metrics(State(admin): State<Admin>) -> Response {
    ([(CONTENT_TYPE, METRICS_TYPE)], admin.registry.to_text()).into_response()
}
