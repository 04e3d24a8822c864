//! From a start to a milestone.

use std::{sync::atomic::Ordering, time::Duration};

use futures_util::StreamExt;
use muster_bus::message::TaskReply;
use muster_coordinator::control::{Control, RunFilter};
use muster_engine::run::{
    Command, Event,
    event::RunOutcome,
    state::{MilestoneState, RunState},
};

use crate::harness::{House, chain, ns, operator, playbook, succeeded};

#[tokio::test(start_paused = true)]
async fn a_run_goes_from_start_to_its_milestone_in_eleven_appends() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let before = house.journal.appends.load(Ordering::SeqCst);
    let run = house.start(&chain(10)).await;
    agent.succeed(10).await;
    let run = house.ended(&run.id).await;
    assert_eq!(house.journal.appends.load(Ordering::SeqCst) - before, 11);
    assert!(matches!(run.state, RunState::Ended { outcome: RunOutcome::Succeeded, .. }), "{:?}", run.state);
    assert_eq!(run.phases[0].milestone.as_ref().unwrap().state, MilestoneState::Reached);
    assert_eq!(run.steps[7].output.as_deref(), Some(&serde_json::json!({"n": 7})));
}

#[tokio::test(start_paused = true)]
async fn what_was_done_is_in_lists_and_in_its_events() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(2)).await;
    let open = house.up.list_runs(&ns(), &RunFilter::default(), 10, "").await.unwrap();
    assert_eq!((open.items.len(), open.items[0].state), (1, "RUNNING"));
    let mut changes = house.up.watch_milestones(&ns(), None).await.unwrap();
    let watch = house.up.watch_run(&ns(), &run.id, 2).await.unwrap();
    agent.succeed(2).await;
    house.ended(&run.id).await;
    let watched: Vec<_> = watch.map(Result::unwrap).collect().await;
    let all = house.up.run_events(&ns(), &run.id, 0, 100).await.unwrap();
    assert_eq!(watched.first().unwrap().event.seq, 3);
    assert_eq!(watched.len() + 2, all.len());
    assert!(matches!(&*watched.last().unwrap().event.event, Event::RunEnded { outcome: RunOutcome::Succeeded, .. }));
    assert_eq!(all[0].by.as_str(), "person/operator");
    assert!(all.iter().any(|e| e.by.as_str() == "agent/infra-1"));
    for (seq, event) in (1..).zip(&all) {
        assert_eq!(event.seq, seq);
    }
    let again: Vec<_> = house.up.watch_run(&ns(), &run.id, 0).await.unwrap().collect().await;
    assert_eq!(again.len(), all.len(), "a watch of an ended run replays and ends");
    let ended = house.up.list_runs(&ns(), &RunFilter::default(), 10, "").await.unwrap();
    assert_eq!(ended.items[0].state, "SUCCEEDED");
    assert!(ended.items[0].ended_at.is_some());
    let milestones = house.up.list_milestones(&ns(), Some(&run.id), 10, "").await.unwrap();
    assert_eq!(milestones.items[0].state, MilestoneState::Reached);
    let mut last = None;
    while let Ok(Some(change)) = tokio::time::timeout(std::time::Duration::from_secs(1), changes.next()).await {
        last = Some(change.unwrap().state);
    }
    assert_eq!(last, Some(MilestoneState::Reached));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_run_tells_and_lists_its_milestone_as_missed() {
    let house = House::open().await;
    let run = house.start(&chain(1)).await;
    let mut changes = house.up.watch_milestones(&ns(), Some(&run.id)).await.unwrap();
    let cancel = Command::Cancel { reason: "enough".into(), force: false };
    house.up.command_run(&ns(), &run.id, cancel, &operator()).await.unwrap();
    let ended = house.ended(&run.id).await;
    let told = changes.next().await.unwrap().unwrap();
    assert_eq!((told.state, told.since), (MilestoneState::Missed, ended.updated_at));
    let listed = house.up.list_milestones(&ns(), Some(&run.id), 10, "").await.unwrap();
    assert_eq!(listed.items[0].state, MilestoneState::Missed);
}

#[tokio::test(start_paused = true)]
async fn a_step_that_fails_instead_of_being_assigned_is_walked_back_from_at_once() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let steps = [
        "id: s0, action: test.work, with: {n: 0}",
        "id: s1, needs: [s0], action: test.work, with: {n: \"{{ steps.s0.output.missing }}\"}",
    ];
    let undo = "undo: {action: test.work, with: {n: 7}}";
    let run = house.start(&playbook(&steps, "").replace("undo: irreversible", undo)).await;
    agent.succeed(1).await;
    let task = tokio::time::timeout(Duration::from_secs(60), agent.next(TaskReply::Accepted)).await;
    let task = task.expect("the undo is not left lying");
    assert_eq!((task.with["n"].as_i64(), task.key.attempt), (Some(7), 2));
    agent.report(&task, succeeded(serde_json::json!({}))).await;
    let run = house.ended(&run.id).await;
    assert!(matches!(run.state, RunState::Ended { outcome: RunOutcome::Failed, .. }), "{:?}", run.state);
}
