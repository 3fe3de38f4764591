//! The timeouts of a request's head and of a response, on the stream of a connection.
//!
//! hyper's one header timeout is also its idle timeout, and those two must differ: a client that
//! sends a request's head slowly is cut off in seconds, while a connection may be idle longer than
//! the 90 s for which the API server keeps its own. So hyper gets the idle timeout, and the stream
//! has the timeout of the head, and that of a response which the client doesn't read, for which
//! hyper has none.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::connection_state::ConnectionState;

/// The timeout of a request's head, from its first byte.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout of a response, from when the client's window is full until all of it is sent.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream that fails a read when a request's head takes too long, and a write when a response
/// does.
pub(super) struct TimeoutStream<S> {
    inner: S,
    state: Arc<ConnectionState>,
    head: Pin<Box<Sleep>>,
    /// Runs while bytes of a response wait for the client to read.
    response: Option<Pin<Box<Sleep>>>,
}

impl<S> TimeoutStream<S> {
    pub(super) fn new(inner: S, state: Arc<ConnectionState>) -> Self {
        Self {
            inner,
            state,
            head: Box::pin(sleep(HEAD_TIMEOUT)),
            response: None,
        }
    }

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
        if this.state.is_receiving_head() && this.head.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(too_slow("the request's headers were sent too slowly")));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut this.inner).poll_read(cx, buffer);
        if buffer.filled().len() > before && this.state.received() {
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
        if matches!(result, Poll::Ready(Ok(()))) {
            this.state.sent();
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
