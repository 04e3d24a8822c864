//! NATS is cut off and comes back.

use std::time::Duration;

use muster_bus::message::{FailureKind, Outcome, ReportBody, ReportReply, TaskReply};
use muster_coordinator::control::{Caller, Control, PlaybookSource};
use muster_engine::run::{
    event::{AttemptEnd, NotStarted},
    state::StepState,
};
use serde_json::json;

use crate::harness::{House, chain, ns, operator, playbook, succeeded};

#[tokio::test(start_paused = true)]
async fn nothing_is_given_out_while_the_bus_is_cut_off_and_everybody_is_told() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    house.link.cut(true);
    let run = house.start(&chain(1)).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let waits = house.up.explain_run(&ns(), &run.id).await.unwrap();
    assert_eq!((waits[0].subject.as_str(), waits[0].waits_for.as_str()), ("run", "NATS, which can't be reached"));
    let step = waits.iter().find(|one| one.subject == "step s0").unwrap();
    assert!(step.waits_for.ends_with("NATS can't be reached"), "{step:?}");
    assert_eq!(step.hint, waits[0].hint, "an agent more is no use");
    let run = house.run(&run.id).await;
    assert!(matches!(run.steps[0].state, StepState::Queued { .. }) && run.steps[0].attempts.is_empty(), "{run:?}");
    house.link.cut(false);
    agent.succeed(1).await;
    let run = house.ended(&run.id).await;
    assert_eq!(run.steps[0].attempts.len(), 1);
    let waits = house.up.explain_run(&ns(), &run.id).await.unwrap();
    assert!(waits.is_empty(), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_of_a_person_comes_before_what_holds_the_rest() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let steps = ["id: s0, action: test.work, onFailure: pause", "id: s1, action: test.work"];
    let run = house.start(&playbook(&steps, "")).await;
    let (first, second) = (agent.next(TaskReply::Accepted).await, agent.next(TaskReply::Busy).await);
    assert_eq!((first.key.step.as_str(), second.key.step.as_str()), ("s0", "s1"));
    let outcome = Outcome::Failed { error: FailureKind::Permanent, message: "no".into(), output: None };
    agent.report(&first, ReportBody::Finished { outcome }).await;
    let admin = Caller { actor: "person/admin".into(), request_id: None };
    house.up.drain_coordinator(&admin).await.unwrap();
    let subjects = async || {
        let waits = house.up.explain_run(&ns(), &run.id).await.unwrap();
        waits.into_iter().map(|one| format!("{}: {}", one.subject, one.on_whom)).collect::<Vec<_>>()
    };
    // So that its wait for a free slot is over.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(subjects().await[..2], ["step s0: devops", "run: person/admin"]);
    house.link.cut(true);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(subjects().await[..2], ["step s0: devops", "run: whoever operates NATS"]);
}

/// Nobody could be asked: that is no reason to give up the wait for an agent.
#[tokio::test(start_paused = true)]
async fn a_wait_for_an_agent_is_not_given_up_while_nobody_can_be_asked() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let hurried = playbook(&["id: s0, action: test.work, queueTimeout: 5s"], "");
    house.link.cut(true);
    let run = house.start(&hurried).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(matches!(house.run(&run.id).await.steps[0].state, StepState::Queued { .. }));
    house.link.cut(false);
    agent.succeed(1).await;
    house.ended(&run.id).await;

    let chained = ["id: s0, action: test.work", "id: s1, needs: [s0], action: test.work, queueTimeout: 5s"];
    let run = house.start(&playbook(&chained, "")).await;
    let task = agent.next(TaskReply::Accepted).await;
    let admin = Caller { actor: "person/admin".into(), request_id: None };
    house.up.drain_coordinator(&admin).await.unwrap();
    agent.report(&task, succeeded(json!({}))).await;
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert!(matches!(house.run(&run.id).await.steps[1].state, StepState::Queued { .. }));
    house.up.resume_coordinator(&admin).await.unwrap();
    agent.succeed(1).await;
    house.ended(&run.id).await;
}

/// Nobody looks at the bus in so short a time.
#[tokio::test(start_paused = true)]
async fn a_run_that_was_held_back_for_a_moment_is_not_forgotten() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    house.link.cut(true);
    let run = house.start(&chain(1)).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(house.run(&run.id).await.steps[0].attempts.is_empty());
    house.link.cut(false);
    agent.succeed(1).await;
    let ended = house.ended(&run.id).await;
    assert!(ended.updated_at.duration_since(run.started_at).as_secs() < 5, "not only with the next reminder");
}

#[tokio::test(start_paused = true)]
async fn what_was_assigned_and_could_not_be_sent_did_not_start() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    house.journal.hold();
    let up = house.up.clone();
    let starting = tokio::spawn(async move {
        up.start_run(&ns(), &PlaybookSource::Inline(chain(1)), json!({}), "", None, false, &operator()).await
    });
    assert!(agent.gets_nothing_for(Duration::from_secs(1)).await, "it is assigned, and the journal has not answered");
    house.link.cut(true);
    house.journal.let_go();
    let run = starting.await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_secs(40)).await;
    let unsent = house.run(&run.id).await;
    let [attempt] = &unsent.steps[0].attempts[..] else { panic!("{unsent:?}") };
    assert!(matches!(attempt.end, Some((_, AttemptEnd::NotStarted { why: NotStarted::Unsent }))), "{attempt:?}");
    house.link.cut(false);
    let task = agent.next(TaskReply::Accepted).await;
    assert_eq!(task.key.attempt, 2);
    agent.report(&task, succeeded(json!({}))).await;
    house.ended(&run.id).await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_does_not_run_out_while_nobody_can_be_heard() {
    let house = House::open().await;
    let mut agent = house.agent("infra-1").await;
    let run = house.start(&playbook(&["id: s0, action: test.work, timeout: 1m"], "")).await;
    let task = agent.next(TaskReply::Accepted).await;
    house.link.cut(true);
    agent.fall_silent();
    // Its clock ends 100 s after the start, and again each 70 s after that: NATS is back just before it does.
    tokio::time::sleep(Duration::from_secs(580)).await;
    let view = house.up.agent(&ns(), &"infra-1".into()).await.unwrap();
    assert_eq!(view.state, "SUSPECT", "nobody knows how it is, and nobody says that it is lost");
    let heard = view.last_beat_at.expect("it was heard");
    assert!(
        house.run(&run.id).await.updated_at.duration_since(heard).as_secs() > 500,
        "the last beat is the last one heard"
    );
    house.link.cut(false);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(house.run(&run.id).await.steps[0].state, StepState::Active);
    assert_eq!(agent.report(&task, succeeded(json!({}))).await, ReportReply::recorded());
    house.ended(&run.id).await;
}
