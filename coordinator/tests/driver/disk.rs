//! Record, sync, then act; and what is done when the disk does not answer, or the process has gone.

use std::{sync::atomic::Ordering, time::Duration};

use muster_bus::message::{ReportReply, TaskReply};
use muster_coordinator::{
    control::{Caller, Control, PlaybookSource, RunFilter},
    driver::OpenError,
};
use muster_engine::run::{Command, event::Purpose};
use serde_json::json;

use crate::harness::{House, chain, ns, operator, succeeded};

#[tokio::test(start_paused = true)]
async fn nothing_leaves_before_the_journal_has_answered() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    house.journal.hold();
    let (up, yaml) = (house.up.clone(), chain(2));
    let starting = tokio::spawn(async move {
        up.start_run(&ns(), &PlaybookSource::Inline(yaml), json!({}), "", None, false, &operator()).await
    });
    assert!(agent.gets_nothing_for(Duration::from_secs(10)).await, "no task before the sync");
    assert!(!starting.is_finished(), "no answer before the sync");
    assert_eq!(house.journal.let_go(), 1);
    let run = starting.await.unwrap().unwrap();
    let task = agent.next(TaskReply::Accepted).await;
    let mut watch = house.up.watch_run(&ns(), &run.id, run.seq).await.unwrap();
    house.journal.hold();
    {
        let mut reporting = std::pin::pin!(agent.report(&task, succeeded(json!({}))));
        let early = tokio::time::timeout(Duration::from_secs(10), &mut reporting).await;
        assert!(early.is_err(), "no recorded before the sync");
        let next = tokio::time::timeout(Duration::from_secs(1), futures_util::StreamExt::next(&mut watch)).await;
        assert!(next.is_err(), "no watch update before the sync");
        assert_eq!(house.run(&run.id).await.seq, run.seq, "no view before the sync");
        assert_eq!(house.journal.let_go(), 1);
        assert_eq!(reporting.await, ReportReply::recorded());
    }
    agent.succeed(1).await;
    house.ended(&run.id).await;
}

/// Both outcomes of a failed append: the records are there, or they are not.
async fn the_disk_goes_away_and_comes_back(keeps: bool) {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(3)).await;
    let task = agent.next(TaskReply::Accepted).await;
    house.journal.keeps.store(keeps, Ordering::SeqCst);
    house.journal.fails.store(true, Ordering::SeqCst);
    let answer = agent.report(&task, succeeded(json!({"n": 0}))).await;
    assert!(matches!(answer, ReportReply::Retry { .. }), "{answer:?}");
    let cancel = Command::Pause { reason: "a look".into() };
    if !keeps {
        let up = house.up.clone();
        let id = run.id.clone();
        let refused = tokio::spawn(async move { up.command_run(&ns(), &id, cancel, &operator()).await });
        assert_eq!(refused.await.unwrap().unwrap_err().code, "JOURNAL_UNAVAILABLE");
        assert!(agent.gets_nothing_for(Duration::from_secs(20)).await, "nothing is done while the disk is away");
    }
    house.journal.fails.store(false, Ordering::SeqCst);
    let answer = agent.report(&task, succeeded(json!({"n": 0}))).await;
    assert_eq!(answer, ReportReply::recorded());
    agent.succeed(2).await;
    let run = house.ended(&run.id).await;
    assert!(run.steps.iter().all(|s| s.attempts.len() == 1), "{:?}", run.steps);
}

#[tokio::test(start_paused = true)]
async fn a_failed_append_that_is_on_disk_is_gone_on_from() {
    the_disk_goes_away_and_comes_back(true).await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_append_that_is_not_on_disk_is_made_again() {
    the_disk_goes_away_and_comes_back(false).await;
}

#[tokio::test(start_paused = true)]
async fn time_does_not_go_back_when_the_wall_clock_does_over_a_restart() {
    let mut house = House::open().await;
    tokio::time::sleep(Duration::from_secs(100)).await;
    let first = house.start(&chain(1)).await;
    house.wall_offset_ms.fetch_sub(3_600_000, Ordering::SeqCst);
    house.crash_and_reopen().await;
    let second = house.start(&chain(1)).await;
    assert!(second.started_at >= first.started_at, "{} is before {}", second.started_at, first.started_at);
}

#[tokio::test(start_paused = true)]
async fn an_agents_denial_is_not_lost_with_the_append_that_failed() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    house.start(&chain(1)).await;
    house.journal.fails.store(true, Ordering::SeqCst);
    agent.next(TaskReply::Busy).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    house.journal.fails.store(false, Ordering::SeqCst);
    let again = tokio::time::timeout(Duration::from_secs(60), agent.next(TaskReply::Accepted)).await;
    assert_eq!(again.expect("no longer than the disk was away").key.attempt, 2);
}

#[tokio::test(start_paused = true)]
async fn after_a_crash_the_run_goes_on_where_it_was() {
    let mut house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(3)).await;
    agent.succeed(1).await;
    let held = agent.next(TaskReply::Accepted).await;
    let before = house.until(&run.id, "at s1", |r| r.steps[1].attempts.len() == 1).await;
    house.crash_and_reopen().await;
    let after = house.run(&run.id).await;
    assert!(after.seq >= before.seq);
    assert_eq!(after.steps[0], before.steps[0]);
    // The agent is told to register again, and says that it holds the attempt.
    agent.register_with(|r| r.holds = vec![held.key.clone()]).await;
    let sent_again = agent.next(TaskReply::Accepted).await;
    assert_eq!(sent_again.key, held.key, "the same attempt, not a new one");
    let answer = agent.report(&held, succeeded(json!({}))).await;
    assert_eq!(answer, ReportReply::recorded());
    agent.succeed(1).await;
    let run = house.ended(&run.id).await;
    assert!(run.steps.iter().all(|s| s.attempts.len() == 1));
    let listed = house.up.list_runs(&ns(), &RunFilter::default(), 10, "").await.unwrap();
    assert_eq!(listed.items[0].state, "SUCCEEDED");
    assert_eq!(listed.items[0].started_by.as_str(), "person/operator");
    house.crash_and_reopen().await;
    assert!(house.run(&run.id).await.has_ended(), "an ended run is read from the journal");
    assert_eq!(house.up.list_milestones(&ns(), None, 10, "").await.unwrap().items.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_the_agent_no_longer_has_after_a_crash_is_not_waited_for() {
    let mut house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    agent.next(TaskReply::Accepted).await;
    agent.fall_silent();
    drop(agent);
    house.crash_and_reopen().await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let mut agent = house.agent("infra-1").await;
    let task = agent.next(TaskReply::Accepted).await;
    assert_eq!(task.key.attempt, 2, "the first one is denied by the instance that was given it");
    agent.report(&task, succeeded(json!({}))).await;
    let run = house.ended(&run.id).await;
    assert_eq!(run.steps[0].attempts[1].purpose, Purpose::Run);
}

#[tokio::test(start_paused = true)]
async fn a_second_coordinator_does_not_take_a_bus_that_has_one() {
    let house = House::open().await;
    let refused = house.open_another().await;
    assert!(matches!(refused, Err(OpenError::AnotherAnswers)), "{:?}", refused.err());
}

#[tokio::test(start_paused = true)]
async fn a_record_that_can_not_be_read_quarantines_its_run_alone() {
    let mut house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let (bad, good) = (house.start(&chain(1)).await, house.start(&chain(1)).await);
    let tasks = [agent.next(TaskReply::Accepted).await, agent.next(TaskReply::Accepted).await];
    house.up.shutdown().await;
    house.journal.scribble(&format!("run/{}", bad.id), bad.seq).await;
    house.crash_and_reopen().await;
    agent.register_with(|r| r.holds = tasks.iter().map(|t| t.key.clone()).collect()).await;
    let good_task = tasks.iter().find(|t| t.key.run == good.id.as_str()).unwrap();
    assert_eq!(agent.report(good_task, succeeded(json!({}))).await, ReportReply::recorded());
    house.ended(&good.id).await;
    let listed = house.up.list_runs(&ns(), &RunFilter::default(), 10, "").await.unwrap();
    let states: Vec<_> = listed.items.iter().map(|r| (r.id == bad.id, r.state)).collect();
    assert!(states.contains(&(true, "QUARANTINED")) && states.contains(&(false, "SUCCEEDED")), "{states:?}");
}

#[tokio::test(start_paused = true)]
async fn a_run_of_which_nothing_can_be_read_is_listed_and_explained() {
    let mut house = House::open().await;
    let id = muster_engine::ids::RunId::from("019b9b1a-2c00-7000-8000-000000000001");
    house.journal.scribble(&format!("run/{id}"), 0).await;
    for _ in 0..2 {
        house.crash_and_reopen().await;
        let listed = house.up.list_runs(&ns(), &RunFilter::default(), 10, "").await.unwrap();
        assert_eq!((&listed.items[0].id, listed.items[0].state), (&id, "QUARANTINED"));
        assert_eq!(listed.items[0].started_at.as_second(), 1_767_833_742);
        let waits = house.up.explain_run(&ns(), &id).await.unwrap();
        assert!(waits[0].waits_for.contains("its records to be whole") && waits[0].next_at.is_some(), "{waits:?}");
        assert_eq!(house.up.run(&ns(), &id).await.unwrap_err().code, "RUN_QUARANTINED");
    }
}

#[tokio::test(start_paused = true)]
async fn a_watch_says_why_it_ends_before_its_run() {
    let house = House::open().await;
    let run = house.start(&chain(1)).await;
    let watch = house.up.watch_run(&ns(), &run.id, 0).await.unwrap();
    house.up.shutdown().await;
    let heard: Vec<_> = futures_util::StreamExt::collect(watch).await;
    assert_eq!(heard.last().unwrap().as_ref().unwrap_err().code, "COORDINATOR_STOPPING");
    assert_eq!(heard.len() as u64, run.seq + 1);
}

#[tokio::test(start_paused = true)]
async fn a_start_whose_outcome_was_not_known_is_started_once() {
    for keeps in [false, true] {
        let house = House::open().await;
        let mut agent = house.agent("infra-1").await;
        house.journal.keeps.store(keeps, Ordering::SeqCst);
        house.journal.fails.store(true, Ordering::SeqCst);
        let caller = Caller { request_id: Some("6a9f4c1e-0000-4000-8000-000000000003".into()), ..operator() };
        let source = PlaybookSource::Inline(chain(1));
        let start = async || house.up.start_run(&ns(), &source, json!({}), "", None, false, &caller).await;
        assert_eq!(start().await.unwrap_err().code, "JOURNAL_UNAVAILABLE");
        house.journal.fails.store(false, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_secs(10)).await;
        let run = start().await.unwrap();
        agent.succeed(1).await;
        house.ended(&run.id).await;
        assert_eq!(house.up.list_runs(&ns(), &RunFilter::default(), 10, "").await.unwrap().items.len(), 1);
    }
}
