//! The model, and what the tests of this room share.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::SignedDuration;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::{
    merge::{Changes, MergeMode, Merged, merge},
    seal::{
        StateKeys,
        key::{KEY_BYTES, StateKey},
    },
    state::{Credential, Demand, HostState},
    *,
};
use crate::{identity::Identity, token::Lifetime};

pub(super) const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);
pub(super) const NAMESPACE_UID: &str = "namespace-uid";

pub(super) fn team() -> Namespace {
    Namespace::parse("team").expect("a namespace")
}

pub(super) fn host(number: usize) -> Host {
    Host::parse(&format!("{number:012}.dkr.ecr.eu-west-1.amazonaws.com")).expect("a host")
}

pub(super) fn public() -> Host {
    Host::parse("public.ecr.aws").expect("a host")
}

pub(super) fn hours(hours: i64) -> SignedDuration {
    SignedDuration::from_hours(hours)
}

pub(super) fn days(days: i64) -> SignedDuration {
    hours(24 * days)
}

pub(super) fn other() -> IdentityHash {
    IdentityHash::parse("0123456789abcdef").expect("a hash")
}

pub(super) fn keys() -> StateKeys {
    StateKeys::new(StateKey::new([7; KEY_BYTES]), None)
}

pub(super) fn token(password: &str, lives: i64, now: Timestamp) -> Arc<Token> {
    let text = STANDARD.encode(format!("AWS:{password}"));
    let token = Token::decode(Some(&text), Some(now + hours(lives)), None, now);
    Arc::new(token.expect("a token"))
}

/// Returns a credential that the ambient identity mints.
pub(super) fn desired(token: Option<Arc<Token>>) -> DesiredCredential {
    DesiredCredential {
        identity: Identity::Ambient.hash(),
        token,
    }
}

/// A token of so many hours.
pub(super) fn fresh(password: &str, lives: i64) -> DesiredCredential {
    desired(Some(token(password, lives, NOW)))
}

/// Returns a host's state: its demand since a time, and a credential of the ambient identity from a
/// time on for so many hours.
pub(super) fn entry(since: Timestamp, credential: Option<(Timestamp, i64)>) -> HostState {
    HostState {
        demand: Demand::new(since),
        credential: credential.map(|(minted_at, lives)| Credential {
            identity: Identity::Ambient.hash(),
            lifetime: Lifetime {
                minted_at,
                expires_at: minted_at + hours(lives),
            },
        }),
    }
}

pub(super) fn state(hosts: impl IntoIterator<Item = (Host, HostState)>) -> State {
    State {
        hosts: hosts.into_iter().collect(),
        ..State::default()
    }
}

/// A merge that an admission makes, unless it is told otherwise.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) mode: MergeMode,
    pub(super) wanted: BTreeMap<Host, DesiredCredential>,
    pub(super) forgotten: std::collections::BTreeSet<Host>,
    pub(super) revoked: std::collections::BTreeSet<Host>,
    pub(super) remembered: Option<State>,
    pub(super) limit: usize,
}

impl Case {
    pub(super) fn add(wanted: impl IntoIterator<Item = (Host, DesiredCredential)>) -> Self {
        Self {
            mode: MergeMode::Add,
            wanted: wanted.into_iter().collect(),
            forgotten: [].into(),
            revoked: [].into(),
            remembered: None,
            limit: 64,
        }
    }

    pub(super) fn reconcile(wanted: impl IntoIterator<Item = (Host, DesiredCredential)>) -> Self {
        Self {
            mode: MergeMode::Reconcile,
            ..Self::add(wanted)
        }
    }

    pub(super) fn changes(&self) -> Changes<'_> {
        Changes {
            mode: self.mode,
            wanted: &self.wanted,
            forgotten: &self.forgotten,
            revoked: &self.revoked,
            remembered: self.remembered.as_ref(),
            limit: self.limit,
        }
    }

    pub(super) fn merge(&self, before: Option<&Secret>, now: Timestamp) -> Merged {
        let existing = before.map(existing);
        merge(existing.as_ref(), self.changes(), now)
    }

    /// Merges, and stores what comes of it; `None` if nothing would change.
    pub(super) fn apply(&self, before: Option<&Secret>, now: Timestamp) -> Option<Secret> {
        let merged = self.merge(before, now).secret?;
        Some(stored(merged, before, now))
    }

    pub(super) fn create(&self) -> Secret {
        self.apply(None, NOW).expect("a write")
    }
}

/// Stores a write as the API server would.
pub(super) fn stored(secret: PullSecret, before: Option<&Secret>, now: Timestamp) -> Secret {
    let existing = before.map(existing);
    let revision = u64::try_from(now.as_millisecond()).expect("after 1970");
    let last = before.and_then(|before| state_of(&before.metadata));
    let revision = last.map_or(revision, |last| revision.max(last.revision + 1));
    let subject = Subject {
        namespace: "team",
        namespace_uid: NAMESPACE_UID,
        secret_uid: existing.as_ref().map_or("", |existing| &existing.uid),
    };
    let keys = keys();
    let sealed = secret.sealed(revision, subject, |text| keys.seal(text.as_bytes()));
    let mut object =
        sealed
            .expect("a key")
            .to_object("ecr-pull-secret", &team(), existing.as_ref());
    let version = before.map_or(41, |before| {
        let version = before.metadata.resource_version.as_deref();
        version
            .expect("a version")
            .parse::<u64>()
            .expect("a number")
    });
    object.metadata.uid = Some("secret-uid".into());
    object.metadata.resource_version = Some((version + 1).to_string());
    object.metadata.creation_timestamp = Some(match before {
        Some(before) => before.metadata.creation_timestamp.clone().expect("a time"),
        None => Time(now),
    });
    object
}

pub(super) fn is_proven(secret: &Secret, state: &State) -> bool {
    keys().prove(&team(), NAMESPACE_UID, &secret.metadata, state)
}

pub(super) fn existing(secret: &Secret) -> Existing {
    Existing::read(secret, |state| is_proven(secret, state)).expect("ours")
}

pub(super) fn proven_state(secret: &Secret) -> State {
    existing(secret).state.expect("a proven state")
}

/// Sets the state on a Secret, as anybody could who may write it.
pub(super) fn annotate(secret: &mut Secret, state: &State) {
    let annotations = secret.metadata.annotations.as_mut();
    let annotations = annotations.expect("annotations");
    annotations.insert(STATE_ANNOTATION.into(), state.to_text());
}

pub(super) fn set_data(secret: &mut Secret, config: &str) {
    let bytes = ByteString(config.as_bytes().to_vec());
    let data = secret.data.as_mut().expect("data");
    data.insert(DATA_KEY.to_owned(), bytes);
}

pub(super) fn auth_of(secret: &Secret, host: &Host) -> Option<String> {
    let bytes = &secret.data.as_ref().expect("data")[DATA_KEY].0;
    let data: Value = serde_json::from_slice(bytes).expect("JSON");
    let auth = data["auths"][host.as_str()]["auth"].as_str()?.to_owned();
    Some(String::from_utf8(STANDARD.decode(auth).expect("base64")).expect("text"))
}

#[test]
fn new_secret_has_bare_hosts_our_label_and_a_readable_expiry() {
    let secret = Case::add([(host(1), fresh("pw", 12)), (host(2), desired(None))]).create();
    assert_eq!(auth_of(&secret, &host(1)).as_deref(), Some("AWS:pw"));
    assert_eq!(auth_of(&secret, &host(2)), None);
    assert_eq!(secret.type_.as_deref(), Some(TYPE));
    assert!(is_managed(&secret.metadata));
    let annotations = secret.metadata.annotations.as_ref().expect("annotations");
    assert_eq!(annotations[EXPIRES_AT_ANNOTATION], "2027-01-15T20:00:00Z");
    let state: Value = serde_json::from_str(&annotations[STATE_ANNOTATION]).expect("JSON");
    assert_eq!(
        state["hosts"],
        json!({
            host(1).as_str(): {
                "wantedSince": "2027-01-15T08:00:00Z", "wantedAt": "2027-01-15T08:00:00Z",
                "identity": "31d18c0defdc3e0e",
                "mintedAt": "2027-01-15T08:00:00Z", "expiresAt": "2027-01-15T20:00:00Z",
            },
            host(2).as_str(): {
                "wantedSince": "2027-01-15T08:00:00Z", "wantedAt": "2027-01-15T08:00:00Z",
            },
        })
    );
    assert!(!annotations[STATE_ANNOTATION].contains("pw"));
}

#[test]
fn secret_without_a_credential_has_no_expiry() {
    let secret = Case::add([(host(1), desired(None))]).create();
    let annotations = secret.metadata.annotations.as_ref().expect("annotations");
    assert_eq!(annotations.get(EXPIRES_AT_ANNOTATION), None);
}

#[test]
fn creation_requires_absence_and_update_the_same_object() {
    let case = Case::add([(host(1), desired(None))]);
    let merged = case.merge(None, NOW).secret.expect("a write");
    let object = merged.to_object("s", &team(), None);
    let metadata = object.metadata;
    let names = (metadata.name.as_deref(), metadata.namespace.as_deref());
    assert_eq!(names, (Some("s"), Some("team")));
    assert_eq!(metadata.resource_version.as_deref(), Some("1"));
    assert_eq!(metadata.uid, None);
    let before = existing(&case.create());
    let object = merged.to_object("s", &team(), Some(&before));
    assert_eq!(object.metadata.resource_version.as_deref(), Some("42"));
    assert_eq!(object.metadata.uid.as_deref(), Some("secret-uid"));
}

#[test]
fn secret_is_not_written_without_a_seal() {
    let case = Case::add([(host(1), desired(None))]);
    let subject = Subject {
        namespace: "team",
        namespace_uid: NAMESPACE_UID,
        secret_uid: "",
    };
    let merged = || case.merge(None, NOW).secret.expect("a write");
    assert!(merged().sealed(1, subject, |_| None).is_none());
    let sealed = merged().sealed(7, subject, |text| keys().seal(text.as_bytes()));
    assert_eq!(sealed.expect("sealed").state().revision, 7);
}

#[test]
fn data_of_another_client_prove_nothing() {
    let mut secret = Case::add([(host(1), fresh("pw", 12))]).create();
    set_data(&mut secret, r#"{"auths":{"evil.example":{"auth":"eA=="}}}"#);
    let tampered = existing(&secret);
    assert_eq!(tampered.state, None);
    assert_eq!(tampered.claimed, [host(1)]);
    let renewed = Case::add([(host(1), fresh("new", 12))]);
    let secret = renewed.apply(Some(&secret), NOW).expect("a write");
    assert_eq!(auth_of(&secret, &host(1)).as_deref(), Some("AWS:new"));
    let evil = Host::parse("evil.example").expect("a host");
    assert_eq!(auth_of(&secret, &evil), None);
}

#[test]
fn consistent_forgery_without_our_seal_proves_nothing() {
    let mut secret = Case::add([(host(1), fresh("pw", 12))]).create();
    set_data(&mut secret, r#"{"auths":{}}"#);
    let forged = State {
        digest: DataDigest::new(br#"{"auths":{}}"#),
        revision: u64::MAX,
        seal: proven_state(&Case::add([(host(1), fresh("pw", 12))]).create()).seal,
        ..state([(host(2), entry(NOW, None))])
    };
    annotate(&mut secret, &forged);
    let read = existing(&secret);
    assert_eq!((read.state, read.claims), (None, Some(forged)));
    assert_eq!(read.claimed, [host(2)]);
}

#[test]
fn secret_without_a_readable_state_claims_the_hosts_of_its_data() {
    let mut secret = Case::add([(host(1), fresh("pw", 12))]).create();
    let annotations = secret.metadata.annotations.as_mut().expect("some");
    annotations.insert(STATE_ANNOTATION.into(), r#"{"version":1}"#.into());
    let read = existing(&secret);
    assert_eq!((read.state, read.claims), (None, None));
    assert_eq!(read.claimed, [host(1)]);
}

#[test]
fn key_beside_ours_is_ignored() {
    let mut secret = Case::add([(host(1), fresh("pw", 12))]).create();
    let data = secret.data.as_mut().expect("data");
    data.insert("extra".to_owned(), ByteString(vec![1]));
    assert!(existing(&secret).state.is_some());
}

#[test]
fn unlabeled_immutable_or_other_typed_secret_is_foreign() {
    let ours = Case::add([(host(1), desired(None))]).create();
    let why = |secret: &Secret| Existing::read(secret, |_| true).map(|_| ());
    let mut unlabelled = ours.clone();
    unlabelled.metadata.labels = None;
    assert_eq!(why(&unlabelled), Err(Foreign::Label));
    let mut opaque = ours.clone();
    opaque.type_ = Some("Opaque".into());
    assert_eq!(why(&opaque), Err(Foreign::Type));
    let mut immutable = ours;
    immutable.immutable = Some(true);
    assert_eq!(why(&immutable), Err(Foreign::Immutable));
}

#[test]
fn handed_over_secret_with_other_entries_is_foreign() {
    let read = |config: &str| {
        let mut secret = Case::add([(host(1), fresh("pw", 12))]).create();
        let annotations = secret.metadata.annotations.as_mut().expect("some");
        annotations.remove(STATE_ANNOTATION);
        set_data(&mut secret, config);
        Existing::read(&secret, |_| unreachable!("there is no state")).map(|_| ())
    };
    let ecr = host(1);
    // The credentials are base64 of AWS:pw, and of me:pw.
    for foreign in [
        r#"{"auths":{"ghcr.io":{"auth":"bWU6cHc="}}}"#.to_owned(),
        format!(r#"{{"auths":{{"https://{ecr}":{{"auth":"QVdTOnB3"}}}}}}"#),
        format!(r#"{{"auths":{{"{ecr}/team":{{"auth":"QVdTOnB3"}}}}}}"#),
        format!(r#"{{"auths":{{"{ecr}":{{"username":"AWS","password":"pw"}}}}}}"#),
        format!(
            r#"{{"auths":{{"{ecr}":{{"username":"AWS","password":"pw","auth":"QVdTOnB3"}}}}}}"#
        ),
        format!(r#"{{"auths":{{"{ecr}":{{"auth":"QVdTOnB3"}},"ghcr.io":{{"auth":"bWU6cHc="}}}}}}"#),
        format!(r#"{{"auths":{{"{ecr}":{{"auth":"QVdTOnB3"}}}},"credHelpers":{{"ghcr.io":"x"}}}}"#),
        r#"{"auths":{"ghcr.io":null}}"#.to_owned(),
        // Of a key that is there twice, some readers take both.
        r#"{"auths":{"ghcr.io":{"auth":"bWU6cHc="}},"auths":{}}"#.to_owned(),
        format!(r#"{{"auths":{{"{ecr}":{{"auth":"bWU6cHc=","auth":"QVdTOnB3"}}}}}}"#),
        r#"{"auths":["ghcr.io"]}"#.to_owned(),
        r#"{"ghcr.io":{"auth":"bWU6cHc="}}"#.to_owned(),
    ] {
        assert_eq!(read(&foreign), Err(Foreign::Entries), "{foreign}");
    }
    for empty_or_ours in [
        format!(r#"{{"auths":{{"{ecr}":{{"auth":"QVdTOnB3"}}}}}}"#),
        r#"{"auths":{}}"#.to_owned(),
        r#"{"auths":null}"#.to_owned(),
        "{}".to_owned(),
        "null".to_owned(),
        "\"text\"".to_owned(),
    ] {
        assert_eq!(read(&empty_or_ours), Ok(()), "{empty_or_ours}");
    }
}

#[test]
fn others_entries_in_a_secret_of_ours_leave_it_ours() {
    let mut secret = Case::add([(host(1), fresh("pw", 12))]).create();
    set_data(&mut secret, r#"{"auths":{"ghcr.io":{"auth":"bWU6cHc="}}}"#);
    let read = Existing::read(&secret, |_| true).map(|read| read.state);
    assert_eq!(read, Ok(None));
}

#[test]
fn claimed_hosts_are_bounded() {
    let names = (0..20_000).map(|number| host(number).to_string());
    let auths: Vec<String> = names.map(|it| format!(r#""{it}":{{}}"#)).collect();
    let config = format!(r#"{{"auths":{{{}}}}}"#, auths.join(","));
    assert_eq!(hosts_in(config.as_bytes()).len(), MAX_HOSTS);
}

#[test]
fn newest_proven_state_is_the_one_remembered() {
    let numbered = |revision| State {
        revision,
        ..state([(host(1), entry(NOW, None))])
    };
    for (claims, is_proven, before, expected) in [
        (Some(3), true, Some(5), Some(5)),
        (Some(5), true, Some(3), Some(5)),
        (Some(9), false, Some(5), Some(5)),
        (Some(9), false, None, None),
        (Some(3), true, None, Some(3)),
        (None, false, Some(5), Some(5)),
    ] {
        let observed = Observed::Unverified {
            claims: claims.map(numbered),
            is_proven,
            before: before.map(|before| Box::new(numbered(before))),
            since: Unverified::Changed,
        };
        let remembered = observed.remembered().map(|state| state.revision);
        assert_eq!(remembered, expected, "{observed:?}");
        assert_eq!(observed.revision(), expected, "{observed:?}");
    }
    let managed = Observed::Managed(numbered(4));
    let same = (managed.remembered(), managed.proven(), managed.claims());
    assert_eq!(
        same,
        (Some(&numbered(4)), Some(&numbered(4)), Some(&numbered(4)))
    );
    let deleted = Observed::Deleted(Some(numbered(4)));
    assert_eq!(deleted.remembered(), Some(&numbered(4)));
    assert_eq!((deleted.proven(), deleted.claims()), (None, None));
    let foreign = Observed::Foreign(Foreign::Label);
    assert_eq!(foreign.remembered(), None);
}
