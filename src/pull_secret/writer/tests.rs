//! Unit tests of the writer, against one Secret in memory.

use std::{
    collections::VecDeque,
    sync::{
        MutexGuard,
        atomic::{AtomicBool, AtomicI64, Ordering::SeqCst},
    },
};

use futures::future::BoxFuture;
use jiff::Timestamp;
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::Time};

use super::*;
use crate::{
    cli::metrics::Metrics,
    cluster::changes::Changes as Changed,
    pull_secret::{
        Observed,
        seal::StateKeys,
        tests::{
            Case, NAMESPACE_UID, NOW, auth_of, days, desired, entry, fresh, host, hours, keys,
            proven_state, set_data, state, team, token,
        },
    },
};

/// One Secret, stored as the API server would, and the calls for it.
#[derive(Default)]
struct Stub(Mutex<Stored>);

#[derive(Default)]
struct Stored {
    secret: Option<Secret>,
    /// The errors of the next applies.
    refusals: VecDeque<CallError>,
    /// Hosts that another replica adds, each right before an apply of ours.
    rivals: VecDeque<usize>,
    gets: usize,
    applies: usize,
    deletes: usize,
}

impl Stub {
    fn stored(&self) -> MutexGuard<'_, Stored> {
        self.0.lock().expect("a lock")
    }

    /// Returns the numbers of reads and writes.
    fn calls(&self) -> (usize, usize) {
        let stored = self.stored();
        (stored.gets, stored.applies)
    }

    fn secret(&self) -> Secret {
        self.stored().secret.clone().expect("a Secret")
    }

    fn set(&self, secret: Secret) {
        self.stored().secret = Some(secret);
    }

    /// Changes the Secret as another client would.
    fn edit(&self, change: impl FnOnce(&mut Secret)) -> Secret {
        let mut secret = self.secret();
        change(&mut secret);
        let version = crate::cluster::watch::version(&secret.metadata) + 1;
        secret.metadata.resource_version = Some(version.to_string());
        self.set(secret.clone());
        secret
    }
}

impl SecretApi for Stub {
    fn get<'a>(
        &'a self,
        _: &'a Namespace,
        _: Instant,
    ) -> BoxFuture<'a, Result<Option<Secret>, CallError>> {
        Box::pin(async {
            let mut stored = self.stored();
            stored.gets += 1;
            Ok(stored.secret.clone())
        })
    }

    fn apply<'a>(
        &'a self,
        _: &'a Namespace,
        secret: &'a Secret,
        _: Instant,
    ) -> BoxFuture<'a, Result<Secret, CallError>> {
        Box::pin(async {
            let mut stored = self.stored();
            stored.applies += 1;
            if let Some(refusal) = stored.refusals.pop_front() {
                return Err(refusal);
            }
            if let Some(number) = stored.rivals.pop_front() {
                let case = Case::add([(host(number), fresh("rival", 12))]);
                stored.secret = case.apply(stored.secret.as_ref(), NOW);
            }
            let required = &secret.metadata;
            let mut written = secret.clone();
            match &stored.secret {
                None if required.uid.is_none() => {
                    written.metadata.uid = Some("secret-uid".into());
                    // Later than any that there was before.
                    written.metadata.resource_version = Some("1000".into());
                    written.metadata.creation_timestamp = Some(Time(NOW));
                }
                Some(known)
                    if known.metadata.uid == required.uid
                        && known.metadata.resource_version == required.resource_version =>
                {
                    let version = crate::cluster::watch::version(&known.metadata) + 1;
                    written.metadata.resource_version = Some(version.to_string());
                    let created_at = known.metadata.creation_timestamp.clone();
                    written.metadata.creation_timestamp = created_at;
                }
                _ => return Err(CallError::Conflict),
            }
            stored.secret = Some(written.clone());
            Ok(written)
        })
    }

    fn delete<'a>(
        &'a self,
        _: &'a Namespace,
        uid: &'a str,
        version: &'a str,
        _: Instant,
    ) -> BoxFuture<'a, Result<(), CallError>> {
        Box::pin(async move {
            let mut stored = self.stored();
            stored.deletes += 1;
            let metadata = stored.secret.as_ref().map(|secret| &secret.metadata);
            let is_that = metadata.is_none_or(|metadata| {
                metadata.uid.as_deref() == Some(uid)
                    && metadata.resource_version.as_deref() == Some(version)
            });
            if !is_that {
                return Err(CallError::Conflict);
            }
            stored.secret = None;
            Ok(())
        })
    }
}

/// It stands still until it is set.
#[derive(Default)]
struct StoppedClock(AtomicI64);

impl Clock for StoppedClock {
    fn now(&self) -> Timestamp {
        NOW + jiff::SignedDuration::from_secs(self.0.load(SeqCst))
    }
}

struct Lease(AtomicBool);

impl Fence for Lease {
    fn holds(&self) -> bool {
        self.0.load(SeqCst)
    }
}

struct Fixture {
    api: Arc<Stub>,
    clock: Arc<StoppedClock>,
    secrets: PullSecrets,
    writer: Writer,
    lease: Lease,
}

fn fixture() -> Fixture {
    fixture_with(keys())
}

fn fixture_with(keys: StateKeys) -> Fixture {
    let (api, clock) = (Arc::<Stub>::default(), Arc::<StoppedClock>::default());
    let secrets = PullSecrets::new(
        keys,
        Arc::new(|_| Some(NAMESPACE_UID.into())),
        clock.clone(),
        Changed::default(),
        Metrics::default().pull_secret,
    );
    let writer = Writer::new(
        api.clone(),
        "ecr-pull-secret".to_owned(),
        secrets.clone(),
        clock.clone(),
    );
    let lease = Lease(AtomicBool::new(true));
    Fixture {
        api,
        clock,
        secrets,
        writer,
        lease,
    }
}

fn settings() -> NamespaceSettings {
    NamespaceSettings {
        uid: NAMESPACE_UID.into(),
        ..NamespaceSettings::default()
    }
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn wanted<const N: usize>(
    hosts: [(usize, DesiredCredential); N],
) -> BTreeMap<Host, DesiredCredential> {
    let hosts = hosts.into_iter();
    hosts.map(|(number, it)| (host(number), it)).collect()
}

impl Fixture {
    fn later(&self, by: jiff::SignedDuration) -> Timestamp {
        self.clock.0.fetch_add(by.as_secs(), SeqCst);
        self.clock.now()
    }

    /// Has a Secret stored and known.
    fn given<const N: usize>(&self, hosts: [(usize, DesiredCredential); N]) -> Secret {
        let secret = Case::add(wanted(hosts)).create();
        self.api.set(secret.clone());
        self.secrets.record_write(&team(), NAMESPACE_UID, &secret);
        secret
    }

    async fn add<const N: usize>(
        &self,
        hosts: [(usize, DesiredCredential); N],
    ) -> Result<Added, PullSecretError> {
        self.add_within(64, false, hosts).await
    }

    async fn add_within<const N: usize>(
        &self,
        limit: usize,
        replaces_tampered: bool,
        hosts: [(usize, DesiredCredential); N],
    ) -> Result<Added, PullSecretError> {
        let addition = Addition {
            wanted: &wanted(hosts),
            limit,
            replaces_tampered,
        };
        let writer = &self.writer;
        writer.add(&team(), &settings(), addition, deadline()).await
    }

    fn known(&self) -> Option<Arc<Entry>> {
        self.secrets.get(&team())
    }

    /// Reconciles by what is known.
    async fn reconcile<const N: usize>(
        &self,
        hosts: [(usize, DesiredCredential); N],
    ) -> Result<WriteOutcome, PullSecretError> {
        let basis = self.known();
        self.reconcile_from(basis.as_deref(), None, hosts).await
    }

    async fn reconcile_from<const N: usize>(
        &self,
        basis: Option<&Entry>,
        remembered: Option<&State>,
        hosts: [(usize, DesiredCredential); N],
    ) -> Result<WriteOutcome, PullSecretError> {
        let nothing = BTreeSet::new();
        let planned = Planned {
            basis,
            wanted: &wanted(hosts),
            forgotten: &nothing,
            revoked: &nothing,
            remembered,
            limit: 64,
            fence: &self.lease,
        };
        let writer = &self.writer;
        writer
            .reconcile(&team(), &settings(), planned, deadline())
            .await
    }

    /// The hosts of the stored Secret that have a credential.
    fn served(&self) -> Vec<usize> {
        let secret = self.api.secret();
        let numbers = 0..40;
        numbers
            .filter(|number| auth_of(&secret, &host(*number)).is_some())
            .collect()
    }

    fn is_managed(&self) -> bool {
        let known = self.known().expect("known");
        matches!(known.observed(), Observed::Managed(_))
    }
}

/// An admission's write with room for all.
const WRITTEN: Result<Added, String> = Ok(Added::Written(vec![]));

/// A result that can be compared.
fn plain<T>(result: Result<T, PullSecretError>) -> Result<T, String> {
    result.map_err(|error| error.as_str().to_owned())
}

#[tokio::test(start_paused = true)]
async fn first_admission_creates_without_a_read() {
    let fixture = fixture();
    assert_eq!(plain(fixture.add([(1, fresh("pw", 12))]).await), WRITTEN);
    assert_eq!(fixture.api.calls(), (0, 1));
    assert_eq!(fixture.served(), [1]);
    assert!(fixture.is_managed(), "our own write is known by its answer");
    assert!(fixture.writer.is_usable(&team(), &[host(1)]));
    assert!(!fixture.writer.is_usable(&team(), &[host(1), host(2)]));
    // The next one needs no call.
    let unchanged = Ok(Added::Unchanged(vec![]));
    assert_eq!(plain(fixture.add([(1, fresh("pw", 12))]).await), unchanged);
    assert_eq!(fixture.api.calls(), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn second_admission_adds_to_the_first() {
    let fixture = fixture();
    fixture.given([(1, fresh("pw", 12))]);
    let added = fixture.add([(1, desired(None)), (2, fresh("pw", 12)), (3, desired(None))]);
    assert_eq!(plain(added.await), WRITTEN);
    assert_eq!(fixture.served(), [1, 2]);
    let hosts = [host(1), host(2), host(3)];
    assert!(fixture.writer.names_all(&team(), &hosts));
    assert!(!fixture.writer.names_all(&team(), &[host(4)]));
    assert!(!fixture.writer.is_usable(&team(), &[host(3)]));
}

#[tokio::test(start_paused = true)]
async fn admission_reads_and_merges_again_after_a_conflict() {
    for rivals in [0, 1, 3, 11] {
        let fixture = fixture();
        fixture.api.stored().rivals = (2..2 + rivals).collect();
        assert_eq!(plain(fixture.add([(1, fresh("pw", 12))]).await), WRITTEN);
        let applies = rivals + 1;
        assert_eq!(fixture.api.calls(), (applies - 1, applies));
        assert_eq!(fixture.served(), (1..2 + rivals).collect::<Vec<_>>());
    }
}

#[tokio::test(start_paused = true)]
async fn admission_gives_up_after_twelve_conflicts() {
    let fixture = fixture();
    fixture.api.stored().rivals = (2..30).collect();
    let added = fixture.add([(1, fresh("pw", 12))]).await;
    assert_eq!(plain(added), Err("conflict".to_owned()));
    assert_eq!(fixture.api.calls(), (11, 12));
}

#[tokio::test(start_paused = true)]
async fn admission_ends_at_its_deadline() {
    let fixture = fixture();
    fixture.api.stored().refusals = vec![CallError::Guard("not yet".into()); 12].into();
    let wanted = wanted([(1, fresh("pw", 12))]);
    let addition = Addition {
        wanted: &wanted,
        limit: 64,
        replaces_tampered: false,
    };
    let deadline = Instant::now() + Duration::from_millis(400);
    let writer = &fixture.writer;
    let added = writer.add(&team(), &settings(), addition, deadline).await;
    assert_eq!(plain(added), Err("deadline".to_owned()));
    assert_eq!(fixture.api.calls().1, 3);
}

#[tokio::test(start_paused = true)]
async fn refusal_by_the_guard_is_tried_again() {
    for (refusals, expected) in [
        (1, WRITTEN),
        (11, WRITTEN),
        (12, Err("kube_api_rejected".to_owned())),
    ] {
        let fixture = fixture();
        let refusal = CallError::Guard("not yet".into());
        fixture.api.stored().refusals = vec![refusal; refusals].into();
        assert_eq!(plain(fixture.add([(1, fresh("pw", 12))]).await), expected);
        let writes = 12.min(refusals + 1);
        assert_eq!(fixture.api.calls().1, writes, "{refusals}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_failures_cost_one_write() {
    for (error, label) in [
        (CallError::Refused("Too long".into()), "kube_api_rejected"),
        (CallError::Failed("500".into()), "kube_api_error"),
        (CallError::Timeout("no answer".into()), "kube_api_error"),
    ] {
        let fixture = fixture();
        fixture.api.stored().refusals = vec![error; 12].into();
        let added = fixture.add([(1, fresh("pw", 12))]).await;
        assert_eq!(plain(added), Err(label.to_owned()));
        assert_eq!(fixture.api.calls(), (0, 1), "{label}");
    }
}

#[tokio::test(start_paused = true)]
async fn leaders_failures_cost_one_write() {
    for (error, label) in [
        (CallError::Guard("not yet".into()), "kube_api_rejected"),
        (CallError::Refused("Too long".into()), "kube_api_rejected"),
        (CallError::Failed("500".into()), "kube_api_error"),
    ] {
        let fixture = fixture();
        fixture.api.stored().refusals = vec![error; 12].into();
        let written = fixture.reconcile([(1, fresh("pw", 12))]).await;
        assert_eq!(plain(written), Err(label.to_owned()));
        assert_eq!(fixture.api.calls(), (0, 1), "{label}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_key_nothing_is_written() {
    let fixture = fixture_with(StateKeys::default());
    let no_key = "no_state_key".to_owned();
    let added = fixture.add([(1, fresh("pw", 12))]).await;
    assert_eq!(plain(added), Err(no_key.clone()));
    let written = fixture.reconcile([(1, fresh("pw", 12))]).await;
    assert_eq!(plain(written), Err(no_key));
    assert_eq!(fixture.api.calls(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn admissions_of_one_process_are_serialized() {
    let fixture = fixture();
    let (one, other) = tokio::join!(
        fixture.add([(1, fresh("pw", 12))]),
        fixture.add([(2, fresh("pw", 12))])
    );
    assert_eq!((plain(one), plain(other)), (WRITTEN, WRITTEN));
    assert_eq!(fixture.api.calls().1, 2, "no conflict");
    assert_eq!(fixture.served(), [1, 2]);
    assert!(fixture.writer.0.locks.lock().expect("a lock").is_empty());
}

#[tokio::test(start_paused = true)]
async fn demand_is_written_once_a_day() {
    let fixture = fixture();
    let life = |now| (1, desired(Some(token("pw", 12, now))));
    fixture.given([life(NOW)]);
    let now = fixture.later(hours(23));
    let renewed = fixture.reconcile([life(now)]).await;
    assert_eq!(plain(renewed), Ok(WriteOutcome::Written(vec![])));
    let unchanged = Ok(Added::Unchanged(vec![]));
    assert_eq!(plain(fixture.add([life(now)]).await), unchanged);
    fixture.later(hours(1));
    assert_eq!(plain(fixture.add([(1, desired(None))]).await), WRITTEN);
    let demand = proven_state(&fixture.api.secret())
        .hosts
        .get(&host(1))
        .expect("there")
        .demand;
    assert_eq!((demand.since, demand.last), (NOW, NOW + days(1)));
}

#[tokio::test(start_paused = true)]
async fn hosts_without_room_are_named_and_the_others_written() {
    let fixture = fixture();
    fixture.given([(1, fresh("pw", 12))]);
    let both = || [(2, fresh("pw", 12)), (3, fresh("pw", 12))];
    let added = fixture.add_within(2, false, both()).await;
    assert_eq!(plain(added), Ok(Added::Written(vec![host(3)])));
    let added = fixture.add_within(2, false, both()).await;
    assert_eq!(plain(added), Ok(Added::Unchanged(vec![host(3)])));
    assert_eq!(fixture.served(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn foreign_secret_is_never_written() {
    let fixture = fixture();
    fixture.given([(1, fresh("pw", 12))]);
    let foreign = fixture.api.edit(|secret| secret.metadata.labels = None);
    fixture.secrets.changed(&foreign.metadata);
    let added = fixture.add([(2, fresh("pw", 12))]).await;
    assert_eq!(plain(added), Err("foreign".to_owned()));
    let written = fixture.reconcile([(2, fresh("pw", 12))]).await;
    assert_eq!(plain(written), Err("foreign".to_owned()));
    assert_eq!(fixture.api.calls().1, 0);
    // Reading a foreign Secret is no failure.
    let observed = fixture
        .writer
        .observe(&team(), &settings(), deadline())
        .await;
    assert_eq!(plain(observed), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn tampered_secret_is_replaced_only_after_a_read() {
    let fixture = fixture();
    fixture.given([(1, fresh("pw", 12))]);
    let edited = fixture.api.edit(|it| set_data(it, r#"{"auths":{}}"#));
    fixture.secrets.changed(&edited.metadata);
    let new = || [(2, fresh("pw", 12))];
    let claimed = Ok(Added::Tampered(vec![host(1)]));
    assert_eq!(plain(fixture.add(new()).await), claimed);
    assert_eq!(fixture.api.calls(), (1, 0));
    assert_eq!(plain(fixture.add_within(64, true, new()).await), WRITTEN);
    // Its hosts are still wanted.
    assert_eq!(fixture.served(), [2]);
    assert!(fixture.writer.names_all(&team(), &[host(1), host(2)]));
}

#[tokio::test(start_paused = true)]
async fn deleted_secret_comes_back_with_its_hosts() {
    let fixture = fixture();
    let had = fixture.given([(1, fresh("pw", 12)), (3, desired(None))]);
    fixture.api.stored().secret = None;
    let mut metadata = had.metadata;
    metadata.resource_version = Some("43".into());
    fixture.secrets.deleted(&metadata);
    assert_eq!(plain(fixture.add([(2, fresh("pw", 12))]).await), WRITTEN);
    let hosts = [host(1), host(2), host(3)];
    assert!(fixture.writer.names_all(&team(), &hosts));
    assert_eq!(fixture.served(), [2]);
}

#[tokio::test(start_paused = true)]
async fn admission_brings_back_what_an_older_copy_lacks() {
    let fixture = fixture();
    let old = fixture.given([(1, fresh("pw", 12))]);
    assert_eq!(plain(fixture.add([(2, fresh("pw", 12))]).await), WRITTEN);
    // A backup tool puts the old one back.
    let reverted = fixture.api.edit(|secret| {
        secret.data = old.data.clone();
        secret.metadata.annotations = old.metadata.annotations.clone();
    });
    fixture.secrets.changed(&reverted.metadata);
    assert_eq!(plain(fixture.add([(3, fresh("pw", 12))]).await), WRITTEN);
    assert_eq!(fixture.served(), [1, 3]);
    assert!(
        fixture
            .writer
            .names_all(&team(), &[host(1), host(2), host(3)])
    );
}

#[tokio::test(start_paused = true)]
async fn revisions_grow_though_the_clock_does_not() {
    let fixture = fixture();
    let revision = |fixture: &Fixture| proven_state(&fixture.api.secret()).revision;
    let mut last = 0;
    for number in 1..5 {
        assert_eq!(
            plain(fixture.add([(number, fresh("pw", 12))]).await),
            WRITTEN
        );
        assert!(revision(&fixture) > last);
        last = revision(&fixture);
        fixture.later(-hours(1));
    }
}

#[tokio::test(start_paused = true)]
async fn leader_renews_without_a_read_where_all_is_replaced() {
    let fixture = fixture();
    fixture.given([(1, fresh("old", 12)), (2, fresh("old", 12))]);
    let now = fixture.later(hours(4));
    let new = || desired(Some(token("new", 12, now)));
    let renewed = fixture.reconcile([(1, new()), (2, new())]).await;
    assert_eq!(plain(renewed), Ok(WriteOutcome::Written(vec![])));
    assert_eq!(fixture.api.calls(), (0, 1));
    // Else it reads what it has to keep.
    let now = fixture.later(hours(4));
    let newer = desired(Some(token("newer", 12, now)));
    let renewed = fixture.reconcile([(1, newer), (2, desired(None))]).await;
    assert_eq!(plain(renewed), Ok(WriteOutcome::Written(vec![])));
    assert_eq!(fixture.api.calls(), (1, 2));
    let secret = fixture.api.secret();
    assert_eq!(auth_of(&secret, &host(1)).as_deref(), Some("AWS:newer"));
    assert_eq!(auth_of(&secret, &host(2)).as_deref(), Some("AWS:new"));
    let unchanged = fixture
        .reconcile([(1, desired(None)), (2, desired(None))])
        .await;
    assert_eq!(plain(unchanged), Ok(WriteOutcome::Unchanged));
}

#[tokio::test(start_paused = true)]
async fn leader_writes_over_no_version_but_the_planned_one() {
    let fixture = fixture();
    fixture.given([(1, fresh("pw", 12))]);
    let basis = fixture.known().expect("known");
    assert_eq!(plain(fixture.add([(2, fresh("pw", 12))]).await), WRITTEN);
    let now = fixture.later(hours(4));
    let new = desired(Some(token("new", 12, now)));
    let (gets, applies) = fixture.api.calls();
    let outcome = fixture.reconcile_from(Some(&basis), None, [(1, new)]).await;
    assert_eq!(plain(outcome), Ok(WriteOutcome::Moved));
    assert_eq!(fixture.api.calls(), (gets, applies), "nothing was called");
    // Nor where there is one against the plan, or none.
    let outcome = fixture
        .reconcile_from(None, None, [(1, fresh("pw", 12))])
        .await;
    assert_eq!(plain(outcome), Ok(WriteOutcome::Moved));
    fixture.secrets.record_absent(&team());
    let outcome = fixture
        .reconcile_from(Some(&basis), None, [(1, fresh("pw", 12))])
        .await;
    assert_eq!(plain(outcome), Ok(WriteOutcome::Moved));
    assert_eq!(fixture.api.calls(), (gets, applies));
}

#[tokio::test(start_paused = true)]
async fn leader_never_removes_what_another_replica_added() {
    // By an apply that conflicts, and by a read that tells before.
    for is_all_replaced in [true, false] {
        let fixture = fixture();
        fixture.given([(1, fresh("old", 12)), (3, fresh("old", 12))]);
        // The watch doesn't know of it yet.
        let other = Case::add(wanted([(2, fresh("theirs", 12))]));
        let theirs = other
            .apply(Some(&fixture.api.secret()), NOW)
            .expect("a write");
        fixture.api.set(theirs);
        let now = fixture.later(hours(4));
        let new = || desired(Some(token("new", 12, now)));
        let third = || {
            if is_all_replaced {
                new()
            } else {
                desired(None)
            }
        };
        let outcome = fixture.reconcile([(1, new()), (3, third())]).await;
        assert_eq!(plain(outcome), Ok(WriteOutcome::Moved));
        assert_eq!(fixture.api.calls(), (1, usize::from(is_all_replaced)));
        assert!(
            fixture.writer.names_all(&team(), &[host(2)]),
            "it is known now"
        );
        // Though the same is planned, the next write keeps it.
        let outcome = fixture.reconcile([(1, new()), (3, third())]).await;
        assert_eq!(plain(outcome), Ok(WriteOutcome::Written(vec![])));
        assert_eq!(fixture.served(), [1, 2, 3]);
        let theirs = auth_of(&fixture.api.secret(), &host(2));
        assert_eq!(theirs.as_deref(), Some("AWS:theirs"));
    }
}

#[tokio::test(start_paused = true)]
async fn leaders_creation_loses_against_an_admissions() {
    let fixture = fixture();
    fixture.api.stored().rivals = [2].into();
    let outcome = fixture.reconcile([(1, fresh("pw", 12))]).await;
    assert_eq!(plain(outcome), Ok(WriteOutcome::Moved));
    assert_eq!(fixture.served(), [2]);
    let outcome = fixture.reconcile([(1, fresh("pw", 12))]).await;
    assert_eq!(plain(outcome), Ok(WriteOutcome::Written(vec![])));
    assert_eq!(fixture.served(), [1, 2]);
}

#[tokio::test(start_paused = true)]
async fn leader_that_lost_the_lease_writes_nothing() {
    let fixture = fixture();
    fixture.lease.0.store(false, SeqCst);
    let outcome = fixture.reconcile([(1, fresh("pw", 12))]).await;
    assert_eq!(plain(outcome), Err("not_leading".to_owned()));
    assert_eq!(fixture.api.calls(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn listed_state_whose_data_were_changed_is_planned_again() {
    let fixture = fixture();
    let secret = Case::add(wanted([(1, fresh("pw", 12)), (2, fresh("pw", 12))])).create();
    fixture.api.set(secret);
    let edited = fixture.api.edit(|it| set_data(it, r#"{"auths":{}}"#));
    let mut list = fixture.secrets.begin_list();
    fixture.secrets.listed(&edited.metadata, &mut list);
    let now = fixture.later(hours(4));
    let new = || [(1, desired(Some(token("new", 12, now))))];
    let outcome = fixture.reconcile(new()).await;
    assert_eq!(plain(outcome), Ok(WriteOutcome::Moved));
    assert_eq!(fixture.api.calls(), (1, 0));
    // Planned as a repair, it is written with all that it had.
    let basis = fixture.known().expect("known");
    let had = basis.observed().remembered().cloned();
    let outcome = fixture
        .reconcile_from(Some(&basis), had.as_ref(), new())
        .await;
    assert_eq!(plain(outcome), Ok(WriteOutcome::Written(vec![])));
    assert!(fixture.writer.names_all(&team(), &[host(1), host(2)]));
}

#[tokio::test(start_paused = true)]
async fn same_password_renewed_twice_is_no_edit() {
    let fixture = fixture();
    fixture.given([(1, fresh("pw", 12))]);
    for _ in 0..2 {
        let now = fixture.later(hours(4));
        let same = desired(Some(token("pw", 12, now)));
        let outcome = fixture.reconcile([(1, same)]).await;
        assert_eq!(plain(outcome), Ok(WriteOutcome::Written(vec![])));
        assert!(fixture.is_managed());
        fixture.secrets.changed(&fixture.api.secret().metadata);
        assert!(fixture.is_managed());
        // And to another replica, which only watches.
        let other = fixture_with(keys());
        other.secrets.changed(&fixture.api.secret().metadata);
        assert!(other.is_managed());
    }
}

#[tokio::test(start_paused = true)]
async fn unread_secret_is_read_once_for_all_who_wait() {
    let fixture = fixture();
    let secret = Case::add(wanted([(1, fresh("pw", 12))])).create();
    fixture.api.set(secret.clone());
    let mut list = fixture.secrets.begin_list();
    fixture.secrets.listed(&secret.metadata, &mut list);
    let settings = settings();
    let look = || async {
        plain(
            fixture
                .writer
                .read_if_unread(&team(), &settings, deadline())
                .await,
        )
    };
    assert_eq!(
        tokio::join!(look(), look(), look()),
        (Ok(()), Ok(()), Ok(()))
    );
    assert_eq!(fixture.api.calls(), (1, 0));
    assert!(fixture.is_managed());
}

#[tokio::test(start_paused = true)]
async fn opted_out_secret_is_deleted_only_unwanted_and_ours() {
    let remove = async |fixture: &Fixture, is_wanted: bool| {
        let (writer, lease) = (&fixture.writer, &fixture.lease);
        plain(
            writer
                .remove(&team(), move |_| is_wanted, lease, deadline())
                .await,
        )
    };
    let fixture = fixture();
    assert_eq!(remove(&fixture, false).await, Ok(true), "there is none");
    fixture.given([(1, fresh("pw", 12))]);
    assert_eq!(remove(&fixture, true).await, Ok(false));
    fixture.lease.0.store(false, SeqCst);
    assert_eq!(remove(&fixture, false).await, Err("not_leading".to_owned()));
    fixture.lease.0.store(true, SeqCst);
    let foreign = fixture
        .api
        .edit(|secret| secret.type_ = Some("Opaque".into()));
    assert_eq!(remove(&fixture, false).await, Err("foreign".to_owned()));
    assert_eq!(fixture.api.stored().deletes, 0);
    assert_eq!(fixture.api.secret(), foreign);
    fixture.given([(1, fresh("pw", 12))]);
    assert_eq!(remove(&fixture, false).await, Ok(true));
    assert!(fixture.api.stored().secret.is_none() && fixture.known().is_none());
}

#[tokio::test(start_paused = true)]
async fn removal_checks_the_claims_of_an_untrusted_secret() {
    let fixture = fixture();
    fixture.given([(1, fresh("pw", 12))]);
    let claims = state([(host(1), entry(NOW, Some((NOW, 12))))]);
    let is_wanted = |existing: &Existing| {
        assert_eq!(existing.state, None, "nothing is proven to it");
        existing.claims.as_ref().map(|state| &state.hosts) == Some(&claims.hosts)
    };
    let (writer, lease) = (&fixture.writer, &fixture.lease);
    let removed = writer.remove(&team(), is_wanted, lease, deadline()).await;
    assert_eq!(plain(removed), Ok(false));
}

#[test]
fn full_secret_names_the_hosts_left_out() {
    let text = |hosts| PullSecretError::Full { hosts, limit: 64 }.to_string();
    let room = "limits.registriesPerSecret allows 64 hosts";
    for (hosts, names) in [
        (vec![], "more registries".to_owned()),
        (vec![host(1)], host(1).to_string()),
        (
            vec![host(1), host(2), host(3)],
            format!("{} and 2 more", host(1)),
        ),
    ] {
        let expected = format!("the pull secret has no room for {names}; {room}");
        assert_eq!(text(hosts), expected);
    }
}
