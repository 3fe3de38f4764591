//! The accept loop: from a listening socket to HTTP/1.1 requests, with every wait bounded.
//!
//! hyper's one header timeout is also its idle timeout, and those two must differ: a client that
//! sends a request's head slowly is cut off in seconds, while a kept-alive connection may be idle
//! longer than the 90 s for which the API server keeps its own. So hyper gets the idle timeout, and
//! the stream around it has the timeout of the head. The stream also has the timeout of a response
//! that the client doesn't read, for which hyper has none.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body};
use futures::future::BoxFuture;
use http::{HeaderValue, header::CONNECTION};
use hyper::{body::Incoming, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulShutdown, Watcher},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::metrics::{Handshake, ServerMetrics, Shed};

/// The most connections at the same time. One more replaces the one that is least in use.
pub const MAX_CONNECTIONS: usize = 1024;
/// The timeout of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// The timeout of a request's head, from its first byte; on a new connection from its start, with
/// the handshake.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a kept-alive connection may be idle. The API server closes its own after 90 s, and does
/// not retry a review that met a closed connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(150);
/// The timeout of a response, from when the client's window is full until all of it is sent.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest head of a request.
const MAX_HEAD_BYTES: usize = 64 * 1024;
const MAX_HEADERS: usize = 64;
/// How long a new connection waits for a slot before it tries again to close an idle connection.
const SLOT_RETRY: Duration = Duration::from_millis(50);
/// The pause after an accept that failed, as without free file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A listener and the limit of its connections.
pub struct Listener {
    /// The listening socket.
    pub socket: TcpListener,
    /// The most connections at the same time.
    pub limit: usize,
    /// The settings of each connection.
    pub connection: Connection,
}

/// The settings of a connection.
#[derive(Clone)]
pub struct Connection {
    /// The TLS acceptor; `None` serves plain HTTP.
    pub tls: Option<TlsAcceptor>,
    /// The routes.
    pub router: Router,
    /// The metrics of connections.
    pub metrics: Arc<ServerMetrics>,
    /// Once cancelled, each response has `Connection: close`, so that its client connects to
    /// another replica.
    pub draining: CancellationToken,
}

impl Listener {
    /// Accepts connections until `stop`, then waits at most `grace` for requests in flight, and
    /// closes the connections that are left.
    pub async fn run(self, stop: CancellationToken, tasks: TaskTracker, grace: Duration) {
        let limit = Arc::new(ConnectionLimit::new(self.limit));
        let graceful = GracefulShutdown::new();
        let cut_off = CancellationToken::new();
        while let Some(accepted) = stop.run_until_cancelled(self.socket.accept()).await {
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    self.connection.metrics.connection_failure("accept");
                    sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            // A failure only means that small responses may wait for an acknowledgement.
            let _ = stream.set_nodelay(true);
            let Some(slot) = stop.run_until_cancelled(limit.take()).await else {
                break;
            };
            let (connection, watcher) = (self.connection.clone(), graceful.watcher());
            let cut_off = cut_off.clone();
            tasks.spawn(async move {
                let served = connection.serve_as(stream, watcher, slot.state.clone());
                tokio::select! {
                    () = served => {}
                    () = slot.shed.cancelled() => {
                        connection.metrics.connection_failure("shed");
                        connection.metrics.shed(Shed::Connection);
                    }
                    () = cut_off.cancelled() => {}
                }
            });
        }
        drop(self.socket);
        if timeout(grace, graceful.shutdown()).await.is_err() {
            tracing::warn!(
                timeout_seconds = grace.as_secs(),
                "drain timeout exceeded; closing connections that are still busy"
            );
            cut_off.cancel();
        }
    }
}

impl Connection {
    /// Serves one connection to its end; `watcher` signals to end after the request in flight.
    pub async fn serve<S>(&self, stream: S, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.serve_as(stream, watcher, Arc::default()).await;
    }

    async fn serve_as<S>(&self, stream: S, watcher: Watcher, state: Arc<ConnectionState>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _open = Open::count(&self.metrics);
        let head_by = Instant::now() + HEAD_TIMEOUT;
        let Some(tls) = &self.tls else {
            return self.serve_http(stream, watcher, state, head_by).await;
        };
        match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => {
                self.metrics.handshake(Handshake::Done);
                self.serve_http(stream, watcher, state, head_by).await;
            }
            Ok(Err(error)) => {
                tracing::debug!(%error, "TLS handshake failed");
                self.metrics.handshake(Handshake::Failed);
                self.metrics.connection_failure("handshake");
            }
            Err(_) => {
                self.metrics.handshake(Handshake::TimedOut);
                self.metrics.connection_failure("handshake_timeout");
            }
        }
    }

    async fn serve_http<S>(
        &self,
        stream: S,
        watcher: Watcher,
        state: Arc<ConnectionState>,
        head_by: Instant,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let stream = TimeoutStream {
            inner: stream,
            state: state.clone(),
            head: Box::pin(sleep_until(head_by)),
            response: None,
        };
        let service = Requests {
            router: self.router.clone(),
            draining: self.draining.clone(),
            state,
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE_TIMEOUT)
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        if let Err(error) = watcher.watch(connection).await {
            tracing::debug!(%error, "connection ended with an error");
            self.metrics
                .connection_failure(if error.is_timeout() { "idle" } else { "http" });
        }
    }
}

/// Counts a connection as open until it is dropped, also by a panic.
struct Open<'a>(&'a ServerMetrics);

impl<'a> Open<'a> {
    fn count(metrics: &'a ServerMetrics) -> Self {
        metrics.connections.inc();
        Self(metrics)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.connections.dec();
    }
}

/// The phase of a connection between two requests.
#[derive(Default)]
struct ConnectionState {
    phase: AtomicU8,
    /// The number of the connection's last response among all responses; 0 before the first.
    last_response: AtomicU64,
}

const HEAD: u8 = 0;
const BUSY: u8 = 1;
const IDLE: u8 = 2;

static RESPONSES: AtomicU64 = AtomicU64::new(0);

impl ConnectionState {
    fn is(&self, phase: u8) -> bool {
        self.phase.load(Ordering::Relaxed) == phase
    }

    fn set(&self, phase: u8) {
        self.phase.store(phase, Ordering::Relaxed);
    }

    fn responded(&self) {
        let count = RESPONSES.fetch_add(1, Ordering::Relaxed) + 1;
        self.last_response.store(count, Ordering::Relaxed);
        self.set(IDLE);
    }
}

/// The slots for connections. A client that reaches the port can take all of them and stay idle, so
/// when none is free, a new connection gets the slot of one that never sent a request, else of the
/// one that has been idle longest.
struct ConnectionLimit {
    free: Arc<Semaphore>,
    taken: Mutex<Vec<Taken>>,
}

#[derive(Clone)]
struct Taken {
    state: Arc<ConnectionState>,
    shed: CancellationToken,
}

/// A connection's slot, free again when dropped.
struct Slot {
    state: Arc<ConnectionState>,
    shed: CancellationToken,
    limit: Arc<ConnectionLimit>,
    _permit: OwnedSemaphorePermit,
}

impl ConnectionLimit {
    fn new(limit: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(limit)),
            taken: Mutex::default(),
        }
    }

    async fn take(self: &Arc<Self>) -> Slot {
        let permit = loop {
            if self.free.available_permits() == 0 {
                self.shed_one();
            }
            match timeout(SLOT_RETRY, self.free.clone().acquire_owned()).await {
                Ok(Ok(permit)) => break permit,
                // All were busy; one of them may be idle by now.
                Err(_) => {}
                Ok(Err(_)) => unreachable!("the semaphore is never closed"),
            }
        };
        let taken = Taken {
            state: Arc::default(),
            shed: CancellationToken::new(),
        };
        self.taken().push(taken.clone());
        Slot {
            state: taken.state,
            shed: taken.shed,
            limit: self.clone(),
            _permit: permit,
        }
    }

    /// Closes the connection that has been idle longest, of equals the oldest; none while all are
    /// busy.
    fn shed_one(&self) {
        let taken = self.taken();
        let idle = taken
            .iter()
            .filter(|taken| !taken.state.is(BUSY) && !taken.shed.is_cancelled());
        let last_response = |taken: &&Taken| taken.state.last_response.load(Ordering::Relaxed);
        if let Some(longest) = idle.min_by_key(last_response) {
            longest.shed.cancel();
        }
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.limit
            .taken()
            .retain(|taken| !Arc::ptr_eq(&taken.state, &self.state));
    }
}

/// A stream that fails a read when a request's head takes too long, and a write when a response
/// does.
struct TimeoutStream<S> {
    inner: S,
    state: Arc<ConnectionState>,
    head: Pin<Box<Sleep>>,
    /// Runs while bytes of a response wait for the client to read.
    response: Option<Pin<Box<Sleep>>>,
}

impl<S> TimeoutStream<S> {
    /// Fails a write that has waited too long.
    fn bound<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_pending() {
            let timer = self
                .response
                .get_or_insert_with(|| Box::pin(sleep(RESPONSE_TIMEOUT)));
            if timer.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(too_slow("the response was read too slowly")));
            }
        }
        result
    }
}

fn too_slow(message: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, message)
}

impl<S: AsyncRead + Unpin> AsyncRead for TimeoutStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.state.is(HEAD) && this.head.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(too_slow("the request's headers were sent too slowly")));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut this.inner).poll_read(cx, buffer);
        if this.state.is(IDLE) && buffer.filled().len() > before {
            this.state.set(HEAD);
            this.head.as_mut().reset(Instant::now() + HEAD_TIMEOUT);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimeoutStream<S> {
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
            this.response = None;
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

/// Passes requests to the router, and records when their head is complete and when they have a
/// response.
struct Requests {
    router: Router,
    draining: CancellationToken,
    state: Arc<ConnectionState>,
}

impl Service<http::Request<Incoming>> for Requests {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        self.state.set(BUSY);
        let (router, draining) = (self.router.clone(), self.draining.clone());
        let state = self.state.clone();
        Box::pin(async move {
            let mut response = router.oneshot(request.map(Body::new)).await;
            if let (true, Ok(response)) = (draining.is_cancelled(), &mut response) {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            state.responded();
            response
        })
    }
}
