//! Traces: a span for each admission and for its phases, sent to an OTLP collector. Off unless a
//! collector is configured.
//!
//! An ended span goes to a bounded queue, which one thread empties. So a collector that is slow,
//! dead or hostile costs admissions nothing: a span that finds the queue full is dropped and
//! counted.
//!
//! The spans are OpenTelemetry's own rather than `tracing`'s. Spans of `tracing` depend on the
//! log's filter, so that `--log warn` would end the traces, too, and on the log's subscriber, which
//! would format each span for the log as well.

pub mod metrics;

use std::{
    env, fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry::{
    Context, KeyValue, Value,
    propagation::{Extractor, TextMapPropagator as _},
    trace::{
        Span as _, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _,
        TracerProvider as _,
    },
};
use opentelemetry_http::{HttpClient, HttpError};
use opentelemetry_otlp::{
    ExporterBuildError, SpanExporter, WithExportConfig as _, WithHttpConfig as _,
};
use opentelemetry_sdk::{
    Resource,
    error::OTelSdkResult,
    propagation::TraceContextPropagator,
    resource::EnvResourceDetector,
    trace::{
        BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, SpanData,
        SpanProcessor,
    },
};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use thiserror::Error;
use tokio::{
    runtime::Handle,
    task::spawn_blocking,
    time::{Instant, timeout},
};

use self::metrics::{Spans, TraceMetrics};
use crate::telemetry::{
    log::line,
    metrics::Timed,
    phases::{Phase, PhaseTimes},
};

/// The most spans that wait to be sent, those in flight included.
const QUEUE: usize = 2048;
/// The timeout of one call to the collector, from connecting to the response's last byte.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// The limit on the body of a response, in bytes.
const MAX_RESPONSE: usize = 64 * 1024;
/// The least time between two log lines about a failing collector.
const LOG_INTERVAL: Duration = Duration::from_mins(5);
/// The limit on the text of an error in the log, in bytes.
const MAX_ERROR: usize = 300;
/// Environment variables that name a collector.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];
/// Environment variable with the path of the CA certificates to trust for the collector.
const CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";
/// The `service.name` of every trace, unless `OTEL_SERVICE_NAME` has another.
const SERVICE: &str = "ecr-injector";

/// The reason why tracing can't start.
#[derive(Debug, Error)]
pub enum TracesError {
    /// The endpoint, or one of the `OTEL_*` variables, is invalid.
    #[error(transparent)]
    Configuration(#[from] ExporterBuildError),
    /// The CA certificates can't be loaded.
    #[error("the authorities to trust for the collector ({CERTIFICATE})")]
    Trust(#[source] HttpError),
}

/// Starts spans; clones share the queue. The default starts none, and costs nothing.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<SdkTracer>);

/// Sends the spans. Call [`Self::finish`] at the end: an exporter that is dropped discards its
/// queue at once.
#[derive(Debug)]
pub struct Exporter(Option<SdkTracerProvider>);

/// The parent of the spans of phases; clones are the same parent.
#[derive(Debug, Clone, Default)]
pub struct SpanParent(Option<(SdkTracer, SpanContext)>);

/// The span of an admission, as itself and as the parent of the spans of its phases.
#[derive(Debug, Default)]
pub struct Trace {
    /// The span.
    pub span: Span,
    /// The span as a parent.
    pub parent: SpanParent,
}

/// A span in progress, which ends when the value is dropped.
#[derive(Debug, Default)]
pub struct Span(Option<opentelemetry_sdk::trace::Span>);

/// A phase of an admission in progress, timed and traced. The phase ends when the value is dropped,
/// also by a caller that gives up.
#[derive(Debug)]
pub struct InPhase<'a> {
    _timed: Timed<'a>,
    _span: Span,
}

impl Traces {
    /// Sends spans to the collector at `endpoint`, a URL to which `/v1/traces` is added; without an
    /// endpoint, to the collector of the usual environment variables; without those, to none. The
    /// SDK follows the other `OTEL_*` variables.
    pub fn start(
        endpoint: Option<&str>,
        instance: &str,
        metrics: Arc<TraceMetrics>,
    ) -> Result<(Self, Exporter), TracesError> {
        let named = |name: &&str| env::var(name).is_ok_and(|value| !value.is_empty());
        if endpoint.is_none() && !ENDPOINTS.iter().any(named) {
            return Ok((Self::default(), Exporter(None)));
        }
        let mut builder = SpanExporter::builder()
            .with_http()
            .with_http_client(CollectorClient::new()?);
        if let Some(endpoint) = endpoint {
            builder =
                builder.with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')));
        }
        let waiting = Arc::new(AtomicUsize::new(0));
        let exporter = CountingExporter {
            inner: builder.build()?,
            waiting: waiting.clone(),
            metrics: metrics.clone(),
            failures: FailureLog::default(),
        };
        // The SDK drops without a count: its own limit is never reached.
        let config = BatchConfigBuilder::default().with_max_queue_size(2 * QUEUE);
        let processor = BoundedProcessor {
            inner: BatchSpanProcessor::builder(exporter)
                .with_batch_config(config.build())
                .build(),
            waiting,
            metrics,
        };
        let provider = SdkTracerProvider::builder()
            .with_resource(resource(instance))
            .with_span_processor(processor)
            .build();
        let tracer = provider.tracer(SERVICE);
        Ok((Self(Some(tracer)), Exporter(Some(provider))))
    }

    /// Starts a span for an admission. The span continues the API server's trace, if the request is
    /// part of one.
    #[must_use]
    pub fn admission(&self, headers: &HeaderMap) -> Trace {
        let Some(tracer) = &self.0 else {
            return Trace::default();
        };
        let remote = TraceContextPropagator::new().extract(&TraceParent(headers));
        let builder = tracer.span_builder("admission").with_kind(SpanKind::Server);
        let span = tracer.build_with_context(builder, &remote);
        let parent = span
            .is_recording()
            .then(|| (tracer.clone(), span.span_context().clone()));
        Trace {
            span: Span(Some(span)),
            parent: SpanParent(parent),
        }
    }
}

impl SpanParent {
    /// Times a phase of an admission, and traces the phase as a child, until the guard is dropped.
    #[must_use]
    pub fn enter<'a>(&self, phases: &'a PhaseTimes, phase: Phase) -> InPhase<'a> {
        let span = self.0.as_ref().map(|(tracer, parent)| {
            let parent = Context::new().with_remote_span_context(parent.clone());
            tracer.build_with_context(tracer.span_builder(phase.as_str()), &parent)
        });
        InPhase {
            _timed: phases.time(phase),
            _span: Span(span),
        }
    }
}

impl Span {
    /// Returns whether attributes of the span reach anybody.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(opentelemetry::trace::Span::is_recording)
    }

    /// Sets an attribute. The caller bounds values that come from others.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// Sets the span's status to an error.
    pub fn fail(&mut self, why: String) {
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(why));
        }
    }
}

impl Exporter {
    /// Sends the spans in the queue, for at most `limit`, and ends.
    pub async fn finish(mut self, limit: Duration) {
        let Some(provider) = self.0.take() else {
            return;
        };
        let shut_down = spawn_blocking(move || provider.shutdown_with_timeout(limit));
        if !matches!(timeout(limit, shut_down).await, Ok(Ok(Ok(())))) {
            tracing::warn!("exporting the last traces failed");
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        // The SDK would wait for five seconds, while the process has to end at once.
        if let Some(provider) = self.0.take() {
            let _ = provider.shutdown_with_timeout(Duration::ZERO);
        }
    }
}

/// Returns the attributes of this process; the SDK's environment variables override them.
fn resource(instance: &str) -> Resource {
    let defaults = [
        KeyValue::new("service.name", SERVICE),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", instance.to_owned()),
    ];
    let resource = Resource::builder_empty()
        .with_attributes(defaults)
        .with_detector(Box::new(EnvResourceDetector::new()));
    match env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => resource.with_service_name(name),
        _ => resource,
    }
    .build()
}

/// Reads `traceparent` alone: a `tracestate` may be as long as all headers, and would wait in the
/// queue.
struct TraceParent<'a>(&'a HeaderMap);

impl Extractor for TraceParent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let is_read = key == "traceparent";
        let value = self.0.get(key).filter(|_| is_read)?;
        value.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

/// Drops and counts spans while [`QUEUE`] others wait.
#[derive(Debug)]
struct BoundedProcessor {
    inner: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
    metrics: Arc<TraceMetrics>,
}

impl SpanProcessor for BoundedProcessor {
    fn on_start(&self, span: &mut opentelemetry_sdk::trace::Span, context: &Context) {
        self.inner.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        if !span.span_context.is_sampled() {
            return;
        }
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= QUEUE {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            self.metrics.spans(Spans::Dropped, 1);
        } else {
            self.inner.on_end(span);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// Counts the spans that were sent, and logs failures.
struct CountingExporter {
    inner: SpanExporter,
    waiting: Arc<AtomicUsize>,
    metrics: Arc<TraceMetrics>,
    failures: FailureLog,
}

/// The time of the last log line about a failing collector.
#[derive(Default)]
struct FailureLog(Mutex<Option<Instant>>);

impl fmt::Debug for CountingExporter {
    /// Omits the fields: the headers that the exporter sends may hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CountingExporter")
    }
}

impl FailureLog {
    fn record(&self, result: &OTelSdkResult) {
        let mut logged_at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => {
                if logged_at.take().is_some() {
                    tracing::info!("exporting traces works again");
                }
            }
            Err(_) if logged_at.is_some_and(|at| at.elapsed() < LOG_INTERVAL) => {}
            Err(error) => {
                *logged_at = Some(Instant::now());
                let error = error.to_string();
                let error = &*line(&error, MAX_ERROR);
                tracing::warn!(
                    error,
                    "exporting traces failed; dropping them, admissions continue"
                );
            }
        }
    }
}

impl opentelemetry_sdk::trace::SpanExporter for CountingExporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let result = self.inner.export(batch).await;
        self.waiting.fetch_sub(count, Ordering::Relaxed);
        let outcome = if result.is_ok() {
            Spans::Sent
        } else {
            Spans::Failed
        };
        self.metrics.spans(outcome, count);
        self.failures.record(&result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

/// The HTTP client for the collector. Calls run on the runtime of the process: the thread that
/// empties the queue has none.
#[derive(Debug)]
struct CollectorClient {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
}

impl CollectorClient {
    fn new() -> Result<Self, TracesError> {
        let builder = ClientConfig::builder();
        let tls = match env::var_os(CERTIFICATE).filter(|path| !path.is_empty()) {
            // An image may have no CA certificates, and a collector in the cluster often no TLS.
            None => builder.with_native_roots().unwrap_or_else(|_| {
                ClientConfig::builder().with_root_certificates(RootCertStore::empty())
            }),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                let certificates = CertificateDer::pem_file_iter(path)
                    .map_err(|error| TracesError::Trust(error.into()))?;
                for certificate in certificates {
                    let certificate =
                        certificate.map_err(|error| TracesError::Trust(error.into()))?;
                    roots
                        .add(certificate)
                        .map_err(|error| TracesError::Trust(error.into()))?;
                }
                builder.with_root_certificates(roots)
            }
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls.with_no_client_auth())
            .https_or_http()
            .enable_http1()
            .build();
        Ok(Self {
            client: Client::builder(TokioExecutor::new()).build(connector),
            runtime: Handle::current(),
        })
    }
}

impl HttpClient for CollectorClient {
    fn send_bytes<'life, 'future>(
        &'life self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'future>>
    where
        'life: 'future,
        Self: 'future,
    {
        let sent = self.client.request(request.map(Full::new));
        let call = self.runtime.spawn(async {
            let call = async {
                let (head, body) = sent.await?.into_parts();
                let body = Limited::new(body, MAX_RESPONSE).collect().await?;
                Ok(Response::from_parts(head, body.to_bytes()))
            };
            timeout(CALL_TIMEOUT, call).await?
        });
        Box::pin(async { call.await? })
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry_sdk::error::OTelSdkError;

    use super::*;
    use crate::telemetry::log::captured::Log;

    #[tokio::test(start_paused = true)]
    async fn failing_collector_is_logged_now_and_then_and_its_end_once() {
        let log = Log::default();
        let _guard = log.start();
        let failures = FailureLog::default();
        let failed = || {
            let why = format!("no\nFORGED {}", "x".repeat(10_000));
            failures.record(&Err(OTelSdkError::InternalFailure(why)));
        };
        failures.record(&Ok(()));
        for (minutes, lines) in [(0, 1), (1, 1), (3, 1), (1, 2), (4, 2)] {
            tokio::time::advance(Duration::from_mins(minutes)).await;
            failed();
            assert_eq!(log.count("exporting traces failed"), lines);
        }
        assert!(log.count("x") < 3 * MAX_ERROR, "the error is bounded");
        failures.record(&Ok(()));
        failures.record(&Ok(()));
        assert_eq!(log.count("exporting traces works again"), 1);
    }
}
