//! The HTTP proxy between a cluster and the internet. It takes `CONNECT` alone, notes who was to be reached, and leads every
//! tunnel to one address, so that a fake can stand behind real names.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use super::own_runtime::OwnRuntime;

/// Longer heads are nobody's we know.
const MAX_HEAD: usize = 16 * 1024;

/// A proxy on a loopback port; it ends with its tunnels when dropped.
pub struct ConnectProxy {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    _runtime: OwnRuntime,
}

/// A tunnel that was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// `host:port`, as it was asked for.
    pub target: String,
    /// `user:password`, if the request had them (`Proxy-Authorization: Basic …`).
    pub credentials: Option<String>,
    /// The status it was answered with; 200 is a tunnel, 0 is no answer.
    pub status: u16,
}

struct State {
    behind: SocketAddr,
    refusal: Option<u16>,
    unknown: Vec<String>,
    hangs: bool,
    wanted: Option<String>,
    tunnels: Vec<Tunnel>,
    plain: Vec<String>,
}

impl ConnectProxy {
    /// All tunnels lead to `behind`.
    pub fn start(behind: SocketAddr) -> Self {
        let state = Arc::new(Mutex::new(State {
            behind,
            refusal: None,
            unknown: Vec::new(),
            hangs: false,
            wanted: None,
            tunnels: Vec::new(),
            plain: Vec::new(),
        }));
        let runtime = OwnRuntime::start("connect-proxy");
        let (listener, address) = runtime.listen("127.0.0.1:0");
        runtime.spawn(serve(listener, Arc::clone(&state)));
        Self {
            address,
            state,
            _runtime: runtime,
        }
    }

    /// Returns the value for `HTTPS_PROXY`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns the value for `HTTPS_PROXY` with a user and a password, which are taken as they are:
    /// encode them where a URL needs that.
    pub fn url_for(&self, user: &str, password: &str) -> String {
        format!("http://{user}:{password}@{}", self.address)
    }

    /// From now on every tunnel is refused with this status; 0 ends that.
    pub fn refuse(&self, status: u16) {
        self.lock().refusal = (status != 0).then_some(status);
    }

    /// From now on it can't resolve this name: its tunnels are refused with 503, as Squid does.
    pub fn forget_host(&self, host: &str) {
        self.lock().unknown.push(format!("{host}:443"));
    }

    /// From now on it takes requests and answers none; they are noted with status 0.
    pub fn hang(&self) {
        self.lock().hangs = true;
    }

    /// From now on a tunnel without these credentials (`user:password`) is refused with 407.
    pub fn require(&self, credentials: &str) {
        self.lock().wanted = Some(credentials.to_owned());
    }

    pub fn tunnels(&self) -> Vec<Tunnel> {
        self.lock().tunnels.clone()
    }

    /// The targets of the tunnels, in order.
    pub fn targets(&self) -> Vec<String> {
        let state = self.lock();
        let tunnels = state.tunnels.iter();
        tunnels.map(|tunnel| tunnel.target.clone()).collect()
    }

    /// The first lines of requests that weren't for a tunnel: what came in the clear.
    pub fn plain_requests(&self) -> Vec<String> {
        self.lock().plain.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    loop {
        let Ok((client, _)) = listener.accept().await else {
            continue;
        };
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            // An error is an end that closed the connection, which closes the other.
            let _ = tunnel(client, &state).await;
        });
    }
}

async fn tunnel(mut client: TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
        // One byte at a time: what follows the head belongs to the tunnel.
        head.push(client.read_u8().await?);
    }
    let (status, behind) = state.lock().unwrap().note(&String::from_utf8_lossy(&head));
    if status == 0 {
        return std::future::pending().await;
    }
    if status != 200 {
        let answer =
            format!("HTTP/1.1 {status} No\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
        return client.write_all(answer.as_bytes()).await;
    }
    let mut server = TcpStream::connect(behind).await?;
    client
        .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
        .await?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

impl State {
    /// The status to answer with, and where the tunnel leads.
    fn note(&mut self, head: &str) -> (u16, SocketAddr) {
        let line = head.lines().next().unwrap_or_default();
        let target = line
            .strip_prefix("CONNECT ")
            .and_then(|rest| rest.split_once(' '))
            .map(|(target, _)| target.to_owned());
        let Some(target) = target else {
            self.plain.push(line.to_owned());
            return (501, self.behind);
        };
        let credentials = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            let is_it = name.eq_ignore_ascii_case("proxy-authorization");
            let encoded = value.trim().strip_prefix("Basic ").filter(|_| is_it)?;
            String::from_utf8(BASE64_STANDARD.decode(encoded).ok()?).ok()
        });
        let is_welcome = self.wanted.is_none() || self.wanted == credentials;
        let status = match self.refusal {
            _ if self.hangs => 0,
            Some(status) => status,
            None if self.unknown.contains(&target) => 503,
            None if is_welcome => 200,
            None => 407,
        };
        self.tunnels.push(Tunnel {
            target,
            credentials,
            status,
        });
        (status, self.behind)
    }
}
