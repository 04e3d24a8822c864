//! What has ended goes when it is old, with everything about it; what is open stays whole, and goes on.

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use muster_bus::{
    Bus,
    local::LocalBus,
    message::{Report, ReportReply, TaskReply},
    subject::{Subjects, shard_of},
};
use muster_coordinator::{
    control::{Caller, Control, PlaybookSource, RunFilter},
    driver::{Clock, Config, Coordinator, Retention},
    journal::{
        Journal, Position,
        log::{LogJournal, LogOptions},
    },
    store::Store,
};
use muster_engine::{
    ids::RunId,
    run::{Command, Run},
};
use serde_json::{Value, json};

use crate::harness::{Agent, CLUSTER, chain, ns, offer, operator, succeeded};

const WAITS: &str = "apiVersion: muster.dev/v1
kind: Playbook
metadata: {name: waits, owner: devops}
spec: {phases: [{id: only, steps: [{id: w, wait: {signal: go}}]}]}
";

const DAY_MS: u64 = 86_400_000;
const KEEP: Retention =
    Retention { keep_ms: Some(30 * DAY_MS), pack_after_ms: 7 * DAY_MS, look_every: Duration::from_millis(50) };
const BOUND: Duration = Duration::from_secs(60);

/// A coordinator with a log on disk of small segments, so many days after the first.
struct Place {
    up: Coordinator,
    journal: Arc<LogJournal>,
    store: Arc<Store>,
    bus: Arc<LocalBus>,
}

impl Place {
    async fn open(dir: &Path, store: &str, days: i64, retention: Option<Retention>) -> Self {
        let options = LogOptions { segment_bytes: 16 << 10, ..LogOptions::default() };
        let (journal, opening) = LogJournal::open(&dir.join("data"), options).unwrap();
        assert_eq!(opening.losses, []);
        let (journal, bus) = (Arc::new(journal), Arc::new(LocalBus::new()));
        let store = Arc::new(Store::open(&dir.join(store), CLUSTER, journal.head().position).unwrap().0);
        let mut config = Config::new(Arc::clone(&journal) as _, Arc::clone(&store), Arc::clone(&bus) as _, CLUSTER);
        config.shipped = vec![offer("test.work")];
        config.retention = retention;
        let (began, first) = (Instant::now(), "2026-01-07T09:00:00Z".parse::<Timestamp>().unwrap());
        let first = first + SignedDuration::from_hours(24 * days);
        config.clock = Clock::new(move || first + SignedDuration::try_from(began.elapsed()).unwrap());
        Self { up: Coordinator::open(config).await.unwrap(), journal, store, bus }
    }

    async fn close(self) {
        self.up.shutdown().await;
        let Self { up, journal, store, bus } = self;
        drop((up, bus));
        for (what, left) in [("journal", free(journal).await), ("store", free(store).await)] {
            assert!(left, "the {what} is still in use");
        }
    }

    async fn start(&self, yaml: &str, caller: &Caller) -> Arc<Run> {
        let source = PlaybookSource::Inline(yaml.to_owned());
        self.up.start_run(&ns(), &source, json!({}), "", None, false, caller).await.unwrap()
    }

    async fn listed(&self) -> Vec<RunId> {
        let page = self.up.list_runs(&ns(), &RunFilter::default(), 500, "").await.unwrap();
        page.items.into_iter().map(|run| run.id).collect()
    }

    async fn until_gone(&self, id: &RunId) {
        let began = Instant::now();
        while self.up.run(&ns(), id).await.is_ok() {
            assert!(began.elapsed() < BOUND, "run {id} is still there; the log begins at {:?}", self.journal.begins());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Who still reads in the background lets go in a moment.
async fn free<T>(shared: Arc<T>) -> bool {
    let weak = Arc::downgrade(&shared);
    drop(shared);
    let began = Instant::now();
    while weak.strong_count() > 0 {
        if began.elapsed() > BOUND {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

fn with_id(n: u32) -> Caller {
    Caller { request_id: Some(format!("0199aaaa-0000-7000-8000-{n:012}")), ..operator() }
}

async fn work_off(place: &Place, agent: &mut Agent, run: &RunId) {
    for _ in 0..3 {
        let task = agent.next(TaskReply::Accepted).await;
        agent.report(&task, succeeded(json!({"text": "x".repeat(300)}))).await;
    }
    let began = Instant::now();
    while !place.up.run(&ns(), run).await.unwrap().has_ended() {
        assert!(began.elapsed() < BOUND);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Ten runs that end, between them one that waits; the last one ends a day before `KEEP` lets go of it.
async fn a_year_ago(dir: &Path) -> (Vec<RunId>, RunId, RunId) {
    let place = Place::open(dir, "store", 0, None).await;
    let mut agent = Agent::start(Arc::clone(&place.bus), "infra-1", "i1", |_| {}).await;
    let mut ended = Vec::new();
    let waits = place.start(WAITS, &with_id(99)).await;
    for n in 0..10 {
        let run = place.start(&chain(3), &with_id(n)).await;
        work_off(&place, &mut agent, &run.id).await;
        ended.push(run.id.clone());
    }
    place.close().await;
    let place = Place::open(dir, "store", 380, None).await;
    let mut agent = Agent::start(Arc::clone(&place.bus), "infra-1", "i1", |_| {}).await;
    let young = place.start(&chain(3), &with_id(50)).await;
    work_off(&place, &mut agent, &young.id).await;
    for n in 0..6 {
        let filler = place.start(&chain(3), &with_id(60 + n)).await;
        work_off(&place, &mut agent, &filler.id).await;
    }
    place.close().await;
    (ended, waits.id.clone(), young.id.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ended_long_ago_goes_and_what_is_open_stays_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (ended, waits, young) = a_year_ago(dir.path()).await;
    let place = Place::open(dir.path(), "store", 400, Some(KEEP)).await;
    let before = format!("{:?}", place.up.run_events(&ns(), &waits, 0, 3).await.unwrap());
    place.until_gone(&ended[0]).await;
    let gone = |listed: &[RunId]| ended.iter().filter(|id| !listed.contains(id)).count();
    let listed = place.listed().await;
    assert!(gone(&listed) >= 8, "{} of {} are gone", gone(&listed), ended.len());
    assert!(listed.contains(&waits) && listed.contains(&young), "{listed:?}");
    assert_eq!(place.up.run(&ns(), &ended[0]).await.unwrap_err().code, "RUN_NOT_FOUND");
    let milestones = place.up.list_milestones(&ns(), Some(&ended[0]), 100, "").await;
    assert!(milestones.is_err() || milestones.unwrap().items.is_empty(), "milestones of a run that is gone");

    // Its last words come very late, and the agent need not keep them.
    let mut agent = Agent::start(Arc::clone(&place.bus), "infra-1", "i1", |_| {}).await;
    assert_eq!(late_report(&place, &ended[0]).await, ReportReply::Gone);

    // The same request is still the same while its run is there.
    assert_eq!(place.start(WAITS, &with_id(99)).await.id, waits);
    let again = place.start(&chain(3), &with_id(0)).await;
    assert!(!ended.contains(&again.id), "a request whose run is gone is forgotten with it");
    work_off(&place, &mut agent, &again.id).await;

    let began = Instant::now();
    while !packed(dir.path()) {
        assert!(began.elapsed() < BOUND, "nothing was compressed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let begins = place.journal.begins();
    assert!(begins > Position(0));
    let listed = place.listed().await;
    place.close().await;

    // The store is lost: everything that is kept is in the log.
    let place = Place::open(dir.path(), "another store", 401, None).await;
    assert_eq!((place.listed().await, place.journal.begins()), (listed, begins));
    assert_eq!(format!("{:?}", place.up.run_events(&ns(), &waits, 0, 3).await.unwrap()), before, "it is whole");
    let signal = Command::Signal { signal: "go".into(), payload: Arc::new(Value::Null), reason: String::new() };
    let run = place.up.command_run(&ns(), &waits, signal, &operator()).await.unwrap();
    assert!(run.has_ended(), "{:?}", run.state);
    place.close().await;
}

fn packed(dir: &Path) -> bool {
    let files = std::fs::read_dir(dir.join("data/log")).unwrap();
    files.map(Result::unwrap).any(|file| file.path().extension().is_some_and(|end| end == "gz"))
}

/// What takes ended runs off the lists is lost with the process: the journal says that there was something to take off.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_name_nobody_whose_records_are_gone_though_the_store_is_of_before() {
    let dir = tempfile::tempdir().unwrap();
    let (ended, waits, _) = a_year_ago(dir.path()).await;
    Place::open(dir.path(), "store", 399, None).await.close().await;
    let copied = std::process::Command::new("cp")
        .args(["-r", "store", "store of before"])
        .current_dir(dir.path())
        .status()
        .unwrap();
    assert!(copied.success());
    let place = Place::open(dir.path(), "store", 400, Some(KEEP)).await;
    place.until_gone(&ended[0]).await;
    let began = Instant::now();
    while !packed(dir.path()) {
        assert!(began.elapsed() < BOUND, "it never comes to rest");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let listed = place.listed().await;
    place.close().await;
    let place = Place::open(dir.path(), "store of before", 401, None).await;
    assert_eq!(place.listed().await, listed);
    assert!(listed.contains(&waits) && !listed.contains(&ended[0]));
    place.close().await;
}

async fn late_report(place: &Place, run: &RunId) -> ReportReply {
    let report = Report {
        cluster: CLUSTER.to_owned(),
        instance: "i1".to_owned(),
        key: muster_bus::message::AttemptKey { run: run.as_str().to_owned(), step: "s0".to_owned(), attempt: 1 },
        report: succeeded(json!({})),
    };
    let subject = Subjects::new("default").report(shard_of(run.as_str()), "infra-1");
    let payload = serde_json::to_vec(&report).unwrap().into();
    let reply = place.bus.request(&subject, payload, Duration::from_secs(30)).await.unwrap();
    serde_json::from_slice(&reply).unwrap()
}
