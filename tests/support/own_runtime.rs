//! A runtime that outlives the test that started it: each `#[tokio::test]` has one of its own, and drops it, while the
//! fakes are shared between tests or live in a `static`.

use std::future::Future;
use std::net::{SocketAddr, TcpListener as StdListener, ToSocketAddrs};

use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

/// One worker thread with its reactor; its tasks end when it is dropped, which is allowed in async code too.
pub struct OwnRuntime(Option<Runtime>);

impl OwnRuntime {
    pub fn start(name: &str) -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name(name)
            .enable_all()
            .build()
            .unwrap();
        Self(Some(runtime))
    }

    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.0 {
            runtime.spawn(task);
        }
    }

    /// Binds at once, so that the address is known and takes connections when this returns.
    pub fn listen(&self, address: impl ToSocketAddrs) -> (TcpListener, SocketAddr) {
        let listener = StdListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let _reactor = self.0.as_ref().map(Runtime::enter);
        (TcpListener::from_std(listener).unwrap(), address)
    }
}

impl Drop for OwnRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
