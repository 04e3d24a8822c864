//! Slots of agents that are taken though nobody waits for what is in them.

use std::time::Duration;

use muster_bus::message::{BeatReply, Order, ReportReply, Status, StatusReply, Task, TaskReply};
use muster_coordinator::control::Control as _;
use muster_engine::{ids::RunId, run::Command};
use serde_json::json;

use crate::harness::{Agent, CLUSTER, House, chain, ns, operator, playbook, subjects, succeeded};

#[tokio::test(start_paused = true)]
async fn what_an_ended_run_has_left_at_an_agent_takes_its_slot_until_the_agent_lets_go() {
    let mut house = House::open().await;
    let mut agent = Agent::start(house.bus.clone(), "infra-1", "i1", |r| r.slots = 1).await;
    let left = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    agent.beat.lock().unwrap().holds = vec![task.key.clone()];
    force(&house, &left.id).await;
    let busy = async |house: &House| {
        let agent = house.up.agent(&ns(), &"infra-1".into()).await.unwrap();
        (agent.busy, agent.busy_of_ended_runs)
    };
    assert_eq!(busy(&house).await, (1, 1));
    assert_eq!(house.up.coordinator().at_work_count, 1, "it is at work, whatever became of its run");
    let next = house.start(&chain(1)).await;
    assert!(agent.gets_nothing_for(Duration::from_secs(20)).await, "its only slot is taken");
    let said = house.up.explain_run(&ns(), &next.id).await.unwrap()[0].waits_for.clone();
    assert!(said.contains("infra-1: 1/1 slots taken"), "{said}");

    house.crash_and_reopen().await;
    agent
        .register_with(|r| {
            r.slots = 1;
            r.holds = vec![task.key.clone()];
        })
        .await;
    assert!(agent.gets_nothing_for(Duration::from_secs(20)).await, "its only slot is taken after a restart, too");
    assert_eq!(busy(&house).await, (1, 1));

    agent.beat.lock().unwrap().holds.clear();
    let task = agent.next(TaskReply::Accepted).await;
    assert_eq!(task.key.run, next.id.as_str());
    agent.report(&task, succeeded(json!({}))).await;
    house.ended(&next.id).await;
    // Who asks for the old run does not make the agent hold it again.
    house.run(&left.id).await;
    assert_eq!(busy(&house).await, (0, 0));
    assert_eq!(house.up.coordinator().at_work_count, 0, "a drain does not wait for what its agent has let go of");
}

#[tokio::test(start_paused = true)]
async fn a_forced_cancel_as_the_first_word_tells_the_agent_to_stop_until_it_lets_go() {
    let mut house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    agent.beat.lock().unwrap().holds = vec![task.key.clone()];
    force(&house, &run.id).await;
    let stop = vec![Order::Cancel { key: task.key.clone() }];
    assert_eq!(beat(&agent).await.orders, stop);
    assert_eq!(status(&agent, &task).await, stop);

    house.crash_and_reopen().await;
    agent.register_with(|r| r.holds = vec![task.key.clone()]).await;
    assert_eq!(beat(&agent).await.orders, stop, "a coordinator that starts again still wants it stopped");
    agent.register_with(|r| r.holds = vec![task.key.clone()]).await;
    assert_eq!(status(&agent, &task).await, stop, "who registers again is told, too");

    agent.beat.lock().unwrap().holds.clear();
    assert_eq!(beat(&agent).await.orders, [], "it has let go");
    assert_eq!(status(&agent, &task).await, []);
    assert!(house.run(&run.id).await.has_ended());
}

#[tokio::test(start_paused = true)]
async fn who_has_reported_what_an_ended_run_left_is_told_no_more() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    agent.beat.lock().unwrap().holds = vec![task.key.clone()];
    // Told before by a cancellation that waits.
    let wait = Command::Cancel { reason: "enough".into(), force: false };
    house.up.command_run(&ns(), &run.id, wait, &operator()).await.unwrap();
    force(&house, &run.id).await;
    let stop = vec![Order::Cancel { key: task.key.clone() }];
    assert_eq!(beat(&agent).await.orders, stop);
    agent.report_as("i0", &task, succeeded(json!({}))).await;
    assert_eq!(status(&agent, &task).await, stop, "another process has not let go for it");
    assert_eq!(agent.report(&task, succeeded(json!({}))).await, ReportReply::Stale);
    assert_eq!(status(&agent, &task).await, []);
    assert_eq!(house.up.agent(&ns(), &"infra-1".into()).await.unwrap().busy, 0);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_is_taken_after_its_runs_end_is_to_be_stopped() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    force(&house, &run.id).await;
    assert_eq!(beat(&agent).await.orders, [], "it does not have it yet");
    agent.beat.lock().unwrap().holds = vec![task.key.clone()];
    assert_eq!(beat(&agent).await.orders, [Order::Cancel { key: task.key.clone() }]);
    assert_eq!(house.up.agent(&ns(), &"infra-1".into()).await.unwrap().busy_of_ended_runs, 1);
    let dead = Agent::start(house.bus.clone(), "infra-1", "i2", |r| r.dead = vec!["i1".into()]).await;
    assert_eq!(status(&agent, &task).await, [], "nobody is left to be told");
    assert_eq!(beat(&dead).await.orders, []);
}

#[tokio::test(start_paused = true)]
async fn a_forced_cancel_sends_no_task_of_its_run_any_more_and_stops_nothing_that_is_always_done() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    agent.swallow().await;
    force(&house, &run.id).await;
    assert!(agent.gets_nothing_for(Duration::from_secs(60)).await, "no copy of it");

    let run = house.start(&playbook(&["id: last, action: test.work, always: true"], "")).await;
    let task = agent.next(TaskReply::Accepted).await;
    agent.beat.lock().unwrap().holds = vec![task.key.clone()];
    force(&house, &run.id).await;
    assert_eq!(beat(&agent).await.orders, []);
    assert_eq!(house.up.agent(&ns(), &"infra-1".into()).await.unwrap().busy_of_ended_runs, 1);
}

async fn force(house: &House, run: &RunId) {
    let force = Command::Cancel { reason: "enough".into(), force: true };
    house.up.command_run(&ns(), run, force, &operator()).await.unwrap();
    house.ended(run).await;
}

async fn beat(agent: &Agent) -> BeatReply {
    let beat = agent.beat.lock().unwrap().clone();
    agent.ask(&subjects().beat(&agent.name), &beat).await
}

/// Answered with the orders alone.
async fn status(agent: &Agent, task: &Task) -> Vec<Order> {
    let (cluster, instance) = (CLUSTER.to_owned(), agent.instance.clone());
    let (message, percent, observations) = (String::new(), None, Vec::new());
    let status = Status { cluster, instance, key: task.key.clone(), message, percent, observations };
    let reply: StatusReply = agent.ask(&subjects().status(&agent.name), &status).await;
    reply.orders
}
