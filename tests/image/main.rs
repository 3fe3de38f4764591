//! The container image: what `make image` wrote is what the Dockerfile says, and it runs as a container runtime would run
//! it, alone on a read-only root, as nobody in particular.
//!
//! `make image-test` runs it. Cargo leaves it out of `cargo test`, as it needs the archive and takes a release build.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that can't go on panics, and shows its figures"
)]

#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use support::bed::{image, registry};
use support::installation::{OPT_IN, PULL_SECRET};
use support::pods::pod;
use support::webhook::Options;
use support::{Authority, Balancer, Caller, ControlPlane, FakeAws, Installation, Webhook};
use tempfile::TempDir;
use tokio::time::sleep;

const AUTHORITIES: &str = "etc/ssl/certs/ca-certificates.crt";
const BINARY: &str = "usr/local/bin/ecr-injector";
const USER: u32 = 65532;
const LARGEST: u64 = 20_000_000;
/// The most memory that a replica takes at its peak, in MiB.
const LARGEST_PEAK: f64 = 20.0;

/// The archive, taken apart.
struct Image {
    folder: TempDir,
    digest: String,
    config: Value,
}

impl Image {
    fn open() -> Self {
        Self::of(&archive())
    }

    /// Checks each blob against its name on the way.
    fn of(archive: &Path) -> Self {
        let folder = TempDir::with_prefix("ecr-injector-image-").unwrap();
        // Whoever the process inside is, it has to get in.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let (layout, root) = (folder.path().join("layout"), folder.path().join("root"));
        unpack(archive, &layout);
        let index = parsed(&fs::read(layout.join("index.json")).unwrap());
        assert_eq!(index["manifests"].as_array().unwrap().len(), 1);
        let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        let manifest = parsed(&fs::read(blob(&layout, &digest)).unwrap());
        let config = fs::read(blob(
            &layout,
            manifest["config"]["digest"].as_str().unwrap(),
        ));
        for layer in manifest["layers"].as_array().unwrap() {
            let media = "application/vnd.oci.image.layer.v1.tar+gzip";
            assert_eq!(layer["mediaType"], media);
            unpack(&blob(&layout, layer["digest"].as_str().unwrap()), &root);
        }
        Self {
            digest,
            config: parsed(&config.unwrap()),
            folder,
        }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// A program that runs the image's entrypoint: alone in the image's root, which it can't write to, as the image's user
    /// with no group beside. Files that the arguments name are there under their names, as a volume would have them.
    fn program(&self) -> PathBuf {
        let root = self.root();
        let entrypoint = self.config["config"]["Entrypoint"][0].as_str().unwrap();
        let script = format!(
            r#"#!/bin/sh
set -e
root={root}
for argument; do
  case $argument in /*) [ ! -f "$argument" ] || install -D -m 0444 "$argument" "$root$argument" ;; esac
done
run='mount --bind "$0" "$0"; mount -o remount,bind,ro "$0"'
if [ "$(id -u)" = 0 ]; then
  exec unshare --mount sh -ec "$run; exec chroot --userspec={USER}:{USER} --groups= \"\$0\" {entrypoint} \"\$@\"" "$root" "$@"
fi
inside="exec unshare --user --map-user={USER} --map-group={USER} --root \"\$0\" --wd / {entrypoint} \"\$@\""
exec unshare --map-root-user --mount sh -ec "$run; $inside" "$root" "$@"
"#,
            root = root.display(),
        );
        let path = self.folder.path().join("run");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

/// Where `make image` put it, or the one that `ECR_INJECTOR_IMAGE` names.
fn archive() -> PathBuf {
    if let Some(path) = std::env::var_os("ECR_INJECTOR_IMAGE") {
        return PathBuf::from(path);
    }
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| manifest.join("target"), PathBuf::from);
    let path = target
        .join("image")
        .join(format!("ecr-injector-{}.tar", env!("CARGO_PKG_VERSION")));
    assert!(
        path.is_file(),
        "there is no {}: run `make image-test`",
        path.display()
    );
    path
}

fn unpack(archive: &Path, folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let mut tar = Command::new("tar");
    tar.args(["--extract", "--no-same-owner", "--file"]);
    succeeds(tar.arg(archive).arg("--directory").arg(folder));
}

/// The path of a blob, whose content is what its name says.
fn blob(layout: &Path, digest: &str) -> PathBuf {
    let hash = digest.strip_prefix("sha256:").unwrap();
    let path = layout.join("blobs/sha256").join(hash);
    assert_eq!(sha256(&fs::read(&path).unwrap()), digest);
    path
}

fn sha256(bytes: &[u8]) -> String {
    let mut digest = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        let _ = write!(digest, "{byte:02x}");
    }
    digest
}

fn parsed(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

#[track_caller]
fn succeeds(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    output
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// The instructions of the Dockerfile's last stage, in order.
fn last_stage() -> Vec<(String, String)> {
    let text =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Dockerfile")).unwrap();
    let text = text.replace("\\\n", " ");
    let mut stage = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some((instruction, rest)) = line.split_once(' ') else {
            continue;
        };
        if instruction == "FROM" {
            stage.clear();
        }
        stage.push((instruction.to_owned(), rest.trim().to_owned()));
    }
    stage
}

/// `a="b c" d="e"`.
fn labels(mut text: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    while let Some((name, rest)) = text.split_once("=\"") {
        let (value, rest) = rest.split_once('"').unwrap();
        labels.insert(name.trim().to_owned(), value.to_owned());
        text = rest;
    }
    labels
}

#[test]
fn archive_is_what_the_dockerfile_says() {
    let image = Image::open();
    let revision = said(&succeeds(Command::new("git").args(["rev-parse", "HEAD"])));
    let labelled = &image.config["config"]["Labels"];
    let mut created = &Value::Null;
    let mut expected = json!({"Labels": {}, "ExposedPorts": {}});
    let (mut arguments, mut copied) = (BTreeSet::new(), BTreeSet::new());
    for (instruction, rest) in last_stage() {
        match instruction.as_str() {
            "FROM" => assert_eq!(rest, "scratch"),
            "COPY" => {
                copied.insert(
                    rest.rsplit(' ')
                        .next()
                        .unwrap()
                        .trim_start_matches('/')
                        .to_owned(),
                );
            }
            "ARG" => {
                let name = rest.strip_suffix("=\"\"").unwrap();
                arguments.insert(format!("${name}"));
            }
            "USER" => expected["User"] = json!(rest),
            "EXPOSE" => {
                for port in rest.split(' ') {
                    expected["ExposedPorts"][format!("{port}/tcp")] = json!({});
                }
            }
            "ENTRYPOINT" => expected["Entrypoint"] = parsed(rest.as_bytes()),
            "CMD" => expected["Cmd"] = parsed(rest.as_bytes()),
            "LABEL" => {
                for (name, value) in labels(&rest) {
                    expected["Labels"][&name] = match value.as_str() {
                        "$REVISION" => {
                            let there = labelled[&name].as_str().unwrap();
                            assert_eq!(there.trim_end_matches("-dirty"), revision);
                            json!(there)
                        }
                        "$CREATED" => {
                            created = &labelled[&name];
                            created.clone()
                        }
                        "$SOURCE" => json!(std::env::var("IMAGE_SOURCE").unwrap_or_default()),
                        value => json!(value),
                    };
                    arguments.remove(&value);
                }
            }
            other => panic!("this test doesn't know {other}"),
        }
    }
    assert_eq!(arguments, BTreeSet::new(), "no label takes these");
    assert_eq!(image.config["config"], expected);
    assert_eq!(&image.config["created"], created);
    created
        .as_str()
        .unwrap()
        .parse::<jiff::Timestamp>()
        .unwrap();
    for (label, field) in [
        ("title", env!("CARGO_PKG_NAME")),
        ("description", env!("CARGO_PKG_DESCRIPTION")),
        ("version", env!("CARGO_PKG_VERSION")),
        ("licenses", env!("CARGO_PKG_LICENSE")),
    ] {
        assert_eq!(labelled[format!("org.opencontainers.image.{label}")], field);
    }
    assert_eq!(
        copied,
        BTreeSet::from([AUTHORITIES, BINARY].map(str::to_owned))
    );
    assert_eq!(files(&image.root()), copied);
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    assert_eq!(image.config["architecture"], architecture);
    assert_eq!(image.config["os"], "linux");
}

/// All that is no folder, links included.
fn files(root: &Path) -> BTreeSet<String> {
    let mut find = Command::new("find");
    let find = find.arg(root).args(["!", "-type", "d", "-printf", "%P\n"]);
    said(&succeeds(find)).lines().map(str::to_owned).collect()
}

/// Holds for an optimized binary alone: a dry run of a release with `PROFILE=quick` skips it.
#[test]
fn image_is_small() {
    let packed = fs::metadata(archive()).unwrap().len();
    println!("{packed} bytes packed");
    assert!(packed <= LARGEST, "{packed} bytes");
}

#[test]
fn image_has_its_digest_and_names_nothing_of_where_it_was_built() {
    let (archive, image) = (archive(), Image::open());
    let binary = fs::read(image.root().join(BINARY)).unwrap();
    let digest = fs::read_to_string(archive.with_extension("digest")).unwrap();
    assert_eq!(digest.trim(), image.digest);
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME"))
        .unwrap();
    for place in [env!("CARGO_MANIFEST_DIR"), &format!("{home}/")] {
        let found = binary
            .windows(place.len())
            .any(|there| there == place.as_bytes());
        assert!(!found, "the binary names {place}");
    }
}

#[tokio::test]
async fn archive_of_the_same_binary_has_the_same_bytes() {
    let image = Image::open();
    let made = |name: &str, mask: &str, zone: &str| {
        let output = image.folder.path().join(name);
        let script = r#"umask "$1"; exec image/build.sh --binary "$2" --output "$3""#;
        let mut build = Command::new("sh");
        let build = build
            .args(["-c", script, "sh", mask])
            .arg(image.root().join(BINARY))
            .arg(&output);
        succeeds(
            build
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .env("TZ", zone),
        );
        fs::read(output.join(archive().file_name().unwrap())).unwrap()
    };
    let first = made("first", "022", "UTC");
    // The next second.
    sleep(Duration::from_millis(1_100)).await;
    assert!(first == made("second", "077", "Asia/Tokyo"));
}

#[test]
fn authorities_are_those_that_aws_is_signed_by() {
    let bundle = fs::read(Image::open().root().join(AUTHORITIES)).unwrap();
    let names: Vec<String> = CertificateDer::pem_slice_iter(&bundle)
        .map(|certificate| {
            let certificate = certificate.unwrap();
            let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).unwrap();
            parsed.subject().to_string()
        })
        .collect();
    assert!(names.len() > 50, "{} authorities", names.len());
    for number in 1..=4 {
        let name = format!("CN=Amazon Root CA {number}");
        assert!(names.iter().any(|there| there.contains(&name)), "no {name}");
    }
}

#[test]
fn its_entrypoint_runs_with_nothing_beside_it() {
    let output = succeeds(
        Command::new(Image::open().program())
            .arg("--version")
            .env_clear()
            .env("PATH", path()),
    );
    assert_eq!(
        said(&output),
        concat!("ecr-injector ", env!("CARGO_PKG_VERSION"))
    );
}

/// AWS speaks TLS under an authority that is in the image's bundle and nowhere else, and the certificate for the API server
/// is made inside: what a Pod of ours does, but for the kubelet.
#[tokio::test]
async fn serves_from_a_read_only_root_as_nobody() {
    let image_of = Image::open();
    let mut serving = Serving::start(&image_of).await;
    alone_and_without_rights(serving.webhook.pid());
    serving.injects("web").await;
    assert!(serving.webhook.stop().await.success());
}

/// Functions that serve are beside each other in the file, so that the others aren't in memory
/// (image/ecr-injector.order, which `make order` makes).
#[tokio::test]
async fn image_takes_little_memory() {
    let image_of = Image::open();
    let serving = Serving::start(&image_of).await;
    for number in 0..200 {
        serving.injects(&format!("web-{number}")).await;
    }
    let peak = support::proc::mebibytes(serving.webhook.pid(), "VmHWM");
    println!("peak: {peak:.1} MiB");
    assert!(peak <= LARGEST_PEAK, "{peak:.1} MiB: run make order");
}

struct Serving {
    webhook: Webhook,
    plane: ControlPlane,
    team: String,
    _aws: FakeAws,
    _balancer: Balancer,
}

impl Serving {
    async fn start(image_of: &Image) -> Self {
        support::crypto();
        let authority = Authority::new("test-aws");
        let bundle = image_of.root().join(AUTHORITIES);
        let stock = fs::read_to_string(&bundle).unwrap();
        fs::write(&bundle, format!("{stock}\n{}", authority.pem())).unwrap();

        let plane = ControlPlane::start().await;
        let aws = FakeAws::start_tls(&authority, &["127.0.0.1"]);
        let installation = Installation::apply(&plane).await;
        let mut webhook = Webhook::spawn(Options {
            binary: Some(image_of.program()),
            certificate: None,
            ..installation.replica(&plane, &aws).await
        });
        // Nobody in particular may not listen on 443.
        let balancer = Balancer::start(installation.service_address(), &[webhook.address()]);
        installation.register_self_managed(&plane).await;
        webhook.wait_until_ready().await;
        let team = plane.namespace("team", &[OPT_IN]).await;
        Self {
            webhook,
            plane,
            team,
            _aws: aws,
            _balancer: balancer,
        }
    }

    /// Creates a Pod, which gets the reference, and has its registry in the pull secret.
    async fn injects(&self, name: &str) {
        let team = &self.team;
        let admin = Caller(self.plane.admin().await);
        let pod = serde_json::to_value(pod(name, &image("eu-west-1"))).unwrap();
        let pods = format!("/api/v1/namespaces/{team}/pods");
        let stored = admin.post(&pods, &pod).await.allowed();
        assert_eq!(
            stored["spec"]["imagePullSecrets"],
            json!([{"name": PULL_SECRET}])
        );
        let path = format!("/api/v1/namespaces/{team}/secrets/{PULL_SECRET}");
        let secret = serde_json::from_value(admin.get(&path).await.allowed()).unwrap();
        assert_eq!(
            support::bed::hosts(&secret),
            [registry(123_456_789_012, "eu-west-1")]
        );
    }
}

/// By what the kernel knows of it.
fn alone_and_without_rights(pid: u32) {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let status = read("status");
    let of = |field: &str| -> Vec<&str> {
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap().split_whitespace().collect()
    };
    let user = USER.to_string();
    if fs::read_to_string("/proc/self/status")
        .unwrap()
        .contains("\nUid:\t0\t")
    {
        assert_eq!((of("Uid:"), of("Gid:")), (vec![&*user; 4], vec![&*user; 4]));
        assert_eq!(of("Groups:"), [""; 0]);
    } else {
        let map = read("uid_map");
        assert_eq!(map.split_whitespace().next(), Some(&*user), "{map}");
    }
    assert_eq!(of("CapEff:"), ["0000000000000000"]);
    let mounts = read("mountinfo");
    let reachable: Vec<Vec<&str>> = mounts
        .lines()
        .map(|line| line.split(' ').collect())
        .collect();
    assert_eq!(reachable.len(), 1, "{mounts}");
    assert_eq!(reachable[0][4], "/", "{mounts}");
    assert!(
        reachable[0][5].split(',').any(|option| option == "ro"),
        "{mounts}"
    );
}

fn path() -> String {
    std::env::var("PATH").unwrap()
}
