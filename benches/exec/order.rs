//! `make order`: finds the functions that runs call, and writes their names for the linker.
//!
//! Those that most runs call come first, so that a run which has its answer at hand needs the first pages alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use crate::runs::Run;

/// Turns symbols into names that no hash is in; the linker of the small binary uses it as well.
const NAMES: &str = "image/names.sh";

/// Runs each once below callgrind, and writes the names of all functions that were called.
pub fn write(path: &Path, runs: &[Run]) {
    let mut calls: BTreeMap<String, usize> = BTreeMap::new();
    for run in runs {
        let functions = names(&functions(run));
        println!("{:<46} {} functions", run.name, functions.len());
        for name in functions {
            *calls.entry(name).or_default() += 1;
        }
    }
    let mut order: Vec<_> = calls.into_iter().collect();
    order.sort_by(|(name, runs), (other, of_other)| (of_other, name).cmp(&(runs, other)));
    let names: String = order.into_iter().map(|(name, _)| name + "\n").collect();
    fs::write(path, names).unwrap();
}

/// Returns the symbols of the functions that a run calls.
fn functions(run: &Run) -> BTreeSet<String> {
    let report = tempfile::NamedTempFile::new().unwrap();
    let out = format!("--callgrind-out-file={}", report.path().display());
    run.below(
        "valgrind",
        &["--quiet", "--tool=callgrind", "--demangle=no", &out],
    );
    let text = fs::read_to_string(report).unwrap();
    // `fn=(7) name`, and from then on `fn=(7)`; `cfn=` for a callee.
    let names = text.lines().filter_map(|line| {
        let (kind, of) = line.split_once("fn=(")?;
        let (_, name) = of.split_once(") ")?;
        let name = name.split('\'').next().unwrap_or(name);
        let is_symbol = !name.starts_with("0x") && !name.starts_with('(');
        (kind.len() <= 1 && is_symbol).then(|| name.to_owned())
    });
    names.collect()
}

fn names(symbols: &BTreeSet<String>) -> BTreeSet<String> {
    let mut filter = Command::new(NAMES)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("run in the root of the repository");
    let (mut stdin, mut stdout) = (filter.stdin.take().unwrap(), filter.stdout.take().unwrap());
    let lines = symbols.iter().map(|symbol| symbol.clone() + "\n");
    let text: String = lines.collect();
    // The filter may write before it has read everything.
    let writer = thread::spawn(move || stdin.write_all(text.as_bytes()).unwrap());
    let mut names = String::new();
    stdout.read_to_string(&mut names).unwrap();
    writer.join().unwrap();
    assert!(filter.wait().unwrap().success(), "{NAMES}");
    names.lines().map(ToOwned::to_owned).collect()
}
