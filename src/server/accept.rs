//! The accept loop: from a listening socket to HTTP/1.1 requests, with every wait bounded.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use futures::future::BoxFuture;
use http::{HeaderValue, header::CONNECTION};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::Service,
};
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use super::{
    LOG_LIMIT,
    connection_limit::{ConnectionLimit, Slot},
    connection_state::ConnectionState,
    metrics::{Handshake, ServerMetrics, Shed},
    request_body::RequestBody,
    timeout_stream::TimeoutStream,
};

/// The most connections at the same time. One more replaces one that waits for its client.
pub const MAX_CONNECTIONS: usize = 1024;
/// The timeout of a TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a new connection is kept after a stop for its first request, which may be on its way.
const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(2);
/// The largest head of a request, and the most that is read of a body before it is handled: each
/// connection may have a buffer of this size.
const MAX_HEAD_BYTES: usize = 16 * 1024;
const MAX_HEADERS: usize = 64;
/// The pause after an accept that failed for want of something, such as file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// After so many failures in a row an accept always pauses: what they have in common is then more
/// than a connection.
const MAX_FAILURES: u32 = 64;

/// The errors of an accept that the connection brought along, not the listener: Linux returns what
/// has become of the connection while it waited in the queue (accept(2)). The next one may be fine.
const OF_ONE_CONNECTION: [Errno; 12] = [
    Errno::CONNABORTED,
    Errno::CONNRESET,
    Errno::TIMEDOUT,
    Errno::INTR,
    Errno::PROTO,
    Errno::NOPROTOOPT,
    Errno::OPNOTSUPP,
    Errno::NETDOWN,
    Errno::NETUNREACH,
    Errno::NONET,
    Errno::HOSTDOWN,
    Errno::HOSTUNREACH,
];

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
    /// Which clients are trusted, if clients have certificates.
    pub trust: Option<Arc<dyn ClientTrust>>,
    /// The routes.
    pub router: Router,
    /// The metrics of connections.
    pub metrics: Arc<ServerMetrics>,
    /// Once cancelled, each response has `Connection: close`, so that its client connects to
    /// another replica.
    pub draining: CancellationToken,
}

/// Decides which clients are trusted by their certificates, for connections that outlive a change.
pub trait ClientTrust: Send + Sync {
    /// Returns a receiver of the changes from now on.
    fn changes(&self) -> watch::Receiver<()>;

    /// Returns whether a client with this certificate chain is trusted now.
    fn trusts(&self, chain: &[CertificateDer<'static>]) -> bool;
}

/// The certificate of a connection's client, and the changes since its handshake began.
struct Peer {
    chain: Vec<CertificateDer<'static>>,
    trust: Arc<dyn ClientTrust>,
    changes: watch::Receiver<()>,
}

impl Listener {
    /// Accepts connections until `stop`, then serves those that are in the queue, waits at most
    /// `grace` for all requests, and closes the connections that are left.
    pub async fn run(self, stop: CancellationToken, tasks: TaskTracker, grace: Duration) {
        let limit = Arc::new(ConnectionLimit::new(self.limit));
        let (open, cut_off) = (TaskTracker::new(), CancellationToken::new());
        let serve = |stream: TcpStream, slot: Slot| {
            // A failure only means that small responses may wait for an acknowledgement.
            let _ = stream.set_nodelay(true);
            let (connection, cut_off) = (self.connection.clone(), cut_off.clone());
            let served = connection.serve_in(slot, stream, stop.clone(), cut_off);
            tasks.spawn(open.track_future(served));
        };
        let mut failures = 0;
        let accepted = loop {
            let Some(accepted) = stop.run_until_cancelled(self.socket.accept()).await else {
                break None;
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    failures += 1;
                    self.connection.accept_failed(&error, failures).await;
                    continue;
                }
            };
            failures = 0;
            match stop.run_until_cancelled(limit.take(address.ip())).await {
                Some(slot) => serve(stream, slot),
                None => break Some((stream, address)),
            }
        };
        let ended = timeout(grace, async {
            // A client whose connection is in the queue may have sent a request already.
            for (stream, address) in accepted
                .into_iter()
                .chain(queue(self.socket).take(self.limit))
            {
                serve(stream, limit.take(address.ip()).await);
            }
            open.close();
            open.wait().await;
        });
        if ended.await.is_err() {
            tracing::warn!(
                timeout_seconds = grace.as_secs(),
                "drain timeout exceeded; closing connections that are still busy"
            );
            cut_off.cancel();
        }
    }
}

/// Returns the connections that are in the queue of a listener, and closes it then.
fn queue(socket: TcpListener) -> impl Iterator<Item = (TcpStream, SocketAddr)> {
    let socket = socket.into_std().ok();
    std::iter::from_fn(move || {
        loop {
            match socket.as_ref()?.accept() {
                Ok((stream, address)) => {
                    stream.set_nonblocking(true).ok()?;
                    return Some((TcpStream::from_std(stream).ok()?, address));
                }
                // Others may be behind it.
                Err(error) if is_of_one_connection(&error) => {}
                Err(_) => return None,
            }
        }
    })
}

/// Returns whether an error of an accept is that of one connection.
fn is_of_one_connection(error: &io::Error) -> bool {
    let errno = error.raw_os_error();
    errno.is_some_and(|errno| {
        let mut own = OF_ONE_CONNECTION.iter();
        own.any(|own| own.raw_os_error() == errno)
    })
}

impl Connection {
    /// Serves one connection to its end, which comes after the request in flight once `stop` is
    /// cancelled.
    pub async fn serve<S>(&self, stream: S, stop: CancellationToken)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.serve_as(stream, stop, Arc::default()).await;
    }

    /// Serves a connection in its slot, until its end or until the slot is needed.
    async fn serve_in(
        self,
        slot: Slot,
        stream: TcpStream,
        stop: CancellationToken,
        cut_off: CancellationToken,
    ) {
        tokio::select! {
            () = self.serve_as(stream, stop, slot.state.clone()) => {}
            () = slot.shed.cancelled() => {
                self.metrics.connection_failure("shed");
                self.metrics.shed(Shed::Connection);
            }
            () = cut_off.cancelled() => {}
        }
    }

    /// Counts and logs an accept that failed, the last of so many in a row, and waits if the next
    /// one would fail, too.
    async fn accept_failed(&self, error: &io::Error, failures: u32) {
        if is_of_one_connection(error) && failures < MAX_FAILURES {
            tracing::debug!(%error, "a connection ended before it was accepted");
            self.metrics.connection_failure("aborted");
            return;
        }
        self.metrics.connection_failure("accept");
        if let Some(omitted) = LOG_LIMIT.admit("accept") {
            tracing::warn!(%error, omitted, "accepting a connection failed");
        }
        sleep(ACCEPT_RETRY).await;
    }

    async fn serve_as<S>(&self, stream: S, stop: CancellationToken, state: Arc<ConnectionState>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _open = Open::count(&self.metrics, state.clone());
        let Some(tls) = &self.tls else {
            return self.serve_http(stream, stop, state, None).await;
        };
        // Before the handshake: a change during the handshake counts, too.
        let trust = self.trust.clone().map(|trust| (trust.changes(), trust));
        match timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => {
                self.metrics.handshake(Handshake::Done);
                let chain = stream.get_ref().1.peer_certificates();
                if trust.is_some() {
                    state.trust();
                }
                let peer = trust.map(|(changes, trust)| Peer {
                    chain: chain.unwrap_or_default().to_vec(),
                    trust,
                    changes,
                });
                self.serve_http(stream, stop, state, peer).await;
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
        stop: CancellationToken,
        state: Arc<ConnectionState>,
        peer: Option<Peer>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = Requests {
            router: self.router.clone(),
            draining: self.draining.clone(),
            stop: stop.clone(),
            state: state.clone(),
        };
        let stream = TimeoutStream::new(stream, state.clone());
        let connection = http1::Builder::new()
            // The stream has it.
            .header_read_timeout(None)
            .max_buf_size(MAX_HEAD_BYTES)
            .max_headers(MAX_HEADERS)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let first_request_by = Instant::now() + FIRST_REQUEST_GRACE;
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopped(&stop, &state, first_request_by) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = distrusted(peer, &state) => {
                tracing::debug!("closing a connection whose client is no longer trusted");
                self.metrics.connection_failure("distrusted");
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if state.was_idle() {
            self.metrics.connection_failure("idle");
        } else if let Err(error) = ended {
            tracing::debug!(%error, "connection ended with an error");
            self.metrics.connection_failure("http");
        }
    }
}

/// Waits until a connection is to end because of the stop. The first request of a new connection
/// may be on its way: its client opened the connection for it.
async fn stopped(stop: &CancellationToken, state: &ConnectionState, first_request_by: Instant) {
    stop.cancelled().await;
    if state.is_unused() {
        sleep_until(first_request_by).await;
    }
}

/// Waits until a connection is to end because its client is no longer trusted. A client that still
/// is gets to hear it with its next response: closing its idle connection could meet a request that
/// is on its way, which the API server does not repeat.
async fn distrusted(peer: Option<Peer>, state: &ConnectionState) {
    let Some(mut peer) = peer else {
        return std::future::pending().await;
    };
    // An error would mean that the sender is gone, and `peer` has it.
    while peer.changes.changed().await.is_ok() {
        if !peer.trust.trusts(&peer.chain) {
            return;
        }
        state.end();
    }
    std::future::pending::<()>().await;
}

/// Counts a connection as open until it is dropped, also by a panic, and then counts a request that
/// it leaves without a response.
struct Open<'a> {
    metrics: &'a ServerMetrics,
    state: Arc<ConnectionState>,
}

impl<'a> Open<'a> {
    fn count(metrics: &'a ServerMetrics, state: Arc<ConnectionState>) -> Self {
        metrics.connections.inc();
        Self { metrics, state }
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.metrics.connections.dec();
        let Some(elapsed) = self.state.unanswered() else {
            return;
        };
        self.metrics.refused_request("unanswered");
        if let Some(omitted) = LOG_LIMIT.admit("unanswered") {
            tracing::warn!(
                elapsed_ms = elapsed.as_secs_f64() * 1000.0,
                omitted,
                "a connection ended before its request was answered"
            );
        }
    }
}

/// Passes requests to the router, and records when their head is complete and when they have a
/// response.
struct Requests {
    router: Router,
    draining: CancellationToken,
    stop: CancellationToken,
    state: Arc<ConnectionState>,
}

impl Service<http::Request<Incoming>> for Requests {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        self.state.requested(!request.body().is_end_stream());
        let (router, draining) = (self.router.clone(), self.draining.clone());
        let (stop, state) = (self.stop.clone(), self.state.clone());
        Box::pin(async move {
            let request = request.map(|body| Body::new(RequestBody::new(body, state.clone())));
            let Ok(mut response) = router.oneshot(request).await;
            if draining.is_cancelled() || stop.is_cancelled() || state.is_ending() {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            state.responded(!response.status().is_success());
            Ok(response)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_pauses_only_for_errors_of_the_listener() {
        for (errno, is_own) in [
            (Errno::CONNABORTED, true),
            (Errno::CONNRESET, true),
            (Errno::HOSTUNREACH, true),
            // Linux may leave the connection in the queue.
            (Errno::PERM, false),
            (Errno::MFILE, false),
            (Errno::NFILE, false),
            (Errno::NOBUFS, false),
            (Errno::NOMEM, false),
            (Errno::INVAL, false),
        ] {
            let error = io::Error::from_raw_os_error(errno.raw_os_error());
            assert_eq!(is_of_one_connection(&error), is_own, "{error}");
        }
        let unknown = io::Error::other("unknown");
        assert!(!is_of_one_connection(&unknown), "no loop without a pause");
    }

    #[tokio::test(start_paused = true)]
    async fn accept_pauses_after_many_failures_of_connections_in_a_row() {
        let connection = Connection {
            tls: None,
            trust: None,
            router: Router::new(),
            metrics: Arc::default(),
            draining: CancellationToken::new(),
        };
        let aborted = io::Error::from_raw_os_error(Errno::CONNABORTED.raw_os_error());
        for (failures, pause) in [
            (1, Duration::ZERO),
            (MAX_FAILURES - 1, Duration::ZERO),
            (MAX_FAILURES, ACCEPT_RETRY),
        ] {
            let started = Instant::now();
            connection.accept_failed(&aborted, failures).await;
            assert_eq!(started.elapsed(), pause, "{failures}");
        }
    }
}
