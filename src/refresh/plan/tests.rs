//! Unit tests of `plan`, with made-up facts.

use std::sync::Arc;

use super::*;
use crate::{
    config::Config,
    identity::{Identity, IdentityHash, Refusal},
    pull_secret::{Foreign, state::Credential},
};

const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);
const IRELAND: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const VIRGINIA: &str = "123456789012.dkr.ecr.us-east-1.amazonaws.com";
const OREGON: &str = "123456789012.dkr.ecr.us-west-2.amazonaws.com";
const PUBLIC: &str = "public.ecr.aws";

fn hours(hours: i64) -> SignedDuration {
    SignedDuration::from_hours(hours)
}

fn days(days: i64) -> SignedDuration {
    hours(24 * days)
}

fn policy(config: &str) -> Policy {
    Policy {
        rules: Arc::new(Config::parse_fields(config, "config").expect("valid").rules),
        prewarm: vec![],
        forget_after: Some(days(30)),
        revocation: Revocation::OnExpiry,
        removes: false,
        writes_per_second: 20,
    }
}

/// Nothing is allowed but one account, which no host of these tests is in.
fn allows_nothing() -> Policy {
    policy("allow: {accounts: ['210987654321']}")
}

fn name(text: &str) -> Namespace {
    Namespace::parse(text).expect("valid")
}

fn host(text: &str) -> Host {
    Host::parse(text).expect("valid")
}

fn settings() -> NamespaceSettings {
    NamespaceSettings {
        uid: "namespace-uid".into(),
        ..NamespaceSettings::default()
    }
}

fn life(age: SignedDuration) -> Lifetime {
    Lifetime {
        minted_at: NOW - age,
        expires_at: NOW - age + hours(12),
    }
}

/// Wanted just now, with a credential of this age of twelve hours.
fn entry(age: Option<SignedDuration>) -> HostState {
    HostState {
        demand: Demand::new(NOW),
        credential: age.map(|age| Credential {
            identity: Identity::Ambient.hash(),
            lifetime: life(age),
        }),
    }
}

/// Unwanted for so many days.
fn unwanted(ago: i64, age: Option<SignedDuration>) -> HostState {
    HostState {
        demand: Demand::new(NOW - days(ago)),
        ..entry(age)
    }
}

fn by_other(age: SignedDuration) -> HostState {
    let mut entry = entry(Some(age));
    let credential = entry.credential.as_mut().expect("one");
    credential.identity = IdentityHash::parse("0123456789abcdef").expect("a hash");
    entry
}

fn state(hosts: impl IntoIterator<Item = (&'static str, HostState)>) -> State {
    let hosts = hosts.into_iter().map(|(text, entry)| (host(text), entry));
    State {
        hosts: hosts.collect(),
        ..State::default()
    }
}

fn managed(hosts: impl IntoIterator<Item = (&'static str, HostState)>) -> Observed {
    Observed::Managed(state(hosts))
}

fn planned(observed: Option<&Observed>, policy: &Policy) -> Option<Plan> {
    planned_at(observed, policy, NOW)
}

fn planned_at(observed: Option<&Observed>, policy: &Policy, now: Timestamp) -> Option<Plan> {
    plan(&name("team"), Some(&settings()), observed, policy, now)
}

fn some(observed: &Observed, policy: &Policy) -> Plan {
    planned(Some(observed), policy).expect("a plan")
}

fn desired(plan: Plan) -> DesiredState {
    match plan.action {
        Action::Write(desired) => *desired,
        other => panic!("{other:?}"),
    }
}

fn hosts(texts: &[&str]) -> BTreeSet<Host> {
    texts.iter().copied().map(host).collect()
}

fn names(keys: &BTreeMap<Host, TokenKey>) -> BTreeSet<Host> {
    keys.keys().cloned().collect()
}

#[test]
fn credential_is_due_after_25_to_30_percent_of_its_life() {
    let plan = some(&managed([(IRELAND, entry(Some(hours(1))))]), &policy(""));
    let after = plan.at.duration_since(NOW);
    assert!(
        after >= hours(2) && after < SignedDuration::from_mins(156),
        "{after}"
    );
    assert_eq!(plan.priority, Priority::Due);
    assert_eq!(plan.ends, Some(NOW + hours(11)));
    assert!(desired(plan).due.is_empty());
    let plan = some(&managed([(IRELAND, entry(Some(hours(4))))]), &policy(""));
    assert!(plan.at <= NOW);
    let desired = desired(plan);
    assert_eq!(desired.due, hosts(&[IRELAND]));
    assert!(desired.is_by_time && !desired.must_write);
}

#[test]
fn due_times_of_many_namespaces_are_spread() {
    let life = life(hours(0));
    let times: BTreeSet<Timestamp> = (0..1000)
        .map(|number| due_by(&life, share(&name(&format!("team-{number}"))), NOW))
        .collect();
    assert!(times.len() > 900, "{} different times", times.len());
    let span = times
        .last()
        .expect("some")
        .duration_since(*times.first().expect("some"));
    assert!(span > SignedDuration::from_mins(33), "{span}");
}

#[test]
fn nearly_due_credential_is_renewed_with_due_ones() {
    // Of twelve hours 24 % are two hours and 53 minutes.
    let minutes = SignedDuration::from_mins;
    for (age, is_due) in [(172, false), (173, true)] {
        let observed = managed([
            (IRELAND, entry(Some(hours(4)))),
            (VIRGINIA, entry(Some(minutes(age)))),
        ]);
        let plan = some(&observed, &policy(""));
        assert_eq!(plan.action.due_hosts(), 1 + usize::from(is_due), "{age}");
        let desired = desired(plan);
        assert_eq!(desired.due.contains(&host(VIRGINIA)), is_due, "{age}");
    }
}

#[test]
fn pending_host_comes_first_and_at_once() {
    let plan = some(&managed([(IRELAND, entry(None))]), &policy(""));
    assert_eq!((plan.priority, plan.at), (Priority::Pending, NOW));
    assert_eq!(plan.ends, None);
    let desired = desired(plan);
    assert!(!desired.is_by_time, "an admission asked for it");
    assert!(!desired.must_write, "it is named already");
}

#[test]
fn public_host_without_a_credential_is_not_pending() {
    let plan = some(
        &managed([(PUBLIC, entry(None))]),
        &policy("publicEcr: true"),
    );
    assert_eq!((plan.priority, plan.at), (Priority::Due, NOW));
}

#[test]
fn expired_public_entry_is_taken_out_without_a_token() {
    let policy = policy("publicEcr: true");
    for (age, must_write) in [(hours(11), false), (hours(12), true)] {
        let plan = some(&managed([(PUBLIC, entry(Some(age)))]), &policy);
        assert!(plan.at <= NOW, "{age}");
        assert_eq!(desired(plan).must_write, must_write, "{age}");
    }
}

#[test]
fn suspended_public_entry_is_taken_out_when_it_is_over() {
    // Public images then pull without a credential again, as before publicEcr was set.
    let policy = policy("");
    let plan = some(&managed([(PUBLIC, entry(Some(hours(5))))]), &policy);
    assert_eq!(plan.at, NOW + hours(7) - MIN_LEFT + DROP_AFTER);
    let desired = desired(plan);
    assert!(desired.suspended.contains_key(&host(PUBLIC)));
    assert!(!desired.must_write);
    let over = managed([(PUBLIC, entry(Some(hours(12))))]);
    let plan = some(&over, &policy);
    assert_eq!(plan.at, NOW);
    assert!(self::desired(plan).must_write);
    // After its removal there is nothing to do.
    let plan = some(&managed([(PUBLIC, entry(None))]), &policy);
    assert!(plan.at > NOW && !self::desired(plan).must_write);
    // A token that another host lacks doesn't delay the removal.
    let both = managed([(PUBLIC, entry(Some(hours(5)))), (IRELAND, entry(None))]);
    let desired = self::desired(some(&both, &policy));
    let missing = desired.keys.values().cloned().collect();
    let next = desired.next_without(&missing, &name("team"), both.proven(), NOW);
    assert_eq!(next, Some(NOW + hours(7) - MIN_LEFT + DROP_AFTER));
}

#[test]
fn expiry_that_cannot_be_true_is_due_at_once() {
    let forged = managed([(IRELAND, entry(Some(-hours(2))))]);
    let plan = some(&forged, &policy(""));
    assert_eq!((plan.at, plan.ends), (NOW, None));
    assert!(desired(plan).due.contains(&host(IRELAND)));
}

#[test]
fn another_identity_is_due_at_once() {
    let plan = some(&managed([(IRELAND, by_other(hours(1)))]), &policy(""));
    assert_eq!((plan.priority, plan.at), (Priority::Changed, NOW));
    assert_eq!(plan.ends, Some(NOW + hours(11)), "it is used until then");
    let desired = desired(plan);
    assert!(desired.due.contains(&host(IRELAND)) && !desired.is_by_time);
    assert!(!desired.must_write, "it stays until there is a token");
}

#[test]
fn suspended_host_is_kept_and_named_with_its_reason() {
    let refusing = policy("defaultIdentity: none");
    for (policy, why) in [
        (allows_nothing(), Suspension::NotAllowed),
        (refusing, Suspension::NoIdentity(Refusal::NoDefault)),
    ] {
        for age in [Some(hours(5)), Some(hours(13)), None] {
            let plan = some(&managed([(IRELAND, entry(age))]), &policy);
            assert!(plan.at >= NOW + days(29), "nothing to do: {}", plan.at);
            let desired = desired(plan);
            assert_eq!(desired.suspended, BTreeMap::from([(host(IRELAND), why)]));
            assert!(desired.keys.is_empty() && desired.due.is_empty());
            assert!(desired.revoked.is_empty() && desired.forgotten.is_empty());
            assert!(!desired.must_write);
        }
    }
}

#[test]
fn suspended_host_does_not_hold_up_the_others() {
    let policy = policy("allow: {regions: [us-east-1]}");
    let observed = managed([
        (IRELAND, entry(Some(hours(9)))),
        (VIRGINIA, entry(Some(hours(4)))),
    ]);
    let plan = some(&observed, &policy);
    assert!(plan.at <= NOW);
    assert_eq!(plan.ends, Some(NOW + hours(8)), "of those that are renewed");
    let desired = desired(plan);
    assert_eq!(desired.due, hosts(&[VIRGINIA]));
    assert!(desired.suspended.contains_key(&host(IRELAND)));
}

#[test]
fn host_that_is_allowed_again_is_renewed_at_once() {
    for age in [Some(hours(13)), None] {
        let observed = managed([(IRELAND, entry(age))]);
        assert!(some(&observed, &allows_nothing()).at > NOW);
        let plan = some(&observed, &policy(""));
        assert!(plan.at <= NOW, "{age:?}");
        assert!(desired(plan).due.contains(&host(IRELAND)), "{age:?}");
    }
}

#[test]
fn revocation_takes_out_suspended_credentials_at_once() {
    let policy = Policy {
        revocation: Revocation::Immediately,
        ..allows_nothing()
    };
    let plan = some(&managed([(IRELAND, entry(Some(hours(1))))]), &policy);
    assert_eq!(plan.at, NOW);
    let desired = desired(plan);
    assert_eq!(desired.revoked, hosts(&[IRELAND]));
    assert!(desired.must_write && desired.forgotten.is_empty());
    assert!(desired.suspended.contains_key(&host(IRELAND)));
    // After its removal there is nothing to do.
    let plan = some(&managed([(IRELAND, entry(None))]), &policy);
    assert!(plan.at > NOW && !self::desired(plan).must_write);
}

#[test]
fn unwanted_host_is_forgotten_once_its_credential_is_over() {
    let kept = hosts(&[]);
    let gone = hosts(&[IRELAND]);
    for (ago, age, forgotten) in [
        (29, None, &kept),
        (30, None, &gone),
        (30, Some(hours(12)), &gone),
        (30, Some(hours(4)), &kept),
    ] {
        let observed = managed([(IRELAND, unwanted(ago, age))]);
        let desired = desired(some(&observed, &policy("")));
        assert_eq!(&desired.forgotten, forgotten, "{ago} {age:?}");
        let is_gone = !forgotten.is_empty();
        assert_eq!(desired.must_write, is_gone, "{ago} {age:?}");
        // No new token is minted, not even while the credential is good.
        assert_eq!(desired.keys.is_empty(), ago == 30, "{ago} {age:?}");
    }
    let observed = managed([(IRELAND, unwanted(40, Some(hours(4))))]);
    assert_eq!(some(&observed, &policy("")).at, NOW + hours(8));
    let never = Policy {
        forget_after: None,
        ..policy("")
    };
    let plan = some(&managed([(IRELAND, unwanted(4000, None))]), &never);
    assert_eq!(desired(plan).due, hosts(&[IRELAND]));
}

#[test]
fn suspended_host_is_forgotten_too() {
    let observed = managed([(IRELAND, unwanted(20, None))]);
    assert_eq!(some(&observed, &allows_nothing()).at, NOW + days(10));
    let observed = managed([(IRELAND, unwanted(30, None))]);
    let desired = desired(some(&observed, &allows_nothing()));
    assert_eq!(desired.forgotten, hosts(&[IRELAND]));
    assert!(desired.suspended.is_empty());
}

#[test]
fn prewarmed_host_is_never_forgotten() {
    let policy = Policy {
        prewarm: vec![host(IRELAND)],
        ..policy("")
    };
    let observed = managed([(IRELAND, unwanted(400, Some(hours(4))))]);
    let desired = desired(some(&observed, &policy));
    assert_eq!(desired.due, hosts(&[IRELAND]));
    assert!(desired.forgotten.is_empty() && desired.is_by_time);
}

#[test]
fn namespace_is_prewarmed_before_any_pod() {
    let policy = Policy {
        prewarm: vec![host(IRELAND)],
        ..policy("")
    };
    let plan = planned(None, &policy).expect("a plan");
    assert_eq!((plan.priority, plan.at), (Priority::Changed, NOW));
    let created = desired(plan);
    assert_eq!(names(&created.keys), hosts(&[IRELAND]));
    assert!(created.must_write && created.repairs.is_none());
    assert_eq!(planned(None, &self::policy("")), None);
    // A host of prewarm is added to those that are there.
    let observed = managed([(VIRGINIA, entry(Some(hours(1))))]);
    let plan = some(&observed, &policy);
    assert_eq!(plan.at, NOW);
    let added = desired(plan);
    assert_eq!(added.due, hosts(&[IRELAND]));
    assert!(added.must_write && !added.is_by_time);
    // A host that isn't allowed is not prewarmed.
    let policy = Policy {
        prewarm: vec![host(IRELAND)],
        ..allows_nothing()
    };
    assert_eq!(planned(None, &policy), None);
}

#[test]
fn deleted_or_changed_secret_is_repaired_with_the_hosts_it_had() {
    let had = state([(IRELAND, entry(Some(hours(1)))), (VIRGINIA, entry(None))]);
    let deleted = Observed::Deleted(Some(had.clone()));
    let tampered = Observed::Unverified {
        claims: None,
        is_proven: false,
        before: Some(Box::new(had.clone())),
        since: Unverified::Tampered,
    };
    for (observed, damage) in [(deleted, Damage::Deleted), (tampered, Damage::Changed)] {
        let plan = some(&observed, &policy(""));
        assert_eq!((plan.priority, plan.at), (Priority::Changed, NOW));
        let desired = desired(plan);
        assert_eq!(desired.repairs, Some(damage));
        assert_eq!(desired.due, hosts(&[IRELAND, VIRGINIA]), "{damage:?}");
        assert_eq!(desired.remembered.as_ref(), Some(&had), "{damage:?}");
        assert!(desired.must_write && !desired.is_by_time);
    }
    let nothing = Observed::Deleted(None);
    assert_eq!(planned(Some(&nothing), &policy("")), None);
    // Without any allowed host, no pull secret is made.
    let deleted = Observed::Deleted(Some(had));
    assert_eq!(planned(Some(&deleted), &allows_nothing()), None);
}

#[test]
fn suspended_hosts_of_a_lost_secret_are_remembered() {
    let had = state([
        (IRELAND, entry(Some(hours(1)))),
        (VIRGINIA, entry(Some(hours(1)))),
    ]);
    let policy = policy("allow: {regions: [us-east-1]}");
    let plan = some(&Observed::Deleted(Some(had.clone())), &policy);
    let desired = desired(plan);
    assert_eq!(desired.due, hosts(&[VIRGINIA]));
    assert!(desired.suspended.contains_key(&host(IRELAND)));
    assert_eq!(desired.remembered, Some(had));
}

#[test]
fn unproven_claims_are_requests_within_rules_and_limit() {
    let claims = state([
        (IRELAND, unwanted(400, Some(hours(1)))),
        (VIRGINIA, entry(Some(hours(1)))),
        ("docker.example.com", entry(None)),
    ]);
    let forged = |before: Option<State>| Observed::Unverified {
        claims: Some(claims.clone()),
        is_proven: false,
        before: before.map(Box::new),
        since: Unverified::Tampered,
    };
    let requests = desired(some(&forged(None), &policy("")));
    assert_eq!(names(&requests.keys), hosts(&[IRELAND, VIRGINIA]));
    assert!(
        requests.suspended.is_empty(),
        "a host that is not allowed is no request"
    );
    let remembered = requests.remembered.expect("requests");
    // The claimed dates are ignored.
    for (_, request) in remembered.hosts.iter() {
        assert_eq!(request, &entry(None));
    }
    let one = "limits: {registriesPerPod: 1, registriesPerSecret: 1}";
    let requests = desired(some(&forged(None), &policy(one)));
    assert_eq!(names(&requests.keys), hosts(&[IRELAND]));
    // Hosts that are known to be true come first, and keep their demand.
    for known in [OREGON, IRELAND] {
        let before = state([(known, unwanted(3, None))]);
        let repair = desired(some(&forged(Some(before.clone())), &policy(one)));
        assert_eq!(names(&repair.keys), hosts(&[known]));
        assert_eq!(repair.remembered, Some(before));
    }
    let nothing = desired(some(&forged(None), &allows_nothing()));
    assert!(nothing.keys.is_empty());
}

#[test]
fn restored_older_state_is_repaired_by_both() {
    let claims = state([
        (IRELAND, unwanted(9, Some(hours(5)))),
        (OREGON, unwanted(9, Some(hours(5)))),
    ]);
    let before = state([(IRELAND, entry(None)), (VIRGINIA, entry(Some(hours(1))))]);
    let reverted = Observed::Unverified {
        claims: Some(claims),
        is_proven: true,
        before: Some(Box::new(before)),
        since: Unverified::Tampered,
    };
    let repair = desired(some(&reverted, &policy("")));
    assert_eq!(repair.repairs, Some(Damage::Changed));
    assert_eq!(repair.due, hosts(&[IRELAND, VIRGINIA, OREGON]));
    let remembered = repair.remembered.expect("both");
    for (text, last) in [(IRELAND, NOW), (OREGON, NOW - days(9))] {
        let demand = remembered.hosts.get(&host(text)).expect("there").demand;
        assert_eq!((demand.since, demand.last), (NOW - days(9), last), "{text}");
    }
}

#[test]
fn listed_and_proven_state_is_written_when_due_and_else_read() {
    let listed = |age, is_proven, before: Option<State>| Observed::Unverified {
        claims: Some(state([(IRELAND, entry(Some(hours(age))))])),
        is_proven,
        before: before.map(Box::new),
        since: Unverified::Listed,
    };
    let read = (Priority::Check, Action::Read);
    for (age, is_proven, is_write) in [(4, true, true), (1, true, false), (4, false, false)] {
        let plan = some(&listed(age, is_proven, None), &policy(""));
        assert!(plan.at <= NOW);
        let is_written = matches!(plan.action, Action::Write(_));
        assert_eq!(is_written, is_write, "{age} {is_proven}");
        if !is_write {
            assert!(plan.is_by_time(), "nothing happened");
            assert_eq!((plan.priority, plan.action), read);
        }
    }
    // After a restore of the cluster, the pull secret is read before it is written.
    let known = |revision| State {
        revision,
        ..state([(VIRGINIA, entry(Some(hours(1))))])
    };
    let plan = some(&listed(4, true, Some(known(5))), &policy(""));
    assert_eq!((plan.priority, plan.action), read);
    let plan = some(&listed(4, true, Some(known(0))), &policy(""));
    assert!(matches!(plan.action, Action::Write(_)), "it is no older");
}

#[test]
fn change_is_read_before_anything_is_written() {
    for (age, is_proven) in [(None, false), (Some(hours(4)), false), (None, true)] {
        let changed = Observed::Unverified {
            claims: Some(state([(IRELAND, entry(age))])),
            is_proven,
            before: None,
            since: Unverified::Changed,
        };
        let plan = some(&changed, &policy(""));
        assert!(!plan.is_by_time());
        let planned = (plan.priority, plan.at, plan.action);
        assert_eq!(planned, (Priority::Changed, NOW, Action::Read));
    }
}

#[test]
fn foreign_excluded_and_terminating_are_left_alone() {
    let policy = policy("optIn: {excludeNamespaces: [infra]}");
    let ours = managed([(IRELAND, entry(None))]);
    let foreign = Observed::Foreign(Foreign::Label);
    assert_eq!(planned(Some(&foreign), &policy), None);
    let terminating = NamespaceSettings {
        is_terminating: true,
        ..settings()
    };
    let planned = plan(&name("team"), Some(&terminating), Some(&ours), &policy, NOW);
    assert_eq!(planned, None);
    for observed in [None, Some(&ours)] {
        let planned = plan(&name("infra"), Some(&settings()), observed, &policy, NOW);
        assert_eq!(planned, None);
    }
    // The pull secret of an excluded namespace is not deleted either.
    let removing = Policy {
        removes: true,
        ..policy
    };
    let planned = plan(&name("infra"), None, Some(&ours), &removing, NOW);
    assert_eq!(planned, None);
}

#[test]
fn opted_out_namespace_is_never_written_to() {
    let policy = Policy {
        prewarm: vec![host(IRELAND)],
        ..policy("")
    };
    let had = state([(IRELAND, entry(Some(hours(13))))]);
    let unverified = |since, is_proven| Observed::Unverified {
        claims: Some(had.clone()),
        is_proven,
        before: Some(Box::new(had.clone())),
        since,
    };
    let all = [
        Observed::Managed(had.clone()),
        Observed::Deleted(Some(had.clone())),
        Observed::Foreign(Foreign::Type),
        unverified(Unverified::Listed, true),
        unverified(Unverified::Changed, false),
        unverified(Unverified::Tampered, true),
    ];
    let removing = Policy {
        removes: true,
        ..policy.clone()
    };
    for observed in &all {
        let planned = plan(&name("team"), None, Some(observed), &policy, NOW);
        assert_eq!(planned, None, "{observed:?}");
        let planned = plan(&name("team"), None, Some(observed), &removing, NOW);
        let action = planned.map(|plan| plan.action);
        let is_there = observed.claims().is_some();
        assert_eq!(action, is_there.then_some(Action::Delete), "{observed:?}");
    }
    assert_eq!(plan(&name("team"), None, None, &removing, NOW), None);
}

#[test]
fn opted_out_secret_is_removed_after_its_last_expiry() {
    let removing = Policy {
        removes: true,
        ..policy("")
    };
    let removal = |observed: &Observed| {
        let plan = plan(&name("team"), None, Some(observed), &removing, NOW);
        let plan = plan.expect("a plan");
        assert!(plan.is_by_time() && plan.action.due_hosts() == 0);
        assert_eq!((plan.action, plan.ends), (Action::Delete, None));
        plan.at
    };
    let two = managed([
        (IRELAND, entry(Some(hours(1)))),
        (VIRGINIA, entry(Some(hours(5)))),
        (OREGON, entry(None)),
    ]);
    assert_eq!(removal(&two), NOW + hours(11));
    assert_eq!(removal(&managed([(IRELAND, entry(Some(hours(15))))])), NOW);
    assert_eq!(removal(&managed([])), NOW);
    // With a clock that is ahead by minutes: no token lives longer.
    let ahead = managed([(IRELAND, entry(Some(-SignedDuration::from_mins(9))))]);
    assert_eq!(removal(&ahead), NOW + hours(12));
}

#[test]
fn forged_expiry_does_not_postpone_a_deletion_for_ever() {
    let removing = Policy {
        removes: true,
        ..policy("")
    };
    let forged = managed([(IRELAND, entry(Some(-days(4000))))]);
    let mut now = NOW;
    // Like the leader, plans again at the planned time.
    for _ in 0..3 {
        let plan = plan(&name("team"), None, Some(&forged), &removing, now);
        let at = plan.expect("a plan").at;
        assert!(at <= NOW + hours(12), "{at}");
        now = at;
    }
}

#[test]
fn hosts_over_a_lowered_limit_are_renewed_and_none_is_prewarmed() {
    let policy = Policy {
        prewarm: vec![host(OREGON)],
        ..policy("limits: {registriesPerPod: 1, registriesPerSecret: 1}")
    };
    let observed = managed([
        (IRELAND, entry(Some(hours(4)))),
        (VIRGINIA, entry(Some(hours(4)))),
    ]);
    let desired = desired(some(&observed, &policy));
    assert_eq!(desired.due, hosts(&[IRELAND, VIRGINIA]));
    assert_eq!(names(&desired.keys), desired.due);
    assert!(!desired.must_write);
}

#[test]
fn prewarm_stops_at_the_limit_of_a_secret() {
    let policy = Policy {
        prewarm: vec![host(OREGON), host(VIRGINIA), host(IRELAND)],
        ..policy("limits: {registriesPerPod: 1, registriesPerSecret: 2}")
    };
    let created = desired(planned(None, &policy).expect("a plan"));
    assert_eq!(names(&created.keys), hosts(&[OREGON, VIRGINIA]));
}

#[test]
fn forgotten_host_makes_room_for_a_prewarmed_one() {
    let policy = Policy {
        prewarm: vec![host(OREGON)],
        ..policy("limits: {registriesPerPod: 1, registriesPerSecret: 1}")
    };
    let desired = desired(some(&managed([(IRELAND, unwanted(31, None))]), &policy));
    assert_eq!(desired.forgotten, hosts(&[IRELAND]));
    assert_eq!(names(&desired.keys), hosts(&[OREGON]));
}

#[test]
fn write_is_by_time_only_if_time_alone_made_it_due() {
    let old = || entry(Some(hours(4)));
    for (other, is_by_time) in [
        (entry(Some(hours(1))), true),
        (old(), true),
        (entry(Some(hours(13))), true),
        (entry(None), false),
        (by_other(hours(1)), false),
    ] {
        let observed = managed([(IRELAND, old()), (VIRGINIA, other)]);
        let plan = some(&observed, &policy(""));
        assert_eq!(plan.is_by_time(), is_by_time, "{observed:?}");
    }
}

#[test]
fn next_without_missing_tokens_is_when_another_host_is_due() {
    let policy = policy("publicEcr: true");
    let team = name("team");
    let next = |observed: &Observed, missing: &[&str]| {
        let desired = desired(some(observed, &policy));
        let keys = missing.iter().map(|text| desired.keys[&host(text)].clone());
        let state = observed.proven();
        desired.next_without(&keys.collect(), &team, state, NOW)
    };
    let observed = managed([
        (IRELAND, entry(Some(hours(4)))),
        (VIRGINIA, entry(Some(hours(1)))),
        (OREGON, entry(None)),
    ]);
    let virginia = due_by(&life(hours(1)), share(&team), NOW);
    assert!(virginia > NOW);
    assert_eq!(next(&observed, &[IRELAND, OREGON]), Some(virginia));
    assert_eq!(next(&observed, &[IRELAND, OREGON, VIRGINIA]), None);
    // A host that is due at this moment is part of the plan, and isn't planned again.
    let due_now = planned_at(Some(&observed), &policy, virginia).expect("a plan");
    let desired = desired(due_now);
    assert!(desired.due.contains(&host(VIRGINIA)));
    let missing = BTreeSet::from([desired.keys[&host(IRELAND)].clone()]);
    assert_eq!(
        desired.next_without(&missing, &team, observed.proven(), virginia),
        None
    );
    // A public entry is to be removed when it expires, with or without a token.
    let observed = managed([(PUBLIC, entry(Some(hours(5))))]);
    let dropped = NOW + hours(7) - MIN_LEFT + DROP_AFTER;
    assert_eq!(next(&observed, &[PUBLIC]), Some(dropped));
}

#[test]
fn credential_was_due_since_its_share_of_life_was_used() {
    let team = name("team");
    let since = due_since(&entry(Some(hours(5))), &team, NOW).expect("a time");
    assert!(since > NOW - hours(2) && since < NOW - hours(1), "{since}");
    let not_yet = due_since(&entry(Some(hours(1))), &team, NOW);
    assert_eq!(not_yet, Some(NOW));
    assert_eq!(due_since(&entry(None), &team, NOW), None);
}
