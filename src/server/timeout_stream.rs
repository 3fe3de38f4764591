//! The timeouts of a connection's waits, on its stream: for a request, for the rest of a head, and
//! for a client that reads a response.
//!
//! hyper's one header timeout is also its idle timeout, and those two must differ: a client that
//! sends a request's head slowly is cut off in seconds, while a connection may be idle longer than
//! the 90 s for which the API server keeps its own. It also enters a timer and takes it out at each
//! request. Here a connection has one timer, which stays where it is while requests come: only when
//! it fires is it moved to the deadline that holds by then.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::connection_state::{ConnectionState, Wait};

/// How long a connection may be idle, also before its first request: Go's client opens connections
/// ahead. The API server closes its own after 90 s, and does not retry a review that met a closed
/// connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(150);
/// The timeout of a request's head, from its first byte.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// The timeout of a response, from when the client's window is full until all of it is sent.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// A stream that fails a read when a request or its head takes too long, and a write when a
/// response does.
pub(super) struct TimeoutStream<S> {
    inner: S,
    state: Arc<ConnectionState>,
    /// Since when the connection is idle, if it is.
    idle_since: Instant,
    /// Until when the head has to be complete, if a part of it has come.
    head_by: Option<Instant>,
    /// Fires at the latest when one of the two is over.
    timer: Pin<Box<Sleep>>,
    /// Runs while bytes of a response wait for the client to read.
    response: Option<Pin<Box<Sleep>>>,
}

impl<S> TimeoutStream<S> {
    pub(super) fn new(inner: S, state: Arc<ConnectionState>) -> Self {
        Self {
            inner,
            state,
            idle_since: Instant::now(),
            head_by: None,
            timer: Box::pin(sleep(IDLE_TIMEOUT)),
            response: None,
        }
    }

    /// Waits until what the connection waits for takes too long. Is polled whatever it waits for:
    /// only a timer that was polled wakes the connection.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let wait = self.state.wait();
        let deadline = match wait {
            Wait::Request => Some(self.idle_since + IDLE_TIMEOUT),
            Wait::Head => {
                let by = || Instant::now() + HEAD_TIMEOUT;
                Some(*self.head_by.get_or_insert_with(by))
            }
            Wait::None => None,
        };
        if let Some(deadline) = deadline.filter(|deadline| *deadline < self.timer.deadline()) {
            self.timer.as_mut().reset(deadline);
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            match (wait, deadline) {
                (_, Some(deadline)) if deadline > now => self.timer.as_mut().reset(deadline),
                (Wait::None, _) => self.timer.as_mut().reset(now + IDLE_TIMEOUT),
                (Wait::Head, _) => {
                    let message = "the request's headers were sent too slowly";
                    return Poll::Ready(too_slow(message));
                }
                (Wait::Request, _) => {
                    self.state.idled();
                    return Poll::Ready(too_slow("no request came"));
                }
            }
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
        let before = buffer.filled().len();
        let result = Pin::new(&mut this.inner).poll_read(cx, buffer);
        if result.is_pending() {
            return this.poll_overdue(cx).map(Err);
        }
        if buffer.filled().len() > before && this.state.received() {
            this.head_by = None;
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
        if matches!(result, Poll::Ready(Ok(()))) && this.state.sent() {
            this.idle_since = Instant::now();
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
