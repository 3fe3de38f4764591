//! The pull secret: what the one Secret that we own in a namespace holds, and how two versions of it are merged.
//!
//! Its data is a docker config, one `auth` per host. Beside it, in an annotation that a metadata watch can see, stands
//! our state: for each host whose identity's credential it is and from when to when it is good. A host in the state
//! without a lifetime is an *intent*: a Pod wants it and nobody could mint yet.

pub mod ensure;
pub mod gauges;
pub mod guard;
pub mod seal;
pub mod state;
pub mod state_key;
pub mod store;
pub mod write;

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::{
    ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize, de::IgnoredAny};
use thiserror::Error;

use self::state::{DataDigest, HostState, MAX_HOSTS, State};
use crate::{
    identity::IdentityHash,
    namespace::Namespace,
    registry::{Host, Registry},
    token::{Freshness, Token},
};

/// The type of every pull secret.
pub const TYPE: &str = "kubernetes.io/dockerconfigjson";
/// The one key of its data.
pub const DATA_KEY: &str = ".dockerconfigjson";
/// The label that makes a Secret ours.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY_LABEL`].
pub const MANAGED_BY: &str = "ecr-injector";
/// The annotation with our state, a versioned JSON object.
pub const STATE_ANNOTATION: &str = "ecr-injector.dev/state";
/// The annotation with the soonest expiry of all hosts, RFC 3339, for people.
pub const EXPIRES_AT_ANNOTATION: &str = "ecr-injector.dev/expires-at";
/// The field manager of every write.
pub const FIELD_MANAGER: &str = "ecr-injector";
/// Why a Secret of our name is not ours to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Foreign {
    /// It lacks [`MANAGED_BY_LABEL`].
    #[error("it lacks the label {MANAGED_BY_LABEL}={MANAGED_BY}")]
    Label,
    /// Its type is another, and a type can't be changed.
    #[error("its type is not {TYPE}")]
    Type,
    /// It was made immutable.
    #[error("it is immutable")]
    Immutable,
}

/// What is known of a namespace's pull secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Knowledge {
    /// Ours, read or written whole, and intact.
    Ours(State),
    /// Read whole or seen by its label: not ours.
    Foreign(Foreign),
    /// Ours by its label; not looked at yet, or not intact when looked at.
    Unverified {
        /// What its annotation says.
        claims: Option<State>,
        /// What we knew before somebody wrote it.
        before: Option<Box<State>>,
        /// How it came to be unverified.
        since: Unverified,
    },
    /// Deleted by somebody; what it had.
    Gone(Option<State>),
}

impl Knowledge {
    /// The last state that we knew to be true.
    #[must_use]
    pub fn before(&self) -> Option<&State> {
        match self {
            Self::Ours(state) => Some(state),
            Self::Unverified { before, .. } => before.as_deref(),
            Self::Gone(state) => state.as_ref(),
            Self::Foreign(_) => None,
        }
    }

    /// What it would be made again with: what we knew to be true, or else what it said.
    #[must_use]
    pub fn remembered(&self) -> Option<&State> {
        self.before().or(self.claims())
    }

    /// What a Secret that is there says it has, true or not.
    #[must_use]
    pub fn claims(&self) -> Option<&State> {
        match self {
            Self::Ours(state) => Some(state),
            Self::Unverified { claims, .. } => claims.as_ref(),
            Self::Foreign(_) | Self::Gone(_) => None,
        }
    }
}

/// How a pull secret came to be unverified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unverified {
    /// It was there when we began to watch, or was written while another replica led.
    Listed,
    /// Somebody wrote it while we led.
    Changed,
    /// We looked, and its data are not what its state says.
    Tampered,
}

/// What somebody did to a pull secret that is put right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// It is gone.
    Deleted,
    /// Its data or its state are not what we had written.
    Changed,
}

impl Damage {
    /// As a metric's label and a log's field.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deleted => "deleted",
            Self::Changed => "changed",
        }
    }
}

/// A pull secret as it was read: what a write must be merged with.
#[derive(Debug)]
pub struct Existing {
    /// With `resource_version`, the precondition of the write.
    pub uid: String,
    /// The version that was read.
    pub resource_version: String,
    /// The state, if it can be read and its digest is that of the data; otherwise somebody else wrote.
    pub state: Option<State>,
    /// The hosts that the state names, also where the digest doesn't hold, or if it can't be read those that the data name:
    /// what a repair has to restore.
    pub claimed: Vec<Host>,
    auths: BTreeMap<Host, SecretString>,
}

#[derive(Deserialize)]
struct ReadConfig {
    auths: BTreeMap<String, ReadAuth>,
}

#[derive(Deserialize)]
struct ReadAuth {
    auth: SecretString,
}

impl Existing {
    /// One that is known by its state alone. Its credentials are not: whoever merges with it has one for each host.
    #[must_use]
    pub fn known(uid: &str, version: u64, state: &State) -> Self {
        Self {
            uid: uid.to_owned(),
            resource_version: version.to_string(),
            state: Some(state.clone()),
            claimed: vec![],
            auths: BTreeMap::new(),
        }
    }

    /// The same with nothing in it trusted: somebody else wrote it.
    #[must_use]
    pub fn distrusted(self) -> Self {
        Self {
            state: None,
            auths: BTreeMap::new(),
            ..self
        }
    }

    /// Reads a Secret; one that is not ours is an error that says why.
    pub fn read(secret: &Secret) -> Result<Self, Foreign> {
        if !is_managed(&secret.metadata) {
            return Err(Foreign::Label);
        }
        if secret.type_.as_deref() != Some(TYPE) {
            return Err(Foreign::Type);
        }
        if secret.immutable == Some(true) {
            return Err(Foreign::Immutable);
        }
        let data = secret.data.as_ref();
        let bytes = data
            .and_then(|data| data.get(DATA_KEY))
            .map_or(&[][..], |bytes| &bytes.0);
        let claims = state_of(&secret.metadata);
        let claimed = match &claims {
            Some(state) => state.hosts.keys().cloned().collect(),
            None => hosts_in(bytes),
        };
        // Keys beside ours belong to others: nothing that pulls images reads them, and an apply can't remove them.
        let intact = claims
            .as_ref()
            .is_some_and(|state| state.digest == DataDigest::of(bytes));
        Ok(Self {
            uid: secret.metadata.uid.clone().unwrap_or_default(),
            resource_version: secret.metadata.resource_version.clone().unwrap_or_default(),
            auths: if intact {
                read_auths(bytes)
            } else {
                BTreeMap::new()
            },
            state: claims.filter(|_| intact),
            claimed,
        })
    }
}

fn read_auths(bytes: &[u8]) -> BTreeMap<Host, SecretString> {
    let config: ReadConfig = serde_json::from_slice(bytes).unwrap_or(ReadConfig {
        auths: BTreeMap::new(),
    });
    config
        .auths
        .into_iter()
        .filter_map(|(host, auth)| Some((Host::parse(&host)?, auth.auth)))
        .collect()
}

/// The hosts that a docker config names, whatever it has for them; of more than [`MAX_HOSTS`] the first.
fn hosts_in(bytes: &[u8]) -> Vec<Host> {
    #[allow(
        clippy::zero_sized_map_values,
        reason = "a map is what it is read from"
    )]
    #[derive(Deserialize)]
    struct Named {
        auths: BTreeMap<String, IgnoredAny>,
    }
    let config = serde_json::from_slice::<Named>(bytes).ok();
    let named = config.into_iter().flat_map(|config| config.auths);
    let hosts = named.filter_map(|(host, _)| Host::parse(&host));
    hosts.take(MAX_HOSTS).collect()
}

/// Whether the metadata has our label.
#[must_use]
pub fn is_managed(metadata: &ObjectMeta) -> bool {
    let labels = metadata.labels.as_ref();
    labels
        .and_then(|labels| labels.get(MANAGED_BY_LABEL))
        .is_some_and(|value| value == MANAGED_BY)
}

/// The state in the metadata's annotation, if it can be read.
#[must_use]
pub fn state_of(metadata: &ObjectMeta) -> Option<State> {
    State::parse(metadata.annotations.as_ref()?.get(STATE_ANNOTATION)?).ok()
}

/// Whether a host's images also pull without a credential, so that an expired one does harm.
#[must_use]
pub fn is_public(host: &Host) -> bool {
    Registry::parse_public(host.as_str()).is_some()
}

/// What a namespace wants for one host.
#[derive(Debug, Clone)]
pub struct Want {
    /// Whose credential.
    pub identity: IdentityHash,
    /// The token, or `None` where it couldn't be minted: an intent.
    pub token: Option<Arc<Token>>,
}

/// The pull secret as it is to be written.
#[derive(Debug)]
pub struct PullSecret {
    state: State,
    data: SecretString,
}

/// More hosts than a pull secret may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the pull secret would have {hosts} hosts where limits.registriesPerSecret allows {limit}")]
pub struct TooManyHosts {
    /// How many there would be.
    pub hosts: usize,
    /// How many may be.
    pub limit: usize,
}

/// What a merge may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Terms {
    /// An admission's: what is wanted is added, for a namespace that is opted in. A credential that is still good is not
    /// replaced by another identity's: that change is the leader's, because replicas may read different configurations
    /// for a while.
    Add,
    /// The leader's: what is wanted is all that there is to be, by the identities that the configuration says now.
    Whole {
        /// See [`State::opted_out_at`].
        opted_out_at: Option<Timestamp>,
        /// See [`State::retired`].
        retired: bool,
    },
}

impl PullSecret {
    /// Merges what is there with what is wanted. `None` if nothing would change.
    ///
    /// What is there stays, unless it is expired or was not written by us, or unless the terms say otherwise; a shorter
    /// life never replaces a longer one of the same identity.
    pub fn merge(
        existing: Option<&Existing>,
        wanted: &BTreeMap<Host, Want>,
        terms: Terms,
        limit: usize,
        now: Timestamp,
    ) -> Result<Option<Self>, TooManyHosts> {
        let mut state = State::default();
        let mut auths: BTreeMap<Host, SecretString> = BTreeMap::new();
        if let Terms::Whole {
            opted_out_at,
            retired,
        } = terms
        {
            state.opted_out_at = opted_out_at;
            state.retired = retired;
        }
        let had = existing.and_then(|existing| Some((existing, existing.state.as_ref()?)));
        for (existing, host, entry) in had
            .iter()
            .flat_map(|(existing, had)| {
                had.hosts
                    .iter()
                    .map(move |(host, entry)| (existing, host, entry))
            })
            .filter(|(_, host, _)| terms == Terms::Add || wanted.contains_key(*host))
        {
            let auth = existing
                .auths
                .get(host)
                .filter(|_| entry.lifetime.is_some());
            let lifetime = entry.lifetime.filter(|_| auth.is_some());
            // Where an entry matches, the kubelet doesn't pull anonymously any more.
            let harms = is_public(host)
                && lifetime.is_some_and(|life| life.freshness(now) == Freshness::Expired);
            let (auth, lifetime) = if harms {
                (None, None)
            } else {
                (auth, lifetime)
            };
            let entry = HostState {
                identity: entry.identity,
                lifetime,
            };
            state.hosts.insert(host.clone(), entry);
            auths.extend(auth.map(|auth| (host.clone(), auth.clone())));
        }
        for (host, want) in wanted {
            let had = state.hosts.get(host);
            let is_same = had.is_some_and(|entry| entry.identity == want.identity);
            let good = had
                .and_then(|entry| entry.lifetime)
                .filter(|life| life.freshness(now) != Freshness::Expired);
            let replaces = match (&want.token, good) {
                (Some(_), None) => true,
                // An intent, unless the host is there already, with a credential or without.
                (None, _) => had.is_none(),
                (Some(token), Some(life)) if is_same => {
                    token.lifetime().expires_at > life.expires_at
                }
                (Some(_), Some(_)) => terms != Terms::Add,
            };
            if !replaces {
                continue;
            }
            let entry = HostState {
                identity: want.identity,
                lifetime: want.token.as_ref().map(|token| token.lifetime()),
            };
            state.hosts.insert(host.clone(), entry);
            let auth = want.token.as_ref().map(|token| token.auth());
            auths.extend(auth.map(|auth| (host.clone(), auth)));
        }
        // A limit that is lower than it was takes nothing away that is there; the leader's plan has seen to it already.
        let limit = limit.max(match terms {
            Terms::Add => had.map_or(0, |(_, had)| had.hosts.len()),
            Terms::Whole { .. } => wanted.len().min(MAX_HOSTS),
        });
        if state.hosts.len() > limit {
            forget_expired(&mut state, &mut auths, wanted, limit, now);
        }
        if state.hosts.len() > limit {
            return Err(TooManyHosts {
                hosts: state.hosts.len(),
                limit,
            });
        }
        let data = encode(&auths);
        state.hosts.shrink();
        state.digest = DataDigest::of(data.expose_secret().as_bytes());
        let unchanged = existing.is_some_and(|existing| existing.state.as_ref() == Some(&state));
        Ok((!unchanged).then_some(Self { state, data }))
    }

    /// What is written beside the data.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The object to apply. Without `existing` its precondition is that no such Secret is there; with it, that it is
    /// still the same object in the same version.
    #[must_use]
    pub fn to_object(
        &self,
        name: &str,
        namespace: &Namespace,
        existing: Option<&Existing>,
    ) -> Secret {
        let mut annotations = BTreeMap::from([(STATE_ANNOTATION.to_owned(), self.state.to_text())]);
        if let Some(expires_at) = self.state.expires_at() {
            annotations.insert(EXPIRES_AT_ANNOTATION.to_owned(), to_the_second(expires_at));
        }
        Secret {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_string()),
                labels: Some(BTreeMap::from([(
                    MANAGED_BY_LABEL.to_owned(),
                    MANAGED_BY.to_owned(),
                )])),
                annotations: Some(annotations),
                // "1" is no version that any object has: applying creates, or is a conflict if the object exists.
                resource_version: Some(
                    existing.map_or("1".to_owned(), |existing| existing.resource_version.clone()),
                ),
                uid: existing.map(|existing| existing.uid.clone()),
                ..ObjectMeta::default()
            },
            type_: Some(TYPE.to_owned()),
            data: Some(BTreeMap::from([(
                DATA_KEY.to_owned(),
                ByteString(self.data.expose_secret().as_bytes().to_vec()),
            )])),
            ..Secret::default()
        }
    }
}

/// A time for people: RFC 3339, to the second.
#[must_use]
pub fn to_the_second(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Makes room: the expired hosts that nobody wants now go first, the longest expired before the others.
fn forget_expired(
    state: &mut State,
    auths: &mut BTreeMap<Host, SecretString>,
    wanted: &BTreeMap<Host, Want>,
    limit: usize,
    now: Timestamp,
) {
    let mut expired: Vec<(Option<Timestamp>, Host)> = state
        .hosts
        .iter()
        .filter(|(host, _)| {
            !wanted.contains_key(*host) && state.freshness(host, now) == Freshness::Expired
        })
        .map(|(host, entry)| (entry.lifetime.map(|life| life.expires_at), host.clone()))
        .collect();
    expired.sort();
    let excess = state.hosts.len().saturating_sub(limit);
    for (_, host) in expired.into_iter().take(excess) {
        state.hosts.remove(&host);
        auths.remove(&host);
    }
}

/// The docker config: a bare host per auth. A `https://` key would serve the kubelet and break other readers.
fn encode(auths: &BTreeMap<Host, SecretString>) -> SecretString {
    #[derive(Serialize)]
    struct Auth<'a> {
        auth: &'a str,
    }
    #[derive(Serialize)]
    struct Config<'a> {
        auths: BTreeMap<&'a str, Auth<'a>>,
    }
    let auths = auths.iter().map(|(host, auth)| {
        (
            host.as_str(),
            Auth {
                auth: auth.expose_secret(),
            },
        )
    });
    // A map of strings always serializes.
    serde_json::to_string(&Config {
        auths: auths.collect(),
    })
    .unwrap_or_default()
    .into()
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use jiff::SignedDuration;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{
        state::{MAX_STATE_BYTES, StateError},
        *,
    };
    use crate::identity::Identity;

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn host(n: usize) -> Host {
        Host::parse(&format!("{n:012}.dkr.ecr.eu-west-1.amazonaws.com")).expect("a host")
    }

    fn other() -> IdentityHash {
        IdentityHash::parse("0123456789abcdef").expect("a hash")
    }

    fn token(password: &str, hours: i64, now: Timestamp) -> Arc<Token> {
        let expires_at = now + SignedDuration::from_hours(hours);
        let text = STANDARD.encode(format!("AWS:{password}"));
        Arc::new(Token::decode(Some(&text), Some(expires_at), None, now).expect("a token"))
    }

    fn want(token: Option<Arc<Token>>) -> Want {
        Want {
            identity: Identity::Ambient.hash(),
            token,
        }
    }

    fn written(secret: &PullSecret, existing: Option<&Existing>) -> Secret {
        let namespace = Namespace::parse("team").expect("a namespace");
        let mut object = secret.to_object("ecr-pull-secret", &namespace, existing);
        object.metadata.uid = Some("uid-1".into());
        object.metadata.resource_version = Some("42".into());
        object
    }

    fn create(wanted: &BTreeMap<Host, Want>) -> Secret {
        let secret = PullSecret::merge(None, wanted, Terms::Add, 64, NOW)
            .expect("fits")
            .expect("something to write");
        written(&secret, None)
    }

    fn auth_of(secret: &Secret, host: &Host) -> Option<String> {
        let data: Value =
            serde_json::from_slice(&secret.data.as_ref().expect("data")[DATA_KEY].0).expect("json");
        let auth = data["auths"][host.as_str()]["auth"].as_str()?.to_owned();
        Some(String::from_utf8(STANDARD.decode(auth).expect("base64")).expect("text"))
    }

    fn existing(secret: &Secret) -> Existing {
        Existing::read(secret).expect("ours")
    }

    #[test]
    fn a_new_secret_has_a_bare_host_per_auth_our_label_and_a_readable_expiry() {
        let secret = create(&BTreeMap::from([(
            host(1),
            want(Some(token("pw", 12, NOW))),
        )]));
        assert_eq!(auth_of(&secret, &host(1)).as_deref(), Some("AWS:pw"));
        assert_eq!(secret.type_.as_deref(), Some(TYPE));
        assert!(is_managed(&secret.metadata));
        let annotations = secret.metadata.annotations.as_ref().expect("annotations");
        assert_eq!(annotations[EXPIRES_AT_ANNOTATION], "2027-01-15T20:00:00Z");
        let state: Value = serde_json::from_str(&annotations[STATE_ANNOTATION]).expect("json");
        assert_eq!(state["version"], 1);
        assert_eq!(
            state["hosts"][host(1).as_str()],
            json!({"identity": "31d18c0defdc3e0e", "mintedAt": "2027-01-15T08:00:00Z", "expiresAt": "2027-01-15T20:00:00Z"})
        );
        assert!(!annotations[STATE_ANNOTATION].contains("pw"));
    }

    #[test]
    fn the_precondition_of_a_creation_is_absence_and_of_an_update_the_same_object() {
        let namespace = Namespace::parse("team").expect("a namespace");
        let wanted = BTreeMap::from([(host(1), want(None))]);
        let secret = PullSecret::merge(None, &wanted, Terms::Add, 64, NOW)
            .expect("fits")
            .expect("a write");
        let object = secret.to_object("s", &namespace, None);
        assert_eq!(
            (
                object.metadata.resource_version.as_deref(),
                object.metadata.uid
            ),
            (Some("1"), None)
        );
        let before = existing(&create(&wanted));
        let object = secret.to_object("s", &namespace, Some(&before));
        assert_eq!(object.metadata.resource_version.as_deref(), Some("42"));
        assert_eq!(object.metadata.uid.as_deref(), Some("uid-1"));
    }

    #[test]
    fn a_merge_keeps_every_other_registry() {
        let first = existing(&create(&BTreeMap::from([(
            host(1),
            want(Some(token("one", 12, NOW))),
        )])));
        let wanted = BTreeMap::from([(host(2), want(Some(token("two", 12, NOW))))]);
        let merged = PullSecret::merge(Some(&first), &wanted, Terms::Add, 64, NOW)
            .expect("fits")
            .expect("a write");
        let secret = written(&merged, Some(&first));
        assert_eq!(auth_of(&secret, &host(1)).as_deref(), Some("AWS:one"));
        assert_eq!(auth_of(&secret, &host(2)).as_deref(), Some("AWS:two"));
    }

    #[test]
    fn a_shorter_life_never_replaces_a_longer_one() {
        let first = existing(&create(&BTreeMap::from([(
            host(1),
            want(Some(token("long", 12, NOW))),
        )])));
        let wanted = BTreeMap::from([(host(1), want(Some(token("short", 6, NOW))))]);
        assert!(
            PullSecret::merge(Some(&first), &wanted, Terms::Add, 64, NOW)
                .expect("fits")
                .is_none()
        );
        let later = NOW + SignedDuration::from_hours(6);
        let wanted = BTreeMap::from([(host(1), want(Some(token("longer", 12, later))))]);
        let merged = PullSecret::merge(Some(&first), &wanted, Terms::Add, 64, later)
            .expect("fits")
            .expect("a write");
        assert_eq!(
            auth_of(&written(&merged, None), &host(1)).as_deref(),
            Some("AWS:longer")
        );
    }

    #[test]
    fn a_good_credential_of_another_identity_is_the_leaders_to_change() {
        let mut theirs = want(Some(token("theirs", 6, NOW)));
        theirs.identity = other();
        let first = existing(&create(&BTreeMap::from([(host(1), theirs)])));
        let wanted = BTreeMap::from([(host(1), want(Some(token("ours", 12, NOW))))]);
        assert!(
            PullSecret::merge(Some(&first), &wanted, Terms::Add, 64, NOW)
                .expect("fits")
                .is_none()
        );
        let later = NOW + SignedDuration::from_hours(6);
        let wanted = BTreeMap::from([(host(1), want(Some(token("ours", 12, later))))]);
        assert!(
            PullSecret::merge(Some(&first), &wanted, Terms::Add, 64, later)
                .expect("fits")
                .is_some(),
            "expired: replaced"
        );
    }

    #[test]
    fn an_intent_is_written_once_and_never_takes_a_credential_away() {
        let wanted = BTreeMap::from([(host(1), want(None))]);
        let secret = create(&wanted);
        assert_eq!(auth_of(&secret, &host(1)), None);
        assert_eq!(
            secret
                .metadata
                .annotations
                .as_ref()
                .expect("some")
                .get(EXPIRES_AT_ANNOTATION),
            None
        );
        let intent = existing(&secret);
        assert!(
            intent
                .state
                .as_ref()
                .is_some_and(|s| s.hosts.contains_key(&host(1)))
        );
        assert!(
            PullSecret::merge(Some(&intent), &wanted, Terms::Add, 64, NOW)
                .expect("fits")
                .is_none()
        );
        let full = existing(&create(&BTreeMap::from([(
            host(1),
            want(Some(token("pw", 12, NOW))),
        )])));
        assert!(
            PullSecret::merge(Some(&full), &wanted, Terms::Add, 64, NOW)
                .expect("fits")
                .is_none()
        );
        let completed = BTreeMap::from([(host(1), want(Some(token("pw", 12, NOW))))]);
        assert!(
            PullSecret::merge(Some(&intent), &completed, Terms::Add, 64, NOW)
                .expect("fits")
                .is_some()
        );
    }

    #[test]
    fn what_somebody_else_wrote_into_the_data_is_not_kept() {
        let mut secret = create(&BTreeMap::from([(
            host(1),
            want(Some(token("pw", 12, NOW))),
        )]));
        let forged = br#"{"auths":{"evil.example":{"auth":"eA=="}}}"#;
        secret
            .data
            .as_mut()
            .expect("data")
            .insert(DATA_KEY.to_owned(), ByteString(forged.to_vec()));
        let tampered = existing(&secret);
        assert_eq!(tampered.state, None);
        assert_eq!(tampered.claimed, [host(1)]);
        let wanted = BTreeMap::from([(host(1), want(Some(token("new", 12, NOW))))]);
        let merged = PullSecret::merge(Some(&tampered), &wanted, Terms::Add, 64, NOW)
            .expect("fits")
            .expect("a write");
        assert_eq!(
            merged.data.expose_secret(),
            encode(&BTreeMap::from([(host(1), token("new", 12, NOW).auth())])).expose_secret()
        );
    }

    #[test]
    fn a_key_beside_ours_is_none_of_our_business() {
        let mut secret = create(&BTreeMap::from([(
            host(1),
            want(Some(token("pw", 12, NOW))),
        )]));
        secret
            .data
            .as_mut()
            .expect("data")
            .insert("extra".to_owned(), ByteString(vec![1]));
        assert!(existing(&secret).state.is_some());
    }

    #[test]
    fn a_secret_without_our_label_of_another_type_or_immutable_is_foreign() {
        let ours = create(&BTreeMap::from([(host(1), want(None))]));
        let mut unlabelled = ours.clone();
        unlabelled.metadata.labels = None;
        assert_eq!(Existing::read(&unlabelled).map(|_| ()), Err(Foreign::Label));
        let mut opaque = ours.clone();
        opaque.type_ = Some("Opaque".into());
        assert_eq!(Existing::read(&opaque).map(|_| ()), Err(Foreign::Type));
        let mut immutable = ours;
        immutable.immutable = Some(true);
        assert_eq!(
            Existing::read(&immutable).map(|_| ()),
            Err(Foreign::Immutable)
        );
    }

    #[test]
    fn past_the_limit_expired_hosts_make_room_and_good_ones_never_do() {
        let soon = token("a", 1, NOW);
        let first = BTreeMap::from([
            (host(1), want(Some(soon))),
            (host(2), want(Some(token("b", 12, NOW)))),
        ]);
        let before = existing(&create(&first));
        let wanted = BTreeMap::from([(host(3), want(None))]);
        assert_eq!(
            PullSecret::merge(Some(&before), &wanted, Terms::Add, 2, NOW).map(|_| ()),
            Err(TooManyHosts { hosts: 3, limit: 2 })
        );
        let later = NOW + SignedDuration::from_hours(2);
        let merged = PullSecret::merge(Some(&before), &wanted, Terms::Add, 2, later)
            .expect("fits")
            .expect("a write");
        assert_eq!(
            merged.state().hosts.keys().collect::<Vec<_>>(),
            [&host(2), &host(3)]
        );
    }

    #[test]
    fn what_the_leader_s_plan_has_is_written_though_the_limit_is_lower() {
        let wanted = BTreeMap::from([
            (host(1), want(Some(token("a", 12, NOW)))),
            (host(2), want(Some(token("b", 12, NOW)))),
        ]);
        let before = existing(&create(&wanted));
        let later = NOW + SignedDuration::from_hours(1);
        let renewed = BTreeMap::from([
            (host(1), want(Some(token("c", 12, later)))),
            (host(2), want(None)),
        ]);
        let whole = Terms::Whole {
            opted_out_at: None,
            retired: false,
        };
        for terms in [whole, Terms::Add] {
            let merged = PullSecret::merge(Some(&before), &renewed, terms, 1, later);
            let merged = merged.expect("no limit").expect("a write");
            assert_eq!(merged.state().hosts.len(), 2, "{terms:?}");
        }
        // For one more there is no room.
        let more = BTreeMap::from([(host(3), want(None))]);
        let merged = PullSecret::merge(Some(&before), &more, Terms::Add, 1, later);
        assert_eq!(merged.map(|_| ()), Err(TooManyHosts { hosts: 3, limit: 2 }));
    }

    #[test]
    fn claims_of_more_hosts_than_we_ever_write_are_cut_or_not_believed() {
        let name = |number: usize| format!("{number:012}.dkr.ecr.eu-west-1.amazonaws.com");
        let names: Vec<String> = (0..20_000).map(name).collect();
        let auths: Vec<String> = names.iter().map(|it| format!(r#""{it}":{{}}"#)).collect();
        let config = format!(r#"{{"auths":{{{}}}}}"#, auths.join(","));
        assert_eq!(hosts_in(config.as_bytes()).len(), MAX_HOSTS);
        for (count, is_read) in [(MAX_HOSTS, true), (MAX_HOSTS + 1, false)] {
            let hosts: Vec<Host> = names[..count]
                .iter()
                .filter_map(|it| Host::parse(it))
                .collect();
            let state = State::of_intents(&hosts).expect("hosts");
            assert_eq!(State::parse(&state.to_text()).is_ok(), is_read, "{count}");
        }
    }

    #[test]
    fn a_state_that_we_did_not_write_is_refused() {
        for text in [
            "",
            "{}",
            r#"{"version":2,"hosts":{},"digest":""}"#,
            r#"{"version":1,"hosts":{"NOT A HOST":{"identity":"31d18c0defdc3e0e"}},"digest":""}"#,
            r#"{"version":1,"hosts":{"a.example":{"identity":"?"}},"digest":""}"#,
            r#"{"version":1,"hosts":{"a.example":{"identity":"31d18c0defdc3e0e","mintedAt":"soon"}},"digest":""}"#,
        ] {
            assert!(State::parse(text).is_err(), "{text}");
        }
        assert!(matches!(
            State::parse(&" ".repeat(MAX_STATE_BYTES + 1)),
            Err(StateError::TooLarge)
        ));
    }

    proptest! {
        #[test]
        fn any_order_of_merges_loses_no_host_and_keeps_the_longest_life(
            steps in prop::collection::vec((0usize..6, prop::option::of(1i64..12)), 1..12)
        ) {
            let mut secret: Option<Secret> = None;
            let mut expected: BTreeMap<usize, Option<i64>> = BTreeMap::new();
            for (n, hours) in steps {
                let wanted = BTreeMap::from([(host(n), want(hours.map(|h| token(&format!("{n}-{h}"), h, NOW))))]);
                let before = secret.as_ref().map(existing);
                if let Some(merged) = PullSecret::merge(before.as_ref(), &wanted, Terms::Add, 64, NOW).expect("fits") {
                    secret = Some(written(&merged, before.as_ref()));
                }
                let best = expected.entry(n).or_default();
                *best = (*best).max(hours);
            }
            let secret = secret.expect("written");
            let state = existing(&secret).state.expect("intact");
            prop_assert_eq!(state.hosts.len(), expected.len());
            prop_assert_eq!(State::parse(&state.to_text()).expect("reads back"), state);
            for (n, hours) in expected {
                prop_assert_eq!(auth_of(&secret, &host(n)), hours.map(|h| format!("AWS:{n}-{h}")));
            }
        }
    }
}
