//! Unit tests of the rows and summaries of `refresh --once`.

use jiff::SignedDuration;

use super::*;
use crate::{
    identity::{Identity, Refusal},
    pull_secret::{
        Unverified,
        state::{Credential, Demand, HostState},
    },
    refresh::plan::Priority,
    registry::{Host, Registry},
    token::{Lifetime, TokenKey, rules::Suspension},
};

const NOW: Timestamp = Timestamp::UNIX_EPOCH;
const IRELAND: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";
const OREGON: &str = "123456789012.dkr.ecr.us-west-2.amazonaws.com";

fn team() -> Namespace {
    Namespace::parse("team").expect("valid")
}

fn host(text: &str) -> Host {
    Host::parse(text).expect("valid")
}

fn later(hours: i64) -> Timestamp {
    NOW + SignedDuration::from_hours(hours)
}

/// Returns a state whose hosts have a credential for a number of hours, or none.
fn state(hosts: &[(&str, Option<i64>)]) -> State {
    let hosts = hosts.iter().map(|(text, ends)| {
        let credential = ends.map(|ends| Credential {
            identity: Identity::Ambient.hash(),
            lifetime: Lifetime {
                minted_at: later(ends - 12),
                expires_at: later(ends),
            },
        });
        let entry = HostState {
            demand: Demand::new(NOW),
            credential,
        };
        (host(text), entry)
    });
    State {
        hosts: hosts.collect(),
        ..State::default()
    }
}

fn managed(hosts: &[(&str, Option<i64>)]) -> Observed {
    Observed::Managed(state(hosts))
}

/// Returns a plan that allows some hosts and suspends others.
fn write(at: Timestamp, allowed: &[&str], suspended: &[&str]) -> Plan {
    let key = |text: &str| {
        let registry = Registry::parse(text).expect("a registry");
        TokenKey::new(Identity::Ambient, &registry)
    };
    let desired = DesiredState {
        keys: allowed.iter().map(|text| (host(text), key(text))).collect(),
        due: allowed.iter().copied().map(host).collect(),
        suspended: suspended
            .iter()
            .map(|text| (host(text), Suspension::NotAllowed))
            .collect(),
        ..DesiredState::default()
    };
    plan(at, Action::Write(Box::new(desired)))
}

fn plan(at: Timestamp, action: Action) -> Plan {
    Plan {
        priority: Priority::Due,
        at,
        ends: None,
        action,
    }
}

fn swept(written: bool, error: Option<&str>, plan: Option<Plan>) -> SweepOutcome {
    SweepOutcome {
        written,
        error: error.map(str::to_owned),
        plan,
    }
}

fn refresh_of<'a>(
    before: Option<&'a Observed>,
    after: Option<&'a Observed>,
    settings: Option<&'a NamespaceSettings>,
) -> NamespaceRefresh<'a> {
    NamespaceRefresh {
        before,
        after,
        settings,
        is_excluded: false,
        now: NOW,
    }
}

fn done_to(
    refresh: NamespaceRefresh<'_>,
    swept: &SweepOutcome,
    is_interrupted: bool,
) -> Option<(&'static str, bool)> {
    let row = refresh.done_row(&team(), swept, is_interrupted)?;
    Some((row.result, row.is_ok))
}

#[test]
#[allow(clippy::too_many_lines, reason = "a table")]
fn row_has_the_result_and_whether_it_is_ok() {
    let settings = NamespaceSettings::default();
    let terminating = NamespaceSettings {
        is_terminating: true,
        ..NamespaceSettings::default()
    };
    let (opted_in, ending) = (Some(&settings), Some(&terminating));
    let (secret, empty) = (&managed(&[(IRELAND, Some(12))]), &managed(&[]));
    let expired = &managed(&[(IRELAND, Some(0))]);
    let unverified = &Observed::Unverified {
        claims: Some(state(&[(IRELAND, Some(12))])),
        is_proven: false,
        before: None,
        since: Unverified::Listed,
    };
    let (theirs, deleted) = (&Observed::Foreign(Foreign::Label), &Observed::Deleted(None));
    let has = |observed| (Some(observed), Some(observed));
    let fine = || Some(write(later(3), &[IRELAND], &[]));
    let due = || Some(write(NOW, &[IRELAND], &[]));
    let suspended = || Some(write(later(720), &[], &[IRELAND]));
    for ((before, after), settings, swept, expected) in [
        (
            has(secret),
            opted_in,
            swept(false, None, fine()),
            Some(("fresh", true)),
        ),
        (
            (None, None),
            opted_in,
            swept(false, None, None),
            Some(("absent", true)),
        ),
        (
            (None, Some(secret)),
            opted_in,
            swept(true, None, fine()),
            Some(("created", true)),
        ),
        (
            (Some(deleted), Some(secret)),
            opted_in,
            swept(true, None, fine()),
            Some(("created", true)),
        ),
        (
            has(secret),
            opted_in,
            swept(true, None, fine()),
            Some(("renewed", true)),
        ),
        // A suspended registry is most likely a mistake, even if something was written.
        (
            has(secret),
            opted_in,
            swept(false, None, suspended()),
            Some(("suspended", false)),
        ),
        (
            has(secret),
            opted_in,
            swept(true, None, Some(write(later(3), &[OREGON], &[IRELAND]))),
            Some(("renewed", false)),
        ),
        (
            has(empty),
            opted_in,
            swept(false, None, None),
            Some(("empty", true)),
        ),
        (
            has(expired),
            opted_in,
            swept(false, None, fine()),
            Some(("expired", false)),
        ),
        (
            has(secret),
            opted_in,
            swept(true, Some("the API server refused to write"), fine()),
            Some(("rejected", false)),
        ),
        (
            has(secret),
            opted_in,
            swept(false, Some("x"), fine()),
            Some(("failed", false)),
        ),
        (
            has(secret),
            opted_in,
            swept(true, Some("x"), due()),
            Some(("failed", false)),
        ),
        // The pull secret is still due, without an error.
        (
            has(secret),
            opted_in,
            swept(false, None, due()),
            Some(("failed", false)),
        ),
        (
            has(theirs),
            opted_in,
            swept(false, None, None),
            Some(("skipped", false)),
        ),
        (
            has(secret),
            ending,
            swept(false, None, None),
            Some(("skipped", true)),
        ),
        // A namespace that isn't opted in has no managed pull secret.
        (has(theirs), None, swept(false, None, None), None),
        ((None, None), None, swept(false, None, None), None),
        (
            has(secret),
            None,
            swept(false, None, None),
            Some(("opted-out", true)),
        ),
        (
            has(unverified),
            None,
            swept(false, None, None),
            Some(("opted-out", true)),
        ),
        (
            has(expired),
            None,
            swept(false, None, None),
            Some(("expired-out", true)),
        ),
        (
            (Some(expired), None),
            None,
            swept(true, None, None),
            Some(("removed", true)),
        ),
    ] {
        let refresh = refresh_of(before, after, settings);
        assert_eq!(
            done_to(refresh, &swept, false),
            expected,
            "{before:?} {swept:?}"
        );
    }
}

#[test]
fn interrupted_row_has_work_left() {
    let (settings, secret) = (
        NamespaceSettings::default(),
        managed(&[(IRELAND, Some(12))]),
    );
    let refresh = refresh_of(Some(&secret), Some(&secret), Some(&settings));
    for (swept, expected) in [
        (
            swept(false, None, Some(write(NOW, &[IRELAND], &[]))),
            ("interrupted", false),
        ),
        (
            swept(true, None, Some(write(NOW, &[IRELAND], &[]))),
            ("interrupted", false),
        ),
        (
            swept(true, None, Some(write(later(3), &[IRELAND], &[]))),
            ("renewed", true),
        ),
        (
            swept(false, Some("x"), Some(write(NOW, &[IRELAND], &[]))),
            ("failed", false),
        ),
    ] {
        assert_eq!(done_to(refresh, &swept, true), Some(expected), "{swept:?}");
    }
}

#[test]
fn excluded_namespace_has_no_row() {
    let (settings, secret) = (
        NamespaceSettings::default(),
        managed(&[(IRELAND, Some(12))]),
    );
    let refresh = NamespaceRefresh {
        is_excluded: true,
        ..refresh_of(Some(&secret), Some(&secret), Some(&settings))
    };
    assert_eq!(
        refresh.done_row(&team(), &swept(false, None, None), false),
        None
    );
    assert_eq!(refresh.planned_row(&team(), None), None);
}

#[test]
fn suspended_registry_is_named_with_its_reason() {
    let secret = managed(&[(IRELAND, Some(12)), (OREGON, Some(12))]);
    let settings = NamespaceSettings::default();
    let refresh = refresh_of(Some(&secret), Some(&secret), Some(&settings));
    let plan = write(later(3), &[], &[IRELAND, OREGON]);
    let row = refresh.done_row(&team(), &swept(false, None, Some(plan.clone())), false);
    let row = row.expect("a row");
    let message = format!("{IRELAND} and 1 more suspended: the registry is not in the allow list");
    assert_eq!(row.message.as_deref(), Some(message.as_str()));
    assert_eq!(row.expires_at, Some(later(12)), "it is used until then");
    assert_eq!(refresh.planned_row(&team(), Some(&plan)), Some(row));
    // An identity's rules suspend the registry.
    let why = Suspension::NoIdentity(Refusal::NoDefault);
    let mut one = write(later(3), &[IRELAND], &[]);
    if let Action::Write(desired) = &mut one.action {
        desired.suspended.insert(host(OREGON), why);
    }
    let row = refresh.planned_row(&team(), Some(&one)).expect("a row");
    assert_eq!((row.result, row.is_ok), ("fresh", false));
    let message = format!("{OREGON} suspended: {why}");
    assert_eq!(row.message.as_deref(), Some(message.as_str()));
}

#[test]
fn preview_shows_the_work_that_is_due() {
    let (settings, secret) = (
        NamespaceSettings::default(),
        managed(&[(IRELAND, Some(12))]),
    );
    let has = refresh_of(Some(&secret), Some(&secret), Some(&settings));
    let lacks = refresh_of(None, None, Some(&settings));
    let opted_out = refresh_of(Some(&secret), Some(&secret), None);
    for (refresh, plan, expected) in [
        (has, plan(NOW, Action::Read), "would-verify"),
        (has, plan(later(3), Action::Read), "fresh"),
        (has, write(NOW, &[IRELAND], &[]), "would-renew"),
        (has, write(later(3), &[IRELAND], &[]), "fresh"),
        (lacks, write(NOW, &[IRELAND], &[]), "would-create"),
        (opted_out, plan(NOW, Action::Delete), "would-remove"),
        (opted_out, plan(later(3), Action::Delete), "opted-out"),
    ] {
        let row = refresh.planned_row(&team(), Some(&plan)).expect("a row");
        assert_eq!((row.result, row.due_at), (expected, Some(plan.at)));
        assert!(row.is_ok, "{expected}");
        let hosts = refresh.after.map_or(0, |_| 1);
        let expires_at = refresh.after.map(|_| later(12));
        assert_eq!((row.hosts.len(), row.expires_at), (hosts, expires_at));
    }
    assert_eq!(
        lacks.planned_row(&team(), None).map(|row| row.result),
        Some("absent")
    );
}

#[test]
fn preview_counts_renewed_and_dropped_registries() {
    let secret = managed(&[(IRELAND, Some(12)), (OREGON, Some(12))]);
    let settings = NamespaceSettings::default();
    let refresh = refresh_of(Some(&secret), Some(&secret), Some(&settings));
    let mut plan = write(NOW, &[IRELAND], &[]);
    let message = |plan: &Plan| {
        refresh
            .planned_row(&team(), Some(plan))
            .and_then(|row| row.message)
    };
    assert_eq!(message(&plan).as_deref(), Some("1 of 1 registry"));
    if let Action::Write(desired) = &mut plan.action {
        desired.due.clear();
        desired.forgotten.insert(host(OREGON));
    }
    assert_eq!(
        message(&plan).as_deref(),
        Some("0 of 1 registry; 1 registry removed")
    );
}

#[test]
fn row_without_a_next_time_has_no_due_date() {
    let (settings, secret) = (
        NamespaceSettings::default(),
        managed(&[(IRELAND, Some(12))]),
    );
    let refresh = refresh_of(Some(&secret), Some(&secret), Some(&settings));
    let never = write(Timestamp::MAX, &[IRELAND], &[]);
    let row = refresh.planned_row(&team(), Some(&never)).expect("a row");
    assert_eq!(row.due_at, None);
}

#[test]
fn summary_shows_when_nothing_was_due() {
    let row = |result| Row {
        due_at: Some(later(3)),
        ..Row::ok(team(), result)
    };
    let next = "\nnext refresh due at 1970-01-01T03:00:00Z (team)";
    assert_eq!(
        summary_of_done(&[row("fresh")], "x"),
        format!("nothing to do: all pull secrets are fresh in 1 namespace, in x{next}")
    );
    let failed = Row::error(team(), "failed", "why".to_owned());
    assert_eq!(
        summary_of_done(&[row("renewed"), failed.clone()], "x"),
        format!("1 pull secret refreshed; 1 of 2 namespaces not fresh, see above, in x{next}")
    );
    assert_eq!(
        summary_of_done(&[row("created"), row("removed"), row("fresh")], "x"),
        format!("2 pull secrets refreshed, nothing else was due in 3 namespaces, in x{next}")
    );
    assert_eq!(
        summary_of_done(&[], "x"),
        "no namespace is opted in or has a pull secret of ecr-injector, in x"
    );
    assert_eq!(
        summary_of_planned(&[row("would-renew"), failed], "x"),
        "1 of 2 namespaces would be refreshed; 1 can't be refreshed, see above, in x"
    );
    assert_eq!(
        summary_of_planned(&[row("fresh")], "x"),
        format!("nothing would be done: all pull secrets are fresh in 1 namespace, in x{next}")
    );
}
