//! The plugin as a process, and what each run has to keep to: one line of JSON or of reasons, and no secret in the reasons.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use crate::support::FakeAws;

pub(crate) const REGISTRY: &str = "210987654321.dkr.ecr.eu-west-1.amazonaws.com";
pub(crate) const V1: &str = "credentialprovider.kubelet.k8s.io/v1";
const PATIENCE: Duration = Duration::from_mins(1);

/// A node on which the plugin is installed.
pub(crate) struct Node<'a> {
    pub(crate) aws: &'a FakeAws,
    folder: TempDir,
}

/// A run to be.
#[derive(Clone)]
pub(crate) struct Run {
    program: PathBuf,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    input: Vec<u8>,
}

/// A run that has ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) took: Duration,
}

/// The request of an image in v1.
pub(crate) fn request(image: &str) -> Value {
    json!({"apiVersion": V1, "kind": "CredentialProviderRequest", "image": image})
}

impl<'a> Node<'a> {
    pub(crate) fn new(aws: &'a FakeAws) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("ecr-credential-provider");
        symlink(env!("CARGO_BIN_EXE_ecr-credentials"), program).unwrap();
        Self { aws, folder }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The folder of the tokens.
    pub(crate) fn tokens(&self) -> PathBuf {
        self.path("tokens")
    }

    /// A run for an image of [`REGISTRY`], with the fake's keys and endpoints.
    pub(crate) fn run(&self) -> Run {
        self.bare().variables(self.aws.environment())
    }

    /// With an empty environment.
    pub(crate) fn bare(&self) -> Run {
        let run = Run {
            program: self.path("ecr-credential-provider"),
            arguments: Vec::new(),
            variables: Vec::new(),
            input: Vec::new(),
        };
        let tokens = self.tokens();
        run.arguments(&["--cache-dir", tokens.to_str().unwrap()])
            .image(&format!("{REGISTRY}/shop/web"))
    }
}

impl Run {
    pub(crate) fn program(mut self, program: &Path) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    pub(crate) fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments
            .extend(arguments.iter().map(ToString::to_string));
        self
    }

    /// Puts an argument before all others.
    pub(crate) fn first(mut self, argument: &str) -> Self {
        self.arguments.insert(0, argument.to_owned());
        self
    }

    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn variables(
        mut self,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        self.variables.extend(variables);
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.variables.retain(|(set, _)| set != name);
        self
    }

    pub(crate) fn image(self, image: &str) -> Self {
        self.input(request(image).to_string())
    }

    pub(crate) fn request(self, request: &Value) -> Self {
        self.input(request.to_string())
    }

    pub(crate) fn input(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = input.into();
        self
    }

    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env_clear()
            .envs(self.variables.iter().cloned())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts it and sends the request.
    pub(crate) async fn spawn(&self) -> Child {
        let mut child = self.command().spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // An error is a program that reads no more.
        let _ = stdin.write_all(&self.input).await;
        child
    }

    pub(crate) async fn end(&self) -> Ran {
        let start = Instant::now();
        let child = self.spawn().await;
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output());
        let output = output.await.expect("ends").unwrap();
        let ran = Ran {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
            took: start.elapsed(),
        };
        let long = ran.err.lines().find(|line| line.len() >= 1024);
        assert_eq!(long, None);
        assert!(!ran.err.contains("panicked"), "{ran:?}");
        ran
    }
}

impl Node<'_> {
    /// Runs it, and checks that no secret is where it must not be.
    pub(crate) async fn answer(&self, run: &Run) -> Ran {
        let ran = run.end().await;
        self.keeps_secrets(&ran);
        ran
    }

    pub(crate) fn keeps_secrets(&self, ran: &Ran) {
        assert_eq!(self.aws.leak_in(&ran.err), None, "{ran:?}");
        if ran.code != Some(0) {
            assert_eq!(ran.out, "", "{ran:?}");
        }
    }
}

impl Ran {
    /// The response, decoded as strictly as the kubelet does.
    pub(crate) fn response(&self) -> Value {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert!(self.out.ends_with('\n') && self.out.lines().count() == 1);
        let response: Value = serde_json::from_str(&self.out).unwrap();
        let known = [
            "apiVersion",
            "kind",
            "cacheKeyType",
            "cacheDuration",
            "auth",
        ];
        for name in response.as_object().unwrap().keys() {
            assert!(known.contains(&&**name), "{name}");
        }
        assert_eq!(response["kind"], "CredentialProviderResponse");
        assert_eq!(response["cacheKeyType"], "Registry");
        for (_, credential) in response["auth"].as_object().into_iter().flatten() {
            assert_eq!(credential.as_object().unwrap().len(), 2);
            assert_eq!(credential["username"], "AWS");
        }
        response
    }

    /// The key of the one credential, and its password.
    pub(crate) fn credential(&self) -> (String, String) {
        let response = self.response();
        let auth = response["auth"].as_object().expect("credentials");
        assert_eq!(auth.len(), 1);
        let (host, credential) = auth.iter().next().unwrap();
        let password = credential["password"].as_str().unwrap();
        (host.clone(), password.to_owned())
    }

    pub(crate) fn password(&self) -> String {
        self.credential().1
    }

    /// How long the kubelet may keep the response, in seconds.
    pub(crate) fn keep(&self) -> u64 {
        let response = self.response();
        let keep = response["cacheDuration"].as_str().unwrap();
        keep.strip_suffix('s').unwrap().parse().unwrap()
    }

    /// Has no credentials, and may be kept for so many seconds.
    pub(crate) fn has_none(&self, keep: u64) {
        assert_eq!(self.response().get("auth"), None, "{self:?}");
        assert_eq!(self.keep(), keep, "{self:?}");
    }

    /// Failed with one line that has these texts.
    pub(crate) fn failed(&self, code: i32, texts: &[&str]) {
        assert_eq!((self.code, &*self.out), (Some(code), ""), "{self:?}");
        assert_eq!(self.err.lines().count(), 1, "{self:?}");
        assert!(
            self.err.starts_with("ecr-credential-provider: "),
            "{self:?}"
        );
        for text in texts {
            assert!(self.err.contains(text), "{text:?} in {self:?}");
        }
    }
}
