//! The refresher on a paused clock, in a cluster of the imagination: what takes hours outside takes a moment here, and a
//! fault can be put at the worst of them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a test that can't go on panics, and takes its own time"
)]

mod support;
#[path = "refresher/week.rs"]
mod week;
