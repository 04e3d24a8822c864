//! A coordinator that does what a test tells it, and an action that does what its parameters say.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "test code, of which each file uses a part")]

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::StreamExt;
use muster_agent::{
    Action, ActionError, ActionSpec, Catalogue, Checked, Context, Done, Worker, WorkerConfig, WorkerError,
    command::CommandRun, guard::Guard, noop::Noop,
};
use muster_bus::{
    Bus, BusError,
    message::{
        AttemptKey, Beat, BeatReply, LogLine, Observation, Order, Outcome, Purpose, Register, RegisterReply, Report,
        ReportBody, ReportReply, Status, StatusReply, Task, TaskReply,
    },
    subject::{AgentSubject, Subjects, shard_of},
};
use serde_json::{Value, json};
use tokio::{sync::Notify, task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

pub const SOON: Duration = Duration::from_secs(60);
pub const CLUSTER: &str = "c-1";
pub const TERM: u64 = 7;
pub const AGENT: &str = "infra-1";

/// What the coordinator heard, and what it will answer. An empty queue gives the friendly answer.
#[derive(Default)]
pub struct Heard {
    pub registers: Vec<Register>,
    pub beats: Vec<Beat>,
    pub reports: Vec<Report>,
    pub recorded: Vec<Report>,
    pub statuses: Vec<Status>,
    pub lines: Vec<LogLine>,
    pub register_answers: VecDeque<RegisterReply>,
    pub report_answers: VecDeque<Option<ReportReply>>,
    pub beat_answers: VecDeque<BeatReply>,
    /// Sent together with the answer to a goodbye, to be answered there.
    pub at_goodbye: Option<(Task, String)>,
    pub term: u64,
    /// How long a wait may take; longer on a bad bus whose clock jumps.
    pub patience: Duration,
}

pub struct Coordinator {
    pub bus: Arc<dyn Bus>,
    heard: Mutex<Heard>,
    changed: Notify,
    origin: Instant,
}

impl Coordinator {
    pub async fn start(bus: Arc<dyn Bus>) -> Arc<Self> {
        let heard = Mutex::new(Heard { term: TERM, patience: SOON, ..Heard::default() });
        let this = Arc::new(Self { bus, heard, changed: Notify::new(), origin: Instant::now() });
        for kind in
            [AgentSubject::Register, AgentSubject::Report, AgentSubject::Beat, AgentSubject::Status, AgentSubject::Log]
        {
            let mut asked = this.bus.subscribe(Subjects::all(kind)).await.unwrap();
            let this = this.clone();
            tokio::spawn(async move {
                while let Some(delivery) = asked.next().await {
                    let answer = this.hear(kind, &delivery.subject, &delivery.payload);
                    this.changed.notify_waiters();
                    if let (Some(reply), Some(answer)) = (delivery.reply, answer) {
                        reply.send(answer);
                    }
                    this.meet_goodbye();
                }
            });
        }
        this
    }

    pub fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap()
    }

    pub fn now_ms(&self) -> i64 {
        1_767_225_600_000 + i64::try_from(self.origin.elapsed().as_millis()).unwrap()
    }

    fn meet_goodbye(&self) {
        let mut heard = self.heard();
        let Some(instance) = heard.beats.last().filter(|beat| beat.ending).map(|beat| beat.instance.clone()) else {
            return;
        };
        if let Some((task, answer_to)) = heard.at_goodbye.take() {
            let subject = Subjects::new("default").task(AGENT, &instance);
            self.bus.send_request(&subject, &answer_to, bytes(&task)).unwrap();
        }
    }

    fn hear(&self, kind: AgentSubject, subject: &str, payload: &[u8]) -> Option<Bytes> {
        assert_eq!(muster_bus::subject::sender(subject).unwrap().1, AGENT);
        let mut heard = self.heard();
        match kind {
            AgentSubject::Register => {
                let register: Register = serde_json::from_slice(payload).unwrap();
                let registered = RegisterReply::Registered {
                    cluster: CLUSTER.to_owned(),
                    term: heard.term,
                    task_subject: Subjects::new("default").task(AGENT, &register.instance),
                    beat_every_ms: 100,
                    lost_after_ms: 30_000,
                    status_every_ms: 180_000,
                    now_ms: self.now_ms(),
                };
                heard.registers.push(register);
                Some(bytes(&heard.register_answers.pop_front().unwrap_or(registered)))
            }
            AgentSubject::Report => {
                let report: Report = serde_json::from_slice(payload).unwrap();
                heard.reports.push(report.clone());
                let friendly = Some(ReportReply::recorded());
                let answer = heard.report_answers.pop_front().unwrap_or(friendly);
                if matches!(answer, Some(ReportReply::Recorded { .. })) {
                    heard.recorded.push(report);
                }
                answer.map(|answer| bytes(&answer))
            }
            AgentSubject::Beat => {
                heard.beats.push(serde_json::from_slice(payload).unwrap());
                let friendly = BeatReply { now_ms: self.now_ms(), register_again: false, orders: Vec::new() };
                Some(bytes(&heard.beat_answers.pop_front().unwrap_or(friendly)))
            }
            AgentSubject::Status => {
                heard.statuses.push(serde_json::from_slice(payload).unwrap());
                Some(bytes(&StatusReply { orders: Vec::new() }))
            }
            AgentSubject::Signal => panic!("an agent signals nothing"),
            AgentSubject::Log => {
                heard.lines.push(serde_json::from_slice(payload).unwrap());
                None
            }
        }
    }

    /// Wait until what was heard makes `wanted` give something.
    pub async fn wait<T>(&self, what: &str, wanted: impl Fn(&Heard) -> Option<T>) -> T {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(found) = wanted(&self.heard()) {
                    return found;
                }
                changed.await;
            }
        };
        let patience = self.heard().patience;
        tokio::time::timeout(patience, wait).await.unwrap_or_else(|_| panic!("{what} does not come"))
    }

    pub async fn registered(&self, count: usize) -> Register {
        self.wait("a registration", |heard| heard.registers.get(count - 1).cloned()).await
    }

    /// How the attempt of `task` ended, once that is recorded.
    pub async fn outcome(&self, task: &Task) -> Outcome {
        self.wait("an outcome", |heard| {
            heard.recorded.iter().find_map(|report| match &report.report {
                ReportBody::Finished { outcome } if report.key == task.key => Some(outcome.clone()),
                ReportBody::Finished { .. } | ReportBody::Prepared { .. } => None,
            })
        })
        .await
    }

    pub fn order(&self, order: Order) {
        let answer = BeatReply { now_ms: self.now_ms(), register_again: false, orders: vec![order] };
        self.heard().beat_answers.push_back(answer);
    }

    /// A task for the action of this file, with its parameters.
    pub fn task(&self, step: &str, with: Value) -> Task {
        let run = "r-1".to_owned();
        Task {
            cluster: CLUSTER.to_owned(),
            term: TERM,
            report_subject: Subjects::new("default").report(shard_of(&run), AGENT),
            key: AttemptKey { run, step: step.to_owned(), attempt: 1 },
            purpose: Purpose::Run,
            action: "test.act".to_owned(),
            version: "1.0.0".to_owned(),
            with,
            undo: None,
            prepare: false,
            secrets: Vec::new(),
            timeout_ms: 60_000,
            status_ms: 180_000,
            sent_at_ms: self.now_ms(),
            start_within_ms: 5_000,
        }
    }

    pub async fn send(&self, task: &Task) -> Result<TaskReply, BusError> {
        let instance = self.registered(1).await.instance;
        self.send_to(task, &instance).await
    }

    pub async fn send_to(&self, task: &Task, instance: &str) -> Result<TaskReply, BusError> {
        let subject = Subjects::new("default").task(AGENT, instance);
        let mut tries = 8;
        loop {
            // What has ended at once is not accepted before its next copy comes.
            match self.bus.request(&subject, bytes(task), Duration::from_millis(250)).await {
                Err(BusError::Timeout(_)) if tries > 1 => tries -= 1,
                reply => return reply.map(|reply| serde_json::from_slice(&reply).unwrap()),
            }
        }
    }

    /// Send it, and wait for its end.
    pub async fn carry_out(&self, task: &Task) -> Outcome {
        assert_eq!(self.send(task).await, Ok(TaskReply::Accepted));
        self.outcome(task).await
    }
}

/// A coordinator and an agent on one bus.
pub async fn both(setup: Setup) -> (Arc<Coordinator>, Agent) {
    let bus = Arc::new(muster_bus::LocalBus::new());
    let coordinator = Coordinator::start(bus.clone()).await;
    (coordinator, Agent::start(bus, setup))
}

pub fn bytes(message: &impl serde::Serialize) -> Bytes {
    Bytes::from(serde_json::to_vec(message).unwrap())
}

/// An agent with [`Act`].
pub struct Agent {
    pub act: Arc<Ledger>,
    pub shutdown: CancellationToken,
    pub ended: JoinHandle<Result<(), WorkerError>>,
}

#[derive(Default)]
pub struct Setup {
    pub slots: u32,
    pub data_dir: Option<std::path::PathBuf>,
    pub secrets: BTreeMap<String, String>,
    pub allow: muster_agent::allow::Allow,
}

impl Agent {
    pub fn start(bus: Arc<dyn Bus>, setup: Setup) -> Self {
        let act = Arc::new(Ledger::default());
        let actions: [Arc<dyn Action>; 3] =
            [Arc::new(Act(act.clone())), Arc::new(Noop), Arc::new(CommandRun::new(setup.allow))];
        let config = WorkerConfig {
            namespace: "default".to_owned(),
            agent: AGENT.to_owned(),
            role: "infra".to_owned(),
            labels: BTreeMap::from([("site".to_owned(), "eu".to_owned())]),
            host: None,
            slots: setup.slots.max(1),
            data_dir: setup.data_dir,
            software: "test".to_owned(),
        };
        let shutdown = CancellationToken::new();
        let worker = Worker::new(config, Catalogue::new(actions).unwrap(), bus)
            .with_secrets(setup.secrets)
            .with_guard(Guard::program(env!("CARGO_BIN_EXE_muster-sample-agent")));
        let ended = tokio::spawn(worker.run(shutdown.clone()));
        Self { act, shutdown, ended }
    }

    /// It ends by itself, or was told to.
    pub async fn end(self) -> Result<(), WorkerError> {
        tokio::time::timeout(SOON, self.ended).await.expect("the agent ends").unwrap()
    }
}

/// What [`Act`] really did.
#[derive(Default)]
pub struct Ledger {
    pub runs: AtomicU32,
    pub undone: Mutex<Vec<Value>>,
    pub go: Notify,
}

impl Ledger {
    pub fn runs(&self) -> u32 {
        self.runs.load(Ordering::SeqCst)
    }
}

/// `test.act`: does what its parameters say.
pub struct Act(pub Arc<Ledger>);

#[async_trait::async_trait]
impl Action for Act {
    fn spec(&self) -> ActionSpec {
        let params_schema = Some(json!({"type": "object", "properties": {"output": {"type": "object"}}}));
        ActionSpec { undoable: true, checkable: true, params_schema, ..ActionSpec::new("test.act", "1.0.0") }
    }

    async fn check(&self, _ctx: &Context, with: &Value) -> Result<Checked, ActionError> {
        Ok(match with["check"].as_str() {
            Some("satisfied") => Checked::Satisfied(Done { output: json!({"found": true}), observations: Vec::new() }),
            Some(diff) => Checked::Different { diff: diff.to_owned() },
            None => Checked::CannotTell,
        })
    }

    async fn prepare(&self, _ctx: &Context, with: &Value) -> Result<Value, ActionError> {
        match with["prepare_bytes"].as_u64() {
            Some(bytes) => Ok(json!("x".repeat(usize::try_from(bytes).unwrap()))),
            None => Ok(with["prepare"].clone()),
        }
    }

    async fn run(&self, ctx: &Context, with: &Value) -> Result<Done, ActionError> {
        self.0.runs.fetch_add(1, Ordering::SeqCst);
        for line in with["log"].as_array().into_iter().flatten() {
            ctx.log(line.as_str().unwrap());
        }
        if let Some(message) = with["progress"].as_str() {
            ctx.progress(message, Some(40));
        }
        if with["observe"].is_number() {
            let (name, unit, source) = ("latency".to_owned(), "ms".to_owned(), String::new());
            let value = with["observe"].as_f64().unwrap();
            ctx.voice.observe(Observation { name, value, unit, samples: None, at_ms: None, source });
        }
        if let Some(name) = with["secret"].as_str() {
            return Ok(Done { output: json!({"secret": ctx.voice.secret(name)}), observations: Vec::new() });
        }
        match with["do"].as_str() {
            Some("wait") => self.0.go.notified().await,
            Some("wait_or_stop") => tokio::select! {
                () = ctx.cancelled.cancelled() => return Err(ActionError::retry("stopped")),
                () = self.0.go.notified() => {}
            },
            Some("finish_when_stopped") => ctx.cancelled.cancelled().await,
            Some("panic") => panic!("a bug"),
            Some("retry") => return Err(ActionError::retry("busy")),
            Some("permanent") => return Err(ActionError::permanent("wrong")),
            Some("person") => return Err(ActionError::needs_person("sign it")),
            Some(other) => panic!("{other} is not known"),
            None => {}
        }
        let mut output = with["output"].clone();
        if let Some(bytes) = with["grow"].as_u64() {
            output["grown"] = json!("x".repeat(usize::try_from(bytes).unwrap()));
        }
        if let Some(count) = with["grow_list"].as_u64() {
            output["grown"] = json!(vec![7; usize::try_from(count).unwrap()]);
        }
        for key in 0..with["grow_keys"].as_u64().unwrap_or(0) {
            output[format!("key {key}")] = json!(7);
        }
        Ok(Done { output, observations: Vec::new() })
    }

    async fn undo(&self, _ctx: &Context, _with: &Value, prepared: &Value) -> Result<Done, ActionError> {
        self.0.undone.lock().unwrap().push(prepared.clone());
        Ok(Done::default())
    }
}
