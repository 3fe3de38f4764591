//! The accept loop: from a listening socket to HTTP/1.1 requests, with every wait bounded.
//!
//! hyper's one header timeout is also its idle limit, and those two must differ: a client that dawdles over a request's
//! head is cut off in seconds, while a kept-alive connection may rest longer than the 90 s for which the API server
//! keeps its own. So hyper gets the idle limit, and the head's time is kept here, around the stream. So is the time that
//! an answer may wait for a client that doesn't read it, for which hyper has no limit at all.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body};
use futures::future::BoxFuture;
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::Semaphore,
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use crate::metrics::Metrics;

/// Connections served at the same time; more wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 1024;
/// A TLS handshake, from the first byte to the last.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A request's head, from its first byte; for a new connection from the beginning, its handshake included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A kept-alive connection's rest between two requests. The API server closes its own after 90 s, and does not retry a
/// review that met a closed connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(150);
/// An answer, from when the client's window is full until all of it is sent.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// What a request's head may take.
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 64;
/// The pause after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One listener.
pub struct Listener {
    /// Where connections come from.
    pub socket: TcpListener,
    /// How each of them is served.
    pub connection: Connection,
}

/// How a connection is served.
#[derive(Clone)]
pub struct Connection {
    /// `None` serves plain HTTP.
    pub tls: Option<TlsAcceptor>,
    /// What answers.
    pub router: Router,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Listener {
    /// Accepts until `stop`, then lets the requests under way end, for at most `grace`.
    pub async fn run(self, stop: CancellationToken, tasks: TaskTracker, grace: Duration) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let graceful = GracefulShutdown::new();
        loop {
            let next = async {
                // The semaphore is never closed.
                let permit = permits.clone().acquire_owned().await;
                (permit, self.socket.accept().await)
            };
            let Some((permit, accepted)) = stop.run_until_cancelled(next).await else {
                break;
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    self.connection.metrics.connection_failure("accept");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // A failure only means that small answers may wait for an acknowledgement.
            let _ = stream.set_nodelay(true);
            let (connection, watcher) = (self.connection.clone(), graceful.watcher());
            tasks.spawn(async move {
                connection.serve(stream, watcher).await;
                drop(permit);
            });
        }
        drop(self.socket);
        if timeout(grace, graceful.shutdown()).await.is_err() {
            tracing::warn!(
                seconds = grace.as_secs(),
                "connections were still busy when their time to finish was over"
            );
        }
    }
}

impl Connection {
    /// Serves one connection to its end. Through `watcher` it learns that it is to end after the request under way.
    pub async fn serve<S>(&self, stream: S, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _open = Open::count(&self.metrics);
        let head_by = Instant::now() + HEAD_TIMEOUT;
        let Some(tls) = &self.tls else {
            return self.serve_http(stream, watcher, head_by).await;
        };
        match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.serve_http(stream, watcher, head_by).await,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed");
                self.metrics.connection_failure("handshake");
            }
            Err(_) => self.metrics.connection_failure("handshake_timeout"),
        }
    }

    async fn serve_http<S>(&self, stream: S, watcher: Watcher, head_by: Instant)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let phase = Arc::new(Phase::default());
        let guarded = Guarded {
            inner: stream,
            phase: phase.clone(),
            head: Box::pin(sleep_until(head_by)),
            answer: None,
        };
        let service = Requests {
            router: self.router.clone(),
            phase,
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(guarded), service);
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%error, "a connection ended with an error");
            self.metrics
                .connection_failure(if error.is_timeout() { "idle" } else { "http" });
        }
    }
}

/// Counts a connection as open until it is dropped, also by a panic.
struct Open<'a>(&'a Metrics);

impl<'a> Open<'a> {
    fn count(metrics: &'a Metrics) -> Self {
        metrics.connections.inc();
        Self(metrics)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

/// Where a connection stands between two requests.
#[derive(Default)]
struct Phase(AtomicU8);

const HEAD: u8 = 0;
const BUSY: u8 = 1;
const IDLE: u8 = 2;

impl Phase {
    fn is(&self, phase: u8) -> bool {
        self.0.load(Ordering::Relaxed) == phase
    }

    fn set(&self, phase: u8) {
        self.0.store(phase, Ordering::Relaxed);
    }
}

/// A stream that fails a read when a request's head takes too long, and a write when an answer does.
struct Guarded<S> {
    inner: S,
    phase: Arc<Phase>,
    head: Pin<Box<Sleep>>,
    /// Runs while bytes of an answer wait for the client to read.
    answer: Option<Pin<Box<Sleep>>>,
}

impl<S> Guarded<S> {
    /// Gives up a write that has waited too long.
    fn bound<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_pending() {
            let timer = self
                .answer
                .get_or_insert_with(|| Box::pin(sleep(ANSWER_TIMEOUT)));
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(too_slow("the answer was read too slowly")));
            }
        }
        result
    }
}

fn too_slow(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.phase.is(HEAD) && this.head.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(too_slow("the request's head came too slowly")));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut this.inner).poll_read(cx, buffer);
        if this.phase.is(IDLE) && buffer.filled().len() > before {
            this.phase.set(HEAD);
            this.head.as_mut().reset(Instant::now() + HEAD_TIMEOUT);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(cx, buffer);
        this.bound(cx, result)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_flush(cx);
        if result.is_ready() {
            this.answer = None;
        }
        this.bound(cx, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_shutdown(cx);
        this.bound(cx, result)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write_vectored(cx, buffers);
        this.bound(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// Hands requests to the router and notes when their head is there and when they are answered.
struct Requests {
    router: Router,
    phase: Arc<Phase>,
}

impl Service<http::Request<Incoming>> for Requests {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        self.phase.set(BUSY);
        let (router, phase) = (self.router.clone(), self.phase.clone());
        Box::pin(async move {
            let response = router.oneshot(request.map(Body::new)).await;
            phase.set(IDLE);
            response
        })
    }
}
