//! A coordinator that drains: nothing new begins, what is at work ends, and who waits is told why.

use std::{sync::atomic::Ordering, time::Duration};

use muster_bus::message::{ReportReply, TaskReply};
use muster_coordinator::control::{Caller, Control, CoordinatorView, PlaybookSource, RunFilter};
use muster_engine::{ids::RunId, run::Command};
use serde_json::json;

use crate::harness::{House, chain, ns, operator, succeeded};

fn admin() -> Caller {
    Caller { actor: "person/admin".into(), request_id: None }
}

async fn listed_why(house: &House, id: &RunId) -> String {
    let listed = house.up.list_runs(&ns(), &RunFilter::default(), 10, "").await.unwrap();
    listed
        .items
        .into_iter()
        .find(|run| run.id == *id)
        .unwrap()
        .waiting
        .map(|waiting| waiting.waits_for)
        .unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn what_is_at_work_ends_and_nothing_new_begins() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(2)).await;
    let task = agent.next(TaskReply::Accepted).await;

    let view = house.up.drain_coordinator(&admin()).await.unwrap();
    let drain = view.drain.unwrap();
    assert_eq!(drain.by.as_str(), "person/admin");
    let named: Vec<_> = view.at_work.iter().map(|a| (a.step.as_str(), a.attempt, a.agent.as_str())).collect();
    assert_eq!((view.at_work_count, named), (1, vec![("s0", 1, "infra-1")]));

    let source = PlaybookSource::Inline(chain(1));
    let refused = house.up.start_run(&ns(), &source, json!({}), "", None, false, &operator()).await.unwrap_err();
    assert_eq!(refused.code, "COORDINATOR_DRAINING");
    assert!(refused.message.contains("person/admin") && !refused.hint.is_empty(), "{refused:?}");
    house
        .up
        .start_run(&ns(), &source, json!({}), "", None, true, &operator())
        .await
        .expect("nothing is started by that");

    assert_eq!(agent.report(&task, succeeded(json!({}))).await, ReportReply::recorded());
    assert!(agent.gets_nothing_for(Duration::from_secs(60)).await);
    assert_eq!(house.up.coordinator().at_work_count, 0);
    let why = format!("the coordinator is draining, by person/admin, since {:.0}", drain.since);
    assert_eq!(listed_why(&house, &run.id).await, "its coordinator, which person/admin is draining");
    let explained = house.up.explain_run(&ns(), &run.id).await.unwrap();
    assert_eq!((explained[0].subject.as_str(), explained[0].since), ("run", drain.since), "{explained:?}");
    let step = explained.iter().find(|e| e.subject == "step s1").unwrap();
    assert!(step.waits_for.ends_with(&why), "{step:?}");
    assert_eq!(step.hint, "muster coordinator resume", "an agent more is no use");
    assert_eq!(house.up.agent(&ns(), &"infra-1".into()).await.unwrap().busy, 0, "no slot is kept meanwhile");

    assert_eq!(house.up.resume_coordinator(&admin()).await.unwrap().drain, None);
    agent.succeed(1).await;
    house.ended(&run.id).await;
    let later = house.start(&chain(1)).await;
    agent.succeed(1).await;
    house.ended(&later.id).await;
}

#[tokio::test(start_paused = true)]
async fn people_are_answered_while_it_drains() {
    let house = House::open().await;
    let _agent = house.agent("infra-1").await;
    house.up.drain_coordinator(&admin()).await.unwrap();
    house.up.resume_coordinator(&admin()).await.unwrap();
    let run = house.start(&chain(1)).await;
    house.up.drain_coordinator(&admin()).await.unwrap();
    let pause = Command::Pause { reason: "look".into() };
    house.up.command_run(&ns(), &run.id, pause, &operator()).await.unwrap();
    assert_eq!(listed_why(&house, &run.id).await, "the run is paused: look", "a pause holds it by itself");
    let cancel = Command::Cancel { reason: "enough".into(), force: true };
    house.up.command_run(&ns(), &run.id, cancel, &operator()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn who_waited_first_is_served_first_afterwards() {
    let house = House::open().await;
    let first = house.start(&chain(1)).await;
    let second = house.start(&chain(1)).await;
    house.up.drain_coordinator(&admin()).await.unwrap();
    let mut agent = house.agent_with_slots("infra-1", 1).await;
    assert!(agent.gets_nothing_for(Duration::from_secs(60)).await);
    house.up.resume_coordinator(&admin()).await.unwrap();
    for run in [&first, &second] {
        let task = agent.next(TaskReply::Accepted).await;
        assert_eq!(task.key.run, run.id.as_str());
        agent.report(&task, succeeded(json!({}))).await;
    }
}

/// A drain that is asked for while an append is under way is not answered before that is.
async fn drained_behind_an_append(house: &House, appends: u64) -> CoordinatorView {
    while house.journal.appends.load(Ordering::SeqCst) < appends {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let up = house.up.clone();
    let draining = tokio::spawn(async move { up.drain_coordinator(&admin()).await.unwrap() });
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!draining.is_finished() && house.up.coordinator().drain.is_none(), "something begins that is not on disk");
    assert_eq!(house.journal.appends.load(Ordering::SeqCst), appends, "nothing is decided meanwhile");
    house.journal.let_go();
    draining.await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_start_does_not_slip_through_a_drain() {
    let house = House::open().await;
    house.journal.hold();
    let (up, source) = (house.up.clone(), PlaybookSource::Inline(chain(1)));
    let started =
        tokio::spawn(
            async move { up.start_run(&ns(), &source, json!({}), "", None, false, &operator()).await.unwrap() },
        );
    drained_behind_an_append(&house, 1).await;
    let run = started.await.unwrap();
    assert!(!house.run(&run.id).await.has_ended(), "it was started before, and waits");
}

#[tokio::test(start_paused = true)]
async fn an_attempt_does_not_slip_through_a_drain() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(2)).await;
    let task = agent.next(TaskReply::Accepted).await;
    let before = house.journal.appends.load(Ordering::SeqCst);
    house.journal.hold();
    let reporting = tokio::spawn(async move {
        agent.report(&task, succeeded(json!({}))).await;
        agent
    });
    let view = drained_behind_an_append(&house, before + 1).await;
    let named: Vec<_> = view.at_work.iter().map(|a| a.step.as_str()).collect();
    assert_eq!((view.at_work_count, named), (1, vec!["s1"]), "the next step was on its way to disk");
    reporting.await.unwrap().succeed(1).await;
    house.ended(&run.id).await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_can_not_be_journalled_is_none() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    house.journal.fails.store(true, Ordering::SeqCst);
    let refused = house.up.drain_coordinator(&admin()).await.unwrap_err();
    assert_eq!(refused.code, "JOURNAL_UNAVAILABLE");
    house.journal.fails.store(false, Ordering::SeqCst);
    assert_eq!(house.up.coordinator().drain, None);
    let run = house.start(&chain(1)).await;
    agent.succeed(1).await;
    house.ended(&run.id).await;
}

#[tokio::test(start_paused = true)]
async fn a_drain_ends_with_its_process_and_its_request_is_done_once() {
    let mut house = House::open().await;
    let caller = Caller { request_id: Some("6a9f4c1e-0000-4000-8000-00000000000b".into()), ..admin() };
    let first = house.up.drain_coordinator(&caller).await.unwrap().drain.unwrap();
    let other = house.up.drain_coordinator(&operator()).await.unwrap().drain;
    assert_eq!(other, Some(first), "again changes neither who nor when");
    house.crash_and_reopen().await;
    assert_eq!(house.up.coordinator().drain, None);
    assert_eq!(house.up.drain_coordinator(&caller).await.unwrap().drain, None, "it was done before");
    assert_eq!(house.up.resume_coordinator(&caller).await.unwrap_err().code, "REQUEST_ID_REUSED");
    assert!(house.up.drain_coordinator(&admin()).await.unwrap().drain.is_some());
}
