//! The helper as a process, and what each run has to keep to: no secret but in an answer.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;
use tokio::process::{Child, Command};

use crate::support::FakeAws;

pub(crate) const R: &str = "210987654321.dkr.ecr.eu-west-1.amazonaws.com";
pub(crate) const REGION: &str = "eu-west-1";
pub(crate) const NOT_FOUND: &str = "credentials not found in native keychain\n";
pub(crate) const BUILT: &str = env!("CARGO_BIN_EXE_ecr-credentials");
/// Where a machine has it: not in the PATH of any test.
const HELPER: &str = "opt/docker-credential-ecr-injector";
/// When a run that doesn't end is given up.
const PATIENCE: Duration = Duration::from_mins(1);

/// A machine with a home, and the environment of its runs.
pub(crate) struct Machine<'a> {
    pub(crate) aws: &'a FakeAws,
    pub(crate) folder: TempDir,
    variables: Vec<(String, String)>,
}

/// A run that has ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) took: Duration,
}

impl<'a> Machine<'a> {
    /// With the fake's endpoints and no credentials.
    pub(crate) fn without_credentials(aws: &'a FakeAws) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        fs::create_dir(&home).unwrap();
        let helper = folder.path().join(HELPER);
        fs::create_dir(helper.parent().unwrap()).unwrap();
        symlink(BUILT, helper).unwrap();
        Self {
            aws,
            variables: aws.endpoints(),
            folder,
        }
        .set("HOME", home.to_str().unwrap())
        .set("AWS_EC2_METADATA_DISABLED", "true")
    }

    /// With the fake's static keys.
    pub(crate) fn with_keys(aws: &'a FakeAws) -> Self {
        Self::without_credentials(aws).variables(aws.static_keys())
    }

    pub(crate) fn set(mut self, name: &str, value: &str) -> Self {
        self.variables.retain(|(given, _)| given != name);
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn unset(mut self, name: &str) -> Self {
        self.variables.retain(|(given, _)| given != name);
        self
    }

    pub(crate) fn variables(self, variables: Vec<(String, String)>) -> Self {
        let mut variables = variables.into_iter();
        variables
            .try_fold(self, |machine, (name, value)| {
                Some(machine.set(&name, &value))
            })
            .unwrap()
    }

    /// A variable whose value is the path of a file with this content.
    pub(crate) fn file(self, variable: &str, content: &str) -> Self {
        let path = self.folder.path().join(variable);
        fs::write(&path, content).unwrap();
        self.set(variable, path.to_str().unwrap())
    }

    pub(crate) fn config(self, yaml: &str) -> Self {
        let yaml = crate::support::config_file(yaml);
        self.file("ECR_INJECTOR_CONFIG", &yaml)
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    /// The folder of the cache, where the environment names none.
    pub(crate) fn cache(&self) -> PathBuf {
        self.home().join(".ecr")
    }

    /// The helper's own cache; null if there is none.
    pub(crate) fn own(&self) -> Value {
        let text = fs::read_to_string(self.cache().join("ecr-injector.json"));
        text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap())
    }

    /// Makes all kept tokens of both caches older by this time.
    pub(crate) fn age(&self, by: SignedDuration) {
        let older = |value: &mut Value| {
            let at: Timestamp = value.as_str().unwrap().parse().unwrap();
            *value = (at - by).to_string().into();
        };
        let edit = |name: &str, change: &dyn Fn(&mut Value)| {
            let path = self.cache().join(name);
            if let Ok(text) = fs::read_to_string(&path) {
                let mut file = serde_json::from_str(&text).unwrap();
                change(&mut file);
                fs::write(&path, file.to_string()).unwrap();
            }
        };
        edit("ecr-injector.json", &|file| {
            for entry in file["entries"].as_array_mut().unwrap() {
                older(&mut entry["mintedAt"]);
                older(&mut entry["expiresAt"]);
            }
        });
        edit("cache.json", &|file| {
            for entry in file["Registries"].as_object_mut().unwrap().values_mut() {
                older(&mut entry["RequestedAt"]);
                older(&mut entry["ExpiresAt"]);
            }
        });
    }

    /// The small binary under the helper's name.
    pub(crate) fn program(&self) -> PathBuf {
        self.folder.path().join(HELPER)
    }

    pub(crate) fn spawn(&self, program: &Path, arguments: &[&str]) -> Child {
        Command::new(program)
            .args(arguments)
            .env_clear()
            .envs(self.variables.clone())
            .current_dir(self.folder.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    pub(crate) async fn run(&self, arguments: &[&str], input: &str) -> Run {
        self.run_as(&self.program(), arguments, input).await
    }

    pub(crate) async fn run_as(&self, program: &Path, arguments: &[&str], input: &str) -> Run {
        let start = Instant::now();
        let mut child = self.spawn(program, arguments);
        let mut stdin = child.stdin.take().unwrap();
        // Not every action reads it.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await;
        let output = output
            .unwrap_or_else(|_| panic!("{arguments:?} doesn't end"))
            .unwrap();
        let run = Run {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
            took: start.elapsed(),
        };
        let shown = if run.code == Some(0) { "" } else { &run.out };
        for text in [shown, &run.err] {
            assert_eq!(self.aws.leak_in(text), None, "a secret is shown: {run:#?}");
        }
        assert!(run.err.lines().all(|line| line.len() <= 1024), "{run:#?}");
        assert!(!run.err.contains("panicked"), "{run:#?}");
        for file in files(&self.home()) {
            assert_eq!(self.aws.leak_in(&file), None, "a secret is in a name");
        }
        run
    }

    pub(crate) async fn get(&self, server: &str) -> Run {
        self.run(&["get"], server).await
    }
}

impl Run {
    /// It answered with the token that the fake gave last.
    #[track_caller]
    pub(crate) fn answered(&self, aws: &FakeAws, server: &str) -> &Self {
        let password = aws.passwords().pop().unwrap();
        self.answered_with(&password, server)
    }

    #[track_caller]
    pub(crate) fn answered_with(&self, password: &str, server: &str) -> &Self {
        let expected = format!(
            "{{\"ServerURL\":\"{server}\",\"Username\":\"AWS\",\"Secret\":\"{password}\"}}\n"
        );
        assert_eq!(self.out, expected, "{self:#?}");
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// It has none, and says nothing.
    #[track_caller]
    pub(crate) fn not_found(&self) {
        self.failed_with(&[]);
        assert_eq!(self.err, "", "{self:#?}");
    }

    /// It has none, and one line with these words says why.
    #[track_caller]
    pub(crate) fn failed_with(&self, words: &[&str]) -> &Self {
        assert_eq!(self.out, NOT_FOUND, "{self:#?}");
        assert_eq!(self.code, Some(1), "{self:#?}");
        for word in words {
            assert!(self.err.contains(word), "no {word:?}: {self:#?}");
        }
        assert!(self.err.lines().count() <= 1, "{self:#?}");
        self
    }

    #[track_caller]
    pub(crate) fn is(&self, code: i32, out: &str, err: &str) {
        assert_eq!(self.out, out, "{self:#?}");
        assert_eq!(self.err, err, "{self:#?}");
        assert_eq!(self.code, Some(code), "{self:#?}");
    }
}

/// The paths of all that is below a folder, links not followed.
pub(crate) fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let entry = entry.unwrap();
            found.push(entry.path().to_str().unwrap().to_owned());
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    found
}
