//! A coordinator in memory with paused time, and an agent that does what a test tells it, message by message.

use std::{
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use jiff::{SignedDuration, Timestamp};
use muster_bus::{
    Bus,
    bus::ReplyTo,
    local::LocalBus,
    message::{
        ActionOffer, Beat, BeatReply, Outcome, PROTOCOL, Register, RegisterReply, Report, ReportBody, ReportReply,
        Scope, Task, TaskReply,
    },
    subject::Subjects,
    testkit::{Faults, FaultyBus},
};
use muster_coordinator::{
    control::{Caller, Control, PlaybookSource},
    driver::{Clock, Config, Coordinator, OpenError},
    journal::{
        AppendError, Appended, Head, Journal, NewRecord, Position, ReadError, Record, StreamAppend, StreamId,
        memory::MemoryJournal,
    },
    logs::{Limits as LogLimits, Logs},
    store::Store,
};
use muster_engine::{
    ids::{Namespace, RunId},
    run::Run,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::mpsc;

pub(crate) const CLUSTER: &str = "0d6cf4cc-7e4c-4f0c-a6a1-6f9b4a1d2e30";

/// What outlives a coordinator: its journal and the bus; and the one that is up.
pub(crate) struct House {
    pub(crate) journal: Arc<Watched>,
    pub(crate) bus: Arc<LocalBus>,
    /// What the coordinator has of it.
    pub(crate) link: Arc<FaultyBus>,
    pub(crate) up: Coordinator,
    pub(crate) store: Arc<Store>,
    pub(crate) wall_offset_ms: Arc<std::sync::atomic::AtomicI64>,
    dir: tempfile::TempDir,
    opened: u64,
}

impl House {
    pub(crate) async fn open() -> Self {
        let journal = Arc::new(Watched::default());
        let bus = Arc::new(LocalBus::new());
        let dir = tempfile::tempdir().unwrap();
        let wall = Arc::default();
        let link = Arc::new(FaultyBus::new(Arc::clone(&bus) as _, Faults::default()));
        let (up, store) = try_open(&journal, &link, dir.path(), &wall, &Life::FIRST).await.unwrap();
        Self { journal, bus, link, up, store, wall_offset_ms: wall, dir, opened: 1 }
    }

    /// The coordinator goes without a word, and another one opens the same journal; its store is a new one.
    pub(crate) async fn crash_and_reopen(&mut self) {
        self.reopen_in(&Life::FIRST).await;
    }

    /// Where the next one has its store.
    pub(crate) fn next_store(&self) -> PathBuf {
        self.dir.path().join((self.opened + 1).to_string()).join("store")
    }

    pub(crate) async fn reopen_in(&mut self, life: &Life) {
        self.up.shutdown().await;
        self.opened += 1;
        let store = self.dir.path().join(self.opened.to_string());
        let opened = try_open(&self.journal, &self.link, &store, &self.wall_offset_ms, life).await;
        (self.up, self.store) = opened.unwrap();
    }

    /// The same with the store of the first one.
    pub(crate) async fn crash_and_reopen_with_its_store(self) -> Self {
        let Self { journal, bus, link, up, store, wall_offset_ms, dir, opened } = self;
        up.shutdown().await;
        drop(up);
        let mut store = Some(store);
        // Who still reads has it open.
        while let Some(shared) = store.take() {
            match Arc::try_unwrap(shared) {
                Ok(last) => drop(last),
                Err(shared) => {
                    store = Some(shared);
                    tokio::task::yield_now().await;
                }
            }
        }
        let (up, store) = try_open(&journal, &link, dir.path(), &wall_offset_ms, &Life::FIRST).await.unwrap();
        Self { journal, bus, link, up, store, wall_offset_ms, dir, opened }
    }

    /// While this one is up.
    pub(crate) async fn open_another(&self) -> Result<Coordinator, OpenError> {
        let place = self.dir.path().join("another");
        let opened = try_open(&self.journal, &self.link, &place, &self.wall_offset_ms, &Life::FIRST).await;
        opened.map(|(another, _)| another)
    }

    pub(crate) async fn start(&self, yaml: &str) -> Arc<Run> {
        let source = PlaybookSource::Inline(yaml.to_owned());
        let started = self.up.start_run(&ns(), &source, json!({}), "", None, false, &operator()).await;
        started.unwrap_or_else(|e| panic!("{e}: {:#?}", e.findings))
    }

    pub(crate) async fn run(&self, id: &RunId) -> Arc<Run> {
        self.up.run(&ns(), id).await.unwrap()
    }

    /// Wait until the run is so, for an hour of the paused clock at most.
    pub(crate) async fn until(&self, id: &RunId, what: &str, so: impl Fn(&Run) -> bool) -> Arc<Run> {
        for _ in 0..36_000 {
            let run = self.run(id).await;
            if so(&run) {
                return run;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("never {what}: {:#?}", self.run(id).await);
    }

    pub(crate) async fn ended(&self, id: &RunId) -> Arc<Run> {
        self.until(id, "ended", Run::has_ended).await
    }

    pub(crate) async fn agent(&self, name: &str) -> Agent {
        Agent::start(Arc::clone(&self.bus), name, "i1", |_| {}).await
    }

    pub(crate) async fn agent_with_slots(&self, name: &str, slots: u32) -> Agent {
        Agent::start(Arc::clone(&self.bus), name, "i1", |register| register.slots = slots).await
    }
}

/// A life of the journal: a new one begins when records were lost.
pub(crate) struct Life {
    pub(crate) cluster: &'static str,
    pub(crate) after_loss: bool,
}

impl Life {
    pub(crate) const FIRST: Self = Self { cluster: CLUSTER, after_loss: false };
}

async fn try_open(
    journal: &Arc<Watched>,
    bus: &Arc<FaultyBus>,
    dir: &std::path::Path,
    wall_offset_ms: &Arc<std::sync::atomic::AtomicI64>,
    life: &Life,
) -> Result<(Coordinator, Arc<Store>), OpenError> {
    let (store, _) = Store::open(&dir.join("store"), life.cluster, journal.head().position).unwrap();
    let store = Arc::new(store);
    let mut config = Config::new(Arc::clone(journal) as _, Arc::clone(&store), Arc::clone(bus) as _, life.cluster);
    config.after_loss = life.after_loss;
    config.clock = clock(wall_offset_ms);
    config.shipped = vec![offer("test.work")];
    config.logs = Some(Logs::open(&dir.join("logs"), LogLimits { reserve_bytes: 0, ..LogLimits::default() }).unwrap());
    Ok((Coordinator::open(config).await?, store))
}

/// Follows the paused clock; each coordinator finds the wall set back to the same moment.
fn clock(offset_ms: &Arc<std::sync::atomic::AtomicI64>) -> Clock {
    let start = tokio::time::Instant::now();
    let epoch: Timestamp = "2026-01-07T09:00:00Z".parse().unwrap();
    let offset_ms = Arc::clone(offset_ms);
    Clock::new(move || {
        let elapsed = SignedDuration::try_from(start.elapsed()).unwrap();
        epoch + elapsed + SignedDuration::from_millis(offset_ms.load(Ordering::SeqCst))
    })
}

pub(crate) fn ns() -> Namespace {
    "default".into()
}

pub(crate) fn operator() -> Caller {
    Caller { actor: "person/operator".into(), request_id: None }
}

pub(crate) fn offer(name: &str) -> ActionOffer {
    ActionOffer {
        name: name.to_owned(),
        version: "1.0.0".to_owned(),
        summary: String::new(),
        idempotent: true,
        undoable: false,
        checkable: true,
        concurrent_safe: false,
        read_only: false,
        scope: Scope::Target,
        params_schema: None,
        output_schema: None,
    }
}

/// A playbook of one phase with a milestone: steps as YAML, and whatever else the phase has.
pub(crate) fn playbook(steps: &[&str], phase: &str) -> String {
    let head = "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {name: chain, owner: devops}\nspec:\n  phases:\n";
    let mut yaml = format!("{head}    - id: only\n      milestone: All done\n      deadline: 30m\n      steps:\n");
    for step in steps {
        yaml.push_str(&format!("        - {{{step}, agent: {{role: infra}}, undo: irreversible}}\n"));
    }
    yaml.push_str(phase);
    yaml
}

/// A chain of steps in one phase, with a milestone.
pub(crate) fn chain(steps: usize) -> String {
    let step = |i: usize| {
        let needs = if i == 0 { String::new() } else { format!(", needs: [s{}]", i - 1) };
        format!("id: s{i}{needs}, action: test.work, with: {{n: {i}}}")
    };
    let steps: Vec<String> = (0..steps).map(step).collect();
    playbook(&steps.iter().map(String::as_str).collect::<Vec<_>>(), "")
}

/// One process of an agent.
pub(crate) struct Agent {
    pub(crate) bus: Arc<LocalBus>,
    pub(crate) name: String,
    pub(crate) instance: String,
    tasks: mpsc::UnboundedReceiver<(Task, ReplyTo)>,
    beating: Arc<AtomicBool>,
    pub(crate) beat: Arc<Mutex<Beat>>,
    pub(crate) heard: Arc<Mutex<Vec<BeatReply>>>,
}

impl Agent {
    /// Register, and beat until [`Agent::fall_silent`].
    pub(crate) async fn start(
        bus: Arc<LocalBus>,
        name: &str,
        instance: &str,
        change: impl FnOnce(&mut Register),
    ) -> Self {
        let (answer, agent) = Self::try_start(bus, name, instance, change).await;
        assert!(matches!(answer, RegisterReply::Registered { .. }), "{answer:?}");
        agent
    }

    pub(crate) async fn try_start(
        bus: Arc<LocalBus>,
        name: &str,
        instance: &str,
        change: impl FnOnce(&mut Register),
    ) -> (RegisterReply, Self) {
        let mut deliveries = bus.subscribe(&subjects().task(name, instance)).await.unwrap();
        let (sender, tasks) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(delivery) = deliveries.next().await {
                let task = serde_json::from_slice(&delivery.payload).unwrap();
                if sender.send((task, delivery.reply.unwrap())).is_err() {
                    return;
                }
            }
        });
        let beat = Beat {
            cluster: CLUSTER.to_owned(),
            instance: instance.to_owned(),
            holds: Vec::new(),
            draining: false,
            ending: false,
        };
        let agent = Self {
            bus,
            name: name.to_owned(),
            instance: instance.to_owned(),
            tasks,
            beating: Arc::new(AtomicBool::new(true)),
            beat: Arc::new(Mutex::new(beat)),
            heard: Arc::default(),
        };
        let mut register = registration(name, instance);
        change(&mut register);
        let answer = agent.ask(&subjects().register(name), &register).await;
        agent.keep_beating();
        (answer, agent)
    }

    fn keep_beating(&self) {
        let (bus, name) = (Arc::clone(&self.bus), self.name.clone());
        let (beating, beat, heard) = (Arc::clone(&self.beating), Arc::clone(&self.beat), Arc::clone(&self.heard));
        tokio::spawn(async move {
            while beating.load(Ordering::SeqCst) {
                let payload = serde_json::to_vec(&*beat.lock().unwrap()).unwrap().into();
                let sent = bus.request(&subjects().beat(&name), payload, Duration::from_secs(2)).await;
                if let Ok(reply) = sent {
                    heard.lock().unwrap().push(serde_json::from_slice(&reply).unwrap());
                }
                tokio::time::sleep(Duration::from_secs(5)).await;
            }
        });
    }

    pub(crate) fn fall_silent(&self) {
        self.beating.store(false, Ordering::SeqCst);
    }

    /// The last word of this process; another one says it as well as this one.
    pub(crate) async fn say_goodbye(&self) -> BeatReply {
        self.fall_silent();
        let beat = Beat { ending: true, ..self.beat.lock().unwrap().clone() };
        self.ask(&subjects().beat(&self.name), &beat).await
    }

    pub(crate) fn speak_again(&self) {
        self.beating.store(true, Ordering::SeqCst);
        self.keep_beating();
    }

    pub(crate) async fn ask<Q: Serialize, A: DeserializeOwned>(&self, subject: &str, question: &Q) -> A {
        let payload = serde_json::to_vec(question).unwrap().into();
        let reply = self.bus.request(subject, payload, Duration::from_secs(600)).await.unwrap();
        serde_json::from_slice(&reply).unwrap()
    }

    /// The next task, with an answer.
    pub(crate) async fn next(&mut self, answer: TaskReply) -> Task {
        let waited = tokio::time::timeout(Duration::from_secs(3_600), self.tasks.recv()).await;
        let (task, reply) = waited.expect("a task within an hour").expect("the bus is up");
        reply.send(serde_json::to_vec(&answer).unwrap().into());
        task
    }

    /// The next task, which is never answered.
    pub(crate) async fn swallow(&mut self) -> Task {
        self.tasks.recv().await.unwrap().0
    }

    /// The same process registers again, as a beat's answer has asked it to.
    pub(crate) async fn register_again(&self) {
        self.register_with(|_| {}).await;
    }

    pub(crate) async fn register_with(&self, change: impl FnOnce(&mut Register)) {
        let mut register = registration(&self.name, &self.instance);
        change(&mut register);
        let answer: RegisterReply = self.ask(&subjects().register(&self.name), &register).await;
        assert!(matches!(answer, RegisterReply::Registered { .. }), "{answer:?}");
    }

    /// Whether a task comes within a time; it is not answered.
    pub(crate) async fn gets_nothing_for(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.tasks.recv()).await.is_err()
    }

    pub(crate) async fn report(&self, task: &Task, body: ReportBody) -> ReportReply {
        self.report_as(&self.instance, task, body).await
    }

    pub(crate) async fn report_as(&self, instance: &str, task: &Task, body: ReportBody) -> ReportReply {
        let report =
            Report { cluster: CLUSTER.to_owned(), instance: instance.to_owned(), key: task.key.clone(), report: body };
        self.ask(&task.report_subject, &report).await
    }

    /// Take tasks and succeed in them, so many.
    pub(crate) async fn succeed(&mut self, count: usize) {
        for _ in 0..count {
            let task = self.next(TaskReply::Accepted).await;
            let reply = self.report(&task, succeeded(json!({"n": task.with["n"]}))).await;
            assert_eq!(reply, ReportReply::recorded());
        }
    }
}

pub(crate) fn registration(name: &str, instance: &str) -> Register {
    Register {
        protocol: PROTOCOL,
        agent: name.to_owned(),
        instance: instance.to_owned(),
        role: "infra".to_owned(),
        labels: [("site".to_owned(), "eu".to_owned())].into(),
        host: Some("host-1".to_owned()),
        slots: 4,
        durable: true,
        actions: vec![offer("test.work")],
        holds: Vec::new(),
        spooled: Vec::new(),
        dead: Vec::new(),
        tasks_in_answers: false,
        software: "scripted".to_owned(),
    }
}

pub(crate) fn subjects() -> Subjects {
    Subjects::new("default")
}

pub(crate) fn succeeded(output: Value) -> ReportBody {
    let outcome = Outcome::Succeeded { output, unchanged: false, observations: Vec::new(), truncated: false };
    ReportBody::Finished { outcome }
}

type HeldAnswer = Box<dyn FnOnce() + Send>;

/// A journal in memory that counts, and that can be slow or fail.
#[derive(Default)]
pub(crate) struct Watched {
    inner: MemoryJournal,
    pub(crate) appends: AtomicU64,
    pub(crate) fails: AtomicBool,
    /// With `fails`: the records are there nevertheless.
    pub(crate) keeps: AtomicBool,
    /// The system refuses to read streams.
    pub(crate) unreadable: AtomicBool,
    /// Streams of which records are lost, as a log tells of them when it is opened.
    pub(crate) lost: Mutex<Vec<StreamId>>,
    /// Answers wait here until they are let go.
    held: Mutex<Option<Vec<HeldAnswer>>>,
    /// Whether reads of streams wait.
    reads_held: Mutex<bool>,
    reads_go: Condvar,
}

impl Watched {
    /// From now on no append is answered.
    pub(crate) fn hold(&self) {
        *self.held.lock().unwrap() = Some(Vec::new());
    }

    /// From now on no stream is read, until [`Watched::let_reads_go`]; for ten seconds of the real clock at most.
    pub(crate) fn hold_reads(&self) {
        *self.reads_held.lock().unwrap() = true;
    }

    pub(crate) fn let_reads_go(&self) {
        *self.reads_held.lock().unwrap() = false;
        self.reads_go.notify_all();
    }

    /// Append a record that nobody can read to a stream.
    pub(crate) async fn scribble(&self, stream: &str, expected_seq: u64) {
        let event = serde_json::value::to_raw_value(&json!({"type": "never_heard_of"})).unwrap();
        let record = NewRecord { at: Timestamp::UNIX_EPOCH, by: "nobody".into(), event };
        let stream = StreamId(stream.into());
        let append = StreamAppend { stream, expected_seq, records: vec![record] };
        self.inner.append(vec![append]).await.unwrap().unwrap();
    }

    /// Answer everything that waits, and everything that comes.
    pub(crate) fn let_go(&self) -> usize {
        let held = self.held.lock().unwrap().take().unwrap_or_default();
        let count = held.len();
        for answer in held {
            answer();
        }
        count
    }
}

impl Journal for Watched {
    fn append(&self, appends: Vec<StreamAppend>) -> Appended {
        self.appends.fetch_add(1, Ordering::SeqCst);
        let (answer, appended) = tokio::sync::oneshot::channel();
        if self.fails.load(Ordering::SeqCst) {
            if self.keeps.load(Ordering::SeqCst) {
                drop(self.inner.append(appends));
            }
            let _ = answer.send(Err(AppendError::Unavailable("the disk is away".to_owned())));
            return appended;
        }
        let result = self.inner.append(appends).try_recv().unwrap();
        let mut held = self.held.lock().unwrap();
        match &mut *held {
            Some(waiting) => waiting.push(Box::new(move || drop(answer.send(result)))),
            None => drop(answer.send(result)),
        }
        appended
    }

    fn read(&self, after: Position) -> Box<dyn Iterator<Item = Result<(Position, Record), ReadError>> + Send> {
        self.inner.read(after)
    }

    fn read_stream(&self, stream: &StreamId, after_seq: u64, limit: usize) -> Result<Vec<Record>, ReadError> {
        let held = self.reads_held.lock().unwrap();
        drop(self.reads_go.wait_timeout_while(held, Duration::from_secs(10), |held| *held).unwrap());
        if self.unreadable.load(Ordering::SeqCst) {
            return Err(ReadError::Io { place: "log".to_owned(), what: "Too many open files".to_owned() });
        }
        if self.lost.lock().unwrap().contains(stream) {
            let streams = vec![stream.clone()];
            return Err(ReadError::Damaged { place: "log".to_owned(), what: "a flipped byte".to_owned(), streams });
        }
        self.inner.read_stream(stream, after_seq, limit)
    }

    fn seq(&self, stream: &StreamId) -> u64 {
        self.inner.seq(stream)
    }

    fn damaged(&self) -> Vec<StreamId> {
        self.lost.lock().unwrap().clone()
    }

    fn head(&self) -> Head {
        self.inner.head()
    }

    fn syncs(&self) -> u64 {
        self.appends.load(Ordering::SeqCst)
    }
}
