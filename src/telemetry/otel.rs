//! Traces: a span for each admission and for its phases, sent to an OTLP collector. Off unless somebody names one.
//!
//! A span is made where the work is, handed to a bounded queue and forgotten; one thread empties the queue. So a collector
//! that is slow, dead or hostile costs admissions nothing: what finds the queue full is dropped and counted.
//!
//! The spans are OpenTelemetry's own rather than `tracing`'s: those go by the log's filter, so that `--log warn` would end
//! the traces too, and by its subscriber, so that each would be formatted for the log as well.

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

/// Spans that may wait to be sent, those on their way included.
const QUEUE: usize = 2048;
/// How long one call to the collector may take, from connecting to the answer's last byte.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// What an answer may hold, in bytes.
const MAX_ANSWER: usize = 64 * 1024;
/// How often it is said that the collector fails, at most.
const COMPLAIN_EVERY: Duration = Duration::from_mins(5);
/// What is said of its failure, in bytes.
const MAX_COMPLAINT: usize = 300;
/// The variables that name a collector.
const ENDPOINTS: [&str; 2] = [
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];
/// The variable that names the authorities to trust for the collector.
const CERTIFICATE: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";
/// What every trace says that it is from, unless `OTEL_SERVICE_NAME` says otherwise.
const SERVICE: &str = "ecr-injector";

/// Why there can be no traces.
#[derive(Debug, Error)]
pub enum TracesError {
    /// The endpoint, or one of the `OTEL_*` variables, can't be.
    #[error("{0}")]
    Configuration(#[from] ExporterBuildError),
    /// No authority to trust.
    #[error("the authorities to trust for the collector ({CERTIFICATE}): {0}")]
    Trust(String),
}

/// Makes spans; clones share the queue. The default makes none, and costs nothing.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<SdkTracer>);

/// What sends the spans. To be finished at the end; dropped, it lets go of what it has at once.
#[derive(Debug)]
pub struct Exporter(Option<SdkTracerProvider>);

/// Where spans are to hang; clones are the same place.
#[derive(Debug, Clone, Default)]
pub struct SpanParent(Option<(SdkTracer, SpanContext)>);

/// An admission's own span, and the place where those of its phases hang.
#[derive(Debug, Default)]
pub struct Trace {
    /// The span.
    pub span: Span,
    /// The place.
    pub place: SpanParent,
}

/// A span under way; it ends when it is dropped.
#[derive(Debug, Default)]
pub struct Span(Option<opentelemetry_sdk::trace::Span>);

/// A phase of an admission under way, timed and traced; it ends when it is dropped, also by whoever gives up.
#[derive(Debug)]
pub struct InPhase<'a> {
    _timed: Timed<'a>,
    _span: Span,
}

impl Traces {
    /// Sends spans to the collector at `endpoint`, a URL to which `/v1/traces` is added; without it, to the one that the
    /// usual variables name; without those, to none. The other `OTEL_*` variables are obeyed as the SDK does.
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
            .with_http_client(Collector::new()?);
        if let Some(endpoint) = endpoint {
            builder =
                builder.with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')));
        }
        let waiting = Arc::new(AtomicUsize::new(0));
        let exporter = Counted {
            inner: builder.build()?,
            waiting: waiting.clone(),
            metrics: metrics.clone(),
            complaint: Complaint::default(),
        };
        // Its own bound is never reached: it drops without a count.
        let config = BatchConfigBuilder::default().with_max_queue_size(2 * QUEUE);
        let processor = Bounded {
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

    /// A span for an admission. It continues the API server's trace, if the request is part of one.
    #[must_use]
    pub fn admission(&self, headers: &HeaderMap) -> Trace {
        let Some(tracer) = &self.0 else {
            return Trace::default();
        };
        let theirs = TraceContextPropagator::new().extract(&Parent(headers));
        let builder = tracer.span_builder("admission").with_kind(SpanKind::Server);
        let span = tracer.build_with_context(builder, &theirs);
        let place = span
            .is_recording()
            .then(|| (tracer.clone(), span.span_context().clone()));
        Trace {
            span: Span(Some(span)),
            place: SpanParent(place),
        }
    }
}

impl SpanParent {
    /// Times a phase of an admission, and traces it here, until what is returned is dropped.
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
    /// Whether anybody will see what is set.
    #[must_use]
    pub fn is_recording(&self) -> bool {
        self.0
            .as_ref()
            .is_some_and(opentelemetry::trace::Span::is_recording)
    }

    /// Says something of it. What came from others is to be bounded already.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(span) = &mut self.0 {
            span.set_attribute(KeyValue::new(key, value));
        }
    }

    /// Says that it failed.
    pub fn fail(&mut self, why: String) {
        if let Some(span) = &mut self.0 {
            span.set_status(Status::error(why));
        }
    }
}

impl Exporter {
    /// Sends what waits, and ends; for so long at most.
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
        // The SDK would wait for five seconds, and whoever drops this was told to end at once.
        if let Some(provider) = self.0.take() {
            let _ = provider.shutdown_with_timeout(Duration::ZERO);
        }
    }
}

/// Who we are, in the words of the SDK's own variables where they say it.
fn resource(instance: &str) -> Resource {
    let ours = [
        KeyValue::new("service.name", SERVICE),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", instance.to_owned()),
    ];
    let resource = Resource::builder_empty()
        .with_attributes(ours)
        .with_detector(Box::new(EnvResourceDetector::new()));
    match env::var("OTEL_SERVICE_NAME") {
        Ok(name) if !name.is_empty() => resource.with_service_name(name),
        _ => resource,
    }
    .build()
}

/// The one header of a request that is read. A `tracestate` may be as long as a head, and would wait in the queue.
struct Parent<'a>(&'a HeaderMap);

impl Extractor for Parent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let is_read = key == "traceparent";
        let value = self.0.get(key).filter(|_| is_read)?;
        value.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent"]
    }
}

/// Lets so many spans wait, and no more.
#[derive(Debug)]
struct Bounded {
    inner: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
    metrics: Arc<TraceMetrics>,
}

impl SpanProcessor for Bounded {
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

/// Counts what was sent, and says now and then that it can't be.
struct Counted {
    inner: SpanExporter,
    waiting: Arc<AtomicUsize>,
    metrics: Arc<TraceMetrics>,
    complaint: Complaint,
}

/// When it was last said that the collector fails.
#[derive(Default)]
struct Complaint(Mutex<Option<Instant>>);

impl fmt::Debug for Counted {
    /// The headers that the exporter sends may be somebody's credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counted")
    }
}

impl Complaint {
    fn record(&self, result: &OTelSdkResult) {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match result {
            Ok(()) => {
                if said.take().is_some() {
                    tracing::info!("exporting traces works again");
                }
            }
            Err(_) if said.is_some_and(|at| at.elapsed() < COMPLAIN_EVERY) => {}
            Err(error) => {
                *said = Some(Instant::now());
                let error = error.to_string();
                let error = &*line(&error, MAX_COMPLAINT);
                tracing::warn!(
                    error,
                    "exporting traces failed; dropping them, admissions continue"
                );
            }
        }
    }
}

impl opentelemetry_sdk::trace::SpanExporter for Counted {
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
        self.complaint.record(&result);
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

/// How the collector is reached: on our own runtime, as the thread that empties the queue has none.
#[derive(Debug)]
struct Collector {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    runtime: Handle,
}

impl Collector {
    fn new() -> Result<Self, TracesError> {
        let builder = ClientConfig::builder();
        let trust = |error: &dyn fmt::Display| TracesError::Trust(error.to_string());
        let tls = match env::var_os(CERTIFICATE).filter(|path| !path.is_empty()) {
            // An image may have none, and a collector in the cluster is often asked in the clear.
            None => builder.with_native_roots().unwrap_or_else(|_| {
                ClientConfig::builder().with_root_certificates(RootCertStore::empty())
            }),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                let certificates =
                    CertificateDer::pem_file_iter(path).map_err(|error| trust(&error))?;
                for certificate in certificates {
                    let certificate = certificate.map_err(|error| trust(&error))?;
                    roots.add(certificate).map_err(|error| trust(&error))?;
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

impl HttpClient for Collector {
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
                let body = Limited::new(body, MAX_ANSWER).collect().await?;
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
    async fn that_the_collector_fails_is_said_once_in_a_while_and_that_it_works_again_once() {
        let log = Log::default();
        let _guard = log.start();
        let complaint = Complaint::default();
        let failed = || {
            let why = format!("no\nFORGED {}", "x".repeat(10_000));
            complaint.record(&Err(OTelSdkError::InternalFailure(why)));
        };
        complaint.record(&Ok(()));
        for (minutes, said) in [(0, 1), (1, 1), (3, 1), (1, 2), (4, 2)] {
            tokio::time::advance(Duration::from_mins(minutes)).await;
            failed();
            assert_eq!(log.count("exporting traces failed"), said);
        }
        assert!(log.count("x") < 3 * MAX_COMPLAINT, "the collector's words");
        complaint.record(&Ok(()));
        complaint.record(&Ok(()));
        assert_eq!(log.count("exporting traces works again"), 1);
    }
}
