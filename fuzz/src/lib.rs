//! The checks that the targets call: those of `tests/fuzzing`, which `make test` calls with the
//! corpora.

#[path = "../../tests/fuzzing/mod.rs"]
pub mod fuzzing;
