//! Each rule of the merge alone, and what holds for all merges.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Secret;
use proptest::prelude::*;

use super::*;
use crate::pull_secret::tests::{
    Case, NOW, auth_of, days, desired, entry, fresh, host, hours, other, proven_state, public,
    set_data, state, token,
};

fn theirs(password: &str, lives: i64) -> DesiredCredential {
    DesiredCredential {
        identity: other(),
        ..fresh(password, lives)
    }
}

fn set(numbers: &[usize]) -> BTreeSet<Host> {
    numbers.iter().copied().map(host).collect()
}

/// The passwords of the first hosts.
fn passwords(secret: &Secret) -> Vec<(usize, Option<String>)> {
    let hosts = proven_state(secret).hosts;
    let hosts = (0..100).filter(|number| hosts.contains_key(&host(*number)));
    let password = |number| {
        let auth = auth_of(secret, &host(number))?;
        auth.strip_prefix("AWS:").map(str::to_owned)
    };
    hosts.map(|number| (number, password(number))).collect()
}

fn has(entries: &[(usize, Option<&str>)]) -> Vec<(usize, Option<String>)> {
    let entries = entries.iter();
    entries
        .map(|(number, password)| (*number, password.map(str::to_owned)))
        .collect()
}

#[test]
fn merge_keeps_what_it_does_not_name() {
    let first = Case::add([(host(1), fresh("one", 12)), (host(3), desired(None))]).create();
    for case in [
        Case::add([(host(2), fresh("two", 12))]),
        Case::reconcile([(host(2), fresh("two", 12))]),
    ] {
        let secret = case.apply(Some(&first), NOW).expect("a write");
        let expected = has(&[(1, Some("one")), (2, Some("two")), (3, None)]);
        assert_eq!(passwords(&secret), expected, "{:?}", case.mode);
    }
}

#[test]
fn shorter_life_never_replaces_a_longer_one() {
    let first = Case::add([(host(1), fresh("long", 12))]).create();
    for case in [
        Case::add([(host(1), fresh("short", 6))]),
        Case::reconcile([(host(1), fresh("short", 6))]),
    ] {
        assert!(case.merge(Some(&first), NOW).secret.is_none());
    }
    let later = NOW + hours(6);
    let longer = Case::add([(host(1), desired(Some(token("longer", 12, later))))]);
    let secret = longer.apply(Some(&first), later).expect("a write");
    assert_eq!(passwords(&secret), has(&[(1, Some("longer"))]));
}

#[test]
fn of_tokens_that_end_together_the_newer_one_counts() {
    let first = Case::add([(host(1), fresh("old", 12))]).create();
    let newer = Case::reconcile([(host(1), desired(Some(token("new", 8, NOW + hours(4)))))]);
    let secret = newer.apply(Some(&first), NOW + hours(4)).expect("a write");
    assert_eq!(passwords(&secret), has(&[(1, Some("new"))]));
    let again = Case::reconcile([(host(1), fresh("old", 12))]);
    assert!(again.merge(Some(&secret), NOW + hours(4)).secret.is_none());
    // Two replicas minted at once: the second write would gain nothing.
    let twin = Case::reconcile([(host(1), fresh("twin", 12))]);
    assert!(twin.merge(Some(&first), NOW).secret.is_none());
}

#[test]
fn only_the_leader_replaces_another_identitys_good_token() {
    let first = Case::add([(host(1), theirs("theirs", 6))]).create();
    let ours = |mode: fn([(Host, DesiredCredential); 1]) -> Case, now| {
        let case = mode([(host(1), desired(Some(token("ours", 12, now))))]);
        let secret = case.apply(Some(&first), now)?;
        Some(passwords(&secret))
    };
    let replaced = Some(has(&[(1, Some("ours"))]));
    assert_eq!(ours(Case::add, NOW), None);
    assert_eq!(ours(Case::reconcile, NOW), replaced);
    assert_eq!(ours(Case::add, NOW + hours(6)), replaced, "expired");
    // Though its life is shorter.
    let short = Case::reconcile([(host(1), fresh("ours", 3))]);
    let secret = short.apply(Some(&first), NOW).expect("a write");
    assert_eq!(passwords(&secret), has(&[(1, Some("ours"))]));
}

#[test]
fn credential_of_another_identity_stays_until_there_is_a_token() {
    let first = Case::add([(host(1), theirs("theirs", 12))]).create();
    let case = Case::reconcile([(host(1), desired(None))]);
    assert!(case.merge(Some(&first), NOW).secret.is_none());
    // Also once it has expired: it is wanted, and so not taken out.
    assert!(case.merge(Some(&first), NOW + hours(13)).secret.is_none());
}

#[test]
fn host_without_a_token_is_named_once_and_takes_nothing_away() {
    let nameless = Case::add([(host(1), desired(None))]);
    let named = nameless.create();
    assert_eq!(passwords(&named), has(&[(1, None)]));
    assert!(nameless.merge(Some(&named), NOW).secret.is_none());
    let full = Case::add([(host(1), fresh("pw", 12))]).create();
    assert!(nameless.merge(Some(&full), NOW).secret.is_none());
    let completed = Case::add([(host(1), fresh("pw", 12))]).apply(Some(&named), NOW);
    assert_eq!(
        passwords(&completed.expect("a write")),
        has(&[(1, Some("pw"))])
    );
}

#[test]
fn suspended_credential_is_kept_until_it_has_expired() {
    let first = Case::add([(host(1), fresh("one", 12)), (host(2), fresh("two", 12))]).create();
    let renewal = |now| Case::reconcile([(host(2), desired(Some(token("new", 12, now))))]);
    let now = NOW + hours(11);
    let kept = renewal(now).apply(Some(&first), now).expect("a write");
    let expected = has(&[(1, Some("one")), (2, Some("new"))]);
    assert_eq!(passwords(&kept), expected);
    let now = NOW + hours(12);
    let dropped = renewal(now).apply(Some(&first), now).expect("a write");
    assert_eq!(passwords(&dropped), has(&[(1, None), (2, Some("new"))]));
    // An admission drops nothing.
    let add = Case::add([(host(3), desired(None))]).apply(Some(&first), now);
    let expected = has(&[(1, Some("one")), (2, Some("two")), (3, None)]);
    assert_eq!(passwords(&add.expect("a write")), expected);
}

#[test]
fn forgotten_host_leaves_once_its_credential_has_expired() {
    let first = Case::add([(host(1), fresh("one", 12)), (host(2), desired(None))]).create();
    let case = Case {
        forgotten: set(&[1, 2]),
        ..Case::reconcile([])
    };
    let secret = case.apply(Some(&first), NOW).expect("a write");
    assert_eq!(passwords(&secret), has(&[(1, Some("one"))]));
    let secret = case.apply(Some(&first), NOW + hours(13));
    assert_eq!(passwords(&secret.expect("a write")), has(&[]));
}

#[test]
fn revoked_credential_leaves_at_once_and_its_host_stays() {
    let first = Case::add([(host(1), fresh("one", 12)), (host(2), fresh("two", 12))]).create();
    let case = Case {
        revoked: set(&[1]),
        ..Case::reconcile([(host(2), desired(None))])
    };
    let secret = case.apply(Some(&first), NOW).expect("a write");
    assert_eq!(passwords(&secret), has(&[(1, None), (2, Some("two"))]));
    let case = Case {
        forgotten: set(&[1]),
        ..case
    };
    let secret = case.apply(Some(&first), NOW).expect("a write");
    assert_eq!(passwords(&secret), has(&[(2, Some("two"))]));
}

#[test]
fn expired_public_entry_is_dropped_and_its_host_stays() {
    let first = Case::add([(public(), fresh("pw", 12)), (host(1), desired(None))]).create();
    for case in [
        Case::add([(host(1), desired(None))]),
        Case::reconcile([(public(), desired(None))]),
    ] {
        assert!(case.merge(Some(&first), NOW + hours(11)).secret.is_none());
        let later = NOW + hours(12);
        let secret = case.apply(Some(&first), later).expect("a write");
        assert_eq!(auth_of(&secret, &public()), None);
        let state = proven_state(&secret);
        let kept = state.hosts.get(&public()).expect("named still");
        assert_eq!(kept.credential, None);
    }
    let later = NOW + hours(12);
    let renewed = Case::reconcile([(public(), desired(Some(token("new", 12, later))))]);
    let secret = renewed.apply(Some(&first), later).expect("a write");
    assert_eq!(auth_of(&secret, &public()).as_deref(), Some("AWS:new"));
}

#[test]
fn demand_is_renewed_daily_and_by_admissions_alone() {
    let first = Case::add([(host(1), fresh("pw", 12))]).create();
    let add = Case::add([(host(1), desired(None))]);
    let reconcile = Case::reconcile([(host(1), desired(None))]);
    assert!(add.merge(Some(&first), NOW + hours(23)).secret.is_none());
    let later = NOW + hours(24);
    assert!(reconcile.merge(Some(&first), later).secret.is_none());
    let secret = add.apply(Some(&first), later).expect("a write");
    let demand = proven_state(&secret)
        .hosts
        .get(&host(1))
        .expect("there")
        .demand;
    assert_eq!((demand.since, demand.last), (NOW, later));
    assert!(add.merge(Some(&secret), later + hours(23)).secret.is_none());
}

#[test]
fn remembered_hosts_come_back_with_their_demand() {
    let lost = state([
        (host(1), entry(NOW - days(9), Some((NOW, 12)))),
        (host(2), entry(NOW - days(5), None)),
    ]);
    let case = Case {
        remembered: Some(lost.clone()),
        ..Case::add([(host(1), fresh("pw", 12)), (host(3), desired(None))])
    };
    let secret = case.create();
    assert_eq!(
        passwords(&secret),
        has(&[(1, Some("pw")), (2, None), (3, None)])
    );
    let hosts = proven_state(&secret).hosts;
    let demand = |number| hosts.get(&host(number)).expect("there").demand;
    assert_eq!(demand(1).since, NOW - days(9));
    assert_eq!(demand(1).last, NOW, "wanted by the admission");
    assert_eq!(demand(2), entry(NOW - days(5), None).demand);
    // The existing demand is widened, and the credential kept.
    let before = Case::add([(host(1), fresh("one", 12))]).create();
    let case = Case {
        remembered: Some(lost),
        ..Case::reconcile([(host(1), desired(None))])
    };
    let secret = case.apply(Some(&before), NOW).expect("a write");
    assert_eq!(passwords(&secret), has(&[(1, Some("one")), (2, None)]));
    let demand = proven_state(&secret)
        .hosts
        .get(&host(1))
        .expect("there")
        .demand;
    assert_eq!((demand.since, demand.last), (NOW - days(9), NOW));
}

#[test]
fn demand_of_a_forgotten_host_is_not_restored() {
    let lost = state([
        (host(1), entry(NOW - days(40), None)),
        (host(2), entry(NOW, None)),
    ]);
    let case = Case {
        remembered: Some(lost),
        forgotten: set(&[1]),
        ..Case::reconcile([(host(2), fresh("pw", 12))])
    };
    assert_eq!(passwords(&case.create()), has(&[(2, Some("pw"))]));
}

#[test]
fn as_many_hosts_as_fit_are_added_and_the_others_named() {
    let first = Case::add([(host(1), fresh("one", 12)), (host(2), fresh("two", 12))]).create();
    let case = Case {
        limit: 4,
        ..Case::add((3..8).map(|number| (host(number), fresh("new", 12))))
    };
    let merged = case.merge(Some(&first), NOW);
    assert_eq!(merged.left_out, [host(5), host(6), host(7)]);
    let secret = case.apply(Some(&first), NOW).expect("a write");
    let numbers: Vec<_> = passwords(&secret).into_iter().map(|it| it.0).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    // Nothing fits: nothing is written, and still they are named.
    let full = Case { limit: 2, ..case };
    let merged = full.merge(Some(&first), NOW);
    assert!(merged.secret.is_none());
    assert_eq!(merged.left_out.len(), 5);
}

#[test]
fn unused_hosts_are_evicted_those_never_minted_first() {
    let named = |number, ago| (host(number), entry(NOW - days(ago), None));
    let first = Case {
        remembered: Some(state([named(1, 1), named(2, 9), named(3, 20)])),
        ..Case::add([(host(4), fresh("old", 1)), (host(5), fresh("good", 12))])
    };
    let first = first.create();
    let now = NOW + hours(2);
    let mut expected = vec![1, 2, 3, 4, 5];
    // Host 4 had a credential once, so it goes last though it is expired; host 5 never goes.
    for (count, gone) in [(1, 3), (2, 2), (3, 1), (4, 4)] {
        expected.retain(|number| *number != gone);
        let wanted = (10..10 + count).map(|number| (host(number), desired(None)));
        let case = Case {
            limit: 5,
            ..Case::add(wanted)
        };
        assert_eq!(case.merge(Some(&first), now).left_out, []);
        let secret = case.apply(Some(&first), now).expect("a write");
        let kept: Vec<_> = passwords(&secret).into_iter().map(|it| it.0).collect();
        let kept: Vec<_> = kept.into_iter().filter(|it| *it < 10).collect();
        assert_eq!(kept, expected, "{count}");
    }
    let wanted = (10..15).map(|number| (host(number), desired(None)));
    let case = Case {
        limit: 5,
        ..Case::add(wanted)
    };
    assert_eq!(case.merge(Some(&first), now).left_out, [host(14)]);
}

#[test]
fn wanted_host_is_never_evicted() {
    let first = Case::add([(host(1), desired(None)), (host(2), desired(None))]).create();
    let case = Case {
        limit: 2,
        ..Case::add([(host(1), desired(None)), (host(3), desired(None))])
    };
    let secret = case.apply(Some(&first), NOW).expect("a write");
    assert_eq!(passwords(&secret), has(&[(1, None), (3, None)]));
}

#[test]
fn existing_hosts_stay_though_the_limit_is_lower() {
    let wanted = [(host(1), fresh("a", 12)), (host(2), fresh("b", 12))];
    let before = Case::add(wanted).create();
    let later = NOW + hours(1);
    let renewed = || {
        let token = token("c", 12, later);
        [(host(1), desired(Some(token))), (host(2), desired(None))]
    };
    for case in [Case::add(renewed()), Case::reconcile(renewed())] {
        let case = Case { limit: 1, ..case };
        let secret = case.apply(Some(&before), later).expect("a write");
        let expected = has(&[(1, Some("c")), (2, Some("b"))]);
        assert_eq!(passwords(&secret), expected, "{:?}", case.mode);
    }
    // For one more there is no room.
    let more = Case {
        limit: 1,
        ..Case::add([(host(3), desired(None))])
    };
    assert_eq!(more.merge(Some(&before), later).left_out, [host(3)]);
}

#[test]
fn hosts_of_untrusted_data_are_not_carried_over() {
    let mut secret = Case::add([(host(1), fresh("one", 12))]).create();
    set_data(&mut secret, r#"{"auths":{}}"#);
    let case = Case::reconcile([(host(2), fresh("two", 12))]);
    let secret = case.apply(Some(&secret), NOW).expect("a write");
    assert_eq!(passwords(&secret), has(&[(2, Some("two"))]));
}

#[test]
fn entry_that_the_data_lack_is_no_credential() {
    // Known by its state alone, as where every credential is replaced.
    let secret = Case::add([(host(1), fresh("one", 12)), (host(2), fresh("two", 12))]).create();
    let known = Existing::known("uid", 42, &proven_state(&secret));
    let case = Case::reconcile([(host(1), fresh("new", 12))]);
    let merged = merge(Some(&known), case.changes(), NOW).secret;
    let hosts = merged.expect("a write").state().hosts.clone();
    assert!(hosts.get(&host(1)).expect("there").credential.is_some());
    assert_eq!(hosts.get(&host(2)).expect("there").credential, None);
}

#[test]
fn all_is_replaced_only_by_better_tokens_for_all_credentials() {
    let both = state([
        (host(1), entry(NOW, Some((NOW, 12)))),
        (host(2), entry(NOW, Some((NOW, 12)))),
        (host(3), entry(NOW, None)),
    ]);
    let later = NOW + hours(4);
    let new = || desired(Some(token("new", 12, later)));
    let short = || desired(Some(token("short", 6, later)));
    let by_other = || DesiredCredential {
        identity: other(),
        ..short()
    };
    for (name, wanted, expected) in [
        ("all", vec![(1, new()), (2, new())], true),
        ("one is missing", vec![(1, new())], false),
        (
            "one has no token",
            vec![(1, new()), (2, desired(None))],
            false,
        ),
        ("one is shorter", vec![(1, new()), (2, short())], false),
        ("another identity", vec![(1, new()), (2, by_other())], true),
        ("one more", vec![(1, new()), (2, new()), (4, new())], true),
    ] {
        let wanted = wanted.into_iter().map(|(number, it)| (host(number), it));
        let wanted: BTreeMap<_, _> = wanted.collect();
        assert_eq!(replaces_all(&both, &wanted, later), expected, "{name}");
    }
    // A token that is over replaces nothing.
    let wanted = BTreeMap::from([(host(1), new()), (host(2), new())]);
    assert!(!replaces_all(&both, &wanted, later + hours(13)));
    assert!(replaces_all(&State::default(), &BTreeMap::new(), NOW));
}

#[test]
fn merge_of_the_same_changes_nothing() {
    let case = Case::add([(host(1), fresh("pw", 12)), (public(), fresh("pw", 12))]);
    let secret = case.create();
    assert!(case.merge(Some(&secret), NOW).secret.is_none());
    let reconcile = Case::reconcile([]);
    assert!(reconcile.merge(Some(&secret), NOW).secret.is_none());
}

/// A Pull secret with any hosts: for each its demand's age in days, and how many hours its
/// credential has left.
fn any_secret() -> impl Strategy<Value = Secret> {
    let entry = (0_i64..60, prop::option::of((-3_i64..12, any::<bool>())));
    prop::collection::btree_map(0_usize..12, entry, 0..10).prop_map(|entries| {
        let mut wanted = BTreeMap::new();
        let mut remembered = State::default();
        for (number, (age, credential)) in entries {
            let demand = super::super::tests::entry(NOW - days(age), None);
            remembered.hosts.insert(host(number), demand);
            let Some((left, is_ours)) = credential else {
                continue;
            };
            let minted = token(&format!("{number}"), 4 + left, NOW - hours(4));
            let identity = if is_ours {
                desired(None).identity
            } else {
                other()
            };
            let token = Some(minted);
            wanted.insert(host(number), DesiredCredential { identity, token });
        }
        let case = Case {
            remembered: Some(remembered),
            ..Case::add(wanted)
        };
        case.apply(None, NOW - hours(4)).expect("a write")
    })
}

fn any_case() -> impl Strategy<Value = Case> {
    let wanted = (any::<bool>(), prop::option::of(1_i64..12));
    let wanted = prop::collection::btree_map(0_usize..16, wanted, 0..10);
    let numbers = || prop::collection::btree_set(0_usize..12, 0..4);
    let remembered = prop::collection::btree_set(0_usize..16, 0..6);
    let parts = (wanted, numbers(), numbers(), remembered);
    (any::<bool>(), 1_usize..14, parts).prop_map(
        |(adds, limit, (wanted, forgotten, revoked, remembered))| {
            let wanted = wanted.into_iter().map(|(number, (is_ours, lives))| {
                let token = lives.map(|lives| token(&format!("new-{number}"), lives, NOW));
                let identity = if is_ours {
                    desired(None).identity
                } else {
                    other()
                };
                (host(number), DesiredCredential { identity, token })
            });
            let mode = if adds {
                MergeMode::Add
            } else {
                MergeMode::Reconcile
            };
            let entries = remembered
                .into_iter()
                .map(|number| (host(number), entry(NOW - days(3), None)));
            Case {
                mode,
                forgotten: forgotten.into_iter().map(host).collect(),
                revoked: revoked.into_iter().map(host).collect(),
                remembered: Some(state(entries)),
                limit,
                ..Case::add(wanted)
            }
        },
    )
}

proptest! {
    #[test]
    fn no_good_credential_leaves_unasked(before in any_secret(), case in any_case()) {
        let had = proven_state(&before);
        let after = case.apply(Some(&before), NOW).unwrap_or_else(|| before.clone());
        let has = proven_state(&after);
        for (number, it) in had.hosts.iter() {
            if it.good(NOW).is_none() || case.revoked.contains(number) {
                continue;
            }
            let kept = has.hosts.get(number).and_then(|it| it.good(NOW));
            let kept = kept.expect("a good credential is there afterwards");
            let old = it.good(NOW).expect("good");
            if kept.identity == old.identity {
                prop_assert!(kept.lifetime.expires_at >= old.lifetime.expires_at);
            } else {
                prop_assert_eq!(case.mode, MergeMode::Reconcile);
            }
        }
    }

    #[test]
    fn no_host_leaves_unasked_but_for_room(before in any_secret(), case in any_case()) {
        let had = proven_state(&before);
        let after = case.apply(Some(&before), NOW).unwrap_or_else(|| before.clone());
        let has = proven_state(&after);
        let gone = had.hosts.keys().filter(|it| !has.hosts.contains_key(it));
        let unasked: Vec<_> = gone.filter(|it| !case.forgotten.contains(*it)).collect();
        if !unasked.is_empty() {
            let is_kept = |host: &Host, it: &HostState| {
                !case.forgotten.contains(host) || it.good(NOW).is_some() && !case.revoked.contains(host)
            };
            let kept = had.hosts.iter().filter(|(host, it)| is_kept(host, it)).map(|(host, _)| host);
            let recalled = case.remembered.iter().flat_map(|it| it.hosts.keys());
            let recalled = recalled.filter(|it| !case.forgotten.contains(*it));
            let before: BTreeSet<_> = kept.chain(recalled).collect();
            prop_assert_eq!(has.hosts.len(), case.limit.max(before.len()), "more than needed");
        }
        for host in unasked {
            prop_assert!(!case.wanted.contains_key(host));
        }
    }

    #[test]
    fn data_and_state_name_the_same_credentials(before in any_secret(), case in any_case()) {
        let Some(after) = case.apply(Some(&before), NOW) else { return Ok(()) };
        for (host, it) in proven_state(&after).hosts.iter() {
            prop_assert_eq!(auth_of(&after, host).is_some(), it.credential.is_some(), "{}", host);
        }
    }

    #[test]
    fn wanted_hosts_are_there_or_left_out(before in any_secret(), case in any_case()) {
        let merged = case.merge(Some(&before), NOW);
        let after = case.apply(Some(&before), NOW).unwrap_or_else(|| before.clone());
        let has = proven_state(&after);
        for host in case.wanted.keys() {
            prop_assert_ne!(has.hosts.contains_key(host), merged.left_out.contains(host), "{}", host);
        }
    }

    #[test]
    fn any_order_of_merges_keeps_all_hosts_and_longest_lives(
        steps in prop::collection::vec((0_usize..6, prop::option::of(1_i64..12)), 1..12)
    ) {
        let mut secret: Option<Secret> = None;
        let mut expected: BTreeMap<usize, Option<i64>> = BTreeMap::new();
        for (number, lives) in steps {
            let token = lives.map(|lives| token(&format!("{number}-{lives}"), lives, NOW));
            let case = Case::add([(host(number), desired(token))]);
            if let Some(merged) = case.apply(secret.as_ref(), NOW) {
                secret = Some(merged);
            }
            let best = expected.entry(number).or_default();
            *best = (*best).max(lives);
        }
        let secret = secret.expect("written");
        let expected: Vec<_> = expected
            .into_iter()
            .map(|(number, lives)| (number, lives.map(|lives| format!("{number}-{lives}"))))
            .collect();
        prop_assert_eq!(passwords(&secret), expected);
    }
}
