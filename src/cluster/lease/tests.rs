//! Unit tests of `lease`.

use std::{
    convert::Infallible,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
};

use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use kube::client::Body;
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle, time::timeout_at};

use super::*;
use crate::{
    cli::metrics::Metrics, cluster::namespace::Namespace, process::clock::settable::SettableClock,
    telemetry::log::captured::Log,
};

const DURATION: Duration = Duration::from_secs(15);
const DEADLINE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
/// The most by which tokio's timers may be late.
const TICK: Duration = Duration::from_millis(2);

/// The one Lease, with the preconditions of the real API server.
#[derive(Clone, Default)]
struct FakeLease(Arc<Mutex<Stored>>);

#[derive(Default)]
struct Stored {
    lease: Option<Value>,
    version: u64,
    made: u64,
    /// The time and the holder of each write.
    writes: Vec<(Instant, String)>,
    refused: u32,
}

/// The API server's behaviour for one client.
#[derive(Default)]
struct Treatment {
    hangs: AtomicBool,
    hangs_after_writing: AtomicBool,
    forbids: AtomicBool,
    forbids_writes: AtomicBool,
}

impl FakeLease {
    fn client(&self, treatment: &Arc<Treatment>) -> Client {
        let (this, treatment) = (self.clone(), treatment.clone());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (this, treatment) = (this.clone(), treatment.clone());
            async move { Ok::<_, Infallible>(this.answer(request, &treatment).await) }
        });
        Client::new(service, "default")
    }

    async fn answer(&self, request: Request<Body>, treatment: &Treatment) -> Response<Full<Bytes>> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.expect("a body").to_bytes();
        assert_eq!(
            head.uri.path(),
            "/apis/coordination.k8s.io/v1/namespaces/ecr-injector/leases/ecr-injector"
        );
        let writes = head.method == Method::PUT;
        if treatment.hangs.load(SeqCst) {
            std::future::pending::<()>().await;
        }
        let forbids =
            treatment.forbids.load(SeqCst) || writes && treatment.forbids_writes.load(SeqCst);
        let (status, object) = if forbids {
            self.stored().refused += 1;
            let message = format!("User \"us\" cannot {} resource \"leases\"", head.method);
            status(StatusCode::FORBIDDEN, "Forbidden", &message)
        } else if writes {
            self.put(serde_json::from_slice(&body).expect("JSON"))
        } else {
            let lease = self.stored().lease.clone();
            lease.map_or_else(
                || status(StatusCode::NOT_FOUND, "NotFound", "not found"),
                |lease| (StatusCode::OK, lease),
            )
        };
        if writes && treatment.hangs_after_writing.swap(false, SeqCst) {
            std::future::pending::<()>().await;
        }
        let body = Full::from(object.to_string());
        Response::builder().status(status).body(body).expect("one")
    }

    fn put(&self, mut lease: Value) -> (StatusCode, Value) {
        let mut stored = self.stored();
        let wanted = &lease["metadata"];
        match &stored.lease {
            None if !wanted["uid"].is_null() => {
                return status(StatusCode::CONFLICT, "Conflict", "it has no such uid");
            }
            None => stored.made += 1,
            Some(_) if wanted["resourceVersion"].is_null() => {
                let message =
                    "metadata.resourceVersion: Invalid value: 0: must be specified for an update";
                return status(StatusCode::UNPROCESSABLE_ENTITY, "Invalid", message);
            }
            Some(found)
                if wanted["uid"] != found["metadata"]["uid"]
                    || wanted["resourceVersion"] != found["metadata"]["resourceVersion"] =>
            {
                return status(StatusCode::CONFLICT, "Conflict", "it was modified");
            }
            Some(_) => {}
        }
        stored.version += 1;
        lease["metadata"]["resourceVersion"] = json!(stored.version.to_string());
        lease["metadata"]["uid"] = json!(format!("uid-{}", stored.made));
        let holder = lease["spec"]["holderIdentity"].as_str().unwrap_or_default();
        let write = (Instant::now(), holder.to_owned());
        stored.writes.push(write);
        stored.lease = Some(lease.clone());
        (StatusCode::OK, lease)
    }

    /// Changes the Lease like another client, without a precondition.
    fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut stored = self.stored();
        stored.version += 1;
        let version = json!(stored.version.to_string());
        let lease = stored.lease.as_mut().expect("a Lease");
        change(lease);
        lease["metadata"]["resourceVersion"] = version;
    }

    fn stored(&self) -> MutexGuard<'_, Stored> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lease(&self) -> Value {
        self.stored().lease.clone().expect("a Lease")
    }

    fn last_write_of(&self, holder: &str) -> Instant {
        let stored = self.stored();
        let mut writes = stored.writes.iter().rev();
        writes.find(|(_, by)| by == holder).expect("a write").0
    }

    fn first_write_of(&self, holder: &str) -> Instant {
        let stored = self.stored();
        let mut writes = stored.writes.iter();
        writes.find(|(_, by)| by == holder).expect("a write").0
    }
}

fn status(code: StatusCode, reason: &str, message: &str) -> (StatusCode, Value) {
    let object = json!({"apiVersion": "v1", "kind": "Status", "status": "Failure",
            "message": message, "reason": reason, "code": code.as_u16()});
    (code, object)
}

/// A replica that takes part in the election, with the term of its work.
struct Replica {
    identity: String,
    treatment: Arc<Treatment>,
    clock: Arc<SettableClock>,
    metrics: Metrics,
    stop: CancellationToken,
    term: watch::Receiver<Option<Leadership>>,
    task: JoinHandle<()>,
}

/// The behaviour of a replica's work.
#[derive(Clone, Copy, Default)]
enum Work {
    /// Ends when the term is over.
    #[default]
    Good,
    /// Ends this long after the term.
    Slow(Duration),
    Returns,
    Panics,
}

fn settings() -> Settings {
    let namespace = Namespace::parse("ecr-injector").expect("a name");
    Settings::new(namespace, "ecr-injector", "pod")
}

fn replica(api: &FakeLease) -> Replica {
    replica_with(api, Work::default(), &Arc::default())
}

fn replica_with(api: &FakeLease, work: Work, treatment: &Arc<Treatment>) -> Replica {
    let clock = Arc::new(SettableClock::default());
    let metrics = Metrics::default();
    let client = api.client(treatment);
    let elector = Elector::new(client, settings(), clock.clone(), metrics.cluster.clone())
        .expect("good ones");
    let identity = elector.identity().to_owned();
    let (sender, term) = watch::channel(None);
    let sender = Arc::new(sender);
    let stop = CancellationToken::new();
    let task = tokio::spawn(elector.run(stop.clone(), move |leadership| {
        let sender = sender.clone();
        async move {
            sender.send_replace(Some(leadership.clone()));
            let _over = Over(sender);
            match work {
                Work::Good => leadership.lost().await,
                Work::Slow(more) => {
                    leadership.lost().await;
                    sleep(more).await;
                }
                Work::Returns => {}
                Work::Panics => panic!("the work panics"),
            }
        }
    }));
    Replica {
        identity,
        treatment: treatment.clone(),
        clock,
        metrics,
        stop,
        term,
        task,
    }
}

/// Records that the work is over when dropped.
struct Over(Arc<watch::Sender<Option<Leadership>>>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.send_replace(None);
    }
}

impl Replica {
    fn works(&self) -> bool {
        self.term.borrow().is_some()
    }

    async fn begins(&mut self, within: Duration) -> Leadership {
        let deadline = Instant::now() + within;
        let begun = timeout_at(deadline, self.term.wait_for(Option::is_some)).await;
        begun
            .expect("a term")
            .expect("a replica")
            .clone()
            .expect("one")
    }

    async fn ends(&mut self, within: Duration) {
        let deadline = Instant::now() + within;
        let ended = timeout_at(deadline, self.term.wait_for(Option::is_none)).await;
        let _ = ended.expect("no end of the term");
    }

    fn metric(&self, line: &str) -> bool {
        self.metrics
            .registry
            .to_text()
            .lines()
            .any(|found| found == line)
    }
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

#[tokio::test(start_paused = true)]
async fn exactly_one_of_many_replicas_leads() {
    let api = FakeLease::default();
    let replicas: Vec<_> = (0..8).map(|_| replica(&api)).collect();
    sleep(seconds(3)).await;
    let first = replicas.iter().position(Replica::works);
    for _ in 0..600 {
        let leading: Vec<_> = replicas.iter().filter(|one| one.works()).collect();
        assert_eq!(leading.len(), 1);
        sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(replicas.iter().position(Replica::works), first);
    let lease = api.lease();
    let leader = &replicas[first.expect("one leads")];
    assert_eq!(lease["spec"]["holderIdentity"], leader.identity);
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 15);
    assert_eq!(lease["spec"]["leaseTransitions"], 0);
    assert!(leader.metric("ecr_injector_leader 1"));
    let others = replicas
        .iter()
        .filter(|one| one.metric("ecr_injector_leader 0"));
    assert_eq!(others.count(), 7);
    let writers: std::collections::BTreeSet<_> = api
        .stored()
        .writes
        .iter()
        .map(|(_, by)| by.clone())
        .collect();
    assert_eq!(writers.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn expired_lease_is_taken_over_and_not_before() {
    let api = FakeLease::default();
    let mut first = replica(&api);
    first.begins(seconds(3)).await;
    let acquired = api.lease()["spec"]["acquireTime"].clone();
    let mut second = replica(&api);
    sleep(seconds(33)).await;
    // The process ends as by kill -9.
    first.task.abort();
    second.begins(seconds(20)).await;
    let silent = api.first_write_of(&second.identity) - api.last_write_of(&first.identity);
    assert!(silent >= DURATION, "{silent:?}");
    assert!(silent <= DURATION + RETRY * 3, "{silent:?}");
    let lease = api.lease();
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
    assert_ne!(lease["spec"]["acquireTime"], acquired);
}

#[tokio::test(start_paused = true)]
async fn dropped_election_aborts_its_work() {
    let api = FakeLease::default();
    let mut replica = replica_with(&api, Work::Slow(seconds(1000)), &Arc::default());
    let leadership = replica.begins(seconds(3)).await;
    replica.task.abort();
    replica.ends(seconds(1)).await;
    assert!(!leadership.holds());
}

#[tokio::test(start_paused = true)]
async fn holder_with_hung_api_server_ends_before_another_may_begin() {
    let api = FakeLease::default();
    let mut first = replica(&api);
    let leadership = first.begins(seconds(3)).await;
    let mut second = replica(&api);
    sleep(seconds(21)).await;
    first.treatment.hangs.store(true, SeqCst);
    first.ends(seconds(11)).await;
    let ended = Instant::now();
    assert!(!leadership.holds());
    assert!(ended <= api.last_write_of(&first.identity) + DEADLINE + TICK);
    second.begins(seconds(20)).await;
    let between = api.first_write_of(&second.identity) - ended;
    assert!(between + DEADLINE + TICK >= DURATION, "{between:?}");
    assert!(first.metric(r#"ecr_injector_lease_transitions_total{to="lost"} 1"#));
    // Once the API server responds again, the replica finds another holder.
    first.treatment.hangs.store(false, SeqCst);
    sleep(seconds(30)).await;
    assert!(!first.works() && second.works());
}

#[tokio::test(start_paused = true)]
async fn suspended_machine_loses_its_term_at_once() {
    let api = FakeLease::default();
    let mut replica = replica(&api);
    let leadership = replica.begins(seconds(3)).await;
    sleep(seconds(7)).await;
    let written = api.stored().writes.len();
    assert!(leadership.holds());
    // The monotonic clock stopped meanwhile.
    replica.clock.jump(60);
    assert!(!leadership.holds());
    replica.ends(Duration::from_millis(1)).await;
    assert_eq!(
        api.stored().writes.len(),
        written,
        "it prolonged what was over"
    );
    // There was no other replica.
    assert!(replica.begins(seconds(3)).await.holds());
}

#[tokio::test(start_paused = true)]
async fn suspended_machine_ends_its_term_without_being_asked() {
    let api = FakeLease::default();
    let mut replica = replica(&api);
    replica.begins(seconds(3)).await;
    let written = api.stored().writes.len();
    replica.clock.jump(60);
    replica.ends(seconds(3)).await;
    let writes = api.stored().writes.len();
    assert_eq!(writes, written, "it prolonged what was over");
}

#[tokio::test(start_paused = true)]
async fn clock_set_back_extends_no_term() {
    let api = FakeLease::default();
    let mut replica = replica(&api);
    let leadership = replica.begins(seconds(3)).await;
    replica.treatment.hangs.store(true, SeqCst);
    replica.clock.jump(-3600);
    assert!(leadership.holds());
    replica.ends(DEADLINE + TICK).await;
    assert!(!leadership.holds());
}

#[tokio::test(start_paused = true)]
async fn clock_set_forward_takes_no_lease_from_its_holder() {
    let api = FakeLease::default();
    let mut first = replica(&api);
    first.begins(seconds(3)).await;
    let second = replica(&api);
    for _ in 0..20 {
        sleep(seconds(1)).await;
        second.clock.jump(3600);
        assert!(first.works() && !second.works());
    }
}

#[tokio::test(start_paused = true)]
async fn released_lease_is_taken_over_in_3s() {
    let api = FakeLease::default();
    let mut first = replica(&api);
    let leadership = first.begins(seconds(3)).await;
    let mut second = replica(&api);
    sleep(seconds(20)).await;
    first.stop.cancel();
    second.begins(seconds(3)).await;
    assert!(!leadership.holds());
    first.task.await.expect("an end");
    assert_eq!(api.lease()["spec"]["leaseTransitions"], 1);
    assert!(
        first
            .metrics
            .registry
            .to_text()
            .contains(r#"{to="released"} 1"#)
    );
}

#[tokio::test(start_paused = true)]
async fn lease_is_released_after_the_work_has_ended() {
    let api = FakeLease::default();
    let mut first = replica_with(&api, Work::Slow(seconds(4)), &Arc::default());
    let leadership = first.begins(seconds(3)).await;
    let mut second = replica(&api);
    sleep(seconds(20)).await;
    first.stop.cancel();
    sleep(seconds(3)).await;
    assert!(!leadership.holds());
    assert_eq!(api.lease()["spec"]["holderIdentity"], first.identity);
    assert!(first.works() && !second.works());
    second.begins(seconds(4)).await;
    assert!(!first.works());
    let released = api.last_write_of("");
    assert!(released <= api.first_write_of(&second.identity));
}

#[tokio::test(start_paused = true)]
async fn new_term_waits_for_the_work_of_the_old_one() {
    let api = FakeLease::default();
    let mut replica = replica_with(&api, Work::Slow(seconds(100)), &Arc::default());
    replica.begins(seconds(3)).await;
    replica.clock.jump(60);
    sleep(seconds(90)).await;
    assert!(replica.works(), "the first work");
    replica.ends(seconds(30)).await;
    replica.begins(seconds(30)).await;
}

#[tokio::test(start_paused = true)]
async fn holder_that_finds_another_steps_down() {
    let api = FakeLease::default();
    let mut replica = replica(&api);
    let leadership = replica.begins(seconds(3)).await;
    api.change(|lease| lease["spec"]["holderIdentity"] = json!("another"));
    let written = api.stored().writes.len();
    replica.ends(seconds(3)).await;
    assert!(!leadership.holds());
    sleep(seconds(10)).await;
    assert_eq!(api.stored().writes.len(), written);
}

#[tokio::test(start_paused = true)]
async fn holder_of_a_deleted_lease_steps_down_first() {
    let api = FakeLease::default();
    let mut replica = replica(&api);
    let leadership = replica.begins(seconds(3)).await;
    api.stored().lease = None;
    replica.ends(seconds(3)).await;
    assert!(!leadership.holds());
    replica.begins(seconds(3)).await;
    assert_eq!(api.lease()["metadata"]["uid"], "uid-2");
}

#[tokio::test(start_paused = true)]
async fn label_of_another_client_stays_and_ends_no_term() {
    let api = FakeLease::default();
    let mut replica = replica(&api);
    let leadership = replica.begins(seconds(3)).await;
    let acquired = api.lease()["spec"]["acquireTime"].clone();
    api.change(|lease| lease["metadata"]["labels"]["theirs"] = json!("x"));
    sleep(seconds(30)).await;
    assert!(leadership.holds());
    let lease = api.lease();
    assert_eq!(lease["metadata"]["labels"]["theirs"], "x");
    assert_eq!(lease["spec"]["acquireTime"], acquired);
    assert_eq!(lease["spec"]["leaseTransitions"], 0);
    assert!(replica.works());
}

#[tokio::test(start_paused = true)]
async fn renewal_with_a_lost_response_ends_no_term() {
    let api = FakeLease::default();
    let mut replica = replica(&api);
    let leadership = replica.begins(seconds(3)).await;
    replica.treatment.hangs_after_writing.store(true, SeqCst);
    sleep(seconds(30)).await;
    assert!(!replica.treatment.hangs_after_writing.load(SeqCst));
    assert!(leadership.holds());
}

#[tokio::test(start_paused = true)]
async fn lease_taken_without_a_response_is_recognized() {
    let api = FakeLease::default();
    let treatment = Arc::<Treatment>::default();
    treatment.hangs_after_writing.store(true, SeqCst);
    let mut replica = replica_with(&api, Work::Good, &treatment);
    replica.begins(seconds(6)).await;
}

#[tokio::test(start_paused = true)]
async fn work_that_ends_or_panics_lets_another_replica_try() {
    for work in [Work::Returns, Work::Panics] {
        let api = FakeLease::default();
        let broken = replica_with(&api, work, &Arc::default());
        sleep(seconds(1)).await;
        assert_eq!(api.lease()["spec"]["holderIdentity"], "");
        assert!(broken.metric("ecr_injector_leader 0"));
        let mut good = replica(&api);
        good.begins(seconds(3)).await;
        sleep(seconds(60)).await;
        assert!(good.works());
        // The broken replica tries again when there is no leader.
        let before = api.last_write_of(&broken.identity);
        good.stop.cancel();
        sleep(seconds(30)).await;
        assert!(api.last_write_of(&broken.identity) > before);
    }
}

#[tokio::test(start_paused = true)]
async fn missing_permission_is_logged_once_and_retried_rarely() {
    let log = Log::default();
    let _guard = log.start();
    let api = FakeLease::default();
    let treatment = Arc::<Treatment>::default();
    treatment.forbids.store(true, SeqCst);
    let mut replica = replica_with(&api, Work::Good, &treatment);
    sleep(seconds(600)).await;
    assert_eq!(log.count("not allowed to use the Lease"), 1);
    assert_eq!(log.count("cannot GET resource"), 1);
    let refused = api.stored().refused;
    assert!((10..=25).contains(&refused), "{refused}");
    // Another reason is logged again.
    treatment.forbids.store(false, SeqCst);
    treatment.forbids_writes.store(true, SeqCst);
    sleep(seconds(600)).await;
    assert_eq!(log.count("not allowed to use the Lease"), 2);
    assert_eq!(log.count("cannot PUT resource"), 1);
    treatment.forbids_writes.store(false, SeqCst);
    replica.begins(seconds(35)).await;
    assert_eq!(log.count("not allowed to use the Lease"), 2);
}

#[tokio::test(start_paused = true)]
async fn each_outage_is_logged_once() {
    let log = Log::default();
    let _guard = log.start();
    let api = FakeLease::default();
    let mut replica = replica(&api);
    for outage in 1..=2 {
        replica.begins(seconds(10)).await;
        replica.treatment.hangs.store(true, SeqCst);
        sleep(seconds(600)).await;
        assert_eq!(log.count("operation=\"renew\""), outage);
        assert_eq!(log.count("operation=\"acquire\""), outage);
        replica.treatment.hangs.store(false, SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn stop_is_quick_even_with_a_hung_api_server() {
    let api = FakeLease::default();
    let treatment = Arc::<Treatment>::default();
    treatment.hangs.store(true, SeqCst);
    let waiting = replica_with(&api, Work::Good, &treatment);
    let mut leading = replica(&FakeLease::default());
    leading.begins(seconds(3)).await;
    leading.treatment.hangs.store(true, SeqCst);
    sleep(seconds(3)).await;
    let asked = Instant::now();
    for replica in [waiting, leading] {
        replica.stop.cancel();
        replica.task.await.expect("an end");
    }
    assert!(asked.elapsed() <= RETRY * 2, "{:?}", asked.elapsed());
}

#[test]
fn retry_jitter_is_within_a_fifth() {
    let client = || FakeLease::default().client(&Arc::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let _context = runtime.as_ref().expect("a runtime").enter();
    let clock = Arc::new(SettableClock::default());
    let metrics = Metrics::default().cluster;
    let elector = Elector::new(client(), settings(), clock.clone(), metrics.clone());
    let elector = elector.expect("good settings");
    let pauses: std::collections::BTreeSet<_> = (0..100).map(|_| elector.pause()).collect();
    assert!(pauses.len() > 30);
    assert!(
        pauses
            .iter()
            .all(|pause| (RETRY..=RETRY + RETRY / 5).contains(pause))
    );
    let other = Elector::new(client(), settings(), clock, metrics).expect("good settings");
    assert_ne!(elector.identity(), other.identity());
}
