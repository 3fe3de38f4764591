//! The input of the docker helper: servers and logins of its clients, docker's configuration, its own
//! cache, and the cache of the other helper. Whatever isn't ours in a file stays as it is.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ecr_injector::identity::Identity;
use ecr_injector::nodes::docker;
use ecr_injector::nodes::docker_cache::ecr_login::{EcrLogin, Keys};
use ecr_injector::nodes::docker_cache::{Cache, CacheKey, Entry, Use};
use ecr_injector::nodes::docker_config::DockerConfig;
use ecr_injector::registry::Registry;
use ecr_injector::token::{Token, TokenKey};
use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret as _;
use serde_json::Value;
use serde_json::value::RawValue;

use super::json::Json;
use super::{HOST, NOW, assert_is_one_line};

const HELPER: &str = "ecr-injector";

pub fn check(input: &[u8]) {
    check_own_cache(input);
    check_other_cache(input);
    if let Ok(text) = std::str::from_utf8(input) {
        check_server(text);
        check_login(text);
        check_configuration(text);
    }
}

fn check_server(text: &str) {
    let server = docker::server(text);
    let expected = text.replace("\r\n", "").replace('\n', "");
    assert_eq!(server.as_deref().unwrap_or_default(), expected.trim());
    for is_ours in [false, true] {
        let note = docker::stores_none(text, is_ours);
        assert_is_one_line(note.trim_end_matches('\n'));
        assert!(note.chars().count() <= 2_000, "{note}");
    }
    let shown = docker::shown(text);
    assert_is_one_line(&shown);
    assert!(!shown.contains('@'), "{shown}");
    assert_is_one_line(&docker::unknown_action(&shown).replace('\n', ""));
}

fn check_login(text: &str) {
    let json = Json::parse_unambiguous(text.as_bytes()).filter(|json| json.fields().is_some());
    let Some(json) = json else {
        return;
    };
    let field = |name: &str| {
        json.text_at(&[name])
            .map(str::trim)
            .filter(|text| !text.is_empty())
    };
    let (server, user) = (field("ServerURL"), field("Username"));
    match docker::login(text) {
        Ok(found) => assert_eq!((Some(&*found), true), (server, user.is_some())),
        Err(docker::NO_SERVER) => assert_eq!(server, None),
        Err(docker::NO_USER) => assert_eq!(user, None),
        Err(_) => {
            let is_other = |name: &str| json.get(name).is_some_and(|field| field.text().is_none());
            assert!(is_other("ServerURL") || is_other("Username"), "{text}");
        }
    }
}

fn check_configuration(text: &str) {
    let Ok(mut config) = DockerConfig::parse(text) else {
        return;
    };
    let parse = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    let before = parse(&config.to_json());
    // What is written is read again as the same.
    let again = DockerConfig::parse(&config.to_json()).ok().unwrap();
    assert_eq!(again.to_json(), config.to_json());

    let helper = before["credHelpers"][HOST].clone();
    config.set(HOST, HELPER);
    let mut with = parse(&config.to_json());
    assert_eq!(with["credHelpers"][HOST], HELPER);
    // Without the one entry, both are the same.
    let mut others = before.clone();
    for value in [&mut with, &mut others] {
        let fields = value.as_object_mut().unwrap();
        if let Some(helpers) = fields.get_mut("credHelpers").and_then(Value::as_object_mut) {
            helpers.shift_remove(HOST);
            if helpers.is_empty() {
                fields.shift_remove("credHelpers");
            }
        }
    }
    assert_eq!(with, others);
    config.unset(HOST, "another");
    assert_eq!(parse(&config.to_json())["credHelpers"][HOST], HELPER);
    config.unset(HOST, HELPER);
    assert_eq!(parse(&config.to_json()), others, "helper was {helper}");
}

fn registry() -> Registry {
    HOST.parse().unwrap()
}

fn token() -> Token {
    let auth = BASE64_STANDARD.encode("AWS:minted");
    let expires_at = Some(NOW + SignedDuration::from_hours(12));
    Token::decode(Some(&auth), expires_at, None, NOW).unwrap()
}

fn check_own_cache(input: &[u8]) {
    let mut cache = Cache::parse(input);
    let text = cache.to_json();
    assert_eq!(*Cache::parse(text.as_bytes()).to_json(), *text);
    for host in cache.hosts(NOW) {
        assert!(text.contains(&serde_json::to_string(host).unwrap()));
    }
    let key = || CacheKey::new("base", &TokenKey::new(Identity::Ambient, &registry()), HOST);
    cache.put(Entry::new(key(), &token()), NOW);
    let found = cache.get(&key()).expect("the entry");
    assert_eq!(found.usable(NOW), Use::Fresh);
    assert_eq!(found.password().unwrap().expose_secret(), "minted");
    // Nothing that is answered now is still answered when no token can be valid any longer.
    let later = NOW + SignedDuration::from_hours(13);
    let mut old = Cache::parse(input);
    let hosts: Vec<String> = old.hosts(NOW).map(str::to_owned).collect();
    for host in hosts {
        let mut erased = old.erase(&host);
        erased.retain(|entry| entry.usable(NOW) != Use::None);
        assert!(erased.iter().all(|entry| entry.usable(later) == Use::None));
        assert!(old.hosts(NOW).all(|other| other != host));
    }
    assert!(!cache.erase(HOST).is_empty());
    assert_eq!(cache.get(&key()).map(|_| ()), None);
}

type Raw = BTreeMap<String, Box<RawValue>>;

/// The entries of the other helper's file, and its further fields; each value as it is written.
fn raw(bytes: &[u8]) -> Option<(Raw, Raw)> {
    let mut fields: Raw = serde_json::from_slice(bytes).ok()?;
    let registries = fields.remove("Registries");
    let registries: Option<Raw> = match registries {
        Some(map) => serde_json::from_str(map.get()).ok()?,
        None => None,
    };
    fields.remove("Version");
    Some((registries.unwrap_or_default(), fields))
}

fn texts(raw: &Raw) -> Vec<(&str, &str)> {
    raw.iter()
        .map(|(key, value)| (key.as_str(), value.get()))
        .collect()
}

fn check_other_cache(input: &[u8]) {
    let Some(mut file) = EcrLogin::parse(input) else {
        return;
    };
    let (registries, others) = raw(input).expect("a file of that format");
    let written = file.to_json();
    let (kept, kept_others) = raw(written.as_bytes()).expect("a file of that format");
    assert_eq!(texts(&kept), texts(&registries));
    assert_eq!(texts(&kept_others), texts(&others));

    let keys = Keys::new("AKIDEXAMPLE", &registry());
    assert_found_is_in_the_file(&file, &keys, &registries);
    let hosts: Vec<_> = file.hosts(NOW).collect();
    for host in hosts {
        let is_known = Registry::parse(&host).or_else(|| Registry::parse_public(&host));
        assert!(is_known.is_some(), "{host}");
    }

    assert!(file.put(&keys, HOST, &token()));
    let found = file.get(&keys, NOW).expect("the token");
    assert_eq!(found.password.expose_secret(), "minted");
    let (with, _) = raw(file.to_json().as_bytes()).expect("a file of that format");
    let added: Vec<_> = with
        .iter()
        .filter(|(key, value)| {
            registries
                .get(*key)
                .is_none_or(|old| old.get() != value.get())
        })
        .collect();
    assert_eq!(added.len(), 1, "one entry is new or replaced");
    assert!(with.len() <= registries.len() + 1);
    assert!(file.erase(&token().auth()));
    assert!(
        file.get(&keys, NOW)
            .is_none_or(|found| found.password.expose_secret() != "minted")
    );
}

/// A token that is answered is in the file, and hasn't expired by what the file says.
fn assert_found_is_in_the_file(file: &EcrLogin, keys: &Keys, registries: &Raw) {
    let Some(found) = file.get(keys, NOW) else {
        return;
    };
    assert_ne!(found.usable, Use::None);
    let auth = BASE64_STANDARD.encode(format!("AWS:{}", found.password.expose_secret()));
    let is_it = |value: &RawValue| {
        let entry: Value = serde_json::from_str(value.get()).unwrap_or_default();
        // Serde takes a list for the fields in their order.
        let is_list = entry.is_array();
        let field = |at: usize, name: &str| {
            let value = if is_list { &entry[at] } else { &entry[name] };
            value.as_str()
        };
        let expires_at: Option<Timestamp> = field(2, "ExpiresAt").and_then(|at| at.parse().ok());
        field(0, "AuthorizationToken") == Some(&*auth) && expires_at.is_some_and(|at| at > NOW)
    };
    assert!(registries.values().any(|value| is_it(value)));
}
