//! Steps that wait for a time or a signal: nothing but the journal and the clock has a part in them.

use std::{sync::Arc, time::Duration};

use muster_bus::message::TaskReply;
use muster_coordinator::control::Control;
use muster_engine::run::{Command, state::StepState};
use serde_json::{Value, json};

use crate::harness::{House, ns, operator, playbook, succeeded};

const FIRST: &str = "id: s0, action: test.work";
const AFTER: &str = "id: s2, needs: [w], action: test.work, with: {n: \"{{ steps.w.output.n }}\"}";

fn waiting(wait: &str) -> String {
    let yaml = playbook(&[FIRST, AFTER], "");
    yaml.replace("        - {id: s2", &format!("        - {{id: w, needs: [s0], wait: {wait}}}\n        - {{id: s2"))
}

fn signal(payload: Value) -> Command {
    Command::Signal { signal: "approved".to_owned(), payload: Arc::new(payload) }
}

#[tokio::test(start_paused = true)]
async fn a_time_goes_on_while_the_coordinator_is_away() {
    let mut house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&waiting("{for: 1h}").replace("{{ steps.w.output.n }}", "7")).await;
    agent.succeed(1).await;
    let waits = house.until(&run.id, "it waits", |r| matches!(r.steps[1].state, StepState::Waiting { .. })).await;
    let since = waits.steps[1].since;
    tokio::time::sleep(Duration::from_secs(1800)).await;
    house.crash_and_reopen().await;
    let done = house.until(&run.id, "the wait is over", |r| r.steps[1].state == StepState::Succeeded).await;
    let waited = done.steps[1].since.duration_since(since);
    assert!((3600..3602).contains(&waited.as_secs()), "{waited}");
    agent.succeed(1).await;
    house.ended(&run.id).await;
}

#[tokio::test(start_paused = true)]
async fn a_signal_is_journalled_before_it_is_answered_and_asked_again_after_a_crash() {
    let mut house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&waiting("{signal: approved}")).await;
    agent.succeed(1).await;
    house.until(&run.id, "it waits", |r| matches!(r.steps[1].state, StepState::Waiting { .. })).await;
    let before = house.up.command_run(&ns(), &run.id, signal(json!({ "n": 3 })), &operator()).await.unwrap();
    assert_eq!(before.signals.len(), 1);
    house.crash_and_reopen().await;
    house.until(&run.id, "the wait is over", |r| r.steps[1].state == StepState::Succeeded).await;
    let again = house.up.command_run(&ns(), &run.id, signal(json!({ "n": 4 })), &operator()).await.unwrap();
    assert_eq!((again.signals.len(), again.signals["approved"]["n"].as_i64()), (1, Some(3)), "the first one counts");
    let task = agent.next(TaskReply::Accepted).await;
    assert_eq!(task.with["n"], 3, "what came with the signal is the output of the wait");
    agent.report(&task, succeeded(json!({}))).await;
    house.ended(&run.id).await;
    let late = house.up.command_run(&ns(), &run.id, signal(json!({})), &operator()).await.unwrap_err();
    assert_eq!(late.code, "RUN_ENDED");
    let unknown = Command::Signal { signal: "other".to_owned(), payload: Arc::new(json!({})) };
    assert_eq!(house.up.command_run(&ns(), &run.id, unknown, &operator()).await.unwrap_err().code, "SIGNAL_NOT_FOUND");
}
