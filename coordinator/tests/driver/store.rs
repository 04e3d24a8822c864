//! What lists say while the store can't follow the log: the truth, or that they can't be told.

use std::time::Duration;

use muster_bus::message::TaskReply;
use muster_coordinator::{
    control::{Control, PlaybookSource, RunFilter},
    journal::Journal,
    store::{Store, StoreWrite},
};
use muster_engine::run::Command;
use serde_json::json;

use crate::harness::{CLUSTER, House, chain, ns, operator, succeeded};

/// What no disk has.
const NOT_THERE: u64 = u64::MAX;

/// The ids of all listed runs, with their states, or the reason why there is no list.
async fn listed(house: &House) -> Result<Vec<(String, &'static str)>, &'static str> {
    let page = house.up.list_runs(&ns(), &RunFilter::default(), 100, "").await.map_err(|e| e.code)?;
    Ok(page.items.into_iter().map(|run| (run.id.to_string(), run.state)).collect())
}

async fn until_listed(house: &House) -> Vec<(String, &'static str)> {
    let until = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        match listed(house).await {
            Ok(list) => return list,
            Err(code) => assert_eq!(code, "STORE_UNAVAILABLE"),
        }
        assert!(tokio::time::Instant::now() < until, "lists come back when there is room");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn without_room_lists_are_refused_and_everything_else_goes_on() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let before = house.start(&chain(1)).await;
    agent.succeed(1).await;
    house.ended(&before.id).await;
    assert_eq!(listed(&house).await.unwrap().len(), 1);

    house.store.keep_free(NOT_THERE);
    let first = house.start(&chain(1)).await;
    assert_eq!(listed(&house).await, Err("STORE_UNAVAILABLE"));
    assert_eq!(listed(&house).await, Err("STORE_UNAVAILABLE"), "not the old list, ever");
    agent.succeed(1).await;
    house.ended(&first.id).await;
    let submitted = house.up.submit_playbook(&ns(), &chain(2), false, &operator()).await.unwrap();
    let newest = PlaybookSource::Stored { name: "chain".into(), revision: None };
    let by_name = PlaybookSource::Stored { name: "chain".into(), revision: Some(submitted.revision.clone()) };
    house.up.submit_playbook(&ns(), &chain(3), false, &operator()).await.unwrap();
    for source in [newest, by_name] {
        house.up.start_run(&ns(), &source, json!({}), "", None, true, &operator()).await.unwrap();
    }
    let refused = house.up.list_playbooks(&ns(), 10, "").await.unwrap_err();
    assert!(refused.hint.contains("make room"), "{refused:?}");
    let open = house.start(&chain(1)).await;
    let pause = Command::Pause { reason: "a look".into() };
    house.up.command_run(&ns(), &open.id, pause, &operator()).await.unwrap();
    assert!(house.up.watch_run(&ns(), &open.id, 0).await.is_ok());

    house.store.keep_free(0);
    let list = until_listed(&house).await;
    let state_of =
        |id: &muster_engine::ids::RunId| list.iter().find(|(listed, _)| *listed == id.to_string()).unwrap().1;
    assert_eq!((list.len(), state_of(&first.id), state_of(&open.id)), (3, "SUCCEEDED", "PAUSED"));
    let playbooks = house.up.list_playbooks(&ns(), 10, "").await.unwrap().items;
    assert_eq!(playbooks.len(), 1);
    assert_ne!(playbooks[0].revision, submitted.revision, "the newest is the one submitted last");
    house.start(&chain(1)).await;
    assert_eq!(listed(&house).await.unwrap().len(), 4, "and they follow again");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_was_made_anew_is_filled_from_the_log_before_it_answers() {
    let house = House::open().await;
    house.start(&chain(1)).await;
    assert_eq!(listed(&house).await.unwrap().len(), 1);
    house.store.keep_free(NOT_THERE);
    house.start(&chain(1)).await;
    assert_eq!(listed(&house).await, Err("STORE_UNAVAILABLE"));
    house.store.keep_free(0);
    house.store.reset("the test says so").unwrap();
    assert_eq!(until_listed(&house).await.len(), 2, "what was there before is read from the log again");
}

/// A journal that waits for room keeps appends for hours; lists say what was on disk meanwhile.
#[tokio::test(start_paused = true)]
async fn lists_are_told_while_the_journal_does_not_answer() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(2)).await;
    let task = agent.next(TaskReply::Accepted).await;
    house.journal.hold();
    {
        let mut reporting = std::pin::pin!(agent.report(&task, succeeded(json!({}))));
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut reporting).await.is_err());
        assert_eq!(listed(&house).await.unwrap(), [(run.id.to_string(), "RUNNING")]);
        house.journal.let_go();
        reporting.await;
    }
    agent.succeed(1).await;
    house.ended(&run.id).await;
    assert_eq!(listed(&house).await.unwrap(), [(run.id.to_string(), "SUCCEEDED")]);
}

/// Rows are written in parts, and the position with the last of them: who is killed in between has rows that are newer.
#[tokio::test(start_paused = true)]
async fn rows_that_are_newer_than_the_position_are_made_again() {
    let mut house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let (ends, goes_on) = (house.start(&chain(1)).await, house.start(&chain(2)).await);
    assert_eq!(listed(&house).await.unwrap().len(), 2);
    let rows_of = |house: &House, runs: &[&muster_engine::ids::RunId]| -> Vec<StoreWrite> {
        runs.iter().map(|id| StoreWrite::Run(house.store.run(id).unwrap().unwrap())).collect()
    };
    let (then, old) = (house.store.position(), rows_of(&house, &[&ends.id, &goes_on.id]));
    agent.succeed(2).await;
    house.ended(&ends.id).await;
    let new_ends = house.start(&chain(1)).await;
    agent.succeed(2).await;
    for run in [&goes_on, &new_ends] {
        house.ended(&run.id).await;
    }
    let new_open = house.start(&chain(1)).await;
    let list = listed(&house).await.unwrap();
    assert_eq!(list.len(), 4);
    let half = rows_of(&house, &[&ends.id, &new_ends.id]);
    {
        let (store, _) = Store::open(&house.next_store(), CLUSTER, house.journal.head().position).unwrap();
        store.apply_batch(then, old).unwrap();
        store.amend(half).unwrap();
    }
    house.crash_and_reopen().await;
    assert_eq!(listed(&house).await.unwrap(), list);
    let open: Vec<_> = house.store.open_runs().unwrap().into_keys().collect();
    assert_eq!(open, std::slice::from_ref(&new_open.id));
}
