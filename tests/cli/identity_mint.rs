//! `ecr-injector identity --mint` as an admin runs it to see who mints and what comes of it: the real binary and the real
//! SDK, in an environment that holds nothing but what the test gives it, against a fake AWS that is reached by every road a
//! cluster has.
//!
//! The command takes the very road that `serve` takes, so what holds here holds for an admission.

mod command;
mod endpoints;
mod hosts;
mod keys;
mod network;
mod output;
mod profiles;
mod roles;
mod sessions;
mod sources;
