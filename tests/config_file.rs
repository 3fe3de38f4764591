//! The configuration's file: what is said of it while it is followed.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that can't go on panics"
)]

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ecr_injector::clock::SystemClock;
use ecr_injector::config::live::Live;
use ecr_injector::config::watched::{PERIOD, Watched};
use tokio::time::sleep;

/// Where a test's log lines go.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Lets the follower look three times.
async fn three_periods() {
    sleep(3 * PERIOD + Duration::from_millis(10)).await;
}

#[tokio::test(start_paused = true)]
async fn the_log_has_each_complaint_once_with_path_and_field_and_what_needs_a_restart() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone());
    let _guard = tracing::subscriber::set_default(subscriber.finish());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    std::fs::write(&path, "").unwrap();
    let (config, watched) = Watched::load(&path).unwrap();
    let live = Live::new(config, None);
    tokio::spawn(watched.follow(live, Arc::new(SystemClock), Arc::default(), PERIOD));
    for text in ["allow: {accounts: [\"12\"]}", "secretName: other"] {
        std::fs::write(&path, text).unwrap();
        three_periods().await;
    }
    std::fs::remove_file(&path).unwrap();
    three_periods().await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let path = path.display();
    for line in [
        &format!("{path}: allow.accounts[0]: expected 12 digits in quotes, got \"12\""),
        "a new configuration is in use",
        "fields=secretName",
        "kubectl rollout restart",
        &format!("reading {path}: check the path and its permissions: No such file"),
    ] {
        assert_eq!(text.matches(line).count(), 1, "{line} in:\n{text}");
    }
}
