//! When certificates are renewed, and how one certificate authority replaces another without a gap.
//! Pure.
//!
//! A client accepts the webhook if it trusts the authority that signed its certificate. The API
//! server learns late which authorities to trust, and other replicas learn late of a new authority.
//! So a rotation takes three steps, each of which waits until the one before has reached everybody:
//! the next authority is *prepared* and published beside the one that signs; once it has been seen
//! published for a while, it is *promoted* and all certificates are signed under it; once no
//! certificate under the old one can be served any more, the old one is *retired*.

use std::fmt;

use jiff::{SignedDuration, Timestamp};

/// The share of its lifetime that a certificate is dated back, as a divisor: clocks differ.
const BACKDATED_PART: i32 = 20;
/// The most that a certificate is dated back.
const MAX_BACKDATING: SignedDuration = SignedDuration::from_hours(1);
/// The share of its validity after which a certificate is renewed, as numerator and denominator.
const RENEW_AFTER: (i32, i32) = (2, 3);

/// How long the certificates of the self-managed authority last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// An authority's lifetime.
    pub authority: SignedDuration,
    /// A serving certificate's lifetime.
    pub leaf: SignedDuration,
    /// How long the next authority has to have been published without a break until it signs. API
    /// servers learn which authorities to trust by a watch, and a watch that was cut takes up to a
    /// minute to come back.
    pub publication: SignedDuration,
}

impl Default for Lifetimes {
    /// Returns the lifetimes of cert-manager's own webhook, and twice a minute.
    fn default() -> Self {
        Self {
            authority: SignedDuration::from_hours(365 * 24),
            leaf: SignedDuration::from_hours(7 * 24),
            publication: SignedDuration::from_mins(2),
        }
    }
}

impl Lifetimes {
    /// Returns how long an old authority stays published after the last moment at which it may have
    /// signed: a certificate's lifetime, and a seventh for a replica that learns of nothing.
    #[must_use]
    pub fn ca_retention(&self) -> SignedDuration {
        self.leaf + self.leaf / 7
    }
}

/// The validity of a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The start: before it clients reject the certificate.
    pub not_before: Timestamp,
    /// The end: after it clients reject the certificate.
    pub not_after: Timestamp,
}

impl Validity {
    /// Returns a validity that starts now, dated back a little.
    #[must_use]
    pub fn starting_at(now: Timestamp, lifetime: SignedDuration) -> Self {
        let backdating = (lifetime / BACKDATED_PART).min(MAX_BACKDATING);
        Self {
            not_before: now - backdating,
            not_after: now + lifetime,
        }
    }

    /// Returns whether clients accept the certificate at this time by their clock.
    #[must_use]
    pub fn contains(&self, now: Timestamp) -> bool {
        self.not_before <= now && now <= self.not_after
    }

    /// Returns when the certificate is to be renewed.
    #[must_use]
    pub fn renew_at(&self) -> Timestamp {
        let (numerator, denominator) = RENEW_AFTER;
        let length = self.not_after.duration_since(self.not_before);
        self.not_before + length / denominator * numerator
    }
}

/// Why a certificate is to be renewed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Renewal {
    /// Two thirds of its validity are over.
    Due,
    /// Its validity is over.
    Expired,
    /// Its validity begins in the future: the clock was set back.
    NotYetValid,
    /// Somebody requested a new authority by an annotation.
    Requested,
}

impl fmt::Display for Renewal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Due => "two thirds of its life are gone",
            Self::Expired => "it has expired",
            Self::NotYetValid => "it is not good yet",
            Self::Requested => "somebody asked for it",
        })
    }
}

/// Returns why a certificate is to be renewed, if it is.
#[must_use]
pub fn needs_renewal(validity: &Validity, now: Timestamp) -> Option<Renewal> {
    if now > validity.not_after {
        Some(Renewal::Expired)
    } else if now < validity.not_before {
        Some(Renewal::NotYetValid)
    } else {
        (now >= validity.renew_at()).then_some(Renewal::Due)
    }
}

/// How far a rotation of authorities is.
#[derive(Debug, Clone)]
pub struct Stage {
    /// The authority that signs.
    pub active: Validity,
    /// The authority that is to sign next.
    pub next: Option<Validity>,
    /// The authorities that signed before, as long as they are published.
    pub old: Vec<Validity>,
    /// Since when the active authority signs, if it wasn't the first.
    pub promoted_at: Option<Timestamp>,
    /// Whether somebody requested a new authority.
    pub is_requested: bool,
    /// How long certificates last.
    pub lifetimes: Lifetimes,
}

/// A step of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Create the next authority, and publish it.
    Prepare(Renewal),
    /// Let the next authority sign.
    Promote,
    /// Stop publishing the old authorities.
    Retire,
    /// Let a new authority sign at once: nobody accepts the one that signs now.
    Replace(Renewal),
}

impl Stage {
    /// Returns the next step, if one is due now. `published_since` is since when all authorities
    /// have been seen published without a break.
    #[must_use]
    pub fn step(&self, published_since: Option<Timestamp>, now: Timestamp) -> Option<Step> {
        let renewal = needs_renewal(&self.active, now);
        if let Some(why @ (Renewal::Expired | Renewal::NotYetValid)) = renewal {
            return Some(match self.next {
                Some(next) if next.contains(now) => Step::Promote,
                _ => Step::Replace(why),
            });
        }
        if let Some(next) = &self.next {
            // A next authority that became useless while it waited is created again.
            if let Some(why) = needs_renewal(next, now) {
                return Some(Step::Prepare(why));
            }
            let since = published_since.filter(|since| *since <= now);
            return since
                .is_some_and(|since| now >= since + self.lifetimes.publication)
                .then_some(Step::Promote);
        }
        if !self.old.is_empty() && self.retire_at().is_some_and(|at| now >= at) {
            return Some(Step::Retire);
        }
        let requested = self.is_requested.then_some(Renewal::Requested);
        renewal.or(requested).map(Step::Prepare)
    }

    /// Returns when the old authorities are to be retired.
    fn retire_at(&self) -> Option<Timestamp> {
        let expired = self.old.iter().map(|old| old.not_after).max();
        let promoted = self
            .promoted_at
            .map(|at| at + self.lifetimes.ca_retention());
        expired.into_iter().chain(promoted).min()
    }

    /// Returns when to check the stage again if nothing changes until then.
    #[must_use]
    pub fn next_check(&self, published_since: Option<Timestamp>, now: Timestamp) -> Timestamp {
        let mut checks = vec![self.active.renew_at(), self.active.not_after];
        if let Some(next) = &self.next {
            checks.push(next.renew_at());
            checks.extend(published_since.map(|since| since + self.lifetimes.publication));
        } else if !self.old.is_empty() {
            checks.extend(self.retire_at());
        }
        let soon = now + SignedDuration::from_secs(1);
        checks
            .into_iter()
            .min()
            .map_or(soon, |check| check.max(soon))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PUBLICATION: SignedDuration = SignedDuration::from_mins(2);
    const CA_RETENTION: SignedDuration = SignedDuration::from_hours(8 * 24);
    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn hours(hours: i64) -> SignedDuration {
        SignedDuration::from_hours(hours)
    }

    fn authority(now: Timestamp) -> Validity {
        Validity::starting_at(now, Lifetimes::default().authority)
    }

    fn stage() -> Stage {
        Stage {
            active: authority(NOW),
            next: None,
            old: Vec::new(),
            promoted_at: None,
            is_requested: false,
            lifetimes: Lifetimes::default(),
        }
    }

    #[test]
    fn certificate_is_renewed_after_two_thirds_of_its_validity() {
        let leaf = Validity::starting_at(NOW, Lifetimes::default().leaf);
        for (now, renewal) in [
            (NOW - hours(2), Some(Renewal::NotYetValid)),
            (NOW - hours(1), None),
            (NOW, None),
            (NOW + hours(111), None),
            (NOW + hours(112), Some(Renewal::Due)),
            (NOW + hours(168), Some(Renewal::Due)),
            (NOW + hours(169), Some(Renewal::Expired)),
        ] {
            assert_eq!(needs_renewal(&leaf, now), renewal, "{now}");
        }
    }

    #[test]
    fn validity_is_dated_back_by_a_part_of_it_and_at_most_an_hour() {
        let minutes = SignedDuration::from_mins;
        for (lifetime, backdating) in [(hours(1), minutes(3)), (hours(168), hours(1))] {
            let validity = Validity::starting_at(NOW, lifetime);
            assert_eq!(validity.not_before, NOW - backdating, "{lifetime}");
            let second = SignedDuration::from_secs(1);
            for (now, is_in) in [
                (validity.not_before - second, false),
                (validity.not_before, true),
                (validity.not_after, true),
                (validity.not_after + second, false),
            ] {
                assert_eq!(validity.contains(now), is_in, "{now}");
            }
        }
    }

    #[test]
    fn reasons_to_renew_have_texts_of_their_own() {
        let all = [
            Renewal::Due,
            Renewal::Expired,
            Renewal::NotYetValid,
            Renewal::Requested,
        ];
        let texts: std::collections::BTreeSet<_> = all.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), all.len());
    }

    #[test]
    fn next_authority_signs_once_published_without_a_break() {
        let late = NOW + hours(300 * 24);
        let mut stage = stage();
        assert_eq!(
            stage.step(Some(NOW), late),
            Some(Step::Prepare(Renewal::Due))
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
    fn old_authority_is_published_until_its_last_cert_is_over() {
        let mut stage = stage();
        stage.old = vec![authority(NOW - hours(245 * 24))];
        stage.promoted_at = Some(NOW);
        let published = Some(NOW);
        let early = NOW + CA_RETENTION - SignedDuration::from_secs(1);
        assert_eq!(stage.step(published, early), None);
        assert_eq!(
            stage.step(published, NOW + CA_RETENTION),
            Some(Step::Retire)
        );
        // Without the time of its promotion, an old authority is published until it has expired.
        stage.promoted_at = None;
        assert_eq!(stage.step(published, NOW + CA_RETENTION), None);
        let expired = NOW + hours(120 * 24);
        assert_eq!(stage.step(published, expired), Some(Step::Retire));
    }

    #[test]
    fn authority_that_nobody_accepts_is_replaced_at_once() {
        let expired = NOW + hours(366 * 24);
        let mut stage = stage();
        assert_eq!(
            stage.step(None, expired),
            Some(Step::Replace(Renewal::Expired))
        );
        let before = NOW - hours(48);
        assert_eq!(
            stage.step(None, before),
            Some(Step::Replace(Renewal::NotYetValid))
        );
        stage.next = Some(authority(NOW + hours(300 * 24)));
        assert_eq!(stage.step(None, expired), Some(Step::Promote));
        // The next one has expired as well.
        stage.next = Some(authority(NOW));
        assert_eq!(
            stage.step(None, expired),
            Some(Step::Replace(Renewal::Expired))
        );
    }

    #[test]
    fn authority_can_be_requested_once_the_last_rotation_ended() {
        let mut stage = stage();
        stage.is_requested = true;
        assert_eq!(
            stage.step(Some(NOW), NOW),
            Some(Step::Prepare(Renewal::Requested))
        );
        stage.next = Some(authority(NOW));
        assert_eq!(stage.step(Some(NOW), NOW), None);
    }

    #[test]
    fn stage_is_checked_again_when_the_next_step_is_due() {
        let mut stage = stage();
        let now = NOW + SignedDuration::from_mins(1);
        assert_eq!(
            stage.next_check(Some(NOW), now),
            stage.active.renew_at(),
            "nothing is due for months"
        );
        stage.next = Some(authority(NOW));
        assert_eq!(stage.next_check(Some(NOW), now), NOW + PUBLICATION);
        stage.next = None;
        stage.old = vec![authority(NOW - hours(245 * 24))];
        stage.promoted_at = Some(NOW);
        assert_eq!(stage.next_check(None, now), NOW + CA_RETENTION);
        let late = NOW + hours(366 * 24);
        let soon = late + SignedDuration::from_secs(1);
        assert_eq!(stage.next_check(None, late), soon, "all is overdue");
    }
}
