//! One run of the model: processes with the real code in them, over a server that answers when the explorer says so.

mod checks;
mod process;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use ecr_injector::{
    cluster::namespace::Namespace,
    config::Config,
    identity::Identity,
    process::clock::Clock as _,
    pull_secret::{
        DATA_KEY,
        state::{Credential, Demand, HostState, State},
        writer::CallError,
    },
    registry::Host,
    telemetry::otel::Trace,
    token::Lifetime,
};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{ByteString, api::core::v1::Secret};
use serde_json::{Value, json};
use tokio::{
    task::yield_now,
    time::{Instant, advance},
};

use self::{
    checks::shown,
    process::{
        Asked, Call, ManualClock, Process, Reply, SharedGate, key_of, settings, stranger, team,
    },
};
use super::{
    Event, Scenario,
    server::{Request, Server, SharedServer, digest, lock},
};

/// How often the explorer lets all tasks run until none is ready: each time runs whole chains of them.
const ROUNDS: usize = 4;
/// Longer than the leader waits between two writes.
const TICK: Duration = Duration::from_millis(2);
/// Longer than the pause after the first conflicts.
const AFTER_CONFLICT: Duration = Duration::from_millis(16);
/// Longer than the pause after a refusal of the guard.
const AFTER_GUARD: Duration = Duration::from_millis(151);
/// The seconds that pass until all is quiet: retries and backoffs of any length end within.
const QUIET: [u64; 7] = [1, 1, 2, 20, 6 * 60, 6 * 60, 31 * 60];

/// A step that the explorer may take next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// The next event of a script happens.
    Event(usize),
    /// The API server takes a call: what it does, it does now.
    Handle(usize, u64),
    /// A process hears what came of its call.
    Answer(usize, u64),
    /// A watch brings a process its next news.
    Deliver(usize),
    /// A process reads the configuration file.
    Configure(usize),
    /// The watch of namespaces brings a process the opt-in state of the namespace.
    Learn(usize),
}

/// The state that a step reads and changes, as bits: the knowledge of each process, its
/// configuration, and these.
#[derive(Debug, Clone, Copy)]
pub struct Footprint {
    reads: u32,
    writes: u32,
}

/// The first bit of the configurations; those below are what the processes know.
const LOCALS: u32 = 1 << 8;
/// The stored objects, and the test's notes of them.
const SERVER: u32 = 1 << 16;
/// The namespace's label.
const LABEL: u32 = 1 << 17;
/// Whether AWS answers.
const AWS: u32 = 1 << 18;
/// The configuration file.
const FILE: u32 = 1 << 19;
/// Which process leads.
const LIFE: u32 = 1 << 20;

impl Footprint {
    /// Returns whether two steps lead to the same, whichever comes first.
    pub fn is_apart_from(self, other: Self) -> bool {
        self.writes & (other.reads | other.writes) == 0 && other.writes & self.reads == 0
    }
}

/// An admission under way or done.
struct Admission {
    replica: usize,
    namespace: Namespace,
    hosts: BTreeSet<Host>,
    /// Whether the replica knew by the watch of the last damage when the Pod came.
    knew: Option<u64>,
    response: Arc<Mutex<Option<Vec<u8>>>>,
    is_done: bool,
    /// Whether the Pod was reported ready.
    is_ready: bool,
}

/// Why a run is wrong.
#[derive(Debug)]
pub struct Violation(pub String);

/// One run.
pub struct World<'a> {
    scenario: &'a Scenario,
    server: SharedServer,
    gate: SharedGate,
    clock: Arc<ManualClock>,
    is_out: Arc<AtomicBool>,
    processes: Vec<Process>,
    events: Vec<usize>,
    config: usize,
    admissions: Vec<Admission>,
    /// A copy of the Secret that somebody kept.
    copy: Option<Secret>,
    /// The version of the last thing that others did to the Secret, until it has all again.
    damage: Option<u64>,
    /// Whether only a restarted leader could know what was lost.
    is_memory_lost: bool,
    /// The hosts that must be in the Secret in the end.
    wanted: BTreeSet<Host>,
    /// The hosts that the leader was asked to take out.
    revoked: BTreeSet<Host>,
    restarts: u64,
    /// A log of the run for people, if somebody reads one.
    pub story: Option<Vec<String>>,
}

impl<'a> World<'a> {
    /// Sets a scenario up.
    pub async fn new(scenario: &'a Scenario, is_told: bool) -> Result<World<'a>, Violation> {
        let mut world = Self {
            scenario,
            server: Arc::new(Mutex::new(Server::new())),
            gate: SharedGate::default(),
            clock: Arc::default(),
            is_out: Arc::default(),
            processes: Vec::new(),
            events: vec![0; scenario.scripts.len()],
            config: 0,
            admissions: Vec::new(),
            copy: None,
            damage: None,
            is_memory_lost: false,
            wanted: BTreeSet::new(),
            revoked: BTreeSet::new(),
            restarts: 0,
            story: is_told.then(Vec::new),
        };
        for index in 0..scenario.replicas.max(scenario.leader + 1) {
            let process = world.process(index);
            world.processes.push(process);
        }
        for event in scenario.setup {
            match event {
                Event::Pass(seconds) => world.pass(*seconds).await?,
                event => world.happen(event)?,
            }
            world.drain().await?;
        }
        if let Some(story) = &mut world.story {
            story.push("-- all is set up".to_owned());
        }
        Ok(world)
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }

    fn tell(&mut self, text: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(text());
        }
    }

    fn name(&self, process: usize) -> String {
        if process == self.scenario.leader {
            "leader".to_owned()
        } else {
            format!("replica {process}")
        }
    }

    /// Lets every task run until none is ready.
    async fn settle(&mut self) -> Result<(), Violation> {
        for _ in 0..ROUNDS {
            yield_now().await;
        }
        // The leader's pace.
        advance(TICK).await;
        for _ in 0..ROUNDS {
            yield_now().await;
        }
        self.skip_known_news();
        self.check_new_calls()?;
        self.finish_admissions()?;
        for index in 0..self.processes.len() {
            let is_busy = self.is_busy(index);
            let process = &mut self.processes[index];
            process.is_out_for_good =
                !process.is_opted_in.load(SeqCst) && (process.is_out_for_good || !is_busy);
        }
        Ok(())
    }

    fn is_busy(&self, process: usize) -> bool {
        let gate = self.gate.lock().unwrap();
        let is_calling = gate.calls.iter().any(|call| call.process == process);
        let mut admissions = self.admissions.iter();
        is_calling || admissions.any(|it| it.replica == process && !it.is_done)
    }

    /// News of a version that a process knows already changes nothing, whenever it comes.
    fn skip_known_news(&mut self) {
        let server = lock(&self.server);
        for process in &mut self.processes {
            while let Some(news) = server.log.get(process.cursor) {
                let metadata = &news.metadata;
                let namespace = Namespace::parse(metadata.namespace.as_deref().unwrap()).unwrap();
                let version: u64 = metadata
                    .resource_version
                    .as_deref()
                    .unwrap()
                    .parse()
                    .unwrap();
                let known = process.store.get(&namespace);
                if !known.is_some_and(|it| it.is_there() && it.version() >= version) {
                    break;
                }
                process.cursor += 1;
            }
        }
    }

    /// Whether a replica has nothing more to do, so that what it hears and when makes no difference.
    fn is_idle(&self, index: usize) -> bool {
        let scripts = self.scenario.scripts.iter().zip(&self.events);
        let mut events = scripts.flat_map(|(script, at)| &script[*at..]);
        let mut admissions = self.admissions.iter();
        index != self.scenario.leader
            && !events.any(|event| {
                matches!(event, Event::Admit(replica, _) | Event::AdmitStranger(replica, _) if *replica == index)
            })
            && admissions.all(|it| it.replica != index || it.is_ready)
    }

    /// Returns what may happen next and makes a difference.
    pub fn steps(&self) -> Vec<Step> {
        let mut steps = self.all_steps();
        steps.retain(|step| match step {
            Step::Deliver(process) | Step::Configure(process) | Step::Learn(process) => {
                !self.is_idle(*process)
            }
            _ => true,
        });
        steps
    }

    fn all_steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        {
            let gate = self.gate.lock().unwrap();
            let mut calls: Vec<&Call> = gate.calls.iter().collect();
            calls.sort_by_key(|call| (call.process, call.number));
            for call in calls {
                let is_mint = matches!(call.request, Asked::Mint);
                steps.push(if call.answer.is_some() || is_mint {
                    Step::Answer(call.process, call.number)
                } else {
                    Step::Handle(call.process, call.number)
                });
            }
        }
        let server = lock(&self.server);
        for (index, process) in self.processes.iter().enumerate() {
            if process.cursor < server.log.len() {
                steps.push(Step::Deliver(index));
            }
            if process.config < self.config {
                steps.push(Step::Configure(index));
            }
            if process.is_opted_in.load(SeqCst) != server.is_opted_in {
                steps.push(Step::Learn(index));
            }
        }
        for (index, script) in self.scenario.scripts.iter().enumerate() {
            if self.events[index] < script.len() {
                steps.push(Step::Event(index));
            }
        }
        steps
    }

    /// Returns what a step that is possible now reads and changes.
    pub fn footprint(&self, step: Step) -> Footprint {
        let local = |process: usize| 1_u32 << process;
        let config = |process: usize| LOCALS << process;
        let is_admitting = |process: usize| {
            let mut admissions = self.admissions.iter();
            let is_admitting = admissions.any(|it| it.replica == process && !it.is_done);
            if is_admitting { SERVER } else { 0 }
        };
        let (reads, writes) = match step {
            Step::Handle(process, number) => {
                let gate = self.gate.lock().unwrap();
                let is_it = |call: &&Call| call.process == process && call.number == number;
                let call = gate.calls.iter().find(is_it);
                let is_read = call.is_some_and(|it| matches!(it.request, Asked::Api(Request::Get)));
                let life = if process == self.scenario.leader {
                    LIFE
                } else {
                    0
                };
                if is_read {
                    (SERVER | life, 0)
                } else {
                    (LABEL | life | config(process), SERVER)
                }
            }
            Step::Answer(process, _) => (AWS | is_admitting(process), local(process)),
            Step::Deliver(process) => (AWS, local(process)),
            Step::Configure(process) => (AWS, local(process) | config(process)),
            Step::Learn(process) => (AWS | LABEL, local(process)),
            Step::Event(script) => match &self.scenario.scripts[script][self.events[script]] {
                Event::Admit(replica, _) | Event::AdmitStranger(replica, _) => {
                    (AWS | LABEL | SERVER, local(*replica))
                }
                Event::NextConfiguration => (0, FILE),
                Event::Outage(_) => (0, AWS),
                Event::OptIn(_) => (0, LABEL),
                Event::RestartLeader => {
                    let leader = self.scenario.leader;
                    let writes = local(leader) | config(leader) | LIFE;
                    (SERVER | FILE | LABEL | AWS, writes)
                }
                Event::Pass(_) => (0, u32::MAX),
                Event::Quota(_)
                | Event::Delete
                | Event::Edit
                | Event::Forge(_)
                | Event::ForgeStranger(_)
                | Event::Copy
                | Event::PutBack => (0, SERVER),
            },
        };
        Footprint { reads, writes }
    }

    /// Returns a key of all that has an influence on what comes: what is stored and on its way, what each process has heard so
    /// far, and the time.
    pub fn key(&self) -> u64 {
        let server = lock(&self.server);
        let gate = self.gate.lock().unwrap();
        let mut calls: Vec<_> = gate
            .calls
            .iter()
            .map(|call| {
                let answer = call.answer.as_ref().map(key_of);
                (call.process, call.number, answer, call.to.is_some())
            })
            .collect();
        calls.sort_unstable();
        let cursors = self.processes.iter().map(|process| process.cursor);
        let first = cursors.clone().min().unwrap_or_default();
        let processes: Vec<_> = self
            .processes
            .iter()
            .map(|process| {
                (
                    process.history,
                    process.cursor - first,
                    process.is_out_for_good,
                )
            })
            .collect();
        let ghosts = (
            self.damage,
            self.is_memory_lost,
            &self.wanted,
            &self.revoked,
        );
        digest((
            server.key(first),
            calls,
            processes,
            &self.events,
            self.is_out.load(SeqCst),
            self.clock.0.load(SeqCst),
            ghosts,
        ))
    }

    /// Takes a step.
    pub async fn step(&mut self, step: Step) -> Result<(), Violation> {
        match step {
            Step::Event(script) => {
                let event = &self.scenario.scripts[script][self.events[script]];
                self.events[script] += 1;
                if let Event::Pass(seconds) = event {
                    self.pass(*seconds).await?;
                } else {
                    self.happen(event)?;
                }
            }
            Step::Handle(process, number) => self.handle(process, number)?,
            Step::Answer(process, number) => {
                if let Some(pause) = self.answer(process, number) {
                    self.settle().await?;
                    advance(pause).await;
                }
            }
            Step::Deliver(process) => self.deliver(process),
            Step::Configure(process) => {
                let next = self.processes[process].config + 1;
                self.tell(|| format!("{process} takes configuration {next}"));
                let config = self.scenario.configs[next].clone();
                let process = &mut self.processes[process];
                process.config = next;
                process.history = digest((process.history, "config", next));
                assert!(process.live.replace(config).is_empty(), "all live");
            }
            Step::Learn(process) => {
                let is_in = lock(&self.server).is_opted_in;
                let name = self.name(process);
                self.tell(|| format!("{name} learns that the namespace is opted in: {is_in}"));
                let process = &mut self.processes[process];
                process.is_opted_in.store(is_in, SeqCst);
                process.is_out_for_good &= !is_in;
                process.history = digest((process.history, "learn", is_in));
                process.changes.notify(&team());
            }
        }
        self.settle().await
    }

    fn deliver(&mut self, index: usize) {
        let process = &mut self.processes[index];
        let news = lock(&self.server).log[process.cursor].clone();
        process.cursor += 1;
        let what = (process.history, news.is_deletion, news.content);
        process.history = digest(what);
        if news.is_deletion {
            process.store.deleted(&news.metadata);
        } else {
            process.store.changed(&news.metadata);
        }
        let name = self.name(index);
        self.tell(|| {
            let version = news.metadata.resource_version.unwrap_or_default();
            let verb = if news.is_deletion {
                "deleted"
            } else {
                "changed"
            };
            format!("{name} hears by the watch: {verb} at version {version}")
        });
    }

    async fn pass(&mut self, seconds: u64) -> Result<(), Violation> {
        self.tell(|| format!("{seconds} s pass"));
        self.clock.0.fetch_add(seconds, SeqCst);
        advance(Duration::from_secs(seconds)).await;
        for process in &mut self.processes {
            process.history = digest((process.history, "time", seconds));
        }
        self.settle().await
    }

    /// The API server takes a call.
    fn handle(&mut self, process: usize, number: u64) -> Result<(), Violation> {
        let now = self.now();
        let (namespace, request) = {
            let gate = self.gate.lock().unwrap();
            let is_it = |call: &&Call| call.process == process && call.number == number;
            let call = gate.calls.iter().find(is_it).expect("a call");
            let Asked::Api(request) = &call.request else {
                unreachable!("AWS is answered at once")
            };
            (call.namespace.clone(), request.clone())
        };
        let before = lock(&self.server).truth(&namespace);
        let what = match &request {
            Request::Get => "reads",
            Request::Apply(_) => "applies",
            Request::Delete { .. } => "deletes",
        };
        let answer = {
            let mut server = lock(&self.server);
            match &request {
                Request::Get => Ok(server.secrets.get(&namespace).cloned()),
                Request::Apply(_) | Request::Delete { .. }
                    if self.scenario.has_guard && !(namespace == team() && server.is_opted_in) =>
                {
                    Err(CallError::Guard("not opted in".to_owned()))
                }
                Request::Apply(secret) => server.apply(&namespace, secret, now).map(Some),
                Request::Delete { uid, version } => {
                    let is_that = server.secrets.get(&namespace).is_some_and(|stored| {
                        stored.metadata.uid.as_ref() == Some(uid)
                            && stored.metadata.resource_version.as_ref() == Some(version)
                    });
                    if is_that {
                        server.delete(&namespace);
                        Ok(None)
                    } else {
                        Err(CallError::Conflict)
                    }
                }
            }
        };
        let after = lock(&self.server).truth(&namespace);
        let name = self.name(process);
        self.tell(|| {
            let result = match &answer {
                Ok(Some(secret)) => format!("version {}", version_of(secret)),
                Ok(None) => "nothing there".to_owned(),
                Err(error) => format!("{error:?}"),
            };
            format!(
                "{name} #{number} {what}: {result}; stored: {}",
                shown(&after, now)
            )
        });
        if answer.is_ok() && !matches!(request, Request::Get) {
            self.check_write(process, &namespace, &before, &after)?;
        }
        let mut gate = self.gate.lock().unwrap();
        let is_it = |call: &Call| call.process == process && call.number == number;
        let at = gate.calls.iter().position(is_it).expect("a call");
        if gate.calls[at].to.is_none() {
            gate.calls.remove(at);
        } else {
            gate.calls[at].answer = Some(answer);
        }
        Ok(())
    }

    /// A process hears what came of a call. Returns how long it pauses then.
    fn answer(&mut self, index: usize, number: u64) -> Option<Duration> {
        let call = {
            let mut gate = self.gate.lock().unwrap();
            let is_it = |call: &Call| call.process == index && call.number == number;
            let at = gate.calls.iter().position(is_it).expect("a call");
            gate.calls.remove(at)
        };
        let name = self.name(index);
        let process = &mut self.processes[index];
        match (call.to, call.answer) {
            (Some(Reply::Api(to)), Some(answer)) => {
                process.history = digest((process.history, number, key_of(&answer)));
                let pause = match &answer {
                    Err(CallError::Conflict) => Some(AFTER_CONFLICT),
                    Err(CallError::Guard(_)) => Some(AFTER_GUARD),
                    _ => None,
                };
                let _ = to.send(answer);
                self.tell(|| format!("{name} #{number} is answered"));
                pause
            }
            (Some(Reply::Mint(to)), _) => {
                let is_out = self.is_out.load(SeqCst);
                process.history = digest((process.history, number, is_out));
                let _ = to.send(());
                self.tell(|| format!("{name} #{number} is answered by AWS; outage: {is_out}"));
                None
            }
            _ => None,
        }
    }

    /// Something happens that no process of ours decides.
    fn happen(&mut self, event: &Event) -> Result<(), Violation> {
        self.tell(|| format!("{event:?}"));
        let now = self.now();
        match event {
            Event::Admit(replica, hosts) => self.admit(*replica, &team(), hosts),
            Event::AdmitStranger(replica, hosts) => self.admit(*replica, &stranger(), hosts),
            Event::Quota(is_on) => lock(&self.server).has_quota = *is_on,
            Event::Outage(is_on) => {
                self.is_out.store(*is_on, SeqCst);
                for process in &mut self.processes {
                    process.history = digest((process.history, "outage", is_on));
                }
            }
            Event::NextConfiguration => self.config += 1,
            Event::RestartLeader => self.restart_leader(),
            Event::Delete => {
                let mut server = lock(&self.server);
                server.delete(&team());
                self.damage = Some(server.version);
            }
            Event::Edit => {
                let mut server = lock(&self.server);
                if server.secrets.contains_key(&team()) {
                    server.put(&team(), now, |secret| {
                        let data = br#"{"auths":{"a.example":{"auth":"eA=="}}}"#.to_vec();
                        secret.data = Some([(DATA_KEY.to_owned(), ByteString(data))].into());
                    });
                    self.damage = Some(server.version);
                }
            }
            Event::Forge(hosts) => {
                let mut server = lock(&self.server);
                server.forge(&team(), hosts, &forged_state(hosts, now), now);
                self.damage = Some(server.version);
            }
            Event::ForgeStranger(hosts) => {
                lock(&self.server).forge(&stranger(), hosts, &forged_state(hosts, now), now);
            }
            Event::Copy => self.copy = lock(&self.server).secrets.get(&team()).cloned(),
            Event::PutBack => {
                let copy = self.copy.clone().expect("a copy");
                let mut server = lock(&self.server);
                if server.secrets.contains_key(&team()) {
                    server.put(&team(), now, |secret| {
                        secret.metadata.annotations = copy.metadata.annotations;
                        secret.data = copy.data;
                    });
                    self.damage = Some(server.version);
                }
            }
            Event::OptIn(is_in) => lock(&self.server).is_opted_in = *is_in,
            Event::Pass(_) => return Err(Violation("time passes by steps".to_owned())),
        }
        Ok(())
    }

    /// The leader's process ends, with whatever it knew, and another one begins.
    fn restart_leader(&mut self) {
        let leader = self.scenario.leader;
        self.restarts += 1;
        self.is_memory_lost |= self.damage.is_some();
        self.admissions.iter_mut().for_each(|it| {
            it.is_done |= it.replica == leader;
        });
        {
            let mut gate = self.gate.lock().unwrap();
            gate.calls
                .retain(|call| call.process != leader || call.answer.is_none());
            // What was sent may still arrive; nobody hears of it.
            for call in gate.calls.iter_mut().filter(|it| it.process == leader) {
                call.to = None;
            }
            gate.calls.retain(|call| {
                call.to.is_some() || matches!(call.request, Asked::Api(Request::Apply(_)))
            });
        }
        let fresh = self.process(leader);
        let old = std::mem::replace(&mut self.processes[leader], fresh);
        old.stop.cancel();
        if let Some(work) = old.leader {
            work.abort();
        }
    }

    fn admit(&mut self, replica: usize, namespace: &Namespace, hosts: &[&str]) {
        let images: Vec<Value> = hosts
            .iter()
            .map(|host| json!({"name": "app", "image": format!("{host}/app:1")}))
            .collect();
        let body = json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "request": {
                "uid": "1", "operation": "CREATE", "namespace": namespace.as_str(), "dryRun": false,
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "object": {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app"},
                    "spec": {"containers": images}},
            },
        })
        .to_string();
        let process = &mut self.processes[replica];
        let rules = process.live.rules.get();
        let allowed = hosts.iter().filter_map(|host| {
            let key = rules.key_for(host, namespace, &settings(namespace));
            key.map(|(host, _)| host)
        });
        let cursor = process.cursor;
        let knew = lock(&self.server)
            .log
            .get(..cursor)
            .and_then(<[_]>::last)
            .and_then(|news| news.metadata.resource_version.as_deref()?.parse().ok());
        let number = self.admissions.len();
        process.history = digest((process.history, "admit", number, hosts));
        let response = Arc::new(Mutex::new(None));
        self.admissions.push(Admission {
            replica,
            namespace: namespace.clone(),
            hosts: allowed.collect(),
            knew,
            response: response.clone(),
            is_done: false,
            is_ready: false,
        });
        let webhook = process.webhook.clone().expect("a replica");
        tokio::spawn(async move {
            let started = Instant::now();
            let deadline = started + Duration::from_secs(8);
            let mut trace = Trace::default();
            let answer = webhook
                .review(body.as_bytes(), started, deadline, &mut trace)
                .await;
            *response.lock().unwrap() = answer.ok();
        });
    }

    fn finish_admissions(&mut self) -> Result<(), Violation> {
        for index in 0..self.admissions.len() {
            let admission = &self.admissions[index];
            let response = admission.response.lock().unwrap().take();
            let Some(response) = response.filter(|_| !admission.is_done) else {
                continue;
            };
            let response: Value = serde_json::from_slice(&response).unwrap();
            let response = &response["response"];
            let warnings: Vec<&str> = response["warnings"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_str)
                .collect();
            let is_injected = response["patch"].is_string();
            let unready = ["no credential yet", "no room", "the API server rejected"];
            let is_unready = |text: &&str| unready.iter().any(|words| text.contains(words));
            let is_ready = is_injected && !warnings.iter().any(is_unready);
            let (replica, hosts) = (admission.replica, admission.hosts.clone());
            let (knew, namespace) = (admission.knew, admission.namespace.clone());
            self.admissions[index].is_done = true;
            self.admissions[index].is_ready = is_ready;
            let process = &mut self.processes[replica];
            process.history = digest((process.history, "admitted", index, is_ready));
            self.tell(|| {
                format!("Pod {index} is admitted; ready: {is_ready}; warned: {warnings:?}")
            });
            if !is_injected {
                continue;
            }
            if namespace != team() {
                return Err(Violation(format!("I4: a Pod of {namespace} was changed")));
            }
            if is_ready {
                self.check_ready(&hosts, knew)?;
            }
            self.wanted.extend(hosts);
        }
        Ok(())
    }

    /// Everything that is under way ends, in one order.
    async fn drain(&mut self) -> Result<(), Violation> {
        for _ in 0..400 {
            self.settle().await?;
            let mut steps = self.all_steps();
            steps.retain(|step| !matches!(step, Step::Event(_)));
            let Some(step) = steps.first() else {
                return Ok(());
            };
            self.step(*step).await?;
        }
        Err(Violation("I7: it never comes to rest".to_owned()))
    }

    /// Refusals and outages end, all news arrive, and time passes: then everything that was admitted is there (I3), and
    /// nothing is written any more (I7).
    pub async fn end(&mut self) -> Result<(), Violation> {
        self.tell(|| "-- refusals and outages end, and time passes".to_owned());
        lock(&self.server).has_quota = false;
        self.is_out.store(false, SeqCst);
        let (last, rest) = QUIET.split_last().expect("some");
        self.drain().await?;
        for seconds in rest {
            self.pass(*seconds).await?;
            self.drain().await?;
        }
        let writes = lock(&self.server).writes;
        self.pass(*last).await?;
        self.drain().await?;
        let (now, truth) = (self.now(), lock(&self.server).truth(&team()));
        if lock(&self.server).writes != writes {
            return Err(Violation("I7: it is written again and again".to_owned()));
        }
        if !lock(&self.server).is_opted_in || self.is_memory_lost {
            return Ok(());
        }
        for host in &self.wanted {
            let leader = self.scenario.leader;
            if self.permits(leader, host, true) && !truth.has_good(host, now) {
                return Err(Violation(format!(
                    "I3: {host} is wanted and not there in the end; stored: {}",
                    shown(&truth, now)
                )));
            }
        }
        Ok(())
    }
}

/// Returns the states that a scenario forges: dates of a good credential, and no seal.
fn forged_state(hosts: &[&str], now: Timestamp) -> State {
    let credential = Credential {
        identity: Identity::Ambient.hash(),
        lifetime: Lifetime {
            minted_at: now,
            expires_at: now + SignedDuration::from_hours(12),
        },
    };
    let entries = hosts.iter().map(|host| {
        let entry = HostState {
            demand: Demand::new(now),
            credential: Some(credential),
        };
        (Host::parse(host).unwrap(), entry)
    });
    State {
        hosts: entries.collect(),
        revision: u64::try_from(now.as_millisecond()).unwrap() + 1000,
        ..State::default()
    }
}

fn version_of(secret: &Secret) -> &str {
    secret
        .metadata
        .resource_version
        .as_deref()
        .unwrap_or("none")
}

/// Reads a configuration.
pub fn config(text: &str) -> Config {
    Config::parse(&crate::support::config_file(text), "config").unwrap()
}
