//! Processes of the binary under test: `ecr-injector serve`, in a clean environment, with its output kept for the test to
//! read.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::certificates::ServingCertificate;
use super::child::{GuardedChild, GuardedFolder};

/// When a line is written at the latest, on a busy machine.
const LOGGED_BY: Duration = Duration::from_secs(30);

const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_mins(1);

/// A running webhook; it is killed when dropped.
pub struct Webhook {
    process: GuardedChild,
    listen: SocketAddr,
    admin_listen: SocketAddr,
    folder: GuardedFolder,
}

/// How to start one. [`super::Installation`] makes these.
#[derive(Clone, Debug)]
pub struct Options {
    /// Absent: the one that cargo built for the tests. Examples and tools have to say which.
    pub binary: Option<PathBuf>,
    /// The text of the configuration file.
    pub config: String,
    pub listen: SocketAddr,
    pub admin_listen: SocketAddr,
    /// Absent: it manages its own.
    pub certificate: Option<ServingCertificate>,
    pub kubeconfig: PathBuf,
    /// More flags.
    pub arguments: Vec<String>,
    /// All that the process has, beside PATH.
    pub environment: Vec<(String, String)>,
}

impl Options {
    /// Adds a variable, such as `RUST_LOG`.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }
}

impl Webhook {
    /// Starts it and waits until it is ready.
    pub async fn start(options: Options) -> Self {
        let mut webhook = Self::spawn(options);
        webhook.wait_until_ready().await;
        webhook
    }

    /// Starts it and doesn't wait.
    pub fn spawn(options: Options) -> Self {
        let folder = GuardedFolder::create();
        let config = folder.path().join("config.yaml");
        fs::write(&config, crate::support::config_file(&options.config)).unwrap();
        let mut arguments: Vec<OsString> = vec![
            "serve".into(),
            "--config".into(),
            config.into_os_string(),
            "--admin-listen".into(),
            options.admin_listen.to_string().into(),
            "--kubeconfig".into(),
            options.kubeconfig.into_os_string(),
            "--log-format".into(),
            "json".into(),
        ];
        if !options.arguments.iter().any(|it| it == "--no-admission") {
            arguments.extend(["--listen".into(), options.listen.to_string().into()]);
        }
        if let Some(files) = options.certificate {
            arguments.extend(["--tls-cert".into(), files.certificate.into_os_string()]);
            arguments.extend(["--tls-key".into(), files.key.into_os_string()]);
        }
        arguments.extend(options.arguments.into_iter().map(OsString::from));
        let mut environment = options.environment;
        if let Ok(path) = std::env::var("PATH") {
            environment.push(("PATH".to_owned(), path));
        }
        let process = GuardedChild::spawn(
            &options.binary.unwrap_or_else(built_for_tests),
            arguments,
            Some(&environment),
            folder.path().join("webhook.log"),
        );
        Self {
            process,
            listen: options.listen,
            admin_listen: options.admin_listen,
            folder,
        }
    }

    pub async fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            self.process.assert_running();
            match self.get("/readyz").await {
                Some((200, _)) => return,
                answer => assert!(
                    Instant::now() < deadline,
                    "the webhook isn't ready after {START_LIMIT:?}; it says {answer:?}\n{}",
                    self.process.log_tail()
                ),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Where it takes reviews.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// Returns the address of the admin listener: liveness, readiness and metrics.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_listen
    }

    /// Its configuration file, for tests that change it under the running process.
    pub fn config(&self) -> PathBuf {
        self.folder.path().join("config.yaml")
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Standard output and standard error so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Standard output and standard error once they have this text: lines are written a moment late.
    pub async fn log_with(&self, text: &str) -> String {
        super::eventually(text, LOGGED_BY, async || {
            Some(self.log()).filter(|log| log.contains(text))
        })
        .await
    }

    /// The status of `/readyz`; nothing if nobody answers.
    pub async fn readiness(&self) -> Option<u16> {
        self.get("/readyz").await.map(|(status, _)| status)
    }

    /// The status of `/livez`; nothing if nobody answers.
    pub async fn liveness(&self) -> Option<u16> {
        self.get("/livez").await.map(|(status, _)| status)
    }

    /// `/metrics`, as Prometheus reads it.
    pub async fn metrics(&self) -> String {
        let (status, body) = self
            .get("/metrics")
            .await
            .expect("the admin listener answers");
        assert_eq!(status, 200, "/metrics: {body}");
        body
    }

    /// The sum of all series of this name that have these labels: `name` or `name{label="value",…}`. Nothing counted yet
    /// is 0.
    pub async fn metric(&self, series: &str) -> f64 {
        sum(&self.metrics().await, series)
    }

    /// Sends a signal by its name: `STOP`, `CONT`, `HUP`.
    pub fn signal(&self, signal: &str) {
        self.process.signal(signal);
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop(&mut self) -> ExitStatus {
        self.process.signal("TERM");
        self.process.ended(STOP_LIMIT).await
    }

    /// Waits for the end that something else has brought about.
    pub async fn ended(&mut self) -> ExitStatus {
        self.process.ended(STOP_LIMIT).await
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Status and body. HTTP/1.0, so that the body ends where the connection does.
    async fn get(&self, path: &str) -> Option<(u16, String)> {
        let exchange = async {
            let mut connection = TcpStream::connect(self.admin_listen).await?;
            let request = format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.admin_listen);
            connection.write_all(request.as_bytes()).await?;
            let mut response = String::new();
            connection.read_to_string(&mut response).await?;
            Ok::<_, std::io::Error>(response)
        };
        let response = tokio::time::timeout(Duration::from_secs(5), exchange)
            .await
            .ok()?
            .ok()?;
        let (head, body) = response.split_once("\r\n\r\n")?;
        let status = head.split(' ').nth(1)?.parse().ok()?;
        Some((status, body.to_owned()))
    }
}

/// Cargo says where it is when it compiles integration tests and benches, and nowhere else.
pub fn built_for_tests() -> PathBuf {
    let Some(binary) = option_env!("CARGO_BIN_EXE_ecr-injector") else {
        panic!("outside of tests and benches, webhook::Options::binary has to be set");
    };
    binary.into()
}

/// The sum of the series of a Prometheus exposition that match. Labels may stand in any order; their values hold no comma.
pub fn sum(exposition: &str, series: &str) -> f64 {
    let (name, labels) = name_and_labels(series);
    exposition
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(candidate, _)| {
            let (candidate, present) = name_and_labels(candidate);
            candidate == name && labels.iter().all(|label| present.contains(label))
        })
        .map(|(_, value)| value.parse::<f64>().unwrap())
        .sum()
}

fn name_and_labels(series: &str) -> (&str, Vec<&str>) {
    match series.split_once('{') {
        None => (series, Vec::new()),
        Some((name, labels)) => (name, labels.trim_end_matches('}').split(',').collect()),
    }
}
