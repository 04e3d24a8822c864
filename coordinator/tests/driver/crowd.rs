//! Many runs at once on real threads, an agent that repeats itself and is busy now and then, and a coordinator that goes away
//! in the middle.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use muster_bus::{
    Bus,
    message::{Report, ReportReply, Task, TaskReply},
};
use muster_engine::{ids::RunId, run::event::RunOutcome, run::state::RunState};
use serde_json::json;

use crate::harness::{Agent, CLUSTER, House, chain, subjects, succeeded};

const RUNS: usize = 200;
const STEPS: usize = 6;

/// Run, step and number of an attempt.
type Key = (String, String, u32);

/// What was really done, by attempt.
type Ledger = Arc<Mutex<BTreeMap<Key, u32>>>;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_of_runs_ends_and_nothing_is_done_twice() {
    let mut house = House::open().await;
    let ledger = Ledger::default();
    let agent = Agent::start(Arc::clone(&house.bus), "infra-9", "i9", |r| r.slots = 48).await;
    let worker = tokio::spawn(work(Arc::clone(&house.bus), Arc::clone(&ledger)));
    let mut runs: Vec<RunId> = Vec::new();
    for i in 0..RUNS {
        runs.push(house.start(&chain(STEPS)).await.id.clone());
        if i == RUNS / 2 {
            house.crash_and_reopen().await;
            agent.register_with(|r| r.slots = 48).await;
        }
    }
    for id in &runs {
        let run = house.ended(id).await;
        assert!(matches!(run.state, RunState::Ended { outcome: RunOutcome::Succeeded, .. }), "{:?}", run.state);
    }
    worker.abort();
    let ledger = ledger.lock().unwrap();
    assert!(ledger.values().all(|times| *times == 1), "an attempt was started twice");
    assert_eq!(ledger.len(), RUNS * STEPS);
}

/// Starts each attempt once, says now and then that it is busy, and reports until it is recorded, sometimes twice.
async fn work(bus: Arc<muster_bus::local::LocalBus>, ledger: Ledger) {
    let mut tasks = bus.subscribe(&subjects().task("infra-9", "i9")).await.unwrap();
    let answered: Arc<Mutex<BTreeMap<Key, TaskReply>>> = Arc::default();
    while let Some(delivery) = tasks.next().await {
        let task: Task = serde_json::from_slice(&delivery.payload).unwrap();
        let key = (task.key.run.clone(), task.key.step.clone(), task.key.attempt);
        let known = answered.lock().unwrap().get(&key).cloned();
        let fresh = known.is_none();
        let is_busy = task.key.attempt == 1 && task.key.run.bytes().map(u32::from).sum::<u32>().is_multiple_of(17);
        let answer = known.unwrap_or(if is_busy { TaskReply::Busy } else { TaskReply::Accepted });
        answered.lock().unwrap().insert(key.clone(), answer.clone());
        if let Some(to) = delivery.reply {
            to.send(serde_json::to_vec(&answer).unwrap().into());
        }
        if fresh && answer == TaskReply::Accepted {
            *ledger.lock().unwrap().entry(key).or_default() += 1;
            tokio::spawn(report(Arc::clone(&bus), task));
        }
    }
}

async fn report(bus: Arc<muster_bus::local::LocalBus>, task: Task) {
    let twice = task.key.step == "s3";
    let report = Report {
        cluster: CLUSTER.to_owned(),
        instance: "i9".to_owned(),
        key: task.key,
        report: succeeded(json!({"done": true})),
    };
    let mut recorded = 0;
    while recorded < if twice { 2 } else { 1 } {
        let payload = serde_json::to_vec(&report).unwrap().into();
        match bus.request(&task.report_subject, payload, Duration::from_secs(5)).await {
            Ok(reply) => match serde_json::from_slice(&reply).unwrap() {
                ReportReply::Recorded { .. } => recorded += 1,
                ReportReply::Retry { .. } => tokio::time::sleep(Duration::from_millis(20)).await,
                other @ (ReportReply::Stale | ReportReply::Conflict | ReportReply::Gone) => panic!("{other:?}"),
            },
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}
