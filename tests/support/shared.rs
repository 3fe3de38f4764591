//! Resources that the tests of a module share: the first test that needs one starts it, and the
//! resource ends when tests of other modules have started enough of their own. A `static` alone
//! would keep every control plane until the process ends.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, Weak};

/// How many are kept while no test uses them. Tests run in the order of their names, so the modules in use at one time
/// are few; an idle control plane takes 400 MB and a twentieth of a core.
const KEPT: usize = 3;

/// The ones that were used last, the most recent at the end.
static LAST_USED: Mutex<VecDeque<Arc<dyn Any + Send + Sync>>> = Mutex::new(VecDeque::new());

/// A place for one in a `static`.
pub struct Shared<T>(tokio::sync::Mutex<Weak<T>>);

impl<T: Send + Sync + 'static> Shared<T> {
    pub const fn new() -> Self {
        Self(tokio::sync::Mutex::const_new(Weak::new()))
    }

    /// Returns the one that runs, or starts one.
    pub async fn get_or_start(&self, start: impl AsyncFnOnce() -> T) -> Arc<T> {
        let mut running = self.0.lock().await;
        let shared = if let Some(shared) = running.upgrade() {
            shared
        } else {
            let started = Arc::new(start().await);
            *running = Arc::downgrade(&started);
            started
        };
        keep(shared.clone());
        shared
    }
}

fn keep(used: Arc<dyn Any + Send + Sync>) {
    let mut last_used = LAST_USED.lock().unwrap();
    last_used.retain(|kept| !Arc::ptr_eq(kept, &used));
    last_used.push_back(used);
    let surplus = last_used.len().saturating_sub(KEPT);
    let ended: Vec<_> = last_used.drain(..surplus).collect();
    // What ends takes a moment, in which others need not wait.
    drop(last_used);
    drop(ended);
}
