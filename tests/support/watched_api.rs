//! An API server's list and watch of one kind of object, over a real socket, letter by letter: it fails as a real one or what
//! stands before it may. The objects' kind and selectors don't matter to it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// It stops when it is dropped.
pub struct WatchedApi {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

struct Shared {
    world: Mutex<World>,
    /// Its version, and how often running watches were ended.
    news: watch::Sender<(u64, u64)>,
}

#[derive(Default)]
struct World {
    version: u64,
    /// By the version at which they were made.
    objects: Vec<(u64, String)>,
    /// Watches from before this version are refused.
    oldest: u64,
    refusal: Option<Fault>,
    keeps_forgetting: bool,
    /// Whether it is from before streamed lists.
    streams_no_lists: bool,
    streamed: usize,
    cut: Option<(Duration, Ends)>,
    next_list: Option<Fault>,
    next_watch: Option<Fault>,
    lists: usize,
    watches: usize,
    faults: usize,
    connections: usize,
}

/// A failure of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// No byte ever comes.
    Unanswered,
    /// No byte comes after the head.
    Silent,
    /// The answer comes a second late.
    Late,
    /// 410, as an event in an answer of 200: that is what Kubernetes does.
    GoneByEvent,
    /// 410, as the answer.
    GoneByStatus,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// As if the API server had ended the watch.
    Cleanly,
    /// Within a chunk.
    MidChunk,
    /// By a TCP reset.
    Reset,
}

impl WatchedApi {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            world: Mutex::default(),
            news: watch::Sender::default(),
        });
        let state = shared.clone();
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                state.world().connections += 1;
                tokio::spawn(connection(stream, state.clone()));
            }
        });
        Self {
            address,
            shared,
            serving,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Creates an object and sends it to the watches.
    pub fn create(&self, name: &str) {
        let mut world = self.shared.world();
        world.version += 1;
        let version = world.version;
        world.objects.push((version, name.to_owned()));
        self.shared.news.send_modify(|news| news.0 = version);
    }

    /// Ends all watches, and refuses those that would go on where these stood.
    pub fn forget(&self, refusal: Fault) {
        let mut world = self.shared.world();
        world.version += 1;
        world.oldest = world.version;
        world.refusal = Some(refusal);
        self.shared.news.send_modify(|news| news.1 += 1);
    }

    /// From now on every watch is refused, even one from the newest version.
    pub fn keep_forgetting(&self) {
        self.shared.world().keeps_forgetting = true;
    }

    /// From now on it knows no streamed lists.
    pub fn stream_no_lists(&self) {
        self.shared.world().streams_no_lists = true;
    }

    /// How many watches asked for what there is before what changes.
    pub fn streamed(&self) -> usize {
        self.shared.world().streamed
    }

    /// From now on every watch's connection ends after so long.
    pub fn cut_after(&self, period: Duration, ends: Ends) {
        self.shared.world().cut = Some((period, ends));
    }

    /// Injects a fault into the next list.
    pub fn next_list(&self, fault: Fault) {
        self.shared.world().next_list = Some(fault);
    }

    /// Injects a fault into the next watch.
    pub fn next_watch(&self, fault: Fault) {
        self.shared.world().next_watch = Some(fault);
    }

    /// Waits until there is a watch.
    pub async fn is_watched(&self, limit: Duration) {
        let watched = async || (self.watches() > 0).then_some(());
        super::eventually("a watch", limit, watched).await;
    }

    /// Waits until a request has met the fault that was meant for it.
    pub async fn meets_a_fault(&self, limit: Duration) {
        let met = async || (self.shared.world().faults > 0).then_some(());
        super::eventually("a request meets the fault", limit, met).await;
    }

    /// How many lists were asked for so far.
    pub fn lists(&self) -> usize {
        self.shared.world().lists
    }

    /// How many connections there were so far.
    pub fn connections(&self) -> usize {
        self.shared.world().connections
    }

    /// How many watches were asked for so far.
    pub fn watches(&self) -> usize {
        self.shared.world().watches
    }
}

impl Drop for WatchedApi {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    fn list(&self) -> Value {
        let items: Vec<Value> = self.objects.iter().map(object).collect();
        json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
            "metadata": {"resourceVersion": self.version.to_string()}, "items": items})
    }

    fn refusal(&self, since: u64) -> Option<Fault> {
        let forgotten = since < self.oldest || self.keeps_forgetting;
        self.refusal.filter(|_| forgotten)
    }
}

fn object((version, name): &(u64, String)) -> Value {
    json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
        "metadata": {"name": name, "resourceVersion": version.to_string()}})
}

/// The end of what there is, in a watch that began with it.
fn end_of_initial_events(version: u64) -> Value {
    json!({"type": "BOOKMARK", "object": {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
        "metadata": {"resourceVersion": version.to_string(), "annotations": {"k8s.io/initial-events-end": "true"}}}})
}

fn streams_no_lists() -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Invalid", "code": 422,
        "message": "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled"})
}

fn gone() -> Value {
    json!({"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Expired", "code": 410,
        "message": "too old resource version"})
}

/// Serves one connection to its end. An error says that the client has closed it.
async fn connection(mut stream: TcpStream, shared: Arc<Shared>) {
    while let Some(target) = request(&mut stream).await {
        let number = |name: &str| {
            let (_, rest) = target.split_once(&format!("{name}="))?;
            rest.split(['&', ' ']).next()?.parse().ok()
        };
        let answered = if target.contains("watch=true") {
            let since = number("resourceVersion").unwrap();
            let limit = Duration::from_secs(number("timeoutSeconds").unwrap());
            let begins_with_all = target.contains("sendInitialEvents=true");
            let may_begin = !begins_with_all || {
                let mut world = shared.world();
                world.streamed += 1;
                !world.streams_no_lists
            };
            if may_begin {
                serve_watch(&mut stream, &shared, since, limit, begins_with_all).await
            } else {
                refuse(&mut stream, "422 Unprocessable Entity", &streams_no_lists()).await
            }
        } else {
            serve_list(&mut stream, &shared).await
        };
        if answered.is_none() {
            return;
        }
    }
}

/// The next request's target.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    head.split(' ').nth(1).map(str::to_owned)
}

/// `None`: the connection ends.
async fn serve_list(stream: &mut TcpStream, shared: &Shared) -> Option<()> {
    let (fault, body) = {
        let mut world = shared.world();
        world.lists += 1;
        (world.next_list.take(), world.list().to_string())
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{}",
        body.len(),
        &body[..10]
    );
    match fault {
        Some(Fault::Late) => sleep(Duration::from_secs(1)).await,
        Some(fault) => return hang(stream, shared, fault, &head).await,
        None => {}
    }
    send(stream, &head).await?;
    send(stream, &body[10..]).await
}

async fn serve_watch(
    stream: &mut TcpStream,
    shared: &Shared,
    mut since: u64,
    limit: Duration,
    begins_with_all: bool,
) -> Option<()> {
    const HEAD: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut news = shared.news.subscribe();
    let (fault, refusal, cut) = {
        let mut world = shared.world();
        world.watches += 1;
        // One that begins with all there is goes on from nowhere.
        let refusal = world.refusal(since).filter(|_| !begins_with_all);
        (world.next_watch.take(), refusal, world.cut)
    };
    if let Some(fault) = fault {
        return hang(stream, shared, fault, HEAD).await;
    }
    match refusal {
        Some(Fault::GoneByStatus) => {
            return refuse(stream, "410 Gone", &gone()).await;
        }
        Some(_) => {
            send(stream, HEAD).await?;
            chunk(stream, &json!({"type": "ERROR", "object": gone()})).await?;
            return send(stream, "0\r\n\r\n").await;
        }
        None => {}
    }
    send(stream, HEAD).await?;
    let start = Instant::now();
    let (period, ends) = cut.unwrap_or((limit, Ends::Cleanly));
    let end = start + period.min(limit);
    let ended = news.borrow().1;
    let mut is_to_mark = begins_with_all;
    loop {
        let newer: Vec<(u64, String)> = {
            let world = shared.world();
            let newer = world.objects.iter().filter(|(version, _)| *version > since);
            newer.cloned().collect()
        };
        for entry in newer {
            chunk(stream, &json!({"type": "ADDED", "object": object(&entry)})).await?;
            since = entry.0;
        }
        if std::mem::take(&mut is_to_mark) {
            chunk(stream, &end_of_initial_events(since)).await?;
        }
        let is_over = timeout_at(end, news.changed()).await.is_err();
        if is_over || news.borrow_and_update().1 != ended {
            break;
        }
    }
    match ends {
        Ends::Cleanly => send(stream, "0\r\n\r\n").await,
        Ends::MidChunk => {
            send(stream, "40\r\n{\"type\"").await?;
            None
        }
        Ends::Reset => {
            // A socket that is closed with nothing lingering is reset.
            stream.set_zero_linger().unwrap();
            None
        }
    }
}

/// Says nothing more until the client closes the connection.
async fn hang(stream: &mut TcpStream, shared: &Shared, fault: Fault, head: &str) -> Option<()> {
    shared.world().faults += 1;
    if fault == Fault::Silent {
        send(stream, head).await?;
    }
    let far = Instant::now() + Duration::from_mins(10);
    tokio::select! {
        _ = stream.read_u8() => {}
        () = sleep_until(far) => {}
    }
    None
}

async fn refuse(stream: &mut TcpStream, status: &str, body: &Value) -> Option<()> {
    let body = body.to_string();
    let length = body.len();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n");
    send(stream, &(head + &body)).await
}

async fn chunk(stream: &mut TcpStream, value: &Value) -> Option<()> {
    let line = format!("{value}\n");
    send(stream, &format!("{:x}\r\n{line}\r\n", line.len())).await
}

async fn send(stream: &mut TcpStream, text: &str) -> Option<()> {
    stream.write_all(text.as_bytes()).await.ok()
}
