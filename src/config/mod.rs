//! The configuration: the file's format, its checks, and its reload while the process runs.
//!
//! A file is read as a whole, checked as a whole, and resolved into the rules that other rooms
//! take. Without a file every field has its default; a file names its apiVersion and kind, so that an
//! emptied one is an error and not the default.

mod endpoints;
mod error;
mod file;
mod identities;
pub mod live;
mod load;
pub mod metrics;
mod patterns;
mod refresh;
mod resolved;
pub mod schema;
mod shape;
mod value;
mod warnings;
pub mod watcher;
mod within;

pub use self::{
    error::{ConfigError, FieldError},
    refresh::{Discovery, Refresh},
    resolved::Config,
    within::Found,
};

#[cfg(test)]
mod tests;
