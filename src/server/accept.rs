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

/// Connections served at the same time. One more takes the place of the one that can best be spared.
pub const MAX_CONNECTIONS: usize = 1024;
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
/// How long a new connection waits for a place before it looks again for one that can be spared.
const SEAT_PAUSE: Duration = Duration::from_millis(50);
/// The pause after an accept that failed, such as for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One listener.
pub struct Listener {
    /// Where connections come from.
    pub socket: TcpListener,
    /// How many are served at the same time.
    pub limit: usize,
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
    pub metrics: Arc<ServerMetrics>,
    /// Once this is cancelled, each answer asks its client to connect anew: to somebody who is not about to stop.
    pub draining: CancellationToken,
}

impl Listener {
    /// Accepts until `stop`, then lets the requests under way end, for at most `grace`, and cuts off what is left.
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
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // A failure only means that small answers may wait for an acknowledgement.
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
                    () = slot.given_up.cancelled() => {
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
    /// Serves one connection to its end. Through `watcher` it learns that it is to end after the request under way.
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
        let guarded = TimeoutStream {
            inner: stream,
            state: state.clone(),
            head: Box::pin(sleep_until(head_by)),
            answer: None,
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
            .serve_connection(TokioIo::new(guarded), service);
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

/// Where a connection stands between two requests.
#[derive(Default)]
struct ConnectionState {
    phase: AtomicU8,
    /// When its last answer was made, as a count of all answers; 0 before the first.
    answered: AtomicU64,
}

const HEAD: u8 = 0;
const BUSY: u8 = 1;
const IDLE: u8 = 2;

static ANSWERS: AtomicU64 = AtomicU64::new(0);

impl ConnectionState {
    fn is(&self, phase: u8) -> bool {
        self.phase.load(Ordering::Relaxed) == phase
    }

    fn set(&self, phase: u8) {
        self.phase.store(phase, Ordering::Relaxed);
    }

    fn answered(&self) {
        let count = ANSWERS.fetch_add(1, Ordering::Relaxed) + 1;
        self.answered.store(count, Ordering::Relaxed);
        self.set(IDLE);
    }
}

/// The places for connections. Whoever reaches the port can take all of them and rest there, so when they are taken, a
/// new connection gets the place of one that never sent a request, else of the one that has rested longest.
struct ConnectionLimit {
    free: Arc<Semaphore>,
    taken: Mutex<Vec<Taken>>,
}

#[derive(Clone)]
struct Taken {
    state: Arc<ConnectionState>,
    given_up: CancellationToken,
}

/// A connection's place; free again when dropped.
struct Slot {
    state: Arc<ConnectionState>,
    given_up: CancellationToken,
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
                self.give_up_one();
            }
            match timeout(SEAT_PAUSE, self.free.clone().acquire_owned()).await {
                Ok(Ok(permit)) => break permit,
                // All were busy; one of them may rest by now.
                Err(_) => {}
                Ok(Err(_)) => unreachable!("the semaphore is never closed"),
            }
        };
        let taken = Taken {
            state: Arc::default(),
            given_up: CancellationToken::new(),
        };
        self.taken().push(taken.clone());
        Slot {
            state: taken.state,
            given_up: taken.given_up,
            limit: self.clone(),
            _permit: permit,
        }
    }

    /// The list is in the order of arrival, and of equals the first goes. While all are busy, none does.
    fn give_up_one(&self) {
        let taken = self.taken();
        let spared = taken
            .iter()
            .filter(|taken| !taken.state.is(BUSY) && !taken.given_up.is_cancelled());
        if let Some(spared) =
            spared.min_by_key(|taken| taken.state.answered.load(Ordering::Relaxed))
        {
            spared.given_up.cancel();
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

/// A stream that fails a read when a request's head takes too long, and a write when an answer does.
struct TimeoutStream<S> {
    inner: S,
    state: Arc<ConnectionState>,
    head: Pin<Box<Sleep>>,
    /// Runs while bytes of an answer wait for the client to read.
    answer: Option<Pin<Box<Sleep>>>,
}

impl<S> TimeoutStream<S> {
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
                return Poll::Ready(Err(too_slow("the response was read too slowly")));
            }
        }
        result
    }
}

fn too_slow(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
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
            state.answered();
            response
        })
    }
}
