//! Tests of the helper's own cache.

use super::*;
use crate::registry::Registry;

const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

fn after(minutes: i64) -> Timestamp {
    NOW + SignedDuration::from_mins(minutes)
}

fn key(fingerprint: &str, host: &str) -> CacheKey {
    let registry = Registry::parse(host).expect("a registry");
    CacheKey::new(
        fingerprint,
        &TokenKey::new(Identity::Ambient, &registry),
        host,
    )
}

fn entry(key: &CacheKey, minted: i64, expires: i64) -> Entry {
    Entry {
        key: key.text.clone(),
        host: key.host.clone(),
        // AWS:secret
        auth: "QVdTOnNlY3JldA==".to_owned().into(),
        minted_at: after(minted),
        expires_at: after(expires),
    }
}

const R: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

#[test]
fn token_is_fresh_until_half_of_its_life() {
    let entry = entry(&key("f", R), 0, 60);
    assert_eq!(entry.usable(after(0)), Use::Fresh);
    assert_eq!(entry.usable(after(29)), Use::Fresh);
    assert_eq!(entry.usable(after(30)), Use::Fallback);
    assert_eq!(entry.usable(after(59)), Use::Fallback);
    assert_eq!(entry.usable(after(60)), Use::None);
    assert_eq!(
        entry.usable(after(59) + SignedDuration::from_secs(1)),
        Use::None
    );
    // Clocks may differ by some minutes, and no token lasts longer than AWS's.
    assert_eq!(entry.usable(after(-5)), Use::Fresh);
    assert_eq!(entry.usable(after(-6)), Use::None);
    let longest = 12 * 60 + 5;
    for (life, expected) in [(longest, Use::Fresh), (longest + 1, Use::None)] {
        let entry = super::tests::entry(&key("f", R), -60, life - 60);
        assert_eq!(entry.usable(NOW), expected, "{life}");
    }
}

#[test]
fn token_is_found_by_its_whole_key_alone() {
    let mut cache = Cache::default();
    cache.put(entry(&key("f", R), 0, 60), NOW);
    let cache = Cache::parse(cache.to_json().as_bytes());
    let found = cache.get(&key("f", R)).expect("a token");
    let password = found.password().expect("a password");
    assert_eq!(password.expose_secret(), "secret");
    assert_eq!(found.auth().expose_secret(), "QVdTOnNlY3JldA==");
    assert!(cache.get(&key("g", R)).is_none());
    for other in [
        R.replace("eu-west-1", "us-east-1"),
        R.replace("12.dkr", "13.dkr"),
        R.replace("ecr.", "ecr-fips."),
    ] {
        assert!(cache.get(&key("f", &other)).is_none(), "{other}");
    }
    assert!(!format!("{cache:?}").contains("QVdT"));
}

#[test]
fn what_is_no_cache_is_an_empty_one() {
    for text in [
        "",
        "{",
        "[]",
        r#"{"version":2,"entries":[]}"#,
        r#"{"version":1,"entries":[{"key":"x"}]}"#,
    ] {
        assert_eq!(Cache::parse(text.as_bytes()).hosts(NOW).count(), 0);
    }
    let mut cache = Cache::default();
    cache.put(entry(&key("f", R), 0, 60), NOW);
    for (version, count) in [(1, 1), (2, 0)] {
        let version = format!(r#""version":{version}"#);
        let text = cache.to_json().replace(r#""version":1"#, &version);
        assert_eq!(
            Cache::parse(text.as_bytes()).hosts(NOW).count(),
            count,
            "{text}"
        );
    }
}

#[test]
fn newer_token_takes_the_place_of_its_own_key_alone() {
    let first = key("f", R);
    let other = CacheKey {
        text: first.text.clone(),
        host: R.replace("eu-west-1", "us-east-1"),
    };
    let mut cache = Cache::default();
    for (key, minted) in [(&first, 0), (&other, 0), (&first, 1)] {
        cache.put(entry(key, minted, 60), after(1));
    }
    let kept = cache
        .entries
        .iter()
        .map(|entry| (&entry.host, entry.minted_at));
    let expected = [(&other.host, after(0)), (&first.host, after(1))];
    assert_eq!(kept.collect::<Vec<_>>(), expected);
}

#[test]
fn writes_drop_what_is_over_and_bound_the_rest() {
    let mut cache = Cache::default();
    cache.put(entry(&key("old", R), -60, 0), after(-30));
    for at in 0..300 {
        cache.put(entry(&key(&at.to_string(), R), at - 300, at + 300), NOW);
    }
    assert_eq!(cache.entries.len(), MAX_ENTRIES);
    assert!(cache.get(&key("old", R)).is_none());
    assert!(cache.get(&key("43", R)).is_none());
    assert!(cache.get(&key("299", R)).is_some());
    cache.put(entry(&key("299", R), 0, 600), NOW);
    assert_eq!(cache.entries.len(), MAX_ENTRIES);
}

#[test]
fn erased_host_leaves_others() {
    let other = R.replace("eu-west-1", "us-east-1");
    let mut cache = Cache::default();
    for key in [key("f", R), key("g", R), key("f", &other)] {
        cache.put(entry(&key, 0, 60), NOW);
    }
    assert_eq!(cache.erase(R).len(), 2);
    assert_eq!(cache.hosts(NOW).collect::<Vec<_>>(), [other.as_str()]);
    assert_eq!(cache.hosts(after(60)).count(), 0);
}
