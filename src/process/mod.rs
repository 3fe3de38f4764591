//! The process itself: its clock, signals, file descriptors and memory, and how its parts share values and readiness.

pub mod backoff;
pub mod clock;
pub mod current;
pub mod file_descriptors;
pub mod memory;
pub mod readiness;
pub mod signals;
