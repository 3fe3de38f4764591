//! Keeps every pull secret fresh for as long as Pods live: what the leader does, and what one sweep by hand does.
//!
//! The schedule follows from the states on the pull secrets alone, so a leader that dies loses nothing. Nothing is polled:
//! the watches tell what has changed, and between that and the next due time the refresher sleeps.

mod keys;
mod pace;
pub mod schedule;
pub mod store;
mod telling;
mod troubles;
mod work;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;

use self::{
    schedule::{Plan, Policy},
    store::Store,
    work::{Scope, Work},
};
use crate::{
    clock::Clock,
    current::Current,
    events::Events,
    leader::Leadership,
    metrics::Metrics,
    namespace::{Namespace, changes::Changes},
    pull_secret::write::Fence,
    token::cache::TokenCache,
};

/// How long the work for one namespace may take, all its calls together.
pub const WORK_TIMEOUT: Duration = Duration::from_secs(10);

/// What the refresher works with.
pub struct Parts {
    /// The cluster.
    pub store: Arc<dyn Store>,
    /// Where tokens come from.
    pub tokens: TokenCache,
    /// What the configuration says.
    pub policy: Current<Policy>,
    /// Tells of what the watches see.
    pub changes: Changes,
    /// The time.
    pub clock: Arc<dyn Clock>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Tells the namespaces' people, if anything is to.
    pub events: Option<Events>,
}

/// Which namespaces one sweep is for, and what it does to them.
#[derive(Debug, Clone, Default)]
pub struct Sweep {
    /// These, or all.
    pub namespaces: Option<BTreeSet<Namespace>>,
    /// Also what isn't due yet is renewed.
    pub renews_all: bool,
}

/// What one sweep did for a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swept {
    /// The namespace.
    pub namespace: Namespace,
    /// Whether its pull secret was written.
    pub written: bool,
    /// What went wrong last, if anything did.
    pub error: Option<String>,
    /// Whether nothing is left to be done for it.
    pub is_done: bool,
}

/// Keeps pull secrets fresh; clones share the parts.
#[derive(Clone)]
pub struct Refresher(Arc<Parts>);

impl Fence for Leadership {
    fn holds(&self) -> bool {
        Leadership::holds(self)
    }
}

/// Whoever has this listens to the changes.
struct Listening<'a>(&'a Changes);

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.ignore();
    }
}

impl Refresher {
    /// Makes one of its parts.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// Keeps everything fresh until the term is over, and what was under way then has ended. Both watches have to have
    /// brought what there is: a namespace that isn't known yet looks opted out.
    pub async fn lead(&self, term: Leadership) {
        self.0.changes.listen();
        let _listening = Listening(&self.0.changes);
        Work::new(self.0.clone(), term, Scope::Everything, None)
            .run()
            .await;
    }

    /// Does what is due now, each thing once, and ends. `progress` is told how many namespaces are done, and of how many.
    pub async fn sweep(
        &self,
        sweep: Sweep,
        term: Leadership,
        progress: &(dyn Fn(usize, usize) + Send + Sync),
    ) -> Vec<Swept> {
        self.0.changes.listen();
        let _listening = Listening(&self.0.changes);
        let mut work = Work::new(self.0.clone(), term, Scope::Once(sweep), Some(progress));
        work.run().await;
        work.into_results()
    }

    /// What a sweep would begin with, and does nothing.
    #[must_use]
    pub fn preview(&self, sweep: Sweep) -> Vec<(Namespace, Option<Plan>)> {
        let now: Timestamp = self.0.clock.now();
        let term = Leadership::unlimited();
        let work = Work::new(self.0.clone(), term, Scope::Once(sweep), None);
        work.names()
            .into_iter()
            .map(|namespace| {
                let plan = work.plan(&namespace, now);
                (namespace, plan)
            })
            .collect()
    }
}
