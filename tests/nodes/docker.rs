//! The docker credential helper as docker's clients run it: a file by its name, an action, a server on standard input.

mod cache;
mod command;
mod configure;
mod get;
mod identities;
mod login;
mod neighbour;
