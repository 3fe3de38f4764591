//! ECR tokens, as `ecr:GetAuthorizationToken` returns them, and how long they may be used.

pub mod cache;
mod client;
mod clients;
pub mod ecr;
pub mod error;
mod flights;
pub mod metrics;
mod minting;
pub mod once;
mod reason;
pub mod rules;
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

/// The user name of every ECR token.
pub const USER: &str = "AWS";
/// The longest lifetime of an ECR token.
pub const MAX_LIFE: SignedDuration = SignedDuration::from_hours(12);
/// The least time left of a usable credential: a pull that starts now might outlast less.
pub const MIN_LEFT: SignedDuration = SignedDuration::from_mins(5);
/// The largest difference of two honest clocks; an expiry beyond it counts as forged.
const CLOCK_SKEW: SignedDuration = SignedDuration::from_mins(10);
/// A cached token is renewed once this share of its lifetime is over, in per cent.
const RENEW_AT_PERCENT: i64 = 25;
/// A pull secret is due once this share of a credential's lifetime is over, in per cent: later than
/// the cache's renewal, so that a refresh finds a new token there.
const DUE_AT_PERCENT: i64 = 30;

/// The key of a token in the cache: the identity that mints it, and the endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TokenKey {
    /// The identity that mints.
    pub identity: Identity,
    /// The region of the endpoint.
    pub region: Region,
    /// The endpoint in the region.
    pub endpoint: Endpoint,
}

/// The lifetime of a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// When the credential was minted, by the process's clock.
    pub minted_at: Timestamp,
    /// When the credential expires: the sooner of the reply's expiry and the token's own.
    pub expires_at: Timestamp,
}

/// How fresh a credential is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Freshness {
    /// Less than 30 % of its lifetime is over.
    Fresh,
    /// More is over, and at least [`MIN_LEFT`] is left.
    Due,
    /// Less than [`MIN_LEFT`] is left, or its dates are implausible.
    Expired,
}

/// Caps a token's lifetime below its expiry. A role's session may end long before the token that
/// was minted in it, and such tokens were seen to fail then (`rules_img#715`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SessionCap {
    /// Caps at the end of the session of the role that was assumed for the token, or of a profile's
    /// credentials; not at that of ambient credentials.
    #[default]
    Auto,
    /// Caps at the end of the session that the token was minted in, also of ambient credentials.
    Session,
    /// Caps nothing.
    Off,
    /// Caps after so many seconds, or as [`Self::Auto`] if that is sooner.
    After(u32),
}

/// An ECR token. `Debug` doesn't print its password.
#[derive(Debug)]
pub struct Token {
    password: SecretString,
    lifetime: Lifetime,
}

/// Why a reply of ECR holds no usable token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MalformedReply {
    /// The reply has no authorization data, or no token in it.
    #[error("the reply has no authorization token")]
    Missing,
    /// The token is not base64, or not text.
    #[error("the authorization token is not base64 of a text")]
    Encoding,
    /// The token is not `AWS:password`.
    #[error("the authorization token is not {USER}:password")]
    Form,
    /// The reply has no expiry.
    #[error("the reply has no expiry")]
    NoExpiry,
    /// The token is expired, or expires too soon to be used.
    #[error("the token's expiry is in the past or less than {} s away", MIN_LEFT.as_secs())]
    Expired,
}

impl TokenKey {
    /// Returns the key of the token for `registry` that `identity` mints.
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
    /// Returns the freshness at `now`.
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

    /// Returns whether the cache is to renew the token.
    #[must_use]
    pub fn needs_renewal(&self, now: Timestamp) -> bool {
        self.has_used(RENEW_AT_PERCENT, now)
    }

    /// Returns whether the dates are plausible. ECR never issues more than [`MAX_LIFE`], so
    /// ecr-injector has not written an expiry beyond that.
    fn is_plausible(&self, now: Timestamp) -> bool {
        self.minted_at < self.expires_at
            && self.expires_at.duration_since(now) <= MAX_LIFE + CLOCK_SKEW
    }

    /// Returns whether the credential is expired at `now`; implausible dates count as expired.
    /// Until then the token pulls, also with too little time left to rely on.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        !self.is_plausible(now) || self.expires_at <= now
    }

    /// Returns whether so many per cent of the lifetime are over at `now`.
    #[must_use]
    pub fn has_used(&self, percent: i64, now: Timestamp) -> bool {
        let life = self.expires_at.duration_since(self.minted_at).as_secs();
        now.duration_since(self.minted_at).as_secs() * 100 >= life * percent
    }
}

impl Token {
    /// Decodes a reply. The authorization token is base64 of `AWS:password`. The token expires at
    /// the reply's expiry, or at the expiry inside the password if that can be read and is sooner
    /// (seen 46 minutes sooner: cloud-provider-aws#348), or at `cap`.
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
        let reply_expiry = expires_at.ok_or(MalformedReply::NoExpiry)?;
        let ends = expiry_inside(password).into_iter().chain(cap);
        let expires_at = ends.fold(reply_expiry, Timestamp::min);
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

    /// Returns a token that was stored as [`Self::auth`] with its lifetime, or `None` if the text is
    /// none.
    #[must_use]
    pub fn restore(auth: &str, lifetime: Lifetime) -> Option<Self> {
        let decoded = Zeroizing::new(STANDARD.decode(auth).ok()?);
        let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
        (user == USER && !password.is_empty()).then(|| Self {
            password: password.to_owned().into(),
            lifetime,
        })
    }

    /// Returns the token's lifetime.
    #[must_use]
    pub fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    /// Returns the password, whose user is [`USER`].
    #[must_use]
    pub fn password(&self) -> &SecretString {
        &self.password
    }

    /// Returns base64 of `AWS:password`, the form of a docker config's `auth`.
    #[must_use]
    pub fn auth(&self) -> SecretString {
        let plain = Zeroizing::new(format!("{USER}:{}", self.password.expose_secret()));
        STANDARD.encode(plain.as_bytes()).into()
    }
}

/// Returns the expiry inside a password: base64 of a JSON object with an `expiration` in seconds
/// since 1970. The form is undocumented, so anything else is no error.
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
    fn reply_gives_a_token_and_its_lifetime() {
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
    fn sooner_of_both_expiries_counts() {
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
    fn cap_shortens_a_lifetime_and_never_extends_it() {
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
    fn expiry_beyond_the_longest_lifetime_is_cut() {
        let token = decode("AWS:password", Some(after(1000))).expect("a token");
        assert_eq!(token.lifetime().expires_at, after(12));
    }

    #[test]
    fn credential_goes_from_fresh_to_due_to_expired() {
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
        assert!(!life.needs_renewal(NOW + SignedDuration::from_mins(149)));
        assert!(life.needs_renewal(NOW + SignedDuration::from_mins(150)));
    }

    #[test]
    fn implausible_dates_count_as_expired() {
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
    fn credential_is_expired_from_its_expiry_on() {
        let life = Lifetime {
            minted_at: NOW,
            expires_at: after(10),
        };
        let second = SignedDuration::from_secs(1);
        assert!(!life.is_expired(NOW));
        assert!(!life.is_expired(after(10) - second));
        assert!(life.is_expired(after(10)));
    }

    #[test]
    fn longest_plausible_lifetime_is_ecrs_and_a_skew() {
        let longest = NOW + MAX_LIFE + CLOCK_SKEW;
        let ending = |minted_at, expires_at| Lifetime {
            minted_at,
            expires_at,
        };
        assert!(!ending(NOW, longest).is_expired(NOW));
        let second = SignedDuration::from_secs(1);
        assert!(ending(NOW, longest + second).is_expired(NOW));
        let empty = ending(after(1), after(1));
        assert!(empty.is_expired(NOW), "it has no lifetime");
    }

    #[test]
    fn token_with_just_enough_time_left_is_taken() {
        let ends = |left: SignedDuration| decode("AWS:password", Some(NOW + left)).map(|_| ());
        assert_eq!(ends(MIN_LEFT), Ok(()));
        let second = SignedDuration::from_secs(1);
        assert_eq!(ends(MIN_LEFT - second), Err(MalformedReply::Expired));
    }

    #[test]
    fn stored_token_is_restored_and_nothing_else_is() {
        let lifetime = Lifetime {
            minted_at: NOW,
            expires_at: after(12),
        };
        let restore = |plain: &str| Token::restore(&STANDARD.encode(plain), lifetime);
        let token = restore("AWS:pass:word").expect("a token");
        assert_eq!(token.password().expose_secret(), "pass:word");
        assert_eq!(token.lifetime(), lifetime);
        for other in ["", "AWS", "AWS:", "root:password", "root:"] {
            assert!(restore(other).is_none(), "{other}");
        }
        assert!(Token::restore("%%%", lifetime).is_none());
    }

    #[test]
    fn token_is_not_printed() {
        let token = decode("AWS:hunter2-hunter2", Some(after(12))).expect("a token");
        assert!(!format!("{token:?} {token:#?}").contains("hunter2"));
    }
}
