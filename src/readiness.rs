//! Whether we are ready: a few named conditions, each of which either holds or not. AWS is none of them.

use std::{fmt::Write as _, sync::Arc};

use tokio::sync::watch;

/// One thing that readiness waits for; clones share it.
#[derive(Debug, Clone)]
pub struct Condition {
    name: &'static str,
    holds: Arc<watch::Sender<bool>>,
}

/// All conditions.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Vec<Condition>);

impl Condition {
    /// From now on it holds.
    pub fn hold(&self) {
        if !self.holds.send_replace(true) {
            tracing::info!(condition = self.name, "a readiness condition holds");
        }
    }

    /// From now on it doesn't.
    pub fn fail(&self) {
        self.holds.send_replace(false);
    }

    /// Whether it holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        *self.holds.borrow()
    }

    /// Waits until it holds.
    pub async fn held(&self) {
        // An error would say that the sender is gone, and `self` has it.
        let _ = self.holds.subscribe().wait_for(|holds| *holds).await;
    }
}

/// Waits until all of them have held, each at its time.
pub async fn all_held(conditions: &[Condition]) {
    for condition in conditions {
        condition.held().await;
    }
}

impl Readiness {
    /// A new condition, which doesn't hold yet.
    pub fn condition(&mut self, name: &'static str) -> Condition {
        let condition = Condition {
            name,
            holds: Arc::new(watch::Sender::new(false)),
        };
        self.0.push(condition.clone());
        condition
    }

    /// Whether every condition holds.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.0.iter().all(Condition::holds)
    }

    /// A line per condition, in the form of the API server's own `/readyz?verbose`.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for condition in &self.0 {
            let (mark, word) = if condition.holds() {
                ('+', "ok")
            } else {
                ('-', "not yet")
            };
            // Writing to a String can't fail.
            let _ = writeln!(text, "[{mark}]{} {word}", condition.name);
        }
        text.push_str(if self.is_ready() {
            "readyz check passed\n"
        } else {
            "readyz check failed\n"
        });
        text
    }
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
        a.fail();
        assert!(!readiness.is_ready());
    }

    #[tokio::test]
    async fn who_waits_for_a_condition_goes_on_once_it_holds() {
        let condition = Readiness::default().condition("a");
        let waiter = condition.clone();
        let mut held = pin!(waiter.held());
        assert!(poll!(&mut held).is_pending());
        condition.hold();
        assert!(poll!(&mut held).is_ready());
        assert!(poll!(pin!(condition.held())).is_ready(), "it holds already");
        condition.fail();
        assert!(poll!(pin!(condition.held())).is_pending(), "it held once");
    }
}
