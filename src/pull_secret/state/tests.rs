//! The annotation's text, read and written.

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::{
    identity::Identity,
    pull_secret::tests::{NOW, days, entry, host, hours, state},
};

#[test]
fn wire_form_is_version_2() {
    let mut state = state([
        (host(1), entry(NOW, Some((NOW, 12)))),
        (host(2), entry(NOW - days(3), None)),
    ]);
    state.hosts.get_mut(&host(2)).expect("there").demand.last = NOW;
    state.digest = DataDigest::new(b"");
    state.revision = 1_800_000_000_123;
    state.seal = Seal::new([0xab; 32]);
    let expected = concat!(
        r#"{"version":2,"revision":1800000000123,"hosts":{"#,
        r#""000000000001.dkr.ecr.eu-west-1.amazonaws.com":{"#,
        r#""wantedSince":"2027-01-15T08:00:00Z","wantedAt":"2027-01-15T08:00:00Z","#,
        r#""identity":"31d18c0defdc3e0e","#,
        r#""mintedAt":"2027-01-15T08:00:00Z","expiresAt":"2027-01-15T20:00:00Z"},"#,
        r#""000000000002.dkr.ecr.eu-west-1.amazonaws.com":{"#,
        r#""wantedSince":"2027-01-12T08:00:00Z","wantedAt":"2027-01-15T08:00:00Z"}},"#,
        r#""digest":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","#,
        r#""seal":"abababababababababababababababababababababababababababababababab"}"#,
    );
    assert_eq!(state.to_text(), expected);
    assert_eq!(State::parse(expected).expect("reads back"), state);
}

#[test]
fn sealed_text_names_the_object_and_lacks_the_seal() {
    let mut state = state([(host(1), entry(NOW, None))]);
    let subject = Subject {
        namespace: "team",
        namespace_uid: "a",
        secret_uid: "b",
    };
    let text = state.sealed_text(subject);
    state.seal = Seal::new([1; 32]);
    assert_eq!(state.sealed_text(subject), text);
    assert!(text.starts_with("team\na\nb\n{\"version\":2,"), "{text}");
    assert!(!text.contains("seal"), "{text}");
}

#[test]
fn state_that_we_did_not_write_is_refused() {
    let good = || {
        json!({
            "version": 2,
            "revision": 1,
            "digest": "0".repeat(64),
            "seal": "0".repeat(64),
            "hosts": {"a.example": {
                "wantedSince": "2027-01-15T08:00:00Z", "wantedAt": "2027-01-15T08:00:00Z",
                "identity": "31d18c0defdc3e0e",
                "mintedAt": "2027-01-15T08:00:00Z", "expiresAt": "2027-01-15T20:00:00Z",
            }},
        })
    };
    assert!(State::parse(&good().to_string()).is_ok());
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut wire = good();
        change(&mut wire);
        State::parse(&wire.to_string()).expect_err(&wire.to_string())
    };
    let without = |field: &'static str| {
        refused(&move |wire| {
            let entry = wire["hosts"]["a.example"].as_object_mut();
            entry.expect("an entry").remove(field);
        })
    };
    let version = refused(&|wire| wire["version"] = json!(1));
    assert!(matches!(version, StateError::Version(1)));
    for half in ["identity", "mintedAt", "expiresAt"] {
        assert!(matches!(without(half), StateError::Entry), "{half}");
    }
    for missing in ["wantedSince", "wantedAt"] {
        assert!(matches!(without(missing), StateError::Json(_)), "{missing}");
    }
    for field in ["digest", "seal"] {
        for text in ["0".repeat(63), "0".repeat(65), "A".repeat(64), "x".into()] {
            let error = refused(&|wire| wire[field] = json!(text));
            assert!(matches!(error, StateError::Entry), "{field} {text}");
        }
    }
    let identity = refused(&|wire| wire["hosts"]["a.example"]["identity"] = json!("?"));
    assert!(matches!(identity, StateError::Entry));
    let date = refused(&|wire| wire["hosts"]["a.example"]["expiresAt"] = json!("soon"));
    assert!(matches!(date, StateError::Json(_)));
    let host = refused(&|wire| {
        let entry = wire["hosts"]["a.example"].take();
        wire["hosts"] = json!({ "NOT A HOST": entry });
    });
    assert!(matches!(host, StateError::Entry));
    for text in ["", "{}", "null", r#"{"version":2}"#] {
        assert!(State::parse(text).is_err(), "{text}");
    }
}

#[test]
fn annotation_of_more_bytes_than_fit_is_refused() {
    let text = state([(host(1), entry(NOW, None))]).to_text();
    let padded = |bytes: usize| text.clone() + &" ".repeat(bytes - text.len());
    assert!(State::parse(&padded(MAX_STATE_BYTES)).is_ok());
    let large = State::parse(&padded(MAX_STATE_BYTES + 1));
    assert!(matches!(large, Err(StateError::TooLarge)));
}

#[test]
fn state_before_the_first_seal_is_read() {
    let wishes = State::from_wanted_hosts(&[host(1)], NOW).expect("hosts");
    let text = wishes.text(String::new());
    assert_eq!(State::parse(&text).expect("read").seal, Seal::default());
}

#[test]
fn state_of_more_hosts_than_fit_is_refused() {
    for (count, is_read) in [(MAX_HOSTS, true), (MAX_HOSTS + 1, false)] {
        let hosts: Vec<Host> = (0..count).map(host).collect();
        let state = State::from_wanted_hosts(&hosts, NOW).expect("hosts");
        assert_eq!(State::parse(&state.to_text()).is_ok(), is_read, "{count}");
    }
}

#[test]
fn largest_state_that_we_write_is_read() {
    // To the nanosecond, and with names as long as any can be.
    let at = NOW + SignedDuration::from_nanos(123_456_789);
    let label = "a".repeat(62);
    let name = |number: usize| format!("{number:03}.{label}.{label}.{label}.{}", "a".repeat(60));
    let hosts = (0..MAX_HOSTS).map(|number| {
        let host = Host::parse(&name(number)).expect("a host");
        let mut entry = entry(at, Some((at, 12)));
        entry.demand = Demand {
            since: at,
            last: at,
        };
        (host, entry)
    });
    let state = State {
        revision: u64::MAX,
        ..state(hosts)
    };
    let text = state.to_text();
    assert!(text.len() <= MAX_STATE_BYTES, "{} bytes", text.len());
    assert_eq!(State::parse(&text).expect("reads back"), state);
}

#[test]
fn states_share_the_texts_of_their_hosts() {
    let own = host(1);
    let mut state = state([(host(1), entry(NOW, None))]);
    state.hosts.share(|_| own.clone());
    let shared = state.hosts.keys().next().expect("one").as_str();
    assert!(std::ptr::eq(shared, own.as_str()));
}

#[test]
fn shrunk_hosts_have_no_spare_memory() {
    let mut hosts = Hosts(Vec::with_capacity(8));
    hosts.insert(host(1), entry(NOW, None));
    hosts.shrink();
    assert_eq!(hosts.0.capacity(), 1);
}

#[test]
fn wanted_hosts_have_no_credentials() {
    let wishes = State::from_wanted_hosts(&[host(2), host(1)], NOW).expect("hosts");
    let expected = state([(host(1), entry(NOW, None)), (host(2), entry(NOW, None))]);
    assert_eq!(wishes, expected);
    assert_eq!(State::from_wanted_hosts(&[], NOW), None);
}

#[test]
fn demand_is_recent_for_a_day() {
    let demand = Demand::new(NOW + SignedDuration::from_millis(999));
    assert_eq!((demand.since, demand.last), (NOW, NOW));
    for (later, is_recent) in [(hours(0), true), (hours(23), true), (hours(24), false)] {
        assert_eq!(demand.is_recent(NOW + later), is_recent, "{later}");
    }
    // By a clock that is behind.
    assert!(demand.is_recent(NOW - days(2)));
}

#[test]
fn union_of_demands_is_the_widest() {
    let demand = |since: i64, last: i64| Demand {
        since: NOW + hours(since),
        last: NOW + hours(last),
    };
    for (one, other, expected) in [
        (demand(0, 5), demand(1, 3), demand(0, 5)),
        (demand(2, 3), demand(1, 7), demand(1, 7)),
    ] {
        assert_eq!(one.union(other), expected);
        assert_eq!(other.union(one), expected);
    }
}

#[test]
fn state_has_expired_once_the_last_credential_has() {
    let mixed = state([
        (host(1), entry(NOW, Some((NOW, 6)))),
        (host(2), entry(NOW, Some((NOW, 12)))),
        (host(3), entry(NOW, None)),
    ]);
    assert_eq!(mixed.expires_at(), Some(NOW + hours(6)));
    // Too little to rely on, and yet it pulls.
    let almost = hours(12) - SignedDuration::from_mins(4);
    for (later, has_expired) in [(hours(7), false), (almost, false), (hours(12), true)] {
        assert_eq!(mixed.has_expired(NOW + later), has_expired, "{later}");
    }
    // Dates that can't be true are none.
    let forged = state([(host(1), entry(NOW, Some((NOW, 1000))))]);
    assert!(forged.has_expired(NOW));
    assert!(State::default().has_expired(NOW));
    assert_eq!(State::default().expires_at(), None);
}

#[test]
fn creation_time_fits_within_ten_minutes_of_the_revision() {
    let written = |revision| State {
        revision,
        ..State::default()
    };
    let revision = u64::try_from(NOW.as_millisecond()).expect("after 1970");
    let minutes = SignedDuration::from_mins;
    for (later, fits) in [
        (0, true),
        (10, true),
        (-10, true),
        (11, false),
        (-11, false),
    ] {
        let created_at = NOW + minutes(later);
        assert_eq!(
            written(revision).was_created_at(created_at),
            fits,
            "{later}"
        );
    }
    assert!(!written(u64::MAX).was_created_at(NOW));
    assert!(!written(i64::MAX as u64).was_created_at(NOW));
}

#[test]
fn hosts_are_kept_in_order_and_once() {
    let mut hosts = Hosts::default();
    for number in [3, 1, 2, 1] {
        hosts.insert(host(number), entry(NOW, None));
    }
    assert_eq!(hosts.len(), 3);
    assert!(hosts.keys().eq(&[host(1), host(2), host(3)]));
    hosts.remove(&host(2));
    hosts.remove(&host(9));
    hosts.retain(|it, _| *it != host(1));
    assert!(hosts.keys().eq(&[host(3)]) && !hosts.is_empty());
    assert_eq!(
        (hosts.get(&host(1)), hosts.contains_key(&host(3))),
        (None, true)
    );
}

fn any_time() -> impl Strategy<Value = Timestamp> {
    (0_i64..4_000_000_000, 0_i32..1_000_000_000)
        .prop_map(|(second, nanosecond)| Timestamp::new(second, nanosecond).expect("in range"))
}

fn any_entry() -> impl Strategy<Value = HostState> {
    let credential = (any_time(), any_time()).prop_map(|(minted_at, expires_at)| Credential {
        identity: Identity::Ambient.hash(),
        lifetime: Lifetime {
            minted_at,
            expires_at,
        },
    });
    let demand = (any_time(), any_time()).prop_map(|(since, last)| Demand { since, last });
    (demand, prop::option::of(credential))
        .prop_map(|(demand, credential)| HostState { demand, credential })
}

proptest! {
    #[test]
    fn state_reads_back_and_is_sealed_the_same(
        entries in prop::collection::btree_map(0_usize..40, any_entry(), 0..20),
        revision: u64,
        digest: [u8; 32],
        seal: [u8; 32],
    ) {
        let hosts = entries.into_iter().map(|(number, entry)| (host(number), entry));
        let state = State { hosts: hosts.collect(), digest: DataDigest(digest), revision, seal: Seal(seal) };
        let read = State::parse(&state.to_text()).expect("reads back");
        prop_assert_eq!(&read, &state);
        let subject = Subject { namespace: "a", namespace_uid: "b", secret_uid: "c" };
        prop_assert_eq!(read.sealed_text(subject), state.sealed_text(subject));
    }

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}") {
        let _ = State::parse(&text);
    }
}
