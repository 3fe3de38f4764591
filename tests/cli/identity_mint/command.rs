//! The command as a process, and what each run has to keep to: an answer within its deadline, and no secret in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::Value;
use tempfile::TempDir;
use tokio::process::Command;

use crate::support::FakeAws;

/// The registry that most tests ask about, in the fake's own account.
pub(crate) const REGISTRY: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
pub(crate) const REGION: &str = "eu-west-1";
pub(crate) const NAMESPACE: &str = "team-a";
pub(crate) const ROLE: &str = "arn:aws:iam::111122223333:role/ecr-pull";

/// The time limit of every run: 10 s for the mint, and 1 s to start a process on a busy machine.
const DEADLINE: Duration = Duration::from_secs(11);
/// When a run that doesn't end is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// A run to be: `ecr-injector identity` and all that it gets.
pub(crate) struct Identity<'a> {
    aws: &'a FakeAws,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    folder: TempDir,
}

/// A run that has ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
    /// Standard output as JSON; null if it isn't.
    pub(crate) report: Value,
}

impl<'a> Identity<'a> {
    /// About this registry, in JSON. Its environment is empty but for a home folder without anything.
    pub(crate) fn of(aws: &'a FakeAws, registry: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap().to_owned();
        Self {
            aws,
            arguments: ["identity", "--registry", registry, "--namespace", NAMESPACE]
                .map(ToOwned::to_owned)
                .to_vec(),
            variables: vec![("HOME".to_owned(), home)],
            folder,
        }
        .argument("-o", "json")
    }

    pub(crate) fn argument(mut self, name: &str, value: &str) -> Self {
        let at = self.arguments.iter().position(|given| given == name);
        if let Some(at) = at {
            value.clone_into(&mut self.arguments[at + 1]);
        } else {
            self.arguments.extend([name, value].map(ToOwned::to_owned));
        }
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

    /// A variable whose value is the path of a file with this content.
    pub(crate) fn file(self, variable: &str, content: &str) -> Self {
        let path = self.write(variable, content);
        self.variable(variable, path.to_str().unwrap())
    }

    /// The configuration file.
    pub(crate) fn config(self, yaml: &str) -> Self {
        let path = self.write("config.yaml", &crate::support::config_file(yaml));
        self.argument("--config", path.to_str().unwrap())
    }

    /// Writes a file that lives as long as the run.
    pub(crate) fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    /// Where a file of this name is, or would be.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Runs it with `--mint`.
    pub(crate) async fn mint(mut self) -> Run {
        self.arguments.push("--mint".to_owned());
        self.run().await
    }

    /// Runs it.
    pub(crate) async fn run(self) -> Run {
        let start = Instant::now();
        let output = Command::new(env!("CARGO_BIN_EXE_ecr-injector"))
            .args(&self.arguments)
            .env_clear()
            .envs(self.variables)
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(PATIENCE, output)
            .await
            .unwrap_or_else(|_| panic!("{:?} doesn't end", self.arguments))
            .unwrap();
        let took = start.elapsed();
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        let report = serde_json::from_str(&out).unwrap_or_default();
        let run = Run {
            code: output.status.code(),
            out,
            err,
            report,
        };
        for text in [&run.out, &run.err] {
            assert_eq!(self.aws.leak_in(text), None, "a secret is shown: {run:#?}");
        }
        assert!(took < DEADLINE, "{took:?}: {run:#?}");
        assert!(!run.err.contains("panicked"), "{run:#?}");
        run
    }
}

impl Run {
    /// It minted, with ambient credentials from this source.
    #[track_caller]
    pub(crate) fn minted(&self, source: &str) -> &Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        assert_eq!(self.report["refusal"], Value::Null, "{self:#?}");
        assert_eq!(self.report["mint"]["credentials"], source, "{self:#?}");
        assert!(self.lasts() > Duration::ZERO, "{self:#?}");
        self
    }

    /// Minting failed, with an error of this kind whose message has these words, on both outputs.
    #[track_caller]
    pub(crate) fn failed(&self, kind: &str, words: &[&str]) -> &Self {
        let error = &self.report["mint"]["error"];
        assert_eq!(error["kind"], kind, "{self:#?}");
        let message = error["message"].as_str().unwrap();
        for word in words {
            assert!(
                message.contains(word),
                "no {word:?} in the message: {self:#?}"
            );
            assert!(self.err.contains(word), "no {word:?} in stderr: {self:#?}");
        }
        assert_eq!(self.code, Some(1), "{self:#?}");
        self
    }

    /// From `mintedAt` to `expiresAt`.
    #[track_caller]
    pub(crate) fn lasts(&self) -> Duration {
        let at = |name: &str| -> Timestamp {
            let text = self.report["mint"][name].as_str();
            text.unwrap_or_else(|| panic!("no {name}: {self:#?}"))
                .parse()
                .unwrap()
        };
        let life = at("expiresAt").duration_since(at("mintedAt"));
        Duration::try_from(life).unwrap_or_default()
    }

    /// It lasts that long, but for the seconds that a slow machine takes.
    #[track_caller]
    pub(crate) fn lasts_about(&self, expected: Duration) {
        let life = self.lasts();
        assert!(
            life <= expected && life + Duration::from_secs(15) > expected,
            "{life:?}, expected {expected:?}: {self:#?}"
        );
    }
}

/// A path as a variable or a configuration file has it.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
