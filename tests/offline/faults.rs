//! `docs/contributing/faults.md`, `docs/explanation/faults-and-threats.md`, and what `docs/explanation/security.md` says of
//! tenants, against the tests: each test that they name exists, and each command runs some.
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The documents, with where their table begins and how many promises there are at least.
const DOCUMENTS: [(&str, &str, usize); 3] = [
    ("docs/contributing/faults.md", "| fault |", 80),
    ("docs/explanation/security.md", "| a tenant who |", 9),
    (FOR_USERS, "| threat |", 35),
];

/// The page for users, with a table of faults and one of threats.
const FOR_USERS: &str = "docs/explanation/faults-and-threats.md";
/// The number of faults, and that of threats.
const COUNT: usize = 20;
/// The link of a row that has a decision in place of a test.
const DECISION: &str = "](../contributing/decisions/";

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Returns the texts between backticks.
fn quoted(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

/// Returns the rows of the table with this head.
fn table(document: &str, head: &str) -> Vec<String> {
    let text = read(document);
    let lines = text.lines().skip_while(|line| !line.starts_with(head));
    let lines = lines.take_while(|line| line.starts_with('|')).skip(2);
    lines.map(str::to_owned).collect()
}

/// Returns each row's tests, each by what cargo needs to run the test: its target and its name.
fn rows(document: &str, head: &str) -> Vec<BTreeSet<(String, String)>> {
    let row = |line: &String| -> BTreeSet<(String, String)> {
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
        let tests: BTreeSet<_> = tests.collect();
        let is_held = !tests.is_empty() || line.contains(DECISION);
        assert!(is_held, "{document}: a promise without a test: {line}");
        tests
    };
    table(document, head).iter().map(row).collect()
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
            for (target, name) in &tests {
                let (path, name) = source(target, name);
                let is_there = read(&path).contains(&format!("fn {name}("));
                assert!(is_there, "{path} has no test {name}");
            }
        }
    }
}

/// Returns the faults or threats that a table numbers.
fn numbers(document: &str, head: &str) -> Vec<String> {
    let first = |line: String| {
        let cell = line.trim_matches('|').split('|').next().map(str::trim);
        let (number, _) = cell.filter(|cell| !cell.is_empty())?.split_once('.')?;
        Some(number.to_owned())
    };
    table(document, head)
        .into_iter()
        .filter_map(first)
        .collect()
}

#[test]
fn both_pages_have_all_faults_and_one_all_threats() {
    let faults: Vec<String> = (1..=COUNT).map(|number| number.to_string()).collect();
    assert_eq!(numbers("docs/contributing/faults.md", "| fault |"), faults);
    assert_eq!(numbers(FOR_USERS, "| fault |"), faults);
    let mut threats = faults;
    threats.splice(18.., ["A", "B"].map(str::to_owned));
    assert_eq!(numbers(FOR_USERS, "| threat |"), threats);
}

/// Returns the names of the tests in a file or a folder, each behind the path of its modules.
fn tests_in(path: &Path, modules: &str, found: &mut Vec<String>) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            let entry = entry.unwrap().path();
            let name = entry.file_stem().unwrap().to_str().unwrap();
            tests_in(&entry, &format!("{modules}::{name}"), found);
        }
    } else if path.extension().is_some_and(|extension| extension == "rs") {
        let text = fs::read_to_string(path).unwrap();
        for test in text.split("test]\n").chain(text.split("test(")).skip(1) {
            let name = test
                .split_once("fn ")
                .and_then(|(_, rest)| rest.split_once('('));
            found.extend(name.map(|(name, _)| format!("{modules}::{name}")));
        }
    }
}

#[test]
fn every_command_of_the_table_runs_some_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rows = table(FOR_USERS, "| fault |");
    assert_eq!(rows.len(), COUNT);
    for row in rows {
        let command = row.rsplit('`').nth(1).unwrap();
        let words: Vec<&str> = command.split(' ').collect();
        let (folder, filter) = match words[..] {
            ["cargo", "test", "--lib", filter] => ("src".to_owned(), filter),
            ["cargo", "test", "--test", target, filter] => (format!("tests/{target}"), filter),
            _ => panic!("not a command that runs tests: {command}"),
        };
        let mut tests = Vec::new();
        tests_in(&root.join(folder), "", &mut tests);
        let is_run = tests.iter().any(|test| test.contains(filter));
        assert!(is_run, "no test of {command}");
    }
}

#[test]
fn table_for_users_names_no_target_that_the_makefile_lacks() {
    let makefile = read("Makefile");
    let text = read(FOR_USERS);
    let targets = quoted(&text).filter_map(|command| command.strip_prefix("make "));
    for target in targets.filter_map(|target| target.split(' ').next()) {
        assert!(makefile.contains(&format!("\n{target}:")), "make {target}");
    }
}
