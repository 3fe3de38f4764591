//! Aliases of ECR registries, and the registry of a host in an image reference.

use std::collections::{BTreeMap, btree_map::Entry};

use thiserror::Error;

use super::{
    ecr::Registry,
    host::Host,
    image::ImageReference,
    lookalike::{Lookalike, MAX_TEXT},
};

/// The reason why an alias was rejected.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AliasError {
    /// The text is not a host name.
    #[error(
        "{0:?} is not a host name: expected lower-case labels joined by dots, with a port if the images have one, without scheme or path"
    )]
    Host(String),
    /// The host is an ECR registry's own.
    #[error("{0:?} is an ECR registry itself and can't be an alias")]
    IsRegistry(String),
    /// The list has the host twice.
    #[error("{0:?} is named twice")]
    Duplicate(String),
}

/// The registries of hosts in image references: ECR's own hosts, and the aliases that the cluster's
/// admin gave to registries (a CNAME, a mirror).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Aliases {
    registries: BTreeMap<Host, Registry>,
    public: bool,
}

impl Aliases {
    /// Checks and collects pairs of host and registry.
    pub fn new(pairs: impl IntoIterator<Item = (String, Registry)>) -> Result<Self, AliasError> {
        let mut aliases = Self::default();
        for (text, registry) in pairs {
            aliases.insert(text, registry)?;
        }
        Ok(aliases)
    }

    /// Checks and adds a pair of host and registry.
    pub fn insert(&mut self, text: String, registry: Registry) -> Result<(), AliasError> {
        if Registry::parse(&text).is_some() || Registry::parse_public(&text).is_some() {
            return Err(AliasError::IsRegistry(text));
        }
        let Some(host) = Host::parse(&text) else {
            return Err(AliasError::Host(text));
        };
        match self.registries.entry(host) {
            Entry::Occupied(_) => Err(AliasError::Duplicate(text)),
            Entry::Vacant(entry) => {
                entry.insert(registry);
                Ok(())
            }
        }
    }

    /// Adds ECR Public.
    #[must_use]
    pub fn with_public(self) -> Self {
        Self {
            public: true,
            ..self
        }
    }

    /// Returns the aliases with their registries.
    pub fn iter(&self) -> impl Iterator<Item = (&Host, &Registry)> {
        self.registries.iter()
    }

    /// Returns whether ECR Public gets credentials as well.
    #[must_use]
    pub fn include_public(&self) -> bool {
        self.public
    }

    /// Resolves a host of an image reference to the host in the pull secret and the registry that
    /// mints its token, or returns `None` if the host is neither an alias nor an ECR registry.
    #[must_use]
    pub fn resolve(&self, host: &str) -> Option<(Host, Registry)> {
        if let Some((alias, registry)) = self.registries.get_key_value(host) {
            return Some((alias.clone(), registry.clone()));
        }
        let public = || Registry::parse_public(host).filter(|_| self.public);
        let registry = Registry::parse(host).or_else(public)?;
        Some((registry.host().clone(), registry))
    }

    /// Returns why an image that looks like one of ECR, or of an alias, is none: `None` where the
    /// image's host is resolved, or looks like neither.
    #[must_use]
    pub fn lookalike(&self, image: &str) -> Option<Lookalike> {
        let reference = ImageReference::parse(image).ok();
        let domain = reference.map(|reference| reference.domain());
        if domain.is_some_and(|domain| self.resolve(domain).is_some()) {
            return None;
        }
        Lookalike::of_image(image).or_else(|| self.near(domain?))
    }

    /// Returns why a text that looks like a registry's host, or an alias, is none.
    #[must_use]
    pub fn lookalike_host(&self, host: &str) -> Option<Lookalike> {
        if self.resolve(host).is_some() {
            return None;
        }
        Lookalike::of_host(host).or_else(|| self.near(host))
    }

    /// Returns the alias that differs from the host in case, or in the default port: other ports
    /// are other registries. ECR Public is like an alias here.
    fn near(&self, host: &str) -> Option<Lookalike> {
        if !self.public && self.registries.is_empty() {
            return None;
        }
        // No alias is as long as what is left of a longer text.
        let lower = host[..host.floor_char_boundary(MAX_TEXT)].to_ascii_lowercase();
        if self.public && Registry::parse_public(&lower).is_some() {
            return Some(Lookalike::UpperCase);
        }
        let other = match lower.strip_suffix(":443") {
            Some(name) => name.to_owned(),
            None => format!("{lower}:443"),
        };
        let mut names = [&lower, &other].into_iter();
        let alias = names.find_map(|name| self.registries.get_key_value(&**name))?;
        Some(Lookalike::Alias(alias.0.clone()))
    }
}
