//! The release, as far as nothing has to be built for it: that its checks find a file of another
//! version or with another digest, and that the workflows call what the Makefile has.
//! `make release-dry-run` makes and checks a whole one.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

const VERSION: &str = env!("CARGO_PKG_VERSION");
const HOME: &str = "https://github.com/ecr-injector/ecr-injector";
const ARCHITECTURES: [&str; 2] = ["amd64", "arm64"];
const GROUPS: [&str; 6] = [
    "archives",
    "image",
    "chart",
    "manifest",
    "krew",
    "checksums",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

fn sha256(bytes: &[u8]) -> String {
    let mut digest = String::new();
    for byte in Sha256::digest(bytes) {
        let _ = write!(digest, "{byte:02x}");
    }
    digest
}

/// Runs a subcommand of image/release.py, and returns whether it succeeds and all that it prints.
fn release(arguments: &[&str]) -> (bool, String) {
    let mut python = Command::new("python3");
    let python = python.arg("image/release.py").args(arguments);
    let output = python.current_dir(root()).output().unwrap();
    let printed = [output.stdout, output.stderr].concat();
    (
        output.status.success(),
        String::from_utf8(printed).unwrap().trim().to_owned(),
    )
}

#[track_caller]
fn succeeds(arguments: &[&str]) -> String {
    let (succeeded, printed) = release(arguments);
    assert!(succeeded, "{printed}");
    printed
}

/// Packs a folder.
fn pack(folder: &Path, archive: &Path) {
    let mut tar = Command::new("tar");
    tar.arg("--create").arg("--file").arg(archive);
    if archive.extension().is_some_and(|it| it != "tar") {
        tar.arg("--gzip");
    }
    tar.arg("--directory").arg(folder);
    for entry in fs::read_dir(folder).unwrap() {
        tar.arg(entry.unwrap().file_name());
    }
    assert!(tar.status().unwrap().success());
}

fn write(path: PathBuf, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// Replaces a text that a file has, as a wrong step would.
fn replace(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{} lacks {from}", path.display());
    fs::write(path, text.replace(from, to)).unwrap();
}

/// The files of a release, whose programs are texts.
struct Files {
    folder: TempDir,
    digest: String,
}

impl Files {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let mut files = Self {
            digest: String::new(),
            folder,
        };
        let images = ARCHITECTURES.map(|arch| files.image_of(arch, VERSION));
        files.archives();
        files.write_index(&images);
        files.chart(VERSION);
        files.manifest();
        for sbom in Files::names()
            .iter()
            .filter(|it| it.ends_with(".spdx.json"))
        {
            fs::write(files.path(sbom), "{}").unwrap();
        }
        files.run("krew", &[]);
        files.run("checksums", &[]);
        files
    }

    /// Returns a copy, for a test to spoil.
    fn copy(&self) -> Self {
        let folder = TempDir::new().unwrap();
        let mut copy = Command::new("cp");
        let copy = copy.arg("-R").arg(self.folder.path().join("."));
        assert!(copy.arg(folder.path()).status().unwrap().success());
        Self {
            folder,
            digest: self.digest.clone(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join("files").join(name)
    }

    fn work(&self, name: &str) -> PathBuf {
        self.folder.path().join("work").join(name)
    }

    #[track_caller]
    fn run(&self, command: &str, arguments: &[&str]) -> String {
        let folder = self.path("");
        let common = ["--version", VERSION, "--folder", folder.to_str().unwrap()];
        succeeds(&[&[command][..], &common, arguments].concat())
    }

    /// Returns what the checks find.
    fn faults(&self) -> String {
        let folder = self.path("");
        let mut arguments = vec!["check", "--version", VERSION, "--folder"];
        arguments.push(folder.to_str().unwrap());
        for group in GROUPS {
            arguments.extend(["--only", group]);
        }
        let (succeeded, printed) = release(&arguments);
        assert_eq!(succeeded, printed.contains("is as expected"), "{printed}");
        printed
    }

    fn names() -> Vec<String> {
        let mut names = vec![
            format!("ecr-injector-{VERSION}-image.tar"),
            format!("ecr-injector-{VERSION}.tgz"),
            "install.yaml".to_owned(),
            "krew.yaml".to_owned(),
        ];
        for program in ["ecr-injector", "ecr-credentials"] {
            for arch in ARCHITECTURES {
                for kind in ["tar.gz", "spdx.json"] {
                    names.push(format!("{program}-{VERSION}-linux-{arch}.{kind}"));
                }
            }
        }
        names
    }

    /// Makes the OCI archive that image/build.sh would make.
    fn image_of(&self, arch: &str, version: &str) -> PathBuf {
        let (layout, layer) = (self.work(&format!("layout-{arch}")), self.work("layer"));
        let _ = fs::remove_dir_all(&layout);
        write(
            layer.join("usr/local/bin/ecr-injector"),
            format!("ecr-injector of {arch}"),
        );
        pack(&layer, &self.work("layer.tar.gz"));
        let blob = |media: &str, content: &[u8]| {
            let digest = sha256(content);
            write(layout.join("blobs/sha256").join(&digest), content);
            json!({"mediaType": media, "digest": format!("sha256:{digest}"), "size": content.len()})
        };
        let layer = fs::read(self.work("layer.tar.gz")).unwrap();
        let labels = json!({
            "org.opencontainers.image.version": version,
            "org.opencontainers.image.source": HOME,
        });
        let config =
            json!({"architecture": arch, "os": "linux", "config": {"Labels": labels}}).to_string();
        let config = blob(
            "application/vnd.oci.image.config.v1+json",
            config.as_bytes(),
        );
        let layer = blob("application/vnd.oci.image.layer.v1.tar+gzip", &layer);
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": [layer]}).to_string();
        let manifest = blob(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.as_bytes(),
        );
        let index = json!({"schemaVersion": 2, "manifests": [manifest]}).to_string();
        write(layout.join("index.json"), index);
        let archive = self.work(&format!("{arch}.tar"));
        pack(&layout, &archive);
        archive
    }

    fn write_index(&mut self, images: &[PathBuf]) {
        let [amd64, arm64] = images else {
            panic!("two images")
        };
        let images = [
            "--epoch",
            "1700000000",
            amd64.to_str().unwrap(),
            arm64.to_str().unwrap(),
        ];
        self.digest = self.run("index", &images);
    }

    fn archives(&self) {
        let extra = [
            "completions/ecr-injector.bash",
            "completions/_ecr-injector",
            "completions/ecr-injector.fish",
            "completions/ecr-injector.elv",
            "completions/_ecr-injector.ps1",
            "man/ecr-injector.1",
            "man/ecr-injector-doctor.1",
        ];
        fs::create_dir_all(self.path("")).unwrap();
        for program in ["ecr-injector", "ecr-credentials"] {
            for arch in ARCHITECTURES {
                let folder = self.work(&format!("{program}-{arch}"));
                write(folder.join(program), format!("{program} of {arch}"));
                write(folder.join("LICENSE"), "a license");
                for name in extra {
                    write(folder.join(name), name);
                }
                pack(
                    &folder,
                    &self.path(&format!("{program}-{VERSION}-linux-{arch}.tar.gz")),
                );
            }
        }
    }

    /// Packs the chart as image/release.sh does, with another version in it.
    fn chart(&self, version: &str) {
        let chart = self.work("chart/ecr-injector");
        let metadata = read("charts/ecr-injector/Chart.yaml").replace(
            &format!("ecr-injector:{VERSION}\n"),
            &format!("ecr-injector:{VERSION}@{}\n", self.digest),
        );
        let metadata = metadata.replace(
            &format!("appVersion: \"{VERSION}\""),
            &format!("appVersion: \"{version}\""),
        );
        let values = read("charts/ecr-injector/values.yaml");
        let digest = format!("\n  digest: \"{}\"\n", self.digest);
        let values = values.replace("\n  digest: \"\"\n", &digest);
        write(chart.join("Chart.yaml"), metadata);
        write(chart.join("values.yaml"), values);
        let archive = self.path(&format!("ecr-injector-{VERSION}.tgz"));
        pack(&self.work("chart"), &archive);
    }

    fn manifest(&self) {
        let image = format!("ecr-injector/ecr-injector@{}", self.digest);
        let text = read("deploy/deployment.yaml")
            .replace(&format!("ecr-injector/ecr-injector:{VERSION}"), &image)
            .replace("none is published yet", "");
        fs::write(self.path("install.yaml"), text).unwrap();
    }
}

/// A spoiling of the files, and the start of the lines that are expected then, in any order.
type Case = (fn(&mut Files), Vec<String>);

fn cases() -> [Case; 9] {
    let archive = format!("ecr-injector-{VERSION}-linux-arm64.tar.gz");
    let (chart, index) = (
        format!("ecr-injector-{VERSION}.tgz"),
        format!("ecr-injector-{VERSION}-image.tar"),
    );
    [
        (|_| (), vec![]),
        (
            |files| {
                let path = files.path(&format!("ecr-injector-{VERSION}-linux-arm64.tar.gz"));
                write(files.work("other/ecr-injector"), "another program");
                pack(&files.work("other"), &path);
            },
            vec![
                format!("{archive} has no LICENSE"),
                format!("{archive} has no man/ecr-injector.1"),
                format!("{index} (arm64) has another binary than the archive"),
                "krew.yaml has ".to_owned(),
                "SHA256SUMS has ".to_owned(),
            ],
        ),
        (
            |files| {
                let arm64 = files.image_of("arm64", "9.9.9");
                let amd64 = files.work("amd64.tar");
                files.write_index(&[amd64, arm64]);
            },
            vec![
                format!("{index} (arm64) has the version 9.9.9"),
                format!("{chart} has the image.digest sha256:"),
                "install.yaml has the image ".to_owned(),
            ],
        ),
        (
            |files| files.chart("9.9.9"),
            vec![format!("{chart} has the appVersion 9.9.9")],
        ),
        (
            |files| replace(&files.path("install.yaml"), "@sha256:", ":"),
            vec!["install.yaml has the image ".to_owned()],
        ),
        (
            |files| {
                let label = format!("app.kubernetes.io/version: \"{VERSION}\"");
                let other = "app.kubernetes.io/version: \"9.9.9\"";
                replace(&files.path("install.yaml"), &label, other);
            },
            vec!["install.yaml has the version ['9.9.9']".to_owned()],
        ),
        (
            |files| {
                let version = format!("version: v{VERSION}");
                replace(&files.path("krew.yaml"), &version, "version: v9.9.9");
            },
            vec!["krew.yaml has the version 9.9.9".to_owned()],
        ),
        (
            |files| replace(&files.path("krew.yaml"), "linux-arm64", "linux-amd64"),
            vec![format!("krew.yaml has None for {archive}")],
        ),
        (
            |files| {
                let line = "0123  something-else\n";
                let path = files.path("SHA256SUMS");
                fs::write(&path, fs::read_to_string(&path).unwrap() + line).unwrap();
            },
            vec!["SHA256SUMS names something-else".to_owned()],
        ),
    ]
}

#[test]
fn checks_find_what_is_wrong_with_a_release() {
    let right = Files::new();
    for (number, (goes_wrong, expected)) in cases().into_iter().enumerate() {
        let mut files = right.copy();
        goes_wrong(&mut files);
        let found = files.faults();
        if expected.is_empty() {
            let all = format!("release: every file of version {VERSION} is as expected");
            assert_eq!(found, all);
        }
        for line in expected {
            let line = format!("release: {line}");
            assert!(
                found.lines().any(|it| it.starts_with(&line)),
                "case {number} lacks {line:?}:\n{found}"
            );
        }
    }
}

#[test]
fn krew_manifest_names_each_archive_with_its_digest() {
    let files = Files::new();
    let text = fs::read_to_string(files.path("krew.yaml")).unwrap();
    let manifest: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(
        manifest["apiVersion"],
        "krew.googlecontainertools.github.com/v1alpha2"
    );
    assert_eq!(manifest["metadata"]["name"], "ecr-injector");
    let spec = &manifest["spec"];
    assert_eq!(spec["version"], format!("v{VERSION}"));
    // krew's index takes no longer one, and none that ends in a point.
    let short = spec["shortDescription"].as_str().unwrap();
    assert!(short.len() <= 50 && !short.ends_with('.'), "{short}");
    let platforms = spec["platforms"].as_array().unwrap();
    assert_eq!(platforms.len(), ARCHITECTURES.len());
    for (platform, arch) in platforms.iter().zip(ARCHITECTURES) {
        let name = format!("ecr-injector-{VERSION}-linux-{arch}.tar.gz");
        let selector = json!({"matchLabels": {"os": "linux", "arch": arch}});
        assert_eq!(platform["selector"], selector);
        assert_eq!(
            platform["uri"],
            format!("{HOME}/releases/download/v{VERSION}/{name}")
        );
        let digest = sha256(&fs::read(files.path(&name)).unwrap());
        assert_eq!(platform["sha256"], digest);
        assert_eq!(platform["bin"], "ecr-injector");
    }
}

#[test]
fn table_lists_every_file_with_size_and_digest() {
    let files = Files::new();
    let table = files.run("table", &[]);
    for name in Files::names() {
        let bytes = fs::read(files.path(&name)).unwrap();
        let row = table.lines().find(|line| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            cells[0] == name
        });
        let row = row.unwrap_or_else(|| panic!("no {name} in\n{table}"));
        let end = format!(" {}  {}", bytes.len(), sha256(&bytes));
        assert!(row.ends_with(&end), "{row}");
        for arch in ARCHITECTURES {
            let is_for_all = name.ends_with("-image.tar");
            let named = name.contains(&format!("-linux-{arch}")) || is_for_all;
            let cells = row.split_once(&name).unwrap().1;
            assert_eq!(cells.contains(arch), named, "{row}");
        }
    }
    let index = files.digest.strip_prefix("sha256:").unwrap();
    assert!(table.contains(index), "{index} is not in\n{table}");
}

#[test]
fn index_has_both_images_and_always_the_same_bytes() {
    let mut files = Files::new();
    let path = files.path(&format!("ecr-injector-{VERSION}-image.tar"));
    let first = fs::read(&path).unwrap();
    // In whatever order they are given.
    let images = ["arm64.tar", "amd64.tar"].map(|name| files.work(name));
    files.write_index(&images);
    assert!(first == fs::read(&path).unwrap());
    let unpacked = files.work("index");
    fs::create_dir_all(&unpacked).unwrap();
    let mut tar = Command::new("tar");
    let tar = tar.arg("--extract").arg("--file").arg(&path);
    assert!(
        tar.arg("--directory")
            .arg(&unpacked)
            .status()
            .unwrap()
            .success()
    );
    let blob = |digest: &str| {
        let bytes = fs::read(unpacked.join("blobs").join(digest.replace(':', "/"))).unwrap();
        assert_eq!(digest, format!("sha256:{}", sha256(&bytes)));
        serde_json::from_slice::<Value>(&bytes).unwrap()
    };
    let index = blob(&files.digest);
    let images = index["manifests"].as_array().unwrap();
    let platforms: Vec<_> = images.iter().map(|it| it["platform"].clone()).collect();
    let expected = ARCHITECTURES.map(|arch| json!({"architecture": arch, "os": "linux"}));
    assert_eq!(platforms, expected);
    for (image, arch) in images.iter().zip(ARCHITECTURES) {
        let manifest = blob(image["digest"].as_str().unwrap());
        let config = blob(manifest["config"]["digest"].as_str().unwrap());
        assert_eq!(config["architecture"], arch);
    }
}

#[test]
fn sources_of_another_version_are_found() {
    let source = |version: &str, tag: &[&str]| {
        release(&[&["source", "--version", version][..], tag].concat())
    };
    let all = (
        true,
        format!("release: the sources are of version {VERSION}"),
    );
    assert_eq!(source(VERSION, &[]), all);
    let (succeeded, printed) = source(VERSION, &["--tag", "v9.9.9"]);
    let expected =
        format!("release: the tag is v9.9.9, and Cargo.toml has the version {VERSION}\n");
    assert!(!succeeded && printed.starts_with(&expected), "{printed}");
    let (succeeded, printed) = source("9.9.9", &["--tag", "v9.9.9"]);
    assert!(!succeeded);
    for place in [
        "charts/ecr-injector/Chart.yaml (version)",
        "charts/ecr-injector/Chart.yaml (appVersion)",
        "Dockerfile",
        "deploy/deployment.yaml",
        "Cargo.lock",
    ] {
        let line = format!("release: {place} has {VERSION}, and 9.9.9 was expected");
        assert!(printed.contains(&line), "{line:?} is not in\n{printed}");
    }
    let line = "release: CHANGELOG.md has no section [9.9.9]";
    assert!(printed.contains(line), "{printed}");
}

/// Returns the steps of a workflow that run anything but one target of the Makefile.
fn foreign_steps(workflow: &str, targets: &BTreeSet<&str>) -> Vec<String> {
    let workflow: Value = serde_saphyr::from_str(workflow).unwrap();
    let jobs = workflow["jobs"].as_object().unwrap().values();
    let steps = jobs.flat_map(|job| job["steps"].as_array().unwrap());
    let commands = steps.filter_map(|step| step["run"].as_str());
    let is_target = |command: &&str| {
        let target = command.strip_prefix("make ");
        target.is_some_and(|target| targets.contains(target))
    };
    commands
        .filter(|command| !is_target(command))
        .map(str::to_owned)
        .collect()
}

#[test]
fn workflows_call_targets_that_the_makefile_has() {
    let makefile = read("Makefile");
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter_map(|line| Some(line.split_once(": ")?.0))
        .filter(|target| !target.starts_with('.'))
        .collect();
    let mut workflows = 0;
    for entry in fs::read_dir(root().join(".github/workflows")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let foreign = foreign_steps(&text, &targets);
        assert!(foreign.is_empty(), "{}: {foreign:?}", path.display());
        workflows += 1;
    }
    assert!(workflows >= 4);
    let release = read(".github/workflows/release.yml");
    for (from, to) in [
        ("make release-assemble", "make release-assembled"),
        ("make release-sign", "cosign sign"),
    ] {
        let changed = release.replace(from, to);
        assert_eq!(foreign_steps(&changed, &targets), [to]);
    }
}

/// Holds that one job can sign, one can write the release, and neither does anything else.
#[test]
fn release_jobs_have_the_rights_that_they_need() {
    let text = read(".github/workflows/release.yml");
    let workflow: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(workflow["on"], json!({"push": {"tags": ["v*"]}}));
    assert_eq!(workflow["permissions"], json!({}));
    for (job, definition) in workflow["jobs"].as_object().unwrap() {
        let rights = match job.as_str() {
            "publish" => {
                json!({"contents": "read", "packages": "write", "id-token": "write", "attestations": "write"})
            }
            "announce" => json!({"contents": "write"}),
            _ => json!({"contents": "read"}),
        };
        assert_eq!(definition["permissions"], rights, "{job}");
    }
    assert_eq!(workflow["jobs"]["announce"]["needs"], "try");
}
