//! The admission listener's HTTP: one path, one method, one content type, and a bound on everything.

pub mod accept;
pub mod admin;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse as _, Response},
    routing::post,
};
use bytes::Bytes;
use futures::FutureExt as _;
use http::{
    HeaderMap, StatusCode, Uri,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};

use crate::{metrics::Metrics, webhook::Webhook};

/// The path that the registration names.
pub const PATH: &str = "/mutate";
/// The largest body: API objects reach 3 MiB, and a review of an UPDATE holds two.
pub const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
/// All bodies in flight together.
pub const BODY_BUDGET_BYTES: usize = 64 * 1024 * 1024;
/// The budget is counted in these.
const BUDGET_UNIT_BYTES: usize = 1024;
/// What the API server waits if the registration doesn't say; it always appends `?timeout=`.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);
/// The bounds of a registration's `timeoutSeconds`.
const TIMEOUT_BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// The part of the timeout that is left for the network and a busy API server, as a divisor.
const MARGIN_SHARE: u32 = 4;

/// The admission listener's handler.
pub struct Admission {
    webhook: Webhook,
    metrics: Arc<Metrics>,
    budget: Semaphore,
}

/// Why a request is not answered with a review: its status, and the reason as a metric's label and as a text.
type Refusal = (StatusCode, &'static str, String);

impl Admission {
    /// A handler over a webhook.
    #[must_use]
    pub fn new(webhook: Webhook, metrics: Arc<Metrics>) -> Self {
        Self {
            webhook,
            metrics,
            budget: Semaphore::new(BODY_BUDGET_BYTES / BUDGET_UNIT_BYTES),
        }
    }

    /// The routes.
    pub fn router(self) -> Router {
        Router::new()
            .route(PATH, post(mutate))
            .with_state(Arc::new(self))
    }

    async fn handle(&self, request: Request) -> Result<Vec<u8>, Refusal> {
        let started = Instant::now();
        let deadline = started + allowed(timeout_of(request.uri()));
        if !is_json(request.headers()) {
            let text = "the Content-Type must be application/json".to_owned();
            return Err((StatusCode::UNSUPPORTED_MEDIA_TYPE, "content_type", text));
        }
        let (_permit, body) = self.read(request, deadline).await?;
        let review = AssertUnwindSafe(self.webhook.review(&body, started, deadline))
            .catch_unwind()
            .await;
        match review {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err((StatusCode::BAD_REQUEST, "not_a_review", error.to_string())),
            Err(_) => {
                self.metrics.panics.inc();
                let text = "ecr-injector failed on this request; its log has the place".to_owned();
                Err((StatusCode::INTERNAL_SERVER_ERROR, "panic", text))
            }
        }
    }

    /// Reads the body, after its place in the budget is taken: one of unknown length takes the most it may have.
    async fn read(
        &self,
        request: Request,
        deadline: Instant,
    ) -> Result<(SemaphorePermit<'_>, Bytes), Refusal> {
        let too_large = || {
            let text = format!("the body may have at most {MAX_BODY_BYTES} bytes");
            (StatusCode::PAYLOAD_TOO_LARGE, "too_large", text)
        };
        let length = length_of(request.headers()).unwrap_or(MAX_BODY_BYTES);
        if length > MAX_BODY_BYTES {
            return Err(too_large());
        }
        let units = u32::try_from(length.div_ceil(BUDGET_UNIT_BYTES)).unwrap_or(u32::MAX);
        let permit = timeout_at(deadline, self.budget.acquire_many(units)).await;
        let Ok(Ok(permit)) = permit else {
            let text = "too many bodies in flight".to_owned();
            return Err((StatusCode::SERVICE_UNAVAILABLE, "budget", text));
        };
        let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect();
        match timeout_at(deadline, body).await {
            Ok(Ok(body)) => Ok((permit, body.to_bytes())),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
            Ok(Err(_)) => Err((
                StatusCode::BAD_REQUEST,
                "broken_body",
                "the body ended early".to_owned(),
            )),
            Err(_) => Err((
                StatusCode::REQUEST_TIMEOUT,
                "slow_body",
                "the body came too slowly".to_owned(),
            )),
        }
    }
}

async fn mutate(State(admission): State<Arc<Admission>>, request: Request) -> Response {
    match admission.handle(request).await {
        Ok(answer) => ([(CONTENT_TYPE, "application/json")], Body::from(answer)).into_response(),
        Err((status, reason, text)) => {
            admission.metrics.refused_request(reason);
            tracing::warn!(%status, reason, text, "a request was not answered with a review");
            (status, text + "\n").into_response()
        }
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

fn length_of(headers: &HeaderMap) -> Option<usize> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What the API server appended: `?timeout=5s`. Anything else is the default.
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

/// How much of the API server's timeout we use.
fn allowed(timeout: Duration) -> Duration {
    timeout - timeout / MARGIN_SHARE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_follows_the_timeout_in_the_url_with_a_margin() {
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
                allowed(timeout_of(&uri)),
                Duration::from_millis(milliseconds),
                "{uri}"
            );
        }
    }

    #[test]
    fn a_content_type_may_have_parameters_and_any_case() {
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
