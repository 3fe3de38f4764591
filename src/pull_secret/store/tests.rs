//! Unit tests of the store: lists, watch events, reads and writes.

use jiff::{SignedDuration, Timestamp};

use super::*;
use crate::{
    cli::metrics::Metrics,
    pull_secret::{
        SecretFacts,
        tests::{
            Case, NAMESPACE_UID, NOW, annotate, desired, fresh, host, hours, keys, proven_state,
            set_data, team, token,
        },
    },
    registry::Host,
};

struct FixedClock;

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        NOW
    }
}

fn store_of(uids: NamespaceUids) -> PullSecrets {
    let (changes, metrics) = (Changes::default(), Metrics::default().pull_secret);
    PullSecrets::new(keys(), uids, Arc::new(FixedClock), changes, metrics)
}

fn store() -> PullSecrets {
    store_of(Arc::new(|_| Some(NAMESPACE_UID.into())))
}

/// A pull secret of one host, in this version.
fn secret(version: u64) -> Secret {
    at(Case::add([(host(1), desired(None))]).create(), version)
}

fn at(mut secret: Secret, version: u64) -> Secret {
    secret.metadata.resource_version = Some(version.to_string());
    secret
}

/// Returns the next write of one of our replicas: one more host.
fn next(before: &Secret, version: u64) -> Secret {
    let number = proven_state(before).hosts.len() + 1;
    let case = Case::add([(host(number), fresh("pw", 12))]);
    at(case.apply(Some(before), NOW).expect("a write"), version)
}

/// The metadata without our state.
fn bare(version: u64) -> ObjectMeta {
    let mut metadata = secret(version).metadata;
    metadata.annotations = None;
    metadata
}

fn listed(store: &PullSecrets, metadata: &ObjectMeta) {
    let mut list = store.begin_list();
    store.listed(metadata, &mut list);
    store.end_list(&list);
}

fn wrote(store: &PullSecrets, secret: &Secret) {
    store.record_write(&team(), NAMESPACE_UID, secret);
}

/// Records a read, as if nothing had been known when the read began.
fn read(store: &PullSecrets, secret: &Secret) {
    store.record_read(&team(), NAMESPACE_UID, secret, None);
}

fn observed(store: &PullSecrets) -> Observed {
    store.get(&team()).expect("known").observed().clone()
}

fn version_of(store: &PullSecrets) -> u64 {
    store.get(&team()).expect("known").version()
}

/// Returns whether the Secret is known to be ours; `None` if no Secret is known.
fn is_managed(store: &PullSecrets) -> Option<bool> {
    let entry = store.get(&team()).filter(|entry| entry.is_there())?;
    Some(matches!(entry.facts(), SecretFacts::Ours(_)))
}

/// Returns why the Secret is unverified, whether its claims are proven, and the number of hosts of
/// the last state that was ours.
fn unverified(store: &PullSecrets) -> (Unverified, bool, Option<usize>) {
    match observed(store) {
        Observed::Unverified {
            is_proven,
            before,
            since,
            ..
        } => (since, is_proven, before.map(|before| before.hosts.len())),
        observed => panic!("{observed:?}"),
    }
}

fn remembered(store: &PullSecrets) -> Option<usize> {
    match store.get(&team())?.observed() {
        Observed::Deleted(state) => state.as_ref().map(|state| state.hosts.len()),
        observed => panic!("{observed:?}"),
    }
}

#[test]
fn old_event_never_replaces_what_we_wrote() {
    let store = store();
    wrote(&store, &secret(7));
    for old in [3, 7] {
        store.changed(&bare(old));
        assert_eq!(is_managed(&store), Some(true), "version {old}");
    }
    store.changed(&bare(8));
    assert_eq!(unverified(&store), (Unverified::Changed, false, Some(1)));
    read(&store, &secret(8));
    assert_eq!(is_managed(&store), Some(true));
}

#[test]
fn newer_proven_state_is_believed_without_a_read() {
    let store = store();
    let first = secret(7);
    store.changed(&first.metadata);
    assert_eq!(is_managed(&store), Some(true), "nothing was known before");
    let second = next(&first, 8);
    store.changed(&second.metadata);
    assert_eq!(observed(&store), Observed::Managed(proven_state(&second)));
    assert_eq!(version_of(&store), 8);
}

#[test]
fn same_or_older_proven_state_has_to_be_read() {
    let first = secret(7);
    let second = next(&first, 8);
    for again in [&second, &first] {
        let store = store();
        wrote(&store, &second);
        store.changed(&at(again.clone(), 9).metadata);
        assert_eq!(unverified(&store), (Unverified::Changed, true, Some(2)));
        assert!(store.get(&team()).expect("known").is_unread());
    }
}

#[test]
fn unproven_state_has_to_be_read_however_new_it_is() {
    let store = store();
    wrote(&store, &secret(7));
    let mut forged = secret(8);
    let mut state = proven_state(&forged);
    state.revision += 1_000_000;
    annotate(&mut forged, &state);
    store.changed(&forged.metadata);
    assert_eq!(unverified(&store), (Unverified::Changed, false, Some(1)));
    // It is told by the read, and what was true is not forgotten.
    read(&store, &forged);
    assert_eq!(unverified(&store), (Unverified::Tampered, false, Some(1)));
    assert!(!store.get(&team()).expect("known").is_unread());
    let state = observed(&store);
    assert_eq!(state.revision(), Some(proven_state(&secret(7)).revision));
}

#[test]
fn listed_state_has_to_be_read_though_it_is_proven() {
    let store = store();
    listed(&store, &secret(7).metadata);
    assert_eq!(unverified(&store), (Unverified::Listed, true, None));
    assert_eq!(is_managed(&store), Some(false));
    assert!(store.get(&team()).expect("known").is_unread());
    read(&store, &secret(7));
    assert_eq!(is_managed(&store), Some(true));
    // A list that has the same version tells nothing new.
    listed(&store, &secret(7).metadata);
    assert_eq!(is_managed(&store), Some(true));
}

#[test]
fn state_is_unproven_while_the_namespace_is_unknown() {
    let store = store_of(Arc::new(|_| None));
    store.changed(&secret(7).metadata);
    assert_eq!(unverified(&store), (Unverified::Changed, false, None));
    let other = store_of(Arc::new(|_| Some("made-again".into())));
    other.changed(&secret(7).metadata);
    assert_eq!(unverified(&other), (Unverified::Changed, false, None));
    other.record_read(&team(), "made-again", &secret(7), None);
    assert_eq!(unverified(&other), (Unverified::Tampered, false, None));
}

#[test]
fn copy_from_another_namespace_is_unproven() {
    let store = store();
    let mut copy = secret(7);
    copy.metadata.namespace = Some("other".into());
    store.changed(&copy.metadata);
    let other = Namespace::parse("other").expect("valid");
    let entry = store.get(&other).expect("known");
    assert!(matches!(
        entry.observed(),
        Observed::Unverified {
            is_proven: false,
            ..
        }
    ));
}

#[test]
fn older_state_that_replaced_a_newer_is_tampered() {
    let store = store();
    let first = secret(7);
    let second = next(&first, 8);
    wrote(&store, &second);
    let reverted = at(first, 9);
    store.changed(&reverted.metadata);
    read(&store, &reverted);
    assert_eq!(unverified(&store), (Unverified::Tampered, true, Some(2)));
    assert_eq!(
        observed(&store).revision(),
        Some(proven_state(&second).revision)
    );
    // Another edit before the repair makes nobody forget the newer state.
    let touched = at(reverted, 10);
    store.changed(&touched.metadata);
    assert_eq!(unverified(&store), (Unverified::Changed, true, Some(2)));
    read(&store, &touched);
    assert_eq!(unverified(&store), (Unverified::Tampered, true, Some(2)));
    store.deleted(&bare(11));
    assert_eq!(remembered(&store), Some(2));
}

#[test]
fn proven_state_that_was_only_listed_is_remembered_by_a_read() {
    let first = secret(7);
    let second = next(&first, 8);
    let mut overwritten = at(second.clone(), 9);
    set_data(&mut overwritten, r#"{"auths":{}}"#);
    for (tampered, is_proven) in [(overwritten, false), (at(first, 9), true)] {
        let store = store();
        listed(&store, &second.metadata);
        // The read is faster than the watch.
        read(&store, &tampered);
        assert_eq!(
            unverified(&store),
            (Unverified::Tampered, is_proven, Some(2))
        );
    }
}

#[test]
fn listed_version_below_the_known_one_is_a_restore() {
    let store = store();
    let yesterday = secret(500);
    let today = next(&yesterday, 1000);
    wrote(&store, &today);
    listed(&store, &yesterday.metadata);
    assert_eq!(version_of(&store), 500);
    assert_eq!(unverified(&store), (Unverified::Listed, true, Some(2)));
    // It is read then, and what was lost is known still.
    store.record_read(&team(), NAMESPACE_UID, &yesterday, Some(500));
    assert_eq!(unverified(&store), (Unverified::Tampered, true, Some(2)));
}

#[test]
fn list_does_not_undo_what_was_written_since_it_began() {
    let store = store();
    let first = secret(7);
    wrote(&store, &first);
    let mut list = store.begin_list();
    wrote(&store, &next(&first, 9));
    store.listed(&first.metadata, &mut list);
    store.end_list(&list);
    assert_eq!((is_managed(&store), version_of(&store)), (Some(true), 9));
}

#[test]
fn read_of_an_older_version_than_asked_for_is_a_restore() {
    let store = store();
    let old = secret(500);
    let new = next(&old, 1000);
    wrote(&store, &new);
    // The read began before our write was known.
    store.record_read(&team(), NAMESPACE_UID, &old, Some(500));
    assert_eq!((is_managed(&store), version_of(&store)), (Some(true), 1000));
    store.record_read(&team(), NAMESPACE_UID, &old, Some(1000));
    assert_eq!(version_of(&store), 500);
    assert_eq!(unverified(&store), (Unverified::Tampered, true, Some(2)));
}

#[test]
fn renewal_with_the_same_password_is_no_edit() {
    let first = at(Case::add([(host(1), fresh("pw", 12))]).create(), 7);
    let later = NOW + hours(4);
    let renewed = Case::reconcile([(host(1), desired(Some(token("pw", 12, later))))]);
    let renewed = at(renewed.apply(Some(&first), later).expect("a write"), 8);
    let (old, new) = (proven_state(&first), proven_state(&renewed));
    assert_eq!(old.digest, new.digest);
    // By our own answer first, and by the watch first.
    for is_by_watch in [false, true] {
        let store = store();
        wrote(&store, &first);
        if is_by_watch {
            store.changed(&renewed.metadata);
            assert_eq!(observed(&store), Observed::Managed(new.clone()));
        }
        wrote(&store, &renewed);
        store.changed(&renewed.metadata);
        assert_eq!(observed(&store), Observed::Managed(new.clone()));
    }
}

#[test]
fn edited_dates_over_the_same_data_are_seen() {
    let store = store();
    let counted = || store.0.metrics.pull_secrets.get();
    let good = at(Case::add([(host(1), fresh("pw", 12))]).create(), 7);
    wrote(&store, &good);
    assert_eq!((is_managed(&store), counted()), (Some(true), 1));
    let mut forged = at(good.clone(), 8);
    let mut state = proven_state(&good);
    let entry = state.hosts.get_mut(&host(1)).expect("there");
    let credential = entry.credential.as_mut().expect("one");
    credential.lifetime.expires_at -= SignedDuration::from_secs(1);
    annotate(&mut forged, &state);
    read(&store, &forged);
    assert_eq!(unverified(&store), (Unverified::Tampered, false, Some(1)));
    read(&store, &at(good, 9));
    assert_eq!((is_managed(&store), counted()), (Some(true), 1));
    store.deleted(&bare(10));
    assert_eq!((is_managed(&store), counted()), (None, 0));
}

#[test]
fn listed_secret_is_remembered_when_it_is_deleted() {
    let store = store();
    let metadata = || secret(7).metadata;
    listed(&store, &metadata());
    store.deleted(&bare(8));
    assert_eq!(remembered(&store), Some(1));
    store.forget_namespace(&team());
    store.changed(&metadata());
    store.deleted(&bare(8));
    assert_eq!(remembered(&store), Some(1));
    store.forget_namespace(&team());
    // Its annotation is taken away, and then it is deleted.
    listed(&store, &metadata());
    store.changed(&bare(8));
    store.deleted(&bare(9));
    assert_eq!(remembered(&store), Some(1));
}

#[test]
fn deleted_forgery_is_not_remembered() {
    let store = store_of(Arc::new(|_| None));
    listed(&store, &secret(7).metadata);
    store.deleted(&bare(8));
    assert_eq!(remembered(&store), None);
}

#[tokio::test(start_paused = true)]
async fn second_deletion_is_remembered_though_the_first_is_old() {
    let store = store();
    wrote(&store, &secret(7));
    store.deleted(&bare(8));
    wrote(&store, &secret(9));
    tokio::time::advance(REMEMBER_DELETED + Duration::from_secs(1)).await;
    store.deleted(&bare(10));
    assert_eq!(remembered(&store), Some(1));
    // Once it is long ago itself, another loss ends it.
    tokio::time::advance(REMEMBER_DELETED + Duration::from_secs(1)).await;
    let other = Namespace::parse("other").expect("valid");
    store.record_write(&other, NAMESPACE_UID, &secret(11));
    store.record_absent(&other);
    assert!(store.get(&team()).is_none() && store.get(&other).is_some());
}

#[test]
fn answer_from_before_a_deletion_brings_nothing_back() {
    let store = store();
    wrote(&store, &secret(7));
    store.deleted(&bare(8));
    store.record_read(&team(), NAMESPACE_UID, &secret(7), Some(7));
    wrote(&store, &secret(7));
    assert_eq!(is_managed(&store), None);
    wrote(&store, &secret(9));
    assert_eq!(is_managed(&store), Some(true));
}

#[test]
fn secret_missing_from_an_old_list_returns_with_an_event() {
    let store = store();
    wrote(&store, &secret(100));
    // A stream that begins with the state of version 90 doesn't have it.
    let list = store.begin_list();
    store.end_list(&list);
    assert_eq!(is_managed(&store), None);
    store.changed(&secret(100).metadata);
    assert_eq!(is_managed(&store), Some(false));
    // One whose deletion was told of is not brought back by what was before.
    store.deleted(&bare(101));
    store.changed(&secret(100).metadata);
    assert_eq!(is_managed(&store), None);
}

#[test]
fn late_deletion_never_removes_what_was_created_since() {
    let store = store();
    wrote(&store, &secret(7));
    store.deleted(&bare(6));
    assert_eq!(is_managed(&store), Some(true));
    store.deleted(&bare(8));
    assert_eq!(is_managed(&store), None);
}

#[test]
fn recreation_by_another_client_has_to_be_read() {
    let store = store();
    let ours = secret(7);
    wrote(&store, &ours);
    store.deleted(&bare(8));
    let mut copy = at(ours, 9);
    copy.metadata.uid = Some("another-uid".into());
    store.changed(&copy.metadata);
    assert_eq!(is_managed(&store), Some(false));
    // By what it was created with it may be ours, of the same revision.
    assert_eq!(unverified(&store), (Unverified::Changed, true, Some(1)));
    // A state that was sealed for the UID of the deleted one is not.
    let later = next(&secret(7), 10);
    let mut copy = later.clone();
    copy.metadata.uid = Some("another-uid".into());
    store.changed(&copy.metadata);
    assert_eq!(unverified(&store), (Unverified::Changed, false, Some(1)));
}

#[test]
fn new_list_removes_what_is_gone_and_keeps_what_was_written() {
    let store = store();
    let first = secret(7);
    wrote(&store, &first);
    let list = store.begin_list();
    wrote(&store, &next(&first, 9));
    store.end_list(&list);
    assert_eq!(is_managed(&store), Some(true), "written since it began");
    let list = store.begin_list();
    store.end_list(&list);
    assert_eq!((is_managed(&store), remembered(&store)), (None, Some(2)));
}

#[test]
fn secret_without_our_label_is_foreign_at_first_sight() {
    let store = store();
    let unlabelled = ObjectMeta {
        labels: None,
        ..secret(3).metadata
    };
    listed(&store, &unlabelled);
    let entry = store.get(&team()).expect("known");
    assert!(matches!(
        entry.facts(),
        SecretFacts::Foreign(Foreign::Label)
    ));
}

#[test]
fn secret_without_a_state_is_known_by_the_hosts_of_its_data() {
    let store = store();
    let mut unstated = secret(7);
    let config = format!(r#"{{"auths": {{"{}": {{"auth": "QVdTOnB3"}}}}}}"#, host(1));
    set_data(&mut unstated, &config);
    unstated.metadata.annotations = None;
    read(&store, &unstated);
    let observed = observed(&store);
    let hosts: Vec<&Host> = observed.claims().expect("hosts").hosts.keys().collect();
    assert_eq!(hosts, [&host(1)]);
    assert_eq!(unverified(&store), (Unverified::Tampered, false, None));
}

#[test]
fn every_change_is_notified() {
    let changes = Changes::default();
    let uids: NamespaceUids = Arc::new(|_| Some(NAMESPACE_UID.into()));
    let clock = Arc::new(FixedClock);
    let store = PullSecrets::new(
        keys(),
        uids,
        clock,
        changes.clone(),
        Metrics::default().pull_secret,
    );
    changes.listen();
    let first = secret(7);
    wrote(&store, &first);
    assert!(changes.take(&team()));
    store.changed(&secret(7).metadata);
    assert!(!changes.take(&team()), "the same version");
    store.changed(&next(&first, 8).metadata);
    assert!(changes.take(&team()));
    store.deleted(&bare(9));
    assert!(changes.take(&team()));
}
