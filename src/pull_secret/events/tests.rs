//! Unit tests of `events`.

use std::collections::HashSet;

use super::*;
use crate::{
    cluster::{event::EventType, near_miss::OptInNearMiss},
    registry::Quoted,
};

fn namespace(name: &str) -> Namespace {
    Namespace::parse(name).expect("a name")
}

/// Returns one event of each kind, which quotes this text.
fn all(text: &str) -> Vec<PullSecretEvent> {
    let text = text.to_owned();
    vec![
        PullSecretEvent::Refreshed,
        PullSecretEvent::Refused {
            code: AwsReply::new(text.clone(), text.clone()),
        },
        PullSecretEvent::Foreign { why: Foreign::Type },
        PullSecretEvent::Repaired {
            what: Damage::Deleted,
        },
        PullSecretEvent::Repaired {
            what: Damage::Changed,
        },
        PullSecretEvent::Contended,
        PullSecretEvent::Quota {
            message: text.clone(),
        },
        PullSecretEvent::Forbidden {
            message: text.clone(),
        },
        PullSecretEvent::RoleRefused {
            role: text.clone(),
            why: text.clone(),
        },
        PullSecretEvent::Suspended {
            host: text.clone(),
            more: 3,
            why: text.clone(),
        },
        PullSecretEvent::NearlyOptedIn {
            note: OptInNearMiss::Key(Quoted::new(&text)).note("l", "v", &namespace("team")),
        },
        PullSecretEvent::OptedIn,
        PullSecretEvent::OptedOut,
        PullSecretEvent::NotInjected {
            pod: text.clone(),
            uid: text,
            why: "it was missed",
        },
    ]
}

#[test]
fn event_about_a_missed_pod_regards_the_pod_and_is_one_of_its_own() {
    let event = |uid: &str| PullSecretEvent::NotInjected {
        pod: "web-x".to_owned(),
        uid: uid.to_owned(),
        why: "it was missed",
    };
    let regarding = event("a").regarding().expect("the Pod");
    let kind = (regarding.api_version.as_deref(), regarding.kind.as_deref());
    assert_eq!(kind, (Some("v1"), Some("Pod")));
    assert_eq!(regarding.name.as_deref(), Some("web-x"));
    assert_eq!(regarding.uid.as_deref(), Some("a"));
    let record = |uid| event(uid).to_record("ecr-pull-secret", &namespace("team-a"));
    assert_ne!(record("a").dedup_key, record("b").dedup_key);
    assert_eq!(record("a"), record("a"));
    let note = record("a").note;
    assert!(note.contains("ecr-pull-secret: it was missed."), "{note}");
    assert!(note.ends_with("--stuck -n team-a --restart"), "{note}");
    for other in all("x") {
        let is_about_pod = matches!(other, PullSecretEvent::NotInjected { .. });
        assert_eq!(other.regarding().is_some(), is_about_pod, "{other:?}");
    }
}

#[test]
fn opt_in_event_says_how_to_replace_existing_pods() {
    let record = PullSecretEvent::OptedIn.to_record("ecr-pull-secret", &namespace("team-a"));
    assert!(
        record.note.contains("Existing Pods are unchanged")
            && record
                .note
                .ends_with("kubectl rollout restart deployment -n team-a"),
        "{}",
        record.note
    );
    let (event_type, reason, action) = (record.event_type, record.reason, record.action);
    assert_eq!(
        (event_type, reason, action),
        (EventType::Normal, "OptedIn", "OptIn")
    );
}

#[test]
fn events_regard_the_secret() {
    let object = regarding("ecr-pull-secret");
    let expected = serde_json::json!({
        "apiVersion": "v1", "kind": "Secret", "name": "ecr-pull-secret",
    });
    assert_eq!(serde_json::to_value(object).expect("JSON"), expected);
}

#[test]
fn refused_write_is_an_event_with_its_reason() {
    let quota = r#"secrets "ecr-pull-secret" is forbidden: exceeded quota: few, used: secrets=1"#;
    let policy = r#"admission webhook "policy.example.com" denied the request"#;
    let ending = "the namespace team is being terminated";
    for (message, expected) in [
        (quota, Some("QuotaExceeded")),
        (policy, Some("WriteForbidden")),
        (ending, None),
    ] {
        let event = PullSecretEvent::from_refusal(message);
        let record = event.map(|event| event.to_record("ecr-pull-secret", &namespace("team")));
        assert_eq!(record.map(|record| record.reason), expected, "{message}");
    }
}

#[test]
fn quota_events_with_other_numbers_are_duplicates() {
    let keys = [1, 2].map(|used| {
        let message = format!("used: secrets={used}");
        let record = PullSecretEvent::Quota { message }.to_record("x", &namespace("here"));
        (record.reason, record.dedup_key)
    });
    assert_eq!(keys[0], keys[1]);
}

#[test]
fn note_of_any_foreign_text_is_one_line_and_fits() {
    let long_name = "a".repeat(63);
    for text in [
        "x".repeat(100_000),
        "word ".repeat(100_000),
        "ä€𝄞 ".repeat(100_000),
        "line\nline\r\n\u{1b}[31m".to_owned(),
        String::new(),
    ] {
        for event in all(&text) {
            let record = event.to_record(&"s".repeat(1000), &namespace(&long_name));
            assert!(record.note.len() <= 1024, "{}", record.note);
            assert!(!record.note.contains(char::is_control), "{:?}", record.note);
            let is_name = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric());
            assert!(is_name(record.reason) && is_name(record.action));
            assert!(record.dedup_key.len() <= 1024);
        }
    }
}

#[test]
fn events_differ_in_reason_or_deduplication_key() {
    let records = all("x").into_iter().map(|event| {
        let record = event.to_record("ecr-pull-secret", &namespace("here"));
        (record.reason, record.dedup_key)
    });
    assert_eq!(records.collect::<HashSet<_>>().len(), all("x").len());
}

#[test]
fn refused_token_event_names_no_account_or_principal() {
    let message = "User: arn:aws:sts::123456789012:assumed-role/ecr-injector/i-0abc is not authorized to perform: \
                       ecr:GetAuthorizationToken on resource: *";
    let refused = PullSecretEvent::Refused {
        code: AwsReply::new("AccessDeniedException", message),
    };
    let record = refused.to_record("ecr-pull-secret", &namespace("here"));
    for text in [&record.note, &record.dedup_key] {
        assert!(text.contains("AccessDeniedException"), "{text}");
        for private in ["arn:", "123456789012", "i-0abc"] {
            assert!(!text.contains(private), "{text}");
        }
    }
}

#[test]
fn note_quotes_nothing_that_could_be_a_token() {
    let token = "QVdTOmV5SndZWGxzYjJGa0lqb2lR".repeat(60);
    for text in [
        token.clone(),
        format!("failed with {token} in it"),
        format!("{{\"authorizationToken\":\"{token}\"}}"),
    ] {
        for event in all(&text) {
            let record = event.to_record("ecr-pull-secret", &namespace("here"));
            assert!(!record.note.contains(&token[..40]), "{}", record.note);
            assert!(
                !record.dedup_key.contains(&token[..40]),
                "{}",
                record.dedup_key
            );
        }
    }
}
