//! The kubelet's credential plugin, as the kubelet starts it. The numbers in the comments are those of the specification's
//! acceptance tests.

mod accounts;
mod answers;
mod cache;
mod command;
mod hosts;
mod outages;
