//! The API server of the model: Secrets with the preconditions of server-side apply, and the log that watches are fed from.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap, HashSet, hash_map::DefaultHasher},
    hash::Hasher as _,
    sync::{Arc, Mutex, MutexGuard},
};

use ecr_injector::{
    cluster::{
        namespace::Namespace,
        ownership::{MANAGED_BY, MANAGED_BY_LABEL},
    },
    pull_secret::{
        DATA_KEY, STATE_ANNOTATION, TYPE,
        seal::{StateKeys, key::StateKey},
        state::{DataDigest, State},
        state_of,
        writer::CallError,
    },
    registry::Host,
};
use jiff::Timestamp;
use k8s_openapi::{
    ByteString,
    api::core::v1::Secret,
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time},
};
use serde_json::Value;

/// The UID of a namespace.
pub fn uid_of(namespace: &Namespace) -> String {
    format!("uid-of-{namespace}")
}

/// Hashes the parts of a key.
pub fn digest(parts: impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

/// A call of one process to the API server, or to AWS.
#[derive(Debug, Clone)]
pub enum Request {
    Get,
    Apply(Box<Secret>),
    Delete { uid: String, version: String },
}

/// A change that a watch brings.
#[derive(Clone)]
pub struct News {
    pub is_deletion: bool,
    pub metadata: ObjectMeta,
    /// A digest that differs between two contents.
    pub content: u64,
}

/// The stored objects, with what the tests note of them.
pub struct Server {
    pub version: u64,
    pub secrets: BTreeMap<Namespace, Secret>,
    pub log: Vec<News>,
    /// Whether the namespace of the scenario has the opt-in label.
    pub is_opted_in: bool,
    /// Whether a quota refuses new Secrets.
    pub has_quota: bool,
    /// How many writes of ours came through.
    pub writes: u64,
    /// Digests of what our processes wrote, and to which object: the test's own proof, which
    /// believes no seal.
    ours: HashSet<u64>,
}

/// A shared server.
pub type SharedServer = Arc<Mutex<Server>>;

/// Locks it.
pub fn lock(server: &SharedServer) -> MutexGuard<'_, Server> {
    server.lock().unwrap()
}

/// The keys that all processes of the model share.
pub fn keys() -> StateKeys {
    StateKeys::new(StateKey::new([7; 32]), None)
}

/// The true content of a stored Secret.
#[derive(Debug, Clone, Default)]
pub struct Truth {
    /// The state, if one of our processes wrote all of it.
    pub state: Option<State>,
    /// The passwords in the data.
    pub passwords: BTreeMap<String, String>,
}

impl Server {
    pub fn new() -> Self {
        Self {
            version: 100,
            secrets: BTreeMap::new(),
            log: Vec::new(),
            is_opted_in: true,
            has_quota: false,
            writes: 0,
            ours: HashSet::new(),
        }
    }

    /// Answers an apply.
    pub fn apply(
        &mut self,
        namespace: &Namespace,
        asked: &Secret,
        now: Timestamp,
    ) -> Result<Secret, CallError> {
        if self.has_quota {
            return Err(CallError::Refused("exceeded quota: secrets=1".to_owned()));
        }
        let stored = self.secrets.get(namespace);
        let fits = match stored {
            None => {
                asked.metadata.resource_version.as_deref() == Some("1")
                    && asked.metadata.uid.is_none()
            }
            Some(stored) => {
                asked.metadata.resource_version == stored.metadata.resource_version
                    && asked.metadata.uid == stored.metadata.uid
            }
        };
        if !fits {
            return Err(CallError::Conflict);
        }
        self.writes += 1;
        let written = self.put(namespace, now, |secret| {
            secret
                .metadata
                .annotations
                .clone_from(&asked.metadata.annotations);
            secret.metadata.labels.clone_from(&asked.metadata.labels);
            secret.type_.clone_from(&asked.type_);
            secret.data.clone_from(&asked.data);
        });
        self.ours.insert(written_content(&written));
        Ok(written)
    }

    /// Stores a Secret as changed, and sends the change to the watches.
    pub fn put(
        &mut self,
        namespace: &Namespace,
        now: Timestamp,
        change: impl FnOnce(&mut Secret),
    ) -> Secret {
        self.version += 1;
        let version = self.version;
        let secret = self.secrets.entry(namespace.clone());
        let secret = secret.or_insert_with(|| Secret {
            metadata: ObjectMeta {
                name: Some("ecr-pull-secret".to_owned()),
                namespace: Some(namespace.to_string()),
                uid: Some(format!("secret-{version}")),
                creation_timestamp: Some(Time(now)),
                ..ObjectMeta::default()
            },
            ..Secret::default()
        });
        change(secret);
        secret.metadata.resource_version = Some(version.to_string());
        let secret = secret.clone();
        self.log.push(News {
            is_deletion: false,
            metadata: secret.metadata.clone(),
            content: content(&secret),
        });
        secret
    }

    /// Deletes a Secret, and sends the deletion to the watches.
    pub fn delete(&mut self, namespace: &Namespace) {
        let Some(mut secret) = self.secrets.remove(namespace) else {
            return;
        };
        self.version += 1;
        secret.metadata.resource_version = Some(self.version.to_string());
        self.log.push(News {
            is_deletion: true,
            content: content(&secret),
            metadata: secret.metadata,
        });
    }

    /// Somebody writes a state that names these hosts, with dates of a good credential and a digest that fits, and no seal.
    pub fn forge(&mut self, namespace: &Namespace, hosts: &[&str], state: &State, now: Timestamp) {
        let auths: serde_json::Map<String, Value> = hosts
            .iter()
            .map(|host| {
                (
                    (*host).to_owned(),
                    serde_json::json!({"auth": "QVdTOmZvcmdlZA=="}),
                )
            })
            .collect();
        let data = serde_json::json!({ "auths": auths })
            .to_string()
            .into_bytes();
        let state = State {
            digest: DataDigest::new(&data),
            ..state.clone()
        };
        self.put(namespace, now, |secret| {
            secret.type_ = Some(TYPE.to_owned());
            let label = (MANAGED_BY_LABEL.to_owned(), MANAGED_BY.to_owned());
            secret.metadata.labels = Some([label].into());
            let annotation = (STATE_ANNOTATION.to_owned(), state.to_text());
            secret.metadata.annotations = Some([annotation].into());
            secret.data = Some([(DATA_KEY.to_owned(), ByteString(data))].into());
        });
    }

    /// Returns the true content of a namespace's Secret.
    pub fn truth(&self, namespace: &Namespace) -> Arc<Truth> {
        let stored = self.secrets.get(namespace);
        stored.map_or_else(Arc::default, |secret| {
            truth(secret, self.ours.contains(&written_content(secret)))
        })
    }

    /// A key of all that is stored, and of the news after `from`.
    pub fn key(&self, from: usize) -> u64 {
        let secrets: Vec<_> = self
            .secrets
            .values()
            .map(|secret| (secret.metadata.resource_version.clone(), content(secret)))
            .collect();
        let news: Vec<_> = self.log[from.min(self.log.len())..]
            .iter()
            .map(|news| (news.is_deletion, news.content))
            .collect();
        digest((
            secrets,
            news,
            self.version,
            self.is_opted_in,
            self.has_quota,
            self.writes,
        ))
    }
}

/// Reads what a Secret truly holds. Schedules differ in their order more than in what is written, so each content is read
/// once.
fn truth(secret: &Secret, is_ours: bool) -> Arc<Truth> {
    thread_local! {
        static KNOWN: RefCell<HashMap<u64, Arc<Truth>>> = RefCell::default();
    }
    let key = digest((content(secret), is_ours));
    let known = KNOWN.with_borrow(|known| known.get(&key).cloned());
    known.unwrap_or_else(|| {
        let truth = Arc::new(read(secret, is_ours));
        KNOWN.with_borrow_mut(|known| known.insert(key, truth.clone()));
        truth
    })
}

fn read(secret: &Secret, is_ours: bool) -> Truth {
    let data = secret.data.as_ref().and_then(|data| data.get(DATA_KEY));
    let bytes = data.map_or(&[][..], |bytes| &bytes.0);
    let config: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let auths = config["auths"].as_object().into_iter().flatten();
    let passwords = auths.map(|(host, auth)| {
        let password = auth["auth"].as_str().unwrap_or_default();
        (host.clone(), password.to_owned())
    });
    Truth {
        state: state_of(&secret.metadata).filter(|_| is_ours),
        passwords: passwords.collect(),
    }
}

impl Truth {
    /// Whether a host has a credential that is good at `now`.
    pub fn has_good(&self, host: &Host, now: Timestamp) -> bool {
        let state = self.state.as_ref();
        state.is_some_and(|state| {
            let entry = state.hosts.get(host);
            entry.is_some_and(|entry| entry.good(now).is_some())
                && self.passwords.contains_key(host.as_str())
        })
    }
}

/// Returns a digest that differs between two contents of a Secret, and between two versions.
pub fn content(secret: &Secret) -> u64 {
    digest((written_content(secret), &secret.metadata.resource_version))
}

/// Returns a digest that distinguishes what was written to one object from all else.
fn written_content(secret: &Secret) -> u64 {
    let annotations = secret.metadata.annotations.as_ref();
    let state = annotations.and_then(|it| it.get(STATE_ANNOTATION));
    let data = secret.data.as_ref().and_then(|data| data.get(DATA_KEY));
    digest((state, data.map(|data| &data.0), &secret.metadata.uid))
}
