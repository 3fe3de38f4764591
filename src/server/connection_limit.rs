//! The limit of connections, and which of them gives way to a new one.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::connection_state::ConnectionState;

/// How long a new connection waits for a slot before it tries again to close an idle connection.
const SLOT_RETRY: Duration = Duration::from_millis(50);

/// The slots for connections. A client that reaches the port can take all of them and stay idle, so
/// when none is free, a new connection gets the slot of one that never sent a request, else of the
/// one that has been idle longest.
pub(super) struct ConnectionLimit {
    free: Arc<Semaphore>,
    taken: Mutex<Vec<Taken>>,
}

#[derive(Clone)]
struct Taken {
    state: Arc<ConnectionState>,
    shed: CancellationToken,
}

/// A connection's slot, free again when dropped.
pub(super) struct Slot {
    pub(super) state: Arc<ConnectionState>,
    /// Closes the connection.
    pub(super) shed: CancellationToken,
    limit: Arc<ConnectionLimit>,
    _permit: OwnedSemaphorePermit,
}

impl ConnectionLimit {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(limit)),
            taken: Mutex::default(),
        }
    }

    /// Waits for a slot.
    pub(super) async fn take(self: &Arc<Self>) -> Slot {
        let permit = loop {
            if self.free.available_permits() == 0 {
                self.shed_one();
            }
            match timeout(SLOT_RETRY, self.free.clone().acquire_owned()).await {
                Ok(Ok(permit)) => break permit,
                // All were busy; one of them may be idle by now.
                Err(_) => {}
                Ok(Err(_)) => unreachable!("the semaphore is never closed"),
            }
        };
        let taken = Taken {
            state: Arc::default(),
            shed: CancellationToken::new(),
        };
        self.taken().push(taken.clone());
        Slot {
            state: taken.state,
            shed: taken.shed,
            limit: self.clone(),
            _permit: permit,
        }
    }

    /// Closes the connection that has been idle longest, of equals the oldest; none while all are
    /// busy.
    fn shed_one(&self) {
        let taken = self.taken();
        let idle = taken
            .iter()
            .filter(|taken| !taken.shed.is_cancelled())
            .filter_map(|taken| Some((taken.state.idle_rank()?, taken)));
        if let Some((_, longest)) = idle.min_by_key(|(rank, _)| *rank) {
            longest.shed.cancel();
        }
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Taken>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.limit
            .taken()
            .retain(|taken| !Arc::ptr_eq(&taken.state, &self.state));
    }
}
