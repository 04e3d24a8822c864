//! Logs of attempts: whose lines are taken, how long, how they are read, and that they cost no record.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::StreamExt as _;
use muster_bus::{
    Bus as _,
    message::{LogLine, Task, TaskReply},
};
use muster_coordinator::{
    control::{Control as _, ControlError},
    logs::{Entry, Filter},
};
use muster_engine::ids::RunId;
use serde_json::json;

use super::harness::*;

async fn say(agent: &Agent, instance: &str, task: &Task, line: u64, text: &str) {
    let line =
        LogLine { instance: instance.into(), key: task.key.clone(), line, at_ms: 1_800_000_000_000, text: text.into() };
    let payload = serde_json::to_vec(&line).unwrap().into();
    agent.bus.publish(&subjects().log(&agent.name), payload).await.unwrap();
}

async fn logs(house: &House, run: &RunId) -> Vec<Entry> {
    house.up.run_logs(&ns(), run, &Filter::default(), 0, 1_000).await.unwrap().entries
}

/// Wait until so many are kept.
async fn kept(house: &House, run: &RunId, count: usize) -> Vec<Entry> {
    for _ in 0..36_000 {
        let entries = logs(house, run).await;
        if entries.len() >= count {
            return entries;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("never {count} entries: {:?}", logs(house, run).await);
}

fn texts(entries: &[Entry]) -> Vec<&str> {
    entries.iter().map(|e| e.text.as_str()).collect()
}

#[tokio::test(start_paused = true)]
async fn lines_are_taken_of_who_has_the_attempt_and_of_nobody_else() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    let evil = Agent::start(house.bus.clone(), "evil", "i9", |r| r.role = "evil".into()).await;
    let appends = house.journal.appends.load(Ordering::SeqCst);
    say(&evil, "i9", &task, 1, "under its own name").await;
    say(&evil, "i1", &task, 1, "under that of the other").await;
    say(&agent, "i0", &task, 1, "from a process that is no more").await;
    let mut unknown = task.clone();
    unknown.key.attempt = 2;
    say(&agent, "i1", &unknown, 1, "of an attempt that is not").await;
    unknown.key.run = "../../elsewhere".into();
    say(&agent, "i1", &unknown, 1, "of a run that is not").await;
    say(&agent, "i1", &task, 0, "lines begin at 1").await;
    say(&agent, "i1", &task, 1, "half way").await;
    assert_eq!(texts(&kept(&house, &run.id, 1).await), ["half way"]);
    assert_eq!(house.journal.appends.load(Ordering::SeqCst), appends, "a log costs no record");
}

#[tokio::test(start_paused = true)]
async fn the_last_lines_may_come_after_the_report_but_not_much() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(2)).await;
    let task = agent.next(TaskReply::Accepted).await;
    agent.report(&task, succeeded(json!({}))).await;
    say(&agent, "i0", &task, 1, "not of this instance").await;
    say(&agent, "i1", &task, 1, "the last one").await;
    assert_eq!(texts(&kept(&house, &run.id, 1).await), ["the last one"]);
    let next = agent.next(TaskReply::Accepted).await;
    tokio::time::sleep(Duration::from_secs(11)).await;
    say(&agent, "i1", &task, 2, "too late").await;
    say(&agent, "i1", &next, 1, "of the next step").await;
    assert_eq!(texts(&kept(&house, &run.id, 2).await), ["the last one", "of the next step"]);
}

#[tokio::test(start_paused = true)]
async fn a_stream_has_what_was_and_what_comes_and_ends_with_its_run() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    say(&agent, "i1", &task, 1, "before").await;
    kept(&house, &run.id, 1).await;
    let mut watch = house.up.watch_run_logs(&ns(), &run.id, &Filter::default(), 0).await.unwrap();
    assert_eq!(watch.next().await.unwrap().unwrap().text, "before");
    say(&agent, "i1", &task, 3, "live").await;
    let gap = watch.next().await.unwrap().unwrap();
    assert_eq!(gap.lost.unwrap().0, 1);
    let live = watch.next().await.unwrap().unwrap();
    assert_eq!((live.text.as_str(), live.number), ("live", 3));
    agent.report(&task, succeeded(json!({}))).await;
    say(&agent, "i1", &task, 4, "at the end").await;
    assert_eq!(watch.next().await.unwrap().unwrap().text, "at the end");
    assert!(watch.next().await.is_none());
    let again = house.up.watch_run_logs(&ns(), &run.id, &Filter::default(), live.position).await.unwrap();
    let rest: Vec<Result<Entry, ControlError>> = again.collect().await;
    assert_eq!(rest.len(), 1, "a run that has ended gives what it has, and ends");
}

#[tokio::test(start_paused = true)]
async fn what_is_nowhere_is_refused() {
    let house = House::open().await;
    let _agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let step = Filter { step: Some("s9".into()), attempt: None };
    let code = |refused: Result<_, ControlError>| refused.map(drop).unwrap_err().code;
    assert_eq!(code(house.up.run_logs(&ns(), &run.id, &step, 0, 9).await), "STEP_NOT_FOUND");
    let all = Filter::default();
    assert_eq!(code(house.up.run_logs(&ns(), &run.id, &all, 7, 9).await), "LOG_POSITION_OUT_OF_RANGE");
    assert_eq!(code(house.up.run_logs(&"other".into(), &run.id, &all, 0, 9).await), "RUN_NOT_FOUND");
    let watch = house.up.watch_run_logs(&ns(), &run.id, &all, 7).await;
    assert_eq!(watch.map(drop).unwrap_err().code, "LOG_POSITION_OUT_OF_RANGE");
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_what_was_written() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    say(&agent, "i1", &task, 1, "before").await;
    kept(&house, &run.id, 1).await;
    let house = house.crash_and_reopen_with_its_store().await;
    agent.register_again().await;
    say(&agent, "i1", &task, 2, "after").await;
    assert_eq!(texts(&kept(&house, &run.id, 2).await), ["before", "after"]);
}
