//! After records of the journal were lost and a person has accepted that.

use std::time::Duration;

use muster_bus::message::{FailureKind, Outcome, Report, ReportBody, ReportReply, TaskReply};
use muster_coordinator::control::Control as _;
use muster_engine::run::{Command, Run, state::StepState};
use serde_json::json;

use super::harness::*;

const SECOND: Life = Life { cluster: "5b0e7c9a-52a5-4f5e-9c6e-0d7f3a1b2c4d", after_loss: true };

fn is_paused_with_a_question(run: &Run) -> bool {
    run.pause.as_ref().is_some_and(|p| p.question.is_some())
}

#[tokio::test(start_paused = true)]
async fn every_open_run_waits_for_a_person_and_no_attempt_number_is_used_twice() {
    let mut house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let failed = ReportBody::Finished {
        outcome: Outcome::Failed { error: FailureKind::Permanent, message: "look".into(), output: None },
    };
    let asking = house.start(&playbook(&["id: s0, action: test.work, onFailure: pause"], "")).await;
    let task = agent.next(TaskReply::Accepted).await;
    agent.report(&task, failed).await;
    house.until(&asking.id, "asking", |r| matches!(r.steps[0].state, StepState::Asking { .. })).await;
    let over = house.start(&chain(1)).await;
    agent.succeed(1).await;
    let over = house.ended(&over.id).await;
    let active = house.start(&chain(1)).await;
    agent.next(TaskReply::Accepted).await;

    house.reopen_in(&SECOND).await;
    assert!(is_paused_with_a_question(&*house.run(&asking.id).await));
    assert!(is_paused_with_a_question(&*house.run(&active.id).await));
    assert_eq!(house.run(&over.id).await.seq, over.seq, "what has ended is left alone");
    let waits = house.up.explain_run(&ns(), &active.id).await.unwrap();
    assert!(waits.iter().any(|w| w.waits_for.contains("records of the journal are lost")), "{waits:?}");

    // The agent did more than the journal still knows: no reason to doubt the rest of the run.
    let mut lost = task.key.clone();
    lost.attempt = 2;
    agent.register_with(|r| r.holds = vec![lost]).await;
    let pause = Command::Pause { reason: "look".into() };
    let paused = house.up.command_run(&ns(), &asking.id, pause, &operator()).await.unwrap_err();
    assert_eq!(paused.code, "TRANSITION_FORBIDDEN", "no quarantine");
    let seq = house.run(&asking.id).await.seq;
    house.reopen_in(&SECOND).await;
    assert_eq!(house.run(&asking.id).await.seq, seq, "nobody is told twice");

    agent.beat.lock().unwrap().cluster = SECOND.cluster.to_owned();
    agent.register_again().await;
    let resume = Command::Resume { reason: "looked at the host".into() };
    house.up.command_run(&ns(), &asking.id, resume, &operator()).await.unwrap();
    let again = agent.next(TaskReply::Accepted).await;
    assert_eq!((&again.key.run, again.key.attempt), (&task.key.run, 1_001));
    assert_eq!(again.cluster, SECOND.cluster);
}

#[tokio::test(start_paused = true)]
async fn what_was_at_work_before_is_neither_sent_again_nor_denied() {
    let mut house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&chain(1)).await;
    let task = agent.next(TaskReply::Accepted).await;
    house.reopen_in(&SECOND).await;
    agent.beat.lock().unwrap().cluster = SECOND.cluster.to_owned();
    agent.register_again().await;
    assert!(agent.gets_nothing_for(Duration::from_secs(60)).await, "it may have ended in the lost records");

    // Behind the time in which it could start, the agent that holds nothing of it would deny it.
    agent.register_again().await;
    let resume = Command::Resume { reason: "it is still at work".into() };
    let seen = house.up.command_run(&ns(), &run.id, resume, &operator()).await.unwrap();
    assert_eq!((&seen.steps[0].state, seen.steps[0].attempts.len()), (&StepState::Active, 1));
    let (cluster, instance) = (SECOND.cluster.into(), "i1".into());
    let report = Report { cluster, instance, key: task.key.clone(), report: succeeded(json!({})) };
    let answer: ReportReply = agent.ask(&task.report_subject, &report).await;
    assert_eq!(answer, ReportReply::recorded());
    assert_eq!(house.run(&run.id).await.steps[0].state, StepState::Succeeded);
}
