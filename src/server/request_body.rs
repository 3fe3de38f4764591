//! The body of a request, which tells its connection how much of it has come.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};

use super::connection_state::ConnectionState;

/// A body that notes in the state of its connection what was received of it.
pub(super) struct RequestBody {
    inner: Incoming,
    state: Arc<ConnectionState>,
}

impl RequestBody {
    pub(super) fn new(inner: Incoming, state: Arc<ConnectionState>) -> Self {
        Self { inner, state }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.get_mut();
        let frame = Pin::new(&mut this.inner).poll_frame(cx);
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    this.state.received_body(data.len());
                }
                if this.inner.is_end_stream() {
                    this.state.completed_body();
                }
            }
            Poll::Ready(None) => this.state.completed_body(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
