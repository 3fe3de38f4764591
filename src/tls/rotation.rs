//! When certificates are to be renewed, and how one authority follows another without a gap. Pure.
//!
//! A client accepts us if it trusts the authority under which our certificate was signed. What the API server trusts
//! reaches it late, and other replicas hear of a new authority late too. So a change takes three steps, each of which
//! waits until the one before has reached everybody: the next authority is *prepared* and published beside the one that
//! signs; once it has been seen published for a while, it is *promoted* and all certificates are signed under it; once no
//! certificate under the old one can be served any more, the old one is *retired*.

use std::fmt;

use jiff::{SignedDuration, Timestamp};

/// How much of its life a certificate is dated back, as a divisor, and at most: clocks differ.
const BACKDATED_PART: i32 = 20;
const MAX_BACKDATING: SignedDuration = SignedDuration::from_hours(1);
/// The part of a life after which there is to be a new one, as numerator and denominator.
const WORN: (i32, i32) = (2, 3);

/// How long what lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// An authority's life.
    pub authority: SignedDuration,
    /// A serving certificate's life.
    pub leaf: SignedDuration,
    /// How long the next authority has to have been published without a break until it signs. API servers learn of what
    /// they are to trust by a watch of their own, and a watch that was cut takes up to a minute to come back.
    pub publication: SignedDuration,
}

impl Default for Lifetimes {
    /// Those of cert-manager's own webhook, and twice a minute.
    fn default() -> Self {
        Self {
            authority: SignedDuration::from_hours(365 * 24),
            leaf: SignedDuration::from_hours(7 * 24),
            publication: SignedDuration::from_mins(2),
        }
    }
}

impl Lifetimes {
    /// How long an old authority stays published after the last moment at which it may have signed: a certificate's life,
    /// and a seventh for a replica that hears of nothing.
    #[must_use]
    pub fn ca_retention(&self) -> SignedDuration {
        self.leaf + self.leaf / 7
    }
}

/// From when to when a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Before then clients refuse it.
    pub not_before: Timestamp,
    /// After then clients refuse it.
    pub not_after: Timestamp,
}

impl Life {
    /// One that begins now, and a bit before.
    #[must_use]
    pub fn from(now: Timestamp, lasts: SignedDuration) -> Self {
        let backdating = (lasts / BACKDATED_PART).min(MAX_BACKDATING);
        Self {
            not_before: now - backdating,
            not_after: now + lasts,
        }
    }

    /// Whether clients whose clock says this accept it.
    #[must_use]
    pub fn contains(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// When there is to be a new one.
    #[must_use]
    pub fn renew_at(&self) -> Timestamp {
        let (numerator, denominator) = WORN;
        let life = self.not_after.duration_since(self.not_before);
        self.not_before + life / denominator * numerator
    }
}

/// Why a certificate is to be renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// Two thirds of its life are gone.
    Worn,
    /// All of it is.
    Expired,
    /// It begins in the future: the clock was set back.
    NotYetGood,
    /// Somebody asked for it.
    Asked,
}

impl fmt::Display for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worn => "two thirds of its life are gone",
            Self::Expired => "it has expired",
            Self::NotYetGood => "it is not good yet",
            Self::Asked => "somebody asked for it",
        })
    }
}

/// Whether a certificate is to be renewed, and why.
#[must_use]
pub fn needs_renewal(life: &Life, now: Timestamp) -> Option<Renewal> {
    if now > life.not_after {
        Some(Renewal::Expired)
    } else if now < life.not_before {
        Some(Renewal::NotYetGood)
    } else {
        (now >= life.renew_at()).then_some(Renewal::Worn)
    }
}

/// Where a change of authorities stands.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The one that signs.
    pub active: Life,
    /// The one that is to follow.
    pub next: Option<Life>,
    /// Those that signed before, as long as they are published.
    pub old: Vec<Life>,
    /// Since when the active one signs, if it wasn't the first.
    pub promoted_at: Option<Timestamp>,
    /// Whether somebody asked for a new one.
    pub asked: bool,
    /// How long what lasts.
    pub lifetimes: Lifetimes,
}

/// What is to be done about the authorities.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make the next one, and publish it.
    Prepare(Renewal),
    /// Let the next one sign.
    Promote,
    /// Publish the old ones no more.
    Retire,
    /// Let a new one sign at once: the one that does is accepted by nobody.
    Replace(Renewal),
}

impl Stage {
    /// The next step, if there is one to be taken now. `published_since` is since when all of them have been seen
    /// published without a break.
    #[must_use]
    pub fn step(&self, published_since: Option<Timestamp>, now: Timestamp) -> Option<Step> {
        let renewal = needs_renewal(&self.active, now);
        if let Some(why @ (Renewal::Expired | Renewal::NotYetGood)) = renewal {
            return Some(match self.next {
                Some(next) if next.contains(now) => Step::Promote,
                _ => Step::Replace(why),
            });
        }
        if let Some(next) = &self.next {
            // One that became useless while it waited is made anew.
            if let Some(why) = needs_renewal(next, now) {
                return Some(Step::Prepare(why));
            }
            let since = published_since.filter(|since| *since <= now);
            return since
                .is_some_and(|since| now >= since + self.lifetimes.publication)
                .then_some(Step::Promote);
        }
        if !self.old.is_empty() && self.old_end().is_some_and(|end| now >= end) {
            return Some(Step::Retire);
        }
        let asked = self.asked.then_some(Renewal::Asked);
        renewal.or(asked).map(Step::Prepare)
    }

    /// When the old ones are published no more.
    fn old_end(&self) -> Option<Timestamp> {
        let expired = self.old.iter().map(|old| old.not_after).max();
        let promoted = self
            .promoted_at
            .map(|at| at + self.lifetimes.ca_retention());
        expired.into_iter().chain(promoted).min()
    }

    /// When to look again if nothing changes until then.
    #[must_use]
    pub fn next_look(&self, published_since: Option<Timestamp>, now: Timestamp) -> Timestamp {
        let mut looks = vec![self.active.renew_at(), self.active.not_after];
        if let Some(next) = &self.next {
            looks.push(next.renew_at());
            looks.extend(published_since.map(|since| since + self.lifetimes.publication));
        } else if !self.old.is_empty() {
            looks.extend(self.old_end());
        }
        let soon = now + SignedDuration::from_secs(1);
        looks.into_iter().min().map_or(soon, |look| look.max(soon))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLICATION: SignedDuration = SignedDuration::from_mins(2);
    const FAREWELL: SignedDuration = SignedDuration::from_hours(8 * 24);
    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn hours(hours: i64) -> SignedDuration {
        SignedDuration::from_hours(hours)
    }

    fn authority(now: Timestamp) -> Life {
        Life::from(now, Lifetimes::default().authority)
    }

    fn stage() -> Stage {
        Stage {
            active: authority(NOW),
            next: None,
            old: Vec::new(),
            promoted_at: None,
            asked: false,
            lifetimes: Lifetimes::default(),
        }
    }

    #[test]
    fn a_certificate_is_renewed_at_two_thirds_of_its_life() {
        let life = Life::from(NOW, Lifetimes::default().leaf);
        for (now, renewal) in [
            (NOW - hours(2), Some(Renewal::NotYetGood)),
            (NOW, None),
            (NOW + hours(111), None),
            (NOW + hours(112), Some(Renewal::Worn)),
            (NOW + hours(168), Some(Renewal::Worn)),
            (NOW + hours(169), Some(Renewal::Expired)),
        ] {
            assert_eq!(needs_renewal(&life, now), renewal, "{now}");
        }
    }

    #[test]
    fn the_next_authority_signs_only_once_it_was_published_for_a_while_without_a_break() {
        let late = NOW + hours(300 * 24);
        let mut stage = stage();
        assert_eq!(
            stage.step(Some(NOW), late),
            Some(Step::Prepare(Renewal::Worn))
        );
        stage.next = Some(authority(late));
        assert_eq!(stage.step(None, late), None, "it isn't published");
        for (since, step) in [
            (PUBLICATION, Some(Step::Promote)),
            (PUBLICATION - SignedDuration::from_secs(1), None),
            // By a clock that was set back meanwhile.
            (SignedDuration::from_secs(-5), None),
        ] {
            assert_eq!(stage.step(Some(late - since), late), step, "{since}");
        }
    }

    #[test]
    fn an_old_authority_is_published_until_nothing_under_it_can_be_served() {
        let mut stage = stage();
        stage.old = vec![authority(NOW - hours(245 * 24))];
        stage.promoted_at = Some(NOW);
        let published = Some(NOW);
        let early = NOW + FAREWELL - SignedDuration::from_secs(1);
        assert_eq!(stage.step(published, early), None);
        assert_eq!(stage.step(published, NOW + FAREWELL), Some(Step::Retire));
        // Without a note of when, it is until it has expired.
        stage.promoted_at = None;
        assert_eq!(stage.step(published, NOW + FAREWELL), None);
        let expired = NOW + hours(120 * 24);
        assert_eq!(stage.step(published, expired), Some(Step::Retire));
    }

    #[test]
    fn an_authority_that_nobody_accepts_is_replaced_at_once() {
        let expired = NOW + hours(366 * 24);
        let mut stage = stage();
        assert_eq!(
            stage.step(None, expired),
            Some(Step::Replace(Renewal::Expired))
        );
        let before = NOW - hours(48);
        assert_eq!(
            stage.step(None, before),
            Some(Step::Replace(Renewal::NotYetGood))
        );
        stage.next = Some(authority(NOW + hours(300 * 24)));
        assert_eq!(stage.step(None, expired), Some(Step::Promote));
    }

    #[test]
    fn a_new_authority_can_be_asked_for_once_the_last_change_is_over() {
        let mut stage = stage();
        stage.asked = true;
        assert_eq!(
            stage.step(Some(NOW), NOW),
            Some(Step::Prepare(Renewal::Asked))
        );
        stage.next = Some(authority(NOW));
        assert_eq!(stage.step(Some(NOW), NOW), None);
    }

    #[test]
    fn it_is_looked_at_again_when_the_next_step_is_due() {
        let mut stage = stage();
        let now = NOW + SignedDuration::from_mins(1);
        assert_eq!(
            stage.next_look(Some(NOW), now),
            stage.active.renew_at(),
            "nothing is to be done for months"
        );
        stage.next = Some(authority(NOW));
        assert_eq!(stage.next_look(Some(NOW), now), NOW + PUBLICATION);
        stage.next = None;
        stage.old = vec![authority(NOW - hours(245 * 24))];
        stage.promoted_at = Some(NOW);
        assert_eq!(stage.next_look(None, now), NOW + FAREWELL);
    }
}
