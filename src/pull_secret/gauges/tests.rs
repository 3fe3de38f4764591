//! Unit tests of `gauges`, with pull secrets that are made up.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicI64, Ordering::SeqCst},
};

use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Bytes;
use k8s_openapi::api::core::v1::Secret;
use kube::{Client, client::Body};

use super::*;
use crate::{
    cli::metrics::Metrics,
    cluster::changes::Changes,
    config::Config,
    config::live::Live,
    pull_secret::{
        Foreign,
        seal::StateKeys,
        state::{Credential, Demand, HostState},
    },
    registry::{Aliases, Registry},
    token::{Lifetime, rules::Revocation},
};

const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);
const EU: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const EU_TOO: &str = "210987654321.dkr.ecr.eu-west-1.amazonaws.com";
const US: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
const PUBLIC: &str = "public.ecr.aws";
const ALIAS: &str = "images.example.com";
/// The one registry of these tests that is not allowed.
const REFUSED: &str = "999999999999.dkr.ecr.eu-west-1.amazonaws.com";

fn identity(number: u32) -> IdentityHash {
    IdentityHash::parse(&format!("{number:016x}")).expect("valid")
}

fn minutes(minutes: i64) -> SignedDuration {
    SignedDuration::from_mins(minutes)
}

/// Returns a state whose hosts have so many minutes of twelve hours left; `None` is a host without
/// a credential.
fn state(hosts: &[(u32, &str, Option<i64>)]) -> State {
    let hosts = hosts.iter().map(|(number, host, left)| {
        let credential = left.map(|left| Credential {
            identity: identity(*number),
            lifetime: Lifetime {
                minted_at: NOW + minutes(left - 720),
                expires_at: NOW + minutes(left),
            },
        });
        let entry = HostState {
            demand: Demand::new(NOW),
            credential,
        };
        (Host::parse(host).expect("valid"), entry)
    });
    State {
        hosts: hosts.collect(),
        ..State::default()
    }
}

fn managed(hosts: &[(u32, &str, Option<i64>)]) -> Observed {
    Observed::Managed(state(hosts))
}

fn unverified(since: Unverified, claims: Option<State>) -> Observed {
    Observed::Unverified {
        claims,
        is_proven: false,
        before: Some(Box::new(state(&[(1, EU, Some(-60))]))),
        since,
    }
}

fn policy() -> Policy {
    Policy {
        rules: Arc::new(rules()),
        prewarm: vec![Host::parse(US).expect("valid")],
        forget_after: Some(SignedDuration::from_hours(720)),
        revocation: Revocation::default(),
        removes: false,
        writes_per_second: 20,
    }
}

fn rules() -> Rules {
    let file = "allow: {accounts: ['123456789012', '210987654321']}";
    let rules = Config::parse_fields(file, "config").expect("valid").rules;
    let registry = Registry::parse(US).expect("valid");
    let aliases = Aliases::new([(ALIAS.to_owned(), registry)]);
    Rules {
        aliases: aliases.expect("valid").with_public(),
        ..rules
    }
}

fn team() -> Namespace {
    Namespace::parse("team").expect("valid")
}

fn figures(subjects: &[(&Observed, bool)]) -> Summary {
    let (namespace, settings) = (team(), NamespaceSettings::default());
    let subjects = subjects.iter().map(|(observed, is_served)| Subject {
        namespace: &namespace,
        observed,
        settings: is_served.then_some(&settings),
    });
    measure(subjects, &policy(), NOW)
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn every_pull_secret_has_one_state() {
    for (observed, expected) in [
        (managed(&[(1, EU, Some(700))]), Some(PullSecretState::Fresh)),
        (managed(&[(1, EU, Some(300))]), Some(PullSecretState::Due)),
        // Less than five minutes.
        (managed(&[(1, EU, Some(4))]), Some(PullSecretState::Expired)),
        (
            managed(&[(1, EU, Some(-1))]),
            Some(PullSecretState::Expired),
        ),
        // Longer than ECR lets any live: forged.
        (
            managed(&[(1, EU, Some(2000))]),
            Some(PullSecretState::Expired),
        ),
        (managed(&[(1, EU, None)]), Some(PullSecretState::Pending)),
        (managed(&[]), Some(PullSecretState::Empty)),
        // Suspended, whatever its credential is worth.
        (
            managed(&[(1, REFUSED, Some(700))]),
            Some(PullSecretState::Suspended),
        ),
        (
            managed(&[(1, REFUSED, Some(-1))]),
            Some(PullSecretState::Suspended),
        ),
        (
            managed(&[(1, REFUSED, None)]),
            Some(PullSecretState::Suspended),
        ),
        (
            managed(&[(1, "gone.example.com", None)]),
            Some(PullSecretState::Suspended),
        ),
        // The worst counts.
        (
            managed(&[(1, EU, Some(700)), (1, US, Some(300))]),
            Some(PullSecretState::Due),
        ),
        (
            managed(&[(1, EU, Some(300)), (1, REFUSED, Some(700))]),
            Some(PullSecretState::Suspended),
        ),
        (
            managed(&[(1, EU, None), (1, REFUSED, Some(700))]),
            Some(PullSecretState::Pending),
        ),
        (
            managed(&[(1, EU, None), (1, US, Some(300))]),
            Some(PullSecretState::Pending),
        ),
        (
            managed(&[(1, EU, None), (1, US, Some(-1))]),
            Some(PullSecretState::Expired),
        ),
        // A registry that pulls without a credential needs none.
        (managed(&[(1, PUBLIC, None)]), Some(PullSecretState::Fresh)),
        (
            managed(&[(1, PUBLIC, Some(-1))]),
            Some(PullSecretState::Expired),
        ),
        (
            Observed::Foreign(Foreign::Label),
            Some(PullSecretState::Foreign),
        ),
        (
            unverified(Unverified::Changed, None),
            Some(PullSecretState::Unverified),
        ),
        (
            unverified(Unverified::Listed, None),
            Some(PullSecretState::Unverified),
        ),
        // Taken at its word.
        (
            unverified(Unverified::Changed, Some(state(&[(1, EU, Some(700))]))),
            Some(PullSecretState::Fresh),
        ),
        (
            unverified(Unverified::Listed, Some(state(&[(1, EU, Some(-1))]))),
            Some(PullSecretState::Expired),
        ),
        (
            unverified(Unverified::Tampered, Some(state(&[(1, EU, Some(700))]))),
            Some(PullSecretState::Tampered),
        ),
        (Observed::Deleted(None), None),
    ] {
        let counted = figures(&[(&observed, true)]).by_state;
        let expected = expected.map(|worth| (worth, 1));
        assert_eq!(counted, expected.into_iter().collect(), "{observed:?}");
    }
}

#[test]
fn secret_of_a_namespace_that_is_not_served_is_opted_out() {
    for (observed, expected) in [
        (
            managed(&[(1, EU, Some(-1))]),
            Some(PullSecretState::OptedOut),
        ),
        (managed(&[]), Some(PullSecretState::OptedOut)),
        (
            unverified(Unverified::Tampered, None),
            Some(PullSecretState::OptedOut),
        ),
        (
            unverified(Unverified::Listed, None),
            Some(PullSecretState::OptedOut),
        ),
        (
            Observed::Foreign(Foreign::Type),
            Some(PullSecretState::Foreign),
        ),
        (Observed::Deleted(None), None),
    ] {
        let counted = figures(&[(&observed, false)]).by_state;
        let expected = expected.map(|worth| (worth, 1));
        assert_eq!(counted, expected.into_iter().collect(), "{observed:?}");
    }
}

#[test]
fn first_expiry_is_of_served_and_trusted_secrets_alone() {
    let none = figures(&[]);
    assert_eq!((none.expires_in, none.identities.len()), (None, 0));
    let late = managed(&[(1, EU, Some(600)), (1, US, None)]);
    let soon = managed(&[(1, EU, Some(60))]);
    let over = unverified(Unverified::Listed, Some(state(&[(1, EU, Some(-2))])));
    let seconds = |subjects: &[(&Observed, bool)]| figures(subjects).expires_in;
    assert_eq!(seconds(&[(&late, true), (&soon, false)]), Some(36_000));
    assert_eq!(seconds(&[(&late, true), (&soon, true)]), Some(3600));
    assert_eq!(seconds(&[(&soon, true), (&over, true)]), Some(-120));
    for of_no_account in [
        managed(&[(1, EU, None)]),
        managed(&[]),
        unverified(Unverified::Tampered, Some(state(&[(1, EU, Some(1))]))),
        unverified(Unverified::Changed, None),
        Observed::Foreign(Foreign::Type),
        Observed::Deleted(Some(state(&[(1, EU, Some(1))]))),
    ] {
        let figures = figures(&[(&late, true), (&of_no_account, true)]);
        assert_eq!(figures.expires_in, Some(36_000), "{of_no_account:?}");
        assert_eq!(figures.identities.len(), 1, "{of_no_account:?}");
    }
}

#[test]
fn suspended_credential_counts_for_the_first_expiry() {
    // It is used until it ends, and then Pods fail: an alert has to see it.
    let suspended = managed(&[(1, REFUSED, Some(30)), (1, EU, Some(600))]);
    assert_eq!(figures(&[(&suspended, true)]).expires_in, Some(1800));
}

#[test]
fn forgotten_registry_expires_by_intent_and_does_not_count() {
    let unused_for = |days: i64, host| {
        let mut state = state(&[(1, host, Some(20)), (1, EU_TOO, Some(600))]);
        let entry = state.hosts.get_mut(&Host::parse(host).expect("valid"));
        entry.expect("there").demand = Demand::new(NOW - SignedDuration::from_hours(24 * days));
        figures(&[(&Observed::Managed(state), true)]).expires_in
    };
    assert_eq!(unused_for(29, EU), Some(1200));
    assert_eq!(unused_for(30, EU), Some(36_000));
    // The configuration names it.
    assert_eq!(unused_for(30, US), Some(1200));
}

#[test]
fn each_identity_has_a_series_a_region() {
    let one = managed(&[(1, EU, Some(60)), (1, US, Some(50)), (2, EU_TOO, Some(40))]);
    let two = managed(&[
        (1, EU_TOO, Some(30)),
        (1, ALIAS, Some(20)),
        (2, EU, Some(45)),
    ]);
    let three = managed(&[(3, PUBLIC, Some(10)), (3, "gone.example.com", Some(5))]);
    let figures = figures(&[(&one, true), (&two, true), (&three, true)]);
    let expected = [
        (3, "unknown", 300),
        (3, "us-east-1", 600),
        (1, "us-east-1", 1200),
        (1, "eu-west-1", 1800),
        (2, "eu-west-1", 2400),
    ];
    let expected =
        expected.map(|(number, region, seconds)| (identity(number), region.to_owned(), seconds));
    assert_eq!(figures.identities, expected);
}

#[test]
fn of_too_many_identities_those_that_expire_first_are_shown() {
    let all: Vec<_> = (0..300)
        .map(|number| managed(&[(number, EU, Some(400 - i64::from(number)))]))
        .collect();
    let subjects: Vec<_> = all.iter().map(|observed| (observed, true)).collect();
    let figures = figures(&subjects);
    let shown: Vec<_> = figures.identities.iter().map(|(one, ..)| *one).collect();
    let expected: Vec<_> = (200..300).rev().map(identity).collect();
    assert_eq!(shown, expected);
}

#[test]
fn metrics_show_every_state_and_drop_what_is_gone() {
    let metrics = Metrics::default();
    let observed = managed(&[(0xa, EU, Some(60))]);
    figures(&[(&observed, true)]).show(&metrics.pull_secret);
    let text = metrics.registry.to_text();
    for line in [
        r#"ecr_injector_pull_secrets_by_state{state="due"} 1"#,
        r#"ecr_injector_pull_secrets_by_state{state="suspended"} 0"#,
        r#"ecr_injector_pull_secrets_by_state{state="pending"} 0"#,
        r#"ecr_injector_pull_secrets_by_state{state="opted_out"} 0"#,
        r#"ecr_injector_pull_secrets_by_state{state="tampered"} 0"#,
        "ecr_injector_earliest_expiry_seconds 3600",
        r#"ecr_injector_identity_earliest_expiry_seconds{identity="000000000000000a",region="eu-west-1"} 3600"#,
    ] {
        assert!(text.contains(line), "{line} not in:\n{text}");
    }
    let series = |text: &str| text.matches("by_state{").count();
    assert_eq!(series(&text), PullSecretState::ALL.len());
    figures(&[]).show(&metrics.pull_secret);
    let text = metrics.registry.to_text();
    assert!(!text.contains("expiry"), "{text}");
    assert!(text.contains(r#"by_state{state="due"} 0"#), "{text}");
    assert_eq!(series(&text), PullSecretState::ALL.len());
}

#[test]
fn worst_state_sorts_last() {
    let mut sorted = PullSecretState::ALL;
    sorted.sort_unstable();
    assert_eq!(sorted, PullSecretState::ALL);
}

/// It stands still until it is set.
struct StoppedClock(AtomicI64);

impl Clock for StoppedClock {
    fn now(&self) -> Timestamp {
        NOW + SignedDuration::from_millis(self.0.load(SeqCst))
    }
}

#[tokio::test]
async fn scrapes_measure_at_most_once_a_second() {
    let service = tower::service_fn(async |_: Request<Body>| {
        Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
    });
    let client = Client::new(service, "default");
    let (metrics, config) = (Metrics::default(), Config::default());
    let (changes, clock) = (
        Changes::default(),
        Arc::new(StoppedClock(AtomicI64::new(0))),
    );
    let secrets = PullSecrets::new(
        StateKeys::default(),
        Arc::new(|_| None),
        clock.clone(),
        changes.clone(),
        metrics.pull_secret.clone(),
    );
    let policy = Live::new(config.clone(), None).policy;
    let namespaces = Namespaces::new(client, config.opt_in, changes, metrics.cluster.clone());
    let ticking = clock.clone();
    measure_at_each_scrape(
        &metrics.registry,
        metrics.pull_secret.clone(),
        secrets.clone(),
        namespaces,
        policy,
        ticking,
    );
    for (millis, shown) in [(0, 1), (999, 1), (1000, 3), (1500, 3), (-1000, 5)] {
        clock.0.store(millis, SeqCst);
        let namespace = Namespace::parse(&format!("at-{}", millis + 1000)).expect("valid");
        secrets.record_write(&namespace, "uid", &Secret::default());
        let line = format!(r#"ecr_injector_pull_secrets_by_state{{state="foreign"}} {shown}"#);
        let text = metrics.registry.to_text();
        assert!(text.contains(&line), "{millis}: {line} not in:\n{text}");
    }
}
