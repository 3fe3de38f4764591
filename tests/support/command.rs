//! A command of the binary under test that does one thing and ends, as a person runs it.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};

use super::webhook::built_for_tests;

const LIMIT: Duration = Duration::from_mins(2);

/// The result of a command that has ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Starts it in an environment that has this in it and nothing else.
pub fn spawn<A: AsRef<OsStr>>(
    kubeconfig: &Path,
    environment: Vec<(String, String)>,
    arguments: impl IntoIterator<Item = A>,
) -> Child {
    Command::new(built_for_tests())
        .args(arguments)
        .env_clear()
        .envs(environment)
        .env("KUBECONFIG", kubeconfig)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Waits for its end.
pub async fn end(child: Child) -> Ran {
    let output = tokio::time::timeout(LIMIT, child.wait_with_output());
    let output = output.await.expect("ends").unwrap();
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Ctrl-C.
pub async fn interrupt(child: &Child) {
    let id = child.id().unwrap().to_string();
    let sent = Command::new("sh")
        .args(["-c", r#"kill -INT "$1""#, "sh", &id])
        .status();
    assert!(sent.await.unwrap().success());
}
