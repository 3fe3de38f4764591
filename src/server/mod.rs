//! The HTTP of the admission listener: one path, one method, one content type, and a limit for each
//! resource. What a review holds is the [`ReviewHandler`]'s.

pub mod accept;
pub mod admin;
mod body;
mod connection_limit;
mod connection_state;
pub mod metrics;
mod request_body;
mod timeout_stream;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
    routing::post,
};
use futures::FutureExt as _;
use http::{HeaderMap, StatusCode, Uri, header::CONTENT_TYPE};
use tokio::time::Instant;

pub use self::body::{BODY_BUDGET_BYTES, MAX_BODY_BYTES};
use self::{
    body::{Bodies, Unread},
    metrics::{ServerMetrics, Shed},
};
use crate::telemetry::{
    log::line,
    log_limit::LogLimit,
    otel::{Trace, Traces},
};

/// The path of the webhook configuration.
pub const PATH: &str = "/mutate";
/// The API server's timeout if the URL has none; the API server always appends `?timeout=`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The limits of a webhook configuration's `timeoutSeconds`.
const TIMEOUT_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The part of the timeout that is reserved for the network and a busy API server, as a divisor.
const MARGIN_SHARE: u32 = 4;
/// The longest error in a response. A parser's error may quote its input, which the client chooses.
const MAX_ERROR_CHARS: usize = 300;

/// The limit of the lines that anybody can cause who reaches a port.
static LOG_LIMIT: LogLimit = LogLimit::new();

/// Handles the body of a review.
pub trait ReviewHandler: Send + Sync + 'static {
    /// Returns the response to a review, before `deadline`; or for the client why the body is none.
    fn review(
        &self,
        body: &[u8],
        started: Instant,
        deadline: Instant,
        trace: &mut Trace,
    ) -> impl Future<Output = Result<Vec<u8>, String>> + Send;
}

/// The handler of the admission listener's requests.
pub struct Admission<H> {
    handler: H,
    metrics: Arc<ServerMetrics>,
    traces: Traces,
    bodies: Bodies,
}

/// Why a request gets no review as its response: the status, and the reason as a metric's label and
/// as a text.
type Rejection = (StatusCode, &'static str, String);

impl<H: ReviewHandler> Admission<H> {
    /// Returns a handler of requests that passes their bodies to `handler`.
    #[must_use]
    pub fn new(handler: H, metrics: Arc<ServerMetrics>) -> Self {
        Self {
            handler,
            metrics,
            traces: Traces::default(),
            bodies: Bodies::new(),
        }
    }

    /// Adds traces: each admission becomes a span.
    #[must_use]
    pub fn with_traces(self, traces: Traces) -> Self {
        Self { traces, ..self }
    }

    /// Returns the routes.
    pub fn router(self) -> Router {
        Router::new()
            .route(PATH, post(mutate::<H>))
            .fallback(unknown_path::<H>)
            .method_not_allowed_fallback(unknown_method::<H>)
            .with_state(Arc::new(self))
    }

    async fn handle(&self, request: Request) -> Result<Vec<u8>, Rejection> {
        let _in_flight = InFlight::count(&self.metrics);
        let mut trace = self.traces.admission(request.headers());
        let started = Instant::now();
        let deadline = started + without_margin(timeout_of(request.uri()));
        if !is_json(request.headers()) {
            let text = "the Content-Type must be application/json".to_owned();
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", text));
        }
        let body = self.bodies.read(request, started, deadline).await;
        let body = body.map_err(|unread| self.unread(unread))?;
        let review = self.handler.review(&body, started, deadline, &mut trace);
        let review = AssertUnwindSafe(review).catch_unwind().await;
        match review {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                let text = error.chars().take(MAX_ERROR_CHARS).collect();
                Err((StatusCode::BAD_REQUEST, "not_a_review", text))
            }
            Err(_) => {
                self.metrics.panics.inc();
                let text =
                    "ecr-injector failed on this request; its log has the details".to_owned();
                Err((StatusCode::INTERNAL_SERVER_ERROR, "panic", text))
            }
        }
    }

    /// Returns the rejection of a request whose body was not read.
    fn unread(&self, unread: Unread) -> Rejection {
        match unread {
            Unread::TooLarge => {
                let text = format!("the body may have at most {MAX_BODY_BYTES} bytes");
                (StatusCode::PAYLOAD_TOO_LARGE, "too_large", text)
            }
            Unread::Incomplete => {
                let text = "the body ended early".to_owned();
                (StatusCode::BAD_REQUEST, "incomplete_body", text)
            }
            Unread::TooSlow => {
                let text = "the body was sent too slowly".to_owned();
                (StatusCode::REQUEST_TIMEOUT, "body_timeout", text)
            }
            Unread::NoMemory => {
                self.metrics.shed(Shed::Body);
                let text = "too many bodies in flight".to_owned();
                (StatusCode::SERVICE_UNAVAILABLE, "too_many_bodies", text)
            }
        }
    }

    /// Counts and logs a rejected request, and returns the response that says why.
    fn reject(&self, (status, reason, text): Rejection) -> Response {
        self.metrics.refused_request(reason);
        if let Some(omitted) = LOG_LIMIT.admit(reason) {
            let shown = &*line(&text, text.len());
            tracing::warn!(%status, reason, error = shown, omitted, "rejected a request");
        }
        (status, text + "\n").into_response()
    }
}

/// Counts a request as in flight until dropped, also when the client disconnects.
struct InFlight<'a>(&'a ServerMetrics);

impl<'a> InFlight<'a> {
    fn count(metrics: &'a ServerMetrics) -> Self {
        metrics.in_flight.inc();
        Self(metrics)
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.dec();
    }
}

async fn mutate<H: ReviewHandler>(
    State(admission): State<Arc<Admission<H>>>,
    request: Request,
) -> Response {
    match admission.handle(request).await {
        Ok(response) => {
            ([(CONTENT_TYPE, "application/json")], Body::from(response)).into_response()
        }
        Err(rejection) => admission.reject(rejection),
    }
}

async fn unknown_path<H: ReviewHandler>(State(admission): State<Arc<Admission<H>>>) -> Response {
    let text = format!("reviews are sent to {PATH}");
    admission.reject((StatusCode::NOT_FOUND, "not_found", text))
}

async fn unknown_method<H: ReviewHandler>(State(admission): State<Arc<Admission<H>>>) -> Response {
    let text = "reviews are sent with POST".to_owned();
    admission.reject((StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text))
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

/// Returns the timeout that the API server appended (`?timeout=5s`), or the default.
fn timeout_of(uri: &Uri) -> Duration {
    let query = uri.query().unwrap_or_default();
    let text = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("timeout="))
        .unwrap_or_default();
    let seconds = text
        .strip_suffix('s')
        .and_then(|number| number.parse::<f64>().ok());
    let duration = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration.map_or(DEFAULT_TIMEOUT, |duration| {
        duration.clamp(TIMEOUT_BOUNDS.0, TIMEOUT_BOUNDS.1)
    })
}

/// Returns the API server's timeout without the margin.
fn without_margin(timeout: Duration) -> Duration {
    timeout / MARGIN_SHARE * (MARGIN_SHARE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadline_is_the_timeout_in_the_url_with_a_margin() {
        for (uri, milliseconds) in [
            ("/mutate?timeout=10s", 7_500),
            ("/mutate?timeout=1s", 750),
            ("/mutate?x=y&timeout=2.5s", 1_875),
            ("/mutate?timeout=3600s", 22_500),
            ("/mutate?timeout=0s", 750),
            ("/mutate?timeout=-1s", 7_500),
            ("/mutate?timeout=NaNs", 7_500),
            ("/mutate?timeout=", 7_500),
            ("/mutate", 7_500),
        ] {
            let uri: Uri = uri.parse().expect("a URI");
            assert_eq!(
                without_margin(timeout_of(&uri)),
                Duration::from_millis(milliseconds),
                "{uri}"
            );
        }
    }

    #[test]
    fn content_type_may_have_parameters_and_any_case() {
        for (value, json) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("text/plain", false),
            ("application/json-patch+json", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, value.parse().expect("a value"))]);
            assert_eq!(is_json(&headers), json, "{value}");
        }
    }
}
