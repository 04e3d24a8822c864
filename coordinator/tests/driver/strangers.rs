//! An agent that says more than it may know: nobody else's work is changed by it, and nothing grows without end.

use std::time::Duration;

use muster_bus::{
    Bus as _,
    message::{AttemptKey, BeatReply, Register, RegisterReply, Report, ReportReply, Status, StatusReply, TaskReply},
    subject::Subjects,
};
use muster_coordinator::control::{Control as _, PlaybookSource};
use muster_engine::{
    ids::RunId,
    run::{Event, state::StepState},
};
use serde_json::json;

use super::harness::*;

async fn stale_reports(house: &House, run: &RunId) -> usize {
    let events = house.up.run_events(&ns(), run, 0, 1_000).await.unwrap();
    events.iter().filter(|e| matches!(&*e.event, Event::ReportArrivedStale { .. })).count()
}

#[tokio::test(start_paused = true)]
async fn its_offer_of_a_shipped_action_changes_no_plan() {
    let house = House::open().await;
    let plan = async || {
        let source = PlaybookSource::Inline(chain(1));
        house.up.plan(&ns(), &source, json!({})).await.unwrap().plan.steps[0].action.clone()
    };
    let before = plan().await;
    Agent::start(house.bus.clone(), "evil", "i9", |r| {
        r.role = "evil".into();
        let mut other = offer("test.work");
        other.version = "99.0.0".into();
        other.read_only = !other.read_only;
        r.actions = vec![other];
    })
    .await;
    assert_eq!(plan().await, before);
}

#[tokio::test(start_paused = true)]
async fn what_it_says_it_holds_of_a_run_that_is_not_its_own_is_not_believed() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(2)).await;
    let key = AttemptKey { run: run.id.as_str().into(), step: "s1".into(), attempt: 99 };
    Agent::start(house.bus.clone(), "evil", "i9", |r| r.holds = vec![key]).await.fall_silent();
    agent.succeed(2).await;
    assert_eq!(house.ended(&run.id).await.steps[1].state, StepState::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn stale_reports_are_answered_and_not_all_kept() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    let evil = Agent::start(house.bus.clone(), "evil", "i9", |r| r.role = "evil".into()).await;
    let report =
        Report { cluster: CLUSTER.into(), instance: "i9".into(), key: task.key.clone(), report: succeeded(json!({})) };
    for _ in 0..50 {
        let answer: ReportReply = evil.ask(&subjects().report(7, "evil"), &report).await;
        assert_eq!(answer, ReportReply::Stale);
    }
    assert_eq!(stale_reports(&house, &run.id).await, 0, "it was never given the step");
    for _ in 0..50 {
        assert_eq!(agent.report_as("i0", &task, succeeded(json!({}))).await, ReportReply::Stale);
    }
    assert_eq!(stale_reports(&house, &run.id).await, 10);
}

#[tokio::test(start_paused = true)]
async fn its_statuses_of_anothers_attempt_do_not_silence_that_one() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    let evil = Agent::start(house.bus.clone(), "evil", "i9", |r| r.role = "evil".into()).await;
    let say = async |agent: &Agent, instance: &str, message: &str| {
        let status = Status {
            cluster: CLUSTER.into(),
            instance: instance.into(),
            key: task.key.clone(),
            message: message.into(),
            percent: None,
            observations: Vec::new(),
        };
        let _: StatusReply = agent.ask(&subjects().status(&agent.name), &status).await;
    };
    say(&evil, "i9", "under its own name").await;
    say(&evil, "i1", "under that of the other").await;
    say(&agent, "i0", "from a process that is no more").await;
    say(&agent, "i1", "half way").await;
    let run = house.until(&run.id, "told", |r| r.steps[0].attempts[0].status.is_some()).await;
    assert_eq!(run.steps[0].attempts[0].status.as_ref().unwrap().message, "half way");
}

#[tokio::test(start_paused = true)]
async fn nobody_registers_under_anothers_name() {
    let house = House::open().await;
    let (answer, _) = Agent::try_start(house.bus.clone(), "evil", "i9", |r| r.agent = "infra-1".into()).await;
    assert!(matches!(answer, RegisterReply::Refused { .. }), "{answer:?}");
    assert_eq!(house.up.agent(&ns(), &"infra-1".into()).await.unwrap_err().code, "AGENT_NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn nothing_of_another_namespace_reaches_a_run() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    let key = task.key.clone();
    let report = Report { cluster: CLUSTER.into(), instance: "i1".into(), key, report: succeeded(json!({})) };
    let elsewhere = Subjects::new("other").report(7, "infra-1");
    assert_eq!(agent.ask::<_, ReportReply>(&elsewhere, &report).await, ReportReply::Gone);
    assert_eq!(house.run(&run.id).await.steps[0].state, StepState::Active);
    assert_eq!(house.up.run(&"other".into(), &run.id).await.unwrap_err().code, "RUN_NOT_FOUND");
}

#[tokio::test(start_paused = true)]
async fn what_is_said_to_another_cluster_is_not_taken() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    let status = Status {
        cluster: "another".into(),
        instance: "i1".into(),
        key: task.key.clone(),
        message: "half way".into(),
        percent: None,
        observations: Vec::new(),
    };
    let payload = serde_json::to_vec(&status).unwrap().into();
    let answer = agent.bus.request(&subjects().status("infra-1"), payload, Duration::from_secs(5)).await;
    assert!(answer.is_err(), "{answer:?}");
    let mut beat = agent.beat.lock().unwrap().clone();
    beat.cluster = "another".into();
    let reply: BeatReply = agent.ask(&subjects().beat("infra-1"), &beat).await;
    assert!(reply.register_again);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_keeps_nothing_on_disk_can_not_know_its_last_process_dead() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    agent.next(TaskReply::Accepted).await;
    let next = async || {
        let change = |r: &mut Register| (r.durable, r.dead) = (false, vec!["i1".into()]);
        Agent::try_start(house.bus.clone(), "infra-1", "i2", change).await.0
    };
    assert_eq!(next().await, RegisterReply::IdInUse { instance: "i1".into() });
    agent.fall_silent();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(matches!(next().await, RegisterReply::Registered { .. }));
    let run = house.until(&run.id, "lost", |r| r.steps[0].attempts[0].lost_at.is_some()).await;
    assert_eq!(run.steps[0].state, StepState::Active);
}

#[tokio::test(start_paused = true)]
async fn who_takes_the_id_of_an_old_instance_denies_nothing_of_it() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    agent.next(TaskReply::Accepted).await;
    agent.fall_silent();
    // No copy of the task could reach the instance any more: who was it would be believed that it never had it.
    tokio::time::sleep(Duration::from_secs(40)).await;
    assert!(house.run(&run.id).await.steps[0].attempts[0].lost_at.is_some());
    let _next = Agent::start(house.bus.clone(), "infra-1", "i2", |_| {}).await;
    let taker = Agent::start(house.bus.clone(), "evil", "i1", |r| r.role = "evil".into()).await;
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let run = house.run(&run.id).await;
        assert_eq!((run.steps[0].attempts.len(), &run.steps[0].state), (1, &StepState::Active));
    }
    assert!(!taker.heard.lock().unwrap().is_empty());
}
