//! Slots of agents that are taken though nobody waits for what is in them.

use std::time::Duration;

use muster_bus::message::TaskReply;
use muster_coordinator::control::Control as _;
use muster_engine::run::Command;
use serde_json::json;

use crate::harness::{Agent, House, chain, ns, operator, succeeded};

#[tokio::test(start_paused = true)]
async fn what_an_ended_run_has_left_at_an_agent_takes_its_slot_until_the_agent_lets_go() {
    let mut house = House::open().await;
    let mut agent = Agent::start(house.bus.clone(), "infra-1", "i1", |r| r.slots = 1).await;
    let left = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    agent.beat.lock().unwrap().holds = vec![task.key.clone()];
    let force = Command::Cancel { reason: "enough".into(), force: true };
    house.up.command_run(&ns(), &left.id, force, &operator()).await.unwrap();
    house.ended(&left.id).await;
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
