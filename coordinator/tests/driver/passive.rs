//! Runs that wait for nothing but time and people are not in memory, and nobody can tell.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use muster_coordinator::{
    control::{Control, RunFilter},
    journal::StreamId,
};
use muster_engine::{
    ids::RunId,
    run::{Command, event::RunOutcome, state::RunState},
};
use serde_json::json;

use crate::harness::{House, ns, operator};

fn playbook(wait: &str) -> String {
    format!(
        "apiVersion: muster.dev/v1\nkind: Playbook\nmetadata: {{name: waits, owner: devops}}\nspec:\n  phases:\n    - id: only\n      milestone: Done\n      steps:\n        - {{id: w, wait: {wait}}}\n"
    )
}

fn go() -> Command {
    Command::Signal { signal: "go".to_owned(), payload: Arc::new(json!({ "by": "hand" })), reason: String::new() }
}

async fn in_memory(house: &House, count: usize) {
    for _ in 0..600 {
        if house.up.runs_in_memory() == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("{} runs are in memory, not {count}", house.up.runs_in_memory());
}

async fn succeeded(house: &House, id: &RunId) {
    let run = house.ended(id).await;
    assert!(matches!(run.state, RunState::Ended { outcome: RunOutcome::Succeeded, .. }));
}

#[tokio::test(start_paused = true)]
async fn a_run_that_waits_leaves_memory_and_is_there_for_whoever_asks() {
    let house = House::open().await;
    let run = house.start(&playbook("{signal: go}")).await;
    in_memory(&house, 0).await;
    assert_eq!(*house.run(&run.id).await, *run, "as it was");
    in_memory(&house, 0).await;
    let listed = house.up.list_runs(&ns(), &RunFilter::default(), 10, "").await.unwrap().items;
    assert_eq!((listed.len(), listed[0].state), (1, "RUNNING"));
    assert_eq!(house.up.explain_run(&ns(), &run.id).await.unwrap()[0].waits_for, "signal go");
    in_memory(&house, 0).await;
    house.up.command_run(&ns(), &run.id, go(), &operator()).await.unwrap();
    succeeded(&house, &run.id).await;
}

#[tokio::test(start_paused = true)]
async fn it_comes_back_by_itself_when_its_moment_comes() {
    let house = House::open().await;
    let waits = house.start(&playbook("{for: 10m}")).await;
    let reminded = house.start(&playbook("{signal: go}")).await;
    in_memory(&house, 0).await;
    tokio::time::sleep(Duration::from_secs(9 * 60)).await;
    assert_eq!(house.up.runs_in_memory(), 0);
    let listed = async |state: &str| {
        let filter = RunFilter { states: vec![state.to_owned()], ..RunFilter::default() };
        house.up.list_runs(&ns(), &filter, 10, "").await.unwrap().items.len()
    };
    assert_eq!(listed("SUCCEEDED").await, 0);
    tokio::time::sleep(Duration::from_secs(2 * 60)).await;
    assert_eq!(listed("SUCCEEDED").await, 1, "nobody has asked for it");
    succeeded(&house, &waits.id).await;
    tokio::time::sleep(Duration::from_secs(35 * 60)).await;
    let reminders = house.up.run_events(&ns(), &reminded.id, 0, 100).await.unwrap();
    assert_eq!(reminders.iter().filter(|e| e.event.kind() == "owner_reminded").count(), 3);
    in_memory(&house, 1).await;
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_it_is_believed_where_it_was_and_wakes_in_time() {
    for keeps_store in [true, false] {
        let mut house = House::open().await;
        let waits = house.start(&playbook("{for: 10m}")).await;
        let asks = house.start(&playbook("{signal: go}")).await;
        in_memory(&house, 0).await;
        if keeps_store {
            house = house.crash_and_reopen_with_its_store().await;
        } else {
            house.crash_and_reopen().await;
        }
        assert_eq!(house.up.runs_in_memory(), 0);
        tokio::time::sleep(Duration::from_secs(11 * 60)).await;
        assert_eq!(house.up.runs_in_memory(), 1, "the one that has ended");
        succeeded(&house, &waits.id).await;
        house.up.command_run(&ns(), &asks.id, go(), &operator()).await.unwrap();
        succeeded(&house, &asks.id).await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_clock_is_not_before_what_a_passive_run_has_seen() {
    let house = House::open().await;
    let run = house.start(&playbook("{signal: go}")).await;
    in_memory(&house, 0).await;
    house.up.list_runs(&ns(), &RunFilter::default(), 10, "").await.unwrap();
    house.wall_offset_ms.store(-3_600_000, Ordering::SeqCst);
    let house = house.crash_and_reopen_with_its_store().await;
    let next = house.start(&playbook("{signal: go}")).await;
    assert!(next.started_at >= run.updated_at, "the journal goes back in time: {} {}", run.updated_at, next.started_at);
}

#[tokio::test(start_paused = true)]
async fn what_has_gone_on_since_it_was_passive_is_not_believed_passive() {
    let behind =
        "        - {id: s, needs: [w], agent: {role: infra}, action: test.work, with: {n: 1}, undo: irreversible}\n";
    let house = House::open().await;
    let run = house.start(&format!("{}{behind}", playbook("{signal: go}"))).await;
    in_memory(&house, 0).await;
    house.up.command_run(&ns(), &run.id, go(), &operator()).await.unwrap();
    // The store has all that is in the log so far.
    house.start(&playbook("{signal: other}")).await;
    house.up.list_runs(&ns(), &RunFilter::default(), 10, "").await.unwrap();
    let house = house.crash_and_reopen_with_its_store().await;
    let mut agent = house.agent("infra-1").await;
    agent.succeed(1).await;
    let run = house.ended(&run.id).await;
    let took = run.updated_at.duration_since(run.started_at);
    assert!(took.as_secs() < 60, "it was left alone until its old wake-up: {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watcher_keeps_it_and_hears_everything() {
    let house = House::open().await;
    let run = house.start(&playbook("{signal: go}")).await;
    let mut watch = house.up.watch_run(&ns(), &run.id, run.seq).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(house.up.runs_in_memory(), 1);
    house.up.command_run(&ns(), &run.id, go(), &operator()).await.unwrap();
    let mut kinds = Vec::new();
    while let Some(change) = watch.next().await {
        kinds.push(change.unwrap().event.event.kind());
    }
    assert_eq!(kinds.first(), Some(&"signal_received"));
    assert_eq!(kinds.last(), Some(&"run_ended"));
    let other = house.start(&playbook("{signal: go}")).await;
    let watch = house.up.watch_run(&ns(), &other.id, 0).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(house.up.runs_in_memory(), 2, "the one that has ended, and the one that is watched");
    drop(watch);
    in_memory(&house, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_read_that_fails_for_a_moment_costs_nothing_but_the_moment() {
    let house = House::open().await;
    let run = house.start(&playbook("{for: 10m}")).await;
    in_memory(&house, 0).await;
    house.journal.unreadable.store(true, Ordering::SeqCst);
    assert_eq!(house.up.run(&ns(), &run.id).await.unwrap_err().code, "JOURNAL_UNREADABLE");
    tokio::time::sleep(Duration::from_secs(11 * 60)).await;
    assert_eq!(house.up.quarantine(&run.id), None);
    house.journal.unreadable.store(false, Ordering::SeqCst);
    // Nobody asks for it: it is fetched again by itself.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let filter = RunFilter { states: vec!["SUCCEEDED".to_owned()], ..RunFilter::default() };
    assert_eq!(house.up.list_runs(&ns(), &filter, 10, "").await.unwrap().items.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_has_lost_records_is_named_at_the_start_and_not_when_it_wakes() {
    let house = House::open().await;
    let run = house.start(&playbook("{signal: go}")).await;
    let whole = house.start(&playbook("{signal: go}")).await;
    in_memory(&house, 0).await;
    house.up.list_runs(&ns(), &RunFilter::default(), 10, "").await.unwrap();
    house.journal.lost.lock().unwrap().push(StreamId(format!("run/{}", run.id).into()));
    let house = house.crash_and_reopen_with_its_store().await;
    assert!(house.up.quarantine(&run.id).is_some(), "nobody was told");
    assert_eq!(house.up.quarantine(&whole.id), None);
    assert_eq!(house.up.runs_in_memory(), 1, "the other one is left alone");
}
