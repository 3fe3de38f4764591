//! Keeps every pull secret fresh for as long as Pods live: the leader's loop, and one sweep by
//! hand.
//!
//! The plan follows from what is known of the cluster and from the configuration alone, so a leader
//! that dies loses nothing. Nothing is polled: the watches report what has changed, and between
//! that and the next due time the leader sleeps.
//!
//! One namespace passes six files, each once: `controller` takes its turn from `queue`, lets `plan`
//! decide what is to be done, has `reconciler` gather the tokens and make the call (a token that is
//! missing is minted by `minter`, while the namespace waits), and has `reporter` publish the
//! result.

mod backoffs;
mod clock_skew;
mod context;
mod controller;
pub mod discovery;
pub mod impact;
pub mod metrics;
mod mint_queue;
mod minter;
pub mod missed;
pub mod near_misses;
pub mod plan;
pub mod queue;
mod rate_limiter;
mod reconciler;
mod reporter;
mod sweep;

pub use self::{
    context::{NamespaceSource, RECONCILE_TIMEOUT, ReconcilerContext},
    reconciler::Reconciler,
    sweep::{Sweep, SweepOutcome},
};
