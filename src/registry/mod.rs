//! Registries: image references, ECR hosts and their aliases.

/// Implements `as_str` and `Display` of types that wrap a text.
macro_rules! as_text {
    ($($name:ident),*) => {$(
        impl $name {
            /// Returns the text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

mod alias;
pub mod cel;
mod ecr;
mod host;
pub mod image;
mod lookalike;
mod region;

pub use self::{
    alias::{AliasError, Aliases},
    ecr::{AccountId, Endpoint, HostForm, PUBLIC_HOSTS, Registry, RegistryError, Service},
    host::Host,
    lookalike::{Lookalike, Quoted},
    region::{Partition, Region},
};

#[cfg(test)]
mod tests;
