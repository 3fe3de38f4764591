//! Checks of any bytes that reach ecr-injector from outside, one file for each way in.
//!
//! A check panics if the code panics, if a promise is broken, or if a second way to the same answer
//! disagrees. The fuzzer (`fuzz/`) calls the checks with bytes that it makes up; the tests of
//! `offline` call them with the corpora in `fuzz/corpus`. A check keeps nothing from one call to
//! the next, so that each finding can be repeated.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::missing_panics_doc,
    reason = "a check that fails panics, and is no public API"
)]

pub mod aws_replies;
pub mod config;
pub mod docker;
pub mod images;
mod json;
pub mod kubelet;
pub mod manifests;
pub mod pull_secret;
pub mod review;

use jiff::Timestamp;

/// A check of some bytes.
pub type Check = fn(&[u8]);

/// All checks, by the names of their corpora.
pub const CHECKS: [(&str, Check); 8] = [
    ("aws_replies", aws_replies::check),
    ("config", config::check),
    ("docker", docker::check),
    ("images", images::check),
    ("kubelet", kubelet::check),
    ("manifests", manifests::check),
    ("pull_secret", pull_secret::check),
    ("review", review::check),
];

/// The time of every check.
const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

/// A registry, and the namespace that it is wanted in.
const HOST: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const NAMESPACE: &str = "team";

/// Panics if a text for people could move the cursor of a terminal or begin a line of its own.
fn assert_is_one_line(text: &str) {
    let is_foreign = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202e}');
    assert!(!text.contains(is_foreign), "not one plain line: {text:?}");
}
