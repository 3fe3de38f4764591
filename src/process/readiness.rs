//! Readiness: a few named conditions, each of which holds or has a reason why not. AWS is none of
//! them.

use std::{borrow::Cow, fmt::Write as _, sync::Arc};

use tokio::sync::watch;

/// The longest reason, in characters: anybody may read `/readyz`.
const MAX_REASON_CHARS: usize = 120;

/// A condition of readiness; clones share it.
#[derive(Debug, Clone)]
pub struct Condition {
    name: &'static str,
    state: Arc<watch::Sender<State>>,
}

/// The state of a condition.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    /// The condition holds.
    Holds,
    /// The condition has never held; has what it waits for, if that is known.
    NotYet(Option<Cow<'static, str>>),
    /// The condition no longer holds, for this reason.
    Failed(Cow<'static, str>),
}

/// All conditions of readiness.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Vec<Condition>);

impl Condition {
    /// Sets what the condition waits for. The text must hold no name from the cluster: anybody may
    /// read it.
    #[must_use]
    pub fn waiting_for(self, what: impl Into<Cow<'static, str>>) -> Self {
        self.state.send_if_modified(|state| {
            if let State::NotYet(waits) = state {
                *waits = Some(what.into());
            }
            false
        });
        self
    }

    /// Sets that the condition holds.
    pub fn hold(&self) {
        if self.state.send_replace(State::Holds) != State::Holds {
            tracing::info!(condition = self.name, "readiness condition met");
        }
    }

    /// Sets that the condition doesn't hold, and why. The reason must hold no name from the
    /// cluster: anybody may read it.
    pub fn fail(&self, reason: impl Into<Cow<'static, str>>) {
        let reason = reason.into();
        let failed = State::Failed(reason.clone());
        if self.state.send_replace(failed) == State::Holds {
            tracing::info!(
                condition = self.name,
                reason = &*reason,
                "readiness condition no longer met"
            );
        }
    }

    /// Returns whether the condition holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        *self.state.borrow() == State::Holds
    }

    /// Waits until the condition holds.
    pub async fn held(&self) {
        // An error would mean that the sender is gone, and `self` has it.
        let held = |state: &State| *state == State::Holds;
        let _ = self.state.subscribe().wait_for(held).await;
    }
}

/// Waits until each condition has held at some time.
pub async fn all_held(conditions: &[Condition]) {
    for condition in conditions {
        condition.held().await;
    }
}

impl Readiness {
    /// Adds a condition, which doesn't hold yet.
    pub fn condition(&mut self, name: &'static str) -> Condition {
        let condition = Condition {
            name,
            state: Arc::new(watch::Sender::new(State::NotYet(None))),
        };
        self.0.push(condition.clone());
        condition
    }

    /// Returns whether every condition holds.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.iter().all(Condition::holds)
    }

    /// Returns a line per condition, in the form of the API server's own `/readyz?verbose`.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for condition in &self.0 {
            let state = condition.state.borrow().clone();
            let name = condition.name;
            // Writing to a String can't fail.
            let _ = match state {
                State::Holds => writeln!(text, "[+]{name} ok"),
                State::NotYet(None) => writeln!(text, "[-]{name} not yet"),
                State::NotYet(Some(what)) => {
                    writeln!(text, "[-]{name} not yet: waiting for {}", line(&what))
                }
                State::Failed(reason) => writeln!(text, "[-]{name} failed: {}", line(&reason)),
            };
        }
        text.push_str(if self.is_ready() {
            "readyz check passed\n"
        } else {
            "readyz check failed\n"
        });
        text
    }
}

/// Returns a reason on one line, cut to its longest.
fn line(reason: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    reason.chars().map(clean).take(MAX_REASON_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures::poll;

    use super::*;

    #[test]
    fn is_ready_only_while_every_condition_holds() {
        let mut readiness = Readiness::default();
        let (a, b) = (readiness.condition("a"), readiness.condition("b"));
        a.hold();
        assert!(!readiness.is_ready());
        assert_eq!(
            readiness.to_text(),
            "[+]a ok\n[-]b not yet\nreadyz check failed\n"
        );
        b.hold();
        assert!(readiness.is_ready());
        a.fail("stopping");
        assert!(!readiness.is_ready());
        assert_eq!(
            readiness.to_text(),
            "[-]a failed: stopping\n[+]b ok\nreadyz check failed\n"
        );
    }

    #[test]
    fn failed_condition_has_its_reason_on_one_line() {
        let mut readiness = Readiness::default();
        let watch = readiness.condition("watch").waiting_for("the first list");
        assert_eq!(
            readiness.to_text(),
            "[-]watch not yet: waiting for the first list\nreadyz check failed\n"
        );
        watch.hold();
        let watch = watch.waiting_for("nothing any more");
        assert!(watch.holds());
        watch.fail(format!("a\n[+]forged ok\r{}", "x".repeat(1000)));
        let text = readiness.to_text();
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.len() < 200, "{text}");
    }

    #[tokio::test]
    async fn waiter_continues_once_the_condition_holds() {
        let condition = Readiness::default().condition("a");
        let waiter = condition.clone();
        let mut held = pin!(waiter.held());
        assert!(poll!(&mut held).is_pending());
        condition.hold();
        assert!(poll!(&mut held).is_ready());
        assert!(poll!(pin!(condition.held())).is_ready(), "it holds already");
        condition.fail("gone");
        assert!(poll!(pin!(condition.held())).is_pending(), "it held once");
    }
}
