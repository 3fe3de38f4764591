//! The configuration while the process runs: who follows it, and what becomes of them when it is replaced.

use std::sync::Arc;

use super::Config;
use crate::{
    cluster::namespace::Namespace,
    process::current::{Current, Follower},
    rules::{Policy, Rules},
    token::SessionCap,
};

/// The configuration of the moment; clones share it.
///
/// Each of its followers decides by one part alone, and takes one snapshot of it for one decision: so no decision is by
/// halves of two configurations, although the parts are replaced one after another.
#[derive(Debug, Clone)]
pub struct Live {
    config: Current<Config>,
    /// The namespace that we run in: excluded whatever the file says.
    own: Option<Namespace>,
    /// What admissions are decided by.
    pub rules: Current<Rules>,
    /// What the leader plans by.
    pub policy: Current<Policy>,
    /// What the lives of tokens are cut to.
    pub session_cap: Current<SessionCap>,
}

impl Live {
    /// Begins with a configuration, in a namespace of ours if this is a Pod.
    #[must_use]
    pub fn new(config: Config, own: Option<Namespace>) -> Self {
        let config = config.excluding(own.clone());
        let rules = Arc::new(config.rules.clone());
        Self {
            policy: Current::new(policy(&config, rules.clone())),
            rules: Current::new(rules),
            session_cap: Current::new(config.session_cap),
            config: Current::new(config),
            own,
        }
    }

    /// The whole of it.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        self.config.get()
    }

    /// Is told of each new one, once all other followers have it.
    #[must_use]
    pub fn follow(&self) -> Follower<Config> {
        self.config.follow()
    }

    /// From now on this one counts, but for the fields that can't change while the process runs: they stay as they are.
    /// Those are told that are not as the new one has them.
    ///
    /// The watches select by the name and the label from their start, and the guard, RBAC and the registration name the
    /// same: a new name is a new set of Secrets, and whoever changes it has to change all four.
    #[must_use]
    pub fn replace(&self, config: Config) -> Vec<&'static str> {
        let mut config = config.excluding(self.own.clone());
        let running = self.config.get();
        let mut kept = Vec::new();
        for (field, is, wanted) in [
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
            if is != wanted {
                wanted.clone_from(is);
                kept.push(field);
            }
        }
        let rules = Arc::new(config.rules.clone());
        self.session_cap.replace(config.session_cap);
        self.rules.replace(rules.clone());
        self.policy.replace(policy(&config, rules));
        self.config.replace(config);
        kept
    }
}

/// The part that the leader follows.
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
