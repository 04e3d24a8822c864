//! Tasks that come in the answers to reports, and what an agent that ends still owes an answer.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt as _;
use muster_bus::{
    LocalBus,
    message::{ReportReply, Task, TaskReply},
};
use serde_json::json;

use support::{Agent, Coordinator, SOON, Setup, both};

/// After so long the coordinator asks about a task that it has sent in an answer.
const ASKED_AFTER: Duration = Duration::from_millis(250);

/// The answer to the next report takes this task along.
fn takes_along(coordinator: &Coordinator, task: &Task) {
    let answer = ReportReply::Recorded { orders: Vec::new(), task: Some(Box::new(task.clone())) };
    coordinator.heard().report_answers.push_back(Some(answer));
}

#[tokio::test(start_paused = true)]
async fn a_task_in_an_answer_is_started_once_though_it_comes_again() {
    let (coordinator, agent) = both(Setup::default()).await;
    assert!(coordinator.registered(1).await.tasks_in_answers);
    let (first, next) = (coordinator.task("a", json!({})), coordinator.task("b", json!({"do": "wait"})));
    takes_along(&coordinator, &next);
    coordinator.carry_out(&first).await;
    for _ in 0..3 {
        assert_eq!(coordinator.send(&next).await, Ok(TaskReply::Accepted), "its copies are answered");
    }
    agent.act.go.notify_one();
    coordinator.outcome(&next).await;
    assert_eq!(agent.act.runs(), 2);
}

#[tokio::test(start_paused = true)]
async fn why_a_task_in_an_answer_is_not_started_its_copy_is_told() {
    let (coordinator, agent) = both(Setup::default()).await;
    let mut strange = coordinator.task("b", json!({}));
    strange.version = "9.0.0".to_owned();
    takes_along(&coordinator, &strange);
    coordinator.carry_out(&coordinator.task("a", json!({}))).await;
    assert!(matches!(coordinator.send(&strange).await, Ok(TaskReply::Refused { why }) if why.contains("9.0.0")));
    assert_eq!(agent.act.runs(), 1);
}

/// The coordinator has given it out before it hears of the drain: the answer is on its way.
#[tokio::test(start_paused = true)]
async fn who_ends_says_first_that_it_does_not_take_what_came_with_an_answer() {
    let (coordinator, agent) = both(Setup::default()).await;
    let (held, late) = (coordinator.task("a", json!({"do": "wait"})), coordinator.task("b", json!({})));
    assert_eq!(coordinator.send(&held).await, Ok(TaskReply::Accepted));
    takes_along(&coordinator, &late);
    agent.shutdown.cancel();
    coordinator.wait("a beat that says so", |heard| heard.beats.iter().any(|beat| beat.draining).then_some(())).await;
    agent.act.go.notify_one();
    coordinator.outcome(&held).await;
    tokio::time::sleep(ASKED_AFTER).await;
    assert_eq!(coordinator.send(&late).await, Ok(TaskReply::Draining), "it does not end before it is asked");
    agent.end().await.unwrap();
    assert_eq!(coordinator.heard().recorded.len(), 1, "who ends takes nothing new");
}

/// Which of two that are woken goes first, nobody says: the worker at its goodbye's answer, or who takes its tasks.
#[tokio::test(start_paused = true)]
async fn a_task_that_meets_the_goodbye_is_told_that_it_will_not_be_started() {
    let (coordinator, agent) = both(Setup::default()).await;
    coordinator.registered(1).await;
    let answer_to = "answers.1";
    let mut answers = coordinator.bus.subscribe(answer_to).await.unwrap();
    coordinator.heard().at_goodbye = Some((coordinator.task("a", json!({})), answer_to.to_owned()));
    agent.shutdown.cancel();
    agent.end().await.unwrap();
    let answer = tokio::time::timeout(SOON, answers.next()).await.expect("an answer").unwrap();
    assert!(!answer.nobody, "there was nobody to answer");
    assert_eq!(serde_json::from_slice::<TaskReply>(&answer.payload).unwrap(), TaskReply::Draining);
}

#[tokio::test(start_paused = true)]
async fn who_was_never_registered_ends_when_it_is_told() {
    let agent = Agent::start(Arc::new(LocalBus::new()), Setup::default());
    tokio::task::yield_now().await;
    agent.shutdown.cancel();
    tokio::time::timeout(SOON, agent.end()).await.expect("it ends").unwrap();
}
