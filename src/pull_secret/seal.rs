//! The proof that a state is ours: a message authentication code (HMAC-SHA-256) under a key that
//! only this installation holds.
//!
//! A client that may write Secrets in a namespace can write any label, type, digest or date there.
//! Without the key nobody can write a valid code, so a state with a valid code was written by one
//! of our replicas, for this very Secret.

pub mod key;

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
};

use hmac::Mac as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use self::key::StateKey;
use super::state::{Seal, State, Subject};
use crate::cluster::namespace::Namespace;

/// The current keys; clones share them. Without any, nothing can be sealed and nothing is proven.
#[derive(Clone, Default)]
pub struct StateKeys(Arc<RwLock<Keys>>);

#[derive(Default)]
struct Keys {
    /// The key that seals and proves.
    current: Option<StateKey>,
    /// The key that proves seals from before a rotation.
    previous: Option<StateKey>,
}

impl StateKeys {
    /// Creates keys that are known from the start.
    #[must_use]
    pub fn new(current: StateKey, previous: Option<StateKey>) -> Self {
        let keys = Self::default();
        keys.replace(current, previous);
        keys
    }

    /// Replaces the keys.
    pub fn replace(&self, current: StateKey, previous: Option<StateKey>) {
        let mut keys = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *keys = Keys {
            current: Some(current),
            previous,
        };
    }

    /// Returns the key that seals, if there is one yet.
    #[must_use]
    pub fn current(&self) -> Option<StateKey> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        keys.current.clone()
    }

    /// Seals a message with the current key; `None` while there is no key.
    #[must_use]
    pub fn seal(&self, message: &[u8]) -> Option<Seal> {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mac = keys.current.as_ref()?.mac(message);
        Some(Seal::new(mac.finalize().into_bytes().into()))
    }

    /// Returns whether the state on a Secret was sealed for that very Secret, in the namespace of
    /// this UID.
    #[must_use]
    pub fn prove(
        &self,
        namespace: &Namespace,
        namespace_uid: &str,
        metadata: &ObjectMeta,
        state: &State,
    ) -> bool {
        let is_sealed_for = |secret_uid: &str| {
            let subject = Subject {
                namespace: namespace.as_str(),
                namespace_uid,
                secret_uid,
            };
            self.verify(state.sealed_text(subject).as_bytes(), &state.seal)
        };
        let Some(uid) = metadata.uid.as_deref().filter(|uid| !uid.is_empty()) else {
            return false;
        };
        let created_at = metadata.creation_timestamp.as_ref().map(|time| time.0);
        is_sealed_for(uid)
            || created_at.is_some_and(|at| state.was_created_at(at)) && is_sealed_for("")
    }

    /// Returns whether a seal was made for this message by the current or the previous key. The
    /// comparison takes constant time.
    #[must_use]
    pub fn verify(&self, message: &[u8], seal: &Seal) -> bool {
        let keys = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut keys = keys.current.iter().chain(&keys.previous);
        keys.any(|key| key.mac(message).verify_slice(seal.as_bytes()).is_ok())
    }
}

impl fmt::Debug for StateKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StateKeys")
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::{key::KEY_BYTES, *};
    use crate::pull_secret::{
        state::{Credential, DataDigest, HostState},
        tests::{NAMESPACE_UID, NOW, entry, host, other, state, team},
    };

    fn key(byte: u8) -> StateKey {
        StateKey::new([byte; KEY_BYTES])
    }

    #[test]
    fn seal_is_hmac_sha_256() {
        // RFC 4231, test case 2, with its short key padded by zeros, which HMAC does itself.
        let mut bytes = [0; KEY_BYTES];
        bytes[..4].copy_from_slice(b"Jefe");
        let keys = StateKeys::new(StateKey::new(bytes), None);
        let seal = keys.seal(b"what do ya want for nothing?").expect("a key");
        let expected = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        assert_eq!(seal.to_string(), expected);
        assert_eq!(Seal::parse(expected), Some(seal));
    }

    #[test]
    fn seal_proves_only_its_own_message_and_key() {
        let keys = StateKeys::new(key(1), None);
        let seal = keys.seal(b"a").expect("a key");
        assert!(keys.verify(b"a", &seal));
        assert!(!keys.verify(b"b", &seal));
        assert!(!keys.verify(b"a", &Seal::default()));
        assert!(!StateKeys::new(key(2), None).verify(b"a", &seal));
    }

    #[test]
    fn previous_key_proves_and_does_not_seal() {
        let keys = StateKeys::new(key(1), None);
        let old = keys.seal(b"a").expect("a key");
        keys.replace(key(2), Some(key(1)));
        assert!(keys.verify(b"a", &old));
        assert_ne!(keys.seal(b"a"), Some(old));
        keys.replace(key(3), Some(key(2)));
        assert!(!keys.verify(b"a", &old));
    }

    #[test]
    fn without_a_key_nothing_is_sealed_or_proven() {
        let keys = StateKeys::default();
        assert_eq!(keys.seal(b"a"), None);
        assert!(!keys.verify(b"a", &Seal::default()));
    }

    #[test]
    fn keys_are_never_printed() {
        let keys = StateKeys::new(key(0xab), None);
        let text = format!("{keys:?} {:?}", key(0xab));
        assert!(!text.contains("171") && !text.contains("ab, "), "{text}");
    }

    /// A state with two hosts, and the Secret that it is sealed for.
    fn sealed(secret_uid: &str, keys: &StateKeys) -> (State, ObjectMeta) {
        let mut state = State {
            digest: DataDigest::new(b"data"),
            revision: u64::try_from(NOW.as_millisecond()).expect("after 1970"),
            ..state([
                (host(1), entry(NOW, Some((NOW, 12)))),
                (host(2), entry(NOW, None)),
            ])
        };
        let subject = Subject {
            namespace: "team",
            namespace_uid: NAMESPACE_UID,
            secret_uid,
        };
        let text = state.sealed_text(subject);
        state.seal = keys.seal(text.as_bytes()).expect("a key");
        let metadata = ObjectMeta {
            uid: Some("secret-uid".into()),
            creation_timestamp: Some(Time(NOW)),
            ..ObjectMeta::default()
        };
        (state, metadata)
    }

    #[test]
    fn state_proves_only_for_its_own_secret_and_namespace() {
        let keys = StateKeys::new(key(1), None);
        let (state, metadata) = sealed("secret-uid", &keys);
        let named = |name: &str| Namespace::parse(name).expect("valid");
        assert!(keys.prove(&team(), NAMESPACE_UID, &metadata, &state));
        assert!(!keys.prove(&named("other"), NAMESPACE_UID, &metadata, &state));
        for uid in ["other", ""] {
            assert!(!keys.prove(&team(), uid, &metadata, &state), "{uid:?}");
        }
        for uid in [Some("other"), Some(""), None] {
            let metadata = ObjectMeta {
                uid: uid.map(str::to_owned),
                ..metadata.clone()
            };
            assert!(
                !keys.prove(&team(), NAMESPACE_UID, &metadata, &state),
                "{uid:?}"
            );
        }
        let others = StateKeys::new(key(2), None);
        assert!(!others.prove(&team(), NAMESPACE_UID, &metadata, &state));
    }

    type Edit<'a> = (&'static str, &'a dyn Fn(&mut State));

    #[test]
    fn any_change_of_a_state_breaks_its_seal() {
        let keys = StateKeys::new(key(1), None);
        let (good, metadata) = sealed("secret-uid", &keys);
        let second = SignedDuration::from_secs(1);
        let edits: [Edit<'_>; 12] = [
            ("host added", &|it| {
                it.hosts.insert(host(3), entry(NOW, None));
            }),
            ("host removed", &|it| it.hosts.remove(&host(2))),
            ("host replaced", &|it| {
                it.hosts.remove(&host(2));
                it.hosts.insert(host(3), entry(NOW, None));
            }),
            ("wanted since", &|it| first(it).demand.since += second),
            ("wanted at", &|it| first(it).demand.last += second),
            ("identity", &|it| credential(it).identity = other()),
            ("minted at", &|it| {
                credential(it).lifetime.minted_at += second;
            }),
            ("expires at", &|it| {
                credential(it).lifetime.expires_at += second;
            }),
            ("credential", &|it| first(it).credential = None),
            ("digest", &|it| it.digest = DataDigest::new(b"other data")),
            ("revision", &|it| it.revision += 1),
            ("seal", &|it| it.seal = Seal::default()),
        ];
        for (what, edit) in edits {
            let mut edited = good.clone();
            edit(&mut edited);
            assert_ne!(edited, good, "{what}");
            let is_proven = keys.prove(&team(), NAMESPACE_UID, &metadata, &edited);
            assert!(!is_proven, "{what}");
        }
    }

    fn first(state: &mut State) -> &mut HostState {
        state.hosts.get_mut(&host(1)).expect("there")
    }

    fn credential(state: &mut State) -> &mut Credential {
        first(state).credential.as_mut().expect("one")
    }

    #[test]
    fn state_sealed_without_a_uid_proves_a_secret_created_then() {
        let keys = StateKeys::new(key(1), None);
        let (state, metadata) = sealed("", &keys);
        let minutes = |minutes| Some(NOW + SignedDuration::from_mins(minutes));
        for (created_at, is_proven) in [
            (minutes(0), true),
            (minutes(10), true),
            (minutes(-10), true),
            (minutes(11), false),
            (minutes(-11), false),
            (None, false),
        ] {
            let metadata = ObjectMeta {
                creation_timestamp: created_at.map(Time),
                ..metadata.clone()
            };
            let proven = keys.prove(&team(), NAMESPACE_UID, &metadata, &state);
            assert_eq!(proven, is_proven, "{created_at:?}");
        }
        let other = Namespace::parse("other").expect("valid");
        assert!(!keys.prove(&other, NAMESPACE_UID, &metadata, &state));
        assert!(!keys.prove(&team(), "other", &metadata, &state));
    }

    #[test]
    fn state_is_proven_by_the_key_before_a_rotation() {
        let keys = StateKeys::new(key(1), None);
        let (state, metadata) = sealed("secret-uid", &keys);
        for (current, previous, is_proven) in [
            (2, Some(1), true),
            (1, Some(2), true),
            (3, Some(2), false),
            (2, None, false),
        ] {
            keys.replace(key(current), previous.map(key));
            let proven = keys.prove(&team(), NAMESPACE_UID, &metadata, &state);
            assert_eq!(proven, is_proven, "{current} {previous:?}");
        }
    }
}
