//! The accept loop: from a listening socket to HTTP/1.1 requests, with every wait bounded.
//!
//! hyper's one header timeout is also its idle limit, and those two must differ: a client that dawdles over a request's
//! head is cut off in seconds, while a kept-alive connection may rest longer than the 90 s for which the API server
//! keeps its own. So hyper gets the idle limit, and the head's time is kept here, around the socket.

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
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use crate::metrics::Metrics;

/// Connections served at the same time; more wait in the socket's backlog.
const MAX_CONNECTIONS: usize = 1024;
/// A TLS handshake, from the first byte to the last.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// A request's head, from its first byte; for a new connection from the beginning.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// A kept-alive connection's rest between two requests. The API server closes its own after 90 s, and does not retry a
/// review that met a closed connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(150);
/// What a request's head may take.
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 64;
/// The pause after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One listener.
pub struct Listener {
    /// Where connections come from.
    pub socket: TcpListener,
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
                    self.metrics.connection_failure("accept");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let connection = Connection {
                tls: self.tls.clone(),
                router: self.router.clone(),
                metrics: self.metrics.clone(),
            };
            let watcher = graceful.watcher();
            tasks.spawn(async move {
                connection.metrics.connections.inc();
                connection.serve(stream, watcher).await;
                connection.metrics.connections.dec();
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

struct Connection {
    tls: Option<TlsAcceptor>,
    router: Router,
    metrics: Arc<Metrics>,
}

impl Connection {
    async fn serve(&self, stream: TcpStream, watcher: Watcher) {
        // A failure only means that small answers may wait for an acknowledgement.
        let _ = stream.set_nodelay(true);
        let Some(tls) = &self.tls else {
            return self.serve_http(stream, watcher).await;
        };
        match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => self.serve_http(stream, watcher).await,
            Ok(Err(error)) => {
                tracing::debug!(%error, "a TLS handshake failed");
                self.metrics.connection_failure("handshake");
            }
            Err(_) => self.metrics.connection_failure("handshake_timeout"),
        }
    }

    async fn serve_http<S>(&self, stream: S, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let phase = Arc::new(Phase::default());
        let guarded = Guarded {
            inner: stream,
            phase: phase.clone(),
            timer: Box::pin(sleep(HEAD_TIMEOUT)),
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

/// A stream that fails a read when a request's head takes too long.
struct Guarded<S> {
    inner: S,
    phase: Arc<Phase>,
    timer: Pin<Box<Sleep>>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.phase.is(HEAD) && this.timer.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the request's head came too slowly",
            )));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut this.inner).poll_read(cx, buffer);
        if this.phase.is(IDLE) && buffer.filled().len() > before {
            this.phase.set(HEAD);
            this.timer.as_mut().reset(Instant::now() + HEAD_TIMEOUT);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, buffers)
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
