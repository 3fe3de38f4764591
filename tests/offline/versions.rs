//! Holds every place that carries the version of this project to the one in Cargo.toml. After a
//! new version, `make versions` (`UPDATE=1`) writes it to all of them. Likewise, the one place of
//! the Rust that everything is built with is rust-toolchain.toml.

use std::env;
use std::fs;
use std::path::Path;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The files to search, and folders to search with everything in them.
const SEARCHED: &[&str] = &[
    "Dockerfile",
    "README.md",
    "CONTRIBUTING.md",
    "RELEASING.md",
    "SECURITY.md",
    "certs",
    "charts",
    "deploy",
    "docs",
];

/// The texts that are followed by a version of this project.
const MARKS: &[&str] = &[
    "ecr-injector:",
    "ecr-injector-",
    "app.kubernetes.io/version: \"",
    "org.opencontainers.image.version=\"",
];

/// Further ones of Chart.yaml, where only the start of a line says whose version it is.
const CHART: &[&str] = &["\nversion: ", "\nappVersion: \""];

/// Files that carry the version, and how often at least. A file that has the version in a form that
/// [`MARKS`] lacks fails the test, instead of going unnoticed.
const CARRIERS: &[(&str, usize)] = &[
    ("charts/ecr-injector/Chart.yaml", 3),
    ("Dockerfile", 2),
    ("deploy/deployment.yaml", 3),
    ("certs/cert-manager.yaml", 1),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the length of the version that a text starts with: three numbers, and a pre-release if
/// there is one.
fn version_length(text: &str) -> Option<usize> {
    let is_digit = |c: char| c.is_ascii_digit();
    let mut rest = text;
    for part in 0..3 {
        if part > 0 {
            rest = rest.strip_prefix('.')?;
        }
        rest = rest.strip_prefix(is_digit)?.trim_start_matches(is_digit);
    }
    // A pre-release such as `-rc.1`, but not the `-amd64` or the `.tar` of a file's name.
    for stage in ["-alpha.", "-beta.", "-rc."] {
        if let Some(after) = rest.strip_prefix(stage) {
            rest = after.trim_start_matches(is_digit);
        }
    }
    Some(text.len() - rest.len())
}

/// Returns each version of this project in a text, as the range of its bytes, in the order of the
/// text.
fn versions(text: &str, marks: &[&str]) -> Vec<std::ops::Range<usize>> {
    let mut found: Vec<_> = marks
        .iter()
        .flat_map(|mark| text.match_indices(mark).map(|(at, mark)| at + mark.len()))
        .filter_map(|start| Some(start..start + version_length(&text[start..])?))
        .collect();
    found.sort_by_key(|range| range.start);
    found.dedup();
    found
}

/// Returns the files to search, by their path below the root.
fn files() -> Vec<String> {
    let mut files = Vec::new();
    let mut waiting: Vec<_> = SEARCHED.iter().map(|name| root().join(name)).collect();
    while let Some(path) = waiting.pop() {
        if path.is_dir() {
            waiting.extend(
                fs::read_dir(path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if path.is_file() {
            files.push(
                path.strip_prefix(root())
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
            );
        }
    }
    files.sort();
    files
}

fn marks_in(file: &str) -> Vec<&'static str> {
    let chart = file.ends_with("/Chart.yaml").then_some(CHART);
    [MARKS, chart.unwrap_or_default()].concat()
}

#[test]
fn every_place_has_the_version_of_the_package() {
    let update = env::var_os("UPDATE").is_some();
    let mut faults = Vec::new();
    for file in files() {
        // A file that isn't text has no version that a person reads.
        let Ok(mut text) = fs::read_to_string(root().join(&file)) else {
            continue;
        };
        let marks = marks_in(&file);
        let wrong: Vec<_> = versions(&text, &marks)
            .into_iter()
            .filter(|range| text[range.clone()] != *VERSION)
            .collect();
        for range in wrong.iter().rev() {
            let line = text[..range.start].lines().count();
            let found = text[range.clone()].to_owned();
            faults.push(format!("{file}:{line} has {found}"));
            text.replace_range(range.clone(), VERSION);
        }
        if update && !wrong.is_empty() {
            fs::write(root().join(&file), text).unwrap();
        }
    }
    assert!(
        update || faults.is_empty(),
        "not the {VERSION} of Cargo.toml (make versions writes it):\n{}",
        faults.join("\n")
    );
}

#[test]
fn carriers_of_the_version_are_recognized() {
    for (file, least) in CARRIERS {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let found = versions(&text, &marks_in(file)).len();
        assert!(found >= *least, "{file} has {found} of {least} versions");
    }
}

#[test]
fn versions_differ_from_names_and_versions_of_others() {
    for (text, expected) in [
        (
            "image: ghcr.io/ecr-injector/ecr-injector:0.1.0\n",
            Some("0.1.0"),
        ),
        ("target/image/ecr-injector-1.22.3.tar", Some("1.22.3")),
        ("ecr-injector:1.0.0-rc.12 .", Some("1.0.0-rc.12")),
        ("ecr-injector-1.0.0-amd64.tar", Some("1.0.0")),
        ("name: ecr-injector-aws", None),
        ("ecr-injector:8080", None),
        ("umoci:0.6.0", None),
        ("helm.sh/chart: cert-manager-1.2.3", None),
    ] {
        let found = versions(text, MARKS);
        let found = found.first().map(|range| &text[range.clone()]);
        assert_eq!(found, expected, "{text}");
    }
}

/// Returns the text between two others in a file.
fn between(file: &str, before: &str, after: &str) -> String {
    let text = fs::read_to_string(root().join(file)).unwrap();
    let Some((_, rest)) = text.split_once(before) else {
        panic!("{file} has no {before:?}");
    };
    rest.split(after).next().unwrap().to_owned()
}

#[test]
fn one_rust_builds_everything() {
    let channel = between("rust-toolchain.toml", "\nchannel = \"", "\"");
    let image = between("Dockerfile", "FROM rust:", "-alpine");
    assert!(
        channel.starts_with(&format!("{image}.")),
        "rust-toolchain.toml has {channel}, the Dockerfile {image}"
    );
    let numbers = |version: &str| -> Vec<u32> {
        version
            .split('.')
            .map(|number| number.parse().unwrap())
            .collect()
    };
    let oldest = between("Cargo.toml", "\nrust-version = \"", "\"");
    assert!(
        numbers(&channel) >= numbers(&oldest),
        "rust-toolchain.toml has {channel}, older than the {oldest} of Cargo.toml"
    );
}
