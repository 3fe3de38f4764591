//! The cache of `amazon-ecr-credential-helper` as data, so that both helpers find the tokens of
//! each other.
//!
//! That helper deletes a file that it can't read. So every entry that is not replaced stays as it
//! is, no field is added, and a file of another format is neither read nor written.

use std::collections::BTreeMap;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::{Use, usable};
use crate::{
    registry::{Endpoint, Registry, Service},
    token::{Lifetime, Token},
};

/// The only version of the format.
const VERSION: &str = "1.0";
/// The MD5 of nothing: old versions append it to the access key id instead of hashing that.
const EMPTY_MD5: [u8; 16] = [
    0xd4, 0x1d, 0x8c, 0xd9, 0x8f, 0x00, 0xb2, 0x04, 0xe9, 0x80, 0x09, 0x98, 0xec, 0xf8, 0x42, 0x7e,
];

/// The keys of a registry's token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    /// The key with a hash of the access key id.
    current: String,
    /// The key of old versions, which holds the access key id. It is never written.
    legacy: String,
    service: Service,
    /// Whether tokens are written by this key: it doesn't have the form of the host.
    is_written: bool,
}

/// A token of the cache.
#[derive(Debug)]
pub struct Found {
    /// The password.
    pub password: SecretString,
    /// How the token may be used.
    pub usable: Use,
}

/// The file. It holds tokens, so it has no `Debug`.
#[derive(Default)]
pub struct EcrLogin {
    registries: BTreeMap<String, Box<RawValue>>,
    /// Fields that this version doesn't know.
    others: BTreeMap<String, Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    authorization_token: SecretString,
    requested_at: Timestamp,
    expires_at: Timestamp,
    #[serde(default)]
    proxy_endpoint: String,
    #[serde(default)]
    service: String,
}

impl Keys {
    /// Returns the keys of the token that an access key mints.
    #[must_use]
    pub fn new(access_key_id: &str, registry: &Registry) -> Self {
        let current = STANDARD.encode(Sha256::digest(access_key_id));
        let mut legacy = access_key_id.as_bytes().to_vec();
        legacy.extend(EMPTY_MD5);
        let legacy = STANDARD.encode(legacy);
        let key = |id: &str| match registry.account() {
            Some(account) => format!("{}-{id}-{account}", registry.region()),
            None => format!("ecr-public-{id}"),
        };
        let Endpoint {
            service,
            fips,
            dual_stack,
        } = registry.endpoint();
        Self {
            current: key(&current),
            legacy: key(&legacy),
            service,
            is_written: !fips && !dual_stack,
        }
    }
}

impl EcrLogin {
    /// Parses a file, or returns `None` if it has another format.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(bytes).ok()?;
        let version = fields.remove("Version")?;
        let version: String = serde_json::from_str(version.get()).ok()?;
        let registries = fields.remove("Registries");
        let registries = registries.map(|map| serde_json::from_str(map.get()));
        let registries: Option<BTreeMap<_, _>> = registries.transpose().ok()?.flatten();
        (version == VERSION).then(|| Self {
            registries: registries.unwrap_or_default(),
            others: fields,
        })
    }

    /// Returns the file.
    #[must_use]
    pub fn to_json(&self) -> Zeroizing<String> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct File<'a> {
            registries: &'a BTreeMap<String, Box<RawValue>>,
            version: &'a str,
            #[serde(flatten)]
            others: &'a BTreeMap<String, Box<RawValue>>,
        }
        let file = File {
            registries: &self.registries,
            version: VERSION,
            others: &self.others,
        };
        // Maps of texts always serialize.
        Zeroizing::new(serde_json::to_string_pretty(&file).unwrap_or_default())
    }

    /// Returns the token of a registry, if it can be used at `now`.
    #[must_use]
    pub fn get(&self, keys: &Keys, now: Timestamp) -> Option<Found> {
        let found = [&keys.current, &keys.legacy].map(|key| self.registries.get(key));
        let found = found.into_iter().flatten();
        let found = found.filter_map(|entry| serde_json::from_str::<Entry>(entry.get()).ok());
        let mut found = found.filter(|entry| entry.is_of(keys.service));
        found.find_map(|entry| entry.found(now))
    }

    /// Keeps a token, and returns whether it is kept here.
    pub fn put(&mut self, keys: &Keys, host: &str, token: &Token) -> bool {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Written<'a> {
            authorization_token: &'a str,
            requested_at: Timestamp,
            expires_at: Timestamp,
            proxy_endpoint: String,
            service: &'a str,
        }
        let (auth, lifetime) = (token.auth(), token.lifetime());
        let written = Written {
            authorization_token: auth.expose_secret(),
            requested_at: lifetime.minted_at,
            expires_at: lifetime.expires_at,
            proxy_endpoint: format!("https://{host}"),
            service: name(keys.service),
        };
        let entry = serde_json::value::to_raw_value(&written).ok();
        let entry = entry.filter(|_| keys.is_written);
        let is_kept = entry.is_some();
        self.registries
            .extend(entry.map(|entry| (keys.current.clone(), entry)));
        is_kept
    }

    /// Removes a token, and returns whether it was there.
    pub fn erase(&mut self, auth: &SecretString) -> bool {
        let before = self.registries.len();
        self.registries.retain(|_, entry| {
            let entry = serde_json::from_str::<Entry>(entry.get()).ok();
            entry.is_none_or(|entry| {
                entry.authorization_token.expose_secret() != auth.expose_secret()
            })
        });
        self.registries.len() < before
    }

    /// Returns the hosts whose tokens are usable at `now`.
    pub fn hosts(&self, now: Timestamp) -> impl Iterator<Item = String> {
        let entries = self.registries.values();
        let entries = entries.filter_map(|entry| serde_json::from_str::<Entry>(entry.get()).ok());
        entries.filter_map(move |entry| {
            let host = entry.proxy_endpoint.strip_prefix("https://")?;
            let registry = Registry::parse(host).or_else(|| Registry::parse_public(host))?;
            entry.found(now)?;
            Some(registry.host().to_string())
        })
    }
}

impl Entry {
    fn is_of(&self, service: Service) -> bool {
        // Old versions knew one service.
        let own = if self.service.is_empty() {
            name(Service::Private)
        } else {
            &self.service
        };
        own == name(service)
    }

    /// Returns the token if it can be used at `now`. Its end may be sooner than the file says.
    fn found(&self, now: Timestamp) -> Option<Found> {
        let claimed = Lifetime {
            minted_at: self.requested_at,
            expires_at: self.expires_at,
        };
        if usable(claimed, now) == Use::None {
            return None;
        }
        let auth = self.authorization_token.expose_secret();
        let token = Token::decode(Some(auth), Some(self.expires_at), None, now).ok()?;
        let lifetime = Lifetime {
            expires_at: token.lifetime().expires_at,
            ..claimed
        };
        match usable(lifetime, now) {
            Use::None => None,
            usable => Some(Found {
                password: token.password().clone(),
                usable,
            }),
        }
    }
}

fn name(service: Service) -> &'static str {
    match service {
        Service::Private => "ecr",
        Service::Public => "ecr-public",
    }
}

#[cfg(test)]
mod tests;
