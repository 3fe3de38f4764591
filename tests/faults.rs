//! `docs/faults.md` against the tests: each test that it names exists.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that can't go on panics"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const DOCUMENT: &str = "docs/faults.md";

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What stands between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// A row's tests, each as what cargo has to be told: its target and its name.
fn rows() -> Vec<BTreeSet<(String, String)>> {
    let text = read(DOCUMENT);
    let lines = text.lines().filter(|line| line.starts_with('|')).skip(2);
    let row = |line: &str| -> BTreeSet<(String, String)> {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let [_, _, tests] = cells[..] else {
            panic!("{DOCUMENT}: not three cells: {line}")
        };
        let mut last = String::new();
        let tests = quoted(tests).map(|name| {
            let name = if name.contains("::") {
                name.to_owned()
            } else {
                format!("{last}::{name}")
            };
            name.rsplit_once("::").unwrap().0.clone_into(&mut last);
            if let Some(name) = name.strip_prefix("lib::") {
                ("--lib".to_owned(), name.to_owned())
            } else {
                let (target, name) = name.split_once("::").unwrap();
                (format!("--test {target}"), name.to_owned())
            }
        });
        tests.collect()
    };
    lines.map(row).collect()
}

/// The source of a test, and its name there.
fn source(target: &str, name: &str) -> (String, String) {
    let Some(target) = target.strip_prefix("--test ") else {
        let (room, name) = name.split_once("::tests::").unwrap();
        return (
            format!("src/{}.rs", room.replace("::", "/")),
            name.to_owned(),
        );
    };
    (format!("tests/{target}.rs"), name.to_owned())
}

#[test]
fn every_test_of_the_table_exists() {
    let rows = rows();
    assert!(rows.len() > 25, "{DOCUMENT} has {} rows", rows.len());
    for tests in rows {
        assert!(!tests.is_empty(), "{DOCUMENT}: a promise without a test");
        for (target, name) in &tests {
            let (path, name) = source(target, name);
            let is_there = read(&path).contains(&format!("fn {name}("));
            assert!(is_there, "{path} has no test {name}");
        }
    }
}
