//! The plan of the house: which room stands above which, and which rooms are pure. A room that decides can be read and
//! tested alone only while it imports nothing that acts, so this test reads the sources and holds them to it.
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The floors of the house, from what a person touches down to what everything rests on. A room imports only what is on
/// its own floor or below.
const FLOORS: &[&str] = &[
    "cli",
    "nodes",
    "refresh",
    "admission",
    "config",
    "pull_secret",
    "token",
    "aws",
    "identity",
    "tls",
    "cluster",
    "registry",
    "server",
    "telemetry",
    "process",
    "lib",
];

/// The files that take all that they need as arguments: no input, no output, no clock. A folder's own file is named like
/// the folder.
const PURE: &[&str] = &[
    "admission/decide",
    "admission/json",
    "admission/manifest",
    "admission/manifest/custom",
    "admission/manifest/metadata",
    "admission/manifest/text",
    "admission/manifest/text/json",
    "admission/manifest/text/scalar",
    "admission/manifest/text/yaml",
    "admission/missed",
    "admission/patch",
    "admission/pod",
    "admission/review",
    "aws/endpoints",
    "aws/fault",
    "aws/origin",
    "aws/profile/sections",
    "cli/doctor/bundle/contents",
    "cli/doctor/bundle/scrub",
    "cli/doctor/checks",
    "cli/doctor/checks/cluster",
    "cli/doctor/checks/guard",
    "cli/doctor/checks/namespaces",
    "cli/doctor/checks/policy",
    "cli/doctor/checks/pre",
    "cli/doctor/checks/registration",
    "cli/doctor/checks/replicas",
    "cli/doctor/checks/secrets",
    "cli/doctor/exposition",
    "cli/doctor/finding",
    "cli/doctor/installation",
    "cli/doctor/output",
    "cli/doctor/pod",
    "cli/doctor/pod/pull",
    "cli/doctor/pull_error",
    "cli/doctor/stuck/group",
    "cli/doctor/stuck/report",
    "cli/doctor/waiting",
    "cluster/event",
    "cluster/lease/settings",
    "cluster/namespace",
    "cluster/near_miss",
    "cluster/ownership",
    "identity",
    "identity/hash",
    "identity/machine",
    "identity/iam",
    "identity/iam/installation",
    "identity/iam/parts",
    "identity/iam/permissions",
    "identity/iam/terraform",
    "identity/iam/trust",
    "identity/name",
    "identity/pattern",
    "lib",
    "nodes/docker",
    "nodes/docker_cache",
    "nodes/docker_cache/ecr_login",
    "nodes/docker_config",
    "nodes/kubelet",
    "nodes/kubelet_config",
    "nodes/kubelet_config/check",
    "process/backoff",
    "pull_secret",
    "pull_secret/by_hand",
    "pull_secret/error",
    "pull_secret/events",
    "pull_secret/foreign",
    "pull_secret/merge",
    "pull_secret/provisioner/outcome",
    "pull_secret/seal/key",
    "pull_secret/state",
    "pull_secret/state_key/plan",
    "pull_secret/store/entry",
    "refresh/impact",
    "refresh/plan",
    "refresh/queue",
    "registry",
    "registry/alias",
    "registry/cel",
    "registry/ecr",
    "registry/host",
    "registry/image",
    "registry/lookalike",
    "registry/region",
    "telemetry/printable",
    "telemetry/yaml_error",
    "tls/rotation",
    "token",
    "token/error",
    "token/rules",
];

/// The imports from other crates that a pure room may have. Any other has to be argued for.
const PURE_IMPORTS: &[&str] = &[
    "base64",
    "hmac",
    "jiff",
    "json_patch",
    "k8s_openapi",
    "secrecy",
    "serde",
    "serde_json",
    "serde_saphyr",
    "sha2",
    "std::array",
    "std::borrow",
    "std::cmp",
    "std::collections",
    "std::convert",
    "std::error",
    "std::fmt",
    "std::hash::Hash",
    "std::hash::Hasher",
    "std::iter",
    "std::marker",
    "std::mem",
    "std::ops",
    "std::slice",
    "std::str",
    "std::sync::Arc",
    "std::time::Duration",
    "thiserror",
    "zeroize",
];

/// Types whose `now` reads a clock.
const CLOCKS: [&str; 4] = ["Timestamp", "Zoned", "Instant", "SystemTime"];

/// The files that spawn tasks beside the supervisor: how many, and why nobody has to watch these.
const SPAWNS: &[(&str, usize, &str)] = &[
    (
        "aws/http/single_use.rs",
        1,
        "a connection, whose one response its request awaits",
    ),
    (
        "cli/serve.rs",
        1,
        "a listener, which runs under the supervisor in its task",
    ),
    (
        "cli/serve/leader.rs",
        1,
        "the election, which runs under the supervisor in its task",
    ),
    (
        "cluster/lease.rs",
        1,
        "a term, whose end the election awaits",
    ),
    (
        "nodes/files.rs",
        1,
        "a thread that waits for a lock, which the process outlasts only by its answer",
    ),
    (
        "process/files.rs",
        2,
        "one read, which its caller awaits or gives up",
    ),
    ("process/supervisor.rs", 2, "the supervisor itself"),
    (
        "pull_secret/provisioner.rs",
        3,
        "an attempt, which its admission awaits; one write; the retries of one namespace",
    ),
    (
        "refresh/controller.rs",
        1,
        "a call, whose result the leader's loop awaits",
    ),
    (
        "refresh/minter.rs",
        1,
        "a minting, whose result the leader's loop awaits",
    ),
    ("server/accept.rs", 1, "one connection"),
    (
        "telemetry/log/writer.rs",
        1,
        "the log's thread, which lasts as long as the process",
    ),
    (
        "telemetry/otel.rs",
        2,
        "one call to the collector; the last one",
    ),
    ("token/cache.rs", 2, "one minting, which its callers await"),
];

struct File {
    /// The module's path below `src`: a folder's own file is named like the folder.
    name: String,
    /// Below `src`.
    path: String,
    text: String,
}

impl File {
    /// Whether it holds the tests of a room, which may stand on whatever they like.
    fn is_tests(&self) -> bool {
        self.name.ends_with("/tests")
    }
}

fn files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    let mut folders = vec![root.clone()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().with_extension("");
                let name = name.to_str().unwrap();
                files.push(File {
                    name: name.strip_suffix("/mod").unwrap_or(name).to_owned(),
                    path: path
                        .strip_prefix(&root)
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .to_owned(),
                    text: fs::read_to_string(&path).unwrap(),
                });
            }
        }
    }
    assert!(
        files.len() > 20,
        "the sources are not where this test looks"
    );
    files.sort_by(|a, b| a.name.cmp(&b.name));
    files
}

/// The names by which the code can reach other crates.
fn crates() -> BTreeSet<String> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let text = fs::read_to_string(manifest).unwrap();
    let dependencies = text.split("\n[dependencies]\n").nth(1).unwrap();
    let names = dependencies
        .split("\n[")
        .next()
        .unwrap()
        .lines()
        .filter_map(|line| Some(line.split_once('=')?.0.trim().replace('-', "_")))
        .chain(["std", "core", "alloc"].map(str::to_owned));
    names.collect()
}

/// Returns the floor of a path, counted from above.
fn floor_of(path: &str) -> usize {
    let room = path.split('/').next().unwrap();
    let floor = FLOORS.iter().position(|floor| *floor == room);
    floor.unwrap_or_else(|| panic!("{path} has no floor in tests/offline/rooms.rs"))
}

/// Returns the file that holds whatever a path names.
fn file_of<'a>(mut path: &'a str, files: &BTreeSet<String>) -> Option<&'a str> {
    while !files.contains(path) {
        path = path.rsplit_once('/')?.0;
    }
    Some(path)
}

fn is_pure(name: &str) -> bool {
    PURE.contains(&name)
}

/// The text without its tests, comments and literals.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let skipped = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => rest.find("*/").map_or(rest.len(), |at| at + 2),
            'r' if rest.starts_with("r\"") || rest.starts_with("r#\"") => {
                let end = if rest.starts_with("r#") { "\"#" } else { "\"" };
                let start = rest.find('"').unwrap() + 1;
                rest[start..]
                    .find(end)
                    .map_or(rest.len(), |at| start + at + end.len())
            }
            '"' => {
                let mut escaped = false;
                let end = rest[1..].find(|c| {
                    let ends = c == '"' && !escaped;
                    escaped = c == '\\' && !escaped;
                    ends
                });
                end.map_or(rest.len(), |at| at + 2)
            }
            // A lifetime has no closing quote, and skipping a quote character would take code for text.
            '\'' if rest.starts_with("'\"'") => 3,
            '\'' if rest.starts_with("'\\") => rest[2..].find('\'').map_or(rest.len(), |at| at + 3),
            _ => 0,
        };
        if skipped > 0 {
            code.push(' ');
            rest = &rest[skipped..];
        } else {
            code.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    code
}

/// All paths that the code names: those of its `use` declarations, each brace opened, and those within its lines.
fn paths(code: &str) -> BTreeSet<String> {
    let tokens = tokens(code);
    let mut paths = BTreeSet::new();
    let mut at = 0;
    while at < tokens.len() {
        at = path_at(&tokens, at, "", &mut paths).max(at + 1);
    }
    paths
}

fn tokens(code: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        let (token, after) = rest.split_at(length);
        tokens.push(token);
        rest = after.trim_start();
    }
    tokens
}

/// Reads one path from a token on, with everything in its braces, and returns where the path ended.
fn path_at(tokens: &[&str], mut at: usize, prefix: &str, paths: &mut BTreeSet<String>) -> usize {
    let is_word = |token: &str| token.starts_with(|c: char| c.is_alphabetic() || c == '_');
    let mut path = prefix.to_owned();
    while at < tokens.len() {
        match tokens[at] {
            "{" if path.ends_with("::") => {
                at += 1;
                while at < tokens.len() && tokens[at] != "}" {
                    let end = path_at(tokens, at, &path, paths);
                    // A comma, or something that a list of imports does not have.
                    at = end.max(at + 1);
                    if tokens.get(end).is_some_and(|token| *token == "}") {
                        at = end;
                    }
                }
                return at + 1;
            }
            "::" if !path.is_empty() => path += "::",
            token if is_word(token) && (path == prefix || path.ends_with("::")) => path += token,
            _ => break,
        }
        at += 1;
    }
    // A path may end where its type parameters begin.
    let whole = path.trim_end_matches("::");
    if path != prefix && whole.contains("::") {
        paths.insert(whole.to_owned());
    }
    // What follows `as` is a name that the file itself gives.
    if tokens.get(at) == Some(&"as") {
        at += 2;
    }
    at
}

/// Returns the path below `src` that a path of the code names, if it is one of this crate's.
fn target_of(name: &str, path: &str) -> Option<String> {
    let (first, rest) = path.split_once("::").unwrap();
    let rest = rest.replace("::", "/");
    let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
    match first {
        "crate" | "ecr_injector" => Some(rest),
        "self" => Some(format!("{name}/{rest}")),
        "super" => Some(
            format!("{folder}/{rest}")
                .trim_start_matches('/')
                .to_owned(),
        ),
        _ => None,
    }
}

/// Returns the faults of a file, a line for each.
fn faults(
    name: &str,
    text: &str,
    crates: &BTreeSet<String>,
    files: &BTreeSet<String>,
) -> Vec<String> {
    let mut faults = Vec::new();
    for path in paths(&code(text)) {
        let first = path.split("::").next().unwrap();
        if let Some(target) = target_of(name, &path) {
            if floor_of(&target) < floor_of(name) {
                faults.push(format!("imports {path}, which is on a floor above"));
            }
            let file = file_of(&target, files).filter(|file| *file != name);
            if is_pure(name) && file.is_some_and(|file| !is_pure(file)) {
                faults.push(format!("is pure and imports {path}, which is not"));
            }
        } else if is_pure(name) && crates.contains(first) {
            let allowed = PURE_IMPORTS.iter().any(|allowed| {
                path.strip_prefix(allowed)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
            });
            if !allowed {
                faults.push(format!("is pure and imports {path}"));
            }
        }
        let reads_clock = CLOCKS
            .iter()
            .any(|clock| path.ends_with(&format!("{clock}::now")));
        if is_pure(name) && reads_clock {
            faults.push(format!("is pure and reads the clock: {path}"));
        }
    }
    faults
}

#[test]
fn imports_point_downwards_and_pure_rooms_stay_pure() {
    let crates = crates();
    let files = files();
    let names: BTreeSet<_> = files.iter().map(|file| file.name.clone()).collect();
    let faults: Vec<String> = files
        .iter()
        .filter(|file| !file.is_tests())
        .flat_map(|file| {
            let faults = faults(&file.name, &file.text, &crates, &names);
            faults
                .into_iter()
                .map(|fault| format!("src/{} {fault}", file.path))
        })
        .collect();
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

/// Returns the files that each file imports.
fn imports(files: &[File]) -> BTreeMap<String, BTreeSet<String>> {
    let names: BTreeSet<_> = files.iter().map(|file| file.name.clone()).collect();
    let of_file = |file: &File| {
        let paths = paths(&code(&file.text));
        let targets = paths
            .iter()
            .filter_map(|path| target_of(&file.name, path))
            .filter_map(|target| file_of(&target, &names).map(str::to_owned))
            .filter(|target| *target != file.name);
        (file.name.clone(), targets.collect())
    };
    files.iter().map(of_file).collect()
}

/// Returns a circle of imports, if there is one.
fn circle(imports: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<&str>> {
    fn visit<'a>(
        name: &'a str,
        imports: &'a BTreeMap<String, BTreeSet<String>>,
        path: &mut Vec<&'a str>,
        done: &mut BTreeSet<&'a str>,
    ) -> Option<Vec<&'a str>> {
        if let Some(at) = path.iter().position(|other| *other == name) {
            return Some(path[at..].to_vec());
        }
        if done.contains(name) {
            return None;
        }
        path.push(name);
        let targets = imports.get(name).into_iter().flatten();
        let found = targets
            .into_iter()
            .find_map(|target| visit(target, imports, path, done));
        path.pop();
        done.insert(name);
        found
    }
    let mut done = BTreeSet::new();
    let mut names = imports.keys();
    names.find_map(|name| visit(name, imports, &mut Vec::new(), &mut done))
}

#[test]
fn no_import_runs_in_a_circle() {
    let files: Vec<File> = files()
        .into_iter()
        .filter(|file| !file.is_tests())
        .collect();
    let imports = imports(&files);
    assert!(imports.values().flatten().count() > 100, "{imports:?}");
    assert_eq!(circle(&imports), None);
}

#[test]
fn circle_of_imports_is_found() {
    let file = |name: &str, text: &str| File {
        name: name.to_owned(),
        path: String::new(),
        text: text.to_owned(),
    };
    let files = [
        file("a", "pub mod b; use self::b::X;"),
        file("a/b", "use crate::c;"),
        file("c", "fn f() { crate::a::g() }"),
    ];
    assert_eq!(circle(&imports(&files)), Some(vec!["a", "a/b", "c"]));
    assert_eq!(circle(&imports(&files[..2])), None);
}

/// The most entries of `src`: a newcomer reads the list at one glance.
const MAX_ENTRIES: usize = 16;
/// The most lines of a file without its tests.
const MAX_LINES: usize = 500;

#[test]
fn top_floor_and_files_stay_small() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    assert!(fs::read_dir(root).unwrap().count() <= MAX_ENTRIES);
    for file in files().iter().filter(|file| !file.is_tests()) {
        let text = file.text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let lines = text.lines().count();
        assert!(lines <= MAX_LINES, "src/{}: {lines} lines", file.path);
    }
}

/// Returns the path and the text of every Rust file in a folder.
fn texts(folder: &str) -> Vec<(PathBuf, String)> {
    let mut texts = Vec::new();
    let mut folders = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                texts.push((path, text));
            }
        }
    }
    texts
}

/// Counts the tasks that a text spawns beside the supervisor.
fn spawns(code: &str) -> usize {
    let is_raw = |at: usize| {
        let before: String = code[..at].split_whitespace().collect();
        !["supervisor.", "fn", "self."]
            .iter()
            .any(|known| before.ends_with(known))
    };
    ["spawn(", "spawn_once(", "spawn_blocking(", "spawn_local("]
        .iter()
        .flat_map(|call| code.match_indices(call))
        .filter(|(at, _)| is_raw(*at))
        .count()
}

#[test]
fn tasks_are_supervised_or_end_with_their_work() {
    let listed: BTreeMap<&str, usize> = SPAWNS.iter().map(|row| (row.0, row.1)).collect();
    assert!(SPAWNS.iter().all(|row| !row.2.is_empty()));
    for file in files().iter().filter(|file| !file.is_tests()) {
        let code = file.text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let allowed = listed.get(&*file.path).copied().unwrap_or_default();
        assert_eq!(
            spawns(code),
            allowed,
            "src/{}: spawn with the supervisor, which ends the process if the task fails; or say in SPAWNS \
             why nobody has to watch the task",
            file.path
        );
    }
}

#[test]
fn doc_comments_begin_with_a_verb_or_a_noun() {
    for (path, text) in ["src", "tests", "benches", "examples"].map(texts).concat() {
        let mut follows = false;
        for line in text.lines().map(str::trim_start) {
            let doc = line.strip_prefix("/// ").or(line.strip_prefix("//! "));
            if let Some(doc) = doc.filter(|_| !follows) {
                let clauses = ["What ", "Who ", "The same"];
                let is_clause = clauses.iter().any(|clause| doc.starts_with(clause));
                assert!(!is_clause, "{}: {doc}", path.display());
            }
            follows = line.starts_with("//");
        }
    }
}

#[test]
fn every_file_says_first_why_it_exists() {
    for file in files() {
        let first = file.text.lines().next().unwrap_or_default();
        assert!(
            first.starts_with("//! ") && first.len() > 20,
            "src/{}: {first:?}",
            file.path
        );
    }
}

#[test]
fn file_names_say_what_is_in_the_file() {
    for file in files() {
        for part in file.name.split('/') {
            let vague = [
                "util", "utils", "type", "types", "common", "helper", "helpers", "misc",
            ];
            assert!(!vague.contains(&part), "src/{}.rs", file.name);
        }
    }
}

#[test]
fn every_room_on_the_plan_is_there() {
    let names: BTreeSet<_> = files().into_iter().map(|file| file.name).collect();
    for room in FLOORS.iter().chain(PURE) {
        assert!(names.contains(*room), "src/{room}");
    }
}

/// The rows of the map: the files of each, and whether it is marked as pure.
fn rows_of_the_map() -> Vec<(Vec<String>, bool)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/contributing/architecture.md");
    let text = fs::read_to_string(path).unwrap();
    let map = text.split("\n## Rooms\n").nth(1).unwrap();
    let map = map.split("\n## ").next().unwrap();
    let rows = map.lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split(" | ");
        let named = cells.next().unwrap().split('`').skip(1).step_by(2);
        let files = named.map(|name| {
            let name = name.trim_end_matches(".rs");
            name.strip_suffix("/mod").unwrap_or(name).to_owned()
        });
        (files.collect(), row.contains("(*pure*)"))
    })
    .collect()
}

#[test]
fn map_in_docs_has_every_file_and_says_which_is_pure() {
    let rows = rows_of_the_map();
    let covers = |pattern: &str, name: &str| match pattern.strip_suffix("/*") {
        Some(folder) => name
            .rsplit_once('/')
            .is_some_and(|(above, _)| above == folder),
        None => pattern == name,
    };
    let mut faults = Vec::new();
    let files = files();
    for file in files.iter().filter(|file| !file.is_tests()) {
        let of_file = |(patterns, _): &&(Vec<String>, bool)| {
            patterns.iter().any(|pattern| covers(pattern, &file.name))
        };
        match rows.iter().find(of_file) {
            None => faults.push(format!("lacks src/{}", file.path)),
            Some((_, pure)) if *pure != is_pure(&file.name) => {
                faults.push(format!("is wrong about whether src/{} is pure", file.path));
            }
            Some(_) => {}
        }
    }
    for pattern in rows.iter().flat_map(|(patterns, _)| patterns) {
        if !files.iter().any(|file| covers(pattern, &file.name)) {
            faults.push(format!("has src/{pattern}.rs, which is not there"));
        }
    }
    assert!(
        faults.is_empty(),
        "docs/contributing/architecture.md\n{}",
        faults.join("\n")
    );
}

/// The test's own reading: each of these is seen.
#[test]
fn forbidden_imports_are_found_however_they_are_written() {
    let crates = crates();
    let files = files().into_iter().map(|file| file.name).collect();
    for (name, text, expected) in [
        ("admission/pod", "use tokio::time::sleep;", 1),
        (
            "admission/pod",
            "use std::{fmt, fs::File, sync::{Arc, Mutex}};",
            2,
        ),
        ("admission/pod", "fn f() { std::env::var(\"X\").ok(); }", 1),
        ("admission/pod", "fn f() { tracing::info!(\"x\"); }", 1),
        (
            "admission/pod",
            "fn f() { let _ = jiff::Timestamp::now(); }",
            1,
        ),
        (
            "admission/pod",
            "use jiff::Timestamp; fn f() { Timestamp::now(); }",
            1,
        ),
        (
            "admission/pod",
            "use crate::{registry::{self, Host, image::ImageReference as Image}};",
            0,
        ),
        ("admission/pod", "use crate::config::Config;", 1),
        (
            "admission/decide",
            "use crate::{admission::pod::Pod, config::live::Live, pull_secret::{State, store::PullSecrets}};",
            2,
        ),
        (
            "admission/decide",
            "use super::{patch, review::Request};",
            0,
        ),
        (
            "admission/review",
            "use crate::pull_secret::provisioner::Provisioner;",
            1,
        ),
        (
            "pull_secret/store",
            "use super::State; use crate::pull_secret::SecretFacts;",
            0,
        ),
        (
            "pull_secret/store",
            "use super::provisioner::Provisioner; use crate::admission::handler::Webhook;",
            1,
        ),
        (
            "config",
            "fn f(x: &crate::admission::handler::Webhook) {}",
            1,
        ),
        (
            "admission/pod",
            "// use tokio::net;\nconst A: &str = \"use tokio::net; \\\" tokio::net\"; fn f<'a>(x: &'a str) {}",
            0,
        ),
        (
            "admission/pod",
            "const A: char = '\"'; use tokio::net; const B: char = '\"';",
            1,
        ),
        (
            "admission/pod",
            "#[cfg(test)]\nmod tests { use tokio::net; }",
            0,
        ),
    ] {
        let faults = faults(name, text, &crates, &files);
        assert_eq!(faults.len(), expected, "{name}: {text}: {faults:?}");
    }
}
