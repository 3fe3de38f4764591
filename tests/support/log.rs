//! A subscriber for one test, beside tests on other threads.

use std::sync::Once;

use tracing::Subscriber;
use tracing::subscriber::{DefaultGuard, NoSubscriber, set_default, set_global_default};

/// Makes `subscriber` the one of this thread until the guard is dropped.
///
/// While a process has had one subscriber only, tracing asks just the thread that comes first to a line whether anybody
/// wants the line, and remembers the answer for all threads: a test on a thread without a subscriber would switch the line
/// off. Beside a second subscriber, even one that wants nothing, tracing asks each of them.
pub fn scoped(subscriber: impl Subscriber + Send + Sync + 'static) -> DefaultGuard {
    static SECOND: Once = Once::new();
    SECOND.call_once(|| {
        set_global_default(NoSubscriber::new()).expect("no test sets a global subscriber");
    });
    set_default(subscriber)
}
