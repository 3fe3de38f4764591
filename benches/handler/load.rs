//! The load: connections that are kept alive, each with one request after the other, as fast as answers come. It checks
//! that each answer is an admission.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::SERVER_NAME;

pub const COMMAND: &str = "load";
/// An API server keeps up to 25 idle ones. These are enough that a server always has a request to
/// go on with.
pub const CONNECTIONS: usize = 16;

/// A load: the server, the path that it admits at, the request's body, and the duration.
pub struct Load<'a> {
    pub address: SocketAddr,
    pub path: &'a str,
    pub authority: &'a Path,
    pub body: &'a Path,
    pub duration: Duration,
}

/// The measurement of one load.
#[derive(Clone, Copy)]
pub struct Outcome {
    /// The requests that were answered.
    pub requests: f64,
    pub took: Duration,
    /// The time that an answer took: the median, and the 99th percentile.
    pub p50: Duration,
    pub p99: Duration,
}

impl Load<'_> {
    pub fn run_in_a_process(&self) -> Outcome {
        let output = Command::new(std::env::current_exe().unwrap())
            .arg(COMMAND)
            .args([&self.address.to_string(), self.path])
            .args([self.authority, self.body])
            .arg(self.duration.as_millis().to_string())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let numbers: Vec<&str> = text.split_whitespace().collect();
        let ([requests, times @ ..], true) = (numbers.as_slice(), output.status.success()) else {
            panic!(
                "the load failed: {text}{}",
                String::from_utf8_lossy(&output.stderr)
            );
        };
        let time = |index: usize| Duration::from_nanos(times[index].parse().unwrap());
        Outcome {
            requests: requests.parse().unwrap(),
            took: time(0),
            p50: time(1),
            p99: time(2),
        }
    }

    /// The body of one answer.
    pub fn ask_once(&self) -> Vec<u8> {
        runtime().block_on(async {
            let mut connection = self.connect().await;
            connection.ask(&self.request()).await;
            connection.answer
        })
    }

    /// How long all of it took, and each answer, the fastest first.
    async fn run(&self) -> (Duration, Vec<Duration>) {
        let request = self.request();
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            connections.push(self.connect().await);
        }
        let started = Instant::now();
        let until = started + self.duration;
        let each = connections.into_iter().map(async |mut connection| {
            let mut times = Vec::new();
            let mut now = Instant::now();
            while now < until {
                connection.ask(&request).await;
                let answered = Instant::now();
                times.push(answered - now);
                now = answered;
            }
            times
        });
        let times = futures::future::join_all(each).await;
        let took = started.elapsed();
        let mut times = times.concat();
        times.sort_unstable();
        (took, times)
    }

    /// As the API server writes it.
    fn request(&self) -> Vec<u8> {
        let body = fs::read(self.body).unwrap();
        let head = format!(
            "POST {}?timeout=5s HTTP/1.1\r\nHost: {SERVER_NAME}:443\r\n\
             User-Agent: kube-apiserver-admission\r\nContent-Length: {}\r\nAccept: application/json, */*\r\n\
             Content-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n",
            self.path,
            body.len()
        );
        [head.into_bytes(), body].concat()
    }

    async fn connect(&self) -> Connection {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(self.authority).unwrap())
            .unwrap();
        let mut config = ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from(SERVER_NAME).unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        Connection {
            stream: connector.connect(name, stream).await.unwrap(),
            answer: Vec::new(),
        }
    }
}

/// In the process of its own.
pub fn run(arguments: &[&str]) {
    let [address, path, authority, body, milliseconds] = arguments else {
        panic!("expected an address, a path, an authority, a body and milliseconds");
    };
    crate::support::crypto();
    let load = Load {
        address: address.parse().unwrap(),
        path,
        authority: Path::new(authority),
        body: Path::new(body),
        duration: Duration::from_millis(milliseconds.parse().unwrap()),
    };
    let (took, times) = runtime().block_on(load.run());
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)].as_nanos();
    println!("{} {} {} {}", times.len(), took.as_nanos(), at(50), at(99));
}

/// One thread: the server should have the more of the machine.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

struct Connection {
    stream: TlsStream<TcpStream>,
    /// The body of the last answer.
    answer: Vec<u8>,
}

impl Connection {
    async fn ask(&mut self, request: &[u8]) {
        self.stream.write_all(request).await.unwrap();
        self.stream.flush().await.unwrap();
        self.answer.clear();
        loop {
            if let Some((head, body)) = parts(&self.answer)
                && body.len() >= length(head)
            {
                let start = self.answer.len() - body.len();
                self.answer.drain(..start);
                return;
            }
            let read = self.stream.read_buf(&mut self.answer).await.unwrap();
            assert!(read > 0, "the server closed the connection");
        }
    }
}

fn parts(answer: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n")? + 4;
    Some(answer.split_at(end))
}

fn length(head: &[u8]) -> usize {
    let head = std::str::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let mut headers = head.lines().filter_map(|line| line.split_once(": "));
    let length = headers.find(|(name, _)| name.eq_ignore_ascii_case("content-length"));
    length.unwrap().1.parse().unwrap()
}
