//! The content of the Secret that shares the state key, and the leader's next write to it: decided
//! from the observed Secret and the time alone.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{ByteString, api::core::v1::Secret};

use crate::{
    cluster::ownership::is_managed,
    pull_secret::seal::key::{KEY_BYTES, StateKey},
};

/// The Secret's type: nothing else in a cluster reads Secrets of this type.
pub const SECRET_TYPE: &str = "ecr-injector.dev/state-key";
/// The key that seals, in the Secret's data.
pub const CURRENT: &str = "current";
/// The key before the last rotation, in the Secret's data.
pub const PREVIOUS: &str = "previous";
/// The annotation by which a person requests a rotation: each new value requests one.
pub const ROTATE: &str = "ecr-injector.dev/rotate-state-key";
/// The annotation with the last value of [`ROTATE`] that was carried out.
pub const ROTATED: &str = "ecr-injector.dev/rotated-state-key";
/// The annotation with the time at which the current key was created, RFC 3339.
pub const CREATED_AT: &str = "ecr-injector.dev/state-key-created-at";
/// The age at which a key is rotated.
pub const MAX_AGE: SignedDuration = SignedDuration::from_hours(365 * 24);
/// The most that replicas' clocks may differ: a later creation time can't be true.
const MAX_SKEW: SignedDuration = SignedDuration::from_hours(24);

/// The keys in the Secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedKeys {
    /// The key that seals.
    pub current: StateKey,
    /// The previous key, which still proves.
    pub previous: Option<StateKey>,
    created_at: Option<Timestamp>,
    rotated: Option<String>,
}

/// The known content of the Secret.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Content {
    /// Not observed yet.
    #[default]
    Unknown,
    /// There is no Secret.
    Absent,
    /// The Secret lacks our label: it isn't ours to read or write.
    Foreign,
    /// The Secret has our label and no valid key, for this reason.
    Malformed(&'static str),
    /// The Secret has valid keys.
    Shared {
        /// The keys.
        keys: SharedKeys,
        /// Whether the Secret lacks a key that is known.
        is_damaged: bool,
        /// The rotation that a person asked for last.
        requested: Option<String>,
    },
}

/// The next write of the leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// A first key.
    Create,
    /// The keys that are known.
    Restore(SharedKeys),
    /// A new key, and the current one as the previous.
    Rotate {
        /// The current keys.
        from: SharedKeys,
        /// The request that is carried out.
        requested: Option<String>,
    },
}

impl SharedKeys {
    /// Creates keys whose first key is this one.
    #[must_use]
    pub fn new(key: StateKey, now: Timestamp) -> Self {
        Self {
            current: key,
            previous: None,
            created_at: Some(now),
            rotated: None,
        }
    }

    /// Returns the keys after a rotation to a new one.
    #[must_use]
    pub fn rotated_to(&self, key: StateKey, requested: Option<String>, now: Timestamp) -> Self {
        Self {
            current: key,
            previous: Some(self.current.clone()),
            created_at: Some(now),
            rotated: requested.or_else(|| self.rotated.clone()),
        }
    }

    /// Returns the data of the Secret.
    #[must_use]
    pub fn data(&self) -> BTreeMap<&'static str, &[u8; KEY_BYTES]> {
        let previous = self.previous.as_ref().map(|key| (PREVIOUS, key.expose()));
        [(CURRENT, self.current.expose())]
            .into_iter()
            .chain(previous)
            .collect()
    }

    /// Returns the annotations of the Secret.
    #[must_use]
    pub fn annotations(&self) -> BTreeMap<&'static str, String> {
        let created_at = self.created_at.map(|at| (CREATED_AT, at.to_string()));
        let rotated = self.rotated.clone().map(|value| (ROTATED, value));
        created_at.into_iter().chain(rotated).collect()
    }

    fn has_age(&self, now: Timestamp) -> bool {
        self.created_at
            .is_some_and(|at| at.duration_since(now) <= MAX_SKEW)
    }

    fn is_old(&self, now: Timestamp) -> bool {
        self.created_at
            .is_some_and(|at| now.duration_since(at) >= MAX_AGE)
    }
}

/// Reads the Secret. `known` are the keys in memory.
#[must_use]
pub fn read(secret: &Secret, known: Option<&SharedKeys>) -> Content {
    if !is_managed(&secret.metadata) {
        return Content::Foreign;
    }
    if secret.type_.as_deref() != Some(SECRET_TYPE) {
        return Content::Malformed("its type is not ecr-injector.dev/state-key");
    }
    let bytes = |key: &str| secret.data.as_ref().and_then(|data| data.get(key));
    let key = |name: &str| bytes(name).and_then(|ByteString(key)| StateKey::from_slice(key));
    let Some(current) = key(CURRENT) else {
        return Content::Malformed("its `current` is not 32 bytes");
    };
    let (mut previous, mut is_damaged) = (key(PREVIOUS), false);
    if previous.is_none() && bytes(PREVIOUS).is_some() {
        // Without a better one in memory, a key that can't be read counts as none.
        let known = known.filter(|known| known.current == current);
        previous = known.and_then(|known| known.previous.clone());
        is_damaged = previous.is_some();
    }
    let annotation = |key: &str| secret.metadata.annotations.as_ref()?.get(key).cloned();
    let keys = SharedKeys {
        current,
        previous,
        created_at: annotation(CREATED_AT).and_then(|at| at.parse().ok()),
        rotated: annotation(ROTATED),
    };
    Content::Shared {
        keys,
        is_damaged,
        requested: annotation(ROTATE),
    }
}

/// Returns the next write of the leader, if there is one. `known` are the keys in memory.
#[must_use]
pub fn plan(content: &Content, known: Option<&SharedKeys>, now: Timestamp) -> Option<Step> {
    match content {
        Content::Unknown | Content::Foreign => None,
        Content::Absent | Content::Malformed(_) => {
            Some(known.cloned().map_or(Step::Create, Step::Restore))
        }
        Content::Shared {
            keys,
            is_damaged,
            requested,
        } => {
            let is_requested = requested.is_some() && *requested != keys.rotated;
            if is_requested || keys.is_old(now) {
                return Some(Step::Rotate {
                    from: keys.clone(),
                    requested: requested.clone(),
                });
            }
            if *is_damaged || !keys.has_age(now) {
                let created_at = keys.created_at.filter(|_| keys.has_age(now));
                return Some(Step::Restore(SharedKeys {
                    created_at: created_at.or(Some(now)),
                    ..keys.clone()
                }));
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn key(byte: u8) -> StateKey {
        StateKey::new([byte; KEY_BYTES])
    }

    /// The Secret with this change.
    fn secret(keys: &SharedKeys, change: &serde_json::Value) -> Secret {
        let data: BTreeMap<_, _> = keys
            .data()
            .into_iter()
            .map(|(name, key)| (name, ByteString(key.to_vec())))
            .collect();
        let mut secret = json!({
            "metadata": {
                "name": "x",
                "labels": {"app.kubernetes.io/managed-by": "ecr-injector"},
                "annotations": keys.annotations(),
            },
            "type": SECRET_TYPE,
            "data": data,
        });
        json_patch::merge(&mut secret, change);
        serde_json::from_value(secret).expect("a Secret")
    }

    fn step(keys: &SharedKeys, change: &serde_json::Value, now: Timestamp) -> Option<Step> {
        let content = read(&secret(keys, change), Some(keys));
        plan(&content, Some(keys), now)
    }

    #[test]
    fn secret_that_is_whole_needs_nothing() {
        let keys = SharedKeys::new(key(1), NOW);
        let rotated = keys.rotated_to(key(2), Some("a".to_owned()), NOW);
        for keys in [&keys, &rotated] {
            let found = read(&secret(keys, &json!({})), None);
            let expected = Content::Shared {
                keys: keys.clone(),
                is_damaged: false,
                requested: None,
            };
            assert_eq!(found, expected);
            assert_eq!(step(keys, &json!({"data": {"more": "eA=="}}), NOW), None);
        }
    }

    #[test]
    fn first_key_is_made_only_where_none_is_known() {
        let keys = SharedKeys::new(key(1), NOW);
        let malformed = Content::Malformed("x");
        for content in [&Content::Absent, &malformed] {
            assert_eq!(plan(content, None, NOW), Some(Step::Create));
            let restore = Some(Step::Restore(keys.clone()));
            assert_eq!(plan(content, Some(&keys), NOW), restore);
        }
        assert_eq!(plan(&Content::Unknown, None, NOW), None);
    }

    #[test]
    fn foreign_secret_is_neither_read_nor_written() {
        let keys = SharedKeys::new(key(1), NOW);
        let labels = json!({"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}}});
        let found = read(&secret(&keys, &labels), None);
        assert_eq!(found, Content::Foreign);
        assert_eq!(plan(&found, None, NOW), None);
        assert_eq!(plan(&found, Some(&keys), NOW), None);
    }

    #[test]
    fn malformed_secret_gets_the_keys_in_memory() {
        let keys = SharedKeys::new(key(1), NOW).rotated_to(key(2), None, NOW);
        for change in [
            json!({"data": null}),
            json!({"data": {"current": null}}),
            json!({"data": {"current": "eA=="}}),
            json!({"data": {"previous": "eA=="}}),
            json!({"type": "Opaque"}),
        ] {
            let restore = Some(Step::Restore(keys.clone()));
            assert_eq!(step(&keys, &change, NOW), restore, "{change}");
        }
        // Who dropped the previous key meant it.
        assert_eq!(step(&keys, &json!({"data": {"previous": null}}), NOW), None);
    }

    #[test]
    fn previous_that_nobody_knows_is_as_good_as_none() {
        let keys = SharedKeys::new(key(1), NOW);
        let change = json!({"data": {"previous": "eA=="}});
        assert_eq!(step(&keys, &change, NOW), None);
    }

    #[test]
    fn request_is_followed_once_for_each_value() {
        let keys = SharedKeys::new(key(1), NOW);
        let ask = |value: &str| json!({"metadata": {"annotations": {ROTATE: value}}});
        let rotate = |from: &SharedKeys, value: &str| {
            let requested = Some(value.to_owned());
            let from = from.clone();
            Some(Step::Rotate { from, requested })
        };
        assert_eq!(step(&keys, &ask("a"), NOW), rotate(&keys, "a"));
        let after = keys.rotated_to(key(2), Some("a".to_owned()), NOW);
        assert_eq!(after.previous, Some(key(1)));
        assert_eq!(step(&after, &ask("a"), NOW), None);
        assert_eq!(step(&after, &json!({}), NOW), None);
        assert_eq!(step(&after, &ask("b"), NOW), rotate(&after, "b"));
    }

    #[test]
    fn key_is_followed_by_another_after_a_year() {
        let keys = SharedKeys::new(key(1), NOW).rotated_to(key(2), Some("a".to_owned()), NOW);
        let hour = SignedDuration::from_hours(1);
        assert_eq!(step(&keys, &json!({}), NOW + MAX_AGE - hour), None);
        let rotate = Step::Rotate {
            from: keys.clone(),
            requested: None,
        };
        let later = NOW + MAX_AGE;
        assert_eq!(step(&keys, &json!({}), later), Some(rotate));
        let after = keys.rotated_to(key(3), None, later);
        assert_eq!(
            after.rotated.as_deref(),
            Some("a"),
            "no request is forgotten"
        );
        assert_eq!(step(&after, &json!({}), later), None);
    }

    #[test]
    fn date_that_is_missing_or_cannot_be_begins_now() {
        let keys = SharedKeys::new(key(1), NOW);
        for date in [json!(null), json!("soon"), json!("9999-12-30T00:00:00Z")] {
            let change = json!({"metadata": {"annotations": {CREATED_AT: date}}});
            let later = NOW + SignedDuration::from_hours(1);
            let restore = Step::Restore(SharedKeys::new(key(1), later));
            assert_eq!(step(&keys, &change, later), Some(restore), "{change}");
        }
        // Another replica's clock may be ahead.
        let early = NOW - SignedDuration::from_mins(5);
        assert_eq!(step(&keys, &json!({}), early), None);
    }

    #[test]
    fn keys_are_never_printed() {
        let keys = SharedKeys::new(key(0xab), NOW).rotated_to(key(0xab), None, NOW);
        let content = read(&secret(&keys, &json!({})), None);
        let step = plan(&Content::Absent, Some(&keys), NOW);
        let text = format!("{keys:?} {content:?} {step:?}");
        assert_eq!(text.matches("StateKey,").count(), 3, "{text}");
        for form in ["171", "ab, ", "abab", "q6ur"] {
            assert!(!text.to_lowercase().contains(form), "{text}");
        }
    }
}
