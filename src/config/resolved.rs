//! The checked configuration and its defaults.

use super::refresh::Refresh;
use crate::{
    aws::endpoints::Endpoints,
    cluster::namespace::{Namespace, OptIn},
    identity::Identities,
    registry::Aliases,
    token::{
        SessionCap,
        rules::{Allow, OnFailure, Rules},
    },
};

pub(super) const DEFAULT_SECRET_NAME: &str = "ecr-pull-secret";
pub(super) const DEFAULT_OPT_IN_LABEL: &str = "ecr-injector.dev/inject";
pub(super) const DEFAULT_OPT_IN_VALUE: &str = "enabled";
pub(super) const DEFAULT_EXCLUDED: [&str; 2] = ["kube-system", "kube-node-lease"];
pub(super) const DEFAULT_REGISTRIES_PER_POD: usize = 16;
pub(super) const DEFAULT_REGISTRIES_PER_SECRET: usize = 64;

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// The rules of admissions and refreshes.
    pub rules: Rules,
    /// The label that opts a namespace in.
    pub opt_in: OptIn,
    /// The cap of a token's lifetime.
    pub session_cap: SessionCap,
    /// The endpoints of AWS by region.
    pub endpoints: Endpoints,
    /// The settings of the leader, which refreshes the pull secrets.
    pub refresh: Refresh,
    /// Whether ServiceAccounts are watched for the Secrets that their Pods may reference.
    pub watches_service_accounts: bool,
    /// The log filter in the form of `RUST_LOG`, if the file has one.
    pub log_filter: Option<String>,
}

impl Config {
    /// Excludes one more namespace: the one in which ecr-injector runs.
    #[must_use]
    pub fn excluding(mut self, own_namespace: Option<Namespace>) -> Self {
        self.rules.excluded.extend(own_namespace);
        self
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            rules: Rules {
                secret_name: DEFAULT_SECRET_NAME.to_owned(),
                excluded: DEFAULT_EXCLUDED
                    .iter()
                    .filter_map(|name| Namespace::parse(name))
                    .collect(),
                aliases: Aliases::default(),
                allow: Allow::default(),
                identities: Identities::default(),
                registries_per_pod: DEFAULT_REGISTRIES_PER_POD,
                registries_per_secret: DEFAULT_REGISTRIES_PER_SECRET,
                on_failure: OnFailure::Admit,
            },
            opt_in: OptIn {
                label: DEFAULT_OPT_IN_LABEL.to_owned(),
                value: DEFAULT_OPT_IN_VALUE.to_owned(),
            },
            session_cap: SessionCap::default(),
            endpoints: Endpoints::default(),
            refresh: Refresh::default(),
            watches_service_accounts: true,
            log_filter: None,
        }
    }
}
