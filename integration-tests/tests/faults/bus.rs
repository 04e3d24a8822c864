//! The real coordinator, its journal on a disk, and real workers on a bus that loses, repeats and delays both ways; beside a
//! ledger of what was done. Time is paused: the clock jumps to whatever comes next, and never while the journal syncs.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use muster_agent::{Action, ActionError, ActionSpec, Catalogue, Checked, Context, Done, Worker, WorkerConfig};
use muster_bus::{
    Bus, LocalBus,
    message::Scope,
    testkit::{Faults, FaultyBus},
};
use muster_coordinator::{
    control::{Caller, Control, PlaybookSource},
    driver::{Clock, Config, Coordinator},
    journal::{
        AppendError, Appended, Head, Journal, Position, ReadError, Record, StreamAppend, StreamId,
        log::{LogJournal, LogOptions},
    },
    store::Store,
};
use muster_engine::{
    ids::RunId,
    run::{
        Command, Resolution, Run,
        state::{RunState, StepState},
    },
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const SEEDS: std::ops::RangeInclusive<u64> = 1..=8;
const RUNS_OF_EACH: usize = 4;
/// By the paused clock.
const LONG: Duration = Duration::from_secs(6 * 3600);

/// Every step has something to be disturbed: a change that can be undone, tries that fail, and one that must not be repeated.
const GOOD: &str = "
        - {id: put, action: ledger.put, WITH}
        - {id: flaky, needs: [put], action: ledger.flaky, WITH, retry: {maxAttempts: 40, backoff: {initial: 1s, max: 5s}}}
        - {id: once, needs: [flaky], action: ledger.once, WITH, undo: irreversible}
        - {id: last, needs: [once], action: ledger.put, WITH}
";
/// The same with an end that is always bad: what was put is undone.
const BAD: &str = "
        - {id: put, action: ledger.put, WITH}
        - {id: beside, action: ledger.put, WITH}
        - {id: flaky, needs: [put], action: ledger.flaky, WITH, retry: {maxAttempts: 40, backoff: {initial: 1s, max: 5s}}}
        - {id: bad, needs: [flaky, beside], action: ledger.bad, WITH}
";

fn playbook(steps: &str) -> String {
    let head = "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {name: bus, owner: ops}\nspec:\n  phases:\n";
    let with = "agent: {role: fault}, timeout: 60s, with: {run: \"{{ run.id }}\"}";
    format!("{head}    - id: only\n      milestone: Done\n      steps:{}", steps.replace("WITH", with))
}

/// What was really done. The number of an entry is in the report of its attempt.
#[derive(Default)]
struct Ledger {
    begun: Vec<(String, String)>,
    ended: BTreeSet<usize>,
    undone: Vec<String>,
    there: BTreeSet<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Put,
    Flaky,
    Once,
    Bad,
}

/// One of the four actions.
struct Work {
    kind: Kind,
    ledger: Arc<Mutex<Ledger>>,
}

impl Work {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Put => "ledger.put",
            Kind::Flaky => "ledger.flaky",
            Kind::Once => "ledger.once",
            Kind::Bad => "ledger.bad",
        }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }
}

fn place(with: &Value) -> String {
    format!("{} {}", with["run"].as_str().unwrap(), with["step"].as_str().unwrap())
}

#[async_trait::async_trait]
impl Action for Work {
    fn spec(&self) -> ActionSpec {
        let mut spec = ActionSpec::new(self.name(), "1.0.0");
        let is_put = matches!(self.kind, Kind::Put | Kind::Bad);
        (spec.checkable, spec.undoable, spec.scope) = (is_put, is_put, Scope::Target);
        spec.idempotent = self.kind != Kind::Once;
        spec
    }

    async fn check(&self, _: &Context, with: &Value) -> Result<Checked, ActionError> {
        let is_there = self.ledger().there.contains(&place(with));
        Ok(if is_there {
            Checked::Satisfied(Done::default())
        } else {
            Checked::Different { diff: "it is missing".to_owned() }
        })
    }

    async fn prepare(&self, _: &Context, with: &Value) -> Result<Value, ActionError> {
        Ok(json!({"place": place(with)}))
    }

    async fn run(&self, _: &Context, with: &Value) -> Result<Done, ActionError> {
        let number = {
            let mut ledger = self.ledger();
            ledger.begun.push((with["run"].as_str().unwrap().to_owned(), with["step"].as_str().unwrap().to_owned()));
            ledger.begun.len() - 1
        };
        tokio::time::sleep(Duration::from_millis(500 * (number as u64 % 7))).await;
        let mut ledger = self.ledger();
        let tries = ledger.begun.iter().filter(|begun| **begun == ledger.begun[number]).count();
        if self.kind == Kind::Flaky && tries < 3 {
            return Err(ActionError::retry(format!("try {number}")));
        }
        if matches!(self.kind, Kind::Put | Kind::Bad) {
            ledger.there.insert(place(with));
        }
        if self.kind == Kind::Bad {
            return Err(ActionError::permanent(format!("try {number}")));
        }
        ledger.ended.insert(number);
        Ok(Done { output: json!({"try": number}), ..Done::default() })
    }

    async fn undo(&self, _: &Context, with: &Value, prepared: &Value) -> Result<Done, ActionError> {
        assert_eq!(prepared["place"], place(with));
        tokio::time::sleep(Duration::from_millis(700)).await;
        let mut ledger = self.ledger();
        ledger.there.remove(&place(with));
        ledger.undone.push(place(with));
        Ok(Done::default())
    }
}

/// The journal on disk. Whoever waits for a sync holds the paused clock, as a blocking task does.
struct OnDisk(LogJournal);

impl Journal for OnDisk {
    fn append(&self, appends: Vec<StreamAppend>) -> Appended {
        let appended = self.0.append(appends);
        let (answer, waits) = tokio::sync::oneshot::channel();
        tokio::task::spawn_blocking(move || {
            let gone = || AppendError::Unavailable("no answer".to_owned());
            // Who asked may be gone.
            let _ = answer.send(appended.blocking_recv().unwrap_or_else(|_| Err(gone())));
        });
        waits
    }

    fn read(&self, after: Position) -> Box<dyn Iterator<Item = Result<(Position, Record), ReadError>> + Send> {
        self.0.read(after)
    }

    fn read_stream(&self, stream: &StreamId, after_seq: u64, limit: usize) -> Result<Vec<Record>, ReadError> {
        self.0.read_stream(stream, after_seq, limit)
    }

    fn damaged(&self) -> Vec<StreamId> {
        self.0.damaged()
    }

    fn head(&self) -> Head {
        self.0.head()
    }

    fn seq(&self, stream: &StreamId) -> u64 {
        self.0.seq(stream)
    }

    fn syncs(&self) -> u64 {
        self.0.syncs()
    }
}

/// A coordinator and two workers, each with a way of its own to the bus, and every way is bad.
struct House {
    up: Coordinator,
    journal: Arc<OnDisk>,
    ledger: Arc<Mutex<Ledger>>,
    stop: CancellationToken,
    workers: Vec<tokio::task::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

fn bad_way(bus: &Arc<dyn Bus>, seed: u64) -> Arc<dyn Bus> {
    // A task may come when nobody thinks of its attempt any more, neither here nor there.
    let delay_at_most = Duration::from_secs(60);
    let faults = Faults { seed, lose: 120, lose_reply: 120, repeat: 200, delay: 250, delay_at_most };
    Arc::new(FaultyBus::new(Arc::clone(bus), faults))
}

impl House {
    async fn open(seed: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bus: Arc<dyn Bus> = Arc::new(LocalBus::new());
        let (log, opening) = LogJournal::open(&dir.path().join("data"), LogOptions::default()).unwrap();
        let journal = Arc::new(OnDisk(log));
        let (store, _) = Store::open(&dir.path().join("store"), &opening.cluster, journal.head().position).unwrap();
        let way = bad_way(&bus, 1000 + seed);
        let mut config = Config::new(Arc::clone(&journal) as _, Arc::new(store), way, opening.cluster);
        let (began, epoch) = (tokio::time::Instant::now(), Timestamp::now());
        config.clock = Clock::new(move || epoch + SignedDuration::try_from(began.elapsed()).unwrap());
        let (ledger, stop) = (Arc::default(), CancellationToken::new());
        config.shipped = catalogue(&ledger).offers();
        let up = Coordinator::open(config).await.unwrap();
        let workers = ["fault-1", "fault-2"].iter().zip(2..).map(|(name, way)| {
            let worker = worker(name, bad_way(&bus, 1000 * way + seed), &ledger, &dir);
            let stop = stop.clone();
            tokio::spawn(async move { worker.run(stop).await.unwrap() })
        });
        let workers = workers.collect();
        Self { up, journal, ledger, stop, workers, _dir: dir }
    }

    async fn start(&self, steps: &str) -> RunId {
        let source = PlaybookSource::Inline(with_steps(&playbook(steps)));
        let started = self.up.start_run(&"default".into(), &source, json!({}), "", None, false, &operator()).await;
        started.unwrap_or_else(|e| panic!("{e}: {:#?}", e.findings)).id.clone()
    }

    /// Until the run has ended. Questions are answered by who has read the ledger.
    async fn end(&self, id: &RunId) -> Arc<Run> {
        let until = tokio::time::Instant::now() + LONG;
        loop {
            let run = self.up.run(&"default".into(), id).await.unwrap();
            if run.has_ended() {
                return run;
            }
            assert!(tokio::time::Instant::now() < until, "it does not end: {:#?}\n{:#?}", run.steps, self.events(id));
            for (step, state) in run.plan.steps.iter().zip(&run.steps) {
                if let StepState::Asking { .. } = state.state {
                    self.answer(id, step.id.as_str()).await;
                }
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn answer(&self, id: &RunId, step: &str) {
        let is_done = {
            let ledger = self.ledger.lock().unwrap();
            let mine = |begun: &(String, String)| begun.0 == id.as_str() && begun.1 == step;
            ledger.ended.iter().any(|number| mine(&ledger.begun[*number]))
        };
        let resolution = if is_done { Resolution::Succeeded } else { Resolution::Retry };
        let reason = "the ledger says so".to_owned();
        let resolve = Command::ResolveStep { step: step.into(), resolution, reason, output: None };
        self.up.command_run(&"default".into(), id, resolve, &operator()).await.unwrap();
    }

    fn events(&self, id: &RunId) -> Vec<Value> {
        let stream = StreamId(format!("run/{}", id.as_str()).into());
        let records = self.journal.read_stream(&stream, 0, usize::MAX).unwrap();
        records.iter().map(|record| serde_json::from_str(record.event.get()).unwrap()).collect()
    }

    async fn close(self) {
        self.stop.cancel();
        for worker in self.workers {
            worker.await.unwrap();
        }
        self.up.shutdown().await;
    }
}

/// Each step tells its action which one it is.
fn with_steps(yaml: &str) -> String {
    let mut told = String::new();
    for line in yaml.lines() {
        let id = line.split_once("{id: ").and_then(|(_, rest)| rest.split_once(',')).map_or("", |(id, _)| id);
        told.push_str(&line.replace("with: {", &format!("with: {{step: {id}, ")));
        told.push('\n');
    }
    told
}

fn catalogue(ledger: &Arc<Mutex<Ledger>>) -> Catalogue {
    let work = |kind| Arc::new(Work { kind, ledger: Arc::clone(ledger) }) as Arc<dyn Action>;
    Catalogue::new([Kind::Put, Kind::Flaky, Kind::Once, Kind::Bad].map(work)).unwrap()
}

fn worker(name: &str, way: Arc<dyn Bus>, ledger: &Arc<Mutex<Ledger>>, dir: &tempfile::TempDir) -> Worker {
    let config = WorkerConfig {
        namespace: "default".to_owned(),
        agent: name.to_owned(),
        role: "fault".to_owned(),
        labels: BTreeMap::new(),
        host: Some(format!("{name}-host")),
        slots: 4,
        data_dir: Some(dir.path().join(name)),
        software: "faults".to_owned(),
    };
    Worker::new(config, catalogue(ledger), way)
}

fn operator() -> Caller {
    Caller { actor: "person/operator".into(), request_id: None }
}

/// What the journal says of the attempts of one step.
#[derive(Debug, Default)]
struct Told {
    /// Which entry of the ledger each attempt has reported.
    tries: BTreeMap<u64, BTreeSet<usize>>,
    successes: BTreeSet<usize>,
    /// Attempts to do it of which nobody knows how they ended.
    unknown: usize,
    undos: usize,
}

/// The number that a report names, of which the journal has the outcome or the whole report.
fn try_of(outcome: &Value) -> Option<usize> {
    let message = || outcome["message"].as_str()?.strip_prefix("try ")?.parse().ok();
    outcome["output"]["try"].as_u64().and_then(|number| usize::try_from(number).ok()).or_else(message)
}

fn told(events: &[Value]) -> BTreeMap<String, Told> {
    let (mut steps, mut purposes) = (BTreeMap::<String, Told>::new(), BTreeMap::new());
    for event in events {
        let (Some(step), Some(attempt)) = (event["step"].as_str(), event["attempt"].as_u64()) else { continue };
        let told = steps.entry(step.to_owned()).or_default();
        match event["type"].as_str().unwrap() {
            "attempt_assigned" => {
                purposes.insert((step.to_owned(), attempt), event["purpose"].clone());
            }
            "attempt_ended" => {
                let (outcome, purpose) = (&event["end"]["outcome"], &purposes[&(step.to_owned(), attempt)]);
                if let Some(number) = try_of(outcome) {
                    told.tries.entry(attempt).or_default().insert(number);
                    if outcome["result"] == "succeeded" {
                        told.successes.insert(number);
                    }
                }
                told.unknown += usize::from(purpose == "run" && event["end"]["how"] == "unknown");
                told.undos += usize::from(purpose == "undo" && outcome["result"] == "succeeded");
            }
            "report_arrived_stale" => {
                if let Some(number) = try_of(&event["report"]["outcome"]) {
                    told.tries.entry(attempt).or_default().insert(number);
                }
            }
            _ => {}
        }
    }
    steps
}

/// Each attempt was begun at most once, and what the journal calls done or undone was.
fn agrees(run: &Run, events: &[Value], ledger: &Ledger) {
    for (step, told) in told(events) {
        let place = format!("{} {step}", run.id.as_str());
        let mine: BTreeSet<usize> = (0..ledger.begun.len())
            .filter(|n| ledger.begun[*n] == (run.id.as_str().to_owned(), step.clone()))
            .collect();
        let reported: BTreeSet<usize> = told.tries.values().flatten().copied().collect();
        assert!(reported.is_subset(&mine), "{place}: {reported:?} are not all of {mine:?}");
        assert!(told.tries.values().all(|tries| tries.len() == 1), "{place}: an attempt was begun twice: {told:?}");
        assert_eq!(reported.len(), told.tries.len(), "{place}: two attempts report one try: {told:?}");
        assert!(
            mine.len() <= reported.len() + told.unknown,
            "{place}: {mine:?} were begun, the journal knows {told:?}"
        );
        assert!(told.successes.iter().all(|n| ledger.ended.contains(n)), "{place}: not done: {told:?}");
        let undone = ledger.undone.iter().filter(|undone| **undone == place).count();
        assert!(undone >= told.undos, "{place}: undone {undone} times, the journal says {}", told.undos);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bus_that_loses_repeats_and_delays_both_ways_changes_nothing_but_the_time() {
    let mut given_again = 0;
    for seed in SEEDS {
        let house = House::open(seed).await;
        let mut runs = Vec::new();
        for _ in 0..RUNS_OF_EACH {
            runs.push((house.start(GOOD).await, "succeeded"));
            runs.push((house.start(BAD).await, "failed"));
        }
        for (id, expected) in runs {
            let run = house.end(&id).await;
            let RunState::Ended { outcome, .. } = &run.state else { panic!("seed {seed}: it has ended") };
            let events = house.events(&id);
            assert_eq!(serde_json::to_value(outcome).unwrap(), expected, "seed {seed}: {events:#?}");
            let ledger = house.ledger.lock().unwrap();
            agrees(&run, &events, &ledger);
            let there = ledger.there.iter().filter(|place| place.starts_with(id.as_str())).count();
            assert_eq!(there, if expected == "failed" { 0 } else { 2 }, "seed {seed}: what is left of {}", id.as_str());
            given_again +=
                events.iter().filter(|e| e["type"] == "attempt_ended" && e["end"]["how"] == "not_started").count();
        }
        house.close().await;
    }
    assert!(given_again > 0, "no task came too late, so nothing is shown");
}
