//! Helm, as a person runs it: from the chart in this tree, with values in a file.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use serde_json::Value;

/// The release and the namespace that `deploy/` is rendered for.
pub const RELEASE: &str = "ecr-injector";

/// Where the chart is.
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/ecr-injector")
}

/// Where Helm is: HELM, or what `make helm` built.
pub fn program() -> PathBuf {
    std::env::var_os("HELM").map_or_else(built, PathBuf::from)
}

fn built() -> PathBuf {
    under_target(
        "helm/helm",
        "run `make helm` first, or set HELM to a Helm 4 or 3",
    )
}

/// Where kube-score is: `KUBE_SCORE`, or what `make kube-score` built.
pub fn kube_score() -> PathBuf {
    std::env::var_os("KUBE_SCORE").map_or_else(
        || {
            under_target(
                "kube-score/kube-score",
                "run `make kube-score` first, or set KUBE_SCORE to one",
            )
        },
        PathBuf::from,
    )
}

/// Where promtool is: `PROMTOOL`, or what `make promtool` installed.
pub fn promtool() -> PathBuf {
    std::env::var_os("PROMTOOL").map_or_else(
        || {
            under_target(
                "tools/promtool/promtool",
                "run `make promtool` first, or set PROMTOOL to one",
            )
        },
        PathBuf::from,
    )
}

fn under_target(path: &str, advice: &str) -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let program = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| manifest.join("target"), |target| manifest.join(target))
        .join(path);
    assert!(
        program.is_file(),
        "there is no {}: {advice}",
        program.display()
    );
    program
}

/// Returns Helm's major version, 4 or 3. Helm 4 applies on the server's side unless asked
/// otherwise; Helm 3 knows its own side alone.
pub fn major() -> u32 {
    static MAJOR: LazyLock<u32> = LazyLock::new(|| {
        let output = run(&["version", "--template", "{{.Version}}"]);
        let version = String::from_utf8(output.stdout).unwrap();
        match version.get(..3) {
            Some("v3.") => 3,
            Some("v4.") => 4,
            _ => panic!("{} is no Helm 4 or 3: {version}", program().display()),
        }
    });
    *MAJOR
}

/// A Helm 4: what somebody with an older one has next.
pub fn next() -> PathBuf {
    if major() == 3 { built() } else { program() }
}

/// Runs Helm in an environment without plugins, repositories and clusters.
pub fn run(arguments: &[&str]) -> Output {
    run_by(&program(), arguments)
}

fn run_by(program: &Path, arguments: &[&str]) -> Output {
    let home = tempfile::tempdir().unwrap();
    Command::new(program)
        .env_clear()
        .env("HOME", home.path())
        .args(arguments)
        .output()
        .unwrap()
}

/// Runs Helm with `values` in a file.
pub fn helm(arguments: &[&str], values: &str) -> Output {
    helm_by(&program(), arguments, values)
}

/// Runs this Helm with `values` in a file.
pub fn helm_by(program: &Path, arguments: &[&str], values: &str) -> Output {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(values.as_bytes()).unwrap();
    let values = ["--values", file.path().to_str().unwrap()];
    run_by(program, &[arguments, &values].concat())
}

/// Returns the output of `helm template` for this release, or else the errors that Helm prints.
pub fn try_template(release: &str, namespace: &str, values: &str) -> Result<String, String> {
    let chart = chart();
    let arguments = [
        "template",
        release,
        chart.to_str().unwrap(),
        "--namespace",
        namespace,
    ];
    let output = helm(&arguments, values);
    if output.status.success() {
        Ok(String::from_utf8(output.stdout).unwrap())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The objects of that release.
pub fn objects(release: &str, namespace: &str, values: &str) -> Vec<Value> {
    let mut objects = all(release, namespace, values);
    objects.retain(|object| !is_of_the_test(object));
    objects
}

/// Returns the objects that `helm test` makes, in the order of Helm's output.
pub fn of_the_test(release: &str, namespace: &str, values: &str) -> Vec<Value> {
    let mut objects = all(release, namespace, values);
    objects.retain(is_of_the_test);
    objects
}

fn is_of_the_test(object: &Value) -> bool {
    object["metadata"]["annotations"]["helm.sh/hook"] == "test"
}

fn all(release: &str, namespace: &str, values: &str) -> Vec<Value> {
    let text = try_template(release, namespace, values)
        .unwrap_or_else(|error| panic!("{values}\n{error}"));
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{values}\n{error}"));
    documents
        .into_iter()
        .filter(|document| !document.is_null())
        .collect()
}

/// The one object of this kind, and of this name if there are more.
pub fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    objects
        .iter()
        .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
        .unwrap_or_else(|| panic!("no {kind} {name}"))
}
