//! The corpora of the fuzzer, through the same checks (`tests/fuzzing`): what was found once stays
//! mended, also where nobody fuzzes.

#[path = "../fuzzing/mod.rs"]
mod checks;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::ops::Range;
use std::panic;
use std::path::{Path, PathBuf};

use axum::body::Body;
use ecr_injector::admission::review;
use http::{Request, StatusCode, header};
use tower::ServiceExt as _;

use self::checks::CHECKS;
use crate::support::InProcess;

/// The most bytes of all corpora together: everybody who clones the repository gets them.
const MAX_BYTES: u64 = 200 << 10;

fn corpora() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// The files of a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder);
    let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn corpora_pass_their_checks() {
    let mut failed = Vec::new();
    for (name, check) in CHECKS {
        let files = files(&corpora().join(name));
        assert!(files.len() >= 5, "{name} has {} files", files.len());
        for file in files {
            let input = fs::read(&file).unwrap();
            if panic::catch_unwind(|| check(&input)).is_err() {
                failed.push(file);
            }
        }
    }
    assert!(failed.is_empty(), "{failed:#?}");
}

/// A source of numbers that are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        // xorshift64.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let number = self.0 % u64::try_from(limit.max(1)).unwrap();
        usize::try_from(number).unwrap()
    }

    /// A part of some bytes.
    fn part(&mut self, length: usize) -> Range<usize> {
        let start = self.below(length + 1);
        start..start + self.below((length - start + 1).min(64))
    }
}

/// The words of a dictionary of the fuzzer.
fn words(name: &str) -> Vec<Vec<u8>> {
    let path = format!("fuzz/dictionaries/{name}.dict");
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let word = |line: &str| {
        let line = line.strip_prefix('"')?.strip_suffix('"')?;
        let mut word = Vec::new();
        let mut rest = line.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            let (byte, after) = match (first, after) {
                (b'\\', [b'x', high, low, after @ ..]) => {
                    let digits = [*high, *low];
                    let digits = std::str::from_utf8(&digits).ok()?;
                    (u8::from_str_radix(digits, 16).ok()?, after)
                }
                (b'\\', [escaped, after @ ..]) => (*escaped, after),
                _ => (*first, after),
            };
            word.push(byte);
            rest = after;
        }
        Some(word)
    };
    text.lines().map(|line| word(line).unwrap()).collect()
}

/// Changes an input a little, perhaps with a word or a part of another input.
fn change(input: &mut Vec<u8>, words: &[Vec<u8>], others: &[Vec<u8>], numbers: &mut Numbers) {
    let part = numbers.part(input.len());
    match numbers.below(6) {
        0 => {
            for byte in &mut input[part.start..part.end.min(part.start + 1)] {
                *byte ^= 1 << numbers.below(8);
            }
        }
        1 => drop(input.drain(part)),
        2 => drop(input.splice(part, words[numbers.below(words.len())].clone())),
        3 => {
            let at = part.start;
            input.splice(at..at, words[numbers.below(words.len())].clone());
        }
        4 => {
            let other = &others[numbers.below(others.len())];
            input.splice(part, other[numbers.part(other.len())].to_vec());
        }
        _ => {
            let copied = input[part.clone()].to_vec();
            input.splice(part.end..part.end, copied);
        }
    }
}

/// Some inputs that nobody thought of, the same in each run; `ECR_INJECTOR_FUZZ_ROUNDS` has more.
#[test]
fn changed_corpora_pass_their_checks() {
    let rounds = env::var("ECR_INJECTOR_FUZZ_ROUNDS").map_or(3, |text| text.parse().unwrap());
    let seed = env::var("ECR_INJECTOR_FUZZ_SEED").map_or(0, |text| text.parse().unwrap());
    let found = CHECKS.map(|(name, check)| {
        let words = words(name);
        let files = files(&corpora().join(name));
        let inputs: Vec<Vec<u8>> = files.iter().map(|file| fs::read(file).unwrap()).collect();
        let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 ^ seed);
        let mut changed = || {
            let mut input = inputs[numbers.below(inputs.len())].clone();
            for _ in 0..=numbers.below(6) {
                change(&mut input, &words, &inputs, &mut numbers);
            }
            input
        };
        // One finding of a check is enough for one run.
        let mut inputs = (0..rounds * inputs.len()).map(|_| changed());
        let failed = inputs.find(|input| panic::catch_unwind(|| check(input)).is_err());
        failed.map(|input| format!("{name}: {}", input.escape_ascii()))
    });
    let found: Vec<String> = found.into_iter().flatten().collect();
    assert!(found.is_empty(), "{found:#?}");
}

/// The whole webhook answers what its pure parts can read, and nothing is a reason to fail.
#[tokio::test]
async fn corpus_of_reviews_is_answered_by_the_webhook() {
    let webhook = InProcess::new();
    for file in files(&corpora().join("review")) {
        let body = fs::read(&file).unwrap();
        let expected = match review::Request::parse(&body) {
            Ok(_) => StatusCode::OK,
            Err(_) => StatusCode::BAD_REQUEST,
        };
        let request = Request::post("/mutate").header(header::CONTENT_TYPE, "application/json");
        let request = request.body(Body::from(body)).unwrap();
        let response = webhook.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), expected, "{}", file.display());
    }
}

#[test]
fn corpora_are_small_and_each_has_its_check() {
    let folders = files(&corpora());
    let names = folders
        .iter()
        .map(|folder| folder.file_name().unwrap().to_str().unwrap());
    let known = CHECKS.map(|(name, _)| name);
    assert_eq!(names.collect::<Vec<_>>(), known);
    let files = folders.iter().flat_map(|folder| files(folder));
    let bytes: u64 = files.map(|file| fs::metadata(file).unwrap().len()).sum();
    assert!(bytes <= MAX_BYTES, "{bytes} bytes");
}

/// Each check is a target of the fuzzer, with a dictionary.
#[test]
fn every_check_is_fuzzed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(root.join("fuzz/Cargo.toml")).unwrap();
    for (name, _) in CHECKS {
        assert!(manifest.contains(&format!("name = \"{name}\"\n")), "{name}");
        let target = root.join(format!("fuzz/targets/{name}.rs"));
        let target = fs::read_to_string(target).unwrap();
        assert!(target.contains(&format!("{name}::check")), "{name}");
        assert!(
            root.join(format!("fuzz/dictionaries/{name}.dict")).exists(),
            "{name}"
        );
    }
    assert_eq!(manifest.matches("[[bin]]").count(), CHECKS.len());
}

/// Returns the crates of a manifest with the versions that it asks for.
fn versions(manifest: &str) -> BTreeMap<&str, &str> {
    let (_, dependencies) = manifest.split_once("ependencies]\n").unwrap();
    let (dependencies, _) = dependencies.split_once("\n[[").unwrap();
    let lines = dependencies.lines().filter_map(|line| {
        let (name, value) = line.split_once(" = ")?;
        let value = value.strip_prefix("{ version = ").unwrap_or(value);
        Some((name, value.strip_prefix('"')?.split('"').next()?))
    });
    lines.collect()
}

#[test]
fn fuzzer_has_the_crates_of_the_product() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let (product, fuzzer) = (read("Cargo.toml"), read("fuzz/Cargo.toml"));
    let (product, fuzzer) = (versions(&product), versions(&fuzzer));
    assert!(fuzzer.len() > 10, "{fuzzer:?}");
    for (name, version) in fuzzer {
        let is_own = name == "libfuzzer-sys" || name == "name" || name == "path";
        let expected = product.get(name).copied();
        assert!(is_own || expected == Some(version), "{name}: {expected:?}");
    }
}
