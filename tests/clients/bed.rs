//! A machine with the helper in PATH, docker's configuration, a registry and AWS, all on loopback:
//! a proxy leads the registry's name to it, so that nothing of the machine itself has to be changed.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::registry::Registry;
use crate::support::child::copy_program;
use crate::support::{Authority, ConnectProxy, FakeAws};

/// In the account of the keys.
pub(crate) const R: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const PATIENCE: Duration = Duration::from_mins(2);
/// Where programs are that packages install.
const SYSTEM_PATH: &str = "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin";

pub(crate) struct Bed {
    pub(crate) aws: Arc<FakeAws>,
    pub(crate) registry: Registry,
    pub(crate) folder: TempDir,
    /// Leads all names to AWS.
    to_aws: ConnectProxy,
    /// Leads all names to the registry.
    to_registry: ConnectProxy,
}

#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    #[track_caller]
    pub(crate) fn failed(self) -> Self {
        assert_ne!(self.code, Some(0), "{self:#?}");
        self
    }
}

/// Returns a program that a package installs.
pub(crate) fn installed(name: &str) -> PathBuf {
    let found = env::split_paths(SYSTEM_PATH).map(|folder| folder.join(name));
    let found = found.into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} isn't installed: make test-clients installs it"))
}

/// Returns a program that tests/tools/build.sh builds.
pub(crate) fn built(folder: &str, name: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_BIN_EXE_ecr-credentials"));
    let target = target.ancestors().nth(2).unwrap();
    let path = target.join(folder).join(name);
    assert!(
        path.is_file(),
        "{} isn't built: make test-clients builds it",
        path.display()
    );
    path
}

impl Bed {
    pub(crate) fn start() -> Self {
        let authority = Authority::new("the clients' CA");
        let names = ["127.0.0.1", "api.ecr.eu-west-1.amazonaws.com"];
        let aws = Arc::new(FakeAws::start_tls(&authority, &names));
        let registry = Registry::start(&authority, R, Arc::clone(&aws));
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["home/.docker", "bin", "run"] {
            fs::create_dir_all(path(name)).unwrap();
        }
        fs::set_permissions(path("run"), fs::Permissions::from_mode(0o700)).unwrap();
        let helper = path("bin/docker-credential-ecr-injector");
        copy_program(env!("CARGO_BIN_EXE_ecr-credentials"), helper);
        fs::write(path("ca.pem"), authority.pem()).unwrap();
        let (to_aws, to_registry) = (
            ConnectProxy::start(aws.address()),
            ConnectProxy::start(registry.address),
        );
        let bed = Self {
            aws,
            registry,
            folder,
            to_aws,
            to_registry,
        };
        bed.configure(&json!({"credHelpers": {R: "ecr-injector"}}));
        bed
    }

    /// Writes docker's configuration, which all clients read.
    pub(crate) fn configure(&self, config: &serde_json::Value) {
        fs::write(self.path("home/.docker/config.json"), config.to_string()).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A client, whose helper finds AWS by its variables and whose registry is behind the proxy.
    pub(crate) async fn client(&self, program: &Path, arguments: &[&str]) -> Ran {
        self.client_with(program, arguments, &[], "").await
    }

    pub(crate) async fn client_with(
        &self,
        program: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
        input: &str,
    ) -> Ran {
        let mut command = self.command(program, arguments, &self.to_registry);
        // The names of AWS aren't led to the registry.
        command.envs(self.aws.endpoints());
        command.env("NO_PROXY", "127.0.0.1");
        command.envs(variables.iter().copied());
        run(command, input).await
    }

    /// A helper, which reaches AWS by its names.
    pub(crate) async fn helper(&self, program: &Path, action: &str, input: &str) -> Ran {
        let command = self.command(program, &[action], &self.to_aws);
        run(command, input).await
    }

    fn command(&self, program: &Path, arguments: &[&str], proxy: &ConnectProxy) -> Command {
        let path = format!("{}:{SYSTEM_PATH}", self.path("bin").display());
        let authority = self.path("ca.pem");
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .envs(self.aws.static_keys())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("AWS_CA_BUNDLE", &authority)
            .env("SSL_CERT_FILE", &authority)
            .env("HTTPS_PROXY", proxy.url())
            .env("HOME", self.path("home"))
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .env("PATH", path)
            .current_dir(self.folder.path());
        command
    }
}

async fn run(mut command: Command, input: &str) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let _ = stdin.write_all(input.as_bytes()).await;
    drop(stdin);
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
    let output = output
        .unwrap_or_else(|_| panic!("{command:?} doesn't end"))
        .unwrap();
    Ran {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
