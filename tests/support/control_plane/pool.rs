//! Control planes that a test has ended with, for the next one. To restore one takes two seconds, nearly all of it waiting;
//! to start one takes three seconds of a core.

use std::sync::Mutex;
use std::time::Duration;

use super::{Options, Running};

/// More aren't kept for the next test. An idle one takes 400 MB.
const IDLE: usize = 3;
/// How long the API server may act on what isn't stored any more: it compiles admission policies once a second.
const AFTERGLOW: Duration = Duration::from_secs(2);
/// How often it is restored at most before it is given up.
const ROUNDS: usize = 5;

#[derive(Default)]
struct Pool {
    idle: Vec<Running>,
    /// Are being restored.
    coming: usize,
    /// Tests that wait for one of these.
    waiting: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool {
    idle: Vec::new(),
    coming: 0,
    waiting: 0,
});

/// Returns one that was used before, if there is one or one comes that nobody waits for.
pub(super) async fn take() -> Option<Running> {
    let mut waits = false;
    loop {
        {
            let mut pool = POOL.lock().unwrap();
            let idle = pool.idle.pop();
            if idle.is_some() || (waits && pool.coming == 0) {
                pool.waiting -= usize::from(waits);
                return idle;
            }
            if !waits {
                if pool.waiting >= pool.coming {
                    return None;
                }
                pool.waiting += 1;
                waits = true;
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Restores one for the next test, in a thread of its own: this is called where nothing can be awaited.
pub(super) fn give_back(mut running: Running) {
    {
        let mut pool = POOL.lock().unwrap();
        if pool.idle.len() + pool.coming >= IDLE {
            return;
        }
        pool.coming += 1;
    }
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let restored = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(restore(&mut running))
        }));
        let mut pool = POOL.lock().unwrap();
        pool.coming -= 1;
        if restored.unwrap_or(false) {
            pool.idle.push(running);
        }
    });
}

/// Returns whether it holds what it held at first, and nobody changes that any more.
async fn restore(running: &mut Running) -> bool {
    // Processes of the test may end after its control plane: what they still write goes in the next round.
    for _ in 0..ROUNDS {
        let restored = running.pristine.restore(&running.etcd).await;
        tokio::time::sleep(AFTERGLOW).await;
        if restored == 0 {
            return true;
        }
    }
    false
}

/// Whether the next test can have it: it is like the ones that most tests start.
pub(super) fn is_for_all(options: Options) -> bool {
    let Options {
        controllers,
        audit,
        traces,
        node,
        endpoints,
    } = options;
    !controllers && !traces && !node && !endpoints && matches!(audit, super::AuditLevel::Metadata)
}
