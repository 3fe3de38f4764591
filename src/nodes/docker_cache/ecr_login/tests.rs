//! Tests of the other helper's cache, with files as that helper writes them.

use jiff::SignedDuration;

use super::*;

const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);
const R: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
/// `AWS:secret`
const AUTH: &str = "QVdTOnNlY3JldA==";

fn after(hours: i64) -> Timestamp {
    NOW + SignedDuration::from_hours(hours)
}

fn keys(host: &str) -> Keys {
    let registry = Registry::parse(host).or_else(|| Registry::parse_public(host));
    Keys::new("AKIAEXAMPLE", &registry.expect("a registry"))
}

fn file(key: &str, fields: &str) -> String {
    format!(
        r#"{{"Registries":{{"{key}":{{"AuthorizationToken":"{AUTH}","ProxyEndpoint":"https://{R}"{fields}}}}},"Version":"1.0"}}"#
    )
}

fn times(requested: &str, expires: &str) -> String {
    format!(r#","RequestedAt":"{requested}","ExpiresAt":"{expires}""#)
}

fn usable(text: &str, host: &str) -> Option<Use> {
    let cache = EcrLogin::parse(text.as_bytes())?;
    let found = cache.get(&keys(host), NOW)?;
    assert_eq!(found.password.expose_secret(), "secret");
    Some(found.usable)
}

#[test]
fn keys_are_those_of_the_other_helper() {
    let private = keys(R);
    assert_eq!(
        private.current,
        "eu-west-1-yq4V/10ZPsXstJV3R/43CP4/b7z2B7Y9rip7gTzA1RM=-123456789012"
    );
    assert_eq!(
        private.legacy,
        "eu-west-1-QUtJQUVYQU1QTEXUHYzZjwCyBOmACZjs+EJ+-123456789012"
    );
    let public = keys("public.ecr.aws");
    assert_eq!(
        public.current,
        "ecr-public-yq4V/10ZPsXstJV3R/43CP4/b7z2B7Y9rip7gTzA1RM="
    );
}

#[test]
fn entry_is_read_until_half_of_its_life() {
    let key = keys(R).current;
    let (now, hour) = (after(0).to_string(), after(1).to_string());
    assert_eq!(
        usable(&file(&key, &times(&now, &hour)), R),
        Some(Use::Fresh)
    );
    let earlier = after(-1).to_string();
    assert_eq!(
        usable(&file(&key, &times(&earlier, &hour)), R),
        Some(Use::Fallback)
    );
    assert_eq!(usable(&file(&key, &times(&earlier, &now)), R), None);
    // As Go writes times: with an offset and a fraction.
    let with_offset = times(
        "2027-01-15T10:00:00.123456789+02:00",
        "2027-01-15T20:00:00Z",
    );
    assert_eq!(usable(&file(&key, &with_offset), R), Some(Use::Fresh));
}

#[test]
fn old_key_is_read_and_never_written() {
    let keys = keys(R);
    let (now, hour) = (after(0).to_string(), after(1).to_string());
    let old = file(&keys.legacy, &times(&now, &hour));
    assert_eq!(usable(&old, R), Some(Use::Fresh));

    let mut cache = EcrLogin::parse(old.as_bytes()).expect("a cache");
    let token = Token::decode(Some(AUTH), Some(after(2)), None, NOW).expect("a token");
    assert!(cache.put(&keys, R, &token));
    let text = cache.to_json();
    let read: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let entry = &read["Registries"][&keys.current];
    assert_eq!(entry["AuthorizationToken"], AUTH);
    assert_eq!(entry["RequestedAt"], NOW.to_string());
    assert_eq!(entry["ExpiresAt"], after(2).to_string());
    assert_eq!(entry["ProxyEndpoint"], format!("https://{R}"));
    assert_eq!(entry["Service"], "ecr");
    assert_eq!(entry.as_object().map(serde_json::Map::len), Some(5));
    assert_eq!(
        read["Registries"].as_object().map(serde_json::Map::len),
        Some(2)
    );
}

#[test]
fn other_entries_and_fields_stay_as_they_are() {
    let text = r#"{"New":[1.50],"Registries":{"a":{"Odd": 1e3},"b":null},"Version":"1.0"}"#;
    let mut cache = EcrLogin::parse(text.as_bytes()).expect("a cache");
    let token = Token::decode(Some(AUTH), Some(after(2)), None, NOW).expect("a token");
    assert!(cache.put(&keys(R), R, &token));
    let written = cache.to_json();
    for part in ["[1.50]", r#"{"Odd": 1e3}"#, r#""b": null"#, AUTH] {
        assert!(written.contains(part), "{part}: {}", *written);
    }
    assert!(cache.erase(&AUTH.to_owned().into()));
    assert!(!cache.erase(&AUTH.to_owned().into()));
    assert!(cache.to_json().contains("Odd") && !cache.to_json().contains(AUTH));
}

#[test]
fn other_formats_are_neither_read_nor_replaced() {
    for text in [
        "",
        "{",
        "[]",
        "{}",
        r#"{"Registries":{},"Version":"2.0"}"#,
        r#"{"Registries":{},"Version":1}"#,
        r#"{"Registries":[],"Version":"1.0"}"#,
    ] {
        assert!(EcrLogin::parse(text.as_bytes()).is_none(), "{text}");
    }
    let empty = EcrLogin::parse(br#"{"Registries":null,"Version":"1.0"}"#);
    assert!(empty.expect("a cache").registries.is_empty());
}

#[test]
fn entry_that_is_not_whole_is_no_token() {
    let key = keys(R).current;
    let (now, hour) = (after(0).to_string(), after(1).to_string());
    assert_eq!(
        usable(&file(&key, &format!(r#","RequestedAt":"{now}""#)), R),
        None
    );
    let other_service = times(&now, &hour) + r#","Service":"ecr-public""#;
    assert_eq!(usable(&file(&key, &other_service), R), None);
    let no_token = file(&key, &times(&now, &hour)).replace(AUTH, "%");
    assert_eq!(usable(&no_token, R), None);
}

#[test]
fn other_forms_of_a_host_are_read_and_not_written() {
    let (now, hour) = (after(0).to_string(), after(1).to_string());
    let text = file(&keys(R).current, &times(&now, &hour));
    for host in [
        R.replace("ecr.", "ecr-fips."),
        "123456789012.dkr-ecr.eu-west-1.on.aws".to_owned(),
    ] {
        assert_eq!(usable(&text, &host), Some(Use::Fresh));
        let token = Token::decode(Some(AUTH), Some(after(2)), None, NOW).expect("a token");
        let mut cache = EcrLogin::default();
        assert!(!cache.put(&keys(&host), &host, &token));
        assert!(cache.registries.is_empty());
    }
}

#[test]
fn only_usable_entries_of_registries_are_listed() {
    let (now, hour) = (after(0).to_string(), after(1).to_string());
    let text = file("any", &times(&now, &hour));
    let cache = EcrLogin::parse(text.as_bytes()).expect("a cache");
    assert_eq!(cache.hosts(NOW).collect::<Vec<_>>(), [R]);
    assert_eq!(cache.hosts(after(1)).count(), 0);
    let other = text.replace(R, "evil.example");
    let cache = EcrLogin::parse(other.as_bytes()).expect("a cache");
    assert_eq!(cache.hosts(NOW).count(), 0);
}
