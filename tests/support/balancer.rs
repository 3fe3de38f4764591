//! The Service of a webhook with several replicas. The API server dials the cluster IP itself, and there is no kube-proxy
//! here: this listens on that address and hands each connection to the next replica, byte for byte.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};

use super::own_runtime::OwnRuntime;

/// A TCP balancer, round robin by connection; it ends with its connections when dropped.
pub struct Balancer {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _runtime: OwnRuntime,
}

struct State {
    backends: Vec<SocketAddr>,
    next: usize,
    connections: BTreeMap<SocketAddr, usize>,
}

impl Balancer {
    pub fn start(address: SocketAddr, backends: &[SocketAddr]) -> Self {
        let runtime = OwnRuntime::start("balancer");
        let (listener, address) = runtime.listen(address);
        let state = Arc::new(Mutex::new(State {
            backends: backends.to_vec(),
            next: 0,
            connections: BTreeMap::new(),
        }));
        runtime.spawn(balance(listener, Arc::clone(&state)));
        Self {
            address,
            state,
            _runtime: runtime,
        }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where new connections go from now on; those that are open stay, as with kube-proxy.
    pub fn set_backends(&self, backends: &[SocketAddr]) {
        self.state.lock().unwrap().backends = backends.to_vec();
    }

    /// How many connections each backend was given.
    pub fn connections(&self) -> BTreeMap<SocketAddr, usize> {
        self.state.lock().unwrap().connections.clone()
    }
}

async fn balance(listener: TcpListener, state: Arc<Mutex<State>>) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            continue;
        };
        let Some(backend) = state.lock().unwrap().choose() else {
            continue;
        };
        tokio::spawn(async move {
            // A backend that is gone closes the connection, which is what a client of a Service sees too.
            if let Ok(mut server) = TcpStream::connect(backend).await {
                let _ = server.set_nodelay(true);
                let _ = client.set_nodelay(true);
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}

impl State {
    fn choose(&mut self) -> Option<SocketAddr> {
        let count = self.backends.len();
        let backend = *self.backends.get(self.next.checked_rem(count)?)?;
        self.next += 1;
        *self.connections.entry(backend).or_default() += 1;
        Some(backend)
    }
}
