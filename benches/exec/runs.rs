//! The runs: programs with their input and environment, and one measurement of one of them.

use std::fmt;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use tempfile::TempDir;
use wait4::Wait4 as _;

use crate::support::fake_aws::metadata::InstanceMetadata;
use crate::support::fake_aws::web_identity_token;
use crate::support::{Authority, FakeAws};

const REGISTRY: &str = "210987654321.dkr.ecr.eu-west-1.amazonaws.com";
const ROLE: &str = "arn:aws:iam::210987654321:role/puller";
/// The system's authorities, as Debian has them.
const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The most that a run may take.
#[derive(Clone, Copy)]
pub struct Must {
    pub milliseconds: f64,
    pub megabytes: f64,
}

impl fmt::Display for Must {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "≤ {} ms, ≤ {} MB", self.milliseconds, self.megabytes)
    }
}

/// A program to run, again and again.
#[derive(Clone)]
pub struct Run {
    pub name: String,
    pub must: Option<Must>,
    /// Whether it asks AWS.
    pub asks: bool,
    program: PathBuf,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    input: PathBuf,
    expected: &'static str,
}

/// One run's figures.
#[derive(Clone, Copy)]
pub struct Sample {
    pub milliseconds: f64,
    pub cpu_milliseconds: f64,
}

/// The fake AWS, and the files of all runs.
pub struct Bed {
    pub aws: FakeAws,
    metadata: InstanceMetadata,
    folder: TempDir,
}

impl Bed {
    pub fn new(ours: &Path) -> Self {
        crate::support::crypto();
        let authority = Authority::new("bench");
        let aws = FakeAws::start_tls(&authority, &["127.0.0.1", "localhost"]);
        let metadata = InstanceMetadata::start(&aws, "node");
        let folder = tempfile::tempdir().unwrap();
        let bed = Self {
            aws,
            metadata,
            folder,
        };
        // A copy, as on a node: the kernel maps a file that a linker wrote in smaller pieces.
        fs::copy(ours, bed.path("ecr-credentials")).unwrap();
        for name in ["ecr-credential-provider", "docker-credential-ecr-injector"] {
            symlink(bed.path("ecr-credentials"), bed.path(name)).unwrap();
        }
        for name in ["home", "no-certificates", "node", "ours", "theirs"] {
            fs::create_dir(bed.path(name)).unwrap();
        }
        let system = fs::read_to_string(SYSTEM).expect("the package ca-certificates");
        fs::write(bed.path("bundle"), format!("{system}{}", authority.pem())).unwrap();
        let token = web_identity_token("shop");
        let account = json!({
            "serviceAccountToken": token,
            "serviceAccountAnnotations": {"eks.amazonaws.com/ecr-role-arn": ROLE},
        });
        for (name, input) in [
            (
                "image",
                request(&format!("{REGISTRY}/shop/web"), &json!({})),
            ),
            (
                "account",
                request(&format!("{REGISTRY}/shop/web"), &account),
            ),
            ("stranger", request("registry.example/shop/web", &json!({}))),
            ("host", REGISTRY.to_owned()),
            ("hub", "https://index.docker.io/v1/".to_owned()),
            ("nothing", String::new()),
        ] {
            fs::write(bed.path(name), input).unwrap();
        }
        bed
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// Reads the bundle alone: Go reads a whole directory beside it unless that is named.
    fn run(&self, name: &str, program: &Path, input: &str, expected: &'static str) -> Run {
        let mut variables = self.aws.environment();
        variables.extend(
            [
                ("HOME", self.text("home")),
                ("SSL_CERT_FILE", self.text("bundle")),
                ("SSL_CERT_DIR", self.text("no-certificates")),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        Run {
            name: name.to_owned(),
            must: None,
            asks: true,
            program: program.to_owned(),
            arguments: Vec::new(),
            variables,
            input: self.path(input),
            expected,
        }
    }

    /// Groups of runs that do the same; the first of each is ours.
    pub fn plugin_runs(&self, theirs: Option<&Path>) -> Vec<Vec<Run>> {
        let ours = self.path("ecr-credential-provider");
        let run = |name: &str, input: &str| self.run(name, &ours, input, "\"auth\"");
        let cold = run("plugin, no cache", "image").arguments(&["--cache-dir", "none"]);
        let account = run("plugin, ServiceAccount's token, no cache", "account");
        let account = account.arguments(&["--cache-dir", "none"]);
        let cached = run("plugin, from its cache", "image");
        let cached = cached
            .arguments(&["--cache-dir", &self.text("ours")])
            .at_hand();
        let stranger = self.run("plugin, no host of ECR", &ours, "stranger", "\"600s\"");
        let stranger = stranger.at_hand();
        let mut groups = vec![
            vec![cold.must(5.4, 6.0)],
            vec![account.must(8.0, 6.0)],
            vec![cached.must(1.3, 3.0)],
            vec![stranger.arguments(&["--cache-dir", "none"]).must(1.0, 3.0)],
        ];
        if let Some(theirs) = theirs {
            let run = |name: &str, input: &str| {
                let run = self.run(name, theirs, input, "\"auth\"");
                run.arguments(&["get-credentials"])
            };
            groups[0].push(run("  cloud-provider-aws, bundle only", "image"));
            groups[0].push(run("  cloud-provider-aws, as it is by default", "image").by_default());
            groups[1].push(run("  cloud-provider-aws, bundle only", "account"));
        }
        groups
    }

    /// Groups of runs that do the same; the first of each is ours.
    pub fn helper_runs(&self, theirs: Option<&Path>) -> Vec<Vec<Run>> {
        let ours = self.path("docker-credential-ecr-injector");
        let of = |program: &Path, cache: &str, name: &str, input: &str, expected| {
            self.run(name, program, input, expected)
                .arguments(&["get"])
                .variable("AWS_ECR_CACHE_DIR", &self.text(cache))
        };
        let ours_of = |name: &str, input: &str, expected| of(&ours, "ours", name, input, expected);
        let list = self.run("helper, list", &ours, "nothing", "AWS");
        let list = list.variable("AWS_ECR_CACHE_DIR", &self.text("ours"));
        let cached = |run: Run| run.at_hand().must(0.9, 2.8);
        let mut groups = vec![
            vec![
                ours_of("helper, no cache", "host", "Secret")
                    .without_cache()
                    .must(4.5, 4.4),
            ],
            vec![cached(ours_of("helper, from its cache", "host", "Secret"))],
            vec![cached(ours_of("helper, not found", "hub", "not found"))],
            vec![cached(list.arguments(&["list"]))],
        ];
        if let Some(theirs) = theirs {
            let theirs_of =
                |name: &str, input: &str, expected| of(theirs, "theirs", name, input, expected);
            let bundle = "  amazon-ecr-credential-helper, bundle only";
            groups[0].push(theirs_of(bundle, "host", "Secret").without_cache());
            let default = "  amazon-ecr-credential-helper, by default";
            let cold = theirs_of(default, "host", "Secret").without_cache();
            groups[0].push(cold.by_default());
            let peer = "  amazon-ecr-credential-helper";
            groups[1].push(theirs_of(peer, "host", "Secret").at_hand());
            groups[2].push(theirs_of(peer, "hub", "not found").at_hand());
        }
        groups
    }

    /// The runs whose functions the linker puts beside each other: ours, those of a node that has its credentials from the
    /// instance metadata and finds AWS by its name, and one that finds nobody.
    pub fn order_runs(&self) -> Vec<Run> {
        let groups = self
            .plugin_runs(None)
            .into_iter()
            .chain(self.helper_runs(None));
        let mut runs: Vec<Run> = groups.flatten().collect();
        let plugin = self.path("ecr-credential-provider");
        let mut node = self.run("plugin, of a node", &plugin, "image", "\"auth\"");
        let given = ["KEY", "METADATA_DISABLED", "SSL_CERT_DIR"];
        node.variables
            .retain(|(name, _)| !given.iter().any(|text| name.contains(text)));
        for (_, value) in &mut node.variables {
            *value = value.replace("//127.0.0.1:", "//localhost:");
        }
        node.variables.extend(self.metadata.environment());
        let cache = self.text("node");
        runs.push(node.arguments(&["--cache-dir", &cache]));
        let away = self.run("plugin, no way to AWS", &plugin, "image", "");
        let away = away.variable("AWS_ENDPOINT_URL_ECR", "https://127.0.0.1:1");
        runs.push(away.arguments(&["--cache-dir", "none"]));
        // The first time the caches are written, the second time they are read.
        [runs.clone(), runs].concat()
    }

    /// A run of the plugin with a cache that is empty.
    pub fn cold_plugin_run(&self) -> Run {
        let ours = self.path("ecr-credential-provider");
        let cache = self.path("cold");
        fs::create_dir(&cache).unwrap();
        let run = self.run("plugin", &ours, "image", "\"auth\"");
        run.arguments(&["--cache-dir", cache.to_str().unwrap()])
    }
}

impl Run {
    fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(ToString::to_string).collect();
        self
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    fn without_cache(self) -> Self {
        self.variable("AWS_ECR_DISABLE_CACHE", "1")
    }

    /// Has its answer without AWS.
    fn at_hand(mut self) -> Self {
        self.asks = false;
        self
    }

    /// Reads what a program reads by default: the bundle, and in Go each file of the directory too.
    fn by_default(mut self) -> Self {
        self.variables.retain(|(name, _)| name != "SSL_CERT_DIR");
        self
    }

    fn must(mut self, milliseconds: f64, megabytes: f64) -> Self {
        self.must = Some(Must {
            milliseconds,
            megabytes,
        });
        self
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .envs(self.variables.iter().cloned())
            .current_dir("/")
            .stdin(File::open(&self.input).unwrap())
            .stderr(Stdio::piped())
            .stdout(Stdio::piped());
        command
    }

    /// Runs it once, and checks its answer.
    pub fn once(&self) -> Sample {
        let started = Instant::now();
        let mut command = self.command(&self.program);
        let mut child = command.args(&self.arguments).spawn().unwrap();
        // An answer fits into the pipe.
        let used = child.wait4().unwrap();
        let took = started.elapsed();
        let mut answer = String::new();
        let mut pipe = child.stdout.take().unwrap();
        pipe.read_to_string(&mut answer).unwrap();
        self.check(&answer);
        let cpu = used.rusage.utime + used.rusage.stime;
        Sample {
            milliseconds: took.as_secs_f64() * 1e3,
            cpu_milliseconds: cpu.as_secs_f64() * 1e3,
        }
    }

    /// Runs it once as a child of another program.
    pub fn below(&self, program: &str, arguments: &[&str]) {
        let mut command = self.command(Path::new(program));
        command.args(arguments).arg(&self.program);
        let path = std::env::var("PATH").unwrap();
        let output = command.args(&self.arguments).env("PATH", path).output();
        let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
        self.check(&String::from_utf8_lossy(&output.stdout));
    }

    fn check(&self, answer: &str) {
        let answered = answer.contains(self.expected);
        assert!(answered, "{}: answered {answer:.200}", self.name);
    }

    /// Runs it once as a child of GNU time, and returns its peak. A child's peak begins with the size of who started it,
    /// and this process is larger than what it measures.
    pub fn peak_megabytes(&self) -> f64 {
        let report = tempfile::NamedTempFile::new().unwrap();
        let mut command = self.command(Path::new("/usr/bin/time"));
        command.args(["--format=%M", "--quiet", "--output"]);
        command.arg(report.path()).arg(&self.program);
        let output = command.args(&self.arguments).output();
        let output = output.expect("GNU time (Debian: apt-get install time)");
        self.check(&String::from_utf8_lossy(&output.stdout));
        let kibibytes: f64 = fs::read_to_string(report).unwrap().trim().parse().unwrap();
        kibibytes * 1024.0 / 1e6
    }
}

/// The kubelet's request for an image.
fn request(image: &str, more: &Value) -> String {
    let mut request = json!({
        "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
        "kind": "CredentialProviderRequest",
        "image": image,
    });
    let fields = more.as_object().unwrap().clone();
    request.as_object_mut().unwrap().extend(fields);
    request.to_string()
}
