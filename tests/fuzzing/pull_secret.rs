//! A Secret of our name, as its namespace's users may write it: a state annotation and a docker
//! config. No state without our seal is believed, and nothing is lost that isn't ours.
//!
//! The input is a byte of flags, the annotation, a line feed, and the docker config.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ecr_injector::cluster::namespace::Namespace;
use ecr_injector::cluster::ownership::{MANAGED_BY, MANAGED_BY_LABEL};
use ecr_injector::identity::Identity;
use ecr_injector::pull_secret::merge::{Changes, MergeMode, merge};
use ecr_injector::pull_secret::seal::StateKeys;
use ecr_injector::pull_secret::seal::key::StateKey;
use ecr_injector::pull_secret::state::{DataDigest, State, Subject};
use ecr_injector::pull_secret::{
    DATA_KEY, DesiredCredential, Existing, Foreign, STATE_ANNOTATION, TYPE,
};
use ecr_injector::registry::Host;
use ecr_injector::token::Token;
use ecr_injector::token::rules::MAX_HOSTS;
use jiff::SignedDuration;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use secrecy::ExposeSecret as _;

use super::json::Json;
use super::{HOST, NAMESPACE, NOW};

/// The bits of the first byte.
const NO_LABEL: u8 = 1;
const OTHER_TYPE: u8 = 2;
const IMMUTABLE: u8 = 4;

const NAMESPACE_UID: &str = "uid-of-the-namespace";
const SECRET_UID: &str = "uid-of-the-secret";

static KEYS: LazyLock<StateKeys> = LazyLock::new(|| StateKeys::new(StateKey::new([7; 32]), None));

pub fn check(input: &[u8]) {
    let Some((flags, rest)) = input.split_first() else {
        return;
    };
    let mut parts = rest.splitn(2, |byte| *byte == b'\n');
    let annotation = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let data = parts.next().unwrap_or_default();

    let secret = secret(*flags, &annotation, data);
    assert_forgery_proves_nothing(*flags, &secret, data);
    let Ok(state) = State::parse(&annotation) else {
        return;
    };
    let again = State::parse(&state.to_text()).expect("our own text");
    assert_eq!(again, state);
    if flags & (NO_LABEL | OTHER_TYPE | IMMUTABLE) == 0 {
        assert_honest_state_is_kept(state, secret, data);
    }
}

fn secret(flags: u8, annotation: &str, data: &[u8]) -> Secret {
    let has = |flag: u8| flags & flag != 0;
    let label = if has(NO_LABEL) { "Helm" } else { MANAGED_BY };
    let kind = if has(OTHER_TYPE) { "Opaque" } else { TYPE };
    let map = |key: &str, value: &str| Some(BTreeMap::from([(key.to_owned(), value.to_owned())]));
    Secret {
        metadata: ObjectMeta {
            uid: Some(SECRET_UID.to_owned()),
            resource_version: Some("5".to_owned()),
            labels: map(MANAGED_BY_LABEL, label),
            annotations: map(STATE_ANNOTATION, annotation),
            ..ObjectMeta::default()
        },
        type_: Some(kind.to_owned()),
        immutable: has(IMMUTABLE).then_some(true),
        data: Some(BTreeMap::from([(
            DATA_KEY.to_owned(),
            ByteString(data.to_vec()),
        )])),
        ..Secret::default()
    }
}

fn namespace() -> Namespace {
    Namespace::parse(NAMESPACE).unwrap()
}

fn prove(state: &State, secret: &Secret) -> bool {
    KEYS.prove(&namespace(), NAMESPACE_UID, &secret.metadata, state)
}

/// Nobody has the key, so no state is believed; and the Secret isn't ours if there is anything in
/// it that we don't write.
fn assert_forgery_proves_nothing(flags: u8, secret: &Secret, data: &[u8]) {
    let has = |flag: u8| flags & flag != 0;
    let found = Existing::read(secret, |state| prove(state, secret));
    let expected = if has(NO_LABEL) {
        Some(Foreign::Label)
    } else if has(OTHER_TYPE) {
        Some(Foreign::Type)
    } else if has(IMMUTABLE) {
        Some(Foreign::Immutable)
    } else if has_entries_of_others(data) {
        Some(Foreign::Entries)
    } else {
        None
    };
    match found {
        Err(why) => assert_eq!(Some(why), expected),
        Ok(existing) => {
            assert_eq!(None, expected);
            assert_eq!(existing.state, None, "a forged state is believed");
            assert!(existing.claimed.len() <= MAX_HOSTS);
            assert_writes_only_what_is_wanted(&existing);
        }
    }
}

/// Whether a docker config has anything but `auth` texts of the user AWS under hosts, in any of the
/// keys that are there twice: a reader in Go merges those.
fn has_entries_of_others(data: &[u8]) -> bool {
    let Some(Json::Object(fields)) = Json::parse(data) else {
        return false;
    };
    let is_ours = |(host, entry): &(String, Json)| {
        let fields = entry.fields().unwrap_or_default();
        let is_auth = |(name, value): &(String, Json)| {
            name == "auth" && value.text().is_some_and(|auth| auth.starts_with("QVdTO"))
        };
        Host::parse(host).is_some() && !fields.is_empty() && fields.iter().all(is_auth)
    };
    !fields.iter().all(|(name, value)| match value {
        _ if name != "auths" => false,
        Json::Null => true,
        Json::Object(entries) => entries.iter().all(is_ours),
        _ => false,
    })
}

/// After a forgery, what is written is what is wanted, and no more.
fn assert_writes_only_what_is_wanted(existing: &Existing) {
    let host: Host = Host::parse(HOST).unwrap();
    let wanted = BTreeMap::from([(host.clone(), desired())]);
    let merged = merge(Some(existing), changes(MergeMode::Add, &wanted), NOW);
    let written = merged.secret.expect("a write");
    let hosts: Vec<_> = written.state().hosts.keys().collect();
    assert_eq!(hosts, [&host]);
    let auths = auths(&written_data(&written, existing)).expect("a docker config");
    assert_eq!(auths, BTreeMap::from([(host, auth())]));
}

/// A state with our seal is believed for its own Secret alone, and a merge keeps what is in it.
fn assert_honest_state_is_kept(claims: State, mut secret: Secret, data: &[u8]) {
    let mut state = claims;
    state.digest = DataDigest::new(data);
    let subject = Subject {
        namespace: NAMESPACE,
        namespace_uid: NAMESPACE_UID,
        secret_uid: SECRET_UID,
    };
    state.seal = KEYS.seal(state.sealed_text(subject).as_bytes()).unwrap();
    let annotations = secret.metadata.annotations.as_mut().unwrap();
    annotations.insert(STATE_ANNOTATION.to_owned(), state.to_text());
    assert_seal_is_for_this_alone(&state, &secret);

    let existing = Existing::read(&secret, |state| prove(state, &secret)).expect("ours");
    assert_eq!(existing.state.as_ref(), Some(&state));
    let Some(before) = auths(data) else {
        return;
    };
    let host = Host::parse(HOST).unwrap();
    let none = BTreeMap::new();
    let one = BTreeMap::from([(host.clone(), desired())]);
    for (mode, wanted) in [
        (MergeMode::Add, &none),
        (MergeMode::Add, &one),
        (MergeMode::Reconcile, &one),
    ] {
        let merged = merge(Some(&existing), changes(mode, wanted), NOW);
        let is_full = state.hosts.len() >= MAX_HOSTS && !state.hosts.contains_key(&host);
        assert!(merged.left_out.is_empty() || is_full);
        let Some(written) = merged.secret else {
            continue;
        };
        let after = auths(&written_data(&written, &existing)).expect("a docker config");
        let hosts: BTreeSet<_> = written.state().hosts.keys().collect();
        for (known, entry) in state.hosts.iter() {
            let is_good = entry.good(NOW).is_some();
            assert!(
                hosts.contains(known) || is_full && !is_good,
                "{known} is lost"
            );
            if is_good && before.contains_key(known) && !wanted.contains_key(known) {
                assert_eq!(after.get(known), before.get(known), "{known}");
            }
        }
        let known = |host: &&Host| state.hosts.contains_key(host) || wanted.contains_key(*host);
        assert!(hosts.iter().all(known), "{hosts:?}");
        assert!(after.keys().all(|host| known(&host)), "{after:?}");
    }
}

/// Neither another Secret, nor another namespace, nor another state is proven by the seal.
fn assert_seal_is_for_this_alone(state: &State, secret: &Secret) {
    assert!(prove(state, secret));
    let metadata = &secret.metadata;
    assert!(!KEYS.prove(&namespace(), "another", metadata, state));
    let other = Namespace::parse("other").unwrap();
    assert!(!KEYS.prove(&other, NAMESPACE_UID, metadata, state));
    let copied = ObjectMeta {
        uid: Some("another".to_owned()),
        ..metadata.clone()
    };
    assert!(!KEYS.prove(&namespace(), NAMESPACE_UID, &copied, state));
    let mut edited = state.clone();
    edited.revision ^= 1;
    assert!(!prove(&edited, secret));
    for (host, entry) in state.hosts.iter() {
        let mut edited = state.clone();
        edited.hosts.remove(host);
        assert!(!prove(&edited, secret));
        if let Some(mut credential) = entry.credential {
            let second = SignedDuration::from_secs(1);
            let later = credential.lifetime.expires_at.checked_add(second);
            let later = later.unwrap_or(NOW);
            credential.lifetime.expires_at = later;
            let mut entry = entry.clone();
            entry.credential = Some(credential);
            edited.hosts.insert(host.clone(), entry);
            assert!(!prove(&edited, secret));
        }
    }
}

fn auth() -> String {
    BASE64_STANDARD.encode("AWS:minted")
}

fn desired() -> DesiredCredential {
    let expires_at = Some(NOW + SignedDuration::from_hours(12));
    let token = Token::decode(Some(&auth()), expires_at, None, NOW).unwrap();
    assert_eq!(token.auth().expose_secret(), auth());
    DesiredCredential {
        identity: Identity::Ambient.hash(),
        token: Some(Arc::new(token)),
    }
}

fn changes(mode: MergeMode, wanted: &BTreeMap<Host, DesiredCredential>) -> Changes<'_> {
    static NONE: BTreeSet<Host> = BTreeSet::new();
    Changes {
        mode,
        wanted,
        forgotten: &NONE,
        revoked: &NONE,
        remembered: None,
        limit: MAX_HOSTS,
    }
}

fn written_data(written: &ecr_injector::pull_secret::PullSecret, existing: &Existing) -> Vec<u8> {
    let mut object = written.to_object("ours", &namespace(), Some(existing));
    object.data.as_mut().unwrap().remove(DATA_KEY).unwrap().0
}

/// The credentials of a docker config of the form that we write, in which no key is there twice.
fn auths(data: &[u8]) -> Option<BTreeMap<Host, String>> {
    let config = Json::parse_unambiguous(data)?;
    let entries = config.get("auths")?.fields()?.iter();
    let entries = entries.map(|(host, entry)| {
        let auth = entry.get("auth")?.text()?;
        Some((Host::parse(host)?, auth.to_owned()))
    });
    entries.collect()
}
