//! The entries of docs/how-to/troubleshooting.md: the tests that produce the texts hold the headings to them.
//! `tests/offline/troubleshooting.rs` has the table of which test produces which.

use std::fs;
use std::path::Path;

const PAGE: &str = "docs/how-to/troubleshooting.md";
/// Words that stand for what differs, beside numbers and `…`.
const PLACEHOLDERS: [&str; 7] = ["HOST", "REASON", "NAMESPACE", "NAME", "FILE", "IMAGE", "NS"];

/// Returns the page.
pub fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE)).unwrap()
}

/// Returns the headings of the page that are texts of programs.
pub fn headings(page: &str) -> Vec<&str> {
    let headings = page.lines().filter_map(|line| line.strip_prefix("### "));
    headings.filter(|heading| heading.contains('`')).collect()
}

/// Asserts that the text, which a program has just produced, is that of the entry with this heading.
#[track_caller]
pub fn shows(heading: &str, produced: &str) {
    let page = page();
    assert!(
        headings(&page).contains(&heading),
        "{PAGE} has no entry {heading}"
    );
    assert!(
        is_of(heading, produced),
        "{PAGE}: {heading}\nis not in\n{produced}"
    );
}

/// Whether a text is that of a heading: one of the parts in backticks is in it, whatever stands for what differs.
pub fn is_of(heading: &str, produced: &str) -> bool {
    let parts = heading.split('`').skip(1).step_by(2);
    parts
        .into_iter()
        .any(|part| has_in_order(produced, &fragments(part)))
}

/// Returns the parts of a text that don't differ.
fn fragments(text: &str) -> Vec<String> {
    let mut fragments = vec![String::new()];
    for word in words(text) {
        if word == "…" || PLACEHOLDERS.contains(&word) || word.bytes().all(|b| b.is_ascii_digit())
        {
            fragments.push(String::new());
        } else {
            fragments.last_mut().unwrap().push_str(word);
        }
    }
    fragments.retain(|fragment| !fragment.trim().is_empty());
    fragments
}

/// Cuts a text into words, numbers and what is between them.
fn words(text: &str) -> Vec<&str> {
    let kind = |c: char| match c {
        'A'..='Z' | 'a'..='z' => 0,
        '0'..='9' => 1,
        '…' => 2,
        _ => 3,
    };
    let mut words = Vec::new();
    let mut start = 0;
    let mut before = None;
    for (at, c) in text.char_indices() {
        if before.is_some_and(|before| before != kind(c)) {
            words.push(&text[start..at]);
            start = at;
        }
        before = Some(kind(c));
    }
    words.push(&text[start..]);
    words
}

fn has_in_order(text: &str, fragments: &[String]) -> bool {
    let mut rest = text;
    for fragment in fragments {
        match rest.find(fragment.as_str()) {
            Some(at) => rest = &rest[at + fragment.len()..],
            None => return false,
        }
    }
    !fragments.is_empty()
}
