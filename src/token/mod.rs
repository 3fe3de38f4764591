//! Tokens: what `ecr:GetAuthorizationToken` returns, and how long it may be used.

pub mod cache;
pub mod ecr;
pub mod error;
mod flights;
pub mod metrics;
mod reason;
mod session;

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, STANDARD_NO_PAD},
};
use jiff::{SignedDuration, Timestamp};
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use thiserror::Error;
use zeroize::Zeroizing;

use crate::{
    identity::Identity,
    registry::{Endpoint, Region, Registry},
};

/// The user that every ECR token belongs to.
pub const USER: &str = "AWS";
/// The longest that ECR lets a token live.
pub const MAX_LIFE: SignedDuration = SignedDuration::from_hours(12);
/// A credential with less left than this is as good as expired: a pull that starts now might outlast it.
pub const MIN_LEFT: SignedDuration = SignedDuration::from_mins(5);
/// How far two honest clocks may be apart before an expiry counts as forged.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(10);
/// A cached token is minted anew once this share of its life is gone, in per cent.
const RENEW_AT_PERCENT: i64 = 25;
/// A pull secret is due once this share of a credential's life is gone, in per cent; later than the cache's, so that a
/// refresh finds a new token there.
const DUE_AT_PERCENT: i64 = 30;

/// Everything that a token's worth depends on: who asked, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenKey {
    /// The principal that mints.
    pub identity: Identity,
    /// The region that is asked.
    pub region: Region,
    /// Which of its endpoints.
    pub endpoint: Endpoint,
}

/// From when to when a credential is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// When it was minted, by our clock.
    pub minted_at: Timestamp,
    /// When its life ends: the least of what AWS said and what the token itself says.
    pub expires_at: Timestamp,
}

/// How much of a credential's life is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Freshness {
    /// Less than 30 % of its life is gone.
    Fresh,
    /// More is gone, but at least [`MIN_LEFT`] is left.
    Due,
    /// Less than [`MIN_LEFT`] is left, or its dates can't be true.
    Expired,
}

/// What a token's life is cut to, beside what AWS says of it. A role's session may end long before the token that was
/// minted in it, and such tokens were seen to fail then (`rules_img#715`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionCap {
    /// The end of the session of the role that was assumed for it.
    #[default]
    Session,
    /// Nothing.
    Off,
    /// So many seconds, and the end of the session if that is sooner.
    After(u32),
}

/// An ECR token. It can't be printed.
#[derive(Debug)]
pub struct Token {
    password: SecretString,
    lifetime: Lifetime,
}

/// Why a reply of ECR holds no token that may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MalformedReply {
    /// No authorization data, or no token in it.
    #[error("the reply has no authorization token")]
    Missing,
    /// Not base64, or not text.
    #[error("the authorization token is not base64 of a text")]
    Encoding,
    /// Not `AWS:password`.
    #[error("the authorization token is not {USER}:password")]
    Form,
    /// No expiry.
    #[error("the reply has no expiry")]
    NoExpiry,
    /// Expired already, or too soon to be used.
    #[error("the token's expiry is in the past or less than {} s away", MIN_LEFT.as_secs())]
    Expired,
}

impl TokenKey {
    /// The key of the token that opens `registry` for `identity`.
    #[must_use]
    pub fn new(identity: Identity, registry: &Registry) -> Self {
        Self {
            identity,
            region: registry.region().clone(),
            endpoint: registry.endpoint(),
        }
    }
}

impl Lifetime {
    /// How much is left at `now`.
    #[must_use]
    pub fn freshness(&self, now: Timestamp) -> Freshness {
        if !self.is_plausible(now) || self.expires_at.duration_since(now) < MIN_LEFT {
            Freshness::Expired
        } else if self.has_used(DUE_AT_PERCENT, now) {
            Freshness::Due
        } else {
            Freshness::Fresh
        }
    }

    /// Whether the cache should mint anew.
    #[must_use]
    pub fn wants_renewal(&self, now: Timestamp) -> bool {
        self.has_used(RENEW_AT_PERCENT, now)
    }

    /// ECR never issues more than [`MAX_LIFE`]: an expiry beyond that was not written by us.
    fn is_plausible(&self, now: Timestamp) -> bool {
        self.minted_at < self.expires_at
            && self.expires_at.duration_since(now) <= MAX_LIFE + CLOCK_SKEW
    }

    /// Returns whether it is over at `now`; dates that can't be true count as over. Until then the token pulls, also when there
    /// is too little left to rely on it.
    #[must_use]
    pub fn is_over(&self, now: Timestamp) -> bool {
        !self.is_plausible(now) || self.expires_at <= now
    }

    /// Whether so many per cent of its life are gone at `now`.
    #[must_use]
    pub fn has_used(&self, percent: i64, now: Timestamp) -> bool {
        let life = self.expires_at.duration_since(self.minted_at).as_secs();
        now.duration_since(self.minted_at).as_secs() * 100 >= life * percent
    }
}

impl Token {
    /// Decodes a reply: the authorization token is base64 of `AWS:password`; life ends at the reply's expiry, or at the
    /// one inside the password if that can be read and is sooner (seen 46 minutes sooner: cloud-provider-aws#348), or at
    /// `cap`.
    pub fn decode(
        authorization_token: Option<&str>,
        expires_at: Option<Timestamp>,
        cap: Option<Timestamp>,
        now: Timestamp,
    ) -> Result<Self, MalformedReply> {
        let encoded = authorization_token
            .filter(|text| !text.is_empty())
            .ok_or(MalformedReply::Missing)?;
        let decoded = Zeroizing::new(
            STANDARD
                .decode(encoded)
                .map_err(|_| MalformedReply::Encoding)?,
        );
        let text = std::str::from_utf8(&decoded).map_err(|_| MalformedReply::Encoding)?;
        let (user, password) = text.split_once(':').ok_or(MalformedReply::Form)?;
        if user != USER || password.is_empty() {
            return Err(MalformedReply::Form);
        }
        let said = expires_at.ok_or(MalformedReply::NoExpiry)?;
        let ends = expiry_inside(password).into_iter().chain(cap);
        let expires_at = ends.fold(said, Timestamp::min);
        if expires_at.duration_since(now) < MIN_LEFT {
            return Err(MalformedReply::Expired);
        }
        let expires_at = expires_at.min(now.checked_add(MAX_LIFE).unwrap_or(expires_at));
        Ok(Self {
            password: password.to_owned().into(),
            lifetime: Lifetime {
                minted_at: now,
                expires_at,
            },
        })
    }

    /// From when to when it is good.
    #[must_use]
    pub fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    /// base64 of `AWS:password`, as a docker config's `auth` wants it.
    #[must_use]
    pub fn auth(&self) -> SecretString {
        let plain = Zeroizing::new(format!("{USER}:{}", self.password.expose_secret()));
        STANDARD.encode(plain.as_bytes()).into()
    }
}

/// The password is base64 of a JSON object with an `expiration` in seconds since 1970. Undocumented, so anything else
/// is no error.
fn expiry_inside(password: &str) -> Option<Timestamp> {
    #[derive(Deserialize)]
    struct Inside {
        expiration: i64,
    }
    let decoded = Zeroizing::new(
        STANDARD_NO_PAD
            .decode(password.trim_end_matches('='))
            .ok()?,
    );
    let inside: Inside = serde_json::from_slice(&decoded).ok()?;
    Timestamp::from_second(inside.expiration).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn after(hours: i64) -> Timestamp {
        NOW + SignedDuration::from_hours(hours)
    }

    fn decode(plain: &str, expires_at: Option<Timestamp>) -> Result<Token, MalformedReply> {
        Token::decode(Some(&STANDARD.encode(plain)), expires_at, None, NOW)
    }

    #[test]
    fn a_good_reply_gives_a_token_and_its_life() {
        let token = decode("AWS:pass:word", Some(after(12))).expect("a token");
        assert_eq!(
            token.auth().expose_secret(),
            STANDARD.encode("AWS:pass:word")
        );
        assert_eq!(
            token.lifetime(),
            Lifetime {
                minted_at: NOW,
                expires_at: after(12)
            }
        );
    }

    #[test]
    fn malformed_replies_are_errors_and_never_a_credential() {
        let decode_raw = |text| Token::decode(text, Some(after(12)), None, NOW).map(|_| ());
        assert_eq!(decode_raw(None), Err(MalformedReply::Missing));
        assert_eq!(decode_raw(Some("")), Err(MalformedReply::Missing));
        assert_eq!(decode_raw(Some("%%%")), Err(MalformedReply::Encoding));
        assert_eq!(
            decode_raw(Some(&STANDARD.encode([0xff, 0xfe]))),
            Err(MalformedReply::Encoding)
        );
        assert_eq!(
            decode("AWSpassword", Some(after(12))).map(|_| ()),
            Err(MalformedReply::Form)
        );
        assert_eq!(
            decode("root:password", Some(after(12))).map(|_| ()),
            Err(MalformedReply::Form)
        );
        assert_eq!(
            decode("AWS:", Some(after(12))).map(|_| ()),
            Err(MalformedReply::Form)
        );
        assert_eq!(
            decode("AWS:password", None).map(|_| ()),
            Err(MalformedReply::NoExpiry)
        );
        assert_eq!(
            decode("AWS:password", Some(after(-1))).map(|_| ()),
            Err(MalformedReply::Expired)
        );
        assert_eq!(
            decode("AWS:password", Some(NOW)).map(|_| ()),
            Err(MalformedReply::Expired)
        );
    }

    #[test]
    fn the_sooner_of_both_expiries_ends_its_life() {
        let inside = |at: Timestamp| {
            let json = format!(r#"{{"payload":"x","expiration":{}}}"#, at.as_second());
            format!("AWS:{}", STANDARD.encode(json))
        };
        let life =
            |plain: &str| decode(plain, Some(after(12))).map(|token| token.lifetime().expires_at);
        assert_eq!(life(&inside(after(11))), Ok(after(11)));
        assert_eq!(life(&inside(after(13))), Ok(after(12)));
        assert_eq!(life(&inside(after(-1))), Err(MalformedReply::Expired));
    }

    #[test]
    fn a_cap_ends_its_life_sooner_and_never_later() {
        let text = STANDARD.encode("AWS:password");
        let life = |cap| {
            Token::decode(Some(&text), Some(after(12)), Some(cap), NOW)
                .map(|token| token.lifetime().expires_at)
        };
        assert_eq!(life(after(1)), Ok(after(1)));
        assert_eq!(life(after(13)), Ok(after(12)));
        assert_eq!(life(NOW), Err(MalformedReply::Expired));
    }

    #[test]
    fn an_expiry_beyond_what_ecr_issues_is_cut() {
        let token = decode("AWS:password", Some(after(1000))).expect("a token");
        assert_eq!(token.lifetime().expires_at, after(12));
    }

    #[test]
    fn a_life_passes_from_fresh_to_due_to_expired() {
        let life = Lifetime {
            minted_at: NOW,
            expires_at: after(10),
        };
        let at = |minutes: i64| life.freshness(NOW + SignedDuration::from_mins(minutes));
        assert_eq!(
            (at(0), at(179), at(180)),
            (Freshness::Fresh, Freshness::Fresh, Freshness::Due)
        );
        assert_eq!(
            (at(595), at(596), at(700)),
            (Freshness::Due, Freshness::Expired, Freshness::Expired)
        );
        assert!(!life.wants_renewal(NOW + SignedDuration::from_mins(149)));
        assert!(life.wants_renewal(NOW + SignedDuration::from_mins(150)));
    }

    #[test]
    fn dates_that_can_not_be_true_count_as_expired() {
        let forged = Lifetime {
            minted_at: NOW,
            expires_at: after(24),
        };
        assert_eq!(forged.freshness(NOW), Freshness::Expired);
        let backwards = Lifetime {
            minted_at: after(2),
            expires_at: after(1),
        };
        assert_eq!(backwards.freshness(NOW), Freshness::Expired);
    }

    #[test]
    fn a_token_can_not_be_printed() {
        let token = decode("AWS:hunter2-hunter2", Some(after(12))).expect("a token");
        assert!(!format!("{token:?} {token:#?}").contains("hunter2"));
    }
}
