//! `docs/contributing/faults.md`, and what `docs/explanation/security.md` says of tenants, against the tests: each test that they name exists.
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The documents, with where their table begins and how many promises there are at least.
const DOCUMENTS: [(&str, &str, usize); 2] = [
    ("docs/contributing/faults.md", "| fault |", 26),
    ("docs/explanation/security.md", "| a tenant who |", 9),
];

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the texts between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Returns each row's tests, each by what cargo needs to run the test: its target and its name.
fn rows(document: &str, head: &str) -> Vec<BTreeSet<(String, String)>> {
    let text = read(document);
    let lines = text.lines().skip_while(|line| !line.starts_with(head));
    let lines = lines.take_while(|line| line.starts_with('|')).skip(2);
    let row = |line: &str| -> BTreeSet<(String, String)> {
        let cells: Vec<&str> = line.trim_matches('|').split('|').collect();
        let [_, _, tests] = cells[..] else {
            panic!("{document}: not three cells: {line}")
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
    if let Some(target) = target.strip_prefix("--test ") {
        let (module, name) = name.rsplit_once("::").unwrap();
        let module = module.replace("::", "/");
        return (format!("tests/{target}/{module}.rs"), name.to_owned());
    }
    let (room, name) = name.split_once("::tests::").unwrap();
    let room = room.replace("::", "/");
    let own = format!("src/{room}/tests.rs");
    let has_own = Path::new(env!("CARGO_MANIFEST_DIR")).join(&own).exists();
    let path = if has_own {
        own
    } else {
        format!("src/{room}.rs")
    };
    let of_folder = format!("src/{room}/mod.rs");
    let is_folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(&of_folder)
        .exists();
    (
        if is_folder && !has_own {
            of_folder
        } else {
            path
        },
        name.to_owned(),
    )
}

#[test]
fn every_test_of_the_tables_exists() {
    for (document, head, least) in DOCUMENTS {
        let rows = rows(document, head);
        assert!(rows.len() >= least, "{document} has {} rows", rows.len());
        for tests in rows {
            assert!(!tests.is_empty(), "{document}: a promise without a test");
            for (target, name) in &tests {
                let (path, name) = source(target, name);
                let is_there = read(&path).contains(&format!("fn {name}("));
                assert!(is_there, "{path} has no test {name}");
            }
        }
    }
}
