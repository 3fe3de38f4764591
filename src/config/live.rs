//! The configuration while the process runs: the snapshots that its consumers read, and its
//! replacement.

use std::sync::Arc;

use super::resolved::Config;
use crate::{
    aws::endpoints::Endpoints,
    cluster::namespace::Namespace,
    process::current::{Current, Follower},
    token::{
        SessionCap,
        rules::{Policy, Rules},
    },
};

/// The current configuration, which clones share.
///
/// Each consumer reads one part alone, and takes one snapshot of the part per decision. So no
/// decision mixes two configurations, although the parts are replaced one after another.
#[derive(Debug, Clone)]
pub struct Live {
    config: Current<Config>,
    /// The namespace in which ecr-injector runs: excluded whatever the file has.
    own_namespace: Option<Namespace>,
    /// The rules of admissions.
    pub rules: Current<Rules>,
    /// The policy of the leader.
    pub policy: Current<Policy>,
    /// The cap of a token's lifetime.
    pub session_cap: Current<SessionCap>,
    /// The endpoints of AWS by region.
    pub endpoints: Current<Endpoints>,
}

impl Live {
    /// Starts with a configuration, and with the namespace in which ecr-injector runs, if in a Pod.
    #[must_use]
    pub fn new(config: Config, own_namespace: Option<Namespace>) -> Self {
        let config = config.excluding(own_namespace.clone());
        let rules = Arc::new(config.rules.clone());
        Self {
            policy: Current::new(policy(&config, rules.clone())),
            rules: Current::new(rules),
            session_cap: Current::new(config.session_cap),
            endpoints: Current::new(config.endpoints.clone()),
            config: Current::new(config),
            own_namespace,
        }
    }

    /// Returns the whole configuration.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.config.get()
    }

    /// Subscribes to each new configuration, which arrives after all parts are replaced.
    #[must_use]
    pub fn follow(&self) -> Follower<Config> {
        self.config.follow()
    }

    /// Replaces the configuration, except for the fields that can't change while the process runs,
    /// and returns those of them that the new configuration would change.
    ///
    /// The watches select by the Secret's name and the label from their start, and the guard, RBAC
    /// and the registration contain the same name and label: a new name is a new set of Secrets,
    /// and a change has to be made in all four. The watch of ServiceAccounts needs its rights.
    #[must_use]
    pub fn replace(&self, config: Config) -> Vec<&'static str> {
        let mut config = config.excluding(self.own_namespace.clone());
        let running = self.config.get();
        let mut needs_restart = Vec::new();
        for (field, current, wanted) in [
            (
                "secretName",
                &running.rules.secret_name,
                &mut config.rules.secret_name,
            ),
            (
                "optIn.label",
                &running.opt_in.label,
                &mut config.opt_in.label,
            ),
            (
                "optIn.value",
                &running.opt_in.value,
                &mut config.opt_in.value,
            ),
        ] {
            if current != wanted {
                wanted.clone_from(current);
                needs_restart.push(field);
            }
        }
        let watches = running.watches_service_accounts;
        if config.watches_service_accounts != watches {
            config.watches_service_accounts = watches;
            needs_restart.push("watchServiceAccounts");
        }
        let rules = Arc::new(config.rules.clone());
        self.session_cap.replace(config.session_cap);
        self.endpoints.replace(config.endpoints.clone());
        self.rules.replace(rules.clone());
        self.policy.replace(policy(&config, rules));
        self.config.replace(config);
        needs_restart
    }
}

/// Returns the part that the leader follows.
fn policy(config: &Config, rules: Arc<Rules>) -> Policy {
    let refresh = &config.refresh;
    Policy {
        rules,
        prewarm: refresh.prewarm.clone(),
        forget_after: refresh.forget_after,
        revocation: refresh.revocation,
        removes: refresh.removes,
        writes_per_second: refresh.writes_per_second,
    }
}
