//! Keeps every pull secret fresh for as long as Pods live: what the leader does, and when.
//!
//! The plan is here; the loop that follows it is not yet.

pub mod schedule;
