//! The process itself: its clock, signals, file descriptors and memory, the files that it watches,
//! and how its parts share values and readiness.

pub mod backoff;
pub mod clock;
pub mod current;
pub mod file_descriptors;
pub mod file_watcher;
pub mod files;
pub mod memory;
pub(crate) mod random;
pub mod readiness;
pub mod signals;
pub mod supervisor;
