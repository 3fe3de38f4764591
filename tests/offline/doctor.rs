//! The reference of doctor against the code: each output line names a heading of it.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use ecr_injector::cli::doctor::codes;

#[test]
fn codes_of_doctor_are_the_headings_of_the_page() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/reference/doctor.md");
    let page = fs::read_to_string(path).unwrap();
    let headings = page.lines().filter_map(|line| line.strip_prefix("### "));
    let headings: Vec<&str> = headings.collect();
    let codes = codes();
    let (of_page, of_code): (BTreeSet<_>, BTreeSet<_>) = (
        headings.iter().copied().collect(),
        codes.iter().copied().collect(),
    );
    assert_eq!(of_page, of_code);
    assert_eq!(headings.len(), of_page.len(), "a heading is there twice");
    assert_eq!(codes.len(), of_code.len(), "a code is there twice");
}
